"""
Teach words to a taught tower, which stays as it is.

    python -m hub.mini_clip.teaching.words CHECKPOINT --output_dir OUT --pictures PICTURES

The text tower, both projections and the vision tower's last norm learn anew from drawn episodes (normal and abnormal
texts on patches and pictures, captions of products) and from the names of cut-out objects among the gathered pictures.
Every step is a function of the seed and its number, and a run can be resumed. Text alone is then judged on the drawn
products of `modeling_anople.data.drawn_products`, which nobody learns from.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer, CLIPModel

from modeling_anople.data import read_dataset
from modeling_anople.data.drawn_products import write_dataset
from modeling_anople.evaluation.metrics import PixelMetrics, image_metrics, mean_metrics
from modeling_anople.runtime import start_logging
from modeling_anople.training.finishing import load_state, save_state, trim_log

from ..__main__ import PretrainingConfig, Supply
from ..architecture import write_checkpoint
from ..features import GRID, SIDE
from ..losses import EpisodeLearner, LossWeights
from ..measure import load_square_mask
from ..measure import load_squares as load_photographs
from ..optimizer import AveragedMuon
from .features import load_squares
from .pictures import read_manifest


LOG_FILE = "words_log.jsonl"
NAMED = "tuxpaint-stamps-default"  # whose files are called after what they show
OBJECTS = 24  # named ones in a step
NAME_WEIGHT = 0.2
SEED_OF_JUDGES = 2026


def name_of_object(source: str) -> str | None:
    """Turn a stamp's path into what it shows, "candy cane" for .../candy_cane-2.png; None for letters and numbers."""
    if "/symbols/" in source:
        return None
    words = re.sub(r"[^a-z]+", " ", Path(source).stem.lower()).split()
    return " ".join(word for word in words if len(word) > 1) or None


def named_rows(pictures: Path) -> dict[str, list[dict]]:
    """Group the squares to learn from by the name of what they show; only those that have a name."""
    groups: dict[str, list[dict]] = {}
    for row in read_manifest(pictures, aside=False):
        name = name_of_object(row["source"]) if row["package"] == NAMED else None
        if name is not None:
            groups.setdefault(name, []).append(row)
    return groups


class WordLearner(EpisodeLearner):
    """An `EpisodeLearner` whose vision tower is frozen but for its last norm and its projection."""

    def __init__(self, clip: CLIPModel, tokenizer):
        super().__init__(clip, tokenizer, layers=())
        self.requires_grad_(False)
        vision = clip.vision_model
        for part in (vision.post_layernorm, clip.visual_projection, clip.text_model, clip.text_projection):
            part.requires_grad_(True)
        self.text_scale.requires_grad_(True)

    def names_loss(self, pixels: Tensor, names: list[str]) -> Tensor:
        """Contrast pictures (images, 3, 224, 224) from 0 to 1 with their names, all of them different."""
        _, _, pooled = self.encode((pixels - 0.5) / 0.5)
        logits = pooled @ self.embed([f"a photo of a {name}." for name in names]).T * self.text_scale.exp()
        own = torch.arange(len(names))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def learning_groups(learner: WordLearner) -> list[dict]:
    """Part the weights that learn into matrices of blocks, for Muon, and all else."""
    groups = [{"params": [], "orthogonal": flag, "ratio": ratio} for flag, ratio in ((True, 1.0), (False, 0.5))]
    for name, weight in learner.named_parameters():
        if weight.requires_grad:
            groups[0 if ".layers." in name and weight.ndim == 2 else 1]["params"].append(weight)
    return groups


def teach_words(
    checkpoint: Path,
    output: Path,
    *,
    pictures: Path | None = None,
    steps: int = 600,
    products: int = 6,
    rate: float = 1e-3,
    seed: int = 0,
    resume: bool = False,
    save_steps: int = 50,
) -> Path:
    """
    Run, or go on with, the learning of words; return the folder of the new checkpoint.

    Args:
        checkpoint: a CLIP with a taught tower.
        pictures: folder of gathered pictures, whose named objects are learned too.
        products: drawn ones in a step.
        rate: of Muon; it falls linearly to 0 over the run.

    Raises:
        ValueError: for a state of a run with other settings.
    """
    output.mkdir(parents=True, exist_ok=True)
    clip = CLIPModel.from_pretrained(checkpoint, dtype=torch.float32)
    learner = WordLearner(clip, AutoTokenizer.from_pretrained(checkpoint))
    optimizer = AveragedMuon(learning_groups(learner), lr=rate, average=0.99)
    settings = {"seed": seed, "products": products, "rate": rate, "steps": steps, "named": pictures is not None}
    start = load_state(output, settings=settings, model=learner, optimizer=optimizer) if resume else 0
    trim_log(output / LOG_FILE, start)
    supply = Supply(PretrainingConfig(last_products=products, seed=seed), 0)
    groups = named_rows(pictures) if pictures is not None else {}
    weights = LossWeights(episodic=0, relation=0, regression=0, dense_text=0.5, contrast=0.1)
    for step in tqdm(range(start, steps), initial=start, total=steps, desc="words"):
        episode, banks, _ = supply.episode(step, last=True)
        losses = learner(episode, weights, banks)
        if len(groups) > 1:
            rows, names = named_lesson(groups, seed, step)
            pixels = load_squares(pictures, rows).float() / 255
            losses["names"] = NAME_WEIGHT * learner.names_loss(pixels, names)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        with (output / LOG_FILE).open("a", encoding="utf-8") as file:
            line = {"step": step + 1, **{name: round(loss.item(), 5) for name, loss in losses.items()}}
            file.write(json.dumps(line) + "\n")
        if (step + 1) % save_steps == 0 or step + 1 == steps:
            save_state(output, step=step + 1, settings=settings, model=learner, optimizer=optimizer)
    optimizer.swap_average()
    write_checkpoint(output / "checkpoint", clip, learner.tokenizer)
    return output / "checkpoint"


def named_lesson(groups: dict[str, list[dict]], seed: int, step: int) -> tuple[list[dict], list[str]]:
    """Pick a step's objects, each of another name, and one square of each."""
    generator = np.random.default_rng([seed, step])
    names = [sorted(groups)[number] for number in generator.permutation(len(groups))[:OBJECTS]]
    return [groups[name][int(generator.integers(len(groups[name])))] for name in names], names


@torch.no_grad()
def judge_words(checkpoint: Path, data: Path) -> dict[str, dict[str, float | None]]:
    """
    Judge "a photo of an abnormal NAME" against "a photo of a NAME" on a data set, nothing else: no memory, no training.

    Returns:
        For each product and for their `mean`: `image_auroc` of the first token, `best_patch_auroc` of the most abnormal
        patch, and `pixel_auroc` and `aupro` of the patches' map; within 0 and 1, 0.5 being chance for all but the last.
    """
    clip = CLIPModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    learner = WordLearner(clip, AutoTokenizer.from_pretrained(checkpoint))
    rows, figures = read_dataset(data, split="test"), {}
    for name in sorted(set(rows["class_name"][:])):
        own = [row for row in rows if row["class_name"] == name]
        noun = name.replace("_", " ")
        normal, abnormal = learner.embed([f"a photo of a {noun}.", f"a photo of an abnormal {noun}."])
        pixels = load_photographs([row["image"] for row in own]).float() / 255
        answers = [learner.encode((part - 0.5) / 0.5)[1:] for part in pixels.split(8)]
        patches, pooled = (torch.cat(parts) @ (abnormal - normal) for parts in zip(*answers, strict=True))
        labels, measured = [row["label"] for row in own], PixelMetrics()
        maps = F.interpolate(patches.unflatten(1, (GRID, GRID))[:, None], (SIDE, SIDE), mode="bilinear")[:, 0]
        for row, heat in zip(own, (maps + 2) / 4, strict=True):  # cosines' differences lie within -2 and 2
            if row["mask"] is not None or not row["label"]:
                measured.update(heat.numpy(), None if row["mask"] is None else load_square_mask(row["mask"]))
        whole = image_metrics(pooled.numpy(), labels)["image_auroc"]
        best = image_metrics(patches.amax(1).numpy(), labels)["image_auroc"]
        figures[name] = {"image_auroc": whole, "best_patch_auroc": best, **measured.compute()}
    return figures | {"mean": mean_metrics(figures)}


def drawn_judges(folder: Path) -> Path:
    """Draw the products to judge by, once."""
    if not folder.exists():
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_dataset(unfinished, SEED_OF_JUDGES, train=8, good=8, defective=12, size=SIDE)
        unfinished.rename(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Teach words by the command line, then judge them before and after."""
    start_logging()
    parser = argparse.ArgumentParser(
        prog="python -m hub.mini_clip.teaching.words",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="a CLIP with a taught tower")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, help="gathered pictures, whose named objects are learned too")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with the run in output_dir")
    options = parser.parse_args(arguments)
    taught = teach_words(
        options.checkpoint,
        options.output_dir,
        pictures=options.pictures,
        steps=options.steps,
        seed=options.seed,
        resume=options.resume,
    )
    judges = drawn_judges(options.output_dir / "held_out")
    figures = {
        name: judge_words(folder, judges) for name, folder in (("before", options.checkpoint), ("after", taught))
    }
    (options.output_dir / "words.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: known["mean"] for name, known in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
