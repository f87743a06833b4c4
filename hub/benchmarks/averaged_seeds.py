"""
Do detectors of several seeds do better together? `python -m hub.benchmarks.averaged_seeds DATA`.

DATA is a test set of good photographs alone, as `hub.reproduce.drawn_defects` makes one. Detectors are fitted on `mini` to the same
photographs, with another seed of all other draws each. Then they judge each alone, as one detector that has the mean of
their learned weights (and memory, lines and texts made anew with these), and by the mean of their answers.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.evaluation import add_pixels, test_rows
from modeling_anople.evaluation.metrics import PixelMetrics, image_metrics, mean_metrics
from modeling_anople.pipeline_anople import Prediction, predict
from modeling_anople.product_store_anople import Product, ProductRecord
from modeling_anople.saving_anople import FROZEN
from modeling_anople.training import main as fit
from modeling_anople.training.few_shot import choose_shots
from modeling_anople.training.finishing import finish
from modeling_anople.training.options import TrainingConfig


SIDE = 400
SHOWN = ("image_auroc", "pixel_auroc", "aupro")


def link_shots(data: Path, folder: Path, shots: int) -> None:
    """Make a data set that has the shots of seed 0 alone to learn from, so that any seed takes them."""
    chosen = choose_shots(TrainingConfig(str(data), shots=shots, monitor_images=1)).files
    for file in (file for files in chosen.values() for file in files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.link(data / file, folder / file)


@torch.no_grad()
def averaged(models: Sequence[AnoPLeModel], processor: AnoPLeProcessor, config: TrainingConfig) -> AnoPLeModel:
    """Give the first detector the mean of the learned weights of all."""
    model, others = models[0], [dict(model.named_parameters()) for model in models[1:]]
    for name, weight in model.named_parameters():
        if not name.startswith(FROZEN):
            weight.copy_(torch.stack([weight, *(other[name] for other in others)]).mean(0))
    for number, product in enumerate(list(model.products)):  # the same products, of which nothing is known
        model.products[number] = Product(ProductRecord(product.name), model.config)
        model.products[number].prompt_ids = product.prompt_ids
    finish(model, processor, choose_shots(config), None, config)
    return model


def answers(model: AnoPLeModel, processor: AnoPLeProcessor, rows: Dataset) -> list[Prediction]:
    """Judge each test photograph."""
    return list(predict(model, processor, (row["image"] for row in rows), class_names=rows["class_name"][:]))


def measure(found: Sequence[Prediction], rows: Dataset) -> dict[str, float | None]:
    """Return the figures of answers, mean over products."""
    names, labels, figures = rows["class_name"][:], rows["label"][:], {}
    for name in sorted(set(names)):
        own, pixels = [number for number, owner in enumerate(names) if owner == name], PixelMetrics()
        for number in own:
            add_pixels(pixels, rows[number], found[number], SIDE)
        scores = image_metrics([found[number].raw_score for number in own], [bool(labels[number]) for number in own])
        figures[name] = scores | pixels.compute()
    return mean_metrics(figures)


def main() -> None:
    """Fit, judge and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="An MVTec tree that `hub.reproduce.drawn_defects` wrote.")
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=60)
    options = parser.parse_args()
    lines = [f"| {options.shots} shot(s), {options.max_steps} steps, seeds {options.seeds} | I | P | AUPRO |"]
    lines.append("|---|---|---|---|")

    def add(what: str, figures: dict[str, float]) -> None:
        lines.append(f"| {what} | {' | '.join(f'{100 * figures[name]:.1f}' for name in SHOWN)} |")

    with tempfile.TemporaryDirectory(dir=options.data.parent) as place:
        shots, folders = Path(place) / "shots", [Path(place) / f"fit{seed}" for seed in options.seeds]
        link_shots(options.data, shots, options.shots)
        words = ["--data_root", str(shots), "--shots", str(options.shots), "--max_steps", str(options.max_steps)]
        words += ["--batch_size", "4", "--monitor_images", "0"]
        for seed, folder in zip(options.seeds, folders, strict=True):
            fit([*words, "--seed", str(seed), "--output_dir", str(folder)])
        processor = AnoPLeProcessor.from_pretrained(folders[0])
        rows = test_rows(options.data, processor.class_names)
        models = [AnoPLeModel.from_pretrained(folder) for folder in folders]
        alone = [answers(model, processor, rows) for model in models]
        figures = [measure(found, rows) for found in alone]
        for what, over in (("mean", statistics.fmean), ("lowest", min), ("highest", max)):
            add(f"each alone, {what}", {name: over([one[name] for one in figures]) for name in SHOWN})
        together = [
            replace(
                each[0],
                raw_score=statistics.fmean(one.raw_score for one in each),
                raw_map=np.mean([one.raw_map for one in each], axis=0),
            )
            for each in zip(*alone, strict=True)
        ]
        add("mean of their answers", measure(together, rows))
        config = TrainingConfig(str(shots), shots=options.shots, monitor_images=0)
        add("mean of their weights", measure(answers(averaged(models, processor, config), processor, rows), rows))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
