"""What `anople predict` writes of each photograph: a JSON line, and a row of a table."""

import contextlib
import csv
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


__all__ = ["COLUMNS", "table_writer", "to_row"]
