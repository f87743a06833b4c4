"""Weights as bytes: where they begin in memory and in files, and their hash."""

import hashlib
import json
import math
import os
import re
import struct
from pathlib import Path

import torch
from torch import Tensor


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


__all__ = ["align_files", "align_weights", "hash_weights"]
