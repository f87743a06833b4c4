"""The pipeline task, as a detector's `config.json` tells transformers of it."""

import copy
from typing import Any

from transformers.pipelines import PIPELINE_REGISTRY


TASK = "image-anomaly-detection"
PIPELINES = {TASK: {"impl": "pipeline_anople.AnomalyDetectionPipeline", "pt": ["AutoModel"], "type": "image"}}


class CustomPipelines(dict):
    """
    The entry `custom_pipelines` of a config: where `transformers.pipeline` finds the task's code in a detector's folder.

    `pipeline` wants `trust_remote_code=True` for each task that is found in here, even where this package is installed
    and has registered it, and writes classes, which no JSON file can hold, into the entry that it looks up. So a task
    that is registered is not found, and what is looked up is a copy.
    """

    def __contains__(self, task: Any) -> bool:
        return super().__contains__(task) and task not in PIPELINE_REGISTRY.supported_tasks

    def __getitem__(self, task: str) -> dict:
        return copy.deepcopy(super().__getitem__(task))


__all__ = ["PIPELINES", "TASK", "CustomPipelines"]
