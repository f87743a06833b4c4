"""Whatever holds photographs - a file, a folder, an array, a list, a table, a camera - as a stream of them."""

import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


logger = logging.getLogger(__name__)

MASKS = "ground_truth"  # the folder of masks beside MVTec AD's photographs


def is_one_photograph(inputs: Any) -> bool:
    """Say whether these are one photograph, and not several: a file, bytes, a PIL image or one array."""
    if isinstance(inputs, (np.ndarray, Tensor)):
        return inputs.ndim < 4
    if isinstance(inputs, (str, os.PathLike)):
        return not Path(inputs).is_dir()
    return isinstance(inputs, (bytes, dict, Image.Image)) or hasattr(inputs, "read")


def photographs_of(inputs: Any, *, image_column: str | None = None) -> Iterable[Any]:
    """
    Turn anything with photographs into an iterable of what [`load_photograph`] opens; nothing is opened here.

    Args:
        inputs: one photograph; a folder, with all image files below it, sorted; an array or tensor of several (4 axes);
            a `datasets.Dataset`, also a streamed one; or any list, generator or other iterable.
        image_column: of a dataset; not needed where it has one column of images, or one that is called "image".

    Raises:
        ValueError: for a folder without photographs, a dataset without such a column, or what holds no photographs.
    """
    if is_one_photograph(inputs):
        return [inputs]
    if isinstance(inputs, (str, os.PathLike)):
        return list_photographs([inputs])
    if hasattr(inputs, "cast_column") and hasattr(inputs, "features"):
        return _rows_of(inputs, image_column)
    if isinstance(inputs, Iterable):
        return inputs
    raise ValueError(
        f"a {type(inputs).__name__} holds no photographs: give a path, a folder, a PIL image, an array or several of them."
    )


def with_masks(sources: Iterable[Any], ignore_mask: Any) -> Iterator[tuple[Any, Any]]:
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


def _rows_of(dataset: Any, image_column: str | None) -> Iterable[Any]:
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


def list_photographs(places: Sequence[str | os.PathLike]) -> list[Path]:
    """
    Name all photographs: files as they are, folders with the image files below them, sorted. Hidden ones are passed over,
    and masks, which are what lies in folders named `ground_truth`.

    Raises:
        ValueError: for a folder without image files, or an address.
    """
    if addresses := [str(place) for place in places if re.match(r"[a-z][a-z0-9+.-]+://", str(place), re.IGNORECASE)]:
        raise ValueError(f"{addresses[0]} is an address, and none is fetched: download it and give the file.")
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = []
    for place in map(Path, places):
        if place.is_dir():
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


__all__ = ["is_one_photograph", "list_photographs", "photographs_of", "with_masks"]
