"""`anople demo`: the demo lies beside the package in a checkout and is no part of it, so it is run by its path."""

import runpy
from pathlib import Path


def demo(arguments: list[str]) -> int:
    """Run `demo/app.py` of the checkout that this package lies in."""
    program = Path(__file__).resolve().parents[1] / "demo" / "app.py"
    if not program.is_file():
        raise ValueError(
            f"the demo is not installed with the package (no {program}): run `anople demo` from a checkout that is "
            "installed with `pip install -e '.[demo]'`, or open a Space made by `python -m hub.push_space`."
        )
    return runpy.run_path(str(program))["main"](arguments)


__all__ = ["demo"]
