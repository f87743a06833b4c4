"""Fit prompts in a session: the package's own training, on the photographs that the products were taught from."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.utils.data import DataLoader

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.losses_anople import loss_weights
from modeling_anople.training import fit_steps, make_accelerator, make_optimizer
from modeling_anople.training.few_shot import Shots, StepSampler, collate_views, make_samples, make_watched
from modeling_anople.training.finishing import finish
from modeling_anople.training.options import TrainingConfig

from .session import Session


FEWEST, USUAL, MOST = 10, 40, 300  # steps
BATCH = 2  # photographs, times five views


@dataclass
class Fit:
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


def fit_prompts(session: Session, steps: int) -> Iterator[Fit]:
    """
    Fit prompts and decoder to all products, then renew memory and lines; the session has the new detector at the end.

    It works on a copy: until the end, and for everybody else, nothing changes. When the session's `stop_fit` is set, it
    ends after the step at hand with a detector that is whole.

    Raises:
        ValueError: for a number of steps outside `FEWEST` and `MOST`, or products whose photographs are not at hand.
    """
    if not FEWEST <= steps <= MOST:
        raise ValueError(f"Fitting takes {FEWEST} to {MOST} steps, got {steps}.")
    shots = session_shots(session)
    session.stop_fit.clear()
    before, history = session.model, session.model.config.history
    model, processor = copy_learnable(before, session.processor)
    rate = next(iter(model.config.calibration.values()))["max_false_alarm_rate"]
    config = TrainingConfig(
        data_root="",
        max_steps=int(steps),
        batch_size=BATCH,
        max_false_alarm_rate=rate,
        monitor_images=len(shots.images),
    )
    progress = Fit(int(steps))
    yield progress
    for loss in _losses(model, processor, shots, config):
        progress.losses.append(loss)
        yield progress
        if session.stop_fit.is_set():
            break
    forget_all(model)
    health = finish(model, processor, shots, make_watched(config, processor, shots), config)
    if session.model is not before or before.config.history is not history:
        raise ValueError("The products changed while this was fitting, so it was dropped: fit again.")
    session.adopt(model.eval(), processor)
    session.normals = {name: [kept.as_copied() for kept in kept_ones] for name, kept_ones in session.normals.items()}
    done, asked = len(progress.losses), progress.steps
    ended = f"Fitted for {done} steps." if done == asked else f"Stopped after {done} of {asked} steps, and kept."
    warning = (
        f" But the decoder has not learnt yet: {' and '.join(health.problems)}." if health and health.problems else ""
    )
    progress.words = f"{ended} Memory and lines of {', '.join(session.products)} are set anew.{warning}"
    yield progress


def draw_losses(fit: Fit) -> str:
    """Draw the losses over the steps, as SVG in the page's own ink."""
    left, top, width, height = 46, 12, 540, 110
    losses = fit.losses
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    spread = (high - low) or 1.0
    points = [
        f"{left + width * number / fit.steps:.1f},{top + height * (high - loss) / spread:.1f}"
        for number, loss in enumerate(losses, start=1)
    ]
    label = f"Loss of {len(losses)} of {fit.steps} steps" + (f", now {losses[-1]:.2f}" if losses else "")
    ends = (
        f'<text x="{left - 6}" y="{top + 9}" text-anchor="end">{high:.2f}</text>'
        f'<text x="{left - 6}" y="{top + height}" text-anchor="end">{low:.2f}</text>'
    )
    return f"""<svg class="losses" viewBox="0 0 600 150" role="img" aria-label="{label}">
<line x1="{left}" x2="{left}" y1="{top}" y2="{top + height}"/>
<line x1="{left}" x2="{left + width}" y1="{top + height}" y2="{top + height}"/>
<polyline points="{" ".join(points)}"/>{ends if losses else ""}
<text x="{left}" y="{top + height + 18}">loss</text>
<text x="{left + width}" y="{top + height + 18}" text-anchor="end">step {fit.steps}</text>
</svg>"""


def session_shots(session: Session) -> Shots:
    """
    Gather the good photographs of all products.

    Raises:
        ValueError: naming the products of which some are not at hand.
    """
    shots, missing = Shots({}, [], [], []), []
    for class_id, name in enumerate(session.products):
        kept = session.normals.get(name, [])
        if len(kept) != len(session.model.memory.counts[class_id]):
            missing.append(name)
        shots.files[name] = [photograph.name for photograph in kept]
        shots.images += [photograph.source for photograph in kept]
        shots.class_ids += [class_id] * len(kept)
    if missing:
        raise ValueError(
            f"Fitting needs the good photographs of every product, and those of {', '.join(missing)} are not here, as they "
            "were taught elsewhere. Fit where they are, with `anople fit`."
        )
    shots.held_back += zip(shots.images, shots.class_ids, strict=True)
    return shots


def copy_learnable(model: AnoPLeModel, processor: AnoPLeProcessor) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    """Copy a detector, except for the CLIP and the tokenizer, which fitting does not change."""
    own_processor = copy.copy(processor)
    own_processor.class_names = list(processor.class_names)
    fitted = copy.deepcopy(model, {id(model.clip): model.clip, id(processor): own_processor})
    return fitted.freeze_clip(), own_processor


def forget_all(model: AnoPLeModel) -> None:
    """Empty memory, lines and log: all of them are made anew from the photographs."""
    memory = model.memory
    empty = model.class_prototypes.new_zeros(len(memory.layers), 0, memory.width)
    memory.restore([])
    for _ in model.config.class_names:
        memory.append_class(empty)
    model.note_memory()
    model.config.calibration, model.config.history = {}, []


def _losses(model: AnoPLeModel, processor: AnoPLeProcessor, shots: Shots, config: TrainingConfig) -> Iterator[float]:
    accelerator = make_accelerator(config)
    loader = DataLoader(
        make_samples(config, processor, shots, model.config.view_grid),
        batch_size=config.batch_size,
        sampler=StepSampler(0, config.max_steps * config.batch_size),
        collate_fn=collate_views,
    )
    wrapped, optimizer, loader = accelerator.prepare(model, make_optimizer(model, config), loader)
    weights = loss_weights(model.config)  # in full from the first step on, so that the curve has no jump
    for _, losses in fit_steps(accelerator, wrapped, optimizer, loader, config):
        yield sum(weights[name] * float(loss.detach()) for name, loss in losses.items() if name in weights)
