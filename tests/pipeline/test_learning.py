"""One object learns, judges and is saved: no processor is handed around, and none is left behind."""

import json
from pathlib import Path

import pytest
from transformers import pipeline

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor

from ..detectors import normals_of
from .answers import assert_alike


@pytest.fixture
def detector(folder) -> AnomalyDetectionPipeline:
    return load(folder)


def load(folder: Path) -> AnomalyDetectionPipeline:
    return pipeline("image-anomaly-detection", model=str(folder), device="cpu")


def names_in(folder: Path) -> list[list[str]]:
    """The products that the config and the processor of a folder know."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [[values["name"] for values in config["products"]], AnoPLeProcessor.from_pretrained(folder).class_names]


def test_a_product_is_learnt_grows_is_calibrated_saved_and_forgotten(detector, photograph, tmp_path):
    gaskets = normals_of(photograph, 2, 8)
    enrolled = detector.enroll("gasket", gaskets[:3], max_false_alarm_rate=0.1)
    assert enrolled.image_count == 3 and enrolled.max_false_alarm_rate == 0.1
    assert [product.name for product in detector.products] == ["bolt", "nut", "gasket"]
    assert detector.products[2].threshold == enrolled and detector.products[2].image_vectors == [16] * 3
    more = detector.add_normals("gasket", gaskets[3:5])
    assert detector.products[2].image_vectors == [16] * 5 and more.max_false_alarm_rate == 0.1
    assert detector.products[2].threshold == more != enrolled
    held_out = detector.calibrate("gasket", gaskets[5:], max_false_alarm_rate=0.25)
    assert held_out.held_out == 3 and detector.products[2].image_vectors == [16] * 5
    queries = [*normals_of(photograph, 0), *gaskets, *normals_of(photograph, 1)]
    here = detector(queries)
    assert [result["class_name"] for result in here] == ["bolt"] * 3 + ["gasket"] * 8 + ["nut"] * 3

    detector.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert_alike(again(queries), here)
    assert again.products == detector.products and again.products[2].threshold == held_out

    again.forget("bolt")
    assert [product.name for product in again.products] == again.processor.class_names == ["nut", "gasket"]
    assert again(gaskets[0], class_name="gasket")["score"] == pytest.approx(here[3]["score"], abs=1e-6)
    with pytest.raises(ValueError, match=r"'bolt' is not known .* \['nut', 'gasket'\]"):
        again(gaskets[0], class_name="bolt")
    actions = [(entry["action"], entry["class_name"]) for entry in again.model.config.history[-4:]]
    assert actions == [("enroll", "gasket"), ("add_normals", "gasket"), ("calibrate", "gasket"), ("forget", "bolt")]


def test_what_products_says_is_no_window_into_the_detector(detector):
    detector.products[0].image_vectors.clear()
    detector.products[0].name = "screw"
    assert detector.products[0].name == "bolt" and detector.products[0].image_vectors == [16] * 3


@pytest.mark.parametrize("saved_by", ["detector", "model", "adapter", "adapter by model"])
def test_saving_over_what_was_there_leaves_nothing_of_it(detector, small_clip_folder, photograph, tmp_path, saved_by):
    """Names in the folder that the model no longer has would shift the ids of all others."""

    def save() -> None:
        if saved_by == "model":
            detector.model.save_pretrained(tmp_path)
        elif saved_by == "adapter by model":
            detector.model.save_adapter(tmp_path)
        else:
            detector.save_pretrained(tmp_path, adapter=saved_by == "adapter")

    nut, gaskets = normals_of(photograph, 1)[0], normals_of(photograph, 2)
    expected = detector(nut, class_name="nut")
    detector.enroll("gasket", gaskets)
    save()
    assert names_in(tmp_path) == [["bolt", "nut", "gasket"]] * 2
    detector.forget("bolt")
    save()
    assert names_in(tmp_path) == [["nut", "gasket"]] * 2
    if "adapter" in saved_by:
        again = AnomalyDetectionPipeline(AnoPLeModel.load_adapter(tmp_path, clip=str(small_clip_folder)))
    else:
        again = load(tmp_path)
    assert again.processor.class_names == again.model.config.class_names == ["nut", "gasket"]
    for each in (detector, again):
        assert_alike([each(nut, class_name="nut")], [expected])
        assert each(gaskets)[0]["class_name"] == "gasket"


def test_a_detector_is_saved_over_the_folder_that_it_came_from(folder, photograph, tmp_path):
    first = load(folder)
    first.save_pretrained(tmp_path)
    detector = load(tmp_path)
    detector.enroll("gasket", normals_of(photograph, 2))
    detector.forget("nut")
    detector.save_pretrained(tmp_path)
    assert names_in(tmp_path) == [["bolt", "gasket"]] * 2
    bolts = normals_of(photograph, 0)
    assert_alike(load(tmp_path)(bolts, class_name="bolt"), first(bolts, class_name="bolt"))
