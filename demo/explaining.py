"""Why the last photograph got its score: its worst region beside the nearest good patch, and the line in words."""

import base64
import html
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from modeling_anople import load_photograph
from modeling_anople.explanation_anople import Box, Explanation, explain

from .reading import read_photograph
from .session import Session


PATCH_SIDE = 224  # pixels of a cut-out on the page
CONTEXT = 0.3  # of the shorter side of a photograph: no cut-out is smaller


@dataclass
class Why:
    """
    An explanation with its pictures.

    Args:
        explanation: the detector's own.
        words: the same as a person says it.
        worst: the worst region of the photograph, outlined.
        nearest: the nearest patch, outlined in the good photograph it is from; `None` where no picture is at hand.
        nearest_name: of that photograph.
    """

    explanation: Explanation
    words: str
    worst: Image.Image
    nearest: Image.Image | None
    nearest_name: str | None

    @property
    def numbers(self) -> dict[str, Any]:
        """The explanation for programs."""
        return {"words": self.words, **self.explanation.as_dict(), "nearest_photograph": self.nearest_name}


def explain_last(session: Session) -> Why:
    """
    Explain the answer that was given last.

    Raises:
        ValueError: if there is none, or its photograph is no longer here.
    """
    photograph = load_photograph(read_photograph(session.last), white_value=session.processor.white_value)
    found = explain(session.model, session.processor, photograph, session.last_asked)
    if found.line is not None and not found.decided_by["line"].startswith("product"):
        found.line, found.past = session.threshold, found.score - session.threshold
    name, picture = found.nearest_photograph, None
    if found.nearest_index is not None and found.nearest_class in session.products:
        if kept := session.normal(found.nearest_class, found.nearest_index):
            name = kept.name
            with Image.open(kept.path) as copy:
                picture = cut_out(copy.convert("RGB"), found.nearest_box, kept.size)
        name = name or f"good photograph {found.nearest_index + 1} of {found.nearest_class}"
    worst = cut_out(photograph, found.box, photograph.size)
    return Why(found, why_words(found, name), worst, picture, name)


def cut_out(picture: Image.Image, box: Box | None, size: tuple[int, int]) -> Image.Image:
    """
    Cut a square around a box, which is outlined; without a box, show the whole picture.

    Args:
        picture: perhaps smaller than what the box was measured in.
        box: left, top, right, bottom.
        size: width and height of what the box was measured in.
    """
    if box is None:
        return picture.resize((PATCH_SIDE, PATCH_SIDE))
    factor = picture.width / size[0]
    left, top, right, bottom = (value * factor for value in box)
    side = min(max(1.3 * (right - left), 1.3 * (bottom - top), CONTEXT * min(picture.size)), *picture.size)
    x = min(max((left + right - side) / 2, 0), picture.width - side)
    y = min(max((top + bottom - side) / 2, 0), picture.height - side)
    patch = picture.resize((PATCH_SIDE, PATCH_SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    scale, last = PATCH_SIDE / side, PATCH_SIDE - 2
    outline = [min(max(value * scale, 1), last) for value in (left - x, top - y, right - x, bottom - y)]
    draw = ImageDraw.Draw(patch)
    draw.rectangle(outline, outline="black", width=4)
    draw.rectangle([outline[0] + 1, outline[1] + 1, outline[2] - 1, outline[3] - 1], outline="white", width=2)
    return patch


def why_words(found: Explanation, nearest: str | None) -> str:
    """Say which line decided, how far past it the photograph is, and what it was compared with."""
    product, decided = found.decided_by["class_name"] or "all products", found.decided_by["line"]
    if decided is None:
        words = f"{product} has no line yet."
    elif decided.startswith("product"):
        part = "Its parts are" if decided.endswith("patches") else "As a whole it is"
        words = f"{part} too far from {product}, the nearest product that was taught."
    else:
        side = "past" if found.past > 0 else "below"
        words = f"{found.score:.2f} is {abs(found.past):.2f} {side} the line of {product}, {found.line:.2f}."
    if nearest is not None:
        words += f" The outlined place is nearest to one in {nearest}, at a distance of {found.nearest_distance:.2f}."
    return words


def why_html(why: Why) -> str:
    """Show the explanation on the page."""
    figures = _figure(why.worst, "The worst region of this photograph", "worst")
    if why.nearest is not None:
        figures += _figure(why.nearest, f"The nearest good place, in {why.nearest_name}", "nearest")
    return f'<div class="why" role="group" aria-label="Why">{figures}<p>{html.escape(why.words)}</p></div>'


def _figure(picture: Image.Image, caption: str, kind: str) -> str:
    caption = html.escape(caption, quote=True)
    return f'<figure class="{kind}"><img src="{data_address(picture)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def data_address(picture: Image.Image) -> str:
    """Write a small picture into an address of its own."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=85, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
