"""
Whether a threshold keeps its promise, on many series of good photographs:
`python -m hub.benchmarks.threshold_promise DATA PICTURES --clip mini --teacher facebook/dinov2-small`.

A series is what a camera sees of one product: the good photographs that each product of DATA was to be learned from, and
series made of the gathered pictures of `hub.mini_clip.teaching.pictures`, each of one strength of movement, light, color,
blur and grain of its own. Some photographs of a series are remembered, nothing else is learned, and the others are judged by
the memory alone against the threshold that [`fit_threshold`] sets. No test photograph and no defect is opened.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from hub.mini_clip.features import SIDE, PatchFeatures
from hub.mini_clip.teaching.measuring import checkpoint_features, teacher_features
from hub.mini_clip.teaching.pictures import read_manifest
from modeling_anople.calibration_anople import fit_threshold
from modeling_anople.data import read_source
from modeling_anople.images_anople import load_image


SERIES_LENGTH, MOST_REAL, JUDGED = 20, 40, 12
SHOTS = (2, 4, 8)
# Medians of each series' strengths: degrees, logarithm of size, pixels, and of light, color, slope of light, blur and grain.
STRENGTHS = {
    "turn": 2, "zoom": 0.02, "shift": 3, "light": 0.06, "color": 0.015, "slope": 0.05, "blur": 0.4, "grain": 2,
}  # fmt: skip


def real_series(data: str) -> dict[str, list[Image.Image]]:
    """Read up to 40 good photographs of each product, of those to learn from."""
    rows = read_source(data, split="train")
    series: dict[str, list[Image.Image]] = {}
    for name, image, label in zip(rows["class_name"], rows["image"], rows["label"], strict=True):
        own = series.setdefault(name, [])
        if not label and len(own) < MOST_REAL:
            own.append(load_image(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return series


def made_series(pictures: Path, *, seed: int = 0) -> dict[str, list[Image.Image]]:
    """Make 40 series of one picture each, and 20 of textures whose photographs show different places of one file."""
    files: dict[str, list[dict]] = {}
    for aside in (True, False):
        for row in read_manifest(pictures, aside=aside):
            if "sha256" in row:  # of the file; drawn squares have none
                files.setdefault(row["sha256"], []).append(row)
    names, generator = sorted(files), np.random.default_rng(seed)
    alone = [name for name in names if files[name][0]["aside"]][:40]
    large = [name for name in names if len(files[name]) >= SERIES_LENGTH]
    chosen = [(name, [files[name][0]] * SERIES_LENGTH) for name in alone]
    chosen += [(name, files[name][:SERIES_LENGTH]) for name in large[:: max(1, len(large) // 20)][:20]]
    series = {}
    for number, (_, rows) in enumerate(chosen):
        strength = {key: value * np.exp(generator.normal(0, 0.7)) for key, value in STRENGTHS.items()}
        squares = []
        for row in rows:
            with Image.open(pictures / row["file"]) as picture:
                squares.append(_photograph(picture.convert("RGB"), strength, generator))
        series[f"made {number}"] = squares
    return series


def _photograph(square: Image.Image, strength: dict[str, float], generator: np.random.Generator) -> Image.Image:
    """Take a photograph of a square: turned, enlarged, moved, blurred and lit by normal draws of these strengths."""
    turn, size = (
        np.deg2rad(generator.normal(0, strength["turn"])),
        0.84 * np.exp(generator.normal(0, strength["zoom"])),
    )
    (x, y), half = SIDE / 2 + generator.normal(0, strength["shift"], 2), SIDE / 2
    cosine, sine = size * np.cos(turn), size * np.sin(turn)
    places = (cosine, -sine, x - cosine * half + sine * half, sine, cosine, y - sine * half - cosine * half)
    moved = square.transform((SIDE, SIDE), Image.Transform.AFFINE, places, Image.Resampling.BICUBIC)
    moved = moved.filter(ImageFilter.GaussianBlur(abs(generator.normal(0, strength["blur"]))))
    slope = 1 + np.linspace(-1, 1, SIDE)[None, :, None] * generator.normal(0, strength["slope"])
    light = np.exp(generator.normal(0, strength["light"])) * (1 + generator.normal(0, strength["color"], 3))
    grain = generator.normal(0, strength["grain"], (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(moved, np.float32) * light * slope + grain, 0, 255).astype(np.uint8))


@torch.no_grad()
def distances(features: PatchFeatures, photographs: Sequence[Image.Image]) -> np.ndarray:
    """Measure each patch of each photograph against each other photograph: (asked, remembered, layers, patches), 0 to 1."""
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in photographs])
    layers: list[Tensor] = [
        F.normalize(torch.cat(parts), dim=-1) for parts in zip(*map(features, pixels.split(8)), strict=True)
    ]
    found = []
    for layer in layers:
        rows = [(layer @ one.T).amax(2) for one in layer]  # of all photographs' patches the nearest in one
        found.append((1 - torch.stack(rows, dim=1)) / 2)
    return torch.stack(found, dim=2).numpy()


def outcomes(known: np.ndarray, shots: int, draws: int, rate: float, seed: int = 0) -> list[tuple[float, float]]:
    """Set thresholds for some draws of a series: for each the share of other photographs above it, and how high it lies."""
    generator, found = np.random.default_rng([seed, shots]), []
    for _ in range(draws):
        order = generator.permutation(len(known))
        kept, judged = order[:shots], order[shots : shots + JUDGED]
        own = [known[one][[other for other in kept if other != one]].min(0).mean(0).max() for one in kept]
        fresh = known[np.ix_(judged, kept)].min(1).mean(1).max(1)
        threshold = fit_threshold(list(map(float, own)), list(map(float, own)), max_false_alarm_rate=rate)
        height = np.log(threshold.image_threshold) - np.log(np.maximum(fresh, 1e-9)).mean()
        found.append((float((fresh > threshold.image_threshold).mean()), float(height)))
    return found


def table(
    measured: dict[str, dict[int, dict[str, list[tuple[float, float]]]]], rate: float, real: Sequence[str]
) -> str:
    """Write a Markdown table: false alarms in percent, a row for each encoder and number of photographs."""
    lines = [
        "| encoder, photographs | mean of series | worst series | series beyond twice the budget | height | "
        + " | ".join(real)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(real),
    ]
    for encoder, by_shots in measured.items():
        for shots, series in by_shots.items():
            shares = {name: np.mean([share for share, _ in draws]) for name, draws in series.items()}
            beyond = sum(share > 2 * rate for share in shares.values())
            height = np.mean([height for draws in series.values() for _, height in draws])
            cells = [f"{100 * np.mean(list(shares.values())):.1f}", f"{100 * max(shares.values()):.1f}"]
            cells += [f"{beyond} of {len(shares)}", f"{height:.2f}", *(f"{100 * shares[name]:.1f}" for name in real)]
            lines.append(f"| {encoder}, {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Good photographs of several products, in any form that `anople fit` reads.")
    parser.add_argument("pictures", type=Path, help="Folder that hub.mini_clip.teaching.pictures wrote.")
    parser.add_argument("--clip", default="mini", help="Whose blocks 4 and 6 are remembered.")
    parser.add_argument("--teacher", help="A vision model whose blocks 5, 7 and 9 are measured beside it.")
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--json", type=Path, help="File for the share of each series.")
    options = parser.parse_args(arguments)
    real = real_series(options.data)
    series = real | made_series(options.pictures)
    encoders: dict[str, Callable] = {options.clip: checkpoint_features(options.clip, (4, 6))}
    if options.teacher:
        encoders[Path(options.teacher).name] = teacher_features(options.teacher, (5, 7, 9))
    measured: dict = {}
    for encoder, features in encoders.items():
        by_shots = measured.setdefault(encoder, {shots: {} for shots in SHOTS})
        for name, photographs in tqdm(series.items(), desc=encoder):
            known = distances(features, photographs)
            for shots in SHOTS:
                by_shots[shots][name] = outcomes(known, shots, options.draws, options.rate)
    if options.json:
        options.json.write_text(json.dumps(measured) + "\n", encoding="utf-8")
    sys.stdout.write(f"{table(measured, options.rate, list(real))}\n")


if __name__ == "__main__":
    main()
