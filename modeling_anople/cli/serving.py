"""`anople serve, report`: a detector as a service, and what was inspected as a page for people."""

import json
import logging
import os
import signal
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..runtime import CHECKPOINT, MACHINE, make_parser, parse, printable, return_free_memory, say
from ..runtime.outputs import OVERWRITE, Output, check_outputs, is_page, json_lines_of


logger = logging.getLogger(__name__)

TOKEN = "ANOPLE_TOKEN"
GRACE = 30  # seconds that a request may still take once the server is told to stop
SERVE_RANGES = {"port": (0, 65_535), "batch_size": (1, 65_536), "queue": (1, 65_536), "max_megabytes": (1, 100_000)}


@dataclass
class ServeOptions:
    """Options of `anople serve`."""

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 is all of this machine."})
    port: int = field(default=8000, metadata={"help": "Port to listen on, 0 to 65535; 0 takes a free one."})
    token: str | None = field(
        default=None,
        metadata={
            "help": f"What must be sent to teach a product; without one nobody can. {TOKEN} in the environment says the "
            "same, and is not seen in the list of processes."
        },
    )
    output: str | None = field(
        default=None,
        metadata={"help": "Add each answer to results.jsonl in this folder, with the photograph and a heat map."},
    )
    batch_size: int = field(
        default=8, metadata={"heading": MACHINE, "help": "Photographs judged at once, 1 to 65536."}
    )
    queue: int = field(
        default=64,
        metadata={"heading": MACHINE, "help": "Photographs that may wait, 1 to 65536; beyond them the answer is 429."},
    )
    max_megabytes: int = field(default=64, metadata={"heading": MACHINE, "help": "Of a request, 1 to 100000."})
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
    revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of a Hub id; user/name@revision says the same."},
    )

    def __post_init__(self):
        from ..configuration_anople import check_ranges  # it brings torch along

        check_ranges(self, SERVE_RANGES, "--")


def serve(arguments: list[str]) -> int:
    """Answer requests until SIGTERM or Ctrl+C; those in hand are answered then, and no new ones are taken."""
    return_free_memory()
    places, options = parse(make_parser("serve", ServeOptions, checkpoint=CHECKPOINT), arguments)
    import uvicorn

    from ..images_anople import RESULT_KEYS, RESULTS
    from ..inspection.journal import JOURNAL
    from ..inspection.server import Settings, make_app
    from ..saving_anople import locked

    with ExitStack() as stack:
        listening = stack.enter_context(listen(options.host, options.port))
        folder = options.output and Path(options.output)
        if folder:
            results = folder / RESULTS
            if (folder / JOURNAL).exists():
                raise ValueError(f"--output {folder} holds the results of `anople watch`: name another folder.")
            check_outputs([Output("--output", results, json_lines_of(RESULT_KEYS))])
            stack.enter_context(locked(folder))  # two servers would write into each other's lines
        settings = Settings(
            places.checkpoint,
            token=options.token or os.environ.get(TOKEN) or None,
            output=folder or None,
            batch_size=options.batch_size,
            queue=options.queue,
            max_bytes=options.max_megabytes * 1_000_000,
            revision=options.revision,
            device=options.device,
            dtype=options.dtype,
        )
        app = make_app(settings)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE)
        # uvicorn stops at these signals and raises them once more at its end, where they shall do nothing
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: None)
        host, port = listening.getsockname()[:2]
        products = ", ".join(app.state.service.judge.detector.config.class_names)
        logger.info("Serving %s at http://%s:%d/docs", printable(products), f"[{host}]" if ":" in host else host, port)
        uvicorn.Server(config).run(sockets=[listening])
    logger.info("Stopped; all that was asked is answered.")
    return 0


def listen(host: str, port: int) -> socket.socket:
    """
    Listen on an address.

    Raises:
        ValueError: if that cannot be.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {host} --port {port} cannot be had ({error}): give another.") from error


# --- `anople report`: what was inspected, as a page ---


@dataclass
class ReportOptions:
    """Options of `anople report`."""

    output: str = field(default="report.html", metadata={"help": "File of the page."})
    detector: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the detector, for what its thresholds promise."}
    )
    overwrite: bool = field(default=False, metadata={"help": OVERWRITE})


def report(arguments: list[str]) -> int:
    """Write a page about what predict, watch or serve have inspected, or evaluate has measured."""
    results = "Folder that predict, watch or serve had as --output, its results.jsonl, or evaluate's JSON file."
    places, options = parse(make_parser("report", ReportOptions, results=results), arguments)
    from ..images_anople import RESULTS
    from ..inspection.report import page_of_evaluation, report_of_results
    from ..runtime.loading import load_config

    place, output = Path(places.results), Path(options.output)
    read = place / RESULTS if place.is_dir() else place
    check_outputs([Output("--output", output, is_page)], inputs=[read], overwrite=options.overwrite)
    if evaluation := _evaluation_in(read):
        if options.detector:
            raise ValueError("--detector is for results of photographs: an evaluation says itself what was measured.")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page_of_evaluation(evaluation, read.stem), encoding="utf-8", errors="backslashreplace")
    else:
        config = load_config(options.detector) if options.detector else None
        report_of_results(place, config=config, detector=options.detector).write(output)
    say(f"Report: {output}")
    return 0


def _evaluation_in(file: Path) -> dict | None:
    """Read a file of `anople evaluate --json`; `None` where it is something else."""
    if file.suffix != ".json" or not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): measure again with anople evaluate --json.") from error
    return values if isinstance(values, dict) and {"classes", "errors"} <= values.keys() else None


__all__ = ["report", "serve"]
