"""Vision transformers with random weights, small and of every kind that a memory may look through."""

import json
from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)


MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SIZE = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2}
WIDE = {**SIZE, "intermediate_size": 48}
SQUARE = {"image_size": 28, "patch_size": 7}  # a grid of 4 x 4
KINDS = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZE, **SQUARE, mlp_ratio=2, layerscale_value=1.0)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SIZE, **SQUARE, mlp_ratio=2, layerscale_value=1.0, num_register_tokens=3)
    ),
    "dinov3_vit": lambda: DINOv3ViTModel(DINOv3ViTConfig(**WIDE, **SQUARE, num_register_tokens=3)),
    "siglip_vision_model": lambda: SiglipVisionModel(SiglipVisionConfig(**WIDE, **SQUARE)),
    "siglip2_vision_model": lambda: Siglip2VisionModel(Siglip2VisionConfig(**WIDE, patch_size=7, num_patches=16)),
    "clip_vision_model": lambda: CLIPVisionModel(CLIPVisionConfig(**WIDE, **SQUARE)),
}
LEADING = {
    "dinov2": 1,
    "dinov2_with_registers": 4,
    "dinov3_vit": 4,
    "clip_vision_model": 1,
}  # class and register tokens


def make_encoder(kind: str = "dinov2", seed: int = 0) -> PreTrainedModel:
    """Draw a vision transformer, with weights so large that a wrong place or position shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[kind]().eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def encoder_options(kind: str = "dinov2", side: int = 28) -> dict:
    """Return keywords of `from_clip` for a memory encoder that was never saved."""
    return {
        "memory_encoder": make_encoder(kind),
        "memory_image_size": side,
        "memory_image_mean": MEAN,
        "memory_image_std": STD,
    }


def write_encoder(folder: Path, kind: str = "dinov2", seed: int = 0, license: str | None = None) -> Path:
    """Save one as it lies on the Hub."""
    make_encoder(kind, seed).save_pretrained(folder)
    facts = {"image_mean": MEAN, "image_std": STD, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts), encoding="utf-8")
    if license:
        (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n\n# An encoder\n", encoding="utf-8")
    return folder
