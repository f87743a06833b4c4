"""
Pretrain the embedded CLIP on drawn pictures, from nothing.

    python -m hub.mini_clip --max_minutes 2            # a look: ends with a loadable checkpoint
    python -m hub.mini_clip --steps 4000 --resume      # go on where the last piece ended

Every picture, bank and learning rate is a function of the seed and the step (with `max_minutes` also of the clock), so
a run can be killed and resumed at any step. The model never sees a photograph. It is judged on products drawn by
another renderer (`modeling_anople.data.drawn_products`), and the best average of weights is kept: over steps, and then
with the first weights (`hub.mini_clip.blend` says why).
"""

import copy
import dataclasses
import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from modeling_anople.configuration_anople import AnoPLeConfig
from modeling_anople.runtime import start_logging
from modeling_anople.training.finishing import load_state, save_state, trim_log

from .architecture import blend, mini_config, new_mini_clip, start_by_hand, weight_groups, write_checkpoint
from .features import SIDE
from .losses import EpisodeLearner, LossWeights
from .measure import DrawnValidation
from .optimizer import AveragedMuon
from .patch_statistics import PATCH
from .renderer import Episode, Renderer
from .tokenizer import train_tokenizer


logger = logging.getLogger(__name__)

LOG_FILE = "training_log.jsonl"
TILE_LIFE = 50  # steps after which the renderer's textures are drawn anew
FREE_ON_RESUME = {"output_dir", "resume", "steps", "max_minutes", "save_steps", "log_steps", "evaluate_steps",
                  *(entry.name for entry in dataclasses.fields(LossWeights))}  # fmt: skip


@dataclass
class PretrainingConfig(LossWeights):
    """Options of a pretraining run; every field is a command line option."""

    output_dir: str = field(default="out/mini_clip", metadata={"help": "Where checkpoint, state and log go."})
    steps: int = field(default=10_000, metadata={"help": "Optimizer steps of the whole run."})
    max_minutes: float | None = field(
        default=None, metadata={"help": "End by then, all pieces together: the schedule shrinks to fit."}
    )
    seed: int = field(default=0, metadata={"help": "Of first weights and of all pictures."})
    products: int = field(default=24, metadata={"help": "Products in a step and process, four pictures each."})
    size: int = field(default=128, metadata={"help": "Side of the pictures in pixels."})
    last_part: float = field(default=0.25, metadata={"help": "Share of the run at 224 pixels."})
    last_products: int = field(default=8, metadata={"help": "Products in a step of the last part."})
    width: int = field(default=192, metadata={"help": "Of the vision tower."})
    layers: int = field(default=6, metadata={"help": "Blocks of the vision tower."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Of Muon; AdamW takes 0.3 of it."})
    early: float = field(default=0.1, metadata={"help": "Share of the rate for the first two vision blocks."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps with a rising learning rate."})
    decay: float = field(default=0.6, metadata={"help": "Last share of the run, in which the rate falls to 0."})
    average: float = field(default=0.995, metadata={"help": "Decay of the running average of weights."})
    start: Literal["by_hand", "random"] = field(
        default="by_hand", metadata={"help": "First weights of the vision tower, see hub/mini_clip/architecture.py."}
    )
    first_share: float = field(
        default=0.5,
        metadata={"help": "Share of the first weights in what is judged and kept, see hub/mini_clip/blend.py."},
    )
    evaluate_steps: int = field(default=100, metadata={"help": "Steps between two looks at held-out products."})
    save_steps: int = field(default=100, metadata={"help": "Steps between two states to resume from."})
    log_steps: int = field(default=10, metadata={"help": "Steps between two lines of the log."})
    resume: bool = field(default=False, metadata={"help": "Go on with the run in output_dir."})

    def __post_init__(self):
        names = [entry.name for entry in dataclasses.fields(LossWeights)]
        if not any(getattr(self, name) for name in names):
            raise ValueError(f"all losses have weight 0: give one of {', '.join(names)} another.")
        if not 0 <= self.first_share <= 1:
            raise ValueError(f"first_share is {self.first_share}: give a share from 0 to 1.")
        if self.size % PATCH or not 0 < self.size <= SIDE:
            raise ValueError(f"size is {self.size}: take a multiple of {PATCH}, at most {SIDE}.")


def learning_rate(config: PretrainingConfig, step: int, progress: float) -> float:
    """Warm up over steps, stay, and fall linearly to 0 over the last share of the run."""
    rising = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * rising * min(1.0, max(0.0, (1 - progress) / max(1e-9, config.decay)))


class Supply:
    """Episodes by step: nothing but the seed, the step and the process decides what is drawn."""

    def __init__(self, config: PretrainingConfig, process: int):
        self.config, self.process = config, process
        self.period, self.renderer = None, None

    def episode(self, step: int, *, last: bool) -> tuple[Episode, int, tuple[int, int]]:
        """Draw a step's episode, how many photographs fill the memory, and where on the tower's grid they lie."""
        config, generator = self.config, torch.Generator()
        if step // TILE_LIFE != self.period:
            self.period = step // TILE_LIFE
            generator.manual_seed(self._number(self.period, 1))
            self.renderer = Renderer(generator)
        self.renderer.generator = generator.manual_seed(self._number(step, 2))
        products, size = (config.last_products, SIDE) if last else (config.products, config.size)
        episode = self.renderer.draw(products, size=size)
        free = (SIDE - size) // PATCH + 1
        row, column = torch.randint(free, (2,), generator=generator).tolist()
        return episode, 1 + step % 2, (row, column)

    def _number(self, step: int, use: int) -> int:
        return ((self.config.seed * 2 + use) * 1_000_003 + self.process) * 10_000_019 + step


def to_device(episode: Episode, device: torch.device) -> Episode:
    """Move an episode's pictures."""
    return dataclasses.replace(episode, pixels=episode.pixels.to(device), masks=episode.masks.to(device))


class Clock:
    """How far a run has come: by steps, and by minutes where they are limited, over all its pieces."""

    def __init__(self, config: PretrainingConfig, before: float):
        self.config, self.before, self.began, self.images = config, before, time.monotonic(), 0

    @property
    def minutes(self) -> float:
        """Minutes of all pieces together."""
        return self.before + (time.monotonic() - self.began) / 60

    def progress(self, step: int, accelerator: Accelerator) -> float:
        """Return the share done, 0 to 1 or beyond; the same in all processes."""
        share = step / self.config.steps
        if self.config.max_minutes is None:
            return share
        share = torch.tensor([max(share, self.minutes / self.config.max_minutes)], device=accelerator.device)
        return float(accelerator.gather(share).max())

    def images_per_second(self) -> float:
        """Return the speed of this piece."""
        return self.images / max(time.monotonic() - self.began, 1e-9)


def build_learner(config: PretrainingConfig) -> EpisodeLearner:
    """Build the CLIP with its first weights, its tokenizer and the heads of its losses."""
    tokenizer = train_tokenizer()
    description = mini_config(tokenizer, width=config.width, layers=config.layers)
    generator = torch.Generator().manual_seed(config.seed)
    clip = new_mini_clip(description, generator)
    pixels = Supply(config, 0).episode(0, last=False)[0].pixels.flatten(0, 1)
    if config.start == "by_hand":
        start_by_hand(clip, (pixels - 0.5) / 0.5, generator)
    layers = tuple(AnoPLeConfig(clip_config=description).memory_layers)
    learner = EpisodeLearner(clip, tokenizer, layers=layers)
    learner.fit_targets(pixels)
    return learner


def pretrain(config: PretrainingConfig) -> Path:
    """Run, or go on with, a pretraining; return the folder of the best checkpoint."""
    # a loss of weight 0 leaves its head without a gradient, which several processes would wait for
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    set_seed(config.seed)
    folder = Path(config.output_dir)
    log = folder / LOG_FILE
    folder.mkdir(parents=True, exist_ok=True)
    learner = build_learner(config).to(accelerator.device)
    first = copy.deepcopy(learner.clip.state_dict())  # what is judged and kept is averaged with these
    optimizer = AveragedMuon(
        weight_groups(learner, early=config.early), lr=config.learning_rate, average=config.average
    )
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_ON_RESUME}
    start = load_state(folder, settings=settings, model=learner, optimizer=optimizer) if config.resume else 0
    # lines that a killed piece wrote after its last state would come twice
    if accelerator.is_main_process:
        trim_log(log, start)
    accelerator.wait_for_everyone()
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    # minutes and the best score go on from the pieces before
    clock = Clock(config, before=max((line["minutes"] for line in lines), default=0.0))
    best = max((line["score"] for line in lines if "score" in line), default=-math.inf)
    trained = accelerator.prepare_model(learner)
    supply, validation = Supply(config, accelerator.process_index), None
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=not accelerator.is_main_process)
    progress = clock.progress(start, accelerator)
    for step in bar:
        episode, *places = supply.episode(step, last=progress >= 1 - config.last_part)
        episode = to_device(episode, accelerator.device)
        losses = trained(episode, config, *places)
        accelerator.backward(sum(losses.values()))
        accelerator.clip_grad_norm_(learner.parameters(), 1.0)
        # the rate follows progress, which the clock may hasten; a scheduler by steps would not notice
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, progress)
        optimizer.step()
        optimizer.zero_grad()
        clock.images += episode.pixels.shape[0] * episode.pixels.shape[1] * accelerator.num_processes
        done = step + 1
        progress = clock.progress(done, accelerator)
        ended = progress >= 1
        line = {"step": done, "minutes": round(clock.minutes, 3)}
        if done % config.evaluate_steps == 0 or ended:
            if validation is None:  # drawn once, by the main process, and only if a run gets so far
                with accelerator.main_process_first():
                    validation = DrawnValidation(folder / "held_out")
            # judge the running average, blended with the first weights, and go on from the weights as they were
            optimizer.swap_average()
            kept = blend(learner.clip, first, config.first_share)
            line |= validation.measure(kept, learner.layers)
            if accelerator.is_main_process and line["score"] >= best:
                best = line["score"]
                write_checkpoint(folder / "checkpoint", kept, learner.tokenizer)
            optimizer.swap_average()
        if accelerator.is_main_process and (done % config.log_steps == 0 or "score" in line):
            line |= {name: round(loss.item(), 4) for name, loss in losses.items()}
            line |= {"size": episode.pixels.shape[-1], "images_per_second": round(clock.images_per_second(), 1)}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            bar.set_postfix({name: line[name] for name in losses})
        if accelerator.is_main_process and (done % config.save_steps == 0 or ended):
            save_state(folder, step=done, settings=settings, model=learner, optimizer=optimizer)
        if ended:
            break
    return folder / "checkpoint"


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and run."""
    start_logging()
    (config,) = HfArgumentParser(PretrainingConfig, allow_abbrev=False).parse_args_into_dataclasses(arguments)
    logger.info("The checkpoint lies in %s", pretrain(config))


if __name__ == "__main__":
    main()
