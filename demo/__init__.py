"""The demo: a Gradio app in which a detector is tried, taught and judged."""
