"""Render the model card of a detector, and publish detector and demo."""
