"""
From images to answers, on one road: opened in batches, cut into tiles, judged, and joined to one answer for each.

An image that is not cut is one tile. A detector here is the network or an exported graph of it.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .calibration_anople import frame_numbers
from .images_anople import (
    ImageError,
    ImageSource,
    MaskSource,
    act_on_each,
    fill_ignored,
    ignored_patches,
    load_ignore_mask,
    load_image,
    mask_out,
    with_masks,
)
from .processing_anople import AnoPLeProcessor
from .product_store_anople import SAME
from .scoring_anople import AnoPLeOutput, Detector, smooth_maps
from .tiling_anople import Layout, Rotations, Tiling, blend_maps, plan_tiles, rotated_boxes, tiling_text


TILES_AT_ONCE = 8

Part = Literal["fused", "memory", "decoder", "text"]


# --- Images as they are opened ---


@dataclass
class OpenedImage:
    """
    One image of a stream.

    Args:
        source: where it comes from.
        image: RGB and upright; `None` where it could not be opened.
        ignore_mask: (height, width) what does not count on it, `None` where nothing was given.
        class_name: the product, as the detector writes it; `None` where none was given.
        error: why it could not be opened.
    """

    source: ImageSource
    image: Image.Image | None = None
    ignore_mask: np.ndarray | None = None
    class_name: str | None = None
    error: str | None = None


def open_batches(
    processor: AnoPLeProcessor,
    sources: Iterable[ImageSource],
    *,
    class_names: str | Iterable[str] | None = None,
    batch_size: int = 8,
    ignore_mask: MaskSource | Sequence[MaskSource] | None = None,
) -> Iterator[list[OpenedImage]]:
    """
    Open images as they are needed, `batch_size` at a time and never more ahead; one bad file never stops the rest.

    Args:
        sources: anything that [`load_image`] opens.
        class_names: the product of all, or one for each in step with `sources`. `None`: not given.
        ignore_mask: what does not count, one mask for all images, or a list with one (or `None`) for each.

    Raises:
        ValueError: for an unknown class, more or fewer class names than sources, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    masked = with_masks(_with_names(sources, class_names), ignore_mask)
    while several := list(itertools.islice(masked, batch_size)):
        images = _open_each([source for (source, _), _ in several], processor.white_value)
        batch = []
        for ((source, name), mask), image in zip(several, images, strict=True):
            # where classes are given at all, each is: no name among names is an unknown one
            name = None if class_names is None else processor.class_names[processor.class_id(name)]
            opened = OpenedImage(source, class_name=name)
            if isinstance(image, str):
                opened.error = image
            else:
                opened.image = image
                _open_mask(opened, mask)
            batch.append(opened)
        yield batch


def _open_mask(opened: OpenedImage, mask: MaskSource | None) -> None:
    """Open the mask that was given with an image, in place; one that cannot be used is an error of the image."""
    try:
        if mask is not None:
            opened.ignore_mask = load_ignore_mask(mask, opened.image.size[::-1], photograph=opened.source)
        if opened.ignore_mask is not None and opened.ignore_mask.all():
            raise ImageError("The ignore_mask ignores the whole image: mark only what shall not count.")
    except ImageError as error:
        opened.error = str(error)


def _with_names(
    sources: Iterable[ImageSource], class_names: str | Iterable[str] | None
) -> Iterator[tuple[ImageSource, str | None]]:
    if class_names is None or isinstance(class_names, str):
        yield from zip(sources, itertools.repeat(class_names), strict=False)
        return
    missing = object()
    for source, name in itertools.zip_longest(sources, class_names, fillvalue=missing):
        if source is missing or name is missing:
            more, fewer = ("sources", "class names") if name is missing else ("class names", "sources")
            raise ValueError(f"There are more {more} than {fewer}: give one class name for each source.")
        yield source, name


def _open_each(sources: Sequence[ImageSource], white_value: float | None) -> list[Image.Image | str]:
    """Open images, files and bytes several at a time: an open picture or file may stand for several sources."""
    apart = all(isinstance(source, (str, os.PathLike, bytes, dict)) for source in sources)
    act = functools.partial(_open, white_value=white_value)
    return act_on_each(act, sources) if apart else [act(source) for source in sources]


def _open(source: ImageSource, white_value: float | None) -> Image.Image | str:
    try:
        return load_image(source, white_value=white_value)
    except ImageError as error:
        return str(error)


# --- One image in tiles ---


class TiledImage:
    """
    One image, cut when it is needed, so that no more than a few tiles exist at once.

    Attributes:
        image: RGB; `None` once it was let go (see [`release`]).
        reopen: opens the image again; `None` where it cannot be, or need not.
        size: (height, width) of the image.
        processor: turns tiles into tensors.
        layout: where the tiles lie; `None` for the image as one whole.
        ignore_mask: (height, width) what is ignored, or `None`.
        class_id: the product, where it is known before the image is judged.
        identified: whether that was predicted, and not given.
    """

    def __init__(
        self,
        image: Image.Image,
        processor: AnoPLeProcessor,
        layout: Layout | None,
        ignore_mask: np.ndarray | None = None,
    ):
        self.reopen: Callable[[], Image.Image] | None = None
        self.image, self.size, self.processor = image, image.size[::-1], processor
        self.layout, self.ignore_mask = layout, ignore_mask
        self.class_id: int | None = None
        self.identified = False
        self._prepared: tuple[Tensor, Tensor | None] | None = None
        self._frame: list[float] | None = None

    @classmethod
    def of(
        cls, image: Image.Image, processor: AnoPLeProcessor, tiling: Tiling, ignore_mask: np.ndarray | None = None
    ) -> "TiledImage":
        """Plan the tiles of an image."""
        return cls(image, processor, plan_tiles(image.size[::-1], tiling, processor.image_size), ignore_mask)

    def release(self) -> "TiledImage":
        """Let the pixels go: of many images only what the model sees is held, and not even that of one that can be reopened."""
        if self.reopen is not None:
            self.image, self._prepared = None, None
        elif self.layout is None and self.image is not None:
            self._prepared = self.prepare([0])
            self.frame(self._prepared[0][0])
            self.image = None
        return self

    def open(self) -> Image.Image | None:
        """Return the image, opened again where it was let go; `None` where only what the model sees of it is held."""
        if self.image is None and self.reopen is not None:
            self.image = self.reopen()
        return self.image

    def whole(self) -> "TiledImage":
        """Return the same image as one whole."""
        if self.layout is None:
            return self
        return TiledImage(self.open(), self.processor, None, self.ignore_mask)

    def frame(self, pixels: Tensor) -> list[float]:
        """
        Describe the image as a whole, what is ignored on it included: see [`frame_numbers`].

        A frame is that of the camera: light and sharpness must not change with a mask that is given or dropped later.

        Args:
            pixels: (3, side, side), the whole as it is prepared, taken where nothing is painted over.
        """
        if self._frame is None:
            if self.ignore_mask is not None and self.ignore_mask.any():
                pixels = self.processor([self.open()])["pixel_values"][0]
            seen = self.processor.image_processor
            mean, deviation = (torch.tensor(each)[:, None, None] for each in (seen.image_mean, seen.image_std))
            self._frame = frame_numbers(pixels.float().cpu() * deviation + mean)
        return self._frame

    @property
    def boxes(self) -> Sequence[tuple[int, int, int, int]]:
        """Left, top, right and bottom of each tile in the image's pixels; it may reach beyond."""
        return self.layout.boxes if self.layout else [(0, 0, *self.size[::-1])]

    def crop(self, number: int) -> tuple[Image.Image, np.ndarray | None]:
        """Cut one tile, and mark on it what is ignored or lies beyond the border; `None` where all of it counts."""
        image = self.open()
        if self.layout is None:
            return image, self.ignore_mask
        left, top, right, bottom = self.boxes[number]
        mask = np.ones((bottom - top, right - left), dtype=bool)
        inside = (slice(max(0, -top), self.size[0] - top), slice(max(0, -left), self.size[1] - left))
        shown = (slice(max(0, top), bottom), slice(max(0, left), right))
        mask[inside] = False if self.ignore_mask is None else self.ignore_mask[shown]
        return image.crop(self.boxes[number]), mask if mask.any() else None

    def pictures(self) -> Iterator[Image.Image]:
        """Cut the tiles one by one, with what is ignored, or beyond the border, painted over softly."""
        for number in range(len(self.boxes)):
            picture, mask = self.crop(number)
            yield picture if mask is None else fill_ignored(picture, mask)

    def prepare(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Prepare some tiles; see [`prepare_tiles`]."""
        if self._prepared is not None:
            return self._prepared
        pictures, masks = zip(*(self.crop(number) for number in numbers), strict=True)
        ignored = any(mask is not None for mask in masks)
        inputs = self.processor(list(pictures), ignore_masks=list(masks) if ignored else None)
        return inputs["pixel_values"], inputs.get("ignore_masks")

    def patch_boxes(self, grid: int, rotations: Rotations = "none") -> Tensor:
        """
        Say which pixels of the image the patches of its tiles, as they are and rotated, see: see [`rotated_boxes`].

        Returns:
            (copies, tiles, patches, 4) int32.
        """
        seen = rotated_boxes(self.boxes, grid, rotations)
        return torch.minimum(seen.clamp(min=0), torch.tensor(self.size[::-1] * 2, dtype=seen.dtype))


def tile_images(
    detector: Detector, processor: AnoPLeProcessor, images: Sequence[OpenedImage], *, tiling: Tiling = SAME
) -> list[TiledImage | ImageError]:
    """
    Cut images as their products want it, or as it is said, and lay the products' own masks over those without one.

    Products that are not named are predicted where that matters, on the images as they came, all in one pass.

    Returns:
        An image, or an error where its product's mask is of another size.
    """
    products, pooled = detector.products, detector.config.class_identity == "pooled"
    setting = detector.config.tiling if tiling == SAME else tiling_text(tiling)
    ids = [None if each.class_name is None else products.id_of(each.class_name) for each in images]
    # 1. Which products they show, if tiles or masks hang on that, or some are named and some are not.
    unnamed = [place for place, class_id in enumerate(ids) if detector.must_identify(class_id is not None)]
    differ = products.have_masks or (tiling == SAME and products.have_tilings) or setting is not None
    identified = set(unnamed) if differ or len(unnamed) < len(images) else set()
    if identified:
        wholes = [
            (TiledImage(images[place].image, processor, None, images[place].ignore_mask), 0) for place in unnamed
        ]
        embeds = detector.embed_image(prepare_tiles(wholes)[0].to(detector.device, detector.dtype))
        for place, class_id in zip(unnamed, detector.identify(embeds).tolist(), strict=True):
            ids[place] = class_id
    for place in set(unnamed) - identified:
        ids[place] = None  # the detector predicts it as it judges
    # 2. Their masks, and their tiles; products that are pooled share one tiling.
    tiled: list[TiledImage | ImageError] = []
    for place, (opened, class_id) in enumerate(zip(images, ids, strict=True)):
        mask = opened.ignore_mask
        try:
            if mask is None and (opener := products.mask_opener(class_id)):
                mask = opener(opened.image.size[::-1])
        except ImageError as error:
            tiled.append(error)
            continue
        own = products.tiling_of(class_id) if tiling == SAME and not pooled else setting
        image = TiledImage.of(opened.image, processor, own, mask)
        image.class_id, image.identified = None if pooled else class_id, place in identified
        tiled.append(image)
    return tiled


def prepare_tiles(tiles: Sequence[tuple[TiledImage, int]]) -> tuple[Tensor, Tensor | None]:
    """
    Turn tiles, each as an image and the tile's number, into what a detector takes.

    Returns:
        `pixel_values` (tiles, 3, side, side), and `ignore_masks` (tiles, side, side) where anything is ignored.
    """
    for image, _ in tiles:
        image.open()  # once, before several threads ask for it
    parts = act_on_each(lambda tile: tile[0].prepare([tile[1]]), tiles)
    pixels = torch.cat([part for part, _ in parts])
    if all(mask is None for _, mask in parts):
        return pixels, None
    nothing = torch.zeros(1, *pixels.shape[2:])
    return pixels, torch.cat([nothing if mask is None else mask for _, mask in parts])


# --- Judging ---


@dataclass
class JudgedImage:
    """
    What a detector says of one image, in one row (or as many as copies).

    Args:
        output: `memory_maps` (rows, 1, patches that count), `anomaly_maps` (rows, height, width) as fine as the tiles' own,
            `image_embeds` of the image as a whole, `is_known_class` where the class was predicted.
        part_scores: (rows,) raw scores of the part that was asked for; those of the whole by default.
        part_maps: (rows, height, width) its raw maps; `None` for the text, which has none.
        frame: what the image is like as a whole, see [`frame_numbers`].
        reason: why it is no photograph of the product that it was given as, whatever its score: what is wrong with its
            frame, or that nothing on it is like the product; `None` where it may be one.
    """

    output: AnoPLeOutput
    part_scores: Tensor
    part_maps: Tensor | None
    frame: list[float]
    reason: str | None = None


@torch.no_grad()
def predict_tiles(
    detector: Detector,
    images: Sequence[TiledImage],
    *,
    class_is_known: bool = False,
    exclude: tuple[int, slice] | None = None,
    copies: Callable[[Tensor], Tensor] | None = None,
    part: Part = "fused",
) -> list[JudgedImage | None]:
    """
    Judge images by their tiles: the highest of their scores, and their maps blended.

    Args:
        images: those of a batch; either all have a `class_id`, or none has and each is predicted (or pooled).
        class_is_known: whether these hold also where classes are predicted.
        exclude: class id and vectors of its memory to leave out (leave-one-out).
        copies: (3, side, side) -> (copies, 3, side, side), to judge copies of every tile in its stead.
        part: which part's raw scores and maps are wanted beside those of the whole.

    Returns:
        One for each image; `None` for an image of which no patch counts.
    """
    copies = copies or (lambda pixels: pixels[None])
    queue = [(place, number) for place, image in enumerate(images) for number in range(len(image.boxes))]
    answers: list[list[_Tile]] = [[] for _ in images]
    frames: list[list[float] | None] = [None] * len(images)
    at_once = max(TILES_AT_ONCE, len(images))  # whole images of a batch are judged together
    for start in range(0, len(queue), at_once):
        chunk = queue[start : start + at_once]
        # 1. Tiles, of several images if these are small, and their copies: (tiles, rows, 3, side, side).
        pixels, masks = prepare_tiles([(images[place], number) for place, number in chunk])
        for (place, _), tile in zip(chunk, pixels, strict=True):
            if images[place].layout is None:
                frames[place] = images[place].frame(tile)
        rows = torch.stack([copies(tile) for tile in pixels.to(detector.device, detector.dtype)])
        masks = None if masks is None else masks.to(detector.device)
        # 2. What the detector says of each.
        ids = [images[place].class_id for place, _ in chunk]
        output = detector(
            rows.flatten(0, 1),
            class_ids=None if ids[0] is None else torch.tensor(ids).repeat_interleave(rows.shape[1]),
            class_is_known=class_is_known or any(image.identified for image in images),
            exclude=exclude,
            ignore_masks=None if masks is None else masks.repeat_interleave(rows.shape[1], 0),
        )
        # 3. Sorted by image.
        tiles = _split_by_tile(detector, output, masks, rows.shape[1], part)
        for (place, _), tile in zip(chunk, tiles, strict=True):
            answers[place].append(tile)
    return [
        _join(detector, image, tiles, frame, copies, class_is_known)
        for image, tiles, frame in zip(images, answers, frames, strict=True)
    ]


@dataclass
class _Tile:
    """The rows of one tile: raw scores and maps of the whole and of a part, and the distances of patches that count."""

    output: AnoPLeOutput
    part_scores: Tensor
    part_maps: Tensor | None
    counts: bool


def _split_by_tile(
    detector: Detector, output: AnoPLeOutput, masks: Tensor | None, rows: int, part: Part
) -> list[_Tile]:
    """Sort a batch's answers by tiles; patches that do not count are left out of memory maps, and 0 in all others."""
    scores, maps = part_scores(detector, output, part)
    grid, count = detector.config.memory_grid_size, len(scores) // rows
    counts = torch.ones(count, grid, grid, dtype=torch.bool, device=scores.device)
    if masks is not None:
        counts = ~ignored_patches(masks, grid)
        maps = mask_out(maps, ~counts.repeat_interleave(rows, 0))
    tiles = []
    for number in range(count):
        own = slice(number * rows, (number + 1) * rows)
        memory = None if output.memory_maps is None else output.memory_maps[own][:, counts[number]]
        answer = AnoPLeOutput(
            image_scores=output.image_scores[own],
            anomaly_maps=output.anomaly_maps[own],
            text_scores=output.text_scores[own],
            memory_maps=memory,
            image_embeds=output.image_embeds[own],
            class_ids=None if output.class_ids is None else output.class_ids[own],
        )
        tiles.append(_Tile(answer, scores[own], None if maps is None else maps[own], bool(counts[number].any())))
    return tiles


def _join(
    detector: Detector,
    image: TiledImage,
    tiles: Sequence[_Tile],
    frame: list[float] | None,
    copies: Callable[[Tensor], Tensor],
    class_is_known: bool,
) -> JudgedImage | None:
    """Make one answer of those to all tiles of an image."""
    counted = [tile for tile in tiles if tile.counts]
    if not counted:
        return None

    def blended(maps: list[Tensor]) -> Tensor:
        return blend_maps(torch.stack(maps, dim=1), image.layout) if image.layout else maps[0]

    first = tiles[0].output
    output = AnoPLeOutput(
        image_scores=torch.stack([tile.output.image_scores for tile in counted]).amax(0),
        anomaly_maps=blended([tile.output.anomaly_maps for tile in tiles]),
        text_scores=torch.stack([tile.output.text_scores for tile in tiles]).amax(0),
        image_embeds=first.image_embeds,  # of an image that is not cut, that of its only tile
        class_ids=first.class_ids,
    )
    if first.memory_maps is not None:
        output.memory_maps = torch.cat([tile.output.memory_maps for tile in tiles], dim=1)[:, None]
    if image.layout:
        pixels, _ = image.whole().prepare([0])
        frame = image.frame(pixels[0])
        output.image_embeds = detector.embed_image(copies(pixels[0].to(detector.device, detector.dtype)))
    detector.apply_thresholds(output)
    part = torch.stack([tile.part_scores for tile in counted]).amax(0)
    maps = None if tiles[0].part_maps is None else blended([tile.part_maps for tile in tiles])
    judged = JudgedImage(output, part, maps, frame)
    if not class_is_known:
        predicted = detector.must_identify(image.class_id is not None and not image.identified)
        # where a user says that it is of this product, it takes more to gainsay that
        reach = 1.0 if predicted else NAMED_REACH
        known = detector.is_known_class(output.memory_maps, output.image_embeds, output.class_ids, reach=reach)
        if predicted:
            output.is_known_class = known
        judged.reason = _reason(detector, judged, known)
    return judged


NOTHING_LIKE = "nothing like the product"
NAMED_REACH = 2.0  # of the thresholds of unknown products: of 600 good photographs 30 passed these, 2 this


def _reason(detector: Detector, judged: JudgedImage, known: Tensor | None) -> str | None:
    """Say why an image is no photograph of the product it was judged as, by its frame and by its distance to the product."""
    if judged.output.class_ids is None:  # pooled: any of them may be shown
        every = [product.record.frame for product in detector.products]
        faults = [limits and limits.fault(judged.frame) for limits in every]
        return faults[0] if all(faults) else None
    limits = detector.products[int(judged.output.class_ids[0])].record.frame
    fault = None if limits is None else limits.fault(judged.frame)
    if fault is not None or known is None or bool(known.all()):
        return fault
    return (limits and limits.fault(judged.frame, suspected=True)) or NOTHING_LIKE


def part_scores(detector: Detector, output: AnoPLeOutput, part: Part) -> tuple[Tensor, Tensor | None]:
    """
    Pick the raw image scores (batch,) and maps (batch, side, side) of one part of the detector.

    The memory's image score is its unsmoothed maximum, as in the fused score; the decoder's the maximum of its smoothed
    map; the text has no map.

    Raises:
        ValueError: for the memory of a detector without one.
    """
    if part == "text":
        return output.text_scores, None
    if part == "fused":
        return output.image_scores, output.anomaly_maps
    raw = output.memory_maps if part == "memory" else output.decoder_maps
    if raw is None:
        raise ValueError("part='memory' of a detector that remembers nothing: fit it, or enroll products.")
    maps = smooth_maps(raw.float(), size=detector.config.input_size, sigma=detector.config.smoothing)
    return (raw if part == "memory" else maps).flatten(1).amax(1), maps


__all__ = [
    "NOTHING_LIKE",
    "TILES_AT_ONCE",
    "JudgedImage",
    "OpenedImage",
    "Part",
    "TiledImage",
    "open_batches",
    "part_scores",
    "predict_tiles",
    "prepare_tiles",
    "tile_images",
]
