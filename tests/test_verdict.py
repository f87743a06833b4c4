"""From raw scores to verdicts, outside the model: the same on arrays, on tensors and in the results."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_anople import AnoPLeConfig
from modeling_anople import calibration_anople as verdict_anople
from modeling_anople.calibration_anople import ProductThreshold, fit_threshold, judge, label_of, p_value, to_scale

from .detectors import fit, normals_of


SCORES = st.lists(st.floats(2**-13, 1.0, width=32), min_size=1, max_size=40)


def line_of(scores: list[float], rate: float = 0.1) -> dict:
    return vars(fit_threshold(scores, scores, max_false_alarm_rate=rate))


@given(SCORES, st.floats(2**-13, 1.0, width=32))
@settings(deadline=None, max_examples=200)
def test_p_values_are_ranks_among_the_normals(normals, score):
    expected = (1 + sum(each >= score for each in normals)) / (len(normals) + 1)
    assert p_value(score, line_of(normals)) == pytest.approx(expected)
    assert p_value(2.0, line_of(normals)) == 1 / (len(normals) + 1) and p_value(0.0, line_of(normals)) == 1


@given(SCORES, SCORES, st.sampled_from([0.1, 0.2, 0.45]))
@settings(deadline=None, max_examples=200)
def test_where_ranks_set_the_line_anomalous_means_a_p_value_within_the_budget(normals, queries, rate):
    line = line_of(normals, rate)
    for result in judge(np.float32(queries), None, [line] * len(queries)):
        exact = math.isclose(result["raw_score"], line["image_threshold"], rel_tol=1e-5)  # the scale is float32
        if line["estimate"] == "rank" and not exact:
            assert (result["label"] == "anomalous") == (result["p_value"] <= rate + 1e-9)


def test_normals_have_p_values_spread_evenly():
    generator = np.random.default_rng(0)
    values = []
    for _ in range(2000):
        *known, following = generator.gamma(2, size=10).tolist()
        values.append(p_value(following, line_of(known)))
    counts = np.bincount(np.rint(10 * np.array(values)).astype(int), minlength=11)[1:]
    assert counts.sum() == 2000 and abs(counts - 200).max() < 60


def test_a_lone_photograph_gives_no_evidence_and_an_earlier_version_no_p_value():
    lone = vars(
        fit_threshold(
            [], [], max_false_alarm_rate=0.05, jittered_image_scores=[0.1, 0.2], jittered_map_maxima=[0.1, 0.2]
        )
    )
    assert p_value(0.9, lone) == 1.0
    earlier = line_of([0.1, 0.2])
    del earlier["photographs"]
    assert p_value(0.9, earlier) is None and p_value(0.9, None) is None


@given(SCORES, st.floats(1e-4, 1.0), st.floats(0.05, 2))
@settings(deadline=None, max_examples=100)
def test_arrays_and_tensors_are_brought_to_the_same_scale(values, line, spread):
    array = to_scale(np.float32(values), line, spread)
    tensor = to_scale(torch.tensor(values), line, spread)
    assert array.dtype == np.float32 and array.shape == (len(values),)
    np.testing.assert_allclose(array, tensor.numpy(), atol=2e-5)
    assert (np.diff(array[np.argsort(values)]) >= 0).all() and 0 <= array.min() <= array.max() <= 1


@pytest.mark.parametrize("value", [0.1, 0.3, 0.73])
def test_the_line_itself_is_a_half_and_not_above_it(value):
    assert to_scale(np.float32([value]), value, 0.2)[0] == 0.5 == to_scale(torch.tensor([value]), value, 0.2)[0]
    assert label_of(0.5, 0.5) == "normal" and label_of(0.5000001, 0.5) == "anomalous"


@torch.no_grad()
def test_plain_arrays_are_judged_as_the_pipeline_judges(make_model, make_processor, photograph):
    """What an exported model needs: its raw arrays, the config, and no model."""
    processor = make_processor()
    model = fit(make_model(), processor, photograph)
    images = [*normals_of(photograph, 1), photograph(70), photograph(71)]
    output = model(**processor(images, class_names="nut"))
    config = AnoPLeConfig.from_dict(model.config.to_dict())
    lines = [config.calibration["nut"]] * len(images)
    results = judge(output.image_scores.numpy(), output.anomaly_maps.numpy(), lines, threshold=config.threshold)
    usual = processor.post_process_anomaly_detection(output, threshold=config.threshold)
    for ours, theirs in zip(results, usual, strict=True):
        assert (ours["label"], ours["raw_score"]) == (theirs["label"], theirs["raw_score"])
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert ours["p_value"] == pytest.approx(theirs["p_value"], abs=1e-5)
        np.testing.assert_allclose(ours["anomaly_map"], theirs["anomaly_map"], atol=1e-4)
    [raw] = judge(output.image_scores.numpy()[:1], output.anomaly_maps.numpy()[:1], [None])
    assert raw["label"] is raw["p_value"] is None and raw["score"] == raw["raw_score"]
    with pytest.raises(ValueError, match="5 scores were given 1 lines"):
        judge(output.image_scores.numpy(), None, lines[:1])


def test_the_threshold_is_changed_without_reloading(make_model, make_processor, photograph):
    processor = make_processor()
    model = fit(make_model(), processor, photograph)
    detect, image = model.as_pipeline(processor), photograph(70)
    [before] = detect([image], class_name="nut")
    for threshold, label in ((0.0, "anomalous"), (1.0, "normal"), (before["score"], "normal")):
        model.config.threshold = threshold
        [after] = detect([image], class_name="nut")
        assert after["label"] == label
        assert {name: after[name] for name in ("score", "raw_score", "p_value")} == {
            name: before[name] for name in ("score", "raw_score", "p_value")
        }
        assert (after["anomaly_map"] == before["anomaly_map"]).all()


def test_arrays_are_judged_without_torch():
    """As beside an exported model: the file alone, in a process that has no torch."""
    program = (
        "import sys, runpy; sys.modules['torch'] = None; import numpy as np\n"
        "judge = runpy.run_path(sys.argv[1])['judge']\n"
        "line = {'image_threshold': 0.2, 'image_spread': 0.3, 'map_threshold': 0.2, 'map_spread': 0.3, 'photographs': 2, "
        "'image_scores': [0.1, 0.15]}\n"
        "[result] = judge(np.float32([0.3]), np.full((1, 2, 2), 0.2, np.float32), [line])\n"
        "assert result['label'] == 'anomalous' and abs(result['p_value'] - 1 / 3) < 1e-9\n"
        "assert (result['anomaly_map'] == 0.5).all()"
    )
    subprocess.run([sys.executable, "-c", program, verdict_anople.__file__], check=True, timeout=60)


@torch.no_grad()
def test_raw_answers_do_not_know_the_line(make_model, make_processor, photograph):
    processor = make_processor()
    model = fit(make_model(), processor, photograph)
    batch = processor([photograph(70)], class_names="nut")
    before = model(**batch)
    model.config.threshold = 0.9
    model.config.calibration["nut"] |= {"image_threshold": 7.0, "map_threshold": 7.0}
    after = model(**batch)
    assert torch.equal(before.image_scores, after.image_scores)
    assert torch.equal(before.anomaly_maps, after.anomaly_maps)
    assert after.calibrated_scores < before.calibrated_scores and torch.equal(after.p_values, before.p_values)


@torch.no_grad()
def test_p_values_of_a_batch_are_those_of_each_class(make_model, make_processor, photograph):
    processor = make_processor()
    model = fit(make_model(), processor, photograph)
    output = model(**processor([photograph(70)] * 2, class_names=["bolt", "nut"]))
    lines = [ProductThreshold(**model.config.calibration[name]) for name in ("bolt", "nut")]
    expected = [p_value(score, vars(line)) for score, line in zip(output.image_scores.tolist(), lines, strict=True)]
    assert output.p_values.tolist() == pytest.approx(expected)
    pooled = fit(make_model(class_identity="pooled"), make_processor(), photograph)
    assert pooled(**processor([photograph(70)] * 2)).p_values.shape == (2,)
