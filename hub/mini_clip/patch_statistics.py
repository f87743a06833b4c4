"""
Hand-made statistics of patches, which the early blocks learn to know: edge energies over four octaves, and colors.

As MaskFeat does with HOG (Wei et al., CVPR 2022). How they are pooled and weighted was chosen on the held-out drawn
products of `hub.mini_clip.measure`, where log energies averaged over a patch told defects better than their maxima, and
color wanted more weight than its few dimensions give it.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .renderer.scenes import brightness


PATCH = 16
WAVELENGTHS = (3.0, 4.24)  # pixels, in each of OCTAVES halvings of the picture
OCTAVES = 4
ANGLES = 6
SIDE = 13  # of a filter in pixels
FLOOR = 0.04  # energy below which texture is noise
COLOR_WEIGHT = 2.5
COLORS = 6
TARGETS = OCTAVES * len(WAVELENGTHS) * ANGLES + COLORS
DIMENSION_WEIGHTS = torch.tensor([1.0] * (TARGETS - COLORS) + [COLOR_WEIGHT] * COLORS)


def gabor_pair(side: int, wavelength: float, angle: float, center: tuple[float, float]) -> list[Tensor]:
    """Return an even and an odd wave (side, side) in a Gaussian window around `center` (row, column)."""
    steps = torch.arange(side) + 0.5
    y, x = (steps - center[0])[:, None], (steps - center[1])[None, :]
    window = torch.exp(-(x**2 + y**2) / (2 * (0.5 * wavelength) ** 2))
    phase = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength
    return [wave - wave.mean() for wave in (window * phase.cos(), window * phase.sin())]


@cache
def gabor_filters() -> Tensor:
    """Return even and odd filters (2 x waves x angles, 1, side, side) of zero mean and unit norm."""
    center = (SIDE / 2, SIDE / 2)
    angles = [number * math.pi / ANGLES for number in range(ANGLES)]
    pairs = [gabor_pair(SIDE, wavelength, angle, center) for wavelength in WAVELENGTHS for angle in angles]
    filters = torch.stack([wave for pair in pairs for wave in pair])
    return (filters / filters.flatten(1).norm(dim=1)[:, None, None])[:, None]


@torch.no_grad()
def patch_statistics(pixels: Tensor) -> Tensor:
    """
    Describe the patches of pictures (images, 3, side, side) from 0 to 1.

    Returns:
        (images, patches, TARGETS): mean log amplitude of each Gabor pair, octave by octave, then mean and standard
        deviation of brightness, red against green, and both against blue.
    """
    layer = brightness(pixels)[:, None]
    filters = gabor_filters().to(pixels)
    parts = []
    for octave in range(OCTAVES):
        stride = 2 if octave < 2 else 1  # fine octaves have pixels to spare
        answers = F.conv2d(F.pad(layer, [SIDE // 2] * 4, mode="reflect"), filters, stride=stride)
        energy = (torch.hypot(answers[:, 0::2], answers[:, 1::2]) + FLOOR).log()
        parts.append(F.avg_pool2d(energy, PATCH // 2**octave // stride))
        layer = F.avg_pool2d(layer, 2)
    # brightness, red against green, both against blue
    mixes = pixels.new_tensor([[0.299, 0.587, 0.114], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]])
    colors = torch.einsum("nchw,kc->nkhw", pixels, mixes)
    level = F.avg_pool2d(colors, PATCH)
    away = colors - level.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    spread = F.avg_pool2d(away**2, PATCH).sqrt()
    return torch.cat([*parts, level, spread], dim=1).flatten(2).transpose(1, 2)


def weigh(statistics: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Standardize statistics (..., TARGETS) and give colors their weight."""
    return (statistics - mean) / spread * DIMENSION_WEIGHTS.to(statistics)


def with_neighbors(targets: Tensor) -> Tensor:
    """Average targets (images, patches, width) over 3 x 3 patches."""
    grid = int(targets.shape[1] ** 0.5)
    laid = targets.transpose(1, 2).unflatten(2, (grid, grid))
    return F.avg_pool2d(laid, 3, stride=1, padding=1, count_include_pad=False).flatten(2).transpose(1, 2)
