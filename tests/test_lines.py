"""The rule of the line: ranks where they suffice, extrapolation where not, and what is promised of both."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from modeling_anople.calibration_anople import (
    LONE_SHIFT,
    LONE_SPREAD,
    PRIOR_DEGREES,
    PRIOR_SPREAD,
    attainable_rate,
    describe_guarantee,
    fit_novelty_thresholds,
    fit_threshold,
    rank_from_top,
    scores_needed,
    student_quantile,
)


IMAGES, MAXIMA = [0.1, 0.14, 0.12, 0.2], [0.3, 0.5, 0.4, 0.35]
SCORES = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=60)
RATES = st.floats(1e-3, 0.499)


def line_of(scores: list[float], rate: float) -> float:
    return fit_threshold(scores, scores, max_false_alarm_rate=rate).image_threshold


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 9, 19, 30, 79, 200])
def test_quantiles_are_those_of_scipy(degrees):
    for probability in (0.001, 0.05, 0.3, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999):
        expected = float(stats.t.ppf(probability, degrees))
        assert student_quantile(probability, degrees) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_extreme_quantiles_are_not_cut_off():
    assert student_quantile(1 - 1e-6, 1) == pytest.approx(float(stats.t.ppf(1 - 1e-6, 1)), rel=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.15])
def test_few_scores_give_the_predictive_limit_with_the_spread_shrunk_to_that_of_drawn_products(rate):
    line = fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=rate, memory_scale=0.7)
    degrees = PRIOR_DEGREES + 3
    for scores, limit, spread in (
        (IMAGES, line.image_threshold, line.image_spread),
        (MAXIMA, line.map_threshold, line.map_spread),
    ):
        logs = np.log(scores)
        expected = math.sqrt((PRIOR_DEGREES * PRIOR_SPREAD**2 + 3 * logs.var(ddof=1)) / degrees)
        reach = stats.t.ppf(1 - rate, degrees) * expected * math.sqrt(1 + 1 / 4)
        assert limit == pytest.approx(max(math.exp(logs.mean() + reach), max(scores)), rel=1e-6)
        assert spread == pytest.approx(expected, rel=1e-9)
    assert (line.image_scores, line.map_maxima) == (IMAGES, MAXIMA)
    assert (line.max_false_alarm_rate, line.memory_scale) == (rate, 0.7)
    assert (line.estimate, line.photographs, line.attainable_rate) == ("extrapolated", 4, 0.2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_next_normal_is_above_the_line_as_often_as_asked(count):
    generator, above, trials = np.random.default_rng(0), 0, 1500
    for _ in range(trials):  # spreads as the rule supposes them
        spread = PRIOR_SPREAD * math.sqrt(PRIOR_DEGREES / generator.chisquare(PRIOR_DEGREES))
        *known, following = np.exp(generator.normal(-2, spread, count + 1)).tolist()
        above += following > line_of(known, 0.1)
    assert 0.06 < above / trials < 0.12


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (24, 0.05), (9, 0.1), (39, 0.05), (60, 0.05)])
def test_enough_scores_keep_the_rate_whatever_their_distribution(count, rate):
    generator, above, trials = np.random.default_rng(1), 0, 2000
    for _ in range(trials):
        *known, following = generator.pareto(0.5, count + 1).tolist()  # without a mean
        above += following > line_of(known, rate)
    expected = rank_from_top(count, rate) / (count + 1)
    assert expected <= rate and above / trials == pytest.approx(expected, abs=0.015)


@given(st.lists(st.floats(1e-4, 1.0), min_size=2, max_size=60, unique=True), RATES)
@settings(deadline=None, max_examples=200)
def test_the_rank_bound_is_exact(scores, rate):
    line, count = fit_threshold(scores, scores, max_false_alarm_rate=rate), len(scores)
    if (count + 1) * rate >= 1:
        assert line.estimate == "rank" and line.image_threshold in scores
        above = sum(score > line.image_threshold for score in scores)
        assert (1 + above) / (count + 1) <= rate + 1e-9 < (2 + above) / (count + 1) + 2e-9
    else:
        assert line.estimate == "extrapolated" and line.image_threshold >= max(scores)
    assert line.attainable_rate == 1 / (count + 1)


@given(SCORES, RATES, RATES)
@settings(deadline=None, max_examples=200)
def test_a_smaller_budget_never_lowers_the_line(scores, first, second):
    low, high = sorted((first, second))
    assert line_of(scores, low) >= line_of(scores, high) * (1 - 1e-9)


@given(SCORES, RATES, st.floats(0.1, 10))
@settings(deadline=None, max_examples=200)
def test_a_line_has_the_unit_of_its_scores(scores, rate, unit):
    moved = line_of([unit * score for score in scores], rate)
    assert moved == pytest.approx(unit * line_of(scores, rate), rel=1e-6)


@given(SCORES, RATES, st.integers(0, 59))
@settings(deadline=None, max_examples=100)
def test_the_order_of_photographs_does_not_matter(scores, rate, turn):
    turn %= len(scores)
    assert line_of(scores[turn:] + scores[:turn], rate) == pytest.approx(line_of(scores, rate), rel=1e-9)


def test_a_lone_photograph_has_a_line_from_its_copies_and_no_promise():
    line = fit_threshold([], [], max_false_alarm_rate=0.05, jittered_image_scores=IMAGES, jittered_map_maxima=MAXIMA)
    reach = LONE_SHIFT + stats.t.ppf(0.95, PRIOR_DEGREES) * LONE_SPREAD
    assert line.image_threshold == pytest.approx(math.exp(np.log(IMAGES).mean() + reach), rel=1e-6)
    assert (line.estimate, line.photographs, line.attainable_rate) == ("copies", 1, 1.0)
    assert line.image_scores == [] and line.jittered_image_scores == IMAGES


def test_copies_do_not_count_once_there_are_two_photographs():
    with_copies = fit_threshold(
        IMAGES, MAXIMA, max_false_alarm_rate=0.05, jittered_image_scores=[0.9], jittered_map_maxima=[0.9]
    )
    assert with_copies == fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=0.05)


def test_enough_photographs_held_out_stand_alone():
    held_out = [0.01 * number for number in range(1, 21)]
    few = fit_threshold(IMAGES + held_out[:5], MAXIMA + held_out[:5], max_false_alarm_rate=0.05, held_out=5)
    assert few.photographs == 9 and few.estimate == "extrapolated" and few.image_scores[:4] == IMAGES
    many = fit_threshold([5.0] + held_out, [5.0] + held_out, max_false_alarm_rate=0.05, held_out=20)
    assert many.photographs == 20 and many.estimate == "rank" and many.image_threshold == 0.2
    assert many.image_scores == held_out and many.held_out == 20


def test_two_scores_far_apart_and_a_tiny_rate_give_a_finite_line():
    line = fit_threshold([1e-6, 1.0], [0.0, 1.0], max_false_alarm_rate=1e-4)
    assert 1 <= line.image_threshold <= torch.finfo(torch.float32).max
    json.dumps(dataclasses.asdict(line), allow_nan=False)


@pytest.mark.parametrize("rate", [0.0, 0.5, -0.1, 5])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match=f"within 0 and 0.5, got {rate}"):
        fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=rate)


def test_no_score_is_refused():
    with pytest.raises(ValueError, match="at least one good photograph, got none: give more photographs"):
        fit_threshold([], [], max_false_alarm_rate=0.05)


def test_lines_of_unknown_products_are_prediction_limits_with_a_floor():
    values = [0.2, 0.3, 0.25]
    logs = np.log(values)
    reach = stats.t.ppf(0.99, 2) * logs.std(ddof=1) * math.sqrt(1 + 1 / 3)
    lines = fit_novelty_thresholds([values, [1e-5, 1e-5]], rate=0.01)
    assert lines == pytest.approx([math.exp(logs.mean() + reach), 1e-3], rel=1e-6)
    assert fit_novelty_thresholds([values], rate=0) == []


# -- what is promised -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "needed"), [(0.05, 19), (0.02, 49), (0.1, 9), (0.01, 99), (0.2, 4), (0.25, 3), (0.3, 3), (0.03, 33)]
)
def test_scores_that_a_rate_needs(rate, needed):
    assert scores_needed(rate) == needed
    assert attainable_rate(needed) <= rate + 1e-12 < attainable_rate(needed - 1)
    assert rank_from_top(needed, rate) == 1 and rank_from_top(needed - 1, rate) == 0


@given(st.floats(1e-4, 0.499))
@settings(deadline=None)
def test_needing_and_supporting_agree(rate):
    needed = scores_needed(rate)
    assert rank_from_top(needed, rate) >= 1 and (needed == 1 or rank_from_top(needed - 1, rate) == 0)


def support(scores: list[float], rate: float = 0.05, **copies) -> str:
    return describe_guarantee(dataclasses.asdict(fit_threshold(scores, scores, max_false_alarm_rate=rate, **copies)))


def test_the_statement_says_what_the_photographs_can_promise():
    assert support(IMAGES) == (
        "With 4 photographs at best 1 in 5 can be promised. 5 % is asked for, so the line is set by extrapolation; 19 "
        "photographs would support it."
    )
    assert support([0.1], 0.02).startswith("With 1 photograph at best 1 in 2 can be promised. 2 % is asked for")
    many = [0.01 * number for number in range(1, 25)]
    assert support(many) == (
        "With 24 photographs 1 in 25 can be promised. 5 % is asked for, and the line is the largest of their scores."
    )
    assert support(many, 0.125).endswith("12.5 % is asked for, and the line is the 3rd largest of their scores.")
    assert support(many, 0.45).endswith("11th largest of their scores.")
    lone = support([], jittered_image_scores=IMAGES, jittered_map_maxima=MAXIMA)
    assert lone.startswith("With 1 photograph nothing can be promised") and "19 photographs would support it" in lone


def test_a_line_of_an_earlier_version_promises_nothing():
    line = dataclasses.asdict(fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=0.05))
    for name in (
        "photographs",
        "held_out",
        "estimate",
        "attainable_rate",
        "jittered_image_scores",
        "jittered_map_maxima",
    ):
        del line[name]
    assert describe_guarantee(line).startswith("An earlier version set this line and counted moved and relit copies")
