"""Lessons: what the pupil sees at a step. Nothing but the seed and the step decides it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..features import GRID
from .features import FeatureFile, learning_rows, load_squares, open_features


@dataclass
class Lesson:
    """
    Pictures and what the teacher says of them.

    Args:
        pixels: (images, 3, 224, 224) from 0 to 1.
        wanted: (images, blocks, 196, width), unit vectors.
        places: indices into the batch's patches, images x 196 flattened, that are compared with each other.
    """

    pixels: Tensor
    wanted: Tensor
    places: Tensor


def turned(pictures: Tensor, view: int) -> Tensor:
    """Show (..., height, width) in one of the 8 views of a square: 4 and up transposed, then by bits 2 and 1 flipped."""
    if view & 4:
        pictures = pictures.transpose(-1, -2)
    return pictures.flip([axis for bit, axis in ((1, -1), (2, -2)) if view & bit])


class Lessons:
    """
    All pictures of a folder whose features are done, in an order drawn anew for each round.

    Args:
        folder: with manifest, squares and features.
        batch: pictures of a lesson.
        places: patches of a lesson that are compared with each other.
        from_pictures: how many of its pictures these places are on; by default all.
        seed: of orders, views and places.

    Raises:
        ValueError: if there are fewer pictures than `batch`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        batch: int,
        places: int,
        from_pictures: int | None = None,
        seed: int = 0,
        name: str = "features",
        most: int | None = None,
    ):
        self.folder, self.batch, self.places, self.seed = Path(folder), batch, places, seed
        self.from_pictures = min(batch, from_pictures or batch)
        features, self.facts = open_features(self.folder, name)
        self.features = features[:most]
        # the array's own pictures, also where the features of the last ones are still missing
        self.rows = learning_rows(self.folder)[: self.facts["pictures"]][: len(self.features)]
        if len(self.rows) < batch:
            raise ValueError(
                f"{FeatureFile(self.folder, name).data} holds {len(self.rows)} pictures, fewer than {batch}."
            )
        self._round, self._order = None, None

    def lesson(self, step: int) -> Lesson:
        """Make the lesson of a step, counted from 0."""
        generator = torch.Generator().manual_seed((self.seed * 2 + 1) * 1_000_003_000 + step)
        chosen = self._chosen(step)
        views = torch.randint(8, (self.batch,), generator=generator).tolist()
        pixels = load_squares(self.folder, [self.rows[number] for number in chosen]).float() / 255
        # mapped reads in the order of the file, which the disk likes best
        wanted = torch.from_numpy(np.stack([self.features[number] for number in chosen])).float()
        laid = wanted.transpose(2, 3).unflatten(3, (GRID, GRID))  # (images, blocks, width, rows, columns)
        pixels = torch.stack([turned(picture, view) for picture, view in zip(pixels, views, strict=True)])
        laid = torch.stack([turned(grid, view) for grid, view in zip(laid, views, strict=True)])
        patches = self.from_pictures * GRID**2
        places = torch.randperm(patches, generator=generator)[: self.places]
        return Lesson(pixels, laid.flatten(3).transpose(2, 3), places)

    def _chosen(self, step: int) -> list[int]:
        """Return the pictures of a step: rounds without repetition, the rest of a round left out."""
        each = len(self.rows) // self.batch
        if step // each != self._round:
            generator = torch.Generator().manual_seed(self.seed * 2 * 1_000_003_000 + step // each)
            self._round, self._order = step // each, torch.randperm(len(self.rows), generator=generator).tolist()
        start = step % each * self.batch
        return self._order[start : start + self.batch]

    def ahead(self, start: int, end: int) -> Iterator[Lesson]:
        """Make the lessons of steps `start` to `end` - 1 in order, each while the one before is learned."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self.lesson, start) if start < end else None
            for step in range(start, end):
                lesson = coming.result()
                coming = pool.submit(self.lesson, step + 1) if step + 1 < end else None
                yield lesson


__all__ = ["Lesson", "Lessons", "turned"]
