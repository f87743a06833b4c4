"""What the widgets call: the plain functions, with their answers in the form that the page and the API take."""

import contextlib
import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

from .explaining import explain_last, why_html
from .fitting import draw_losses, fit_prompts
from .inspecting import FIND_IT, Finding, inspect_photograph, inspect_photographs, remember_last
from .judging import draw_judgement, judge
from .keeping import pack, unpack
from .reading import MAX_PHOTOGRAPHS, check_count, photographs_among
from .reporting import page_row, write_report
from .session import Session
from .teaching import add_fine, teach
from .words import message_html, products_html, verdict_html


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Show what a person can mend as a message; Gradio takes messages for HTML, so it is escaped."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(str(error)), title="Not possible", duration=None, print_exception=False) from error


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


def _answer(session: Session, finding: Finding) -> tuple[dict[str, Any], str, tuple]:
    pictures = session.shown.write(photograph=finding.photograph, heat_map=finding.heat_map)
    return finding.numbers, verdict_html(finding), pictures


def explain(session: Session) -> tuple[dict[str, Any], str]:
    """
    Explain the answer that was given last in this session.

    Returns:
        The words, the worst region, the score and the line it was held against, and the nearest good photograph; the same
        as HTML with both places as pictures.
    """
    with refusals():
        why = explain_last(session)
    return why.numbers, why_html(why)


def take_folder(folder: list[str], files: list[str] | None) -> list[str]:
    """Add the photographs of a folder to those that are already listed; its other files stay out."""
    with refusals():
        found = photographs_among(folder or [])
        if not found:
            raise ValueError("There is no photograph in this folder.")
        return check_count([*(files or []), *found], MAX_PHOTOGRAPHS)


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


def _summary(findings: list[Finding], asked: int) -> str:
    kinds = [finding.verdict if not finding.error else "could not be judged" for finding in findings]
    parts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    ended = "" if len(findings) == asked else f"Stopped after {len(findings)} of {asked}. "
    return f"{ended}{len(findings)} photographs: {parts}."


def stop(session: Session) -> str:
    """Ask the judging of many photographs to end after the one at hand."""
    session.stop.set()
    return message_html("Stopping after this photograph.", "busy")


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


def _choices(session: Session, chosen: str | None = None) -> tuple:
    """Give both product lists their names."""
    names = session.products
    return (
        gr.update(choices=[FIND_IT, *names], value=chosen or FIND_IT),
        gr.update(choices=names, value=chosen or session.last_product or names[0]),
    )


def _told(session: Session, words: str) -> tuple:
    """Say what was done to the products, for programs and for people."""
    return {"words": words, "products": session.products}, message_html(words), products_html(session.products)


def enroll(name: str, files: list[str], session: Session) -> tuple:
    """
    Teach a new product from 1 to 8 good photographs, without training.

    Args:
        name: of the new product.
        files: good photographs of it.

    Returns:
        The message and the names of all products now; the same as HTML.
    """
    with refusals():
        words = teach(session, name, files)
    return *_told(session, words), *_choices(session, name.strip())


def fit(steps: float, session: Session) -> Iterator[tuple[str, str]]:
    """
    Fit prompts and decoder to all products of this session; stopped, it keeps what was fitted.

    Args:
        steps: of training.

    Returns:
        The loss so far as SVG, and a message.
    """
    with refusals():
        for progress in fit_prompts(session, int(steps)):
            done = len(progress.losses)
            if progress.words:
                told = message_html(progress.words)
            elif done < progress.steps and not session.stop_fit.is_set():
                told = message_html(f"{done} of {progress.steps} steps are done.", "busy")
            else:
                told = message_html("Memory and lines are set anew.", "busy")
            yield draw_losses(progress), told


def stop_fit(session: Session) -> str:
    """Ask the fitting to end after the step at hand."""
    session.stop_fit.set()
    return message_html("Stopping after this step.", "busy")


def download(session: Session) -> str:
    """Write the detector into a zip file."""
    with refusals():
        return str(pack(session))


def upload(file: str, session: Session) -> tuple:
    """Load a detector from a zip file."""
    with refusals():
        words = unpack(session, file)
    return *_told(session, words), *_choices(session)


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
