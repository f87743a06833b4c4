"""From images to answers: read in batches, cut into tiles, judged, and joined to one answer for each image."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.feature_extraction_utils import BatchFeature

from .images_anople import (
    ImageError,
    act_on_each,
    fill_ignored,
    hide,
    ignored_patches,
    load_ignore_mask,
    load_photograph,
    with_masks,
)
from .processing_anople import AnoPLeProcessor, find_class
from .product_store_anople import KeptMasks
from .scoring_anople import AnoPLeOutput
from .tiling_anople import (
    Layout,
    MemoryCopies,
    Tiling,
    blend_maps,
    plan_tiles,
    tiling_of,
    tiling_text,
    turned_boxes,
    turned_copies,
)


# --- From a stream of photographs to batches for the model, one bad file never stopping the rest ---


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


# --- Whole photographs in a batch, each with the mask that its product keeps, and one answer for each ---


@torch.no_grad()
def judge_batch(model: Any, processor: AnoPLeProcessor, batch: Batch) -> AnoPLeOutput | None:
    """
    Judge the prepared photographs of a batch as wholes.

    Where none is named and products keep masks, all are judged as they came, which finds out what they show. If a product
    that was found keeps a mask, it is laid over its photographs and the batch is judged once more, in the same shape, so
    that the answers of the others stay the same (bit for bit; a graph runs each product apart, and its last digits move).

    Args:
        model: a detector, or a graph of one.
        batch: of [`read_batches`]; its masks, pixels and errors are brought to what was judged.

    Returns:
        A row for each photograph that could be judged; `None` if there is none.
    """
    if batch.inputs is None:
        return None
    output, failed = model(**_inputs_for(model, batch)), {}
    if not model.masks.is_empty and model.finds_out("class_ids" in batch.inputs):
        laid, failed = _lay_kept_masks(model, processor, batch, output.class_ids)
        if laid:
            output = _judge_again(model, batch, output.class_ids)
    for row in _without_patches(model, batch):
        failed.setdefault(row, "The ignore_mask leaves no patch that counts: mark less of the photograph.")
    if not failed:
        return output
    kept = [row for row in range(len(batch.opened)) if row not in failed]
    batch.refuse(failed)
    rows = {name: value[kept] for name, value in output.items() if isinstance(value, Tensor)}
    return AnoPLeOutput(**rows) if kept else None


def _inputs_for(model: Any, batch: Batch) -> BatchFeature:
    inputs = batch.inputs.to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs


def _lay_kept_masks(
    model: Any, processor: AnoPLeProcessor, batch: Batch, class_ids: Tensor
) -> tuple[bool, dict[int, str]]:
    """
    Lay the masks of the products that were found over the photographs without one, in place.

    Returns:
        Whether there was one to lay, and an error for each photograph whose mask does not fit.
    """
    pixels, laid, failed = batch.inputs["pixel_values"], False, {}
    for row, ((photograph, mask, name), class_id) in enumerate(zip(batch.opened, class_ids.tolist(), strict=True)):
        wanted = model.masks.wanted(model.config.class_names[class_id]) if mask is None else None
        if wanted is None:
            continue
        try:
            mask = wanted(photograph.size[::-1])
        except ImageError as error:
            failed[row] = str(error)
            continue
        prepared, laid = processor([photograph], ignore_masks=[mask]), True
        pixels[row] = prepared["pixel_values"][0]
        if "ignore_masks" not in batch.inputs:
            batch.inputs["ignore_masks"] = torch.zeros(len(pixels), *prepared["ignore_masks"].shape[1:])
        batch.inputs["ignore_masks"][row] = prepared["ignore_masks"][0]
        batch.opened[row] = (photograph, mask, name)
    return laid, failed


def _judge_again(model: Any, batch: Batch, class_ids: Tensor) -> AnoPLeOutput:
    """Judge photographs under their masks as the products that they were found to show without."""
    inputs = _inputs_for(model, batch)
    output = model(**{**inputs, "class_ids": class_ids}, exclude=(0, slice(0, 0)))
    ignored = ignored_patches(inputs["ignore_masks"], model.config.grid_size)
    output.known_products = model.recognise(output.memory_maps, output.image_embeds, class_ids, ignored)
    return output


def _without_patches(model: Any, batch: Batch) -> list[int]:
    """Name the rows of which nothing counts."""
    if "ignore_masks" not in batch.inputs:
        return []
    ignored = ignored_patches(batch.inputs["ignore_masks"], model.config.grid_size)
    return ignored.flatten(1).all(1).nonzero()[:, 0].tolist()


# --- One photograph as the model sees it - its tiles, or the whole of it -, and one answer from the answers to all of them ---


TILES_AT_ONCE = 8
SAME = "same"  # tiling as the detector keeps it


@dataclass
class Views:
    """
    One photograph, cut when it is needed, so that no more than a few tiles exist at once.

    Args:
        photograph: RGB.
        processor: turns tiles into tensors.
        layout: where the tiles lie; `None` for the photograph as a whole.
        mask: (height, width) what is ignored, or `None`.
        class_id: the product, where it was found out before a mask was laid over.
    """

    photograph: Image.Image
    processor: AnoPLeProcessor
    layout: Layout | None
    mask: np.ndarray | None = None
    class_id: int | None = None

    @classmethod
    def of(cls, photograph: Image.Image, processor: AnoPLeProcessor, tiling: Tiling, mask: np.ndarray | None = None):
        """Lay a photograph out."""
        return cls(photograph, processor, plan_tiles(photograph.size[::-1], tiling, processor.image_size), mask)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the photograph."""
        return self.photograph.size[::-1]

    @property
    def boxes(self) -> Sequence[tuple[int, int, int, int]]:
        """Left, top, right and bottom of each tile in the photograph's pixels; it may reach beyond."""
        return self.layout.boxes if self.layout else [(0, 0, *self.photograph.size)]

    def overview(self) -> dict[str, Tensor]:
        """Prepare the whole photograph: `pixel_values` (1, 3, side, side), `ignore_masks` (1, side, side)."""
        return dict(self.processor([self.photograph], ignore_masks=[self.mask]))

    def prepare(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Prepare some tiles: `pixel_values` and `ignore_masks`; what is beyond the border is ignored."""
        if self.layout is None:
            return self.overview()
        cut = [self._cut(self.boxes[number]) for number in numbers]
        masks = [mask if mask.any() else None for _, mask in cut]
        return dict(self.processor([tile for tile, _ in cut], ignore_masks=masks))

    def pictures(self) -> Iterator[Image.Image]:
        """Cut the tiles one by one, with what is ignored, or beyond the border, painted over softly."""
        for box in self.boxes:
            yield fill_ignored(*self._cut(box))

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Prepare all tiles, a few at a time."""
        for start in range(0, len(self.boxes), TILES_AT_ONCE):
            yield self.prepare(range(start, min(start + TILES_AT_ONCE, len(self.boxes))))

    def _cut(self, box: tuple[int, int, int, int]) -> tuple[Image.Image, np.ndarray]:
        left, top, right, bottom = box
        mask = np.ones((bottom - top, right - left), dtype=bool)
        inside = (slice(max(0, -top), self.size[0] - top), slice(max(0, -left), self.size[1] - left))
        shown = (slice(max(0, top), bottom), slice(max(0, left), right))
        mask[inside] = False if self.mask is None else self.mask[shown]
        return self.photograph.crop(box), mask

    def patch_boxes(self, grid: int, copies: MemoryCopies = "none") -> Tensor:
        """Say which pixels of the photograph the patches of its tiles, as they are and turned, see: see [`turned_boxes`]."""
        seen = turned_boxes(self.boxes, grid, copies)
        return torch.minimum(seen.clamp(min=0), torch.tensor(self.photograph.size * 2, dtype=seen.dtype))


def needs_views(config: Any, tiling: Tiling = SAME) -> bool:
    """Say whether photographs are judged by [`Views`]; without tiles, whole batches are judged at once."""
    if tiling == SAME:
        return bool(config.tiling or config.product_tilings)
    return tiling_text(tiling) is not None or bool(config.product_tilings)


@torch.no_grad()
def lay_out(
    model: Any,
    processor: AnoPLeProcessor,
    photograph: Image.Image,
    mask: np.ndarray | None,
    class_name: str | None,
    tiling: Tiling = SAME,
) -> Views:
    """
    Cut a photograph as its product wants it, or as it is said, and lay the product's own mask over it where none is given.

    An unnamed product is found out where that matters, on the photograph as it came.

    Raises:
        ImageError: if the product's mask is of another size than the photograph.
        ValueError: for an unknown product.
    """
    config, found = model.config, None
    if class_name is not None:
        class_name = config.class_names[find_class(class_name, config.class_names)]
    if model.finds_out(class_name is not None) and (
        mask is None and not model.masks.is_empty or tiling == SAME and config.product_tilings
    ):
        whole = Views(photograph, processor, None, mask).overview()["pixel_values"].to(model.device, model.dtype)
        embeds = model.embed_images(whole)
        found = int(model.identify(embeds, model.class_embeddings, None))
        class_name = config.class_names[found]
    if mask is None and (wanted := model.masks.wanted(class_name)):
        mask = wanted(photograph.size[::-1])
    if tiling == SAME:
        tiling = config.tiling if config.class_identity == "pooled" else tiling_of(config, class_name)
    views = Views.of(photograph, processor, tiling, mask)
    views.class_id = found
    return views


@torch.no_grad()
def judge_views(
    model: Any,
    views: Views,
    class_id: int | None = None,
    *,
    exclude: slice | None = None,
    copies: Callable[[Tensor], Tensor] | None = None,
    score: Callable[[AnoPLeOutput], tuple[Tensor, Tensor | None]] | None = None,
) -> AnoPLeOutput:
    """
    Judge one photograph by its tiles: the highest of their scores, and their maps blended.

    Args:
        model: a detector.
        views: the photograph.
        class_id: the product; `None`: found out on the photograph as a whole (or pooled).
        exclude: vectors of the product's memory to leave out.
        copies: (3, side, side) -> (copies, 3, side, side), to judge copies of every tile in its stead.
        score: what `image_scores` and `anomaly_maps` are, of a tile's output; by default those of that output.

    Returns:
        One row (or as many as copies): `memory_maps` (rows, 1, patches that count), `anomaly_maps` (rows, height, width)
        as fine as the tiles' own, `image_embeds` of the photograph as a whole; `known_products` where it was found out.

    Raises:
        ValueError: if no patch is left that counts.
    """
    copies = copies or (lambda pixels: pixels[None])
    given, owner, pooled = class_id, class_id or 0, model.config.class_identity == "pooled"
    whole = copies(views.overview()["pixel_values"][0].to(model.device, model.dtype))
    embeds = model.embed_images(whole)
    if model.config.class_identity == "predicted" and exclude is None:
        given = None
    if pooled:
        class_id = None
    elif given is None:
        class_id = views.class_id
        if class_id is None:
            class_id = int(model.identify(embeds[:1], model.class_embeddings, None))
    tiles = []
    for inputs in views.batches():
        pixels = inputs["pixel_values"].to(model.device, model.dtype)
        masks = inputs["ignore_masks"].to(model.device)
        rows = torch.stack([copies(tile) for tile in pixels])  # (tiles, rows, 3, side, side)
        ids = None if class_id is None else torch.full((rows.shape[0] * rows.shape[1],), class_id, device=model.device)
        output = model(
            rows.flatten(0, 1),
            class_ids=ids,
            exclude=(owner if exclude else class_id or 0, exclude or slice(0, 0)),
            ignore_masks=masks.repeat_interleave(rows.shape[1], 0),
        )
        tiles.append(_tile_answers(model, output, masks, rows.shape[1], score))
    merged = _merge(views, tiles)
    ids = None if class_id is None else torch.full((len(whole),), class_id, device=model.device)
    merged.class_ids, merged.image_embeds = ids, embeds
    if score is None:
        model.calibration.apply(merged)
    if given is None:
        merged.known_products = model.recognise(merged.memory_maps, embeds, ids)
    return merged


def _tile_answers(model: Any, output: AnoPLeOutput, masks: Tensor, rows: int, score: Callable | None) -> dict:
    """Sort a batch's answers by rows and tiles, and drop tiles of which nothing counts."""
    counts = ~ignored_patches(masks, model.config.grid_size)  # (tiles, grid, grid)
    scores, maps = (output.image_scores, output.anomaly_maps) if score is None else score(output)
    maps = None if maps is None else hide(maps, ~counts.repeat_interleave(rows, 0))
    split = {"scores": scores, "maps": maps, "text": output.text_scores, "memory": output.memory_maps}
    split = {
        name: None if value is None else value.unflatten(0, (-1, rows)).transpose(0, 1)
        for name, value in split.items()
    }
    empty = ~counts.flatten(1).any(1)
    split["scores"] = split["scores"].masked_fill(empty, -torch.inf)
    if split["memory"] is not None:
        split["memory"] = split["memory"][:, counts]  # (rows, patches that count)
    return split


def _merge(views: Views, tiles: list[dict]) -> AnoPLeOutput:
    joined = {
        name: None if tiles[0][name] is None else torch.cat([tile[name] for tile in tiles], dim=1) for name in tiles[0]
    }
    scores, maps, memory = joined["scores"].amax(1), joined["maps"], joined["memory"]
    if not torch.isfinite(scores).all():
        raise ValueError("The ignore_mask leaves no patch that counts: mark less of the photograph.")
    if maps is not None:
        maps = blend_maps(maps, views.layout) if views.layout else maps[:, 0]
    return AnoPLeOutput(
        image_scores=scores,
        anomaly_maps=maps,
        text_scores=joined["text"].amax(1),
        memory_maps=None if memory is None else memory[:, None],
    )


@torch.no_grad()
def remember_views(model: Any, photographs: Sequence[Views], class_id: int) -> None:
    """
    Add the tiles of good photographs to one product's memory, without what is ignored, and the wholes to its prototype.

    Raises:
        ValueError: if nothing of a photograph counts.
    """
    memory, limit = model.memory, model.config.memory_limit
    known = len(memory.counts[class_id])
    total = model.class_prototypes[class_id].float() * known
    for views in photographs:
        found: dict[int, list[Tensor]] = {layer: [] for layer in memory.layers}
        seen, boxes, first = [], views.patch_boxes(model.config.grid_size, model.config.memory_copies), 0
        for inputs in views.batches():
            pixels, masks = inputs["pixel_values"].to(model.device, model.dtype), inputs["ignore_masks"]
            for number, (turned, ignored) in enumerate(turned_copies(pixels, model.config.memory_copies, masks)):
                counts = ~ignored_patches(ignored, model.config.grid_size).flatten(1)
                taps = model.memory_taps(turned, model.encode_views(turned))
                for layer in memory.layers:
                    found[layer].append(taps[layer][counts.to(model.device)])
                seen.append(boxes[number, first : first + len(pixels)][counts])
            first += len(pixels)
        if not any(map(len, seen)):
            raise ValueError("The ignore_mask leaves no patch of a good photograph: mark less of it.")
        joined = {layer: torch.cat(parts)[None] for layer, parts in found.items()}
        memory.add(joined, class_id, torch.cat(seen)[None])
        whole = views.overview()["pixel_values"].to(model.device, model.dtype)
        total = total + F.normalize(model.encode_views(whole).pooled.float(), dim=-1)[0]
        if limit and memory.sizes[class_id] > 2 * limit:
            memory.reduce(class_id, limit)
    if limit:
        memory.reduce(class_id, limit)
    model.class_prototypes[class_id] = total / (known + len(photographs))
    model.note_memory()


__all__ = [
    "Batch",
    "SAME",
    "TILES_AT_ONCE",
    "Views",
    "judge_batch",
    "judge_views",
    "lay_out",
    "needs_views",
    "read_batches",
    "remember_views",
]
