"""What the programs share: their options come from dataclasses, and they log alike."""

import argparse
import ctypes
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any


CHECKPOINT = "Folder of a detector, or Hub id (user/name, user/name@revision)."
# Headings in the help of several commands: what stands in the metadata of a field as "heading". Without one it is on top.
TABLES = "data in other forms"
LOOKS = "how photographs are looked at"
WRITES = "more of what is written"
MACHINE = "the machine"
OWN = ("modeling_anople", "hub", "demo", "__main__")
QUIET = ("httpx2", "httpx", "httpcore2", "httpcore")  # they log each address, and presigned ones are secrets
# Of glibc's malloc.h: M_ARENA_MAX, and M_MMAP_THRESHOLD, the bytes from which a block is a mapping of its own.
MALLOC_OPTIONS = {-8: 2, -3: 256 * 1024}
YES_OR_NO = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")


def printable(text: str) -> str:
    """Write a text on one line of a terminal: what cannot be seen, line ends and control codes too, as its code."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def say(*lines: str) -> None:
    """Write lines to stdout, each made [`printable`]: names in them come from files, which anybody may have written."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def one_line(error: Exception) -> str:
    """Say on one line of a terminal what an error says, which libraries do on several; its kind where it says nothing."""
    return printable(" ".join(str(error).split()) or type(error).__name__)


class _PlainFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def start_logging() -> None:
    """
    Log a program's own lines to stderr, and of libraries warnings alone.

    Bars of transformers over weights, which take a moment, are left out; those of downloads stay.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for handler in logging.getLogger().handlers:
        if type(handler.formatter) is logging.Formatter:
            handler.setFormatter(_PlainFormatter(handler.formatter._fmt))
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where HF_HUB_DISABLE_PROGRESS_BARS says otherwise, which holds
        disable_progress_bar()
        enable_progress_bars()


class Stopped(KeyboardInterrupt):
    """
    A program was told to stop, by Ctrl-C or SIGTERM, and says what it has kept.

    Args:
        kept: what that is, after "stopped".
        number: of the signal.
        can_resume: whether it can go on from there.
    """

    def __init__(self, kept: str, *, number: int, can_resume: bool = False):
        super().__init__(kept)
        self.number, self.can_resume, self.command = number, can_resume, ""  # the command that goes on, once known


def report_stop(program: str, stop: KeyboardInterrupt) -> int:
    """Say on one line that a program was stopped, and how to go on; return its exit code. One of several processes says it."""
    said = f"{program}: stopped {stop}".rstrip() + "."
    if isinstance(stop, Stopped) and stop.command:
        said += f" Go on with: {stop.command}"
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"\n{printable(said)}\n")
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)  # as a shell has it


def return_free_memory() -> bool:
    """
    Have glibc give back what is free, instead of keeping it for each thread: to be called before there are threads.

    With eight people at once for five minutes the demo held 1,060 MB, of which 450 were free but scattered over the
    arenas of its threads; so, it is 806 MB, of which 14 are. Other C libraries keep less, and get no such call.

    Returns:
        Whether this C library could be told.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return set_option is not None and all(set_option(option, value) for option, value in MALLOC_OPTIONS.items())


def make_parser(command: str, options: type, **places: str) -> argparse.ArgumentParser:
    """Make the parser of a command from its dataclass of options and its positional arguments."""
    from .parsing import OptionsParser  # which brings transformers

    parser = OptionsParser(options, prog=f"anople {command}")
    for name, text in places.items():
        parser.add_argument(name, help=text)
    return parser


def parse(parser, arguments: list[str] | None):
    """Split a command line into its positional arguments and its options."""
    options, places = parse_whole(parser, arguments)
    return places, options


def parse_whole(parser, arguments: list[str] | None) -> tuple:
    """
    Parse a command line into the dataclasses of a parser, and its positional arguments if it has some.

    Raises:
        ValueError: for what is left over, which says which option it resembles, and for an empty name or path.
    """
    words = _with_answers(parser, sys.argv[1:] if arguments is None else arguments)
    *found, left = parser.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
    if left:
        unknown = next((word.partition("=")[0] for word in left if word.startswith("-")), None)
        if unknown is None:
            raise ValueError(f"{left[0]!r} is one argument too many: --help lists what it takes.")
        from ..configuration_anople import what_became_of  # they bring torch along
        from ..product_store_anople import did_you_mean

        if became := what_became_of(unknown.lstrip("-").replace("-", "_")):
            raise ValueError(f"{unknown}: {became}")

        options = [f"--{entry.name}" for kind in parser.dataclass_types for entry in fields(kind)]
        raise ValueError(f"{unknown} is none of its options.{did_you_mean(unknown, options)} --help lists them.")
    for name, given in (pair for part in found for pair in vars(part).items()):
        if any(isinstance(each, str) and not each.strip() for each in (given if isinstance(given, list) else [given])):
            raise ValueError(f"{name} is empty: give a value, or leave it out.")
    return tuple(found)


def _with_answers(parser, words: list[str]) -> list[str]:
    """Put "true" behind an option that asks yes or no and is followed by neither: by a photograph, for instance."""
    kinds = [entry for kind in parser.dataclass_types for entry in fields(kind) if entry.type is bool]
    options = {f"--{name}" for entry in kinds for name in (entry.name, entry.name.replace("_", "-"))}
    answered = []
    end = words.index("--") if "--" in words else len(words)
    for number, word in enumerate(words):
        answered.append(word)
        if number < end and word in options and "".join(words[number + 1 : number + 2]).lower() not in YES_OR_NO:
            answered.append("true")
    return answered


def run_program(
    name: str,
    options: type,
    act: Callable[[argparse.Namespace, Any], None],
    arguments: list[str] | None,
    **places: str,
) -> int:
    """
    Run a program of its own; errors that a person can mend are one line.

    Args:
        name: as it is typed, `python -m hub.publish` or `anople push`.
        options: dataclass of its options.
        act: does the work, from positional arguments and options.
        places: name and help of each positional argument.

    Returns:
        The exit code.
    """
    start_logging()
    parser = make_parser("", options, **places)
    parser.prog = name
    try:
        act(*parse(parser, arguments))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{name.removeprefix('python -m ')}: {one_line(error)}\n")
        return 2
    return 0


__all__ = [
    "CHECKPOINT",
    "LOOKS",
    "MACHINE",
    "Stopped",
    "TABLES",
    "WRITES",
    "make_parser",
    "one_line",
    "parse",
    "parse_whole",
    "printable",
    "report_stop",
    "return_free_memory",
    "run_program",
    "say",
    "start_logging",
]
