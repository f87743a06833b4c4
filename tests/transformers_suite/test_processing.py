"""transformers' common tests of processors and of image processors, on the detector's."""

import unittest

from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hub.mini_clip.small_clip import byte_tokenizer
from modeling_anople import AnoPLeProcessor

from .upstream import load


processing, image_processing = load("test_processing_common"), load("test_image_processing_common")
SIDE = 32


class AnoPLeProcessorTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = AnoPLeProcessor

    @classmethod
    def _setup_image_processor(cls) -> CLIPImageProcessorPil:
        return CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)

    @classmethod
    def _setup_tokenizer(cls):
        return byte_tokenizer()

    @staticmethod
    def prepare_processor_dict() -> dict:
        return {"class_names": ["bolt", "nut"], "white_value": 4095.0}


class DetectorImageProcessorTester(image_processing.ImageProcessingTester):
    """What the mixin asks for: how the detector's image processor is set up."""

    def __init__(self, parent: unittest.TestCase):
        super().__init__(
            parent,
            batch_size=3,
            num_channels=3,
            min_resolution=20,
            max_resolution=60,
            size={"height": SIDE, "width": SIDE},
            do_resize=True,
            do_center_crop=False,
            do_normalize=True,
            do_convert_rgb=True,
        )

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": CLIPImageProcessorPil}


class AnoPLeImageProcessorTest(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = DetectorImageProcessorTester
