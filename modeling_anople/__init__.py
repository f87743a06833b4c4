"""
AnoPLe: few-shot multi-class anomaly detection by bidirectional prompts on a frozen CLIP.

Importing the package costs nothing but its name. The first use of one of its names, or the import itself where
transformers is imported already, loads it and registers its Auto classes and its pipeline task with transformers.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .configuration_anople import AnoPLeConfig
    from .modeling_anople import AnoPLeModel, AnoPLeOutput, AnoPLePreTrainedModel
    from .photographs_anople import ImageError, load_photograph
    from .pipeline_anople import AnomalyDetectionPipeline
    from .processing_anople import AnoPLeProcessor
    from .task_anople import TASK

__version__ = "0.1.0"

_HOMES = {
    "AnoPLeConfig": "configuration_anople",
    "AnoPLeModel": "modeling_anople",
    "AnoPLeOutput": "modeling_anople",
    "AnoPLePreTrainedModel": "modeling_anople",
    "AnoPLeProcessor": "processing_anople",
    "AnomalyDetectionPipeline": "pipeline_anople",
    "ImageError": "photographs_anople",
    "TASK": "task_anople",
    "load_photograph": "photographs_anople",
}

__all__ = [
    "TASK",
    "AnoPLeConfig",
    "AnoPLeModel",
    "AnoPLeOutput",
    "AnoPLePreTrainedModel",
    "AnoPLeProcessor",
    "AnomalyDetectionPipeline",
    "ImageError",
    "load_photograph",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module(f"{__name__}.registration")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "transformers" in sys.modules:
    importlib.import_module(f"{__name__}.registration")
