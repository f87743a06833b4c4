"""From k good images of each product to an endless, repeatable stream of training views, with pseudo-anomalies."""

import logging
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..data import read_source
from ..images_anople import (
    ImageError,
    is_flat,
    list_images,
    load_ignore_mask,
    load_image,
    print_of,
    same_pictures,
)
from ..inference_anople import TiledImage
from ..processing_anople import AnoPLeProcessor
from ..product_store_anople import composed
from ..tiling_anople import Rotations, move, rotations_of
from .options import TrainingConfig


# --- Make pixel-space pseudo-anomalies on normal photographs (paper notes, section 1.7) ---


AnomalyKind = Literal["perlin", "cut_paste", "both"]


def perlin_noise(height: int, width: int, scale: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Draw classic gradient noise with `scale` = (cells down, cells across).

    Returns (height, width) float32 in [-1, 1]. The size need not be a multiple of the scale: cells then have a
    fractional number of pixels. Raises `ValueError` for a size or scale below 1.
    Formula: Perlin, "Improving Noise", SIGGRAPH 2002 (quintic fade), times sqrt(2) to fill [-1, 1].
    """
    if min(height, width, *scale) < 1:
        raise ValueError(f"Sizes and scales start at 1, got height={height}, width={width}, scale={scale}.")
    angles = 2 * math.pi * torch.rand(scale[0] + 1, scale[1] + 1, generator=generator)
    row_weights, row_offsets = _lattice(height, scale[0])
    column_weights, column_offsets = _lattice(width, scale[1])
    # The sum over a pixel's four lattice corners separates into rows and columns: a matrix product does all pixels.
    down, across = (row_weights * row_offsets) @ angles.sin(), row_weights @ angles.cos()
    columns = torch.cat((column_weights, column_weights * column_offsets), dim=1)
    return torch.cat((down, across), dim=1) @ (math.sqrt(2) * columns).T


def _lattice(size: int, cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give fade weights and signed distances, in cells, of each pixel center to each lattice line."""
    positions = (torch.arange(size) + 0.5) * cells / size
    offsets = positions[:, None] - torch.arange(cells + 1)  # (size, cells + 1)
    nearness = 1 - offsets.abs().clamp(max=1)
    return nearness**3 * (nearness * (6 * nearness - 15) + 10), offsets


def perlin_mask(
    height: int, width: int, generator: torch.Generator, *, threshold: float = 0.5, max_scale_exponent: int = 5
) -> torch.Tensor:
    """Draw a blob mask: Perlin noise at a random scale and direction, above `threshold`.

    The scale is 2^r cells down and 2^r' across, r and r' from {0..max_scale_exponent}. The rotation is continuous,
    U(-90, 90) degrees; what it brings in from outside the frame is mirrored noise, so that no corner stays blank.
    Returns (height, width) bool, possibly without a single True.
    """
    rows, columns = (2 ** _integer(0, max_scale_exponent, generator) for _ in range(2))
    noise = perlin_noise(height, width, (rows, columns), generator)
    blobs = Image.fromarray((noise > threshold).to(torch.uint8).numpy())
    rotated = _rotate(blobs, _uniform(-90, 90, generator))
    return torch.from_numpy(np.asarray(rotated) > 0)


def _rotate(picture: Image.Image, degrees: float) -> Image.Image:
    """Rotate about the center at the same size, to nearest pixels; what enters from outside the frame is mirrored."""
    width, height = picture.size
    margin = math.ceil((math.hypot(width, height) - min(width, height)) / 2)
    pixels = np.asarray(picture)
    padding = [(margin, margin), (margin, margin), (0, 0)][: pixels.ndim]
    padded = Image.fromarray(np.pad(pixels, padding, mode="symmetric"))
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = width / 2, height / 2
    to_source = (cosine, -sine, margin + x - cosine * x + sine * y, sine, cosine, margin + y - sine * x - cosine * y)
    return padded.transform(picture.size, Image.Transform.AFFINE, to_source, Image.Resampling.NEAREST)


def augment_texture(texture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Apply three different ones of `TEXTURE_OPERATIONS`, drawn at random, in the order drawn.

    `texture` and the result are (3, height, width) float32 in [0, 1]; the result has 8-bit precision.
    Raises `ValueError` for anything else. Operations and ranges after DRAEM.
    """
    _check_image(texture, "texture")
    picture = _to_pil(texture)
    operations = list(TEXTURE_OPERATIONS.values())
    for index in torch.randperm(len(operations), generator=generator)[:3].tolist():
        picture = operations[index](picture, generator)
    return _to_tensor(picture)


def blend_texture(
    image: torch.Tensor,
    texture: torch.Tensor,
    mask: torch.Tensor,
    generator: torch.Generator,
    *,
    blend_max: float = 0.8,
) -> torch.Tensor:
    """Blend `texture` into `image` under `mask`: (1 - m) x + m ((1 - beta) texture + beta x), beta ~ U(0, blend_max).

    `image` and `texture` are (3, height, width) float32 in [0, 1], `mask` is (height, width) bool. Pixels outside
    the mask are returned exactly. Raises `ValueError` if shapes, types or ranges differ from that. Formula: DRAEM.
    """
    _check_image(image, "image")
    _check_image(texture, "texture")
    if texture.shape != image.shape:
        raise ValueError(f"texture is {tuple(texture.shape)}, image {tuple(image.shape)}: resize the texture first.")
    if mask.shape != image.shape[1:] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool of shape {tuple(image.shape[1:])}, got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    beta = _uniform(0, blend_max, generator)
    blended = torch.lerp(texture, image, beta)
    return torch.where(mask, blended, image, out=blended)


def cut_paste(image: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy a jittered piece of the image to another place of it: a rectangle or a rotated scar, with equal chance.

    Rectangle: 2-15 % of the area, height : width 0.3-1 or 1-3.3. Scar: 2-16 px wide and 10-25 px long per 256 px of
    the shorter side, rotated by up to 45 degrees. Brightness, contrast, saturation and hue change by up to 0.1.
    Takes (3, height, width) float32 in [0, 1]; returns the same and the (height, width) bool mask of pasted pixels.
    Raises `ValueError` for another input. Recipe: CutPaste.
    """
    _check_image(image, "image")
    height, width = image.shape[1:]
    is_scar = _uniform(0, 1, generator) < 0.5
    rows, columns = (_scar_size if is_scar else _rectangle_size)(height, width, generator)
    top, left = _integer(0, height - rows, generator), _integer(0, width - columns, generator)
    patch = _jitter(_to_pil(image[:, top : top + rows, left : left + columns]), generator)
    shape = Image.new("L", patch.size, 255)
    if is_scar:
        angle = _uniform(-45, 45, generator)
        # Nearest pixels (the default), so that no pixel is half pasted.
        patch, shape = patch.rotate(angle, expand=True), shape.rotate(angle, expand=True)
    # A rotated scar can outgrow a tiny image: keep what fits.
    stamp = _to_tensor(patch)[:, :height, :width]
    covered = torch.from_numpy(np.array(shape) > 0)[:height, :width]
    rows, columns = covered.shape
    top, left = _integer(0, height - rows, generator), _integer(0, width - columns, generator)
    place = (slice(top, top + rows), slice(left, left + columns))
    result, mask = image.clone(), torch.zeros(height, width, dtype=torch.bool)
    result[:, *place] = torch.where(covered, stamp, result[:, *place])
    mask[place] = covered
    return result, mask


@dataclass(frozen=True)
class PseudoAnomaly:
    """Turn a normal photograph into a pseudo-anomalous one and its mask.

    `kind` is "perlin" (a texture under Perlin blobs), "cut_paste", or "both" (one of the two, with equal chance).
    `blend_max` bounds the photograph's share in the blend; `perlin_threshold` and `perlin_max_exponent` set the
    size of the blobs. Raises `ValueError` for a value outside its range.
    """

    kind: AnomalyKind = "perlin"
    blend_max: float = 0.8
    perlin_threshold: float = 0.5
    perlin_max_exponent: int = 5

    def __post_init__(self) -> None:
        if self.kind not in get_args(AnomalyKind):
            raise ValueError(f"kind must be one of {get_args(AnomalyKind)}, got {self.kind!r}.")
        if not 0 <= self.blend_max <= 1:
            raise ValueError(f"blend_max must lie in [0, 1], got {self.blend_max}.")
        if not -1 < self.perlin_threshold < 1:
            raise ValueError(f"perlin_threshold must lie between -1 and 1, got {self.perlin_threshold}.")
        if self.perlin_max_exponent < 0:
            raise ValueError(f"perlin_max_exponent must be 0 or more, got {self.perlin_max_exponent}.")

    def __call__(
        self, image: torch.Tensor, textures: Sequence[torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a new (3, height, width) float32 image in [0, 1] and its (height, width) bool mask.

        `image` is (3, height, width) float32 in [0, 1]; `textures` are further such images of any size, from which
        one is drawn (CutPaste ignores them); without any, the image itself, turned, is the texture. An empty mask
        comes with an unchanged copy: count it as normal. Inputs are left as they are; the same generator state
        gives the same result. Raises `ValueError` for an image of another shape, type or range.
        """
        _check_image(image, "image")
        if self.kind == "cut_paste" or (self.kind == "both" and _uniform(0, 1, generator) < 0.5):
            return cut_paste(image, generator)
        mask = perlin_mask(
            *image.shape[1:],
            generator,
            threshold=self.perlin_threshold,
            max_scale_exponent=self.perlin_max_exponent,
        )
        if not mask.any():
            return image.clone(), mask
        texture = augment_texture(_pick_texture(image, textures, generator), generator)
        return blend_texture(image, texture, mask, generator, blend_max=self.blend_max), mask


def _pick_texture(image: torch.Tensor, textures: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Draw a texture, or a quarter, half or three-quarter turn of the image, at the size of the image."""
    if len(textures) > 0:
        texture = textures[_integer(0, len(textures) - 1, generator)]
        _check_image(texture, "texture")
    else:
        texture = image.rot90(_integer(1, 3, generator), dims=(1, 2))
    if texture.shape == image.shape:
        return texture
    resized = F.interpolate(texture[None], image.shape[1:], mode="bilinear", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def _gamma(picture: Image.Image, generator: torch.Generator) -> Image.Image:
    exponents = [_uniform(0.5, 2, generator) for _ in range(3)]
    return picture.point([round(255 * (value / 255) ** exponent) for exponent in exponents for value in range(256)])


def _brightness(picture: Image.Image, generator: torch.Generator) -> Image.Image:
    factor, shift = _uniform(0.8, 1.2, generator), _uniform(-30, 30, generator)
    return picture.point([min(max(round(value * factor + shift), 0), 255) for value in range(256)] * 3)


def _hue_saturation(
    picture: Image.Image, generator: torch.Generator, *, degrees: float = 70, change: float = 0.5
) -> Image.Image:
    """Turn hues by up to `degrees` and scale saturation by a factor of 1 +- `change`, at constant luminance.

    Formula: hueRotate and saturate of W3C Filter Effects; far cheaper than a round trip through HSV.
    """
    angle = math.radians(_uniform(-degrees, degrees, generator))
    chroma = math.cos(angle) * (np.eye(3) - _LUMINANCE) + math.sin(angle) * _HUE_QUARTER_TURN
    matrix = np.zeros((3, 4))
    matrix[:, :3] = _LUMINANCE + _uniform(1 - change, 1 + change, generator) * chroma
    return picture.convert("RGB", tuple(matrix.ravel().tolist()))


_LUMINANCE = np.array([[0.213, 0.715, 0.072]] * 3)
_HUE_QUARTER_TURN = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])

TEXTURE_OPERATIONS: dict[str, Callable[[Image.Image, torch.Generator], Image.Image]] = {
    "gamma": _gamma,
    "brightness": _brightness,
    "sharpness": lambda picture, generator: ImageEnhance.Sharpness(picture).enhance(_uniform(0.1, 1.9, generator)),
    "hue_saturation": _hue_saturation,
    "solarise": lambda picture, generator: ImageOps.solarize(picture, _integer(32, 128, generator)),
    "posterise": lambda picture, generator: ImageOps.posterize(picture, _integer(1, 7, generator)),
    "invert": lambda picture, generator: ImageOps.invert(picture),
    "autocontrast": lambda picture, generator: ImageOps.autocontrast(picture, cutoff=_uniform(0, 20, generator)),
    "equalise": lambda picture, generator: ImageOps.equalize(picture),
    "rotate": lambda picture, generator: _rotate(picture, _uniform(-45, 45, generator)),
}


def _jitter(picture: Image.Image, generator: torch.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        picture = enhancer(picture).enhance(_uniform(0.9, 1.1, generator))
    return _hue_saturation(picture, generator, degrees=36, change=0.1)


def _rectangle_size(height: int, width: int, generator: torch.Generator) -> tuple[int, int]:
    area = _uniform(0.02, 0.15, generator) * height * width
    aspect = _uniform(0.3, 1, generator) if _uniform(0, 1, generator) < 0.5 else _uniform(1, 3.3, generator)
    rows = min(max(round(math.sqrt(area * aspect)), 1), height)
    return rows, min(max(round(area / rows), 1), width)


def _scar_size(height: int, width: int, generator: torch.Generator) -> tuple[int, int]:
    per_pixel = min(height, width) / 256
    length, thickness = _uniform(10, 25, generator) * per_pixel, _uniform(2, 16, generator) * per_pixel
    return max(round(length), 1), max(round(thickness), 1)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """Draw from {low..high}, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _to_pil(image: torch.Tensor) -> Image.Image:
    planes = (image * 255).round_().to(torch.uint8).numpy()
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    planes = np.stack([np.asarray(plane) for plane in picture.split()])  # (3, height, width)
    return torch.from_numpy(planes).float().div_(255)


def _check_image(image: torch.Tensor, name: str) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0 or image.dtype != torch.float32:
        raise ValueError(
            f"{name} must be float32 of shape (3, height, width), got {image.dtype} of shape {tuple(image.shape)}."
        )
    low, high = (bound.item() for bound in image.aminmax())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(
            f"{name} must lie in [0, 1], got {low} to {high}: divide 8-bit pixels by 255, normalize later."
        )


# --- From k good photographs per class to an endless, repeatable stream of training views ---


def sample_few_shot(paths: Sequence[str], shots: int, *, seed: int, class_name: str) -> list[str]:
    """
    Choose the k good photographs of one class.

    Drawn from the sorted paths by a generator of its own for each (seed, class), so the choice depends neither on the
    file system nor on the other classes, and nested: 1 shot is part of 2 shots, which are part of 4.

    Returns:
        The chosen paths, sorted; all of them if there are no more than `shots`.

    Raises:
        ValueError: if `shots` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}.")
    generator = np.random.default_rng([seed, zlib.crc32(class_name.encode())])
    order = generator.permutation(len(paths))[:shots]
    return sorted(sorted(paths)[place] for place in order)


def square_image(photograph: Image.Image, side: int) -> Tensor:
    """Resize an RGB photograph to a square (bicubic, as the processor does): uint8 (3, side, side)."""
    resized = photograph.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class ViewSettings:
    """
    How a photograph becomes views.

    Args:
        image_size: side of a view in pixels.
        grid: the enlarged photograph is cut into grid x grid sub-images; 1 gives the global view alone.
        mean, std: normalization of the image processor.
    """

    image_size: int
    grid: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def cut(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """
        Cut one enlarged photograph into its global view and its sub-images, in reading order (paper.md 1.5).

        Args:
            image: (3, grid x side, grid x side) within 0 and 1.
            mask: (grid x side, grid x side) bool.

        Returns:
            Normalised pixels (views, 3, side, side) and masks (views, side, side).
        """
        side, grid = self.image_size, self.grid
        pixels, masks = image[None], mask[None].float()
        if grid > 1:
            small = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
            small_mask = F.max_pool2d(masks[None], grid)[0]  # a mark survives shrinking
            # (3, grid, side, grid, side) -> (grid x grid, 3, side, side)
            parts = image.unflatten(2, (grid, side)).unflatten(1, (grid, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
            part_masks = (
                mask.float().unflatten(1, (grid, side)).unflatten(0, (grid, side)).transpose(1, 2).flatten(0, 1)
            )
            pixels, masks = torch.cat([small, parts]), torch.cat([small_mask, part_masks])
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std, masks


class FewShotDataset(Dataset):
    """
    An endless stream of training samples, each a function of the seed and its own number alone.

    Any process may therefore draw any sample, in any order, and a killed run goes on where it stopped. Every photograph
    comes once per round, in an order drawn for the round.

    Args:
        images: uint8 (3, grid x side, grid x side) of each good photograph.
        class_ids: the class of each.
        views: how a photograph becomes views.
        anomaly: the pixel-space pseudo-anomaly; `None` leaves all photographs as they are.
        anomaly_period: the last of every so many samples is made anomalous.
        turns: by which of [`rotations_of`] a photograph is turned before, drawn anew for each sample.
        seed: of all draws.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        class_ids: Sequence[int],
        *,
        views: ViewSettings,
        anomaly: PseudoAnomaly | None,
        anomaly_period: int = 2,
        turns: Rotations = "none",
        seed: int,
    ):
        if not images:
            raise ValueError("FewShotDataset was given no good photographs: at least one is needed.")
        self.images, self.class_ids = list(images), list(class_ids)
        self.views, self.anomaly, self.anomaly_period, self.seed = views, anomaly, anomaly_period, seed
        self.turns = rotations_of(turns)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Make sample `number`: pixel_values (views, 3, side, side), mask_labels (views, side, side) and ids."""
        turn, place = divmod(number, len(self.images))
        order = np.random.default_rng([self.seed, turn]).permutation(len(self.images))
        chosen = int(order[place])
        state = np.random.default_rng([self.seed, 1, number]).integers(2**62)
        generator = torch.Generator().manual_seed(int(state))
        image = self.images[chosen].float() / 255
        if len(self.turns) > 1:
            turn = self.turns[int(torch.randint(len(self.turns), (1,), generator=generator))]
            image = move(image[None], turn[None])[0].clamp(0, 1)
        mask = torch.zeros(image.shape[1:], dtype=torch.bool)
        if self.anomaly is not None and (number + 1) % self.anomaly_period == 0:
            others = [other.float() / 255 for other in self._textures(chosen, generator)]
            image, mask = self.anomaly(image, others, generator)
        pixels, masks = self.views.cut(image, mask)
        count = len(pixels)
        return {
            "pixel_values": pixels,
            "mask_labels": masks,
            "class_ids": torch.full((count,), self.class_ids[chosen]),
            "view_ids": torch.arange(count),
            "noise_seeds": torch.randint(2**31, (count,), generator=generator),
        }

    def _textures(self, chosen: int, generator: torch.Generator) -> list[Tensor]:
        """Pick one other photograph, of any class, as the source of texture."""
        if len(self.images) == 1:
            return []
        other = int(torch.randint(len(self.images) - 1, (1,), generator=generator))
        return [self.images[other + (other >= chosen)]]


class StepSampler(Sampler):
    """Number the samples from the first that is still to be trained on to the last."""

    def __init__(self, start: int, stop: int):
        self.numbers = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def collate_views(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the views of several samples into one batch (samples x views, ...)."""
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


# --- Which images a fit learns from, and which validate it ---


logger = logging.getLogger(__name__)


@dataclass
class Shots:
    """The good photographs of a fit: names per class, what was held out to check the decoder, and what is ignored."""

    files: dict[str, list[str]]
    images: list[dict]
    class_ids: list[int]
    held_out: list[tuple[dict, int]]
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    def mask_of(self, class_id: int) -> np.ndarray | None:
        """Return what is ignored on the photographs of a class."""
        return self.masks.get(list(self.files)[class_id]) if self.masks else None


def choose_shots(config: TrainingConfig) -> Shots:
    """Draw the good photographs of each class from the train split."""
    normals = read_source(config.data_root, split="train", classes=config.classes, options=config)
    normals = normals.select([row for row, label in enumerate(normals["label"][:]) if label == 0])
    rows: dict[str, dict[str, int]] = {}
    for number, (name, path) in enumerate(zip(normals["class_name"], normals["path"], strict=True)):
        rows.setdefault(name, {})[path] = number
    shots = Shots({}, [], [], [])
    spare = max(1, config.monitor_images // len(rows))
    for class_id, name in enumerate(sorted(rows)):
        chosen = []
        for view, paths in group_views(list(rows[name]), config.view_pattern).items():
            drawn = _draw_distinct(paths, lambda path: normals[rows[name][path]]["image"], config, name)
            if len(drawn) < config.shots:
                seen = f"{name}, view {view}," if view else name
                logger.warning("%s has %d good photographs; %d were asked for.", seen, len(drawn), config.shots)
            chosen += drawn
        shots.files[name] = chosen
        shots.images += [normals[rows[name][path]]["image"] for path in chosen]
        shots.class_ids += [class_id] * len(chosen)
        others = sample_few_shot(list(rows[name].keys() - chosen) or chosen, spare, seed=config.seed, class_name=name)
        shots.held_out += [(normals[rows[name][path]]["image"], class_id) for path in others]
    shots.masks = read_ignore_masks(config.ignore_masks, list(shots.files))
    return shots


def _draw_distinct(paths: list[str], source_of: Callable[[str], dict], config: TrainingConfig, name: str) -> list[str]:
    """Draw photographs of one class, none of which is another one once more, or shows nothing; say which were passed over."""
    drawn, prints, passed = [], [], []
    for count in range(1, len(paths) + 1):  # the first of these are the shots where all of them are distinct
        chosen = sample_few_shot(paths, count, seed=config.seed, class_name=name)
        [path] = set(chosen) - {*drawn, *passed}
        image = load_image(source_of(path), white_value=config.white_value)
        prints.append(print_of(image))
        if is_flat(image) or len(prints) - 1 in same_pictures(prints):
            prints.pop()
            passed.append(path)
        else:
            drawn.append(path)
        if len(drawn) == config.shots:
            break
    if passed:
        shown = ", ".join(passed[:5]) + (f" and {len(passed) - 5} more" if len(passed) > 5 else "")
        logger.warning(
            "%s: %d good photographs are another one once more, or of one color, and do not count: %s.",
            name,
            len(passed),
            shown,
        )
    if not drawn:
        raise ValueError(
            f"All good photographs of {name} are of one color, as with the lens cap on: give others, or, of a camera of 10 to 14 bits, --white_value."
        )
    return sorted(drawn)


def group_views(paths: list[str], pattern: str | None) -> dict[str, list[str]]:
    """
    Sort the photographs of one product by view, as the group of a regular expression tells it by their file names.

    Without a pattern they are all of one view, "".

    Raises:
        ValueError: if a name does not fit.
    """
    if pattern is None:
        return {"": paths}
    views: dict[str, list[str]] = {}
    for path in sorted(paths):
        found = re.search(pattern, Path(path).name)
        if found is None:
            raise ValueError(
                f"view_pattern {pattern!r} does not fit {Path(path).name}: it must fit every good photograph."
            )
        views.setdefault(found[1], []).append(path)
    return dict(sorted(views.items()))


def read_ignore_masks(folder: str | None, names: list[str]) -> dict[str, np.ndarray]:
    """
    Read the ignore masks of products, pictures NAME.png (or another kind) in a folder.

    Raises:
        ValueError: for a picture of no product.
    """
    masks = {composed(path.stem): load_ignore_mask(path) for path in (list_images([folder]) if folder else [])}
    if unknown := sorted(masks.keys() - names):
        raise ValueError(f"{folder} holds ignore masks of {unknown}, which are not fitted; products are {names}.")
    return {name: mask for name, mask in masks.items() if mask.any()}


def make_samples(
    config: TrainingConfig,
    processor: AnoPLeProcessor,
    shots: Shots,
    grid: int,
    tiling: str | None = None,
    side: int | None = None,
) -> FewShotDataset:
    """Load the photographs, or each of their tiles, at the size from which views are cut; `side` as the CLIP sees them."""
    side = side or processor.image_size
    tiles = [
        _squares(image, processor, side * grid, tiling, shots.mask_of(class_id))
        for image, class_id in zip(shots.images, shots.class_ids, strict=True)
    ]
    class_ids = [[class_id] * len(several) for several, class_id in zip(tiles, shots.class_ids, strict=True)]
    return FewShotDataset(
        [tile for several in tiles for tile in several],
        [class_id for several in class_ids for class_id in several],
        views=_view_settings(processor, side, grid),
        anomaly=None if config.pixel_anomaly == "none" else PseudoAnomaly(kind=config.pixel_anomaly),
        turns=config.normal_turns,
        seed=config.seed,
    )


def make_validation_batch(
    config: TrainingConfig,
    processor: AnoPLeProcessor,
    shots: Shots,
    tiling: str | None = None,
    side: int | None = None,
) -> dict[str, torch.Tensor] | None:
    """
    Make defects on photographs that are not trained on (or, where none is spare, on the shots themselves).

    Of one that is tiled, on the tile in the middle of the row of all.
    """
    if config.monitor_images < 1:
        return None
    side = side or processor.image_size
    images, class_ids = [], []
    for image, class_id in shots.held_out:
        try:
            tiles = _squares(image, processor, side, tiling, shots.mask_of(class_id))
        except ImageError as error:
            logger.warning("Held out to check the decoder, and left out: %s", error)
            continue
        images.append(tiles[len(tiles) // 2])
        class_ids.append(class_id)
    if not images:
        return None
    kind = "perlin" if config.pixel_anomaly == "none" else config.pixel_anomaly
    samples = FewShotDataset(
        images,
        class_ids,
        views=_view_settings(processor, side, 1),
        anomaly=PseudoAnomaly(kind=kind),
        anomaly_period=1,
        seed=config.seed + 1_000_003,  # defects that fitting does not draw
    )
    batch = collate_views([samples[number] for number in range(2 * len(images))])
    return batch if batch["mask_labels"].any() else None


def _squares(
    image: dict, processor: AnoPLeProcessor, side: int, tiling: str | None, mask: np.ndarray | None
) -> list[torch.Tensor]:
    """Make the whole photograph, or each tile, a square of `side` pixels; what is ignored or beyond it is painted over."""
    photograph = load_image(image, white_value=processor.white_value)
    mask = None if mask is None else load_ignore_mask(mask, photograph.size[::-1])
    parts = TiledImage.of(photograph, processor, tiling, mask).pictures()
    return [square_image(part, side) for part in parts]


def _view_settings(processor: AnoPLeProcessor, side: int, grid: int) -> ViewSettings:
    normalization = processor.image_processor
    return ViewSettings(side, grid, tuple(normalization.image_mean), tuple(normalization.image_std))


__all__ = [
    "FewShotDataset",
    "Shots",
    "StepSampler",
    "ViewSettings",
    "choose_shots",
    "collate_views",
    "make_samples",
    "make_validation_batch",
    "read_ignore_masks",
    "sample_few_shot",
    "square_image",
]
