"""The `anople` program. It is `__main__`, from which its names are handed on."""

import importlib


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.__main__"), name)
