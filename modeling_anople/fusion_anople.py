"""How several answers become one: harmonic mean of scores, upsampling and smoothing of maps (paper.md 1.9)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_anople import AnoPLeConfig
from .ignoring_anople import hide
from .outputs_anople import AnoPLeOutput


def harmonic_mean(first: Tensor, second: Tensor, *, floor: float = 1e-6) -> Tensor:
    """Harmonic mean 2ab / (a + b) of two scores within 0 and 1; both are raised to `floor` so that neither can be 0."""
    first, second = first.clamp(floor, 1.0), second.clamp(floor, 1.0)
    return 2 * first * second / (first + second)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps (batch, rows, columns) to another size by bilinear interpolation."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def smooth_maps(maps: Tensor, *, size: int, sigma: float) -> Tensor:
    """
    Upsample maps (batch, rows, columns) to (batch, size, size) and blur them.

    Args:
        sigma: standard deviation of the Gaussian as a share of the side; 0 blurs not. The kernel reaches 3 sigma and the
            border is mirrored.
    """
    maps = resize_maps(maps, (size, size))
    radius = min(math.ceil(3 * sigma * size), size - 1)
    if radius < 1:
        return maps
    places = torch.arange(-radius, radius + 1, device=maps.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / (sigma * size)) ** 2)
    kernel = (kernel / kernel.sum()).to(maps.dtype)
    maps = F.pad(maps.unsqueeze(1), (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(maps, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).squeeze(1)


def fuse_maps(decoder_maps: Tensor, memory_maps: Tensor | None, scales: Tensor | None, config: AnoPLeConfig) -> Tensor:
    """
    Fuse the decoder's and the memory's maps, then upsample and smooth: (batch, image side, image side).

    Args:
        decoder_maps: (batch, rows, columns) probabilities.
        memory_maps: (batch, grid, grid) distances, or `None` where nothing is remembered: the decoder answers alone.
        scales: (batch,) largest distance known from normals, for `fusion_scale="normal"`.
    """
    if memory_maps is None or config.map_fusion == "decoder":
        fused = decoder_maps
    else:
        if scales is not None:
            memory_maps = (memory_maps / scales.to(memory_maps).view(-1, 1, 1)).clamp(max=1)
        memory_maps = resize_maps(memory_maps.float(), decoder_maps.shape[-2:])
        fused = memory_maps if config.map_fusion == "memory" else harmonic_mean(decoder_maps, memory_maps)
    return smooth_maps(fused, size=config.image_size, sigma=config.smoothing)


def fuse_images(text_scores: Tensor, memory_maps: Tensor | None, fused_maps: Tensor, config: AnoPLeConfig) -> Tensor:
    """Fuse the text score of each image with the maximum of a map: (batch,)."""
    maps = memory_maps if config.image_map == "memory" and memory_maps is not None else fused_maps
    peaks = maps.float().flatten(1).amax(1)
    if config.image_fusion == "harmonic":
        return harmonic_mean(text_scores, peaks)
    return peaks if config.image_fusion == "map" else text_scores


def fuse_answers(output: AnoPLeOutput, scales: Tensor | None, ignored: Tensor | None, config: AnoPLeConfig) -> None:
    """
    Fuse text, decoder and memory into raw scores and maps, in place (paper.md 1.9).

    Args:
        output: with `text_scores`, `decoder_maps` and, unless nothing is remembered, `memory_maps`.
        scales: as in [`fuse_maps`].
        ignored: (batch, grid, grid) patches that do not count.
    """
    output.memory_maps, output.decoder_maps = hide(output.memory_maps, ignored), hide(output.decoder_maps, ignored)
    output.anomaly_maps = hide(fuse_maps(output.decoder_maps, output.memory_maps, scales, config), ignored)
    output.image_scores = fuse_images(output.text_scores, output.memory_maps, output.anomaly_maps, config)


__all__ = ["fuse_answers", "fuse_images", "fuse_maps", "harmonic_mean", "resize_maps", "smooth_maps"]
