"""
What judging one product costs with 200 products in the detector against one: `python -m hub.benchmarks.product_count`.

The embedded CLIP, four photographs remembered for each product, the product of the photograph given. Both detectors are
run in turn in one process, and the processor's time is counted, which other programs hardly disturb; the figure is the
median of the paired ratios.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor

from .measuring import RESULTS, detector_of, know, noise, paired_ratios


TARGET = 1.05


def make_detector(products: int, shots: int = 4, clip: str = "mini") -> tuple[AnoPLeModel, AnoPLeProcessor]:
    """Build a detector whose products all remember the same photographs, with the same line."""
    names = [f"product {number}" for number in range(products)]
    torch.manual_seed(0)
    model, processor = AnoPLeModel.from_clip(clip, names), AnoPLeProcessor.from_clip(clip, names)
    know(model, processor, noise(shots, model.config.image_size))
    first = model.products[0]
    for product in list(model.products)[1:]:
        product.bank.add(first.bank.vectors, first.bank.image_vectors)
        product.prototype = first.prototype.clone()
        product.record.threshold = first.record.threshold
    model.products.write()
    return model, processor


def make_calls(model: AnoPLeModel, processor: AnoPLeProcessor, batch: int) -> dict[str, Callable]:
    """Make the two things to time: the model on prepared pixels, and the whole pipeline on photographs in memory."""
    side, last = model.config.image_size, len(model.config.class_names) - 1
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (256, 256, 3), dtype=np.uint8)) for _ in range(batch)]
    pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
    detect = detector_of(model, processor, class_name=f"product {last}", batch_size=batch)
    class_ids = torch.full((batch,), last)
    return {"model": lambda: model(pixels, class_ids=class_ids), "pipeline": lambda: detect(images)}


@torch.inference_mode()
def measure(products: int, repeats: int, batch_sizes: list[int]) -> list[dict]:
    """Measure the ratio for each batch size, of the model and of the pipeline."""
    rows, detectors = [], [make_detector(1), make_detector(products)]
    for batch in batch_sizes:
        one, many = (make_calls(*detector, batch) for detector in detectors)
        for name in one:
            pairs = paired_ratios(many[name], one[name], repeats, clock=time.process_time)
            ratios = sorted(first / second for first, second in pairs)
            rows.append(
                {
                    "call": name,
                    "batch": batch,
                    "products": products,
                    "ratio_median": round(statistics.median(ratios), 4),
                    "ratio_quartiles": [round(ratios[len(ratios) // 4], 4), round(ratios[-1 - len(ratios) // 4], 4)],
                    "processor_seconds_median_of_one": round(statistics.median(second for _, second in pairs), 4),
                    "repeats": repeats,
                }
            )
    return rows


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--output", type=Path, default=RESULTS / "product_count.json")
    options = parser.parse_args()
    rows = measure(options.products, options.repeats, options.batch_sizes)
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version()}
    met = all(row["ratio_median"] <= TARGET for row in rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"measured": rows, "target": TARGET, "met": met, **about}, indent=2)
    options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
