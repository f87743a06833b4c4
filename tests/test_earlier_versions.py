"""Detectors that version 0.1 saved, whole and as adapters: read under the names of today, with the same answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline

from modeling_anople import AnoPLeModel
from modeling_anople.configuration_anople import EARLIER_PRODUCT_FIELDS, EARLIER_THRESHOLD_FIELDS, REMOVED, RENAMED

from .contract import assert_same, learnables
from .detectors import detector_of, normals_of


WEIGHTS = ("model.safetensors", "adapter.safetensors")


def renamed_line(threshold: dict) -> dict:
    old = {new: name for name, new in EARLIER_THRESHOLD_FIELDS.items()}
    return {**{old.get(name, name): value for name, value in threshold.items()}, "memory_scale": 0.3}


def as_saved_by_version_0_1(folder: Path) -> Path:
    """Rewrite the config and the names of the tensors of a saved detector, in place."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    products, pooled = config.pop("products"), config.pop("pooled_threshold", None)
    names = [product["name"] for product in products]
    lines = {
        name: renamed_line(each["threshold"]) for name, each in zip(names, products, strict=True) if each["threshold"]
    }
    earlier = {
        "class_names": names,
        "memory_sizes": [sum(each["image_vectors"]) for each in products],
        "memory_photographs": [each["image_vectors"] for each in products],
        "memory_boxes": [each["has_boxes"] for each in products],
        "product_tilings": {each["name"]: each["tiling"] for each in products if each["tiling"] != "same"},
        "ignore_mask_sizes": {each["name"]: each["ignore_mask_size"] for each in products if each["ignore_mask_size"]},
        "calibration": {**lines, **({"*": renamed_line(pooled)} if pooled else {})},
    }
    assert earlier.keys() == set(EARLIER_PRODUCT_FIELDS)
    for old, new in RENAMED.items():
        earlier[old] = config.pop(new)
    config.pop("content_sha256")
    path.write_text(json.dumps({**config, **earlier, **REMOVED}), "utf-8")
    if (processor := folder / "processor_config.json").exists():
        values = json.loads(processor.read_text("utf-8"))
        values.pop("content_sha256")
        processor.write_text(json.dumps(values), "utf-8")
    for weights in folder.glob("*.safetensors"):
        assert weights.name in WEIGHTS
        tensors = load_file(weights)
        renamed = {name: tensor for name, tensor in tensors.items() if not name.startswith("products.")}
        for old, new in (
            ("memory.bank", "bank.vectors"),
            ("memory.boxes", "bank.boxes"),
            ("masks.mask", "ignore_mask"),
        ):
            own = {number: tensors.get(f"products.{number}.{new}") for number in range(len(names))}
            renamed |= {f"{old}_{number}": tensor for number, tensor in own.items() if tensor is not None}
        for old, new, join in (
            ("class_token_ids", "prompt_ids", torch.cat),
            ("class_embeddings", "text_embeddings", torch.stack),
            ("class_prototypes", "prototype", torch.stack),
        ):
            renamed[old] = join([tensors[f"products.{number}.{new}"] for number in range(len(names))])
        save_file(renamed, weights, metadata={"format": "pt"})
    return folder


@pytest.fixture
def saved(make_detector, photograph, tmp_path):
    """Save a detector, with everything that a product may have, whole and as an adapter, as it is and as 0.1 did."""

    def save(**config) -> tuple[AnoPLeModel, Path]:
        model, processor = make_detector(memory_rotations="quarter_turns", **config)
        with torch.no_grad():
            for weight in learnables(model).values():  # nothing may be what a fresh start would draw again
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
            model.store_text_embeddings()
        detector, mask = detector_of(model, processor), np.zeros((40, 48), dtype=bool)
        mask[:10, :12] = True
        own = {} if model.config.class_identity == "pooled" else {"tiling": "1,2"}
        detector.enroll("gasket", normals_of(photograph, 2, 2), ignore_mask=mask, **own)
        detector.calibrate("nut", normals_of(photograph, 1, 5)[3:])
        for product in model.products:  # of which version 0.1 knew nothing
            product.record.frame = product.prints = None
        detector.save_pretrained(tmp_path / "full")
        detector.save_pretrained(tmp_path / "adapter", adapter=True)
        for kind in ("full", "adapter"):
            as_saved_by_version_0_1(shutil.copytree(tmp_path / kind, tmp_path / f"earlier {kind}"))
        return model, tmp_path

    return save


def assert_same_detector(model: AnoPLeModel, read: AnoPLeModel, pixels: torch.Tensor) -> None:
    assert type(read) is AnoPLeModel and not read.training
    assert [each.describe() for each in read.products] == [each.describe() for each in model.products]
    assert read.config.pooled_threshold == model.config.pooled_threshold
    assert read.config.history == model.config.history
    expected, found = model.state_dict(), read.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    for ids in (None, torch.tensor([0, 1, 2])):
        with torch.no_grad():
            assert_same(model(pixels, class_ids=ids), read(pixels, class_ids=ids))


@pytest.mark.parametrize("identity", ["given", "predicted", "pooled"])
def test_a_detector_of_version_0_1_answers_bit_for_bit_the_same(saved, small_clip_folder, make_pixels, identity):
    model, folder = saved(class_identity=identity)
    assert "products" not in json.loads((folder / "earlier full/config.json").read_text("utf-8"))
    full, pixels = AnoPLeModel.from_pretrained(folder / "full"), make_pixels(3, seed=7)
    assert [each.describe() for each in full.products] == [each.describe() for each in model.products]
    for read in (
        AnoPLeModel.from_pretrained(folder / "earlier full"),
        AutoModel.from_pretrained(folder / "earlier full"),
        AnoPLeModel.load_adapter(folder / "earlier adapter", clip=small_clip_folder),
    ):
        assert_same_detector(full, read, pixels)


def test_a_detector_of_version_0_1_is_saved_under_the_names_of_today(saved, small_clip_folder, make_pixels, tmp_path):
    _, folder = saved()
    read = AnoPLeModel.from_pretrained(folder / "earlier full")
    read.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text("utf-8"))
    assert not {*EARLIER_PRODUCT_FIELDS, *RENAMED, *REMOVED} & again.keys()
    assert (
        load_file(tmp_path / "again/model.safetensors").keys() == load_file(folder / "full/model.safetensors").keys()
    )
    assert_same_detector(read, AnoPLeModel.from_pretrained(tmp_path / "again"), make_pixels(3, seed=7))
    adapter = AnoPLeModel.load_adapter(folder / "earlier adapter", clip=small_clip_folder)
    adapter.save_adapter(tmp_path / "adapter")
    assert (tmp_path / "adapter/adapter.safetensors").read_bytes() == (
        folder / "adapter/adapter.safetensors"
    ).read_bytes()


def test_a_detector_of_version_0_1_learns_and_judges_as_any(saved, photograph):
    _, folder = saved()
    results = []
    for name in ("full", "earlier full"):
        detector = pipeline("image-anomaly-detection", model=str(folder / name))
        assert [product.image_count for product in detector.model.products] == [3, 3, 2]
        detector.add_normals("bolt", normals_of(photograph, 0, 5)[3:])
        detector.enroll("washer", normals_of(photograph, 3, 2))
        detector.forget("nut")
        results.append(detector([photograph(40), photograph(41)], class_names=["bolt", "gasket"]))
    for today, earlier in zip(*results, strict=True):
        assert (today.pop("anomaly_map") == earlier.pop("anomaly_map")).all() and today == earlier


def test_half_precision_is_asked_for_as_usual(saved):
    _, folder = saved()
    half = AnoPLeModel.from_pretrained(folder / "earlier full", dtype=torch.bfloat16)
    today = AnoPLeModel.from_pretrained(folder / "full", dtype=torch.bfloat16)
    assert half.dtype == today.dtype == torch.bfloat16
    assert all(torch.equal(tensor, half.state_dict()[name]) for name, tensor in today.state_dict().items())
    half.save_pretrained(folder / "half")
    assert AnoPLeModel.from_pretrained(as_saved_by_version_0_1(folder / "half")).dtype == torch.bfloat16


def test_how_a_detector_is_loaded_is_told_as_usual(saved):
    _, folder = saved()
    read, found = AnoPLeModel.from_pretrained(folder / "earlier full", output_loading_info=True)
    assert (
        not found["missing_keys"]
        and not found["unexpected_keys"]
        and read.name_or_path == str(folder / "earlier full")
    )
    assert read.load_processor().class_names == ["bolt", "nut", "gasket"]
    changed = AnoPLeModel.from_pretrained(folder / "earlier full", local_files_only=True, threshold=0.4)
    assert changed.config.threshold == 0.4 and changed.config.products == read.config.products


def test_a_detector_that_another_option_made_is_refused_by_name(saved):
    _, folder = saved()
    path = folder / "earlier full/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "value_attention_layers": 2}), "utf-8")
    with pytest.raises(ValueError, match=r"value_attention_layers=2.* anople 0.1"):
        AnoPLeModel.from_pretrained(folder / "earlier full")


def test_a_sharded_detector_of_version_0_1_loads_too(saved, make_pixels):
    _, folder = saved()
    full = AnoPLeModel.from_pretrained(folder / "full")
    tensors = load_file(folder / "earlier full/model.safetensors")
    (folder / "earlier full/model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / "earlier full" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "earlier full/model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    assert_same_detector(full, AnoPLeModel.from_pretrained(folder / "earlier full"), make_pixels(3, seed=7))
