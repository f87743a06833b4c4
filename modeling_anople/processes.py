"""The processes that `accelerate launch` started, for work that needs no training loop."""

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def join_processes() -> PartialState:
    """Join them; alone, there is one."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


__all__ = ["join_processes"]
