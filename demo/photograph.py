"""An image field that hands over the file as it was sent."""

import gradio as gr


class Photograph(gr.Image):
    """
    Gradio's image field opens what it is sent, and with a damaged or huge file fails in words of its own before any
    function is called. This one gives the file's path to the function, which looks at it first. (It takes the options of
    `gr.Image` as they are: Gradio tells the page those that stand in the signature of `__init__`.)
    """

    is_template = True  # in the page it is a plain image field

    def preprocess(self, payload) -> str | None:
        """Return the path of the uploaded file."""
        return payload.path if payload else None
