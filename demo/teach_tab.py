"""The tab on which products are taught and changed, prompts fitted to them, and detectors taken home and brought back."""

import dataclasses
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import pandas
from torch.utils.data import DataLoader

from modeling_anople import AnoPLeModel, AnoPLeProcessor, load_image
from modeling_anople.calibration_anople import ProductThreshold
from modeling_anople.enrollment_anople import enroll as enroll_product
from modeling_anople.enrollment_anople import refuse_flat
from modeling_anople.images_anople import CAMERA_WHITES
from modeling_anople.losses_anople import loss_weights
from modeling_anople.training import fit_steps, make_accelerator, make_optimizer
from modeling_anople.training.few_shot import Shots, StepSampler, collate_views, make_samples, make_validation_batch
from modeling_anople.training.finishing import finish
from modeling_anople.training.options import TrainingConfig

from .examples import NEW_PRODUCT, Examples
from .inputs import (
    HIDDEN,
    MODEL,
    ProductChange,
    check_count,
    images_field,
    product_choices,
    product_field,
    read_image,
    refusals,
    say_refusals,
)
from .session import Session, copy_detector, small_square
from .style import data_url, message_html, sign_html
from .transfer import pack_detector, unpack_detector


MAX_SHOTS, MAX_PRODUCTS = 8, 50
_NAME = re.compile(r"[^\W_][\w .,()+-]{0,59}")  # no path, no HTML, and short enough for a list
MIN_STEPS, DEFAULT_STEPS, MAX_STEPS = 10, 40, 300
BATCH_SIZE = 2  # images, times five views
MOST_SAMPLES = 8  # small pictures of each product in the list


def teach_tab(
    start: Session, session: gr.State, examples: Examples, tab: gr.Tab
) -> tuple[gr.Dropdown, list[ProductChange]]:
    """
    Lay out the tab: a product from good images, products to rename and forget, prompts to fit, a detector to take home and
    bring back.

    Returns:
        The list of products, and what changes products.
    """
    with gr.Row():
        with gr.Column(min_width=300):
            name = gr.Textbox(label="Name of the product", placeholder="bottle", max_length=60, elem_id="name")
            files = images_field(f"1 to {MAX_SHOTS} good photographs of it", "shots", 200)
            chosen = gr.HTML(elem_id="chosen")
            white_value = gr.Dropdown(
                [("as the files say", 0), *((f"{bits} bits", white) for bits, white in CAMERA_WHITES.items())],
                value=0,
                label="Bits of the camera, where its files have 16",
                elem_id="white",
            )
            with gr.Row():
                teach_button = gr.Button("Teach", variant="primary", elem_id="teach")
                replace_button = gr.Button("Replace product", elem_id="replace")
            message = gr.HTML(elem_id="teach-message")
            gr.Examples(
                [[NEW_PRODUCT, [str(path) for path in examples.to_teach]]],
                [name, files],
                label="Without your own photographs",
                example_labels=[f"{NEW_PRODUCT}, {len(examples.to_teach)} drawn photographs"],
            )
        with gr.Column(min_width=300):
            products = gr.HTML(products_html(start), elem_id="known")
            managed, changes = _products_accordion(start)
            _fit_accordion(session)
            changes.append(_home_accordion(session))
            with gr.Accordion("Numbers", open=False):
                answer = gr.JSON(label="Answer")
    asked = [files, white_value, session]
    for event in (files.change, white_value.input):
        event(look_at, asked, chosen, show_progress="hidden", **HIDDEN)
    tab.select(products_html, session, products, show_progress="hidden", **HIDDEN)
    taught = [name, files, white_value]
    changes += [
        ProductChange(teach_button.click, enroll, taught, [], message, {"api_name": "enroll"}),
        ProductChange(replace_button.click, replace, taught, [], message, {"api_name": "replace"}),
    ]
    return managed, [dataclasses.replace(change, outputs=[answer, change.message, products]) for change in changes]


def _products_accordion(start: Session) -> tuple[gr.Dropdown, list[ProductChange]]:
    """Lay out the part that renames and forgets products; returns their list, and what changes them."""
    with gr.Accordion("Rename or forget a product", open=False, elem_id="managing"):
        managed = product_field(start.products, "managed")
        name = gr.Textbox(label="Its new name", placeholder="bottle, 0.5 l", max_length=60, elem_id="new-name")
        with gr.Row():
            rename_button = gr.Button("Rename", elem_id="rename")
            forget_button = gr.Button("Forget", variant="stop", elem_id="forget")
            undo_button = gr.Button("Undo", elem_id="undo-product")
        message = gr.HTML(elem_id="managed-message")
    return managed, [
        ProductChange(rename_button.click, rename, [managed, name], [], message, {"api_name": "rename"}),
        ProductChange(forget_button.click, forget, [managed], [], message, {"api_name": "forget"}),
        ProductChange(undo_button.click, undo, [], [], message, HIDDEN),
    ]


def _fit_accordion(session: gr.State) -> None:
    """Lay out the part that fits prompts."""
    with gr.Accordion("Fit prompts to these products (optional)", open=False, elem_id="fitting"):
        label = "Steps, about a second each"
        steps = gr.Slider(MIN_STEPS, MAX_STEPS, value=DEFAULT_STEPS, step=10, label=label, elem_id="steps")
        with gr.Row():
            fit_button = gr.Button("Fit", elem_id="fit")
            stop_button = gr.Button("Stop and keep", variant="stop", elem_id="stop-fit")
        label = "Loss of each step"
        curve = gr.LinePlot(x="step", y="loss", label=label, height=180, buttons=[], visible=False, elem_id="losses")
        message = gr.HTML(elem_id="fit-message")
    # The whole axis is there from the first step on; set apart from the losses, which are all that programs are sent.
    fit_button.click(open_curve, steps, curve, queue=False, **HIDDEN)
    # It takes minutes: its own queue lets others ask the model meanwhile.
    fitted = fit_button.click(
        fit,
        [steps, session],
        [curve, message],
        api_name="fit",
        show_progress="hidden",
        concurrency_id="fit",
        concurrency_limit=1,
    )
    say_refusals(fitted, session, message, kept=[curve])
    stop_button.click(stop_fit, session, message, queue=False, **HIDDEN)


def _home_accordion(session: gr.State) -> ProductChange:
    """Lay out the part that takes a detector home and brings one back; returns what loads one."""
    with gr.Accordion("Take this detector home, or bring one", open=False, elem_id="home"):
        pack_button = gr.Button("Make a zip of this detector", elem_id="pack")
        download_file = gr.File(label="The detector, for download", interactive=False, elem_id="packed", height=110)
        upload_file = gr.File(label="A detector (zip) made here", file_types=[".zip"], elem_id="brought", height=160)
        load_button = gr.Button("Load it", elem_id="load")
        message = gr.HTML(elem_id="home-message")
    packed = pack_button.click(download, session, download_file, api_name="download", **MODEL)
    say_refusals(packed, session, message, kept=[download_file])
    return ProductChange(load_button.click, upload, [upload_file], [], message, {"api_name": "load"})


# --- What the widgets call ---


def enroll(name: str, files: list[str], white_value: int, session: Session) -> tuple:
    """
    Teach a new product from 1 to 8 good photographs, without training.

    Args:
        name: of the new product.
        files: good photographs of it.
        white_value: of files with more than 8 bits for each channel, 0 for what they say themselves.

    Returns:
        The message and the names of all products now; the same as HTML.
    """
    with refusals(session):
        words = teach_product(session, name, files, white_value=white_value or None)
    return _products_changed(session, words, name.strip())


def replace(name: str, files: list[str], white_value: int, session: Session) -> tuple:
    """
    Teach a product that is known anew, from 1 to 8 good photographs that take the place of all it was taught from.

    Args:
        name: of the product.
        files: good photographs of it.
        white_value: of files with more than 8 bits for each channel, 0 for what they say themselves.

    Returns:
        The message and the names of all products now; the same as HTML.
    """
    with refusals(session):
        words = replace_product(session, name, files, white_value=white_value or None)
    return _products_changed(session, words, name.strip())


def rename(product: str, name: str, session: Session) -> tuple:
    """
    Give a product another name; its scores stay.

    Args:
        product: a product that was taught.
        name: what it is called from now on.

    Returns:
        The message and the names of all products now; the same as HTML.
    """
    with refusals(session):
        known, name = known_product(session, product), checked_name(name)
        with session.undoable():
            session.rename(known, name)
    return _products_changed(session, f"{known} is called {name} now. Its scores are as before.", name)


def forget(product: str, session: Session) -> tuple:
    """
    Forget a product.

    Args:
        product: a product that was taught.

    Returns:
        The message and the names of all products now; the same as HTML.
    """
    with refusals(session):
        known = known_product(session, product)
        if len(session.products) == 1:
            raise ValueError(f"{known} is the only product, and a detector needs one: teach another one before.")
        with session.undoable():
            session.forget(known)
    return _products_changed(session, f"{known} is forgotten. Undo brings it back, until something else is changed.")


def undo(session: Session) -> tuple:
    """Take back what was learned, renamed, forgotten or replaced last."""
    with refusals(session):
        session.undo()
    return _products_changed(session, "The detector is as it was before.")


def upload(file: str, session: Session) -> tuple:
    """Load a detector from a zip file."""
    with refusals(session):
        words = unpack_detector(session, file)
    return _products_changed(session, words)


def download(session: Session) -> str:
    """Write the detector into a zip file."""
    with refusals(session):
        return str(pack_detector(session))


def open_curve(steps: float) -> gr.LinePlot:
    """Show the plot of the losses with an axis for all steps that are asked for."""
    return gr.LinePlot(x_lim=[1, steps], visible=True)


def fit(steps: float, session: Session) -> Iterator[tuple[pandas.DataFrame | None, str]]:
    """
    Fit prompts and decoder to all products of this session; stopped, it keeps what was fitted.

    Args:
        steps: of training.

    Returns:
        The loss of each step so far, and a message.
    """
    with refusals(session):
        for progress in fit_prompts(session, int(steps)):
            done = len(progress.losses)
            if progress.words:
                message = message_html(progress.words)
            elif done < progress.steps and not session.stop_fit.is_set():
                message = message_html(f"{done} of {progress.steps} steps are done.", "busy")
            else:
                message = message_html("Memory and lines are set anew.", "busy")
            # No plot before the first loss: one that is laid out empty never makes room for the numbers on its axis.
            yield progress.table if done else None, message


def stop_fit(session: Session) -> str:
    """Ask the fitting to end after the step at hand."""
    session.stop_fit.set()
    return message_html("Stopping after this step.", "busy")


def _products_changed(session: Session, words: str, chosen: str | None = None) -> tuple:
    """Say what was done to the products, for programs and for people, and give all lists their names."""
    told = {"words": words, "products": session.products}
    return told, message_html(words), products_html(session), *product_choices(session, chosen)


def products_html(session: Session) -> str:
    """List the products that are known, with small pictures of what they were taught from, as far as that is here."""
    items = "".join(_product_html(session, name) for name in session.products)
    return f'<div class="known"><span>Products known</span><ul>{items}</ul></div>'


def _product_html(session: Session, name: str) -> str:
    images, count = session.normal_images.get(name, []), session.image_count(name)
    shown = images[-MOST_SAMPLES:]
    words = f"{count} good photograph{'s' if count > 1 else ''}"
    if not images:
        words += ", not here"
    elif len(shown) < count:
        words += f", the last {len(shown)} of them shown"
    pictures = "".join(
        f'<img src="{data_url(image.sample)}" alt="{html.escape(image.name)}" title="{html.escape(image.name)}">'
        for image in shown
    )
    return f'<li><strong>{html.escape(name)}</strong> <span>{words}</span><div class="samples">{pictures}</div></li>'


def look_at(files: list[str] | None, white_value: int, session: Session) -> str:
    """Show the photographs that were chosen, before they are taught; of one that cannot be, say why."""
    if not files:
        return ""
    figures = "".join(_chosen_html(path, white_value or session.processor.white_value) for path in files[:MAX_SHOTS])
    words = ""
    if len(files) > MAX_SHOTS:
        words = message_html(f"{len(files)} photographs are too many at once: give at most {MAX_SHOTS}.", "refused")
    return f'{words}<div class="chosen">{figures}</div>'


def _chosen_html(path: str, white_value: float | None) -> str:
    name = html.escape(Path(path).name)
    try:
        source = read_image(path)
        image = load_image(source, white_value=white_value)
        refuse_flat(image, source)
    except ValueError as error:
        sign = f'<div class="unread">{sign_html("anomalous")}</div>'
        return f'<figure class="refused">{sign}<figcaption>{html.escape(str(error))}</figcaption></figure>'
    return f'<figure><img src="{data_url(small_square(image))}" alt=""><figcaption>{name}</figcaption></figure>'


# --- Teach a product ---


def teach_product(
    session: Session,
    name: str | None,
    files: list[str] | None,
    *,
    keep: bool = True,
    white_value: float | None = None,
) -> str:
    """
    Add a product to a session's own detector, without training; says what it knows now.

    Args:
        keep: whether the images stay in the session's folder, to be shown beside what is like them.
        white_value: of files with more than 8 bits, which the detector keeps; `None` leaves it as it is.

    Raises:
        ValueError: for a name that is none or is taken, too few or too many images, and ones that cannot be used;
            nothing was changed.
    """
    name = checked_name(name)
    if name in session.products:
        raise ValueError(
            f"{name} is known already: choose another name, add photographs under Judge, or press Replace product to teach it anew from "
            "these photographs alone."
        )
    if len(session.products) >= MAX_PRODUCTS:
        raise ValueError(f"This detector knows {MAX_PRODUCTS} products, which is as many as the demo takes.")
    images = [read_image(path) for path in check_count(files, MAX_SHOTS)]
    model, processor = session.own_detector()
    threshold = enroll_product(model, processor, name, images, white_value=white_value)
    if keep:
        session.keep_sources(name, images)
    return f"{name} is ready, {_taught(threshold, len(images))} Inspect a photograph of it now."


def replace_product(
    session: Session, name: str | None, files: list[str] | None, *, white_value: float | None = None
) -> str:
    """
    Teach a product of a session's own detector anew, from these images alone; says what it knows now.

    Arguments and errors are those of [`teach_product`], but for the name, which must be known.
    """
    name = known_product(session, checked_name(name))
    images, before = [read_image(path) for path in check_count(files, MAX_SHOTS)], session.lines
    with session.undoable():
        model, processor = session.own_detector()
        threshold = enroll_product(model, processor, name, images, white_value=white_value, replace=True)
        session.drop_images(name)
        session.keep_sources(name, images)
    said = f"{name} is taught anew, {_taught(threshold, len(images))} What it was taught from before is forgotten."
    return said + session.lost_costs(before)


def _taught(threshold: ProductThreshold, count: int) -> str:
    return (
        f"from {count} good photograph{'s' if count > 1 else ''}. Its line is set for at most "
        f"{threshold.max_false_alarm_rate:.0%} false alarms."
    )


def known_product(session: Session, product: str | None) -> str:
    """Return the name of a product that is known; a `ValueError` says which are."""
    name = session.resolve_product(product)
    if name is None:
        raise ValueError("Choose the product first.")
    return name


def checked_name(name: str | None) -> str:
    """
    Return a product's name without spaces around it.

    Raises:
        ValueError: for what is no plain name.
    """
    name = (name or "").strip()
    if not name:
        raise ValueError("The product has no name yet: type one, such as bottle.")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:60]} cannot be a product's name: begin with a letter or digit, and use letters, digits, spaces and "
            "_ - . , ( ) + only, at most 60 of them."
        )
    return name


# --- Fit prompts: the package's own training, on the images that the products were taught from ---


@dataclass
class FitProgress:
    """
    How far a fit is.

    Args:
        steps: asked for.
        losses: of the steps done.
        words: what came of it; empty until it is done.
    """

    steps: int
    losses: list[float] = field(default_factory=list)
    words: str = ""

    @property
    def table(self) -> pandas.DataFrame:
        """The losses with the numbers of their steps, from 1."""
        return pandas.DataFrame({"step": range(1, len(self.losses) + 1), "loss": self.losses})


def fit_prompts(session: Session, steps: int) -> Iterator[FitProgress]:
    """
    Fit prompts and decoder to all products, then renew memory and thresholds; the session has the new detector at the end.

    It works on a copy: until the end, and for everybody else, nothing changes. When the session's `stop_fit` is set, it
    ends after the step at hand with a detector that is whole.

    Raises:
        ValueError: for a number of steps outside `MIN_STEPS` and `MAX_STEPS`, or products whose images are not at hand, and
            if products were taught meanwhile.
    """
    if not MIN_STEPS <= steps <= MAX_STEPS:
        raise ValueError(f"Fitting takes {MIN_STEPS} to {MAX_STEPS} steps, got {steps}.")
    shots = session_shots(session)
    session.stop_fit.clear()
    before, history, lines = session.model, session.model.config.history, session.lines
    # A copy of all but the CLIP and the tokenizer, which fitting does not change.
    model, processor = copy_detector(before, session.processor, shared=before.frozen_towers)
    model.freeze_clip()
    rate = model.products[0].record.threshold.max_false_alarm_rate
    config = TrainingConfig(
        data_root="",
        max_steps=int(steps),
        batch_size=BATCH_SIZE,
        max_false_alarm_rate=rate,
        monitor_images=len(shots.images),
    )
    progress = FitProgress(int(steps))
    yield progress
    for loss in _train(model, processor, shots, config):
        progress.losses.append(loss)
        yield progress
        if session.stop_fit.is_set():
            break
    # The memory of what nobody had fitted answers alone; from now on each part does, as far as it finds anything.
    if (model.config.map_fusion, model.config.image_fusion) == ("memory", "map"):
        model.config.map_fusion = model.config.image_fusion = "weighted"
    # The features have changed: what was learned from the images is learned anew.
    model.products.clear()
    validation = make_validation_batch(config, processor, shots, model.config.tiling, model.config.image_size)
    health = finish(model, processor, shots, validation, config)
    # Teaching goes on while this runs: it replaces the detector, or begins a new log in it.
    if session.model is not before or before.config.history is not history:
        raise ValueError("The products changed while this was fitting, so it was dropped: fit again.")
    session.adopt(model.eval(), processor)
    done, asked = len(progress.losses), progress.steps
    ended = f"Fitted for {done} steps." if done == asked else f"Stopped after {done} of {asked} steps, and kept."
    warning = (
        f" But the decoder has not learned yet: {' and '.join(health.problems)}." if health and health.problems else ""
    )
    progress.words = f"{ended} Memory and lines of {', '.join(session.products)} are set anew.{warning}"
    progress.words += session.lost_costs(lines)
    yield progress


def session_shots(session: Session) -> Shots:
    """
    Gather the good images of all products.

    Raises:
        ValueError: naming the products of which some are not at hand.
    """
    shots, missing = Shots({}, [], [], []), []
    for class_id, name in enumerate(session.products):
        images = session.normal_images.get(name, [])
        if len(images) != session.image_count(name):
            missing.append(name)
        shots.files[name] = [image.name for image in images]
        shots.images += [image.source for image in images]
        shots.class_ids += [class_id] * len(images)
    if missing:
        raise ValueError(
            f"Fitting needs the good photographs of every product, and those of {', '.join(missing)} are not here, as they "
            "were taught elsewhere. Fit where they are, with `anople fit`."
        )
    # So few images are there that none is held out: the decoder is watched on those that it is fitted to.
    shots.held_out += zip(shots.images, shots.class_ids, strict=True)
    return shots


def _train(model: AnoPLeModel, processor: AnoPLeProcessor, shots: Shots, config: TrainingConfig) -> Iterator[float]:
    """Train a model in place; yields the loss of each step."""
    accelerator = make_accelerator(config)
    loader = DataLoader(
        make_samples(config, processor, shots, model.config.view_grid, model.config.tiling, model.config.image_size),
        batch_size=config.batch_size,
        sampler=StepSampler(0, config.max_steps * config.batch_size),
        collate_fn=collate_views,
    )
    wrapped, optimizer, loader = accelerator.prepare(model, make_optimizer(model, config), loader)
    weights = loss_weights(model.config)  # in full from the first step on, so that the curve has no jump
    for _, losses in fit_steps(accelerator, wrapped, optimizer, loader, config):
        yield sum(weights[name] * float(loss.detach()) for name, loss in losses.items() if name in weights)
