"""
What a smaller memory costs: `python -m hub.benchmarks.memory_limits DATA --shots 64`.

The memory alone, nothing fitted, on what `memory_copies` takes and as it measures it: only the train split is read, and
defects are drawn on half of the photographs that are held out. Many photographs of each product are remembered, whole and
thinned to fewer vectors (the coreset); the last row remembers 4 photographs.
"""

import argparse
import statistics
import sys

import torch
from torch import Tensor

from modeling_anople import AnoPLeModel
from modeling_anople.memory_anople import k_center
from modeling_anople.tiling_anople import ROTATION_COUNTS, Rotations, rotated_copies

from .memory_copies import add_encoder_options, features, judge, split, start


FEW = 4


def thinned(bank: Tensor, limit: int) -> Tensor:
    """Keep as many vectors (layers, vectors, width) as the memory would under a limit."""
    return bank[:, k_center(bank.transpose(0, 1).flatten(1), limit)]


def turned(model: AnoPLeModel, pixels: Tensor, kind: Rotations) -> Tensor:
    """Encode photographs and their turned copies: (layers, photographs, patches of all copies, width)."""
    return torch.cat([features(model, copies) for copies, _ in rotated_copies(pixels, kind)], dim=2)


def main() -> None:
    """Print a row for each limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Good photographs, in any form that `anople fit` reads.")
    parser.add_argument("--shots", type=int, default=64, help="At most; as many as leave enough to hold out.")
    parser.add_argument("--limits", type=int, nargs="+", default=[8192, 4096, 2048, 1024])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test_images", type=int, default=12, help="Good, and as many defective, per product.")
    parser.add_argument("--memory_rotations", choices=list(ROTATION_COUNTS), default="none", help="As for a detector.")
    add_encoder_options(parser)
    options = parser.parse_args()
    rows, model, processor = start(options)
    figures: dict[str, list[tuple[float, float]]] = {}
    for seed in options.seeds:
        for name in sorted(rows):
            count = min(options.shots, len(rows[name]) - 2 * options.test_images)
            shots, pictures, masks = split(rows[name], name, count, seed, options.test_images)
            found = features(model, processor(pictures)["pixel_values"])
            seen = turned(model, processor(shots)["pixel_values"], options.memory_rotations)
            whole = seen.flatten(1, 2)
            banks = {"all": whole} | {f"{limit:,}": thinned(whole, limit) for limit in options.limits}
            if count > FEW:
                banks[f"{FEW} photographs"] = seen[:, :FEW].flatten(1, 2)
            for kind, bank in banks.items():
                figures.setdefault(kind, []).append(judge(found, bank, masks, model.config.input_size))
            sys.stderr.write(f"seed {seed}, {name}: {count} photographs, {whole.shape[1]:,} vectors\n")
    plain = [100 * statistics.fmean(values) for values in zip(*figures["all"], strict=True)]
    print("| vectors of a product | I | P | to all |\n|---|---|---|---|")
    for kind, pairs in figures.items():
        image, pixel = (100 * statistics.fmean(values) for values in zip(*pairs, strict=True))
        print(f"| {kind} | {image:.1f} | {pixel:.1f} | {image - plain[0]:+.1f} / {pixel - plain[1]:+.1f} |")


if __name__ == "__main__":
    main()
