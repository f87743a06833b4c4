"""Good photographs on their way into a detector: all of them readable, and none of them twice."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .photographs_anople import ImageError, load_photograph, source_path
from .processing_anople import AnoPLeProcessor
from .sources_anople import photographs_of


NAMED_FAILURES = 5


@dataclass
class Normals:
    """
    Good photographs, ready.

    Args:
        pixel_values: (photographs, 3, side, side).
        files: their names.
        digests: of their contents.
        sizes: (height, width) of each.
    """

    pixel_values: Tensor
    files: list[str | None]
    digests: list[str]
    sizes: list[tuple[int, int]]


def open_normals(images: Any, processor: AnoPLeProcessor) -> Normals:
    """
    Open good photographs, all or none.

    Raises:
        ValueError: if there is none, or one is there twice (its twin would make its score zero, and the line too low).
        ImageError: naming those that cannot be read.
    """
    pixels, files, digests, sizes, failures = [], [], [], [], []
    for image in photographs_of(images):
        try:
            photograph = load_photograph(image, white_value=processor.white_value)
        except ImageError as error:
            failures.append(str(error))
            continue
        pixels.append(processor(photograph)["pixel_values"])
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
    normals = Normals(torch.cat(pixels), files, digests, sizes)
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


def known_digests(history: list[dict], class_name: str) -> list[str]:
    """Read from a detector's log the digests of the photographs that a product has been given since it is there."""
    known: list[str] = []
    for entry in history:
        if entry["class_name"] == class_name:
            known = [] if entry["action"] == "forget" else known + entry["digests"]
    return known


def digest_of(photograph: Image.Image) -> str:
    """Digest the pixels of a photograph that [`load_photograph`] opened."""
    return hashlib.sha256(repr(photograph.size).encode() + photograph.tobytes()).hexdigest()[:16]


__all__ = ["Normals", "digest_of", "known_digests", "open_normals", "refuse", "refuse_twins"]
