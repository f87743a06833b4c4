"""Places of a photograph that do not count - serial numbers, fixtures -: what lies there has no influence at all."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .photographs_anople import load_mask


NOTHING = "none"  # an ignore_mask by which all counts
MOSTLY = 0.5  # a patch is ignored where more than this share of it is


def load_ignore_mask(source: Any, size: tuple[int, int]) -> np.ndarray:
    """
    Open a mask of the places to ignore as booleans (height, width); whatever is above 0 is ignored.

    Args:
        source: anything that [`load_photograph`] opens; `"none"`, by which nothing is ignored; or a function of the size.
        size: (height, width) of its photograph.

    Raises:
        ImageError: if it cannot be read or has another size.
    """
    if isinstance(source, str) and source == NOTHING:
        return np.zeros(size, dtype=bool)
    if callable(source):
        return source(size)
    if isinstance(source, np.ndarray) and source.dtype == np.bool_ and source.shape == tuple(size):
        return source
    return load_mask(source, size=size)


def fill_ignored(photograph: Image.Image, mask: np.ndarray) -> Image.Image:
    """
    Replace the ignored pixels of an RGB photograph by what surrounds them, softly.

    Each takes the mean of the nearest square of pixels that holds any which counts, at sizes of 2, 4, 8 and so on (the
    "pull-push" of Gortler et al. 1996, The Lumigraph, section 3.4). What was there before has no influence.
    """
    if not mask.any():
        return photograph
    if mask.all():
        return Image.new("RGB", photograph.size, "grey")
    pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None].float()
    weights = torch.from_numpy(~mask)[None, None].float()
    filled = _pull_push(pixels * weights, weights)
    kept = torch.from_numpy(mask)
    values = torch.where(kept, filled[0].round().clamp(0, 255), pixels[0]).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def _pull_push(sums: Tensor, weights: Tensor) -> Tensor:
    """Fill where weights are 0: sums and weights (1, channels, height, width) -> values."""
    known = sums / weights.clamp(min=1e-12)
    height, width = sums.shape[-2:]
    if bool((weights > 0).all()) or max(height, width) == 1:
        return known
    coarse = _pull_push(*(F.avg_pool2d(part, 2, ceil_mode=True) for part in (sums, weights)))
    coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    return torch.where(weights > 0, known, coarse)


def mask_tensor(mask: np.ndarray | None, side: int) -> Tensor:
    """Bring a mask to the square that the model sees: (side, side), the share of each place that is ignored."""
    if mask is None:
        return torch.zeros(side, side)
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).float() / 255


def ignored_patches(masks: Tensor, grid: int) -> Tensor:
    """Say which patches (batch, grid, grid) are mostly ignored, by masks (batch, side, side)."""
    return F.adaptive_avg_pool2d(masks.float()[:, None], grid)[:, 0] > MOSTLY


def hide(maps: Tensor | None, ignored: Tensor | None) -> Tensor | None:
    """Set maps (batch, rows, columns) to 0 where patches (batch, grid, grid) are ignored."""
    if maps is None or ignored is None:
        return maps
    return maps.masked_fill(F.interpolate(ignored[:, None].float(), size=maps.shape[-2:])[:, 0] > 0, 0)


def clear_ignored(anomaly_map: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Set a map (rows, columns) of any size to 0 where the mask (height, width) of its photograph is set."""
    if mask is None:
        return anomaly_map
    near = Image.fromarray(mask.astype(np.uint8)).resize(anomaly_map.shape[::-1], Image.Resampling.NEAREST)
    return np.where(np.array(near) > 0, 0, anomaly_map).astype(np.float32)


__all__ = ["NOTHING", "clear_ignored", "fill_ignored", "hide", "ignored_patches", "load_ignore_mask", "mask_tensor"]
