"""The tab on which a product's line is judged: how its good photographs lie about it, and what another line would do."""

import html
import math
from dataclasses import dataclass

import gradio as gr

from modeling_anople.calibration_anople import describe_support
from modeling_anople.runtime.heat_maps import LINE

from .inputs import HIDDEN, MODEL, photograph_field, product_field, read_photograph, refusals
from .session import Session, known_product
from .style import message_html, scale_picture


MAX_NORMALS = 200


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
            fine_button = gr.Button("This was fine: add it", variant="primary", elem_id="fine")
            added = gr.HTML(elem_id="fine-message")
    asked, answers = [product, threshold, session], [told, picture]
    opened = [product, threshold, photograph, *answers]
    tab.select(open_judge, session, opened, **HIDDEN, **MODEL)
    product.input(show_judgement, asked, answers, **HIDDEN, **MODEL)
    threshold.change(
        show_judgement,
        asked,
        answers,
        api_name="judge",
        trigger_mode="always_last",
        show_progress="hidden",
        **MODEL,
    )
    fine_button.click(
        this_was_fine,
        [product, photograph, threshold, session],
        [added, *answers],
        api_name="add_normals",
        **MODEL,
    )
    return product


# --- What the widgets call ---


def open_judge(session: Session) -> tuple:
    """Fill the page on which a product is judged: the product and the photograph that were inspected last."""
    product = session.last_product if session.last_product in session.products else session.products[0]
    words, picture = show_judgement(product, session.threshold, session)
    return gr.update(choices=session.products, value=product), session.threshold, session.last, words, picture


def show_judgement(product: str, threshold: float, session: Session) -> tuple[str, str]:
    """
    Count how many of a product's good photographs a line would flag; the session uses this line from now on.

    Args:
        product: a product that was taught.
        threshold: the line, between 0 and 1; the calibrated one is 0.5.

    Returns:
        The answer in words, and a picture as SVG.
    """
    with refusals():
        judgement = judge(session, product, threshold)
    return message_html(judgement.words, "plain"), draw_judgement(judgement)


def this_was_fine(product: str, photograph: str, threshold: float, session: Session) -> tuple[str, str, str]:
    """
    Add a photograph that was fine to a product's good ones, and set its line anew.

    Args:
        product: a product that was taught.
        photograph: the image file.
        threshold: the line to hold the good photographs against.

    Returns:
        A message, and the answer of show_judgement in words and as a picture.
    """
    with refusals():
        words = add_fine(session, product, photograph)
    return message_html(words), *show_judgement(product, threshold, session)


# --- Hold the good photographs against a line, and add one ---


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


def add_fine(session: Session, product: str | None, path: str | None) -> str:
    """
    Show a product of a session's own detector one more good photograph; says how many it knows now.

    Raises:
        ValueError: for an unknown product, a photograph that cannot be used or is known already; nothing was changed.
    """
    name = known_product(session, product)
    if name is None:
        raise ValueError("Choose the product first.")
    class_id = session.products.index(name)
    if len(session.model.memory.counts[class_id]) >= MAX_NORMALS:
        raise ValueError(f"{name} has {MAX_NORMALS} photographs, which is as many as the demo takes.")
    photograph = read_photograph(path)
    model, processor = session.own()
    model.add_normals(name, [photograph], processor=processor)
    session.keep_files(name, [photograph])
    return f"Added. {name} now knows {len(model.memory.counts[class_id])} good photographs, and its line is set anew."
