"""Photographs of any kind, from a file, memory or a table, as upright RGB; masks as booleans."""

import io
import os
import re
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError


# White value of modes that have no fixed one; never taken from the photograph itself, or two photographs of one part
# would be scaled differently.
WHITE_VALUES = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0, "I": 65535.0, "F": 1.0}
# Resampling leaves the range a little; values farther out are on another scale.
ACCEPTED_RANGE = (-0.5, 1.5)
ANY_MARK = 1e-6  # white value of masks: whatever is above 0 becomes visible


class ImageError(ValueError):
    """A photograph that cannot be used; the message names it and says what to do."""


def load_photograph(source: Any, *, white_value: float | None = None) -> Image.Image:
    """
    Open a photograph of any kind as RGB, upright.

    EXIF rotation is applied. Alpha is laid over white. 16-bit and float greyscale are divided by a fixed white value:
    65535 for integers, 1.0 for floats, or `white_value` (4095 for a 12-bit camera). Colour profiles are ignored, and so
    are all frames but the first.

    Args:
        source: path, file, bytes, `{"path", "bytes"}` as `datasets.Image(decode=False)` gives, PIL image, array
            (height, width) or (height, width, 1 | 3 | 4), or tensor (1 | 3 | 4, height, width), of bool, uint8, uint16
            or floats within 0 and 1.
        white_value: overrides the white value of 16-bit and float greyscale.

    Raises:
        ImageError: if it cannot be read whole, or has values on another scale.
    """
    return _load(source, white_value, "white")


def load_mask(source: Any, *, size: tuple[int, int] | None = None) -> np.ndarray:
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


def _load(source: Any, white_value: float | None, background: str) -> Image.Image:
    try:
        return _read(source, white_value, background)
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        raise ImageError(f"{_name_of(source)}: {_reason(error)}") from error


def _read(source: Any, white_value: float | None, background: str) -> Image.Image:
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return _to_rgb(_from_array(source, white_value), white_value, background)
    if isinstance(source, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(source), white_value, background)
    if isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        raise ImageError("addresses are not fetched: download the photograph and give the file.")
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read"):
        raise ImageError(f"a {type(source).__name__} is no photograph: give a path, bytes, a PIL image or an array.")
    with Image.open(source) as image:
        return _to_rgb(ImageOps.exif_transpose(image), white_value, background)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "there is no such file."
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a photograph: give the files inside."
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow can read: check or remove the file."
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large to open ({error}): make it smaller, or cut it into tiles."
    return f"cannot be read whole ({error}): copy it again or remove it."


def _name_of(source: Any) -> str:
    return source_path(source) or ("image in a table" if isinstance(source, dict) else "image in memory")


def source_path(source: Any) -> str | None:
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
    values = np.nan_to_num(np.asarray(array, dtype=np.float64)) / (white_value or usual_white)
    if white_value is None and not ACCEPTED_RANGE[0] <= values.min() <= values.max() <= ACCEPTED_RANGE[1]:
        raise ImageError(
            f"values from {np.min(array):g} to {np.max(array):g} do not fit the usual white of {usual_white:g}: "
            "scale them, or give the processor the white_value of your camera."
        )
    return np.clip(np.rint(255 * values), 0, 255).astype(np.uint8)


def _to_rgb(image: Image.Image, white_value: float | None, background: str) -> Image.Image:
    if image.mode in WHITE_VALUES:
        image = Image.fromarray(_scaled(np.asarray(image), white_value, WHITE_VALUES[image.mode]))
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


__all__ = ["ImageError", "load_mask", "load_photograph", "source_path"]
