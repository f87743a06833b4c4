"""A detector's folder makes the pipeline by itself, with the package and without it."""

import json
import os
import subprocess
import sys

import pytest
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel

from ..detectors import normals_of
from .answers import assert_alike


def test_the_task_is_registered_and_needs_no_trust_where_the_package_is(folder, images, expected):
    assert "image-anomaly-detection" in PIPELINE_REGISTRY.get_supported_tasks()
    for made in (
        pipeline("image-anomaly-detection", model=str(folder), device="cpu"),
        pipeline(model=str(folder), trust_remote_code=True, device="cpu"),
        AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(folder)),
    ):
        assert type(made) is AnomalyDetectionPipeline and type(made.model) is AnoPLeModel
        assert_alike(made(images, class_name="nut"), expected)


def test_a_saved_pipeline_is_the_whole_folder(folder, detect, images, expected, tmp_path):
    detect.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()}
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["custom_pipelines"] == {
        "image-anomaly-detection": {
            "impl": "pipeline_anople.AnomalyDetectionPipeline",
            "pt": ["AutoModel"],
            "type": "image",
        }
    }
    assert_alike(
        pipeline("image-anomaly-detection", model=str(tmp_path), device="cpu")(images, class_name="nut"), expected
    )


@pytest.mark.parametrize("saved_by", ["detector", "model"])
def test_a_pipeline_knows_what_was_enrolled(folder, photograph, tmp_path, saved_by):
    gaskets = normals_of(photograph, 2)
    detector = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(folder))
    detector.enroll("gasket", gaskets)
    here = detector(gaskets)
    saving = detector if saved_by == "detector" else detector.model  # which writes the detector's processor, too
    saving.save_pretrained(tmp_path)
    saved = pipeline("image-anomaly-detection", model=str(tmp_path), device="cpu")
    assert_alike(saved(gaskets), here)
    assert [result["class_name"] for result in here] == ["gasket"] * 3
    assert saved(photograph(0), class_name="gasket")["class_name"] == "gasket"


def test_another_processor_is_refused(detect):
    with pytest.raises(ValueError, match="needs the detector's processor, got CLIPTokenizer"):
        AnomalyDetectionPipeline(detect.model, processor=detect.processor.tokenizer)


CHILD = """
import json, sys
folder, pictures, answers, task = sys.argv[1:5]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_anople":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import pipeline
detect = pipeline(*([task] if task else []), model=folder, trust_remote_code=True, device="cpu")
results = list(detect(pictures, class_name="nut", batch_size=2))
detect.enroll("gasket", pictures)
detect.save_pretrained(answers + "/again")
detect.model.save_pretrained(answers + "/by model")
again, by_model = (
    pipeline(model=answers + name, trust_remote_code=True, device="cpu") for name in ("/again", "/by model")
)
assert "modeling_anople" not in sys.modules
json.dump({
    "scores": [result["score"] for result in results],
    "shapes": [result["anomaly_map"].shape for result in results],
    "paths": [result["path"] for result in results],
    "again": [result["score"] for result in again(pictures, class_name="nut", batch_size=2)],
    "by model": [result["score"] for result in by_model(pictures, class_name="nut", batch_size=2)],
    "products": again.model.config.class_names,
    "processors": [again.processor.class_names, by_model.processor.class_names],
}, open(answers + "/answers.json", "w"))
"""


@pytest.mark.parametrize("task", ["image-anomaly-detection", ""])
def test_a_fresh_process_without_the_package_needs_the_folder_alone(folder, files, detect, tmp_path, task):
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, str(folder), str(files), str(tmp_path), task],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = list(detect(files, class_name="nut", batch_size=2))
    answers = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    here = [result["score"] for result in results]
    # the last bits of a matrix product depend on where its operands lie in memory, which differs between processes
    for name in ("scores", "again", "by model"):
        assert answers[name] == pytest.approx(here, abs=1e-5), name
    assert [tuple(shape) for shape in answers["shapes"]] == [result["anomaly_map"].shape for result in results]
    assert answers["paths"] == [result["path"] for result in results]
    assert answers["products"] == ["bolt", "nut", "gasket"]
    assert answers["processors"] == [answers["products"]] * 2
