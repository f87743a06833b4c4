"""
The rows of the memory's look-up: `python -m hub.benchmarks.memory_rows` prints them alone.

Banks hold features of drawn circuit boards of one design. Random vectors would be no test: nothing is near anything there,
and no bound leaves anything out. The same search is timed where the memory compares all with all.
"""

import argparse
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from modeling_anople import AnoPLeModel, memory_anople
from modeling_anople.data.drawn_products import draw_product
from modeling_anople.memory_anople import MemoryBank, memory_distances

from .measuring import make_detector, processor_of, row, timed


PRODUCT, LIMITS = "circuit board", {2048: None, 1024: 1.3}  # vectors: target


def boards(count: int, side: int, seed: int = 0) -> list:
    """Draw photographs of one product."""
    generator = np.random.default_rng(seed)
    return [draw_product(PRODUCT, generator, side)[0] for _ in range(count)]


def features(model: AnoPLeModel, pixels: Tensor) -> Tensor:
    """Return unit features (layers, photographs, patches, width)."""
    return torch.cat([model.memory_features(part) for part in pixels.split(8)], dim=1)


def memory_rows(model: AnoPLeModel, repeats: int, name: str = "B/16+") -> Iterator[dict]:
    """Predictions and look-ups with more normals; beyond `memory_limit` vectors the coreset bounds both."""
    patches, limit, side = model.config.grid_size**2, model.config.memory_limit, model.config.image_size
    process = processor_of(["product"], side)
    pixels = process(boards(2 + limit // patches, side))["pixel_values"].to(model.device)
    known, asked = features(model, pixels[1:]).flatten(1, 2), features(model, pixels[:1])
    ids, kept = torch.zeros(1, dtype=torch.long, device=model.device), model.products[0].bank
    few = bank_of(known[:, : 4 * patches])

    def look_up(bank: MemoryBank) -> Tensor:
        return memory_distances(asked, [bank], ids, chunk_size=model.config.memory_chunk_size)

    for normals in (64, 1024):
        bank = known[:, : min(normals * patches, limit)].clone()
        many = bank_of(bank)
        note = f"{name}; {bank.shape[1]} vectors, {bank.numel() * 4 / 1e6:.0f} MB, at most "
        note += f"{4 * model.config.memory_chunk_size / 1e6:.0f} MB of similarities at once"

        def judge(memory: MemoryBank) -> None:
            model.products[0].bank = memory
            model(pixels[:1], class_ids=ids)

        pairs = timed(lambda many=many: judge(many), lambda: judge(few), repeats, model.device)
        yield row(f"predict, {normals} normals", "4 normals", pairs, 1.3, note)
        pairs = timed(lambda many=many: look_up(many), lambda: look_up(few), 10 * repeats, model.device)
        yield row(f"look-up alone, {normals} normals", "4 normals", pairs, 1.3, note)

        def compare_all(many=many) -> Tensor:
            with mock.patch.object(memory_anople, "MANY", 10**9):
                return look_up(many)

        away = float((compare_all() - look_up(many)).abs().max())
        pairs = timed(compare_all, lambda: look_up(few), 2 * repeats, model.device)
        note = f"{name}; as before the search by bounds, whose distances differ by {away:.0e}"
        yield row(f"look-up alone, {normals} normals, all compared", "4 normals", pairs, None, note)
    thin = bank_of(known[:, : 64 * patches])
    note = f"{name}; what that costs in AUROC: `python -m hub.benchmarks.memory_limits`"
    for size, target in LIMITS.items():
        thin.reduce(size)
        pairs = timed(lambda: look_up(thin), lambda: look_up(few), 10 * repeats, model.device)
        yield row(f"look-up alone, 64 normals, `memory_limit` {size:,}", "4 normals", pairs, target, note)
    model.products[0].bank = kept


def bank_of(vectors: Tensor) -> MemoryBank:
    """Make a bank (layers, vectors, width) of one photograph."""
    bank = MemoryBank(len(vectors), vectors.shape[-1]).to(vectors.device)
    bank.add(vectors, [vectors.shape[1]])
    return bank


@torch.inference_mode()
def main() -> None:
    """Print the rows of B/16+ and of the embedded CLIP."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--only", choices=["mini", "B/16+"])
    options = parser.parse_args()
    makers = {"mini": lambda: AnoPLeModel.from_clip("mini", ["product"]), "B/16+": make_detector}
    for name, make in makers.items():
        if options.only in (None, name):
            for entry in memory_rows(make(), options.repeats, name):
                print(
                    f"{entry['ratio']:.3f} {entry['quartiles']}  {entry['what']} / {entry['against']}  {entry['note']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
