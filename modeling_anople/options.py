"""Command line options, made from dataclasses, so that an option has one home."""

import dataclasses
import re
import typing

from transformers import HfArgumentParser

from .configuration_anople import AnoPLeConfig


# Kept by the program, not chosen on a command line.
KEPT_FIELDS = {"clip_config", "class_names", "memory_sizes", "calibration", "fit"}


def model_options() -> type:
    """Make a dataclass of all fields of [`AnoPLeConfig`] that a person may choose, with their help texts."""
    own = AnoPLeConfig.__annotations__.keys() - KEPT_FIELDS
    helps = _field_helps(AnoPLeConfig.__doc__)
    fields = []
    for entry in dataclasses.fields(AnoPLeConfig):
        if entry.name in own:
            default = None if entry.default is dataclasses.MISSING else entry.default
            kept = dataclasses.field(default=default, metadata={"help": helps.get(entry.name, "")})
            fields.append((entry.name, entry.type, kept))
    return dataclasses.make_dataclass("ModelOptions", fields)


def _field_helps(docstring: str) -> dict[str, str]:
    """Read "name (`type`, ...):" entries of a docstring."""
    entries = re.split(r"^        (?=\w[\w, ]* \()", docstring, flags=re.MULTILINE)[1:]
    helps = {}
    for entry in entries:
        names, text = entry.split(" (", 1)[0], entry.partition("):")[2]
        text = " ".join(text.split()).replace("%", "%%")
        helps.update({name.strip(): text for name in names.split(",")})
    return helps


def parse_options(program: str, options: type, model: type, arguments: list[str] | None) -> tuple[typing.Any, dict]:
    """
    Parse a command line into `options` and the model options that were changed.

    Returns:
        The options, and a dict of the fields of [`AnoPLeConfig`] that differ from their defaults.
    """
    parser = HfArgumentParser([options, model], prog=program, allow_abbrev=False)
    parsed, chosen = parser.parse_args_into_dataclasses(args=arguments)
    defaults = model()
    values = dataclasses.asdict(chosen).items()
    return parsed, {name: value for name, value in values if value != getattr(defaults, name)}


__all__ = ["model_options", "parse_options"]
