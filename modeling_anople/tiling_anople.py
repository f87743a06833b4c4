"""Geometry alone: how an image is cut into tiles and their maps become one, and moved copies of images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


# --- Large and long photographs in overlapping square tiles: how they are laid, and how their maps become one ---


LARGEST_COUNT = 64  # of tiles that "auto" lays
MOST_TILES = 4096  # that may be asked for
PIXELS_PER_VIEW_PIXEL = 2.0  # "auto" lays tiles so small that the model sees every second pixel, while it may
OVERLAP = 0.25  # of a tile with the next one, at least
SMALLEST_WEIGHT = 1e-3  # at a tile's border, so that a place that one tile alone sees counts too

Tiling = str | tuple[int, int] | list[int] | None


@dataclass(frozen=True)
class Layout:
    """
    Where the tiles of one photograph lie.

    Args:
        size: (height, width) of the photograph.
        side: of a tile, in its pixels.
        boxes: left, top, right, bottom of each; they cover the photograph, and may reach beyond it where that is
            smaller than a tile.
    """

    size: tuple[int, int]
    side: int
    boxes: tuple[tuple[int, int, int, int], ...]


def tiling_text(tiling: Tiling) -> str | None:
    """
    Write a tiling as the config keeps it: "auto", "ROWS,COLUMNS" or `None`.

    Raises:
        ValueError: for anything else, or more than 4096 tiles.
    """
    if tiling is None or tiling in ("none", ""):
        return None
    if tiling == "auto":
        return "auto"
    parts = tiling.split(",") if isinstance(tiling, str) else list(tiling) if isinstance(tiling, (tuple, list)) else []
    try:
        rows, columns = (int(part) for part in parts)
    except (ValueError, TypeError, OverflowError):
        rows = columns = 0
    if rows < 1 or columns < 1:
        raise ValueError(f"tiling must be 'auto', rows and columns as '2,8' or (2, 8), or None; got {tiling!r}.")
    if rows * columns > MOST_TILES:
        raise ValueError(f"tiling {rows},{columns} would be {rows * columns} tiles: at most {MOST_TILES} can be had.")
    return f"{rows},{columns}"


def plan_tiles(size: tuple[int, int], tiling: Tiling, image_size: int) -> Layout | None:
    """
    Lay square tiles over a photograph, evenly, each overlapping the next by a quarter or more.

    Rows and columns are taken as they are given, and tiles are as large as it takes to cover the photograph. "auto"
    takes tiles of twice the side that the model sees or, where that would need more than 64 of them, the smallest that
    need no more; a photograph that fits into one tile is not cut.

    Args:
        size: (height, width) of the photograph.
        tiling: as in [`tiling_text`].
        image_size: side of the square that the model sees.

    Returns:
        The layout, or `None` for the photograph as a whole.
    """
    text, (height, width) = tiling_text(tiling), size
    if text is None:
        return None
    if text != "auto":
        rows, columns = map(int, text.split(","))
        side = max(_side_for(height, rows), _side_for(width, columns))
        return _lay(size, side, rows, columns)
    side = math.ceil(PIXELS_PER_VIEW_PIXEL * image_size)
    if max(size) <= side:
        return None
    while _count_for(height, side) * _count_for(width, side) > LARGEST_COUNT:
        side += max(1, side // 100)
    return _lay(size, side, _count_for(height, side), _count_for(width, side))


def _side_for(length: int, count: int) -> int:
    return math.ceil(length / (count - (count - 1) * OVERLAP))


def _count_for(length: int, side: int) -> int:
    return 1 if length <= side else 1 + math.ceil((length - side) / (side * (1 - OVERLAP)))


def _lay(size: tuple[int, int], side: int, rows: int, columns: int) -> Layout:
    tops, lefts = _starts(size[0], side, rows), _starts(size[1], side, columns)
    return Layout(size, side, tuple((left, top, left + side, top + side) for top in tops for left in lefts))


def _starts(length: int, side: int, count: int) -> list[int]:
    """Spread tiles evenly from one end to the other; one that is larger is centred; copies are left out."""
    if length <= side or count == 1:
        return [(length - side) // 2]
    return sorted({round(place * (length - side) / (count - 1)) for place in range(count)})


def blend_maps(maps: Tensor, layout: Layout) -> Tensor:
    """
    Join the maps of a photograph's tiles, as a mean weighted by a sin^2 window that fades towards each tile's border.

    Where all say the same, the result does. Its places are as fine as those of the tiles.

    Args:
        maps: (batch, tiles, side, side) in the order of the layout.

    Returns:
        (batch, height, width), in the aspect ratio of the photograph.
    """
    scale = maps.shape[-1] / layout.side
    height, width = (max(1, round(length * scale)) for length in layout.size)
    down, across = layout.size[0] / height, layout.size[1] / width  # photograph's pixels per place
    total = maps.new_zeros(len(maps), height, width, dtype=torch.float32)
    weight = maps.new_zeros(height, width, dtype=torch.float32)
    for number, (left, top, _, _) in enumerate(layout.boxes):
        rows, down_at = _places(top, layout.side, down, height)
        columns, across_at = _places(left, layout.side, across, width)
        y, x = torch.meshgrid(down_at.to(maps.device), across_at.to(maps.device), indexing="ij")
        window = _fade(y) * _fade(x)
        grid = (torch.stack([x, y], dim=-1) * 2 - 1).expand(len(maps), -1, -1, -1)
        tile = maps[:, number : number + 1].float()
        tile = F.grid_sample(tile, grid, padding_mode="border", align_corners=False)[:, 0]
        total[:, rows, columns] += window * tile
        weight[rows, columns] += window
    return total / weight


def _places(start: int, side: int, step: float, length: int) -> tuple[slice, Tensor]:
    """Say which places of an axis a tile covers, and where in the tile, within 0 and 1, their centers lie."""
    first = max(0, math.ceil(start / step - 0.5))
    last = min(length, math.floor((start + side) / step - 0.5) + 1)
    centers = (torch.arange(first, last, dtype=torch.float32) + 0.5) * step
    return slice(first, last), (centers - start) / side


def _fade(places: Tensor) -> Tensor:
    return torch.sin(math.pi * places).square() + SMALLEST_WEIGHT


def patch_boxes(boxes: Sequence[tuple[int, int, int, int]], grid: int) -> Tensor:
    """
    Say which pixels each of the `grid` x `grid` patches of tiles (left, top, right, bottom) sees.

    Returns:
        (tiles, patches, 4) left, top, right, bottom, in reading order; int32, rounded outwards.
    """
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    places = torch.stack([columns, rows, columns + 1, rows + 1], dim=-1).flatten(0, 1)  # (patches, 4)
    tiles = torch.tensor(boxes)[:, None]  # (tiles, 1, 4)
    scaled = places * (tiles[..., 2:] - tiles[..., :2]).repeat(1, 1, 2)
    seen = torch.cat([scaled[..., :2] // grid, -(-scaled[..., 2:] // grid)], dim=-1)
    return (seen + tiles[..., :2].repeat(1, 1, 2)).int()


# --- Moved copies of photographs: to measure how much a score moves, and to remember a product that lies any way round ---


Rotations = Literal["none", "quarter_turns", "eighth_turns"]
ROTATION_COUNTS = {"none": 1, "quarter_turns": 4, "eighth_turns": 8}


def move(pixels: Tensor, moves: Tensor) -> Tensor:
    """
    Resample photographs (batch, channels, height, width), one affine map (batch, 2, 3) each; the border is mirrored.

    A map leads from places of the result to places of the photograph, both within -1 and 1.
    """
    grid = F.affine_grid(moves, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def jittered_copies(photograph: Tensor) -> Tensor:
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


def rotations_of(kind: Rotations) -> Tensor:
    """Return the turns (copies, 2, 3) of a photograph that the memory holds, the photograph as it is first."""
    angles = torch.arange(ROTATION_COUNTS[kind]) * (2 * math.pi / ROTATION_COUNTS[kind])
    rows = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=-1).view(-1, 2, 2)
    return F.pad(rows.round(decimals=6), (0, 1))


def rotated_copies(
    pixels: Tensor, kind: Rotations, ignore_masks: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """
    Yield photographs (batch, 3, side, side) as they are, then turned, each time with what is ignored of them.

    Args:
        ignore_masks: (batch, side, side) bool; turned with the photographs.
    """
    for number, turn in enumerate(rotations_of(kind)):
        if number == 0:  # not resampled
            yield pixels, ignore_masks
            continue
        turned = move(pixels, turn.to(pixels).expand(len(pixels), -1, -1))
        if ignore_masks is None:
            yield turned, None
            continue
        masks = ignore_masks[:, None].to(pixels)
        yield turned, move(masks, turn.to(masks).expand(len(masks), -1, -1))[:, 0] >= 0.5


def rotated_boxes(boxes: Sequence[tuple[int, int, int, int]], grid: int, kind: Rotations) -> Tensor:
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
    for turn in rotations_of(kind)[1:]:
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


__all__ = [
    "Layout",
    "Rotations",
    "Tiling",
    "blend_maps",
    "jittered_copies",
    "move",
    "patch_boxes",
    "plan_tiles",
    "tiling_text",
    "rotated_boxes",
    "rotated_copies",
    "rotations_of",
]
