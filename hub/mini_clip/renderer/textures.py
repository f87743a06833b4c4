"""Random numbers from a passed generator, and tiles of random texture: any point of the plane can be looked up."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


# --- Random numbers from a passed generator ---


Item = TypeVar("Item")


def uniform(generator: Generator, low: float, high: float, shape: Sequence[int] = ()) -> Tensor:
    """Draw numbers between `low` and `high`."""
    return low + (high - low) * torch.rand(tuple(shape), generator=generator)


def log_uniform(generator: Generator, low: float, high: float, shape: Sequence[int] = ()) -> Tensor:
    """Draw numbers whose logarithms are uniform."""
    return low * (high / low) ** torch.rand(tuple(shape), generator=generator)


def chance(generator: Generator, probability: float | Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Draw True with a probability."""
    return torch.rand(tuple(shape), generator=generator) < probability


def choice(generator: Generator, items: Sequence[Item]) -> Item:
    """Draw one item."""
    return items[int(torch.randint(len(items), (), generator=generator))]


# --- Tiles of random texture: fractal noise, fibers, cells, ridges, speckle. Any point of the plane can be looked up ---


KINDS = ("cloud", "grain", "fiber", "cells", "ridges", "speckle", "rings")


def fractal(generator: Generator, size: int, *, slope: float, stretch: float, angle: float) -> Tensor:
    """Draw periodic noise (size, size) of unit variance whose amplitude falls with frequency to the power -`slope`.

    `stretch` above 1 lengthens it along `angle` (radians), as wood fibers or brushed metal are.
    """
    spectrum = torch.fft.rfft2(torch.randn(size, size, generator=generator))
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    frequency = torch.sqrt((along * stretch) ** 2 + across**2).clamp(min=2 / size)
    return _standard(torch.fft.irfft2(spectrum * frequency**-slope, s=(size, size)))


def cells(generator: Generator, size: int, *, count: int, ridged: bool) -> Tensor:
    """Draw periodic cells (size, size) of unit variance: distance to the nearest of `count` random points.

    `ridged` shows the walls between cells instead (Worley, "A Cellular Texture Basis Function", SIGGRAPH 1996).
    """
    side = size // 2  # cells are smooth: half the resolution will do
    points, steps = torch.rand(count, 2, generator=generator), (torch.arange(side) + 0.5) / side
    rows, columns = ((steps[:, None] - points[:, axis] + 0.5).remainder(1) - 0.5 for axis in (0, 1))
    squares = (rows**2)[:, None] + (columns**2)[None]  # (side, side, count)
    nearest = squares.topk(2, largest=False).values.sqrt()
    field = nearest[..., 1] - nearest[..., 0] if ridged else nearest[..., 0]
    return _standard(F.interpolate(field[None, None], size=(size, size), mode="bilinear")[0, 0])


def draw_tile(kind: str, generator: Generator, size: int) -> Tensor:
    """Draw a tile (size, size) of one of `KINDS`, of zero mean and unit variance."""
    angle = float(uniform(generator, 0, math.pi))
    if kind in ("cells", "rings"):
        count = int(20 * 20 ** float(uniform(generator, 0, 1)))
        return cells(generator, size, count=count, ridged=kind == "rings")
    slope = {"cloud": 1.6, "grain": 0.5, "fiber": 0.9, "ridges": 1.4, "speckle": 0.9}[kind]
    stretch = float(uniform(generator, 6, 30)) if kind == "fiber" else float(uniform(generator, 1, 1.6))
    field = fractal(generator, size, slope=slope + float(uniform(generator, -0.3, 0.3)), stretch=stretch, angle=angle)
    if kind == "ridges":
        field = -field.abs().sqrt()
    elif kind == "speckle":
        field = (field - float(uniform(generator, 1, 2))).clamp(min=0)
    return _standard(field)


def _standard(field: Tensor) -> Tensor:
    return (field - field.mean()) / field.std().clamp(min=1e-6)


class TileBank:
    """A stock of tiles, so that a texture costs one look-up, not one transform."""

    def __init__(self, generator: Generator, *, per_kind: int = 8, size: int = 256):
        self.per_kind, self.size = per_kind, size
        kinds = [kind for kind in KINDS for _ in range(per_kind)]
        self.tiles = torch.stack([draw_tile(kind, generator, size) for kind in kinds])  # (tiles, size, size)

    def pick(self, generator: Generator, kinds: list[tuple[str, ...]]) -> Tensor:
        """Pick a tile (len(kinds),) for each product, out of the kinds that suit it."""
        numbers = [KINDS.index(choice(generator, suitable)) * self.per_kind for suitable in kinds]
        return torch.tensor(numbers) + torch.randint(self.per_kind, (len(kinds),), generator=generator)

    def look_up(self, tiles: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Read tiles (images,) at places `u`, `v` (images, height, width), of which one unit is one tile."""
        grid = torch.stack([u, v], dim=-1).remainder_(1).mul_(2).sub_(1)
        picked = self.tiles[tiles][:, None]
        return F.grid_sample(picked, grid, padding_mode="border", align_corners=False)[:, 0]
