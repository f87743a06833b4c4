"""
The demo: inspect images, one by one and live, teach products, judge a threshold.

`python demo/app.py [CHECKPOINT]`, or `anople demo [CHECKPOINT]`. On a Space it runs as it is.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout or a Space: `demo` and the package

import gradio as gr
from starlette.middleware import Middleware

from demo.access import OwnSessionsOnly
from demo.examples import Examples, write_examples
from demo.inputs import MAX_UPLOAD, MODEL, say_refusals
from demo.inspect_tab import inspect_tab
from demo.judge_tab import judge_tab
from demo.live_tab import SCRIPT as LIVE
from demo.live_tab import live_tab
from demo.server import ContentSecurityPolicy, DemoBlocks, add_tools, offers_tools
from demo.session import Session, start_session
from demo.style import CSS, SCRIPT, theme
from demo.teach_tab import teach_tab
from modeling_anople.runtime import make_parser, parse, return_free_memory, start_logging


CHECKPOINT_FILE = Path(__file__).with_name("checkpoint.txt")  # on a Space: the detector it was made for
SESSION_SECONDS = 4 * 3600
CACHE_SECONDS = (600, 4 * 3600)  # how often files of the page are looked through, and how old they get

logger = logging.getLogger(__name__)


def build_demo(start: Session, examples: Examples) -> DemoBlocks:
    """Lay out the widgets and tie them to the handlers."""
    start.examples = examples.to_inspect
    with DemoBlocks(title="AnoPLe", analytics_enabled=False, delete_cache=CACHE_SECONDS) as demo:
        session = gr.State(start, time_to_live=SESSION_SECONDS)
        gr.HTML(
            "<h1>AnoPLe</h1><p>Show it a few good photographs of a product. It then tells you of every new one how odd it "
            "is, whether that is too odd, and where.</p>",
            elem_classes="intro",
        )
        with gr.Tabs():
            with gr.Tab("Inspect"):
                product_to_inspect, undoing = inspect_tab(start, session, examples)
            with gr.Tab("Live"):
                product_on_camera = live_tab(start, session)
            with gr.Tab("Teach") as tab:
                product_to_change, changes = teach_tab(start, session, examples, tab)
            with gr.Tab("Judge") as tab:
                product_to_judge = judge_tab(start, session, tab)
        # What changes the products changes the lists of them in all tabs, which only now are all there.
        lists = [product_to_inspect, product_on_camera, product_to_judge, product_to_change]
        for change in (undoing, *changes):
            outputs = [*change.outputs, *lists]
            event = change.event(change.handler, [*change.inputs, session], outputs, **change.options, **MODEL)
            say_refusals(event, session, change.message, kept=[each for each in outputs if each is not change.message])
        if offers_tools():
            add_tools(start)
    return demo


def serve(demo: DemoBlocks, *, served_as: Sequence[str] = (), **options: Any) -> str:
    """
    Start the server and go on; nothing in the page comes from elsewhere.

    Args:
        served_as: more names that the page is reached under, such as that of a reverse proxy.
        options: those of `launch`.

    Returns:
        Its address.
    """
    demo.bound = options.get("server_name") or os.environ.get("GRADIO_SERVER_NAME")
    demo.served_as = served_as
    demo.queue(max_size=64, api_open=False)  # no call goes past the queue, where one at a time has the model
    _, address, _ = demo.launch(
        theme=theme(),
        css=CSS,
        js=f"() => {{{SCRIPT}{LIVE}}}",
        footer_links=["api", "settings"],
        max_file_size=MAX_UPLOAD,
        state_session_capacity=64,
        ssr_mode=False,
        mcp_server=offers_tools(),
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(ContentSecurityPolicy), Middleware(OwnSessionsOnly)]},
        **options,
    )
    return address


def chosen_checkpoint(given: str | None) -> str | None:
    """Choose the detector: the one given, or the one in ANOPLE_CHECKPOINT, or that of this Space; else the drawn one."""
    if given or os.environ.get("ANOPLE_CHECKPOINT"):
        return given or os.environ["ANOPLE_CHECKPOINT"]
    return CHECKPOINT_FILE.read_text(encoding="utf-8").strip() or None if CHECKPOINT_FILE.is_file() else None


def chosen_names(given: Sequence[str] | None) -> list[str]:
    """Choose the names that the page is reached under beside its own: those given, or those in ANOPLE_SERVED_AS."""
    return list(given or os.environ.get("ANOPLE_SERVED_AS", "").split(","))


@dataclass
class DemoOptions:
    """Options of `anople demo`."""

    host: str | None = field(default=None, metadata={"help": "Address to listen on; by default this machine alone."})
    port: int | None = field(default=None, metadata={"help": "By default the first free one from 7860."})
    served_as: list[str] | None = field(
        default=None,
        metadata={
            "help": "More names that the page is reached under, such as that of a reverse proxy; all others are refused. Or "
            "ANOPLE_SERVED_AS, with commas."
        },
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the demo until it is interrupted."""
    return_free_memory()
    start_logging()
    parser = make_parser("demo", DemoOptions)
    parser.add_argument(
        "checkpoint", nargs="?", help="Folder or Hub id; without it, drawn products on the embedded CLIP."
    )
    positionals, options = parse(parser, arguments)
    logger.info("Loading the detector.")
    try:
        start = start_session(chosen_checkpoint(positionals.checkpoint))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"anople demo: {error}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="anople-examples-") as folder:
        demo = build_demo(start, write_examples(Path(folder)))
        names = chosen_names(options.served_as)
        serve(demo, served_as=names, server_name=options.host, server_port=options.port)
        demo.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
