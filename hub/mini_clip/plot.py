"""
Plot a pretraining log: losses, and the memory's figures on held-out drawn products, over images seen.

    python -m hub.mini_clip.plot out/mini_clip/training_log.jsonl hub/results/learning_curve.png
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


LOSSES = {"episodic": "episodic", "relation": "geometry", "regression": "statistics", "dense_text": "dense text",
          "contrast": "contrast"}  # fmt: skip
FIGURES = {"i_auroc_4": "image AUROC, k = 4", "p_auroc_4": "pixel AUROC, k = 4", "i_auroc_1": "image AUROC, k = 1",
           "p_auroc_1": "pixel AUROC, k = 1"}  # fmt: skip


def read_log(path: str | Path) -> list[dict]:
    """Read the lines of a training log. Raises ValueError if it has none."""
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not lines:
        raise ValueError(f"{path} holds no line: let the pretraining run for at least `log_steps` steps.")
    return lines


def draw(lines: Sequence[dict]) -> Figure:
    """Draw losses on the left and held-out figures on the right, over minutes."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in LOSSES.items():
        points = [(line["minutes"], line[name]) for line in lines if name in line]
        if points:
            first = points[0][1] or 1.0
            left.plot([x for x, _ in points], [y / first for _, y in points], label=label, linewidth=1)
    for name, label in FIGURES.items():
        points = [(line["minutes"], line[name]) for line in lines if name in line]
        right.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=label)
    small = [line["minutes"] for line in lines if line.get("size") == lines[0].get("size")]
    for axes in (left, right):
        axes.set_xlabel("minutes")
        axes.grid(alpha=0.3)
        if small and small[-1] < lines[-1]["minutes"]:
            axes.axvline(small[-1], color="gray", linestyle=":", linewidth=1)
    left.set_ylabel("loss / first value")
    left.set_ylim(bottom=0)
    right.set_ylabel("held-out drawn products, %")
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m hub.mini_clip.plot", description=__doc__, allow_abbrev=False)
    parser.add_argument("log", type=Path, help="training_log.jsonl of a pretraining run.")
    parser.add_argument("picture", type=Path, help="Where the picture is written: .png or .svg.")
    options = parser.parse_args(arguments)
    figure = draw(read_log(options.log))
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
