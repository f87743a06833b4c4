"""
What a smaller memory costs: `python -m hub.benchmarks.memory_limits DATA --shots 64`.

The memory alone on the embedded CLIP, nothing fitted, as `memory_copies` measures it: only the train split is read, and
defects are drawn on half of the photographs that are held out. Many photographs of each product are remembered, whole and
thinned to fewer vectors (the coreset); the last row remembers 4 photographs.
"""

import argparse
import statistics
import sys

import torch
from torch import Tensor

from modeling_anople.memory_anople import k_center

from .memory_copies import features, judge, split, start


FEW = 4


def thinned(bank: dict[int, Tensor], limit: int) -> dict[int, Tensor]:
    """Keep as many vectors as the memory would under a limit."""
    kept = k_center(torch.cat(list(bank.values()), dim=1), limit)
    return {layer: vectors[kept] for layer, vectors in bank.items()}


def main() -> None:
    """Print a row for each limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Good photographs, in any form that `anople fit` reads.")
    parser.add_argument("--shots", type=int, default=64, help="At most; as many as leave enough to hold out.")
    parser.add_argument("--limits", type=int, nargs="+", default=[8192, 4096, 2048, 1024])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test_images", type=int, default=12, help="Good, and as many defective, per product.")
    options = parser.parse_args()
    rows, model, processor = start(options.data)
    layers, side = list(model.config.memory_layers), model.config.image_size
    figures: dict[str, list[tuple[float, float]]] = {}
    for seed in options.seeds:
        for name in sorted(rows):
            count = min(options.shots, len(rows[name]) - 2 * options.test_images)
            shots, pictures, masks = split(rows[name], name, count, seed, options.test_images)
            found = features(model, processor(pictures)["pixel_values"], layers)
            taps = features(model, processor(shots)["pixel_values"], layers)
            whole = {layer: taps[layer].flatten(0, 1) for layer in layers}
            banks = {"all": whole} | {f"{limit:,}": thinned(whole, limit) for limit in options.limits}
            banks[f"{FEW} photographs"] = {layer: taps[layer][:FEW].flatten(0, 1) for layer in layers}
            for kind, bank in banks.items():
                figures.setdefault(kind, []).append(judge(found, bank, masks, side))
            sys.stderr.write(f"seed {seed}, {name}: {count} photographs, {len(whole[layers[0]]):,} vectors\n")
    plain = [100 * statistics.fmean(values) for values in zip(*figures["all"], strict=True)]
    print("| vectors of a product | I | P | to all |\n|---|---|---|---|")
    for kind, pairs in figures.items():
        image, pixel = (100 * statistics.fmean(values) for values in zip(*pairs, strict=True))
        print(f"| {kind} | {image:.1f} | {pixel:.1f} | {image - plain[0]:+.1f} / {pixel - plain[1]:+.1f} |")


if __name__ == "__main__":
    main()
