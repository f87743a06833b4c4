"""
Make a test set of good photographs alone, to choose options by where defects are rare or must not be looked at.

    python -m hub.reproduce.drawn_defects DATA out/drawn_defects --test_images 12 --seed 0

Only the train split is read. Of each product, some good photographs are held out: half of them stay as they are, on the
others one defect each is drawn, of kinds that training does not draw. The rest are there to be learned from.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from modeling_anople.data import read_source
from modeling_anople.data.drawn_products import DEFECTS, draw_defect
from modeling_anople.images_anople import load_image
from modeling_anople.runtime import run_program
from modeling_anople.training.few_shot import sample_few_shot


logger = logging.getLogger(__name__)


@dataclass
class DrawnDefectsOptions:
    """Options of `python -m hub.reproduce.drawn_defects`."""

    test_images: int = field(
        default=12, metadata={"help": "Good, and as many defective, test photographs per product."}
    )
    side: int = field(default=448, metadata={"help": "Longer side of the photographs written, in pixels."})
    seed: int = field(default=0, metadata={"help": "Of the choice of photographs and of all drawing."})
    classes: list[str] | None = field(default=None, metadata={"help": "Products to take; by default all."})

    def __post_init__(self):
        for name in ("test_images", "side"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")


def make_set(places: argparse.Namespace, options: DrawnDefectsOptions) -> None:
    """Write the products as an MVTec tree."""
    output = Path(places.output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty: choose another folder, or empty it.")
    train = read_source(places.data, split="train", classes=options.classes)
    rows: dict[str, dict[str, int]] = {}
    for number, (name, path, label) in enumerate(zip(train["class_name"], train["path"], train["label"], strict=True)):
        if label == 0:
            rows.setdefault(name, {})[path] = number
    for name in tqdm(sorted(rows), desc="products"):
        known = rows[name]
        if len(known) < 3:
            raise ValueError(
                f"{name} has {len(known)} good photographs; it takes at least 3: one to learn, two to test."
            )
        count = min(options.test_images, len(known) // 3)  # as many to learn from as of either kind to test
        held_out = sample_few_shot(list(known), 2 * count, seed=options.seed, class_name=name)
        # a stream of each product's own: another choice of --classes draws the same
        generator = np.random.default_rng([options.seed, *name.encode()])
        order = generator.permutation(len(held_out))
        for path in sorted(known.keys() - set(held_out)):
            save(_open(train[known[path]]["image"], options.side), output / name / "train" / "good", path)
        for place, number in enumerate(order):
            path = held_out[number]
            picture = _open(train[known[path]]["image"], options.side)
            if place < count:
                save(picture, output / name / "test" / "good", path)
                continue
            kind, picture, mask = damage(picture, place, generator)
            stem = save(picture, output / name / "test" / kind, path)
            save(Image.fromarray(mask), output / name / "ground_truth" / kind, f"{stem}_mask.png")
    logger.info("%d products are in %s.", len(rows), output)


def damage(picture: Image.Image, number: int, generator: np.random.Generator) -> tuple[str, Image.Image, np.ndarray]:
    """Draw a defect, of the next kind that fits the photograph; return the kind's name, the picture and its mask."""
    kinds = sorted(DEFECTS)
    frame = np.ones((picture.height, picture.width), dtype=bool)
    for kind in (kinds[(number + step) % len(kinds)] for step in range(len(kinds))):
        try:
            return kind.replace(" ", "_"), *draw_defect(kind, picture, frame, generator)
        except ValueError:  # it would not be seen there
            continue
    raise ValueError(f"No kind of defect can be seen on a photograph of {picture.size}: raise --side.")


def _open(source: object, side: int) -> Image.Image:
    photograph = load_image(source)
    scale = side / max(photograph.size)
    size = [max(1, round(length * scale)) for length in photograph.size]
    return photograph.resize(size, Image.Resampling.BICUBIC)


def save(picture: Image.Image, folder: Path, path: str) -> str:
    """Write a PNG named like the photograph it comes from, folders included, and return its stem."""
    stem = Path(path.replace("/", "__").replace("\\", "__")).stem
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{stem}.png")
    return stem


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; return the exit code."""
    places = {"data": "Good photographs, in any form that `anople fit` reads.", "output": "Folder to write."}
    return run_program("python -m hub.reproduce.drawn_defects", DrawnDefectsOptions, make_set, arguments, **places)


if __name__ == "__main__":
    sys.exit(main())
