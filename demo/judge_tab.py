"""The tab on which the line is judged."""

import gradio as gr

from . import handlers
from .fields import HIDDEN, MODEL, photograph_field, product_field
from .judging import LINE
from .session import Session


def judge_tab(start: Session, session: gr.State, tab: gr.Tab) -> gr.Dropdown:
    """The normals about the line, and photographs that were fine."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            product = product_field(start.products, "judged")
            threshold = gr.Slider(
                0, 1, value=LINE, step=0.01, label=f"Your line (calibrated: {LINE:.2f})", elem_id="threshold"
            )
            picture = gr.HTML(elem_id="normals")
            told = gr.HTML(elem_id="judgement")
        with gr.Column(scale=2, min_width=300):
            photograph = photograph_field("A photograph that was fine", "was-fine", ["upload", "clipboard"], 240)
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
