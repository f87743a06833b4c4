"""Images of any kind, from a file, memory, a folder or a table, as upright RGB; masks, and what is to be ignored, as booleans."""

import errno
import io
import itertools
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F


# --- Work on the photographs of a batch at once: Pillow and numpy let go of Python's lock while they compute ---


Item, Result = TypeVar("Item"), TypeVar("Result")


def act_on_each(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Act on every item, as many at a time as torch has threads; results come in the order of the items."""
    threads = min(len(items), torch.get_num_threads())
    if threads < 2:
        return [act(item) for item in items]
    # threads of this call alone: kept ones would be dead in a process that was forked later
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(act, items))


# --- Photographs of any kind, from a file, memory or a table, as upright RGB; masks as booleans ---


# White value of modes that have no fixed one; never taken from the photograph itself, or two photographs of one part
# would be scaled differently.
WHITE_VALUES = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0, "I": 65535.0, "F": 1.0}
# Resampling leaves the range a little; values farther out are on another scale.
ACCEPTED_RANGE = (-0.5, 1.5)
ANY_MARK = 1e-6  # white value of masks: whatever is above 0 becomes visible
WHITE_RANGE = (1e-6, 2**32)  # of a white value that is given


IMAGE_EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
)  # of data sets


# What opens as an image: a path, a file, bytes, a row `{"path", "bytes"}` of a table, a PIL image, an array or a tensor.
ImageSource = str | os.PathLike | bytes | dict | Image.Image | np.ndarray | torch.Tensor | BinaryIO
# What marks what does not count: an image, "none", or a function of (height, width).
MaskSource = ImageSource | Callable[[tuple[int, int]], np.ndarray]


class ImageError(ValueError):
    """A photograph that cannot be used; the message names it and says what to do."""


def load_image(source: ImageSource, *, white_value: float | None = None) -> Image.Image:
    """
    Open a photograph of any kind as RGB, upright.

    EXIF rotation is applied. Alpha is laid over white. 16-bit and float grayscale are divided by a fixed white value:
    65535 for integers, 1.0 for floats, or `white_value` (4095 for a 12-bit camera). Color profiles are ignored, and so
    are all frames but the first.

    Args:
        source: path, file, bytes, `{"path", "bytes"}` as `datasets.Image(decode=False)` gives, PIL image, array
            (height, width) or (height, width, 1 | 3 | 4), or tensor (1 | 3 | 4, height, width), of bool, uint8, uint16
            or finite floats within 0 and 1.
        white_value: overrides the white value of 16-bit and float grayscale.

    Raises:
        ImageError: if it cannot be read whole, has no pixels, or values that are not finite or on another scale.
    """
    return _load(source, white_value, "white")


def load_mask(source: ImageSource, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """
    Open a ground-truth mask as booleans (height, width); any value above 0 marks a defect, transparency does not.

    Args:
        size: (height, width) of its photograph.

    Raises:
        ImageError: if it cannot be read or has another size.
    """
    red, green, blue = np.moveaxis(np.asarray(_load(source, ANY_MARK, "black")), -1, 0)
    mask = (red | green | blue) > 0  # `any` over three values takes many times as long
    if size is not None and mask.shape != tuple(size):
        raise ImageError(
            f"{_name_of(source)}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels and its photograph "
            f"{size[1]} x {size[0]}: export the mask at the photograph's own size."
        )
    return mask


def _load(source: ImageSource, white_value: float | None, background: str) -> Image.Image:
    try:
        return _read(source, white_value, background)
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        raise ImageError(f"{_name_of(source)}: {_reason(error)}") from error


def _read(source: ImageSource, white_value: float | None, background: str) -> Image.Image:
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return _to_rgb(_from_array(source, white_value), white_value, background)
    if isinstance(source, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(source), white_value, background)
    if isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        raise ImageError("addresses are not fetched: download the photograph and give the file.")
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    if isinstance(source, (str, os.PathLike)):
        _refuse_stream(source)
    elif not hasattr(source, "read"):
        raise ImageError(f"a {type(source).__name__} is no photograph: give a path, bytes, a PIL image or an array.")
    with Image.open(source) as image:
        return _to_rgb(ImageOps.exif_transpose(image), white_value, background)


def _refuse_stream(path: str | os.PathLike) -> None:
    """Refuse what can be waited for or read without an end: a pipe, a socket, a device."""
    if not os.fspath(path):
        raise ImageError("its name is empty: give a path.")
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise ImageError("is a pipe, a socket or a device, not a file: save the photograph and give its file.")


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "is a symbolic link that leads back to itself: give the file."
    if isinstance(error, FileNotFoundError):
        return "there is no such file."
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a photograph: give the files inside."
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow can read: check or remove the file."
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large to open ({error}): make it smaller, or cut it into tiles."
    return f"cannot be read whole ({error}): copy it again or remove it."


def _name_of(source: ImageSource) -> str:
    return source_path(source) or ("image in a table" if isinstance(source, dict) else "image in memory")


def source_path(source: ImageSource) -> str | None:
    """Say which file a photograph comes from, `None` where that is not known."""
    if isinstance(source, dict):
        source = source.get("path")
    if not isinstance(source, (str, os.PathLike)):  # a file, or a PIL image that was opened from one
        source = getattr(source, "filename", "") or getattr(source, "name", "")
    return str(source) if isinstance(source, (str, os.PathLike)) and str(source) else None


def _from_array(array: np.ndarray | torch.Tensor, white_value: float | None) -> Image.Image:
    if isinstance(array, torch.Tensor):
        array = (array.float() if array.is_floating_point() else array).detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ImageError(f"shape {array.shape} is no image: give (height, width) or (height, width, 3).")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if array.dtype.kind != "f" and array.dtype != np.uint16 and (white_value is None or array.dtype.kind not in "iu"):
        raise ImageError(
            f"{array.dtype} says nothing about white: give uint8, uint16, floats within 0 and 1, or bool."
        )
    return Image.fromarray(_scaled(array, white_value, 1.0 if array.dtype.kind == "f" else 65535.0))


def _scaled(array: np.ndarray, white_value: float | None, usual_white: float) -> np.ndarray:
    """Bring grey values to uint8; without a `white_value`, ones that cannot have been meant for the usual white fail."""
    values = np.asarray(array, dtype=np.float64) / (white_value or usual_white)
    if not np.isfinite(values).all():
        raise ImageError("has values that are not finite (NaN or infinite): replace them, or leave the image out.")
    if white_value is None and not ACCEPTED_RANGE[0] <= values.min() <= values.max() <= ACCEPTED_RANGE[1]:
        raise ImageError(
            f"values from {np.min(array):g} to {np.max(array):g} do not fit the usual white of {usual_white:g}: "
            "scale them, or give the processor the white_value of your camera."
        )
    return np.clip(np.rint(255 * values), 0, 255).astype(np.uint8)


def _to_rgb(image: Image.Image, white_value: float | None, background: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"has no pixels ({image.width} x {image.height}): leave it out.")
    if image.mode in WHITE_VALUES:
        image = Image.fromarray(_scaled(np.asarray(image), white_value, WHITE_VALUES[image.mode]))
    if image.mode in ("La", "RGBa"):  # colors multiplied by alpha
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


# --- Whatever holds photographs - a file, a folder, an array, a list, a table, a camera - as a stream of them ---


logger = logging.getLogger(__name__)

MASKS = "ground_truth"  # the folder of masks beside MVTec AD's photographs


def is_one_image(inputs: object) -> bool:
    """Say whether these are one photograph, and not several: a file, bytes, a PIL image or one array."""
    if isinstance(inputs, (np.ndarray, Tensor)):
        return inputs.ndim < 4
    if isinstance(inputs, (str, os.PathLike)):
        return not os.fspath(inputs) or not os.path.isdir(inputs)  # no name is not the folder that one is in
    return isinstance(inputs, (bytes, dict, Image.Image)) or hasattr(inputs, "read")


def images_of(
    inputs: ImageSource | Iterable[ImageSource], *, image_column: str | None = None
) -> Iterable[ImageSource]:
    """
    Turn anything with photographs into an iterable of what [`load_image`] opens; nothing is opened here.

    Args:
        inputs: one photograph; a folder, with all image files below it, sorted; an array or tensor of several (4 axes);
            a `datasets.Dataset`, also a streamed one; or any list, generator or other iterable.
        image_column: of a dataset; not needed where it has one column of images, or one that is called "image".

    Raises:
        ValueError: for a folder without photographs, a dataset without such a column, or what holds no photographs.
    """
    if is_one_image(inputs):
        return [inputs]
    if isinstance(inputs, (str, os.PathLike)):
        return list_images([inputs])
    if hasattr(inputs, "cast_column") and hasattr(inputs, "features"):
        return _rows_of(inputs, image_column)
    if isinstance(inputs, Iterable):
        return inputs
    raise ValueError(
        f"a {type(inputs).__name__} holds no photographs: give a path, a folder, a PIL image, an array or several of them."
    )


def with_masks(
    sources: Iterable[Item], ignore_mask: MaskSource | Sequence[MaskSource | None] | None
) -> Iterator[tuple[Item, MaskSource | None]]:
    """
    Pair photographs with what is ignored on them: one mask for all, or a list with one (or `None`) for each, in step.

    Raises:
        ValueError: for more or fewer masks than photographs.
    """
    if not isinstance(ignore_mask, (list, tuple)):
        yield from zip(sources, itertools.repeat(ignore_mask), strict=False)
        return
    missing = object()
    for source, mask in itertools.zip_longest(sources, ignore_mask, fillvalue=missing):
        if source is missing or mask is missing:
            raise ValueError(f"{len(ignore_mask)} ignore masks were given with another number of photographs.")
        yield source, mask


def _rows_of(dataset: Any, image_column: str | None) -> Iterable[dict]:
    """Iterate over the undecoded images of a dataset, so that one that is damaged does not end the others."""
    kinds = {name: type(kind) for name, kind in (dataset.features or {}).items()}
    images = [name for name, kind in kinds.items() if kind.__name__ == "Image"]
    column = image_column or (images[0] if len(images) == 1 else "image")
    if column not in images:
        raise ValueError(
            f"The dataset has the columns {sorted(kinds)}, of which {images} hold images: give image_column=... one of these."
        )
    table = dataset.select_columns([column]).cast_column(column, kinds[column](decode=False)).with_format(None)
    return (row[column] for row in table)


def list_images(places: Sequence[str | os.PathLike]) -> list[Path]:
    """
    Name all photographs: files as they are, folders with the image files below them, sorted. Hidden ones are passed over,
    and masks, which are what lies in folders named `ground_truth`.

    Raises:
        ValueError: for a folder without image files, an address, or an empty name.
    """
    if "" in map(os.fspath, places):
        raise ValueError("an empty name is no photograph: give a file, or . for the folder that you are in.")
    if addresses := [str(place) for place in places if re.match(r"[a-z][a-z0-9+.-]+://", str(place), re.IGNORECASE)]:
        raise ValueError(f"{addresses[0]} is an address, and none is fetched: download it and give the file.")
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = []
    for place in map(Path, places):
        if os.path.isdir(place):  # of a name that no file can have, Path raises
            files = [path for path in place.rglob("*") if path.suffix.lower() in endings and path.is_file()]
            shown = [path for path in files if not _is_hidden(path.relative_to(place))]
            inside = sorted(path for path in shown if MASKS not in path.relative_to(place).parts[:-1])
            if len(inside) < len(shown):
                logger.warning("%s: %d masks in %s are passed over.", place, len(shown) - len(inside), MASKS)
            if not inside:
                raise ValueError(f"{place} holds no image files: give photographs, or another folder.")
            paths += inside
        else:
            paths.append(place)
    return paths


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


# --- Places of a photograph that do not count - serial numbers, fixtures -: what lies there has no influence at all ---


NOTHING = "none"  # an ignore_mask by which all counts
MOSTLY = 0.5  # a patch is ignored where more than this share of it is


def load_ignore_mask(source: MaskSource, size: tuple[int, int]) -> np.ndarray:
    """
    Open a mask of the places to ignore as booleans (height, width); whatever is above 0 is ignored.

    Args:
        source: anything that [`load_image`] opens; `"none"`, by which nothing is ignored; or a function of the size.
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


def mask_out(maps: Tensor | None, ignored: Tensor | None) -> Tensor | None:
    """Set maps (batch, rows, columns) to 0 where patches (batch, grid, grid) are ignored."""
    if maps is None or ignored is None:
        return maps
    return maps.masked_fill(F.interpolate(ignored[:, None].float(), size=maps.shape[-2:])[:, 0] > 0, 0)


def mask_out_map(anomaly_map: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Set a map (rows, columns) of any size to 0 where the mask (height, width) of its photograph is set."""
    if mask is None:
        return anomaly_map
    near = Image.fromarray(mask.astype(np.uint8)).resize(anomaly_map.shape[::-1], Image.Resampling.NEAREST)
    return np.where(np.array(near) > 0, 0, anomaly_map).astype(np.float32)


__all__ = [
    "IMAGE_EXTENSIONS",
    "ImageSource",
    "MaskSource",
    "ImageError",
    "NOTHING",
    "WHITE_RANGE",
    "act_on_each",
    "mask_out_map",
    "fill_ignored",
    "mask_out",
    "ignored_patches",
    "is_one_image",
    "list_images",
    "load_ignore_mask",
    "load_mask",
    "load_image",
    "mask_tensor",
    "images_of",
    "source_path",
    "with_masks",
]
