"""The threshold of a product: fitted from the scores of a few good images, applied to raw scores, and what it can promise."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


# --- What a number of good photographs can promise of a line, in figures and in words ---


ROUNDING = 1e-9  # 1 / 0.05 - 1 is 19, whatever floats say
# Of false alarms. Lower ones would be extrapolated from a few scores to lines that no photograph reaches.
LOWEST_RATE, HIGHEST_RATE = 0.0001, 0.5


def check_rate(rate: float, scores: int | None = None) -> None:
    """
    Refuse a false-alarm rate that no line can be set for; the highest is half of all photographs, and not allowed.

    Args:
        rate: share of good photographs that may lie above the line.
        scores: how many independent normal scores there are, where that is known; a lone photograph has none.

    Raises:
        ValueError: with the range, and what photographs support.
    """
    if LOWEST_RATE <= rate < HIGHEST_RATE:
        return
    here = (
        "" if scores is None else f" The {_photographs(scores)} here can support {percent(attainable_rate(scores))}."
    )
    here = " The one photograph here supports none." if scores == 0 else here
    raise ValueError(
        f"max_false_alarm_rate must be at least {LOWEST_RATE} and below {HIGHEST_RATE}, got {rate}: it is a share, 0.05 is "
        f"5 %.{here} {scores_needed(0.05)} photographs support 5 %, {scores_needed(LOWEST_RATE)} {percent(LOWEST_RATE)}."
    )


def attainable_rate(scores: int) -> float:
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


def describe_guarantee(threshold: "ProductThreshold") -> str:
    """
    Say what the good photographs behind a line can promise, and how the line was set.

    Args:
        threshold: the product's.

    Returns:
        Two sentences; in the command line, the model card and the demo they are the same.
    """
    if threshold.defects is not None:
        return _describe_costs(threshold, threshold.defects)
    scores, rate = len(threshold.image_scores), threshold.max_false_alarm_rate
    estimate, needed = threshold.estimate, scores_needed(rate)
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


def describe_lost_costs(name: str, before: "ProductThreshold | None", after: "ProductThreshold | None") -> str:
    """Say where a product's line that was set by known defects no longer is; empty where it is, or never was."""
    if before is None or before.defects is None or (after is not None and after.defects is not None):
        return ""
    count = len(before.defects.scores)
    return (
        f"The line of {name} was set by {count} known defect{'s' if count > 1 else ''}, and is set by its good photographs "
        "alone again: to use the defects once more, give them to `anople calibrate --defects`."
    )


def _describe_costs(threshold: "ProductThreshold", defects: "KnownDefects") -> str:
    """Say of a line that was set by costs what so few photographs tell of it, good and defective."""
    normals, line = threshold.image_scores, threshold.image_threshold
    alarms, missed = sum(score > line for score in normals), len(defects.scores)
    found = found_when_left_out(threshold)
    low, high = rate_interval(alarms, len(normals))
    text = (
        f"The line was set by {_defects(missed)} and {_photographs(len(normals))}, where a miss (cost {defects.miss_cost:g}) "
        f"and a false alarm (cost {defects.false_alarm_cost:g}) are expected to cost least. {alarms} of {len(normals)} good "
        f"ones, which helped to set it, lie above it: false alarms between {percent(low)} and {percent(high)} (95 %)."
    )
    if found is None:
        return f"{text} 1 defect says nothing of how many are found: between 0 and 100 %."
    low, high = rate_interval(found, missed)
    return (
        f"{text} Each left out in turn, {found} of {_defects(missed)} are found: detections between {percent(low)} and "
        f"{percent(high)} (95 %)."
    )


def _defects(count: int) -> str:
    return f"{count} known defect{'s' if count > 1 else ''}"


def _photographs(count: int) -> str:
    return f"{count} photograph{'s' if count > 1 else ''}"


def _place(rank: int) -> str:
    if rank == 1:
        return "largest"
    ending = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending} largest"


# --- The line between normal and anomalous, found from the raw scores of a few good photographs alone ---


# How the logarithms of normal scores are spread in series of photographs: `python -m hub.benchmarks.threshold_promise`; and
# those of a lone photograph's product about the mean of its copies: `python -m hub.benchmarks.line_rules`. See fit_threshold.
PRIOR_SPREAD, PRIOR_DEGREES = 0.3, 2
LONE_SHIFT, LONE_SPREAD, LONE_DEGREES = 0.16, 0.44, 4
SMALLEST_SPREAD = 0.05
SMALLEST_NOVELTY_THRESHOLD = 1e-3
SMALLEST_SCORE = 1e-9  # of which there is a logarithm
LARGEST_SCORE = 1.0  # raw scores and maps lie within 0 and 1
LARGEST_SPREAD = 30.0  # logarithms of scores lie within 21
ESTIMATES = ("", "rank", "extrapolated", "copies", "costs")
COST_STEPS = 200  # between the lowest and the highest score, on which a line by costs is looked for
CONFIDENCE = 0.95  # of intervals of rates


class UnreachableThreshold(ValueError):
    """A line above all scores: so few photographs, or so different ones, do not support the rate that was asked for."""


@dataclass(frozen=True)
class KnownDefects:
    """
    Photographs of defective parts that a threshold was set by, and what errors cost. None is in the memory.

    Args:
        scores: their raw scores, one each.
        miss_cost: what it costs where all defective parts pass.
        false_alarm_cost: what it costs where all good parts are set aside.
        files, digests: their names without folders, and digests of their pixels, as in the log.
    """

    scores: list[float]
    miss_cost: float
    false_alarm_cost: float
    files: list[str | None] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def __post_init__(self):
        _require_numbers("defects.scores", self.scores)
        _require(len(self.scores) > 0, "defects.scores must hold at least one score.")
        for name in ("miss_cost", "false_alarm_cost"):
            _require_numbers(name, [getattr(self, name)], above=0)
        for name in ("files", "digests"):
            _require(
                len(getattr(self, name)) in (0, len(self.scores)), f"defects.{name} must be as many as defects.scores."
            )


@dataclass(frozen=True)
class ProductThreshold:
    """
    One class' line. Plain floats, kept in the config; checked whenever one is made, so that there is none which cannot be.

    Args:
        image_threshold, map_threshold: raw image score, and raw map value, from which on a photograph, or a place, is anomalous.
        image_spread, map_spread: standard deviation of the logarithm of the normals' scores.
        image_scores, map_maxima: raw scores of the independent good photographs behind the line, one each: first those
            that were remembered, each against the memory of the others, then the `held_out` ones.
        max_false_alarm_rate: the share of good photographs above the line that it was set for.
        novelty_thresholds: what the two numbers of `novelty_scores` reach on photographs of this class; empty if not measured.
        novelty_scores: the normals' two numbers behind these lines, a list of each.
        image_count: how many independent good photographs are behind the line; 0 in lines of earlier versions, whose
            scores are also of copies.
        held_out: how many of them, the last ones, are not in the memory.
        estimate: how the line was set: `rank`, `extrapolated` or `copies` (see [`fit_threshold`]), or by `costs` (see
            [`fit_costs`]); empty before.
        attainable_rate: lowest false-alarm rate that the photographs alone support; 1 where nothing is.
        jittered_image_scores, jittered_map_maxima: raw scores of a lone photograph's moved and relit copies against itself.
        defects: known ones, where `estimate` is `costs`.

    Raises:
        ValueError: naming the field that says something impossible, whereby all would be normal, or nothing, or anything.
    """

    image_threshold: float
    image_spread: float
    map_threshold: float
    map_spread: float
    image_scores: list[float]
    map_maxima: list[float]
    max_false_alarm_rate: float
    novelty_thresholds: list[float] = field(default_factory=list)
    novelty_scores: list[list[float]] = field(default_factory=list)
    image_count: int = 0
    held_out: int = 0
    estimate: str = ""
    attainable_rate: float = 1.0
    jittered_image_scores: list[float] = field(default_factory=list)
    jittered_map_maxima: list[float] = field(default_factory=list)
    defects: KnownDefects | None = None

    def __post_init__(self):
        positive = (
            "image_threshold",
            "image_spread",
            "map_threshold",
            "map_spread",
            "max_false_alarm_rate",
            "attainable_rate",
        )
        for name in positive:
            _require_numbers(name, [getattr(self, name)], above=0)
        for name in ("image_spread", "map_spread"):
            spread = getattr(self, name)
            _require(spread <= LARGEST_SPREAD, f"{name} must be at most {LARGEST_SPREAD:g}, got {spread}.")
        for name in ("max_false_alarm_rate", "attainable_rate"):
            _require(getattr(self, name) <= 1, f"{name} is a share of at most 1, got {getattr(self, name)}.")
        for name in ("image_scores", "map_maxima", "jittered_image_scores", "jittered_map_maxima"):
            _require_numbers(name, getattr(self, name))
        for first, second in (("image_scores", "map_maxima"), ("jittered_image_scores", "jittered_map_maxima")):
            counts = len(getattr(self, first)), len(getattr(self, second))
            _require(counts[0] == counts[1], f"{first} and {second} must be as many, got {counts[0]} and {counts[1]}.")
        for name in ("image_count", "held_out"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 0, f"{name} must be a number of photographs, got {value!r}.")
        _require(
            self.held_out <= len(self.image_scores),
            f"held_out is {self.held_out}, but image_scores holds {len(self.image_scores)}.",
        )
        _require(self.estimate in ESTIMATES, f"estimate must be one of {ESTIMATES[1:]}, got {self.estimate!r}.")
        _require(
            (self.defects is not None) == (self.estimate == "costs"),
            "defects must be there where estimate is 'costs'.",
        )
        for name in ("novelty_thresholds", "novelty_scores"):
            values = getattr(self, name)
            _require(
                isinstance(values, (list, tuple)) and len(values) in (0, 2),
                f"{name} must be empty or of two entries, got {values!r}.",
            )
        _require_numbers("novelty_thresholds", self.novelty_thresholds, above=0)
        for values in self.novelty_scores:
            _require_numbers("novelty_scores", values)

    def check_reach(self) -> None:
        """
        Refuse a line above all raw scores, which lie within 0 and 1.

        Raises:
            UnreachableThreshold: saying what would support the rate that it was set for.
        """
        if self.image_threshold >= LARGEST_SCORE or self.map_threshold > LARGEST_SCORE:
            highest = max(self.image_threshold, self.map_threshold)
            raise UnreachableThreshold(
                f"For {percent(self.max_false_alarm_rate)} false alarms it lies at a score of {highest:.3g}, and none is above "
                f"{LARGEST_SCORE:g}, so that nothing would ever be anomalous: "
                f"{scores_needed(self.max_false_alarm_rate)} good photographs would support this rate, or set a higher one."
            )

    @property
    def open_from(self) -> float:
        """The raw score above which photographs leave open what is normal; infinite where their ranks set the line."""
        return max(self.image_scores) if self.estimate in ("extrapolated", "costs") else math.inf

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None, owner: str = "a product") -> "Self | None":
        """
        Read what stands in a config; `None` stays `None`.

        Args:
            owner: whose it is, for the error.

        Raises:
            ValueError: naming owner and field, if one is missing, unknown or impossible.
        """
        if values is None:
            return None
        try:
            if not isinstance(values, Mapping):
                raise ValueError(f"it is {values!r}, no record")
            known = {each.name: each for each in dataclasses.fields(cls)}
            missing = [name for name, each in known.items() if name not in values and _is_needed(each)]
            if unknown := sorted(set(values) - set(known)) or missing:
                raise ValueError(f"{'it lacks' if unknown is missing else 'it has the unknown'} {', '.join(unknown)}.")
            defects = values.get("defects")
            record = cls(**{**values, **({} if defects is None else {"defects": _known_defects(defects)})})
            record.check_reach()
            return record
        except ValueError as error:
            raise ValueError(
                f"The threshold of {owner} cannot be: {error} Copy the detector again, or calibrate the product anew."
            ) from error


def _known_defects(values: object) -> KnownDefects:
    try:
        return KnownDefects(**values)
    except TypeError as error:
        raise ValueError(f"defects are {values!r}, no known defects.") from error


def _is_needed(each: dataclasses.Field) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_numbers(name: str, values: object, *, above: float | None = None) -> None:
    """Refuse what is no list of finite numbers that are not negative, or that lie above another."""
    _require(isinstance(values, (list, tuple)), f"{name} must be a list of numbers, got {values!r}.")
    for value in values:
        _require(
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value),
            f"{name} must be finite, got {value!r}.",
        )
        _require(value >= 0 if above is None else value > above, f"{name} must lie above 0, got {value}.")


def fit_threshold(
    image_scores: Sequence[float],
    map_maxima: Sequence[float],
    *,
    max_false_alarm_rate: float,
    jittered_image_scores: Sequence[float] = (),
    jittered_map_maxima: Sequence[float] = (),
    held_out: int = 0,
) -> ProductThreshold:
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
    freedom. s0 = 0.3 and d0 = 2 were chosen on 65 series of real and made photographs, where the budget was kept on average
    and no series went beyond twice it with 4 photographs; they are fixed, so that no product moves another's line. The line
    never lies below the largest score, which is the best that ranks could do.

    A lone photograph has only its copies, compared with itself: exp(m + 0.16 + 0.44 t), m being the mean of the copies'
    logarithms, t with 4 degrees of freedom. On drawn designs other photographs lay 0.16 above m, spread by 0.44.

    Args:
        image_scores, map_maxima: raw scores of independent photographs, those `held_out` of the memory last.
        max_false_alarm_rate: share of good photographs that may lie above the line, from 0.0001 to below 0.5.
        jittered_image_scores, jittered_map_maxima: raw scores of a lone photograph's copies, where there is no score.
        held_out: how many of the scores are of photographs that are not in the memory.

    Raises:
        ValueError: if no score is given, one is no finite number, or the rate is refused by [`check_rate`].
    """
    check_rate(max_false_alarm_rate, len(image_scores))
    if not image_scores and not jittered_image_scores:
        raise ValueError("A line needs the score of at least one good photograph, got none: give more photographs.")
    if rank_from_top(held_out, max_false_alarm_rate):
        image_scores, map_maxima = image_scores[-held_out:], map_maxima[-held_out:]
    for known in (image_scores, map_maxima, jittered_image_scores, jittered_map_maxima):
        if broken := [score for score in known if not math.isfinite(score)]:
            raise ValueError(
                f"A good photograph scores {broken[0]}, which is no number to set a line by: the detector's weights are "
                "broken, copy or fit it again."
            )
    image_threshold, image_spread = _limit(image_scores, jittered_image_scores, max_false_alarm_rate)
    map_threshold, map_spread = _limit(map_maxima, jittered_map_maxima, max_false_alarm_rate)
    count = len(image_scores)
    ranked = rank_from_top(count, max_false_alarm_rate) > 0
    return ProductThreshold(
        image_threshold,
        image_spread,
        min(map_threshold, LARGEST_SCORE),
        map_spread,
        list(image_scores),
        list(map_maxima),
        max_false_alarm_rate,
        image_count=max(count, 1),
        held_out=held_out,
        estimate="rank" if ranked else "extrapolated" if count else "copies",
        attainable_rate=attainable_rate(count),
        jittered_image_scores=[] if count else list(jittered_image_scores),
        jittered_map_maxima=[] if count else list(jittered_map_maxima),
    )


def _limit(scores: Sequence[float], copies: Sequence[float], rate: float) -> tuple[float, float]:
    """Return the line and the spread of the logarithms, by the rule of [`fit_threshold`]."""
    if not scores:
        reach = LONE_SHIFT + student_quantile(1 - rate, LONE_DEGREES) * LONE_SPREAD
        return _exp(statistics.fmean(_logs(copies)) + reach), LONE_SPREAD
    center, spread, degrees = _spread_of_logs(scores)
    count = len(scores)
    rank = rank_from_top(count, rate)
    if rank:
        return max(sorted(scores)[-rank], SMALLEST_SCORE), spread
    reach = student_quantile(1 - rate, degrees) * math.sqrt(1 + 1 / count)
    return max(_exp(center + reach * spread), max(scores)), spread


def _spread_of_logs(scores: Sequence[float]) -> tuple[float, float, int]:
    """Return mean, spread and degrees of freedom of the logarithms of scores, the spread joined with the prior's."""
    logs = _logs(scores)
    center, degrees = statistics.fmean(logs), PRIOR_DEGREES + len(logs) - 1
    squares = PRIOR_DEGREES * PRIOR_SPREAD**2 + math.fsum((each - center) ** 2 for each in logs)
    return center, math.sqrt(squares / degrees), degrees


# --- The line by costs, where a few defects are known ---


def fit_costs(threshold: ProductThreshold, defects: KnownDefects) -> ProductThreshold:
    """
    Move one class' line to where errors are expected to cost least: miss_cost x missed + false_alarm_cost x false alarms.

    The share of good parts above a line is that of the predictive distribution by which [`fit_threshold`] extrapolates, and
    the share of defective parts below it that of the same distribution fitted to the defects' scores; where the photographs
    themselves have more of either, theirs counts. Looked for between the lowest and the highest score of all.

    The good ones' scores, and with them p-values, stay as they are, and so does the line of the places of a map. Good ones
    were scored against one photograph less than the defects were, which makes the two look more alike than they are.

    Args:
        threshold: fitted to the good photographs.
        defects: their scores, and the costs: of all defective parts of a day, say, and of all good ones.

    Returns:
        The threshold by costs.

    Raises:
        ValueError: with fewer than two scores of good photographs, or where no defect scores above the lowest of them.
    """
    normals = threshold.image_scores
    if len(normals) < 2 or not threshold.image_count:
        raise ValueError(
            "Costs are weighed by the scores of at least 2 good photographs, and fewer are known here: add good ones first."
        )
    if max(defects.scores) <= min(normals):
        raise ValueError(
            f"The {_defects(len(defects.scores))} score {max(defects.scores):.4f} at most, and the {_photographs(len(normals))} "
            f"{min(normals):.4f} at least: no line separates them, and nothing was changed. Look whether the defects are in the "
            "photographs, or teach more good ones, cut into tiles, or with another encoder."
        )
    line = cheapest_line(normals, defects.scores, defects.miss_cost, defects.false_alarm_cost)
    return dataclasses.replace(threshold, image_threshold=line, estimate="costs", defects=defects)


def cheapest_line(
    normals: Sequence[float], defects: Sequence[float], miss_cost: float, false_alarm_cost: float
) -> float:
    """Return the line of the least expected cost, see [`fit_costs`]; of several the lowest."""
    scores = [max(each, SMALLEST_SCORE) for each in (*normals, *defects)]
    logs = np.linspace(math.log(min(scores)), math.log(max(scores)), COST_STEPS + 1)[:-1]
    good, bad = _tail_of(normals), _tail_of(defects)
    costs = []
    for log in logs:
        line = math.exp(log)
        alarms = max(good(log), sum(score > line for score in normals) / len(normals))
        missed = max(1 - bad(log), sum(score <= line for score in defects) / len(defects))
        costs.append(miss_cost * missed + false_alarm_cost * alarms)
    return math.exp(float(logs[int(np.argmin(costs))]))


def _tail_of(scores: Sequence[float]) -> Callable[[float], float]:
    """Return the share of the next scores whose logarithm lies above a value, as [`fit_threshold`] extrapolates."""
    center, spread, degrees = _spread_of_logs(scores)
    reach = spread * math.sqrt(1 + 1 / len(scores))
    return lambda value: 1 - _student_cdf((value - center) / reach, degrees)


def found_when_left_out(threshold: ProductThreshold) -> int | None:
    """
    Count the known defects above the line that all others set, each left out in turn; `None` for a single one.

    Counted at the line that they set themselves, they would flatter it.
    """
    scores, normals = threshold.defects.scores, threshold.image_scores
    if len(scores) < 2:
        return None
    costs = threshold.defects.miss_cost, threshold.defects.false_alarm_cost
    return sum(
        score > cheapest_line(normals, [*scores[:place], *scores[place + 1 :]], *costs)
        for place, score in enumerate(scores)
    )


def rate_interval(count: int, total: int) -> tuple[float, float]:
    """
    Return the interval of a rate of which `count` of `total` were seen: that of Clopper and Pearson (Biometrika 26, 1934).

    It holds the true rate in at least 95 % of all series, however few there are.
    """
    tail = (1 - CONFIDENCE) / 2

    def at_least(rate: float, least: int) -> float:
        ways = (
            math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(least, total + 1)
        )
        odds = math.log(rate), math.log1p(-rate)
        return math.fsum(
            math.exp(way + k * odds[0] + (total - k) * odds[1]) for k, way in enumerate(ways, start=least)
        )

    def solve(least: int, wanted: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if at_least(middle, least) < wanted else (low, middle)
        return (low + high) / 2

    lower = solve(count, tail) if count else 0.0
    return lower, solve(count + 1, 1 - tail) if count < total else 1.0


def fit_novelty_thresholds(novelty_scores: list[list[float]], *, rate: float) -> list[float]:
    """
    Set the lines above which a photograph is of no known product, at `rate`.

    Each is the upper prediction limit exp(m + t s sqrt(1 + 1/n)) of n values whose logarithms have mean m and standard
    deviation s, t being the (1 - rate) quantile of Student's t with n - 1 degrees of freedom (Hahn and Meeker,
    Statistical Intervals, section 4.8). Copies of photographs count here, too. No line lies below
    `SMALLEST_NOVELTY_THRESHOLD`, so that the rounding of half precision does not reach it.
    """
    return [max(_upper_limit(values, rate), SMALLEST_NOVELTY_THRESHOLD) for values in novelty_scores] if rate else []


def _upper_limit(scores: Sequence[float], rate: float) -> float:
    logs = _logs(scores)
    spread = max(statistics.stdev(logs), SMALLEST_SPREAD)
    reach = student_quantile(1 - rate, len(logs) - 1) * math.sqrt(1 + 1 / len(logs))
    return _exp(statistics.fmean(logs) + reach * spread)


def _logs(scores: Sequence[float]) -> list[float]:
    return [math.log(max(score, SMALLEST_SCORE)) for score in scores]


def _exp(log: float) -> float:
    return math.exp(min(log, 80.0))  # far above every score, and still finite


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


def to_scale(values: Tensor, threshold: Tensor, spread: Tensor) -> Tensor:
    """
    Bring raw values to the scale on which 0.5 is the threshold: sigmoid((log value - log threshold) / spread).

    Args:
        values: raw scores or maps, of any shape.
        threshold, spread: broadcast over the values.

    Returns:
        float32 of the same shape, within 0 and 1. Order is kept; the threshold itself is 0.5.
    """
    return ((values.float().clamp(min=SMALLEST_SCORE).log() - threshold.log()) / spread).sigmoid()


def p_values(scores: Tensor, thresholds: Sequence[ProductThreshold | None]) -> Tensor:
    """
    Return the share of good images that would score at least this, judged by rank among the product's normals: (batch,).

    It is the conformal p-value, (1 + number of normals that score at least this) / (n + 1), over the n independent normal
    scores behind a threshold (Vovk, Gammerman and Shafer, chapter 2). It never lies below 1 / (n + 1), however odd an
    image is. NaN where copies were counted as normals (thresholds of earlier versions), where there is no threshold, and
    for what is no number.
    """
    normals = [each.image_scores if each and each.image_count else None for each in thresholds]
    longest = max(len(known or []) for known in normals)
    rows = [[*(known or []), *[-math.inf] * (longest - len(known or []))] for known in normals]
    totals = [math.nan if known is None else len(known) + 1.0 for known in normals]
    above = (scores.new_tensor(rows, dtype=torch.float32) >= scores.float()[:, None]).sum(1)
    shares = (1 + above) / scores.new_tensor(totals, dtype=torch.float32)
    return shares.masked_fill(~scores.isfinite(), math.nan)


def are_unsure(scores: Tensor, thresholds: Sequence[ProductThreshold | None]) -> Tensor:
    """
    Say which raw scores (batch,) so few photographs leave open: bool (batch,).

    They lie above every good photograph behind a threshold that was extrapolated beyond all of these, to keep a lower rate
    of false alarms than the photographs alone support, or that costs put there. It counts for what is called normal,
    whichever threshold decides.
    """
    open_from = [each.open_from if each else math.inf for each in thresholds]
    return scores.float() > scores.new_tensor(open_from, dtype=torch.float32)


def label_of(score: float, threshold: float) -> str:
    """
    Name what a calibrated score says: "anomalous" above the threshold.

    Raises:
        ValueError: for a score, or a threshold, that is no number, since that says nothing at all.
    """
    if not (math.isfinite(score) and math.isfinite(threshold)):
        raise ValueError(f"A score of {score} at a threshold of {threshold} is neither normal nor anomalous.")
    return "anomalous" if score > threshold else "normal"


def calibrate(values: Tensor, thresholds: Sequence[ProductThreshold | None], part: str) -> Tensor:
    """
    Bring raw values (batch, ...) of one part, "image" or "map", to the scale of their products; NaN where there is none.

    A place of a map at 0.5 is as odd as the oddest place of a good image may be.
    """
    shape = (-1,) + (1,) * (values.ndim - 1)
    limit, spread = (
        torch.tensor(
            [getattr(each, f"{part}_{what}") if each else math.nan for each in thresholds], device=values.device
        ).view(shape)
        for what in ("threshold", "spread")
    )
    return to_scale(values, limit, spread)


def fit_pooled_threshold(
    thresholds: Sequence[ProductThreshold], max_false_alarm_rate: float
) -> ProductThreshold | None:
    """Fit the one threshold that products share where their identity is pooled; `None` where none has a score."""
    scores, maxima, jittered_scores, jittered_maxima = (
        [score for each in thresholds for score in getattr(each, part)]
        for part in ("image_scores", "map_maxima", "jittered_image_scores", "jittered_map_maxima")
    )
    if not scores and not jittered_scores:
        return None
    return fit_threshold(
        scores,
        maxima,
        max_false_alarm_rate=max_false_alarm_rate,
        jittered_image_scores=jittered_scores,
        jittered_map_maxima=jittered_maxima,
    )


# --- What a frame is like as a whole: whether a camera is on, sharp, and sees the light that it was taught in ---


GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue
ENOUGH = 0.99  # of good frames lie within the limits, were their numbers spread as a normal distribution


class FrameNumber(NamedTuple):
    """
    One of the numbers of [`frame_numbers`].

    Args:
        below, above: what an image is that lies outside; `None` where that is no fault.
        least, most: how far beyond the taught ones a frame may lie at least, and at most, however these differ.
    """

    below: str | None
    above: str | None
    least: float
    most: float


TOO_DARK, TOO_BRIGHT, OUT_OF_FOCUS = "too dark", "brighter than anything taught", "out of focus"

# The first that lies outside is the reason. Margins: from good photographs of five products, and frames made of them
# without light, without a part, in other light and out of focus.
FRAME_NUMBERS = (
    FrameNumber(TOO_DARK, TOO_BRIGHT, 0.5, 1.5),  # mean, in stops
    FrameNumber(TOO_DARK, None, 0.5, 0.8),  # brightest places, in stops
    FrameNumber(None, TOO_BRIGHT, 0.05, 0.08),  # share that is white
    FrameNumber("less contrast than anything taught", None, 1.2, 2.0),  # halvings
    FrameNumber(OUT_OF_FOCUS, None, 0.8, 1.2),  # halvings
    FrameNumber(None, TOO_BRIGHT, 0.5, 0.7),  # darkest places, in stops
    FrameNumber("less red than anything taught", "more red than anything taught", 0.25, 0.3),  # stops
    FrameNumber("less blue than anything taught", "more blue than anything taught", 0.25, 0.3),  # stops
)
BRIGHTEST, DARKEST, SHARPEST = 0.05, 0.02, 0.01  # shares of the pixels
WHITE, MOST_WHITE = 0.98, 0.1  # more white than this share belongs to the product


def frame_numbers(pixels: Tensor) -> list[float]:
    """
    Describe a frame, (3, height, width) of values within 0 and 1, by the numbers of `FRAME_NUMBERS`.

    Mean, brightest and darkest grey values, contrast (their deviation), and red and blue beside green are logarithms to
    base 2, and so is sharpness: the strongest fine detail beside the brightest values. What lies at the ends says
    more than a mean does, where products differ in how much of a frame is bright, or has edges.
    """
    pixels = pixels.detach().float().cpu().clamp(0, 1)
    grey = (pixels * torch.tensor(GREY_WEIGHTS)[:, None, None]).sum(0)
    bright, dark = _mean_of_most(grey, BRIGHTEST), 1 - _mean_of_most(1 - grey, DARKEST)
    sharp = _mean_of_most((grey - _box_blur(grey, 5)).abs(), SHARPEST)
    red, green, blue = (pixels.flatten(1).mean(1) + 0.02).log2().tolist()
    return [
        math.log2(float(grey.mean()) + 0.02),
        math.log2(bright + 0.02),
        min(float((grey >= WHITE).float().mean()), MOST_WHITE),
        math.log2(float(grey.std(correction=0)) + 0.005),
        math.log2((sharp + 0.001) / (bright + 0.02)),
        math.log2(dark + 0.05),
        red - green,
        blue - green,
    ]


def _mean_of_most(values: Tensor, share: float) -> float:
    """Average the largest share of some values."""
    count = math.ceil(share * values.numel())
    return float(np.partition(values.flatten().numpy(), -count)[-count:].mean())


def _box_blur(grey: Tensor, side: int) -> Tensor:
    (height, width), side = grey.shape, min(side, 2 * min(grey.shape) - 1)  # no more of an image can be mirrored
    padded = F.pad(grey[None, None], (side // 2,) * 4, mode="reflect")[0, 0]
    rows = sum(padded[place : place + height] for place in range(side))
    return sum(rows[:, place : place + width] for place in range(side)) / side**2


@dataclass(frozen=True)
class FrameLimits:
    """
    What the frames of a product's good images are like: of each of `FRAME_NUMBERS` the range, mean and spread.

    Args:
        count: of images.
        lowest, highest, mean: of each number.
        squares: sum of the squared distances to the mean.
    """

    count: int
    lowest: list[float]
    highest: list[float]
    mean: list[float]
    squares: list[float]

    def __post_init__(self):
        sizes = {len(each) for each in self.lists}
        finite = all(isinstance(value, (int, float)) and math.isfinite(value) for each in self.lists for value in each)
        if self.count < 1 or len(sizes) > 1 or 0 in sizes or not finite or min(self.squares) < 0:
            raise ValueError(
                f"the frame of a product must have as many finite numbers in each list, of at least 1 image, got {self}."
            )

    @classmethod
    def of(cls, frames: Sequence[Sequence[float]], known: "FrameLimits | None" = None) -> "FrameLimits":
        """Learn from the numbers of some images, in addition to those that are known."""
        values = torch.tensor(frames, dtype=torch.float64)  # (images, numbers)
        count, mean = len(values), values.mean(0)
        squares, lowest, highest = ((values - mean) ** 2).sum(0), values.amin(0), values.amax(0)
        if known is not None:
            before = [torch.tensor(each, dtype=torch.float64) for each in known.lists]
            both, apart = count + known.count, mean - before[2]
            lowest, highest = torch.minimum(lowest, before[0]), torch.maximum(highest, before[1])
            squares = squares + before[3] + apart**2 * count * known.count / both
            mean, count = before[2] + apart * count / both, both
        return cls(count, *(each.tolist() for each in (lowest, highest, mean, squares)))

    @property
    def is_outdated(self) -> bool:
        """Whether an earlier version described frames by other numbers."""
        return len(self.mean) != len(FRAME_NUMBERS)

    @property
    def lists(self) -> tuple[list[float], ...]:
        """Lowest, highest, mean and squares."""
        return self.lowest, self.highest, self.mean, self.squares

    def fault(self, frame: Sequence[float], *, suspected: bool = False) -> str | None:
        """
        Say what is wrong with an image by its numbers; `None` for one that is like those that were taught, which no number is
        that is not finite.

        Args:
            suspected: whether it is known to be unlike the product, so that the least margin tells why.
        """
        for number, each in enumerate(FRAME_NUMBERS):
            margin = each.least if suspected else self._margin(number, each)
            if each.below is not None and not frame[number] >= self.lowest[number] - margin:
                return each.below
            if each.above is not None and not frame[number] <= self.highest[number] + margin:
                return each.above
        return None

    def _margin(self, number: int, each: FrameNumber) -> float:
        """How far beyond the range another good image may lie: the reach of a prediction interval (see `_upper_limit`)."""
        if self.count == 1:
            return each.most
        deviation = math.sqrt(self.squares[number] / (self.count - 1))
        reach = student_quantile(ENOUGH, self.count - 1) * deviation * math.sqrt(1 + 1 / self.count)
        return min(max(each.least, reach), each.most)


__all__ = [
    "FRAME_NUMBERS",
    "FrameLimits",
    "KnownDefects",
    "fit_costs",
    "found_when_left_out",
    "frame_numbers",
    "ProductThreshold",
    "UnreachableThreshold",
    "attainable_rate",
    "calibrate",
    "cheapest_line",
    "check_rate",
    "describe_guarantee",
    "describe_lost_costs",
    "fit_novelty_thresholds",
    "fit_pooled_threshold",
    "fit_threshold",
    "label_of",
    "p_values",
    "percent",
    "rate_interval",
    "rank_from_top",
    "scores_needed",
    "student_quantile",
    "to_scale",
]
