"""
Whether good photographs to come score like those that set a line: `python -m hub.benchmarks.exchange DATA`.

A line that is a rank keeps its promise where the photographs to come could have changed places with those behind it. Two
things may break that: our own scoring, or the photographs. They are told apart. A detector is enrolled with a few good
photographs of each product, as in `lines`, and all others are scored. Then the line is drawn many times through the largest
of some of the other good photographs of the *train* split, and false alarms are counted among the rest of that split, and
among the good ones of the *test* split. The first must keep the budget if the scoring is fair, whatever the photographs are.
Where the second does not, two things are looked at: light (are test photographs darker than train ones, and are dark ones
of the train split set aside as often?), and designs of a product that the train split does not have.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from PIL import ImageStat
from scipy.stats import mannwhitneyu
from tqdm.auto import tqdm

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.calibration_anople import rank_from_top
from modeling_anople.data import read_dataset
from modeling_anople.images_anople import load_image
from modeling_anople.training.few_shot import sample_few_shot

from .measuring import RESULTS, detector_of, keep_table
from .unknown_products import make_detector


DRAWS = 1000


class Scored(NamedTuple):
    """A good photograph that is not remembered: where it is from, its raw score and its mean gray within 0 and 255."""

    split: str
    path: str
    score: float
    gray: float


def score_all(
    model: AnoPLeModel, processor: AnoPLeProcessor, rows: dict[tuple[str, str], dict], name: str, shown: Sequence[str]
) -> list[Scored]:
    """Score the good photographs of one product, {(split, path): image}, but those that were shown."""
    rows = {key: image for key, image in rows.items() if key[0] == "test" or key[1] not in shown}
    results = detector_of(model, processor)(iter(rows.values()), class_name=name, batch_size=8, on_error="raise")
    return [
        Scored(split, path, result["raw_score"], mean_gray(image))
        for ((split, path), image), result in zip(rows.items(), results, strict=True)
    ]


def good_photographs(tables: dict[str, Dataset], name: str) -> dict[tuple[str, str], dict]:
    """Find the good photographs of one product: {(split, path): image}."""
    return {
        (split, row["path"]): row["image"]
        for split, table in tables.items()
        for row in table.select([place for place, owner in enumerate(table["class_name"]) if owner == name])
        if row["label"] == 0
    }


def mean_gray(image: dict) -> float:
    """Measure the light of a photograph."""
    return ImageStat.Stat(load_image(image).convert("L")).mean[0]


def split_alarms(scored: Sequence[Scored], *, more: int, rate: float, seed: int) -> np.ndarray:
    """
    Draw the line through `more` of the train split, many times.

    Returns:
        (photographs,) how often each was above a line that it did not set; NaN where it set all.
    """
    generator = np.random.default_rng(seed)
    scores = np.array([each.score for each in scored])
    train = np.array([number for number, each in enumerate(scored) if each.split == "train"])
    count = min(more, len(train) - 1)
    above, judged = np.zeros(len(scored)), np.zeros(len(scored))
    for _ in range(DRAWS):
        chosen = generator.permutation(train)[:count]
        line = np.sort(scores[chosen])[-rank_from_top(count, rate)]
        free = np.ones(len(scored), dtype=bool)
        free[chosen] = False
        above += free & (scores > line)
        judged += free
    return above / np.maximum(judged, 1)


def odds(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return how often one of `first` is larger than one of `second`, and the two-sided p-value of Mann and Whitney."""
    result = mannwhitneyu(first, second, alternative="two-sided")
    return float(result.statistic) / (len(first) * len(second)), float(result.pvalue)


def parts_of(scored: Sequence[Scored], dark: float, prefix: int | None) -> dict[str, list[bool]]:
    """Name parts of the photographs: splits, dark ones, and those of designs (by file name) that train has or not."""
    train = np.array([each.split == "train" for each in scored])
    darker = np.array([each.gray <= dark for each in scored])
    parts = {"train": train, "test": ~train, "train, dark": train & darker, "test, dark": ~train & darker}
    if prefix:
        designs = [Path(each.path).name[:prefix] for each in scored]
        seen = np.isin(designs, [design for design, is_train in zip(designs, train, strict=True) if is_train])
        parts |= {"test, design in train": ~train & seen, "test, design not in train": ~train & ~seen}
    return parts


def measure(rounds: Sequence[Sequence[Scored]], *, more: int, rate: float, prefix: int | None) -> dict:
    """Put the rounds of one product, a seed each, together."""
    dark = float(np.quantile([each.gray for each in rounds[0] if each.split == "train"], 0.25))
    alarms: dict[str, list[float]] = {}
    values, ps = [], []
    for seed, scored in enumerate(rounds):
        above = split_alarms(scored, more=more, rate=rate, seed=seed)
        for part, chosen in parts_of(scored, dark, prefix).items():
            alarms.setdefault(part, []).extend(above[chosen])
        share, p = odds(*([each.score for each in scored if each.split == split] for split in ("test", "train")))
        values.append(share)
        ps.append(p)
    last = parts_of(rounds[-1], dark, prefix)
    return {
        "alarms": {part: statistics.fmean(each) if each else None for part, each in alarms.items()},
        "above": statistics.fmean(values),
        "p": statistics.median(ps),
        "dark": last["test, dark"].sum() / last["test"].sum(),
        "gray_p": odds(*([each.gray for each in rounds[0] if each.split == split] for split in ("test", "train")))[1],
        "unseen": last["test, design not in train"].sum() / last["test"].sum() if prefix else None,
    }


def to_table(products: dict[str, dict]) -> str:
    """Write a line for each product."""
    lines = [
        "| product | false alarms, other train | false alarms, test | a test one scores above a train one (p) "
        "| test as dark as the darkest quarter of train (p of gray) | false alarms, train that dark | test that dark "
        "| test of a design that train lacks | false alarms, test of known designs | of others |",
        "|---" * 10 + "|",
    ]
    for name, row in products.items():
        alarms = [_share(row["alarms"].get(part)) for part in ("train", "test", "train, dark", "test, dark")]
        designs = [_share(row["alarms"].get(f"test, design {part}")) for part in ("in train", "not in train")]
        cells = [
            name,
            *alarms[:2],
            f"{_share(row['above'])} ({row['p']:.2g})",
            f"{_share(row['dark'])} ({row['gray_p']:.2g})",
            *alarms[2:],
            _share(row["unseen"]),
            *designs,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="Products in any layout that `anople fit` reads, with test photographs.")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--more", type=int, default=20, help="Good photographs through which the line is drawn.")
    parser.add_argument("--rate", type=float, default=0.05, help="Budget of false alarms.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--clip", default="mini")
    parser.add_argument(
        "--designs", nargs="*", default=[], help="PRODUCT=N: its file names begin with N letters that name a design."
    )
    parser.add_argument("--about", default="", help="A sentence on the data, for the file.")
    parser.add_argument("--scores", type=Path, help="JSON file of all scores: written, or read where it exists.")
    parser.add_argument("--output", type=Path, default=RESULTS / "exchange.md")
    options = parser.parse_args()
    if options.scores and options.scores.exists():
        kept = json.loads(options.scores.read_text(encoding="utf-8"))
        rounds = {name: [[Scored(*each) for each in one] for one in several] for name, several in kept.items()}
    else:
        tables = {split: read_dataset(options.data, split=split) for split in ("train", "test")}
        rounds = score_rounds(tables, options.seeds, shots=options.shots, clip=options.clip)
        if options.scores:
            options.scores.write_text(json.dumps(rounds), encoding="utf-8")
    prefixes = {name: int(count) for name, _, count in (entry.partition("=") for entry in options.designs)}
    products = {
        name: measure(several, more=options.more, rate=options.rate, prefix=prefixes.get(name))
        for name, several in rounds.items()
    }
    seeds, designs = " ".join(map(str, options.seeds)), " ".join(["", "--designs", *options.designs])
    text = (
        f"`python -m hub.benchmarks.exchange DATA --shots {options.shots} --more {options.more} --rate {options.rate:g} "
        f"--seeds {seeds} --clip {options.clip}{designs if options.designs else ''}`. Good photographs alone; percent, but "
        f"p (two-sided, Mann and Whitney; the median over seeds). {DRAWS} draws of those behind the line for each seed. "
        f"{options.about}\n\n{to_table(products)}\n"
    )
    keep_table(options.output, "Do good photographs to come score like those that set the line?", text)


def score_rounds(
    tables: dict[str, Dataset], seeds: Sequence[int], *, shots: int, clip: str
) -> dict[str, list[list[Scored]]]:
    """Enroll a detector for each seed, and score with it."""
    names = sorted(set(tables["train"]["class_name"]))
    rounds: dict[str, list[list[Scored]]] = {name: [] for name in names}
    for seed in tqdm(seeds, desc="seeds"):
        model, processor = make_detector(tables["train"], names, shots=shots, seed=seed, clip=clip)
        for name in names:
            rows = good_photographs(tables, name)
            train = [path for split, path in rows if split == "train"]
            shown = sample_few_shot(train, shots, seed=seed, class_name=name)
            rounds[name].append(score_all(model, processor, rows, name, shown))
    return rounds


if __name__ == "__main__":
    main()
