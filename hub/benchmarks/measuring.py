"""What benchmarks share: a detector at the paper's size with random weights, times in pairs, and tables."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hub.mini_clip.small_clip import byte_tokenizer
from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor
from modeling_anople.fitting_anople import calibrate_product, remember
from modeling_anople.inference_anople import TiledImage


RESULTS = Path(__file__).parent / "results"
SIDE = 240  # of the paper's backbone, in pixels


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
    processor = processor_of(model.config.class_names)
    for class_id in range(classes):
        know(model, processor, noise(shots, SIDE, seed=class_id), class_id)
    return model


def noise(count: int, side: int, *, seed: int = 0) -> list[Image.Image]:
    """Draw photographs of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


def know(model: AnoPLeModel, processor: AnoPLeProcessor, photographs: list[Image.Image], class_id: int = 0) -> None:
    """Let a product know photographs as wholes, however alike they are, and fit its threshold."""
    images = [TiledImage.of(photograph, processor, None) for photograph in photographs]
    remember(model, images, class_id)
    calibrate_product(model, images, class_id)


def detector_of(model: AnoPLeModel, processor: AnoPLeProcessor, **options) -> AnomalyDetectionPipeline:
    """Put model and processor together, where the model is."""
    return AnomalyDetectionPipeline(model, processor=processor, device=model.device, **options)


def processor_of(names: list[str], side: int = SIDE) -> AnoPLeProcessor:
    """The processor of the B/16+ sized detector."""
    images = CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
    return AnoPLeProcessor(images, byte_tokenizer(), class_names=names)


def write_jpeg(path: Path) -> str:
    """Write smooth noise of 900 x 900, and return the path."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((900, 900)).save(path)
    return str(path)


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


def timed(
    first: Callable, second: Callable, repeats: int, device: torch.device = torch.device("cpu")
) -> list[tuple[float, float]]:
    """Pairs of processor seconds; on a GPU pairs of seconds until it has done its work."""
    return paired_ratios(first, second, repeats, clock=time.process_time if device.type == "cpu" else wait_and_look)


def wait_and_look() -> float:
    """Read the wall's clock once the GPU has nothing left to do."""
    torch.cuda.synchronize()
    return time.perf_counter()


def row(what: str, against: str, pairs: list[tuple[float, float]], target: float | None, note: str = "") -> dict:
    """Sum pairs up."""
    ratios = sorted(first / second for first, second in pairs)
    if len(pairs) > 1:
        seconds = statistics.median(second for _, second in pairs)
        note = f"{seconds:.3f} s for {against}{'; ' if note else ''}{note}"
    return {
        "what": what,
        "against": against,
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
        "target": target,
        "pairs": len(ratios),
        "note": note,
    }


def keep_table(file: Path, title: str, text: str) -> None:
    """Print a table and write it under its title."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# {title}\n\n{text}", encoding="utf-8")
    print(text)
