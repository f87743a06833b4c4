"""What an evaluation found: metrics per class and their mean, and a line per image."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .metrics import mean_metrics


METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")
LINE_RATES = ("false_alarm_rate", "detection_rate")


@dataclass
class ImageRow:
    """One photograph of the test set: what it is and what was answered."""

    path: str
    class_name: str
    defect: str
    anomalous: bool
    score: float | None
    raw_score: float | None
    p_value: float | None
    label: str | None
    judged_as: str | None
    seconds: float | None
    error: str | None

    @property
    def severity(self) -> float:
        """How wrong the answer is, from 0 to 1."""
        return 1 - self.score if self.anomalous else self.score


@dataclass
class EvaluationReport:
    """
    Result of [`evaluate`].

    Args:
        classes: per class the metrics, `None` where undefined, the rates at the line and the counts.
        mean: over classes with equal weight.
        rows: one entry per photograph.
        protocol: class identity, part, shots, seed, evaluation size, name of the CLIP and hash of the detector's state.
    """

    classes: dict[str, dict[str, Any]]
    rows: list[ImageRow]
    protocol: dict[str, Any]
    mean: dict[str, Any] = field(init=False)

    def __post_init__(self):
        rates = {name: {key: entry[key] for key in METRICS + LINE_RATES} for name, entry in self.classes.items()}
        counts = {key: sum(entry[key] for entry in self.classes.values()) for key in ("normal", "anomalous")}
        self.mean = {**mean_metrics(rates), **counts}

    def to_dict(self) -> dict[str, Any]:
        """Return what `evaluation.json` holds."""
        errors = {row.path: row.error for row in self.rows if row.error}
        return {"mean": self.mean, "classes": self.classes, **self.protocol, "errors": errors}

    def write_json(self, path: Path) -> None:
        """Write `evaluation.json`."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def write_csv(self, path: Path) -> None:
        """Write one line per photograph."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(ImageRow.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(vars(row) for row in self.rows)

    def table_rows(self) -> list[dict[str, Any]]:
        """Return the table, one dict per class and one for the mean."""
        return [{"class": name, **entry} for name, entry in [*self.classes.items(), ("mean", self.mean)]]

    def to_markdown(self) -> str:
        """Render the table; figures in percent."""
        columns = ["class", *METRICS, *LINE_RATES, "normal", "anomalous"]
        cells = [[_cell(name, row[name]) for name in columns] for row in self.table_rows()]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        lines = [columns, ["-" * width for width in widths], *cells]
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.1f}" if name in METRICS + LINE_RATES else str(value)


__all__ = ["LINE_RATES", "METRICS", "EvaluationReport", "ImageRow"]
