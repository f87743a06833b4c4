"""What the programs share: their options come from dataclasses, and they log alike."""

import argparse
import logging


QUIET = ("httpx2", "httpx", "httpcore2", "httpcore")  # they log each address, and presigned ones are secrets


def start_logging() -> None:
    """Log a program's own lines to stderr, and of HTTP clients warnings alone."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


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


__all__ = ["make_parser", "parse", "start_logging"]
