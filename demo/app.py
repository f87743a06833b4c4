"""
The demo: inspect photographs, teach products, judge the line.

`python demo/app.py [CHECKPOINT]`, or `anople demo [CHECKPOINT]`. On a Space it runs as it is.
"""

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout or a Space: `demo` and the package

import gradio as gr
from starlette.middleware import Middleware

from demo import appearance, handlers, words
from demo.examples import NEW_PRODUCT, Examples, write_examples
from demo.inspecting import FIND_IT
from demo.isolation import Isolation
from demo.judging import LINE
from demo.photograph import Photograph
from demo.reading import MAX_PHOTOGRAPHS, MAX_UPLOAD
from demo.reporting import COLUMNS
from demo.session import Session, start_session
from demo.teaching import MAX_SHOTS


CHECKPOINT_FILE = Path(__file__).with_name("checkpoint.txt")  # on a Space: the detector it was made for
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one question to the model at a time
AS_SENT = {"type": "filepath", "image_mode": None}
HIDDEN = {"api_visibility": "private"}
SESSION_SECONDS, CACHE_SECONDS = 4 * 3600, (600, 4 * 3600)

logger = logging.getLogger(__name__)


def build_demo(start: Session, examples: Examples) -> gr.Blocks:
    """Lay out the widgets and tie them to the handlers."""
    start.examples = examples.to_inspect
    with gr.Blocks(title="AnoPLe", analytics_enabled=False, delete_cache=CACHE_SECONDS) as demo:
        session = gr.State(start, time_to_live=SESSION_SECONDS)
        gr.HTML(
            "<h1>AnoPLe</h1><p>Show it a few good photographs of a product. It then tells you of every new one how odd it "
            "is, whether that is too odd, and where.</p>",
            elem_classes="intro",
        )
        with gr.Tabs():
            with gr.Tab("Inspect"):
                product = _inspect_tab(start, session, examples)
            with gr.Tab("Teach"):
                taught = _teach_tab(start, session, examples)
            with gr.Tab("Judge") as tab:
                judged = _judge_tab(start, session, tab)
        for event, inputs, outputs, handler, options in taught:
            event(handler, [*inputs, session], [*outputs, product, judged], **options, **MODEL)
    return demo


def _inspect_tab(start: Session, session: gr.State, examples: Examples) -> gr.Dropdown:
    """One photograph at once, or many as a table."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            photograph = Photograph(
                label="Photograph",
                elem_id="photograph",
                **AS_SENT,
                sources=["upload", "webcam", "clipboard"],
                height=300,
            )
            product = gr.Dropdown([FIND_IT, *start.products], value=FIND_IT, label="Product", allow_custom_value=True)
            inspect = gr.Button("Inspect", variant="primary", elem_id="inspect")
            gr.HTML("Or click one of these drawn examples:")
            shown = gr.Gallery(
                [(str(path), path.stem.replace("_", " ")) for path in examples.to_inspect],
                label="Drawn examples",
                show_label=False,
                columns=3,
                height="auto",
                object_fit="cover",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="examples",
            )
        with gr.Column(scale=3, min_width=300):
            verdict = gr.HTML(words.WELCOME, elem_id="verdict")
            pictures = gr.ImageSlider(
                label="Photograph | heat map", elem_id="pictures", type="filepath", interactive=False, max_height=460
            )
            gr.HTML(words.legend_html())
            with gr.Accordion("Numbers", open=False):
                numbers = gr.JSON(label="Answer")
    answers, asked = [numbers, verdict, pictures], [photograph, product, session]
    inspect.click(handlers.inspect, asked, answers, api_name="inspect", **MODEL)
    chosen = shown.select(handlers.choose_example, session, [photograph, shown], **HIDDEN)
    chosen.success(handlers.inspect, asked, answers, **HIDDEN, **MODEL)
    with gr.Accordion("Many photographs", open=False, elem_id="many"):
        files = gr.File(
            label=f"Up to {MAX_PHOTOGRAPHS} photographs",
            file_count="multiple",
            file_types=["image"],
            height=160,
            elem_id="files",
        )
        with gr.Row():
            run = gr.Button("Inspect all", variant="primary", elem_id="inspect-all")
            stop = gr.Button("Stop", variant="stop", elem_id="stop")
        told = gr.HTML(elem_id="many-message")
        table = gr.Dataframe(
            headers=list(COLUMNS),
            datatype=["number", "str", "str", "number", "number", "str", "number", "str"],
            interactive=False,
            label="Results: click a head to sort, a row to see it above",
            elem_id="results",
        )
        report = gr.File(label="CSV and heat maps (zip)", interactive=False, elem_id="report")
    run.click(
        handlers.inspect_many, [files, product, session], [table, report, told], api_name="inspect_many", **MODEL
    )
    stop.click(handlers.stop, session, told, queue=False, **HIDDEN)
    table.select(handlers.show_row, session, answers, **HIDDEN)
    return product


def _teach_tab(start: Session, session: gr.State, examples: Examples) -> list[tuple]:
    """A new product from good photographs; a detector to take home and bring back. Returns the events that change products."""
    with gr.Row():
        with gr.Column(min_width=300):
            name = gr.Textbox(label="Name of the new product", placeholder="bottle", max_length=60, elem_id="name")
            files = gr.File(
                label=f"1 to {MAX_SHOTS} good photographs of it",
                file_count="multiple",
                file_types=["image"],
                height=200,
                elem_id="shots",
            )
            teach = gr.Button("Teach", variant="primary", elem_id="teach")
            gr.Examples(
                [[NEW_PRODUCT, [str(path) for path in examples.to_teach]]],
                [name, files],
                label="Without your own photographs",
                example_labels=[f"{NEW_PRODUCT}, {len(examples.to_teach)} drawn photographs"],
            )
        with gr.Column(min_width=300):
            told = gr.HTML(elem_id="teach-message")
            known = gr.HTML(words.products_html(start.products), elem_id="known")
            with gr.Accordion("Take this detector home, or bring one", open=False, elem_id="home"):
                pack = gr.Button("Make a zip of this detector", elem_id="pack")
                packed = gr.File(label="The detector, for download", interactive=False, elem_id="packed", height=110)
                brought = gr.File(
                    label="A detector (zip) made here", file_types=[".zip"], elem_id="brought", height=160
                )
                load = gr.Button("Load it", elem_id="load")
            with gr.Accordion("Numbers", open=False):
                answer = gr.JSON(label="Answer")
    pack.click(handlers.download, session, packed, api_name="download", **MODEL)
    return [
        (teach.click, [name, files], [answer, told, known], handlers.enroll, {"api_name": "enroll"}),
        (load.click, [brought], [answer, told, known], handlers.upload, {"api_name": "load"}),
    ]


def _judge_tab(start: Session, session: gr.State, tab: gr.Tab) -> gr.Dropdown:
    """The normals about the line, and photographs that were fine."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            product = gr.Dropdown(
                start.products,
                value=start.products[0],
                label="Product",
                allow_custom_value=True,
            )
            threshold = gr.Slider(
                0, 1, value=LINE, step=0.01, label=f"Your line (calibrated: {LINE:.2f})", elem_id="threshold"
            )
            picture = gr.HTML(elem_id="normals")
            told = gr.HTML(elem_id="judgement")
        with gr.Column(scale=2, min_width=300):
            photograph = Photograph(
                label="A photograph that was fine",
                elem_id="was-fine",
                **AS_SENT,
                sources=["upload", "clipboard"],
                height=240,
            )
            fine = gr.Button("This was fine: add it", variant="primary", elem_id="fine")
            added = gr.HTML(elem_id="fine-message")
    asked, answers = [product, threshold, session], [told, picture]
    opened = [product, threshold, photograph, *answers]
    tab.select(handlers.open_judge, session, opened, **HIDDEN, **MODEL)
    product.input(handlers.show_judgement, asked, answers, **HIDDEN, **MODEL)
    threshold.change(
        handlers.show_judgement,
        asked,
        answers,
        api_name="judge",
        trigger_mode="always_last",
        show_progress="hidden",
        **MODEL,
    )
    fine.click(
        handlers.this_was_fine,
        [product, photograph, threshold, session],
        [added, *answers],
        api_name="add_normals",
        **MODEL,
    )
    return product


def serve(demo: gr.Blocks, **options) -> str:
    """Start the server; nothing in the page comes from elsewhere. Returns its address."""
    demo.queue(max_size=64)
    _, address, _ = demo.launch(
        theme=appearance.theme(),
        css=appearance.CSS,
        footer_links=["api", "settings"],
        max_file_size=MAX_UPLOAD,
        state_session_capacity=200,
        ssr_mode=False,
        mcp_server=importlib.util.find_spec("mcp") is not None,
        app_kwargs={"middleware": [Middleware(Isolation)]},
        **options,
    )
    return address


def chosen_checkpoint(given: str | None) -> str | None:
    """Choose the detector: the one given, or the one in ANOPLE_CHECKPOINT, or that of this Space; else the drawn one."""
    if given or os.environ.get("ANOPLE_CHECKPOINT"):
        return given or os.environ["ANOPLE_CHECKPOINT"]
    return CHECKPOINT_FILE.read_text(encoding="utf-8").strip() or None if CHECKPOINT_FILE.is_file() else None


def main(arguments: list[str] | None = None) -> int:
    """Run the demo until it is interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="anople demo", description="Inspect, teach and judge in the browser.")
    parser.add_argument(
        "checkpoint", nargs="?", help="Folder or Hub id; without it, drawn products on the embedded CLIP."
    )
    parser.add_argument("--host", help="Address to listen on; by default this machine alone.")
    parser.add_argument("--port", type=int, help="By default the first free one from 7860.")
    options = parser.parse_args(arguments)
    logger.info("Loading the detector.")
    try:
        start = start_session(chosen_checkpoint(options.checkpoint))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"anople demo: {error}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="anople-examples-") as folder:
        demo = build_demo(start, write_examples(Path(folder)))
        serve(demo, server_name=options.host, server_port=options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
