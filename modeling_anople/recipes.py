"""Presets of options: the paper's, as faithfully as it is known, and what did better where we could choose."""

from typing import Literal


Recipe = Literal["paper", "best"]

# What each change did to good photographs with drawn defects: `python -m tests.benchmarks.memory_copies`, and
# `python -m hub.reproduce recipe` on a set of `hub.drawn_defects`.
RECIPES: dict[str, dict[str, object]] = {
    "paper": {},
    "best": {"memory_copies": "eighth_turns"},
}


__all__ = ["RECIPES", "Recipe"]
