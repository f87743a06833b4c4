"""
What lines do to photographs never seen: `python -m hub.benchmarks.lines DATA`.

A detector on the embedded CLIP is enrolled with a few good photographs of each product, nothing being trained. Counted
are the good test photographs above a line (false alarms) and the defective ones above it (detections), for the line that
the detector sets, for two naive ones through the same scores of its normals (their maximum; their mean and three
standard deviations), and for the detector's line after it was calibrated further with more good photographs, which are not
remembered.

`python -m hub.benchmarks.lines --fitted EVALUATION.json ...` puts beside it what `anople evaluate` counted of detectors
that were fitted, prompts and decoder trained.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from tqdm.auto import tqdm

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.calibration_anople import describe_guarantee
from modeling_anople.data import read_dataset
from modeling_anople.enrollment_anople import calibrate
from modeling_anople.training.few_shot import sample_few_shot

from .measuring import RESULTS, detector_of, keep_table
from .unknown_products import make_detector, share


logger = logging.getLogger(__name__)

FITTED = "\n## Fitted detectors\n"


class Count(NamedTuple):
    """How one test photograph of a product fell, at one line."""

    class_name: str
    line: str
    defective: bool
    above: bool


def lines_of(model: AnoPLeModel, name: str, *, more: int = 0) -> dict[str, float]:
    """Return the lines of a product, by name, in raw scores."""
    fitted = model.products.named(name).record.threshold
    if more:
        return {f"ours, {more} more": fitted.image_threshold}
    scores = fitted.image_scores
    return {
        "ours": fitted.image_threshold,
        "largest": max(scores),
        "mean + 3 sigma": statistics.fmean(scores) + 3 * statistics.stdev(scores),
    }


def judge(model: AnoPLeModel, processor: AnoPLeProcessor, test: Dataset, *, more: int = 0) -> list[Count]:
    """Compare the raw scores of all test photographs with the lines of their products."""
    results = detector_of(model, processor)(
        (row["image"] for row in test), class_names=test["class_name"][:], batch_size=8, on_error="raise"
    )
    counts = []
    for name, label, result in zip(test["class_name"], test["label"], results, strict=True):
        for line, value in lines_of(model, name, more=more).items():
            counts.append(Count(name, line, bool(label), result["raw_score"] > value))
    return counts


def calibrate_more(
    model: AnoPLeModel, processor: AnoPLeProcessor, train: Dataset, *, shots: int, seed: int, more: int
) -> None:
    """Calibrate each product with `more` good photographs, or all that there are, none of those that it knows."""
    for name in list(model.config.class_names):
        rows = train.select([row for row, owner in enumerate(train["class_name"]) if owner == name])
        images = {row["path"]: row["image"] for row in rows if row["label"] == 0}
        known = sample_few_shot(list(images), shots, seed=seed, class_name=name)
        others = [path for path in images if path not in known]
        chosen = sample_few_shot(others, min(more, len(others)), seed=seed, class_name=name)
        line = calibrate(model, processor, name, [images[path] for path in chosen])
        logger.info("%s, seed %d: %s", name, seed, describe_guarantee(line))


def to_table(counts: Sequence[Count]) -> str:
    """Write false alarms / detections of each product and of all, a column for each line, all seeds together."""
    lines = list(dict.fromkeys(each.line for each in counts))
    rows = [f"| product | {' | '.join(lines)} |", "|---" * (1 + len(lines)) + "|"]
    for name in [*sorted({each.class_name for each in counts}), None]:
        own = [each for each in counts if name in (each.class_name, None)]
        cells = [
            " / ".join(
                share([each.above for each in own if each.line == line and each.defective == defective])
                for defective in (False, True)
            )
            for line in lines
        ]
        rows.append(f"| {name or 'all photographs'} | {' | '.join(cells)} |")
    return "\n".join(rows)


def fitted_section(evaluations: Sequence[dict], about: str) -> str:
    """Write false alarms / detections of fitted detectors at their lines, a column for each seed and one for all."""
    seeds = [f"seed {each['seed']}" for each in evaluations]
    names = sorted(set().union(*(each["classes"] for each in evaluations)))
    lines = [f"| product | {' | '.join(seeds)} | all seeds |", "|---" * (2 + len(seeds)) + "|"]
    for name in [*names, None]:
        cells = []
        for chosen in (*([each] for each in evaluations), evaluations):
            entries = [each["classes"][one] for each in chosen for one in names if name in (one, None)]
            cells.append(" / ".join(_rate(entries, *keys) for keys in RATES))
        lines.append(f"| {name or 'all photographs'} | {' | '.join(cells)} |")
    return f"{FITTED}\n{about}\n\n" + "\n".join(lines) + "\n"


RATES = (("false_alarm_rate", "normal"), ("detection_rate", "anomalous"))


def _rate(entries: Sequence[dict], rate: str, count: str) -> str:
    """Percentage of all photographs, of a rate that was counted in parts."""
    total = sum(entry[count] for entry in entries)
    return f"{100 * sum(entry[rate] * entry[count] for entry in entries) / total:.1f}"


def keep_fitted(file: Path, paths: Sequence[Path], about: str) -> None:
    """Put the section on fitted detectors into the file of the table, in the place of an earlier one."""
    evaluations = sorted(
        (json.loads(path.read_text(encoding="utf-8")) for path in paths), key=lambda each: each["seed"]
    )
    section = fitted_section(evaluations, about)
    file.write_text(file.read_text(encoding="utf-8").split(FITTED)[0] + section, encoding="utf-8")
    print(section)


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "data", nargs="?", help="Products in any layout that `anople fit` reads, with test photographs."
    )
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--more", type=int, default=20, help="Good photographs that calibrate it later.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--clip", default="mini")
    parser.add_argument("--about", default="", help="A sentence on the data, for the file.")
    parser.add_argument("--output", type=Path, default=RESULTS / "lines.md")
    parser.add_argument(
        "--fitted", type=Path, nargs="+", help="evaluation.json of fitted detectors; nothing is measured."
    )
    options = parser.parse_args()
    if options.fitted:
        return keep_fitted(options.output, options.fitted, options.about)
    if options.data is None:
        parser.error("DATA, or --fitted, is needed")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train, test = (read_dataset(options.data, split=split) for split in ("train", "test"))
    counts = []
    for seed in tqdm(options.seeds, desc="seeds"):
        names = sorted(set(train["class_name"]))
        model, processor = make_detector(train, names, shots=options.shots, seed=seed, clip=options.clip)
        counts += judge(model, processor, test)
        calibrate_more(model, processor, train, shots=options.shots, seed=seed, more=options.more)
        counts += judge(model, processor, test, more=options.more)
    seeds = " ".join(map(str, options.seeds))
    text = (
        f"`python -m hub.benchmarks.lines DATA --shots {options.shots} --more {options.more} --seeds {seeds} "
        f"--clip {options.clip}`. Each cell: false alarms / detections. {options.about}\n\n{to_table(counts)}\n"
    )
    earlier = options.output.read_text(encoding="utf-8") if options.output.exists() else ""
    fitted = FITTED + earlier.split(FITTED)[1] if FITTED in earlier else ""
    keep_table(options.output, "What lines do, percent", text + fitted)


if __name__ == "__main__":
    main()
