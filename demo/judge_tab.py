"""The tab on which a product's threshold is judged: how its good images lie about it, and what another would do."""

import html
from dataclasses import dataclass

import gradio as gr
import torch

from modeling_anople.calibration_anople import calibrate, describe_guarantee
from modeling_anople.enrollment_anople import add_normals
from modeling_anople.runtime.heat_maps import LINE

from .inputs import HIDDEN, MODEL, image_field, product_field, read_image, refusals, say_refusals
from .session import Session
from .style import color_scale_url, message_html


MAX_NORMAL_IMAGES = 200  # of one product


def judge_tab(start: Session, session: gr.State, tab: gr.Tab) -> gr.Dropdown:
    """Lay out the tab: good images about the threshold, and ones that were fine. Returns the list of products."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            product = product_field(start.products, "judged")
            threshold = gr.Slider(
                0, 1, value=LINE, step=0.01, label=f"Your line (calibrated: {LINE:.2f})", elem_id="threshold"
            )
            drawing = gr.HTML(elem_id="normals")
            message = gr.HTML(elem_id="judgment")
        with gr.Column(scale=2, min_width=300):
            image = image_field("A photograph that was fine", "was-fine", ["upload", "clipboard"], 240)
            fine_button = gr.Button("This was fine: add it", variant="primary", elem_id="fine")
            added_message = gr.HTML(elem_id="fine-message")
    questions, answers = [product, threshold, session], [message, drawing]
    filled = [product, threshold, image]
    opened = tab.select(open_tab, session, [*filled, *answers], **HIDDEN, **MODEL)
    say_refusals(opened, session, message, emptied=[drawing], kept=filled)
    chosen = product.input(show_threshold, questions, answers, **HIDDEN, **MODEL)
    say_refusals(chosen, session, message, emptied=[drawing])
    moved = threshold.change(
        show_threshold,
        questions,
        answers,
        api_name="judge",
        trigger_mode="always_last",
        show_progress="hidden",
        **MODEL,
    )
    say_refusals(moved, session, message, emptied=[drawing])
    added = fine_button.click(
        add_normal,
        [product, image, threshold, session],
        [added_message, *answers],
        api_name="add_normals",
        **MODEL,
    )
    say_refusals(added, session, added_message, kept=answers)
    return product


# --- What the widgets call ---


def open_tab(session: Session) -> tuple:
    """Fill the page on which a product is judged: the product and the photograph that were inspected last."""
    product = session.last_product if session.last_product in session.products else session.products[0]
    answers = show_threshold(product, session.threshold, session)
    return gr.update(choices=session.products, value=product), session.threshold, session.last_path, *answers


def show_threshold(product: str, threshold: float, session: Session) -> tuple[str, str]:
    """
    Count how many of a product's good photographs a line would flag; the session uses this line from now on.

    Args:
        product: a product that was taught.
        threshold: the line, between 0 and 1; the calibrated one is 0.5.

    Returns:
        The answer in words, and a picture as SVG.
    """
    with refusals(session):
        report = judge_threshold(session, product, threshold)
    return message_html(report.words, "plain"), draw_threshold(report)


def add_normal(product: str, photograph: str, threshold: float, session: Session) -> tuple[str, str, str]:
    """
    Add a photograph that was fine to a product's good ones, and set its line anew.

    Args:
        product: a product that was taught.
        photograph: the image file.
        threshold: the line to hold the good photographs against.

    Returns:
        A message, and the answer of /judge in words and as a picture.
    """
    with refusals(session):
        words = add_normal_image(session, product, photograph)
    return message_html(words), *show_threshold(product, threshold, session)


# --- Hold the good images against a threshold, and add one ---


@dataclass
class ThresholdReport:
    """
    A product's good images about a threshold.

    Args:
        product: its name.
        threshold: the one asked about.
        image_count: how many good images the product knows.
        scores: of each against the memory of the others, or of a lone one's moved and relit copies; sorted, and
            calibrated to 0.5.
        guarantee: what the images behind the calibrated threshold can promise, in words.
        open_from: from which score on what lies below the threshold is called unsure; 1 where nothing is.
    """

    product: str
    threshold: float
    image_count: int
    scores: list[float]
    guarantee: str
    open_from: float

    @property
    def leaves_open(self) -> bool:
        """Whether there are scores below the threshold that are called unsure."""
        return self.open_from < self.threshold

    @property
    def flagged(self) -> int:
        """How many of the scores lie above the threshold asked about."""
        return sum(score > self.threshold for score in self.scores)

    @property
    def words(self) -> str:
        """What the threshold does, and how little stands behind the calibrated one."""
        images = "1 good photograph" if self.image_count == 1 else f"{self.image_count} good photographs"
        unsure = (
            f" What lies between {self.open_from:.2f}, the oddest of them, and your line is called unsure: so few photographs "
            "leave it open."
        )
        return (
            f"At {self.threshold:.2f}, {self.flagged} of {len(self.scores)} measurements of {images} would be flagged. (Each "
            "photograph is measured against the others; a lone one by four slightly moved and relit copies.) The calibrated "
            f"line is {LINE:.2f}. {self.guarantee}{unsure if self.leaves_open else ''}"
        )


def judge_threshold(session: Session, product: str | None, threshold: float) -> ThresholdReport:
    """
    Hold a product's good images against a threshold, which the session uses from now on.

    Raises:
        ValueError: for an unknown product or one without a threshold, or a threshold outside 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"A line lies between 0 and 1, got {threshold}.")
    session.threshold = threshold
    name = session.resolve_product(product) or session.products[0]
    calibrated = session.model.products.named(name).record.threshold
    if calibrated is None:
        raise ValueError(f"{name} has no line: its photographs were never calibrated.")
    # The scores that the threshold was fitted from, brought to the scale of every answer. No image is judged again while
    # a slider moves.
    raw_scores = calibrated.image_scores or calibrated.jittered_image_scores
    scores = calibrate(torch.tensor(raw_scores), [calibrated] * len(raw_scores), "image")
    open_from = calibrate(torch.tensor([calibrated.open_from]), [calibrated], "image").item()
    promised = describe_guarantee(calibrated)
    return ThresholdReport(name, threshold, session.image_count(name), sorted(scores.tolist()), promised, open_from)


def draw_threshold(report: ThresholdReport) -> str:
    """
    Draw the scores as dots over the color scale, with both thresholds and what is unsure, as SVG in the page's own ink.

    `gr.ScatterPlot` has neither rules nor a picture as its axis, and a slider that moves would make it anew each time.
    """
    left, width, base = 10, 580, 96
    # Dots that would cover each other are stacked, up to the seventh.
    stacked: dict[int, int] = {}
    dots = []
    for score in report.scores:
        x = round(left + width * score)
        slot = x // 9
        stacked[slot] = stacked.get(slot, 0) + 1
        above = ' class="flagged"' if score > report.threshold else ""
        dots.append(f'<circle{above} cx="{x}" cy="{base - 12 - 10 * min(stacked[slot] - 1, 6)}" r="4.5"/>')
    calibrated, chosen = left + width * LINE, left + width * report.threshold
    band = ""
    if report.leaves_open:
        start = left + width * report.open_from
        band = f'<rect class="open" x="{start}" y="22" width="{chosen - start}" height="{base - 22}"/>'
        if chosen - start > 50:  # as wide as its word
            band += f'<text x="{(start + chosen) / 2}" y="38" text-anchor="middle">unsure</text>'
    label = html.escape(f"{report.product}: {report.flagged} of {len(report.scores)} above the line", quote=True)
    anchor = "end" if report.threshold > 0.7 else "start"
    return f"""<svg class="normals" viewBox="0 0 600 140" role="img" aria-label="{label}">
{band}
<image href="{color_scale_url()}" x="{left}" y="{base}" width="{width}" height="12" preserveAspectRatio="none"/>
{"".join(dots)}
<line class="calibrated" x1="{calibrated}" x2="{calibrated}" y1="22" y2="{base + 18}"/>
<text x="{calibrated}" y="{base + 34}" text-anchor="middle">calibrated line {LINE:.2f}</text>
<line class="chosen" x1="{chosen}" x2="{chosen}" y1="12" y2="{base + 12}"/>
<text x="{chosen + (-6 if anchor == "end" else 6)}" y="18" text-anchor="{anchor}">your line {report.threshold:.2f}</text>
<text x="{left}" y="{base + 34}">0 good</text><text x="{left + width}" y="{base + 34}" text-anchor="end">1 anomalous</text>
</svg>"""


def add_normal_image(session: Session, product: str | None, path: str | None) -> str:
    """
    Show a product of a session's own detector one more good image; says how many it knows now.

    Raises:
        ValueError: for an unknown product, an image that cannot be used or is known already; nothing was changed.
    """
    name = session.resolve_product(product)
    if name is None:
        raise ValueError("Choose the product first.")
    if session.image_count(name) >= MAX_NORMAL_IMAGES:
        raise ValueError(f"{name} has {MAX_NORMAL_IMAGES} photographs, which is as many as the demo takes.")
    image, before = read_image(path), session.lines
    model, processor = session.own_detector()
    add_normals(model, processor, name, [image])
    session.keep_sources(name, [image])
    said = f"Added. {name} now knows {session.image_count(name)} good photographs, and its line is set anew."
    return said + session.lost_costs(before)
