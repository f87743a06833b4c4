"""Photographs of no known product: called unknown where classes are predicted, and only there."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_anople import AnoPLeModel
from modeling_anople.calibration_anople import fit_novelty_thresholds
from modeling_anople.pipeline_anople import predict
from modeling_anople.processing_anople import UNKNOWN_PRODUCT
from modeling_anople.scoring_anople import SMALLEST_STRANGENESS, novelty_scores

from .detectors import fit, normals_of


@pytest.fixture
def detector(make_model, make_processor, photograph):
    """Knows two products by four photographs each; a third is easily told from both."""
    model, processor = make_model(unknown_product_rate=0.05), make_processor()  # of random weights, hence the rate
    for class_id in (0, 1):
        pixels = processor(normals_of(photograph, class_id, 4))["pixel_values"]
        model.remember(pixels, class_id)
        model.calibrate(pixels, class_id)
    return model, processor


@pytest.fixture
def strangers() -> list:
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    return [Image.fromarray(noise), Image.new("RGB", (48, 40), "red")]


def test_strangeness_is_that_of_the_definition():
    maps = torch.arange(2 * 9).float().view(2, 3, 3) / 20
    embeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), dim=1)
    values = novelty_scores(maps, embeds, torch.tensor([[2.0, 0.0]]))
    torch.testing.assert_close(values, torch.tensor([[0.2, SMALLEST_STRANGENESS], [0.65, 0.2]]))


def test_lines_of_products_widen_with_the_spread_and_the_rate():
    calm, restless = [0.010, 0.011, 0.012, 0.011], [0.005, 0.011, 0.020, 0.011]
    [low], [high] = fit_novelty_thresholds([calm], rate=0.001), fit_novelty_thresholds([restless], rate=0.001)
    assert max(calm) < low < high and fit_novelty_thresholds([calm], rate=0.01)[0] < low
    assert fit_novelty_thresholds([calm, restless], rate=0) == []


@torch.no_grad()
def test_strangers_are_unknown_and_more_photographs_of_the_products_are_not(detector, photograph, strangers):
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
    for answers in (list(predict(model, processor, sources)), model.as_pipeline(processor)(sources)):
        known, unknown = (vars(each) if hasattr(each, "error") else each for each in answers)
        assert known["class_name"] == "nut" and known["label"] in ("normal", "anomalous")
        assert unknown["class_name"] is None and unknown["label"] == "unknown product"


@torch.no_grad()
def test_a_given_class_is_never_doubted(detector, strangers):
    model, processor = detector
    assert model(**processor(strangers, class_names="nut")).is_known_class is None
    results = model.as_pipeline(processor)(strangers, class_name="nut")
    assert [result["class_name"] for result in results] == ["nut", "nut"]
    model.config.class_identity = "predicted"
    assert model(**processor(strangers, class_names="nut")).is_known_class.tolist() == [False, False]


@torch.no_grad()
def test_it_can_be_turned_off_at_once_and_its_line_is_in_the_config(detector, strangers):
    model, processor = detector
    model.config.unknown_product_rate = 0
    assert model(**processor(strangers)).is_known_class is None
    model.config.unknown_product_rate = 0.001
    for name in ("bolt", "nut"):
        assert len(model.config.calibration[name]["novelty_thresholds"]) == 2
        model.config.calibration[name]["novelty_thresholds"] = [1.0, 1.0]
    assert model(**processor(strangers)).is_known_class.tolist() == [True, True]


@torch.no_grad()
@pytest.mark.parametrize("why", ["pooled", "off when fitted", "lines from before", "no lines", "no memory"])
def test_without_lines_of_products_nothing_is_unknown(make_model, make_processor, photograph, strangers, why):
    options = {"pooled": {"class_identity": "pooled"}, "off when fitted": {"unknown_product_rate": 0}}.get(why, {})
    model, processor = make_model(**options), make_processor()
    if why == "no lines":
        model.remember(processor(normals_of(photograph, 0))["pixel_values"], 0)
    elif why != "no memory":
        fit(model, processor, photograph)
    model.config.unknown_product_rate = 0.001
    if why == "lines from before":
        for line in model.config.calibration.values():
            del line["novelty_thresholds"], line["novelty_scores"]
    if why == "no lines":
        model.class_prototypes[1] = -model.class_prototypes[0]
    assert model(**processor(strangers)).is_known_class is None
    if why == "lines from before":
        model.add_normals("nut", normals_of(photograph, 1, 5)[3:], processor=processor)
        assert len(model.config.calibration["nut"]["novelty_scores"][0]) == 10


@torch.no_grad()
def test_each_normal_is_measured_without_itself(make_model, make_processor, photograph):
    model, processor = make_model(), make_processor()
    pixels = processor(normals_of(photograph, 0))["pixel_values"]
    model.remember(pixels, 0)
    model.calibrate(pixels, 0)
    medians, cosines = model.config.calibration["bolt"]["novelty_scores"]
    assert len(medians) == len(cosines) == 15
    for number in range(3):
        other = make_model()
        other.remember(torch.cat([pixels[:number], pixels[number + 1 :]]), 0)
        output = other(pixels[number : number + 1], class_ids=torch.tensor([0]))
        values = novelty_scores(output.memory_maps, output.image_embeds, other.class_prototypes[:1])[0].tolist()
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
