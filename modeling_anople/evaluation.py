"""Measure a detector on a test set: metrics per class and mean, and a line per image."""

import csv
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from .fingerprint import detector_sha256
from .fusion_anople import resize_maps
from .metrics import PixelMetrics, image_metrics, mean_metrics
from .modeling_anople import AnoPLeModel
from .prediction import Part, Prediction, predict
from .processing_anople import AnoPLeProcessor, ImageError, load_mask
from .sources import read_source


logger = logging.getLogger(__name__)

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


def evaluate(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    data: str | Path | Dataset,
    *,
    classes: list[str] | None = None,
    part: Part = "fused",
    evaluation_size: int = 400,
    batch_size: int = 8,
    progress: bool = True,
) -> EvaluationReport:
    """
    Measure a detector on the test split.

    Args:
        data: a folder, parquet file or Hub id that [`read_source`] reads, or its rows.
        classes: products to measure; by default all that the detector knows and the data has.
        part: `fused`, or one part alone: `memory`, `decoder`, `text`.
        evaluation_size: maps and masks are compared at this size; pixel metrics depend on it (paper.md 3.2).

    Returns:
        [`EvaluationReport`]. Pixel metrics count good photographs and defective ones with a mask.

    Raises:
        ValueError: if the data has no test photographs of any known class, or `evaluation_size` is below 1.
    """
    if evaluation_size < 1:
        raise ValueError(f"evaluation_size must be at least 1 pixel, got {evaluation_size}.")
    rows = data if isinstance(data, Dataset) else test_rows(data, processor.class_names, classes)
    names = sorted(set(rows["class_name"]))
    report_rows, entries = [], {}
    with tqdm(total=len(rows), desc="evaluate", disable=not progress) as bar:
        for name in names:  # one class at a time, because pixel metrics hold a histogram
            chosen = rows.select(np.flatnonzero(np.array(rows["class_name"]) == name))
            pixels, of_class = PixelMetrics(), []
            sources = (row["image"] for row in chosen)
            predictions = predict(model, processor, sources, class_names=name, batch_size=batch_size, part=part)
            for row, prediction in zip(chosen, predictions, strict=True):
                of_class.append(_image_row(row, prediction))
                of_class[-1].error = prediction.error or _add_pixels(pixels, row, prediction, evaluation_size)
                bar.update()
            entries[name] = _class_entry(of_class, pixels)
            report_rows += of_class
    for entry in report_rows:
        if entry.error:
            logger.warning("%s", entry.error)
    fit = model.config.fit or {}
    protocol = {
        "class_identity": model.config.class_identity,
        "score": part,
        "shots": fit.get("shots"),
        "seed": fit.get("seed"),
        "evaluation_size": evaluation_size,
        "clip": (model.config.clip_source or {}).get("name"),
        "detector_sha256": detector_sha256(model),
    }
    return EvaluationReport(entries, report_rows, protocol)


def test_rows(data: str | Path, known: list[str], classes: list[str] | None = None) -> Dataset:
    """Read the test split of the classes that a detector knows."""
    rows = read_source(data, split="test", classes=classes)
    names = rows["class_name"][:]
    unknown = sorted(set(names) - set(known))
    if classes and unknown:
        raise ValueError(f"The detector does not know {unknown}; it knows {known}.")
    if unknown:
        logger.warning("Left out, unknown to the detector: %s.", ", ".join(unknown))
        rows = rows.select([number for number, name in enumerate(names) if name in known])
    if len(rows) == 0:
        raise ValueError(
            f"{data} has no test photographs of {known}: put them into CLASS/test/good and CLASS/test/DEFECT, "
            "or use `anople predict` to judge photographs without a ground truth."
        )
    return rows


def _image_row(row: dict, prediction: Prediction) -> ImageRow:
    return ImageRow(
        path=row["path"],
        class_name=row["class_name"],
        defect=row["defect"],
        anomalous=bool(row["label"]),
        score=prediction.score,
        raw_score=prediction.raw_score,
        label=prediction.label,
        judged_as=prediction.class_name,
        seconds=prediction.seconds,
        error=prediction.error,
    )


def _add_pixels(pixels: PixelMetrics, row: dict, prediction: Prediction, size: int) -> str | None:
    """Compare one map with its mask, or say why not; a defective photograph without a mask is left out."""
    if prediction.raw_map is None or (row["label"] and row["mask"] is None):
        return None
    mask = None
    if row["mask"] is not None:
        try:
            marked = load_mask(row["mask"], size=prediction.size).astype(np.uint8)
        except ImageError as error:
            return str(error)
        mask = np.asarray(Image.fromarray(marked).resize((size, size), Image.Resampling.NEAREST)) > 0
    pixels.update(resize_maps(torch.from_numpy(prediction.raw_map)[None], (size, size))[0].numpy(), mask)
    return None


def _class_entry(rows: list[ImageRow], pixels: PixelMetrics) -> dict[str, Any]:
    judged = [row for row in rows if row.raw_score is not None]
    normal = [row for row in judged if not row.anomalous]
    anomalous = [row for row in judged if row.anomalous]
    return {
        **image_metrics([row.raw_score for row in judged], [row.anomalous for row in judged]),
        **pixels.compute(),
        "false_alarm_rate": _share_flagged(normal),
        "detection_rate": _share_flagged(anomalous),
        "normal": len(normal),
        "anomalous": len(anomalous),
    }


def _share_flagged(rows: list[ImageRow]) -> float | None:
    labels = [row.label for row in rows]
    return None if not labels or None in labels else labels.count("anomalous") / len(labels)


__all__ = ["EvaluationReport", "ImageRow", "evaluate", "test_rows"]
