"""The line of a product is refined with photographs that are not remembered, or set for another budget."""

import dataclasses

import pytest
import torch

from modeling_anople import AnoPLeModel
from modeling_anople.calibration_anople import ProductThreshold

from .detectors import fit, normals_of


@pytest.fixture
def detector(make_model, make_processor, photograph):
    """A detector that knows bolt and nut, with its processor."""
    processor = make_processor()
    return fit(make_model(), processor, photograph), processor


def line_of(model: AnoPLeModel, name: str = "nut") -> ProductThreshold:
    return ProductThreshold(**model.config.calibration[name])


def others(photograph, count: int) -> list:
    return [photograph(100 + number) for number in range(count)]


@torch.no_grad()
def test_photographs_held_out_move_the_line_and_nothing_else(detector, photograph):
    model, processor = detector
    before, banks = line_of(model), model.memory.contents
    bolt = dict(model.config.calibration["bolt"])
    images = others(photograph, 3)
    line = model.calibrate("nut", images, processor=processor, date="2026-11-24")
    scores = model(**processor(images, class_names="nut")).image_scores.tolist()
    assert line.image_scores == pytest.approx(before.image_scores + scores, rel=1e-5)
    assert (line.photographs, line.held_out, line.estimate) == (6, 3, "extrapolated")
    assert line.attainable_rate == pytest.approx(1 / 7) and line.memory_scale == before.memory_scale
    assert line.novelty_scores == before.novelty_scores and line.novelty_thresholds == before.novelty_thresholds
    assert line == line_of(model) and model.config.calibration["bolt"] == bolt
    for (bank, counts, _), (known, known_counts, _) in zip(model.memory.contents, banks, strict=True):
        assert torch.equal(bank, known) and counts == known_counts
    entry = model.config.history[-1]
    assert entry["action"] == "calibrate" and entry["class_name"] == "nut" and entry["date"] == "2026-11-24"
    assert (entry["photographs"], entry["known_photographs"], len(entry["digests"])) == (3, 3, 3)


def test_enough_of_them_set_the_line_by_rank_alone(detector, photograph):
    model, processor = detector
    model.calibrate("nut", others(photograph, 2), processor=processor)
    line = model.calibrate("nut", others(photograph, 9)[2:], processor=processor, max_false_alarm_rate=0.1)
    assert (line.photographs, line.held_out, line.estimate) == (9, 9, "rank")
    assert line.image_threshold == max(line.image_scores) and line.max_false_alarm_rate == 0.1
    # in the batches in which the line was set: in others, the last digits of a score may round otherwise
    judge = model.as_pipeline(processor, batch_size=9)
    results = [*judge(others(photograph, 2), class_name="nut"), *judge(others(photograph, 9)[2:], class_name="nut")]
    assert all(result["label"] == "normal" for result in results)
    ranks = sorted(result["p_value"] for result in results)
    assert ranks == pytest.approx([number / 10 for number in range(2, 11)]) and ranks[-1] == 1


def test_only_the_budget_may_change(detector):
    model, _ = detector
    before = line_of(model)
    strict = model.calibrate("nut", max_false_alarm_rate=0.01)
    assert strict.image_threshold > before.image_threshold and strict.map_threshold > before.map_threshold
    assert strict.image_scores == before.image_scores
    assert model.calibrate("nut", max_false_alarm_rate=before.max_false_alarm_rate) == before


def test_a_lone_photograph_is_joined_by_others(detector, photograph):
    model, processor = detector
    model.enroll("gasket", [photograph(70)], processor=processor)
    assert model.calibrate("gasket", max_false_alarm_rate=0.02).estimate == "copies"
    line = model.calibrate("gasket", others(photograph, 2), processor=processor)
    assert (line.photographs, line.estimate) == (2, "extrapolated") and not line.jittered_image_scores


def test_new_normals_join_before_those_held_out(detector, photograph):
    model, processor = detector
    held_out = model.calibrate("nut", others(photograph, 2), processor=processor)
    line = model.add_normals("nut", [photograph(70)], processor=processor)
    assert line.held_out == 2 and line.photographs == 6
    assert line.image_scores[:3] == held_out.image_scores[:3] and line.image_scores[4:] == held_out.image_scores[3:]


def test_scores_of_earlier_versions_are_dropped_because_they_count_copies(detector, photograph):
    model, processor = detector
    entry = model.config.calibration["nut"]
    for name in (
        "photographs",
        "held_out",
        "estimate",
        "attainable_rate",
        "jittered_image_scores",
        "jittered_map_maxima",
    ):
        del entry[name]
    [result] = model.as_pipeline(processor)([photograph(70)], class_name="nut")
    assert result["label"] and result["p_value"] is None
    assert model.calibrate("nut", others(photograph, 2), processor=processor).photographs == 2


def test_what_cannot_be_done_changes_nothing(detector, photograph, make_model):
    model, processor = detector
    model.enroll("gasket", normals_of(photograph, 2), processor=processor)
    model.calibrate("gasket", others(photograph, 2), processor=processor)
    before = dataclasses.asdict(line_of(model, "gasket")), list(model.config.history)
    for images, rate, words in (
        (None, None, "Nothing would change"),
        (others(photograph, 1), None, "known already: photograph 1"),
        (normals_of(photograph, 2)[:1], None, "known already: photograph 1"),
        ([], None, "No good photographs"),
        (None, 0.7, "within 0 and 0.5, got 0.7"),
    ):
        with pytest.raises(ValueError, match=words):
            model.calibrate("gasket", images, processor=processor, max_false_alarm_rate=rate)
    with pytest.raises(ValueError, match="'ring' is not known"):
        model.calibrate("ring", max_false_alarm_rate=0.1)
    with pytest.raises(ValueError, match="'bolt' has no line to refine: give it good photographs with add_normals"):
        make_model().calibrate("bolt", max_false_alarm_rate=0.1)
    assert (dataclasses.asdict(line_of(model, "gasket")), model.config.history) == before


def test_a_saved_line_keeps_its_statement(detector, photograph, tmp_path):
    model, processor = detector
    model.calibrate("nut", others(photograph, 2), processor=processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    read = AnoPLeModel.from_pretrained(tmp_path)
    assert read.config.calibration == model.config.calibration
    line = read.calibrate("nut", others(photograph, 3)[2:])  # its processor lies beside it
    assert (line.photographs, line.held_out) == (6, 3)
