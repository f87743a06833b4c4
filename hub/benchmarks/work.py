"""
How much one fit and one evaluation compute at the paper's size: `python -m hub.benchmarks.work`.

Multiplications and additions of B/16+ at 240 pixels with random weights are counted by torch, not timed. Minutes follow for
a device that keeps up a stated number of them per second: arithmetic, and no measurement of any device.
"""

import argparse
import json
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hub.reproduce.tables import TABLES
from modeling_anople.data.public_sets import SETS

from .measuring import RESULTS, make_detector
from .speed import fit_step


MVTEC = sum(SETS["mvtec"].totals[1:])  # photographs to test


class Counter(TorchDispatchMode):
    """Sum what torch's formulas say of each operation; matrix products and convolutions are all that has one."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def count(call: Callable[[], object]) -> float:
    """Count the operations of one call, in units of 10^9."""
    with Counter() as counter:
        call()
    return counter.total / 1e9


def counted(photographs: int) -> dict:
    """Count a step of fitting on so many photographs, and one prediction."""
    model = make_detector()
    model.clip.set_attn_implementation("eager")  # as matrix products, which are counted
    with torch.inference_mode(False), torch.enable_grad():
        one, two = (count(fit_step(model, "fit", photographs=number)) for number in (1, 2))
    step = one + (photographs - 1) * (two - one)  # texts are encoded once per step
    model.eval()
    pixels = torch.randn(1, 3, 240, 240)
    with torch.no_grad():
        predict = count(lambda: model(pixels, class_ids=torch.zeros(1, dtype=torch.long)))
        tower = count(lambda: model.clip.vision_model(pixels))
    return {"step": step, "predict": predict, "tower": tower}


def fits_of(name: str) -> int:
    """Count the fits that a table's cells need, of products together."""
    cells = TABLES[name].cells
    return len({(cell.fit, cell.shots, cell.trained) for cell in cells if cell.trained})


def main() -> None:
    """Count, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="Steps of a fit.")
    parser.add_argument("--batch_size", type=int, default=8, help="Photographs of a step.")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[5, 20, 60], help="Operations kept up, 10^12 a second."
    )
    options = parser.parse_args()
    found = counted(options.batch_size)
    fit = found["step"] * options.steps / 1000
    lines = [
        "# What a fit computes",
        "",
        f"`python -m hub.benchmarks.work --steps {options.steps} --batch_size {options.batch_size}`, torch {torch.__version__}.",
        "",
        *__doc__.strip().splitlines()[2:],
        "",
        f"A step on {options.batch_size} photographs of five views: {found['step']:.0f} x 10^9. One prediction: "
        f"{found['predict']:.1f} x 10^9, of which the vision tower has {found['tower']:.1f}. A fit of {options.steps} steps: "
        f"{fit:.0f} x 10^12.",
        "",
        "| kept up, 10^12 a second | one fit, measured on MVTec AD | one seed of the main table | of the coupling table |",
        "|---|---|---|---|",
    ]
    for rate in options.rates:
        test = found["predict"] * MVTEC / 1000
        minutes = [fits * (fit + test) / rate / 60 for fits in (1, fits_of("main"), fits_of("coupling"))]
        lines.append(f"| {rate:g} | {' | '.join(f'{each:.0f} min' for each in minutes)} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "work.md").write_text(text, encoding="utf-8")
    (RESULTS / "work.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
