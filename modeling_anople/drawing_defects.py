"""Drawing tools, and defects drawn with them on photographs of products, with exact masks.

No defect blends foreign texture through thresholded noise or pastes rectangles: the pseudo-anomalies of training do
that, and an evaluation on drawn defects must show something the detector was not trained on.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage


LIGHT = np.array([-0.55, -0.65, 1.0]) / np.linalg.norm([-0.55, -0.65, 1.0])  # towards the lamp: x right, y down, z up
VISIBLE = 6.0  # grey levels; a smaller change does not stand out from sensor noise
ATTEMPTS = 40


def antialiased(
    shape: tuple[int, int], *, polygons: Sequence[np.ndarray] = (), lines: Sequence[np.ndarray] = (), width: float = 1
) -> np.ndarray:
    """Draw polygons and polylines with soft edges.

    Points are (points, 2) arrays of x and y in pixels and `width` is the lines' width in pixels. Returns (height,
    width) float32 from 0 to 1.
    """
    picture, stroke = Image.new("L", (2 * shape[1], 2 * shape[0])), max(1, round(2 * width))
    draw = ImageDraw.Draw(picture)
    for points in polygons:
        draw.polygon([tuple(point) for point in 2 * points - 0.5], fill=255)
    for points in lines:
        draw.line([tuple(point) for point in 2 * points - 0.5], fill=255, width=stroke, joint="curve")
    return np.asarray(picture.reduce(2), dtype=np.float32) / 255


def smooth_noise(generator: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Draw (height, width) float32 noise of about unit variance that varies over `cells` (rows, columns) of the frame."""
    grid = generator.standard_normal((cells[0] + 2, cells[1] + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)) * 1.3


class Canvas:
    """The frame seen from a product: `x` and `y` (size, size) run from -1 to 1 over the frame in the product's pose."""

    def __init__(self, size: int, *, turn: float, zoom: float, shift: np.ndarray):
        self.size, self.shift, self.pixel = size, shift, 2 / (size * zoom)
        self.pose = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * zoom
        steps = (np.arange(size) + 0.5) * 2 / size - 1
        frame = np.stack(np.meshgrid(steps - shift[0], steps - shift[1]))
        self.x, self.y = np.tensordot(np.linalg.inv(self.pose), frame, 1).astype(np.float32)

    def inside(self, distance: np.ndarray) -> np.ndarray:
        """Return the soft mask (size, size) of the points whose signed distance to an outline is negative."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    def outlines(self, *, polygons: Sequence = (), lines: Sequence = (), width: float = 0.01) -> np.ndarray:
        """Return the soft mask (size, size) of polygons and polylines given as (points, 2) in the product's frame."""
        polygons, lines = (
            [(np.asarray(points) @ self.pose.T + self.shift + 1) * self.size / 2 for points in shapes]
            for shapes in (polygons, lines)
        )
        return antialiased((self.size, self.size), polygons=polygons, lines=lines, width=width / self.pixel)

    def noise(self, generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
        """Draw (size, size) noise of about unit variance with so many cells over the frame."""
        return smooth_noise(generator, (self.size, self.size), (rows, columns))


def blob(generator: np.random.Generator, centre: np.ndarray, radius: float, *, jagged: bool = False) -> np.ndarray:
    """Return a closed outline (points, 2) around `centre`: rounded, or with the corners of broken material."""
    if jagged:
        angles = (np.arange(13) + generator.uniform(0, 0.8, 13)) * 2 * np.pi / 13
        radii = generator.uniform(0.7, 1.25, 13)
    else:
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radii = np.ones(48)
        for order in (1, 2, 3, 4, 5):
            radii += generator.normal(0, 0.2 / order) * np.cos(order * angles + generator.uniform(0, 2 * np.pi))
    stretch, turn = generator.uniform(0.65, 1.0), generator.uniform(0, np.pi)
    x, y = radius * radii * np.cos(angles), stretch * radius * radii * np.sin(angles)
    return centre + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)


def curve(generator: np.random.Generator, start: np.ndarray, length: float, *, bend: float = 1.0) -> np.ndarray:
    """Return a curved path (points, 2) from `start`; `bend` is the usual turn in radians from end to end."""
    turns = (generator.normal(0, bend) + generator.normal(0, bend, 24)) / 24
    heading = generator.uniform(0, 2 * np.pi) + np.cumsum(turns)
    walk = np.stack([np.cos(heading), np.sin(heading)], axis=1) * length / 24
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(walk, axis=0)])


def _pick(generator: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Return the x and y of one True pixel of `mask`."""
    rows, columns = np.nonzero(mask)
    index = generator.integers(len(rows))
    return np.array([columns[index], rows[index]], dtype=np.float64)


def _edge_point(generator: np.random.Generator, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a point on the object's edge and the way out there; any point and way where the object fills the frame."""
    edge = mask & ~ndimage.binary_erosion(mask, border_value=1)
    if mask.mean() > 0.98 or not edge.any():
        angle = generator.uniform(0, 2 * np.pi)
        return _pick(generator, mask), np.array([np.cos(angle), np.sin(angle)])
    point = _pick(generator, edge)
    rows, columns = np.nonzero(mask)
    near = (np.abs(columns - point[0]) < mask.shape[1] / 12) & (np.abs(rows - point[1]) < mask.shape[0] / 12)
    out = point - [columns[near].mean(), rows[near].mean()]
    return point, out / max(np.linalg.norm(out), 1e-6)


def _soft(mask: np.ndarray) -> np.ndarray:
    """Return the mask with soft edges, as the camera sees them."""
    return ndimage.gaussian_filter(mask.astype(np.float32), 0.7)


def _pulled(image: np.ndarray, source: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the image (height, width, channels) read at the rows and columns of `source`."""
    layers = [ndimage.map_coordinates(layer, source, order=1, mode="nearest") for layer in np.moveaxis(image, 2, 0)]
    return np.stack(layers, axis=2)


def _mix(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Lay `colour`, one or one per pixel, over the image with opacity `alpha` (height, width)."""
    return image + alpha[..., None] * (colour - image)


def _offset(alpha: np.ndarray, distance: float) -> np.ndarray:
    """Move `alpha` away from the lamp by a distance in pixels, as a shadow lies."""
    return ndimage.shift(alpha, -LIGHT[1::-1] / np.linalg.norm(LIGHT[:2]) * distance, order=1)


def _behind(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Estimate the picture behind the object: the background carried inwards, or a dark hollow where none is seen."""
    height, width = mask.shape
    outside = ~ndimage.binary_dilation(mask, iterations=3)
    weight = outside.astype(np.float32) if outside.mean() > 0.02 else np.ones_like(mask, dtype=np.float32)
    size = (max(width // 8, 1), max(height // 8, 1))
    sums = [
        ndimage.gaussian_filter(np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BOX)), 4)
        for layer in (*(np.moveaxis(image, 2, 0) * weight), weight)
    ]
    colours = [total / np.maximum(sums[3], 1e-6) for total in sums[:3]]
    behind = np.stack([np.asarray(Image.fromarray(layer).resize((width, height))) for layer in colours], axis=2)
    depth = 1.0 if outside.mean() > 0.02 else generator.uniform(0.15, 0.45)
    return depth * behind + generator.normal(0, 2, (height, width, 1)).astype(np.float32)


def scratch(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw one to three curved scratches one to three pixels wide, lit on one flank."""
    unit = max(mask.shape) / 256
    path = curve(generator, _pick(generator, mask), generator.uniform(40, 120) * unit)
    lines = [path + generator.normal(0, 5 * unit, 2) * number for number in range(generator.integers(1, 4))]
    alpha = antialiased(mask.shape, lines=lines, width=generator.uniform(1.0, 2.5) * unit)
    alpha *= mask * np.clip(0.8 + 0.3 * smooth_noise(generator, mask.shape, (12, 12)), 0, 1)
    grey = float((image.mean(axis=2) * alpha).sum() / max(alpha.sum(), 1e-6))
    contrast = generator.uniform(40, 95) * (1 if grey < 120 else -1)
    return image + contrast * (alpha - 0.45 * _offset(alpha, unit) * mask)[..., None]


def missing_part(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Bite a piece out of the edge, or a hole out of the middle, and show what lies behind it."""
    unit = max(mask.shape) / 256
    radius = generator.uniform(9, 28) * unit
    point, out = _edge_point(generator, mask)
    centre = point - 0.3 * radius * out if generator.uniform() < 0.7 else _pick(generator, mask)
    hole = antialiased(mask.shape, polygons=[blob(generator, centre, radius, jagged=True)])
    hole = ndimage.gaussian_filter(hole, 0.6 * unit) * _soft(ndimage.binary_dilation(mask, iterations=2))
    wall = np.clip(hole - _offset(hole, 3 * unit), 0, 1)  # the flank next to the lamp lies in shadow
    rim = np.clip(_offset(hole, 1.5 * unit) - hole, 0, 1) * mask  # the opposite edge catches the light
    behind = _behind(image, mask, generator) * (1 - 0.35 * ndimage.gaussian_filter(wall, unit))[..., None]
    return _mix(image + 30 * rim[..., None], hole, behind)


def contamination(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Leave crumbs, a hair or drops of liquid on the object."""
    unit, centre, dark = max(mask.shape) / 256, _pick(generator, mask), image[mask].mean() > 95
    kind = generator.choice(["crumbs", "hair", "drops"])
    if kind == "hair":
        path = curve(generator, centre, generator.uniform(50, 130) * unit, bend=2.5)
        alpha = antialiased(mask.shape, lines=[path], width=generator.uniform(1.0, 1.8) * unit)
        colour = generator.uniform(20, 60) * (1 if dark else 4) * np.array([1.0, 0.92, 0.82])
    else:
        count, spread = (generator.integers(8, 45), 10) if kind == "crumbs" else (generator.integers(1, 6), 16)
        centres = centre + generator.normal(0, spread * unit, (count, 2)) * (np.arange(count) > 0)[:, None]
        radii = generator.gamma(3, 0.7, count) * unit if kind == "crumbs" else generator.uniform(4, 10, count) * unit
        spots = [blob(generator, *spot, jagged=kind == "crumbs") for spot in zip(centres, radii, strict=True)]
        alpha = antialiased(mask.shape, polygons=spots)
        relief = alpha - _offset(alpha, 1.5 * unit)  # bright on the flank next to the lamp
        tone = (generator.uniform(60, 130) if dark else 170) * np.array([1.0, 0.84, 0.64])
        colour = (generator.normal(1, 0.12, mask.shape) * (1 + 0.5 * relief))[..., None] * tone
    shaded = image * (1 - 0.35 * ndimage.gaussian_filter(_offset(alpha, 2 * unit), unit))[..., None]
    if kind == "drops":  # a clear lens: dark towards the lamp, bright on the far flank, with a glint
        edge = ndimage.gaussian_filter(alpha, 1.5 * unit)
        glints = [
            blob(generator, at + LIGHT[:2] * size * 0.7, size * 0.2) for at, size in zip(centres, radii, strict=True)
        ]
        colour = image * 0.85 - 130 * (edge - _offset(edge, 3 * unit))[..., None]
        colour += 230 * antialiased(mask.shape, polygons=glints)[..., None]
    return _mix(shaded, 0.9 * alpha, colour)


def discoloured(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shift the hue of a soft-edged spot: burnt, rusty, stained, bleached or turned."""
    unit = max(mask.shape) / 256
    outline = blob(generator, _pick(generator, mask), generator.uniform(9, 34) * unit)
    spot = ndimage.gaussian_filter(antialiased(mask.shape, polygons=[outline]), generator.uniform(1.5, 5) * unit)
    spot *= _soft(mask) * mask * generator.uniform(0.4, 0.95)
    grey = image.mean(axis=2, keepdims=True)
    shades = [0.5 * (image + grey) * tint for tint in ((0.55, 0.42, 0.32), (1.05, 0.72, 0.45), (0.7, 0.85, 1.1))]
    shades += [0.55 * grey + 100, 0.4 * grey + 0.6 * np.roll(image, 1, axis=2)]
    return _mix(image, spot, shades[generator.integers(len(shades))])


def broken(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Break a jagged piece loose, move and turn it a little, and let cracks run on from it."""
    unit = max(mask.shape) / 256
    centre, out = _edge_point(generator, mask)
    radius = generator.uniform(14, 38) * unit
    piece = antialiased(mask.shape, polygons=[blob(generator, centre, radius, jagged=True)])
    piece = piece * _soft(ndimage.binary_dilation(mask))
    way, turn = out * generator.uniform(3, 7) * unit, generator.normal(0, 0.1)
    rows, columns = np.indices(mask.shape, dtype=np.float32)
    x, y = columns - centre[0] - way[0], rows - centre[1] - way[1]
    source = (centre[1] + y * np.cos(turn) - x * np.sin(turn), centre[0] + x * np.cos(turn) + y * np.sin(turn))
    picture = _pulled(np.dstack([image, piece]), source)
    starts = centre + generator.normal(0, 0.3, (generator.integers(1, 4), 2)) * radius - out * radius * 0.6
    rough = generator.normal(0, 1.2 * unit, (25, 2))
    cracks = [curve(generator, start, 1.5 * radius) + rough for start in starts]
    crack = antialiased(mask.shape, lines=cracks, width=generator.uniform(0.8, 1.6) * unit) * mask
    shadow = ndimage.gaussian_filter(_offset(picture[..., 3], unit), 1.5 * unit)
    gap = _behind(image, mask, generator) * (1 - 0.4 * shadow)[..., None]
    return _mix(_mix(_mix(image, 0.7 * crack, 0.25 * image), piece, gap), picture[..., 3], picture[..., :3])


def bent(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Push a part of the object sideways, with the shading of the dent."""
    centre, out = _edge_point(generator, mask)
    reach = generator.uniform(10, 22) * max(mask.shape) / 256
    angle = np.arctan2(out[1], out[0]) + generator.normal(0, 0.7)
    push = np.array([np.cos(angle), np.sin(angle)]) * generator.uniform(0.35, 0.7) * reach * generator.choice([-1, 1])
    rows, columns = np.indices(mask.shape, dtype=np.float32)
    x, y = (columns - centre[0]) / reach, (rows - centre[1]) / reach
    bump = np.exp(-(x**2 + y**2) / 2)
    source = (rows - push[1] * bump, columns - push[0] * bump)
    warped = _pulled(np.dstack([image, mask.astype(np.float32)]), source)
    shade = generator.uniform(0.15, 0.5) * generator.choice([-1, 1]) * (x * LIGHT[0] + y * LIGHT[1]) * bump
    return warped[..., :3] * (1 + shade * warped[..., 3])[..., None]


DEFECTS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "scratch": scratch,
    "missing part": missing_part,
    "contamination": contamination,
    "discoloured": discoloured,
    "broken": broken,
    "bent": bent,
}


def _visible(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the bool mask (height, width) of the visible change, without lone specks and pinholes."""
    change = np.abs(after - before).max(axis=2)
    mask = (ndimage.gaussian_filter(change, 0.8) > VISIBLE) & (change > VISIBLE / 2)
    mask |= ndimage.binary_closing(mask, iterations=2) & (change > 0)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return mask & (sizes >= 5)[labels]


def draw_defect(
    kind: str, image: Image.Image, object_mask: np.ndarray, generator: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Draw one defect of a kind of `DEFECTS` on the object of a photograph.

    `object_mask` is (height, width) bool. Returns the defective RGB photograph and the (height, width) bool mask of
    the visibly changed pixels; all others keep their values. Raises ValueError for an unknown kind, a mask of another
    size and an object too small to carry a visible defect.
    """
    if kind not in DEFECTS:
        raise ValueError(f"Unknown defect {kind!r}: take one of {', '.join(map(repr, DEFECTS))}.")
    if object_mask.shape != (image.height, image.width):
        raise ValueError(
            f"The object mask is {object_mask.shape}, the image {(image.height, image.width)}: match them."
        )
    before = np.asarray(image.convert("RGB"), dtype=np.float32)
    for _ in range(ATTEMPTS if object_mask.any() else 0):
        after = np.clip(np.rint(DEFECTS[kind](before, object_mask.astype(bool), generator)), 0, 255)
        mask = _visible(before, after)
        if 0.0008 <= mask.mean() <= 0.2 and np.abs(after - before)[mask].mean() > 2 * VISIBLE:
            result = np.where(mask[..., None], after, before)
            return Image.fromarray(result.astype(np.uint8)), mask
    raise ValueError(
        f"No visible {kind!r} fits on an object of {int(object_mask.sum())} pixels: give a larger object."
    )
