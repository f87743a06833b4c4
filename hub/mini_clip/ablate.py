"""
What each loss and the first weights bring to the embedded CLIP: short runs, judged on held-out drawn products.

    python -m hub.mini_clip.ablate --output_dir out/mini_ablations

Runs that are done are kept, so a stopped one goes on; several processes share the work with --shard 0/2, --shard 1/2.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from .__main__ import LOG_FILE
from .__main__ import main as pretrain


VARIANTS = {
    "all losses": [],
    "no episodic loss": ["--episodic", "0"],
    "no geometry": ["--relation", "0"],
    "no statistics": ["--regression", "0"],
    "neither geometry nor statistics": ["--relation", "0", "--regression", "0"],
    "no dense text": ["--dense_text", "0"],
    "no contrast": ["--contrast", "0"],
    "contrast alone": ["--episodic", "0", "--relation", "0", "--regression", "0", "--dense_text", "0"],
    "first weights as they are": ["--learning_rate", "0"],
    "random first weights": ["--start", "random", "--early", "1"],
    "first blocks at the full rate": ["--early", "1"],
}
FIGURES = {"i_auroc_1": "I-AUROC, k = 1", "p_auroc_1": "P-AUROC, k = 1", "i_auroc_4": "I-AUROC, k = 4",
           "p_auroc_4": "P-AUROC, k = 4"}  # fmt: skip
SMALL = {"products": 8, "warmup_steps": 10, "last_part": 0, "decay": 1, "average": 0.98, "first_share": 0}


def folder_of(output: Path, name: str, seed: int) -> Path:
    """Return where a variant's run lies."""
    return output / f"seed{seed}" / name.replace(" ", "_")


def figures_of(folder: Path) -> dict[str, float] | None:
    """Read the last figures of a run; None while it has none."""
    log = folder / LOG_FILE
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    judged = [line for line in lines if "score" in line]
    return judged[-1] if judged else None


def to_markdown(output: Path, seeds: Sequence[int]) -> str:
    """Render all runs that are done: percent on held-out drawn products, mean over seeds."""
    lines = [f"| run | seeds | {' | '.join(FIGURES.values())} |", "|---" * (2 + len(FIGURES)) + "|"]
    for name in VARIANTS:
        known = [figures for seed in seeds if (figures := figures_of(folder_of(output, name, seed)))]
        if known:
            cells = [f"{sum(figures[key] for figures in known) / len(known):.1f}" for key in FIGURES]
            lines.append(f"| {name} | {len(known)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is left of this shard, then write the table of all that is done."""
    parser = argparse.ArgumentParser(prog="python -m hub.mini_clip.ablate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=Path("out/mini_ablations"))
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shard", default="0/1", help="Which part of the runs to do, as NUMBER/COUNT.")
    options = parser.parse_args(arguments)
    number, count = map(int, options.shard.split("/"))
    runs = [(name, seed) for seed in options.seeds for name in VARIANTS]
    usual = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    for name, seed in runs[number::count]:
        folder = folder_of(options.output_dir, name, seed)
        if figures_of(folder) is None:
            steps = ["--steps", str(options.steps), "--evaluate_steps", str(options.steps), "--seed", str(seed)]
            pretrain(["--output_dir", str(folder), *steps, *usual, *VARIANTS[name]])
    (options.output_dir / "table.md").write_text(to_markdown(options.output_dir, options.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
