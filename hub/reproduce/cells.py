"""
Run one cell: fit as `anople fit` does, measure as `anople evaluate` does, and keep a record of both.

A fit is shared by all cells that need the same one. Test photographs are opened only once its weights are on the disk.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.backbone_anople import load_encoder_config, name_of
from modeling_anople.data import read_source, source_classes
from modeling_anople.enrollment_anople import enroll, forget
from modeling_anople.evaluation import METRICS, evaluate, test_rows
from modeling_anople.evaluation.metrics import mean_metrics
from modeling_anople.prompting_anople import class_words, encode_text
from modeling_anople.runtime.loading import computing_device
from modeling_anople.training import main as fit
from modeling_anople.training.few_shot import sample_few_shot

from .options import ReproduceOptions, clip_weights
from .tables import LAST_BLOCK, Cell


# --- Class embeddings from written prompts: the text side of WinCLIP, for comparison with learned ones ---


# States and frames as in WinCLIP's compositional ensemble, in words of our own.
NORMAL = ("{}", "perfect {}", "flawless {}", "intact {}", "{} without a defect", "{} without damage")
ABNORMAL = ("damaged {}", "{} with a flaw", "{} with a defect", "broken {}", "{} with damage")
FRAMES = ("a photo of a {}.", "a close-up photo of a {}.", "a bright photo of the {}.", "a dark photo of the {}.")


@torch.inference_mode()
def write_prompts(model: AnoPLeModel, processor: AnoPLeProcessor) -> None:
    """Replace a detector's class embeddings by the mean embedding of all written prompts of each class and branch."""
    for product in model.products:
        rows = []
        for states in (NORMAL, ABNORMAL):
            texts = [frame.format(state.format(class_words(product.name))) for state in states for frame in FRAMES]
            ids = processor.tokenizer(texts, padding=True, return_tensors="pt").input_ids.to(model.device)
            vectors = torch.nn.functional.normalize(encode_text(model.clip, ids), dim=-1)
            rows.append(torch.nn.functional.normalize(vectors.mean(0), dim=-1))
        product.text_embeddings = torch.stack(rows).to(product.text_embeddings)  # (2, width)


# --- What a principal subspace leaves over, for comparison with the nearest remembered patch ---


KEPT_VARIANCE = 0.99


class SubspaceModel(AnoPLeModel):
    """
    A detector whose memory answers how far a patch lies off the subspace of the remembered ones.

    As in SubspaceAD (CVPR 2026): of each product the principal directions that hold 99 % of the variance, of patches that are
    the mean over layers; the squared length of what they leave over.
    """

    @torch.no_grad()
    def memory_maps(
        self, features: Tensor, class_ids: Tensor | None, exclude: tuple[int, slice] | None = None
    ) -> Tensor:
        """Measure patches (layers, batch, patches, width): squared lengths (batch, grid, grid), within 0 and 1."""
        if exclude is not None:  # thresholds are fitted to distances, and not looked at here
            return super().memory_maps(features, class_ids, exclude)
        side, rest = self.config.memory_grid_size, []
        for patches, class_id in zip(features.mean(0), class_ids.tolist(), strict=True):
            center, directions = self.subspace(class_id)
            off = patches - center
            rest.append((off - off @ directions @ directions.T).square().sum(1) / 4)
        return torch.stack(rest).clamp(0, 1).unflatten(1, (side, side))

    def subspace(self, class_id: int) -> tuple[Tensor, Tensor]:
        """Return the mean (width,) of a product's patches, and their principal directions (width, count)."""
        known = vars(self).setdefault("_subspaces", {})
        if class_id not in known:
            patches = self.products[class_id].bank.vectors.mean(0)
            center = patches.mean(0)
            _, lengths, directions = torch.linalg.svd(patches - center, full_matrices=False)
            held = lengths.square().cumsum(0) / lengths.square().sum()
            known[class_id] = center, directions[: int((held < KEPT_VARIANCE).sum()) + 1].T
        return known[class_id]


# --- Fit what a cell asks for and measure it; test photographs are opened only once its weights are on the disk ---


def measure_cell(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """Return a cell's figures: `mean` over products, those of all `products`, and the `files` of their shots."""
    if cell.kind == "left_out":
        return _left_out(cell, seed, options)
    if cell.kind == "transfer":
        return _transferred(cell, seed, options)
    classes, files = {}, {}
    for root in options.transfer_root if cell.kind == "target" else [options.data_root]:
        chosen = None if cell.kind == "target" else options.classes
        model, processor = _load(fit_cell(cell, seed, options, root, chosen), cell, options)
        classes |= _measure(model, processor, cell, options, root, chosen)
        files |= model.config.fit["files"]
    return _figures(classes, files)


def _left_out(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """For each product: fit the others, enroll it from its shots without a step, measure it alone."""
    names = options.classes or source_classes(options.data_root)
    if len(names) < 2:
        raise ValueError(f"{options.data_root} has only {names}: to leave one product out takes at least two.")
    classes, files = {}, {}
    for name in names:
        folder = fit_cell(cell, seed, options, options.data_root, [other for other in names if other != name])
        model, processor = _load(folder, cell, options)
        files[name] = _enroll(model, processor, name, options.data_root, cell.shots or options.shots, seed)
        classes |= _measure(model, processor, cell, options, options.data_root, [name])
    return _figures(classes, files)


def _transferred(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """Fit the products, enroll those of other sets from their shots without a step, and measure these."""
    model, processor = _load(fit_cell(cell, seed, options, options.data_root, options.classes), cell, options)
    classes, files = {}, {}
    for root in options.transfer_root:
        names = source_classes(root)
        if twice := sorted(set(names) & files.keys()):
            raise ValueError(
                f"Two sets of --transfer_root have products named {', '.join(twice)}: give one at a time."
            )
        for name in names:
            files[name] = _enroll(model, processor, name, root, cell.shots or options.shots, seed)
        classes |= _measure(model, processor, cell, options, root, names)
    return _figures(classes, files)


def _enroll(model: AnoPLeModel, processor: AnoPLeProcessor, name: str, root: str, shots: int, seed: int) -> list[str]:
    """Enroll a product from the shots that a fit would take, instead of one of that name, and return their names."""
    train = read_source(root, split="train", classes=[name])
    images = {row["path"]: row["image"] for row in train if row["label"] == 0}
    files = sample_few_shot(list(images), shots, seed=seed, class_name=name)
    if model.config.class_names == [name]:
        raise ValueError(f"{root} has a product named like the only one that was fitted, {name}: rename its folder.")
    if name in model.config.class_names:  # another set's
        forget(model, processor, name)
    enroll(model, processor, name, [images[path] for path in files])
    return files


def fit_cell(cell: Cell, seed: int, options: ReproduceOptions, root: str, classes: list[str] | None) -> Path:
    """Fit one detector, unless another cell has done so."""
    # the folder is named by all that decides the weights, so that cells of other tables find it
    chosen = fit_words(cell, seed, options, options.clip, options.memory_encoder)
    chosen += ["--classes", *classes] if classes else []
    sources = {"data": os.path.abspath(root), "clip_weights": clip_weights(options.clip)} | _encoder_of(cell, options)
    key = json.dumps({**sources, "fit": chosen}, sort_keys=True)
    folder = Path(options.output_dir) / "fits" / hashlib.sha256(key.encode()).hexdigest()[:12]
    if not (folder / "processor_config.json").exists():  # written last
        if options.num_workers is not None:  # which changes nothing in a fit
            chosen += ["--num_workers", str(options.num_workers)]
        fit(["--data_root", root, "--output_dir", str(folder), *chosen, "--overwrite"])
    return folder


def _encoder_of(cell: Cell, options: ReproduceOptions) -> dict:
    """Tell a cell's encoder by its name and a hash of its weights; nothing where it has none."""
    if not cell.encoder:
        return {}
    encoder = options.memory_encoder
    return {"memory_encoder": name_of(encoder), "memory_encoder_weights": clip_weights(encoder)}


def fit_words(cell: Cell, seed: int, options: ReproduceOptions, clip: str, encoder: str | None = None) -> list[str]:
    """Write the options with which `anople fit` makes a cell's detector."""
    steps = options.max_steps if cell.trained else 0
    values = {"recipe": "paper", "clip": clip, "seed": seed, "shots": cell.shots or options.shots, "max_steps": steps}
    values |= {"batch_size": options.batch_size, "monitor_images": 0, "save_steps": max(1, steps)}
    if cell.per_view:
        values["view_pattern"] = options.view_pattern
    if options.mixed_precision != "no":
        values["mixed_precision"] = options.mixed_precision
    own = list(cell.fit)
    if cell.encoder:
        values["memory_encoder"] = encoder
        if LAST_BLOCK in own:
            last = load_encoder_config(options.memory_encoder).num_hidden_layers - 1
            own[own.index(LAST_BLOCK)] = str(last)
    return [*(word for name, value in values.items() for word in (f"--{name}", str(value))), *own]


def fit_command(cell: Cell, seed: int, options: ReproduceOptions) -> str:
    """Write the command of a cell's fit, folders by their names alone; what is left out then is told by its settings."""
    root = options.transfer_root[0] if cell.kind == "target" else options.data_root
    encoder = options.memory_encoder and name_of(options.memory_encoder)
    return f"anople fit {name_of(root)} {' '.join(fit_words(cell, seed, options, name_of(options.clip), encoder))}"


def _load(folder: Path, cell: Cell, options: ReproduceOptions) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    kind = SubspaceModel if cell.kind == "subspace" else AnoPLeModel
    model, processor = kind.from_pretrained(folder, **cell.changes), AnoPLeProcessor.from_pretrained(folder)
    if cell.kind == "hand_written":
        write_prompts(model, processor)
    return model.to(computing_device(options.device)), processor


def _measure(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    cell: Cell,
    options: ReproduceOptions,
    root: str,
    classes: list[str] | None,
) -> dict[str, dict]:
    """Return the figures of each product."""
    rows = test_rows(root, model.config.class_names, classes)
    if options.test_images:
        rows = rows.select(thin_rows(rows["class_name"][:], rows["label"][:], options.test_images))
    if cell.defects == "together":
        return _evaluate(model, processor, cell, options, rows)
    return {
        name: _over_defects(_each_defect(model, processor, cell, options, rows, name), cell.defects)
        for name in sorted(set(rows["class_name"][:]))
    }


def _evaluate(
    model: AnoPLeModel, processor: AnoPLeProcessor, cell: Cell, options: ReproduceOptions, rows: Dataset
) -> dict[str, dict]:
    report = evaluate(model, processor, rows, part=cell.part, evaluation_size=options.evaluation_size, progress=False)
    kept = (*METRICS, "normal", "anomalous")
    return {name: {key: entry[key] for key in kept} for name, entry in report.classes.items()}


def _each_defect(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    cell: Cell,
    options: ReproduceOptions,
    rows: Dataset,
    name: str,
) -> dict[str, dict]:
    """Measure each kind of defect of a product against its good photographs."""
    owners, defects, labels = rows["class_name"][:], rows["defect"][:], rows["label"][:]
    of_class = [number for number, owner in enumerate(owners) if owner == name]
    found = {}
    for defect in sorted({defects[number] for number in of_class if labels[number]}):
        chosen = [number for number in of_class if not labels[number] or defects[number] == defect]
        found[defect] = _evaluate(model, processor, cell, options, rows.select(chosen))[name]
    return found


def _over_defects(found: dict[str, dict], how: str) -> dict:
    """Take the mean of each figure over kinds of defect, or the kind with the lowest image AUROC; keep all."""
    if not found:
        raise ValueError("A product has no defective test photograph: the table defects needs some.")
    kinds = {
        name: {key: entry[key] for key in ("image_auroc", "pixel_auroc", "anomalous")} for name, entry in found.items()
    }
    if how == "worst":
        name = min(found, key=lambda kind: found[kind]["image_auroc"])
        return {**found[name], "defect": name, "defects": kinds}
    mean = {key: _mean([entry[key] for entry in found.values()]) for key in METRICS}
    counts = {
        "normal": next(iter(found.values()))["normal"],
        "anomalous": sum(entry["anomalous"] for entry in found.values()),
    }
    return {**mean, **counts, "defects": kinds}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


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


# --- A cell's record: where it is kept, and when it is made ---


logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "scikit-learn")
# what a record holds beside the settings that make its cell another one
FOUND = {"cell", "command", "mean", "products", "files", "seconds", "date", "commit", "versions"}


def cell_settings(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """Return all that a cell's figure depends on."""
    own = {"fit": list(cell.fit), "changes": dict(cell.changes), "part": cell.part, "kind": cell.kind}
    if cell.defects != "together":
        own["defects"] = cell.defects
    if cell.per_view:
        own["view_pattern"] = options.view_pattern
    if cell.kind in ("transfer", "target"):
        own["transfer"] = [name_of(root) for root in options.transfer_root or ()]
    own |= _encoder_of(cell, options)
    steps = {} if cell.trained else {"max_steps": 0}
    return {**options.settings(), **own, **steps, "shots": cell.shots or options.shots, "seed": seed}


def cell_file(cell: Cell, seed: int, options: ReproduceOptions) -> Path:
    """Return where a cell is kept: another setting is another file, and rows of the same settings share one."""
    settings = cell_settings(cell, seed, options)
    folder = Path(options.output_dir) / "cells"
    if done := sorted(folder.glob(f"*-{_digest(settings)}.json")):
        return done[0]
    return _new_file(folder, cell.name, settings)


def _new_file(folder: Path, name: str, settings: dict) -> Path:
    words = re.sub(r"\W+", "_", name)[:40].strip("_")
    return folder / f"{words}-seed{settings['seed']}-{_digest(settings)}.json"


def unpack_records(folder: Path) -> None:
    """Make the files of cells anew from the records that a folder's tables hold, where it has come without them."""
    if (folder / "cells").exists():
        return
    for table in sorted(folder.glob("*.json")):
        for record in json.loads(table.read_text(encoding="utf-8")).get("records", ()):
            settings = {key: value for key, value in record.items() if key not in FOUND}
            _write_record(_new_file(folder / "cells", record["cell"], settings), record)


def _digest(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def run_cell(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """Return a cell's record: as it was kept, or fitted and measured now."""
    file = cell_file(cell, seed, options)
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    start = time.perf_counter()
    figures = measure_cell(cell, seed, options)
    settings = cell_settings(cell, seed, options)
    record = {
        "cell": cell.name,
        "command": fit_command(cell, seed, options),
        **settings,
        **figures,
        "seconds": round(time.perf_counter() - start, 1),
        **provenance(),
    }
    _write_record(file, record)
    return record


def _write_record(file: Path, record: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)  # a killed run leaves no half of a cell


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


__all__ = [
    "cell_file",
    "cell_settings",
    "commit",
    "fit_cell",
    "fit_command",
    "measure_cell",
    "run_cell",
    "thin_rows",
    "unpack_records",
    "write_prompts",
]
