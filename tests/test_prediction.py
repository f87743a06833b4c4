"""The prediction loop: order, batches, streams, bad files, who names the class, and each part of the detector."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_anople import AnomalyDetectionPipeline
from modeling_anople.pipeline_anople import Prediction, predict
from modeling_anople.scoring_anople import harmonic_mean, smooth_maps

from .detectors import detector_of, fit, normals_of


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


@pytest.fixture
def mixed(detector, photograph) -> AnomalyDetectionPipeline:
    """A detector of products with and without a threshold, with a mask, with tiles, and with both."""
    detector, mask = detector_of(*detector), np.zeros((40, 48), dtype=bool)
    mask[:12, :20] = True
    for class_id, (name, options) in enumerate(OPTIONS.items(), start=2):
        options = {key: mask if key == "ignore_mask" else value for key, value in options.items()}
        detector.enroll(name, normals_of(photograph, class_id), **options)
    store = detector.model.products
    for name in ("nut", "pin"):
        store.named(name).record.threshold = None
    store.write()
    return detector


OPTIONS = {
    "cap": {"ignore_mask": "mask"},
    "strip": {"tiling": "2,2"},
    "pin": {"tiling": "1,2", "ignore_mask": "mask"},
    "lid": {"tiling": "auto", "ignore_mask": "mask"},
}


def assert_same(prediction: Prediction, alone: Prediction) -> None:
    """Compare all that is known of an image but the time that it took."""
    for name in ("size", "label", "class_name", "error", "score", "raw_score", "p_value"):
        value, other = getattr(prediction, name), getattr(alone, name)
        assert value == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other), name
    for name, tolerance in (("raw_map", 1e-5), ("anomaly_map", 1e-4), ("ignored", 0)):
        value, other = getattr(prediction, name), getattr(alone, name)
        assert (value is None) == (other is None), name
        if other is not None:
            np.testing.assert_allclose(value, other, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("identity", ["given", "predicted"])
@pytest.mark.parametrize("named", ["all", "none", "some"])
def test_a_batch_of_any_products_equals_each_alone(mixed, photograph, named, identity):
    model, processor = mixed.model, mixed.processor
    model.config.class_identity = identity
    shown = ["cap", "bolt", "strip", "nut", "pin", "lid", "bolt", "cap", "pin"]
    ids = [model.config.class_names.index(name) for name in shown]
    images = [normals_of(photograph, class_id)[place % 3] for place, class_id in enumerate(ids)]
    images[3], images[6] = photograph(3), photograph(6, size=(100, 70))  # of no product; of another size
    names = [name if named == "all" or place % 2 else None for place, name in enumerate(shown)]
    names = [None] * len(shown) if named == "none" else names
    alone = [
        next(predict(model, processor, [image], class_names=name)) for image, name in zip(images, names, strict=True)
    ]
    if named == "all" and identity == "given":
        assert [one.class_name for one in alone] == shown
        assert [one.label is None for one in alone] == [name in ("nut", "pin") for name in shown]
        assert [one.ignored is not None for one in alone] == [name in ("cap", "pin", "lid") for name in shown]
    for batch_size in (2, 3, len(images)):
        given = None if named == "none" else names
        together = predict(model, processor, images, class_names=given, batch_size=batch_size)
        for prediction, one in zip(together, alone, strict=True):
            assert_same(prediction, one)


@pytest.mark.parametrize("identity", ["given", "predicted", "pooled"])
@pytest.mark.parametrize("first", [None, "nut"])
def test_some_of_a_batch_may_be_named_and_others_not(make_detector, photograph, identity, first):
    model, processor = make_detector(class_identity=identity)
    bolts = [*normals_of(photograph, 0), photograph(3)]
    names = [first, "nut", None, "nut"]  # wrong ones, so that it shows whether they are heeded
    alone = [
        next(predict(model, processor, [image], class_names=name)) for image, name in zip(bolts, names, strict=True)
    ]
    if identity == "given":
        assert [one.class_name for one in alone[:3]] == [first or "bolt", "nut", "bolt"]
    for prediction, one in zip(predict(model, processor, bolts, class_names=names), alone, strict=True):
        assert_same(prediction, one)


@pytest.mark.parametrize("identity", ["given", "pooled"])
@pytest.mark.parametrize("tiling", ["same", None, "auto", (1, 2)])
@pytest.mark.parametrize("fitted", [True, False])
def test_a_batch_with_masks_of_its_own_equals_each_alone(make_detector, images, identity, tiling, fitted):
    model, processor = make_detector(class_identity=identity)
    if not fitted:
        model.config.pooled_threshold = None
        model.products.named("nut").record.threshold = None
    masks = [np.zeros(image.size[::-1], dtype=bool) for image in images]
    for mask in masks[1:5]:
        mask[: len(mask) // 3] = True
    masks[4][:-1] = True  # so little is left that no patch counts
    masks[5], masks[6] = None, np.ones((3, 3), dtype=bool)  # nothing given; another size
    names = ["bolt", "nut"] * 3 + ["bolt"]
    alone = [
        next(predict(model, processor, [image], class_names=name, ignore_mask=[mask], tiling=tiling))
        for image, name, mask in zip(images, names, masks, strict=True)
    ]
    assert [place for place, one in enumerate(alone) if one.error] == [4, 6]
    assert "leaves no patch that counts" in alone[4].error and "the mask has 3 x 3 pixels" in alone[6].error
    assert [one.label is None for one in alone[:4]] == [
        not fitted and (identity == "pooled" or name == "nut") for name in names[:4]
    ]
    for batch_size in (2, len(images)):
        options = {"batch_size": batch_size, "ignore_mask": masks, "tiling": tiling}
        together = predict(model, processor, images, class_names=names, **options)
        for prediction, one in zip(together, alone, strict=True):
            assert_same(prediction, one)


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


def test_without_a_threshold_raw_values_stand_alone(make_model, make_processor, images):
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
        ({"class_names": ["bolt", 5, *["bolt"] * 5]}, "class 5 is not known"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(detector, images, options, message):
    with pytest.raises(ValueError, match=message):
        list(predict(*detector, images, **options))


def test_memory_of_an_unfitted_detector_is_refused(make_model, make_processor, images):
    with pytest.raises(ValueError, match="remembers nothing: fit it"):
        list(predict(make_model(), make_processor(), images, class_names="bolt", part="memory"))


def test_full_size_map_has_the_images_size_and_range():
    calibrated = np.array([[0.0, 1.0], [0.25, 0.5]], dtype=np.float32)
    prediction = Prediction(size=(6, 10), anomaly_map=calibrated, raw_map=np.full((2, 2), 7, dtype=np.float32))
    shown = prediction.full_size_map()
    assert shown.shape == (6, 10) and [shown[0, 0], shown[0, -1], shown[-1, 0], shown[-1, -1]] == [0, 1, 0.25, 0.5]
    assert (Prediction(size=(3, 3), raw_map=prediction.raw_map).full_size_map() == 1).all()
