"""
Whether good photographs to come score like those that set a line: `python -m tests.benchmarks.exchange DATA`.

A line that is a rank keeps its promise where the photographs to come could have changed places with those behind it. Two
things may break that: our own scoring, or the photographs. They are told apart. A detector is enrolled with a few good
photographs of each product, as in `lines`, and all others are scored. Then the line is drawn many times through the largest
of some of the other good photographs of the *train* split, and false alarms are counted among the rest of that split, and
among the good ones of the *test* split. The first must keep the budget if the scoring is fair, whatever the photographs are.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ImageStat
from scipy.stats import mannwhitneyu
from tqdm.auto import tqdm

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.data import read_dataset
from modeling_anople.fewshot import sample_few_shot
from modeling_anople.photographs_anople import load_photograph
from modeling_anople.support_anople import rank_from_top

from .prediction_cost import RESULTS, keep_table
from .unknown_products import make_detector


DRAWS = 1000


def score_all(
    model: AnoPLeModel, processor: AnoPLeProcessor, train, test, name: str, *, shots: int, seed: int
) -> dict[str, list[float]]:
    """Score the good photographs of one product that are not remembered, by split."""
    rows = {
        (split, row["path"]): row["image"]
        for split, table in (("train", train), ("test", test))
        for row in table.select([place for place, owner in enumerate(table["class_name"]) if owner == name])
        if row["label"] == 0
    }
    shown = sample_few_shot([path for split, path in rows if split == "train"], shots, seed=seed, class_name=name)
    rows = {key: image for key, image in rows.items() if key[0] == "test" or key[1] not in shown}
    results = model.as_pipeline(processor)(iter(rows.values()), class_name=name, batch_size=8, on_error="raise")
    scores: dict[str, list[float]] = {"train": [], "test": []}
    for (split, _), result in zip(rows, results, strict=True):
        scores[split].append(result["raw_score"])
    return scores


def false_alarms(scores: dict[str, list[float]], *, more: int, rate: float, seed: int) -> dict[str, float]:
    """Draw the line through `more` of the train split, many times; share of the others of each split above it."""
    generator = np.random.default_rng(seed)
    train, test = np.array(scores["train"]), np.array(scores["test"])
    count = min(more, len(train) - 1)
    found = {"train": [], "test": []}
    for _ in range(DRAWS):
        order = generator.permutation(len(train))
        line = np.sort(train[order[:count]])[-rank_from_top(count, rate)]
        found["train"].append(float((train[order[count:]] > line).mean()))
        found["test"].append(float((test > line).mean()))
    return {split: statistics.fmean(values) for split, values in found.items()}


def light_of(table, name: str) -> list[tuple[float, float]]:
    """Measure the mean grey and the contrast (its standard deviation) of each good photograph of a product."""
    stats = [
        ImageStat.Stat(load_photograph(row["image"]).convert("L"))
        for row in table.select([place for place, owner in enumerate(table["class_name"]) if owner == name])
        if row["label"] == 0
    ]
    return [(stat.mean[0], stat.stddev[0]) for stat in stats]


def odds(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return how often one of `first` is larger than one of `second`, and the two-sided p-value of Mann and Whitney."""
    result = mannwhitneyu(first, second, alternative="two-sided")
    return float(result.statistic) / (len(first) * len(second)), float(result.pvalue)


def to_table(rows: Sequence[dict], more: int) -> str:
    """Write a line for each product, means over seeds; the p-value is the median over them."""
    lines = [
        "| product | false alarms, other train photographs | false alarms, test photographs | a good test photograph "
        "scores above a train one | p | test above train in mean grey (p) | in contrast (p) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        alarms = [statistics.fmean(each[split] for each in row["alarms"]) for split in ("train", "test")]
        above = statistics.fmean(each[0] for each in row["odds"])
        p = statistics.median(each[1] for each in row["odds"])
        light = " | ".join(f"{100 * share:.0f} ({value:.2g})" for share, value in row["light"])
        lines.append(
            f"| {row['product']} | {100 * alarms[0]:.1f} | {100 * alarms[1]:.1f} | {100 * above:.0f} | {p:.2g} | {light} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="Products in any layout that `anople fit` reads, with test photographs.")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--more", type=int, default=20, help="Good photographs through which the line is drawn.")
    parser.add_argument("--rate", type=float, default=0.05, help="Budget of false alarms.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--clip", default="mini")
    parser.add_argument("--about", default="", help="A sentence on the data, for the file.")
    parser.add_argument("--scores", type=Path, help="Write all raw scores into this JSON file.")
    parser.add_argument("--output", type=Path, default=RESULTS / "exchange.md")
    options = parser.parse_args()
    train, test = (read_dataset(options.data, split=split) for split in ("train", "test"))
    names = sorted(set(train["class_name"]))
    rows = {name: {"product": name, "alarms": [], "odds": [], "scores": []} for name in names}
    for seed in tqdm(options.seeds, desc="seeds"):
        model, processor = make_detector(train, names, shots=options.shots, seed=seed, clip=options.clip)
        for name in names:
            scores = score_all(model, processor, train, test, name, shots=options.shots, seed=seed)
            alarms = false_alarms(scores, more=options.more, rate=options.rate, seed=seed)
            for key, value in {
                "scores": scores,
                "alarms": alarms,
                "odds": odds(scores["test"], scores["train"]),
            }.items():
                rows[name][key].append(value)
    for name, row in rows.items():
        light = [light_of(table, name) for table in (test, train)]
        row["light"] = [odds(*([each[part] for each in split] for split in light)) for part in (0, 1)]
    if options.scores:
        options.scores.write_text(json.dumps({name: row["scores"] for name, row in rows.items()}), encoding="utf-8")
    seeds = " ".join(map(str, options.seeds))
    text = (
        f"`python -m tests.benchmarks.exchange DATA --shots {options.shots} --more {options.more} --rate {options.rate:g} "
        f"--seeds {seeds} --clip {options.clip}`. All in percent but p; {DRAWS} draws of the photographs behind the line "
        f"for each seed. {options.about}\n\n{to_table(list(rows.values()), options.more)}\n"
    )
    keep_table(options.output, "Do good photographs to come score like those that set the line?", text)


if __name__ == "__main__":
    main()
