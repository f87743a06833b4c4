"""A card's figures are its own detector's, and it counts and names the photographs that were really shown."""

import json

import pytest

from hub.card import CardFacts, make_card
from hub.card_facts import describe_line, photograph_counts, shots_table
from hub.card_results import Results
from hub.push import main
from modeling_anople import AnoPLeConfig
from modeling_anople.calibration_anople import fit_threshold
from modeling_anople.runtime.loading import detector_sha256, load_detector

from .published import FIT, fitted_anew


@pytest.fixture
def config(published) -> AnoPLeConfig:
    return AnoPLeConfig.from_pretrained(published.detector)


@pytest.fixture
def report(published) -> dict:
    return json.loads(published.evaluation.read_text(encoding="utf-8"))


def written(report: dict, path):
    path.write_text(json.dumps(report), encoding="utf-8")
    return path


def log(action: str, *files: str | None, name: str = "bolt") -> dict:
    return {"action": action, "class_name": name, "files": list(files)}


def test_an_evaluation_names_the_state_that_it_measured(report, published, tmp_path):
    model, _ = load_detector(str(published.detector))
    assert report["detector_sha256"] == detector_sha256(model) and report["clip"] == "small"
    model.config.calibration["bolt"]["centre"] = 7.0
    assert report["detector_sha256"] != detector_sha256(model)
    other, _ = load_detector(str(fitted_anew(published.detector, tmp_path / "new")))
    assert report["detector_sha256"] != detector_sha256(other)


def test_figures_of_another_detector_are_refused(published, tmp_path, capsys):
    """The other one was fitted with the same seed and shots to the same products."""
    new = fitted_anew(published.detector, tmp_path / "new")
    assert main([str(new), "me/a", "--evaluation", str(published.evaluation), "--dry_run", str(tmp_path / "dry")]) == 2
    assert "was measured on this detector as it is now" in capsys.readouterr().err


def test_figures_of_a_part_alone_are_refused(report, config, tmp_path):
    path = written({**report, "score": "memory"}, tmp_path / "e.json")
    with pytest.raises(ValueError, match="measures the part 'memory' alone"):
        Results.read([path], config)


@pytest.mark.parametrize("change", [{"seed": 1}, {"shots": 1}, {"clip": "large"}, {"classes": {}}])
def test_an_older_report_must_agree_in_all_it_says(report, config, tmp_path, change):
    older = {key: value for key, value in report.items() if key not in ("detector_sha256", "clip")}
    assert Results.read([written(older, tmp_path / "a.json")], config, "a" * 64).seeds == [0]
    with pytest.raises(ValueError, match="was measured on this detector"):
        Results.read([written({**older, **change}, tmp_path / "b.json")], config, "a" * 64)


def test_other_seeds_may_stand_beside_the_detectors_own(report, config, tmp_path):
    other = written({**report, "seed": 1, "detector_sha256": "b" * 64}, tmp_path / "1.json")
    own = written(report, tmp_path / "0.json")
    assert Results.read([other, own], config, report["detector_sha256"]).seeds == [0, 1]


def test_unknown_shots_and_seed_are_left_out(report, config, tmp_path):
    config.fit = None
    path = written({**report, "seed": None, "shots": None}, tmp_path / "e.json")
    text = Results.read([path], config, report["detector_sha256"]).to_table(None)["text"]
    assert "None" not in text and "seed" not in text and "to learn from" not in text
    assert "fitting. How much another choice changes was not measured." in text


def test_photographs_are_counted_not_computed(config):
    """A memory that is limited keeps some vectors of each photograph."""
    config.memory_photographs = [[5, 3, 8, 0], [16]]
    config.memory_sizes = [16, 16]
    assert photograph_counts(config) == [4, 1]
    text = str(make_card(config, CardFacts("me/bolts")))
    assert "1 or 4 good photographs of each product" in text


def test_each_product_has_its_own_statement_and_equal_ones_are_said_once(config):
    assert describe_line(config).count("\n- ") == 1
    config.calibration["nut"] = vars(fit_threshold([0.1] * 24, [0.1] * 24, max_false_alarm_rate=0.025))
    text = describe_line(config)
    assert "**2.5 % or 5 % false alarms**" in text
    assert (
        "- `bolt`: With 3 photographs at best 1 in 4" in text
        and "- `nut`: With 24 photographs at best 1 in 25" in text
    )


@pytest.mark.parametrize(
    ("history", "row"),
    [
        ([], "`a/0.png`, `a/1.png` and 1 more, name not kept"),
        ([log("fit", "0.png", "1.png")], "`a/0.png`, `a/1.png` and 1 more, name not kept"),
        ([log("fit", "0.png"), log("add_normals", "x.png")], "`a/0.png`, `a/1.png`, `x.png`"),
        ([log("calibrate", "z.png")], "`a/0.png`, `a/1.png` and 1 more, name not kept"),
        ([log("forget"), log("enroll", "x.png", None, "y.png")], "`x.png`, `y.png` and 1 more, name not kept"),
        ([log("enroll", "x.png"), log("forget"), log("enroll", None, None, None)], "3, names not kept"),
        ([log("enroll", "x.png", name="nut")], "`a/0.png`, `a/1.png` and 1 more, name not kept"),
    ],
)
def test_names_are_of_what_the_product_knows_now(config, history, row):
    config.fit = {**FIT, "files": {"bolt": ["a/0.png", "a/1.png"]}}
    config.history = history
    assert shots_table(config)[0] == ("`bolt`", row)
