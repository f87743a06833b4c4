"""A small set of drawn products, good and defective, to try things on."""

import io
import math
from collections.abc import Callable, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage


# --- Drawing tools, and defects drawn with them on photographs of products, with exact masks ---


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


def blob(generator: np.random.Generator, center: np.ndarray, radius: float, *, jagged: bool = False) -> np.ndarray:
    """Return a closed outline (points, 2) around `center`: rounded, or with the corners of broken material."""
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
    return center + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)


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


def _mix(image: np.ndarray, alpha: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Lay `color`, one or one per pixel, over the image with opacity `alpha` (height, width)."""
    return image + alpha[..., None] * (color - image)


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
    colors = [total / np.maximum(sums[3], 1e-6) for total in sums[:3]]
    behind = np.stack([np.asarray(Image.fromarray(layer).resize((width, height))) for layer in colors], axis=2)
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
    center = point - 0.3 * radius * out if generator.uniform() < 0.7 else _pick(generator, mask)
    hole = antialiased(mask.shape, polygons=[blob(generator, center, radius, jagged=True)])
    hole = ndimage.gaussian_filter(hole, 0.6 * unit) * _soft(ndimage.binary_dilation(mask, iterations=2))
    wall = np.clip(hole - _offset(hole, 3 * unit), 0, 1)  # the flank next to the lamp lies in shadow
    rim = np.clip(_offset(hole, 1.5 * unit) - hole, 0, 1) * mask  # the opposite edge catches the light
    behind = _behind(image, mask, generator) * (1 - 0.35 * ndimage.gaussian_filter(wall, unit))[..., None]
    return _mix(image + 30 * rim[..., None], hole, behind)


def contamination(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Leave crumbs, a hair or drops of liquid on the object."""
    unit, center, dark = max(mask.shape) / 256, _pick(generator, mask), image[mask].mean() > 95
    kind = generator.choice(["crumbs", "hair", "drops"])
    if kind == "hair":
        path = curve(generator, center, generator.uniform(50, 130) * unit, bend=2.5)
        alpha = antialiased(mask.shape, lines=[path], width=generator.uniform(1.0, 1.8) * unit)
        color = generator.uniform(20, 60) * (1 if dark else 4) * np.array([1.0, 0.92, 0.82])
    else:
        count, spread = (generator.integers(8, 45), 10) if kind == "crumbs" else (generator.integers(1, 6), 16)
        centers = center + generator.normal(0, spread * unit, (count, 2)) * (np.arange(count) > 0)[:, None]
        radii = generator.gamma(3, 0.7, count) * unit if kind == "crumbs" else generator.uniform(4, 10, count) * unit
        spots = [blob(generator, *spot, jagged=kind == "crumbs") for spot in zip(centers, radii, strict=True)]
        alpha = antialiased(mask.shape, polygons=spots)
        relief = alpha - _offset(alpha, 1.5 * unit)  # bright on the flank next to the lamp
        tone = (generator.uniform(60, 130) if dark else 170) * np.array([1.0, 0.84, 0.64])
        color = (generator.normal(1, 0.12, mask.shape) * (1 + 0.5 * relief))[..., None] * tone
    shaded = image * (1 - 0.35 * ndimage.gaussian_filter(_offset(alpha, 2 * unit), unit))[..., None]
    if kind == "drops":  # a clear lens: dark towards the lamp, bright on the far flank, with a glint
        edge = ndimage.gaussian_filter(alpha, 1.5 * unit)
        glints = [
            blob(generator, at + LIGHT[:2] * size * 0.7, size * 0.2) for at, size in zip(centers, radii, strict=True)
        ]
        color = image * 0.85 - 130 * (edge - _offset(edge, 3 * unit))[..., None]
        color += 230 * antialiased(mask.shape, polygons=glints)[..., None]
    return _mix(shaded, 0.9 * alpha, color)


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
    center, out = _edge_point(generator, mask)
    radius = generator.uniform(14, 38) * unit
    piece = antialiased(mask.shape, polygons=[blob(generator, center, radius, jagged=True)])
    piece = piece * _soft(ndimage.binary_dilation(mask))
    way, turn = out * generator.uniform(3, 7) * unit, generator.normal(0, 0.1)
    rows, columns = np.indices(mask.shape, dtype=np.float32)
    x, y = columns - center[0] - way[0], rows - center[1] - way[1]
    source = (center[1] + y * np.cos(turn) - x * np.sin(turn), center[0] + x * np.cos(turn) + y * np.sin(turn))
    picture = _pulled(np.dstack([image, piece]), source)
    starts = center + generator.normal(0, 0.3, (generator.integers(1, 4), 2)) * radius - out * radius * 0.6
    rough = generator.normal(0, 1.2 * unit, (25, 2))
    cracks = [curve(generator, start, 1.5 * radius) + rough for start in starts]
    crack = antialiased(mask.shape, lines=cracks, width=generator.uniform(0.8, 1.6) * unit) * mask
    shadow = ndimage.gaussian_filter(_offset(picture[..., 3], unit), 1.5 * unit)
    gap = _behind(image, mask, generator) * (1 - 0.4 * shadow)[..., None]
    return _mix(_mix(_mix(image, 0.7 * crack, 0.25 * image), piece, gap), picture[..., 3], picture[..., :3])


def bent(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Push a part of the object sideways, with the shading of the dent."""
    center, out = _edge_point(generator, mask)
    reach = generator.uniform(10, 22) * max(mask.shape) / 256
    angle = np.arctan2(out[1], out[0]) + generator.normal(0, 0.7)
    push = np.array([np.cos(angle), np.sin(angle)]) * generator.uniform(0.35, 0.7) * reach * generator.choice([-1, 1])
    rows, columns = np.indices(mask.shape, dtype=np.float32)
    x, y = (columns - center[0]) / reach, (rows - center[1]) / reach
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
    kind: str,
    image: Image.Image,
    object_mask: np.ndarray,
    generator: np.random.Generator,
    *,
    attempts: int = ATTEMPTS,
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
    for _ in range(attempts if object_mask.any() else 0):
        after = np.clip(np.rint(DEFECTS[kind](before, object_mask.astype(bool), generator)), 0, 255)
        mask = _visible(before, after)
        if 0.0008 <= mask.mean() <= 0.2 and np.abs(after - before)[mask].mean() > 2 * VISIBLE:
            result = np.where(mask[..., None], after, before)
            return Image.fromarray(result.astype(np.uint8)), mask
    raise ValueError(
        f"No visible {kind!r} fits on an object of {int(object_mask.sum())} pixels: give a larger object."
    )


# --- Defects of a stated size and contrast, to measure which are found ---


WINDOW = 4  # sides of the window that a defect is drawn in, in sizes of the defect
CANVASES = 128, 256  # sides of what it is drawn on, in pixels: the least that is not much smaller than the window
PLACES = 12  # that are tried
SIZED_DEFECTS = (
    "scratch",
    "missing part",
    "contamination",
    "discoloured",
    "broken",
)  # a dent has no contrast of its own
PLACES_SIDE = 256  # of the mask in which a place is looked for
SMALLEST_DEFECT = 3  # pixels
MOST_GAIN = 4.0  # by which a drawn change is made stronger at most
REACHED = 0.8  # of the size and contrast asked for; the border of an object, or white itself, may cut the rest
UNLIKE_BORDER, BORDER_SHARE, ONE_OBJECT = 40, 0.7, 0.8  # grey levels, and shares


def find_object(image: Image.Image) -> np.ndarray:
    """
    Guess where the object of a photograph is: bool (height, width).

    Where one piece stands out from a border of one color it is that piece, without its holes; otherwise (a texture, parts
    that reach beyond the frame) the disc in the middle.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    height, width = pixels.shape[:2]
    rim = max(1, min(height, width) // 50)
    ring = np.ones((height, width), dtype=bool)
    ring[rim:-rim, rim:-rim] = False
    unlike = np.abs(pixels - np.median(pixels[ring], axis=0)).max(axis=2) > UNLIKE_BORDER
    if (~unlike)[ring].mean() >= BORDER_SHARE:
        labels, count = ndimage.label(ndimage.binary_opening(ndimage.binary_fill_holes(unlike), iterations=2))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        if count and sizes.max() >= ONE_OBJECT * sizes.sum() and sizes.max() >= 0.03 * labels.size:
            return labels == 1 + sizes.argmax()
    return central_disc(height, width)


def central_disc(height: int, width: int) -> np.ndarray:
    """Mark the middle of a frame, where an object is if there is one: bool (height, width)."""
    places = (np.indices((height, width)) + 0.5) / np.array([height, width])[:, None, None]
    return np.hypot(*(places - 0.5)) < 0.42


@dataclass
class SizedDefect:
    """
    A change of a photograph, of which copies of several contrasts can be made.

    Args:
        change: float32 (height, width, 3), of one strength, in grey levels.
        mask: bool (height, width), where it is seen.
        left, top: where it begins in the photograph.
    """

    change: np.ndarray
    mask: np.ndarray
    left: int
    top: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in the photograph."""
        return self.left, self.top, self.left + self.mask.shape[1], self.top + self.mask.shape[0]

    def laid_on(self, image: Image.Image, contrast: float) -> Image.Image | None:
        """
        Lay it over an RGB photograph; `None` where so much contrast cannot be had there.

        Args:
            contrast: mean change over the defect, of each pixel's most changed color, as a share of white.
        """
        gain = 255 * contrast / np.abs(self.change[self.mask]).max(axis=1).mean()
        before = np.asarray(image.crop(self.box), dtype=np.float32)
        after = np.clip(np.rint(before + gain * self.change), 0, 255)
        if gain > MOST_GAIN or np.abs(after - before)[self.mask].max(axis=1).mean() < REACHED * 255 * contrast:
            return None
        result = image.copy()
        result.paste(Image.fromarray(after.astype(np.uint8)), (self.left, self.top))
        return result


def draw_sized_defect(
    kind: str,
    image: Image.Image,
    allowed: np.ndarray,
    generator: np.random.Generator,
    *,
    size: float,
    contrasts: Sequence[float],
) -> tuple[SizedDefect, list[Image.Image | None]]:
    """
    Draw one defect of a kind of `DEFECTS` whose longer side is `size` pixels, once at each of some contrasts.

    It is drawn by [`draw_defect`] on a window of the photograph, enlarged or reduced to the size, and put where it lies
    inside what is allowed.

    Args:
        image: RGB photograph.
        allowed: bool (height, width), where it may lie.
        contrasts: see [`SizedDefect.laid_on`].

    Returns:
        The defect, and the photograph with it at each contrast; `None` for one that cannot be had on this photograph.

    Raises:
        ValueError: where none of this size fits.
    """
    best: tuple[SizedDefect, list[Image.Image | None]] | None = None
    if size >= SMALLEST_DEFECT and allowed.any():
        depth, scale = _depth(allowed)
        for _ in range(PLACES):
            column, row = _pick(generator, depth >= min(size / 2, 0.8 * depth.max()))
            center = (column + 0.5) * scale, (row + 0.5) * scale
            if (defect := _sized(kind, image, allowed, center, size, generator)) is None:
                continue
            pictures = [defect.laid_on(image, contrast) for contrast in contrasts]
            if best is None or pictures.count(None) < best[1].count(None):
                best = defect, pictures
            if None not in pictures:
                break
    if best is not None and any(best[1]):
        return best
    raise ValueError(
        f"No {kind!r} of {size:.0f} pixels can be seen on this object: give a larger object, or another size."
    )


def _depth(allowed: np.ndarray) -> tuple[np.ndarray, float]:
    """Say how far places lie inside a mask, in its pixels, and how many of its pixels lie between two places."""
    scale = max(1.0, max(allowed.shape) / PLACES_SIDE)
    size = [max(1, round(length / scale)) for length in allowed.shape[::-1]]
    small = np.asarray(Image.fromarray(allowed).resize(size, Image.Resampling.NEAREST))
    return ndimage.distance_transform_edt(np.pad(small, 1))[1:-1, 1:-1] * scale, scale


def _sized(
    kind: str,
    image: Image.Image,
    allowed: np.ndarray,
    center: tuple[float, float],
    size: float,
    generator: np.random.Generator,
) -> SizedDefect | None:
    """Draw a defect about a place; `None` where it cannot be seen, or is cut."""
    # 1. The window as the painters want it; beyond the frame its last pixels go on.
    pixels, half = np.asarray(image), WINDOW * size / 2
    rows, columns = (
        np.clip(np.arange(math.floor(at - half), math.ceil(at + half)), 0, length - 1)
        for at, length in zip(center[::-1], pixels.shape[:2], strict=True)
    )
    side = CANVASES[len(rows) > 1.4 * CANVASES[0]]
    window = Image.fromarray(pixels[rows[:, None], columns]).resize((side, side), Image.Resampling.BICUBIC)
    try:
        after, marked = draw_defect(kind, window, np.ones((side, side), dtype=bool), generator, attempts=2)
    except ValueError:
        return None
    top, bottom, left, right = _bounds(marked)
    if top == 0 or left == 0 or bottom == side or right == side:  # cut by the window
        return None
    # 2. Its change, of the size that is wanted.
    change = np.asarray(after, dtype=np.float32) - np.asarray(window, dtype=np.float32)
    scale = size / max(bottom - top, right - left)
    shape = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    box = (int(left), int(top), int(right), int(bottom))
    layers = [
        np.asarray(Image.fromarray(layer).resize(shape, Image.Resampling.BILINEAR, box=box))
        for layer in (*np.moveaxis(change, 2, 0), marked.astype(np.float32))
    ]
    # 3. Where it is allowed.
    left, top = (round(at - length / 2) for at, length in zip(center, shape, strict=True))
    left, top = (
        max(0, min(at, whole - length)) for at, whole, length in zip((left, top), image.size, shape, strict=True)
    )
    inside = allowed[top : top + shape[1], left : left + shape[0]]
    if inside.shape != shape[::-1]:
        return None
    mask = (layers[3] > 0.5 * layers[3].max()) & inside  # a thin one is nowhere whole
    if not mask.any():
        return None
    top_, bottom_, left_, right_ = _bounds(mask)
    if max(bottom_ - top_, right_ - left_) < REACHED * size:
        return None
    return SizedDefect(np.stack(layers[:3], axis=2) * inside[..., None], mask, left, top)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of what is marked."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


# --- Photographs of made-up products, drawn from random generators: a small data set without a download ---


class Surface:
    """What the camera sees before the light is on: color 0 to 1, height in units of half a frame, cover and gloss."""

    def __init__(self, cover: np.ndarray, color: Sequence[float], *, gloss: float, shininess: float = 30.0):
        self.cover, self.gloss, self.shininess = cover, gloss, shininess
        self.color = np.broadcast_to(np.asarray(color, dtype=np.float32), (*cover.shape, 3)).copy()
        self.height = np.zeros_like(cover, dtype=np.float32)

    def paint(self, mask: np.ndarray, color: Sequence[float], height: float = 0.0) -> None:
        """Lay a color, raised by a height, over the soft mask (size, size)."""
        self.color += mask[..., None] * (np.asarray(color, dtype=np.float32) - self.color)
        self.height += mask * height

    def shaded(self, light: np.ndarray) -> np.ndarray:
        """Return the lit colors (size, size, 3): ambient and Lambert light and a Blinn-Phong highlight."""
        size = self.cover.shape[0]
        height = ndimage.gaussian_filter(self.height.astype(np.float32), size / 300)
        slope_y, slope_x = np.gradient(height, 2 / size)
        length = np.sqrt(slope_x**2 + slope_y**2 + 1)
        diffuse = np.maximum(light[2] - slope_x * light[0] - slope_y * light[1], 0) / length
        half = (light + [0, 0, 1]) / np.linalg.norm(light + [0, 0, 1])
        glance = np.maximum(half[2] - slope_x * half[0] - slope_y * half[1], 0) / length
        highlight = self.gloss * glance**self.shininess
        return self.color * (0.35 + 0.65 * diffuse / light[2])[..., None] + highlight[..., None]


@dataclass(frozen=True)
class Product:
    """A product: `paint(canvas, design, instance)`, the seed of its design and how it lies before the camera."""

    paint: Callable[[Canvas, np.random.Generator, np.random.Generator], Surface]
    seed: int
    background: tuple[float, float, float] = (0.8, 0.8, 0.78)
    turn: float = 0.02  # largest rotation in radians


def _box(x: float, y: float, width: float, height: float) -> np.ndarray:
    return np.array([x, y]) + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, height / 2]


def _polar(radius: np.ndarray | float, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=-1)


def _disc(x: float, y: float, radius: float) -> np.ndarray:
    return np.array([x, y]) + _polar(radius, np.arange(24) * np.pi / 12)


def _lettering(design: np.random.Generator, letters: int, width: float, height: float) -> list[np.ndarray]:
    """Draw strokes (points, 2) like a printed word about the origin."""
    pitch = width / letters
    return [
        np.stack([design.integers(0, 3, 4) * 0.3 * pitch, (design.integers(0, 3, 4) - 1) * height / 2], axis=1)
        + [number // 2 * pitch - width / 2, 0]
        for number in range(2 * letters)
    ]


def paint_bottle_cap(canvas: Canvas, design: np.random.Generator, instance: np.random.Generator) -> Surface:
    """Paint a crown cap from above: a fluted skirt, printed rings, a star and a word round the rim."""
    flutes, hue, points = design.integers(19, 24), design.uniform(), design.integers(5, 8)
    body, ink = hsv_to_rgb(hue, 0.85, 0.7), hsv_to_rgb((hue + 0.45) % 1, 0.12, 0.92)
    radius, angle = np.hypot(canvas.x, canvas.y), np.arctan2(canvas.y, canvas.x)
    ripple = np.cos(flutes * angle)
    surface = Surface(canvas.inside(radius - 0.76 - 0.024 * ripple), body, gloss=0.35)
    word = [_polar(0.42 - stroke[:, 1], stroke[:, 0]) for stroke in _lettering(design, 20, 2 * np.pi, 0.1)]
    printed = np.maximum(canvas.inside(np.abs(radius - 0.53) - 0.012), canvas.inside(radius - 0.3))
    surface.paint(np.maximum(printed, canvas.outlines(lines=word, width=0.018)), ink)
    star = _polar(np.tile([0.26, 0.11], points), np.arange(2 * points) * np.pi / points)
    surface.paint(canvas.outlines(polygons=[star]), body)
    shoulder = np.clip((radius - 0.56) / 0.2, 0, 1.2)
    surface.height = 0.035 * ripple * shoulder - 0.13 * shoulder**2 + 0.0004 * canvas.noise(instance, 60, 60)
    return surface


def paint_gear(canvas: Canvas, design: np.random.Generator, instance: np.random.Generator) -> Surface:
    """Paint a turned steel gear: teeth, a web with holes and a keyed bore."""
    teeth, holes = design.integers(22, 30), design.integers(5, 7)
    steps = (np.arange(teeth)[:, None] + np.array([-0.28, -0.13, 0.13, 0.28])) * 2 * np.pi / teeth
    outline = _polar(np.tile([0.68, 0.8, 0.8, 0.68], teeth), steps.ravel())
    bores = [_disc(*_polar(0.39, number * 2 * np.pi / holes), 0.085) for number in range(holes)]
    bore = canvas.outlines(polygons=[*bores, _disc(0, 0, 0.13), _box(0, -0.12, 0.08, 0.13)])
    surface = Surface(canvas.outlines(polygons=[outline]) * (1 - bore), (0.55, 0.56, 0.58), gloss=0.1)
    radius, angle = np.hypot(canvas.x, canvas.y), np.arctan2(canvas.y, canvas.x)
    grooves = np.interp(radius, np.linspace(0, 1.5, 220), instance.normal(0, 1, 220)).astype(np.float32)
    sheen = 0.5 + 0.5 * np.cos(2 * (angle - instance.normal(0.9, 0.1)))  # turned metal shines in two opposite sectors
    surface.color *= (0.86 + 0.3 * sheen**2 + 0.035 * grooves + 0.015 * canvas.noise(instance, 40, 40))[..., None]
    surface.height = 0.06 * surface.cover - 0.04 * canvas.inside(np.abs(radius - 0.39) - 0.15)
    return surface


def paint_woven_fabric(canvas: Canvas, design: np.random.Generator, instance: np.random.Generator) -> Surface:
    """Paint a plain-weave cloth of two slightly different yarns."""
    count, hue = design.integers(24, 30), design.uniform()
    u = canvas.x * count / 2 + 0.1 * canvas.noise(instance, 5, 5) + instance.uniform(2, 4) + count
    v = canvas.y * count / 2 + 0.1 * canvas.noise(instance, 5, 5) + instance.uniform(2, 4) + count
    column, row = u.astype(int), v.astype(int)
    above = (column + row) % 2 == 0
    across = np.where(above, u - column, v - row) * 2 - 1
    along = np.where(above, v - row, u - column) * 2 - 1
    yarn = np.where(above, instance.normal(1, 0.05, 4 * count)[column], instance.normal(0.9, 0.05, 4 * count)[row])
    fibre = np.where(above, canvas.noise(instance, 40, 160), canvas.noise(instance, 160, 40))
    surface = Surface(np.ones_like(canvas.x), hsv_to_rgb(hue, 0.4, 0.72), gloss=0.02)
    hollow = 1 - 0.45 * np.abs(across) ** 3 - 0.3 * np.abs(along) ** 4
    surface.color *= (yarn * hollow * (1 + 0.05 * fibre))[..., None]
    surface.height = (0.5 * np.sqrt(1.01 - across**2) + 0.5 * np.cos(along * 1.3)) / count
    return surface


def paint_wire_mesh(canvas: Canvas, design: np.random.Generator, instance: np.random.Generator) -> Surface:
    """Paint round wires woven at right angles, over and under, above a plain ground."""
    count, hue, radius = design.integers(9, 12), design.uniform(0.05, 0.15), 0.15
    u = canvas.x * count / 2 + instance.uniform(0, 2) + 2 * count + 0.025 * canvas.noise(instance, 4, 4)
    v = canvas.y * count / 2 + instance.uniform(0, 2) + 2 * count + 0.025 * canvas.noise(instance, 4, 4)
    side = np.where((np.floor(u) + np.floor(v)) % 2, 0.1, -0.1)
    across, along = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    heights = [
        np.where(np.abs(a) < radius * 1.1, lift * np.cos(np.pi * b) + np.sqrt(np.maximum(radius**2 - a**2, 0)), -0.1)
        for a, b, lift in ((across, along, side), (along, across, -side))
    ]
    nearest = np.minimum(np.abs(across), np.abs(along))
    cover = canvas.inside((nearest - radius) * 2 / count)
    surface = Surface(cover, hsv_to_rgb(hue, 0.25, 0.62), gloss=0.45, shininess=24)
    top = np.maximum(*heights)
    surface.color *= (0.8 + 1.2 * np.minimum(top, 0.25) + 0.05 * canvas.noise(instance, 50, 50))[..., None]
    surface.height = top * 2 / count
    return surface


def paint_wooden_board(canvas: Canvas, design: np.random.Generator, instance: np.random.Generator) -> Surface:
    """Paint planed wood: year rings cut along the grain, fibres and pores."""
    hue, rings = design.uniform(0.055, 0.1), design.uniform(6, 9)
    phase = canvas.y * rings + 0.8 * canvas.noise(instance, 2, 1) + 0.12 * canvas.noise(instance, 8, 2)
    phase += instance.uniform(0, 9)
    late = (phase - np.floor(phase)) ** 3  # each ring darkens slowly and ends sharply
    fibre = canvas.noise(instance, 130, 5) + 0.5 * canvas.noise(instance, 200, 16)
    pores = np.clip(canvas.noise(instance, 180, 14) - 1.6, 0, 1)
    surface = Surface(np.ones_like(canvas.x), hsv_to_rgb(hue, 0.5, 0.78), gloss=0.05)
    surface.color *= (1 - 0.25 * late + 0.03 * fibre - 0.3 * pores)[..., None] ** np.array([0.8, 1.0, 1.3])
    surface.height = 0.0008 * fibre - 0.004 * pores
    return surface


def paint_circuit_board(canvas: Canvas, design: np.random.Generator, instance: np.random.Generator) -> Surface:
    """Paint a populated board: traces, vias, a chip, small parts, mounting holes and printed words."""
    hue, metal = design.uniform(0.33, 0.62), (0.78, 0.74, 0.6)
    corners = [(x, y) for x in (-0.7, 0.7) for y in (-0.55, 0.55)]
    holes = canvas.outlines(polygons=[_disc(*corner, 0.045) for corner in corners])
    board = canvas.outlines(polygons=[_box(0, 0, 1.6, 1.3)]) * (1 - holes)
    surface = Surface(board, hsv_to_rgb(hue, 0.8, 0.34), gloss=0.12)
    pins = [(x, side * 0.2) for x in np.linspace(-0.4, 0.4, 9) for side in (-1, 1)]
    lean = design.choice([-0.045, 0.045], 2)
    bends = [(x + lean[int(y > 0)], np.sign(y) * design.uniform(0.36, 0.52)) for x, y in pins]
    traces = [[pin, (pin[0], 0.85 * end[1]), end] for pin, end in zip(pins, bends, strict=True)]
    places = [(side * 0.64, y) for side in (-1, 1) for y in (-0.25, 0, 0.25)]
    traces += [[place, (np.sign(place[0]) * 0.5, place[1])] for place in places]
    surface.paint(canvas.outlines(lines=traces, width=0.022), hsv_to_rgb(hue, 0.7, 0.5), height=0.004)
    rings = [_disc(*end, 0.026) for end in bends] + [_disc(*corner, 0.075) for corner in corners]
    surface.paint(canvas.outlines(polygons=rings), metal, height=0.005)
    parts = [_box(*place, 0.18, 0.09) + instance.normal(0, 0.004, 2) for place in places]
    surface.paint(canvas.outlines(polygons=parts + [_box(*pin, 0.05, 0.1) for pin in pins]), (0.78,) * 3, height=0.02)
    bodies = [part.mean(axis=0) + (part - part.mean(axis=0)) * [0.6, 1] for part in parts]
    surface.paint(canvas.outlines(polygons=bodies[3:]), (0.55, 0.38, 0.25), height=0.01)
    surface.paint(canvas.outlines(polygons=[*bodies[:3], _box(0, 0, 0.98, 0.34)]), (0.1, 0.1, 0.11), height=0.04)
    words = _lettering(design, 9, 0.6, 0.07) + [stroke + (0, 0.6) for stroke in _lettering(design, 12, 0.8, 0.05)]
    surface.paint(canvas.outlines(lines=words, width=0.012), (0.75, 0.77, 0.75))
    surface.color *= (1 + 0.02 * canvas.noise(instance, 30, 30))[..., None]
    return surface


def paint_capsule(canvas: Canvas, design: np.random.Generator, instance: np.random.Generator) -> Surface:
    """Paint a glossy two-part capsule with a printed word."""
    hue = design.uniform()
    radius = np.where(canvas.x < 0.02, 0.3, 0.285)
    distance = np.hypot(np.maximum(np.abs(canvas.x) - 0.45, 0), canvas.y)
    surface = Surface(canvas.inside(distance - radius), hsv_to_rgb(hue, 0.75, 0.72), gloss=0.75, shininess=60)
    surface.paint(canvas.inside(0.02 - canvas.x), hsv_to_rgb((hue + 0.08) % 1, 0.18, 0.86))
    word = [stroke + (-0.3, 0) for stroke in _lettering(design, 5, 0.44, 0.13)]
    surface.paint(0.9 * canvas.outlines(lines=word, width=0.022), (0.2, 0.2, 0.25))
    surface.paint(canvas.inside(np.abs(canvas.x - 0.02) - 0.008), hsv_to_rgb(hue, 0.6, 0.45))
    profile = np.sqrt(np.maximum(radius**2 - distance**2, 0.0002))
    surface.height = 0.8 * profile + 0.0004 * canvas.noise(instance, 40, 40)
    surface.color *= (0.75 + 0.9 * profile)[..., None]
    return surface


PRODUCTS: dict[str, Product] = {
    "bottle cap": Product(paint_bottle_cap, 3, turn=0.15),
    "gear": Product(paint_gear, 5, background=(0.2, 0.24, 0.3), turn=0.1),
    "woven fabric": Product(paint_woven_fabric, 7),
    "wire mesh": Product(paint_wire_mesh, 2, background=(0.17, 0.17, 0.18)),
    "wooden board": Product(paint_wooden_board, 4),
    "circuit board": Product(paint_circuit_board, 1, background=(0.75, 0.76, 0.78), turn=0.04),
    "capsule": Product(paint_capsule, 11, background=(0.35, 0.42, 0.5), turn=0.12),
}


def photograph(product: Product, generator: np.random.Generator, size: int) -> tuple[Image.Image, np.ndarray]:
    """Photograph one instance of a product: pose, light, background, shadow, blur, sensor noise and compression.

    Returns the RGB photograph (size, size) and the object's bool mask (size, size).
    """
    turn, zoom = generator.uniform(-product.turn, product.turn), generator.uniform(0.97, 1.03)
    canvas = Canvas(size, turn=turn, zoom=zoom, shift=generator.uniform(-0.03, 0.03, 2))
    surface = product.paint(canvas, np.random.default_rng(product.seed), generator)
    light = LIGHT + [*generator.normal(0, 0.06, 2), 0]
    light /= np.linalg.norm(light)
    ground = np.array(product.background) * (1 + 0.012 * canvas.noise(generator, size // 2, size // 2))[..., None]
    reach = np.rint(-light[:2] * size * 0.035).astype(int)
    shadow = ndimage.gaussian_filter(np.roll(surface.cover, (reach[1], reach[0]), axis=(0, 1)), size * 0.015)
    ground = ground * (1 - 0.5 * shadow)[..., None]
    picture = ground + surface.cover[..., None] * (surface.shaded(light) - ground)
    steps = np.linspace(-1, 1, size)
    fall = generator.normal(-0.05, 0.03, 2)
    exposure = generator.uniform(0.95, 1.05) * (1 + fall[0] * steps[None, :] + fall[1] * steps[:, None])
    vignette = 1 - 0.06 * (steps[None, :] ** 2 + steps[:, None] ** 2)
    picture = picture * (exposure * vignette)[..., None] * generator.normal(1, 0.007, 3)
    blur = generator.uniform(0.35, 0.6) * size / 256
    picture = ndimage.gaussian_filter(picture.astype(np.float32), (blur, blur, 0))
    picture += 0.009 * generator.standard_normal(picture.shape, dtype=np.float32)
    file, quality = io.BytesIO(), int(generator.integers(88, 96))
    Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).save(file, format="JPEG", quality=quality)
    return Image.open(file).convert("RGB"), surface.cover > 0.5


def draw_product(name: str, generator: np.random.Generator, size: int = 256) -> tuple[Image.Image, np.ndarray]:
    """Photograph one good instance of a product of `PRODUCTS`.

    Returns the RGB photograph (size, size) and the object's bool mask (size, size). Raises ValueError for an unknown
    name or fewer than 32 pixels.
    """
    if name not in PRODUCTS:
        raise ValueError(f"Unknown product {name!r}: take one of {', '.join(map(repr, PRODUCTS))}.")
    if size < 32:
        raise ValueError(f"A photograph of {size} pixels shows no product: take at least 32.")
    return photograph(PRODUCTS[name], generator, size)


def write_dataset(
    root: Path,
    generator: np.random.Generator | int,
    *,
    classes: Sequence[str] | None = None,
    train: int = 8,
    good: int = 8,
    defective: int = 12,
    size: int = 256,
) -> None:
    """Write drawn photographs as a tree in MVTec AD's layout, the same files for the same generator state or seed.

    For each product of `classes` (all of `PRODUCTS` if None): `train` and `good` good photographs and `defective` ones
    shared out evenly over `DEFECTS`. Raises FileExistsError if `root` holds anything, ValueError for an unknown class.
    """
    root, generator = Path(root), np.random.default_rng(generator)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty: name a new folder, or empty this one first.")
    classes = list(PRODUCTS) if classes is None else list(classes)
    if unknown := [name for name in classes if name not in PRODUCTS]:
        raise ValueError(f"Unknown classes {unknown}: take some of {', '.join(map(repr, PRODUCTS))}.")
    seeds = dict(zip(PRODUCTS, generator.integers(2**32, size=len(PRODUCTS)), strict=True))
    for name in classes:
        own = np.random.default_rng(seeds[name])  # a class is the same whichever others are asked for
        _write_class(root / name.replace(" ", "_"), name, own, (train, good, defective), size)


def _write_class(
    folder: Path, name: str, generator: np.random.Generator, counts: tuple[int, int, int], size: int
) -> None:
    for place, count in (("train/good", counts[0]), ("test/good", counts[1])):
        (folder / place).mkdir(parents=True)
        for number in range(count):
            draw_product(name, generator, size)[0].save(folder / place / f"{number:03d}.png")
    for number in range(counts[2]):
        kind = list(DEFECTS)[number % len(DEFECTS)]
        picture, mask = draw_defect(kind, *draw_product(name, generator, size), generator)
        for place, suffix, image in (("test", "", picture), ("ground_truth", "_mask", Image.fromarray(mask))):
            path = folder / place / kind.replace(" ", "_") / f"{number // len(DEFECTS):03d}{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB" if place == "test" else "L").save(path)


__all__ = []
