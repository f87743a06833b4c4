"""Options of `python -m hub.reproduce`, and what of them makes two cells the same."""

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modeling_anople.backbone_anople import MINI_CLIP, clip_source, name_of
from modeling_anople.runtime.loading import computing_device
from modeling_anople.runtime.outputs import OVERWRITE


@dataclass
class ReproduceOptions:
    """Options of `python -m hub.reproduce TABLE`."""

    data_root: str = field(metadata={"help": "The data set, in any form that `anople fit` reads."})
    output_dir: str = field(default="out/reproduce", metadata={"help": "Cells, tables and plots go here."})
    clip: str = field(default=MINI_CLIP, metadata={"help": "Folder or Hub id of a CLIPModel, or mini."})
    data_set: Literal["mvtec", "visa", "real_iad", "other"] = field(
        default="other",
        metadata={
            "help": "Which of the paper's columns the figures are compared with, if the data are that whole set."
        },
    )
    shots: int = field(default=1, metadata={"help": "Good photographs per product, where a table does not fix them."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One fit and figure for each."})
    max_steps: int = field(default=2000, metadata={"help": "Steps of each fit."})
    batch_size: int = field(default=8, metadata={"help": "Photographs per step, times the views."})
    evaluation_size: int = field(default=400, metadata={"help": "Side at which maps are measured; 256 for Real-IAD."})
    classes: list[str] | None = field(default=None, metadata={"help": "Products to take; by default all."})
    test_images: int = field(
        default=0,
        metadata={
            "help": "The most good and the most defective photographs tested of each class, evenly spaced; 0: all."
        },
    )
    transfer_root: list[str] | None = field(
        default=None,
        metadata={"help": "Sets that a detector of the products is taken to; the table transfer needs it."},
    )
    view_pattern: str | None = field(
        default=None,
        metadata={"help": "As for `anople fit`, _(C[1-5])_ for Real-IAD; the table views needs it."},
    )
    memory_encoder: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id, as for `anople fit`; rows on an encoder of the memory's own need it."},
    )
    cells: int = field(default=0, metadata={"help": "Run only the first so many cells of each table; 0: all."})
    overwrite: bool = field(default=False, metadata={"help": OVERWRITE})
    collect: bool = field(
        default=False, metadata={"help": "Run nothing; write the tables of the cells that are done."}
    )
    mixed_precision: Literal["no", "bf16"] = field(
        default="no", metadata={"help": "Precision of fitting, as for `anople fit`."}
    )
    num_workers: int | None = field(
        default=None, metadata={"help": "Processes that prepare photographs, as for `anople fit`."}
    )
    device: str = field(default="auto", metadata={"help": "Where cells are measured: auto, cpu, cuda, ..."})

    def __post_init__(self):
        for name in ("shots", "batch_size", "evaluation_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("max_steps", "test_images", "cells"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must not be negative, got {getattr(self, name)}.")
        computing_device(self.device)
        if not self.seeds:
            raise ValueError("--seeds is empty: give at least one, for instance --seeds 0 1 2.")

    @property
    def given(self) -> list[str]:
        """The options that tables may need and that were given."""
        return [name for name in ("transfer_root", "view_pattern", "memory_encoder") if getattr(self, name)]

    def settings(self) -> dict:
        """Return what a cell's figure depends on, folders by their names alone."""
        kept = ("data_set", "max_steps", "batch_size", "evaluation_size", "classes", "test_images")
        return {
            "data": name_of(self.data_root),
            "clip": name_of(self.clip),
            "clip_weights": clip_weights(self.clip),
            **{name: getattr(self, name) for name in kept},
            **({} if self.mixed_precision == "no" else {"mixed_precision": self.mixed_precision}),
        }

    def command(self, table: str) -> str:
        """Write the command that repeats a table."""
        words = [f"--data_set {self.data_set}", f"--clip {name_of(self.clip)}", f"--shots {self.shots}"]
        words += [f"--seeds {' '.join(map(str, self.seeds))}", f"--max_steps {self.max_steps}"]
        words += [f"--batch_size {self.batch_size}", f"--evaluation_size {self.evaluation_size}"]
        words += [f"--test_images {self.test_images}"] if self.test_images else []
        words += [f"--transfer_root {' '.join(map(name_of, self.transfer_root))}"] if self.transfer_root else []
        words += [f"--view_pattern '{self.view_pattern}'"] if self.view_pattern else []
        words += [f"--memory_encoder {name_of(self.memory_encoder)}"] if self.memory_encoder else []
        words += [f"--mixed_precision {self.mixed_precision}"] if self.mixed_precision != "no" else []
        words += [f"--classes {' '.join(self.classes)}"] if self.classes else []
        return f"python -m hub.reproduce {table} --data_root {name_of(self.data_root)} {' '.join(words)}"


@functools.cache
def clip_weights(clip: str) -> str | None:
    """Hash the weights of a CLIP, or an encoder, on disk (of `mini` they change with the package); `None` of one on the Hub."""
    digest = hashlib.sha256()
    for path in (files := sorted(Path(clip_source(clip)).glob("*.safetensors"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12] if files else None


__all__ = ["ReproduceOptions", "clip_weights"]
