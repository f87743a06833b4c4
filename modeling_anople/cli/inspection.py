"""`anople watch, drift, feedback`: a detector at work, whether its scores still hold, and what people say of its results."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..runtime import CHECKPOINT, MACHINE, WRITES, make_parser, parse, say
from ..runtime.outputs import Output, check_outputs, is_page


WATCH_RANGES = {
    "settle": (0.05, 3600),
    "every": (0.01, 86_400),
    "batch_size": (1, 65_536),
    "min_area": (1, 1_000_000_000),
    "photographs_per_false_warning": (100, 1_000_000_000),
}
ARRIVALS, RECEIVERS = "how photographs arrive", "who is told"  # headings of the help
INTERVAL_HELP = "Of a drift: how many photographs pass on average until a false warning, at least; 100 to 1000000000."


@dataclass
class DriftOptions:
    """Options of `anople drift`."""

    class_name: str | None = field(
        default=None, metadata={"help": "The product; by default all that the results name.", "aliases": ["--class"]}
    )
    photographs_per_false_warning: int = field(default=100_000, metadata={"help": INTERVAL_HELP})

    def __post_init__(self):
        from ..configuration_anople import check_ranges  # it brings torch along

        ranges = {name: each for name, each in WATCH_RANGES.items() if hasattr(self, name)}
        check_ranges(self, ranges, "--")


@dataclass
class WatchOptions(DriftOptions):
    """Options of `anople watch`."""

    class_name: str | None = field(
        default=None, metadata={"help": "The product; without it, predicted.", "aliases": ["--class"]}
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the results: normal, unsure, anomalous, error, overlays, results.jsonl, results.csv. The same one goes on "
            "where it was ended."
        },
    )
    report: str | None = field(
        default=None,
        metadata={
            "help": "When it ends, write a page for people about all results into this file.",
        },
    )
    copy: bool = field(
        default=False, metadata={"heading": ARRIVALS, "help": "Leave photographs where they are, and put copies away."}
    )
    poll: bool = field(
        default=False,
        metadata={"heading": ARRIVALS, "help": "Look again and again, where a share tells nothing of what arrives."},
    )
    settle: float = field(
        default=1.0,
        metadata={"heading": ARRIVALS, "help": "Seconds that a file must not change to count as whole, 0.05 to 3600."},
    )
    webhook: str | None = field(
        default=None,
        metadata={
            "heading": RECEIVERS,
            "help": "Post each result to this address, signed with the secret in ANOPLE_WEBHOOK_SECRET.",
        },
    )
    mqtt: str | None = field(
        default=None,
        metadata={
            "heading": RECEIVERS,
            "help": "Publish each result: mqtt://[USER@]HOST[:PORT]/TOPIC; password in ANOPLE_MQTT_PASSWORD.",
        },
    )
    every: float = field(
        default=1.0,
        metadata={
            "heading": ARRIVALS,
            "help": "Seconds between two frames of a camera that are judged, 0.01 to 86400.",
        },
    )
    batch_size: int = field(
        default=8, metadata={"heading": MACHINE, "help": "Photographs judged at once, 1 to 65536."}
    )
    min_area: int = field(
        default=1,
        metadata={"heading": WRITES, "help": "Pixels that a region must have to be listed, 1 to 1000000000."},
    )
    device: str = field(
        default="auto",
        metadata={"heading": MACHINE, "help": "auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, ..."},
    )
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32",
        metadata={
            "heading": MACHINE,
            "help": "What is computed with; bfloat16 is faster where the hardware knows it.",
        },
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})

    def __post_init__(self):
        super().__post_init__()
        if self.output is None:
            raise ValueError("Results go into a folder: add --output FOLDER.")


@dataclass
class FeedbackOptions:
    """Options of `anople feedback`."""

    results: str = field(
        default=".", metadata={"help": "Folder with the results; by default the one that you are in."}
    )


def watch(arguments: list[str]) -> int:
    """Judge every photograph that arrives in a folder, until SIGTERM or Ctrl-C."""
    arrive = "Where photographs arrive: a folder, the number of a camera, or its address (rtsp://HOST/PATH)."
    parser = make_parser("watch", WatchOptions, checkpoint=CHECKPOINT, folder=arrive)
    places, options = parse(parser, arguments)
    from ..images_anople import RESULTS
    from ..inspection.delivery import Broker, Webhook
    from ..inspection.watching import Watch

    if options.report is not None:
        check_outputs([Output("--report", options.report, is_page)])

    if not options.poll:
        import watchfiles  # noqa: F401  a missing one is named before anything is loaded
    receivers = [kind(url) for kind, url in ((Webhook, options.webhook), (Broker, options.mqtt)) if url is not None]
    given = {
        name: value for name, value in vars(options).items() if name not in ("webhook", "mqtt", "output", "report")
    }
    interval = given.pop("photographs_per_false_warning")
    Watch(
        places.checkpoint, places.folder, Path(options.output), interval=interval, receivers=receivers, **given
    ).run()
    if options.report is not None and (Path(options.output) / RESULTS).is_file():
        _report(Path(options.output), places.checkpoint, options.report)
    return 0


def _report(results: Path, checkpoint: str, page: str) -> None:
    from ..inspection.report import report_of_results
    from ..runtime.loading import load_config

    report_of_results(results, config=load_config(checkpoint), detector=checkpoint).write(Path(page))
    say(f"Report: {page}")


def drift(arguments: list[str]) -> int:
    """Say whether scores have changed since a product was calibrated; exit with 1 if one has."""
    parser = make_parser(
        "drift", DriftOptions, checkpoint=CHECKPOINT, results="Folder of results, or its results.jsonl."
    )
    places, options = parse(parser, arguments)
    from ..inspection.drift import read_drift
    from ..runtime.loading import load_config

    config = load_config(places.checkpoint)
    names = None if options.class_name is None else [options.class_name]
    found = read_drift(config, Path(places.results), names, interval=options.photographs_per_false_warning)
    if not found:
        raise ValueError(
            f"{places.results} names no product that {places.checkpoint} knows: give the detector that judged."
        )
    for name, (watch, first) in found.items():
        known = len(watch.calibration)
        said = (
            f"{name}: no drift in {watch.count} normal photographs against {known} of the calibration (evidence "
            f"{max(0.0, math.log10(max(watch.statistic, 1))):.1f} of {math.log10(watch.interval):.1f})."
        )
        say(first.advice() if first else said)
    return 1 if any(first for _, first in found.values()) else 0


def feedback(arguments: list[str]) -> int:
    """Say that a result's part is good or bad, or take that back."""
    parser = make_parser("feedback", FeedbackOptions, checkpoint=CHECKPOINT, id="Of the result, as in results.jsonl.")
    parser.add_argument(
        "verdict", choices=["good", "bad", "undo"], help="What is true of the part; undo takes it back."
    )
    places, options = parse(parser, arguments)
    from ..inspection.feedback import give_feedback

    given = give_feedback(places.checkpoint, places.id, places.verdict, results=options.results)
    say(f"{given.path}: {given.verdict}. {given.said}")
    return 0


__all__ = ["drift", "feedback", "watch"]
