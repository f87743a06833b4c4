"""`python -m hub.reproduce`: the paper's figures stand beside ours only where the paper's photographs were tested."""

import json

import pytest

from hub.reproduce.__main__ import main
from hub.reproduce.options import ReproduceOptions
from hub.reproduce.paper_data import count_tests, unlike_paper
from hub.reproduce.report import draw, summarise, to_markdown
from hub.reproduce.tables import TABLES
from modeling_anople.data.public_sets import SETS


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
    return summarise(
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
    assert "missing: screw" in summarise("main", TABLES["main"], found, options)["paper_left_out"]


def test_kinds_of_defect_apart_are_counted_together():
    hardest = record_of(MVTEC)
    for entry in hardest["products"].values():
        kinds = {"dent": {"anomalous": 1}, "hole": {"anomalous": entry["anomalous"] - 1}}
        entry |= {"anomalous": 1, "defects": kinds}
    options = ReproduceOptions(data_root="data", data_set="mvtec")
    summary = summarise("defects", TABLES["defects"], {"each product's hardest kind": [hardest]}, options)
    assert summary["paper_left_out"] is None
    assert summary["protocol"]["test_photographs"] == {"normal": 467, "anomalous": 1258}


def test_a_table_without_the_papers_figures_leaves_none_out():
    found = {"memory alone, CLIP as it is": [record_of({"brain": (5, 1)})]}
    options = ReproduceOptions(data_root="data", data_set="mvtec")
    assert summarise("transfer", TABLES["transfer"], found, options)["paper_left_out"] is None


@pytest.fixture
def run(tmp_path, monkeypatch, caplog):
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


def test_a_warning_comes_once_before_the_first_fit(run, tmp_path, caplog):
    assert run({"bottle": (20, 63), "cookie": (1, 1)}) == [1, 1, 1, 1]
    (warned,) = [record for record in caplog.records if "left out" in record.message]
    assert warned.levelname == "WARNING" and "(missing: cable, " in warned.message
    for name in ("main", "coupling"):
        assert warned.message in (tmp_path / f"out/{name}.md").read_text(encoding="utf-8")
        assert json.loads((tmp_path / f"out/{name}.json").read_text(encoding="utf-8"))["paper_left_out"]


def test_the_whole_set_is_not_warned_of(run, tmp_path):
    assert run(MVTEC) == [0, 0, 0, 0]
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
        rows = {row["cell"]: row for row in summarise("scale", TABLES["scale"], found, options)["rows"]}
        assert rows["multi-scale, no prefix"]["difference"] == difference
    assert rows["multi-scale, no prefix"]["to_reference"] == pytest.approx(-10)
    easier = record_of(MVTEC, seed=2, auroc=0.95)  # a seed that the other row lacks
    unequal = {**found, "multi-scale, prefix": [record, easier]}
    rows = {row["cell"]: row for row in summarise("scale", TABLES["scale"], unequal, options)["rows"]}
    assert rows["multi-scale, no prefix"]["to_reference"] == pytest.approx(-10)
    assert rows["single scale, no prefix"]["image_auroc"] is None
    text = to_markdown(summarise("scale", TABLES["scale"], found, ReproduceOptions(data_root="data")))
    assert "only orders can be compared" in text and "| -2.7 |" in text and "| not run |" in text
