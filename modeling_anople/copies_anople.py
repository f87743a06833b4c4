"""Moved copies of photographs: to measure how much a score moves, and to remember a product that lies any way round."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .tiling_anople import patch_boxes


MemoryCopies = Literal["none", "quarter_turns", "eighth_turns"]
TURNS = {"none": 1, "quarter_turns": 4, "eighth_turns": 8}


def move(pixels: Tensor, moves: Tensor) -> Tensor:
    """
    Resample photographs (batch, channels, height, width), one affine map (batch, 2, 3) each; the border is mirrored.

    A map leads from places of the result to places of the photograph, both within -1 and 1.
    """
    grid = F.affine_grid(moves, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def disturbed_copies(photograph: Tensor) -> Tensor:
    """
    Move and relight a photograph (3, side, side) a little, as the next one of the same part might be.

    Four copies: shifted by 2 % either way, turned by 2 degrees with 3 % more contrast, enlarged by 3 % with 3 % less.
    None is mirrored: many parts have a side.
    """
    moves = torch.tensor(
        [
            [[1.0, 0.0, 0.04], [0.0, 1.0, 0.04]],
            [[1.0, 0.0, -0.04], [0.0, 1.0, -0.04]],
            [[0.9994, -0.0349, 0.0], [0.0349, 0.9994, 0.0]],
            [[0.97, 0.0, 0.0], [0.0, 0.97, 0.0]],
        ]
    ).to(photograph)
    gains = torch.tensor([1.0, 1.0, 1.03, 0.97]).to(photograph).view(-1, 1, 1, 1)
    return move(photograph.expand(len(moves), -1, -1, -1), moves) * gains


def turns_of(kind: MemoryCopies) -> Tensor:
    """Return the turns (copies, 2, 3) of a photograph that the memory holds, the photograph as it is first."""
    angles = torch.arange(TURNS[kind]) * (2 * math.pi / TURNS[kind])
    rows = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=-1).view(-1, 2, 2)
    return F.pad(rows.round(decimals=6), (0, 1))


def turned_copies(
    pixels: Tensor, kind: MemoryCopies, ignore_masks: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """
    Yield photographs (batch, 3, side, side) as they are, then turned, each time with what is ignored of them.

    Args:
        ignore_masks: (batch, side, side) bool; turned with the photographs.
    """
    for number, turn in enumerate(turns_of(kind)):
        if number == 0:  # not resampled
            yield pixels, ignore_masks
            continue
        turned = move(pixels, turn.to(pixels).expand(len(pixels), -1, -1))
        if ignore_masks is None:
            yield turned, None
            continue
        masks = ignore_masks[:, None].to(pixels)
        yield turned, move(masks, turn.to(masks).expand(len(masks), -1, -1))[:, 0] >= 0.5


def turned_boxes(boxes: Sequence[tuple[int, int, int, int]], grid: int, kind: MemoryCopies) -> Tensor:
    """
    Say which pixels the patches of tiles (left, top, right, bottom), and of their turned copies, see.

    Returns:
        (copies, tiles, patches, 4) int32 left, top, right, bottom, rounded outwards; of the parts that lie in the tile.
    """
    exact = patch_boxes(boxes, grid)
    if kind == "none":
        return exact[None]
    edges = torch.linspace(-1, 1, grid + 1)
    top, left = torch.meshgrid(edges[:-1], edges[:-1], indexing="ij")
    corners = torch.stack([torch.stack([left + x, top + y], -1) for x in (0, 2 / grid) for y in (0, 2 / grid)], dim=2)
    corners = corners.flatten(0, 1)  # (patches, 4 corners, 2)
    tiles = torch.tensor(boxes, dtype=torch.float32)[:, None]  # (tiles, 1, 4)
    found = [exact]
    for turn in turns_of(kind)[1:]:
        seen = (corners @ turn[:, :2].T).clamp(-1, 1)
        low, high = ((bound + 1) / 2 for bound in (seen.amin(1), seen.amax(1)))  # (patches, 2)
        start, side = tiles[..., :2], tiles[..., 2:] - tiles[..., :2]
        found.append(
            torch.cat(
                [(start + low * side).round(decimals=2).floor(), (start + high * side).round(decimals=2).ceil()],
                dim=-1,
            ).int()
        )
    return torch.stack(found)


__all__ = ["MemoryCopies", "disturbed_copies", "move", "turned_boxes", "turned_copies", "turns_of"]
