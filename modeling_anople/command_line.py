"""What the commands share: options from a dataclass, and detectors from a folder or the Hub."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


REMEDY = "give the --output_dir of `anople fit`, or a Hub id"


def make_parser(command: str, options: type, **places: str) -> argparse.ArgumentParser:
    """Make the parser of a command from its dataclass of options and its positional arguments."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(options, prog=f"anople {command}", allow_abbrev=False)
    for name, text in places.items():
        parser.add_argument(name, help=text)
    return parser


def parse(parser, arguments: list[str]):
    """Split a command line into its positional arguments and its options."""
    options, places = parser.parse_args_into_dataclasses(args=arguments)
    return places, options


def load_detector(checkpoint: str):
    """Load model and processor; what is no detector, or a damaged one, is refused with the remedy."""
    from .modeling_anople import AnoPLeModel
    from .processing_anople import AnoPLeProcessor

    load_config(checkpoint)
    return _load(
        checkpoint, lambda: tuple(part.from_pretrained(checkpoint) for part in (AnoPLeModel, AnoPLeProcessor))
    )


def load_config(checkpoint: str):
    """Load a detector's config alone; what is no detector, or a damaged one, is refused with the remedy."""
    from .configuration_anople import AnoPLeConfig

    folder = Path(checkpoint)
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{checkpoint} holds no detector (no config.json): {REMEDY}.")
        _check_files(folder)

    def read() -> AnoPLeConfig:
        kind = AnoPLeConfig.get_config_dict(checkpoint)[0].get("model_type")
        if kind != AnoPLeConfig.model_type:
            raise ValueError(f"its model_type is {kind!r}, not {AnoPLeConfig.model_type!r}")
        return AnoPLeConfig.from_pretrained(checkpoint)

    return _load(checkpoint, read)


def _load(checkpoint: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # readers of configs, weights and tokenizers have errors of their own
        place = "" if Path(checkpoint).exists() else " is no folder, and as a Hub id it"
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{checkpoint}{place} cannot be loaded ({reason}): {REMEDY}.") from error


def _check_files(folder: Path) -> None:
    """Name a file that was cut short; the libraries' own errors do not."""
    from safetensors import safe_open

    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            else:
                with safe_open(path, framework="pt"):
                    pass
        except Exception as error:
            raise ValueError(
                f"{path} is damaged ({error}): copy the folder again, or fit the detector anew."
            ) from error


__all__ = ["load_config", "load_detector", "make_parser", "parse"]
