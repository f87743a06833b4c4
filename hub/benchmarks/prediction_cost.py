"""
What one prediction costs against the bare vision tower: `python -m hub.benchmarks.prediction_cost`.

B/16+ at 240 pixels with random weights, 4 photographs remembered, the text side stored. Both are run in turn in one
process, so that a noisy machine slows both; the figure is the median of the paired ratios.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from hub.mini_clip.small_clip import byte_tokenizer
from modeling_anople import AnoPLeModel


RESULTS = Path(__file__).parent / "results"


def b16_plus_config(vocabulary: int, end_token: int) -> CLIPConfig:
    """Describe open_clip's ViT-B-16-plus-240 (paper.md 4.5)."""
    vision = {
        "hidden_size": 896,
        "intermediate_size": 3584,
        "num_hidden_layers": 12,
        "num_attention_heads": 14,
        "image_size": 240,
        "patch_size": 16,
        "hidden_act": "gelu",
        "projection_dim": 640,
    }
    text = {
        "hidden_size": 640,
        "intermediate_size": 2560,
        "num_hidden_layers": 12,
        "num_attention_heads": 10,
        "hidden_act": "gelu",
        "projection_dim": 640,
        "vocab_size": vocabulary,
        "eos_token_id": end_token,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=640)


def make_detector(shots: int = 4, classes: int = 2) -> AnoPLeModel:
    """Build a B/16+ sized detector with random weights and a filled memory."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    clip = CLIPModel(b16_plus_config(len(tokenizer), tokenizer.eos_token_id)).eval()
    model = AnoPLeModel.from_clip(clip, [f"product {number}" for number in range(classes)], tokenizer=tokenizer)
    for class_id in range(classes):
        photographs = torch.randn(shots, 3, 240, 240)
        model.remember(photographs, class_id)
        model.calibrate(photographs, class_id)
    return model


def keep_table(file: Path, title: str, text: str) -> None:
    """Print a table and write it under its title."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# {title}\n\n{text}", encoding="utf-8")
    print(text)


def paired_ratios(
    first: Callable, second: Callable, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, float]]:
    """Time both in turn; seconds of each pair."""
    pairs = []
    for number in range(repeats + 2):
        order = (first, second) if number % 2 else (second, first)
        seconds = {}
        for call in order:
            start = clock()
            call()
            seconds[call] = clock() - start
        if number >= 2:  # the first two warm caches up
            pairs.append((seconds[first], seconds[second]))
    return pairs


@torch.inference_mode()
def measure(repeats: int, batch_sizes: list[int]) -> list[dict]:
    """Measure the ratio for each batch size."""
    model, rows = make_detector(), []
    for batch in batch_sizes:
        pixels, class_ids = torch.randn(batch, 3, 240, 240), torch.arange(batch) % 2
        pairs = paired_ratios(
            lambda pixels=pixels, class_ids=class_ids: model(pixels, class_ids=class_ids),
            lambda pixels=pixels: model.clip.vision_model(pixels),
            repeats,
        )
        ratios = sorted(first / second for first, second in pairs)
        rows.append(
            {
                "batch": batch,
                "ratio_median": round(statistics.median(ratios), 4),
                "ratio_quartiles": [round(ratios[len(ratios) // 4], 4), round(ratios[-1 - len(ratios) // 4], 4)],
                "bare_seconds_median": round(statistics.median(second for _, second in pairs), 4),
                "repeats": repeats,
            }
        )
    return rows


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    rows = measure(options.repeats, options.batch_sizes)
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"measured": rows, **about}, indent=2)
    (RESULTS / "prediction_cost.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
