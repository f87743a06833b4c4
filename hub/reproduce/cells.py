"""
Run one cell: fit as `anople fit` does, measure as `anople evaluate` does, and keep a JSON file of both.

A fit is shared by all cells that need the same one. Test photographs are opened only once its weights are on the disk.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.backbone_anople import name_of
from modeling_anople.evaluation import evaluate, test_rows
from modeling_anople.fewshot import sample_few_shot
from modeling_anople.metrics import mean_metrics
from modeling_anople.report import METRICS
from modeling_anople.sources import read_source, source_classes
from modeling_anople.training import main as fit

from .options import ReproduceOptions
from .tables import Cell
from .written_prompts import write_prompts


logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "scikit-learn")


def cell_settings(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """Return all that a cell's figure depends on."""
    own = {"fit": list(cell.fit), "changes": dict(cell.changes), "part": cell.part, "kind": cell.kind}
    steps = {} if cell.trained else {"max_steps": 0}
    return {**options.settings(), **own, **steps, "shots": cell.shots or options.shots, "seed": seed}


def cell_file(cell: Cell, seed: int, options: ReproduceOptions) -> Path:
    """Return where a cell is kept: another setting is another file, and rows of the same settings share one."""
    settings = cell_settings(cell, seed, options)
    folder = Path(options.output_dir) / "cells"
    if done := sorted(folder.glob(f"*-{_digest(settings)}.json")):
        return done[0]
    words = re.sub(r"\W+", "_", cell.name)[:40].strip("_")
    return folder / f"{words}-seed{seed}-{_digest(settings)}.json"


def _digest(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def run_cell(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """Return a cell's record: as it was kept, or fitted and measured now."""
    file = cell_file(cell, seed, options)
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    start = time.perf_counter()
    figures = _left_out(cell, seed, options) if cell.kind == "left_out" else _known(cell, seed, options)
    settings = cell_settings(cell, seed, options)
    record = {
        "cell": cell.name,
        "command": fit_command(cell, seed, options),
        **settings,
        **figures,
        "seconds": round(time.perf_counter() - start, 1),
        **provenance(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)  # a killed run leaves no half of a cell
    return record


def _known(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """Fit all products and measure them."""
    folder = _fit(cell, seed, options, options.classes)
    model, processor = _load(folder, cell, options)
    classes = _measure(model, processor, cell, options, options.classes)
    return _figures(classes, model.config.fit["files"])


def _left_out(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """For each product: fit the others, enrol it from its shots without a step, measure it alone."""
    names = options.classes or source_classes(options.data_root)
    if len(names) < 2:
        raise ValueError(f"{options.data_root} has only {names}: to leave one product out takes at least two.")
    classes, files = {}, {}
    for name in names:
        folder = _fit(cell, seed, options, [other for other in names if other != name])
        model, processor = _load(folder, cell, options)
        train = read_source(options.data_root, split="train", classes=[name])
        images = {row["path"]: row["image"] for row in train if row["label"] == 0}
        files[name] = sample_few_shot(list(images), cell.shots or options.shots, seed=seed, class_name=name)
        model.enroll(name, [images[path] for path in files[name]], processor=processor)
        classes |= _measure(model, processor, cell, options, [name])
    return _figures(classes, files)


def _fit(cell: Cell, seed: int, options: ReproduceOptions, classes: list[str] | None) -> Path:
    """Fit one detector, unless another cell has done so."""
    chosen = fit_words(cell, seed, options, options.clip)
    chosen += ["--classes", *classes] if classes else []
    folder = Path(options.output_dir) / "fits" / _digest({"data": os.path.abspath(options.data_root), "fit": chosen})
    if not (folder / "processor_config.json").exists():  # written last
        fit(["--data_root", options.data_root, "--output_dir", str(folder), *chosen, "--overwrite"])
    return folder


def fit_words(cell: Cell, seed: int, options: ReproduceOptions, clip: str) -> list[str]:
    """Write the options with which `anople fit` makes a cell's detector."""
    steps = options.max_steps if cell.trained else 0
    values = {"clip": clip, "seed": seed, "shots": cell.shots or options.shots, "max_steps": steps}
    values |= {"batch_size": options.batch_size, "monitor_images": 0, "save_steps": max(1, steps)}
    return [*(word for name, value in values.items() for word in (f"--{name}", str(value))), *cell.fit]


def fit_command(cell: Cell, seed: int, options: ReproduceOptions) -> str:
    """Write the command of a cell's fit, folders by their names alone; what is left out then is told by its settings."""
    return f"anople fit {name_of(options.data_root)} {' '.join(fit_words(cell, seed, options, name_of(options.clip)))}"


def _load(folder: Path, cell: Cell, options: ReproduceOptions) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    model, processor = AnoPLeModel.from_pretrained(folder, **cell.changes), AnoPLeProcessor.from_pretrained(folder)
    if cell.kind == "hand_written":
        write_prompts(model, processor)
    return model.to("cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu"), processor


def _measure(
    model: AnoPLeModel, processor: AnoPLeProcessor, cell: Cell, options: ReproduceOptions, classes: list[str] | None
) -> dict[str, dict]:
    rows = test_rows(options.data_root, model.config.class_names, classes)
    if options.test_images:
        rows = rows.select(thin_rows(rows["class_name"][:], rows["label"][:], options.test_images))
    report = evaluate(model, processor, rows, part=cell.part, evaluation_size=options.evaluation_size, progress=False)
    kept = (*METRICS, "normal", "anomalous")
    return {name: {key: entry[key] for key in kept} for name, entry in report.classes.items()}


def thin_rows(names: list[str], labels: list[int], most: int) -> list[int]:
    """Keep at most `most` good and `most` defective rows of each class, evenly spaced."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        groups.setdefault((name, bool(label)), []).append(row)
    return sorted(
        rows[place * len(rows) // min(most, len(rows))]
        for rows in groups.values()
        for place in range(min(most, len(rows)))
    )


def _figures(classes: dict[str, dict], files: dict[str, list[str]]) -> dict:
    figures = {name: {key: entry[key] for key in METRICS} for name, entry in classes.items()}
    return {"mean": mean_metrics(figures), "products": classes, "files": files}


def provenance() -> dict:
    """Return date, commit and versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


@functools.cache
def commit() -> str | None:
    """Return the commit of the checkout when the program first asked, with `-dirty` where tracked files differ; None outside of git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


__all__ = ["cell_file", "cell_settings", "commit", "run_cell", "thin_rows"]
