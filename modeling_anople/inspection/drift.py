"""
Whether the scores of what is called normal are still those that a product was calibrated on.

The method is a conformal test martingale. Each score is ranked among the calibration's and all before it, which gives a
p-value; while nothing changes, these are independent and uniform, whatever the scores look like (Vovk, Gammerman and
Shafer, chapter 8). Against that a "simple jumper" bets: f(p) = 1 + e (p - 1/2) with several e, moving a little of its stake
from each to all at every step. What it holds, S, is a martingale, so that R = (R + 1) S / S_before, the Shiryaev-Roberts
statistic, has an expectation of n after n photographs (Vovk and others, "Retrain or not retrain", 2021). A warning is given
where R reaches `interval`. Hence, while nothing changes,

- at least `interval` photographs pass on average until a false warning, and
- there is one within n photographs with a probability of at most n / `interval`.

This takes for granted that the good photographs of the calibration and those of the line are exchangeable: taken alike and
scored alike. Scores of remembered photographs are each against the memory of the others, which is one smaller.

Beyond `KEPT` scores one goes at each step, chosen by chance among all, the new one too. Which one says nothing of when it
came, so that the ranks stay independent and uniform, and the bounds hold; they would not if the oldest went.
"""

import bisect
import hashlib
import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..calibration_anople import ProductThreshold
from ..configuration_anople import AnoPLeConfig
from .records import Rows


INTERVAL = 100_000  # photographs between two false warnings, on average and at least
STAKES = (-2.0, -1.0, 0.0, 1.0, 2.0)  # e: a negative one bets on small p-values, which high scores have
JUMP = 0.01  # share of each stake that is moved at a step
RECENT = 200  # photographs whose reasons are looked at
KEPT = 100_000  # scores that a new one is ranked among; of more a sample by chance, in which the old become rare
NEWEST = 1000  # scores since a change of which the median is taken
FEW = 0.05  # share of photographs with a reason from which on the reason is named


@dataclass(frozen=True)
class Drift:
    """
    What was found.

    Args:
        product: whose scores have changed.
        since: time of the record from which on they did, as far as can be told.
        count: of normal photographs since then.
        is_higher: whether they have become higher, not lower.
        ratio: the median score of the newest 1,000 of them, in units of that of the calibration and of all before.
        reason: what most of the recent photographs that are none of the product were said to be; `None` if they are few.
        interval: see the module.
    """

    product: str
    since: str
    count: int
    is_higher: bool
    ratio: float
    reason: str | None
    interval: int

    def advice(self) -> str:
        """Say it in words, and what to do."""
        manner = "higher" if self.is_higher else "lower"
        found = (
            f"{self.product}: the scores of what is called normal have become {manner}, since about {self.since} "
            f"({self.count} photographs; their median is {self.ratio:.2f} times that of the calibration and all before)."
        )
        if self.reason:
            advice = f"Look at the light and the camera first: photographs are called {self.reason!r}."
        elif self.is_higher:
            advice = (
                "Look at what was changed then, and at the light, the lens (dust) and the fixture (wear). If the product itself "
                "has changed, show its new looks by `anople add_normals`; if nothing that matters has, `anople calibrate` with good "
                "photographs of today."
            )
        else:
            advice = (
                "The line is higher than it need be, and small defects may pass: look whether the camera still shows each part "
                "sharply, and `anople calibrate` with good photographs of today."
            )
        return f"{found} {advice} (While nothing changes, such a warning comes at most once in {self.interval} photographs on average.)"


class DriftWatch:
    """
    Follows one product.

    Args:
        product: its name.
        threshold: of the product; its scores are the calibration.
        label_threshold: calibrated score above which a photograph is anomalous, as of the config.
        interval: photographs between two false warnings, on average and at least.
    """

    def __init__(
        self, product: str, threshold: ProductThreshold, *, label_threshold: float = 0.5, interval: int = INTERVAL
    ):
        self.product, self.interval = product, interval
        line = threshold.image_threshold * math.exp(threshold.image_spread * _logit(label_threshold))
        known = threshold.image_scores if threshold.image_count else []
        # the photographs of the line that lie above it are not called normal, and so not seen here
        self.calibration = [score for score in known if score <= line]
        self.count, self.statistic = 0, 0.0
        self._sorted = sorted(self.calibration)
        self._capital = [1 / len(STAKES)] * len(STAKES)
        self._log, self._lowest = 0.0, 0.0  # of S, and the lowest so far: from there on it has grown
        self._since, self._since_count = "", 0  # time of the first from there on, and how many
        self._newest: deque[float] = deque(maxlen=NEWEST)  # of their scores
        self._before = self._middle()  # median until there
        self._reasons: deque[str | None] = deque(maxlen=RECENT)

    def feed(self, row: Mapping[str, object]) -> bool:
        """
        Take one record of the product; those that are not normal count as reasons alone.

        Returns:
            Whether there is a drift now, which [`finding`] describes: the statistic is at or above the interval.
        """
        if row.get("error"):
            return False
        self._reasons.append(row.get("reason"))
        score = row.get("raw_score")
        if row.get("label") != "normal" or not isinstance(score, (int, float)) or not math.isfinite(score):
            return False
        self._bet(self._p_value(float(score), str(row.get("id"))))
        if self._log <= self._lowest:
            self._lowest, self._before, self._since_count = self._log, self._middle(), 0
            self._newest.clear()
        if self._since_count == 0:
            self._since = str(row.get("time"))
        self._since_count += 1
        self._newest.append(float(score))
        return self.statistic >= self.interval

    def _middle(self) -> float | None:
        return self._sorted[len(self._sorted) // 2] if self._sorted else None

    def _p_value(self, score: float, key: str) -> float:
        """Rank a score among those before it, equal ones in an order by chance that the record's id decides."""
        low, high = bisect.bisect_left(self._sorted, score), bisect.bisect_right(self._sorted, score)
        digest = hashlib.sha256(key.encode()).digest()
        chance, other_chance = ((int.from_bytes(each) + 0.5) / 2**48 for each in (digest[:6], digest[6:12]))
        p_value = (len(self._sorted) - high + chance * (high - low + 1)) / (len(self._sorted) + 1)
        self._sorted.insert(high, score)
        if len(self._sorted) > KEPT:
            del self._sorted[int(other_chance * len(self._sorted))]
        return p_value

    def _bet(self, p_value: float) -> None:
        total = sum(self._capital)
        moved = [(1 - JUMP) * each + JUMP * total / len(STAKES) for each in self._capital]
        self._capital = [each * (1 + stake * (p_value - 0.5)) for each, stake in zip(moved, STAKES, strict=True)]
        now = sum(self._capital)
        self.statistic = (self.statistic + 1) * now / total
        self._log += math.log(now / total)
        self._capital = [each / now for each in self._capital]  # only shares matter, and none may overflow
        self.count += 1

    def finding(self) -> Drift:
        """Describe what has changed, once [`feed`] says that something has."""
        now = statistics.median(self._newest)
        ratio = now / max(now if self._before is None else self._before, 1e-9)
        reasons = Counter(filter(None, self._reasons))
        reason, times_said = reasons.most_common(1)[0] if reasons else (None, 0)
        named = reason if times_said > FEW * len(self._reasons) else None
        is_higher = sum(stake * each for stake, each in zip(STAKES, self._capital, strict=True)) < 0
        return Drift(self.product, self._since, self._since_count, is_higher, ratio, named, self.interval)


def _logit(share: float) -> float:
    if share in (0, 1):
        return math.copysign(math.inf, share - 0.5)
    return math.log(share / (1 - share))


def follow(config: AnoPLeConfig, product: str, *, interval: int = INTERVAL) -> DriftWatch:
    """
    Begin to follow a product of a detector, or of a graph.

    Raises:
        ValueError: for an unknown product, or one without a threshold.
    """
    from ..product_store_anople import ProductRecord

    records = {record.name: record for record in map(ProductRecord.from_dict, config.products)}
    if product not in records:
        raise ValueError(f"{product!r} is not known: choose one of {', '.join(records)}.")
    if records[product].threshold is None:
        raise ValueError(f"{product} has no line, so nothing is called normal: `anople calibrate` it first.")
    return DriftWatch(product, records[product].threshold, label_threshold=config.threshold, interval=interval)


def changed_at(config: AnoPLeConfig, product: str) -> float:
    """Return when a product's memory or line was changed last, in seconds since 1970: older records are of another one."""
    dates = [entry["date"] for entry in config.history if entry["class_name"] == product]
    return max((datetime.fromisoformat(date).timestamp() for date in dates), default=0.0)


def rows_since(rows: Iterable[dict], product: str, moment: float) -> Iterator[dict]:
    """Keep the rows of a product that were written at a moment or after it."""
    for row in rows:
        is_of = row.get("class") == product and isinstance(row.get("time"), str)
        if is_of and datetime.fromisoformat(row["time"]).timestamp() >= int(moment):
            yield row


def read_drift(
    config: AnoPLeConfig, results: Path, products: Sequence[str] | None = None, *, interval: int = INTERVAL
) -> dict[str, tuple[DriftWatch, Drift | None]]:
    """
    Look for drift in results that were written since each product was changed last.

    Returns:
        For each product that has rows there the watch after them, or where it has found something, and what that is.
    """
    found = {}
    for product in products or config.class_names:
        rows = list(rows_since(Rows(results), product, changed_at(config, product)))
        if rows or products:
            watch = follow(config, product, interval=interval)
            first = watch.finding() if any(map(watch.feed, rows)) else None
            found[product] = watch, first
    return found


__all__ = ["INTERVAL", "Drift", "DriftWatch", "changed_at", "follow", "read_drift", "rows_since"]
