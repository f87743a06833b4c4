"""The good photographs that a session's products were taught from: the detector's memory keeps none."""

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


KEPT_SIDE = 1024  # pixels; larger photographs are kept smaller
_numbers = itertools.count()


@dataclass(frozen=True)
class Kept:
    """
    A good photograph.

    Args:
        name: of the file that was sent.
        path: of the copy, a PNG file.
        size: width and height of the photograph that was sent.
    """

    name: str
    path: Path
    size: tuple[int, int]

    @property
    def source(self) -> dict[str, Any]:
        """The photograph as the package's functions take it."""
        return {"path": self.name, "bytes": self.path.read_bytes()}

    def as_copied(self) -> "Kept":
        """The same photograph, after a detector was taught from the copy."""
        with Image.open(self.path) as copy:
            return dataclasses.replace(self, size=copy.size)


def keep_photographs(folder: Path, photographs: Iterable[tuple[str, Image.Image]]) -> list[Kept]:
    """Write photographs with their names into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for name, photograph in photographs:
        copy = photograph.copy()
        copy.thumbnail((KEPT_SIDE, KEPT_SIDE))
        kept.append(Kept(name, folder / f"{next(_numbers)}.png", photograph.size))
        copy.save(kept[-1].path, compress_level=1)
    return kept
