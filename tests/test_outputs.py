"""No program replaces what it reads, a detector's file, or a file of another hand; its own it does, however often."""

import csv
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.cli import main
from modeling_anople.inspection.records import COLUMNS
from modeling_anople.runtime import printable
from modeling_anople.runtime.outputs import (
    Output,
    check_new_folder,
    check_outputs,
    csv_of,
    inert,
    json_lines_of,
    json_of,
)
from modeling_anople.saving_anople import mark

from .detectors import detector_of, write_detector


@pytest.fixture(scope="module")
def detector(tmp_path_factory, small_clip_folder, photograph) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"), small_clip_folder, photograph)


@pytest.fixture
def pictures(tmp_path, photograph) -> list[str]:
    paths = [tmp_path / "pictures" / f"{number}.png" for number in range(2)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        photograph(number).save(path)
    return list(map(str, paths))


@pytest.fixture
def data(tmp_path, photograph) -> Path:
    for defect in ("good", "scratch"):
        (tmp_path / "data/bolt/test" / defect).mkdir(parents=True)
        for number in range(2):
            photograph(number + len(defect)).save(tmp_path / "data/bolt/test" / defect / f"{number}.png")
    return tmp_path / "data"


def yes(path: Path) -> bool:
    return True


def no(path: Path) -> bool:
    return False


# --- The rule ---


def test_what_is_ours_or_new_or_empty_is_written(tmp_path):
    (tmp_path / "ours").write_text("x", encoding="utf-8")
    (tmp_path / "empty").touch()
    (tmp_path / "leads").symlink_to(tmp_path / "target")
    check_outputs([Output("--a", tmp_path / "ours", yes)])
    check_outputs([Output("--a", tmp_path / name, no) for name in ("new", "a/b/new", "empty", "leads")])


def test_a_file_of_another_hand_needs_overwrite(tmp_path):
    (tmp_path / "theirs").write_text("x", encoding="utf-8")
    output = Output("--a", tmp_path / "theirs", no)
    with pytest.raises(
        ValueError, match="--a .*theirs is there already, and this command did not write it: .*--overwrite"
    ):
        check_outputs([output])
    check_outputs([output], overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_read_is_never_written_whatever_it_is_called(tmp_path, overwrite):
    photo = tmp_path / "photo.png"
    photo.write_text("x", encoding="utf-8")
    (tmp_path / "link.png").symlink_to(photo)
    (tmp_path / "hard.png").hardlink_to(photo)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/other.png").write_text("x", encoding="utf-8")
    for name in ("photo.png", "link.png", "hard.png", "folder/../photo.png"):
        for recognize in (yes, no):
            with pytest.raises(ValueError, match="is read by this command"):
                check_outputs([Output("--a", tmp_path / name, recognize)], inputs=[photo], overwrite=overwrite)
    with pytest.raises(ValueError, match="among what is read"):
        check_outputs(
            [Output("--a", tmp_path / "folder/other.png", no)], inputs=[tmp_path / "folder"], overwrite=overwrite
        )
    check_outputs([Output("--a", tmp_path / "folder/other.png", yes)], inputs=[tmp_path / "folder"])


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "images_anople.py", "graph.json"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_detectors_file_is_never_written(detector, tmp_path, name, overwrite):
    with pytest.raises(ValueError, match=f"--a .*{name} is a file of a detector, or named like one"):
        check_outputs([Output("--a", detector / name, yes)], overwrite=overwrite)
    (tmp_path / "results.csv").symlink_to(detector / name)
    with pytest.raises(ValueError, match="is a file of a detector"):
        check_outputs([Output("--a", tmp_path / "results.csv", yes)], overwrite=overwrite)
    check_outputs([Output("--a", detector / "evaluation.json", no)])


def test_two_outputs_are_not_one_file(tmp_path):
    with pytest.raises(ValueError, match="--b .* is the file of --a too"):
        check_outputs([Output("--a", tmp_path / "x", no), Output("--b", tmp_path / "y/../x", no)])


def test_where_no_file_can_be_none_is_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    places = {".": "is a folder", "pipe": "is a pipe", "/dev/null": "is a pipe, a socket or a device"}
    places |= {"loop": "cannot be written", "file/x": "cannot be written", "n" * 300: "cannot be written"}
    for name, message in places.items():
        with pytest.raises(ValueError, match=message):
            check_outputs([Output("--a", tmp_path / name, yes)], overwrite=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # who tests may be allowed everything
    with pytest.raises(ValueError, match="you may not write"):
        check_outputs([Output("--a", tmp_path / "new", yes)])


def test_a_new_folder_holds_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full/x").mkdir(parents=True)
    (tmp_path / "file").touch()
    check_new_folder(tmp_path / "empty")
    check_new_folder(tmp_path / "a/b")
    for name, message in (("full", "--x .*full is not empty"), ("file", "--x .*file is a file"), ("file/y", "cannot")):
        with pytest.raises(ValueError, match=message):
            check_new_folder(tmp_path / name, "--x")


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"7", b"\xff", b"[" * 100_000, b"{", b'"a,b"', b"a,b,c\n", b"null\n"]
)
def test_what_is_not_ours_is_not_taken_for_it(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    for recognize in (csv_of(("a", "b")), json_lines_of(("a", "b")), json_of(("a", "b"))):
        if content:
            with pytest.raises(ValueError, match="did not write it"):
                check_outputs([Output("--a", path, recognize)])
    path.write_bytes(b"a,b\r\n1,2\r\n")
    for recognize in (csv_of(("a", "b")), csv_of(("a", "b", "c"), ("a", "b"))):
        check_outputs([Output("--a", path, recognize)])
    path.write_bytes(b'{"b": 1, "a": 2, "c": 3}\n')
    check_outputs([Output("--a", path, json_lines_of(("a", "b")))])
    check_outputs([Output("--a", path, json_of(("a", "b")))])


# --- The commands ---


def test_predict_runs_twice_and_spares_what_is_not_its_own(capsys, detector, pictures, tmp_path):
    out, table = tmp_path / "out", tmp_path / "out/results.csv"
    command = ["predict", str(detector), *pictures, "--output", str(out), "--csv", str(table)]
    assert main(command) == main(command) == 0
    drawn = out / "0000-0.png"
    (out / "results.jsonl").write_text("", encoding="utf-8")  # which knows nothing of it any more
    before = drawn.read_bytes()
    assert main(command) == 2
    assert "0000-0.png is there already, and this command did not write it" in capsys.readouterr().err
    assert drawn.read_bytes() == before and main([*command, "--overwrite"]) == 0
    table.write_text(",".join(COLUMNS[:-3]) + "\r\n", encoding="utf-8")  # of an earlier version
    assert main(command) == 0 and table.read_text(encoding="utf-8").startswith(",".join(COLUMNS))
    table.write_text("mine\n", encoding="utf-8")
    assert main(command) == 2 and table.read_text(encoding="utf-8") == "mine\n"
    (out / "results.jsonl").write_text("mine\n", encoding="utf-8")
    assert main([*command[:-2]]) == 2 and (out / "results.jsonl").read_text(encoding="utf-8") == "mine\n"


def test_a_picture_is_not_laid_over_one_that_is_judged(capsys, detector, pictures, tmp_path, photograph):
    folder = Path(pictures[0]).parent
    photograph(5).save(folder / "0000-0.png")
    before = (folder / "0000-0.png").read_bytes()
    command = ["predict", str(detector), pictures[0], str(folder / "0000-0.png"), "--output", str(folder)]
    for more in ([], ["--overwrite"]):
        assert main([*command, *more]) == 2
        assert "0000-0.png is read by this command" in capsys.readouterr().err
    assert (folder / "0000-0.png").read_bytes() == before and not (folder / "results.jsonl").exists()


def test_evaluate_runs_twice_and_spares_what_is_not_its_own(capsys, detector, data, tmp_path):
    gallery = tmp_path / "gallery"
    command = ["evaluate", str(detector), str(data), "--evaluation_size", "32", "--json", str(tmp_path / "e.json")]
    command += ["--csv", str(tmp_path / "e.csv"), "--gallery", str(gallery)]
    assert main(command) == main(command) == 0
    mine = gallery / "samples/mine.jpg"
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"mine")
    assert main(command) == 0 and mine.read_bytes() == b"mine"
    (gallery / "07-mine.png").write_bytes(b"mine")
    assert main(command) == 2 and "07-mine.png is there already" in capsys.readouterr().err
    (gallery / "07-mine.png").unlink()
    for name in ("e.json", "e.csv", "gallery/index.html"):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"mine")
        assert main(command) == 2 and (tmp_path / name).read_bytes() == b"mine"
        assert f"{name} is there already, and this command did not write it" in capsys.readouterr().err
        (tmp_path / name).write_bytes(before)


def test_answers_are_not_taken_from_a_file_of_another_hand(capsys, detector, pictures, tmp_path):
    rows = {"image": [Path(path).read_bytes() for path in pictures]}
    rows["image"] = [{"bytes": content, "path": "a.png"} for content in rows["image"]]
    Dataset.from_dict(rows, features=Features(image=Image(decode=False))).cast_column("image", Image()).to_parquet(
        tmp_path / "rows.parquet"
    )
    command = ["predict", str(detector), str(tmp_path / "rows.parquet"), "--output", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    answers = tmp_path / "out/rows.results.parquet"
    for write in (
        lambda: pq.write_table(pa.table({"a": [1]}), answers),
        lambda: answers.write_bytes(b"mine"),
        lambda: (answers.unlink(), answers.mkdir()),
    ):
        write()
        assert main(command) == 2 and "is there already and holds no answers" in capsys.readouterr().err
    answers.rmdir()
    (tmp_path / "out/rows.results.part").write_bytes(b"mine")
    assert main(command) == main(command) == 0
    assert (tmp_path / "out/rows.results.part").read_bytes() == b"mine" and pq.read_table(answers).num_rows == 2


def test_a_changed_detector_goes_into_a_new_folder(capsys, detector, pictures, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/model.safetensors").write_bytes(b"mine")
    for command in (["enroll", str(detector), "x", pictures[0]], ["forget", str(detector), "nut"]):
        assert main([*command, "--output", str(tmp_path / "mine")]) == 2
        assert "mine is not empty: name a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "adapter.safetensors", "vocab.json", "training_log.jsonl"])
def test_a_fit_replaces_no_file_of_another_hand(capsys, data, small_clip_folder, tmp_path, name):
    shutil.copytree(data / "bolt/test/good", data / "bolt/train/good")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"mine": 1}\n', encoding="utf-8")
    command = ["fit", str(data), "--clip", str(small_clip_folder), "--output_dir", str(out), "--max_steps", "0"]
    assert main(command) == 2
    assert name in capsys.readouterr().err and (out / name).read_text(encoding="utf-8") == '{"mine": 1}\n'
    assert [path.name for path in out.iterdir()] == [name]


# --- What is said ---


CODES = {"bolt\n\x1b[31m": r"bolt\n\x1b[31m", "nu\u200bt\ud800": r"nu\u200bt\ud800"}


def test_names_in_a_file_are_said_without_their_codes(capsys, detector, pictures, data, tmp_path):
    folder = shutil.copytree(detector, tmp_path / "named")
    for file in ("config.json", "processor_config.json"):
        text = (folder / file).read_text(encoding="utf-8")
        for plain, coded in zip(("bolt", "nut"), CODES, strict=True):
            text = text.replace(f'"{plain}"', json.dumps(coded))
        (folder / file).write_text(text, encoding="utf-8")
        mark(folder / file, json.loads(text)["content_sha256"])
    detector_of(AnoPLeModel.from_pretrained(folder), AnoPLeProcessor.from_pretrained(folder)).save_pretrained(folder)
    for words in (["products", str(folder)], ["forget", str(folder), [*CODES][0], "--output", str(tmp_path / "less")]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert all(line.isprintable() for line in said.splitlines()) and [*CODES.values()][0] in said
    assert main(["predict", str(folder), pictures[0], "--class", "screw"]) == 2
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())
    table = tmp_path / "table.csv"
    assert main(["predict", str(folder), pictures[0], "--class", [*CODES][1], "--csv", str(table)]) == 0
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(capsys, detector, photograph, tmp_path, monkeypatch, cell):
    assert inert(cell) == f"'{cell}" and inert(-1.5) == -1.5 and inert("a-b") == "a-b"
    monkeypatch.chdir(tmp_path)
    if not cell.strip().startswith("-") and "/" not in cell:
        photograph(0).save(f"{cell}.png")
        assert main(["predict", str(detector), f"{cell}.png", "--csv", "table.csv"]) == 0
        with open("table.csv", encoding="utf-8", newline="") as file:
            [row] = csv.DictReader(file)
        assert row["path"] == f"'{cell}.png" and tuple(row) == COLUMNS


def test_a_text_is_one_line_of_a_terminal():
    assert printable("a\nb\x1b[0m\u200bü日") == r"a\nb\x1b[0m\u200bü日"
