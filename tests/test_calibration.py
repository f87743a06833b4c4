"""The threshold of a product: ranks where they suffice, extrapolation where not, what is promised, and what scores it gives."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import CLIPConfig

from modeling_anople import AnoPLeConfig
from modeling_anople.calibration_anople import (
    FRAME_NUMBERS,
    LONE_DEGREES,
    LONE_SHIFT,
    LONE_SPREAD,
    PRIOR_DEGREES,
    PRIOR_SPREAD,
    FrameLimits,
    KnownDefects,
    ProductThreshold,
    are_unsure,
    attainable_rate,
    calibrate,
    describe_guarantee,
    fit_costs,
    fit_novelty_thresholds,
    fit_pooled_threshold,
    fit_threshold,
    found_when_left_out,
    frame_numbers,
    label_of,
    p_values,
    rank_from_top,
    rate_interval,
    scores_needed,
    student_quantile,
    to_scale,
)
from modeling_anople.product_store_anople import ProductStore

from .detectors import detector_of, fit, normals_of


IMAGES, MAXIMA = [0.1, 0.14, 0.12, 0.2], [0.3, 0.5, 0.4, 0.35]
SCORES = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=60)
RATES = st.floats(1e-3, 0.499)


def fitted_to(scores: list[float], rate: float = 0.1) -> ProductThreshold:
    return fit_threshold(scores, scores, max_false_alarm_rate=rate)


def limit_of(scores: list[float], rate: float) -> float:
    return fitted_to(scores, rate).image_threshold


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 9, 19, 30, 79, 200])
def test_quantiles_are_those_of_scipy(degrees):
    for probability in (0.001, 0.05, 0.3, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999):
        expected = float(stats.t.ppf(probability, degrees))
        assert student_quantile(probability, degrees) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_extreme_quantiles_are_not_cut_off():
    assert student_quantile(1 - 1e-6, 1) == pytest.approx(float(stats.t.ppf(1 - 1e-6, 1)), rel=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.15])
def test_few_scores_give_the_predictive_limit_with_the_spread_shrunk_to_that_of_drawn_products(rate):
    fitted = fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=rate)
    degrees = PRIOR_DEGREES + 3
    for scores, limit, spread in (
        (IMAGES, fitted.image_threshold, fitted.image_spread),
        (MAXIMA, fitted.map_threshold, fitted.map_spread),
    ):
        logs = np.log(scores)
        expected = math.sqrt((PRIOR_DEGREES * PRIOR_SPREAD**2 + 3 * logs.var(ddof=1)) / degrees)
        reach = stats.t.ppf(1 - rate, degrees) * expected * math.sqrt(1 + 1 / 4)
        assert limit == pytest.approx(max(math.exp(logs.mean() + reach), max(scores)), rel=1e-6)
        assert spread == pytest.approx(expected, rel=1e-9)
    assert (fitted.image_scores, fitted.map_maxima) == (IMAGES, MAXIMA)
    assert fitted.max_false_alarm_rate == rate
    assert (fitted.estimate, fitted.image_count, fitted.attainable_rate) == ("extrapolated", 4, 0.2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_next_normal_is_above_the_threshold_as_often_as_asked(count):
    generator, above, trials = np.random.default_rng(0), 0, 1500
    for _ in range(trials):  # spreads as the rule supposes them
        spread = PRIOR_SPREAD * math.sqrt(PRIOR_DEGREES / generator.chisquare(PRIOR_DEGREES))
        *known, following = np.exp(generator.normal(-2, spread, count + 1)).tolist()
        above += following > limit_of(known, 0.1)
    assert 0.06 < above / trials < 0.13  # the widest draws leave the range of scores, and are cut off


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (24, 0.05), (9, 0.1), (39, 0.05), (60, 0.05)])
def test_enough_scores_keep_the_rate_whatever_their_distribution(count, rate):
    generator, above, trials = np.random.default_rng(1), 0, 2000
    for _ in range(trials):
        *known, following = generator.pareto(0.5, count + 1).tolist()  # without a mean
        above += following > limit_of(known, rate)
    expected = rank_from_top(count, rate) / (count + 1)
    assert expected <= rate and above / trials == pytest.approx(expected, abs=0.015)


@given(st.lists(st.floats(1e-4, 1.0), min_size=2, max_size=60, unique=True), RATES)
@settings(deadline=None, max_examples=200)
def test_the_rank_bound_is_exact(scores, rate):
    fitted, count = fit_threshold(scores, scores, max_false_alarm_rate=rate), len(scores)
    if (count + 1) * rate >= 1:
        assert fitted.estimate == "rank" and fitted.image_threshold in scores
        above = sum(score > fitted.image_threshold for score in scores)
        assert (1 + above) / (count + 1) <= rate + 1e-9 < (2 + above) / (count + 1) + 2e-9
    else:
        assert fitted.estimate == "extrapolated" and fitted.image_threshold >= max(scores)
    assert fitted.attainable_rate == 1 / (count + 1)


@given(SCORES, RATES, RATES)
@settings(deadline=None, max_examples=200)
def test_a_smaller_budget_never_lowers_the_threshold(scores, first, second):
    low, high = sorted((first, second))
    assert limit_of(scores, low) >= limit_of(scores, high) * (1 - 1e-9)


@given(SCORES, RATES, st.floats(0.1, 10))
@settings(deadline=None, max_examples=200)
def test_a_threshold_has_the_unit_of_its_scores(scores, rate, unit):
    moved = limit_of([unit * score for score in scores], rate)
    assert moved == pytest.approx(unit * limit_of(scores, rate), rel=1e-6)


@given(SCORES, RATES, st.integers(0, 59))
@settings(deadline=None, max_examples=100)
def test_the_order_of_images_does_not_matter(scores, rate, turn):
    turn %= len(scores)
    assert limit_of(scores[turn:] + scores[:turn], rate) == pytest.approx(limit_of(scores, rate), rel=1e-9)


def test_a_lone_image_has_a_threshold_from_its_copies_and_no_promise():
    fitted = fit_threshold([], [], max_false_alarm_rate=0.05, jittered_image_scores=IMAGES, jittered_map_maxima=MAXIMA)
    reach = LONE_SHIFT + stats.t.ppf(0.95, LONE_DEGREES) * LONE_SPREAD
    assert fitted.image_threshold == pytest.approx(math.exp(np.log(IMAGES).mean() + reach), rel=1e-6)
    assert (fitted.estimate, fitted.image_count, fitted.attainable_rate) == ("copies", 1, 1.0)
    assert fitted.image_scores == [] and fitted.jittered_image_scores == IMAGES


def test_copies_do_not_count_once_there_are_two_images():
    with_copies = fit_threshold(
        IMAGES, MAXIMA, max_false_alarm_rate=0.05, jittered_image_scores=[0.9], jittered_map_maxima=[0.9]
    )
    assert with_copies == fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=0.05)


def test_enough_images_held_out_stand_alone():
    held_out = [0.01 * number for number in range(1, 21)]
    few = fit_threshold(IMAGES + held_out[:5], MAXIMA + held_out[:5], max_false_alarm_rate=0.05, held_out=5)
    assert few.image_count == 9 and few.estimate == "extrapolated" and few.image_scores[:4] == IMAGES
    many = fit_threshold([5.0] + held_out, [5.0] + held_out, max_false_alarm_rate=0.05, held_out=20)
    assert many.image_count == 20 and many.estimate == "rank" and many.image_threshold == 0.2
    assert many.image_scores == held_out and many.held_out == 20


def test_two_scores_far_apart_and_a_tiny_rate_give_a_finite_threshold():
    fitted = fit_threshold([1e-6, 1.0], [0.0, 1.0], max_false_alarm_rate=1e-4)
    assert 1 <= fitted.image_threshold <= torch.finfo(torch.float32).max
    json.dumps(dataclasses.asdict(fitted), allow_nan=False)


@pytest.mark.parametrize("rate", [0.0, 1e-300, 0.00009, 0.5, -0.1, 5, math.nan])
def test_an_impossible_rate_is_refused_with_what_the_images_support(rate):
    with pytest.raises(
        ValueError, match=f"at least 0.0001 and below 0.5, got {rate}.* 19 .* support 5 %, 9999 0.01 %"
    ):
        fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=rate)
    with pytest.raises(ValueError, match="The 4 photographs here can support 20 %"):
        fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=rate)
    with pytest.raises(ValueError, match="The one photograph here supports none"):
        fit_threshold([], [], max_false_alarm_rate=rate, jittered_image_scores=[0.1], jittered_map_maxima=[0.1])


def test_no_score_is_refused():
    with pytest.raises(ValueError, match="at least one good photograph, got none: give more photographs"):
        fit_threshold([], [], max_false_alarm_rate=0.05)


def test_thresholds_of_unknown_products_are_prediction_limits_with_a_floor():
    values = [0.2, 0.3, 0.25]
    logs = np.log(values)
    reach = stats.t.ppf(0.99, 2) * logs.std(ddof=1) * math.sqrt(1 + 1 / 3)
    limits = fit_novelty_thresholds([values, [1e-5, 1e-5]], rate=0.01)
    assert limits == pytest.approx([math.exp(logs.mean() + reach), 1e-3], rel=1e-6)
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
    return describe_guarantee(fit_threshold(scores, scores, max_false_alarm_rate=rate, **copies))


def test_the_statement_says_what_the_images_can_promise():
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


def earlier_version(threshold: ProductThreshold) -> ProductThreshold:
    """What is left of a threshold in a detector of the versions that counted copies as images."""
    values = dataclasses.asdict(threshold)
    for name in (
        "image_count",
        "held_out",
        "estimate",
        "attainable_rate",
        "jittered_image_scores",
        "jittered_map_maxima",
    ):
        del values[name]
    return ProductThreshold.from_dict(values)


def test_a_threshold_of_an_earlier_version_promises_nothing():
    earlier = earlier_version(fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=0.05))
    assert describe_guarantee(earlier).startswith(
        "An earlier version set this line and counted moved and relit copies"
    )
    assert earlier.attainable_rate == 1 and ProductThreshold.from_dict(None) is None


# -- from raw scores to a verdict -----------------------------------------------------------------------------------

RAW = st.lists(st.floats(2**-13, 1.0, width=32), min_size=1, max_size=40)


def p_value(score: float, threshold: ProductThreshold) -> float:
    return float(p_values(torch.tensor([score]), [threshold])[0])


@given(RAW, st.floats(2**-13, 1.0, width=32))
@settings(deadline=None, max_examples=200)
def test_p_values_are_ranks_among_the_normals(normals, score):
    expected = (1 + sum(each >= score for each in normals)) / (len(normals) + 1)
    assert p_value(score, fitted_to(normals)) == pytest.approx(expected)
    assert p_value(2.0, fitted_to(normals)) == pytest.approx(1 / (len(normals) + 1))
    assert p_value(0.0, fitted_to(normals)) == 1


@given(RAW, RAW, st.sampled_from([0.1, 0.2, 0.45]))
@settings(deadline=None, max_examples=200)
def test_where_ranks_set_the_threshold_anomalous_means_a_p_value_within_the_budget(normals, queries, rate):
    fitted, scores = fitted_to(normals, rate), torch.tensor(queries)
    thresholds = [fitted] * len(queries)
    answers = zip(
        queries, calibrate(scores, thresholds, "image").tolist(), p_values(scores, thresholds).tolist(), strict=True
    )
    for raw, score, value in answers:
        exact = math.isclose(raw, fitted.image_threshold, rel_tol=1e-5)  # the scale is float32
        if fitted.estimate == "rank" and not exact:
            assert (label_of(score, 0.5) == "anomalous") == (value <= rate + 1e-6)


def test_normals_have_p_values_spread_evenly():
    generator = np.random.default_rng(0)
    values = []
    for _ in range(2000):
        *known, following = generator.gamma(2, size=10).tolist()
        values.append(p_value(following, fitted_to(known)))
    counts = np.bincount(np.rint(10 * np.array(values)).astype(int), minlength=11)[1:]
    assert counts.sum() == 2000 and abs(counts - 200).max() < 60


def test_a_lone_image_gives_no_evidence_and_an_earlier_version_no_p_value():
    copies = {"jittered_image_scores": [0.1, 0.2], "jittered_map_maxima": [0.1, 0.2]}
    assert p_value(0.9, fit_threshold([], [], max_false_alarm_rate=0.05, **copies)) == 1.0
    earlier = earlier_version(fitted_to([0.1, 0.2]))
    assert math.isnan(p_value(0.9, earlier))
    mixed = p_values(torch.tensor([0.15, 0.15]), [earlier, fitted_to([0.1, 0.2])]).tolist()
    assert math.isnan(mixed[0]) and mixed[1] == pytest.approx(2 / 3)


@given(RAW, st.floats(1e-4, 1.0), st.floats(0.05, 2))
@settings(deadline=None, max_examples=100)
def test_the_scale_is_a_sigmoid_of_logarithms(values, limit, spread):
    scaled = to_scale(torch.tensor(values), torch.tensor(limit), torch.tensor(spread))
    assert scaled.dtype == torch.float32 and scaled.shape == (len(values),)
    expected = [1 / (1 + math.exp(-(math.log(max(value, 1e-9)) - math.log(limit)) / spread)) for value in values]
    torch.testing.assert_close(scaled, torch.tensor(expected), atol=2e-5, rtol=0)
    assert (scaled[torch.tensor(values).argsort()].diff() >= 0).all() and 0 <= scaled.min() <= scaled.max() <= 1


@pytest.mark.parametrize("value", [0.1, 0.3, 0.73])
def test_the_threshold_itself_is_a_half_and_not_above_it(value):
    assert to_scale(torch.tensor([value]), torch.tensor(value), torch.tensor(0.2))[0] == 0.5
    assert label_of(0.5, 0.5) == "normal" and label_of(0.5000001, 0.5) == "anomalous"


BOLT = fit_threshold(IMAGES, MAXIMA, max_false_alarm_rate=0.05)
NUT = fit_threshold([4 * score for score in IMAGES], [0.1, 0.6, 0.3, 0.2], max_false_alarm_rate=0.1)


def test_a_half_is_the_threshold_of_each_class_and_a_spread_off_it_reads_so():
    for step in (-1.0, 0.0, 1.0):
        image = torch.tensor([each.image_threshold * math.exp(step * each.image_spread) for each in (NUT, BOLT)])
        expected = torch.full((2,), 1 / (1 + math.exp(-step)))
        torch.testing.assert_close(calibrate(image, [NUT, BOLT], "image"), expected, atol=1e-5, rtol=0)
        place = torch.tensor([each.map_threshold * math.exp(step * each.map_spread) for each in (NUT, BOLT)])
        maps = calibrate(place.view(2, 1, 1).expand(2, 3, 3), [NUT, BOLT], "map")
        torch.testing.assert_close(maps, expected.view(2, 1, 1).expand(2, 3, 3), atol=1e-5, rtol=0)


def test_order_is_kept_and_answers_stay_within_zero_and_one():
    scores = torch.tensor([0.0, 1e-4, 0.05, 0.1, 0.15, 0.2, 0.22, 0.25, 0.3])
    answers = calibrate(scores, [BOLT] * 9, "image")
    assert (answers.diff() > 0).all() and answers.min() >= 0 and answers.max() <= 1
    assert answers.isfinite().all()


def test_half_precision_scores_are_calibrated_in_full_precision():
    scores = torch.tensor([0.2], dtype=torch.bfloat16)
    assert calibrate(scores, [BOLT], "image").dtype == p_values(scores, [BOLT]).dtype == torch.float32


# -- the thresholds of all products -----------------------------------------------------------------------------------


def make_store(**fields) -> ProductStore:
    clip = CLIPConfig(vision_config={"image_size": 32, "patch_size": 8})
    return ProductStore(AnoPLeConfig(clip_config=clip, class_names=["bolt", "nut"], **fields))


def with_thresholds(**fields) -> ProductStore:
    store = make_store(**fields)
    store.set_threshold(0, BOLT)
    store.set_threshold(1, NUT)
    return store


def scores_of(store: ProductStore, scores: list[float], ids: list[int] | None) -> Tensor:
    thresholds = store.thresholds(None if ids is None else torch.tensor(ids), len(scores))
    return calibrate(torch.tensor(scores), thresholds, "image")


def test_thresholds_are_those_of_the_classes_and_none_is_none():
    store = make_store()
    store.set_threshold(1, NUT)
    assert store.thresholds(torch.tensor([1, 0, 1]), 3) == [NUT, None, NUT]
    assert store.thresholds(None, 2) == [None, None]


def test_thresholds_survive_the_config_file_to_the_last_digit(tmp_path):
    store = with_thresholds()
    store.config.save_pretrained(tmp_path)
    read = ProductStore(AnoPLeConfig.from_pretrained(tmp_path))
    assert read.config.products == store.config.products
    assert torch.equal(scores_of(read, [0.2, 0.7], [0, 1]), scores_of(store, [0.2, 0.7], [0, 1]))
    assert read.named("bolt").record.threshold == BOLT and read.named("nut").record.threshold == NUT


def test_an_edited_threshold_counts_at_once():
    store = with_thresholds()
    record = store.named("bolt").record
    record.threshold = dataclasses.replace(record.threshold, image_threshold=0.77)
    assert float(scores_of(store, [0.77], [0])) == pytest.approx(0.5)


def test_the_pooled_threshold_is_fitted_to_the_scores_of_all_classes():
    store = with_thresholds(class_identity="pooled")
    both = fit_threshold(
        BOLT.image_scores + NUT.image_scores, BOLT.map_maxima + NUT.map_maxima, max_false_alarm_rate=0.1
    )
    pooled = ProductThreshold.from_dict(store.config.pooled_threshold)
    assert pooled == both == fit_pooled_threshold([BOLT, NUT], 0.1) and pooled.image_count == 8
    store.set_threshold(1, NUT)  # once more: replaces, does not add
    assert ProductThreshold.from_dict(store.config.pooled_threshold) == pooled
    assert store.thresholds(None, 3) == [pooled] * 3
    limits = [pooled.image_threshold] * 2
    torch.testing.assert_close(scores_of(store, limits, None), torch.tensor([0.5, 0.5]))
    assert calibrate(torch.rand(2, 3, 3), store.thresholds(None, 2), "map").shape == (2, 3, 3)


def test_a_pooled_threshold_goes_with_its_products():
    store = with_thresholds(class_identity="pooled")
    store.remove(1)
    assert ProductThreshold.from_dict(store.config.pooled_threshold) == fit_pooled_threshold([BOLT], 0.1)
    lone = make_store(class_identity="pooled")
    assert lone.config.pooled_threshold is None and fit_pooled_threshold([], 0.1) is None


def test_only_the_pooled_mode_has_a_pooled_threshold():
    store = with_thresholds()
    assert store.config.pooled_threshold is None and all(each["threshold"] for each in store.config.products)


# -- in a detector ------------------------------------------------------------------------------------------------------


def test_the_threshold_is_changed_without_reloading(make_detector, photograph):
    model, processor = make_detector()
    detect, image = detector_of(model, processor), normals_of(photograph, 1, 4)[3]
    [before] = detect([image], class_name="nut")
    for threshold, label in ((0.0, "anomalous"), (1.0, "normal"), (before["score"], "normal")):
        model.config.threshold = threshold
        [after] = detect([image], class_name="nut")
        assert after["label"] == label
        assert {name: after[name] for name in ("score", "raw_score", "p_value")} == {
            name: before[name] for name in ("score", "raw_score", "p_value")
        }
        assert (after["anomaly_map"] == before["anomaly_map"]).all()


@torch.no_grad()
def test_raw_answers_do_not_know_the_threshold(make_detector, photograph):
    model, processor = make_detector()
    batch = processor([photograph(70)], class_names="nut")
    before = model(**batch)
    model.config.threshold = 0.9
    record = model.products.named("nut").record
    record.threshold = dataclasses.replace(record.threshold, image_threshold=0.7, map_threshold=0.7)
    after = model(**batch)
    assert torch.equal(before.image_scores, after.image_scores)
    assert torch.equal(before.anomaly_maps, after.anomaly_maps)
    assert after.calibrated_scores < before.calibrated_scores and torch.equal(after.p_values, before.p_values)


@torch.no_grad()
def test_p_values_of_a_batch_are_those_of_each_class(make_detector, make_model, make_processor, photograph):
    model, processor = make_detector()
    output = model(**processor([photograph(70)] * 2, class_names=["bolt", "nut"]))
    thresholds = [model.products.named(name).record.threshold for name in ("bolt", "nut")]
    expected = [p_value(score, each) for score, each in zip(output.image_scores.tolist(), thresholds, strict=True)]
    assert output.p_values.tolist() == pytest.approx(expected)
    pooled = fit(make_model(class_identity="pooled"), make_processor(), photograph)
    assert pooled(**processor([photograph(70)] * 2)).p_values.shape == (2,)


@torch.no_grad()
def test_an_answer_is_calibrated_by_its_products_thresholds(make_detector, photograph):
    model, processor = make_detector()
    images = [*normals_of(photograph, 1), photograph(70), photograph(71)]
    output = model(**processor(images, class_names="nut"))
    thresholds = [model.products.named("nut").record.threshold] * len(images)
    assert torch.equal(output.calibrated_scores, calibrate(output.image_scores, thresholds, "image"))
    assert torch.equal(output.calibrated_maps, calibrate(output.anomaly_maps, thresholds, "map"))
    results = processor.post_process_anomaly_detection(output, threshold=model.config.threshold)
    for number, result in enumerate(results):
        assert result["label"] == label_of(float(output.calibrated_scores[number]), model.config.threshold)
        assert result["p_value"] == pytest.approx(p_value(float(output.image_scores[number]), thresholds[0]), abs=1e-5)
        np.testing.assert_array_equal(result["anomaly_map"], output.calibrated_maps[number].numpy())
    model.products.named("nut").record.threshold = None
    [raw] = processor.post_process_anomaly_detection(model(**processor(images[:1], class_names="nut")))
    assert raw["label"] is raw["p_value"] is None and raw["score"] == raw["raw_score"]


# --- What a frame is like as a whole ---


def textured(seed: int, *, light: float = 1.0, blur: int = 1) -> torch.Tensor:
    """A frame (3, 96, 96) of coarse and fine detail."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, 12, 12, generator=generator)
    fine = torch.rand(3, 96, 96, generator=generator)
    pixels = 0.3 + 0.2 * torch.nn.functional.interpolate(coarse[None], size=96, mode="bilinear")[0] + 0.1 * fine
    if blur > 1:
        pixels = torch.nn.functional.avg_pool2d(pixels, blur, stride=1, padding=blur // 2, count_include_pad=False)
    return (light * pixels).clamp(0, 1)


def blurred(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    weights = torch.exp(-((torch.arange(-24, 25) / sigma) ** 2) / 2)
    weights = weights / weights.sum()
    padded = torch.nn.functional.pad(pixels[None], (24,) * 4, mode="reflect").transpose(0, 1)
    return torch.nn.functional.conv2d(padded, weights.outer(weights)[None, None])[:, 0]


DEAD_FRAMES = {
    "too dark": torch.zeros(3, 96, 96),
    "brighter than anything taught": textured(9, light=2),
    "less contrast than anything taught": textured(9).mean((1, 2), keepdim=True).expand(3, 96, 96),
    "out of focus": textured(9, blur=7),
    "more red than anything taught": textured(9) + torch.tensor([0.2, -0.1, 0])[:, None, None],
    "more blue than anything taught": textured(9) + torch.tensor([0, 0, 0.2])[:, None, None],
}


@pytest.mark.parametrize("count", [4, 30])
@pytest.mark.parametrize("reason", DEAD_FRAMES)
def test_a_frame_unlike_those_that_were_taught_is_named(count, reason):
    limits = FrameLimits.of([frame_numbers(textured(seed)) for seed in range(count)])
    assert all(limits.fault(frame_numbers(textured(seed))) is None for seed in range(50, 60))
    assert limits.fault(frame_numbers(DEAD_FRAMES[reason])) == reason


def drawn_board(seed: int) -> torch.Tensor:
    """A frame (3, 96, 96) of black and white alone, in shares that differ from board to board."""
    generator = torch.Generator().manual_seed(seed)
    share = 0.3 + 0.5 * torch.rand(1, generator=generator)
    coarse = (torch.rand(12, 12, generator=generator) < share).float()
    return coarse.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(3, -1, -1)


def faint_part(seed: int) -> torch.Tensor:
    """A bright frame (3, 96, 96) of little contrast, and with a dark spot, that changes little when all becomes white."""
    pixels = 0.65 + 0.1 * textured(seed)
    pixels[:, 20:36, 20:36] -= 0.3
    return pixels


def on_white(seed: int) -> torch.Tensor:
    """A frame (3, 96, 96) with a dark part on a white ground, which hardly changes where there is more light."""
    pixels = torch.ones(3, 96, 96)
    pixels[:, 24:72, 24:72] = 0.5 * textured(seed)[:, 24:72, 24:72]
    return pixels


@pytest.mark.parametrize("count", [1, 4, 30])
@pytest.mark.parametrize(
    ("part", "factor", "reason"),
    [
        (drawn_board, 0.5, "too dark"),
        (drawn_board, 0.25, "too dark"),
        (faint_part, 2, "brighter than anything taught"),
        (faint_part, 0.5, "too dark"),
        (on_white, 2, "brighter than anything taught"),
        (on_white, 0.5, "too dark"),
    ],
)
def test_other_light_is_named_whatever_share_of_a_frame_is_bright(count, part, factor, reason):
    limits = FrameLimits.of([frame_numbers(part(seed)) for seed in range(count)])
    for seed in range(50, 60):
        assert limits.fault(frame_numbers(part(seed))) is None
        assert limits.fault(frame_numbers((factor * part(seed)).clamp(0, 1))) == reason


@pytest.mark.parametrize("sigma", [3, 6])
@pytest.mark.parametrize("part", [drawn_board, faint_part, on_white, textured])
def test_a_frame_out_of_focus_is_named_however_much_detail_there_is(part, sigma):
    limits = FrameLimits.of([frame_numbers(part(seed)) for seed in range(4)])
    for seed in range(50, 60):
        assert limits.fault(frame_numbers(blurred(part(seed), sigma))) in (
            "out of focus",
            "less contrast than anything taught",
        )


def test_frames_that_come_later_are_learned_as_if_all_had_come_at_once():
    frames = [frame_numbers(textured(seed, light=0.8 + 0.1 * seed)) for seed in range(5)]
    whole, parts = FrameLimits.of(frames), FrameLimits.of(frames[3:], FrameLimits.of(frames[:3]))
    assert parts.count == whole.count == 5
    for first, second in zip(parts.lists, whole.lists, strict=True):
        assert first == pytest.approx(second, abs=1e-9)
    assert FrameLimits(**dataclasses.asdict(whole)) == whole


@pytest.mark.parametrize(
    "change", [{"count": 0}, {"mean": [0.0]}, {"squares": [-1.0] * 5}, {"lowest": [math.nan] * 5}]
)
def test_limits_of_frames_that_cannot_be_are_refused(change):
    limits = FrameLimits.of([frame_numbers(textured(0))])
    with pytest.raises(
        ValueError, match="the frame of a product must have as many finite numbers in each list, of at least 1 image"
    ):
        dataclasses.replace(limits, **change)


@pytest.mark.parametrize("number", range(len(FRAME_NUMBERS)))
def test_a_frame_whose_number_is_not_one_is_at_fault(number):
    frame = frame_numbers(textured(0))
    limits = FrameLimits.of([frame])
    assert limits.fault(frame) is None
    frame[number] = math.nan
    assert limits.fault(frame) and limits.fault(frame, suspected=True)


def test_any_size_of_frame_has_numbers():
    for size in ((1, 1), (1, 9), (4, 3), (32, 32)):
        assert all(map(math.isfinite, frame_numbers(torch.rand(3, *size))))


# -- what so few photographs leave open ------------------------------------------------------------------------------


def test_what_lies_above_all_good_photographs_is_left_open_where_the_threshold_was_extrapolated():
    few = fit_threshold([0.1, 0.12, 0.15, 0.2], [0.1] * 4, max_false_alarm_rate=0.05)
    enough = fit_threshold([0.01 * number for number in range(1, 21)], [0.1] * 20, max_false_alarm_rate=0.05)
    assert (few.estimate, enough.estimate) == ("extrapolated", "rank")
    between = (max(few.image_scores) + few.image_threshold) / 2
    scores = torch.tensor([0.19, between, few.image_threshold * 1.01, math.nan, 0.195, between])
    assert are_unsure(scores, [few, few, few, few, enough, None]).tolist() == [False, True, True, False, False, False]


# --- The line by costs, where a few defects are known ---


NORMALS = [0.10, 0.12, 0.11, 0.13, 0.115, 0.105]


def by_costs(defects: list[float], miss: float = 1, alarm: float = 1) -> ProductThreshold:
    return fit_costs(fitted_to(NORMALS, 0.05), KnownDefects(defects, miss, alarm))


def test_costs_move_the_line_and_nothing_else():
    plain, even = fitted_to(NORMALS, 0.05), by_costs([0.3, 0.4, 0.5])
    assert max(NORMALS) < even.image_threshold < 0.3 and even.estimate == "costs"
    changed = {name for name, value in vars(plain).items() if value != getattr(even, name)}
    assert changed == {"image_threshold", "estimate", "defects"}
    query = torch.tensor([0.05, 0.12, 0.2, 0.6])
    assert torch.equal(p_values(query, [even] * 4), p_values(query, [plain] * 4))


def test_a_dearer_miss_lowers_the_line_and_a_dearer_false_alarm_raises_it():
    lines = [
        by_costs([0.14, 0.2, 0.3], *costs).image_threshold for costs in ((100, 1), (10, 1), (1, 1), (1, 10), (1, 100))
    ]
    assert lines == sorted(lines) and lines[0] < lines[-1]
    assert by_costs([0.14, 0.2, 0.3], 30, 10) == replace_costs(by_costs([0.14, 0.2, 0.3], 3, 1), 30, 10)


def replace_costs(threshold: ProductThreshold, miss: float, alarm: float) -> ProductThreshold:
    defects = dataclasses.replace(threshold.defects, miss_cost=miss, false_alarm_cost=alarm)
    return dataclasses.replace(threshold, defects=defects)


def test_what_costs_put_above_all_good_ones_is_unsure_and_below_them_nothing_is():
    high, low = by_costs([0.13, 0.4, 0.5], 1, 100), by_costs([0.12, 0.14, 0.15], 100, 1)
    assert high.image_threshold > max(NORMALS) > low.image_threshold
    between = torch.tensor([(high.image_threshold + max(NORMALS)) / 2])
    assert are_unsure(between, [high]).all() and not are_unsure(torch.tensor([0.119]), [low]).any()


def test_defects_below_all_good_ones_and_too_few_good_ones_are_refused():
    with pytest.raises(
        ValueError, match="2 known defects score 0.0900 at most, and the 6 photographs 0.1000 at least"
    ):
        by_costs([0.08, 0.09])
    with pytest.raises(ValueError, match="at least 2 good photographs"):
        fit_costs(fitted_to([0.1], 0.05), KnownDefects([0.3], 1, 1))


@pytest.mark.parametrize("count, total", [(0, 3), (2, 3), (3, 3), (1, 50), (300, 500), (1000, 2000)])
def test_intervals_of_rates_are_those_of_clopper_and_pearson(count, total):
    expected = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    assert rate_interval(count, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_found_defects_are_counted_at_lines_that_they_did_not_set():
    assert found_when_left_out(by_costs([0.3])) is None
    assert found_when_left_out(by_costs([0.3, 0.35, 0.4])) == 3
    assert found_when_left_out(by_costs([0.132, 0.6, 0.65, 0.7], 1, 5)) == 3  # the others alone would pass it


def test_the_statement_of_costs_says_what_so_few_cannot_tell():
    text = describe_guarantee(by_costs([0.3, 0.35, 0.4], 10, 2))
    assert text == (
        "The line was set by 3 known defects and 6 photographs, where a miss (cost 10) and a false alarm (cost 2) are expected "
        "to cost least. 0 of 6 good ones, which helped to set it, lie above it: false alarms between 0 % and 45.9 % (95 %). Each left out in turn, 3 of "
        "3 known defects are found: detections between 29.2 % and 100 % (95 %)."
    )
    assert "1 defect says nothing of how many are found" in describe_guarantee(by_costs([0.3]))


def test_known_defects_survive_the_config_and_what_cannot_be_is_refused():
    threshold = fit_costs(fitted_to(NORMALS), KnownDefects([0.3], 2.0, 1.0, files=["a.png"], digests=["0a"]))
    values = json.loads(json.dumps(dataclasses.asdict(threshold)))
    assert ProductThreshold.from_dict(values) == threshold
    for defects, words in (
        (None, "defects must be there"),
        ({**values["defects"], "scores": [math.nan]}, "defects.scores must be finite"),
        ({**values["defects"], "miss_cost": 0}, "miss_cost must lie above 0"),
        ({**values["defects"], "digests": ["a", "b"]}, "defects.digests must be as many"),
        ({"score": [1]}, "no known defects"),
    ):
        with pytest.raises(ValueError, match=words):
            ProductThreshold.from_dict({**values, "defects": defects})
