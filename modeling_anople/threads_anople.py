"""Work on the photographs of a batch at once: Pillow and numpy let go of Python's lock while they compute."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar


Item, Result = TypeVar("Item"), TypeVar("Result")

MOST_THREADS = 8


def act_on_each(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Act on every item, several at a time where there are cores for it; results come in the order of the items."""
    threads = min(len(items), MOST_THREADS, os.cpu_count() or 1)
    if threads < 2:
        return [act(item) for item in items]
    # threads of this call alone: kept ones would be dead in a process that was forked later
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(act, items))


__all__ = ["act_on_each"]
