"""Images of any kind, from a file, memory, a folder or a table, as upright RGB; masks, and what is to be ignored, as booleans."""

import contextlib
import errno
import functools
import importlib
import importlib.util
import io
import itertools
import json
import logging
import os
import re
import stat
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
WHITE_RANGE = (1e-6, 2**32)  # of a white value that is given
MANY = 0.05  # more values above white than a bright spot has
CAMERA_WHITES = {10: 1023, 12: 4095, 14: 16383}  # bits of a camera -> its white value


# What opens as an image: a path, a file, bytes, a row `{"path", "bytes"}` of a table, a PIL image, an array or a tensor.
ImageSource = str | os.PathLike | bytes | dict | Image.Image | np.ndarray | torch.Tensor | BinaryIO
# What marks what does not count: an image, "none", or a function of (height, width).
MaskSource = ImageSource | Callable[[tuple[int, int]], np.ndarray]


class ImageError(ValueError):
    """A photograph that cannot be used; the message names it and says what to do."""


def load_image(source: ImageSource, *, white_value: float | None = None) -> Image.Image:
    """
    Open a photograph of any kind as RGB, upright.

    EXIF rotation is applied. Alpha is laid over white; one that is 0 everywhere is unused. Values of more than 8 bits are
    divided by a fixed white value: what the file says (65535 for 16 bits, 4095 for 12), 1.0 for floats, or `white_value`
    (4095 for a 12-bit camera whose files have 16). Color profiles are ignored. Of several pages of a TIFF the largest is
    taken, of all other files the first frame.

    Args:
        source: path, file, bytes, `{"path", "bytes"}` as `datasets.Image(decode=False)` gives, PIL image, array
            (height, width) or (height, width, 1 | 3 | 4), or tensor (1 | 3 | 4, height, width), of bool, uint8, uint16
            or finite floats within 0 and 1.
        white_value: overrides the white value of photographs with more than 8 bits for each channel.

    Raises:
        ImageError: if it cannot be read whole, has no pixels, values that are not finite or on another scale, or is the
            mosaic of a color sensor.
    """

    def to_rgb(opened: Image.Image | np.ndarray, name: str) -> Image.Image:
        if (deep := _deep_of(opened, name, white_value)) is not None:
            image = deep.in_eight_bits(white_value, name)
        else:
            image = Image.fromarray(opened) if isinstance(opened, np.ndarray) else ImageOps.exif_transpose(opened)
        if image.mode == "L" and _is_mosaic(np.asarray(image)):
            raise ImageError(MOSAIC_REFUSAL)
        return _to_rgb(image)

    return _load(source, to_rgb)


def load_mask(
    source: ImageSource, *, size: tuple[int, int] | None = None, photograph: ImageSource | None = None
) -> np.ndarray:
    """
    Open a mask as booleans (height, width); transparency marks nothing.

    Pictures of grey values, JPEG and soft borders among them, mark from half of white on. Pictures of labels - a few low
    numbers, or a few grey values that are no soft border - mark wherever they are not 0, palettes, and low numbers beside
    255, wherever their number is not 0 and not 255, which stands for "unknown". A folder of masks marks what any of them does.

    Args:
        size: (height, width) of its photograph.
        photograph: whose EXIF orientation is applied to a mask that was drawn on the stored pixels.

    Raises:
        ImageError: if it cannot be read, has another size, or may or may not have been drawn on turned pixels.
    """
    return _open_mask(source, size, photograph, _marked)


def _open_mask(
    source: ImageSource,
    size: tuple[int, int] | None,
    photograph: ImageSource | None,
    marks: Callable[[Image.Image | np.ndarray, str], tuple[np.ndarray, bool]],
) -> np.ndarray:
    """Open a mask, or a folder of them, by what marks a pixel: see [`load_mask`] and [`load_ignore_mask`]."""
    if isinstance(source, dict) and source.get("bytes") is None:
        source = source.get("path")
    if isinstance(source, (str, os.PathLike)) and os.fspath(source) and os.path.isdir(source):
        if not (paths := image_files(Path(source), masks=True)):
            raise ImageError(f"{source}: is a folder without masks: give a file, or another folder.")
        parts = [_open_mask(path, size, photograph, marks) for path in paths]
        if len({part.shape for part in parts}) > 1:
            raise ImageError(f"{source}: its masks differ in size: export them at the photograph's own size.")
        return np.logical_or.reduce(parts)
    mask, has_exif = _load(source, marks)
    if size is None:
        return mask
    orientation = 1 if has_exif or photograph is None else _orientation_of(photograph)
    if orientation != 1:
        mask = _turned_along(mask, orientation, tuple(size), _name_of(source))
    if mask.shape != tuple(size):
        raise ImageError(
            f"{_name_of(source)}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels and its photograph "
            f"{size[1]} x {size[0]}: export the mask at the photograph's own size."
        )
    return mask


Opened = TypeVar("Opened")


def _load(source: ImageSource, act: Callable[[Image.Image | np.ndarray, str], Opened]) -> Opened:
    """Open a source as a PIL image or an array, and act on it while it is open; whatever fails names the source."""
    name = _name_of(source)
    try:
        return _read(source, act, name)
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        raise ImageError(f"{name}: {_reason(error)}") from error


def _read(source: ImageSource, act: Callable[[Image.Image | np.ndarray, str], Opened], name: str) -> Opened:
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return act(_checked_array(source), name)
    if isinstance(source, Image.Image):
        return act(_with_pixels(source), name)
    if isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        raise ImageError("addresses are not fetched: download the photograph and give the file.")
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    if isinstance(source, (str, os.PathLike)):
        _refuse_stream(source)
    elif not hasattr(source, "read"):
        raise ImageError(f"a {type(source).__name__} is no photograph: give a path, bytes, a PIL image or an array.")
    with _open_file(source, name) as image:
        return act(_with_pixels(image), name)


def _open_file(source: str | os.PathLike | BinaryIO, name: str) -> Image.Image:
    """Open a file with Pillow, at the page that counts; HEIC where `pillow-heif` is installed. Raw files are refused."""
    if is_raw := name.lower().endswith(RAW_ENDINGS):
        raise ImageError(RAW_REFUSAL)
    try:
        image = Image.open(source)
    except UnidentifiedImageError:
        if not _is_heif(source, name):
            raise
        if not heif_is_installed():
            raise ImageError(HEIF_REFUSAL) from None
        importlib.import_module("pillow_heif").register_heif_opener()
        image = Image.open(source)
    if image.format == "TIFF":
        is_raw = DNG_VERSION in image.tag_v2 or image.tag_v2.get(PHOTOMETRIC) in RAW_PHOTOMETRICS
        if is_raw:
            raise ImageError(RAW_REFUSAL)
        _seek_largest(image, name)
    return image


RAW_ENDINGS = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw")
RAW_REFUSAL = (
    "is a raw file of a camera: export it as 16-bit TIFF or PNG (with darktable-cli or rawpy), and give that."
)
HEIF_REFUSAL = "is a HEIC photograph: pip install pillow-heif, or convert it to JPEG or PNG."
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
BITS, PHOTOMETRIC, PLANES, DNG_VERSION = 258, 262, 284, 50706  # tags of TIFF
RAW_PHOTOMETRICS = (32803, 34892)  # color filter array, linear raw


def heif_is_installed() -> bool:
    """Whether HEIC photographs can be opened."""
    return importlib.util.find_spec("pillow_heif") is not None


def _is_heif(source: str | os.PathLike | BinaryIO, name: str) -> bool:
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            head = file.read(12)
    else:
        source.seek(0)
        head = source.read(12)
        source.seek(0)
    return (head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS) or name.lower().endswith(HEIF_ENDINGS)


def _seek_largest(image: Image.Image, name: str) -> None:
    """Go to the largest page of a TIFF, the first of several equal ones: others may be previews."""
    if image.n_frames < 2:
        return
    sizes = []
    for page in range(image.n_frames):
        image.seek(page)
        sizes.append(image.width * image.height)
    largest = sizes.index(max(sizes))
    image.seek(largest)
    _warn_once(f"{name}: has {len(sizes)} pages; page {largest + 1} is taken ({image.width} x {image.height}).")


@functools.lru_cache(maxsize=10_000)
def _warn_once(message: str) -> None:
    """Log a warning; a fit opens the same photograph many times."""
    logger.warning("%s", message)


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


def _checked_array(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """Bring an array or tensor to (height, width) or (height, width, 3 | 4)."""
    if isinstance(array, torch.Tensor):
        array = (array.float() if array.is_floating_point() else array).detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ImageError(f"shape {array.shape} is no image: give (height, width) or (height, width, 3).")
    return array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array


def _with_pixels(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"has no pixels ({image.width} x {image.height}): leave it out.")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert 8 bits of any mode, upright, to RGB over white."""
    if image.mode in ("La", "RGBa"):  # colors multiplied by alpha
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getextrema()[3] != (0, 0):  # a fourth channel that nobody filled is no transparency
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# --- More than 8 bits for each channel: Pillow keeps them of grey values alone, so colors are read byte by byte ---


@dataclass
class _DeepValues:
    """
    Upright values of more than 8 bits, or of floats.

    Args:
        values: (height, width) or (height, width, channels): grey, grey and alpha, RGB, or RGB and alpha.
        white: what the file calls white.
        is_inverted: whether 0 is white, as in TIFFs of the kind WhiteIsZero.
    """

    values: np.ndarray
    white: float
    is_inverted: bool = False

    def in_eight_bits(self, white_value: float | None, name: str) -> Image.Image:
        """Scale to the white value that was given, or else the file's own."""
        values = self.values if self.values.ndim == 3 else self.values[..., None]
        count = values.shape[-1] - (values.shape[-1] in (2, 4))
        colors = _scaled(values[..., :count], white_value, self.white, name)
        colors = 255 - colors if self.is_inverted else colors
        alpha = values[..., count:]
        if alpha.size and alpha.min() < alpha.max():  # one that is the same everywhere is no transparency
            # opaque is white's number in files whose camera fills all channels alike
            opaque = white_value if white_value and alpha.max() <= white_value else None
            colors = np.concatenate([colors, _scaled(alpha, opaque, self.white, "")], axis=-1)
        return Image.fromarray(colors[..., 0] if colors.shape[-1] == 1 else colors)


def _scaled(array: np.ndarray, white_value: float | None, usual_white: float, name: str) -> np.ndarray:
    """Bring values to uint8; without a `white_value`, ones that cannot have been meant for the usual white fail."""
    values = np.asarray(array, dtype=np.float64) / (white_value or usual_white)
    if not np.isfinite(values).all():
        raise ImageError("has values that are not finite (NaN or infinite): replace them, or leave the image out.")
    lowest, highest = np.min(array), np.max(array)
    if white_value is None and not ACCEPTED_RANGE[0] <= values.min() <= values.max() <= ACCEPTED_RANGE[1]:
        raise ImageError(
            f"values from {lowest:g} to {highest:g} do not fit the usual white of {usual_white:g}: "
            "scale them, or give the processor the white_value of your camera."
        )
    if name and white_value is not None and (bright := float((values > 1).mean())) > MANY:
        _warn_once(
            f"{name}: {bright:.0%} of its values are above the white value {white_value:g} and seen as white (the largest is "
            f"{highest:g}): give the white_value that its camera has."
        )
    if name and white_value is None and usual_white == 65535 and 0 < highest <= max(CAMERA_WHITES.values()):
        whites = [f"{white} for {bits} bits" for bits, white in CAMERA_WHITES.items() if highest <= white]
        _warn_once(
            f"{name}: no value is above {highest} of {usual_white:g}, so it is seen nearly black: give white_value, as in "
            f"--white_value, of the camera ({', '.join(whites)})."
        )
    return np.clip(np.rint(255 * values), 0, 255).astype(np.uint8)


def _deep_of(opened: Image.Image | np.ndarray, name: str, white_value: float | None) -> _DeepValues | None:
    """Read values of more than 8 bits; `None` where 8 bits are all there is, or all that is asked for."""
    if isinstance(opened, np.ndarray):
        return _deep_array(opened, white_value)
    tile = opened.tile[0] if getattr(opened, "tile", None) else None  # of a file that is not read yet
    if opened.mode in WHITE_VALUES:
        return _deep_grey(opened, tile)
    rawmode = "" if tile is None else tile.args if isinstance(tile.args, str) else str((tile.args or [""])[0])
    if tile is not None and opened.format == "PPM" and tile.codec_name == "ppm" and tile.args[1] > 255:
        return _deep_ppm(opened, tile)
    if opened.format == "TIFF" and opened.tag_v2.get(PLANES) == 2 and max(opened.tag_v2.get(BITS, (1,))) > 8:
        raise ImageError(DEEP_REFUSAL)  # whose values Pillow mixes up
    if ";16" not in rawmode:
        depth = _jpeg2000_bits(opened) if tile is not None and opened.format == "JPEG2000" else 8
        if white_value is not None and (depth > 8 or (tile is not None and tile.codec_name == "SGI16")):
            raise ImageError(DEEP_REFUSAL)
        return None
    kind, order = rawmode.split(";16")
    if kind not in ("RGB", "RGBX", "RGBA", "LA"):
        if white_value is not None:
            raise ImageError(DEEP_REFUSAL)
        return None  # as Pillow has it
    transparency = opened.info.get("transparency")
    values = _both_bytes(opened, kind, order)
    if transparency is not None:  # one color, in 16 bits
        alpha = np.where((values == np.array(transparency)).all(-1), 0, 65535)[..., None]
        values = np.concatenate([values, alpha.astype(np.uint16)], axis=-1)
    return _DeepValues(values, 65535.0)


DEEP_REFUSAL = (
    "holds more than 8 bits for each channel in a way that no white value can be applied to: save it as a 16-bit PNG, or "
    "as a TIFF whose channels lie pixel by pixel."
)


def _deep_array(array: np.ndarray, white_value: float | None) -> _DeepValues | None:
    if array.dtype == np.uint8:
        return None
    if array.dtype.kind != "f" and array.dtype != np.uint16 and (white_value is None or array.dtype.kind not in "iu"):
        raise ImageError(
            f"{array.dtype} says nothing about white: give uint8, uint16, floats within 0 and 1, or bool."
        )
    return _DeepValues(array, 1.0 if array.dtype.kind == "f" else 65535.0)


def _deep_grey(image: Image.Image, tile: tuple | None) -> _DeepValues:
    """Read grey values as the file has them: Pillow spreads those of JPEG 2000 and PGM over 16 bits."""
    white, is_inverted, spread = WHITE_VALUES[image.mode], False, 1.0
    if image.format == "TIFF":
        is_inverted = image.tag_v2.get(PHOTOMETRIC) == 0
        white = 4095.0 if image.tag_v2.get(BITS) == (12,) else white
    elif tile is not None and image.format == "JPEG2000" and (bits := _jpeg2000_bits(image)) < 16:
        white, spread = 2.0**bits - 1, 2.0 ** (16 - bits)
    elif tile is not None and image.format == "PPM" and tile.codec_name != "raw":
        white, spread = float(tile.args[1]), 65535 / tile.args[1]
    values = np.asarray(ImageOps.exif_transpose(image))
    return _DeepValues(values if spread == 1 else np.rint(values / spread), white, is_inverted)


def _deep_ppm(image: Image.Image, tile: tuple) -> _DeepValues:
    """Read RGB of 16 bits from a binary PPM, whose header says what white is."""
    image.fp.seek(tile.offset)
    count = 3 * image.width * image.height
    data = image.fp.read(2 * count)
    if len(data) < 2 * count:
        raise ImageError("cannot be read whole (its end is missing): copy it again or remove it.")
    values = np.frombuffer(data, ">u2").astype(np.uint16)
    return _DeepValues(values.reshape(image.height, image.width, 3), float(tile.args[1]))


def _both_bytes(image: Image.Image, kind: str, order: str) -> np.ndarray:
    """
    Read 16-bit channels (height, width, channels), upright.

    Pillow keeps the high byte of each value. Read once more as if their order were the other one, the low byte is kept.
    """
    image.fp.seek(0)
    data, page = image.fp.read(), image.tell()
    order = {"N": sys.byteorder[0].upper()}.get(order, order)

    def read(mode: str, rawmode: str) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as again:
            if page:
                again.seek(page)
            again._mode = mode
            again.tile = [
                tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:]))
                for tile in again.tile
            ]
            return np.asarray(ImageOps.exif_transpose(again)).astype(np.uint16)

    if kind == "LA":  # four bytes a pixel
        four = read("RGBA", "RGBA")
        return four[..., 0::2] * 256 + four[..., 1::2]
    high, low = (read(image.mode, f"{kind};16{each}") for each in (order, "L" if order == "B" else "B"))
    return high * 256 + low


def _jpeg2000_bits(image: Image.Image) -> int:
    """Read from a JPEG 2000 how many bits its first channel has."""
    image.fp.seek(0)
    head = image.fp.read(65_536)
    place = head.find(b"\xff\x4f\xff\x51")  # where the code stream starts, followed by its sizes
    return (head[place + 42] & 0x7F) + 1 if 0 <= place < len(head) - 42 else 8


# --- What a color sensor saw, saved as a grey picture: behind one filter each pixel knows red, green or blue alone ---


MOSAIC_REFUSAL = (
    "is what a color sensor saw before its pixels were made colors (a Bayer pattern), as a grey picture: let the camera "
    "save colors, or convert it (cv2.cvtColor with cv2.COLOR_BayerRG2RGB, or the pattern of the camera)."
)
TILE_SIDE, BANDS = 128, 16  # pixels of a place that is looked at; of its frequencies, in each direction, as many bands
MIDDLE = BANDS // 2  # the band of the highest frequency: two pixels are a period
# How much stronger a mosaic is there than next to it, and than any other fine pattern, and how strong at least, of the
# mean. Real photographs, also made smaller or larger, reach 6 at most next to it, those behind filters from 12 on.
ABOVE_NEXT, ABOVE_FINE, LEAST_MOSAIC = 10.0, 1.25, 0.01


def _is_mosaic(grey: np.ndarray) -> bool:
    """
    Whether grey values (height, width) lie behind the filters of a color sensor.

    Rows and columns then change between two colors, pixel by pixel, as nothing does that a lens has drawn. A fine regular
    grid has harmonics there, but then others too that are as strong.
    """
    if min(grey.shape) < TILE_SIDE:
        return False
    rows, columns = (side - TILE_SIDE for side in grey.shape)
    places = [(rows * row // 4, columns * column // 4) for row, column in WINDOWS]
    tiles = np.stack([grey[y : y + TILE_SIDE, x : x + TILE_SIDE] for y, x in places]).astype(np.float32)
    mean, fade = tiles.mean(), np.hanning(TILE_SIDE + 1)[:-1]
    fade = fade[:, None] * fade
    power = (np.abs(np.fft.fft2((tiles - tiles.mean((1, 2), keepdims=True)) * fade)) ** 2).mean(0)
    width = TILE_SIDE // BANDS
    bands = np.roll(power, width // 2, (0, 1)).reshape(BANDS, width, BANDS, width).sum((1, 3))  # each about its middle
    across, down = bands[0, MIDDLE], bands[MIDDLE, 0]
    nearby = max(_mean_around(bands, 0, MIDDLE), _mean_around(bands, MIDDLE, 0))
    weaker = min(across, down)
    return bool(
        weaker > (LEAST_MOSAIC * mean * fade.sum()) ** 2
        and weaker > ABOVE_NEXT * nearby
        and weaker > ABOVE_FINE * bands[_fine_bands()].max()
    )


def _mean_around(bands: np.ndarray, row: int, column: int) -> float:
    """Average the eight bands around one; the highest frequency is followed by its mirror image."""
    around = np.roll(bands, (1 - row, 1 - column), (0, 1))[:3, :3]
    return float((around.sum() - around[1, 1]) / 8)


def _fine_bands() -> np.ndarray:
    """Say which bands hold fine patterns, and harmonics of a grid; but not those at the highest frequencies, or around these."""
    number = np.minimum(np.arange(BANDS), BANDS - np.arange(BANDS))
    down, across = np.meshgrid(number, number, indexing="ij")
    is_fine = (np.hypot(down, across) >= 5) | ((down % 4 == 0) & (across % 4 == 0))
    is_near_highest = (np.minimum(down, MIDDLE - down) <= 1) & (np.minimum(across, MIDDLE - across) <= 1)
    return is_fine & ~is_near_highest


# --- Masks ---


FEW_LEVELS = 16  # a picture with more values besides 0 holds no labels
FAINT = 1 / 16  # of white: below, a value is noise beside one that is above half of white
WHITES = (1, 255, 4095, 65535)  # of masks: the first that no value exceeds; 1 only of floats
VOID = 255  # in palettes: nobody knows what it is
TURNS = {  # EXIF orientation -> how stored pixels become upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112  # tag of EXIF


def _marked(opened: Image.Image | np.ndarray, name: str) -> tuple[np.ndarray, bool]:
    """Say which pixels a mask marks, upright, and whether its file has an EXIF orientation of its own."""
    values, is_numbered, has_exif = _mask_values(opened, name)
    return (values != 0) & (values != VOID) if is_numbered else _marked_values(values), has_exif


def _touched(opened: Image.Image | np.ndarray, name: str) -> tuple[np.ndarray, bool]:
    """Say which pixels an ignore mask marks, however faint; else as [`_marked`]."""
    values, _, has_exif = _mask_values(opened, name)
    return values > 0, has_exif


def _mask_values(opened: Image.Image | np.ndarray, name: str) -> tuple[np.ndarray, bool, bool]:
    """Read the values (height, width) of a mask, upright; say if they are numbers of a palette, and if its file has EXIF."""
    is_numbered, has_exif = False, False
    if isinstance(opened, np.ndarray):
        values = opened.max(-1) if opened.ndim == 3 else opened
    else:
        has_exif = opened.getexif().get(ORIENTATION, 1) != 1
        if (deep := _deep_of(opened, name, None)) is not None:
            values = deep.values
            if values.ndim == 3 and values.shape[-1] in (2, 4):  # what is clear marks nothing
                values = np.where(values[..., -1:] > 0, values[..., :-1], 0)
            values = values.max(-1) if values.ndim == 3 else values
            values = deep.white - values if deep.is_inverted else values
        else:
            image = ImageOps.exif_transpose(opened)
            is_numbered = image.mode in ("P", "PA") and not _is_grey_ramp(image)
            values = np.asarray(image.getchannel(0)) if is_numbered else _brightest(image)
    if not np.isfinite(values).all():
        raise ImageError("has values that are not finite (NaN or infinite): replace them, or leave the image out.")
    return values, is_numbered, has_exif


def _is_grey_ramp(image: Image.Image) -> bool:
    """Whether the colors of a palette are grey values that rise with their numbers, so that the picture is a grey one."""
    used = [number for _, number in image.getchannel(0).getcolors(256)]
    palette = np.frombuffer(image.palette.tobytes(), np.uint8)
    colors = palette[: len(palette) // 3 * 3].reshape(-1, 3)[sorted(used)] if image.palette.mode == "RGB" else []
    return len(colors) > 1 and bool((colors == colors[:, :1]).all() and (np.diff(colors[:, 0].astype(int)) > 0).all())


def _brightest(image: Image.Image) -> np.ndarray:
    """Return the brightest channel (height, width) over black; where all is black, alpha is what marks."""
    if image.mode == "1":
        image = image.convert("L")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return np.asarray(image if image.mode == "L" else image.convert("RGB")).reshape(*image.size[::-1], -1).max(-1)
    image = image.convert("RGBA")
    colors, alpha = np.asarray(image)[..., :3].max(-1), np.asarray(image)[..., 3]
    if not alpha.any():
        return colors
    over_black = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "black"), image))[..., :3].max(-1)
    return over_black if over_black.any() or alpha.min() == alpha.max() else alpha


def _marked_values(values: np.ndarray) -> np.ndarray:
    """Say which grey values (height, width) mark: see [`load_mask`]."""
    highest = values.max()
    whites = WHITES if values.dtype.kind == "f" else WHITES[1:]
    half = next((white for white in whites if highest <= white), highest) / 2
    levels = _few_levels(values)
    if levels is not None and (highest < half or _are_labels(values, levels, half)):
        return values > 0
    if levels is not None and highest == VOID and _are_numbers(values, levels[:-1], half):
        return (values > 0) & (values != VOID)
    return values >= half


def _few_levels(values: np.ndarray) -> np.ndarray | None:
    """Return the distinct values besides 0, `None` if there are many."""
    sample = np.unique(values.ravel()[:: max(1, values.size // 10_000)])  # so that most pictures need no sorting
    levels = np.unique(values) if len(sample) <= FEW_LEVELS + 1 else sample
    levels = levels[levels > 0]
    return levels if len(levels) <= FEW_LEVELS else None


def _are_labels(values: np.ndarray, levels: np.ndarray, half: float) -> bool:
    """Whether values below half of white are labels too: neither noise near black, nor the soft border of brighter ones."""
    dim = levels[levels < half]
    if not len(dim) or dim[0] < FAINT * 2 * half:
        return False
    shown = torch.from_numpy(values.astype(np.float32))
    near = F.max_pool2d(shown[None], 3, stride=1, padding=1)[0].numpy()
    return all((near[values == level] <= level).mean() > 0.5 for level in dim)


def _are_numbers(values: np.ndarray, levels: np.ndarray, half: float) -> bool:
    """Whether all values below white are so low that nobody sees them, and yet fill areas, as noise does not."""
    if not len(levels) or levels[-1] >= FAINT * 2 * half:
        return False
    shown = torch.from_numpy(values.astype(np.float32))[None]
    highest, lowest = (sign * F.max_pool2d(sign * shown, 3, stride=1, padding=1)[0].numpy() for sign in (1, -1))
    return all((highest == lowest)[values == level].mean() > 0.5 for level in levels)


def _orientation_of(photograph: ImageSource) -> int:
    """Read the EXIF orientation of a photograph, 1 where it has none, or was a stream that cannot be read again."""
    if isinstance(photograph, (np.ndarray, torch.Tensor)) or _is_spent(photograph):
        return 1
    return _load(photograph, lambda image, name: image.getexif().get(ORIENTATION, 1))


def _is_spent(source: ImageSource) -> bool:
    """Whether what was read once cannot be read again: a stream that cannot go back."""
    return hasattr(source, "read") and not (hasattr(source, "seekable") and source.seekable())


def _turned_along(mask: np.ndarray, orientation: int, size: tuple[int, int], name: str) -> np.ndarray:
    """Turn a mask that was drawn on the stored pixels of a photograph of (height, width), as the photograph is."""
    if orientation not in TURNS:
        return mask
    stored = size[::-1] if orientation >= 5 else size
    if mask.shape == stored == size:
        raise ImageError(
            f"the photograph of {name} is turned by its EXIF orientation ({orientation}), and the mask may be drawn on "
            "either way round: save the photograph upright without EXIF orientation, and the mask as it is then."
        )
    if mask.shape != stored:
        return mask
    return np.asarray(Image.fromarray(mask).transpose(TURNS[orientation]))


# --- Whether two photographs are the same picture, and when one was taken ---


PRINT_SIDE = 16
# Of 255: what JPEG and WebP change, down to quality 75; two parts differ by 1.8 and 12 at least.
SAME_MEAN, SAME_MOST = 1.0, 6.0
WINDOW_SIDE = 32  # pixels as they are, where the small picture cannot tell: fine grain has one mean everywhere
WINDOWS = ((1, 1), (1, 3), (2, 2), (3, 1), (3, 3))  # fourths of what is left of height and width
# Of fine grain JPEG and WebP change, down to quality 50, 2.9 of 255 at most (deviation), or 0.5 of both pictures' own
# squares; that of other photographs differs by all of these, 1.0.
SAME_GRAIN, SAME_SHARE = 3.0, 0.6
FLAT = 1.0  # of 255: a photograph whose values differ by no more shows nothing
DARK, DARK_NOISE = 24, 16  # of 255: how bright, and how noisy, a covered camera is
STRAY = 1e-5  # share of pixels that may be any, and as many as these in all: a few are broken, a small part has more
STRAY_PIXELS = 4
TAKEN = (36867, 36868, 306)  # tags of EXIF: when it was taken, digitized, written


@dataclass
class PicturePrint:
    """
    What is kept of a photograph to find it again.

    Args:
        size: width and height.
        small: uint8 (side, side, 3), all of it.
        windows: uint8 (windows, side, side), some places pixel by pixel.
    """

    size: tuple[int, int]
    small: np.ndarray
    windows: np.ndarray

    def has_grain_of(self, other: "PicturePrint") -> bool:
        """Whether the fine grain is the same too, and not only what is left in a small picture; not told of two sizes."""
        if self.size != other.size:
            return True
        own, others = (each.windows - each.windows.mean((1, 2), keepdims=True) for each in (self, other))
        apart, both = ((own - others) ** 2).mean((1, 2)), (own**2 + others**2).mean((1, 2))
        return bool((apart <= np.maximum(SAME_GRAIN**2, SAME_SHARE * both)).all())

    def packed(self) -> np.ndarray:
        """Bring it to one row of `PRINT_BYTES` numbers, uint8."""
        size = np.frombuffer(np.array(self.size, dtype="<u4").tobytes(), dtype=np.uint8)
        return np.concatenate([size, self.small.ravel(), self.windows.ravel()])

    @classmethod
    def unpacked(cls, row: np.ndarray) -> "PicturePrint":
        """Read what [`packed`] wrote."""
        size, small, windows = np.split(row, [8, 8 + 3 * PRINT_SIDE**2])
        width, height = np.frombuffer(size.tobytes(), dtype="<u4").tolist()
        shapes = (PRINT_SIDE, PRINT_SIDE, 3), (len(WINDOWS), WINDOW_SIDE, WINDOW_SIDE)
        return cls((width, height), small.reshape(shapes[0]), windows.reshape(shapes[1]))


PRINT_BYTES = 8 + 3 * PRINT_SIDE**2 + len(WINDOWS) * WINDOW_SIDE**2


def print_of(photograph: Image.Image) -> PicturePrint:
    """Reduce an RGB photograph to what tells it from others."""
    small = photograph.resize((PRINT_SIDE, PRINT_SIDE), Image.Resampling.BOX)
    (width, height), windows = photograph.size, []
    size, across, down = (WINDOW_SIDE, WINDOW_SIDE), min(WINDOW_SIDE, width), min(WINDOW_SIDE, height)
    for row, column in WINDOWS:
        left, top = (width - across) * column // 4, (height - down) * row // 4
        window = photograph.crop((left, top, left + across, top + down)).convert("L")
        windows.append(np.asarray(window if window.size == size else window.resize(size, Image.Resampling.NEAREST)))
    return PicturePrint(photograph.size, np.asarray(small), np.stack(windows))


def same_pictures(prints: Sequence[PicturePrint], *, known: int = 0) -> dict[int, int]:
    """
    Find photographs that are another one once more, in another file format for instance: number -> an earlier one's.

    The earlier one is none of those found: photographs that change little by little are not all the first one.

    Args:
        known: how many of them, the first ones, are not looked for.
    """
    if len(prints) < 2:
        return {}
    small = torch.from_numpy(np.stack([each.small for each in prints])).float()
    flat, coarse = small.flatten(1), F.avg_pool2d(small.permute(0, 3, 1, 2), 4).flatten(1)
    found: dict[int, int] = {}
    for number in range(max(1, known), len(prints)):
        # means of squares differ by no more than their pixels do, so this leaves few to be compared
        near = ((coarse[:number] - coarse[number]).abs().mean(1) <= SAME_MEAN).nonzero()[:, 0]
        apart = (flat[near] - flat[number]).abs()
        same = near[(apart.mean(1) <= SAME_MEAN) & (apart.amax(1) <= SAME_MOST)] if len(near) else near
        for first in same.tolist():
            if first not in found and prints[first].has_grain_of(prints[number]):
                found[number] = first
                break
    return found


def is_flat(photograph: Image.Image) -> bool:
    """Whether a photograph shows nothing: one color, or the noise of a camera with its lens cap on; stray pixels aside."""
    counts = np.array(photograph.convert("L").histogram())
    stray = max(STRAY_PIXELS, STRAY * counts.sum())
    low, high = (counts.cumsum() > stray).argmax(), 255 - (counts[::-1].cumsum() > stray).argmax()
    return bool(high - low <= (DARK_NOISE if high <= DARK else FLAT))


def taken_at(source: ImageSource) -> str | None:
    """Read when a photograph was taken, as `YYYY:MM:DD HH:MM:SS`; `None` where its file does not say so, or cannot."""
    if isinstance(source, (np.ndarray, torch.Tensor)) or _is_spent(source):
        return None

    def read(image: Image.Image, name: str) -> str | None:
        exif = image.getexif()
        inside = {**exif, **exif.get_ifd(0x8769)}
        return next((str(inside[tag]) for tag in TAKEN if inside.get(tag)), None)

    try:
        return _load(source, read)
    except ImageError:  # a photograph that can be seen needs no date
        return None


# --- Whatever holds photographs - a file, a folder, an array, a list, a table, a camera - as a stream of them ---


logger = logging.getLogger(__name__)

# Endings of photographs, for every command: in folders all else is passed over.
HEIF_ENDINGS = (".heic", ".heif", ".hif")  # where these can be opened
IMAGE_EXTENSIONS = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".gif",
        ".tga",
        ".jp2",
        ".avif",
    }
    | {".ppm", ".pgm", ".pbm", ".pnm"}
    | (set(HEIF_ENDINGS) if heif_is_installed() else set())
)

# Folders of these names, in any case, hold no photographs: masks, and what programs leave behind.
MASK_FOLDERS = {"ground_truth", "groundtruth", "mask", "masks", "gt", "label", "labels", "annotation", "annotations"}
OTHER_FOLDERS = {"results", "@eadir", "__macosx"}


def _beside(words: str) -> re.Pattern:
    """Match file names of masks that lie beside their photographs, by the words that say so."""
    return re.compile(rf"(?:{words}[_\- ]+(?P<after>.+)|(?P<before>.+)[_\- .]+{words})", re.IGNORECASE)


@dataclass(frozen=True)
class PassedNames:
    """
    What is no photograph, by its name.

    Args:
        masks, others: folders of masks, and of other things, in small letters.
        beside: what the name of a mask beside its photograph is like.
    """

    masks: Set[str]
    others: Set[str]
    beside: re.Pattern


# Of a data set, whose photographs have masks; and of any folder, where a label may be what the camera looks at.
OF_DATA = PassedNames(
    MASK_FOLDERS,
    OTHER_FOLDERS,
    _beside(r"(?:ground_?truth|masks?|gt|labels?|seg(?:mentation)?|anno(?:tation)?s?)"),
)
UNMISTAKABLE = PassedNames(
    {"ground_truth", "groundtruth", "mask", "masks", "gt"},
    {"@eadir", "__macosx"},
    _beside(r"(?:ground_?truth|masks?|gt)"),
)
RESULTS = "results.jsonl"  # what `anople predict --output` writes, a line for each photograph
RESULT_KEYS = ("path", "class", "score", "label")


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
    Name all photographs: files as they are, folders with the image files below them, sorted.

    What else lies in a folder is passed over and counted: other endings, what is called a mask and can be nothing else
    (`x_mask`, `x_gt`, `ground_truth`), results of this program. Hidden files are passed over. A linked folder is followed
    once.

    Raises:
        ValueError: for a folder without image files, an address, or an empty name.
    """
    if "" in map(os.fspath, places):
        raise ValueError("an empty name is no photograph: give a file, or . for the folder that you are in.")
    if addresses := [str(place) for place in places if re.match(r"[a-z][a-z0-9+.-]+://", str(place), re.IGNORECASE)]:
        raise ValueError(f"{addresses[0]} is an address, and none is fetched: download it and give the file.")
    paths = []
    for place in map(Path, places):
        if os.path.isdir(place):  # of a name that no file can have, Path raises
            passed: Counter[str] = Counter()
            inside = sorted(walk_images(place, passed, UNMISTAKABLE))
            if (
                not inside and (place / RESULTS).is_file()
            ):  # its own pictures are all that it holds: they are asked for
                inside, passed = image_files(place, masks=True), Counter()
            if passed:
                logger.warning("%s: passed over %s.", place, describe_counts(passed))
            if not inside:
                raise ValueError(f"{place} holds no image files: give photographs, or another folder.")
            paths += inside
        else:
            paths.append(place)
    return paths


def describe_counts(passed: Counter[str]) -> str:
    """Say how many files of which kinds there are, the most frequent first."""
    parts = ", ".join(f"{count} {kind}" for kind, count in passed.most_common())
    return f"{passed.total()} file{'s' if passed.total() > 1 else ''} ({parts})"


def walk_images(place: Path, passed: Counter[str], names: PassedNames = OF_DATA) -> Iterator[Path]:
    """Name the photographs below a folder, and count what else there is; each folder is entered once, however linked."""
    entered = set()
    for path, folders, _ in os.walk(place, followlinks=True) if place.is_dir() else ():
        folder, found = Path(path), os.stat(path)
        if (found.st_dev, found.st_ino) in entered:
            folders.clear()
            continue
        entered.add((found.st_dev, found.st_ino))
        yield from image_files(folder, passed, names=names)
        kept = []
        for each in sorted(folders, key=lambda each: (os.path.islink(folder / each), each)):  # links last
            if each.startswith("."):
                continue
            if (why := why_no_photographs(folder / each, names)) is None:
                kept.append(each)
            elif count := sum(len(files) for _, _, files in os.walk(folder / each)):
                passed[why] += count
        folders[:] = kept


def image_files(
    folder: Path, passed: Counter[str] | None = None, *, masks: bool = False, names: PassedNames = OF_DATA
) -> list[Path]:
    """
    List the photographs that lie directly in a folder, sorted; none where it does not exist.

    Args:
        passed: counts what is passed over: other endings, masks beside their photographs, pictures of this program.
        masks: whether masks are asked for, whatever they are called.
        names: what masks are called.
    """
    files = [entry.name for entry in os.scandir(folder) if not _is_folder(entry)] if folder.is_dir() else []
    files = sorted(name for name in files if not name.startswith("."))
    images = [name for name in files if Path(name).suffix.lower() in IMAGE_EXTENSIONS]
    passed = Counter() if passed is None else passed
    passed.update(Path(name).suffix.lower() or "without ending" for name in set(files).difference(images))
    if not masks:
        beside = {*masks_beside(images, names).values()}
        ours = _own_pictures(folder) if RESULTS in files else set()
        passed.update(
            {"masks beside their photographs": len(beside), "pictures that anople drew": len(ours & {*images})}
        )
        images = [name for name in images if name not in beside and name not in ours]
    for kind in [kind for kind, count in passed.items() if not count]:
        del passed[kind]
    return [folder / name for name in images]


def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # a link may lead back to itself


def masks_beside(files: Iterable[str], names: PassedNames = OF_DATA) -> dict[str, str]:
    """Find masks by their names among the photographs they lie beside: photograph -> mask, as `a.png` -> `a_GT.png`."""
    stems = {Path(name).stem.casefold(): name for name in files}
    owners = {name: stems.get(owner_stem(name, names)) for name in stems.values()}
    return {owner: name for name, owner in owners.items() if owner not in (None, name)}


def owner_stem(name: str, names: PassedNames = OF_DATA) -> str:
    """Return the stem, in small letters, of the photograph whose mask has this file name: that of 0.png for 0.png_GT.tif."""
    stem = Path(unicodedata.normalize("NFC", name)).stem.casefold()
    found = names.beside.fullmatch(stem)
    stem = (found["after"] or found["before"]) if found else stem
    return Path(stem).stem if Path(stem).suffix in IMAGE_EXTENSIONS else stem


def why_no_photographs(folder: Path, names: PassedNames = OF_DATA) -> str | None:
    """Say why a folder inside another one holds no photographs: by its name, or as results of this program; else `None`."""
    name = folder.name.casefold()
    if name in ("masks", "maps") and (folder.parent / RESULTS).is_file():
        return f"results of anople in {folder.name}"
    if name in names.masks:
        return f"masks in {folder.name}"
    if name in names.others:
        return f"files in {folder.name}"
    if (folder / RESULTS).is_file():
        judged = {Path(line["path"]).name for line in own_results(folder)}
        if judged and not any((folder / each).exists() for each in judged):
            return f"results of anople in {folder.name}"
    gallery = folder / "index.html"
    if gallery.is_file() and GALLERY_MARK in gallery.read_text(encoding="utf-8", errors="replace")[:4000]:
        return f"files of a gallery of anople in {folder.name}"
    return None


GALLERY_MARK = "<title>AnoPLe</title>"  # in index.html


def own_results(folder: Path) -> list[dict]:
    """Read what `anople predict --output` wrote into a folder; a run that was killed may have cut the last line."""
    path, lines = folder / RESULTS, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and row.keys() >= set(RESULT_KEYS) and isinstance(row["path"], str):
                lines.append(row)
    return lines


def _own_pictures(folder: Path) -> set[str]:
    """Name the pictures that a run has drawn into a folder."""
    return {Path(row["overlay"]).name for row in own_results(folder) if isinstance(row.get("overlay"), str)}


# --- Places of a photograph that do not count - serial numbers, fixtures -: what lies there has no influence at all ---


NOTHING = "none"  # an ignore_mask by which all counts
MOSTLY = 0.5  # a patch is ignored where more than this share of it is


def load_ignore_mask(
    source: MaskSource, size: tuple[int, int] | None = None, *, photograph: ImageSource | None = None
) -> np.ndarray:
    """
    Open a mask of the places to ignore as booleans (height, width); whatever is above 0 is ignored, however faint.

    Args:
        source: anything that [`load_image`] opens; `"none"`, by which nothing is ignored, or a function of the size, where a
            size is given.
        size: (height, width) of its photograph; any where it is not given.
        photograph: whose EXIF orientation is applied to a mask that was drawn on the stored pixels.

    Raises:
        ImageError: if it cannot be read, has another size, or may or may not have been drawn on turned pixels.
    """
    if size is not None:
        if isinstance(source, str) and source == NOTHING:
            return np.zeros(size, dtype=bool)
        if callable(source):
            return source(size)
        if isinstance(source, np.ndarray) and source.dtype == np.bool_ and source.shape == tuple(size):
            return source
    return _open_mask(source, size, photograph, _touched)


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
    "GALLERY_MARK",
    "IMAGE_EXTENSIONS",
    "ImageSource",
    "MaskSource",
    "ImageError",
    "PRINT_BYTES",
    "PicturePrint",
    "NOTHING",
    "WHITE_RANGE",
    "act_on_each",
    "is_flat",
    "print_of",
    "same_pictures",
    "taken_at",
    "describe_counts",
    "image_files",
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
    "masks_beside",
    "own_results",
    "owner_stem",
    "source_path",
    "walk_images",
    "why_no_photographs",
    "with_masks",
]
