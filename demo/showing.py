"""Pictures on their way to the page, as files: what Gradio is given as a file it never writes a second time."""

import itertools
import shutil
from collections import deque
from pathlib import Path

from PIL import Image


KEPT = 4  # answers whose files stay: one may still be on its way to Gradio's cache while the next is written


class Shown:
    """
    Writes the pictures of each answer into a folder of their own, and removes those of earlier answers.

    Gradio keeps files by their content. A file it copies once, whole, and renames into place; a picture that it must write
    itself it writes anew into the same place each time, and whoever is reading the equal one then gets half of it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._numbers, self._kept = itertools.count(), deque[Path]()

    def write(self, **pictures: Image.Image) -> tuple[str, ...]:
        """Write the pictures of one answer; returns their files, each named after its picture."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir(parents=True)
        files = [folder / f"{name}.webp" for name in pictures]
        for file, picture in zip(files, pictures.values(), strict=True):
            picture.save(file, quality=90, method=2)
        self._kept.append(folder)
        while len(self._kept) > KEPT:
            shutil.rmtree(self._kept.popleft(), ignore_errors=True)
        return tuple(str(file) for file in files)
