"""Options of a fit, and presets of them."""

import argparse
import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from ..backbone_anople import MINI_CLIP
from ..calibration_anople import check_rate
from ..configuration_anople import RANGES, AnoPLeConfig, check_ranges
from ..data import DataOptions
from ..images_anople import WHITE_RANGE
from ..runtime import LOOKS, MACHINE, TABLES, parse_whole
from ..runtime.parsing import OptionsParser
from ..tiling_anople import Rotations


# --- Presets of options: the paper's, as faithfully as it is known, and what did better where we could choose ---


Recipe = Literal["standard", "paper", "best"]

# What each change did to good photographs with drawn defects: `python -m hub.benchmarks.memory_copies`, and
# `python -m hub.reproduce recipe` on a set of `hub.reproduce.drawn_defects`.
WEIGHTED = {"map_fusion": "weighted", "image_fusion": "weighted"}  # see training.finishing.measure_parts
RECIPES: dict[str, dict[str, object]] = {
    "standard": WEIGHTED,
    "paper": {},
    "best": {**WEIGHTED, "memory_rotations": "eighth_turns"},
}
# What a recipe also takes where the memory has an encoder of its own.
ENCODER_RECIPES: dict[str, dict[str, object]] = {"best": {"memory_image_size": 448, "memory_limit": 4096}}


# The least and the greatest value of every number of a fit, both allowed; help texts name them.
FIT_RANGES = {
    "shots": (1, 100_000),
    "seed": (0, 2**32 - 1),
    "max_steps": (0, 1_000_000_000),
    "batch_size": (1, 65_536),
    "prompt_learning_rate": (0, 10),
    "decoder_learning_rate": (0, 10),
    "weight_decay": (0, 10),
    "warmup_ratio": (0, 1),
    "final_learning_rate_ratio": (0, 1),
    "max_gradient_norm": (1e-06, 1_000_000),
    "white_value": WHITE_RANGE,
    "gradient_accumulation_steps": (1, 65_536),
    "num_workers": (0, 256),
    "monitor_images": (0, 100_000),
    "save_steps": (1, 1_000_000_000),
    "log_steps": (1, 1_000_000_000),
}


# --- Headings of the help. What has none stands on top: the options that people use first ---

FOUNDED = "Of the paper: [K] known, [I] inferred from its relatives, [U] unknown and therefore our choice."
BACKBONE, TRAINING = "the backbone", "training"
# Options of the model, by heading; LOOKS has those that say how photographs are looked at.
MODEL_HEADINGS = {
    "model: prompts and views": (
        *("coupling", "coupling_projection", "prompt_length", "prompt_depth", "prompt_std", "prefix", "view_grid"),
        *("min_positive_fraction", "temperature"),
    ),
    "model: decoder": ("decoder_head", "decoder_widths", "decoder_layers"),
    "model: losses": (
        *("pixel_loss_weight", "image_loss_weight", "alignment_loss_weight", "focal_gamma", "alignment_detach"),
        *("alignment_warmup", "latent_noise"),
    ),
    "model: memory": (
        *("memory_image_size", "memory_image_mean", "memory_image_std", "memory_layers", "memory_rotations"),
        *("memory_limit", "memory_chunk_size"),
    ),
    "model: fusion of the parts": ("map_fusion", "image_map", "image_fusion", "smoothing"),
    "model: products and threshold": (*("class_identity", "class_prediction", "unknown_product_rate", "threshold"),),
    LOOKS: ("image_size", "tiling"),
}


# --- Command line options, made from dataclasses, so that an option has one home ---


@dataclass
class TrainingConfig(DataOptions):
    """Options of a fit; every field is a command line option."""

    data_root: str = field(
        metadata={
            "help": "The same as DATA: a folder with one sub-folder per product, a parquet file or a Hub dataset."
        }
    )
    output_dir: str = field(default="out/anople", metadata={"help": "Where the detector is written."})
    clip: str = field(
        default=MINI_CLIP,
        metadata={"help": "Folder or Hub id of a CLIPModel, or mini, the small one that the package carries."},
    )
    clip_revision: str | None = field(
        default=None,
        metadata={"heading": BACKBONE, "help": "Branch, tag or commit of the CLIP, where it is a Hub id."},
    )
    memory_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of another vision transformer, such as facebook/dinov2-small, whose patches the memory "
            "holds; by default those of the CLIP."
        },
    )
    memory_encoder_revision: str | None = field(
        default=None,
        metadata={"heading": BACKBONE, "help": "Branch, tag or commit of the memory encoder, where it is a Hub id."},
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Products to take; by default all."})
    recipe: Recipe = field(
        default="standard",
        metadata={
            "help": "A preset, which single options override: standard, the paper's with its parts weighed by what each finds; "
            "paper, as faithfully as it is known; or best, which also remembers turned photographs, looks at 448 px through a memory "
            "encoder, and takes longer."
        },
    )
    shots: int = field(default=4, metadata={"help": "Good photographs per product, 1 to 100000."})
    view_pattern: str | None = field(
        default=None,
        metadata={
            "heading": TABLES,
            "help": "Take so many photographs of each view: a regular expression whose group tells the view by the file's "
            "name, such as _(C[1-5])_ for Real-IAD.",
        },
    )
    seed: int = field(
        default=0, metadata={"help": "Of the choice of photographs and of all training draws, 0 to 4294967295."}
    )
    max_steps: int = field(default=2000, metadata={"help": "Optimizer steps, 0 to 1000000000."})
    batch_size: int = field(
        default=8,
        metadata={
            "heading": TRAINING,
            "help": "Photographs per step over all processes, times the views, 1 to 65536.",
        },
    )
    prompt_learning_rate: float = field(
        default=1e-3, metadata={"heading": TRAINING, "help": "Of prompts, projections and prefix, 0 to 10."}
    )
    decoder_learning_rate: float = field(
        default=3e-3,
        metadata={
            "heading": TRAINING,
            "help": "Of the decoder, which starts from nothing and wants a higher rate, 0 to 10.",
        },
    )
    weight_decay: float = field(default=1e-4, metadata={"heading": TRAINING, "help": "Of AdamW, 0 to 10."})
    warmup_ratio: float = field(
        default=0.05, metadata={"heading": TRAINING, "help": "Share of the steps with a rising learning rate, 0 to 1."}
    )
    final_learning_rate_ratio: float = field(
        default=0.01, metadata={"heading": TRAINING, "help": "Where the cosine ends, 0 to 1."}
    )
    max_gradient_norm: float = field(
        default=1.0,
        metadata={"heading": TRAINING, "help": "Longer gradients are shortened to this, 1e-06 to 1000000."},
    )
    pixel_anomaly: Literal["perlin", "cut_paste", "both", "none"] = field(
        default="perlin",
        metadata={"heading": TRAINING, "help": "Pseudo-anomaly in pixel space; none trains on latent ones alone."},
    )
    normal_turns: Rotations = field(
        default="none",
        metadata={"heading": TRAINING, "help": "Turn training photographs, for products that lie any way round."},
    )
    max_false_alarm_rate: float = field(
        default=0.05, metadata={"help": "Share of good photographs above the line, from 0.0001 to below 0.5."}
    )
    white_value: float | None = field(
        default=None,
        metadata={
            "heading": LOOKS,
            "help": "White of photographs with more than 8 bits, 1e-06 to 4294967296; 4095 for a 12-bit camera.",
        },
    )
    ignore_masks: str | None = field(
        default=None,
        metadata={
            "heading": LOOKS,
            "help": "Folder with a picture NAME.png per product that wants one; what is not black does not count.",
        },
    )
    mixed_precision: Literal["no", "bf16"] = field(
        default="no", metadata={"heading": MACHINE, "help": "Precision of the forward pass."}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"heading": TRAINING, "help": "Parts in which a batch is computed, 1 to 65536."}
    )
    num_workers: int | None = field(
        default=None,
        metadata={
            "heading": MACHINE,
            "help": "Processes that prepare photographs, 0 to 256; by default none for a CPU, up to 8 for a GPU.",
        },
    )
    monitor_images: int = field(
        default=16,
        metadata={
            "heading": TRAINING,
            "help": "Held-back photographs that check the decoder, 0 to 100000, at least one per product; 0 for none.",
        },
    )
    save_steps: int = field(
        default=100, metadata={"heading": MACHINE, "help": "Steps between two states to resume from, 1 to 1000000000."}
    )
    log_steps: int = field(
        default=10,
        metadata={"heading": MACHINE, "help": "Steps between two lines of training_log.jsonl, 1 to 1000000000."},
    )
    report_to: Literal["none", "tensorboard", "trackio"] = field(
        default="none", metadata={"heading": MACHINE, "help": "Where to log, too."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished fit in output_dir."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a detector that output_dir already holds."})

    def __post_init__(self):
        check_ranges(self, FIT_RANGES)
        check_rate(self.max_false_alarm_rate)
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
    *("memory_encoder", "memory_encoder_source", "memory_encoder_sha256", "image_mean", "image_std"),
    *("custom_pipelines", "content_sha256", "fusion_weights"),
}


TYPES_ON_COMMAND_LINE = {int | float: float, list[int] | Literal["middle"] | None: list[int] | None}


def model_options() -> type:
    """Make a dataclass of all fields of [`AnoPLeConfig`] that a person may choose, with their help texts."""
    own = AnoPLeConfig.__annotations__.keys() - KEPT_FIELDS
    helps = field_helps(AnoPLeConfig.__doc__)
    headings = {name: heading for heading, names in MODEL_HEADINGS.items() for name in names}
    fields = []
    for entry in dataclasses.fields(AnoPLeConfig):
        if entry.name in own:
            default = None if entry.default is dataclasses.MISSING else entry.default
            metadata = {"heading": headings[entry.name], "help": helps.get(entry.name, "")}
            kept = dataclasses.field(default=default, metadata=metadata)
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

    Raises:
        ValueError: for what is no option, or a number out of range.
    """
    parser = OptionsParser([options, model], prog=program, usage=f"{program} DATA [options]", epilog=FOUNDED)
    preset = argparse.ArgumentParser(program, add_help=False, allow_abbrev=False)
    preset.add_argument("--recipe", default=TrainingConfig.recipe)
    preset.add_argument("--memory_encoder")
    given = preset.parse_known_args(arguments)[0]
    parser.set_defaults(**RECIPES.get(given.recipe, {}))  # the parser itself refuses others
    if given.memory_encoder is not None:
        parser.set_defaults(**ENCODER_RECIPES.get(given.recipe, {}))
    parsed, chosen = parse_whole(parser, arguments)
    check_ranges(chosen, RANGES)  # before the data are read
    defaults = model()
    values = dataclasses.asdict(chosen).items()
    return parsed, {name: value for name, value in values if value != getattr(defaults, name)}


__all__ = [
    "FIT_RANGES",
    "RECIPES",
    "Recipe",
    "TrainingConfig",
    "field_helps",
    "model_options",
    "parse_options",
]
