import math

import pytest
import torch

from modeling_anople import AnoPLeConfig
from modeling_anople.calibration_anople import POOLED, ProductThreshold, ScoreCalibration, fit_threshold


IMAGES, MAXIMA = [0.1, 0.14, 0.12, 0.2], [0.3, 0.5, 0.4, 0.35]


def make_calibration(**fields) -> ScoreCalibration:
    return ScoreCalibration(AnoPLeConfig(class_names=["bolt", "nut"], **fields))


def lines(calibration: ScoreCalibration) -> tuple[ProductThreshold, ProductThreshold]:
    bolt = fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=0.05, memory_scale=0.5)
    nut = fit_threshold(
        [10 * score for score in IMAGES], [0.1, 0.9, 0.5, 0.2], max_false_alarm_rate=0.1, memory_scale=0.25
    )
    calibration.set("bolt", bolt)
    calibration.set("nut", nut)
    return bolt, nut


def test_a_half_is_the_line_of_each_class_and_a_spread_off_it_reads_so():
    calibration = make_calibration()
    ids = torch.tensor([1, 0])
    bolt, nut = lines(calibration)
    for step in (-1.0, 0.0, 1.0):
        image = torch.tensor([line.image_threshold * math.exp(step * line.image_spread) for line in (nut, bolt)])
        expected = torch.full((2,), 1 / (1 + math.exp(-step)))
        torch.testing.assert_close(calibration.images(image, ids), expected, atol=1e-5, rtol=0)
        place = torch.tensor([line.map_threshold * math.exp(step * line.map_spread) for line in (nut, bolt)])
        maps = calibration.maps(place.view(2, 1, 1).expand(2, 3, 3), ids)
        torch.testing.assert_close(maps, expected.view(2, 1, 1).expand(2, 3, 3), atol=1e-5, rtol=0)


def test_order_is_kept_and_answers_stay_within_zero_and_one():
    calibration = make_calibration()
    lines(calibration)
    scores = torch.tensor([0.0, 1e-4, 0.05, 0.1, 0.15, 0.2, 0.22, 0.25, 0.3])
    answers = calibration.images(scores, torch.zeros(9, dtype=torch.long))
    assert (answers.diff() > 0).all() and answers.min() >= 0 and answers.max() <= 1
    assert answers.isfinite().all()


def test_a_class_without_a_line_is_not_covered():
    calibration = make_calibration()
    calibration.set("nut", fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=0.05))
    assert calibration.covers(torch.tensor([1, 1])) and not calibration.covers(torch.tensor([1, 0]))
    assert not calibration.covers(None)
    assert calibration.memory_scales(torch.tensor([1, 0])) is None


def test_memory_scales_are_those_of_the_classes():
    calibration = make_calibration()
    lines(calibration)
    assert calibration.memory_scales(torch.tensor([1, 0, 1])).tolist() == [0.25, 0.5, 0.25]


def test_lines_survive_the_config_file_to_the_last_digit(tmp_path):
    calibration = make_calibration()
    lines(calibration)
    calibration.config.save_pretrained(tmp_path)
    read = ScoreCalibration(AnoPLeConfig.from_pretrained(tmp_path))
    assert read.config.calibration == calibration.config.calibration
    scores, ids = torch.tensor([0.2, 0.7]), torch.tensor([0, 1])
    assert torch.equal(read.images(scores, ids), calibration.images(scores, ids))
    assert ProductThreshold(**read.config.calibration["bolt"]) == ProductThreshold(
        **calibration.config.calibration["bolt"]
    )


def test_an_edited_line_counts_at_once():
    calibration = make_calibration()
    lines(calibration)
    calibration.config.calibration["bolt"]["image_threshold"] = 0.77
    assert float(calibration.images(torch.tensor([0.77]), torch.tensor([0]))) == pytest.approx(0.5)


def test_half_precision_scores_are_calibrated_in_full_precision():
    calibration = make_calibration()
    lines(calibration)
    assert calibration.images(torch.tensor([0.2], dtype=torch.bfloat16), torch.tensor([0])).dtype == torch.float32


def test_the_pooled_line_is_drawn_from_the_scores_of_all_classes():
    calibration = make_calibration(class_identity="pooled")
    bolt, nut = lines(calibration)
    both = fit_threshold(
        bolt.image_scores + nut.image_scores,
        bolt.map_maxima + nut.map_maxima,
        max_false_alarm_rate=0.1,
        memory_scale=0.5,
    )
    pooled = ProductThreshold(**calibration.config.calibration[POOLED])
    assert pooled.image_threshold == pytest.approx(both.image_threshold) and pooled.map_threshold == pytest.approx(
        both.map_threshold
    )
    assert pooled.image_scores == both.image_scores and pooled.photographs == 8
    calibration.set("nut", nut)  # once more: replaces, does not add
    assert ProductThreshold(**calibration.config.calibration[POOLED]) == pooled
    assert calibration.covers(None)
    answer = calibration.images(torch.tensor([pooled.image_threshold, pooled.image_threshold]), None)
    torch.testing.assert_close(answer, torch.tensor([0.5, 0.5]))
    assert calibration.maps(torch.rand(2, 3, 3), None).shape == (2, 3, 3)


def test_only_the_pooled_mode_has_a_pooled_line():
    calibration = make_calibration()
    lines(calibration)
    assert sorted(calibration.config.calibration) == ["bolt", "nut"]
