"""What the commands share: their options come from dataclasses."""

import argparse


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


__all__ = ["make_parser", "parse"]
