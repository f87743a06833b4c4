"""The line between normal and anomalous, found from the raw scores of a few good photographs alone."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from .support_anople import rank_from_top, supported_rate


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


__all__ = ["ClassLine", "fit_line", "fit_product_lines", "student_quantile"]
