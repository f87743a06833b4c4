"""
Whether a program may write a file, and cells that no spreadsheet computes.

No program replaces what it reads, a detector's file, or a file that it did not write. It knows its own files by their
contents, so that the same command can be given twice.
"""

import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# --- Whether a file may be written ---


# Beside a config.json these make a detector, an export or an unfinished fit.
DETECTOR_NAMES = {
    *("config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("graph.json", "thresholds.json", "model.safetensors.index.json", "training_log.jsonl"),
}
DETECTOR_ENDINGS = {".safetensors", ".onnx", ".data", ".xml", ".bin", ".py"}
# The help text of --overwrite.
OVERWRITE = "Also replace files that this command did not write; what is read and a detector's files are kept even so."


@dataclass(frozen=True)
class Output:
    """
    A file that a command is to write.

    Args:
        option: as a person names it.
        path: where it goes.
        is_ours: says of an existing file whether the same command wrote it.
    """

    option: str
    path: str | os.PathLike
    is_ours: Callable[[Path], bool]


def check_outputs(
    outputs: Iterable[Output], *, inputs: Collection[str | os.PathLike] = (), overwrite: bool = False
) -> None:
    """
    Refuse, before any work is done, to write where something would be lost.

    Args:
        outputs: all that a command is to write.
        inputs: what it reads: files, and folders of which nothing is replaced that it did not write.
        overwrite: whether other files may be replaced that it did not write; never what it reads, nor a detector's files.

    Raises:
        ValueError: naming the option, the file and the remedy.
    """
    read = {(found.st_dev, found.st_ino) for place in inputs if (found := _stat(place))}  # whatever it is called
    folders = [os.path.realpath(place) for place in inputs if os.path.isdir(place)]
    options: dict[str, str] = {}
    for output in outputs:
        name, path, real = f"{output.option} {output.path}", Path(output.path), os.path.realpath(output.path)
        if real in options:
            raise ValueError(f"{name} is the file of {options[real]} too: give another name.")
        options[real] = output.option
        found = _look_at(name, path)
        if found and (found.st_dev, found.st_ino) in read:
            raise ValueError(f"{name} is read by this command: give another name.")
        if is_of_detector(os.path.basename(real)) and (Path(real).parent / "config.json").is_file():
            raise ValueError(f"{name} is a file of a detector, or named like one: give another name or folder.")
        if not found or not found.st_size or _is_ours(output, path):
            continue
        if any(os.path.commonpath([real, folder]) == folder for folder in folders):
            raise ValueError(f"{name} is there already, among what is read: give another name or folder.")
        if not overwrite:
            raise ValueError(
                f"{name} is there already, and this command did not write it: give another name, or add --overwrite."
            )


def check_new_folder(folder: str | os.PathLike, option: str = "") -> None:
    """
    Refuse a folder that holds anything but traces of a program that was killed there.

    Raises:
        ValueError: naming the option, the folder and the remedy.
    """
    from ..saving_anople import is_empty  # which brings torch

    path, name = Path(folder), f"{option} {folder}".strip()
    if path.is_dir():
        if not is_empty(path):
            raise ValueError(f"{name} is not empty: name a new folder.")
    elif os.path.lexists(path):
        raise ValueError(f"{name} is a file: name a new folder.")
    else:
        _look_at(name, path)


def is_of_detector(name: str) -> bool:
    """Say whether a file has a name that files of detectors have."""
    return name in DETECTOR_NAMES or Path(name).suffix in DETECTOR_ENDINGS


def _stat(path: str | os.PathLike) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):  # not there, or no name at all: what reads it says so
        return None


def _look_at(name: str, path: Path) -> os.stat_result | None:
    """Return what is known of a file, `None` of a new one; refuse a place where no file can be."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        found = None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be written ({error}): give another name.") from error
    if found and stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{name} is a folder: give a file.")
    if found and not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{name} is a pipe, a socket or a device, not a file: give a file.")
    above = path if found else next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not found and not above.is_dir():
        raise ValueError(f"{name} cannot be written, because {above} is no folder: give another name.")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{name} cannot be written, because you may not write {above}: give another name.")
    return found


def _is_ours(output: Output, path: Path) -> bool:
    try:
        return output.is_ours(path)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # read as what it is not
        return False


# --- What is ours ---


def csv_of(*columns: Collection[str]) -> Callable[[Path], bool]:
    """Recognize a table by its first line, which has these columns, or those of an earlier version."""
    headers = [",".join(names) for names in columns]
    return lambda path: _first_line(path, 2 * max(map(len, headers))) in headers


def json_lines_of(keys: Collection[str]) -> Callable[[Path], bool]:
    """Recognize JSON lines by the keys of the first."""
    return lambda path: json.loads(_first_line(path, 1_000_000)).keys() >= set(keys)


def json_of(keys: Collection[str]) -> Callable[[Path], bool]:
    """Recognize a JSON file by its keys."""
    return lambda path: json.loads(path.read_text(encoding="utf-8")).keys() >= set(keys)


def is_page(path: Path) -> bool:
    """Say whether a file is a page of `anople report`."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return '<meta name="generator" content="anople report">' in file.read(1000)


def _first_line(path: Path, limit: int) -> str:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return file.readline(limit).rstrip("\r\n")


# --- Cells ---


def inert(value: object) -> object:
    """Keep a spreadsheet from taking a text for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def inert_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Do as [`inert`] with all cells of a row."""
    return {name: inert(value) for name, value in row.items()}


__all__ = [
    "OVERWRITE",
    "Output",
    "check_new_folder",
    "check_outputs",
    "csv_of",
    "inert",
    "inert_row",
    "is_page",
    "is_of_detector",
    "json_lines_of",
    "json_of",
]
