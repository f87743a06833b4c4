"""Which photographs a fit learns from, and which it is watched on."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .fewshot import FewShotDataset, ViewSettings, collate_views, sample_few_shot, square_image
from .ignoring_anople import load_ignore_mask
from .names_anople import composed
from .options import TrainingConfig
from .photographs_anople import ImageError, load_mask, load_photograph
from .processing_anople import AnoPLeProcessor
from .sources import read_source
from .sources_anople import list_photographs
from .synthesis import PseudoAnomaly
from .views_anople import Views


logger = logging.getLogger(__name__)


@dataclass
class Shots:
    """The good photographs of a fit: names per class, what was held back to watch the decoder, and what is ignored."""

    files: dict[str, list[str]]
    images: list[dict]
    class_ids: list[int]
    held_back: list[tuple[dict, int]]
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    def mask_of(self, class_id: int) -> np.ndarray | None:
        """Return what is ignored on the photographs of a class."""
        return self.masks.get(list(self.files)[class_id]) if self.masks else None


def choose_shots(config: TrainingConfig) -> Shots:
    """Draw the good photographs of each class from the train split."""
    normals = read_source(config.data_root, split="train", classes=config.classes)
    normals = normals.select([row for row, label in enumerate(normals["label"][:]) if label == 0])
    rows: dict[str, dict[str, int]] = {}
    for number, (name, path) in enumerate(zip(normals["class_name"], normals["path"], strict=True)):
        rows.setdefault(name, {})[path] = number
    shots = Shots({}, [], [], [])
    spare = max(1, config.monitor_images // len(rows))
    for class_id, name in enumerate(sorted(rows)):
        chosen = []
        for view, paths in group_views(list(rows[name]), config.view_pattern).items():
            drawn = sample_few_shot(paths, config.shots, seed=config.seed, class_name=name)
            if len(drawn) < config.shots:
                seen = f"{name}, view {view}," if view else name
                logger.warning("%s has %d good photographs; %d were asked for.", seen, len(drawn), config.shots)
            chosen += drawn
        shots.files[name] = chosen
        shots.images += [normals[rows[name][path]]["image"] for path in chosen]
        shots.class_ids += [class_id] * len(chosen)
        others = sample_few_shot(list(rows[name].keys() - chosen) or chosen, spare, seed=config.seed, class_name=name)
        shots.held_back += [(normals[rows[name][path]]["image"], class_id) for path in others]
    shots.masks = read_ignore_masks(config.ignore_masks, list(shots.files))
    return shots


def group_views(paths: list[str], pattern: str | None) -> dict[str, list[str]]:
    """
    Sort the photographs of one product by view, as the group of a regular expression tells it by their file names.

    Without a pattern they are all of one view, "".

    Raises:
        ValueError: if a name does not fit.
    """
    if pattern is None:
        return {"": paths}
    views: dict[str, list[str]] = {}
    for path in sorted(paths):
        found = re.search(pattern, Path(path).name)
        if found is None:
            raise ValueError(
                f"view_pattern {pattern!r} does not fit {Path(path).name}: it must fit every good photograph."
            )
        views.setdefault(found[1], []).append(path)
    return dict(sorted(views.items()))


def read_ignore_masks(folder: str | None, names: list[str]) -> dict[str, np.ndarray]:
    """
    Read the ignore masks of products, pictures NAME.png (or another kind) in a folder.

    Raises:
        ValueError: for a picture of no product.
    """
    masks = {composed(path.stem): load_mask(path) for path in (list_photographs([folder]) if folder else [])}
    if unknown := sorted(masks.keys() - names):
        raise ValueError(f"{folder} holds ignore masks of {unknown}, which are not fitted; products are {names}.")
    return {name: mask for name, mask in masks.items() if mask.any()}


def make_samples(
    config: TrainingConfig, processor: AnoPLeProcessor, shots: Shots, grid: int, tiling: str | None = None
) -> FewShotDataset:
    """Load the photographs, or each of their tiles, at the size from which views are cut."""
    tiles = [
        _squares(image, processor, grid, tiling, shots.mask_of(class_id))
        for image, class_id in zip(shots.images, shots.class_ids, strict=True)
    ]
    class_ids = [[class_id] * len(several) for several, class_id in zip(tiles, shots.class_ids, strict=True)]
    return FewShotDataset(
        [tile for several in tiles for tile in several],
        [class_id for several in class_ids for class_id in several],
        views=_view_settings(processor, grid),
        anomaly=None if config.pixel_anomaly == "none" else PseudoAnomaly(kind=config.pixel_anomaly),
        turns=config.normal_turns,
        seed=config.seed,
    )


def make_watched(
    config: TrainingConfig, processor: AnoPLeProcessor, shots: Shots, tiling: str | None = None
) -> dict[str, torch.Tensor] | None:
    """
    Make defects on photographs that are not trained on (or, where none is spare, on the shots themselves).

    Of one that is tiled, on the tile in the middle of the row of all.
    """
    if config.monitor_images < 1:
        return None
    images, class_ids = [], []
    for image, class_id in shots.held_back:
        try:
            tiles = _squares(image, processor, 1, tiling, shots.mask_of(class_id))
        except ImageError as error:
            logger.warning("Held back to watch the decoder, and left out: %s", error)
            continue
        images.append(tiles[len(tiles) // 2])
        class_ids.append(class_id)
    if not images:
        return None
    kind = "perlin" if config.pixel_anomaly == "none" else config.pixel_anomaly
    samples = FewShotDataset(
        images,
        class_ids,
        views=_view_settings(processor, 1),
        anomaly=PseudoAnomaly(kind=kind),
        anomaly_period=1,
        seed=config.seed + 1_000_003,  # defects that fitting does not draw
    )
    batch = collate_views([samples[number] for number in range(2 * len(images))])
    return batch if batch["mask_labels"].any() else None


def _squares(
    image: dict, processor: AnoPLeProcessor, grid: int, tiling: str | None, mask: np.ndarray | None
) -> list[torch.Tensor]:
    """Make the whole photograph, or each tile, a square; what is ignored or beyond the border is painted over."""
    photograph = load_photograph(image, white_value=processor.white_value)
    if tiling is None and mask is None:
        parts = [photograph]
    else:
        mask = None if mask is None else load_ignore_mask(mask, photograph.size[::-1])
        parts = Views.of(photograph, processor, tiling, mask).pictures()
    return [square_image(part, processor.image_size * grid) for part in parts]


def _view_settings(processor: AnoPLeProcessor, grid: int) -> ViewSettings:
    normalisation = processor.image_processor
    return ViewSettings(processor.image_size, grid, tuple(normalisation.image_mean), tuple(normalisation.image_std))


__all__ = ["Shots", "choose_shots", "make_samples", "make_watched", "read_ignore_masks"]
