"""What lies in a detector's folder beside its weights: the processor, and the code of the pipeline."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers.utils import SAFE_WEIGHTS_NAME

from .checkpoint_anople import align_files
from .pipeline_anople import AnomalyDetectionPipeline
from .processing_anople import AnoPLeProcessor


BOTH = ("token", "max_shard_size")  # those of `push_to_hub` that saving takes too
PUSH_ARGUMENTS = (*BOTH, "commit_message", "commit_description", "private", "revision", "create_pr", "tags")


class FolderMixin:
    """Methods of [`AnoPLeModel`] that keep model and processor together; the import takes the pipeline along."""

    _own_processor: AnoPLeProcessor | None = None
    hub_arguments: Mapping[str, Any] = MappingProxyType({})  # those that the model was loaded with; never saved

    def as_pipeline(self, processor: AnoPLeProcessor | None = None, **options) -> AnomalyDetectionPipeline:
        """Make the pipeline of a model that is loaded already, where it is; `options` are those of the pipeline."""
        return AnomalyDetectionPipeline(
            self, processor=self.processor_beside(processor), device=self.device, **options
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, push_to_hub: bool = False, repo_id: str | None = None, **kwargs
    ) -> None:
        """
        Save as every transformers model; and the processor too, where it is at hand (see [`save_processor`]).

        Args:
            save_directory: the folder.
            push_to_hub: whether to push the detector, with its processor, when all is saved.
            repo_id: where to; by default the name of the folder.
            kwargs: those of transformers' `save_pretrained` and `push_to_hub`.
        """
        pushing = {name: kwargs[name] for name in PUSH_ARGUMENTS if name in kwargs}
        saving = {name: value for name, value in kwargs.items() if name not in PUSH_ARGUMENTS or name in BOTH}
        super().save_pretrained(save_directory, **saving)
        if kwargs.get("is_main_process", True):
            align_files(save_directory, SAFE_WEIGHTS_NAME)
        self.save_processor(save_directory)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).resolve().name, **pushing)

    def save_processor(self, folder: str | os.PathLike) -> None:
        """Save the processor that was used with the model, or lies where it came from; nothing is fetched for it."""
        processor = self._own_processor
        if processor is None and self.name_or_path:
            with contextlib.suppress(ValueError):  # there is none
                processor = self._load_processor(local_files_only=True)
        if processor is not None:
            processor.save_pretrained(folder)

    def processor_beside(self, processor: AnoPLeProcessor | None = None) -> AnoPLeProcessor:
        """
        Take the processor that is given, or was given before, or load the one that lies where the model came from.

        Raises:
            ValueError: if it is of another detector, or there is none.
        """
        if processor is not None and processor.class_names != self.config.class_names:
            raise ValueError(
                f"The processor knows the products {processor.class_names}, the model {self.config.class_names}: give the "
                "processor that belongs to this model."
            )
        self._own_processor = processor or self._own_processor or self._load_processor()
        return self._own_processor

    def _load_processor(self, **options) -> AnoPLeProcessor:
        place, access = self.name_or_path, {**self.hub_arguments, **options}
        access["revision"] = getattr(self.config, "_commit_hash", None) or access.get("revision")
        try:
            processor = AnoPLeProcessor.from_pretrained(
                place, **{name: value for name, value in access.items() if value is not None}
            )
        except Exception as error:  # whatever is missing or damaged there
            raise ValueError(
                f"The detector's processor cannot be loaded from {place or 'the place it came from, which is unknown'} "
                f"({error}): give processor=..."
            ) from error
        processor.class_names = list(self.config.class_names)
        return processor


__all__ = ["FolderMixin"]
