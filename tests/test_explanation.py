"""What stands behind an answer: the worst region, the nearest good image, the threshold that decided."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel
from modeling_anople.cli import main
from modeling_anople.explanation_anople import Explanation, box_of, worst_region
from modeling_anople.fitting_anople import remember
from modeling_anople.tiling_anople import patch_boxes

from .detectors import detector_of, normals_of, wholes, write_detector


@torch.no_grad()
def nearest_by_hand(detector, bad, class_id):
    """Distance of every patch to every vector: (layers, patches, vectors)."""
    encoded = detector.model.encode_image(detector.processor(bad)["pixel_values"])
    banks = zip(detector.model.config.memory_layers, detector.model.products[class_id].bank.vectors, strict=True)
    units = [(torch.nn.functional.normalize(encoded.intermediate[layer][0], dim=1), bank) for layer, bank in banks]
    return torch.stack([(1 - unit @ bank.T) / 2 for unit, bank in units])


def explain(detector: AnomalyDetectionPipeline, image: Image.Image, class_name: str | None = None) -> Explanation:
    return detector(image, class_name=class_name, explain=True, on_error="raise")["explanation"]


def blemished(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    image = image.copy()
    image.paste((255, 0, 200), box)
    return image


def test_the_worst_region_is_what_hangs_together_with_the_peak_above_the_threshold():
    values = np.zeros((12, 16), dtype=np.float32)
    values[2:5, 3:7], values[3, 4], values[8:11, 10:15] = 0.6, 0.9, 0.8
    region = worst_region(values, 0.5)
    assert region.sum() == 12 and region[2:5, 3:7].all()
    assert box_of(region, (24, 48)) == (9, 4, 21, 10)
    below = worst_region(values / 2, 0.5)  # nothing is above the threshold: above half of the peak
    assert below[2:5, 3:7].all() and below.sum() == 12
    assert worst_region(np.zeros((4, 4), dtype=np.float32), 0.5).sum() == 1


def test_patches_know_which_pixels_they_see():
    boxes = patch_boxes([(0, 0, 50, 40), (0, 0, 0, 0)], 4)
    assert boxes.shape == (2, 16, 4) and boxes[0, 0].tolist() == [0, 0, 13, 10]
    assert boxes[0, 15].tolist() == [37, 30, 50, 40] and not boxes[1].any()


def test_a_remembered_image_is_its_own_nearest(make_model, make_processor, photograph):
    processor, model = make_processor(), make_model()
    images = normals_of(photograph, 0)
    for class_id in range(2):
        remember(model, wholes(normals_of(photograph, class_id), processor), class_id)
    found = explain(detector_of(model, processor), images[2], "bolt")
    left, top, right, bottom = found.nearest_box
    assert found.nearest_index == 2 and (right - left, bottom - top) == (12, 10)
    assert found.line is found.past is None and found.decided_by == {"class_name": "bolt", "line": None}
    assert found.nearest_distance < 1e-6 and found.nearest_photograph is None


@pytest.mark.parametrize("limit", [None, 20])
def test_enrolled_images_are_named_and_the_place_is_told(tmp_path, make_detector, photograph, limit):
    detector = detector_of(*make_detector())
    detector.model.config.memory_limit = limit
    for number, image in enumerate(normals_of(photograph, 7)):
        image.save(tmp_path / f"gasket{number}.png")
    detector.enroll("gasket", tmp_path, max_false_alarm_rate=0.4)
    bad = blemished(Image.open(tmp_path / "gasket1.png").convert("RGB"), (24, 10, 36, 20))
    output = detector.model(**detector.processor(bad, class_names="gasket"))
    found = explain(detector, bad, "gasket")
    assert found.score == output.calibrated_scores.item() and found.line == 0.5
    assert found.past == pytest.approx(found.score - 0.5)
    assert found.decided_by == {"class_name": "gasket", "line": "image"} and found.nearest_class == "gasket"
    assert found.nearest_photograph == f"gasket{found.nearest_index}.png"
    left, top, right, bottom = found.nearest_box
    assert 0 <= left < right <= 48 and 0 <= top < bottom <= 40 and right - left == 12 and bottom - top == 10
    left, top, right, bottom = found.box
    assert 0 <= left < right <= 48 and 0 <= top < bottom <= 40
    # the nearest by hand: over all vectors and layers, of the patch in the region that is farthest from all
    distances = nearest_by_hand(detector, bad, 2)
    seen = distances.amin(2).mean(0)  # (patches,)
    patch = int((seen - found.nearest_distance).abs().argmin())
    assert found.nearest_distance == pytest.approx(float(seen[patch]), abs=1e-5)
    vector, bank = int(distances[:, patch].mean(0).argmin()), detector.model.products[2].bank
    assert bank.box_of(vector) == found.nearest_box and bank.image_of(vector) == found.nearest_index


def test_images_that_only_calibrate_are_none_of_the_nearest(make_detector, photograph, tmp_path):
    detector = detector_of(*make_detector())
    for number, image in enumerate(normals_of(photograph, 7, 4)):
        image.save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    detector.enroll("gasket", paths[:2])
    detector.calibrate("gasket", paths[2:3])
    detector.add_normals("gasket", paths[3:])
    found = explain(detector, Image.open(paths[3]), "gasket")
    assert found.nearest_index == 2 and found.nearest_photograph == "3.png"


def test_boxes_survive_saving_and_a_checkpoint_without_them_answers_none(tmp_path, make_detector, photograph):
    detector = detector_of(*make_detector())
    detector.enroll("gasket", normals_of(photograph, 7))
    bad = blemished(photograph(700), (24, 10, 36, 20))
    expected = explain(detector, bad, "gasket")
    detector.save_pretrained(tmp_path / "new")
    loaded = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path / "new"))
    assert explain(loaded, bad, "gasket") == expected and expected.nearest_box
    for name, value in detector.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name]), name

    old = tmp_path / "old"
    detector.save_pretrained(old)
    kept = {name: tensor for name, tensor in load_file(old / "model.safetensors").items() if ".boxes" not in name}
    assert len(kept) == len(load_file(old / "model.safetensors")) - 3
    save_file(kept, old / "model.safetensors", metadata={"format": "pt"})  # as it was before states had a name
    config = json.loads((old / "config.json").read_text())
    del config["content_sha256"]
    processor = json.loads((old / "processor_config.json").read_text())
    del processor["content_sha256"]
    (old / "processor_config.json").write_text(json.dumps(processor))
    for product in config["products"]:
        product["has_boxes"] = False
    (old / "config.json").write_text(json.dumps(config))
    model, found = AnoPLeModel.from_pretrained(old, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    loaded = AnomalyDetectionPipeline(model)
    answer = explain(loaded, bad, "gasket")
    assert answer.nearest_box is None and answer.nearest_index == expected.nearest_index
    loaded.add_normals("gasket", [photograph(790)])
    assert [each.has_boxes for each in loaded.products] == [False, False, True]
    bank = model.products[2].bank
    assert bank.box_of(0) is None and bank.box_of(48) == (0, 0, 12, 10)
    loaded.forget("gasket")
    assert [each.has_boxes for each in loaded.products] == [False, False]


def test_the_threshold_that_decided_is_named(make_detector, photograph):
    detector = detector_of(*make_detector(class_identity="predicted", unknown_product_rate=0.05))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    found = explain(detector, noise)
    assert found.decided_by["line"] in ("product patches", "product whole")
    pooled = detector_of(*make_detector(class_identity="pooled"))
    found = explain(pooled, noise)
    assert found.decided_by == {"class_name": None, "line": "pooled"} and found.class_name is None
    assert found.nearest_class in ("bolt", "nut") and found.nearest_index in (0, 1, 2)


def test_pipeline_and_command_explain_and_scores_stay(tmp_path, small_clip_folder, photograph, capsys):
    folder = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    detect = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(folder))
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
