"""
Do detectors of several seeds do better together? `python -m tests.benchmarks.averaged_seeds DATA`.

DATA is a test set of good photographs alone, as `hub.drawn_defects` makes one. Detectors are fitted on `mini` to the same
photographs, with another seed of all other draws each. Then they judge each alone, as one detector that has the mean of
their learnt weights (and memory, lines and texts made anew with these), and by the mean of their answers.
"""

import argparse
import copy
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.evaluation import test_rows
from modeling_anople.fusion_anople import resize_maps
from modeling_anople.metrics import PixelMetrics, image_metrics, mean_metrics
from modeling_anople.options import TrainingConfig
from modeling_anople.photographs_anople import load_mask
from modeling_anople.prediction import predict
from modeling_anople.shots import choose_shots
from modeling_anople.training import finish
from modeling_anople.training import main as fit


SIDE = 400
SHOWN = ("image_auroc", "pixel_auroc", "aupro")


def link_shots(data: Path, folder: Path, shots: int) -> None:
    """Make a data set that has the shots of seed 0 alone to learn from, so that any seed takes them."""
    chosen = choose_shots(TrainingConfig(str(data), shots=shots, monitor_images=1)).files
    for name, files in chosen.items():
        for file in files:
            link = folder / file
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(data / file, link)
        assert (folder / name / "train" / "good").is_dir(), "DATA must be a tree in MVTec AD's layout."


@torch.no_grad()
def averaged(folders: Sequence[Path], config: TrainingConfig) -> AnoPLeModel:
    """Make one detector of the mean of the learnt weights of several."""
    models = [dict(AnoPLeModel.from_pretrained(folder).named_parameters()) for folder in folders]
    model = copy.deepcopy(AnoPLeModel.from_pretrained(folders[0]))
    for name, weight in model.named_parameters():
        if not name.startswith("clip."):
            weight.copy_(torch.stack([other[name] for other in models]).mean(0))
    for class_id in range(len(model.config.class_names)):
        model.memory.clear(class_id)
    finish(model, AnoPLeProcessor.from_pretrained(folders[0]), choose_shots(config), None, config)
    return model


def answers(model: AnoPLeModel, processor: AnoPLeProcessor, rows) -> list[tuple[float, np.ndarray]]:
    """Return raw score and map of each test photograph."""
    found = predict(model, processor, (row["image"] for row in rows), class_names=rows["class_name"][:])
    return [(one.raw_score, one.raw_map) for one in found]


def measure(found: Sequence[tuple[float, np.ndarray]], rows) -> dict[str, float]:
    """Return the figures of answers, mean over products."""
    names, figures = rows["class_name"][:], {}
    for name in sorted(set(names)):
        own = [number for number, owner in enumerate(names) if owner == name]
        pixels = PixelMetrics()
        for number in own:
            mask = None
            if rows[number]["mask"] is not None:
                marked = Image.fromarray(load_mask(rows[number]["mask"]).astype(np.uint8))
                mask = np.asarray(marked.resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 0
            pixels.update(resize_maps(torch.from_numpy(found[number][1])[None], (SIDE, SIDE))[0].numpy(), mask)
        labels = [bool(rows[number]["label"]) for number in own]
        figures[name] = image_metrics([found[number][0] for number in own], labels) | pixels.compute()
    return mean_metrics(figures)


def main() -> None:
    """Fit, judge and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="An MVTec tree that `hub.drawn_defects` wrote.")
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
        alone = [answers(AnoPLeModel.from_pretrained(folder), processor, rows) for folder in folders]
        figures = [measure(found, rows) for found in alone]
        add("each alone, mean", {name: statistics.fmean(one[name] for one in figures) for name in SHOWN})
        add(
            "the worst and the best of each figure, worst", {name: min(one[name] for one in figures) for name in SHOWN}
        )
        add("the same, best", {name: max(one[name] for one in figures) for name in SHOWN})
        config = TrainingConfig(str(shots), shots=options.shots, monitor_images=0)
        add("mean of their weights", measure(answers(averaged(folders, config), processor, rows), rows))
        together = [
            (statistics.fmean(score for score, _ in each), np.mean([one for _, one in each], axis=0))
            for each in zip(*alone, strict=True)
        ]
        add("mean of their answers", measure(together, rows))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
