"""Figures of one or more evaluations of the same products, for a model card."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_anople import AnoPLeConfig

from .card_text import code, joined, percent


COLUMNS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO",
    "false_alarm_rate": "false alarms",
    "detection_rate": "found",
}
MEANINGS = {
    "image AUROC": "*image AUROC*: how often a defective photograph scores above a good one (50 is chance)",
    "image AP": "*image AP*: average precision of the photographs' ranking",
    "pixel AUROC": "*pixel AUROC* and *pixel AP*: the same for single pixels",
    "AUPRO": "*AUPRO*: how well the heat map covers each defect, up to a false positive rate of 0.3",
    "found": "*false alarms* and *found*: the share of good and of defective photographs above the line",
}


@dataclass
class Results:
    """
    Figures by class and on average, one value per evaluation; the first evaluation is the detector's own.

    Args:
        classes: class -> metric -> values within 0 and 1, `None` where undefined.
        mean: metric -> values, over classes with equal weight.
        own: the detector's own `evaluation.json`.
        seeds: of the fits, in the order of the values.
    """

    classes: dict[str, dict[str, list[float | None]]]
    mean: dict[str, list[float | None]]
    own: dict[str, Any]
    seeds: list[int | None]

    @classmethod
    def read(cls, paths: list[str | Path], config: AnoPLeConfig, sha256: str | None = None) -> "Results":
        """
        Read `evaluation.json` of this detector and of others that were fitted alike with other seeds.

        Args:
            sha256: hash of the detector's state, which a report names. An older report without one must agree with the
                config in seed, shots and products, and in the CLIP's name where it has one.

        Raises:
            ValueError: if none is this detector's, if one measures a part of it alone, or they do not belong together.
        """
        reports = [_read(path) for path in paths]
        for path, report in zip(paths, reports, strict=True):
            if report.get("score") != "fused":
                raise ValueError(f"{path} measures the part {report.get('score')!r} alone: give one of --score fused.")
        own = [report for report in reports if _is_of(report, config, sha256)]
        if not own:
            fit = config.fit or {}
            raise ValueError(
                f"None of {[str(path) for path in paths]} was measured on this detector as it is now (seed "
                f"{fit.get('seed')}, {fit.get('shots')} shots, products {config.class_names}, state {sha256}): run "
                "`anople evaluate CHECKPOINT DATA --json evaluation.json`."
            )
        for key in ("shots", "class_identity", "evaluation_size", "clip"):
            if len({str(report[key]) for report in reports if key in report}) > 1:
                raise ValueError(f"The evaluations differ in {key}: give only those that were measured alike.")
        if len({report["seed"] for report in reports}) < len(reports):
            raise ValueError(
                f"Two evaluations have one seed ({[report['seed'] for report in reports]}): give each once."
            )
        unknown = sorted({name for report in reports for name in report["classes"]} - set(config.class_names))
        if unknown:
            raise ValueError(f"The evaluations know {unknown}, which the detector does not.")
        reports = [own[0], *(report for report in reports if report is not own[0])]
        metrics = [*COLUMNS]
        names = [name for name in reports[0]["classes"] if all(name in report["classes"] for report in reports)]
        return cls(
            classes={name: {m: [r["classes"][name].get(m) for r in reports] for m in metrics} for name in names},
            mean={metric: [report["mean"].get(metric) for report in reports] for metric in metrics},
            own=reports[0],
            seeds=[report["seed"] for report in reports],
        )

    def headline(self) -> str | None:
        """Say what the detector did at its line, and where it is blind, from its own evaluation."""
        rows = self.own["classes"].values()
        if any(row[key] is None for row in rows for key in ("false_alarm_rate", "detection_rate")):
            return None
        alarms, good = (sum(counts) for counts in _flagged(rows, "false_alarm_rate", "normal"))
        found, bad = (sum(counts) for counts in _flagged(rows, "detection_rate", "anomalous"))
        text = (
            f"On its test photographs it found **{found} of {bad} defects** and called {alarms or 'none'} of {good} good "
            "photographs bad."
        )
        blind = [
            code(name) for name, row in self.own["classes"].items() if row["anomalous"] and not row["detection_rate"]
        ]
        return f"{text} It found no defect at all on {joined(blind)}." if blind else text

    def to_table(self, dataset: str | None) -> dict[str, Any]:
        """Return `text`, `columns`, `rows` and `legend`; a column without any figure is left out."""
        metrics = [metric for metric in COLUMNS if any(value is not None for value in self.mean[metric])]
        rows = []
        for name, figures in [*self.classes.items(), (None, self.mean)]:
            counts = self.own["mean"] if name is None else self.own["classes"][name]
            title = "**mean**" if name is None else code(name)
            cells = [_figure(figures[metric]) for metric in metrics]
            rows.append([title, *cells, str(counts["normal"]), str(counts["anomalous"])])
        columns = ["product", *(COLUMNS[metric] for metric in metrics), "good", "defective"]
        meanings = [text for column, text in MEANINGS.items() if column in columns]
        legend = f"In percent. {'; '.join(meanings)}. *good* and *defective* count the test photographs."
        return {"text": self._text(dataset), "columns": columns, "rows": rows, "legend": legend}

    def _text(self, dataset: str | None) -> str:
        own = self.own
        where = f" of {code(dataset)}" if dataset else ""
        text = (
            f"Measured with `anople evaluate` on the test photographs{where}, none of which was opened while fitting"
        )
        if own["shots"] is not None:
            noun = "photograph" if own["shots"] == 1 else "photographs"
            text += f": {own['shots']} {noun} of each product to learn from"
        if len(self.seeds) > 1:
            seeds = joined([str(seed) for seed in self.seeds])
            text += (
                f", mean ± standard deviation over seeds {seeds}, that is {len(self.seeds)} detectors that were fitted alike "
                f"to other photographs; this one is seed {self.seeds[0]}"
            )
        else:
            chosen = f", chosen by seed {own['seed']}" if own["seed"] is not None else ""
            text += f"{chosen}. How much another choice changes was not measured"
        identity = {
            "given": "The detector was told which product a photograph shows",
            "predicted": "The detector predicted which product a photograph shows",
        }
        return f"{text}. {identity.get(own['class_identity'], 'All products were judged as one')}."


def _is_of(report: dict[str, Any], config: AnoPLeConfig, sha256: str | None) -> bool:
    """Say whether a report was measured on this detector."""
    if sha256 and report.get("detector_sha256"):
        return report["detector_sha256"] == sha256
    fit, clip = config.fit or {}, (config.clip_source or {}).get("name")
    alike = (report["seed"], report["shots"]) == (fit.get("seed"), fit.get("shots"))
    return alike and set(report["classes"]) == set(config.class_names) and report.get("clip", clip) == clip


def published(report: dict[str, Any]) -> dict[str, Any]:
    """Return an `evaluation.json` fit for strangers: an error message may hold the way to a file."""
    return {**report, "errors": dict.fromkeys(report.get("errors", {}), "could not be judged")}


def _read(path: str | Path) -> dict[str, Any]:
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {"mean", "classes", "seed", "shots"} <= report.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as an evaluation ({error}): give what --json wrote.") from error
    if not known:
        raise ValueError(f"{path} is no evaluation: give what `anople evaluate --json` wrote.")
    return report


def _flagged(rows: Any, rate: str, count: str) -> tuple[list[int], list[int]]:
    return [round(row[rate] * row[count]) for row in rows], [row[count] for row in rows]


def _figure(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    mean = percent(math.fsum(known) / len(known))
    return f"{mean} ± {percent(statistics.stdev(known))}" if len(known) > 1 else mean


__all__ = ["COLUMNS", "Results", "published"]
