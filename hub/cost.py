"""What one prediction costs on this machine's CPU, measured."""

import statistics
import time

import numpy as np
import torch
from PIL import Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor


def measure_cost(
    model: AnoPLeModel, processor: AnoPLeProcessor, *, repeats: int = 20, size: tuple[int, int] = (640, 480)
) -> str:
    """
    Time single photographs from picture to full-size map, and say it in two sentences.

    Args:
        repeats: photographs timed, after three that warm caches up.
        size: (width, height) of a photograph.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    photograph, name = Image.fromarray(pixels), processor.class_names[0]
    model, seconds = model.to("cpu").eval(), []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            start = time.perf_counter()
            outputs = model(**processor(images=photograph, class_names=name))
            processor.post_process_anomaly_detection(outputs, target_sizes=[size[::-1]])
            seconds.append(time.perf_counter() - start)
    quartiles = statistics.quantiles(seconds[3:], n=4)
    clip = sum(weight.numel() for weight in model.clip.parameters())
    own = sum(weight.numel() for weight in model.parameters()) - clip
    threads = torch.get_num_threads()
    return (
        f"{_milliseconds(quartiles[1])} for one photograph of {size[0]} x {size[1]} pixels from picture to heat map (median "
        f"of {repeats}; the middle half took {_milliseconds(quartiles[0])} to {_milliseconds(quartiles[2])}), on "
        f"{threads} CPU {'thread' if threads == 1 else 'threads'} with torch {torch.__version__}. The CLIP has "
        f"{clip / 1e6:.1f} million weights, prompts and decoder {own / 1e6:.2f} million."
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


__all__ = ["measure_cost"]
