"""
Every ablation of the paper, and of our own choices, as one table: `python -m tests.benchmarks.ablations DATA`.

Each cell is what a person would type: `anople fit DATA ...` and `anople evaluate ...`. Cells that are done are kept, so
a stopped run goes on; several runs share the work with --shard 0/2 and --shard 1/2. Nothing is chosen by these figures.
"""

import argparse
import json
import statistics
from pathlib import Path

from modeling_anople.cli import main as anople


METRICS = ("image_auroc", "pixel_auroc", "aupro")

# name -> options of `anople fit`
FITTED = {
    "default": [],
    "coupling: text_to_vision": ["--coupling", "text_to_vision"],
    "coupling: vision_to_text": ["--coupling", "vision_to_text"],
    "coupling: uncoupled": ["--coupling", "uncoupled"],
    "coupling: text_only": ["--coupling", "text_only"],
    "coupling: vision_only": ["--coupling", "vision_only"],
    "coupling: none": ["--coupling", "none"],
    "projections: per_layer": ["--coupling_projection", "per_layer"],
    "views: multi-scale, no prefix": ["--prefix", "none"],
    "views: single scale, no prefix": ["--view_grid", "1", "--prefix", "none"],
    "prefix: deep_token": ["--prefix", "deep_token"],
    "prefix: add": ["--prefix", "add"],
    "no alignment": ["--alignment_loss_weight", "0"],
    "alignment as written (no detach, no warm-up)": ["--alignment_detach", "none", "--alignment_warmup", "0"],
    "no image loss": ["--image_loss_weight", "0"],
    "no latent anomalies": ["--latent_noise", "0"],
    "no pixel anomalies": ["--pixel_anomaly", "none"],
    "pixel anomalies: cut_paste": ["--pixel_anomaly", "cut_paste"],
    "decoder head: conv": ["--decoder_head", "conv"],
}

# name -> (fields of the default detector's config that are changed, options of `anople evaluate`)
READ = {
    "memory alone": ({"map_fusion": "memory", "image_fusion": "map"}, ["--score", "memory"]),
    "decoder alone": ({}, ["--score", "decoder"]),
    "text alone (image score)": ({}, ["--score", "text"]),
    "image score: fused map": ({"image_map": "fused"}, []),
    "fusion scale: normal": ({"fusion_scale": "normal", "image_map": "fused"}, []),
    "class predicted": ({}, ["--class_identity", "predicted"]),
    "class pooled": ({}, ["--class_identity", "pooled"]),
}


def run_cell(name: str, seed: int, options: argparse.Namespace) -> None:
    """Fit and evaluate one cell, unless it is done."""
    folder = options.output / f"seed{seed}" / "".join(letter if letter.isalnum() else "_" for letter in name)
    if not (folder / "evaluation.json").exists():
        fit = ["fit", options.data, "--output_dir", str(folder), "--seed", str(seed), "--shots", str(options.shots)]
        fit += ["--max_steps", str(options.steps), "--batch_size", str(options.batch_size), "--clip", options.clip]
        _run([*fit, "--overwrite", *FITTED[name]])
        _run(["evaluate", str(folder), options.data, "--json", str(folder / "evaluation.json")])
    if name == "default":
        for other, (changes, arguments) in READ.items():
            _read_cell(folder, other, changes, [options.data, *arguments])


def _read_cell(folder: Path, name: str, changes: dict, arguments: list[str]) -> None:
    target = folder / f"{''.join(letter if letter.isalnum() else '_' for letter in name)}.json"
    if target.exists():
        return
    config, original = folder / "config.json", (folder / "config.json").read_text(encoding="utf-8")
    try:
        config.write_text(json.dumps({**json.loads(original), **changes}), encoding="utf-8")
        _run(["evaluate", str(folder), *arguments, "--json", str(target)])
    finally:
        config.write_text(original, encoding="utf-8")


def _run(arguments: list[str]) -> None:
    if anople(arguments) != 0:
        raise SystemExit(f"anople {' '.join(arguments)} failed.")


def collect(options: argparse.Namespace) -> list[dict]:
    """Read all finished cells: mean and standard deviation over seeds of the mean over classes."""
    rows = []
    for name in [*FITTED, *READ]:
        slug = "".join(letter if letter.isalnum() else "_" for letter in name)
        pattern = f"seed*/{slug}/evaluation.json" if name in FITTED else f"seed*/default/{slug}.json"
        means = [json.loads(path.read_text(encoding="utf-8"))["mean"] for path in sorted(options.output.glob(pattern))]
        row = {"cell": name, "seeds": len(means)}
        for metric in METRICS:
            values = [mean[metric] for mean in means if mean[metric] is not None]
            row[metric] = [statistics.fmean(values), statistics.pstdev(values)] if values else None
        rows.append(row)
    return rows


def to_markdown(rows: list[dict]) -> str:
    """Render the table in percent."""
    lines = ["| cell | seeds | I-AUROC | P-AUROC | AUPRO |", "|---|---|---|---|---|"]
    for row in rows:
        cells = ["n/a" if row[m] is None else f"{100 * row[m][0]:.1f} ± {100 * row[m][1]:.1f}" for m in METRICS]
        lines.append(f"| {row['cell']} | {row['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells of this shard, then print the table of all that are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, default=Path("out/ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--clip", default="mini")
    parser.add_argument("--shard", default="0/1", help="Which part of the cells to run, as NUMBER/COUNT.")
    options = parser.parse_args()
    number, count = map(int, options.shard.split("/"))
    cells = [(name, seed) for seed in options.seeds for name in FITTED]
    for name, seed in cells[number::count]:
        run_cell(name, seed, options)
    table = to_markdown(collect(options))
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
