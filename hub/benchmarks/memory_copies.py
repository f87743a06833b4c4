"""
What copies of good photographs do to the memory: `python -m hub.benchmarks.memory_copies DATA --shots 1`.

The memory alone on the embedded CLIP, or on an encoder of its own (`--memory_encoder`), nothing fitted. Only the train split is read: a few photographs of each product are
remembered, with moved copies or without, others are held out, and on half of those a defect is drawn (as
`hub.reproduce.drawn_defects` draws). AUROC of images (maximum of the map) and pixels, mean over products and seeds.
"""

import argparse
import math
import statistics
import sys

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from hub.reproduce.drawn_defects import damage
from modeling_anople import AnoPLeModel, AnoPLeProcessor, load_image
from modeling_anople.data import read_source
from modeling_anople.memory_anople import nearest_distance
from modeling_anople.scoring_anople import smooth_maps
from modeling_anople.tiling_anople import move
from modeling_anople.training.few_shot import sample_few_shot


SIDE = 448  # of the photographs that defects are drawn on


def turn(degrees: float, scale: float = 1.0) -> list[list[float]]:
    """Turn, and scale the places that are looked at."""
    cosine, sine = (scale * part(math.radians(degrees)) for part in (math.cos, math.sin))
    return [[cosine, -sine, 0], [sine, cosine, 0]]


def shift(right: float, down: float) -> list[list[float]]:
    """Shift, in halves of the side."""
    return [[1, 0, right], [0, 1, down]]


HALF_PATCH = 16 / 224
COPIES = {
    "none": [],
    "quarter turns": [turn(90 * number) for number in (1, 2, 3)],
    "mirrored": [[[-1, 0, 0], [0, 1, 0]]],
    "eighth turns": [turn(45 * number) for number in range(1, 8)],
    "turned by 5 and 10 degrees": [turn(degrees) for degrees in (5, -5, 10, -10)],
    "shifted by half a patch": [shift(HALF_PATCH, 0), shift(0, HALF_PATCH), shift(HALF_PATCH, HALF_PATCH)],
    "enlarged, made smaller": [turn(0, 0.9), turn(0, 1.1)],
}


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Let a person choose whose patches are remembered."""
    parser.add_argument("--memory_encoder", help="Folder or Hub id of a vision transformer; by default the mini CLIP.")
    parser.add_argument("--memory_image_size", type=int, help="Side in pixels that the encoder sees.")
    parser.add_argument("--memory_layers", type=int, nargs="+", help="Blocks that are remembered, from 0.")


def start(options: argparse.Namespace) -> tuple[dict[str, dict[str, dict]], AnoPLeModel, AnoPLeProcessor]:
    """Read the good train photographs of each product, by their paths, and begin a detector without prompts of them."""
    rows: dict[str, dict[str, dict]] = {}
    for row in read_source(options.data, split="train"):
        if row["label"] == 0:
            rows.setdefault(row["class_name"], {})[row["path"]] = row
    seen = {name: getattr(options, name) for name in ("memory_encoder", "memory_image_size", "memory_layers")}
    seen = {name: value for name, value in seen.items() if value is not None}
    model = AnoPLeModel.from_clip("mini", sorted(rows), coupling="none", prefix="none", **seen)
    return rows, model, AnoPLeProcessor.from_clip("mini", sorted(rows), image_size=model.config.input_size)


@torch.no_grad()
def features(model: AnoPLeModel, pixels: Tensor) -> Tensor:
    """Encode photographs as the memory does: (layers, photographs, patches, width), of unit length."""
    return torch.cat([model.memory_features(part) for part in pixels.split(4)], dim=1)


def split(rows: dict[str, dict], name: str, shots: int, seed: int, count: int) -> tuple[list, list, list]:
    """Pick what is remembered and what is held out of one product: pictures, pictures, and masks or `None`."""
    chosen = sample_few_shot(sorted(rows), shots, seed=seed, class_name=name)
    others = sorted(rows.keys() - set(chosen))
    held_out = sample_few_shot(others, min(2 * count, len(others)), seed=seed + 100, class_name=name)
    generator = np.random.default_rng([seed + 100, sum(map(ord, name))])
    pictures, masks = [], []
    for number, path in enumerate(held_out):
        picture, mask = load_image(rows[path]["image"]), None
        scale = SIDE / max(picture.size)
        picture = picture.resize([round(length * scale) for length in picture.size], Image.Resampling.BICUBIC)
        if number >= len(held_out) // 2:
            _, picture, mask = damage(picture, number, generator)
        pictures.append(picture)
        masks.append(mask)
    return [load_image(rows[path]["image"]) for path in chosen], pictures, masks


def judge(found: Tensor, bank: Tensor, masks: list, side: int) -> tuple[float, float]:
    """
    Return image and pixel AUROC of the distances, mean over layers.

    Args:
        found: (layers, photographs, patches, width).
        bank: (layers, vectors, width).
    """
    count = len(masks)
    asked = found.flatten(1, 2)
    maps = sum(nearest_distance(*pair, rows=count * 64) for pair in zip(asked, bank, strict=True)) / len(found)
    maps = maps.view(count, math.isqrt(len(maps) // count), -1)
    marked = [
        np.zeros((side, side), bool)
        if mask is None
        else np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
        for mask in masks
    ]
    smooth = smooth_maps(maps, size=side, sigma=0.01)
    defective = [mask is not None for mask in masks]
    return (
        roc_auc_score(defective, maps.flatten(1).amax(1)),
        roc_auc_score(np.stack(marked).ravel(), smooth.numpy().ravel()),
    )


def main() -> None:
    """Print a row for each kind of copies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Good photographs, in any form that `anople fit` reads.")
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--test_images", type=int, default=12, help="Good, and as many defective, per product.")
    add_encoder_options(parser)
    options = parser.parse_args()
    rows, model, processor = start(options)
    figures: dict[str, list[tuple[float, float]]] = {}
    for seed in options.seeds:
        for name in sorted(rows):
            shots, pictures, masks = split(rows[name], name, options.shots, seed, options.test_images)
            found = features(model, processor(pictures)["pixel_values"])
            pixels = processor(shots)["pixel_values"]
            still = features(model, pixels).flatten(1, 2)
            banks = {}
            for kind, moves in COPIES.items():
                moved = [move(pixels, torch.tensor(each).float().expand(len(pixels), -1, -1)) for each in moves]
                banks[kind] = torch.cat([still, *(features(model, each).flatten(1, 2) for each in moved)], dim=1)
            banks["all of these"] = torch.cat(list(banks.values()), dim=1)
            for kind, bank in banks.items():
                figures.setdefault(kind, []).append(judge(found, bank, masks, model.config.input_size))
        sys.stderr.write(f"seed {seed} is done\n")
    plain = [100 * statistics.fmean(values) for values in zip(*figures["none"], strict=True)]
    print(f"| {options.shots} shot(s), seeds {options.seeds} | I | P | to none |\n|---|---|---|---|")
    for kind, pairs in figures.items():
        image, pixel = (100 * statistics.fmean(values) for values in zip(*pairs, strict=True))
        print(f"| {kind} | {image:.1f} | {pixel:.1f} | {image - plain[0]:+.1f} / {pixel - plain[1]:+.1f} |")


if __name__ == "__main__":
    main()
