"""The prediction loop: order, batches, streams, bad files, who names the class, and each part of the detector."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_anople.pipeline_anople import Prediction, full_size_map, predict
from modeling_anople.scoring_anople import harmonic_mean, smooth_maps

from .detectors import fit, normals_of


SIZES = [(48, 40), (30, 64), (7, 9), (48, 40), (100, 20), (33, 33), (48, 40)]


@pytest.fixture
def images(photograph) -> list[Image.Image]:
    return [photograph(seed, size=size) for seed, size in enumerate(SIZES)]


@pytest.fixture
def detector(make_model, make_processor, photograph):
    processor = make_processor()
    return fit(make_model(), processor, photograph), processor


def test_batches_equal_one_by_one_in_order(detector, images):
    one_by_one = [next(predict(*detector, [image], class_names="nut")) for image in images]
    assert [single.size for single in one_by_one] == [(height, width) for width, height in SIZES]
    assert len({round(single.score, 6) for single in one_by_one}) == len(SIZES)
    for batch_size in (2, 3, 8):
        batched = list(predict(*detector, images, class_names="nut", batch_size=batch_size))
        assert [each.size for each in batched] == [single.size for single in one_by_one]
        for each, single in zip(batched, one_by_one, strict=True):
            assert each.score == pytest.approx(single.score, abs=1e-5) and each.label == single.label
            np.testing.assert_allclose(each.raw_map, single.raw_map, atol=1e-5)
            np.testing.assert_allclose(each.anomaly_map, single.anomaly_map, atol=1e-4)


def test_predictions_are_the_models_own_answers(detector, images):
    model, processor = detector
    outputs = model(**processor(images, class_names="bolt"))
    for number, each in enumerate(predict(model, processor, images, class_names="bolt")):
        assert each.score == pytest.approx(outputs.calibrated_scores[number].item(), abs=1e-5)
        assert each.raw_score == pytest.approx(outputs.image_scores[number].item(), abs=1e-5)
        np.testing.assert_allclose(each.anomaly_map, outputs.calibrated_maps[number].detach(), atol=1e-4)
        assert each.class_name == "bolt" and each.error is None and each.seconds > 0
        assert each.label == ("anomalous" if each.score > 0.5 else "normal")


def test_a_detector_left_in_training_mode_predicts_all_the_same(detector, images):
    expected = [each.score for each in predict(*detector, images)]
    detector[0].train()
    assert [each.score for each in predict(*detector, images)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("names", ["bolt", None, ["bolt"] * 7])
def test_a_stream_is_never_read_more_than_a_batch_ahead(detector, images, names):
    pulled = 0

    def camera() -> Iterator[Image.Image]:
        nonlocal pulled
        for image in images:
            pulled += 1
            yield image

    stream = predict(*detector, camera(), class_names=names, batch_size=3)
    assert pulled == 0
    for number, _ in enumerate(stream):
        assert pulled == min(3 * (number // 3 + 1), len(images))
    assert number + 1 == pulled == len(images)


def test_bad_sources_keep_their_place(tmp_path, detector, images):
    expected = [each.score for each in predict(*detector, images, class_names="bolt")]
    sources = [tmp_path / "gone.png", images[0], b"no picture", *images[1:], 5]
    for batch_size in (1, 4):
        answers = list(predict(*detector, sources, class_names="bolt", batch_size=batch_size))
        failed = [number for number, each in enumerate(answers) if each.error]
        assert failed == [0, 2, 9] and all(answers[number].score is None for number in failed)
        assert "gone.png: there is no such file" in answers[0].error
        scores = [each.score for each in answers if each.error is None]
        assert scores == pytest.approx(expected, abs=1e-5)


def test_classes_are_named_for_each_or_predicted(detector, photograph):
    model, processor = detector
    sources = [*normals_of(photograph, 0), *normals_of(photograph, 1)]
    truth = ["bolt"] * 3 + ["nut"] * 3
    assert [each.class_name for each in predict(model, processor, sources)] == truth  # nearest to what it remembers
    wrong = truth[::-1]
    named = list(predict(model, processor, iter(sources), class_names=iter(wrong), batch_size=4))
    assert [each.class_name for each in named] == wrong
    alone = [next(predict(model, processor, sources, class_names=name, part="memory")) for name in ("bolt", "nut")]
    assert alone[1].score == pytest.approx(named[0].score, abs=1e-5)
    assert alone[0].raw_score < 1e-5 < alone[1].raw_score  # only the bolts' memory holds this photograph
    model.config.class_identity = "predicted"
    assert [each.class_name for each in predict(model, processor, sources, class_names=wrong)] == truth


def test_pooled_answers_name_no_class(make_model, make_processor, photograph, images):
    processor = make_processor()
    model = fit(make_model(class_identity="pooled"), processor, photograph)
    for each in predict(model, processor, images, class_names="bolt"):
        assert each.class_name is None and each.label in ("normal", "anomalous") and 0 <= each.score <= 1


def test_the_threshold_of_the_config_decides(detector, images):
    model, processor = detector
    scores = sorted(each.score for each in predict(model, processor, images, class_names="bolt"))
    model.config.threshold = scores[3]
    labels = [each.label for each in predict(model, processor, images, class_names="bolt")]
    assert labels.count("anomalous") == 3


def test_without_a_line_raw_values_stand_alone(make_model, make_processor, images):
    model, processor = make_model(), make_processor()
    [each] = predict(model, processor, images[:1], class_names="bolt")
    assert each.label is None and each.anomaly_map is None and each.score == each.raw_score
    assert each.full_size_map().shape == (40, 48)


def test_each_part_has_its_own_score_and_map(detector, images):
    model, processor = detector
    with torch.inference_mode():
        outputs = model(**processor(images[:2], class_names="bolt"))
        peaks = outputs.memory_maps.flatten(1).amax(1)
        smooth = {
            "memory": smooth_maps(outputs.memory_maps, size=32, sigma=0.01),
            "decoder": smooth_maps(outputs.decoder_maps, size=32, sigma=0.01),
            "fused": outputs.anomaly_maps,
        }
        scores = {
            "memory": peaks,
            "decoder": smooth["decoder"].flatten(1).amax(1),
            "text": outputs.text_scores,
            "fused": harmonic_mean(outputs.text_scores, peaks),
        }
    for part, expected in scores.items():
        answers = list(predict(model, processor, images[:2], class_names="bolt", part=part))
        assert [each.raw_score for each in answers] == pytest.approx(expected.tolist(), abs=1e-5), part
        assert [each.score for each in answers] == pytest.approx(outputs.calibrated_scores.tolist(), abs=1e-5)
        if part == "text":
            assert answers[0].raw_map is None
        else:
            np.testing.assert_allclose(answers[1].raw_map, smooth[part][1], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": "screw"}, r"'screw' is not known .* \['bolt', 'nut'\]"),
        ({"class_names": ["bolt", "nut"]}, "more sources than class names: give one class name for each"),
        ({"class_names": ["bolt"] * 9}, "more class names than sources: give one class name for each"),
        ({"class_names": [None, *["bolt"] * 6]}, "class None is not known"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(detector, images, options, message):
    with pytest.raises(ValueError, match=message):
        list(predict(*detector, images, **options))


def test_memory_of_an_unfitted_detector_is_refused(make_model, make_processor, images):
    with pytest.raises(ValueError, match="remembers nothing: fit it"):
        list(predict(make_model(), make_processor(), images, class_names="bolt", part="memory"))


def test_full_size_map_has_the_photographs_size_and_range():
    calibrated = np.array([[0.0, 1.0], [0.25, 0.5]], dtype=np.float32)
    prediction = Prediction(size=(6, 10), anomaly_map=calibrated, raw_map=np.full((2, 2), 7, dtype=np.float32))
    shown = prediction.full_size_map()
    assert shown.shape == (6, 10) and [shown[0, 0], shown[0, -1], shown[-1, 0], shown[-1, -1]] == [0, 1, 0.25, 0.5]
    assert (full_size_map(Prediction(size=(3, 3), raw_map=prediction.raw_map)) == 1).all()
