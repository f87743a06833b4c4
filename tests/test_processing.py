"""The processor: photographs, names and masks to tensors, answers to results, and back from a saved folder."""

import json
import math
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from transformers import AutoProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from modeling_anople import AnoPLeModel, AnoPLeOutput, AnoPLeProcessor, ImageError
from modeling_anople.pipeline_anople import predict
from modeling_anople.processing_anople import find_regions, mark_regions

from .detectors import detector_of, write_detector


def test_pixel_values_are_those_of_the_clip_image_processor(make_processor, photograph):
    processor, images = make_processor(), [photograph(0), photograph(1, size=(70, 33))]
    plain = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    expected = plain(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images)["pixel_values"], expected)
    assert torch.equal(processor(images[1])["pixel_values"], expected[1:])
    assert processor(images).keys() == {"pixel_values"}


def test_the_whole_photograph_is_seen(make_processor):
    """CLIP's own centre crop would hide defects at the border."""
    image = Image.new("RGB", (128, 32))
    image.paste("white", (0, 0, 8, 32))
    image.paste("white", (120, 0, 128, 32))
    pixels = make_processor()(image)["pixel_values"][0, 0]
    assert pixels[:, 0].min() > pixels[:, 16].max() and pixels[:, -1].min() > pixels[:, 16].max()


def test_class_names_become_ids(make_processor, photograph):
    processor, images = make_processor(class_names=["nut", "bolt", "cap"]), [photograph(0), photograph(1)]
    assert processor(images, class_names="cap")["class_ids"].tolist() == [2, 2]
    assert processor(images, class_names=["bolt", "nut"])["class_ids"].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"'Bolt' is not known .* knows \['nut', 'bolt', 'cap'\]"):
        processor(images, class_names=["nut", "Bolt"])
    with pytest.raises(ValueError, match=r"which knows .*\. Did you mean bolt\?$"):
        processor(images, class_names=["nut", "BOLTS"])
    with pytest.raises(ValueError, match=r"which knows .*'cap'\]\.$"):
        processor(images, class_names=["nut", "hammer"])
    with pytest.raises(ValueError, match="2 images were given with 1 class names: give one for each"):
        processor(images, class_names=["nut"])
    for nothing in (None, []):
        with pytest.raises(ValueError, match="needs images"):
            processor(nothing)


def test_masks_are_brought_to_the_square_without_new_values(make_processor, photograph):
    mask = np.zeros((40, 48), dtype=np.uint8)
    mask[10:30, 12:24] = 1
    inputs = make_processor()([photograph(0), photograph(1)], masks=[Image.fromarray(mask), None])
    assert inputs["mask_labels"].shape == (2, 32, 32) and inputs["mask_labels"].unique().tolist() == [0, 1]
    expected = torch.zeros(32, 32)
    expected[8:24, 8:16] = 1
    assert torch.equal(inputs["mask_labels"][0], expected) and inputs["mask_labels"][1].sum() == 0


def test_masks_that_do_not_fit_are_refused(tmp_path, make_processor, photograph):
    Image.new("L", (24, 20)).save(tmp_path / "small.png")
    with pytest.raises(
        ImageError, match=r"small\.png: the mask has 24 x 20 pixels and its photograph 48 x 40: export"
    ):
        make_processor()(photograph(0), masks=tmp_path / "small.png")
    with pytest.raises(ValueError, match="1 images were given with 2 masks: give one or None for each"):
        make_processor()(photograph(0), masks=[None, None])


def test_white_value_of_the_camera_is_used(make_processor):
    processor, ramp = make_processor(), np.arange(4096, dtype=np.uint16).reshape(64, 64)
    dark = processor(ramp)["pixel_values"]
    processor.white_value = 4095
    bright = processor(ramp)["pixel_values"]
    eight_bits = processor(np.rint(ramp / 4095 * 255).astype(np.uint8))["pixel_values"]
    assert torch.equal(bright, eight_bits) and dark.max() < bright.mean()


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"])
def test_saved_processor_is_the_same_on_every_machine(tmp_path, make_processor, photograph, kind):
    processor = make_processor(class_names=["ünut", "bolt"])
    processor.white_value = 4095.0
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    settings["image_processor"]["image_processor_type"] = kind
    (tmp_path / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for loaded in (AnoPLeProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded).__name__ == "AnoPLeProcessor" and isinstance(loaded.image_processor, CLIPImageProcessorPil)
        assert loaded.class_names == ["ünut", "bolt"] and loaded.white_value == 4095
        assert torch.equal(loaded(photograph(0))["pixel_values"], processor(photograph(0))["pixel_values"])
        assert loaded.tokenizer("a bolt")["input_ids"] == processor.tokenizer("a bolt")["input_ids"]


def answer(scores: list[float], *, calibrated: bool = True) -> AnoPLeOutput:
    maps = torch.arange(len(scores) * 16.0).view(-1, 4, 4) / (len(scores) * 16)
    output = AnoPLeOutput(image_scores=torch.tensor(scores) / 2, anomaly_maps=maps / 2)
    if calibrated:
        output.calibrated_scores, output.calibrated_maps = torch.tensor(scores), maps
    return output


def test_results_have_their_photographs_own_sizes(make_processor):
    output, processor = answer([0.5, 0.75]), make_processor()
    output.class_ids = torch.tensor([1, 0])
    results = processor.post_process_anomaly_detection(output, target_sizes=[(8, 4), (3, 21)])
    assert [result["anomaly_map"].shape for result in results] == [(8, 4), (3, 21)]
    assert results[0]["anomaly_map"].dtype == np.float32
    np.testing.assert_allclose(results[0]["anomaly_map"][[0, -1]], output.calibrated_maps[0, [0, -1]], atol=1e-6)
    assert [result["class_name"] for result in results] == ["nut", "bolt"]
    assert [result["raw_score"] for result in results] == [0.25, 0.375]
    whole = processor.post_process_anomaly_detection(output)
    assert (whole[1]["anomaly_map"] == output.calibrated_maps[1].numpy()).all()
    with pytest.raises(ValueError, match="2 results were given 1 target_sizes: give one for each"):
        processor.post_process_anomaly_detection(output, target_sizes=[(8, 4)])


def test_only_scores_above_the_threshold_are_anomalous(make_processor):
    output, processor = answer([0.25, 0.5, 0.75]), make_processor()
    labels = [result["label"] for result in processor.post_process_anomaly_detection(output)]
    assert labels == ["normal", "normal", "anomalous"]
    labels = [result["label"] for result in processor.post_process_anomaly_detection(output, threshold=0.25)]
    assert labels == ["normal", "anomalous", "anomalous"]


def test_without_a_line_there_is_no_label(make_processor):
    [result] = make_processor().post_process_anomaly_detection(answer([0.5], calibrated=False))
    assert result["label"] is None and result["class_name"] is None
    assert result["score"] == result["raw_score"] == 0.25 and result["anomaly_map"].max() < 0.5


def test_four_lines_judge_a_photograph(tmp_path, small_clip_folder, photograph):
    folder = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    photograph(0, size=(50, 30)).save(tmp_path / "bolt.jpg")

    processor = AnoPLeProcessor.from_pretrained(folder)
    model = AnoPLeModel.from_pretrained(folder)
    inputs = processor(images=tmp_path / "bolt.jpg", class_names="bolt")
    [result] = processor.post_process_anomaly_detection(model(**inputs), target_sizes=[(30, 50)])

    assert result["anomaly_map"].shape == (30, 50) and 0 <= result["score"] <= 1
    assert result["label"] == ("anomalous" if result["score"] > 0.5 else "normal") and result["class_name"] == "bolt"


def test_any_image_processor_becomes_clips_pil_form_with_its_settings(make_processor, photograph):
    """Pixel values must not depend on whether a faster library is installed."""
    processor = make_processor()
    settings = {"size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 3}
    other = SiglipImageProcessorPil(image_mean=[0.1] * 3, image_std=[0.5] * 3, **settings)
    replaced = AnoPLeProcessor(other, processor.tokenizer, class_names=["bolt"])
    assert type(replaced.image_processor) is CLIPImageProcessorPil
    square = np.asarray(photograph(0).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    pixels = replaced(photograph(0))["pixel_values"][0].permute(1, 2, 0)
    np.testing.assert_allclose(pixels, (square - 0.1) / 0.5, atol=1e-5)


def test_images_of_two_sizes_are_no_batch_without_resizing(make_processor, photograph):
    pictures = [photograph(1, size=(40, 32)), photograph(2, size=(32, 32))]
    with pytest.raises(ValueError, match="are no batch: leave do_resize on"):
        make_processor()(pictures, do_resize=False, do_center_crop=False)


# --- What it is made of ---


def test_the_inputs_that_it_names_are_those_that_it_returns(make_processor):
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    mask = np.zeros((8, 8), bool)
    processor = make_processor()
    assert set(processor(picture)) == set(processor.model_input_names) == {"pixel_values"}
    whole = processor(picture, class_names="bolt", masks=[None], ignore_masks=mask)
    assert set(whole) == {"pixel_values", "class_ids", "mask_labels", "ignore_masks"}


@pytest.mark.parametrize("side", [10**6, 0, math.nan])
def test_a_side_that_no_machine_can_hold_is_refused_at_once(make_processor, tmp_path, side):
    make_processor().save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["image_processor"]["size"] = {"height": side, "width": 32}
    path.write_text(json.dumps(settings), encoding="utf-8")
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"size.height must lie within 1 and 4096, got {side}"):
        AnoPLeProcessor.from_pretrained(tmp_path)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("white", [0, -1, math.nan, math.inf])
def test_a_white_that_is_none_is_refused(white):
    with pytest.raises(ValueError, match=f"white_value must lie within 1e-06 and 4294967296, got {white}"):
        AnoPLeProcessor(white_value=white)


# --- Regions ---


def blobs(seed: int, size: tuple[int, int]) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.random(size).astype(np.float32) ** generator.uniform(0.5, 3)


@pytest.mark.parametrize(
    ("seed", "size"), [(0, (1, 1)), (1, (1, 9)), (2, (9, 1)), (3, (40, 48)), (4, (63, 17)), (5, (300, 200))]
)
@pytest.mark.parametrize("min_area", [1, 4])
def test_regions_are_those_that_touch(seed, size, min_area):
    """As scipy, which does not travel with detectors, labels them."""
    values = blobs(seed, size)
    marked = values > 0.5
    labels, count = ndimage.label(marked, np.ones((3, 3)))
    expected = []
    for number, (down, across) in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = np.nonzero(labels == number)
        if len(rows) >= min_area:
            box = [across.start, down.start, across.stop, down.stop]
            centroid = [round(float(columns.mean()), 1), round(float(rows.mean()), 1)]
            expected.append((round(float(values[labels == number].max()), 6), len(rows), box, centroid))
    found = find_regions(values, 0.5, min_area=min_area)
    peaks = [region["peak"] for region in found]
    assert peaks == sorted(peaks, reverse=True)
    expected.sort(key=lambda each: (-each[0], each))
    told = [(*(region[key] for key in ("peak", "area", "box", "centroid")),) for region in found]
    assert sorted(told, key=lambda each: (-each[0], each)) == expected[:1000]
    kept = np.isin(labels, [n for n in range(1, count + 1) if (labels == n).sum() >= min_area])
    assert (mark_regions(values, 0.5, min_area=min_area) == kept).all() and (values > 0.5).sum() == marked.sum()


def test_no_more_than_a_thousand_regions_are_listed_the_largest_peaks_first():
    values = np.zeros((200, 200), dtype=np.float32)
    values[::2, ::2] = 0.6 + np.random.default_rng(0).permutation(10_000).reshape(100, 100) / 40_000
    found = find_regions(values, 0.5)
    assert len(found) == 1000 and found[0]["peak"] == pytest.approx(values.max())
    assert found[-1]["peak"] == pytest.approx(np.sort(values.ravel())[-1000], abs=1e-6)
    assert mark_regions(values, 0.5).sum() == 10_000


def test_regions_are_found_once_and_only_where_they_are_wanted(make_detector, photograph, monkeypatch):
    detector, found = detector_of(*make_detector()), []
    for module in ("pipeline_anople", "processing_anople"):
        monkeypatch.setattr(f"modeling_anople.{module}.find_regions", lambda *_, **__: found.append(1) or [])
    list(predict(detector.model, detector.processor, [photograph(0)], class_names="bolt", explain=True))
    assert not found
    assert detector(photograph(0), class_name="bolt", explain=True)["regions"] == [] and len(found) == 1


def test_a_map_below_the_threshold_has_no_region():
    assert find_regions(np.full((8, 8), 0.5), 0.5) == [] and not mark_regions(np.full((8, 8), 0.5), 0.5).any()
