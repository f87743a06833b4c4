"""The `anople` program: its commands on a fitted detector, what they write, what a second run leaves, errors of one line."""

import contextlib
import csv
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor, ImageError, __version__, load_image
from modeling_anople import cli as program
from modeling_anople.cli import COMMANDS, main
from modeling_anople.data import read_dataset
from modeling_anople.images_anople import list_images
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime import start_logging
from modeling_anople.runtime.heat_maps import MIN_LEGEND_HEIGHT, overlay

from ..detectors import normals_of
from ..fitting import one_process
from ..test_images import BROKEN, COLOUR


@pytest.fixture
def checkpoint(fitted) -> Path:
    return fitted


@pytest.fixture
def pictures(tmp_path, photograph) -> list[Path]:
    """Three photographs, one of them with a defect, in names of several scripts."""
    paths = [
        tmp_path / name for name in ("photographs/ü 1.png", "photographs/日本.jpg", f"photographs/{'🔩' * 62}.png")
    ]
    paths[0].parent.mkdir()
    for path, size in zip(paths, [(48, 40), (90, 30), (31, 70)], strict=True):
        photograph(0).resize(size).save(path)
    return paths


@pytest.fixture
def numbered(tmp_path, photograph) -> list[str]:
    paths = [tmp_path / "photographs" / f"{number}.png" for number in range(3)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        photograph(number).save(path)
    return [str(path) for path in paths]


def run(capsys, *arguments: object, code: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


def test_without_a_command_the_usage_is_shown(capsys):
    for arguments, code in (([], 2), (["--help"], 0), (["-h"], 0), (["paint"], 2)):
        assert main(arguments) == code
        output = capsys.readouterr()
        assert output.out == "" and all(f"\n  {name} " in output.err for name in COMMANDS)
        assert ("no command 'paint'" in output.err) == (arguments == ["paint"])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fit", ["--shots", "--output_dir", "--prompt_depth", "--resume"]),
        ("evaluate", ["checkpoint", "data", "--gallery", "--class_identity", "{fused,memory,decoder,text}"]),
        ("predict", ["checkpoint", "images", "--class", "--output", "--threshold"]),
        ("products", ["checkpoint"]),
        ("enroll", ["checkpoint", "name", "images", "--output", "--max_false_alarm_rate"]),
        ("add_normals", ["checkpoint", "name", "images", "--output"]),
        ("rename", ["checkpoint", "name", "new_name", "--output"]),
        ("forget", ["checkpoint", "name", "--output"]),
        ("draw", ["folder", "--seed", "--defective"]),
    ],
)
def test_each_command_has_help(capsys, command, words):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and f"usage: anople {command}" in text and all(word in text for word in words)


@pytest.mark.parametrize(
    "arguments", [["predict"], ["evaluate", "x"], ["draw"], ["draw", "x", "--seed", "one"], ["fit"]]
)
def test_wrong_options_end_with_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and f"usage: anople {arguments[0]}" in capsys.readouterr().err


def test_predict_prints_a_json_line_for_each_image(capsys, checkpoint, pictures):
    lines = [json.loads(line) for line in run(capsys, "predict", checkpoint, *pictures, "--class", "nut").splitlines()]
    model, processor = AnoPLeModel.from_pretrained(checkpoint), AnoPLeProcessor.from_pretrained(checkpoint)
    expected = list(predict(model, processor, pictures, class_names="nut"))
    assert [line["path"] for line in lines] == [str(path) for path in pictures]
    assert [line["score"] for line in lines] == pytest.approx([each.score for each in expected], abs=1e-6)
    assert [line["label"] for line in lines] == [each.label for each in expected]
    for line in lines:
        known = {
            "id",
            "time",
            "path",
            "class",
            "score",
            "label",
            "unsure",
            "raw_score",
            "p_value",
            "seconds",
            "regions",
        }
        assert line.keys() - {"reason"} == known and ("reason" in line) <= (line["label"] == "anomalous")
        assert line["class"] == "nut" and 0 <= line["score"] <= 1 and line["seconds"] >= 0


def test_predict_writes_a_table(capsys, tmp_path, checkpoint, pictures):
    (tmp_path / "broken.png").write_bytes(b"none")
    sources = [*pictures, tmp_path / "broken.png"]
    table = tmp_path / "new/results.csv"
    output = run(capsys, "predict", checkpoint, *sources, "--class", "nut", "--csv", table, code=1)
    lines = [json.loads(line) for line in output.splitlines()] if output else []
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert [row["path"] for row in rows] == [str(path) for path in sources]
    for row in rows[:-1]:
        assert 0 < float(row["p_value"]) <= 1 and float(row["raw_score"]) > 0 and row["label"] and not row["error"]
    assert rows[-1]["error"] and not rows[-1]["score"]
    for row, line in zip(rows, lines, strict=False):
        assert float(row["p_value"] or 0) == (line["p_value"] or 0)


def test_predict_writes_overlays_at_the_images_own_size(capsys, tmp_path, checkpoint, pictures):
    output = run(capsys, "predict", checkpoint, *pictures, "--class", "bolt", "--output", tmp_path / "new/out")
    assert (tmp_path / "new/out/results.jsonl").read_text(encoding="utf-8") == output
    lines = [json.loads(line) for line in output.splitlines()]
    assert len({line["overlay"] for line in lines}) == 3
    model, processor = AnoPLeModel.from_pretrained(checkpoint), AnoPLeProcessor.from_pretrained(checkpoint)
    for line, path in zip(lines, pictures, strict=True):
        picture, original = Image.open(line["overlay"]), load_image(path)
        width, height = original.size
        assert (
            picture.height > max(height, MIN_LEGEND_HEIGHT) and picture.width > width
        )  # a band below, the scale beside
        [prediction] = predict(model, processor, [path], class_names="bolt")
        expected = overlay(original, prediction.full_size_map())
        difference = np.asarray(picture.crop((0, 0, width, height))) - np.asarray(expected, dtype=float)
        assert np.abs(difference).max() <= 2  # a batch's map differs in its last bits


def test_predict_takes_folders_in_order(capsys, checkpoint, pictures, photograph):
    folder = pictures[0].parent
    (folder / "sub/.hidden").mkdir(parents=True)
    (folder / "picture.png").mkdir()
    for name in ("sub/a.tif", "sub/.hidden/a.png", ".thumbnail.png", "sub/notes.txt", "sub/manual.pdf"):
        (
            photograph(3).save(folder / name)
            if name[-3:] in ("tif", "png")
            else (folder / name).write_bytes(b"no picture")
        )
    lines = [json.loads(line) for line in run(capsys, "predict", checkpoint, folder, pictures[1]).splitlines()]
    expected = [*sorted([*pictures, folder / "sub/a.tif"]), pictures[1]]
    assert (
        [line["path"] for line in lines]
        == [str(path) for path in expected]
        == list(map(str, list_images([folder, pictures[1]])))
    )


def test_predicted_classes_and_thresholds(capsys, tmp_path, checkpoint, photograph):
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for class_id, path in enumerate(paths):
        normals_of(photograph, class_id)[0].save(path)
    for threshold, label in (("0", "anomalous"), ("1", "normal")):
        output = run(capsys, "predict", checkpoint, *paths, "--threshold", threshold)
        lines = [json.loads(line) for line in output.splitlines()]
        assert [line["class"] for line in lines] == ["bolt", "nut"]
        assert [line["label"] for line in lines] == [label] * 2
    assert main(["predict", str(checkpoint), str(paths[0]), "--threshold", "1.5"]) == 2
    assert "--threshold must lie within 0 and 1, got 1.5" in capsys.readouterr().err


def test_undecodable_file_names_survive(capsys, tmp_path, checkpoint, photograph):
    name = os.fsdecode(b"b\xfclt.png")  # latin-1 on a UTF-8 disk
    with contextlib.suppress(OSError):
        photograph(0).save(tmp_path / name)
    if not (tmp_path / name).exists():
        pytest.skip("this disk takes no such names")
    output = run(
        capsys, "predict", checkpoint, tmp_path, "--class", "bolt", "--output", tmp_path.parent / "undecodable"
    )
    [line] = map(json.loads, output.splitlines())
    assert line["path"] == str(tmp_path / name) and Image.open(line["overlay"]).height > MIN_LEGEND_HEIGHT


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "products"
    options = ["--classes", "gear", "capsule", "--train", "2", "--good", "2", "--defective", "2", "--size", "48"]
    assert main(["draw", str(folder), *options, "--seed", "3"]) == 0
    for old, new in (("gear", "bolt"), ("capsule", "nut")):  # the products of the detector
        (folder / old).rename(folder / new)
    return folder


def test_draw_writes_what_can_be_read(capsys, tmp_path, drawn):
    test = read_dataset(drawn, split="test")
    assert len(read_dataset(drawn, split="train")) == 4 and len(test) == 8 and sum(test["label"]) == 4
    assert all(row["mask"] for row in test if row["label"])
    again = ["--classes", "gear", "--train", "2", "--good", "2", "--defective", "2", "--size", "48", "--seed"]
    assert str(tmp_path / "a") in run(capsys, "draw", tmp_path / "a", *again, "3")
    run(capsys, "draw", tmp_path / "b", *again, "4")
    same, other = (tmp_path / name / "gear/train/good/000.png" for name in "ab")
    assert same.read_bytes() == (drawn / "bolt/train/good/000.png").read_bytes() != other.read_bytes()
    assert main(["draw", str(tmp_path / "a")]) == 2
    assert "a is not empty: name a new folder" in capsys.readouterr().err


def test_evaluate_writes_all_that_is_asked_for(capsys, tmp_path, checkpoint, drawn):
    files = {"--json": tmp_path / "x/e.json", "--csv": tmp_path / "y/e.csv", "--gallery": tmp_path / "z"}
    options = [word for pair in files.items() for word in pair]
    table = run(capsys, "evaluate", checkpoint, drawn, "--evaluation_size", 32, *options)
    report = json.loads(files["--json"].read_text(encoding="utf-8"))
    assert report["evaluation_size"] == 32 and report["classes"].keys() == {"bolt", "nut"}
    assert len(files["--csv"].read_text(encoding="utf-8").splitlines()) == 9
    pictures = sorted(path.name for path in files["--gallery"].iterdir() if path.is_file())
    assert pictures == ["01-bolt.png", "02-nut.png", "index.html"]
    [row] = [line for line in table.splitlines() if line.startswith("| mean ")]
    figures = [f"{100 * report['mean'][key]:.1f}" for key in ("image_auroc", "image_ap", "pixel_auroc", "aupro")]
    assert all(f" {figure} " in row for figure in figures) and str(files["--gallery"] / "index.html") in table


@pytest.mark.parametrize("part", ["fused", "memory", "decoder", "text"])
def test_evaluate_one_part_and_one_class(capsys, tmp_path, checkpoint, drawn, part):
    options = ["--score", part, "--classes", "nut", "--evaluation_size", 32, "--json", tmp_path / "e.json"]
    run(capsys, "evaluate", checkpoint, drawn, *options, "--class_identity", "predicted")
    report = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert report["score"] == part and report["class_identity"] == "predicted" and [*report["classes"]] == ["nut"]
    assert (report["mean"]["pixel_auroc"] is None) == (part == "text")


def test_evaluate_refuses_data_without_tests(capsys, tmp_path, checkpoint, photograph):
    (tmp_path / "bolt/train/good").mkdir(parents=True)
    photograph(0).save(tmp_path / "bolt/train/good/0.png")
    assert main(["evaluate", str(checkpoint), str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "put them into CLASS/test/good" in output.err and "Traceback" not in output.err


def test_fit_takes_the_data_first(capsys, tmp_path, drawn, small_clip_folder):
    options = ["--clip", small_clip_folder, "--shots", 2, "--max_steps", 1, "--batch_size", 1, "--monitor_images", 0]
    with one_process(), torch.random.fork_rng(devices=[]):
        run(capsys, "fit", drawn, *options, "--output_dir", tmp_path / "out")
        assert main(["fit", str(drawn), "--output_dir", str(tmp_path / "out")]) == 2
        assert "already holds a detector" in capsys.readouterr().err
        assert main(["fit", str(drawn), "--clip", str(small_clip_folder), "--memory_layers", "99"]) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("anople fit: ")]
    assert "memory_layers [99] are no blocks of a vision tower with 4" in error
    assert len(run(capsys, "predict", tmp_path / "out", drawn / "nut/test/good").splitlines()) == 2


def test_judging_needs_none_of_the_extras(capsys, monkeypatch, checkpoint, pictures, drawn):
    """`pip install anople` alone predicts; the other commands name what they lack."""
    for name in ("cli", "data", "evaluation", "evaluation.metrics", "runtime.heat_maps", "training"):
        for part in (name, f"{name}.__main__"):
            monkeypatch.delitem(sys.modules, f"modeling_anople.{part}", raising=False)
    for name in ("datasets", "scipy", "sklearn", "accelerate"):
        monkeypatch.setitem(sys.modules, name, None)
    from modeling_anople.cli import main as bare_main

    assert bare_main(["predict", str(checkpoint), str(pictures[0])]) == 0
    assert bare_main(["doctor", str(checkpoint)]) in (0, 1)  # by what this machine has
    for arguments, extra in ((["evaluate", str(checkpoint), str(drawn)], "evaluate"), (["fit", str(drawn)], "train")):
        assert bare_main(arguments) == 2
        assert f"pip install 'anople[{extra}]'" in capsys.readouterr().err


def test_masks_of_a_data_set_are_no_images(drawn, caplog):
    paths = list_images([drawn])
    assert paths and not [path for path in paths if "ground_truth" in path.parts]
    assert re.search(r"passed over \d+ files? \(\d+ masks in ground_truth\)", caplog.text)
    masks = next(drawn.glob("*/ground_truth"))
    assert list_images([masks])  # where they are asked for


def test_an_export_names_the_extra_of_its_format(capsys, monkeypatch, checkpoint, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["export", str(checkpoint), str(tmp_path / "graph"), "--format", "openvino"]) == 2
    assert "pip install 'anople[openvino]'" in capsys.readouterr().err


def test_installed_program(tmp_path, checkpoint, pictures):
    [entry] = entry_points(group="console_scripts", name="anople")
    assert entry.load() is main
    program = Path(sys.executable).with_name("anople")
    command = [program, "predict", checkpoint, pictures[0], tmp_path / "gone.png", "--class", "bolt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and [line["class"] for line in lines] == ["bolt", None]
    assert lines[1]["error"].endswith("gone.png: there is no such file.") and "Traceback" not in done.stderr


# --- At its edges ---


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"anople {__version__}\n"


def test_an_interrupted_command_ends_with_a_line(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(program.COMMANDS, "predict", interrupted)
    assert main(["predict", "x"]) == 130
    assert capsys.readouterr().err.strip() == "anople predict: stopped."


@pytest.mark.parametrize("words", [["--explain"], ["--explain", "true"], ["--explain", "no"]])
def test_an_option_that_asks_yes_or_no_takes_no_image(capsys, checkpoint, numbered, words):
    assert main(["predict", *words, str(checkpoint), *numbered[:2]]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and all(("explanation" in line) == (words[-1] != "no") for line in lines)


def test_a_folder_is_summed_up(capsys, checkpoint, numbered, tmp_path, caplog):
    (tmp_path / "photographs" / "damaged.png").write_bytes(b"no picture")
    with caplog.at_level(logging.INFO, logger="modeling_anople"):
        assert main(["predict", str(checkpoint), str(tmp_path / "photographs"), "--class", "bolt"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    labels = ["unsure" if row.get("unsure") else row.get("label") for row in rows]
    counts = [f"{labels.count(label)} {label}" for label in ("anomalous", "normal", "unsure") if label in labels]
    assert caplog.messages[-1] == f"4 photographs: {', '.join(counts)}, 1 that could not be used."


def test_a_second_run_replaces_the_pictures_of_the_first(capsys, checkpoint, numbered, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), *numbered, "--class", "bolt", "--output", str(out)]) == 0
    (out / "mine.png").write_bytes(b"not of a run")
    for line in (
        b"[1]",
        b"7",
        b'{"overlay": true}',
        b'{"overlay": "x/.."}',
        b'{"overlay": "mine.png"}',
        b"\xff",
        b'{"path',
    ):
        with (out / "results.jsonl").open("ab") as file:  # of another program, or killed while it was written
            file.write(line + b"\n")
    assert main(["predict", str(checkpoint), numbered[2], "--class", "screw", "--output", str(out)]) == 2
    assert len(list(out.iterdir())) == 5
    assert main(["predict", str(checkpoint), numbered[2], "--class", "bolt", "--output", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0000-2.png", "mine.png", "results.jsonl"]
    assert main(["predict", str(checkpoint), numbered[0], "--output", str(out / "mine.png")]) == 2
    assert "mine.png is a file: name a folder for --output" in capsys.readouterr().err


def test_pictures_that_are_judged_where_they_lie_stay(capsys, checkpoint, numbered, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), *numbered[:2], "--class", "bolt", "--output", str(out)]) == 0
    assert main(["predict", str(checkpoint), str(out), "--class", "bolt", "--output", str(out)]) == 0
    assert {"0000-0.png", "0001-1.png"} < {path.name for path in out.iterdir()}


def test_own_lines_are_shown_and_those_of_libraries_are_not(capsys):
    loggers = [logging.getLogger(name) for name in ("modeling_anople.training", "hub.publish", "onnxscript", "httpx2")]
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers.clear()
    try:
        start_logging()
        for logger in loggers:
            logger.info("an info of %s", logger.name)
        loggers[2].warning("a warning")
    finally:
        root.handlers[:], root.level = before
    assert capsys.readouterr().err.splitlines() == [
        "an info of modeling_anople.training",
        "an info of hub.publish",
        "a warning",
    ]


def test_an_address_is_not_taken_for_a_file(capsys, checkpoint):
    assert main(["predict", str(checkpoint), "https://example.com/a.png"]) == 2
    assert "https://example.com/a.png is an address, and none is fetched" in capsys.readouterr().err
    with pytest.raises(ImageError, match="https://example.com/a.png: addresses are not fetched: download"):
        load_image("https://example.com/a.png")
    with pytest.raises(ImageError, match="there is no such file"):
        load_image("C:/none.png")


# --- What cannot be used ---


def test_bad_files_cost_a_batch_nothing_but_themselves(tmp_path, checkpoint, photograph, capsys):
    good = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(good, normals_of(photograph, 0), strict=True):
        image.save(path)
    bad = [tmp_path / name for name in ("cut.png", "empty.png", "bomb.png", "bright.tif", "gone.png")]
    for path in bad[:-1]:
        path.write_bytes(BROKEN[path.name][0])
    assert main(["predict", str(checkpoint), *map(str, good), "--class", "bolt"]) == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    mixed = [bad[0], good[0], bad[1], bad[2], good[1], bad[3], bad[4], good[2]]
    assert main(["predict", str(checkpoint), *map(str, mixed), "--class", "bolt"]) == 1
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in mixed]
    for line in (line for line in lines if Path(line["path"]) in bad):
        assert line["error"].startswith(line["path"] + ": ") and line["score"] is line["label"] is None
    judged = [line for line in lines if Path(line["path"]) in good]
    assert [line["score"] for line in judged] == pytest.approx([line["score"] for line in alone], abs=1e-5)
    assert not any("error" in line for line in judged) and "Traceback" not in output.err


def cut(name: str, share: float):
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(share * len(whole))])

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("model.safetensors", 0.5), r"model\.safetensors is damaged .*: copy the folder again, or fit"),
        (cut("model.safetensors", 0), r"model\.safetensors is damaged"),
        (cut("config.json", 0.5), r"config\.json is damaged .*: copy the folder again"),
        (cut("processor_config.json", 0.5), r"processor_config\.json is damaged"),
        (cut("tokenizer.json", 0.5), r"tokenizer\.json is damaged"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "no file named model.safetensors, nor parts of one: copy the folder",
        ),
        (
            lambda folder: (folder / "config.json").unlink(),
            r"holds no detector \(no config\.json\): give the --output",
        ),
    ],
)
def test_damaged_checkpoints_are_refused_by_name(tmp_path, checkpoint, capsys, damage, message):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    damage(folder)
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    assert_refused(capsys, ["predict", str(folder), str(tmp_path / "a.png")], f"{folder}.*{message}")


def test_what_is_no_detector_is_refused(tmp_path, small_clip_folder, capsys):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    picture = str(tmp_path / "a.png")
    assert_refused(capsys, ["predict", str(small_clip_folder), picture], "its model_type is 'clip', not 'anople'")
    assert_refused(
        capsys, ["predict", str(tmp_path / "gone"), picture], "gone is no folder, and as a Hub id it cannot"
    )
    assert_refused(capsys, ["predict", picture, picture], r"a\.png holds no detector")


def test_data_that_cannot_be_used_is_refused(tmp_path, checkpoint, capsys):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    (tmp_path / "data/bolt/train/good").mkdir(parents=True)
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    for command in (["fit"], ["evaluate", str(checkpoint)]):
        assert_refused(capsys, [*command, str(tmp_path / "file")], "file is a file: give the folder")
        assert_refused(capsys, [*command, str(tmp_path / "gone")], "gone does not exist: check the path")
    assert_refused(
        capsys, ["fit", str(tmp_path / "data")], "Class 'bolt' has no normal photographs in .*good: put them"
    )
    predict = ["predict", str(checkpoint)]
    assert_refused(capsys, [*predict, str(tmp_path / "data")], "data holds no image files: give photographs")
    named = [*predict, str(tmp_path / "a.png")]
    assert_refused(capsys, [*named, "--class", "screw"], r"class 'screw' is not known .* knows \['bolt', 'nut'\]")
    assert_refused(capsys, [*named, "--output", str(tmp_path / "file")], "file is a file: name a folder")


def assert_refused(capsys, arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    last = [line for line in output.err.splitlines() if line.startswith(f"anople {arguments[0]}: ")]
    assert len(last) == 1 and "Traceback" not in output.err and output.out == ""
    assert re.search(message, last[0])


def test_masks_and_maps_lie_as_the_photographs_do_and_are_never_read_again(capsys, tmp_path, checkpoint, photograph):
    inside = tmp_path / "in"
    for name in ("line 1/a.png", "line 1/a.bmp", "line 2/masked.png"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(len(name), size=(48, 40)).save(inside / name)
    saving = ["--class", "nut", "--output", inside / "out", "--save", "masks,maps", "--min_area", "30"]
    lines = [json.loads(line) for line in run(capsys, "predict", checkpoint, inside, *saving).splitlines()]
    out = inside / "out"
    assert [Path(line["map"]).relative_to(out).as_posix() for line in lines] == [
        "maps/line 1/a.bmp.png",
        "maps/line 1/a.png.png",
        "maps/line 2/masked.png",
    ]
    assert any(line["regions"] for line in lines)
    model, processor = AnoPLeModel.from_pretrained(checkpoint), AnoPLeProcessor.from_pretrained(checkpoint)
    for line, found in zip(lines, predict(model, processor, list_images([inside]), class_names="nut"), strict=True):
        full = found.full_size_map()
        assert line["regions"] == found.find_regions(min_area=30)
        assert all(region["area"] >= 30 for region in line["regions"])
        drawn = np.asarray(Image.open(line["map"]))
        assert drawn.dtype == np.uint16 and np.abs(drawn / 65535 - full).max() < 1e-4
        marked = np.asarray(Image.open(line["mask"]))
        assert marked.shape == (40, 48) and marked.dtype == np.uint8
        assert ((marked > 0).sum() == sum(region["area"] for region in line["regions"])) and set(
            np.unique(marked)
        ) <= {0, 255}
    again = run(capsys, "predict", checkpoint, inside, *saving, "--map_format", "npy", "--csv", inside / "out/a.csv")
    again = [json.loads(line) for line in again.splitlines()]
    assert [line["path"] for line in again] == [line["path"] for line in lines]
    assert np.load(again[0]["map"]).dtype == np.float32 and not Path(lines[0]["map"]).exists()
    rows = list(csv.DictReader((inside / "out/a.csv").open(encoding="utf-8", newline="")))
    assert [json.loads(row["regions"]) for row in rows] == [line["regions"] for line in again]
    for arguments, message in (
        (["--save", "masks"], "add --output FOLDER"),
        (["--save", "all", "--output", out], "not all"),
    ):
        assert main(["predict", str(checkpoint), str(inside), *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
