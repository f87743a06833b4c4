"""The threshold of a product: fitted from the scores of a few good images, applied to raw scores, and what it can promise."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .configuration_anople import AnoPLeConfig
from .scoring_anople import AnoPLeOutput


if TYPE_CHECKING:
    from torch import Tensor

# --- What a number of good photographs can promise of a line, in figures and in words ---


ROUNDING = 1e-9  # 1 / 0.05 - 1 is 19, whatever floats say


def supported_rate(scores: int) -> float:
    """
    Return the lowest false-alarm rate that independent normal scores support without further assumptions: 1 / (n + 1).

    The next good photograph is as likely to be the oddest of all n + 1 as any other, so the largest of n scores is passed
    by one in n + 1 (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, chapter 2). No score supports
    nothing: 1.
    """
    return 1 / (scores + 1)


def scores_needed(rate: float) -> int:
    """Return how many independent normal scores support a false-alarm rate: 19 for 0.05."""
    return math.ceil(1 / rate - 1 - ROUNDING)


def rank_from_top(scores: int, rate: float) -> int:
    """Return which score, counted from the largest, is the line that keeps a rate; 0 if so few scores support none."""
    return math.floor((scores + 1) * rate + ROUNDING)


def percent(rate: float) -> str:
    """Write a share as a percentage, with as many digits as it needs."""
    return f"{100 * rate:.3g} %"


def describe_support(line: Mapping[str, Any]) -> str:
    """
    Say what the good photographs behind a line can promise, and how the line was set.

    Args:
        line: a [`ClassLine`] as a dict, as it stands in `config.calibration`.

    Returns:
        Two sentences; in the command line, the model card and the demo they are the same.
    """
    scores, rate = len(line["image_scores"]), line["max_false_alarm_rate"]
    estimate, needed = line.get("estimate", ""), scores_needed(rate)
    if estimate == "rank":
        return (
            f"With {_photographs(scores)} 1 in {scores + 1} can be promised. {percent(rate)} is asked for, and the line "
            f"is the {_place(rank_from_top(scores, rate))} of their scores."
        )
    more = f"{needed} photographs would support it."
    if estimate == "extrapolated":
        return (
            f"With {_photographs(scores)} at best 1 in {scores + 1} can be promised. {percent(rate)} is asked for, so the "
            f"line is set by extrapolation; {more}"
        )
    if estimate == "copies":
        return (
            "With 1 photograph nothing can be promised, because it has no other to be compared with. "
            f"{percent(rate)} is asked for, so the line is set by extrapolation from its own moved and relit copies; {more}"
        )
    return (
        "An earlier version set this line and counted moved and relit copies as photographs, so nothing can be promised. "
        f"{percent(rate)} is asked for; {more}"
    )


def _photographs(count: int) -> str:
    return f"{count} photograph{'s' if count > 1 else ''}"


def _place(rank: int) -> str:
    if rank == 1:
        return "largest"
    ending = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending} largest"


# --- The line between normal and anomalous, found from the raw scores of a few good photographs alone ---


# How the logarithms of normal scores are spread on drawn products, and those of a lone photograph's product about the
# mean of its copies: `python -m tests.benchmarks.line_rules`. See fit_line.
PRIOR_SPREAD, PRIOR_DEGREES = 0.25, 4
LONE_SHIFT, LONE_SPREAD = 0.16, 0.44
SMALLEST_SPREAD = 0.05
SMALLEST_PRODUCT_LINE = 1e-3
LARGEST_LOG = 80.0  # a line that no score reaches is still a finite float32


@dataclass
class ClassLine:
    """
    One class' line. Plain floats, kept in the config.

    Args:
        image_line, map_line: raw image score, and raw map value, from which on a photograph, or a place, is anomalous.
        image_spread, map_spread: standard deviation of the logarithm of the normals' scores.
        image_scores, map_maxima: raw scores of the independent good photographs behind the line, one each: first those
            that were remembered, each against the memory of the others, then the `held_out` ones.
        max_false_alarm_rate: the share of good photographs above the line that it was set for.
        memory_scale: largest memory distance seen on normals, for `fusion_scale="normal"`.
        product_lines: what the two numbers of `strangeness` reach on photographs of this class; empty if not measured.
        strangeness: the normals' two numbers behind these lines, a list of each.
        photographs: how many independent good photographs are behind the line; 0 in lines of earlier versions, whose
            scores are also of copies.
        held_out: how many of them, the last ones, are not in the memory.
        estimate: how the line was set: `rank`, `extrapolated` or `copies` (see [`fit_line`]); empty before.
        supported_rate: lowest false-alarm rate that the photographs alone support; 1 where nothing is.
        image_copies, map_copies: raw scores of a lone photograph's moved and relit copies against itself.
    """

    image_line: float
    image_spread: float
    map_line: float
    map_spread: float
    image_scores: list[float]
    map_maxima: list[float]
    max_false_alarm_rate: float
    memory_scale: float
    product_lines: list[float] = field(default_factory=list)
    strangeness: list[list[float]] = field(default_factory=list)
    photographs: int = 0
    held_out: int = 0
    estimate: str = ""
    supported_rate: float = 1.0
    image_copies: list[float] = field(default_factory=list)
    map_copies: list[float] = field(default_factory=list)

    @classmethod
    def unset(cls, *, memory_scale: float) -> "ClassLine":
        """A line that knows only the memory's scale, for scoring the normals that will set it."""
        return cls(1.0, 1.0, 1.0, 1.0, [], [], 0.0, memory_scale)


def fit_line(
    image_scores: Sequence[float],
    map_maxima: Sequence[float],
    *,
    max_false_alarm_rate: float,
    memory_scale: float = 1.0,
    image_copies: Sequence[float] = (),
    map_copies: Sequence[float] = (),
    held_out: int = 0,
) -> ClassLine:
    """
    Set one class' line from raw scores of normal photographs that were not in the memory they were compared with.

    Only photographs count, one score each: moved and relit copies of a photograph are not independent of it. What they
    measure is the spread within a photograph, and on drawn products that says little of the spread between photographs
    (and their resampling raises scores), so copies serve a lone photograph alone.

    Where n scores suffice, (n + 1) rate >= 1, the line is a rank: the j-th largest score, j being the integer part of
    (n + 1) rate. The next good photograph exceeds it with a probability of at most j / (n + 1), whatever the distribution
    of the scores is (conformal prediction: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, chapter
    2). Leave-one-out scores keep this bound: they are measured against one photograph less than a new one is, and
    distances only grow when a photograph leaves the memory. For the same reason they come out too high, by 0.1 in the
    logarithm with four photographs; nothing is taken off. `held_out` scores do not, and where they alone suffice, the
    others are left out.

    Where n scores do not suffice, the line is extrapolated: exp(m + t s sqrt(1 + 1/n)), the limit that the next score's
    predictive distribution exceeds at `rate` where logarithms are normal, their mean is unknown and their variance has a
    scaled inverse chi-square prior (Gelman et al., Bayesian Data Analysis, chapter 3; so shrunk variances are Smyth's
    moderated t, Statistical Applications in Genetics and Molecular Biology 3, 2004). m is the mean of the logarithms,
    s^2 = (d0 s0^2 + sum of squares about m) / (d0 + n - 1), and t is Student's quantile with d0 + n - 1 degrees of
    freedom. s0 = 0.25 and d0 = 4 were estimated on drawn designs, on which the logarithms are close to normal; they are
    fixed, so that no product moves another's line. The line never lies below the largest score, which is the best that
    ranks could do.

    A lone photograph has only its copies, compared with itself: exp(m + 0.16 + 0.44 t), m being the mean of the copies'
    logarithms, t with d0 degrees of freedom. On drawn designs other photographs lay 0.16 above m, spread by 0.44.

    Args:
        image_scores, map_maxima: raw scores of independent photographs, those `held_out` of the memory last.
        max_false_alarm_rate: share of good photographs that may lie above the line.
        memory_scale: kept in the line.
        image_copies, map_copies: raw scores of a lone photograph's copies, where there is no score.
        held_out: how many of the scores are of photographs that are not in the memory.

    Raises:
        ValueError: if no score is given or the rate is not within 0 and 0.5.
    """
    if not 0 < max_false_alarm_rate < 0.5:
        raise ValueError(
            f"max_false_alarm_rate must lie within 0 and 0.5, got {max_false_alarm_rate}: it is a share, 0.05 is 5 %."
        )
    if not image_scores and not image_copies:
        raise ValueError("A line needs the score of at least one good photograph, got none: give more photographs.")
    if rank_from_top(held_out, max_false_alarm_rate):
        image_scores, map_maxima = image_scores[-held_out:], map_maxima[-held_out:]
    image_line, image_spread = _limit(image_scores, image_copies, max_false_alarm_rate)
    map_line, map_spread = _limit(map_maxima, map_copies, max_false_alarm_rate)
    count = len(image_scores)
    ranked = rank_from_top(count, max_false_alarm_rate) > 0
    return ClassLine(
        image_line,
        image_spread,
        map_line,
        map_spread,
        list(image_scores),
        list(map_maxima),
        max_false_alarm_rate,
        memory_scale,
        photographs=max(count, 1),
        held_out=held_out,
        estimate="rank" if ranked else "extrapolated" if count else "copies",
        supported_rate=supported_rate(count),
        image_copies=[] if count else list(image_copies),
        map_copies=[] if count else list(map_copies),
    )


def _limit(scores: Sequence[float], copies: Sequence[float], rate: float) -> tuple[float, float]:
    """Return the line and the spread of the logarithms, by the rule of [`fit_line`]."""
    if not scores:
        reach = LONE_SHIFT + student_quantile(1 - rate, PRIOR_DEGREES) * LONE_SPREAD
        return _exp(statistics.fmean(_logs(copies)) + reach), LONE_SPREAD
    logs, count = _logs(scores), len(scores)
    centre = statistics.fmean(logs)
    degrees = PRIOR_DEGREES + count - 1
    squares = PRIOR_DEGREES * PRIOR_SPREAD**2 + math.fsum((each - centre) ** 2 for each in logs)
    spread = math.sqrt(squares / degrees)
    rank = rank_from_top(count, rate)
    if rank:
        return sorted(scores)[-rank], spread
    reach = student_quantile(1 - rate, degrees) * math.sqrt(1 + 1 / count)
    return max(_exp(centre + reach * spread), max(scores)), spread


def fit_product_lines(strangeness: list[list[float]], *, rate: float) -> list[float]:
    """
    Set the lines above which a photograph is of no known product, at `rate`.

    Each is the upper prediction limit exp(m + t s sqrt(1 + 1/n)) of n values whose logarithms have mean m and standard
    deviation s, t being the (1 - rate) quantile of Student's t with n - 1 degrees of freedom (Hahn and Meeker,
    Statistical Intervals, section 4.8). Copies of photographs count here, too. No line lies below
    `SMALLEST_PRODUCT_LINE`, so that the rounding of half precision does not reach it.
    """
    return [max(_upper_limit(values, rate), SMALLEST_PRODUCT_LINE) for values in strangeness] if rate else []


def _upper_limit(scores: Sequence[float], rate: float) -> float:
    logs = _logs(scores)
    spread = max(statistics.stdev(logs), SMALLEST_SPREAD)
    reach = student_quantile(1 - rate, len(logs) - 1) * math.sqrt(1 + 1 / len(logs))
    return _exp(statistics.fmean(logs) + reach * spread)


def _logs(scores: Sequence[float]) -> list[float]:
    return [math.log(max(score, 1e-9)) for score in scores]


def _exp(log: float) -> float:
    return math.exp(min(log, LARGEST_LOG))


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t by bisection of its distribution function (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    low, high = -1e9, 1e9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = 1.0, 0.0
    if degrees % 2:
        term = cosine
        for step in range(1, (degrees - 1) // 2 + 1):
            total += term
            term *= cosine**2 * 2 * step / (2 * step + 1)
        return 0.5 + (angle + sine * total) / math.pi
    for step in range(degrees // 2):
        total += term
        term *= cosine**2 * (2 * step + 1) / (2 * step + 2)
    return 0.5 + sine * total / 2


# --- From raw scores to a verdict: plain functions of arrays and lines, outside the model, so that an exported one has them too ---


SMALLEST_SCORE = 1e-9


def to_scale(values: "Tensor | np.ndarray", line: Any, spread: Any) -> "Tensor | np.ndarray":
    """
    Bring raw values to the scale on which 0.5 is the line: sigmoid((log value - log line) / spread).

    Args:
        values: raw scores or maps, a tensor or an array of any shape.
        line, spread: numbers, or tensors or arrays that broadcast over the values.

    Returns:
        float32 of the same kind and shape, within 0 and 1. Order is kept; the line itself is 0.5.
    """
    if not isinstance(values, np.ndarray):
        values = values.float()
        line, spread = (each if hasattr(each, "device") else values.new_tensor(each) for each in (line, spread))
        return ((values.clamp(min=SMALLEST_SCORE).log() - line.log()) / spread).sigmoid()
    line, spread = (np.asarray(each, dtype=np.float32) for each in (line, spread))
    steps = (np.log(np.maximum(np.asarray(values, np.float32), np.float32(SMALLEST_SCORE))) - np.log(line)) / spread
    return 1 / (1 + np.exp(-np.clip(steps, -80, 80)))


def p_value(score: float, line: Mapping[str, Any] | None) -> float | None:
    """
    Return the share of good photographs that would score at least this, judged by rank among the product's normals.

    It is the conformal p-value, (1 + number of normals that score at least this) / (n + 1), over the n independent normal
    scores behind the line (Vovk, Gammerman and Shafer, chapter 2). It never lies below 1 / (n + 1), however odd a
    photograph is. `None` without a line, or where copies were counted as normals (lines of earlier versions).
    """
    if not line or not line.get("photographs"):
        return None
    normals = np.asarray(line["image_scores"], np.float32)  # a model's scores have no more digits
    return (1 + int((normals >= np.float32(score)).sum())) / (len(normals) + 1)


def label_of(score: float, threshold: float) -> str:
    """Name what a calibrated score says: "anomalous" above the threshold."""
    return "anomalous" if score > threshold else "normal"


def judge(
    image_scores: np.ndarray,
    anomaly_maps: np.ndarray | None,
    lines: Sequence[Mapping[str, Any] | None],
    *,
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """
    Judge raw answers, as a model or its exported form gives them, by the lines of their products.

    Args:
        image_scores: (batch,) raw image scores.
        anomaly_maps: (batch, height, width) raw maps, or `None`.
        lines: each photograph's line, `config.calibration.get(class_name)`.
        threshold: calibrated score above which a photograph is anomalous, `config.threshold`.

    Returns:
        Dictionaries with `score`, `label`, `raw_score`, `p_value` and `anomaly_map`, as of
        `AnoPLeProcessor.post_process_anomaly_detection`.

    Raises:
        ValueError: if there are more or fewer lines than scores.
    """
    if len(lines) != len(image_scores):
        raise ValueError(f"{len(image_scores)} scores were given {len(lines)} lines: give one or None for each.")
    results = []
    for number, (raw, line) in enumerate(zip(image_scores.tolist(), lines, strict=True)):
        score, anomaly_map = raw, None if anomaly_maps is None else anomaly_maps[number]
        if line:
            score = float(to_scale(image_scores[number : number + 1], line["image_line"], line["image_spread"])[0])
            if anomaly_map is not None:
                anomaly_map = to_scale(anomaly_map, line["map_line"], line["map_spread"])
        results.append(
            {
                "score": score,
                "label": label_of(score, threshold) if line else None,
                "raw_score": raw,
                "p_value": p_value(raw, line),
                "anomaly_map": anomaly_map,
            }
        )
    return results


# --- Raw scores on a scale on which 0.5 is the line, per class ---


POOLED = "*"


class ScoreCalibration:
    """
    Map raw scores to a scale on which 0.5 is the class' line: sigmoid((log score - log line) / spread).

    Order within a class is kept; +-1 spread from the line reads 0.73 and 0.27. It holds no tensors: the lines are floats
    in `config.calibration`, so they survive any precision and may be edited without reloading.
    """

    def __init__(self, config: AnoPLeConfig):
        self.config = config

    def knows(self, class_name: str) -> bool:
        """Say whether a class has a line."""
        return class_name in self.config.calibration

    def set(self, class_name: str, line: ClassLine) -> None:
        """Store the line of one class, and draw the common line of the pooled mode anew."""
        self._store({**self.config.calibration, class_name: asdict(line)}, line.max_false_alarm_rate)

    def remove(self, class_name: str) -> None:
        """Drop the line of one class, and draw the common line of the pooled mode anew."""
        lines = {name: line for name, line in self.config.calibration.items() if name != class_name}
        self._store(lines, lines[POOLED]["max_false_alarm_rate"] if POOLED in lines else 0.0)

    def _store(self, lines: dict[str, dict], pooled_rate: float) -> None:
        lines.pop(POOLED, None)
        if self.config.class_identity == "pooled":
            images, maxima, image_copies, map_copies = (
                [score for entry in lines.values() for score in entry.get(part, [])]
                for part in ("image_scores", "map_maxima", "image_copies", "map_copies")
            )
            if images or image_copies:
                pooled = fit_line(
                    images,
                    maxima,
                    max_false_alarm_rate=pooled_rate,
                    memory_scale=max(entry["memory_scale"] for entry in lines.values()),
                    image_copies=image_copies,
                    map_copies=map_copies,
                )
                lines[POOLED] = asdict(pooled)
        self.config.calibration = lines

    def memory_scales(self, class_ids: Tensor | None) -> Tensor | None:
        """Return each image's memory scale (batch,), or `None` before calibration."""
        if not self.covers(class_ids):
            return None
        return torch.tensor([line["memory_scale"] for line in self._lines(class_ids)])

    def product_lines(self, class_ids: Tensor) -> Tensor | None:
        """Return the lines (batch, 2) of the classes that were predicted; infinite where there are none."""
        entries = [self.config.calibration.get(name, {}) for name in self._names(class_ids)]
        lines = [entry.get("product_lines") or [math.inf, math.inf] for entry in entries]
        return None if not any(entry.get("product_lines") for entry in entries) else torch.tensor(lines)

    def covers(self, class_ids: Tensor | None) -> bool:
        """Say whether every class asked for has a line."""
        return all(name in self.config.calibration for name in self._names(class_ids))

    def apply(self, output: AnoPLeOutput) -> None:
        """Add calibrated scores and maps and p-values to an answer's raw ones, in place, if every class has a line."""
        ids = output.class_ids
        if not self.covers(ids):
            return
        output.calibrated_scores = self.images(output.image_scores, ids)
        output.calibrated_maps = self.maps(output.anomaly_maps, ids)
        output.p_values = self.p_values(output.image_scores, ids)

    def images(self, scores: Tensor, class_ids: Tensor | None) -> Tensor:
        """Calibrate image scores (batch,)."""
        return self._scale(scores, class_ids, "image")

    def maps(self, maps: Tensor, class_ids: Tensor | None) -> Tensor:
        """Calibrate maps (batch, height, width); a place at 0.5 is as odd as the oddest place of a photograph may be."""
        return self._scale(maps, class_ids, "map")

    def p_values(self, scores: Tensor, class_ids: Tensor | None) -> Tensor:
        """Give each image score (batch,) its [`p_value`] among the normals of its class; NaN where there is none."""
        lines = self._lines(class_ids)
        known = [line["image_scores"] if line.get("photographs") else None for line in lines]
        longest = max(len(normals or []) for normals in known)
        rows = [[*(normals or []), *[-math.inf] * (longest - len(normals or []))] for normals in known]
        totals = [math.nan if normals is None else len(normals) + 1.0 for normals in known]
        above = (scores.new_tensor(rows, dtype=torch.float32) >= scores.float()[:, None]).sum(1)
        return (1 + above) / scores.new_tensor(totals, dtype=torch.float32)

    def _scale(self, values: Tensor, class_ids: Tensor | None, part: str) -> Tensor:
        lines = self._lines(class_ids)
        shape = (-1,) + (1,) * (values.ndim - 1)
        line, spread = (
            torch.tensor([entry[f"{part}_{what}"] for entry in lines], device=values.device).view(shape)
            for what in ("line", "spread")
        )
        return to_scale(values, line, spread)

    def _lines(self, class_ids: Tensor | None) -> list[dict[str, Any]]:
        """Return the line of each image, or the one that all share."""
        return [self.config.calibration[name] for name in self._names(class_ids)]

    def _names(self, class_ids: Tensor | None) -> list[str]:
        if class_ids is None:
            return [POOLED]
        return [self.config.class_names[class_id] for class_id in class_ids.tolist()]


__all__ = [
    "ClassLine",
    "POOLED",
    "ScoreCalibration",
    "describe_support",
    "fit_line",
    "fit_product_lines",
    "judge",
    "label_of",
    "p_value",
    "percent",
    "rank_from_top",
    "scores_needed",
    "student_quantile",
    "supported_rate",
    "to_scale",
]
