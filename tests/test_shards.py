"""Data sets in shards, on disk and on the Hub: every photograph once, through kills and over processes."""

import re
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image
from huggingface_hub import CommitOperationAdd

from modeling_anople.cli import main
from modeling_anople.data import shards as judging
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime.loading import list_shards, load_detector

from .detectors import write_detector
from .fitting import launch_processes
from .local_hub.client import Client, anople, anople_in_two_processes, api
from .shards import answers_in, image_files, without_time, write_shards


NAME = "me/photographs"


@pytest.fixture(scope="module")
def detector(tmp_path_factory, small_clip_folder, photograph) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector") / "detector", small_clip_folder, photograph)


@pytest.fixture(scope="module")
def images(photograph) -> list[bytes]:
    return image_files(photograph)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, images) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), images)


def test_every_photograph_is_answered_once_and_as_alone(detector, shards, images, tmp_path):
    parquet = sorted(map(str, shards.glob("*.parquet")))
    options = ["--class_column", "product", "--output", str(tmp_path), "--batch_size", "2"]
    assert main(["predict", str(detector), *parquet, *options]) == 1  # one cannot be read
    answers = answers_in(tmp_path)
    assert list(answers) == ["0.results.parquet", "1.results.parquet", "2.results.parquet"]
    rows = [row for part in answers.values() for row in part]
    assert [row["path"] for row in rows] == [f"camera/{number}.png" for number in range(11)]
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    names = ["bolt"] * 5 + ["nut"] * 6
    alone = list(predict(*load_detector(str(detector)), images, class_names=names))
    for number, (row, one) in enumerate(zip(rows, alone, strict=True)):
        if number == 4:
            assert "cannot be read whole" in row["error"] and row["score"] is None
            continue
        assert row["error"] is None and (row["label"], row["class_name"]) == (one.label, names[number])
        assert row["score"] == pytest.approx(one.score, abs=1e-5)


def test_a_web_dataset(detector, shards, tmp_path):
    assert main(["predict", str(detector), str(shards / "web.tar"), "--output", str(tmp_path)]) == 0
    (rows,) = answers_in(tmp_path).values()
    assert [row["path"] for row in rows] == ["part/0", "part/6", "part/7"]
    assert [row["class_name"] for row in rows] == ["bolt", "nut", "nut"]  # found by itself


def test_a_killed_run_goes_on(detector, shards, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = ["predict", str(detector), str(shards), "--class", "nut", "--output"]
    assert main([*arguments, str(whole)]) == 1
    real, judged = judging._answers, []

    def killed(model, processor, rows, *others):
        judged.append(rows)
        if len(judged) == 2:
            raise KeyboardInterrupt
        yield from real(model, processor, rows, *others)

    monkeypatch.setattr(judging, "_answers", killed)
    assert main([*arguments, str(broken)]) == 130
    assert [path.name for path in broken.iterdir()] == ["0.results.parquet"]  # and nothing half done
    first = (broken / "0.results.parquet").read_bytes()
    assert main([*arguments, str(broken)]) == 1
    assert len(judged) == 2 + 3 and (broken / "0.results.parquet").read_bytes() == first
    assert without_time(answers_in(broken)) == without_time(answers_in(whole))


def test_what_is_left_is_shared_anew_and_a_bad_photograph_ends_no_other_process(detector, images, tmp_path):
    """
    The first and the third are answered, which one of two processes would take: each takes one of the others.

    The launcher ends all processes when one ends with an error: the short shard's must wait for the long one's.
    """
    (tmp_path / "shards").mkdir()
    paths = [str(tmp_path / f"shards/{name}.parquet") for name in "abcd"]
    for path, files in zip(paths, (images[:2], [images[4]], images[5:8], [images[0]] * 1500), strict=True):
        rows = {"image": [{"bytes": file, "path": None} for file in files]}
        Dataset.from_dict(rows, features=Features(image=Image())).to_parquet(path)
    out = tmp_path / "out"
    arguments = ["--class", "nut", "--output", str(out)]
    assert main(["predict", str(detector), *paths[::2], *arguments]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done = launch_processes(2, "modeling_anople.cli", "predict", str(detector), str(tmp_path / "shards"), *arguments)
    assert done.returncode == 1, done.stderr[-2000:]
    said = re.findall(r"Process (\d) answers (\S+)\.$", done.stderr, re.MULTILINE)
    assert sorted(said) == [("0", paths[1]), ("1", paths[3])]
    assert len(before) == 2 and before.items() < {path.name: path.read_bytes() for path in out.iterdir()}.items()
    counts = {name: len(rows) for name, rows in answers_in(out).items()}
    assert counts == {f"{name}.results.parquet": count for name, count in zip("abcd", (2, 1, 3, 1500), strict=True)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "add --output FOLDER"),
        (["--output", "{}", "--explain", "--tiling", "auto"], "--explain, --tiling cannot be had with shards"),
        (["--output", "{}", "--map_format", "npy"], "--map_format cannot be had with shards"),
        (["--output", "{}", "--class_column", "kind"], "has no column 'kind'"),
        (["--output", "{}", "--image_column", "path"], r"of which \['picture'\] hold images"),
        (["--output", "{}", "--class", "nut", "--class_column", "product"], "not both"),
        (
            ["--output", "{}", "--class_column", "path"],
            "Rows 0 to 3 of a shard: The class 'camera/0.png' is not known",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(detector, shards, tmp_path, capsys, options, message):
    options = [option.format(tmp_path) for option in options]
    assert main(["predict", str(detector), str(shards / "0.parquet"), *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_row_of_an_unknown_product_does_not_stop_the_others(detector, images, tmp_path):
    rows = {"image": [{"bytes": file, "path": None} for file in images[:3]], "product": ["bolt", "screw", None]}
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(tmp_path / "rows.parquet")
    options = ["--class_column", "product", "--output", str(tmp_path / "out")]
    assert main(["predict", str(detector), str(tmp_path / "rows.parquet"), *options]) == 1
    (answers,) = answers_in(tmp_path / "out").values()
    assert answers[0]["class_name"] == "bolt" and answers[0]["error"] is None
    for answer, said in zip(
        answers[1:], ("class 'screw' is not known", "no product is given in product"), strict=True
    ):
        assert said in answer["error"] and answer["score"] is None


def test_a_last_part_of_unknown_products_stops_nothing(detector, images, tmp_path, monkeypatch):
    real = judging._in_parts
    monkeypatch.setattr(judging, "_in_parts", lambda rows, size: real(rows, 2))
    rows = {"image": [{"bytes": file, "path": None} for file in images[:3]], "product": ["bolt", "nut", "screw"]}
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(tmp_path / "rows.parquet")
    options = ["--class_column", "product", "--output", str(tmp_path / "out")]
    assert main(["predict", str(detector), str(tmp_path / "rows.parquet"), *options]) == 1
    (answers,) = answers_in(tmp_path / "out").values()
    assert [answer["error"] is None for answer in answers] == [True, True, False]


def test_photographs_as_plain_bytes_are_refused_with_what_to_do(detector, images, tmp_path, capsys):
    Dataset.from_dict({"image": images[:2]}).to_parquet(tmp_path / "plain.parquet")
    assert main(["predict", str(detector), str(tmp_path / "plain.parquet"), "--output", str(tmp_path)]) == 2
    assert "none of which is of images: write it with the photographs' column cast" in capsys.readouterr().err


def test_a_run_that_is_repeated_ends_as_before(detector, shards, tmp_path, caplog):
    caplog.set_level("INFO")
    arguments = ["predict", str(detector), str(shards / "1.parquet"), "--class", "nut", "--output", str(tmp_path)]
    assert main(arguments) == 1 and main(arguments) == 1
    assert caplog.text.count("1 photographs could not be read or are") == 1 and "is answered already" in caplog.text


@pytest.mark.parametrize("missing", [["reason"], ["unsure", "reason"]])
def test_answers_of_an_earlier_version_are_answers(detector, shards, tmp_path, caplog, missing):
    caplog.set_level("INFO")
    arguments = ["predict", str(detector), str(shards / "1.parquet"), "--class", "nut", "--output", str(tmp_path)]
    assert main(arguments) == 1
    [target] = tmp_path.iterdir()
    pq.write_table(pq.read_table(target).drop_columns(missing), target)
    caplog.clear()
    assert main(arguments) == 1 and "is answered already" in caplog.text  # one photograph could not be read
    pq.write_table(pq.read_table(target).drop_columns(["error"]), target)
    assert main(arguments) == 2


def test_shards_of_one_name_are_refused(shards, tmp_path):
    (tmp_path / "0.parquet").write_bytes((shards / "0.parquet").read_bytes())
    with pytest.raises(ValueError, match="Several shards would be answered in 0.results.parquet"):
        list_shards([str(shards), str(tmp_path)])


def test_photographs_beside_shards_are_refused(detector, shards, photograph, tmp_path, capsys):
    photograph(1).save(tmp_path / "a.png")
    for places in ([shards / "0.parquet", tmp_path], [tmp_path / "a.png", shards]):
        assert main(["predict", str(detector), *map(str, places), "--output", str(tmp_path / "out")]) == 2
        assert (
            "holds no shards, and others do: give shards and photographs in separate runs" in capsys.readouterr().err
        )


def test_a_name_that_is_all_ending_is_no_shard(tmp_path):
    (tmp_path / ".parquet").touch()
    assert list_shards([str(tmp_path)]) == []


# Shards on the Hub: streamed from there, at one commit, with the answers that the same files on disk have.


@pytest.fixture(scope="module")
def on_hub(client, shards) -> str:
    """The shards in a private data set, parquet files below `data` and the tar beside them; the commit they came with."""
    client.call(api, "create_repo", NAME, repo_type="dataset", private=True)
    files = {f"data/{path.name}": path for path in sorted(shards.glob("*.parquet"))}
    files |= {
        "web.tar": shards / "web.tar",
        "README.md": b"# Photographs\n",
        "data/0.results.parquet": b"not one of them",
    }
    parts = [CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()]
    return client.call(api, "create_commit", NAME, parts, commit_message="photographs", repo_type="dataset").oid


def test_answers_are_those_of_the_files(client, on_hub, detector, shards, tmp_path):
    options = ["--class", "nut", "--output"]
    code, _, errors = client.call(anople, "predict", detector, f"hf://datasets/{NAME}", *options, tmp_path / "hub")
    assert code == 1, errors  # one photograph cannot be read
    assert main(["predict", str(detector), str(shards), *options, str(tmp_path / "disk")]) == 1
    expected = without_time(answers_in(tmp_path / "disk"))
    found = without_time(answers_in(tmp_path / "hub"))
    assert {name.removeprefix("data-"): rows for name, rows in found.items()} == expected
    metadata = pq.read_schema(tmp_path / "hub" / "data-1.results.parquet").metadata
    assert metadata[b"anople_shard"].decode() == f"hf://datasets/{NAME}@{on_hub}/data/1.parquet"


@pytest.mark.parametrize(
    ("place", "code", "expected"),
    [
        ("", 1, ["data-0", "data-1", "data-2", "web"]),
        ("/data", 1, ["data-0", "data-1", "data-2"]),
        ("/data/[02].parquet", 0, ["data-0", "data-2"]),
        ("/web.tar", 0, ["web"]),
    ],
    ids=str,
)
def test_part_of_a_data_set(client, on_hub, detector, tmp_path, place, code, expected):
    address = f"hf://datasets/{NAME}@{on_hub}{place}"
    ended, _, errors = client.call(anople, "predict", detector, address, "--class", "nut", "--output", tmp_path)
    assert ended == code, errors
    assert list(answers_in(tmp_path)) == [f"{name}.results.parquet" for name in expected]


def test_answers_to_another_file_are_not_kept(client, on_hub, detector, shards, tmp_path):
    """A newer commit counts only where it changed a file; files on disk and on the Hub are told apart."""
    address, options = f"hf://datasets/{NAME}", ["--class", "nut", "--output", tmp_path]
    assert client.call(anople, "predict", detector, f"{address}@{on_hub}/data/0.parquet", *options)[0] == 0
    before = (tmp_path / "data-0.results.parquet").read_bytes()
    changes = [
        CommitOperationAdd("data/0.parquet", str(shards / "2.parquet")),
        CommitOperationAdd("more/0.parquet", str(shards / "2.parquet")),
    ]
    for number, change in enumerate(changes[::-1]):
        client.call(api, "create_commit", NAME, [change], commit_message="a change", repo_type="dataset")
        code, _, errors = client.call(anople, "predict", detector, f"{address}/data", *options)
        if number == 0:
            assert code == 1, errors
            assert len(answers_in(tmp_path)) == 3 and (tmp_path / "data-0.results.parquet").read_bytes() == before
    assert code == 2 and f"@{on_hub}/data/0.parquet, and hf://datasets/{NAME}@" in errors
    assert "another folder of answers, or on the Hub the revision" in errors
    answered = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, errors = client.call(anople, "predict", detector, f"{address}@{on_hub}/data", *options)
    assert code == 1, errors  # all are answered, and one photograph could not be read
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == answered
    (tmp_path / "data-0.parquet").write_bytes((shards / "0.parquet").read_bytes())
    code, _, errors = client.call(anople, "predict", detector, tmp_path / "data-0.parquet", *options)
    assert code == 2 and "data-0.parquet is another file" in errors


@pytest.mark.parametrize(
    ("address", "token", "message"),
    [
        (f"hf://datasets/{NAME}", "token-of-another", "(?i)repository not found"),
        (f"hf://datasets/{NAME}@nowhere", None, "revision not found"),
        (f"hf://datasets/{NAME}/nothing", None, "nothing does not exist: nothing of that name is in me/photographs"),
        (
            f"hf://datasets/{NAME}/*.md",
            None,
            f"holds no shards .* copy in parquet: hf://datasets/{NAME}@refs/convert/parquet",
        ),
        ("hf://me/photographs", None, "is no data set: give hf://datasets/OWNER/NAME"),
    ],
    ids=str,
)
def test_what_is_not_there_is_said(client, on_hub, detector, tmp_path, address, token, message):
    code, _, errors = client.call(anople, "predict", detector, address, "--output", tmp_path / "out", token=token)
    assert code == 2
    assert re.search(message, errors), errors
    assert not (tmp_path / "out").exists()


def test_a_connection_that_is_lost_costs_nothing(client, on_hub, faults, detector, tmp_path):
    address = f"hf://datasets/{NAME}@{on_hub}/data/*.parquet"
    faults.cut_downloads = 2
    code, _, errors = client.call(anople, "predict", detector, address, "--class", "nut", "--output", tmp_path)
    assert code == 1 and faults.cut_downloads == 0, errors
    assert {name: len(rows) for name, rows in answers_in(tmp_path).items()} == {
        "data-0.results.parquet": 4,
        "data-1.results.parquet": 4,
        "data-2.results.parquet": 3,
    }


def test_two_processes_stream_from_the_hub(client, on_hub, detector, shards, tmp_path):
    place = f"hf://datasets/{NAME}@{on_hub}"
    options = ["--class", "nut", "--output", str(tmp_path / "two")]
    assert client.call(anople_in_two_processes, "predict", detector, place, *options) == [1, 1]
    assert main(["predict", str(detector), str(shards), *options[:-1], str(tmp_path / "disk")]) == 1
    found = without_time(answers_in(tmp_path / "two"))
    assert {name.removeprefix("data-"): rows for name, rows in found.items()} == without_time(
        answers_in(tmp_path / "disk")
    )


def test_a_hub_that_cannot_be_reached_is_said(hub, detector, tmp_path, capsys):
    """The address of nobody, and a user who is offline on purpose, as this process is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    words = ["predict", str(detector), f"hf://datasets/{NAME}", "--output", str(tmp_path / "out")]
    client = Client({**hub.environment(tmp_path / "home", "token-of-me"), "HF_ENDPOINT": nobody})
    code, _, errors = client.call(anople, *words)
    client.close()
    assert code == 2 and f"the Hub at {nobody} cannot be reached" in errors, errors
    assert main(words) == 2 and "offline mode is enabled" in capsys.readouterr().err
