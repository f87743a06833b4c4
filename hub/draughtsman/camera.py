"""The camera: exposure, focus, sensor noise and JPEG."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .draws import log_uniform


def brightness(pictures: Tensor) -> Tensor:
    """Return the luma (images, height, width) of pictures (images, 3, height, width), after ITU-R BT.601."""
    return (pictures * pictures.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)


def expose(colour: Tensor, gain: Tensor) -> Tensor:
    """Apply gains (images, 3) to colours (images, 3, height, width)."""
    return (colour * gain[:, :, None, None]).clamp_(0, 1)


def focus(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Blur each picture (images, 3, height, width) by its own Gaussian sigma (images,) in pixels, at most 1.5."""
    images, channels = pictures.shape[:2]
    steps = torch.arange(-3, 4, dtype=torch.float)
    kernel = torch.exp(-(steps**2) / (2 * sigma.clamp(min=0.15)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(pictures.reshape(1, images * channels, *pictures.shape[2:]), (3, 3, 3, 3), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=images * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=images * channels).reshape(pictures.shape)


def sense(pictures: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Add Gaussian sensor noise of sigma (images,) and quantise to 8 bits."""
    noise = torch.randn(pictures.shape, generator=generator)
    return (pictures + noise * sigma[:, None, None, None]).clamp_(0, 1).mul_(255).round_().div_(255)


# ITU-T T.81, annex K: luminance quantisation
LUMINANCE = torch.tensor([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
], dtype=torch.float)  # fmt: skip


def cosine_basis(size: int) -> Tensor:
    """Orthonormal DCT-II (frequencies, places)."""
    places = (torch.arange(size) + 0.5) * math.pi / size
    basis = torch.cos(torch.arange(size)[:, None] * places) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def compress(pictures: Tensor, generator: Generator) -> Tensor:
    """Round the luminance's 8x8 cosine coefficients as JPEG of quality 50 to 95 does; sides are multiples of 8."""
    images, _, height, width = pictures.shape
    quality = log_uniform(generator, 0.1, 1.0, (images, 1, 1, 1, 1))  # factor of the quantisation table
    blocks = brightness(pictures).reshape(images, height // 8, 8, width // 8, 8).transpose(2, 3)
    basis = cosine_basis(8)
    steps = LUMINANCE * quality / 255
    rounded = basis.T @ ((basis @ blocks @ basis.T) / steps).round_().mul_(steps) @ basis
    change = (rounded - blocks).transpose(2, 3).reshape(images, 1, height, width)
    return (pictures + change).clamp_(0, 1)
