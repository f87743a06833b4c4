"""Random numbers from a passed generator."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Generator, Tensor


Item = TypeVar("Item")


def uniform(generator: Generator, low: float, high: float, shape: Sequence[int] = ()) -> Tensor:
    """Draw numbers between `low` and `high`."""
    return low + (high - low) * torch.rand(tuple(shape), generator=generator)


def log_uniform(generator: Generator, low: float, high: float, shape: Sequence[int] = ()) -> Tensor:
    """Draw numbers whose logarithms are uniform."""
    return low * (high / low) ** torch.rand(tuple(shape), generator=generator)


def chance(generator: Generator, probability: float | Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Draw True with a probability."""
    return torch.rand(tuple(shape), generator=generator) < probability


def choice(generator: Generator, items: Sequence[Item]) -> Item:
    """Draw one item."""
    return items[int(torch.randint(len(items), (), generator=generator))]
