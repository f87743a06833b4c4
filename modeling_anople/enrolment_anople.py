"""Products come and go: enrol, extend and forget them without training, and keep a log of it."""

import contextlib
import copy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .folder_anople import FolderMixin
from .lines_anople import ClassLine
from .masks_anople import KeptMasksMixin
from .normals_anople import Normals, known_digests, open_normals, refuse_copies, refuse_twins, warn_of_others
from .processing_anople import AnoPLeProcessor, find_class, new_name
from .products_anople import DEFAULT_FALSE_ALARM_RATE
from .prompting_anople import class_prompt_ids
from .tiling_anople import Tiling, tiling_of, tiling_text


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


__all__ = ["EnrolmentMixin"]
