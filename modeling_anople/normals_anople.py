"""Good photographs on their way into a detector: all of them readable, and none of them twice."""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .ignoring_anople import load_ignore_mask
from .photographs_anople import ImageError, load_photograph, source_path
from .processing_anople import AnoPLeProcessor
from .sources_anople import photographs_of, with_masks
from .tiling_anople import Tiling
from .views_anople import Views, judge_views


logger = logging.getLogger(__name__)

NAMED_FAILURES = 5
LARGEST_ROUNDING = 1e-5  # of the distance of a photograph to itself in the memory; in half precision eps / 16


@dataclass
class Normals:
    """
    Good photographs, ready.

    Args:
        pixel_values: (photographs, 3, side, side).
        files: their names.
        digests: of their contents.
        sizes: (height, width) of each.
        views: their tiles and masks, where there are any; `pixel_values` is then not used.
    """

    pixel_values: Tensor
    files: list[str | None]
    digests: list[str]
    sizes: list[tuple[int, int]]
    views: list[Views] | None = None

    def ready(self, device: torch.device, dtype: torch.dtype) -> Tensor | list[Views]:
        """Return what [`remember`] and [`calibrate`] take."""
        return self.pixel_values.to(device, dtype) if self.views is None else self.views

    def common_mask(self, given: Any) -> np.ndarray | None:
        """Return what is ignored on all of them, where one mask was given that marks anything."""
        mask = None if self.views is None or isinstance(given, (list, tuple)) else self.views[0].mask
        return mask if mask is not None and mask.any() else None


def open_normals(
    images: Any, processor: AnoPLeProcessor, *, tiling: Tiling = None, ignore_mask: Any = None
) -> Normals:
    """
    Open good photographs, all or none.

    Args:
        images: a list, folder, dataset or generator of whatever [`load_photograph`] opens.
        processor: the detector's.
        tiling: how they are cut.
        ignore_mask: what does not count, one mask for all, or a list with one (or `None`) for each.

    Raises:
        ValueError: if there is none, or one is there twice (its twin would make its score zero, and the line too low).
        ImageError: naming those that cannot be read.
    """
    pixels, files, digests, sizes, failures = [], [], [], [], []
    views, plain = [], tiling is None and ignore_mask is None
    for image, mask in with_masks(photographs_of(images), ignore_mask):
        try:
            photograph = load_photograph(image, white_value=processor.white_value)
            mask = None if mask is None else load_ignore_mask(mask, photograph.size[::-1])
        except ImageError as error:
            failures.append(str(error))
            continue
        pixels.append(processor(photograph)["pixel_values"] if plain else torch.zeros(0))
        views += [] if plain else [Views.of(photograph, processor, tiling, mask)]
        files.append(source_path(image))
        digests.append(digest_of(photograph))
        sizes.append(photograph.size[::-1])
    if failures:
        more = f" and {len(failures) - NAMED_FAILURES} more" if len(failures) > NAMED_FAILURES else ""
        raise ImageError(
            f"{len(failures)} of {len(failures) + len(pixels)} photographs cannot be used, nothing was changed: "
            f"{' '.join(failures[:NAMED_FAILURES])}{more}"
        )
    if not pixels:
        raise ValueError("No good photographs were given: at least one is needed.")
    normals = Normals(torch.cat(pixels), files, digests, sizes, None if plain else views)
    refuse_twins(normals, [])
    return normals


def refuse_twins(normals: Normals, known: list[str]) -> None:
    """Refuse photographs with the very pixels of another one, or of a known one."""
    seen, twins = set(known), []
    for number, (file, digest) in enumerate(zip(normals.files, normals.digests, strict=True), start=1):
        if digest in seen:
            twins.append(file or f"photograph {number}")
        seen.add(digest)
    refuse(twins)


def refuse(twins: list[str]) -> None:
    """Refuse photographs, by these names; none is well."""
    if twins:
        raise ValueError(
            f"These photographs are given twice, or known already: {', '.join(twins)}. Leave them out; a twin says nothing "
            "new and would make the line too low."
        )


def refuse_copies(model: Any, normals: Normals, class_name: str, batch_size: int) -> None:
    """
    Refuse photographs that lie on remembered ones at every place, where not all of these have a digest in the log.

    That is so in detectors of versions that logged none, and after [`remember`].
    """
    class_id = model.config.class_names.index(class_name)
    if len(known_digests(model.config.history, class_name, held_out=False)) >= len(model.memory.counts[class_id]):
        return
    farthest = [
        float(judge_views(model, views, class_id, exclude=slice(0, 0)).memory_maps.max())
        for views in normals.views or ()
    ]
    for part in () if normals.views else normals.ready(model.device, model.dtype).split(batch_size):
        taps = {layer: tap.float() for layer, tap in model.memory_taps(part, model.encode_views(part)).items()}
        ids = torch.full((len(part),), class_id, device=model.device)
        farthest += model.memory(taps, ids).amax(1).tolist()
    rounding = max(LARGEST_ROUNDING, torch.finfo(model.dtype).eps / 16)
    named = zip(normals.files, farthest, strict=True)
    refuse([file or f"photograph {n}" for n, (file, far) in enumerate(named, start=1) if far <= rounding])


def known_digests(history: list[dict], class_name: str, *, held_out: bool = True) -> list[str]:
    """
    Read from a detector's log the digests of the photographs that a product has been given since it is there.

    Those that only set its line count unless `held_out` is off.
    """
    known: list[str] = []
    for entry in history:
        if entry["class_name"] == class_name and (held_out or entry["action"] != "calibrate"):
            known = [] if entry["action"] == "forget" else known + entry["digests"]
    return known


def warn_of_others(normals: Normals, history: list[dict], class_names: list[str]) -> None:
    """Log a warning for photographs of a new product that the detector was given as one of these others."""
    for name in class_names:
        known = set(known_digests(history, name))
        if count := sum(digest in known for digest in normals.digests):
            logger.warning(
                "%d of these %d photographs are known as %r: only one of the two can be named.",
                count,
                len(normals.digests),
                name,
            )


def digest_of(photograph: Image.Image) -> str:
    """Digest the pixels of a photograph that [`load_photograph`] opened."""
    return hashlib.sha256(repr(photograph.size).encode() + photograph.tobytes()).hexdigest()[:16]


__all__ = [
    "Normals",
    "digest_of",
    "known_digests",
    "open_normals",
    "refuse",
    "refuse_copies",
    "refuse_twins",
    "warn_of_others",
]
