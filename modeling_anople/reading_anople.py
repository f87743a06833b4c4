"""From a stream of photographs to batches for the model, one bad file never stopping the rest."""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature

from .ignoring_anople import load_ignore_mask
from .masks_anople import KeptMasks
from .photographs_anople import ImageError, load_photograph
from .processing_anople import AnoPLeProcessor
from .sources_anople import with_masks
from .threads_anople import act_on_each


@dataclass
class Batch:
    """
    Some photographs in a row.

    Args:
        sources: where they come from.
        errors: why one could not be read, or `None`.
        sizes: (height, width) of each, `None` for one that could not be read.
        inputs: those that could be read, in their order, as the model wants them; `None` if there is none.
        opened: photograph, mask of what is ignored and class name of each that could be read.
    """

    sources: list[Any]
    errors: list[str | None]
    sizes: list[tuple[int, int] | None]
    inputs: BatchFeature | None
    opened: list[tuple[Image.Image, np.ndarray | None, str | None]] = field(default_factory=list)

    @property
    def readable_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of those in `inputs`."""
        return [size for size in self.sizes if size is not None]

    @property
    def hidden(self) -> list[np.ndarray | None]:
        """What is ignored on those in `inputs`, as masks (height, width)."""
        return [mask for _, mask, _ in self.opened]

    def refuse(self, rows: dict[int, str]) -> None:
        """Take some of those in `inputs`, by their number, for ones that could not be read, with these errors."""
        places = [place for place, size in enumerate(self.sizes) if size is not None]
        for row, error in rows.items():
            self.errors[places[row]], self.sizes[places[row]] = error, None
        kept = [row for row in range(len(self.opened)) if row not in rows]
        self.opened = [self.opened[row] for row in kept]
        self.inputs = BatchFeature({name: value[kept] for name, value in self.inputs.items()}) if kept else None

    def spread(self, answers: Sequence[Any]) -> list[Any]:
        """Put one answer for each photograph in `inputs` into the places of all; the others get `None`."""
        given = iter(answers)
        return [None if size is None else next(given) for size in self.sizes]


def read_batches(
    processor: AnoPLeProcessor,
    sources: Iterable[Any],
    *,
    class_names: str | Iterable[str] | None = None,
    batch_size: int = 8,
    by_views: bool = False,
    ignore_mask: Any = None,
    masks: KeptMasks | None = None,
) -> Iterator[Batch]:
    """
    Open photographs as they are needed, `batch_size` at a time and never more ahead.

    Args:
        sources: anything that [`load_photograph`] opens.
        class_names: the product of all, or one for each in step with `sources`. `None`: not given.
        by_views: whether they are cut later on; they are then only opened.
        ignore_mask: what does not count, one mask for all, or a list with one (or `None`) for each.
        masks: those that products keep; taken for named photographs without one.

    Raises:
        ValueError: for an unknown class, more or fewer class names than sources, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    masked = with_masks(_pairs(sources, class_names), ignore_mask)
    while several := list(itertools.islice(masked, batch_size)):
        batch = _open_all(processor, several, masks)
        if batch.opened and not by_views:
            batch.inputs = _prepare(processor, batch.opened)
        yield batch


def _open_all(
    processor: AnoPLeProcessor, several: Sequence[tuple[tuple[Any, str | None], Any]], masks: KeptMasks | None
) -> Batch:
    batch = Batch([source for (source, _), _ in several], [], [], None)
    for ((_, name), mask), opened in zip(several, _open_each(batch.sources, processor.white_value), strict=True):
        name = None if name is None else processor.class_names[processor.class_id(name)]  # as the detector writes it
        if isinstance(opened, Image.Image):
            try:
                mask = masks.wanted(name) if mask is None and masks is not None else mask
                hidden = None if mask is None else load_ignore_mask(mask, opened.size[::-1])
                if hidden is not None and hidden.all():
                    raise ImageError("The ignore_mask ignores the whole photograph: mark only what shall not count.")
                batch.opened.append((opened, hidden, name))
            except ImageError as error:
                opened = str(error)
        readable = isinstance(opened, Image.Image)
        batch.errors.append(None if readable else opened)
        batch.sizes.append(opened.size[::-1] if readable else None)
    return batch


def _prepare(processor: AnoPLeProcessor, opened: Sequence[tuple[Image.Image, np.ndarray | None, str | None]]):
    """Make photographs what the model wants; where nothing is ignored there are no `ignore_masks`."""
    photographs, hidden, names = (list(part) for part in zip(*opened, strict=True))
    class_names = names if any(name is not None for name in names) else None
    ignored = hidden if any(mask is not None for mask in hidden) else None
    return processor(images=photographs, class_names=class_names, ignore_masks=ignored)


def _pairs(sources: Iterable[Any], class_names: str | Iterable[str] | None) -> Iterator[tuple[Any, str | None]]:
    if class_names is None or isinstance(class_names, str):
        yield from zip(sources, itertools.repeat(class_names), strict=False)
        return
    missing = object()
    for source, name in itertools.zip_longest(sources, class_names, fillvalue=missing):
        if source is missing or name is missing:
            more, fewer = ("sources", "class names") if name is missing else ("class names", "sources")
            raise ValueError(f"There are more {more} than {fewer}: give one class name for each source.")
        yield source, name


def _open_each(sources: Sequence[Any], white_value: float | None) -> list[Image.Image | str]:
    """Open photographs, files and bytes several at a time: an open picture or file may stand for several sources."""
    apart = all(isinstance(source, (str, os.PathLike, bytes, dict)) for source in sources)
    act = functools.partial(_open, white_value=white_value)
    return act_on_each(act, sources) if apart else [act(source) for source in sources]


def _open(source: Any, white_value: float | None) -> Image.Image | str:
    try:
        return load_photograph(source, white_value=white_value)
    except ImageError as error:
        return str(error)


__all__ = ["Batch", "read_batches"]
