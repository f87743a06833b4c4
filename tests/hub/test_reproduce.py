"""`python -m hub.reproduce`: cells, records, tables, the paper's figures beside ours, and no test photograph opened too early."""

import dataclasses
import json
import shutil
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub.reproduce.__main__ import cells_of, main
from hub.reproduce.cells import SubspaceModel, cell_file, fit_words, thin_rows
from hub.reproduce.options import ReproduceOptions, clip_weights
from hub.reproduce.report import check_places, count_tests, draw, summarize, to_markdown, unlike_paper
from hub.reproduce.tables import LAST_BLOCK, TABLES, tables_of
from modeling_anople.configuration_anople import AnoPLeConfig
from modeling_anople.data.public_sets import SETS
from modeling_anople.training.options import TrainingConfig, model_options, parse_options

from ..encoders import write_encoder
from ..fitting import REPOSITORY, fit, one_process, watching_files, write_products


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
        arguments = ["--data_root", "data", *(word.replace(LAST_BLOCK, "11") for word in cell.fit)]
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


def test_a_folder_of_tables_alone_is_enough_to_go_on_from(run, tmp_path):
    assert run("main,identity", "--seeds", "0", "1", "--cells", "2") == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}
    for name in ("cells", "fits"):
        shutil.rmtree(tmp_path / "out" / name)
    for option in ("--collect", "--cells=2"):  # neither runs anything
        assert run("main,identity", "--seeds", "0", "1", option) == 0
        assert not (tmp_path / "out/fits").exists()
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.json")} == made


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "hub/results").glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_committed_tables_are_those_of_their_records(path):
    table = json.loads(path.read_text(encoding="utf-8"))
    for row in table["rows"]:
        records = [record for record in table["records"] if record["cell"] == row["cell"]]
        assert [record["seed"] for record in records] == row["seeds"]
        values = [record["mean"]["image_auroc"] for record in records]
        assert not values or row["image_auroc"][0] == pytest.approx(100 * sum(values) / len(values))


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
    assert record["command"].startswith("anople fit data --recipe paper --clip small --seed 0 --shots 1 --max_steps 1")
    table = (tmp_path / "out/main.md").read_text(encoding="utf-8")
    assert "**A trial run of 1 steps" in table
    assert f"| {100 * record['mean']['image_auroc']:.1f} |" in table and "not run" in table
    assert "--data_set mvtec" in table and str(tmp_path) not in table and "bolt: " in table
    assert (tmp_path / "out/main.png").read_bytes().startswith(b"\x89PNG")


def test_a_product_left_out_is_measured_by_a_detector_that_did_not_learn_it(run, tmp_path):
    assert run("unseen", "--seeds", "0", "--cells", "1") == 0
    (record,) = records(tmp_path / "out").values()
    assert record["products"].keys() == {"bolt", "nut"}
    fits = [AnoPLeConfig.from_pretrained(path).class_names for path in (tmp_path / "out/fits").iterdir()]
    assert sorted(fits) == [["bolt"], ["nut"]]


def test_peers_need_no_step(run, tmp_path):
    assert run("peers", "--seeds", "0", "--cells", "3") == 0
    memory, alone, both = (
        next(record for record in records(tmp_path / "out").values() if record["cell"].startswith(start))
        for start in ("memory alone", "written prompts alone", "written prompts and memory")
    )
    assert {record["max_steps"] for record in (memory, alone, both)} == {0}
    assert alone["mean"]["pixel_auroc"] is None  # text has no map
    # the same map, but for its way over the decoder's grid
    assert both["mean"]["pixel_auroc"] == pytest.approx(memory["mean"]["pixel_auroc"], abs=1e-3)
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
    fits = [AnoPLeConfig.from_pretrained(path).class_names for path in (tmp_path / "out/fits").iterdir()]
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


def test_rows_on_an_encoder_are_there_where_one_is_given(run, tmp_path):
    encoder = write_encoder(tmp_path / "encoder")
    assert run("encoders", "--seeds", "0", "--cells", "3", "--memory_encoder", str(encoder)) == 0
    clip, turned, other = sorted(records(tmp_path / "out").values(), key=lambda record: record["date"])
    assert "memory_encoder" not in clip | turned and other["memory_encoder"] == "encoder"
    assert other["memory_encoder_weights"] == clip_weights(str(encoder))
    assert other["mean"] != clip["mean"] and "--memory_encoder encoder" in other["command"]
    options = ReproduceOptions("data")
    assert not any(cell.encoder for cell in cells_of(TABLES["peers"], options, blocks=12))
    with_one = dataclasses.replace(options, memory_encoder=str(encoder))
    alone, *_, best = (cell for cell in cells_of(TABLES["peers"], with_one, blocks=12) if cell.encoder)
    assert fit_words(alone, 0, with_one, "mini", "encoder")[-2:] == ["--memory_layers", "5"]  # its last block
    assert "--recipe" in best.fit


def test_what_lies_in_the_subspace_of_the_remembered_patches_is_normal():
    model = SubspaceModel.from_clip("mini", ["nut"])
    layers, _, width = model.products[0].bank.vectors.shape
    center, along, off = torch.linalg.qr(torch.randn(width, 3, generator=torch.Generator().manual_seed(0))).Q.T
    steps = torch.linspace(-0.3, 0.3, 196)[:, None]  # as many as the map has places
    line = 0.9 * center + steps * along
    model.products[0].bank.add(line.expand(layers, -1, -1), [len(line)])
    inside, outside = (patches.expand(layers, 1, -1, -1) for patches in (line.flip(0), line + 0.2 * off))
    assert model.memory_maps(inside, torch.tensor([0])).max() < 1e-6
    assert torch.allclose(model.memory_maps(outside, torch.tensor([0])), torch.tensor(0.01), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "option"),
    [("views", "view_pattern"), ("transfer", "transfer_root"), ("encoders", "memory_encoder")],
)
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


def test_no_test_photograph_is_opened_before_the_weights_are_final(tmp_path, photograph, small_clip_folder):
    data, output, events = write_products(tmp_path / "data", photograph), tmp_path / "out", []

    def hashes() -> dict[str, str]:
        return {str(path): sha256(path.read_bytes()).hexdigest() for path in output.rglob("model.safetensors")}

    def opened(path: str) -> None:
        if path.startswith(str(data)):
            unfinished = [fit.name for fit in output.glob("fits/*") if not (fit / "model.safetensors").exists()]
            events.append((path.removeprefix(str(data)), unfinished, hashes()))

    usual = ["--clip", str(small_clip_folder), "--max_steps", "1", "--batch_size", "2"]
    with watching_files(opened):
        fit("--max_steps", "1", data=data, clip=small_clip_folder, output=output / "alone")
        alone = len(events)
        places = ["--data_set", "mvtec", "--data_root", str(data), "--output_dir", str(output)]
        with one_process():
            assert (
                main(["main,unseen", *places, "--evaluation_size", "32", "--seeds", "0", "--cells", "1", *usual]) == 0
            )

    def is_test(path: str) -> bool:
        return "/test/" in path or "/ground_truth/" in path

    fitted = [path for path, _, _ in events[:alone]]
    assert fitted and all("/train/good/" in path for path in fitted)
    tests = [event for event in events[alone:] if is_test(event[0])]
    assert {path.split("/")[2] for path, _, _ in tests} == {"test", "ground_truth"}  # the watch does see them
    final = hashes()
    for path, unfinished, found in tests:
        assert not unfinished, path
        assert found and all(final[name] == value for name, value in found.items()), path
    assert len(final) == 4  # one alone, one of all, one without each product


# --- The paper's figures stand beside ours only where the paper's photographs were tested ---


MVTEC = {name: (good, defective) for name, (_, good, defective) in SETS["mvtec"].classes.items()}
BUT_SCREW = {name: counts for name, counts in MVTEC.items() if name != "screw"}
REAL_IAD = {**dict.fromkeys(SETS["real_iad"].classes, (2100, 1700)), "toy": (63256 - 29 * 2100, 51329 - 29 * 1700)}


def record_of(tested: dict[str, tuple[int, int]], seed: int = 0, auroc: float = 0.8) -> dict:
    """Make the record of a cell that tested so many good and defective photographs of each class."""
    mean = {"image_auroc": auroc, "image_ap": 0.8, "pixel_auroc": None, "aupro": None}
    products = {name: {**mean, "normal": good, "anomalous": bad} for name, (good, bad) in tested.items()}
    made = {"date": "2026", "commit": "abc", "versions": {}, "files": {}, "seconds": 1.0}
    return {"seed": seed, "mean": mean, "products": products, **made}


def summary_of(tested: dict[str, tuple[int, int]], **options) -> dict:
    """Gather the main table of one seed."""
    return summarize(
        "main", TABLES["main"], {"1 shot": [record_of(tested)]}, ReproduceOptions(data_root="data", **options)
    )


def write_tests(root, tested: dict[str, tuple[int, int]]):
    """Write an MVTec tree of files that no program could open as photographs."""
    for name, (good, defective) in tested.items():
        for part, count in {"train/good": 1, "test/good": good, "test/hole": defective}.items():
            (root / name / part).mkdir(parents=True)
            for number in range(count):
                (root / name / part / f"{number:03d}.png").write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("tested", "options", "reason"),
    [
        (MVTEC, {"data_set": "mvtec"}, None),
        (REAL_IAD, {"data_set": "real_iad"}, None),  # whose numbers per class are not known
        ({"bolt": (1, 1)}, {}, None),  # no set is named
        (BUT_SCREW, {"data_set": "mvtec"}, "MVTec AD (missing: screw)."),
        ({**MVTEC, "cookie": (9, 9)}, {"data_set": "mvtec"}, "MVTec AD (no classes of it: cookie)."),
        ({**MVTEC, "grid": (21, 56)}, {"data_set": "mvtec"}, "than the official ones: grid)."),
        ({**REAL_IAD, "toy": (1, 1)}, {"data_set": "real_iad"}, "Real-IAD (another number of test photographs in all"),
        (MVTEC, {"data_set": "mvtec", "classes": list(MVTEC)}, "MVTec AD (--classes was given)."),
        ({**MVTEC, "grid": (4, 4)}, {"data_set": "mvtec", "test_images": 4}, "MVTec AD (--test_images was given)."),
        ({**BUT_SCREW, "pcb": (1, 1)}, {"data_set": "mvtec"}, "(missing: screw; no classes of it: pcb)."),
        (MVTEC, {"data_set": "visa"}, "VisA (missing: candle, "),
        ({}, {"data_set": "mvtec"}, "MVTec AD (missing: bottle, "),
    ],
)
def test_what_is_tested_is_compared_with_the_set_that_is_named(tested, options, reason):
    why = unlike_paper(tested, ReproduceOptions(data_root="data", **options))
    assert why is None if reason is None else reason in why


def test_test_photographs_are_counted_without_opening_any(tmp_path):
    source = f"mvtec:{write_tests(tmp_path, {'bolt': (2, 3), 'nut': (1, 0)})}"
    assert count_tests(source) == {"bolt": (2, 3), "nut": (1, 0)}
    assert count_tests(source, ["nut"]) == {"nut": (1, 0)}


def test_the_papers_figures_stand_beside_ours_of_the_whole_set():
    summary = summary_of(MVTEC, data_set="mvtec")
    text = to_markdown(summary)
    assert f"| 94.5 | {80 - 94.5:+.1f} | +0.0 |" in text and "left out" not in text
    assert "467 good and 1258 defective photographs; classes measured: bottle, cable, capsule, " in text
    assert [line.get_label() for line in draw(summary).axes[0].lines][-1] == "paper"


@pytest.mark.parametrize(
    ("tested", "options"), [(BUT_SCREW, {}), (MVTEC, {"classes": list(MVTEC)}), (MVTEC, {"test_images": 500})]
)
def test_else_they_are_left_out_with_the_reason(tested, options):
    summary = summary_of(tested, data_set="mvtec", **options)
    assert {row[key] for row in summary["rows"] for key in ("paper", "difference", "paper_to_reference")} == {None}
    text = to_markdown(summary)
    assert "94.5" not in text and "ours - paper" not in text and "| +0.0 |\n" in text
    lengths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(lengths) == 1 and text.count("The paper's figures are left out, for what is tested is not") == 1
    assert "paper" not in [line.get_label() for line in draw(summary).axes[0].lines]


def test_one_record_of_other_photographs_is_enough():
    found = {"1 shot": [record_of(MVTEC), record_of(BUT_SCREW, seed=1)]}
    options = ReproduceOptions(data_root="data", data_set="mvtec")
    assert "missing: screw" in summarize("main", TABLES["main"], found, options)["paper_left_out"]


def test_kinds_of_defect_apart_are_counted_together():
    hardest = record_of(MVTEC)
    for entry in hardest["products"].values():
        kinds = {"dent": {"anomalous": 1}, "hole": {"anomalous": entry["anomalous"] - 1}}
        entry |= {"anomalous": 1, "defects": kinds}
    options = ReproduceOptions(data_root="data", data_set="mvtec")
    summary = summarize("defects", TABLES["defects"], {"each product's hardest kind": [hardest]}, options)
    assert summary["paper_left_out"] is None
    assert summary["protocol"]["test_photographs"] == {"normal": 467, "anomalous": 1258}


def test_a_table_without_the_papers_figures_leaves_none_out():
    found = {"memory alone, CLIP as it is": [record_of({"brain": (5, 1)})]}
    options = ReproduceOptions(data_root="data", data_set="mvtec")
    assert summarize("transfer", TABLES["transfer"], found, options)["paper_left_out"] is None


@pytest.fixture
def run_without_fits(tmp_path, monkeypatch, caplog):
    """Run the program on drawn-up counts, with records in the place of fits; return the warnings that each of them saw."""

    def run(tested: dict[str, tuple[int, int]], *options: str) -> list[int]:
        source, seen = f"mvtec:{write_tests(tmp_path / 'data', tested)}", []

        def run_cell(cell, seed, options):
            seen.append(sum("The paper's figures are left out" in record.message for record in caplog.records))
            return record_of(count_tests(options.data_root, options.classes), seed)

        monkeypatch.setattr("hub.reproduce.__main__.run_cell", run_cell)
        usual = [
            "--data_root",
            source,
            "--data_set",
            "mvtec",
            "--output_dir",
            str(tmp_path / "out"),
            "--seeds",
            "0",
            "1",
        ]
        assert main(["main,coupling", *usual, "--cells", "1", *options]) == 0
        return seen

    return run


def test_a_warning_comes_once_before_the_first_fit(run_without_fits, tmp_path, caplog):
    assert run_without_fits({"bottle": (20, 63), "cookie": (1, 1)}) == [1, 1, 1, 1]
    (warned,) = [record for record in caplog.records if "left out" in record.message]
    assert warned.levelname == "WARNING" and "(missing: cable, " in warned.message
    for name in ("main", "coupling"):
        assert warned.message in (tmp_path / f"out/{name}.md").read_text(encoding="utf-8")
        assert json.loads((tmp_path / f"out/{name}.json").read_text(encoding="utf-8"))["paper_left_out"]


def test_the_whole_set_is_not_warned_of(run_without_fits, tmp_path):
    assert run_without_fits(MVTEC) == [0, 0, 0, 0]
    assert "| 94.5 | -14.5 |" in (tmp_path / "out/main.md").read_text(encoding="utf-8")


def test_a_class_that_is_not_there_is_refused_before_the_first_fit(tmp_path, capsys):
    source = f"mvtec:{write_tests(tmp_path / 'data', {'bottle': (1, 1)})}"
    arguments = ["main", "--data_root", source, "--data_set", "mvtec", "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--classes", "screw"]) == 2
    assert "screw" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_collecting_needs_no_data(tmp_path):
    source = f"mvtec:{tmp_path / 'elsewhere'}"
    arguments = ["main", "--data_root", source, "--data_set", "mvtec", "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--collect"]) == 0 and (tmp_path / "out/main.md").exists()
    assert main(arguments) == 2


def test_figures_of_other_products_are_not_subtracted_from_the_papers():
    record, lower = record_of(MVTEC), record_of(MVTEC, auroc=0.7)
    found = {"multi-scale, prefix": [record, record_of(MVTEC, seed=1)], "multi-scale, no prefix": [lower]}
    for data_set, difference in (("other", None), ("mvtec", pytest.approx(70 - 91.8)), ("visa", None)):
        options = ReproduceOptions(data_root="data", data_set=data_set)
        rows = {row["cell"]: row for row in summarize("scale", TABLES["scale"], found, options)["rows"]}
        assert rows["multi-scale, no prefix"]["difference"] == difference
    assert rows["multi-scale, no prefix"]["to_reference"] == pytest.approx(-10)
    easier = record_of(MVTEC, seed=2, auroc=0.95)  # a seed that the other row lacks
    unequal = {**found, "multi-scale, prefix": [record, easier]}
    rows = {row["cell"]: row for row in summarize("scale", TABLES["scale"], unequal, options)["rows"]}
    assert rows["multi-scale, no prefix"]["to_reference"] == pytest.approx(-10)
    assert rows["single scale, no prefix"]["image_auroc"] is None
    text = to_markdown(summarize("scale", TABLES["scale"], found, ReproduceOptions(data_root="data")))
    assert "only orders can be compared" in text and "| -2.7 |" in text and "| not run |" in text


def test_no_table_replaces_a_file_of_another_hand(tmp_path):
    table = tmp_path / "main.json"
    for name in ("main.json", "main.md", "main.png"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
        with pytest.raises(ValueError, match=f"--output_dir .*{name} is there already"):
            check_places(["main"], tmp_path, overwrite=False)
        check_places(["main"], tmp_path, overwrite=True)
        (tmp_path / name).unlink()
    table.write_text(json.dumps(dict.fromkeys(("table", "rows", "protocol", "records"))), encoding="utf-8")
    (tmp_path / "main.md").write_text("of that table", encoding="utf-8")
    check_places(["main"], tmp_path, overwrite=False)
