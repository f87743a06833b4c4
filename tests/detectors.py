"""Fitted detectors without training: memory and lines from a few photographs, on the small CLIP of `conftest.py`."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor


def normals_of(photograph: Callable[..., Image.Image], class_id: int, count: int = 3) -> list[Image.Image]:
    """Make good photographs of one class: the class draws what they show, a tenth of each is its own."""
    shown, start = photograph(100 * class_id), 100 * class_id + 1
    return [Image.blend(shown, photograph(start + number), 0.1) for number in range(count)]


def write_screws(folder: Path, photograph: Callable[..., Image.Image]) -> list[str]:
    """Write four good photographs of a product that no detector here knows."""
    paths = [folder / f"screw {number}.png" for number in range(4)]
    for path, picture in zip(paths, normals_of(photograph, 5, 4), strict=True):
        picture.save(path)
    return [str(path) for path in paths]


def fit(model: AnoPLeModel, processor: AnoPLeProcessor, photograph: Callable[..., Image.Image]) -> AnoPLeModel:
    """Remember and calibrate three photographs of each class."""
    for class_id in range(len(model.config.class_names)):
        pixels = processor(normals_of(photograph, class_id))["pixel_values"]
        model.remember(pixels, class_id)
        model.calibrate(pixels, class_id)
    return model


def write_detector(folder: Path, clip: Path, photograph: Callable[..., Image.Image], **config) -> Path:
    """Save a fitted detector of the classes bolt and nut."""
    names = ["bolt", "nut"]
    processor = AnoPLeProcessor.from_clip(str(clip), names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AnoPLeModel.from_clip(str(clip), names, **config)
    fit(model, processor, photograph).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
