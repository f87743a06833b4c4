"""Work on the photographs of a batch at once: Pillow and numpy let go of Python's lock while they compute."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch


Item, Result = TypeVar("Item"), TypeVar("Result")


def act_on_each(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Act on every item, as many at a time as torch has threads; results come in the order of the items."""
    threads = min(len(items), torch.get_num_threads())
    if threads < 2:
        return [act(item) for item in items]
    # threads of this call alone: kept ones would be dead in a process that was forked later
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(act, items))


__all__ = ["act_on_each"]
