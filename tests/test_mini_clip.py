"""The embedded CLIP: there for everybody who has the package, small, offline, and better than chance on drawn products."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import modeling_anople
from hub.measure_backbone import measure
from hub.patch_features import make_features
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.backbone_anople import MINI_CLIP, clip_source
from modeling_anople.data.drawn_products import draw_product, write_dataset
from modeling_anople.training.options import TrainingConfig


FOLDER = Path(modeling_anople.__file__).parent / "mini_clip"


def test_it_is_the_default_of_fitting():
    assert TrainingConfig(data_root="any").clip == MINI_CLIP == "mini"


def test_the_folder_is_whole_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 16e6
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds == {"F16"}


def test_detector_and_processor_start_from_it_in_single_precision():
    names = ["bottle", "ボトル", "Nußschale 🥜"]
    model, processor = AnoPLeModel.from_clip("mini", names), AnoPLeProcessor.from_clip("mini", names)
    assert model.dtype == torch.float32 and model.config.grid_size == 14 and processor.image_size == 224
    picture = draw_product("gear", np.random.default_rng(0), size=96)[0]
    outputs = model(**processor(images=picture, class_names="ボトル"))
    assert outputs.anomaly_maps.shape == (1, 224, 224) and outputs.image_scores.isfinite().all()


def test_names_of_other_clips_pass_through(tmp_path):
    assert clip_source("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"
    assert clip_source(tmp_path) == str(tmp_path)
    assert clip_source("mini") == str(FOLDER)


def test_where_only_a_detectors_files_are_the_error_names_the_package(tmp_path):
    shutil.copy(FOLDER.parent / "backbone_anople.py", tmp_path)
    program = "from backbone_anople import clip_source; clip_source('mini')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "install anople" in done.stderr


def test_its_patches_tell_drawn_defects_better_than_untrained_ones(tmp_path):
    write_dataset(tmp_path / "drawn", 5, classes=["gear", "woven fabric"], train=4, good=6, defective=12, size=224)
    features = {kind: make_features(kind) for kind in ("mini", "random")}
    results = measure(tmp_path / "drawn", features, shots=[4], seeds=[0], progress=False)
    figures = {kind: by_shots["4"]["mean"] for kind, by_shots in results["features"].items()}
    assert figures["mini"]["image_auroc"]["mean"] > figures["random"]["image_auroc"]["mean"] + 0.05
    assert figures["mini"]["pixel_auroc"]["mean"] > figures["random"]["pixel_auroc"]["mean"] + 0.03


@pytest.mark.parametrize("key, value", [("model_type", "clip"), ("projection_dim", 128)])
def test_its_config_is_an_ordinary_clip_config(key, value):
    assert json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))[key] == value
