"""The line between normal and anomalous, found from the few good photographs alone, and the scale on which it is 0.5."""

import math
import statistics
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from .configuration_anople import AnoPLeConfig


POOLED = "*"
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
        image_scores, map_maxima: the normals' raw scores behind the line.
        max_false_alarm_rate: the share of good photographs above the line that it was set for.
        memory_scale: largest memory distance seen on normals, for `fusion_scale="normal"`.
        product_lines: what the two numbers of `strangeness` reach on photographs of this class; empty if not measured.
        strangeness: the normals' two numbers behind these lines, a list of each.
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

    @classmethod
    def unset(cls, *, memory_scale: float) -> "ClassLine":
        """A line that knows only the memory's scale, for scoring the normals that will set it."""
        return cls(1.0, 1.0, 1.0, 1.0, [], [], 0.0, memory_scale)


def fit_line(
    image_scores: list[float], map_maxima: list[float], *, max_false_alarm_rate: float, memory_scale: float = 1.0
) -> ClassLine:
    """
    Set one class' line from raw scores of normal photographs that were not in the memory they were compared with.

    The line is the upper prediction limit of the next normal score: with n scores whose logarithms have mean m and
    standard deviation s it lies at exp(m + t s sqrt(1 + 1/n)), t being the (1 - rate) quantile of Student's t with n - 1
    degrees of freedom (Hahn and Meeker, Statistical Intervals, section 4.8). Distances are positive and skewed, hence
    the logarithm. n scores alone support no rate below 1 / (n + 1); anything smaller rests on that shape being right.

    Raises:
        ValueError: if fewer than two scores are given or the rate is not within 0 and 0.5.
    """
    if not 0 < max_false_alarm_rate < 0.5:
        raise ValueError(f"max_false_alarm_rate must lie within 0 and 0.5, got {max_false_alarm_rate}.")
    if len(image_scores) < 2:
        raise ValueError(f"A line needs at least two normal scores, got {len(image_scores)}: give more photographs.")
    image_line, image_spread = _upper_limit(image_scores, max_false_alarm_rate)
    map_line, map_spread = _upper_limit(map_maxima, max_false_alarm_rate)
    return ClassLine(
        image_line,
        image_spread,
        map_line,
        map_spread,
        sorted(image_scores),
        sorted(map_maxima),
        max_false_alarm_rate,
        memory_scale,
    )


def fit_product_lines(strangeness: list[list[float]], *, rate: float) -> list[float]:
    """
    Set the lines above which a photograph is of no known product: upper limits as in [`fit_line`], at `rate`.

    No line lies below `SMALLEST_PRODUCT_LINE`, so that the rounding of half precision does not reach it.
    """
    return [max(_upper_limit(values, rate)[0], SMALLEST_PRODUCT_LINE) for values in strangeness] if rate else []


def _upper_limit(scores: list[float], rate: float) -> tuple[float, float]:
    logs = [math.log(max(score, 1e-9)) for score in scores]
    spread = max(statistics.stdev(logs), SMALLEST_SPREAD)
    reach = student_quantile(1 - rate, len(logs) - 1) * math.sqrt(1 + 1 / len(logs))
    return math.exp(min(statistics.fmean(logs) + reach * spread, LARGEST_LOG)), spread


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
            images = [score for entry in lines.values() for score in entry["image_scores"]]
            maxima = [score for entry in lines.values() for score in entry["map_maxima"]]
            if images:
                scale = max(entry["memory_scale"] for entry in lines.values())
                pooled = fit_line(images, maxima, max_false_alarm_rate=pooled_rate, memory_scale=scale)
                lines[POOLED] = asdict(pooled)
        self.config.calibration = lines

    def memory_scales(self, class_ids: Tensor | None) -> Tensor | None:
        """Return each image's memory scale (batch,), or `None` before calibration."""
        if not self.covers(class_ids):
            return None
        lines = [self.config.calibration[name] for name in self._names(class_ids)]
        return torch.tensor([line["memory_scale"] for line in lines])

    def product_lines(self, class_ids: Tensor) -> Tensor | None:
        """Return the lines (batch, 2) of the classes that were predicted; infinite where there are none."""
        entries = [self.config.calibration.get(name, {}) for name in self._names(class_ids)]
        lines = [entry.get("product_lines") or [math.inf, math.inf] for entry in entries]
        return None if not any(entry.get("product_lines") for entry in entries) else torch.tensor(lines)

    def covers(self, class_ids: Tensor | None) -> bool:
        """Say whether every class asked for has a line."""
        return all(name in self.config.calibration for name in self._names(class_ids))

    def images(self, scores: Tensor, class_ids: Tensor | None) -> Tensor:
        """Calibrate image scores (batch,)."""
        return self._scale(scores, class_ids, "image")

    def maps(self, maps: Tensor, class_ids: Tensor | None) -> Tensor:
        """Calibrate maps (batch, height, width); a place at 0.5 is as odd as the oddest place of a photograph may be."""
        return self._scale(maps, class_ids, "map")

    def _scale(self, values: Tensor, class_ids: Tensor | None, part: str) -> Tensor:
        lines = [self.config.calibration[name] for name in self._names(class_ids)]
        shape = (-1,) + (1,) * (values.ndim - 1)
        line = torch.tensor([entry[f"{part}_line"] for entry in lines], device=values.device).view(shape)
        spread = torch.tensor([entry[f"{part}_spread"] for entry in lines], device=values.device).view(shape)
        return torch.sigmoid((values.float().clamp(min=1e-9).log() - line.log()) / spread)

    def _names(self, class_ids: Tensor | None) -> list[str]:
        if class_ids is None:
            return [POOLED]
        return [self.config.class_names[class_id] for class_id in class_ids.tolist()]


__all__ = ["ClassLine", "ScoreCalibration", "fit_line", "fit_product_lines", "student_quantile"]
