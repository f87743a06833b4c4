"""The tab on which products are taught, and detectors taken home and brought back."""

import gradio as gr

from . import handlers, words
from .examples import NEW_PRODUCT, Examples
from .fields import HIDDEN, MODEL, photographs_field
from .fitting import FEWEST, MOST, USUAL
from .session import Session
from .teaching import MAX_SHOTS


def teach_tab(start: Session, session: gr.State, examples: Examples) -> list[tuple]:
    """A new product from good photographs; a detector to take home and bring back. Returns the events that change products."""
    with gr.Row():
        with gr.Column(min_width=300):
            name = gr.Textbox(label="Name of the new product", placeholder="bottle", max_length=60, elem_id="name")
            files = photographs_field(f"1 to {MAX_SHOTS} good photographs of it", "shots", 200)
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
            with gr.Accordion("Fit prompts to these products (optional)", open=False, elem_id="fitting"):
                steps = gr.Slider(
                    FEWEST, MOST, value=USUAL, step=10, label="Steps, about a second each", elem_id="steps"
                )
                with gr.Row():
                    fit = gr.Button("Fit", elem_id="fit")
                    stop = gr.Button("Stop and keep", variant="stop", elem_id="stop-fit")
                curve = gr.HTML(elem_id="losses")
                fitted = gr.HTML(elem_id="fit-message")
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
    fit.click(
        handlers.fit,
        [steps, session],
        [curve, fitted],
        api_name="fit",
        show_progress="hidden",
        concurrency_id="fit",
        concurrency_limit=1,
    )
    stop.click(handlers.stop_fit, session, fitted, queue=False, **HIDDEN)
    return [
        (teach.click, [name, files], [answer, told, known], handlers.enroll, {"api_name": "enroll"}),
        (load.click, [brought], [answer, told, known], handlers.upload, {"api_name": "load"}),
    ]
