import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from modeling_anople import AnoPLeConfig
from modeling_anople.calibration_anople import POOLED, ClassLine, ScoreCalibration, fit_line, student_quantile


IMAGES, MAXIMA = [0.1, 0.14, 0.12, 0.2], [0.3, 0.5, 0.4, 0.35]


def make_calibration(**fields) -> ScoreCalibration:
    return ScoreCalibration(AnoPLeConfig(class_names=["bolt", "nut"], **fields))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 9, 19, 30, 79, 200])
def test_quantiles_are_those_of_scipy(degrees):
    for probability in (0.001, 0.05, 0.3, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999):
        expected = float(stats.t.ppf(probability, degrees))
        assert student_quantile(probability, degrees) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_extreme_quantiles_are_not_cut_off():
    assert student_quantile(1 - 1e-6, 1) == pytest.approx(float(stats.t.ppf(1 - 1e-6, 1)), rel=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_the_line_is_the_upper_prediction_limit_of_the_logarithms(rate):
    line = fit_line(IMAGES, MAXIMA, max_false_alarm_rate=rate, memory_scale=0.7)
    for scores, limit, spread in (
        (IMAGES, line.image_line, line.image_spread),
        (MAXIMA, line.map_line, line.map_spread),
    ):
        logs = np.log(scores)
        reach = stats.t.ppf(1 - rate, 3) * logs.std(ddof=1) * math.sqrt(1 + 1 / 4)
        assert limit == pytest.approx(math.exp(logs.mean() + reach), rel=1e-6)
        assert spread == pytest.approx(logs.std(ddof=1), rel=1e-9)
    assert (line.image_scores, line.map_maxima) == (sorted(IMAGES), sorted(MAXIMA))
    assert (line.max_false_alarm_rate, line.memory_scale) == (rate, 0.7)


@pytest.mark.parametrize("count", [2, 5])
def test_the_next_normal_is_above_the_line_as_often_as_asked(count):
    generator, above, trials = np.random.default_rng(0), 0, 1500
    for _ in range(trials):
        *known, following = np.exp(generator.normal(-2, 0.6, count + 1)).tolist()
        above += following > fit_line(known, known, max_false_alarm_rate=0.1).image_line
    assert above / trials == pytest.approx(0.1, abs=0.025)


def test_equal_scores_leave_a_smallest_spread():
    line = fit_line([0.2, 0.2, 0.2], [0.0, 0.0, 0.0], max_false_alarm_rate=0.05)
    assert line.image_spread == line.map_spread == 0.05
    assert 0.2 < line.image_line < 0.3 and 0 < line.map_line < 1e-8


def test_two_scores_far_apart_and_a_tiny_rate_give_a_finite_line():
    line = fit_line([1e-6, 1.0], [1e-6, 1.0], max_false_alarm_rate=1e-4)
    assert 1 <= line.image_line <= torch.finfo(torch.float32).max
    json.dumps(dataclasses.asdict(line), allow_nan=False)


@pytest.mark.parametrize("rate", [0.0, 0.5, -0.1, 5])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match=f"within 0 and 0.5, got {rate}"):
        fit_line(IMAGES, MAXIMA, max_false_alarm_rate=rate)


@pytest.mark.parametrize("scores", [[], [0.3]])
def test_too_few_scores_are_refused(scores):
    with pytest.raises(ValueError, match=f"at least two normal scores, got {len(scores)}: give more photographs"):
        fit_line(scores, scores, max_false_alarm_rate=0.05)


# -- the scale ------------------------------------------------------------------------------------------------------


def lines(calibration: ScoreCalibration) -> tuple[ClassLine, ClassLine]:
    bolt = fit_line(IMAGES, MAXIMA, max_false_alarm_rate=0.05, memory_scale=0.5)
    nut = fit_line([10 * score for score in IMAGES], [0.1, 0.9, 0.5], max_false_alarm_rate=0.1, memory_scale=0.25)
    calibration.set("bolt", bolt)
    calibration.set("nut", nut)
    return bolt, nut


def test_a_half_is_the_line_of_each_class_and_a_spread_off_it_reads_so():
    calibration = make_calibration()
    ids = torch.tensor([1, 0])
    bolt, nut = lines(calibration)
    for step in (-1.0, 0.0, 1.0):
        image = torch.tensor([line.image_line * math.exp(step * line.image_spread) for line in (nut, bolt)])
        expected = torch.full((2,), 1 / (1 + math.exp(-step)))
        torch.testing.assert_close(calibration.images(image, ids), expected, atol=1e-5, rtol=0)
        place = torch.tensor([line.map_line * math.exp(step * line.map_spread) for line in (nut, bolt)])
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
    calibration.set("nut", fit_line(IMAGES, MAXIMA, max_false_alarm_rate=0.05))
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
    assert ClassLine(**read.config.calibration["bolt"]) == ClassLine(**calibration.config.calibration["bolt"])


def test_an_edited_line_counts_at_once():
    calibration = make_calibration()
    lines(calibration)
    calibration.config.calibration["bolt"]["image_line"] = 0.77
    assert float(calibration.images(torch.tensor([0.77]), torch.tensor([0]))) == pytest.approx(0.5)


def test_half_precision_scores_are_calibrated_in_full_precision():
    calibration = make_calibration()
    lines(calibration)
    assert calibration.images(torch.tensor([0.2], dtype=torch.bfloat16), torch.tensor([0])).dtype == torch.float32


def test_the_pooled_line_is_drawn_from_the_scores_of_all_classes():
    calibration = make_calibration(class_identity="pooled")
    bolt, nut = lines(calibration)
    both = fit_line(
        bolt.image_scores + nut.image_scores,
        bolt.map_maxima + nut.map_maxima,
        max_false_alarm_rate=0.1,
        memory_scale=0.5,
    )
    pooled = ClassLine(**calibration.config.calibration[POOLED])
    assert pooled.image_line == pytest.approx(both.image_line) and pooled.map_line == pytest.approx(both.map_line)
    assert pooled.image_scores == sorted(both.image_scores)
    calibration.set("nut", nut)  # once more: replaces, does not add
    assert ClassLine(**calibration.config.calibration[POOLED]) == pooled
    assert calibration.covers(None)
    answer = calibration.images(torch.tensor([pooled.image_line, pooled.image_line]), None)
    torch.testing.assert_close(answer, torch.tensor([0.5, 0.5]))
    assert calibration.maps(torch.rand(2, 3, 3), None).shape == (2, 3, 3)


def test_only_the_pooled_mode_has_a_pooled_line():
    calibration = make_calibration()
    lines(calibration)
    assert sorted(calibration.config.calibration) == ["bolt", "nut"]
