"""A detector's folder, written and read; and adapters: all of a detector but its frozen towers."""

import contextlib
import copy
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from torch import Tensor
from transformers import CLIPModel, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save, get_relative_imports
from transformers.utils import PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .backbone_anople import HUB_ARGUMENTS, MemoryEncoder, load_clip_part, load_memory_encoder
from .configuration_anople import AnoPLeConfig
from .processing_anople import AnoPLeProcessor
from .product_store_anople import ProductStore
from .saving_anople import (
    ADAPTER_FILE,
    FROZEN,
    ID,
    LOCK_FILE,
    align_files,
    align_weights,
    check_state,
    check_variant,
    finder,
    hash_weights,
    read_place,
    replacing,
    stamp,
)


logger = logging.getLogger(__name__)


_PATTERN = ADAPTER_FILE.replace(".", "{suffix}.")
BOTH = ("token", "max_shard_size")  # those of `push_to_hub` that saving takes too
PUSH_ARGUMENTS = (*BOTH, "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
LAST_CODE = "pipeline_anople.py"  # which brings all other code along
EARLIER_BUFFERS = ("class_token_ids", "class_embeddings", "class_prototypes")


class CheckpointMixin:
    """Methods of [`AnoPLeModel`] that write it into a folder and read it from there, whole or without its frozen towers."""

    hub_arguments: Mapping[str, Any] = MappingProxyType({})  # those that the model was loaded with; never saved
    own_processor: AnoPLeProcessor | None = None  # the one that is used with the model, and is saved with it
    products: ProductStore
    memory_encoder: MemoryEncoder | None

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, push_to_hub: bool = False, repo_id: str | None = None, **kwargs
    ) -> None:
        """
        Save as every transformers model, with all code of a detector, and its processor where that is at hand.

        The folder changes all at once (see [`replacing`]): whoever reads it meanwhile, or after this program was killed,
        finds the state before or this one.

        Args:
            save_directory: the folder.
            push_to_hub: whether to push the folder when all is saved.
            repo_id: where to; by default the name of the folder.
            kwargs: those of transformers' `save_pretrained` and `push_to_hub`.

        Raises:
            ValueError: if another program changes the folder for too long, or a variant is to lie beside other weights.
            OSError: if it cannot be written; it is as it was then.
        """
        pushing = {name: kwargs[name] for name in PUSH_ARGUMENTS if name in kwargs}
        saving = {name: value for name, value in kwargs.items() if name not in PUSH_ARGUMENTS or name in BOTH}
        saving["save_original_format"] = False  # under modules' names, by which an adapter hashes an encoder too
        self.products.write()
        if kwargs.get("variant"):
            check_variant(save_directory, kwargs["variant"])
        if kwargs.get("is_main_process", True):
            with replacing(save_directory) as place:
                super().save_pretrained(place, **saving)
                self._complete(place, Path(save_directory), SAFE_WEIGHTS_NAME)
        else:  # takes its part in gathering weights, and writes nothing
            super().save_pretrained(save_directory, **saving)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).resolve().name, **pushing)

    def save_adapter(self, folder: str | Path) -> None:
        """
        Write prompts, prefix, decoder and products, but neither the CLIP nor the memory's encoder.

        Args:
            folder: where to; gets `adapter.safetensors`, `config.json`, the code, and the processor where it is at hand.

        Raises:
            ValueError, OSError: as of [`save_pretrained`].
        """
        self.products.write()
        config = copy.deepcopy(self.config)
        config.adapter_clip_sha256 = hash_weights(self.clip.state_dict())
        if self.memory_encoder is not None:
            config.memory_encoder_sha256 = hash_weights(self.memory_encoder.model.state_dict())
        config.dtype, config.architectures = self.dtype, [type(self).__name__]
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(FROZEN)}
        with replacing(folder) as place:
            if self._auto_class is not None:
                custom_object_save(self, place, config=config)
            save_torch_state_dict(own, place, filename_pattern=_PATTERN, max_shard_size="1000GB")
            config.save_pretrained(place)
            self._complete(place, Path(folder), ADAPTER_FILE)

    def _complete(self, place: Path, folder: Path, weights: str) -> None:
        """Write what else belongs to a state, and its id into all of it; a processor that lies in `folder` already stays."""
        align_files(place, weights)
        self._save_beside(place)
        if (folder / PROCESSOR_NAME).exists() and not (place / PROCESSOR_NAME).exists():
            shutil.copyfile(folder / PROCESSOR_NAME, place / PROCESSOR_NAME)
        self.config.content_sha256 = stamp(place, place.glob("*.safetensors"))

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Push what transformers' `push_to_hub` saved, without the lock."""
        (Path(working_dir) / LOCK_FILE).unlink(missing_ok=True)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _save_beside(self, folder: Path) -> None:
        """Write the rest of a detector's code into a folder, and its processor, whatever lay there before."""
        own = {path.name: path for path in Path(__file__).parent.glob("*_anople.py")}
        for name, path in own.items():
            if path.resolve() != (folder / name).resolve():
                shutil.copyfile(path, folder / name)
        # a model that was loaded as remote code has but the files that it needs itself beside it
        missing = [] if LAST_CODE in own or not self.name_or_path else [LAST_CODE]
        while missing:
            name = missing.pop()
            try:
                shutil.copyfile(cached_file(self.name_or_path, name, **self._access()), folder / name)
            except OSError as error:
                logger.warning("%s lacks %s, so that it works as a model alone: %s", folder, name, error)
                continue
            needed = {f"{each}.py" for each in get_relative_imports(folder / name)}
            missing += [each for each in needed - own.keys() if not (folder / each).exists()]
        with contextlib.suppress(ValueError):  # there is none, and nothing is fetched for it
            self.load_processor(local_files_only=True).save_pretrained(folder)

    def load_processor(self, **options) -> AnoPLeProcessor:
        """
        Return the detector's processor: the one that was used with it, or else the one that lies where it came from.

        Args:
            options: `local_files_only` and others of `from_pretrained`.

        Raises:
            ValueError: if there is none.
        """
        if self.own_processor is None:
            place, access = self.name_or_path, {**self._access(), **options}
            try:
                if not place:
                    raise ValueError("the model was not read from anywhere")
                self.own_processor = AnoPLeProcessor.from_pretrained(place, **access)
            except Exception as error:  # whatever is missing or damaged there
                raise ValueError(
                    f"The detector's processor cannot be loaded from {place or 'the place it came from, which is unknown'} "
                    f"({error}): give processor=..."
                ) from error
        self.own_processor.class_names = list(self.config.class_names)
        return self.own_processor

    def _access(self) -> dict[str, Any]:
        """Return what the Hub wants to be told to read from where the model came, at the commit that was read."""
        access = dict(self.hub_arguments)
        access["revision"] = getattr(self.config, "_commit_hash", None) or access.get("revision")
        return {name: value for name, value in access.items() if value is not None}

    @classmethod
    def load_adapter(
        cls,
        folder: str | Path,
        clip: str | CLIPModel | None = None,
        memory_encoder: str | PreTrainedModel | None = None,
        *,
        verify: bool = False,
        **hub: Any,
    ) -> Self:
        """
        Put an adapter onto its CLIP and its memory's encoder; the answers are those of the full checkpoint, bit for bit.

        Args:
            folder: what [`save_adapter`] wrote, or a Hub id.
            clip: the CLIP, its name or its folder; by default the one that the adapter names, at the same commit.
            memory_encoder: likewise the memory's encoder, where the adapter has one.
            verify: whether to compare all that decides with the hash that was saved (see [`check_state`]).
            hub: `revision` of the adapter, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`.

        Raises:
            ValueError: for a full checkpoint, another CLIP or encoder than the adapter was saved without, an adapter that
                names none which can be found again, files that do not belong together, or an unknown keyword.
        """
        unknown = sorted(set(hub) - set(HUB_ARGUMENTS))
        if unknown:
            raise ValueError(
                f"load_adapter got {unknown}: it takes clip, memory_encoder, verify and {', '.join(HUB_ARGUMENTS)}."
            )

        def read(place: str | Path, hub: dict[str, Any]) -> tuple[AnoPLeConfig, dict[str, Tensor]]:
            config = AnoPLeConfig.from_pretrained(place, **hub)
            if config.adapter_clip_sha256 is None:
                raise ValueError(
                    f"{folder} is a full detector, no adapter: load it with AnoPLeModel.from_pretrained(...)."
                )
            check_state(finder(place, hub), verify=verify)
            return config, load_state_dict_from_file(cached_file(place, ADAPTER_FILE, **hub), safe=True)

        config, tensors = read_place(folder, hub, read)
        expected, config.adapter_clip_sha256 = config.adapter_clip_sha256, None
        expected_encoder, config.memory_encoder_sha256 = config.memory_encoder_sha256, None
        if not isinstance(clip, CLIPModel):
            place, own = _find_again(config.clip_source, clip, folder, ("CLIP", "clip", expected), hub)
            clip = load_clip_part(CLIPModel, place, dtype=config.dtype, use_safetensors=True, **own)
        _check_hash(clip, config.clip_source, folder, ("CLIP", "clip", expected))
        if config.memory_encoder is not None:
            what, own = ("memory encoder", "memory_encoder", expected_encoder), {}
            if not isinstance(memory_encoder, PreTrainedModel):
                memory_encoder, own = _find_again(config.memory_encoder_source, memory_encoder, folder, what, hub)
            memory_encoder = load_memory_encoder(memory_encoder, config, **own).to(clip.device, clip.dtype)
            _check_hash(memory_encoder, config.memory_encoder_source, folder, what)
        elif memory_encoder is not None:
            raise ValueError(
                f"The adapter {folder} has no memory encoder, its CLIP remembers: leave memory_encoder out."
            )
        with torch.random.fork_rng(devices=[]):  # first values that are replaced at once
            model = cls(config, clip=clip, memory_encoder=memory_encoder).to(clip.device, clip.dtype)
        missing, unexpected = model.load_state_dict(_todays_names(tensors), strict=False)
        lost = [name for name in missing if not name.startswith(FROZEN)]
        if lost or unexpected:
            raise ValueError(f"The adapter {folder} lacks {lost} and has unknown {unexpected}: save it anew.")
        model.products.check_finite()
        model.name_or_path, model.hub_arguments = str(folder), hub
        return align_weights(model).eval()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, verify: bool = False, **kwargs: Any
    ):
        """
        Load a full detector, as `PreTrainedModel.from_pretrained` does, with aligned weights.

        One that version 0.1 saved is read under the names that its tensors have today.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id.
            verify: whether to compare all that decides with the hash that was saved (see [`check_state`]).
            args, kwargs: those of `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: for an adapter, for files that were not saved together, and with `verify` for any that is damaged or
                was changed; for weights that are missing, which would otherwise be drawn at random, thresholds that cannot
                be, and products whose tensors are not those of their records, or not finite; for a quantization.
        """
        if kwargs.get("quantization_config") is not None:
            raise ValueError(
                "A detector takes no quantization_config: its memory and thresholds hold for its own weights. Give "
                "dtype=torch.bfloat16, or make an int8 graph with anople export --weights int8."
            )
        place, hub = pretrained_model_name_or_path, {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        informed = kwargs.pop("output_loading_info", False)
        if place is None:
            model, found = super().from_pretrained(None, *args, output_loading_info=True, **kwargs)
        else:
            others = {name: value for name, value in kwargs.items() if name not in hub}

            def read(here: str | Path, access: dict[str, Any]) -> Any:
                config = AnoPLeConfig.get_config_dict(here, **access)[0]
                if config.get("adapter_clip_sha256"):
                    raise ValueError(
                        f"{place} is an adapter: it holds no CLIP. Load it with AnoPLeModel.load_adapter({str(place)!r})."
                    )
                check_state(finder(here, access), verify=verify, variant=kwargs.get("variant"))
                given = others.get("config")  # read a moment ago, where one of transformers' Auto classes was called
                if getattr(given, ID, None) not in (None, config.get(ID)):
                    if given.name_or_path != str(place):
                        raise ValueError(f"config=... is of another detector than {place}: leave it out.")
                    logger.warning("%s has changed since its config was read, which is read anew.", place)
                    others["config"] = AnoPLeConfig.from_pretrained(here, **access)
                return cls._load(here, access, config, *args, **others)

            model, found = read_place(place, hub, read)
        if wrong := sorted(found["missing_keys"]) or sorted(found["unexpected_keys"]):
            what = "has no" if found["missing_keys"] else "has the unknown"
            raise ValueError(
                f"{place} {what} {', '.join(wrong[:3])}{' ...' if wrong[3:] else ''}: its weights are not those that its "
                "config.json describes. Copy the folder again."
            )
        model.products.check_finite()
        model.hub_arguments = hub
        if place is not None:
            model.name_or_path = str(place)
        align_weights(model)
        return (model, found) if informed else model

    @classmethod
    def _load(cls, place: str | os.PathLike, hub: dict[str, Any], known: dict, *args: Any, **kwargs: Any):
        """Load what lies in one place and does not change, as transformers does; `known` is the config there."""
        if not known.get("class_names") or "products" in known:
            return super().from_pretrained(place, *args, output_loading_info=True, **hub, **kwargs)
        fields = {name: kwargs.pop(name) for name in AnoPLeConfig.__annotations__ if name in kwargs}
        config = kwargs.pop("config", None) or AnoPLeConfig.from_pretrained(place, **hub, **fields)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", config.dtype)
        tensors = _todays_names(_read_weights(place, hub))
        kwargs |= {"config": config, "state_dict": tensors, "output_loading_info": True}
        return super().from_pretrained(None, *args, **kwargs)


def _read_weights(place: str | os.PathLike, hub: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the weights of a detector's folder, whole or in parts."""
    index = None
    if cached_file(place, SAFE_WEIGHTS_NAME, **hub, _raise_exceptions_for_missing_entries=False) is None:
        index = cached_file(place, SAFE_WEIGHTS_INDEX_NAME, **hub, _raise_exceptions_for_missing_entries=False)
    files = [SAFE_WEIGHTS_NAME]
    if index is not None:
        files = sorted(set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values()))
    parts = [load_state_dict_from_file(cached_file(place, file, **hub), safe=True) for file in files]
    return {name: tensor for part in parts for name, tensor in part.items()}


def _todays_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors that version 0.1 saved, its products' in rows and under several roofs, the names of today."""
    if "class_embeddings" not in tensors:
        return tensors
    renamed = {}
    for name, tensor in tensors.items():
        part, _, number = name.rpartition("_")
        if part in ("memory.bank", "memory.boxes", "masks.mask"):
            own = {"memory.bank": "bank.vectors", "memory.boxes": "bank.boxes", "masks.mask": "ignore_mask"}[part]
            renamed[f"products.{number}.{own}"] = tensor
        elif name not in EARLIER_BUFFERS:
            renamed[name] = tensor
    for class_id, texts in enumerate(tensors["class_embeddings"]):
        renamed[f"products.{class_id}.text_embeddings"] = texts.clone()
        renamed[f"products.{class_id}.prototype"] = tensors["class_prototypes"][class_id].clone()
        renamed[f"products.{class_id}.prompt_ids"] = tensors["class_token_ids"][
            2 * class_id : 2 * class_id + 2
        ].clone()
    return renamed


def _find_again(
    source: dict | None, given: str | None, folder: str | Path, what: tuple[str, str, str], hub: dict
) -> tuple[str, dict]:
    """
    Say where a frozen tower of an adapter is, by the name given or else by the one that the adapter keeps.

    Args:
        source: as the config describes it.
        what: the tower in words, the argument by which it can be given, and the hash that it must have.

    Returns:
        Its name, and what the Hub wants to be told.
    """
    source, own = source or {}, {}
    if given is None:
        if source.get("kind") not in ("embedded", "hub"):
            raise ValueError(
                f"The adapter {folder} was made on {_source_name(source, what[0])}, which cannot be found again by name: give "
                f"its folder as {what[1]}=... (weights of SHA-256 {what[2]})."
            )
        given, own = source["name"], {name: source[name] for name in ("revision", "subfolder") if source.get(name)}
    access = {name: hub[name] for name in ("cache_dir", "token", "local_files_only", "force_download") if name in hub}
    return given, own | access


def _check_hash(tower: PreTrainedModel, source: dict | None, folder: str | Path, what: tuple[str, str, str]) -> None:
    """Refuse a tower whose weights have another hash than an adapter wants; `what` as of [`_find_again`]."""
    if (found := hash_weights(tower.state_dict())) != what[2]:
        raise ValueError(
            f"The adapter {folder} was made on {_source_name(source or {}, what[0])} with weights of SHA-256 {what[2]}, but the "
            f"{what[0]} given ({tower.name_or_path or 'a model in memory'}) has {found}: give that {what[0]}, in that revision "
            "and precision."
        )


def _source_name(source: dict, what: str) -> str:
    at = f" at revision {source['revision']}" if source.get("revision") else ""
    return f"the {what} {source['name']!r}{at}" if source.get("name") else f"a {what} without a name"


__all__ = ["CheckpointMixin"]
