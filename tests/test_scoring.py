"""Text, decoder and memory fused; and images of no known product, called so where classes are predicted, and only there."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from scipy.ndimage import gaussian_filter
from transformers import CLIPConfig

from modeling_anople import AnoPLeConfig, AnoPLeModel
from modeling_anople.calibration_anople import fit_novelty_thresholds
from modeling_anople.fitting_anople import calibrate_product, remember
from modeling_anople.pipeline_anople import predict
from modeling_anople.product_store_anople import UNKNOWN_PRODUCT
from modeling_anople.scoring_anople import (
    SMALLEST_NOVELTY,
    fuse_images,
    fuse_maps,
    harmonic_mean,
    log_odds,
    novelty_scores,
    resize_maps,
    smooth_maps,
    weighted_pool,
)

from .detectors import detector_of, fit, normals_of, wholes


def make_config(**fields) -> AnoPLeConfig:
    fields = {"smoothing": 0.0, **fields}
    return AnoPLeConfig(clip_config=CLIPConfig(vision_config={"image_size": 32, "patch_size": 8}), **fields)


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("first", "second", "mean"),
    [
        (0.5, 0.5, 0.5),
        (0.2, 0.6, 0.3),
        (1.0, 1.0, 1.0),
        (1.0, 0.0, 2e-6 / (1 + 1e-6)),  # nothing is 0, or one part could silence the other for good
        (0.0, 0.0, 1e-6),
        (3.0, 1.0, 1.0),
    ],
)
def test_harmonic_mean(first, second, mean):
    a, b = torch.tensor([first], dtype=torch.float64), torch.tensor([second], dtype=torch.float64)
    assert float(harmonic_mean(a, b)) == pytest.approx(mean, rel=1e-9)
    assert float(harmonic_mean(b, a)) == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.1, 0.5])
def test_a_constant_map_stays_constant(sigma):
    maps = smooth_maps(torch.full((2, 4, 4), 0.3), size=32, sigma=sigma)
    torch.testing.assert_close(maps, torch.full((2, 32, 32), 0.3))


@pytest.mark.parametrize("sigma", [0.05, 0.15])
def test_blur_is_that_of_scipy(sigma):
    maps = random_maps(1, 24, 24)
    expected = gaussian_filter(
        maps[0].double().numpy(), sigma * 24, mode="mirror", radius=int(np.ceil(3 * sigma * 24))
    )
    np.testing.assert_allclose(smooth_maps(maps, size=24, sigma=sigma)[0].numpy(), expected, atol=1e-6)


def test_no_blur_leaves_the_upsampled_map():
    maps = random_maps(2, 4, 4)
    assert torch.equal(smooth_maps(maps, size=12, sigma=0.0), resize_maps(maps, (12, 12)))


def test_resizing_keeps_places_and_size():
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 3] = 1.0
    large = resize_maps(maps, (40, 20))
    assert large.shape == (1, 40, 20)
    row, column = divmod(int(large.argmax()), 20)
    assert 10 <= row < 20 and 15 <= column < 20
    assert resize_maps(maps, (4, 4)) is maps


@pytest.mark.parametrize("fusion", ["harmonic", "weighted", "memory", "decoder"])
def test_maps_are_fused_as_the_config_says(fusion):
    decoder, memory = random_maps(2, 16, 16), random_maps(2, 4, 4, seed=1)
    fused = fuse_maps(decoder, memory, make_config(map_fusion=fusion, fusion_weights={"decoder_map": 0.25}))
    fine = resize_maps(memory, (16, 16))
    expected = {
        "harmonic": 2 * decoder * fine / (decoder + fine),
        "weighted": (log_odds(fine) + 0.25 * log_odds(decoder)).sigmoid(),
        "memory": fine,
        "decoder": decoder,
    }[fusion]
    torch.testing.assert_close(fused, resize_maps(expected, (32, 32)))


@pytest.mark.parametrize("fusion", ["harmonic", "weighted", "memory", "decoder"])
def test_without_a_memory_the_decoder_answers_alone(fusion):
    decoder = random_maps(2, 16, 16)
    assert torch.equal(fuse_maps(decoder, None, make_config(map_fusion=fusion)), resize_maps(decoder, (32, 32)))


@pytest.mark.parametrize("image_map", ["memory", "fused"])
@pytest.mark.parametrize("image_fusion", ["harmonic", "weighted", "map", "text"])
def test_image_scores_are_fused_as_the_config_says(image_map, image_fusion):
    weights = {"decoder": 0.5, "text": 0.125}
    config = make_config(image_map=image_map, image_fusion=image_fusion, fusion_weights=weights)
    decoder = random_maps(2, 8, 8, seed=2)
    text, memory, fused = torch.tensor([0.2, 0.9]), random_maps(2, 4, 4), random_maps(2, 32, 32, seed=1)
    peak = torch.stack([image.max() for image in (memory if image_map == "memory" else fused)])
    odds = log_odds(peak) + 0.5 * log_odds(decoder.flatten(1).amax(1)) + 0.125 * log_odds(text)
    expected = {"harmonic": 2 * text * peak / (text + peak), "weighted": odds.sigmoid(), "map": peak, "text": text}
    torch.testing.assert_close(fuse_images(text, decoder, memory, fused, config), expected[image_fusion])


def test_weights_of_a_fusion_are_numbers_within_0_and_1():
    for wrong in ({"decoder": -0.1}, {"decoder": 1.5}, {"decoder": math.nan}, {"memory": 0.5}):
        with pytest.raises(StrictDataclassClassValidationError, match="fusion_weights must be numbers within 0 and 1"):
            make_config(fusion_weights=wrong)


def test_the_memory_answers_alone_where_nothing_else_has_a_weight():
    decoder, memory = random_maps(2, 16, 16), random_maps(2, 16, 16, seed=1)
    for weights in (None, {}, {"decoder_map": 0.0, "decoder": 0.0, "text": 0.0}):
        config = make_config(map_fusion="weighted", image_fusion="weighted", fusion_weights=weights, smoothing=0)
        assert torch.equal(fuse_maps(decoder, memory, config), resize_maps(memory, (32, 32)))
        scores = fuse_images(torch.rand(2), decoder, memory, memory, config)
        assert torch.equal(scores, memory.flatten(1).amax(1))


def test_a_certain_part_cannot_outweigh_all_others_without_end():
    sure = weighted_pool(torch.tensor([0.0, 1.0]), (torch.tensor([1.0, 0.0]), 1.0))
    assert sure.isfinite().all() and torch.allclose(sure, torch.tensor([0.5, 0.5]), atol=1e-3)


def test_without_a_memory_the_fused_map_gives_the_peak():
    fused = random_maps(2, 32, 32)
    scores = fuse_images(torch.zeros(2), fused, None, fused, make_config(image_map="memory", image_fusion="map"))
    assert torch.equal(scores, fused.flatten(1).amax(1))


# -- images of no known product --------------------------------------------------------------------------------------


@pytest.fixture
def detector(make_model, make_processor, photograph):
    """Knows two products by four photographs each; a third is easily told from both."""
    model, processor = make_model(unknown_product_rate=0.05), make_processor()  # of random weights, hence the rate
    for class_id in (0, 1):
        images = wholes(normals_of(photograph, class_id, 4), processor)
        remember(model, images, class_id)
        calibrate_product(model, images, class_id)
    return model, processor


@pytest.fixture
def strangers() -> list:
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    return [Image.fromarray(noise), Image.new("RGB", (48, 40), "red")]


def test_novelty_is_that_of_the_definition():
    maps = torch.arange(2 * 9).float().view(2, 3, 3) / 20
    embeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), dim=1)
    values = novelty_scores(maps, embeds, torch.tensor([[2.0, 0.0]]))
    torch.testing.assert_close(values, torch.tensor([[0.2, SMALLEST_NOVELTY], [0.65, 0.2]]))


def test_thresholds_of_novelty_widen_with_the_spread_and_the_rate():
    calm, restless = [0.010, 0.011, 0.012, 0.011], [0.005, 0.011, 0.020, 0.011]
    [low], [high] = fit_novelty_thresholds([calm], rate=0.001), fit_novelty_thresholds([restless], rate=0.001)
    assert max(calm) < low < high and fit_novelty_thresholds([calm], rate=0.01)[0] < low
    assert fit_novelty_thresholds([calm, restless], rate=0) == []


@torch.no_grad()
def test_strangers_are_unknown_and_more_images_of_the_products_are_not(detector, photograph, strangers):
    model, processor = detector
    more = [image for class_id in (0, 1) for image in normals_of(photograph, class_id, 9)[4:]]
    output = model(**processor(more))
    assert output.is_known_class.tolist() == [True] * 10
    assert model(**processor(strangers)).is_known_class.tolist() == [False, False]
    results = processor.post_process_anomaly_detection(model(**processor([more[0], *strangers])))
    assert [result["class_name"] for result in results] == ["bolt", None, None]
    assert results[0]["label"] in ("normal", "anomalous") and {r["label"] for r in results[1:]} == {UNKNOWN_PRODUCT}
    assert all(0 <= result["score"] <= 1 and result["anomaly_map"].shape == (32, 32) for result in results)
    assert UNKNOWN_PRODUCT == "unknown product"


def test_the_loop_and_the_pipeline_say_so(detector, photograph, strangers):
    model, processor = detector
    sources = [normals_of(photograph, 1, 5)[4], strangers[0]]
    for answers in (list(predict(model, processor, sources)), detector_of(model, processor)(sources)):
        known, unknown = (vars(each) if hasattr(each, "error") else each for each in answers)
        assert known["class_name"] == "nut" and known["label"] in ("normal", "anomalous")
        assert unknown["class_name"] is None and unknown["label"] == "unknown product"


@torch.no_grad()
def test_a_given_class_is_never_doubted(detector, strangers):
    model, processor = detector
    assert model(**processor(strangers, class_names="nut")).is_known_class is None
    results = detector_of(model, processor)(strangers, class_name="nut")
    assert [result["class_name"] for result in results] == ["nut", "nut"]
    model.config.class_identity = "predicted"
    assert model(**processor(strangers, class_names="nut")).is_known_class.tolist() == [False, False]


@torch.no_grad()
def test_it_can_be_turned_off_at_once_and_its_thresholds_are_in_the_config(detector, strangers):
    model, processor = detector
    model.config.unknown_product_rate = 0
    assert model(**processor(strangers)).is_known_class is None
    model.config.unknown_product_rate = 0.001
    for product, kept in zip(model.products, model.config.products, strict=True):
        assert len(kept["threshold"]["novelty_thresholds"]) == 2
        record = product.record
        record.threshold = dataclasses.replace(record.threshold, novelty_thresholds=[1.0, 1.0])
    assert model(**processor(strangers)).is_known_class.tolist() == [True, True]


@torch.no_grad()
@pytest.mark.parametrize("why", ["pooled", "off when fitted", "thresholds from before", "no thresholds", "no memory"])
def test_without_thresholds_of_novelty_nothing_is_unknown(make_model, make_processor, photograph, strangers, why):
    options = {"pooled": {"class_identity": "pooled"}, "off when fitted": {"unknown_product_rate": 0}}.get(why, {})
    model, processor = make_model(**options), make_processor()
    if why == "no thresholds":
        remember(model, wholes(normals_of(photograph, 0), processor), 0)
    elif why != "no memory":
        fit(model, processor, photograph)
    model.config.unknown_product_rate = 0.001
    if why == "thresholds from before":
        for product in model.products:
            record = product.record
            record.threshold = dataclasses.replace(record.threshold, novelty_thresholds=[], novelty_scores=[])
    if why == "no thresholds":
        model.products[1].prototype = -model.products[0].prototype
    assert model(**processor(strangers)).is_known_class is None
    if why == "thresholds from before":
        fitted = detector_of(model, processor).add_normals("nut", normals_of(photograph, 1, 5)[3:])
        assert len(fitted.novelty_scores[0]) == 10 and len(fitted.novelty_thresholds) == 2


@torch.no_grad()
def test_each_normal_is_measured_without_itself(make_model, make_processor, photograph):
    model, processor, normals = make_model(), make_processor(), normals_of(photograph, 0)
    images = wholes(normals, processor)
    remember(model, images, 0)
    medians, cosines = calibrate_product(model, images, 0).novelty_scores
    assert len(medians) == len(cosines) == 15
    for number in range(3):
        other = make_model()
        remember(other, wholes([*normals[:number], *normals[number + 1 :]], processor), 0)
        output = other(**processor([normals[number]], class_names="bolt"))
        values = novelty_scores(output.memory_maps, output.image_embeds, other.products.prototypes([0]))[0].tolist()
        for value, known in zip(values, (medians, cosines), strict=True):
            assert min(abs(value - each) for each in known) < 1e-5


@torch.no_grad()
def test_a_saved_detector_doubts_the_same(detector, photograph, strangers, tmp_path):
    model, processor = detector
    model.save_pretrained(tmp_path)
    inputs = processor([*normals_of(photograph, 0, 6)[4:], *strangers])
    expected = model(**inputs).is_known_class
    assert torch.equal(AnoPLeModel.from_pretrained(tmp_path)(**inputs).is_known_class, expected)
    half = AnoPLeModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half(**inputs.to(torch.bfloat16)).is_known_class, expected)
