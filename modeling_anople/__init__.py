"""
AnoPLe: few-shot multi-class anomaly detection by bidirectional prompts on a frozen CLIP.

Importing the package costs nothing but its name. The first use of one of its names, or the import itself where
transformers is imported already, loads it and registers its Auto classes and its pipeline task with transformers.
"""

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .configuration_anople import TASK, AnoPLeConfig
    from .images_anople import ImageError, load_image
    from .modeling_anople import AnoPLeModel, AnoPLePreTrainedModel
    from .pipeline_anople import AnomalyDetectionPipeline
    from .processing_anople import AnoPLeProcessor
    from .scoring_anople import AnoPLeOutput

__version__ = "0.1.0"

_HOMES = {
    "AnoPLeConfig": "configuration_anople",
    "AnoPLeModel": "modeling_anople",
    "AnoPLeOutput": "scoring_anople",
    "AnoPLePreTrainedModel": "modeling_anople",
    "AnoPLeProcessor": "processing_anople",
    "AnomalyDetectionPipeline": "pipeline_anople",
    "ImageError": "images_anople",
    "TASK": "configuration_anople",
    "load_image": "images_anople",
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
    "load_image",
]


@functools.cache
def _register() -> None:
    """Make transformers know AnoPLe: its Auto classes and its pipeline task."""
    from transformers import AutoConfig, AutoModel, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_anople import TASK, AnoPLeConfig
    from .modeling_anople import AnoPLeModel
    from .pipeline_anople import AnomalyDetectionPipeline
    from .processing_anople import AnoPLeProcessor

    AutoConfig.register(AnoPLeConfig.model_type, AnoPLeConfig)
    AutoModel.register(AnoPLeConfig, AnoPLeModel)
    AutoProcessor.register(AnoPLeConfig, AnoPLeProcessor)
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=AnomalyDetectionPipeline, pt_model=AutoModel, type="image"
    )


def __getattr__(name: str) -> Any:
    if name == "load_photograph":
        raise AttributeError("load_photograph is called load_image now.")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "transformers" in sys.modules:
    _register()
