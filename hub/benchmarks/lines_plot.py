"""
Draw where lines lie: `python -m hub.benchmarks.lines_plot DATA --output docs/on_the_line.png`.

One detector on the embedded CLIP, enrolled with a few good photographs of each product as in `lines`; for each product the
raw scores of these photographs, each against the others, the line, and the scores of the test photographs.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.data import read_dataset

from .measuring import detector_of
from .unknown_products import make_detector


GOOD, BAD, KNOWN = "#2b7bba", "#d1495b", "#222222"


class Scores(NamedTuple):
    """Raw scores of one product: of its known good photographs and of the test photographs; and its line."""

    name: str
    known: list[float]
    good: list[float]
    defective: list[float]
    line: float


def score(model: AnoPLeModel, processor: AnoPLeProcessor, test: Dataset) -> list[Scores]:
    """Score all test photographs, the product of each being given."""
    results = detector_of(model, processor)(
        (row["image"] for row in test), class_names=test["class_name"][:], batch_size=8, on_error="raise"
    )
    found: dict[tuple[str, bool], list[float]] = {}
    for name, label, result in zip(test["class_name"], test["label"], results, strict=True):
        found.setdefault((name, bool(label)), []).append(result["raw_score"])
    return [
        Scores(
            product.name,
            product.record.threshold.image_scores,
            found[product.name, False],
            found[product.name, True],
            product.record.threshold.image_threshold,
        )
        for product in model.products
    ]


def draw(products: Sequence[Scores], title: str, file: Path) -> None:
    """Draw a row for each product, scores as multiples of its line on a logarithmic axis, so that all lines are one."""
    figure = Figure(figsize=(9, 1.0 + 0.95 * len(products)), dpi=100, layout="constrained")
    axes = figure.subplots()
    generator = np.random.default_rng(0)
    for place, each in enumerate(reversed(products)):
        rows = (
            (each.defective, -0.24, BAD, "x", 22, "defective test photographs"),
            (each.good, 0.02, GOOD, "o", 18, "good test photographs"),
            (each.known, 0.27, KNOWN, "D", 30, "the few good photographs that set the line"),
        )
        for scores, shift, color, marker, size, label in rows:
            heights = place + shift + (generator.uniform(-0.08, 0.08, len(scores)) if shift < 0.2 else 0.0)
            values = np.array(scores) / each.line
            axes.scatter(
                values,
                np.broadcast_to(heights, values.shape),
                s=size,
                c=color,
                marker=marker,
                linewidths=1.0 if marker == "x" else 0,
                alpha=0.75,
                label=label if place == 0 else None,
            )
        above = [sum(score > each.line for score in scores) for scores in (each.good, each.defective)]
        text = f"{above[0]} of {len(each.good)} good set aside\n{above[1]} of {len(each.defective)} defective found"
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1.5)
    axes.axvspan(1, 1e3, color=BAD, alpha=0.06, linewidth=0)
    values = [value / each.line for each in products for part in each[1:4] for value in part]
    low, high = min(values) / 1.1, max(1.5, max(values) * 1.1)
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 10) if low <= tick <= high]
    axes.set(xscale="log", xlim=(low, high), ylim=(-0.5, len(products) - 0.5), title=title)
    axes.set_xticks(ticks, [f"{tick:g}" if not math.isclose(tick, 1) else "the line" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(products)), [each.name for each in reversed(products)])
    axes.set_xlabel("raw score, as a multiple of the product's line; right of it a part is set aside")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(file)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="Products in any layout that `anople fit` reads, with test photographs.")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clip", default="mini")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    train, test = (read_dataset(options.data, split=split) for split in ("train", "test"))
    names = sorted(set(train["class_name"]))
    model, processor = make_detector(train, names, shots=options.shots, seed=options.seed, clip=options.clip)
    rate = model.products[0].record.threshold.max_false_alarm_rate
    title = (
        f"{options.shots} good photographs each (seed {options.seed}), untrained, budget {100 * rate:g} % false alarms"
    )
    draw(score(model, processor, test), title, options.output)


if __name__ == "__main__":
    main()
