"""The tab on which photographs are inspected: one with the reason for its score, or many as a table and a zip file."""

import csv
import dataclasses
import html
import io
import re
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from modeling_anople import load_photograph
from modeling_anople.runtime.heat_maps import overlay, with_legend
from modeling_anople.explanation_anople import Box, Explanation, explain
from modeling_anople.prediction import Prediction, full_size_map, predict
from modeling_anople.processing_anople import UNKNOWN_PRODUCT

from .examples import Examples
from .inputs import (
    HIDDEN,
    MAX_PHOTOGRAPHS,
    MODEL,
    check_count,
    photograph_field,
    photographs_among,
    photographs_field,
    product_field,
    read_photograph,
    refusals,
)
from .session import FIND_IT, Finding, Session, known_product
from .style import data_address, legend_html, message_html


COLUMNS = ("no", "photograph", "verdict", "score", "line", "product", "ms", "remark")
PAGE_COLUMNS = ("no", "heat map", *COLUMNS[1:])
THUMBNAIL_SIDE = 72  # pixels
PATCH_SIDE = 224  # pixels of a cut-out on the page
CONTEXT = 0.3  # of the shorter side of a photograph: no cut-out is smaller
DISPLAY_SIDE = 1024  # pixels; larger photographs are shown smaller
WELCOME = (
    '<div class="verdict waiting" role="status">No photograph yet. Click an example, or drop, paste (Ctrl+V) or take one '
    "of your own.</div>"
)


def inspect_tab(start: Session, session: gr.State, examples: Examples) -> gr.Dropdown:
    """One photograph at once, or many as a table."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            photograph = photograph_field("Photograph", "photograph", ["upload", "webcam", "clipboard"], 300)
            product = product_field([FIND_IT, *start.products], "product")
            inspect_button = gr.Button("Inspect", variant="primary", elem_id="inspect")
            gr.HTML("Or click one of these drawn examples:")
            shown = gr.Gallery(
                [(str(path), path.stem.replace("_", " ")) for path in examples.to_inspect],
                label="Drawn examples",
                show_label=False,
                columns=3,
                height="auto",
                object_fit="cover",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="examples",
            )
        with gr.Column(scale=3, min_width=300):
            verdict = gr.HTML(WELCOME, elem_id="verdict")
            pictures = gr.ImageSlider(
                label="Photograph | heat map", elem_id="pictures", type="filepath", interactive=False, max_height=460
            )
            gr.HTML(legend_html())
            why = gr.HTML(elem_id="why")
            with gr.Accordion("Numbers", open=False):
                numbers = gr.JSON(label="Answer")
                explained = gr.JSON(label="Explanation")
    answers, asked = [numbers, verdict, pictures], [photograph, product, session]
    explaining = {"fn": show_why, "inputs": session, "outputs": [explained, why], **MODEL}
    clicked = inspect_button.click(inspect, asked, answers, api_name="inspect", **MODEL)
    clicked.success(**explaining, api_name="explain")
    chosen = shown.select(choose_example, session, [photograph, shown], **HIDDEN)
    for event in (photograph.upload, chosen.success):  # dropped, pasted and taken photographs are judged at once too
        event(inspect, asked, answers, **HIDDEN, **MODEL).success(**explaining, **HIDDEN)
    emptied = [numbers, verdict, pictures, explained, why]
    photograph.clear(lambda: (None, WELCOME, None, None, ""), None, emptied, queue=False, **HIDDEN)
    with gr.Accordion("Many photographs", open=False, elem_id="many"):
        files = photographs_field(f"Up to {MAX_PHOTOGRAPHS} photographs", "files", 160)
        folder = gr.UploadButton("Add a folder of stills", file_count="directory", size="sm", elem_id="folder")
        with gr.Row():
            inspect_all_button = gr.Button("Inspect all", variant="primary", elem_id="inspect-all")
            stop_button = gr.Button("Stop", variant="stop", elem_id="stop")
        told = gr.HTML(elem_id="many-message")
        table = gr.Dataframe(
            headers=list(PAGE_COLUMNS),
            datatype=["number", "html", "str", "str", "number", "number", "str", "number", "str"],
            interactive=False,
            label="Results: click a head to sort, a row to see it above",
            elem_id="results",
        )
        report = gr.File(label="CSV and heat maps (zip)", interactive=False, elem_id="report")
    inspect_all_button.click(
        inspect_many, [files, product, session], [table, report, told], api_name="inspect_many", **MODEL
    )
    stop_button.click(stop, session, told, queue=False, **HIDDEN)
    folder.upload(take_folder, [folder, files], files, **HIDDEN)
    table.select(show_row, session, answers, **HIDDEN).success(**explaining, **HIDDEN)
    return product


# --- What the widgets call ---


def inspect(photograph: str, product: str, session: Session) -> tuple[dict[str, Any], str, tuple]:
    """
    Judge one photograph of a product.

    Args:
        photograph: the image file.
        product: the product it shows, or "find it yourself".

    Returns:
        The numbers (words, verdict, score, line, product, milliseconds), the verdict as HTML, and the photograph with its
        heat map.
    """
    with refusals():
        finding = inspect_photograph(session, photograph, product)
    session.findings = [finding]
    return _answer(session, finding)


def show_why(session: Session) -> tuple[dict[str, Any], str]:
    """
    Explain the answer that was given last in this session.

    Returns:
        The words, the worst region, the score and the line it was held against, and the nearest good photograph; the same
        as HTML with both places as pictures.
    """
    with refusals():
        why = explain_last(session)
    return why.numbers, why_html(why)


def choose_example(session: Session, event: gr.SelectData) -> tuple[str, Any]:
    """Take the example that was clicked, by its number; it may be clicked again."""
    return str(session.examples[int(event.index)]), gr.update(selected_index=None)


def inspect_many(files: list[str], product: str, session: Session, progress: Any = gr.Progress()) -> Iterator[tuple]:
    """
    Judge many photographs; the table grows as they are judged, and what was judged is kept when it is stopped.

    Args:
        files: the image files.
        product: the product they show, or "find it yourself".

    Returns:
        The table, a zip file with a CSV file and all heat maps, and a message.
    """
    with refusals():
        check_count(files, MAX_PHOTOGRAPHS)
        session.stop.clear()
        findings, rows = [], []
        for finding in inspect_photographs(session, files, product):
            findings.append(finding)
            rows.append(page_row(len(findings), finding))
            progress((len(findings), len(files)), desc=f"{len(findings)} of {len(files)}", unit="photographs")
            yield rows, None, message_html(f"{len(findings)} of {len(files)} photographs are judged.", "busy")
            if session.stop.is_set():
                break
        session.findings = findings
        yield rows, str(write_report(session.folder, findings)), message_html(_summary(findings, len(files)))


def stop(session: Session) -> str:
    """Ask the judging of many photographs to end after the one at hand."""
    session.stop.set()
    return message_html("Stopping after this photograph.", "busy")


def take_folder(folder: list[str], files: list[str] | None) -> list[str]:
    """Add the photographs of a folder to those that are already listed; its other files stay out."""
    with refusals():
        found = photographs_among(folder or [])
        if not found:
            raise ValueError("There is no photograph in this folder.")
        return check_count([*(files or []), *found], MAX_PHOTOGRAPHS)


def show_row(session: Session, event: gr.SelectData) -> tuple:
    """Show the photograph of a row of the table, however the table is sorted."""
    with refusals():
        number = int(event.row_value[0])
        if not 1 <= number <= len(session.findings):
            raise ValueError("This row's photograph is no longer here: judge it again.")
        finding = session.findings[number - 1]
        if finding.error:
            raise ValueError(finding.error)
    remember_last(session, finding)
    return _answer(session, finding)


def _answer(session: Session, finding: Finding) -> tuple[dict[str, Any], str, tuple]:
    pictures = session.shown.write(photograph=finding.photograph, heat_map=finding.heat_map)
    return finding.numbers, verdict_html(finding), pictures


def _summary(findings: list[Finding], asked: int) -> str:
    kinds = [finding.verdict if not finding.error else "could not be judged" for finding in findings]
    parts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    ended = "" if len(findings) == asked else f"Stopped after {len(findings)} of {asked}. "
    return f"{ended}{len(findings)} photographs: {parts}."


def verdict_html(finding: Finding) -> str:
    """Say the verdict; the class is for colour, the words carry the meaning."""
    kind = "normal" if finding.verdict == "normal" else "anomalous" if finding.verdict == "anomalous" else "unsure"
    product = f"as {html.escape(finding.product)}" if finding.product else "close to none of the products taught"
    how = " (found by the detector)" if finding.found and finding.product else ""
    words, name = html.escape(finding.words), html.escape(finding.name)
    return (
        f'<div class="verdict {kind}" role="status"><strong>{words}</strong>'
        f"<span>{name}, judged {product}{how} in {finding.milliseconds:.0f} ms</span></div>"
    )


# --- One photograph, and many ---


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


def inspect_photographs(session: Session, paths: list[str], product: str | None = None) -> Iterator[Finding]:
    """Judge photographs one by one; one that cannot be used gets a finding with `error`, and the others go on."""
    known_product(session, product)
    for path in paths:
        try:
            yield inspect_photograph(session, path, product)
        except ValueError as error:
            yield Finding(Path(path).name, error=str(error))


def remember_last(session: Session, finding: Finding) -> None:
    """Make a photograph the one that is explained and judged next."""
    session.last, session.last_product = finding.path, finding.product
    session.last_asked = None if finding.found else finding.product


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


# --- Why it got its score ---


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


# --- Many: rows of the table, and the zip file ---


def table_row(number: int, finding: Finding) -> list:
    """Turn a finding into a row of `COLUMNS`."""
    if finding.error:
        return [number, finding.name, "not judged", None, None, "", None, finding.error]
    remark = "product found by the detector" if finding.found and finding.product else ""
    score, spent = round(finding.score, 4), round(finding.milliseconds)
    return [number, finding.name, finding.verdict, score, finding.line, finding.product or "", spent, remark]


def page_row(number: int, finding: Finding) -> list:
    """Turn a finding into a row of `PAGE_COLUMNS`: one of `COLUMNS` with a small heat map in it, as HTML."""
    picture = ""
    if finding.heat_map is not None:
        small = finding.heat_map.copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        picture = f'<img src="{data_address(small)}" alt="heat map {number}" class="thumbnail">'
    number, *others = table_row(number, finding)
    return [number, picture, *others]


def write_report(folder: Path, findings: list[Finding]) -> Path:
    """Write results.csv and the heat maps with their legend into one zip file in a folder, and return its path."""
    path = folder / "anople_results.zip"
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow([*COLUMNS, "heat_map"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, finding in enumerate(findings, start=1):
            name = ""
            if finding.heat_map is not None:
                name = f"heat_maps/{number:03d}-{_plain(Path(finding.name).stem)}.png"
                picture = io.BytesIO()
                with_legend(finding.heat_map).save(picture, "PNG")
                archive.writestr(zipfile.ZipInfo(name), picture.getvalue())  # no date: equal findings, equal files
            writer.writerow([_inert(value) for value in [*table_row(number, finding), name]])
        archive.writestr("results.csv", table.getvalue())
    return path


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60] or "photograph"


def _inert(value: object) -> object:
    """Keep a spreadsheet from taking a text for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value
