"""
Products made of pictures that were set aside, with made defects: what to choose a pupil by, and no photograph of data.

A set-aside square becomes a "product": photographs of it are turned, moved, zoomed and lit a little otherwise each
time, and some carry a defect. A memory of four of them has to find it, as `hub.mini_clip.measure` measures.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_anople.data.drawn_products import DEFECTS, draw_defect
from modeling_anople.training.few_shot import cut_paste

from ..features import SIDE, PatchFeatures
from ..measure import measure
from .pictures import read_manifest


PRODUCTS, TRAIN, GOOD, DEFECTIVE = 40, 4, 4, 8
SHOTS, BANKS = (1, 4), (0,)
KINDS = (*DEFECTS, "cut_paste")


def write_made_products(folder: Path, pictures: Path, *, products: int = PRODUCTS, seed: int = 0) -> None:
    """
    Write a data set of set-aside squares, at most one from a file: NAME/train/good, NAME/test, NAME/ground_truth.

    Raises:
        ValueError: if fewer files than `products` were set aside.
    """
    rows = {row["sha256"]: row for row in read_manifest(pictures, aside=True)}
    rows = [rows[digest] for digest in sorted(rows)][:products]
    if len(rows) < products:
        raise ValueError(f"{pictures} has {len(rows)} files set aside: gather more, or ask for fewer products.")
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for number, row in enumerate(rows):
        generator = np.random.default_rng([seed, number])
        with Image.open(pictures / row["file"]) as picture:
            square = picture.convert("RGB")
        place = unfinished / f"{number:02d}"
        for index in range(TRAIN):
            _save(_photograph(square, generator), place / "train" / "good" / f"{index}.png")
        for index in range(GOOD):
            _save(_photograph(square, generator), place / "test" / "good" / f"{index}.png")
        for index in range(DEFECTIVE):
            kind = KINDS[int(generator.integers(len(KINDS)))]
            spoiled, mask = _spoil(_photograph(square, generator), kind, generator)
            _save(spoiled, place / "test" / "made" / f"{index}.png")
            _save(Image.fromarray(mask.astype(np.uint8) * 255), place / "ground_truth" / "made" / f"{index}_mask.png")
    unfinished.rename(folder)


def judge(features: PatchFeatures, folder: Path) -> dict[str, float]:
    """Return I-AUROC, P-AUROC and AUPRO in percent for 1 and 4 shots on a data set, and `score`, their mean."""
    results = measure(folder, {"pupil": features}, shots=SHOTS, seeds=BANKS, progress=False)["features"]["pupil"]
    names = {"i": "image_auroc", "p": "pixel_auroc", "pro": "aupro"}
    figures = {
        f"{short}_{shots}": round(100 * results[str(shots)]["mean"][name]["mean"], 2)
        for shots in SHOTS
        for short, name in names.items()
    }
    return figures | {"score": round(sum(figures.values()) / len(figures), 3)}


def _photograph(square: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Take another photograph of a square: turned by up to 4 degrees, moved, zoomed, lit otherwise, with grain."""
    turn = np.deg2rad(generator.uniform(-4, 4))
    zoom = 0.86 * np.exp(generator.uniform(-0.04, 0.04))  # so that no border comes into sight
    cosine, sine = zoom * np.cos(turn), zoom * np.sin(turn)
    x, y = SIDE / 2 + generator.uniform(-4, 4, 2)
    half = SIDE / 2
    places = (cosine, -sine, x - cosine * half + sine * half, sine, cosine, y - sine * half - cosine * half)
    moved = square.transform((SIDE, SIDE), Image.Transform.AFFINE, places, Image.Resampling.BICUBIC)
    light = generator.uniform(0.92, 1.08) * generator.uniform(0.98, 1.02, 3)
    pixels = np.asarray(moved, np.float32) * light + generator.normal(0, 2.5, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _spoil(picture: Image.Image, kind: str, generator: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Give a photograph a defect of a kind, or where none of that kind shows, another's; and its bool mask."""
    if kind != "cut_paste":
        # a defect lies on the middle disc, where an object would
        down, across = np.indices((SIDE, SIDE)) - SIDE / 2
        inside = np.hypot(down, across) < 0.42 * SIDE
        for other in (kind, "scratch", "contamination"):
            try:
                return draw_defect(other, picture, inside, generator)
            except ValueError:  # none that is visible
                continue
    torch_generator = torch.Generator().manual_seed(int(generator.integers(2**31)))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    for _ in range(20):
        spoiled, _ = cut_paste(pixels, torch_generator)
        mask = (spoiled - pixels).abs().amax(0) > 12 / 255
        if mask.float().mean() > 0.002:
            break
    return Image.fromarray((spoiled * 255).round().byte().permute(1, 2, 0).numpy()), mask.numpy()


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


__all__ = ["judge", "write_made_products"]
