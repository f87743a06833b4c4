"""AnoPLe: few-shot multi-class anomaly detection by bidirectional prompts on a frozen CLIP."""

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_anople import AnoPLeConfig
from .modeling_anople import AnoPLeModel, AnoPLeOutput, AnoPLePreTrainedModel
from .photographs_anople import ImageError, load_photograph
from .pipeline_anople import AnomalyDetectionPipeline
from .processing_anople import AnoPLeProcessor
from .task_anople import TASK


__version__ = "0.1.0"

AutoConfig.register(AnoPLeConfig.model_type, AnoPLeConfig)
AutoModel.register(AnoPLeConfig, AnoPLeModel)
AutoProcessor.register(AnoPLeConfig, AnoPLeProcessor)
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=AnomalyDetectionPipeline, pt_model=AutoModel, type="image")

# A saved detector carries its own code, so that `trust_remote_code=True` loads it where the package is not installed.
AnoPLeConfig.register_for_auto_class()
AnoPLeModel.register_for_auto_class("AutoModel")
AnoPLeProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "AnoPLeConfig",
    "AnoPLeModel",
    "AnoPLeOutput",
    "AnoPLePreTrainedModel",
    "AnoPLeProcessor",
    "AnomalyDetectionPipeline",
    "ImageError",
    "load_photograph",
]
