"""From images to answers: order, batches, streams, bad files, who names the class, and each part of the detector."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, ImageError
from modeling_anople.inference_anople import OpenedImage, open_batches, prepare_tiles, tile_images
from modeling_anople.pipeline_anople import Prediction, predict
from modeling_anople.scoring_anople import harmonic_mean, smooth_maps

from .detectors import detector_of, fit, normals_of


SIZES = [(48, 40), (30, 64), (7, 9), (48, 40), (100, 20), (33, 33), (48, 40)]


@pytest.fixture
def images(photograph) -> list[Image.Image]:
    return [photograph(seed, size=size) for seed, size in enumerate(SIZES)]


@pytest.fixture
def detector(make_detector):
    """A model that knows bolt and nut, and its processor."""
    return make_detector()


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
        assert each.label == ("anomalous" if each.score > 0.5 or each.reason else "normal")


def frames_without_a_part(part: Image.Image) -> dict[str, Image.Image]:
    noise = np.random.default_rng(0).integers(256, size=(40, 48, 3), dtype=np.uint8)
    return {
        "black": Image.new("RGB", part.size),
        "white": Image.new("RGB", part.size, "white"),
        "grey": Image.new("RGB", part.size, (128, 128, 128)),
        "ground": Image.new("RGB", part.size, part.getpixel((0, 0))),
        "noise": Image.fromarray(noise),
        "blurred": part.filter(ImageFilter.GaussianBlur(6)),
        "bright": part.point(lambda value: min(255, 2 * value)),
    }


@pytest.mark.parametrize("tiling", [None, (1, 2)])
def test_frames_that_show_no_part_are_anomalous_with_the_reason_though_the_product_is_named(
    make_model, make_processor, photograph, tmp_path, tiling
):
    normals = normals_of(photograph, 5, 5)
    detector = detector_of(make_model(), make_processor())
    detector.add_normals("bolt", normals_of(photograph, 0))
    detector.add_normals("nut", normals_of(photograph, 1))
    detector.enroll("screw", normals[:4], tiling=tiling)
    assert detector(normals[4], class_name="screw")["reason"] is None
    frames = frames_without_a_part(normals[4])
    answers = dict(zip(frames, detector(list(frames.values()), class_name="screw"), strict=True))
    assert {answer["label"] for answer in answers.values()} == {"anomalous"}
    reasons = {name: answer["reason"] for name, answer in answers.items()}
    assert reasons["black"] == "too dark" and "brighter than anything taught" in (reasons["white"], reasons["bright"])
    assert reasons.pop("blurred") == "out of focus"
    assert all(reason for name, reason in reasons.items() if name != "noise")  # whose score says it
    detector.save_pretrained(tmp_path / "saved")
    again = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path / "saved"), device="cpu")
    assert again(frames["black"], class_name="screw", explain=True)["reason"] == "too dark"
    # a detector of an earlier version has learned no frames
    again.model.products.named("screw").record.frame = None
    assert again(frames["blurred"], class_name="screw")["reason"] in (None, "nothing like the product")


def test_pooled_products_refuse_a_frame_that_all_of_them_would(make_detector, photograph):
    detector = detector_of(*make_detector(class_identity="pooled"))
    assert detector(normals_of(photograph, 0, 4)[3])["reason"] is None
    black = Image.new("RGB", (48, 40))
    assert detector(black)["reason"] == "too dark" and detector(black)["label"] == "anomalous"
    detector.model.products.named("nut").record.frame = None  # of which nothing is known
    assert detector(black)["reason"] is None


def alike(each: Prediction, other: Prediction) -> None:
    """Compare all that two predictions say; the last digits depend on the batch."""
    assert (each.error, each.size, each.label, each.class_name) == (
        other.error,
        other.size,
        other.label,
        other.class_name,
    )
    for name in ("score", "raw_score", "p_value"):
        value = getattr(other, name)
        assert getattr(each, name) == (None if value is None else pytest.approx(value, abs=1e-5)), name
    for name in ("raw_map", "anomaly_map", "ignored"):
        value, expected = getattr(each, name), getattr(other, name)
        assert (value is None) == (expected is None), name
        if value is not None:
            np.testing.assert_allclose(value, expected, atol=1e-4, err_msg=name)
    if other.explanation:
        told, expected = each.explanation.as_dict(), other.explanation.as_dict()
        for name in ("score", "past", "nearest_distance"):
            value = expected.pop(name)
            assert told.pop(name) == (None if value is None else pytest.approx(value, abs=1e-5)), name
        assert told == expected


@pytest.fixture
def mixture(make_detector, photograph, request):
    """A detector of products that are judged in all ways: two plain ones, one without a threshold, with tiles, with a mask."""
    model, processor = make_detector(**getattr(request, "param", {}))
    detector, mask = detector_of(model, processor), np.zeros((40, 48), dtype=bool)
    mask[20:, 24:] = True
    tilings = {} if model.config.class_identity == "pooled" else {"tiling": (2, 2)}
    detector.enroll("gasket", normals_of(photograph, 2), **tilings)
    detector.enroll("ring", normals_of(photograph, 3), ignore_mask=mask)
    detector.enroll("seal", normals_of(photograph, 4), ignore_mask=mask, **tilings)
    detector.enroll("washer", normals_of(photograph, 6))
    washer = model.products.named("washer")
    washer.record.threshold = None  # remembered, and never calibrated
    model.products.write()
    return model, processor


@pytest.mark.parametrize(
    ("mixture", "named"),
    [
        ({}, True),
        ({}, False),
        ({"class_identity": "predicted"}, True),
        ({"class_identity": "predicted"}, False),
        ({"class_identity": "pooled"}, True),
        ({"class_identity": "pooled"}, False),
    ],
    indirect=["mixture"],
)
@pytest.mark.parametrize("options", [{}, {"tiling": None}, {"tiling": (1, 2)}, {"ignore_mask": "none"}], ids=str)
def test_a_batch_of_several_products_answers_as_each_image_alone(mixture, photograph, named, options):
    model, processor = mixture
    names = ["bolt", "washer", "gasket", "ring", "seal", "nut", "seal", "washer", "gasket", "bolt"]
    owners = {"bolt": 0, "nut": 1, "gasket": 2, "ring": 3, "seal": 4, "washer": 6}
    sources = [normals_of(photograph, owners[name], 6)[4 + number % 2] for number, name in enumerate(names)]
    sources[3] = photograph(70)  # no normal image at all
    sources.insert(6, b"no picture")
    names.insert(6, "ring")
    sources.append(photograph(5, size=(60, 30)))  # of another size than the mask
    names.append("ring")
    options = {**options, "explain": True}
    alone = [
        next(predict(model, processor, [source], class_names=name if named else None, **options))
        for source, name in zip(sources, names, strict=True)
    ]
    for batch_size in (4, 12):
        batch = list(
            predict(model, processor, sources, class_names=names if named else None, batch_size=batch_size, **options)
        )
        for each, single in zip(batch, alone, strict=True):
            alike(each, single)
    assert alone[6].error and alone[0].error is None
    if named and model.config.class_identity == "given":
        assert [each.class_name for each in alone if not each.error] == [
            name for name, each in zip(names, alone, strict=True) if not each.error
        ]
        assert alone[1].label is None and alone[1].score == alone[1].raw_score  # no threshold
        assert alone[0].label in ("normal", "anomalous")
        assert (alone[11].error is None) == ("ignore_mask" in options)


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
            alike(prediction, one)


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
    assert alone[0].raw_score < 1e-5 < alone[1].raw_score  # only the bolts' memory holds this image
    model.config.class_identity = "predicted"
    assert [each.class_name for each in predict(model, processor, sources, class_names=wrong)] == truth


def test_pooled_answers_name_no_class(make_model, make_processor, photograph, images):
    processor = make_processor()
    model = fit(make_model(class_identity="pooled"), processor, photograph)
    for each in predict(model, processor, images, class_names="bolt"):
        assert each.class_name is None and each.label in ("normal", "anomalous") and 0 <= each.score <= 1


def test_the_threshold_of_the_config_decides(detector, images):
    model, processor = detector
    found = [each.score for each in predict(model, processor, images, class_names="bolt")]
    scores = sorted(found)
    model.config.threshold = scores[3]
    answers = [(each.label, each.reason) for each in predict(model, processor, images, class_names="bolt")]
    assert sum(reason is None and label == "anomalous" for label, reason in answers) <= 3
    for (label, reason), score in zip(answers, found, strict=True):
        assert label == ("anomalous" if score > scores[3] or reason else "normal")


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
        ({"class_names": [None, *["bolt"] * 6]}, "class None is not known"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(detector, images, options, message):
    with pytest.raises(ValueError, match=message):
        list(predict(*detector, images, **options))


def test_a_processor_of_another_detector_is_refused(detector, make_processor, images):
    other = make_processor(class_names=["nut", "bolt"])
    with pytest.raises(
        ValueError, match=r"processor knows the products \['nut', 'bolt'\], the detector \['bolt', 'nut'\]"
    ):
        next(predict(detector[0], other, images))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("names", [[None], ["bolt", None], [None, None], ["bolt", "nut", None]])
def test_no_name_among_names_is_refused_however_images_fall_into_batches(detector, images, names, batch_size):
    with pytest.raises(ValueError, match="class None is not known"):
        list(predict(*detector, images[: len(names)], class_names=names, batch_size=batch_size))


def test_memory_of_an_unfitted_detector_is_refused(make_model, make_processor, images):
    with pytest.raises(ValueError, match="remembers nothing: fit it"):
        list(predict(make_model(), make_processor(), images, class_names="bolt", part="memory"))


def test_a_full_size_map_has_the_images_size_and_range():
    calibrated = np.array([[0.0, 1.0], [0.25, 0.5]], dtype=np.float32)
    prediction = Prediction(size=(6, 10), anomaly_map=calibrated, raw_map=np.full((2, 2), 7, dtype=np.float32))
    shown = prediction.full_size_map()
    assert shown.shape == (6, 10) and [shown[0, 0], shown[0, -1], shown[-1, 0], shown[-1, -1]] == [0, 1, 0.25, 0.5]
    assert (Prediction(size=(3, 3), raw_map=prediction.raw_map).full_size_map() == 1).all()


# --- Images as they are opened and cut ---


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_batches_are_those_of_one_after_the_other(four_threads, make_processor, photograph, tmp_path):
    processor, paths = make_processor(), [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        photograph(number, size=(40 + number, 48)).save(path)
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    [together] = open_batches(processor, paths, class_names="bolt", batch_size=7)
    torch.set_num_threads(1)
    [apart] = open_batches(processor, paths, class_names="bolt", batch_size=7)
    assert [each.source for each in together] == paths and {each.class_name for each in together} == {"bolt"}
    assert [each.image and each.image.size for each in together] == [
        (40 + number, 48) if number != 3 else None for number in range(7)
    ]
    assert [each.image for each in together] == [each.image for each in apart]
    assert [each.error for each in together] == [each.error for each in apart] and "3.png" in together[3].error


def tile_image(model, processor, image, mask=None, class_name=None, **options):
    return tile_images(model, processor, [OpenedImage("image", image, mask, class_name)], **options)[0]


def test_an_image_is_cut_as_its_product_wants_it_or_as_it_is_said(mixture, photograph):
    model, processor = mixture
    names, nothing = ["bolt", "gasket", "ring", "seal"], np.zeros((40, 48), dtype=bool)

    def cut(image: Image.Image, *names: str | None, mask: np.ndarray | None = None, **options) -> list:
        opened = [OpenedImage(image, image, mask, name) for name in names]
        return tile_images(model, processor, opened, **options)

    image = photograph(9)
    tiled = cut(image, *names)
    assert [each.layout and len(each.layout.boxes) for each in tiled] == [None, 4, None, 4]
    assert [each.ignore_mask is None for each in tiled] == [True, True, False, False]
    assert [each.class_id for each in tiled] == [model.products.id_of(name) for name in names]
    assert not any(each.identified for each in tiled)
    assert len(cut(image, "bolt", tiling=(1, 3))[0].boxes) == 3
    assert cut(image, "gasket", tiling=None)[0].layout is None
    assert not cut(image, "ring", mask=nothing)[0].ignore_mask.any()
    named, found = cut(normals_of(photograph, 4, 5)[4], "nut", None)
    assert found.identified and found.class_id == model.products.id_of("seal") and len(found.boxes) == 4
    assert not named.identified and named.class_id == model.products.id_of("nut")
    fits, other = tile_images(
        model, processor, [OpenedImage(each, each, None, "ring") for each in (image, photograph(9, size=(60, 30)))]
    )
    assert fits.ignore_mask is not None
    assert isinstance(other, ImageError) and "keeps an ignore_mask of 48 x 40" in str(other)
    plain, _, masked, _ = tiled
    pixels, masks = prepare_tiles([(plain, 0), (masked, 0)])
    assert pixels.shape == (2, 3, 32, 32) and not masks[0].any() and masks[1].any()
    assert prepare_tiles([(plain, 0)])[1] is None
