"""Measure a detector on a test set: metrics and rates per product, a line per image, and a gallery."""

import csv
import json
import logging
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
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

from ..configuration_anople import LARGEST_SIDE, check_ranges
from ..data import DataOptions, read_source, split_source
from ..data.public_sets import saturation_areas
from ..export.graph_detector import ExportedDetector
from ..images_anople import ImageError, load_image, load_mask, mask_out_map
from ..inference_anople import Part
from ..inspection.report import Report, draw_verdict
from ..modeling_anople import AnoPLeModel
from ..pipeline_anople import Prediction, predict
from ..processing_anople import AnoPLeProcessor
from ..product_store_anople import composed, find_class
from ..runtime import CHECKPOINT, MACHINE, make_parser, parse, printable, say, start_logging
from ..runtime.heat_maps import SAMPLES, contact_sheet, panel, write_gallery
from ..runtime.loading import detector_sha256, join_processes, load_judge
from ..runtime.outputs import OVERWRITE, Output, check_outputs, csv_of, inert_row, is_page, json_of
from ..scoring_anople import resize_maps
from .metrics import PixelMetrics, image_metrics, mean_metrics


# --- What an evaluation found: metrics per class and their mean, and a line per image ---


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


COLUMNS = tuple(ImageRow.__dataclass_fields__)
REPORT_KEYS = ("mean", "classes", "evaluation_size", "errors")  # of evaluation.json, among others


@dataclass
class EvaluationReport:
    """
    Result of [`evaluate`].

    Args:
        classes: per class the metrics, `None` where undefined, the rates at the line and the counts.
        mean: over classes with equal weight.
        rows: one entry per photograph.
        protocol: class identity, part, shots, seed, evaluation size, names of the CLIP and of the memory's encoder, and hash of the detector's
            state.
    """

    classes: dict[str, dict[str, Any]]
    rows: list[ImageRow]
    protocol: dict[str, Any]
    mean: dict[str, Any] = field(init=False)

    def __post_init__(self):
        rates = {
            name: {key: entry[key] for key in (*METRICS, "auspro", *LINE_RATES) if key in entry}
            for name, entry in self.classes.items()
        }
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
        with Path(path).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=COLUMNS)
            writer.writeheader()
            writer.writerows(inert_row(vars(row)) for row in self.rows)

    def table_rows(self) -> list[dict[str, Any]]:
        """Return the table, one dict per class and one for the mean."""
        return [{"class": name, **entry} for name, entry in [*self.classes.items(), ("mean", self.mean)]]

    def to_markdown(self) -> str:
        """Render the table; figures in percent."""
        has_saturated = any("auspro" in entry for entry in self.classes.values())
        columns = ["class", *METRICS, *(["auspro"] if has_saturated else []), *LINE_RATES, "normal", "anomalous"]
        cells = [[_cell(name, row.get(name)) for name in columns] for row in self.table_rows()]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        lines = [columns, ["-" * width for width in widths], *cells]
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.1f}" if name in (*METRICS, "auspro", *LINE_RATES) else printable(str(value))


# --- A gallery to look at: a sheet per class, and the few single pictures that a model card shows ---

TITLE = "AnoPLe"
KINDS = {"miss": "missed", "false alarm": "false alarm", "found": "found", "passed": "good, and called good", None: ""}
# What the columns of the gallery's table are called there, and what they mean, in the order in which people ask.
COLUMN_WORDS = {
    "class": ("product", "The rows are products, and their mean with equal weight."),
    "normal": ("good", "How many good photographs were judged."),
    "anomalous": ("defective", "How many defective photographs were judged."),
    "detection_rate": (
        "found",
        "Share of the defective photographs that the line calls anomalous; the rest is missed.",
    ),
    "false_alarm_rate": ("false alarms", "Share of the good photographs that the line calls anomalous."),
    "image_auroc": (
        "order of photographs, AUROC",
        "How often a defective photograph has a higher score than a good one, wherever the line lies; 50% is chance.",
    ),
    "image_ap": (
        "photographs, AP",
        "Share of the defective among all that are called anomalous, averaged over all lines.",
    ),
    "image_f1_max": ("best line, F1", "What the best line of all could reach: it finds much and is seldom wrong."),
    "pixel_auroc": (
        "order of pixels, AUROC",
        "How often a pixel of a defect has a higher value than a good one; large defects count most.",
    ),
    "pixel_ap": ("pixels, AP", "Share of defect among the pixels that are marked, averaged over all lines."),
    "aupro": (
        "defects covered, AUPRO",
        "How much of each defect is marked, small ones as large ones, while at most 30% of what is good is marked, too.",
    ),
    "auspro": (
        "defects covered, AUsPRO",
        "As AUPRO, where a defect counts as covered once a part of it is marked (MVTec LOCO).",
    ),
}


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
    for name in _written_before(directory / SAMPLES, f"{SAMPLES}.json"):
        (directory / SAMPLES / name).unlink(missing_ok=True)
    for name in report.classes:
        shown = _to_show([row for row in report.rows if row.class_name == name and row.score is not None])
        samples = [rows[by_path[row.class_name, row.path]] for row in shown]
        if panels := list(_panels(model, processor, shown, samples)):
            sheets[name] = contact_sheet(panels, title=name)
            entries += _write_samples(shown, panels, directory / SAMPLES, len(sheets))
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report.protocol.items())
    settings = f"How this was measured: {settings}."
    index = write_gallery(
        directory,
        sheets,
        summary_rows=report.table_rows(),
        title=TITLE,
        notes=settings,
        words=COLUMN_WORDS,
        sentences={name: _sum_up([row for row in report.rows if row.class_name == name]) for name in sheets},
    )
    if entries:
        text = json.dumps(entries, indent=2) + "\n"
        (directory / SAMPLES / f"{SAMPLES}.json").write_text(text, encoding="utf-8")
    return index


def _sum_up(rows: list[ImageRow]) -> str:
    """Say how many photographs of a product were answered rightly."""
    kinds = Counter(kind_of(row) for row in rows if row.score is not None)
    if kinds[None]:
        return "It has no line, so there is no verdict: photographs are in the order of their scores."
    good, defective = kinds["passed"] + kinds["false alarm"], kinds["found"] + kinds["miss"]
    said = [f"Of {defective} defective photographs {kinds['found']} were found and {kinds['miss']} missed"] * (
        defective > 0
    )
    said += [f"of {good} good ones {kinds['false alarm']} gave a false alarm"] * (good > 0)
    return f"{', '.join(said)}."


def check_gallery(directory: Path) -> list[Output]:
    """
    List what [`make_gallery`] may replace in a folder: its index, sheets and samples, which an earlier index and list name.

    Raises:
        ValueError: for what is no folder.
    """
    if os.path.lexists(directory) and not directory.is_dir():
        raise ValueError(f"--gallery {directory} is a file: name a folder.")
    samples, index = directory / SAMPLES, directory / "index.html"
    sheets = set(_written_before(directory, index.name))
    pictures = {*_written_before(samples, f"{SAMPLES}.json"), f"{SAMPLES}.json"}
    outputs = [Output("--gallery", index, _is_gallery)]
    outputs += [
        Output("--gallery", path, lambda path: path.name in sheets) for path in directory.glob("[0-9][0-9]*-*.png")
    ]
    for path in [samples / f"{SAMPLES}.json", *samples.glob("[0-9][0-9]*-*.jpg")]:
        outputs.append(Output("--gallery", path, lambda path: path.name in pictures))
    return outputs


def _is_gallery(index: Path) -> bool:
    return f"<title>{TITLE}</title>" in index.read_text(encoding="utf-8", errors="replace")


def _written_before(folder: Path, index: str) -> list[str]:
    """Name the pictures in a folder that its index, or list, names."""
    path = folder / index
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return (
        [name for name in os.listdir(folder) if name.endswith((".png", ".jpg")) and f'"{name}"' in text]
        if text
        else []
    )


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
        photograph = load_image(sample["image"], white_value=processor.white_value)
        answer, kind = f"{row.class_name}: raw score {row.score:.3g}, no line", kind_of(row)
        if row.label is not None:
            answer = f"{row.class_name}: {row.label}, score {row.score:.2f}, line {model.config.threshold:.2f}"
        yield panel(
            photograph,
            anomaly_map=prediction.full_size_map(),
            mask=_mask_to_show(row, sample, prediction),
            verdict=KINDS[kind],
            is_right=kind in ("found", "passed"),
            title=f"{row.path}{f', defective ({row.defect})' if row.anomalous else ', good'}",
            subtitle=answer,
        )


def _mask_to_show(row: ImageRow, sample: dict, prediction: Prediction) -> np.ndarray | None:
    if sample["mask"] is None:  # a good photograph needs none
        return None if row.anomalous else np.zeros(prediction.size, dtype=bool)
    try:
        return load_mask(sample["mask"], size=prediction.size, photograph=sample["image"])
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


def make_page(
    model: AnoPLeModel | ExportedDetector,
    processor: AnoPLeProcessor,
    rows: Dataset,
    report: EvaluationReport,
    places: Namespace,
) -> Report:
    """Make the page of `--report`: as of photographs that were inspected, and with the truth of each."""
    settings = {key.replace("_", " "): value for key, value in report.protocol.items()}
    page = Report(str(places.data), config=model.config, detector=places.checkpoint, settings=settings)

    def draw(sample: dict) -> Image.Image | None:
        prediction = next(predict(model, processor, [sample["image"]], class_names=sample["class_name"]))
        if prediction.error:
            return None
        photograph = load_image(sample["image"], white_value=processor.white_value)
        return draw_verdict(photograph, prediction.full_size_map(), prediction.as_row(), prediction.threshold)

    by_path = {key: number for number, key in enumerate(zip(rows["class_name"], rows["path"], strict=True))}
    for row in sorted(report.rows, key=lambda row: -1 if row.score is None else -row.severity):
        truth = {"is_defective": row.anomalous, "defect": row.defect}
        known = {"path": row.path, "class": row.class_name, "score": row.score, "label": row.label, "error": row.error}
        page.add(known | truth, lambda row=row: draw(rows[by_path[row.class_name, row.path]]))
    return page


def kind_of(row: ImageRow) -> str | None:
    """Name an answer: a `miss`, a `false alarm`, `found` or `passed`; `None` where the class has no line."""
    if row.label is None:
        return None
    if row.anomalous:
        return "found" if row.label == "anomalous" else "miss"
    return "false alarm" if row.label == "anomalous" else "passed"


# --- Measure a detector on a test set: `anople evaluate CHECKPOINT DATA` ---


logger = logging.getLogger(__name__)

DIGITS = 10


MEASURED = "what is measured, and how"  # a heading of the help
# The least and the greatest value of every number, both allowed; help texts name them.
EVALUATE_RANGES = {"evaluation_size": (1, LARGEST_SIDE), "batch_size": (1, 65_536)}


@dataclass
class EvaluateOptions(DataOptions):
    """Options of `anople evaluate`."""

    json: str | None = field(default=None, metadata={"help": "Write evaluation.json here."})
    csv: str | None = field(default=None, metadata={"help": "Write a line per image here."})
    overwrite: bool = field(default=False, metadata={"help": OVERWRITE})
    gallery: str | None = field(default=None, metadata={"help": "Write pictures and index.html into this folder."})
    report: str | None = field(
        default=None, metadata={"help": "Write a page for people into this file: what was answered wrong comes first."}
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Products to measure; by default all."})
    score: Literal["fused", "memory", "decoder", "text"] = field(
        default="fused", metadata={"heading": MEASURED, "help": "Measure the whole, or one part alone."}
    )
    class_identity: Literal["given", "predicted", "pooled"] | None = field(
        default=None, metadata={"heading": MEASURED, "help": "Where the class comes from; by default as fitted."}
    )
    evaluation_size: int = field(
        default=400, metadata={"heading": MEASURED, "help": "Side at which maps and masks are compared, 1 to 4096."}
    )
    batch_size: int = field(
        default=8, metadata={"heading": MACHINE, "help": "Photographs judged at once, 1 to 65536."}
    )
    device: str = field(
        default="auto",
        metadata={"heading": MACHINE, "help": "auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, ..."},
    )
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32",
        metadata={
            "heading": MACHINE,
            "help": "What is computed with; bfloat16 is faster where the hardware knows it.",
        },
    )
    revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of a Hub id; user/name@revision says the same."},
    )

    def __post_init__(self):
        check_ranges(self, EVALUATE_RANGES)


def evaluate(
    model: AnoPLeModel | ExportedDetector,
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
        ValueError: if the data has no test photographs of any known class, or a size is out of its range.
    """
    EvaluateOptions(evaluation_size=evaluation_size, batch_size=batch_size)
    rows = data if isinstance(data, Dataset) else test_rows(data, processor.class_names, classes)
    names = sorted(set(rows["class_name"]))
    report_rows, entries, masks = [], {}, Counter()
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
                of_class[-1].error = prediction.error or add_pixels(pixels, row, prediction, evaluation_size, masks)
                bar.update(state.num_processes)
            of_class = _gather(of_class, own, pixels, state)
            entries[name] = _class_entry(of_class, pixels)
            report_rows += of_class
    _warn_of_masks(sum(gather_object([masks]), Counter()) if state.num_processes > 1 else masks, state)
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
        "memory_encoder": (model.config.memory_encoder_source or {}).get("name"),
        "memory_image_size": model.config.memory_image_size,
        "detector_sha256": detector_sha256(model),
    }
    if model.dtype != torch.float32:
        protocol["dtype"] = str(model.dtype).removeprefix("torch.")
    return EvaluationReport(entries, report_rows, protocol)


def test_rows(
    data: str | Path, known: list[str], classes: list[str] | None = None, options: DataOptions | None = None
) -> Dataset:
    """Read the test split of the classes that a detector knows."""
    rows = read_source(data, split="test", classes=classes, options=options)
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


def add_pixels(
    pixels: PixelMetrics, row: dict, prediction: Prediction, size: int, masks: Counter[str] | None = None
) -> str | None:
    """
    Compare one map with its mask, or say why not; a defective photograph without a mask is left out.

    Args:
        masks: counts `all` masks, those that mark `most` of their photograph, and those of a defect that mark `nothing`.
    """
    if prediction.raw_map is None or (row["label"] and row["mask"] is None):
        return None
    mask = None
    if row["mask"] is not None:
        try:
            marked = load_mask(row["mask"], size=prediction.size, photograph=row["image"]).astype(np.uint8)
        except ImageError as error:
            return str(error)
        if masks is not None:
            masks.update(all=1, most=int(marked.mean() > 0.5), nothing=int(bool(row["label"]) and not marked.any()))
        mask = np.asarray(Image.fromarray(marked).resize((size, size), Image.Resampling.NEAREST)) > 0
    raw_map = mask_out_map(prediction.raw_map, prediction.ignored)
    regions = _saturated_regions(row["mask"], prediction.size, size)
    pixels.update(resize_maps(torch.from_numpy(raw_map)[None], (size, size))[0].numpy(), mask, regions)
    return None


def _saturated_regions(mask: dict | None, of: tuple[int, int], size: int) -> list[tuple[np.ndarray, float]]:
    """Open the single defects of a photograph of (height, width) `of` at the size of comparison, where MVTec LOCO has them."""
    if mask is None or mask["path"] is None or not (areas := saturation_areas(Path(mask["path"]))):
        return []
    regions = []
    for path, area in areas:
        marked = Image.fromarray(load_mask(path, size=of).astype(np.uint8))
        small = np.asarray(marked.resize((size, size), Image.Resampling.NEAREST)) > 0
        regions.append((small, area * size * size / (of[0] * of[1])))
    return regions


def _warn_of_masks(masks: Counter[str], state: PartialState) -> None:
    """Warn once, for all masks, of those that look inverted or empty."""
    found = {"more than half of their photograph": masks["most"], "nothing, though of a defect": masks["nothing"]}
    if any(found.values()) and state.is_main_process:
        parts = " and ".join(f"{count} mark {what}" for what, count in found.items() if count)
        logger.warning("Of %d masks %s: look at them, pixel metrics are wrong otherwise.", masks["all"], parts)


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


def _check_places(places: Namespace, options: EvaluateOptions) -> None:
    outputs = [] if options.json is None else [Output("--json", options.json, json_of(REPORT_KEYS))]
    outputs += [] if options.csv is None else [Output("--csv", options.csv, csv_of(COLUMNS))]
    outputs += [] if options.report is None else [Output("--report", options.report, is_page)]
    outputs += [] if options.gallery is None else check_gallery(Path(options.gallery))
    check_outputs(outputs, inputs=[split_source(places.data)[1]], overwrite=options.overwrite)


def main(arguments: list[str] | None = None) -> int:
    """Measure a detector, print the table and write what was asked for; with several processes, the first does."""
    start_logging()
    parser = make_parser("evaluate", EvaluateOptions, checkpoint=CHECKPOINT, data="Test photographs.")
    places, options = parse(parser, arguments)
    state = join_processes()
    if state.is_main_process:  # the others write nothing
        _check_places(places, options)
    model, processor = load_judge(places.checkpoint, options.revision, options.device, options.dtype)
    if options.class_identity:
        model.config.class_identity = options.class_identity
    rows = test_rows(places.data, processor.class_names, options.classes, options)
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
            say(f"Gallery: {index}")
        if options.report:
            make_page(model, processor, rows, report, places).write(Path(options.report))
            say(f"Report: {options.report}")
    state.wait_for_everyone()
    return 0


__all__ = [
    "EvaluateOptions",
    "EvaluationReport",
    "ImageRow",
    "LINE_RATES",
    "METRICS",
    "add_pixels",
    "evaluate",
    "kind_of",
    "main",
    "make_gallery",
    "test_rows",
]


if __name__ == "__main__":
    sys.exit(main())
