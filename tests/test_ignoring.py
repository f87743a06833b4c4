"""Places that do not count: nothing that lies there changes an answer, maps are 0 there, the memory never sees them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_anople import AnoPLeModel, ImageError
from modeling_anople.cli import main
from modeling_anople.explanation_anople import explain
from modeling_anople.images_anople import fill_ignored, ignored_patches, mask_tensor
from modeling_anople.pipeline_anople import full_size_map, predict

from .detectors import fit, normals_of, write_detector


BOX = (24, 20, 48, 40)  # the lower right quarter of photographs of 48 x 40: 4 of 16 patches


@pytest.fixture
def mask() -> np.ndarray:
    marked = np.zeros((40, 48), dtype=np.uint8)
    marked[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 7
    return marked


@pytest.fixture
def detector(make_model, make_processor, photograph):
    processor = make_processor()
    return fit(make_model(), processor, photograph), processor


def with_another_number(image: Image.Image, seed: int) -> Image.Image:
    image, generator = image.copy(), np.random.default_rng(seed)
    image.paste(Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)), BOX[:2])
    return image


def test_what_is_ignored_is_filled_from_around_it_and_leaves_no_trace(photograph, mask):
    image = photograph(1)
    filled = fill_ignored(image, mask > 0)
    assert filled == fill_ignored(with_another_number(image, 1), mask > 0) != image
    kept = np.asarray(filled)[mask == 0]
    assert np.array_equal(kept, np.asarray(image)[mask == 0])
    flat = fill_ignored(with_another_number(Image.new("RGB", (48, 40), (10, 90, 200)), 2), mask > 0)
    assert flat.getcolors() == [(48 * 40, (10, 90, 200))]
    assert fill_ignored(image, np.ones((40, 48), dtype=bool)).size == image.size


def test_patches_count_while_no_more_than_half_is_ignored(mask):
    patches = ignored_patches(mask_tensor(mask > 0, 32)[None], 4)
    assert patches.sum() == 4 and patches[0, 2:, 2:].all()
    half = np.zeros((32, 32), dtype=bool)
    half[:, :4] = True
    assert not ignored_patches(mask_tensor(half, 32)[None], 4).any()
    half[:, 4] = True
    assert ignored_patches(mask_tensor(half, 32)[None], 4)[0].sum(1).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("tiling", ["same", (2, 2)])
def test_nothing_under_the_mask_has_any_influence(detector, photograph, mask, tiling):
    model, processor = detector
    images = [photograph(3), with_another_number(photograph(3), 1), with_another_number(photograph(3), 2)]
    for choice in ({}, {"class_names": "bolt"}):
        answers = list(
            predict(model, processor, images, ignore_mask=mask, tiling=tiling, explain=True, batch_size=1, **choice)
        )  # one by one: on some processors the last digits depend on the place in a batch
        for other in answers[1:]:
            assert other.score == answers[0].score and np.array_equal(other.raw_map, answers[0].raw_map)
            assert other.explanation == answers[0].explanation
        full = full_size_map(answers[0])
        assert full.shape == (40, 48) and (full[mask > 0] == 0).all() and full[mask == 0].max() > 0
    seen = list(predict(model, processor, images, class_names="bolt"))
    assert len({answer.score for answer in seen}) == 3


def test_the_memory_holds_no_ignored_patch_and_a_masked_product_answers_alike(tmp_path, detector, photograph, mask):
    model, processor = detector
    normals = normals_of(photograph, 7)
    model.enroll("gasket", normals, processor=processor, ignore_mask=mask)
    assert model.memory.counts[2] == [12, 12, 12]
    for left, top, _, _ in model.memory.boxes(2).tolist():
        assert left < BOX[0] or top < BOX[1]
    numbered = [with_another_number(image, seed) for seed, image in enumerate(normals)]
    model.enroll("seal", numbered, processor=processor, ignore_mask=[mask, Image.fromarray(mask), mask])
    assert torch.equal(model.memory.bank(3), model.memory.bank(2))
    lines = [model.config.calibration[name] for name in ("gasket", "seal")]
    assert lines[0]["image_threshold"] == pytest.approx(lines[1]["image_threshold"], rel=0.3)  # the words differ
    model.add_normals("gasket", [photograph(777)], processor=processor, ignore_mask=mask)
    assert model.memory.counts[2] == [12, 12, 12, 12]
    model.save_pretrained(tmp_path)
    loaded = AnoPLeModel.from_pretrained(tmp_path)
    first, again = (
        next(predict(m, processor, numbered, class_names="gasket", ignore_mask=mask)) for m in (model, loaded)
    )
    assert first.score == again.score


def test_masks_that_cannot_be_meant_are_refused(tmp_path, detector, photograph, mask):
    model, processor = detector
    detect = model.as_pipeline(processor)
    result = detect(photograph(1), class_name="bolt", ignore_mask=mask[:-1])
    assert result["score"] is None and "48 x 39 pixels and its photograph 48 x 40" in result["error"]
    with pytest.raises(ImageError, match="48 x 39"):
        model.enroll("gasket", normals_of(photograph, 7), processor=processor, ignore_mask=mask[:-1])
    with pytest.raises(ValueError, match="another number of photographs"):
        model.enroll("gasket", normals_of(photograph, 7), processor=processor, ignore_mask=[mask])
    everything = np.ones((40, 48), dtype=bool)
    with pytest.raises(ValueError, match="leaves no patch"):
        model.enroll("gasket", normals_of(photograph, 7), processor=processor, ignore_mask=everything)
    assert model.config.class_names == ["bolt", "nut"] and len(model.memory.counts) == 2
    result = detect(photograph(1), class_name="bolt", ignore_mask=tmp_path / "gone.png")
    assert "no such file" in result["error"]
    result = detect(photograph(1), class_name="bolt", ignore_mask=everything)
    assert "ignores the whole photograph" in result["error"]


def test_processor_pipeline_and_explanation_take_masks(detector, photograph, mask):
    model, processor = detector
    image, other = photograph(3), with_another_number(photograph(3), 5)
    inputs = processor([image, other], class_names="bolt", ignore_masks=mask)
    assert torch.equal(inputs["pixel_values"][0], inputs["pixel_values"][1])
    output = model(**inputs)
    assert (output.memory_maps[:, 2:, 2:] == 0).all() and (output.anomaly_maps[:, 16:, 16:] == 0).all()
    detect = model.as_pipeline(processor)
    results = detect([image, other], class_name="bolt", ignore_mask=mask, explain=True)
    assert results[0]["score"] == pytest.approx(output.calibrated_scores[0].item(), abs=1e-5)
    assert results[0]["score"] == results[1]["score"] and (results[1]["anomaly_map"][mask > 0] == 0).all()
    told = explain(model, processor, other, "bolt", ignore_mask=mask)
    assert told == results[0]["explanation"] and told.box[0] < BOX[0] + 1 or told.box[1] < BOX[1] + 1


def test_the_commands_take_a_mask(tmp_path, small_clip_folder, photograph, mask, capsys):
    folder = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for number, image in enumerate(normals_of(photograph, 7)):
        with_another_number(image, number).save(tmp_path / f"gasket{number}.png")
    paths, hidden = [str(tmp_path / f"gasket{n}.png") for n in range(3)], ["--ignore_mask", str(tmp_path / "mask.png")]
    assert main(["enroll", str(folder), "gasket", *paths, *hidden]) == 0
    assert AnoPLeModel.from_pretrained(folder).memory.counts[2] == [12, 12, 12]
    capsys.readouterr()
    assert main(["predict", str(folder), *paths, "--class", "gasket", "--output", str(tmp_path / "out"), *hidden]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3 and all(line["label"] == "normal" for line in lines)
