"""What a number of good photographs can promise of a line, in figures and in words."""

import math
from collections.abc import Mapping
from typing import Any


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


__all__ = ["describe_support", "percent", "rank_from_top", "scores_needed", "supported_rate"]
