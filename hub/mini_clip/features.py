"""Frozen patch features to compare: raw pixels, a hand-made Gabor bank, and the vision tower of any CLIP checkpoint.

Each kind is a function: images (batch, 3, 224, 224) within 0 and 1 -> list over layers of (batch, 196, width).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from modeling_anople.backbone_anople import clip_source
from modeling_anople.configuration_anople import AnoPLeConfig
from modeling_anople.prompting_anople import encode_image

from .patch_statistics import DIMENSION_WEIGHTS, PATCH, patch_statistics
from .small_clip import write_small_clip


PatchFeatures = Callable[[Tensor], list[Tensor]]

SIDE = 224
GRID = SIDE // PATCH


def make_features(kind: str, normals: Tensor | None = None) -> PatchFeatures:
    """
    Build one kind of patch features.

    Args:
        kind: `rgb`, `gabor`, `random` (an untrained CLIP), `mini` (the embedded CLIP), or the folder of a CLIP checkpoint.
        normals: uint8 (images, 3, 224, 224), good training photographs; `gabor` is standardized over their patches.

    Raises:
        ValueError: for an unknown kind, a CLIP that does not see 14 x 14 patches of 224 pixels, or `gabor` without normals.
    """
    if kind == "rgb":
        return rgb_features
    if kind == "gabor":
        return standardized(gabor_features, normals, weights=DIMENSION_WEIGHTS)
    if kind == "random":
        with TemporaryDirectory() as folder:
            return clip_features(write_small_clip(Path(folder), image_size=SIDE))
    folder = Path(clip_source(kind))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"features {kind!r}: {folder} holds no CLIP checkpoint (no config.json); give mini, rgb, gabor, random or "
            "the folder of one."
        )
    return clip_features(folder)


def rgb_features(images: Tensor) -> list[Tensor]:
    """Take the raw 16 x 16 x 3 pixels of each patch, minus 0.5: one layer, 768 wide."""
    return [_patches(images - 0.5).flatten(2)]


def gabor_features(images: Tensor) -> list[Tensor]:
    """Describe each patch by hand-made statistics of texture and color, see `hub.mini_clip.patch_statistics`: one layer, 54 wide."""
    return [patch_statistics(images)]


def standardized(function: PatchFeatures, normals: Tensor | None, *, weights: Tensor | float = 1.0) -> PatchFeatures:
    """
    Give every dimension mean 0 over all patches of `normals` (uint8) and the weights as standard deviations.

    Raises:
        ValueError: without any normals.
    """
    if normals is None or not len(normals):
        raise ValueError("these features are standardized over good training photographs and got none: give normals.")
    known = extract(function, normals)
    moments = [(layer.mean((0, 1)), layer.std((0, 1), correction=0).clamp(min=1e-6)) for layer in known]

    def features(images: Tensor) -> list[Tensor]:
        return [(layer - mean) / std * weights for layer, (mean, std) in zip(function(images), moments, strict=True)]

    return features


def clip_features(folder: Path) -> PatchFeatures:
    """
    Take the residual stream after the blocks that AnoPLe remembers by default, without prompts.

    Images are normalized with the mean and standard deviation of the checkpoint's own image processor.

    Raises:
        ValueError: if the tower does not see 14 x 14 patches of 224 pixels.
    """
    config = CLIPConfig.from_pretrained(folder)
    vision = config.vision_config
    if (vision.image_size, vision.patch_size) != (SIDE, PATCH):
        raise ValueError(
            f"{folder} sees {vision.image_size} pixels in patches of {vision.patch_size}; the protocol needs a CLIP with "
            f"{SIDE} pixels in patches of {PATCH}."
        )
    layers = tuple(AnoPLeConfig(clip_config=config).memory_layers)
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    return tower_features(clip, layers, mean=processor.image_mean, std=processor.image_std)


def tower_features(clip: CLIPModel, layers: Sequence[int], *, mean: list[float], std: list[float]) -> PatchFeatures:
    """Take the residual stream of a CLIP's vision tower after the blocks `layers`, without prompts."""
    mean, std = (torch.tensor(values, device=clip.device).view(3, 1, 1) for values in (mean, std))

    @torch.no_grad()
    def features(images: Tensor) -> list[Tensor]:
        intermediate = encode_image(clip, (images.to(clip.device) - mean) / std, out_indices=layers).intermediate
        return [intermediate[layer].float().cpu() for layer in layers]

    return features


def extract(function: PatchFeatures, images: Tensor, *, batch_size: int = 8) -> list[Tensor]:
    """
    Compute features of uint8 images (images, 3, 224, 224) batch by batch: list of (images, 196, width).

    Raises:
        ValueError: if the function answers with another number of images or patches.
    """
    batches = [function(part.float() / 255) for part in images.split(batch_size)]
    layers = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    expected = (len(images), GRID**2)
    if wrong := [tuple(layer.shape) for layer in layers if layer.ndim != 3 or tuple(layer.shape[:2]) != expected]:
        raise ValueError(f"features have shapes {wrong}; return ({expected[0]}, {expected[1]}, width) for each layer.")
    return layers


def _patches(images: Tensor) -> Tensor:
    """Cut (batch, channels, 224, 224) into patches: (batch, 196, channels, 256)."""
    cut = images.unflatten(3, (GRID, PATCH)).unflatten(2, (GRID, PATCH))
    # (batch, channels, rows, 16, columns, 16) -> (batch, rows, columns, channels, 16, 16)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)


__all__ = [
    "GRID",
    "SIDE",
    "PatchFeatures",
    "clip_features",
    "extract",
    "gabor_features",
    "make_features",
    "rgb_features",
    "standardized",
    "tower_features",
]
