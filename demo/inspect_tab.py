"""The tab on which images are inspected: one with the reason for its score, or many as a table and a zip file."""

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
from gradio.events import Dependency
from PIL import Image, ImageDraw

from modeling_anople import load_image
from modeling_anople.explanation_anople import Box, Explanation
from modeling_anople.pipeline_anople import Prediction, predict
from modeling_anople.runtime.heat_maps import number_regions, overlay, with_legend
from modeling_anople.runtime.outputs import inert

from .examples import Examples
from .inputs import (
    HIDDEN,
    MAX_IMAGES,
    MODEL,
    ProductChange,
    check_count,
    image_field,
    images_among,
    images_field,
    product_choices,
    product_field,
    read_image,
    refusals,
    say_refusals,
)
from .judge_tab import add_normal_image
from .session import PREDICT_PRODUCT, Inspection, Session
from .style import VERDICTS, data_url, kind_of, legend_html, message_html, verdict_box


COLUMNS = ("no", "photograph", "verdict", "score", "line", "product", "ms", "remark")
PAGE_COLUMNS = ("no", "heat map", *COLUMNS[1:])
COLUMN_WIDTHS = [34, 58, 104, 118, 84, 64, 130, 64, 520]  # pixels: a phone shows the first four
THUMBNAIL_SIDE = 72  # pixels
CROP_SIDE = 224  # pixels of a crop on the page
CROP_MARGIN = 1.3  # sides of the box
SMALLEST_CROP = 0.3  # of the shorter side of an image
DISPLAY_SIDE = 1024  # pixels; larger images are shown smaller
MOST_NUMBERED = 20  # regions of a picture: more numbers would cover it
WELCOME = (
    '<div class="verdict waiting" role="status">No photograph yet. Click an example, or drop, paste (Ctrl+V) or take one '
    "of your own.</div>"
)


def inspect_tab(start: Session, session: gr.State, examples: Examples) -> tuple[gr.Dropdown, ProductChange]:
    """
    Lay out the tab: one image at once, or many as a table.

    Returns:
        The list of products, and what takes back a change of them.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = image_field("Photograph", "photograph", ["upload", "webcam", "clipboard"], 300)
            product = product_field([PREDICT_PRODUCT, *start.products], "product")
            inspect_button = gr.Button("Inspect", variant="primary", elem_id="inspect")
            gr.HTML("Or click one of these drawn examples:")
            gallery = gr.Gallery(
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
            undoing = _feedback(session)
            explanation = gr.HTML(elem_id="why")
            with gr.Accordion("Numbers", open=False):
                numbers = gr.JSON(label="Answer")
                explanation_numbers = gr.JSON(label="Explanation")
    answers, questions = [numbers, verdict, pictures], [image, product, session]
    explaining = {"fn": explain_answer, "inputs": session, "outputs": [explanation_numbers, explanation], **MODEL}
    emptied = [numbers, pictures, explanation_numbers, explanation]

    def explain_after(event: Dependency, **options: str) -> None:
        """Explain an answer; where there is none, say why in its place, and show nothing of the one before."""
        say_refusals(event, session, verdict, emptied=emptied)
        say_refusals(event.success(**explaining, **options), session, explanation, emptied=[explanation_numbers])

    explain_after(inspect_button.click(inspect, questions, answers, api_name="inspect", **MODEL), api_name="explain")
    example_chosen = gallery.select(choose_example, session, [image, gallery], **HIDDEN)
    # Dropped, pasted and taken images are judged at once too; the API has one endpoint for all ways.
    for event in (image.upload, example_chosen.success):
        explain_after(event(inspect, questions, answers, **HIDDEN, **MODEL), **HIDDEN)
    image.clear(lambda: (WELCOME, *[None] * len(emptied)), None, [verdict, *emptied], queue=False, **HIDDEN)
    table = _many_images(session, product)
    explain_after(table.select(show_row, session, answers, **HIDDEN), **HIDDEN)
    return product, undoing


def _feedback(session: gr.State) -> ProductChange:
    """Lay out what a person may answer to a verdict; returns what takes it back."""
    with gr.Row():
        good_button = gr.Button("This part is good", size="sm", elem_id="good")
        undo_button = gr.Button("Undo", size="sm", elem_id="undo-good")
    message = gr.HTML(elem_id="good-message")
    say_refusals(good_button.click(learn_last, session, message, **HIDDEN, **MODEL), session, message)
    return ProductChange(undo_button.click, undo_last, [], [message], message, HIDDEN)


def _many_images(session: gr.State, product: gr.Dropdown) -> gr.Dataframe:
    """Lay out the part for many images; returns the table, whose rows are shown above."""
    with gr.Accordion("Many photographs", open=False, elem_id="many"):
        files = images_field(f"Up to {MAX_IMAGES} photographs", "files", 160)
        folder = gr.UploadButton("Add a folder of stills", file_count="directory", size="sm", elem_id="folder")
        with gr.Row():
            inspect_all_button = gr.Button("Inspect all", variant="primary", elem_id="inspect-all")
            stop_button = gr.Button("Stop", variant="stop", elem_id="stop")
        message = gr.HTML(elem_id="many-message")
        table = gr.Dataframe(
            headers=list(PAGE_COLUMNS),
            datatype=["number", "html", "str", "str", "number", "number", "str", "number", "str"],
            interactive=False,
            label="Results: click a head to sort, a row to see it above",
            wrap=True,
            column_widths=COLUMN_WIDTHS,
            elem_id="results",
        )
        report = gr.File(label="CSV and heat maps (zip)", interactive=False, elem_id="report")
    judged = inspect_all_button.click(
        inspect_many, [files, product, session], [table, report, message], api_name="inspect_many", **MODEL
    )
    say_refusals(judged, session, message, kept=[table, report])
    stop_button.click(stop, session, message, queue=False, **HIDDEN)
    taken = folder.upload(take_folder, [folder, files, session], files, **HIDDEN)
    say_refusals(taken, session, message, kept=[files])
    return table


# --- What the widgets call ---


def inspect(photograph: str, product: str, session: Session) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """
    Judge one photograph of a product.

    Args:
        photograph: the image file.
        product: the product it shows, or "find it yourself".

    Returns:
        The numbers (words, verdict, score, line, product, milliseconds), the verdict as HTML, and the photograph with its
        heat map.
    """
    with refusals(session):
        inspection = inspect_image(session, photograph, product)
    session.inspections = [inspection]
    return _answer(session, inspection)


def explain_answer(session: Session) -> tuple[dict[str, Any], str]:
    """
    Explain the answer that was given last in this session.

    Returns:
        The words, the worst region, the score and the line it was held against, and the nearest good photograph; the same
        as HTML with both places as pictures.
    """
    with refusals(session):
        explained = explain_last(session)
    return explained.numbers, explanation_html(explained)


def learn_last(session: Session) -> str:
    """Add the photograph that was judged last to the good ones of its product, in this session."""
    with refusals(session):
        if session.last_product is None:
            raise ValueError("Inspect a photograph of a product first.")
        with session.undoable():
            words = add_normal_image(session, session.last_product, session.last_path)
    return message_html(f"{words} Inspect it again to see; Undo takes it back.")


def undo_last(session: Session) -> tuple:
    """Take back what was learned, renamed, forgotten or replaced last."""
    with refusals(session):
        session.undo()
    return message_html("The detector is as it was before."), *product_choices(session)


def choose_example(session: Session, event: gr.SelectData) -> tuple[str, Any]:
    """Take the example that was clicked, by its number; it may be clicked again."""
    return str(session.examples[int(event.index)]), gr.update(selected_index=None)


def inspect_many(
    files: list[str], product: str, session: Session, progress: gr.Progress = gr.Progress()
) -> Iterator[tuple]:
    """
    Judge many photographs; the table grows as they are judged, and what was judged is kept when it is stopped.

    Args:
        files: the image files.
        product: the product they show, or "find it yourself".

    Returns:
        The table, a zip file with a CSV file and all heat maps, and a message.
    """
    with refusals(session):
        check_count(files, MAX_IMAGES)
        session.stop.clear()
        inspections, rows = [], []
        for done, inspection in enumerate(inspect_images(session, files, product), start=1):
            inspections.append(inspection)
            rows.append((inspection, page_row(done, inspection)))
            progress((done, len(files)), desc=f"{done} of {len(files)}", unit="photographs")
            yield page_table(rows), None, message_html(f"{done} of {len(files)} photographs are judged.", "busy")
            if session.stop.is_set():  # by the button, whose handler does not wait in this one's queue
                break
        session.inspections = inspections  # whole at last: a click on a row finds its image by the row's number
        report = write_report(session.folder, inspections)
        yield page_table(rows), str(report), message_html(_summary(inspections, len(files)))


def stop(session: Session) -> str:
    """Ask the judging of many photographs to end after the one at hand."""
    session.stop.set()
    return message_html("Stopping after this photograph.", "busy")


def take_folder(folder: list[str], files: list[str] | None, session: Session) -> list[str]:
    """Add the photographs of a folder to those that are already listed; its other files stay out."""
    with refusals(session):
        images = images_among(folder or [])
        if not images:
            raise ValueError("There is no photograph in this folder.")
        return check_count([*(files or []), *images], MAX_IMAGES)


def show_row(session: Session, event: gr.SelectData) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Show the photograph of a row of the table, however the table is sorted."""
    with refusals(session):
        number = int(event.row_value[0])
        if not 1 <= number <= len(session.inspections):
            raise ValueError("This row's photograph is no longer here: judge it again.")
        inspection = session.inspections[number - 1]
        if inspection.error:
            raise ValueError(inspection.error)
    session.remember_last(inspection)
    return _answer(session, inspection)


def _answer(session: Session, inspection: Inspection) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    files = session.answer_images.write(photograph=inspection.image, heat_map=inspection.heat_map)
    return inspection.numbers, verdict_html(inspection), files


def _summary(inspections: list[Inspection], asked: int) -> str:
    kinds = [inspection.shown if not inspection.error else "could not be judged" for inspection in inspections]
    parts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    ended = "" if len(inspections) == asked else f"Stopped after {len(inspections)} of {asked}. "
    return f"{ended}{len(inspections)} photographs: {parts}."


def verdict_html(inspection: Inspection) -> str:
    """Say the verdict in words, with its color and its sign."""
    product = f"as {inspection.product}" if inspection.product else "close to none of the products taught"
    how = " (found by the detector)" if inspection.product_predicted and inspection.product else ""
    details = f"{inspection.name}, judged {product}{how} in {inspection.milliseconds:.0f} ms"
    words = inspection.words
    if inspection.unsure:
        words = f"unsure, {inspection.score:.2f}; line at {inspection.threshold:.2f}"
        details = f"Below the line, yet odder than every good photograph taught: look at the part. {details}"
    return verdict_box(inspection.shown, words, details)


# --- One image, and many ---


def inspect_image(session: Session, path: str | Path | None, product: str | None = None) -> Inspection:
    """
    Judge one image, which becomes the session's last.

    Args:
        path: of the file.
        product: what it shows; `PREDICT_PRODUCT` or `None` lets the detector say.

    Raises:
        ValueError: for a product that the detector does not know, and a file that cannot be used.
    """
    inspection = inspect_source(session, read_image(path), product)
    inspection.path = str(path)
    session.remember_last(inspection)
    return inspection


def inspect_source(session: Session, source: dict[str, Any], product: str | None = None) -> Inspection:
    """Judge one image as [`read_image`] gave it; arguments and errors are those of [`inspect_image`]."""
    start = time.perf_counter()
    requested = session.resolve_product(product)
    image = load_image(source, white_value=session.processor.white_value)
    options = {"class_names": requested, "threshold": session.threshold}
    prediction = next(predict(session.model, session.processor, [image], **options))
    if prediction.error:  # the product keeps an ignore mask of another size
        raise ValueError(prediction.error)
    milliseconds = 1000 * (time.perf_counter() - start)
    regions = prediction.find_regions()
    shown, heat_map = draw_heat_map(image, prediction, regions or [])
    return Inspection(
        name=source["path"],
        verdict=prediction.label or "no line",
        unsure=prediction.unsure,
        reason=prediction.reason,
        regions=regions,
        score=prediction.score,
        threshold=session.threshold,
        product=prediction.class_name,
        product_predicted=requested is None,
        milliseconds=milliseconds,
        image=shown,
        heat_map=heat_map,
    )


def inspect_images(session: Session, paths: list[str], product: str | None = None) -> Iterator[Inspection]:
    """
    Judge images one by one; one that cannot be used gets an inspection with `error`, and the others go on.

    Raises:
        ValueError: for a product that the detector does not know.
    """
    session.resolve_product(product)
    for path in paths:
        try:
            yield inspect_image(session, path, product)
        except ValueError as error:
            yield Inspection(Path(path).name, error=str(error))


def draw_heat_map(
    image: Image.Image, prediction: Prediction, regions: list[dict[str, Any]]
) -> tuple[Image.Image, Image.Image]:
    """
    Return an image and its heat map, both at most `DISPLAY_SIDE` long: a page shows no more of them.

    Regions are numbered in the order of the list, the first `MOST_NUMBERED` of them.
    """
    shown = image.copy()
    shown.thumbnail((DISPLAY_SIDE, DISPLAY_SIDE))
    anomaly_map = dataclasses.replace(prediction, size=shown.size[::-1]).full_size_map()
    heat_map, scale = overlay(shown, anomaly_map), shown.width / image.width
    number_regions(heat_map, [[scale * value for value in each["box"]] for each in regions[:MOST_NUMBERED]])
    return shown, heat_map


# --- Why an image got its score ---


@dataclass
class ExplainedAnswer:
    """
    An explanation with its pictures.

    Args:
        explanation: the detector's own.
        words: the same as a person says it.
        worst: the worst region of the image, outlined.
        nearest: the nearest patch, outlined in the good image it is from; `None` where no picture is at hand.
        nearest_name: of that image.
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


def explain_last(session: Session) -> ExplainedAnswer:
    """
    Explain the answer that was given last.

    Raises:
        ValueError: if there is none, or its image is no longer here.
    """
    image = load_image(read_image(session.last_path), white_value=session.processor.white_value)
    options = {"class_names": session.last_requested, "explain": True}
    prediction = next(predict(session.model, session.processor, [image], **options))
    if prediction.error:
        raise ValueError(prediction.error)
    explanation = prediction.explanation
    # Where the product's threshold decided, the answer was held against the one that this person chose.
    if explanation.line is not None and not explanation.decided_by["line"].startswith("product"):
        explanation.line, explanation.past = session.threshold, explanation.score - session.threshold
    # The nearest good image has a picture only where the product was taught in this session; else it has a name or a
    # number.
    product, index = explanation.nearest_class, explanation.nearest_index
    nearest, nearest_name = None, explanation.nearest_photograph
    if index is not None and product in session.products:
        if normal_image := session.normal_image(product, index):
            nearest_name = normal_image.name
            with Image.open(normal_image.path) as copy:
                nearest = crop_around(copy.convert("RGB"), explanation.nearest_box, normal_image.size)
        nearest_name = nearest_name or f"good photograph {index + 1} of {product}"
    worst = crop_around(image, explanation.box, image.size)
    return ExplainedAnswer(explanation, explanation_words(explanation, nearest_name), worst, nearest, nearest_name)


def crop_around(image: Image.Image, box: Box | None, size: tuple[int, int]) -> Image.Image:
    """
    Cut a square around a box, which is outlined; without a box, show the whole image.

    Args:
        image: perhaps smaller than what the box was measured in.
        box: left, top, right, bottom.
        size: width and height of what the box was measured in.

    Returns:
        A picture with sides of `CROP_SIDE`.
    """
    if box is None:
        return image.resize((CROP_SIDE, CROP_SIDE))
    factor = image.width / size[0]
    left, top, right, bottom = (value * factor for value in box)
    # A square with some margin about the box and its middle in that of the box, moved inside where it would stick out.
    side = CROP_MARGIN * max(right - left, bottom - top)
    side = min(max(side, SMALLEST_CROP * min(image.size)), *image.size)
    x = min(max((left + right - side) / 2, 0), image.width - side)
    y = min(max((top + bottom - side) / 2, 0), image.height - side)
    crop = image.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    # White on black is seen on every ground; a box at the edge of the image keeps its outline inside.
    scale, last = CROP_SIDE / side, CROP_SIDE - 2
    outline = [min(max(value * scale, 1), last) for value in (left - x, top - y, right - x, bottom - y)]
    draw = ImageDraw.Draw(crop)
    draw.rectangle(outline, outline="black", width=4)
    draw.rectangle([outline[0] + 1, outline[1] + 1, outline[2] - 1, outline[3] - 1], outline="white", width=2)
    return crop


def explanation_words(explanation: Explanation, nearest_name: str | None) -> str:
    """Say which threshold decided, how far past it the image is, and what it was compared with."""
    product, decided = explanation.decided_by["class_name"] or "all products", explanation.decided_by["line"]
    if decided is None:
        words = f"{product} has no line yet."
    elif decided.startswith("product"):
        part = "Its parts are" if decided.endswith("patches") else "As a whole it is"
        words = f"{part} too far from {product}, the nearest product that was taught."
    else:
        score, past, threshold = explanation.score, explanation.past, explanation.line
        side = "past" if past > 0 else "below"
        words = f"{score:.2f} is {abs(past):.2f} {side} the line of {product}, {threshold:.2f}."
    if nearest_name is not None:
        distance = explanation.nearest_distance
        words += f" The outlined place is nearest to one in {nearest_name}, at a distance of {distance:.2f}."
    return words


def explanation_html(explained: ExplainedAnswer) -> str:
    """Show the explanation on the page."""
    figures = _figure(explained.worst, "The worst region of this photograph", "worst")
    if explained.nearest is not None:
        figures += _figure(explained.nearest, f"The nearest good place, in {explained.nearest_name}", "nearest")
    return f'<div class="why" role="group" aria-label="Why">{figures}<p>{html.escape(explained.words)}</p></div>'


def _figure(image: Image.Image, caption: str, kind: str) -> str:
    caption = html.escape(caption, quote=True)
    picture = f'<img src="{data_url(image)}" alt="{caption}">'
    return f'<figure class="{kind}">{picture}<figcaption>{caption}</figcaption></figure>'


# --- Many images: rows of the table, and the zip file ---


def table_row(number: int, inspection: Inspection) -> list:
    """Turn an inspection into a row of `COLUMNS`."""
    if inspection.error:
        return [number, inspection.name, "not judged", None, None, "", None, inspection.error]
    product, score = inspection.product or "", round(inspection.score, 4)
    found = "product found by the detector" if inspection.product_predicted and product else None
    remark = "; ".join(filter(None, (inspection.remark, found)))
    milliseconds = round(inspection.milliseconds)
    return [
        number,
        inspection.name,
        inspection.verdict,
        score,
        inspection.threshold,
        product,
        milliseconds,
        remark,
    ]


def page_row(number: int, inspection: Inspection) -> list:
    """Turn an inspection into a row of `PAGE_COLUMNS`: one of `COLUMNS` with a small heat map in it, as HTML."""
    thumbnail = ""
    if inspection.heat_map is not None:
        small = inspection.heat_map.copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        thumbnail = f'<img src="{data_url(small)}" alt="heat map {number}" class="thumbnail">'
    number, *others = table_row(number, inspection)
    return [number, thumbnail, *others]


def page_table(rows: list[tuple[Inspection, list]]) -> dict[str, list | dict]:
    """Put rows into a table that shows each verdict in its color, with its sign and its word; its data are the plain values."""
    column = PAGE_COLUMNS.index("verdict")
    shown, styles = [], []
    for inspection, row in rows:
        color, ink, sign, _ = VERDICTS[kind_of(inspection.shown)]
        cells, style = ["" if value is None else str(value) for value in row], [""] * len(row)
        if not inspection.error:
            cells[column] = f"{sign} {inspection.shown}"
            style[column] = f"background-color: {color}; color: {ink}; font-weight: 600"
        shown.append(cells)
        styles.append(style)
    metadata = {"display_value": shown, "styling": styles}
    return {"headers": list(PAGE_COLUMNS), "data": [row for _, row in rows], "metadata": metadata}


def write_report(folder: Path, inspections: list[Inspection]) -> Path:
    """Write results.csv and the heat maps with their legend into one zip file in a folder, and return its path."""
    path = folder / "anople_results.zip"
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow([*COLUMNS, "heat_map"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, inspection in enumerate(inspections, start=1):
            name = ""
            if inspection.heat_map is not None:
                name = f"heat_maps/{number:03d}-{_plain(Path(inspection.name).stem)}.png"
                png = io.BytesIO()
                with_legend(inspection.heat_map).save(png, "PNG")
                archive.writestr(zipfile.ZipInfo(name), png.getvalue())  # no date: equal answers, equal files
            writer.writerow([inert(value) for value in [*table_row(number, inspection), name]])
        archive.writestr("results.csv", table.getvalue())
    return path


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60] or "photograph"
