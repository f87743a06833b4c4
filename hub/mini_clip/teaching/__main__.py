"""
Teach the vision tower of the embedded CLIP by a large encoder.

    python -m hub.mini_clip.teaching.pictures OUT                                          # gather pictures
    python -m hub.mini_clip.teaching --teacher facebook/dinov2-small --pictures OUT        # features once, then lessons
    python -m hub.mini_clip.teaching --pictures OUT --steps 20000 --falling 4000 --resume  # go on where it ended
    OMP_NUM_THREADS=1 accelerate launch --cpu --num_processes 2 -m hub.mini_clip.teaching ...  # a process for each core

Every lesson and learning rate is a function of the seed and the step, so that a run can be killed and resumed at any
step. The rate stays level until `falling` steps before the end; both may be given anew on --resume, when it shows how
much time there is. The average of weights is judged on made products of set-aside pictures and written as an ordinary
checkpoint each time.
"""

import dataclasses
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer, CLIPModel, HfArgumentParser

from modeling_anople.backbone_anople import MINI_CLIP, clip_source
from modeling_anople.runtime import start_logging
from modeling_anople.training.finishing import load_state, save_state, trim_log

from ..architecture import MEAN, STD, mini_config, new_mini_clip, start_by_hand, write_checkpoint
from ..features import SIDE, tower_features
from ..optimizer import AveragedMuon
from ..renderer import Renderer
from .features import BLOCKS, Teacher, compute_features
from .judging import judge, write_made_products
from .lessons import Lesson, Lessons
from .pupil import Pupil, weight_groups


logger = logging.getLogger(__name__)

LOG_FILE = "training_log.jsonl"
FREE_ON_RESUME = {"output_dir", "pictures", "teacher", "most", "resume", "steps", "falling", "max_minutes",
                  "save_steps", "log_steps", "judge_steps"}  # fmt: skip


@dataclass
class TeachingConfig:
    """Options of a run; every field is a command line option."""

    pictures: str = field(metadata={"help": "Folder that `hub.mini_clip.teaching.pictures` wrote."})
    teacher: str | None = field(default=None, metadata={"help": "Vision model whose features are computed first."})
    teacher_blocks: list[int] = field(
        default_factory=lambda: list(BLOCKS), metadata={"help": "After which its stream is taken, counted from 1."}
    )
    features: str = field(default="features", metadata={"help": "Name of the cache with the teacher's features."})
    most: int | None = field(default=None, metadata={"help": "Pictures at most; more may be given on --resume."})
    output_dir: str = field(default="out/teaching", metadata={"help": "Where checkpoint, state and log go."})
    pupil_blocks: list[int] = field(
        default_factory=lambda: [4, 6], metadata={"help": "Blocks that learn the teacher's, counted from 1."}
    )
    start: Literal["mini", "by_hand", "random"] = field(
        default="mini", metadata={"help": "First weights: of `mini` (its width, at least its depth) or as it began."}
    )
    width: int = field(default=192, metadata={"help": "Of the tower."})
    layers: int = field(default=6, metadata={"help": "Blocks of the tower."})
    steps: int = field(default=10_000, metadata={"help": "Of the whole run."})
    falling: int = field(default=2_000, metadata={"help": "Last steps, in which the learning rate falls to 0."})
    max_minutes: float | None = field(default=None, metadata={"help": "End this piece by then, resumable."})
    batch: int = field(default=16, metadata={"help": "Pictures in a step and process."})
    places: int = field(default=1024, metadata={"help": "Patches of a step that are compared with each other."})
    from_pictures: int | None = field(default=None, metadata={"help": "Pictures these are on; by default all."})
    relation: float = field(default=4.0, metadata={"help": "Weight of the cosines between patches."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Of Muon; AdamW takes 0.3 of it."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps with a rising learning rate."})
    average: float = field(default=0.998, metadata={"help": "Decay of the running average of weights."})
    half: bool = field(default=False, metadata={"help": "Multiply in bfloat16: faster where the processor can."})
    seed: int = field(default=0, metadata={"help": "Of first weights, orders, views and places."})
    save_steps: int = field(default=100, metadata={"help": "Steps between two states to resume from."})
    log_steps: int = field(default=20, metadata={"help": "Steps between two lines of the log."})
    judge_steps: int = field(default=1_000, metadata={"help": "Steps between two looks at made products; 0: never."})
    resume: bool = field(default=False, metadata={"help": "Go on with the run in output_dir."})

    def __post_init__(self):
        if len(self.teacher_blocks) != len(self.pupil_blocks):
            raise ValueError(
                f"pupil_blocks {self.pupil_blocks} and teacher_blocks {self.teacher_blocks}: give as many of each."
            )


def learning_rate(config: TeachingConfig, step: int) -> float:
    """Warm up, stay level, and fall linearly to 0 over the last `falling` steps."""
    rising = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * rising * min(1.0, (config.steps - step) / max(1, config.falling))


def first_clip(config: TeachingConfig) -> tuple[CLIPModel, AutoTokenizer]:
    """
    Build the CLIP that learns, with the text tower and tokenizer of `mini`.

    Blocks that `mini` lacks come after its own and begin as if they were not there: what they add is 0.

    Raises:
        ValueError: for weights of `mini` in a tower of another width, or of fewer blocks.
    """
    source = clip_source(MINI_CLIP)
    tokenizer = AutoTokenizer.from_pretrained(source)
    mini = CLIPModel.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(config.seed)
    clip = new_mini_clip(mini_config(tokenizer, width=config.width, layers=config.layers), generator)
    clip.text_model.load_state_dict(mini.text_model.state_dict())
    clip.text_projection.load_state_dict(mini.text_projection.state_dict())
    if config.start == "mini":
        width, depth = mini.config.vision_config.hidden_size, mini.config.vision_config.num_hidden_layers
        if config.width != width or config.layers < depth:
            raise ValueError(
                f"mini is {width} x {depth}, which {config.width} x {config.layers} cannot begin with: start by hand."
            )
        clip.load_state_dict(mini.state_dict(), strict=False)
        for layer in clip.vision_model.encoder.layers[depth:]:
            for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
    elif config.start == "by_hand":
        start_by_hand(clip, (drawn_pixels(config.seed) - 0.5) / 0.5, generator)
    return clip, tokenizer


def drawn_pixels(seed: int) -> Tensor:
    """Draw products to standardize first weights by: (images, 3, 224, 224) from 0 to 1."""
    return Renderer(torch.Generator().manual_seed(seed), per_kind=2).draw(8, normals=1, size=SIDE).pixels.flatten(0, 1)


def prepare_features(config: TeachingConfig) -> None:
    """Compute the teacher's features of all pictures, or what is missing of them, where a teacher is given."""
    if config.teacher is not None:
        teacher = Teacher(config.teacher, blocks=config.teacher_blocks)
        compute_features(Path(config.pictures), teacher, source=config.teacher, most=config.most, name=config.features)


def open_lessons(config: TeachingConfig, accelerator: Accelerator) -> Lessons:
    """
    Open the lessons of all processes together, their features computed first where a teacher is given.

    Raises:
        ValueError: without pictures or features, or for features of other blocks.
    """
    if accelerator.is_main_process:
        prepare_features(config)
    accelerator.wait_for_everyone()
    lessons = Lessons(
        config.pictures,
        batch=config.batch * accelerator.num_processes,
        places=config.places,
        from_pictures=min(config.batch, config.from_pictures or config.batch),
        seed=config.seed,
        name=config.features,
        most=config.most,
    )
    if lessons.facts["blocks"] != config.teacher_blocks:
        raise ValueError(f"the features are of blocks {lessons.facts['blocks']}, not {config.teacher_blocks}.")
    return lessons


def teach(config: TeachingConfig) -> Path:
    """
    Run, or go on with, a teaching; return the folder of the checkpoint.

    Raises:
        ValueError: without pictures or features, for features of other blocks, or a state of another run.
    """
    accelerator = Accelerator()
    set_seed(config.seed)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lessons = open_lessons(config, accelerator)
    clip, tokenizer = first_clip(config)
    clip.config.vision_config.memory_layers = [block - 1 for block in config.pupil_blocks]  # what a detector remembers
    if config.half:
        clip.set_attn_implementation("eager")  # on processors a sixth faster than the fused one in bfloat16
    pupil = Pupil(clip, blocks=tuple(config.pupil_blocks), width=lessons.features.shape[-1]).to(accelerator.device)
    optimizer = AveragedMuon(weight_groups(pupil), lr=config.learning_rate, average=config.average)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_ON_RESUME}
    start = load_state(folder, settings=settings, model=pupil, optimizer=optimizer) if config.resume else 0
    clock = Clock(config, folder / LOG_FILE, start, accelerator)
    trained = accelerator.prepare_model(pupil)
    bar = tqdm(total=config.steps, initial=start, disable=not accelerator.is_main_process)
    for step, lesson in enumerate(lessons.ahead(start, config.steps), start=start):
        losses = learn(trained, lesson, config, accelerator)
        accelerator.backward(sum(losses.values()))
        accelerator.clip_grad_norm_(pupil.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.step()
        optimizer.zero_grad()
        bar.update()
        done = step + 1
        ended = clock.ended(done)
        line = {"step": done, "minutes": round(clock.minutes, 3)}
        if accelerator.is_main_process and (ended or (config.judge_steps and done % config.judge_steps == 0)):
            optimizer.swap_average()
            write_checkpoint(folder / "checkpoint", pupil.clip, tokenizer)
            line |= judge_pupil(pupil, Path(config.pictures)) if config.judge_steps else {}
            optimizer.swap_average()
        if accelerator.is_main_process and (ended or done % config.log_steps == 0 or len(line) > 2):
            line |= {name: round(loss.item(), 5) for name, loss in losses.items()}
            line |= {"rate": learning_rate(config, step), "pictures": done * lessons.batch, "of": len(lessons.rows)}
            with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            bar.set_postfix({name: line[name] for name in losses})
        if accelerator.is_main_process and (ended or done % config.save_steps == 0):
            save_state(folder, step=done, settings=settings, model=pupil, optimizer=optimizer)
        if ended:
            break
    bar.close()
    return folder / "checkpoint"


class Clock:
    """Minutes of a run, all its pieces together by its log, and whether this piece has to end."""

    def __init__(self, config: TeachingConfig, log: Path, start: int, accelerator: Accelerator):
        self.config, self.accelerator, self.began = config, accelerator, time.monotonic()
        if accelerator.is_main_process:
            trim_log(log, start)
        accelerator.wait_for_everyone()
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        self.before = max((line["minutes"] for line in lines), default=0.0)

    @property
    def minutes(self) -> float:
        """Minutes of all pieces."""
        return self.before + (time.monotonic() - self.began) / 60

    def ended(self, done: int) -> bool:
        """Say whether all steps are done, or this piece's minutes; the same in all processes."""
        late = self.config.max_minutes is not None and self.minutes - self.before >= self.config.max_minutes
        if self.accelerator.num_processes > 1:
            late = bool(self.accelerator.gather(torch.tensor([late], device=self.accelerator.device)).any())
        return done >= self.config.steps or late


def learn(trained, lesson: Lesson, config: TeachingConfig, accelerator: Accelerator) -> dict[str, Tensor]:
    """Compare the pupil with the teacher on a process's own part of a lesson."""
    own = slice(accelerator.process_index * config.batch, (accelerator.process_index + 1) * config.batch)
    pixels, wanted = (part[own].to(accelerator.device) for part in (lesson.pixels, lesson.wanted))
    with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.half):
        return trained(pixels, wanted, lesson.places.to(accelerator.device), relation=config.relation)


def judge_pupil(pupil: Pupil, pictures: Path) -> dict[str, float]:
    """Judge the tower as it is by its memory alone on made products of the set-aside pictures, made where missing."""
    products = pictures / "made_products"
    if not products.exists():
        write_made_products(products, pictures)
    layers = tuple(block - 1 for block in pupil.blocks)
    return judge(tower_features(pupil.clip, layers, mean=MEAN, std=STD), products)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and run."""
    start_logging()
    (config,) = HfArgumentParser(TeachingConfig, allow_abbrev=False).parse_args_into_dataclasses(arguments)
    logger.info("The checkpoint lies in %s", teach(config))


if __name__ == "__main__":
    main()
