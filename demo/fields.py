"""Widgets that several tabs have, and how the handlers behind them are called."""

from typing import Any

import gradio as gr

from .photograph import Photograph


MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one question to the model at a time
HIDDEN = {"api_visibility": "private"}
# The camera that looks away from the person, and its picture as it is: a mirrored product is another one.
CAMERA = gr.WebcamOptions(
    mirror=False,
    constraints={
        "video": {"facingMode": {"ideal": "environment"}, "width": {"ideal": 1920}, "height": {"ideal": 1440}}
    },
)


def photograph_field(label: str, identity: str, sources: list[str], height: int) -> Photograph:
    """Make a field for one photograph, which reaches the handler as the file that was sent."""
    return Photograph(
        label=label,
        elem_id=identity,
        type="filepath",
        image_mode=None,
        sources=sources,
        height=height,
        webcam_options=CAMERA,
    )


def photographs_field(label: str, identity: str, height: int, **options: Any) -> gr.File:
    """Make a field for many photographs."""
    options = {"file_count": "multiple", "file_types": ["image"], **options}
    return gr.File(label=label, elem_id=identity, height=height, **options)


def product_field(names: list[str], identity: str) -> gr.Dropdown:
    """Make a list of products; names that are not in it reach the handler, which knows this session's."""
    return gr.Dropdown(names, value=names[0], label="Product", allow_custom_value=True, elem_id=identity)
