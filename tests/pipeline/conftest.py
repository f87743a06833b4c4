"""A fitted detector, its pipeline, and photographs of several sizes."""

import pytest
from PIL import Image
from transformers import pipeline

from modeling_anople import AnomalyDetectionPipeline

from ..detectors import write_detector


SIZES = [(48, 40), (30, 64), (7, 9), (100, 20), (33, 33)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_clip_folder, photograph):
    return write_detector(tmp_path_factory.mktemp("detector"), small_clip_folder, photograph)


@pytest.fixture(scope="module")
def detect(folder) -> AnomalyDetectionPipeline:
    return pipeline("image-anomaly-detection", model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def images(photograph) -> list[Image.Image]:
    return [photograph(seed, size=size) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def expected(detect, images) -> list[dict]:
    return [detect(image, class_name="nut") for image in images]


@pytest.fixture
def files(tmp_path, images):
    (tmp_path / "pictures/sub").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(tmp_path / "pictures" / ("sub" if number > 2 else ".") / f"{number}.png")
    return tmp_path / "pictures"
