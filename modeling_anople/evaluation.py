"""
Measure a detector on a test set: `anople evaluate CHECKPOINT DATA`.

    accelerate launch -m modeling_anople.evaluation CHECKPOINT DATA --json evaluation.json

spreads over processes and gives the same figures: a process takes every n-th batch, so that each batch holds the same
photographs as in one process, and histograms of pixels are added up.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from .command_line import CHECKPOINT, make_parser, parse, start_logging
from .fingerprint import detector_sha256
from .fusion_anople import resize_maps
from .gallery import make_gallery
from .loading import load_judge
from .metrics import PixelMetrics, image_metrics
from .modeling_anople import AnoPLeModel
from .names_anople import composed
from .prediction import Part, Prediction, predict
from .processes import join_processes
from .processing_anople import AnoPLeProcessor, ImageError, find_class, load_mask
from .report import EvaluationReport, ImageRow
from .sources import read_source


logger = logging.getLogger(__name__)

DIGITS = 10


@dataclass
class EvaluateOptions:
    """Options of `anople evaluate`."""

    json: str | None = field(default=None, metadata={"help": "Write evaluation.json here."})
    csv: str | None = field(default=None, metadata={"help": "Write a line per image here."})
    gallery: str | None = field(default=None, metadata={"help": "Write pictures and index.html into this folder."})
    classes: list[str] | None = field(default=None, metadata={"help": "Products to measure; by default all."})
    score: Literal["fused", "memory", "decoder", "text"] = field(
        default="fused", metadata={"help": "Measure the whole, or one part alone."}
    )
    class_identity: Literal["given", "predicted", "pooled"] | None = field(
        default=None, metadata={"help": "Where the class comes from; by default as fitted."}
    )
    evaluation_size: int = field(default=400, metadata={"help": "Side at which maps and masks are compared."})
    batch_size: int = field(default=8, metadata={"help": "Photographs judged at once."})
    device: str = field(
        default="auto", metadata={"help": "auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, ..."}
    )
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "What is computed with; bfloat16 is faster where the hardware knows it."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a Hub id; user/name@revision says the same."}
    )


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
    state = join_processes()
    with tqdm(total=len(rows), desc="evaluate", disable=not (progress and state.is_main_process)) as bar:
        for name in names:  # one class at a time, because pixel metrics hold a histogram
            own = _own_share(np.flatnonzero(np.array(rows["class_name"]) == name), batch_size, state)
            chosen = rows.select(own)
            pixels, of_class = PixelMetrics(), []
            sources = (row["image"] for row in chosen)
            predictions = predict(model, processor, sources, class_names=name, batch_size=batch_size, part=part)
            for row, prediction in zip(chosen, predictions, strict=True):
                of_class.append(_image_row(row, prediction))
                of_class[-1].error = prediction.error or add_pixels(pixels, row, prediction, evaluation_size)
                bar.update(state.num_processes)
            of_class = _gather(of_class, own, pixels, state)
            entries[name] = _class_entry(of_class, pixels)
            report_rows += of_class
    for entry in report_rows:
        if entry.error and state.is_main_process:
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
    if model.dtype != torch.float32:
        protocol["dtype"] = str(model.dtype).removeprefix("torch.")
    return EvaluationReport(entries, report_rows, protocol)


def test_rows(data: str | Path, known: list[str], classes: list[str] | None = None) -> Dataset:
    """Read the test split of the classes that a detector knows."""
    rows = read_source(data, split="test", classes=classes)
    names = rows["class_name"][:]
    composed_names = set(map(composed, known))  # as rows have them
    unknown = sorted(set(names) - composed_names)
    for name in unknown if classes else ():
        find_class(name, known)  # refuses it
    if unknown:
        logger.warning("Left out, unknown to the detector: %s.", ", ".join(unknown))
        rows = rows.select([number for number, name in enumerate(names) if name in composed_names])
    if len(rows) == 0:
        raise ValueError(
            f"{data} has no test photographs of {known}: put them into CLASS/test/good and CLASS/test/DEFECT, "
            "or use `anople predict` to judge photographs without a ground truth."
        )
    return rows


def _own_share(numbers: np.ndarray, batch_size: int, state: PartialState) -> list[int]:
    """Pick every n-th batch of the rows' numbers, beginning at this process' own."""
    batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    return [int(number) for batch in batches[state.process_index :: state.num_processes] for number in batch]


def _gather(rows: list[ImageRow], numbers: list[int], pixels: PixelMetrics, state: PartialState) -> list[ImageRow]:
    """Join what all processes found: the rows in the order of their numbers, and the pixels, in place."""
    if state.num_processes == 1:
        return rows
    together = gather_object([(number, row) for number, row in zip(numbers, rows, strict=True)])
    for number, others in enumerate(gather_object([pixels])):
        if number != state.process_index:
            pixels.merge(others)
    return [row for _, row in sorted(together, key=lambda pair: pair[0])]


def _image_row(row: dict, prediction: Prediction) -> ImageRow:
    return ImageRow(
        path=row["path"],
        class_name=row["class_name"],
        defect=row["defect"],
        anomalous=bool(row["label"]),
        score=prediction.score,
        raw_score=prediction.raw_score,
        p_value=prediction.p_value,
        label=prediction.label,
        judged_as=prediction.class_name,
        seconds=prediction.seconds,
        error=prediction.error,
    )


def add_pixels(pixels: PixelMetrics, row: dict, prediction: Prediction, size: int) -> str | None:
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
    figures = {
        **image_metrics([row.raw_score for row in judged], [row.anomalous for row in judged]),
        **pixels.compute(),
        "false_alarm_rate": _share_flagged(normal),
        "detection_rate": _share_flagged(anomalous),
    }
    # sums of several processes differ from those of one in their last digits
    figures = {key: None if value is None else round(value, DIGITS) for key, value in figures.items()}
    return {**figures, "normal": len(normal), "anomalous": len(anomalous)}


def _share_flagged(rows: list[ImageRow]) -> float | None:
    labels = [row.label for row in rows]
    return None if not labels or None in labels else labels.count("anomalous") / len(labels)


def main(arguments: list[str] | None = None) -> int:
    """Measure a detector, print the table and write what was asked for; with several processes, the first does."""
    start_logging()
    parser = make_parser("evaluate", EvaluateOptions, checkpoint=CHECKPOINT, data="Test photographs.")
    places, options = parse(parser, arguments)
    state = join_processes()
    model, processor = load_judge(places.checkpoint, options.revision, options.device, options.dtype)
    if options.class_identity:
        model.config.class_identity = options.class_identity
    rows = test_rows(places.data, processor.class_names, options.classes)
    report = evaluate(
        model,
        processor,
        rows,
        part=options.score,
        evaluation_size=options.evaluation_size,
        batch_size=options.batch_size,
    )
    if state.is_main_process:
        sys.stdout.write(report.to_markdown() + "\n")
        if options.json:
            report.write_json(Path(options.json))
        if options.csv:
            report.write_csv(Path(options.csv))
        if options.gallery:
            index = make_gallery(model, processor, rows, report, Path(options.gallery))
            sys.stdout.write(f"Gallery: {index}\n")
    state.wait_for_everyone()
    return 0


__all__ = ["EvaluateOptions", "EvaluationReport", "ImageRow", "add_pixels", "evaluate", "main", "test_rows"]


if __name__ == "__main__":
    sys.exit(main())
