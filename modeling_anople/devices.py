"""Where a detector that judges computes."""

import os

import torch


def computing_device(asked: str = "auto") -> torch.device:
    """
    Find a device by its name.

    Args:
        asked: `auto` for this process' GPU (CUDA), or the CPU where there is none or `ACCELERATE_USE_CPU` is set, as
            `accelerate launch` does; or a name of torch's: `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        ValueError: for a device that is not here.
    """
    if asked == "auto":
        kept_off = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "t", "yes", "y", "on")
        asked = "cuda" if torch.cuda.is_available() and not kept_off else "cpu"
    try:
        return torch.empty(0, device=asked).device  # with its number: the GPU that this process was given
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # by what torch was built for
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"There is no device {asked!r} here ({reason}): take auto or cpu.") from error


__all__ = ["computing_device"]
