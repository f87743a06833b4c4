"""Weights as bytes, their hash, and adapters: all of a detector but its frozen CLIP."""

import copy
import hashlib
import json
import math
import os
import re
import struct
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from torch import Tensor
from transformers import CLIPModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import cached_file

from .backbone_anople import HUB_ARGUMENTS, load_clip_part
from .configuration_anople import AnoPLeConfig


# --- Weights as bytes: where they begin in memory and in files, and their hash ---


ALIGNMENT = 64  # bytes


def align_weights(model: torch.nn.Module) -> torch.nn.Module:
    """
    Copy weights on the CPU that do not begin at a multiple of 64 bytes to where they do.

    Weights that are read straight from a file lie wherever the file has them, and matrix products may differ in their last
    bits with that. Aligned, a detector answers the same however its weights were parted into files.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


def align_files(folder: str | Path, name: str) -> None:
    """
    Rewrite a folder's files of weights, `name` or the parts and variants of it, so that [`align_weights`] need copy next
    to nothing of them: a checkpoint of 1 GB is then mapped, not read, when it is loaded.

    The header is padded with spaces, as the format allows, to where the values begin at a multiple of 64 bytes. First come
    the tensors whose size is such a multiple, then the few others, by the size of their elements.
    """
    ours = re.compile(re.escape(Path(name).stem) + r"(\.\w+)?(-\d{5}-of-\d{5})?\.safetensors")
    for path in sorted(Path(folder).iterdir()):
        if ours.fullmatch(path.name):
            unfinished = path.with_name(f"{path.name}.part")
            try:
                _align_file(path, unfinished)
            finally:
                unfinished.unlink(missing_ok=True)  # it is there after a failure alone


def _align_file(path: Path, unfinished: Path) -> None:
    with path.open("rb") as file, unfinished.open("wb") as written:
        (length,) = struct.unpack("<Q", file.read(8))
        header, begins, end = json.loads(file.read(length)), {}, 0
        names = sorted(header.keys() - {"__metadata__"}, key=lambda name: _order(name, header[name]))
        for name in names:
            first, last = header[name]["data_offsets"]
            begins[name] = first
            header[name]["data_offsets"] = [end, end + last - first]
            end += last - first
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        written.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.seek(8 + length + begins[name])
            first, last = header[name]["data_offsets"]
            written.write(file.read(last - first))
    os.replace(unfinished, path)


def _order(name: str, entry: dict) -> tuple[bool, int, str]:
    first, last = entry["data_offsets"]
    return (last - first) % ALIGNMENT != 0, -(last - first) // max(1, math.prod(entry["shape"])), name


def hash_weights(tensors: dict[str, Tensor]) -> str:
    """
    Hash named tensors: SHA-256, as 64 hexadecimal digits.

    Over the tensors in the order of their names' code points it reads, for each: the name in UTF-8, a zero byte, the
    precision as torch writes it ("torch.float32"), a zero byte, the sizes joined by commas, a zero byte, and the values
    in row-major order as the machine keeps them (little-endian everywhere that torch runs today). Neither the device
    nor the way the tensors were stored in files matters.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{','.join(map(str, tensor.shape))}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# --- Adapters: all of a detector but its frozen CLIP, a few megabytes that a hash ties to the weights of that CLIP ---


ADAPTER_FILE = "adapter.safetensors"


class AdaptersMixin:
    """Methods of [`AnoPLeModel`] that save and load it without its CLIP."""

    def save_adapter(self, folder: str | Path) -> None:
        """
        Write prompts, prefix, decoder, memory, class embeddings and lines, but not the CLIP.

        Args:
            folder: where to; gets `adapter.safetensors`, `config.json`, the code, and the processor where it is at hand.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self.config)
        config.adapter_clip_sha256 = hash_weights(self.clip.state_dict())
        config.dtype, config.architectures = self.dtype, [type(self).__name__]
        if self._auto_class is not None:
            custom_object_save(self, folder, config=config)
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("clip.")}
        save_torch_state_dict(own, folder, filename_pattern=_PATTERN, max_shard_size="1000GB")
        align_files(folder, ADAPTER_FILE)
        config.save_pretrained(folder)
        self.save_processor(folder)

    @classmethod
    def load_adapter(cls, folder: str | Path, clip: str | CLIPModel | None = None, **hub: Any):
        """
        Put an adapter onto its CLIP; the answers are those of the full checkpoint, bit for bit.

        Args:
            folder: what [`save_adapter`] wrote, or a Hub id.
            clip: the CLIP, its name or its folder; by default the one that the adapter names, at the same commit.
            hub: `revision` of the adapter, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`.

        Raises:
            ValueError: for a full checkpoint, another CLIP than the adapter was saved without, an adapter that names no
                CLIP which can be found again, or an unknown keyword.
        """
        unknown = sorted(set(hub) - set(HUB_ARGUMENTS))
        if unknown:
            raise ValueError(f"load_adapter got {unknown}: it takes clip and {', '.join(HUB_ARGUMENTS)}.")
        config = AnoPLeConfig.from_pretrained(folder, **hub)
        expected, config.adapter_clip_sha256 = config.adapter_clip_sha256, None
        if expected is None:
            raise ValueError(
                f"{folder} is a full detector, no adapter: load it with AnoPLeModel.from_pretrained(...)."
            )
        if not isinstance(clip, CLIPModel):
            clip = _load_base(config, expected, folder, clip, hub)
        found = hash_weights(clip.state_dict())
        if found != expected:
            raise ValueError(
                f"The adapter {folder} was made on {_base_name(config)} with weights of SHA-256 {expected}, but the CLIP "
                f"given ({clip.name_or_path or 'a model in memory'}) has {found}: give that CLIP, in that revision and "
                "precision."
            )
        tensors = load_state_dict_from_file(cached_file(folder, ADAPTER_FILE, **hub), safe=True)
        with torch.random.fork_rng(devices=[]):  # first values that are replaced at once
            model = cls(config, clip=clip).to(clip.device, clip.dtype)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        lost = [name for name in missing if not name.startswith("clip.")]
        if lost or unexpected:
            raise ValueError(f"The adapter {folder} lacks {lost} and has unknown {unexpected}: save it anew.")
        model.name_or_path, model.hub_arguments = str(folder), hub
        return align_weights(model).eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any):
        """
        Load a full detector, as `PreTrainedModel.from_pretrained` does, with aligned weights.

        Raises:
            ValueError: for an adapter, whose CLIP would otherwise be drawn at random.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if pretrained_model_name_or_path is not None:
            known, _ = AnoPLeConfig.get_config_dict(pretrained_model_name_or_path, **hub)
            if known.get("adapter_clip_sha256"):
                raise ValueError(
                    f"{pretrained_model_name_or_path} is an adapter: it holds no CLIP. Load it with "
                    f"AnoPLeModel.load_adapter({str(pretrained_model_name_or_path)!r})."
                )
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.hub_arguments = hub
        align_weights(model)
        return loaded


_PATTERN = ADAPTER_FILE.replace(".", "{suffix}.")


def _load_base(config: AnoPLeConfig, expected: str, folder: str | Path, clip: str | None, hub: dict) -> CLIPModel:
    """Load the CLIP in the adapter's precision, by the name given or else by the one that the adapter keeps."""
    source, own = config.clip_source or {}, {}
    if clip is None:
        if source.get("kind") not in ("embedded", "hub"):
            raise ValueError(
                f"The adapter {folder} was made on {_base_name(config)}, which cannot be found again by name: give its "
                f"folder as clip=... (weights of SHA-256 {expected})."
            )
        clip, own = source["name"], {name: source[name] for name in ("revision", "subfolder") if source.get(name)}
    access = {name: hub[name] for name in ("cache_dir", "token", "local_files_only", "force_download") if name in hub}
    return load_clip_part(CLIPModel, clip, dtype=config.dtype, use_safetensors=True, **own, **access)


def _base_name(config: AnoPLeConfig) -> str:
    source = config.clip_source or {}
    at = f" at revision {source['revision']}" if source.get("revision") else ""
    return f"the CLIP {source['name']!r}{at}" if source.get("name") else "a CLIP without a name"


__all__ = [
    "ADAPTER_FILE",
    "AdaptersMixin",
    "align_files",
    "align_weights",
    "hash_weights",
]
