"""
Answer for a Hugging Face Inference Endpoint, in the repository of a detector: `handler.py` beside its weights.

It needs transformers alone: the detector's code lies in the same folder. Rows are those of `anople predict` and `serve`.
"""

import base64
from typing import Any

from PIL import Image
from transformers import pipeline


class EndpointHandler:
    """A detector that an endpoint asks."""

    def __init__(self, path: str = ""):
        """
        Load the detector.

        Args:
            path: its folder.
        """
        self.detector = pipeline(model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Judge photographs.

        Args:
            data: `inputs`, one photograph or a list: bytes, a PIL image, or a text in base64 (also a data URL); and
                `parameters`, which may have `product` (predicted without one), `threshold` and `min_area`.

        Returns:
            A row for each photograph: class, score (0.5 is the threshold), label, regions, ...; one that cannot be judged
            has its `error`, and neither score nor label.

        Raises:
            ValueError: for an unknown product or parameter, and where no photograph was sent.
        """
        inputs, parameters = data.get("inputs"), dict(data.get("parameters") or {})
        product, threshold = parameters.pop("product", None), parameters.pop("threshold", None)
        min_area = parameters.pop("min_area", 1)
        if parameters:
            raise ValueError(f"{', '.join(parameters)} is no parameter: there are product, threshold and min_area.")
        photographs = inputs if isinstance(inputs, list) else [inputs]
        if inputs is None or not photographs:
            raise ValueError("No photograph was sent: give inputs, an image in base64 or a list of them.")
        sources = [decoded(each) for each in photographs]
        given = {"threshold": threshold} if threshold is not None else {}
        answers = self.detector.forward(sources, class_names=product, batch_size=8, **given)
        return [
            answer.as_row(answer.find_regions(min_area=min_area) if answer.error is None else None)
            for answer in answers
        ]


def decoded(photograph: object) -> bytes | Image.Image:
    """Return bytes or a picture. Nothing else that is sent is opened: a text, or what a dict names, is no file of this machine."""
    if isinstance(photograph, (bytes, Image.Image)):
        return photograph
    try:
        return base64.b64decode(str(photograph).rpartition(",")[2], validate=True)
    except ValueError:
        return b""  # no image, which becomes the error of this photograph
