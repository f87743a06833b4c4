"""
Run one cell: fit as `anople fit` does, measure as `anople evaluate` does, and keep a JSON file of both.

A fit is shared by all cells that need the same one.
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

from modeling_anople.backbone_anople import name_of

from .measuring import fit_command, measure_cell
from .options import ReproduceOptions
from .tables import Cell


logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "scikit-learn")


def cell_settings(cell: Cell, seed: int, options: ReproduceOptions) -> dict:
    """Return all that a cell's figure depends on."""
    own = {"fit": list(cell.fit), "changes": dict(cell.changes), "part": cell.part, "kind": cell.kind}
    if cell.defects != "together":
        own["defects"] = cell.defects
    if cell.per_view:
        own["view_pattern"] = options.view_pattern
    if cell.kind in ("transfer", "target"):
        own["transfer"] = [name_of(root) for root in options.transfer_root or ()]
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
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)  # a killed run leaves no half of a cell
    return record


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


__all__ = ["cell_file", "cell_settings", "commit", "run_cell"]
