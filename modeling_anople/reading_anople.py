"""From a stream of photographs to batches for the model, one bad file never stopping the rest."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature

from .ignoring_anople import load_ignore_mask
from .photographs_anople import ImageError, load_photograph
from .processing_anople import AnoPLeProcessor
from .sources_anople import with_masks


@dataclass
class Batch:
    """
    Some photographs in a row.

    Args:
        sources: where they come from.
        errors: why one could not be read, or `None`.
        sizes: (height, width) of each, `None` for one that could not be read.
        inputs: those that could be read, in their order, as the model wants them; `None` if there is none.
        opened: photograph, mask of what is ignored and class name of each of them, where they are judged by tiles.
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
) -> Iterator[Batch]:
    """
    Open photographs as they are needed, `batch_size` at a time and never more ahead.

    Args:
        sources: anything that [`load_photograph`] opens.
        class_names: the product of all, or one for each in step with `sources`. `None`: not given.
        by_views: whether they are cut later on; they are then only opened.
        ignore_mask: what does not count, one mask for all, or a list with one for each; wants `by_views`.

    Raises:
        ValueError: for an unknown class, more or fewer class names than sources, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    pairs = _pairs(sources, class_names)
    if by_views:
        masked = with_masks(pairs, ignore_mask)
        while several := list(itertools.islice(masked, batch_size)):
            yield _open_all(processor, several)
        return
    while chunk := list(itertools.islice(pairs, batch_size)):
        yield _read(processor, chunk)


def _open_all(processor: AnoPLeProcessor, several: Sequence[tuple[tuple[Any, str | None], Any]]) -> Batch:
    batch = Batch([source for (source, _), _ in several], [], [], None)
    for (source, name), mask in several:
        opened = _open(source, processor.white_value)
        if isinstance(opened, Image.Image):
            try:
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


def _read(processor: AnoPLeProcessor, chunk: Sequence[tuple[Any, str | None]]) -> Batch:
    batch, photographs, names = Batch([source for source, _ in chunk], [], [], None), [], []
    for source, name in chunk:
        opened = _open(source, processor.white_value)
        readable = isinstance(opened, Image.Image)
        if readable:
            photographs.append(opened)
            names.append(name)
        batch.errors.append(None if readable else opened)
        batch.sizes.append(opened.size[::-1] if readable else None)
    if photographs:
        class_names = names if any(name is not None for name in names) else None
        batch.inputs = processor(images=photographs, class_names=class_names)
    return batch


def _open(source: Any, white_value: float | None) -> Image.Image | str:
    try:
        return load_photograph(source, white_value=white_value)
    except ImageError as error:
        return str(error)


__all__ = ["Batch", "read_batches"]
