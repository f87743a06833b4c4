"""Products come and go: good images checked, enrolled, added and forgotten, whole or not at all, with a log of it."""

import contextlib
import copy
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .calibration_anople import ClassLine
from .fitting_anople import DEFAULT_FALSE_ALARM_RATE
from .folder_anople import FolderMixin
from .images_anople import ImageError, load_ignore_mask, load_photograph, photographs_of, source_path, with_masks
from .inference_anople import Views, judge_views
from .processing_anople import AnoPLeProcessor, find_class, new_name
from .product_store_anople import KeptMasksMixin
from .prompting_anople import class_prompt_ids
from .tiling_anople import Tiling, tiling_of, tiling_text


# --- Good photographs on their way into a detector: all of them readable, and none of them twice ---


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


# --- Products come and go: enrol, extend and forget them without training, and keep a log of it ---


CLASS_BUFFERS = ("class_token_ids", "class_embeddings", "class_prototypes")
CONFIG_FIELDS = (
    "class_names",
    "memory_sizes",
    "memory_photographs",
    "memory_boxes",
    "calibration",
    "history",
    "product_tilings",
)


class EnrolmentMixin(KeptMasksMixin, FolderMixin):
    """Methods of [`AnoPLeModel`] that add, extend and remove products; each is done whole or not at all."""

    @torch.no_grad()
    def enroll(
        self,
        class_name: str,
        images: Any,
        *,
        processor: AnoPLeProcessor | None = None,
        max_false_alarm_rate: float | None = None,
        batch_size: int = 8,
        date: str | None = None,
        tiling: Tiling | Literal["same"] = "same",
        ignore_mask: Any = None,
    ) -> ClassLine:
        """
        Add a product from good photographs, without training: text embedding, memory, prototype and line.

        What the detector answers for another product, the class being given, does not change by one bit. (Where classes
        are pooled, all products share one memory and one line, and every new product moves both.)

        Args:
            class_name: the new product; its words go into the prompts.
            images: good photographs: a list, folder, dataset or generator of whatever [`load_photograph`] opens.
            processor: the detector's processor; it learns the name, and is saved with the model from now on. Without it,
                the one of the last call is taken, or the one that lies where the model was loaded from.
            max_false_alarm_rate: share of good photographs that may lie above the line; by default that of the others.
            batch_size: photographs encoded at once.
            date: ISO date for the log; by default now.
            tiling: how this product's photographs are cut, now and whenever one is judged; by default as the others.
            ignore_mask: places that do not count, one mask for all photographs, which the product keeps for all later
                ones, or a list with one for each, which is not kept.

        Returns:
            The line that was set.

        Raises:
            ValueError: for a name that is taken, no photograph, one given twice, a processor that cannot be found, or
                other products of which no photograph is known yet.
            ImageError: naming the photographs that cannot be read; nothing was changed.
        """
        config = self.config
        class_name = new_name(class_name, config.class_names)
        if empty := [name for name, counts in zip(config.class_names, self.memory.counts, strict=True) if not counts]:
            raise ValueError(
                f"The detector knows no photographs of {empty}, which could not be judged beside a product that it "
                "remembers: give them some with add_normals first."
            )
        processor = self.processor_beside(processor)
        if processor.tokenizer is None:
            raise ValueError("This processor has no tokenizer, so no new product can be named: load it whole.")
        setting = config.tiling if tiling == "same" else tiling_text(tiling)
        if setting != config.tiling and config.class_identity == "pooled":
            raise ValueError(f"Pooled classes share one tiling, {config.tiling!r}; got {tiling!r}: leave it out.")
        normals = open_normals(images, processor, tiling=setting, ignore_mask=ignore_mask)
        warn_of_others(normals, config.history, config.class_names)
        ids = class_prompt_ids(
            processor.tokenizer,
            [class_name],
            prompt_count=config.text_prompt_count,
            max_length=self.class_token_ids.shape[1],
        ).to(self.device)
        with self._whole_or_not_at_all():
            self._append_class(class_name, ids)
            if setting != config.tiling:
                config.product_tilings = {**config.product_tilings, class_name: setting}
            if (mask := normals.common_mask(ignore_mask)) is not None:
                self.masks.keep(class_name, mask, self.device)
            self._take_in(normals, class_name, max_false_alarm_rate, batch_size)
            self.log_history("enroll", class_name, files=normals.files, digests=normals.digests, date=date)
        processor.class_names = list(config.class_names)
        return ClassLine(**config.calibration[class_name])

    @torch.no_grad()
    def add_normals(
        self,
        class_name: str,
        images: Any,
        *,
        processor: AnoPLeProcessor | None = None,
        max_false_alarm_rate: float | None = None,
        batch_size: int = 8,
        date: str | None = None,
        ignore_mask: Any = None,
    ) -> ClassLine:
        """
        Let a product know more good photographs, and set its line anew (see [`calibrate_further`] for how, and its limits).

        Arguments and errors are those of [`enroll`]; the product must exist, and none of the photographs may have been
        added before. Without `ignore_mask` the product's own is used, where it keeps one; `"none"` ignores nothing.
        """
        class_name, processor = self._known(class_name)[1], self.processor_beside(processor)
        tiling = tiling_of(self.config, class_name)
        ignore_mask = self.ignore_mask_for(class_name, ignore_mask)
        normals = open_normals(images, processor, tiling=tiling, ignore_mask=ignore_mask)
        refuse_twins(normals, known_digests(self.config.history, class_name))
        refuse_copies(self, normals, class_name, batch_size)
        with self._whole_or_not_at_all():
            self._take_in(normals, class_name, max_false_alarm_rate, batch_size)
            self.log_history("add_normals", class_name, files=normals.files, digests=normals.digests, date=date)
        return ClassLine(**self.config.calibration[class_name])

    @torch.no_grad()
    def refine_line(
        self,
        class_name: str,
        images: Any = None,
        *,
        processor: AnoPLeProcessor | None = None,
        max_false_alarm_rate: float | None = None,
        batch_size: int = 8,
        date: str | None = None,
        ignore_mask: Any = None,
    ) -> ClassLine:
        """
        Set a product's line anew, with more good photographs that are not remembered, or for another rate of false alarms.

        The memory stays as it is, and so do all raw scores (see [`calibrate_held_out`]). Arguments and errors are those of
        [`add_normals`]; without `images` only the rate changes.

        Raises:
            ValueError: also for a product without a line, and if neither photographs nor a rate are given.
        """
        class_id, class_name = self._known(class_name)
        if not self.calibration.knows(class_name):
            raise ValueError(f"{class_name!r} has no line to refine: give it good photographs with add_normals first.")
        if images is None and max_false_alarm_rate is None:
            raise ValueError("Nothing would change: give good photographs, max_false_alarm_rate=..., or both.")
        normals = None
        if images is not None:
            tiling = tiling_of(self.config, class_name)
            ignore_mask = self.ignore_mask_for(class_name, ignore_mask)
            normals = open_normals(images, self.processor_beside(processor), tiling=tiling, ignore_mask=ignore_mask)
            refuse_twins(normals, known_digests(self.config.history, class_name))
            refuse_copies(self, normals, class_name, batch_size)
        with self._whole_or_not_at_all():
            line = self.calibrate_held_out(
                None if normals is None else normals.ready(self.device, self.dtype),
                class_id,
                max_false_alarm_rate=self._rate(class_name, max_false_alarm_rate),
                batch_size=batch_size,
            )
            files, digests = (normals.files, normals.digests) if normals else ([], [])
            self.log_history("calibrate", class_name, files=files, digests=digests, date=date)
        return line

    @torch.no_grad()
    def forget(self, class_name: str, *, processor: AnoPLeProcessor | None = None, date: str | None = None) -> None:
        """
        Remove a product: its memory, text embedding, prototype and line. The log keeps that it was there.

        The ids of the products after it go down by one, hence the processor, as in [`enroll`].

        Raises:
            ValueError: for an unknown name, with the known ones, or the only product.
        """
        (class_id, class_name), config = self._known(class_name), self.config
        if len(config.class_names) == 1:
            raise ValueError(f"{class_name!r} is the detector's only product: enroll another one before.")
        processor = self.processor_beside(processor)
        with self._whole_or_not_at_all():
            others = [number for number in range(len(config.class_names)) if number != class_id]
            rows = [row for number in others for row in (2 * number, 2 * number + 1)]
            self.class_token_ids = self.class_token_ids[rows].clone()
            self.class_embeddings = self.class_embeddings[others].clone()
            self.class_prototypes = self.class_prototypes[others].clone()
            contents, masks = self.memory.contents, self.masks.contents
            self.memory.restore([contents[number] for number in others])
            config.class_names = [config.class_names[number] for number in others]
            self.masks.restore({name: kept for name, kept in masks.items() if name != class_name})
            self.note_memory()
            self.calibration.remove(class_name)
            config.product_tilings = {
                name: value for name, value in config.product_tilings.items() if name != class_name
            }
            self.log_history("forget", class_name, date=date)
        processor.class_names = list(config.class_names)

    def log_history(
        self,
        action: str,
        class_name: str,
        *,
        files: list[str | None] | None = None,
        digests: list[str] | None = None,
        date: str | None = None,
    ) -> None:
        """
        Write into `config.history` what was done to a product, when, from which files, how much it knows and where its
        line lies now.

        File names stand there without their folders; `digests` are of the photographs' pixels.
        """
        names, line = self.config.class_names, self.config.calibration.get(class_name, {})
        entry = {
            "date": date or datetime.now(UTC).isoformat(timespec="seconds"),
            "action": action,
            "class_name": class_name,
            "photographs": len(files or []),
            "files": [None if file is None else Path(file).name for file in files or []],
            "digests": list(digests or []),
            "known_photographs": len(self.memory.counts[names.index(class_name)]) if class_name in names else 0,
            "line": line.get("image_line"),
            "max_false_alarm_rate": line.get("max_false_alarm_rate"),
        }
        self.config.history = [*self.config.history, entry]

    def _take_in(self, normals: Normals, class_name: str, rate: float | None, batch_size: int) -> None:
        """Remember photographs and set the line of their product."""
        rate, class_id = self._rate(class_name, rate), self.config.class_names.index(class_name)
        pixels = normals.ready(self.device, self.dtype)
        self.remember(pixels, class_id, batch_size=batch_size, sizes=normals.sizes)
        self.calibrate_further(pixels, class_id, max_false_alarm_rate=rate)

    def _rate(self, class_name: str, rate: float | None) -> float:
        """Return the rate asked for, or that of a product's line, or that of the others."""
        if rate is not None:
            return rate
        lines = self.config.calibration
        known = lines.get(class_name) or next(iter(lines.values()), {})
        return known.get("max_false_alarm_rate", DEFAULT_FALSE_ALARM_RATE)

    def _known(self, class_name: str) -> tuple[int, str]:
        """Return the id of a product, and its name as the detector writes it; refuse an unknown one."""
        class_id = find_class(class_name, self.config.class_names)
        return class_id, self.config.class_names[class_id]

    def _append_class(self, class_name: str, ids: Tensor) -> None:
        """Make room for a product; the rows of the others are copied as they are."""
        embeddings = self.embed_classes(ids).detach().to(self.class_embeddings)
        prototypes = self.class_prototypes
        self.class_token_ids = torch.cat([self.class_token_ids, ids])
        self.class_embeddings = torch.cat([self.class_embeddings, embeddings])
        self.class_prototypes = torch.cat([prototypes, prototypes.new_zeros(1, prototypes.shape[1])])
        self.memory.append_class(prototypes.new_zeros(len(self.memory.layers), 0, self.memory.width))
        self.config.class_names = [*self.config.class_names, class_name]
        self.note_memory()

    @contextlib.contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        """Put everything back if what is done inside fails."""
        config = {name: copy.deepcopy(getattr(self.config, name)) for name in CONFIG_FIELDS}
        buffers = {name: getattr(self, name).clone() for name in CLASS_BUFFERS}
        contents, masks = self.memory.contents, self.masks.contents
        try:
            yield
        except BaseException:
            for name, value in buffers.items():
                setattr(self, name, value)
            self.memory.restore(contents)
            for name, value in config.items():
                setattr(self.config, name, value)
            self.masks.restore(masks)
            raise


__all__ = [
    "EnrolmentMixin",
    "Normals",
    "digest_of",
    "known_digests",
    "open_normals",
    "refuse",
    "refuse_copies",
    "refuse_twins",
    "warn_of_others",
]
