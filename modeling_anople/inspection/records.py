"""
What is written of each inspected photograph: a row of facts, as a JSON line and in a table, and the pictures drawn of it.

`anople predict`, `watch` and `serve` write the same rows.
"""

import contextlib
import csv
import functools
import hashlib
import io
import json
import logging
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from ..runtime.outputs import Output, check_outputs, csv_of, inert_row, is_page, json_lines_of
from .journal import JOURNAL


if TYPE_CHECKING:
    import numpy as np

    from ..pipeline_anople import Prediction


logger = logging.getLogger(__name__)

# --- A row: what is known of one photograph ---


COLUMNS_BEFORE = (
    *("path", "class", "score", "label", "unsure", "reason", "raw_score", "p_value", "seconds", "regions"),
    *("overlay", "mask", "map", "error"),
)
COLUMNS = (*COLUMNS_BEFORE, "id", "time", "file")  # new ones come last: tables are also read by position
DRAWN = {"overlay": "", "mask": "masks", "map": "maps"}  # column -> folder inside --output


def record_id(
    path: str | os.PathLike, *, lies_at: str | os.PathLike | None = None, content: bytes | None = None
) -> str:
    """
    Name the record of a photograph: 16 hexadecimal digits, the same for the same file in the same state.

    They follow from the absolute path, the second of the last change and the content. Of a file that cannot be read, from
    what there is.

    Args:
        path: the photograph; where it came without a file, its name and whatever tells it from others of that name.
        lies_at: where its file is read, if it was moved since.
        content: its bytes, where it came without a file.
    """
    place = os.fspath(path if lies_at is None else lies_at)
    digest = hashlib.sha256(os.fsencode(os.path.abspath(path) if content is None else path) + b"\0")
    if content is not None:
        digest.update(content)
    else:
        with contextlib.suppress(OSError, ValueError):  # a file that is not there has a row, too
            found = os.stat(place)
            digest.update(f"{int(found.st_mtime)}\0".encode())  # file systems round to less than a second
            if stat.S_ISREG(found.st_mode):  # whoever opens a pipe waits
                with open(place, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def now() -> str:
    """Return the time of a record: UTC in whole seconds, as ISO 8601 has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_row(
    path: str | os.PathLike,
    prediction: "Prediction",
    regions: list[dict] | None = None,
    *,
    id: str | None = None,
    file: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """
    Put what is known of one photograph into the order of the columns; reason and error only where there is one.

    Args:
        path: where the photograph came from.
        id: of the record; by default that of the file at `path`.
        file: where the photograph lies now, if it was moved or copied there.
    """
    row = {"id": record_id(path) if id is None else id, "time": now(), "path": str(path)}
    row |= {} if file is None else {"file": str(file)}
    return row | prediction.as_row(regions)


TABLE_HEADER = ",".join(COLUMNS) + "\r\n"


def table_text(row: dict[str, Any]) -> str:
    """Write a row of [`to_row`] as a line of a CSV file with these columns."""
    text = io.StringIO(newline="")
    regions = {"regions": json.dumps(row["regions"])} if "regions" in row else {}
    csv.DictWriter(text, COLUMNS, extrasaction="ignore").writerow(
        inert_row(row | regions)
    )  # an explanation has no cell
    return text.getvalue()


@contextlib.contextmanager
def table_writer(path: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open a CSV file for rows of [`to_row`], each written at once; without a path rows go nowhere."""
    if path is None:
        yield lambda row: None
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(TABLE_HEADER)

        def write(row: dict[str, Any]) -> None:
            file.write(table_text(row))
            file.flush()

        yield write


# --- Rows as they were written ---


class Rows:
    """
    The rows that predict, watch or serve have written, read line by line. Lines that are none are passed over and counted: a
    killed program's last one, for instance, after which others may have been written.

    Args:
        place: the folder of results, or its file of JSON lines.

    Raises:
        ValueError: if there is no such file; at the end of reading it, if it has no row.
    """

    def __init__(self, place: Path):
        from ..images_anople import RESULTS

        self.path = place / RESULTS if place.is_dir() else place
        self.damaged = 0  # lines, of those that were read
        if not self.path.is_file():
            raise ValueError(
                f"{self.path} does not exist: give the folder that predict, watch or serve had as --output, to feedback as --results."
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.damaged, count = 0, 0
        with self.path.open(encoding="utf-8", errors="replace") as lines:
            for line in filter(str.strip, lines):
                row = _sound_row(line)
                if row is None:
                    self.damaged += 1
                else:
                    count += 1
                    yield row
        if not count:
            raise ValueError(f"{self.path} holds no results: give what predict, watch or serve have written.")
        if self.damaged:
            _warn_of_damage(self.path, self.damaged)


@functools.lru_cache
def _warn_of_damage(path: Path, damaged: int) -> None:
    """Warn once in a program, however often the file is read."""
    lines = "1 line is damaged and" if damaged == 1 else f"{damaged} lines are damaged and"
    logger.warning("%s: %s passed over.", path, lines)


def _sound_row(line: str) -> dict[str, Any] | None:
    """Read a line; `None` if it is no row, or one of which a field is not what it should be."""
    from ..images_anople import RESULT_KEYS

    try:
        row = json.loads(line)
        if not (isinstance(row, dict) and row.keys() >= set(RESULT_KEYS) and isinstance(row["path"], str)):
            return None
        score, texts = (
            row["score"],
            [row.get(name) for name in ("id", "class", "label", "error", "reason", "time", "file")],
        )
        sound = score is None or (type(score) in (int, float) and math.isfinite(score))
        sound &= all(isinstance(text, (str, type(None))) for text in texts)
        for region in row.get("regions") or ():
            sound &= math.isfinite(sum([region["area"], *region["centroid"]])) and len(region["centroid"]) == 2
        if row.get("time"):
            datetime.fromisoformat(row["time"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return row if sound else None


def append_lines(path: Path) -> TextIO:
    """Open a file to add lines, each written at once; the first comes after one that a killed program tore."""
    file = path.open("ab+")
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size and file.read() != b"\n":
        file.write(b"\n")
    return io.TextIOWrapper(file, encoding="utf-8", newline="\n", line_buffering=True)


# --- What `anople predict` writes: where it goes, and what is drawn ---


class PredictFiles(Protocol):
    """What the options of `anople predict` say of files."""

    output: str | None
    csv: str | None
    report: str | None
    map_format: str
    min_area: int
    ignore_mask: str | None
    overwrite: bool

    @property
    def saved(self) -> set[str]:
        """What --save asks for."""


def open_results(folder: Path | None, inputs: set[Path]) -> contextlib.AbstractContextManager:
    """
    Open the file of JSON lines of a folder; without a folder there is none. Pictures of an earlier run there are removed.

    Args:
        inputs: files that are read, and stay.
    """
    if folder is None:
        return contextlib.nullcontext()
    from ..images_anople import RESULTS  # it brings torch along

    folder.mkdir(parents=True, exist_ok=True)
    results = folder / RESULTS
    for name in _drawn_by(results):  # of the run before, which this one replaces
        if Path(os.path.realpath(folder / name)) not in inputs:
            (folder / name).unlink(missing_ok=True)
    return results.open("w", encoding="utf-8", buffering=1)  # line by line: pictures that a killed run drew are known


def check_places(options: PredictFiles, paths: list[Path], drawn: list[dict[str, str]]) -> None:
    """
    Refuse to write what `anople predict` is asked for where something would be lost; errors as of [`check_outputs`].

    Args:
        drawn: the pictures of each photograph, see [`names_of_drawn`].
    """
    from ..images_anople import RESULT_KEYS, RESULTS  # they bring torch along

    outputs = [] if options.csv is None else [Output("--csv", options.csv, csv_of(COLUMNS, COLUMNS_BEFORE))]
    outputs += [] if options.report is None else [Output("--report", options.report, is_page)]
    if options.output is not None:
        folder = folder_of(options)
        results = folder / RESULTS
        if (folder / JOURNAL).exists():
            raise ValueError(f"--output {folder} holds the results of `anople watch`: name another folder.")
        outputs.append(Output("--output", results, json_lines_of(RESULT_KEYS)))
        before = set(_drawn_by(results))
        for names in drawn:
            for name in filter(lambda name: os.path.lexists(folder / name), names.values()):
                outputs.append(Output("--output", folder / name, lambda _, is_ours=name in before: is_ours))
    ignored = [options.ignore_mask] if options.ignore_mask else []
    check_outputs(outputs, inputs=[*paths, *ignored], overwrite=options.overwrite)


def folder_of(options: PredictFiles) -> Path:
    """Return the folder of --output, which may be new; refuse a file."""
    folder = Path(options.output)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for --output.")
    return folder


def names_of_drawn(options: PredictFiles, paths: list[Path], places: list[str]) -> list[dict[str, str]]:
    """
    Name what is drawn of each photograph, by column, below --output: a picture, and what --save asks for.

    Masks and maps lie in folders as the photographs do, below the folder that was given, or that all have in common.
    """
    if options.output is None:
        return [{} for _ in paths]
    names = [{"overlay": picture_name(f"{number:04d}", path)} for number, path in enumerate(paths)]
    kinds = [kind for kind in ("mask", "map") if f"{kind}s" in options.saved]
    if not kinds:
        return names
    real = [Path(os.path.abspath(path)) for path in paths]
    folders = [place for place in places if os.path.isdir(place)]
    top = os.path.commonpath([*(path.parent for path in real), *map(os.path.abspath, folders)])
    below = [path.relative_to(top) for path in real]
    stems = Counter(path.with_suffix("").as_posix().casefold() for path in below)
    for drawn, path in zip(names, below, strict=True):
        alone = stems[path.with_suffix("").as_posix().casefold()] == 1
        stem = path.with_suffix("") if alone else path  # a.png beside a.jpg: a.png.png and a.jpg.png
        for kind in kinds:
            ending = "npy" if kind == "map" and options.map_format == "npy" else "png"
            drawn[kind] = f"{DRAWN[kind]}/{stem.as_posix()}.{ending}"
    if twins := [name for name, count in Counter(drawn[kinds[0]] for drawn in names).items() if count > 1]:
        raise ValueError(f"{twins[0]} would be drawn of two photographs: give each photograph once.")
    return names


def to_line(
    path: Path,
    prediction: "Prediction",
    full_map: "np.ndarray | None",
    names: dict[str, str],
    options: PredictFiles,
) -> dict[str, Any]:
    """Put all that is said of one photograph into one line, with the files that are drawn of it."""
    if full_map is None:
        return to_row(path, prediction)
    line = to_row(path, prediction, prediction.find_regions(full_map, min_area=options.min_area))
    if prediction.explanation:
        line["explanation"] = prediction.explanation.as_dict()
    has_mask = prediction.anomaly_map is not None  # without a threshold nothing can be marked
    drawn = {column: name for column, name in names.items() if column != "mask" or has_mask}
    return line | {column: str(Path(options.output) / name) for column, name in drawn.items()}


def draw_files(line: dict[str, Any], prediction: "Prediction", full_map: "np.ndarray", options: PredictFiles) -> None:
    """Draw the mask and the map that a line names: 0 and 255; scores from 0 to 1 as float32, or in 8 or 16 bits."""
    import numpy as np
    from PIL import Image

    from ..processing_anople import mark_regions

    for column in ("mask", "map"):
        if column in line:
            Path(line[column]).parent.mkdir(parents=True, exist_ok=True)
    if "mask" in line:
        marked = mark_regions(full_map, prediction.threshold, min_area=options.min_area)
        Image.fromarray(marked.astype(np.uint8) * 255).save(line["mask"])
    if "map" in line and options.map_format == "npy":
        with open(line["map"], "wb") as file:
            np.lib.format.write_array(file, full_map.astype(np.float32), allow_pickle=False)
    elif "map" in line:
        white, dtype = (255, np.uint8) if options.map_format == "png8" else (65535, np.uint16)
        Image.fromarray(np.rint(full_map * white).astype(dtype)).save(line["map"])


def picture_name(mark: str, path: Path) -> str:
    """Name the picture that is drawn of a photograph, by its number of at least four digits, or the id of its record."""
    return f"{mark}-{path.stem[:60]}.png"  # 240 bytes in any script


def _drawn_by(results: Path) -> Iterator[str]:
    """Name the files that a run has drawn, below its folder, by its results, which may end in the middle of a line."""
    text = results.read_text(encoding="utf-8", errors="replace") if results.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            row = json.loads(line)
            for column, inside in DRAWN.items():
                parts = Path(row[column]).parts if column in row else ()
                if column == "overlay" and parts and re.fullmatch(r"(\d{4,}|[0-9a-f]{16})-.*\.png", parts[-1]):
                    yield parts[-1]
                elif inside in parts and ".." not in parts:
                    # the folder may have been moved: of a name that holds another "masks", each reading is tried
                    starts = [place for place, part in enumerate(parts) if part == inside]
                    yield from ("/".join(parts[start:]) for start in starts)


__all__ = [
    "COLUMNS",
    "COLUMNS_BEFORE",
    "PredictFiles",
    "Rows",
    "append_lines",
    "check_places",
    "draw_files",
    "folder_of",
    "names_of_drawn",
    "now",
    "open_results",
    "picture_name",
    "record_id",
    "TABLE_HEADER",
    "table_text",
    "table_writer",
    "to_line",
    "to_row",
]
