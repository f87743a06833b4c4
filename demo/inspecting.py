"""Judge photographs: the answer in words, and the pictures that show it."""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_anople import load_photograph
from modeling_anople.runtime.heat_maps import overlay
from modeling_anople.prediction import Prediction, full_size_map, predict
from modeling_anople.processing_anople import UNKNOWN_PRODUCT

from .reading import read_photograph
from .session import Session


FIND_IT = "find it yourself"
DISPLAY_SIDE = 1024  # pixels; larger photographs are shown smaller


@dataclass
class Finding:
    """
    What is known of one photograph.

    Args:
        name: of its file.
        error: why it could not be judged; everything below is then `None`.
        verdict: "normal", "anomalous" or "unknown product"; "no line" where the product has none.
        score: 0.5 is the calibrated line.
        line: the line it was held against.
        product: as which it was judged; `None` where it is unknown.
        found: whether the product was found by the detector.
        milliseconds: from opening the file to the answer.
        photograph, heat_map: pictures of one size, at most `DISPLAY_SIDE` long.
        path: of the file, where it was sent to.
    """

    name: str
    error: str | None = None
    verdict: str | None = None
    score: float | None = None
    line: float | None = None
    product: str | None = None
    found: bool = False
    milliseconds: float | None = None
    photograph: Image.Image | None = None
    heat_map: Image.Image | None = None
    path: str | None = None

    @property
    def words(self) -> str:
        """The answer as a person says it."""
        if self.error:
            return self.error
        return f"{self.verdict}, {self.score:.2f}; line at {self.line:.2f}"

    @property
    def numbers(self) -> dict[str, Any]:
        """The answer for programs."""
        answer = {"words": self.words, "verdict": self.verdict, "score": round(self.score, 6), "line": self.line}
        return answer | {"product": self.product, "found": self.found, "milliseconds": round(self.milliseconds, 1)}


def inspect_photograph(session: Session, path: str | Path | None, product: str | None = None) -> Finding:
    """
    Judge one photograph.

    Args:
        path: of the file.
        product: what it shows; `FIND_IT` or `None` lets the detector find out.

    Raises:
        ValueError: for a product that the detector does not know, and a file that cannot be used.
    """
    start = time.perf_counter()
    name = known_product(session, product)
    source = read_photograph(path)
    photograph = load_photograph(source, white_value=session.processor.white_value)
    prediction = next(predict(session.model, session.processor, [photograph], class_names=name, batch_size=1))
    if prediction.error:  # the product keeps an ignore mask of another size
        raise ValueError(prediction.error)
    milliseconds = 1000 * (time.perf_counter() - start)
    finding = _finding(source["path"], photograph, prediction, line=session.threshold, asked=name, spent=milliseconds)
    finding.path = str(path)
    remember_last(session, finding)
    return finding


def remember_last(session: Session, finding: Finding) -> None:
    """Make a photograph the one that is explained and judged next."""
    session.last, session.last_product = finding.path, finding.product
    session.last_asked = None if finding.found else finding.product


def inspect_photographs(session: Session, paths: list[str], product: str | None = None) -> Iterator[Finding]:
    """Judge photographs one by one; one that cannot be used gets a finding with `error`, and the others go on."""
    known_product(session, product)
    for path in paths:
        try:
            yield inspect_photograph(session, path, product)
        except ValueError as error:
            yield Finding(Path(path).name, error=str(error))


def known_product(session: Session, product: str | None) -> str | None:
    """
    Return the product's name, or `None` where it is to be found.

    Raises:
        ValueError: for an unknown one, with those that are known.
    """
    if not product or product == FIND_IT:
        return None
    if product not in session.products:
        known = ", ".join(session.products)
        raise ValueError(f"{product[:60]} is not known here: choose one of {known}, or teach it first.")
    return product


def _finding(
    name: str, photograph: Image.Image, prediction: Prediction, *, line: float, asked: str | None, spent: float
) -> Finding:
    verdict = prediction.label or "no line"
    if prediction.label not in (None, UNKNOWN_PRODUCT):
        verdict = "anomalous" if prediction.score > line else "normal"
    shown = photograph.copy()
    shown.thumbnail((DISPLAY_SIDE, DISPLAY_SIDE))
    heat = full_size_map(dataclasses.replace(prediction, size=shown.size[::-1]))
    return Finding(
        name=name,
        verdict=verdict,
        score=prediction.score,
        line=line,
        product=prediction.class_name,
        found=asked is None,
        milliseconds=spent,
        photograph=shown,
        heat_map=overlay(shown, heat),
    )
