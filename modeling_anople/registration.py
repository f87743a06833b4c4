"""Make transformers know AnoPLe: its Auto classes and its pipeline task."""

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_anople import AnoPLeConfig
from .modeling_anople import AnoPLeModel
from .pipeline_anople import AnomalyDetectionPipeline
from .processing_anople import AnoPLeProcessor
from .task_anople import TASK


AutoConfig.register(AnoPLeConfig.model_type, AnoPLeConfig)
AutoModel.register(AnoPLeConfig, AnoPLeModel)
AutoProcessor.register(AnoPLeConfig, AnoPLeProcessor)
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=AnomalyDetectionPipeline, pt_model=AutoModel, type="image")
