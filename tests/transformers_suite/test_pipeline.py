"""transformers' common test of pipelines, on the detector's task."""

import tempfile
import unittest
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_anople import AnoPLeModel
from modeling_anople.configuration_anople import TASK

from ..detectors import write_detector
from .upstream import load, offer_detector


FOLDER = tempfile.TemporaryDirectory()  # where the mixin looks for detectors; read when it is imported
offer_detector(Path(FOLDER.name), AnoPLeModel.__name__, "CLIPImageProcessorPil")
mixin = load("test_pipeline_mixin")


class AnomalyDetectionPipelineTests:
    """What the mixin runs on a task: photographs for a detector, and what each answer is."""

    def get_test_pipeline(self, model: AnoPLeModel, tokenizer, image_processor, dtype: str):
        detector = pipeline(TASK, model=model.to(getattr(torch, dtype)), processor=model.load_processor())
        return detector, [Image.new("RGB", (48, 40), color) for color in ("red", "blue")]

    def run_pipeline_test(self, detector, examples: list[Image.Image]):
        for answer in [*detector(examples), detector(examples[0])]:
            assert answer["error"] is None and 0 <= answer["score"] <= 1
            assert answer["anomaly_map"].shape == (40, 48)


mixin.pipeline_test_mapping[TASK] = {"test": f"{__name__}.{AnomalyDetectionPipelineTests.__name__}"}


class AnoPLePipelineTest(mixin.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {TASK: AnoPLeModel}

    @pytest.fixture(autouse=True, scope="class")
    def detector(self, small_clip_folder, photograph):
        write_detector(Path(FOLDER.name) / "anople" / AnoPLeModel.__name__, small_clip_folder, photograph)

    def test_pipeline_image_anomaly_detection(self):
        self.run_without_skipping("float32")

    def test_pipeline_image_anomaly_detection_fp16(self):
        self.run_without_skipping("float16")

    def run_without_skipping(self, dtype: str):
        """Run the mixin, which skips a detector that does not load."""
        try:
            self.run_task_tests(TASK, dtype)
        except unittest.SkipTest as skipped:
            self.fail(str(skipped))
