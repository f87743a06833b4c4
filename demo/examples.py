"""What there is to try without images of one's own: drawn by the package's own generator, and no download."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.data.drawn_products import draw_defect, draw_product
from modeling_anople.enrollment_anople import add_normals, enroll


STANDARD_PRODUCTS = ("wooden board", "capsule", "circuit board")
STANDARD_SHOTS = 8
NEW_PRODUCT = "woven fabric"  # one that the standard detector does not know, to be taught
# To inspect: product, defect or None, seed.
INSPECT_EXAMPLES = (
    ("wooden board", None, 101),
    ("wooden board", "missing part", 151),
    ("capsule", "broken", 161),
    ("circuit board", None, 101),
    ("circuit board", "missing part", 153),  # missed by the standard detector
    (NEW_PRODUCT, "missing part", 152),
)


@dataclass(frozen=True)
class Examples:
    """Files on disk: images to inspect, and good ones of a product to teach."""

    to_inspect: list[Path]
    to_teach: list[Path]


def write_examples(folder: Path) -> Examples:
    """Draw all examples into a folder."""
    to_inspect = []
    for name, defect, seed in INSPECT_EXAMPLES:
        generator = np.random.default_rng(seed)
        image, mask = draw_product(name, generator)
        if defect:
            image, _ = draw_defect(defect, image, mask, generator)
        path = folder / f"{name} {defect or 'good'}.png".replace(" ", "_")
        image.save(path)
        to_inspect.append(path)
    to_teach = []
    for number, image in enumerate(draw_normal_images(NEW_PRODUCT, 4), start=1):
        to_teach.append(folder / f"{NEW_PRODUCT} {number}.png".replace(" ", "_"))
        image.save(to_teach[-1])
    return Examples(to_inspect, to_teach)


def draw_normal_images(name: str, count: int, *, seed: int = 0) -> list[Image.Image]:
    """Draw good images of a product; the same for the same seed."""
    generator = np.random.default_rng(seed)
    return [draw_product(name, generator)[0] for _ in range(count)]


def standard_detector() -> tuple[AnoPLeModel, AnoPLeProcessor]:
    """Enroll the standard products from images that are drawn here; always the same."""
    first = STANDARD_PRODUCTS[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AnoPLeModel.from_clip("mini", [first])
    processor = AnoPLeProcessor.from_clip("mini", [first])
    for name in STANDARD_PRODUCTS:
        learn = add_normals if name == first else enroll
        learn(model, processor, name, draw_normal_images(name, STANDARD_SHOTS))
    return model, processor
