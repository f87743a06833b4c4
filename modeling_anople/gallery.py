"""A gallery to look at: a sheet per class, and the few single pictures that a model card shows."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from .modeling_anople import AnoPLeModel
from .prediction import Prediction, full_size_map, predict
from .processing_anople import AnoPLeProcessor, ImageError, load_mask, load_photograph
from .report import EvaluationReport, ImageRow
from .visualization import SAMPLES, contact_sheet, panel, write_gallery


def make_gallery(
    model: AnoPLeModel, processor: AnoPLeProcessor, rows: Dataset, report: EvaluationReport, directory: Path
) -> Path:
    """
    Write one PNG per class and an index.html: photograph, ground truth, heat map and score, worst errors first.

    The folder `samples` gets single pictures, up to three of each class: its worst two errors and a defect that was
    found, with `samples.json`, which says what they show. A model card takes its pictures from there.

    Returns:
        The path of the index.
    """
    by_path = {
        (name, path): number for number, (name, path) in enumerate(zip(rows["class_name"], rows["path"], strict=True))
    }
    sheets, entries = {}, []
    shutil.rmtree(directory / SAMPLES, ignore_errors=True)
    for name in report.classes:
        shown = _to_show([row for row in report.rows if row.class_name == name and row.score is not None])
        samples = [rows[by_path[row.class_name, row.path]] for row in shown]
        if panels := list(_panels(model, processor, shown, samples)):
            sheets[name] = contact_sheet(panels, title=name)
            entries += _write_samples(shown, panels, directory / SAMPLES, len(sheets))
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report.protocol.items())
    index = write_gallery(directory, sheets, summary_rows=report.table_rows(), title="AnoPLe", notes=settings)
    if entries:
        text = json.dumps(entries, indent=2) + "\n"
        (directory / SAMPLES / f"{SAMPLES}.json").write_text(text, encoding="utf-8")
    return index


def _to_show(rows: list[ImageRow], worst: int = 4, others: int = 4) -> list[ImageRow]:
    """Take the worst errors, then some spread evenly over the rest, in that order."""
    ordered = sorted(rows, key=lambda row: (-row.severity, row.path))
    rest = ordered[worst:]
    places = np.unique(np.linspace(0, len(rest) - 1, min(others, len(rest))).astype(int)) if rest else []
    return ordered[:worst] + [rest[place] for place in places]


def _panels(
    model: AnoPLeModel, processor: AnoPLeProcessor, shown: list[ImageRow], samples: list[dict]
) -> Iterator[Image.Image]:
    names = [row.class_name for row in shown]
    predictions = predict(model, processor, (sample["image"] for sample in samples), class_names=names)
    for row, sample, prediction in zip(shown, samples, predictions, strict=True):
        photograph = load_photograph(sample["image"], white_value=processor.white_value)
        answer = f"raw score {row.score:.3g}, no line"
        if row.label is not None:
            answer = f"score {row.score:.2f}, line {model.config.threshold:.2f}: {row.label}"
        yield panel(
            photograph,
            anomaly_map=full_size_map(prediction),
            mask=_mask_to_show(row, sample, prediction),
            title=f"{row.path}  -  {f'defective ({row.defect})' if row.anomalous else 'good'}",
            subtitle=answer,
        )


def _mask_to_show(row: ImageRow, sample: dict, prediction: Prediction) -> np.ndarray | None:
    if sample["mask"] is None:  # a good photograph needs none
        return None if row.anomalous else np.zeros(prediction.size, dtype=bool)
    try:
        return load_mask(sample["mask"], size=prediction.size)
    except ImageError:
        return None


def _write_samples(
    shown: list[ImageRow], panels: list[Image.Image], directory: Path, class_number: int
) -> list[dict[str, Any]]:
    """Write the pictures of one class that say most; a class without a line has neither errors nor successes."""
    kinds = [kind_of(row) for row in shown]
    wrong = [place for place, kind in enumerate(kinds) if kind in ("miss", "false alarm")]
    found = [place for place, kind in enumerate(kinds) if kind == "found"]
    entries = []
    for place in [*wrong[:2], *found[len(found) // 2 :][:1]]:
        directory.mkdir(parents=True, exist_ok=True)
        file_name = f"{class_number:02d}-{kinds[place].replace(' ', '-')}-{len(entries) + 1}.jpg"
        panels[place].save(directory / file_name, quality=88)
        row = shown[place]
        shows = {"class": row.class_name, "path": row.path, "defect": row.defect, "score": row.score}
        entries.append({"file": file_name, "kind": kinds[place], "severity": row.severity, **shows})
    return entries


def kind_of(row: ImageRow) -> str | None:
    """Name an answer: a `miss`, a `false alarm`, `found` or `passed`; `None` where the class has no line."""
    if row.label is None:
        return None
    if row.anomalous:
        return "found" if row.label == "anomalous" else "miss"
    return "false alarm" if row.label == "anomalous" else "passed"


__all__ = ["kind_of", "make_gallery"]
