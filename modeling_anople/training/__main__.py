"""
Fit AnoPLe to a few good photographs of several products.

    accelerate launch -m modeling_anople.training --data_root DATA --shots 4 --output_dir out/first

Only photographs of the train split are ever opened here. The last step is kept: there is no test score to choose by.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .. import AnoPLeConfig, AnoPLeModel, AnoPLeProcessor  # by the package, which lets transformers know them
from ..backbone_anople import name_of
from ..configuration_anople import REMOVED, RENAMED
from ..losses_anople import LossTerm, loss_weights
from ..runtime import Stopped, report_stop, start_logging
from ..runtime.loading import announce_mini, loader_workers, one_order_of_sums
from ..runtime.outputs import Output, check_outputs, is_of_detector, json_lines_of
from ..saving_anople import LOCK_FILE, locked
from .few_shot import StepSampler, choose_shots, collate_views, make_samples, make_validation_batch
from .finishing import STATE_FILE, finish, load_state, remove_state, save_state, trim_log
from .options import TrainingConfig, model_options, parse_options
from .progress import (
    StopRequest,
    Stopwatch,
    describe_duration,
    heed_the_fit_alone,
    resume_command,
    seconds_to_finish,
)


logger = logging.getLogger(__name__)


LOG_FILE = "training_log.jsonl"
NAMED = (
    "data_root",
    "table",
    "clip",
    "memory_encoder",
    "ignore_masks",
)  # folders, of which a detector keeps the names alone

FOUND = {"files", "processes", "decoder_health"}  # what a detector keeps of its fit beside the settings

# Not part of what a resumed fit must repeat.
FREE_ON_RESUME = {"output_dir", "resume", "overwrite", "save_steps", "log_steps", "report_to", "num_workers"}


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Warm up linearly, then fall along a cosine to `final_learning_rate_ratio`; a function of the step alone."""
    warmup = max(1, round(config.warmup_ratio * config.max_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, config.max_steps - warmup)
    low = config.final_learning_rate_ratio
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: AnoPLeModel, config: TrainingConfig) -> torch.optim.AdamW:
    """Build AdamW with one group for the decoder and one for all that prompts."""
    learnable = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in learnable if name.startswith("decoder.") == decoder], "base_lr": rate}
        for decoder, rate in ((False, config.prompt_learning_rate), (True, config.decoder_learning_rate))
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=config.weight_decay)


def combine_losses(
    accelerator: Accelerator, terms: dict[str, LossTerm], weights: dict[str, float]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Sum the loss terms so that several processes reach the loss of one.

    Each term is divided by the samples that all processes saw, not by its own, which differ: some have more positive
    views. Gradients are averaged over processes later, hence the factor.

    Returns:
        This process' share of the loss and of each term's mean; their averages over processes are what one would have.
    """
    counts = torch.stack([term.count.float() for term in terms.values()])
    counts = accelerator.reduce(counts, reduction="sum").clamp(min=1) / accelerator.num_processes
    means = {name: term.total / count for (name, term), count in zip(terms.items(), counts, strict=True)}
    return sum(weights[name] * mean for name, mean in means.items()), means


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """
    Join the processes that were launched.

    Raises:
        ValueError: if accelerate joined fewer than were started; they would fit apart and write over one another.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=config.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
        # batch_size counts the photographs of all processes; each takes its part of every batch
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=True),
    )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, but accelerate joined {accelerator.num_processes}: without a GPU, set "
            "ACCELERATE_USE_CPU=true for `accelerate launch --multi_gpu --num_processes N`."
        )
    return accelerator


def train(config: TrainingConfig, options: dict | None = None) -> Path:
    """
    Fit a detector and save it.

    Args:
        config: how to train.
        options: fields of [`AnoPLeConfig`] that differ from their defaults.

    Returns:
        The folder with the finished detector, loadable by `AnoPLeModel.from_pretrained`.

    Raises:
        ValueError: for a folder that already holds a detector or an unfinished fit, or data that cannot be used, with
            the remedy; and if another program changes the folder for too long.
        Stopped: by Ctrl-C or SIGTERM, after the step at hand was saved; told twice, at once.
    """
    output_dir = Path(config.output_dir)
    alone = os.environ.get("RANK", "0") == "0"  # of several processes one keeps other programs out
    if not (output_dir / LOCK_FILE).exists():
        _is_finished(
            output_dir, config, dict(options or {})
        )  # refuses the folder of another hand before a lock lies in it
    with locked(output_dir) if alone else contextlib.nullcontext(), StopRequest(config.max_steps) as stop:
        return _train(config, output_dir, dict(options or {}), stop)


def _train(config: TrainingConfig, output_dir: Path, options: dict, stop: StopRequest) -> Path:
    """Do what [`train`] says, step by step."""
    if _is_finished(output_dir, config, options):
        if os.environ.get("RANK", "0") == "0":  # of several processes one says so
            logger.info("The detector in %s is finished.", output_dir)
        return output_dir
    accelerator = make_accelerator(config)
    # 1. Data: k good photographs of each class, the same in every process.
    shots = choose_shots(config)
    for name, files in shots.files.items() if accelerator.is_main_process else ():
        logger.info("%s, %d shots: %s", name, len(files), ", ".join(files))
    # 2. Model: a frozen CLIP with learnable prompts and decoder.
    names, revision = list(shots.files), config.clip_revision
    encoder = {"memory_encoder": config.memory_encoder, "memory_encoder_revision": config.memory_encoder_revision}
    model = AnoPLeModel.from_clip(config.clip, names, revision=revision, **encoder, **options).freeze_clip()
    announce_mini(model.config)
    side = model.config.image_size  # of a view: an encoder of the memory's own has no part in training
    seen = {"image_size": model.config.input_size, "white_value": config.white_value}
    processor = AnoPLeProcessor.from_clip(config.clip, names, revision=revision, **seen)
    for name, mask in shots.masks.items():
        model.products.keep_mask(model.products.id_of(name), mask)
    optimizer = make_optimizer(model, config)
    # 3. Where an earlier, killed run stopped.
    settings = {**dataclasses.asdict(config), **options, "files": shots.files}
    settings = {name: value for name, value in settings.items() if name not in FREE_ON_RESUME}
    first = load_state(output_dir, settings=settings, model=model, optimizer=optimizer) if config.resume else 0
    # 4. Samples by number, so that any process, at any time, draws the same ones.
    samples = make_samples(config, processor, shots, model.config.view_grid, model.config.tiling, side)
    workers = config.num_workers
    if workers is None:
        workers = loader_workers(accelerator.device, accelerator.num_processes)
    loader = DataLoader(
        samples,
        batch_size=config.batch_size // config.gradient_accumulation_steps,
        sampler=StepSampler(first * config.batch_size, config.max_steps * config.batch_size),
        collate_fn=collate_views,
        num_workers=workers,
        worker_init_fn=partial(heed_the_fit_alone, fit=os.getpid()),
    )
    validation = make_validation_batch(config, processor, shots, model.config.tiling, side)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if accelerator.is_main_process:
        _make_room(output_dir, first)
        stop.saved = first or None
    if config.report_to != "none":
        accelerator.init_trackers("anople", config={name: str(value) for name, value in settings.items()})

    # 5. The loop.
    parts = {"wrapped": wrapped, "optimizer": optimizer, "loader": loader, "config": config, "first": first}
    stopped = _take_steps(accelerator, stop, output_dir, settings=settings, images=len(shots.images), **parts)
    parts.clear()

    # 6. Memory, lines and class embeddings; then one folder with all of it.
    # prediction is in full precision
    model = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False, keep_torch_compile=False)
    # accelerate leaves an undecorated forward bound to the model: a cycle, in which it would outlive this function
    vars(model).pop("forward", None)
    # The wrapper must be gone before the process group ends. Else it is the last to hold the group, and frees it with
    # Python's lock in hand, while the group's threads may wait for that lock: one fit in some thirty never ended.
    wrapped, optimizer, loader = accelerator.free_memory(wrapped, optimizer, loader)
    if stopped:
        accelerator.end_training()
        raise stop.end()
    if accelerator.is_main_process:
        health = finish(model, processor, shots, validation, config)
        seen = {"processes": accelerator.num_processes, "decoder_health": health.as_dict() if health else None}
        # a detector may be published: names of folders, not the way to them
        model.config.fit = {**settings, **seen, **{key: name_of(settings[key]) for key in NAMED if settings[key]}}
        save(model, processor, output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output_dir


def _take_steps(
    accelerator: Accelerator,
    stop: StopRequest,
    folder: Path,
    *,
    settings: dict,
    images: int,
    wrapped: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    config: TrainingConfig,
    first: int,
) -> bool:
    """
    Take the steps that are left, or those until the fit is to stop; log them, and save states to resume from.

    Returns:
        Whether it is to stop, in which all processes agree.
    """
    model, watch, stopped = accelerator.unwrap_model(wrapped), Stopwatch(first), False
    stop.in_loop = True
    with (
        one_order_of_sums(accelerator.device),
        tqdm(total=config.max_steps, initial=first, desc="fit", disable=not accelerator.is_main_process) as bar,
    ):
        for step, losses in fit_steps(accelerator, wrapped, optimizer, loader, config, first=first):
            bar.update()
            if step % config.log_steps == 0 or step == config.max_steps:
                log_step(accelerator, folder, step, bar, losses)
            stopped = _is_asked(stop, accelerator)
            if accelerator.is_main_process and (stopped or step % config.save_steps == 0 or step == config.max_steps):
                _require_finite(step, {name: float(value.detach()) for name, value in losses.items()})
                save_state(folder, step=step, settings=settings, model=model, optimizer=optimizer)
                stop.saved = step
            if stopped:
                break
            per_step = watch.seconds_per_step(step)
            if per_step is not None and accelerator.is_main_process:
                _announce_duration(config.max_steps - step, per_step, model, images, config)
    accelerator.wait_for_everyone()  # a process that is asked while another one saves the last step is heard below
    stop.in_loop = False
    return stopped or _is_asked(stop, accelerator)


def _is_asked(stop: StopRequest, accelerator: Accelerator) -> bool:
    """
    Say whether the fit is to end after this step; of several processes all end after the same one.

    `stop` stays as it is: a process that is asked while they agree says so at the next look.
    """
    if accelerator.num_processes == 1:
        return stop.asked
    if stop.asked:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def _announce_duration(left: int, per_step: float, model: AnoPLeModel, images: int, config: TrainingConfig) -> None:
    if said := describe_duration(left, per_step, seconds_to_finish(model, images, config.monitor_images)):
        logger.info("%s", said)


def _make_room(folder: Path, first: int) -> None:
    """Drop what lies ahead: of a fit that begins anew the state of an earlier one, which would be gone on with otherwise."""
    if first == 0:
        remove_state(folder)
    trim_log(folder / LOG_FILE, first)


def _is_finished(folder: Path, config: TrainingConfig, options: dict) -> bool:
    """
    Say whether a fit that is to go on has ended before; of its folders only the names can be compared.

    Raises:
        ValueError: for a folder that holds another detector, or an unfinished fit, and neither is to be replaced.
    """
    if config.overwrite:
        return False
    begun, written = (folder / STATE_FILE).exists(), (folder / "model.safetensors").exists()
    if begun and not (written or config.resume):
        raise ValueError(f"{folder} holds an unfinished fit: go on with --resume, or begin anew with --overwrite.")
    if begun and config.resume:  # if it is written as well, it was killed meanwhile
        return False
    if not written:
        _check_folder(folder)
        return False
    if config.resume:
        asked = {**dataclasses.asdict(config), **options}
        asked |= {name: name_of(asked[name]) for name in NAMED if asked[name]}
        asked = {name: value for name, value in json.loads(json.dumps(asked)).items() if name not in FREE_ON_RESUME}
        known = AnoPLeConfig.from_pretrained(folder).fit or {}
        known = {RENAMED.get(name, name): value for name, value in known.items() if name not in REMOVED}
        asked = {
            name: value for name, value in asked.items() if value is not None
        }  # an earlier version knew fewer options
        if asked == {name: value for name, value in known.items() if name not in FOUND and value is not None}:
            return True
    other = " of other settings" if config.resume else ""
    raise ValueError(f"{folder} already holds a detector{other}: choose another --output_dir or add --overwrite.")


def _check_folder(folder: Path) -> None:
    """Refuse to fit into a folder with files of another detector or a CLIP; the log of a fit that was killed is its own."""
    if folder.is_dir():
        theirs = [path for path in sorted(folder.iterdir()) if is_of_detector(path.name) and path.name != LOG_FILE]
        if theirs:
            raise ValueError(f"{folder} holds {theirs[0].name}: choose another --output_dir, or add --overwrite.")
    check_outputs([Output("--output_dir", folder / LOG_FILE, json_lines_of(("step", "loss")))])


def fit_steps(
    accelerator: Accelerator,
    wrapped: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    config: TrainingConfig,
    *,
    first: int = 0,
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """
    Take one optimizer step after another, until the loader ends or the caller looks no further.

    Args:
        wrapped, optimizer, loader: as `accelerator.prepare` returned them.
        config: how to train.
        first: steps that were done before.

    Yields:
        The number of steps done and, of the last one, the loss and the mean of each of its terms.
    """
    model = accelerator.unwrap_model(wrapped)
    wrapped.train()
    step, weights = first, loss_weights(model.config)
    alignment_start = model.config.alignment_warmup * config.max_steps
    for batch in loader:
        with accelerator.accumulate(wrapped):
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * learning_rate_factor(step, config)
            terms = wrapped(**batch).loss_terms
            now = weights if step >= alignment_start else {**weights, "alignment": 0.0}
            loss, means = combine_losses(accelerator, terms, now)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
            yield step, {"loss": loss, **means}


def save(model: AnoPLeModel, processor: AnoPLeProcessor, folder: Path) -> None:
    """Write the finished detector; the state to resume from goes last, once nothing can be lost any more."""
    model.own_processor = processor
    model.save_pretrained(folder)
    remove_state(folder)
    logger.info("The detector is in %s.", folder)


def log_step(accelerator: Accelerator, folder: Path, step: int, bar: tqdm, values: dict[str, torch.Tensor]) -> None:
    """Show, write and report the losses of one step; a `ValueError` for one that is not finite ends the fit."""
    figures = {name: round(float(accelerator.reduce(value.detach(), "mean")), 6) for name, value in values.items()}
    _require_finite(step, figures)
    accelerator.log(figures, step=step)
    if accelerator.is_main_process:
        bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
        with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")


def _require_finite(step: int, figures: dict[str, float]) -> None:
    if broken := [name for name, figure in figures.items() if not math.isfinite(figure)]:
        raise ValueError(
            f"The {broken[0]} of step {step} is not finite, and so are the weights now: begin anew with lower "
            "--prompt_learning_rate and --decoder_learning_rate, or with --mixed_precision no."
        )


def main(arguments: list[str] | None = None) -> Path:
    """Parse the command line, seed every generator and fit."""
    start_logging()
    config, options = parse_options("anople fit", TrainingConfig, model_options(), arguments)
    set_seed(config.seed)
    try:
        return train(config, options)
    except Stopped as stop:
        if stop.can_resume:
            stop.command = resume_command(sys.argv[1:] if arguments is None else arguments)
        raise


if __name__ == "__main__":
    try:
        main()
    except Stopped as stop:
        sys.exit(report_stop("anople fit", stop))
