"""Options of a fit, and presets of them."""

import argparse
import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import HfArgumentParser

from ..backbone_anople import MINI_CLIP
from ..configuration_anople import AnoPLeConfig
from ..runtime import parse_whole
from ..tiling_anople import Rotations


# --- Presets of options: the paper's, as faithfully as it is known, and what did better where we could choose ---


Recipe = Literal["paper", "best"]

# What each change did to good photographs with drawn defects: `python -m hub.benchmarks.memory_copies`, and
# `python -m hub.reproduce recipe` on a set of `hub.reproduce.drawn_defects`.
RECIPES: dict[str, dict[str, object]] = {
    "paper": {},
    "best": {"memory_rotations": "eighth_turns"},
}


# --- Command line options, made from dataclasses, so that an option has one home ---


@dataclass
class TrainingConfig:
    """Options of a fit; every field is a command line option."""

    data_root: str = field(
        metadata={"help": "Folder with one sub-folder per product, a parquet file or a Hub dataset."}
    )
    output_dir: str = field(default="out/anople", metadata={"help": "Where the detector is written."})
    clip: str = field(
        default=MINI_CLIP,
        metadata={"help": "Folder or Hub id of a CLIPModel, or mini, the small one that the package carries."},
    )
    clip_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the CLIP, where it is a Hub id."}
    )
    memory_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of another vision transformer, such as facebook/dinov2-small, whose patches the memory "
            "holds; by default those of the CLIP."
        },
    )
    memory_encoder_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the memory encoder, where it is a Hub id."}
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Products to take; by default all."})
    recipe: Recipe = field(
        default="paper",
        metadata={
            "help": "A preset, which single options override: paper, as faithfully as it is known, or best, which did "
            "better on good photographs with drawn defects."
        },
    )
    shots: int = field(default=4, metadata={"help": "Good photographs per product."})
    view_pattern: str | None = field(
        default=None,
        metadata={
            "help": "Take so many photographs of each view: a regular expression whose group tells the view by the file's "
            "name, such as _(C[1-5])_ for Real-IAD."
        },
    )
    seed: int = field(default=0, metadata={"help": "Of the choice of photographs and of all training draws."})
    max_steps: int = field(default=2000, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=8, metadata={"help": "Photographs per step over all processes, times the views."})
    prompt_learning_rate: float = field(default=1e-3, metadata={"help": "Of prompts, projections and prefix."})
    decoder_learning_rate: float = field(
        default=3e-3, metadata={"help": "Of the decoder, which starts from nothing and wants a higher rate."}
    )
    weight_decay: float = field(default=1e-4, metadata={"help": "Of AdamW."})
    warmup_ratio: float = field(default=0.05, metadata={"help": "Share of the steps with a rising learning rate."})
    final_learning_rate_ratio: float = field(default=0.01, metadata={"help": "Where the cosine ends."})
    max_gradient_norm: float = field(default=1.0, metadata={"help": "Longer gradients are shortened to this."})
    pixel_anomaly: Literal["perlin", "cut_paste", "both", "none"] = field(
        default="perlin", metadata={"help": "Pseudo-anomaly in pixel space; none trains on latent ones alone."}
    )
    normal_turns: Rotations = field(
        default="none", metadata={"help": "Turn training photographs, for products that lie any way round."}
    )
    max_false_alarm_rate: float = field(default=0.05, metadata={"help": "Share of good photographs above the line."})
    white_value: float | None = field(
        default=None, metadata={"help": "White of 16-bit and float grayscale photographs; 4095 for a 12-bit camera."}
    )
    ignore_masks: str | None = field(
        default=None,
        metadata={
            "help": "Folder with a picture NAME.png per product that wants one; what is not black does not count."
        },
    )
    mixed_precision: Literal["no", "bf16"] = field(default="no", metadata={"help": "Precision of the forward pass."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Parts in which a batch is computed."})
    num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that prepare photographs; by default none for a CPU, up to 8 for a GPU."},
    )
    monitor_images: int = field(
        default=16,
        metadata={"help": "Held-back photographs that check the decoder, at least one per product; 0 for none."},
    )
    save_steps: int = field(default=100, metadata={"help": "Steps between two states to resume from."})
    log_steps: int = field(default=10, metadata={"help": "Steps between two lines of training_log.jsonl."})
    report_to: Literal["none", "tensorboard", "trackio"] = field(
        default="none", metadata={"help": "Where to log, too."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished fit in output_dir."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a detector that output_dir already holds."})

    def __post_init__(self):
        for name in ("shots", "batch_size", "gradient_accumulation_steps", "save_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.max_false_alarm_rate < 0.5:
            raise ValueError(
                f"max_false_alarm_rate must lie within 0 and 0.5, got {self.max_false_alarm_rate}: it is a share, 0.05 is 5 %."
            )
        for name in ("max_steps", "num_workers"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.view_pattern is not None:
            try:
                groups = re.compile(self.view_pattern).groups
            except re.error as error:
                raise ValueError(f"view_pattern {self.view_pattern!r} is no regular expression: {error}.") from error
            if groups != 1:
                raise ValueError(
                    f"view_pattern {self.view_pattern!r} has {groups} groups: give it one, as in _(C[1-5])_."
                )
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into {self.gradient_accumulation_steps} equal parts: choose "
                "a multiple of gradient_accumulation_steps."
            )


# Kept by the program, not chosen on a command line.
KEPT_FIELDS = {
    *("clip_config", "products", "pooled_threshold", "fit", "clip_source", "adapter_clip_sha256", "history"),
    *(
        "memory_encoder",
        "memory_encoder_source",
        "memory_encoder_sha256",
        "image_mean",
        "image_std",
        "custom_pipelines",
    ),
}


TYPES_ON_COMMAND_LINE = {int | float: float, list[int] | Literal["middle"] | None: list[int] | None}


def model_options() -> type:
    """Make a dataclass of all fields of [`AnoPLeConfig`] that a person may choose, with their help texts."""
    own = AnoPLeConfig.__annotations__.keys() - KEPT_FIELDS
    helps = field_helps(AnoPLeConfig.__doc__)
    fields = []
    for entry in dataclasses.fields(AnoPLeConfig):
        if entry.name in own:
            default = None if entry.default is dataclasses.MISSING else entry.default
            kept = dataclasses.field(default=default, metadata={"help": helps.get(entry.name, "")})
            fields.append((entry.name, TYPES_ON_COMMAND_LINE.get(entry.type, entry.type), kept))
    return dataclasses.make_dataclass("ModelOptions", fields)


def field_helps(docstring: str) -> dict[str, str]:
    """Read "name (`type`, ...):" entries of a docstring."""
    entries = re.split(r"^        (?=\w[\w, ]* \()", docstring, flags=re.MULTILINE)[1:]
    helps = {}
    for entry in entries:
        names, text = entry.split(" (", 1)[0], entry.partition("):")[2]
        text = " ".join(text.split()).replace("%", "%%")
        helps.update({name.strip(): text for name in names.split(",")})
    return helps


def parse_options(program: str, options: type, model: type, arguments: list[str] | None) -> tuple[Any, dict]:
    """
    Parse a command line into `options` and the model options that were changed; `--recipe` sets the defaults of both.

    Returns:
        The options, and a dict of the fields of [`AnoPLeConfig`] that differ from their defaults.
    """
    parser = HfArgumentParser([options, model], prog=program, allow_abbrev=False)
    preset = argparse.ArgumentParser(program, add_help=False, allow_abbrev=False)
    preset.add_argument("--recipe", default="paper")
    recipe = preset.parse_known_args(arguments)[0].recipe
    parser.set_defaults(**RECIPES.get(recipe, {}))  # the parser itself refuses others
    parsed, chosen = parse_whole(parser, arguments)
    defaults = model()
    values = dataclasses.asdict(chosen).items()
    return parsed, {name: value for name, value in values if value != getattr(defaults, name)}


__all__ = [
    "RECIPES",
    "Recipe",
    "TrainingConfig",
    "field_helps",
    "model_options",
    "parse_options",
]
