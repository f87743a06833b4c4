"""Fitted detectors without training: memory and lines from a few photographs, on the small CLIP of `conftest.py`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPImageProcessor

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor
from modeling_anople.calibration_anople import KnownDefects, fit_costs
from modeling_anople.fitting_anople import calibrate_product, remember
from modeling_anople.inference_anople import TiledImage


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


def detector_of(model: AnoPLeModel, processor: AnoPLeProcessor) -> AnomalyDetectionPipeline:
    """Put model and processor together, where the model is."""
    return AnomalyDetectionPipeline(model, processor=processor, device=model.device)


def wholes(images: Sequence[Image.Image], processor: AnoPLeProcessor) -> list[TiledImage]:
    """Take images as wholes, as a detector remembers them."""
    return [TiledImage.of(image, processor, None) for image in images]


class PixelImage(TiledImage):
    """An image of which only the normalized pixels (3, side, side) exist."""

    def __init__(self, pixels: torch.Tensor):
        super().__init__(Image.new("RGB", pixels.shape[:0:-1]), _Stack(), None)
        self.pixels = pixels

    def crop(self, number: int) -> tuple[torch.Tensor, None]:
        return self.pixels, None


class _Stack:
    """Takes normalized pixels as they are."""

    image_processor = CLIPImageProcessor()

    def __call__(self, pixels: list[torch.Tensor], ignore_masks: None = None) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.stack(pixels)}


def pixel_images(pixels: torch.Tensor) -> list[TiledImage]:
    """Take normalized pixels (images, 3, side, side) for images."""
    return [PixelImage(each) for each in pixels]


def fit(model: AnoPLeModel, processor: AnoPLeProcessor, photograph: Callable[..., Image.Image]) -> AnoPLeModel:
    """Remember and calibrate three photographs of each class."""
    for class_id in range(len(model.products)):
        images = wholes(normals_of(photograph, class_id), processor)
        remember(model, images, class_id)
        calibrate_product(model, images, class_id)
    return model


def set_by_costs(model: AnoPLeModel, class_name: str) -> None:
    """Let two known defects set the line of a class."""
    class_id = model.products.id_of(class_name)
    defects = KnownDefects([0.9, 0.95], miss_cost=50, false_alarm_cost=2)
    model.products.set_threshold(class_id, fit_costs(model.products[class_id].record.threshold, defects))


def write_detector(folder: Path, clip: Path, photograph: Callable[..., Image.Image], **config) -> Path:
    """Save a fitted detector of the classes bolt and nut."""
    names = ["bolt", "nut"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AnoPLeModel.from_clip(str(clip), names, **config)
    processor = AnoPLeProcessor.from_clip(str(clip), names, image_size=model.config.input_size)
    fit(model, processor, photograph).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
