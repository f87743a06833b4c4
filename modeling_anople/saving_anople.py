"""A detector's folder as one state: its weights as bytes, the hash that names it, and how it changes all at once."""

import contextlib
import filecmp
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock, Timeout
from huggingface_hub import load_state_dict_from_file
from torch import Tensor
from transformers.utils import cached_file


logger = logging.getLogger(__name__)

Result = TypeVar("Result")


# --- Weights as bytes: where they begin in memory and in files, and their hash ---


ALIGNMENT = 64  # bytes
ID = "content_sha256"  # what names a state: a field of the config, of the processor's file and of the weights' headers
NO_ID = "0" * 64
PROCESSOR_HASH = "settings_sha256"  # of the rest of the processor's file


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
    the tensors whose size is such a multiple, then the few others, by the size of their elements. The header has room for
    the id that [`stamp`] writes.
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
        header.setdefault("__metadata__", {})[ID] = NO_ID
        written.write(_header_bytes(header))
        for name in names:
            file.seek(8 + length + begins[name])
            first, last = header[name]["data_offsets"]
            written.write(file.read(last - first))
    os.replace(unfinished, path)


def _header_bytes(header: dict) -> bytes:
    """Write a header in the one way that we write it, its length and the padding included."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


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


# --- What names a state: one hash of all that decides an answer, in each of the files, so that no two states are mixed ---

FROZEN = ("clip.", "memory_encoder.model.")  # how the names of weights begin that no fit changes
CONFIG, PROCESSOR = "config.json", "processor_config.json"
SINGLE, INDEX, ADAPTER_FILE = "model.safetensors", "model.safetensors.index.json", "adapter.safetensors"
# Fields of a config that decide no answer: where things came from and what was done, and what an adapter alone has.
UNDECIDING = {
    *("history", "fit", "clip_source", "memory_encoder_source", "adapter_clip_sha256", "memory_encoder_sha256", ID),
    *("transformers_version", "_name_or_path", "auto_map", "architectures", "custom_pipelines"),
}
NOTES = {"sensitivity"}  # likewise of a product


TOWERS = frozenset({"dtype"})


class StateError(ValueError):
    """Files of two states lie beside each other, or one of them is not what was saved."""


Finder = Callable[[str], Path | None]  # the file of a name, `None` where there is none


def content_sha256(config: Mapping, tensors: Mapping[str, Tensor]) -> str:
    """
    Hash what a detector's answers follow from: 64 hexadecimal digits, the same for a detector and for its adapter.

    Args:
        config: the content of a `config.json`. What decides nothing (log, fit, origin, versions) does not count.
        tensors: those of the files of weights; of an adapter, whose config has the hashes of its frozen towers, without
            theirs.
    """
    clip, encoder = (
        {name.removeprefix(tower): tensor for name, tensor in tensors.items() if name.startswith(tower)}
        for tower in FROZEN
    )
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(FROZEN)}
    parts = [config.get("adapter_clip_sha256") or hash_weights(clip), hash_weights(own), _deciding(dict(config))]
    if config.get("memory_encoder"):
        parts.append(config.get("memory_encoder_sha256") or hash_weights(encoder))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _deciding(values: dict, others: frozenset[str] = frozenset()) -> dict:
    """Leave out what decides nothing; in a config within the config its precision too, which follows the outer one."""
    kept = {name: value for name, value in values.items() if name not in UNDECIDING | others}
    if kept.get("products"):
        kept["products"] = deciding_products(kept["products"])
    return {name: _deciding(value, TOWERS) if isinstance(value, dict) else value for name, value in kept.items()}


def deciding_products(products: Sequence[Mapping]) -> list[dict]:
    """Leave out of `config.products` what decides no answer."""
    return [{name: value for name, value in product.items() if name not in NOTES} for product in products]


def stamp(folder: Path, weights: Iterable[Path], config: Mapping | None = None) -> str:
    """
    Write into all files of a new state the id of it, and return that.

    Args:
        folder: holds `config.json`, and the processor where there is one.
        weights: files that [`align_files`] wrote.
        config: what is hashed; by default what is in `config.json`.
    """
    weights = list(weights)
    tensors = {name: tensor for path in weights for name, tensor in load_state_dict_from_file(path).items()}
    state = content_sha256(_read_json(folder / CONFIG) if config is None else config, tensors)
    del tensors
    for path in weights:
        with path.open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            file.seek(8 + file.read(length).index(NO_ID.encode()))
            file.write(state.encode())
    for name in (CONFIG, PROCESSOR):
        if (folder / name).exists():
            mark(folder / name, state)
    return state


def mark(path: Path, state: str) -> None:
    """Write the id of a state into a JSON file, as transformers writes those."""
    values = {**_read_json(path), ID: state}
    if path.name == PROCESSOR:
        values[PROCESSOR_HASH] = _hash_processor(values)
    text = json.dumps(values, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def check_state(find: Finder, *, verify: bool = False, variant: str | None = None) -> None:
    """
    Refuse files of two states beside each other, and with `verify` any that is not what was saved, to the byte.

    What was saved by a version that kept no id passes; with `verify` that is said in a warning.

    Args:
        find: finds `config.json`, the weights and, where there is one, the processor.
        variant: the one that is read, which the names of its weights tell.

    Raises:
        StateError: naming the files, with the remedy.
    """
    path = find(CONFIG)
    config = _read_json(path)
    state, weights = config.get(ID), _weights(find, config, variant)
    for each in weights:
        _check_pair(path, state, each, _state_of(each))
    check_processor(find)
    if verify and state is None:
        logger.warning("%s cannot be verified, as it was saved without a hash: save it anew.", path)
    elif verify:
        _verify(path, config, weights)


def check_variant(folder: str | Path, variant: str) -> None:
    """Refuse, by a `ValueError`, to save a variant beside other weights: the one config beside both is of one state."""
    ours = re.compile(rf"model\.{re.escape(variant)}(-\d{{5}}-of-\d{{5}})?\.safetensors")
    for path in sorted(state_folder(folder).glob("*.safetensors")):
        if not ours.fullmatch(path.name):
            raise ValueError(
                f"{folder} holds {path.name}: save the variant {variant!r} in a folder of its own, since a config belongs to the "
                "weights that it was saved with."
            )


def check_beside(path: Path, *others: Path) -> None:
    """Raise [`StateError`] unless all of these files are of one state, or of none."""
    for each in others:
        _check_pair(path, _state_of(path), each, _state_of(each))


def _state_of(path: Path) -> str | None:
    """Read the id that a file bears."""
    return (_read_json(path) if path.suffix == ".json" else _header(path)[1].get("__metadata__", {})).get(ID)


def check_processor(find: Finder) -> None:
    """Raise [`StateError`] for a processor that was not saved together with the config beside it, or was changed since."""
    path, processor = find(CONFIG), find(PROCESSOR)
    if path and processor and (state := _state_of(processor)):
        _check_pair(path, _state_of(path), processor, state)
        values = _read_json(processor)
        if values.get(PROCESSOR_HASH) != _hash_processor(values):
            raise StateError(
                f"{processor} was damaged, or changed by hand: copy it again, or change the processor in Python and save it."
            )


def _hash_processor(values: Mapping) -> str:
    own = {name: value for name, value in values.items() if name not in (ID, PROCESSOR_HASH)}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def adopt_processor(folder: Path) -> None:
    """Let a processor that somebody saved beside a detector belong to it."""
    if (folder / PROCESSOR).exists() and (folder / CONFIG).exists() and (state := _state_of(folder / CONFIG)):
        mark(folder / PROCESSOR, state)


def _check_pair(first: Path, first_state: str | None, second: Path, second_state: str | None) -> None:
    if first_state != second_state:
        names = [f"of state {state[:12]}" if state else "without a state" for state in (first_state, second_state)]
        raise StateError(
            f"{first} ({names[0]}) and {second} ({names[1]}) were not saved together: copy the folder again whole, or save "
            "the detector anew."
        )


def _verify(path: Path, config: Mapping, weights: list[Path]) -> None:
    if not weights:
        raise StateError(f"{path.parent} has no file named {SINGLE}, nor parts of one: copy the folder again whole.")
    for each in weights:
        raw, header, begin = *_header(each), 0
        for entry in (entry for name, entry in header.items() if name != "__metadata__"):
            begin = max(begin, entry["data_offsets"][1])
        # in the one form that we write, so that no byte of it, nor behind the values, goes unseen
        if raw != _header_bytes(header) or each.stat().st_size != len(raw) + begin:
            raise StateError(f"{each} is damaged (its header was changed): copy it again.")
    tensors = {name: tensor for each in weights for name, tensor in load_state_dict_from_file(each).items()}
    if (found := content_sha256(config, tensors)) != config[ID]:
        files, folder = " or ".join(str(each) for each in (*weights, path)), repr(str(path.parent))
        load, save = ("load", "save_adapter") if config.get("adapter_clip_sha256") else ("from", "save_pretrained")
        anew = f"AnoPLeModel.{load}_{save.removeprefix('save_')}({folder}).{save}({folder})"
        raise StateError(
            f"{files} was damaged, or changed by hand: the hash of the content is {found[:12]}..., and {config[ID][:12]}... "
            f"was saved. Copy the folder again; or, if {CONFIG} was changed on purpose, save it anew in Python: {anew}."
        )


def _weights(find: Finder, config: Mapping, variant: str | None = None) -> list[Path]:
    """Find the files of weights that are read with a config: an adapter, a whole, or parts."""
    whole, parts = SINGLE, INDEX
    if variant:
        whole, parts = SINGLE.replace(".", f".{variant}.", 1), INDEX.removesuffix("json") + f"{variant}.json"
    single = find(ADAPTER_FILE if config.get("adapter_clip_sha256") else whole)
    if single:
        return [single]
    index = find(parts)
    names = sorted(set(_read_json(index)["weight_map"].values())) if index else []
    return [path for name in names if (path := find(name))]


def _header(path: Path) -> tuple[bytes, dict]:
    """Read the header of a file of weights: its bytes with the length before it, and what they say."""
    try:
        with path.open("rb") as file:
            size = file.read(8)
            raw = file.read(min(struct.unpack("<Q", size)[0], path.stat().st_size))
        return size + raw, json.loads(raw)
    except (ValueError, struct.error) as error:
        raise StateError(f"{path} is damaged (its header cannot be read: {error}): copy it again.") from error


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# --- One writer at a time ---

LOCK_FILE = ".anople.lock"  # stays, empty, in every folder that was written: who waits, waits for this very file
LOCK_SECONDS = 600


@contextlib.contextmanager
def locked(folder: str | Path, *, wait: float | None = None) -> Iterator[None]:
    """
    Keep all other programs from changing a folder, which is made where it is missing; those that only read need not wait.

    What a killed program left is finished, or removed, before anything else is done. A thread that has the lock may take it
    again.

    Args:
        wait: seconds to wait for another program that changes the folder; by default 600.

    Raises:
        ValueError: if the place is a file, or another program still changes the folder after this time.
        OSError: if nothing can be written there.
    """
    wait = LOCK_SECONDS if wait is None else wait
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.resolve() / LOCK_FILE, is_singleton=True)
        held = lock.is_locked
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            logger.warning("%s is being changed by another program: waiting up to %d s.", folder, wait)
            lock.acquire(timeout=wait)
    except Timeout as error:
        raise ValueError(
            f"{folder} was still being changed by another program after {wait:g} s: end that, or try again later."
        ) from error
    except OSError as error:
        raise OSError(f"{folder} cannot be changed ({error}): make it writable, or name another folder.") from error
    try:
        if not held:
            _recover(folder)
        yield
    finally:
        lock.release()


def _recover(folder: Path) -> None:
    """Finish what a killed program had switched to, and remove what it had not."""
    for commit in _commits(folder):
        _put_in_place(folder, commit)
    for left in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


def is_trace(name: str) -> bool:
    """Say whether a file or folder in a detector's folder is but a trace of how it is written, and nobody else's business."""
    return name == LOCK_FILE or name.startswith((UNFINISHED, COMMIT))


def is_empty(folder: Path) -> bool:
    """Say whether a folder is missing or holds nothing but a lock and what was never finished."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(is_trace(path.name) and path not in _commits(folder) for path in folder.iterdir())


# --- All files at once: written beside, switched to by one rename, and brought to their places after that ---

UNFINISHED, COMMIT = ".unfinished-", ".commit-"
READ_ATTEMPTS = 20
WEIGHTS = re.compile(r"(model|adapter)(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
GRAPHS = re.compile(r"model\.(onnx(\.data)?|xml|bin)")
OUR_TENSORS = (*FROZEN, "prompts.", "decoder.", "products.")


@contextlib.contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """
    Give an empty folder; what is in it when all went well is the new state of `folder`, else nothing has changed.

    1. All is written into `.unfinished-X` and brought to the disk.
    2. It is renamed to `.commit-X`. From this one step on, what is in there counts, and who reads, reads there.
    3. Its files are linked (or copied) to their places, and weights of the state before that have no successor go.
    4. It is renamed back and removed.

    A program that is killed before the second step has changed nothing; after it, the next one that writes goes on.

    Raises:
        ValueError, OSError: as of [`locked`], and if the disk is full; the state before is whole then.
    """
    folder = Path(folder)
    with locked(folder):
        for commit in _commits(folder):  # of a save in this very hold of the lock, for which there was no room
            _put_in_place(folder, commit)
        place = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
        try:
            place.mkdir()
            yield place
            for path in _files(place):
                _make_durable(path, folder / path.relative_to(place))
            sync(place)
            commit = folder / place.name.replace(UNFINISHED, COMMIT)
            place.rename(commit)
        except BaseException as error:
            shutil.rmtree(place, ignore_errors=True)
            if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":  # its own, for a full disk too
                raise OSError(
                    f"{folder} could not be written, and is as it was ({error}): make room there, or name another folder."
                ) from error
            raise
        try:
            sync(folder)
            _put_in_place(folder, commit)
        except OSError as error:  # the new state counts, and the next one that writes goes on
            logger.warning("%s is saved, but not all files are in their places (%s): make room there.", folder, error)


def _make_durable(path: Path, known: Path) -> None:
    """Bring a new file to the disk, or take the one that lies there already with the same content, as code does."""
    if known.is_file() and filecmp.cmp(path, known, shallow=False):
        path.unlink()
        if _link_or_copy(known, path):
            return
    sync(path)


def _link_or_copy(source: Path, target: Path) -> bool:
    """Give a file another name; say whether that could be done, where a file system has no links it is copied."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True


def _put_in_place(folder: Path, commit: Path) -> None:
    """Bring the files of a state that counts to where they belong; it stays whole in its own folder until all are there."""
    place = folder / commit.name.replace(COMMIT, UNFINISHED)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    names = [path.relative_to(commit) for path in _files(commit)]
    for name in names:
        beside, target = place / "file", folder / name
        if name != Path(CONFIG) and target.is_file() and filecmp.cmp(commit / name, target, shallow=False):
            continue
        beside.unlink(missing_ok=True)  # a rename of two links to one file leaves both
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _link_or_copy(commit / name, beside):
            sync(beside)
        os.replace(beside, target)
    for path in sorted(folder.iterdir()):
        if Path(path.name) not in names and _is_outdated(path, [str(name) for name in names]):
            path.unlink()
    sync(folder)
    commit.rename(place / "done")
    shutil.rmtree(place, ignore_errors=True)


def _is_outdated(path: Path, names: list[str]) -> bool:
    """Say whether a file holds weights, or a graph, of an earlier state, for which there are others now."""
    if GRAPHS.fullmatch(path.name):
        return any(map(GRAPHS.fullmatch, names))
    if not WEIGHTS.fullmatch(path.name) or not any(map(WEIGHTS.fullmatch, names)):
        return False
    try:
        tensors = _read_json(path)["weight_map"] if path.name == INDEX else _header(path)[1]
    except (ValueError, KeyError):
        return False
    return any(name.startswith(OUR_TENSORS) for name in tensors)  # a CLIP's own weights, of somebody else, stay


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # a folder cannot be opened there
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _commits(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{COMMIT}*"))


def state_folder(folder: str | Path) -> Path:
    """Return where the state of a folder lies whole: in itself, or in what a program has just switched to."""
    commits = _commits(Path(folder))
    return commits[-1] if commits else Path(folder)


def read_state(folder: str | Path, read: Callable[[Path], Result]) -> Result:
    """
    Read a folder that another program may be changing meanwhile; nothing is written.

    Args:
        read: reads all that is wanted from where the state lies. It is called again if the folder changed under it.

    Raises:
        ValueError: if that happens 20 times.
        Exception: of `read`, if nothing changed meanwhile.
    """
    folder = Path(folder)
    for attempt in range(READ_ATTEMPTS):
        time.sleep(0.01 * attempt)
        before, place = _generation(folder), state_folder(folder)
        try:
            result = read(place)
        except Exception:
            if _generation(folder) == before:
                raise
            continue
        # what was switched to is whole for as long as it has its name
        if _generation(folder) == before or (place != folder and place.exists()):
            return result
    raise ValueError(f"{folder} changes all the time: wait until the other program is done.")


def read_place(place: str | os.PathLike, hub: dict, read: Callable[[str | os.PathLike, dict], Result]) -> Result:
    """Read a folder as [`read_state`] does, or what is on the Hub, where a commit never changes; `read` gets both anew."""
    if not os.path.isdir(place):
        return read(place, hub)
    access = {name: value for name, value in hub.items() if name != "subfolder"}
    return read_state(Path(place, hub.get("subfolder") or ""), lambda here: read(here, access))


def finder(place: str | os.PathLike, hub: Mapping) -> Finder:
    """Make what finds the files of a folder, or of a repository on the Hub."""

    def find(name: str) -> Path | None:
        found = cached_file(place, name, **hub, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    return find


def _generation(folder: Path) -> tuple:
    """Tell one state of a folder from all others: each puts a new `config.json` there, while its own folder is seen."""
    try:
        status = (folder / CONFIG).stat()
        config = status.st_ino, status.st_mtime_ns, status.st_size
    except OSError:
        config = ()
    return (*_commits(folder), *config)


__all__ = [
    "ADAPTER_FILE",
    "FROZEN",
    "ID",
    "LOCK_FILE",
    "align_files",
    "align_weights",
    "StateError",
    "adopt_processor",
    "check_beside",
    "check_processor",
    "check_state",
    "content_sha256",
    "deciding_products",
    "finder",
    "hash_weights",
    "is_empty",
    "is_trace",
    "locked",
    "mark",
    "read_place",
    "read_state",
    "replacing",
    "stamp",
    "state_folder",
    "sync",
]
