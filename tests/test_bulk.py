"""Data sets in shards: every photograph once, shard by shard, through kills and over processes."""

import re
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image

from modeling_anople.cli import main
from modeling_anople.data import shards as bulk
from modeling_anople.data.shards import list_shards
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime.loading import load_detector

from .detectors import write_detector
from .shards import answers_in, image_files, without_time, write_shards
from .test_sharding import launch


@pytest.fixture(scope="module")
def detector(tmp_path_factory, small_clip_folder, photograph) -> Path:
    return write_detector(tmp_path_factory.mktemp("bulk") / "detector", small_clip_folder, photograph)


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
    real, judged = bulk._answers, []

    def killed(model, processor, rows, *others):
        judged.append(rows)
        if len(judged) == 2:
            raise KeyboardInterrupt
        yield from real(model, processor, rows, *others)

    monkeypatch.setattr(bulk, "_answers", killed)
    assert main([*arguments, str(broken)]) == 130
    assert [path.name for path in broken.iterdir()] == ["0.results.parquet"]  # and nothing half done
    first = (broken / "0.results.parquet").read_bytes()
    assert main([*arguments, str(broken)]) == 1
    assert len(judged) == 2 + 3 and (broken / "0.results.parquet").read_bytes() == first
    assert without_time(answers_in(broken)) == without_time(answers_in(whole))


def test_two_processes_share_the_shards(detector, shards, tmp_path):
    arguments = ["predict", str(detector), str(shards), "--class", "nut", "--output"]
    done = launch(2, "modeling_anople.cli", *arguments, str(tmp_path / "two"))
    assert done.returncode == 1, done.stderr[-2000:]  # as alone: one photograph cannot be read
    assert main([*arguments, str(tmp_path / "one")]) == 1
    assert without_time(answers_in(tmp_path / "two")) == without_time(answers_in(tmp_path / "one"))


def test_what_is_left_is_shared_anew(detector, shards, tmp_path):
    """The first and the third are answered, which one of two processes would take: each takes one of the others."""
    paths = sorted(map(str, shards.iterdir()))
    arguments = ["--class", "nut", "--output", str(tmp_path)]
    assert main(["predict", str(detector), *paths[::2], *arguments]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = launch(2, "modeling_anople.cli", "predict", str(detector), str(shards), *arguments)
    assert done.returncode == 1, done.stderr[-2000:]
    said = re.findall(r"Process (\d) answers (\S+)\.$", done.stderr, re.MULTILINE)
    assert sorted(said) == [("0", paths[1]), ("1", paths[3])]
    assert before.items() < {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()


def test_a_process_with_a_bad_photograph_does_not_end_the_other(detector, images, tmp_path):
    """The launcher ends all processes when one ends with an error: the short shard's must wait for the long one's."""
    (tmp_path / "shards").mkdir()
    for name, files in (("a", [images[4]]), ("b", [images[0]] * 1500)):
        rows = {"image": [{"bytes": file, "path": None} for file in files]}
        Dataset.from_dict(rows, features=Features(image=Image())).to_parquet(tmp_path / f"shards/{name}.parquet")
    places = [str(detector), str(tmp_path / "shards"), "--class", "nut", "--output", str(tmp_path / "out")]
    assert launch(2, "modeling_anople.cli", "predict", *places).returncode == 1
    assert {name: len(rows) for name, rows in answers_in(tmp_path / "out").items()} == {
        "a.results.parquet": 1,
        "b.results.parquet": 1500,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "add --output FOLDER"),
        (["--output", "{}", "--explain", "--tiling", "auto"], "--explain, --tiling cannot be had with shards"),
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
    real = bulk._in_parts
    monkeypatch.setattr(bulk, "_in_parts", lambda rows, size: real(rows, 2))
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
