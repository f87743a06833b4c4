"""What `anople predict` writes of each photograph: a JSON line, and a row of a table."""

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .prediction import Prediction


COLUMNS = ("path", "class", "score", "label", "raw_score", "p_value", "seconds", "overlay", "error")


def to_row(path: Path, prediction: Prediction) -> dict[str, Any]:
    """Put what is known of one photograph into the order of the columns; the last two only where there is something."""
    row = {"path": str(path), "class": prediction.class_name, "score": prediction.score, "label": prediction.label}
    row |= {"raw_score": prediction.raw_score, "p_value": prediction.p_value}
    row["seconds"] = prediction.seconds and round(prediction.seconds, 4)
    return row | ({"error": prediction.error} if prediction.error else {})


@contextlib.contextmanager
def table_writer(path: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open a CSV file for rows of [`to_row`], each written at once; without a path rows go nowhere."""
    if path is None:
        yield lambda row: None
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()

        def write(row: dict[str, Any]) -> None:
            writer.writerow(row)
            file.flush()

        yield write


def open_results(folder: Path | None, inputs: set[Path]) -> contextlib.AbstractContextManager:
    """
    Open the file of JSON lines of a folder; without a folder there is none. Pictures of an earlier run there are removed.

    Args:
        inputs: files that are read, and stay.

    Raises:
        ValueError: if the folder is a file.
    """
    if folder is None:
        return contextlib.nullcontext()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for --output.")
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    for name in _pictures_of(results):  # of the run before, which this one replaces
        if (folder / name).resolve() not in inputs:
            (folder / name).unlink(missing_ok=True)
    return results.open("w", encoding="utf-8")


def _pictures_of(results: Path) -> Iterator[str]:
    """Name the pictures that a run has drawn, by its results, which may end in the middle of a line."""
    text = results.read_text(encoding="utf-8", errors="replace") if results.exists() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            name = Path(json.loads(line)["overlay"]).name if '"overlay"' in line else ""
            if re.fullmatch(r"\d{4,}-.*\.png", name):
                yield name


__all__ = ["COLUMNS", "open_results", "table_writer", "to_row"]
