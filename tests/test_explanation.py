"""What stands behind an answer: the worst region, the nearest good photograph, the line that decided."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling_anople import AnoPLeModel
from modeling_anople.cli import main
from modeling_anople.explanation_anople import box_of, explain, worst_region
from modeling_anople.tiling_anople import patch_boxes

from .detectors import normals_of, write_detector


@torch.no_grad()
def nearest_by_hand(model, processor, bad, class_id):
    """Distance of every patch to every vector: (layers, patches, vectors)."""
    pixels = processor(bad)["pixel_values"]
    taps = model.memory_taps(pixels, model.encode_image(pixels))
    banks = zip(model.memory.layers, model.memory.bank(class_id), strict=True)
    units = [(torch.nn.functional.normalize(taps[layer][0], dim=1), bank) for layer, bank in banks]
    return torch.stack([(1 - unit @ bank.T) / 2 for unit, bank in units])


def blemished(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    image = image.copy()
    image.paste((255, 0, 200), box)
    return image


def test_the_worst_region_is_what_hangs_together_with_the_peak_above_the_line():
    values = np.zeros((12, 16), dtype=np.float32)
    values[2:5, 3:7], values[3, 4], values[8:11, 10:15] = 0.6, 0.9, 0.8
    region = worst_region(values, 0.5)
    assert region.sum() == 12 and region[2:5, 3:7].all()
    assert box_of(region, (24, 48)) == (9, 4, 21, 10)
    below = worst_region(values / 2, 0.5)  # nothing is above the line: above half of the peak
    assert below[2:5, 3:7].all() and below.sum() == 12
    assert worst_region(np.zeros((4, 4), dtype=np.float32), 0.5).sum() == 1


def test_patches_know_which_pixels_they_see():
    boxes = patch_boxes([(0, 0, 50, 40), (0, 0, 0, 0)], 4)
    assert boxes.shape == (2, 16, 4) and boxes[0, 0].tolist() == [0, 0, 13, 10]
    assert boxes[0, 15].tolist() == [37, 30, 50, 40] and not boxes[1].any()


def test_a_remembered_photograph_is_its_own_nearest(make_model, make_processor, photograph):
    processor, model = make_processor(), make_model()
    images = normals_of(photograph, 0)
    for class_id in range(2):
        model.remember(processor(normals_of(photograph, class_id))["pixel_values"], class_id)
    found = explain(model, processor, images[2], "bolt")
    assert found.nearest_index == 2 and found.nearest_box is None  # nobody said how large it was
    assert found.line is found.past is None and found.decided_by == {"class_name": "bolt", "line": None}
    assert found.nearest_distance < 1e-6 and found.nearest_photograph is None


@pytest.mark.parametrize("limit", [None, 20])
def test_enrolled_photographs_are_named_and_the_place_is_told(tmp_path, make_detector, photograph, limit):
    model, processor = make_detector(memory_limit=limit)
    for number, image in enumerate(normals_of(photograph, 7)):
        image.save(tmp_path / f"gasket{number}.png")
    model.enroll("gasket", tmp_path, processor=processor)
    bad = blemished(Image.open(tmp_path / "gasket1.png").convert("RGB"), (24, 10, 36, 20))
    output = model(**processor(bad, class_names="gasket"))
    found = explain(model, processor, bad, "gasket")
    assert found.score == output.calibrated_scores.item() and found.line == 0.5
    assert found.past == pytest.approx(found.score - 0.5)
    assert found.decided_by == {"class_name": "gasket", "line": "image"} and found.nearest_class == "gasket"
    assert found.nearest_photograph == f"gasket{found.nearest_index}.png"
    left, top, right, bottom = found.nearest_box
    assert 0 <= left < right <= 48 and 0 <= top < bottom <= 40 and right - left == 12 and bottom - top == 10
    left, top, right, bottom = found.box
    assert 0 <= left < right <= 48 and 0 <= top < bottom <= 40
    # the nearest by hand: over all vectors and layers, of the patch in the region that is farthest from all
    distances = nearest_by_hand(model, processor, bad, 2)
    seen = distances.amin(2).mean(0)  # (patches,)
    patch = int((seen - found.nearest_distance).abs().argmin())
    assert found.nearest_distance == pytest.approx(float(seen[patch]), abs=1e-5)
    vector = int(distances[:, patch].mean(0).argmin())
    assert model.memory.box_of(2, vector) == found.nearest_box
    assert model.memory.photograph_of(2, vector) == found.nearest_index


def test_boxes_survive_saving_and_a_checkpoint_without_them_answers_none(tmp_path, make_detector, photograph):
    model, processor = make_detector()
    model.enroll("gasket", normals_of(photograph, 7), processor=processor)
    bad = blemished(photograph(700), (24, 10, 36, 20))
    expected = explain(model, processor, bad, "gasket")
    model.save_pretrained(tmp_path / "new")
    loaded = AnoPLeModel.from_pretrained(tmp_path / "new")
    assert explain(loaded, processor, bad, "gasket") == expected and expected.nearest_box
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name

    old = tmp_path / "old"
    model.save_pretrained(old)
    kept = {name: tensor for name, tensor in load_file(old / "model.safetensors").items() if ".boxes_" not in name}
    save_file(kept, old / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((old / "config.json").read_text())
    del config["memory_boxes"]
    (old / "config.json").write_text(json.dumps(config))
    loaded, found = AnoPLeModel.from_pretrained(old, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    answer = explain(loaded, processor, bad, "gasket")
    assert answer.nearest_box is None and answer.nearest_index == expected.nearest_index
    loaded.add_normals("gasket", [photograph(790)], processor=processor)
    assert loaded.config.memory_boxes == [False, False, True]
    assert loaded.memory.box_of(2, 0) is None and loaded.memory.box_of(2, 48) == (0, 0, 12, 10)
    loaded.forget("gasket", processor=processor)
    assert loaded.config.memory_boxes == [False, False]


def test_the_line_that_decided_is_named(make_detector, photograph):
    model, processor = make_detector(class_identity="predicted", unknown_product_rate=0.05)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    found = explain(model, processor, noise)
    assert found.decided_by["line"] in ("product patches", "product whole")
    pooled, processor = make_detector(class_identity="pooled")
    found = explain(pooled, processor, noise)
    assert found.decided_by == {"class_name": None, "line": "pooled"} and found.class_name is None
    assert found.nearest_class in ("bolt", "nut") and found.nearest_index in (0, 1, 2)


def test_pipeline_and_command_explain_and_scores_stay(tmp_path, small_clip_folder, photograph, capsys):
    folder = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    model = AnoPLeModel.from_pretrained(folder)
    detect = model.as_pipeline()
    images = [photograph(1), b"no picture", blemished(photograph(2), (24, 10, 36, 20))]
    plain = detect(images, class_name="bolt", batch_size=3)
    explained = detect(images, class_name="bolt", batch_size=3, explain=True)
    for first, second in zip(plain, explained, strict=True):
        assert "explanation" not in first and first["score"] == second["score"]
    assert explained[1]["explanation"] is None
    assert explained[2]["explanation"].score == explained[2]["score"]
    assert detect(images[0], class_name="bolt", threshold=0.1, explain=True)["explanation"].line == 0.1

    for number, image in enumerate((images[0], images[2])):
        image.save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    answers = []
    for options in ([], ["--explain"]):
        assert main(["predict", str(folder), *paths, "--class", "bolt", *options]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for plain, explained in zip(*answers, strict=True):
        told = explained.pop("explanation")
        assert told["class_name"] == "bolt" and told["score"] == explained["score"] == plain["score"]
        assert len(told["box"]) == 4 and told["nearest_index"] in (0, 1, 2)
