"""
How often photographs of an unknown product are called so: `python -m hub.benchmarks.unknown_products DATA`.

Each product of the data is left out in turn. A detector on the embedded CLIP knows the others by a few good photographs
each, enrolled without any training, and judges all test photographs, the product of none being given. Counted are the
photographs of the product left out that are called "unknown product", and those of the others that are called so wrongly.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from tqdm.auto import tqdm

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.data import read_dataset
from modeling_anople.enrollment_anople import add_normals, enroll
from modeling_anople.pipeline_anople import predict
from modeling_anople.processing_anople import UNKNOWN_PRODUCT
from modeling_anople.training.few_shot import sample_few_shot

from .measuring import RESULTS, keep_table


class Answer(NamedTuple):
    """What one test photograph was called: as of its own product, another, or an unknown one."""

    left_out: str
    class_name: str
    defective: bool
    called: str


def make_detector(
    train: Dataset, names: Sequence[str], *, shots: int, seed: int, clip: str
) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    """Enroll each product with `shots` good photographs of the train split; nothing is trained."""
    first, *others = names
    model, processor = AnoPLeModel.from_clip(clip, [first]), AnoPLeProcessor.from_clip(clip, [first])
    for name in names:
        rows = train.select([row for row, owner in enumerate(train["class_name"]) if owner == name])
        images = {row["path"]: row["image"] for row in rows if row["label"] == 0}
        chosen = sample_few_shot(list(images), shots, seed=seed, class_name=name)
        add = enroll if name in others else add_normals
        add(model, processor, name, [images[path] for path in chosen])
    return model, processor


def judge_left_out(train: Dataset, test: Dataset, left_out: str, *, shots: int, seed: int, clip: str) -> list[Answer]:
    """Judge all test photographs with a detector that does not know one of the products."""
    names = [name for name in sorted(set(train["class_name"])) if name != left_out]
    model, processor = make_detector(train, names, shots=shots, seed=seed, clip=clip)
    answers = []
    for row, prediction in zip(test, predict(model, processor, (row["image"] for row in test)), strict=True):
        if prediction.error:
            raise ValueError(f"{row['path']}: {prediction.error}")
        called = prediction.label if prediction.label == UNKNOWN_PRODUCT else prediction.class_name
        answers.append(Answer(left_out, row["class_name"], bool(row["label"]), called))
    return answers


def share(hits: Sequence[bool]) -> str:
    """Percentage of hits; n/a where nothing could hit."""
    return f"{100 * statistics.fmean(hits):.1f}" if hits else "n/a"


def to_table(answers: Sequence[Answer]) -> str:
    """Write a line for each product and one for all, all seeds together."""
    lines = [
        "| product | left out: called unknown | known, good: called unknown | known, defective: called unknown "
        "| known: taken for another |",
        "|---|---|---|---|---|",
    ]
    names = sorted({each.class_name for each in answers})
    for name in [*names, None]:
        own = [each for each in answers if name in (each.class_name, None)]
        left_out = [each for each in own if each.left_out == each.class_name]
        known = [each for each in own if each.left_out != each.class_name]
        unknown = [
            [each.called == UNKNOWN_PRODUCT for each in part]
            for part in (
                left_out,
                [each for each in known if not each.defective],
                [each for each in known if each.defective],
            )
        ]
        others = [each.called not in (each.class_name, UNKNOWN_PRODUCT) for each in known]
        cells = [share(hits) for hits in (*unknown, others)]
        lines.append(f"| {name or 'all'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="Products in any layout that `anople fit` reads, with test photographs.")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clip", default="mini")
    parser.add_argument("--about", default="", help="A sentence on the data, for the file.")
    parser.add_argument("--output", type=Path, default=RESULTS / "unknown_products.md")
    options = parser.parse_args()
    train, test = (read_dataset(options.data, split=split) for split in ("train", "test"))
    names, answers = sorted(set(train["class_name"])), []
    rounds = [(seed, name) for seed in options.seeds for name in names]
    for seed, name in tqdm(rounds, desc="left out"):
        answers += judge_left_out(train, test, name, shots=options.shots, seed=seed, clip=options.clip)
    seeds = " ".join(map(str, options.seeds))
    text = (
        f"`python -m hub.benchmarks.unknown_products DATA --shots {options.shots} --seeds {seeds} --clip {options.clip}`."
        f" {options.about}\n\n{to_table(answers)}\n"
    )
    keep_table(options.output, "Photographs of an unknown product, percent", text)


if __name__ == "__main__":
    main()
