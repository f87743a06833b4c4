"""The tab on which photographs are inspected."""

import gradio as gr

from . import handlers, words
from .examples import Examples
from .fields import HIDDEN, MODEL, photograph_field, photographs_field, product_field
from .inspecting import FIND_IT
from .reading import MAX_PHOTOGRAPHS
from .reporting import PAGE_COLUMNS
from .session import Session


def inspect_tab(start: Session, session: gr.State, examples: Examples) -> gr.Dropdown:
    """One photograph at once, or many as a table."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            photograph = photograph_field("Photograph", "photograph", ["upload", "webcam", "clipboard"], 300)
            product = product_field([FIND_IT, *start.products], "product")
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
            why = gr.HTML(elem_id="why")
            with gr.Accordion("Numbers", open=False):
                numbers = gr.JSON(label="Answer")
                explained = gr.JSON(label="Explanation")
    answers, asked = [numbers, verdict, pictures], [photograph, product, session]
    explaining = {"fn": handlers.explain, "inputs": session, "outputs": [explained, why], **MODEL}
    clicked = inspect.click(handlers.inspect, asked, answers, api_name="inspect", **MODEL)
    clicked.success(**explaining, api_name="explain")
    chosen = shown.select(handlers.choose_example, session, [photograph, shown], **HIDDEN)
    for event in (photograph.upload, chosen.success):  # dropped, pasted and taken photographs are judged at once too
        event(handlers.inspect, asked, answers, **HIDDEN, **MODEL).success(**explaining, **HIDDEN)
    emptied = [numbers, verdict, pictures, explained, why]
    photograph.clear(lambda: (None, words.WELCOME, None, None, ""), None, emptied, queue=False, **HIDDEN)
    with gr.Accordion("Many photographs", open=False, elem_id="many"):
        files = photographs_field(f"Up to {MAX_PHOTOGRAPHS} photographs", "files", 160)
        folder = gr.UploadButton("Add a folder of stills", file_count="directory", size="sm", elem_id="folder")
        with gr.Row():
            run = gr.Button("Inspect all", variant="primary", elem_id="inspect-all")
            stop = gr.Button("Stop", variant="stop", elem_id="stop")
        told = gr.HTML(elem_id="many-message")
        table = gr.Dataframe(
            headers=list(PAGE_COLUMNS),
            datatype=["number", "html", "str", "str", "number", "number", "str", "number", "str"],
            interactive=False,
            label="Results: click a head to sort, a row to see it above",
            elem_id="results",
        )
        report = gr.File(label="CSV and heat maps (zip)", interactive=False, elem_id="report")
    run.click(
        handlers.inspect_many, [files, product, session], [table, report, told], api_name="inspect_many", **MODEL
    )
    stop.click(handlers.stop, session, told, queue=False, **HIDDEN)
    folder.upload(handlers.take_folder, [folder, files], files, **HIDDEN)
    table.select(handlers.show_row, session, answers, **HIDDEN).success(**explaining, **HIDDEN)
    return product
