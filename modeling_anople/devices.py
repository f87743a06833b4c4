"""Where a detector computes, who prepares what it learns from, and in which order a GPU adds up."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator

import torch


def computing_device(asked: str = "auto") -> torch.device:
    """
    Find a device by its name.

    Args:
        asked: `auto` for this process' GPU (CUDA), or the CPU where there is none or `ACCELERATE_USE_CPU` is set, as
            `accelerate launch` does; or a name of torch's: `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        ValueError: for a device that is not here, or is not free.
    """
    name = asked
    if asked == "auto":
        kept_off = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "t", "yes", "y", "on")
        name = "cuda" if torch.cuda.is_available() and not kept_off else "cpu"
    try:
        return torch.empty(0, device=name).device  # with its number: the GPU that this process was given
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # by what torch was built for
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"The device {name!r} cannot be used here ({reason}): take cpu.") from error


@contextlib.contextmanager
def one_order_of_sums(device: torch.device) -> Iterator[None]:
    """Let a GPU add up in one order meanwhile, so that the same fit has the same bits; other devices do so anyway."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when the first product is computed
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help to find bugs, which takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def loader_workers(device: torch.device, processes: int = 1) -> int:
    """
    Say how many processes should prepare photographs for each of `processes` that learn on such a device.

    None for a CPU, which has enough to do. For a GPU, which would wait otherwise, a share of the cores, at most 8; none
    where processes are not forked: they would import a script that calls `train` again.
    """
    if device.type != "cuda" or multiprocessing.get_start_method() != "fork":
        return 0
    return min(8, (os.cpu_count() or 1) // processes)


__all__ = ["computing_device", "loader_workers", "one_order_of_sums"]
