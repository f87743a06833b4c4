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
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .checkpointing import STATE_FILE, load_state, save_state, trim_log
from .data import read_dataset
from .fewshot import FewShotDataset, StepSampler, ViewSettings, collate_views, sample_few_shot, square_image
from .losses_anople import LossTerm, loss_weights
from .modeling_anople import AnoPLeModel
from .monitoring import DecoderHealth, check_decoder
from .options import model_options, parse_options
from .processing_anople import AnoPLeProcessor, load_photograph
from .small_clip import SMALL_CLIP, write_small_clip
from .synthesis import PseudoAnomaly


logger = logging.getLogger(__name__)


@dataclass
class TrainingConfig:
    """Options of a fit; every field is a command line option."""

    data_root: str = field(
        metadata={"help": "Folder with one sub-folder per product, a parquet file or a Hub dataset."}
    )
    output_dir: str = field(default="out/anople", metadata={"help": "Where the detector is written."})
    clip: str = field(
        default=SMALL_CLIP, metadata={"help": "Folder or Hub id of a CLIPModel; by default a small one."}
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Products to take; by default all."})
    shots: int = field(default=4, metadata={"help": "Good photographs per product."})
    seed: int = field(default=0, metadata={"help": "Of the choice of photographs and of all training draws."})
    max_steps: int = field(default=2000, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=8, metadata={"help": "Photographs per step over all processes, times the views."})
    prompt_learning_rate: float = field(default=1e-3, metadata={"help": "Of prompts, projections and prefix."})
    decoder_learning_rate: float = field(
        default=3e-3, metadata={"help": "Of the decoder, which starts from nothing and wants a higher rate."}
    )
    weight_decay: float = field(default=1e-4, metadata={"help": "Of AdamW."})
    warmup_ratio: float = field(default=0.05, metadata={"help": "Share of the steps with a rising learning rate."})
    final_learning_rate_ratio: float = field(default=0.01, metadata={"help": "Where the cosine ends."})
    max_gradient_norm: float = field(default=1.0, metadata={"help": "Longer gradients are shortened to this."})
    pixel_anomaly: Literal["perlin", "cut_paste", "both", "none"] = field(
        default="perlin", metadata={"help": "Pseudo-anomaly in pixel space; none trains on latent ones alone."}
    )
    max_false_alarm_rate: float = field(default=0.05, metadata={"help": "Share of good photographs above the line."})
    mixed_precision: Literal["no", "bf16"] = field(default="no", metadata={"help": "Precision of the forward pass."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Parts in which a batch is computed."})
    num_workers: int = field(default=0, metadata={"help": "Processes that prepare photographs."})
    monitor_images: int = field(
        default=16,
        metadata={"help": "Held-back photographs that check the decoder, at least one per product; 0 for none."},
    )
    save_steps: int = field(default=100, metadata={"help": "Steps between two states to resume from."})
    log_steps: int = field(default=10, metadata={"help": "Steps between two lines of training_log.jsonl."})
    report_to: Literal["none", "tensorboard", "trackio"] = field(
        default="none", metadata={"help": "Where to log, too."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished fit in output_dir."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a detector that output_dir already holds."})

    def __post_init__(self):
        for name in ("shots", "batch_size", "gradient_accumulation_steps", "save_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.max_steps < 0:
            raise ValueError(f"max_steps must not be negative, got {self.max_steps}.")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into {self.gradient_accumulation_steps} equal parts: choose "
                "a multiple of gradient_accumulation_steps."
            )


LOG_FILE = "training_log.jsonl"

# Not part of what a resumed fit must repeat.
FREE_ON_RESUME = {"output_dir", "resume", "overwrite", "save_steps", "log_steps", "report_to", "num_workers"}


@dataclass
class Shots:
    """The good photographs of a fit: their names per class, and what was held back to watch the decoder."""

    files: dict[str, list[str]]
    images: list[dict]
    class_ids: list[int]
    held_back: list[tuple[dict, int]]


def choose_shots(config: TrainingConfig) -> Shots:
    """Draw the good photographs of each class from the train split, and name them in the log."""
    normals = read_dataset(config.data_root, split="train", classes=config.classes)
    normals = normals.select([row for row, label in enumerate(normals["label"][:]) if label == 0])
    rows: dict[str, dict[str, int]] = {}
    for number, (name, path) in enumerate(zip(normals["class_name"], normals["path"], strict=True)):
        rows.setdefault(name, {})[path] = number
    shots = Shots({}, [], [], [])
    spare = max(1, config.monitor_images // len(rows))
    for class_id, name in enumerate(sorted(rows)):
        chosen = sample_few_shot(list(rows[name]), config.shots, seed=config.seed, class_name=name)
        if len(chosen) < config.shots:
            logger.warning("%s has %d good photographs; %d were asked for.", name, len(chosen), config.shots)
        shots.files[name] = chosen
        shots.images += [normals[rows[name][path]]["image"] for path in chosen]
        shots.class_ids += [class_id] * len(chosen)
        others = sample_few_shot(list(rows[name].keys() - chosen) or chosen, spare, seed=config.seed, class_name=name)
        shots.held_back += [(normals[rows[name][path]]["image"], class_id) for path in others]
        logger.info("%s, %d shots: %s", name, len(chosen), ", ".join(chosen))
    return shots


@contextlib.contextmanager
def clip_folder(name: str) -> Iterator[str]:
    """Give the folder or Hub id of the backbone; the small one is written for as long as it is needed."""
    if name != SMALL_CLIP:
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        yield str(write_small_clip(Path(folder) / SMALL_CLIP))


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


def train(config: TrainingConfig, options: dict | None = None) -> Path:
    """
    Fit a detector and save it.

    Args:
        config: how to train.
        options: fields of [`AnoPLeConfig`] that differ from their defaults.

    Returns:
        The folder with the finished detector, loadable by `AnoPLeModel.from_pretrained`.

    Raises:
        ValueError: for a folder that already holds a detector, or data that cannot be used, with the remedy.
    """
    output_dir, options = Path(config.output_dir), dict(options or {})
    unfinished = config.resume and (output_dir / STATE_FILE).exists()  # killed while the detector was written
    if (output_dir / "model.safetensors").exists() and not config.overwrite and not unfinished:
        raise ValueError(f"{output_dir} already holds a detector: choose another --output_dir or add --overwrite.")
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
        dataloader_config=_dataloader_settings(),
    )
    # 1. Data: k good photographs of each class, the same in every process.
    shots = choose_shots(config)
    # 2. Model: a frozen CLIP with learnable prompts and decoder.
    with clip_folder(config.clip) as clip:
        model = AnoPLeModel.from_clip(clip, list(shots.files), **options).freeze_clip()
        processor = AnoPLeProcessor.from_clip(clip, list(shots.files))
    optimizer = make_optimizer(model, config)
    # 3. Where an earlier, killed run stopped.
    settings = {**dataclasses.asdict(config), **options, "files": shots.files}
    settings = {name: value for name, value in settings.items() if name not in FREE_ON_RESUME}
    first = load_state(output_dir, settings=settings, model=model, optimizer=optimizer) if config.resume else 0
    # 4. Samples by number, so that any process, at any time, draws the same ones.
    samples = make_samples(config, processor, shots, model.config.view_grid)
    loader = DataLoader(
        samples,
        batch_size=config.batch_size // config.gradient_accumulation_steps,
        sampler=StepSampler(first * config.batch_size, config.max_steps * config.batch_size),
        collate_fn=collate_views,
        num_workers=config.num_workers,
    )
    watched = make_watched(config, processor, shots)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        trim_log(output_dir / LOG_FILE, first)
    if config.report_to != "none":
        accelerator.init_trackers("anople", config={name: str(value) for name, value in settings.items()})

    # 5. The loop.
    wrapped.train()
    step, weights = first, loss_weights(model.config)
    alignment_start = model.config.alignment_warmup * config.max_steps
    bar = tqdm(total=config.max_steps, initial=first, desc="fit", disable=not accelerator.is_main_process)
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
        if not accelerator.sync_gradients:
            continue
        step += 1
        bar.update()
        if step % config.log_steps == 0 or step == config.max_steps:
            log_step(accelerator, output_dir, step, bar, {"loss": loss, **means})
        if accelerator.is_main_process and step % config.save_steps == 0 and step < config.max_steps:
            save_state(output_dir, step=step, settings=settings, model=model, optimizer=optimizer)
    bar.close()

    # 6. Memory, lines and class embeddings; then one folder with all of it.
    accelerator.wait_for_everyone()
    model = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # prediction is not in bfloat16
    if accelerator.is_main_process:
        health = finish(model, processor, shots, watched, config)
        seen = {"processes": accelerator.num_processes, "decoder_health": health.as_dict() if health else None}
        model.config.fit = {**settings, **seen}
        model.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
        (output_dir / STATE_FILE).unlink(missing_ok=True)
        logger.info("The detector is in %s.", output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output_dir


def _dataloader_settings():
    from accelerate.utils import DataLoaderConfiguration

    # batch_size counts the photographs of all processes; each takes its part of every batch
    return DataLoaderConfiguration(split_batches=True, even_batches=True)


def make_samples(config: TrainingConfig, processor: AnoPLeProcessor, shots: Shots, grid: int) -> FewShotDataset:
    """Load the photographs at the size from which views are cut."""
    side = processor.image_size
    images = [square_image(load_photograph(image), side * grid) for image in shots.images]
    return FewShotDataset(
        images,
        shots.class_ids,
        views=_view_settings(processor, grid),
        anomaly=None if config.pixel_anomaly == "none" else PseudoAnomaly(kind=config.pixel_anomaly),
        seed=config.seed,
    )


def make_watched(config: TrainingConfig, processor: AnoPLeProcessor, shots: Shots) -> dict[str, torch.Tensor] | None:
    """Make defects on photographs that are not trained on (or, where none is spare, on the shots themselves)."""
    if config.monitor_images < 1:
        return None
    images = [square_image(load_photograph(image), processor.image_size) for image, _ in shots.held_back]
    kind = "perlin" if config.pixel_anomaly == "none" else config.pixel_anomaly
    samples = FewShotDataset(
        images,
        [class_id for _, class_id in shots.held_back],
        views=_view_settings(processor, 1),
        anomaly=PseudoAnomaly(kind=kind),
        anomaly_period=1,
        seed=config.seed + 1_000_003,  # defects that fitting does not draw
    )
    batch = collate_views([samples[number] for number in range(2 * len(images))])
    return batch if batch["mask_labels"].any() else None


def _view_settings(processor: AnoPLeProcessor, grid: int) -> ViewSettings:
    normalisation = processor.image_processor
    return ViewSettings(processor.image_size, grid, tuple(normalisation.image_mean), tuple(normalisation.image_std))


def log_step(accelerator: Accelerator, folder: Path, step: int, bar: tqdm, values: dict[str, torch.Tensor]) -> None:
    """Show, write and report the losses of one step."""
    figures = {name: round(float(accelerator.reduce(value.detach(), "mean")), 6) for name, value in values.items()}
    accelerator.log(figures, step=step)
    if accelerator.is_main_process:
        bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
        with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")


def finish(
    model: AnoPLeModel, processor: AnoPLeProcessor, shots: Shots, watched: dict | None, config: TrainingConfig
) -> DecoderHealth | None:
    """Store class embeddings, fill the memory, set the lines and check the decoder."""
    model.eval()
    model.store_class_embeddings()
    device = model.device
    pixels = []
    for class_id in range(len(shots.files)):
        photographs = [image for image, owner in zip(shots.images, shots.class_ids, strict=True) if owner == class_id]
        pixels.append(processor(photographs)["pixel_values"].to(device))
        model.remember(pixels[class_id], class_id)
    for class_id in range(len(shots.files)):  # where classes are predicted or pooled, a line needs every memory
        model.calibrate(pixels[class_id], class_id, max_false_alarm_rate=config.max_false_alarm_rate)
    if watched is None:
        return None
    health = check_decoder(model, {name: values.to(device) for name, values in watched.items()})
    logger.info("Decoder on made defects over held-back photographs: %s", health.as_dict())
    health.warn()
    return health


def main(arguments: list[str] | None = None) -> Path:
    """Parse the command line, seed every generator and fit."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config, options = parse_options("anople fit", TrainingConfig, model_options(), arguments)
    set_seed(config.seed)
    return train(config, options)


if __name__ == "__main__":
    main()
