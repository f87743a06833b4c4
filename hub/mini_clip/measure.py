"""
Measure frozen patch features by the memory bank alone: `python -m hub.mini_clip.measure DATA --features rgb gabor`.

Nothing is trained. k good photographs of a class fill its bank; the score of a patch is its distance to the nearest
vector there, and the score of a photograph its worst patch. Features are computed once for all seeds and all k.

Pretraining is judged by the same measure on held-out drawn products ([`DrawnValidation`]). They come from
`modeling_anople.data.drawn_products`, another renderer with other materials, shapes, light and defects than the one that
trains, so that nothing is chosen by what the training pictures look like.
"""

import argparse
import json
import platform
import shlex
import shutil
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import CLIPModel

from modeling_anople.data import read_dataset
from modeling_anople.data.drawn_products import write_dataset
from modeling_anople.evaluation.metrics import PixelMetrics, image_metrics, mean_metrics
from modeling_anople.memory_anople import nearest_distance
from modeling_anople.processing_anople import load_image, load_mask
from modeling_anople.scoring_anople import smooth_maps
from modeling_anople.training.few_shot import square_image

from .architecture import MEAN, STD
from .features import GRID, SIDE, PatchFeatures, extract, make_features, tower_features


COLUMNS = {"image_auroc": "I-AUROC", "pixel_auroc": "P-AUROC", "aupro": "AUPRO"}
SIGMA = 4  # pixels of 224
PROTOCOL = {
    "score": "memory bank alone, (1 - largest cosine) / 2, mean over layers",
    "image_score": "maximum of the raw map",
    "image_size": SIDE,
    "grid_size": GRID,
    "smoothing_pixels": SIGMA,
    "class_identity": "given",
    "std": "over seeds, population",
}
LIBRARIES = ("torch", "transformers", "datasets", "numpy", "scipy", "scikit-learn", "pillow")
QUERIES = 4096  # patches compared at once


class TestPhotographs(NamedTuple):
    """The test split of one class: uint8 images (images, 3, 224, 224), labels, and masks (224, 224) of bools.

    A mask is None on a good photograph, and on a defective one that has no ground truth.
    """

    __test__ = False  # no test case, whatever its name

    images: Tensor
    labels: list[int]
    masks: list[np.ndarray | None]


def bank_scores(features: Sequence[Tensor], banks: Sequence[Tensor]) -> Tensor:
    """
    Score patches by their distance to a memory bank: mean over layers of (1 - largest cosine) / 2 (paper.md 1.9).

    Args:
        features: per layer (images, patches, width).
        banks: per layer (vectors, width).

    Returns:
        (images, patches) within 0 and 1.

    Raises:
        ValueError: if the numbers of layers differ, or a bank is empty.
    """
    if len(features) != len(banks) or not banks:
        raise ValueError(f"got {len(features)} layers of features and {len(banks)} of banks: give one bank per layer.")
    if empty := [number for number, bank in enumerate(banks) if not len(bank)]:
        raise ValueError(f"the banks of layers {empty} are empty: fill them with patches of good photographs.")
    distances = []
    for layer, bank in zip(features, banks, strict=True):
        known = F.normalize(bank, dim=-1)
        nearest = nearest_distance(F.normalize(layer, dim=-1).flatten(0, 1), known, QUERIES)
        distances.append(nearest.unflatten(0, layer.shape[:2]))
    return torch.stack(distances).mean(0).clamp(0, 1)


def draw_bank(paths: Sequence[str], *, shots: int, seed: int) -> list[str]:
    """
    Draw the good photographs of a bank without replacement from the sorted paths; the order of `paths` is immaterial.

    Returns:
        `shots` paths, sorted.

    Raises:
        ValueError: if there are fewer paths, or `shots` is below 1.
    """
    if not 1 <= shots <= len(paths):
        raise ValueError(f"shots is {shots} and there are {len(paths)} good photographs: take 1 to {len(paths)}.")
    chosen = np.random.default_rng(seed).choice(len(paths), size=shots, replace=False)
    return [sorted(paths)[place] for place in sorted(chosen)]


def load_squares(sources: Sequence[object]) -> Tensor:
    """Open photographs and resize them to the square (bicubic): uint8 (images, 3, 224, 224)."""
    return torch.stack([square_image(load_image(source), SIDE) for source in sources])


def load_square_mask(source: object) -> np.ndarray:
    """Open a mask of any size and resize it to the square (nearest): bool (224, 224)."""
    marked = Image.fromarray(load_mask(source).astype(np.uint8))
    return np.asarray(marked.resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 0


def load_normals(dataset_root: str | Path, classes: Sequence[str] | None = None) -> Tensor:
    """Load the good training photographs of all classes: uint8 (images, 3, 224, 224)."""
    rows = read_dataset(dataset_root, split="train", classes=classes)
    return load_squares([row["image"] for row in rows if row["label"] == 0])


def measure(
    dataset_root: str | Path,
    features: dict[str, PatchFeatures],
    *,
    shots: Sequence[int],
    seeds: Sequence[int],
    classes: Sequence[str] | None = None,
    progress: bool = True,
) -> dict:
    """
    Measure each kind of features on the test split, for every number of shots and every seed.

    Args:
        dataset_root: what [`read_dataset`] reads.
        features: name -> function, see `hub.mini_clip.features`.
        classes: products to measure; by default all.

    Returns:
        `protocol`, `photographs` (counts per class) and `features`: name -> shots (as text) -> `classes`: name -> metric
        and `mean`: metric; a metric is `{"values": one per seed, "mean", "std"}`, all within 0 and 1, `None` where the
        data cannot define it.

    Raises:
        ValueError: if a class has no test photographs or fewer good ones than `shots`; otherwise as `read_dataset`.
    """
    train, test = (read_dataset(dataset_root, split=split, classes=classes) for split in ("train", "test"))
    names = sorted(set(train["class_name"][:]))
    figures = {kind: {k: {} for k in shots} for kind in features}
    counts = {}
    for name in tqdm(names, desc="classes", disable=not progress):
        normals = {row["path"]: row["image"] for row in _of_class(train, name) if row["label"] == 0}
        judged = _load_test(_of_class(test, name), name)
        draws = {(k, seed): draw_bank(list(normals), shots=k, seed=seed) for k in shots for seed in seeds}
        anomalous = sum(judged.labels)
        counts[name] = {"train": len(normals), "normal": len(judged.labels) - anomalous, "anomalous": anomalous}
        # photographs that several draws share are computed once
        places = {path: place for place, path in enumerate(sorted({path for draw in draws.values() for path in draw}))}
        remembered = load_squares([normals[path] for path in places])
        for kind, function in features.items():
            known, asked = extract(function, remembered), extract(function, judged.images)
            for k in shots:
                rows = [[places[path] for path in draws[k, seed]] for seed in seeds]
                banks = ([layer[chosen].flatten(0, 1) for layer in known] for chosen in rows)
                figures[kind][k][name] = [_metrics(bank_scores(asked, bank), judged) for bank in banks]
    return {
        "protocol": {**PROTOCOL, "shots": list(shots), "seeds": list(seeds)},
        "photographs": counts,
        "features": {kind: {str(k): _summary(of_k) for k, of_k in kinds.items()} for kind, kinds in figures.items()},
    }


def _of_class(rows: Dataset, name: str) -> Dataset:
    return rows.select(np.flatnonzero(np.array(rows["class_name"][:]) == name))


def _load_test(rows: Dataset, name: str) -> TestPhotographs:
    if not len(rows):
        raise ValueError(f"Class {name!r} has no test photographs: put them into {name}/test, or leave it out.")
    masks = [None if row["mask"] is None else load_square_mask(row["mask"]) for row in rows]
    return TestPhotographs(load_squares([row["image"] for row in rows]), rows["label"][:], masks)


def _metrics(scores: Tensor, judged: TestPhotographs) -> dict[str, float | None]:
    """Compare patch scores (images, 196) with labels and masks; a defective photograph without a mask has no pixels."""
    maps = smooth_maps(scores.unflatten(1, (GRID, GRID)), size=SIDE, sigma=SIGMA / SIDE).numpy()
    pixels = PixelMetrics()
    for anomaly_map, mask, label in zip(maps, judged.masks, judged.labels, strict=True):
        if mask is not None or not label:
            pixels.update(anomaly_map, mask)
    return {**image_metrics(scores.amax(1).numpy(), judged.labels), **pixels.compute()}


def _summary(per_class: dict[str, list[dict[str, float | None]]]) -> dict:
    """Turn {class: metrics per seed} into mean and standard deviation over seeds, for each class and their mean."""
    count = len(next(iter(per_class.values())))
    means = [mean_metrics({name: runs[number] for name, runs in per_class.items()}) for number in range(count)]
    return {"classes": {name: _over_seeds(runs) for name, runs in per_class.items()}, "mean": _over_seeds(means)}


def _over_seeds(runs: list[dict[str, float | None]]) -> dict[str, dict]:
    summary = {}
    for metric in runs[0]:
        values = [run[metric] for run in runs]
        known = [value for value in values if value is not None]
        mean, std = (statistics.fmean(known), statistics.pstdev(known)) if known else (None, None)
        summary[metric] = {"values": values, "mean": mean, "std": std}
    return summary


def to_markdown(results: dict) -> str:
    """Render one table per kind of features and number of shots: percent, mean ± standard deviation over seeds."""
    tables = []
    for kind, by_shots in results["features"].items():
        for shots, summary in by_shots.items():
            lines = [f"### {kind}, k = {shots}", "", f"| class | {' | '.join(COLUMNS.values())} |"]
            lines.append("|---" * (1 + len(COLUMNS)) + "|")
            for name, metrics in [*summary["classes"].items(), ("mean", summary["mean"])]:
                lines.append(f"| {name} | {' | '.join(_cell(metrics[metric]) for metric in COLUMNS)} |")
            tables.append("\n".join(lines))
    return "\n\n".join(tables) + "\n"


def _cell(figure: dict) -> str:
    return "n/a" if figure["mean"] is None else f"{100 * figure['mean']:.1f} ± {100 * figure['std']:.1f}"


# --- The same on held-out drawn products, by which pretraining is judged ---


SEED, SHOTS, BANKS = 2026, (1, 4), (0, 1)


class DrawnValidation:
    """Held-out products, drawn once into a folder."""

    def __init__(self, folder: Path, seed: int = SEED):
        self.folder = Path(folder)
        if not self.folder.exists():
            unfinished = self.folder.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed while it drew
            write_dataset(unfinished, seed, train=8, good=8, defective=12, size=SIDE)
            unfinished.rename(self.folder)

    def measure(self, clip: CLIPModel, layers: tuple[int, ...]) -> dict[str, float]:
        """Return `i_auroc_1`, `p_auroc_1`, `i_auroc_4`, `p_auroc_4` in percent and `score`, their mean."""
        features = tower_features(clip, layers, mean=MEAN, std=STD)
        results = measure(self.folder, {"clip": features}, shots=SHOTS, seeds=BANKS, progress=False)
        means = {shots: summary["mean"] for shots, summary in results["features"]["clip"].items()}
        figures = {
            f"{short}_{shots}": round(100 * metrics[name]["mean"], 2)
            for shots, metrics in means.items()
            for short, name in (("i_auroc", "image_auroc"), ("p_auroc", "pixel_auroc"))
        }
        return figures | {"score": round(sum(figures.values()) / len(figures), 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write `results.json` and `table.md` into `--output_dir` and show the table."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m hub.mini_clip.measure", description=__doc__, allow_abbrev=False)
    parser.add_argument("data", help="Folder in MVTec AD's layout.")
    parser.add_argument("--features", nargs="+", default=["mini"], help="mini, rgb, gabor, random or a CLIP folder.")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4], help="Good photographs per bank.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Of the draws of banks.")
    parser.add_argument("--classes", nargs="+", help="Products to measure; by default all.")
    parser.add_argument("--output_dir", type=Path, default=Path("out/backbone"), help="Where figures are written.")
    options = parser.parse_args(arguments)
    normals = load_normals(options.data, options.classes) if "gabor" in options.features else None
    features = {kind: make_features(kind, normals) for kind in options.features}
    results = measure(options.data, features, shots=options.shots, seeds=options.seeds, classes=options.classes)
    results["command"] = shlex.join(["python", "-m", "hub.mini_clip.measure", *arguments])
    results["versions"] = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.output_dir / "table.md").write_text(to_markdown(results), encoding="utf-8")
    tqdm.write(to_markdown(results))


if __name__ == "__main__":
    main()
