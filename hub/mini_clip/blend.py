"""
How much of its first weights the embedded CLIP keeps: judged on held-out drawn products, for several shares.

    python -m hub.mini_clip.blend TRAINED out/blended

TRAINED is a checkpoint of a run of `hub.mini_clip --first_share 0`. Three sets of products are drawn by the renderer that
never trains (`modeling_anople.data.drawn_products`); no photograph is looked at. The best share's CLIP is written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from modeling_anople.backbone_anople import load_clip

from .__main__ import PretrainingConfig, build_learner
from .ablate import FIGURES
from .architecture import blend, write_checkpoint
from .measure import SEED, DrawnValidation


SEEDS = (SEED, 11, 12)


def to_markdown(rows: dict[float, dict[str, float]]) -> str:
    """Render the figures of each share."""
    names = {**FIGURES, "score": "mean"}
    lines = [f"| share of first weights | {' | '.join(names.values())} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {share:g} | {' | '.join(f'{figures[key]:.1f}' for key in names)} |" for share, figures in rows.items()
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge all shares, print the table and write the best."""
    parser = argparse.ArgumentParser(
        prog="python -m hub.mini_clip.blend",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trained", help="Checkpoint of the trained CLIP.")
    parser.add_argument("output_dir", type=Path, help="Gets the drawn products, the table and the best checkpoint.")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1])
    parser.add_argument("--seed", type=int, default=0, help="That the run had.")
    options = parser.parse_args(arguments)
    trained, tokenizer = load_clip(options.trained)
    tower = trained.config.vision_config
    config = PretrainingConfig(seed=options.seed, width=tower.hidden_size, layers=tower.num_hidden_layers)
    # the first weights are a function of the seed and the size: made again, not kept
    learner = build_learner(config)
    first, rows = learner.clip.state_dict(), {}
    sets = [DrawnValidation(options.output_dir / f"drawn{seed}", seed) for seed in SEEDS]
    for share in options.shares:
        found = [drawn.measure(blend(trained, first, share), learner.layers) for drawn in sets]
        rows[share] = {name: sum(figures[name] for figures in found) / len(found) for name in found[0]}
    best = max(rows, key=lambda share: rows[share]["score"])
    write_checkpoint(options.output_dir / "checkpoint", blend(trained, first, best), tokenizer)
    (options.output_dir / "table.md").write_text(to_markdown(rows), encoding="utf-8")
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
