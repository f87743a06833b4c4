"""How a product's good photographs lie about the line, and what another line would do to them."""

import base64
import html
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from modeling_anople.calibration_anople import describe_support
from modeling_anople.runtime.heat_maps import LINE, colorize

from .inspecting import known_product
from .session import Session


@dataclass
class Judgement:
    """
    A product's normals about a line.

    Args:
        product: its name.
        threshold: the line asked about.
        photographs: how many good photographs the product knows.
        scores: of each against the memory of the others, or of a lone one's moved and relit copies; 0.5 is the line.
        support: what the photographs behind the calibrated line can promise.
    """

    product: str
    threshold: float
    photographs: int
    scores: list[float]
    support: str

    @property
    def flagged(self) -> int:
        """How many of the scores lie above the line asked about."""
        return sum(score > self.threshold for score in self.scores)

    @property
    def words(self) -> str:
        """What the line does, and how little stands behind the calibrated one."""
        shown = "1 good photograph" if self.photographs == 1 else f"{self.photographs} good photographs"
        return (
            f"At {self.threshold:.2f}, {self.flagged} of {len(self.scores)} measurements of {shown} would be flagged. (Each "
            "photograph is measured against the others; a lone one by four slightly moved and relit copies.) The calibrated "
            f"line is {LINE:.2f}. {self.support}"
        )


def judge(session: Session, product: str | None, threshold: float) -> Judgement:
    """
    Hold a product's normals against a line, which the session uses from now on.

    Raises:
        ValueError: for an unknown product or one without a line, or a line outside 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"A line lies between 0 and 1, got {threshold}.")
    session.threshold = threshold
    name = known_product(session, product) or session.products[0]
    entry = session.model.config.calibration.get(name)
    if entry is None:
        raise ValueError(f"{name} has no line: its photographs were never calibrated.")
    line, spread = math.log(entry["image_line"]), entry["image_spread"]
    measured = entry["image_scores"] or entry.get("image_copies", [])
    scores = [1 / (1 + math.exp(min((line - math.log(max(raw, 1e-9))) / spread, 80))) for raw in measured]
    known = len(session.model.memory.counts[session.products.index(name)])
    return Judgement(name, threshold, known, sorted(scores), describe_support(entry))


def scale_picture() -> str:
    """Draw the fixed colour scale as one row of pixels; a data address."""
    file = io.BytesIO()
    Image.fromarray(colorize(np.linspace(0, 1, 256)[None])).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def draw_judgement(judgement: Judgement) -> str:
    """Draw the scores as dots over the colour scale, with both lines, as SVG in the page's own ink."""
    left, width, base = 10, 580, 96
    places: dict[int, int] = {}
    dots = []
    for score in judgement.scores:
        x = round(left + width * score)
        slot = x // 9
        places[slot] = places.get(slot, 0) + 1
        above = ' class="flagged"' if score > judgement.threshold else ""
        dots.append(f'<circle{above} cx="{x}" cy="{base - 12 - 10 * min(places[slot] - 1, 6)}" r="4.5"/>')
    calibrated, chosen = left + width * LINE, left + width * judgement.threshold
    label = html.escape(
        f"{judgement.product}: {judgement.flagged} of {len(judgement.scores)} above the line", quote=True
    )
    anchor = "end" if judgement.threshold > 0.7 else "start"
    return f"""<svg class="normals" viewBox="0 0 600 140" role="img" aria-label="{label}">
<image href="{scale_picture()}" x="{left}" y="{base}" width="{width}" height="12" preserveAspectRatio="none"/>
{"".join(dots)}
<line class="calibrated" x1="{calibrated}" x2="{calibrated}" y1="22" y2="{base + 18}"/>
<text x="{calibrated}" y="{base + 34}" text-anchor="middle">calibrated line {LINE:.2f}</text>
<line class="chosen" x1="{chosen}" x2="{chosen}" y1="12" y2="{base + 12}"/>
<text x="{chosen + (-6 if anchor == "end" else 6)}" y="18" text-anchor="{anchor}">your line {judgement.threshold:.2f}</text>
<text x="{left}" y="{base + 34}">0 good</text><text x="{left + width}" y="{base + 34}" text-anchor="end">1 anomalous</text>
</svg>"""
