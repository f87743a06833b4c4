"""`python -m hub.reproduce`: cells, their records, tables, and that no test photograph is opened before weights are final."""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from hub.reproduce.__main__ import main
from hub.reproduce.cells import cell_file
from hub.reproduce.measuring import fit_words, thin_rows
from hub.reproduce.options import ReproduceOptions, clip_weights
from hub.reproduce.tables import TABLES, tables_of
from modeling_anople.configuration_anople import AnoPLeConfig
from modeling_anople.training.options import TrainingConfig, model_options, parse_options

from .fitting import REPOSITORY, one_process, write_products


@pytest.fixture
def run(tmp_path, photograph, small_clip_folder):
    data = write_products(tmp_path / "data", photograph)

    def run(table: str, *options: str) -> int:
        usual = ["--clip", str(small_clip_folder), "--max_steps", "1", "--batch_size", "2", "--evaluation_size", "32"]
        with one_process():
            return main([table, "--data_root", str(data), "--output_dir", str(tmp_path / "out"), *usual, *options])

    return run


def records(folder) -> dict[str, dict]:
    return {
        path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "cells").glob("*.json"))
    }


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_one_that_a_person_could_fit(name):
    table = TABLES[name]
    names = [cell.name for cell in table.cells]
    assert table.reference in names and len(set(names)) == len(names)
    for cell in table.cells:
        arguments = ["--data_root", "data", *cell.fit]
        parse_options("anople fit", TrainingConfig, model_options(), arguments)
        assert set(cell.changes) <= set(AnoPLeConfig.__annotations__)


def test_a_run_goes_on_where_it_stopped(run, tmp_path):
    assert run("identity", "--seeds", "0", "1", "--cells", "2") == 0
    first = records(tmp_path / "out")
    assert len(first) == 4 and len(list((tmp_path / "out/fits").iterdir())) == 2  # cells of a seed share its fit
    lost = next(name for name in first if name.startswith("given"))
    (tmp_path / "out/cells" / lost).unlink()
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/fits").rglob("model.safetensors")}
    assert run("identity", "--seeds", "0", "1", "--cells", "2") == 0
    again = records(tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert {name: record for name, record in again.items() if name != lost} == {
        name: record for name, record in first.items() if name != lost
    }
    assert again[lost]["mean"] == first[lost]["mean"]
    (tmp_path / "out/cells" / lost).unlink()
    assert run("identity", "--seeds", "0", "1", "--cells", "2", "--collect") == 0
    assert len(records(tmp_path / "out")) == 3  # collecting runs nothing
    assert run("identity", "--seeds", "0", "1", "--cells", "2") == 0
    assert run("identity", "--seeds", "0", "--cells", "1", "--shots", "2") == 0
    assert len(records(tmp_path / "out")) == 5  # another setting is another cell


def test_cells_of_other_weights_are_not_taken_over(tmp_path, small_clip_folder):
    """Two CLIPs of one name: the same settings but for the weights, and so another cell and another fit."""
    folders = [tmp_path / parent / "clip" for parent in ("before", "after")]
    for folder in folders:
        shutil.copytree(small_clip_folder, folder)
    weights = load_file(folders[1] / "model.safetensors")
    weights["logit_scale"] = weights["logit_scale"] + 1
    save_file(weights, folders[1] / "model.safetensors", metadata={"format": "pt"})
    cell = TABLES["identity"].cells[0]
    before, after = (ReproduceOptions(data_root="data", output_dir=str(tmp_path), clip=str(clip)) for clip in folders)
    differing = {name for name, value in before.settings().items() if after.settings()[name] != value}
    assert differing == {"clip_weights"} and None not in (before.settings()["clip_weights"], clip_weights("mini"))
    assert cell_file(cell, 0, before) != cell_file(cell, 0, after)
    assert clip_weights("user/name") is None


def test_precision_makes_another_cell_and_workers_do_not():
    cell, usual = TABLES["main"].cells[0], ReproduceOptions("data")
    shorter, quicker = ReproduceOptions("data", mixed_precision="bf16"), ReproduceOptions("data", num_workers=4)
    assert cell_file(cell, 0, quicker) == cell_file(cell, 0, usual) != cell_file(cell, 0, shorter)
    assert fit_words(cell, 0, quicker, "mini") == fit_words(cell, 0, usual, "mini")
    assert "--mixed_precision bf16" in shorter.command("main") and shorter.settings()["mixed_precision"] == "bf16"
    assert parse_options(
        "test", TrainingConfig, model_options(), ["--data_root", "x", *fit_words(cell, 0, shorter, "mini")]
    )


def test_a_record_says_how_it_came_to_be(run, tmp_path):
    assert run("main", "--seeds", "0", "--cells", "1", "--data_set", "mvtec") == 0
    (record,) = records(tmp_path / "out").values()
    assert record["files"].keys() == record["products"].keys() == {"bolt", "nut"}
    assert all(len(files) == 1 and "/train/good/" in files[0] for files in record["files"].values())
    assert record["versions"].keys() >= {"python", "torch", "transformers"} and record["date"].startswith("20")
    assert str(tmp_path) not in json.dumps(record)
    assert record["command"].startswith("anople fit data --clip small --seed 0 --shots 1 --max_steps 1")
    table = (tmp_path / "out/main.md").read_text(encoding="utf-8")
    assert "**A trial run of 1 steps" in table
    assert f"| {100 * record['mean']['image_auroc']:.1f} |" in table and "not run" in table
    assert "--data_set mvtec" in table and str(tmp_path) not in table and "bolt: " in table
    assert (tmp_path / "out/main.png").read_bytes().startswith(b"\x89PNG")


def test_a_product_left_out_is_measured_by_a_detector_that_did_not_learn_it(run, tmp_path):
    assert run("unseen", "--seeds", "0", "--cells", "1") == 0
    (record,) = records(tmp_path / "out").values()
    assert record["products"].keys() == {"bolt", "nut"}
    fits = [json.loads(path.read_text())["class_names"] for path in (tmp_path / "out/fits").glob("*/config.json")]
    assert sorted(fits) == [["bolt"], ["nut"]]


def test_peers_need_no_step(run, tmp_path):
    assert run("peers", "--seeds", "0", "--cells", "3") == 0
    memory, alone, both = (
        next(record for record in records(tmp_path / "out").values() if record["cell"].startswith(start))
        for start in ("memory alone", "written prompts alone", "written prompts and memory")
    )
    assert {record["max_steps"] for record in (memory, alone, both)} == {0}
    assert alone["mean"]["pixel_auroc"] is None  # text has no map
    assert both["mean"]["pixel_auroc"] == pytest.approx(memory["mean"]["pixel_auroc"])
    assert alone["mean"] != both["mean"]


def test_each_kind_of_defect_alone(run, tmp_path, photograph):
    for name in ("bolt", "nut"):
        (tmp_path / f"data/{name}/test/dent").mkdir()
        photograph(77).save(tmp_path / f"data/{name}/test/dent/000.png")
    assert run("defects", "--seeds", "0") == 0
    alone, together, worst = (
        next(record for record in records(tmp_path / "out").values() if record["cell"].startswith(start))
        for start in ("each kind", "all kinds", "each product's")
    )
    assert len(list((tmp_path / "out/fits").iterdir())) == 1
    for name in ("bolt", "nut"):
        kinds = alone["products"][name]["defects"]
        assert kinds.keys() == {"dent", "scratch"} and kinds == worst["products"][name]["defects"]
        aurocs = {kind: entry["image_auroc"] for kind, entry in kinds.items()}
        assert alone["products"][name]["image_auroc"] == pytest.approx(sum(aurocs.values()) / 2)
        assert worst["products"][name]["image_auroc"] == min(aurocs.values())
        assert kinds["dent"]["pixel_auroc"] is None or kinds["scratch"]["pixel_auroc"] is not None
        assert together["products"][name]["anomalous"] == alone["products"][name]["anomalous"] == 2


def test_a_detector_is_taken_to_other_pictures(run, tmp_path, photograph):
    scans = tmp_path / "scans"
    for number, place in enumerate(("no/0 no.jpg", "no/1 no.jpg", "no/2 no.jpg", "yes/Y1.jpg")):
        path = scans / "brain_tumor_dataset" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(40 + number).save(path)
    assert run("transfer", "--seeds", "0", "--transfer_root", f"brain_mri:{scans}") == 0
    made = records(tmp_path / "out")
    assert len(made) == 3 and str(tmp_path) not in json.dumps(made)
    for record in made.values():
        (files,) = record["files"].values()
        assert len(record["products"]) == 1 and len(files) == 1 and "no/0 no.jpg" in files[0]
    fits = [json.loads(path.read_text())["class_names"] for path in (tmp_path / "out/fits").glob("*/config.json")]
    assert sorted(map(len, fits)) == [1, 1, 2]  # of the products, and twice of the scans
    table = (tmp_path / "out/transfer.md").read_text(encoding="utf-8")
    assert "--transfer_root scans" in table and "enrolled without a step" in table


def test_other_pictures_may_be_of_products_with_the_same_names(run, tmp_path):
    others = shutil.copytree(tmp_path / "data", tmp_path / "others")
    for path in (others / "bolt/train/good").iterdir():
        path.rename(path.with_name(f"other_{path.name}"))
    chosen = ("transfer", "--seeds", "0", "--cells", "1", "--transfer_root", str(others))
    assert run(*chosen) == 0
    (record,) = records(tmp_path / "out").values()
    assert sorted(record["products"]) == sorted(record["files"]) == ["bolt", "nut"]
    assert all("other_" in name for name in record["files"]["bolt"])
    shutil.rmtree(tmp_path / "out/cells")
    assert run(*chosen, str(tmp_path / "data")) == 2
    shutil.rmtree(others / "nut")
    assert run(*chosen, "--classes", "bolt") == 2


def test_shots_of_every_view(run, tmp_path):
    assert run("views", "--seeds", "0", "--view_pattern", "00([0-4])") == 0
    shots = {record["cell"]: record["files"]["bolt"] for record in records(tmp_path / "out").values()}
    assert len(shots["k of each product"]) == 1 and len(shots["k of each product and view"]) == 5


@pytest.mark.parametrize(("name", "option"), [("views", "view_pattern"), ("transfer", "transfer_root")])
def test_a_table_without_what_it_needs_is_refused(run, caplog, name, option):
    with pytest.raises(ValueError, match=f"The table '{name}' needs --{option}"):
        tables_of(name)
    assert name not in tables_of("all") and name in tables_of("all", [option])
    assert run(name, "--seeds", "0") != 0


def test_test_photographs_are_thinned_evenly():
    names, labels = ["a"] * 8 + ["b"] * 2, [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]
    assert thin_rows(names, labels, 2) == [0, 2, 4, 6, 8, 9]
    assert thin_rows(names, labels, 9) == list(range(10))


@pytest.mark.parametrize(
    ("options", "message"), [({"shots": 0}, "--shots"), ({"seeds": []}, "--seeds"), ({"cells": -1}, "--cells")]
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReproduceOptions(data_root="data", **options)


def test_a_table_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="No table 'nothing': choose from main"):
        tables_of("main,nothing")


WATCHED = """
import hashlib, json, sys
from pathlib import Path

data, output, clip, report = sys.argv[1:]
events = []


def hashes():
    return {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in Path(output).rglob("model.safetensors")}

busy = []

def watch(event, arguments):
    if event != "open" or busy or not isinstance(arguments[0], str) or not arguments[0].startswith(data):
        return
    busy.append(True)
    try:
        unfinished = [path.name for path in Path(output).glob("fits/*") if not (path / "model.safetensors").exists()]
        events.append((arguments[0][len(data):], unfinished, hashes()))
    finally:
        busy.clear()

sys.addaudithook(watch)
from modeling_anople.training import main as fit
from hub.reproduce.__main__ import main as reproduce

usual = ["--clip", clip, "--max_steps", "1", "--batch_size", "2"]
fit(["--data_root", data, "--output_dir", output + "/alone", "--shots", "1", *usual])
alone = len(events)
arguments = ["--data_root", data, "--output_dir", output, "--evaluation_size", "32", "--seeds", "0", "--cells", "1", *usual]
assert reproduce(["main,unseen", "--data_set", "mvtec", *arguments]) == 0
Path(report).write_text(json.dumps({"fit": events[:alone], "reproduce": events[alone:], "final": hashes()}))
"""


def test_no_test_photograph_is_opened_before_the_weights_are_final(tmp_path, photograph, small_clip_folder):
    data = write_products(tmp_path / "data", photograph)
    report = tmp_path / "report.json"
    arguments = [str(data), str(tmp_path / "out"), str(small_clip_folder), str(report)]
    done = subprocess.run([sys.executable, "-c", WATCHED, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(report.read_text(encoding="utf-8"))

    def is_test(path: str) -> bool:
        return "/test/" in path or "/ground_truth/" in path

    fitted = [path for path, _, _ in seen["fit"]]
    assert fitted and all("/train/good/" in path for path in fitted)
    tests = [event for event in seen["reproduce"] if is_test(event[0])]
    assert {path.split("/")[2] for path, _, _ in tests} == {"test", "ground_truth"}  # the watch does see them
    for path, unfinished, hashes in tests:
        assert not unfinished, path
        assert hashes and all(seen["final"][name] == value for name, value in hashes.items()), path
    assert len(seen["final"]) == 4  # one alone, one of all, one without each product
