"""Products come and go: whole or not at all, the others untouched, a log, and the same answers after saving."""

import json
import unicodedata
from datetime import datetime

import numpy as np
import pytest
import torch

from modeling_anople import AnoPLeModel, AnoPLeProcessor, ImageError
from modeling_anople.calibration_anople import POOLED
from modeling_anople.evaluation import evaluate
from modeling_anople.pipeline_anople import predict

from .contract import ANSWERS
from .detectors import fit, normals_of


PATCHES = 16
STATE = ("class_names", "memory_sizes", "memory_photographs", "calibration", "history")


@torch.no_grad()
def answers(model: AnoPLeModel, processor: AnoPLeProcessor, images: list, class_name: str) -> dict[str, torch.Tensor]:
    output = model(**processor(images, class_names=class_name))
    return {name: output[name] for name in (*ANSWERS, "memory_maps", "text_scores")}


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def state_of(model: AnoPLeModel) -> tuple[dict, dict]:
    return (
        {name: getattr(model.config, name) for name in STATE},
        {name: value.clone() for name, value in model.state_dict().items()},
    )


def assert_unchanged(model: AnoPLeModel, before: tuple[dict, dict]) -> None:
    config, tensors = state_of(model)
    assert config == before[0] and tensors.keys() == before[1].keys()
    for name, value in tensors.items():
        assert torch.equal(value, before[1][name]), name


CHOICES = [{}, {"fusion_scale": "normal", "image_map": "fused"}, {"coupling": "none"}, {"class_identity": "predicted"}]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_other_products_do_not_change_by_one_bit(make_detector, photograph, choice):
    model, processor = make_detector(**choice)
    queries = [photograph(40 + number) for number in range(3)]
    model.config.class_identity = "given"
    before = {name: answers(model, processor, queries, name) for name in ("bolt", "nut")}
    model.enroll("gasket", normals_of(photograph, 2), processor=processor)
    gasket = answers(model, processor, queries, "gasket")
    model.enroll("ring", normals_of(photograph, 3), processor=processor)
    model.add_normals("ring", normals_of(photograph, 3, 5)[3:], processor=processor)
    for name in ("bolt", "nut"):
        assert_equal(answers(model, processor, queries, name), before[name])
    model.forget("bolt", processor=processor)
    assert model.config.class_names == processor.class_names == ["nut", "gasket", "ring"]
    assert_equal(answers(model, processor, queries, "nut"), before["nut"])
    assert_equal(answers(model, processor, queries, "gasket"), gasket)
    with pytest.raises(ValueError, match="'bolt' is not known"):
        processor(queries, class_names="bolt")


def test_an_enrolled_product_is_as_if_it_had_been_there_from_the_start(make_model, make_processor, photograph):
    names, queries = ["bolt", "nut", "gasket"], [photograph(40 + number) for number in range(3)]
    whole, processor = make_model(class_names=names), make_processor(class_names=names)
    fit(whole, processor, photograph)
    later, its_processor = make_model(), make_processor()
    fit(later, its_processor, photograph)
    later.enroll("gasket", normals_of(photograph, 2), processor=its_processor)
    first, second = (answers(*pair, queries, "gasket") for pair in ((whole, processor), (later, its_processor)))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4)
    expected = whole.config.calibration["gasket"]
    assert later.config.calibration["gasket"].pop("estimate") == expected.pop("estimate") == "extrapolated"
    for name, value in later.config.calibration["gasket"].items():
        np.testing.assert_allclose(value, expected[name], rtol=0.02, err_msg=name)
    assert later.memory.sizes == whole.memory.sizes == later.config.memory_sizes


def test_a_saved_detector_with_new_products_answers_bit_for_bit_the_same(make_detector, photograph, tmp_path):
    model, processor = make_detector()
    model.enroll("gasket", normals_of(photograph, 2), processor=processor)
    model.add_normals("nut", normals_of(photograph, 1, 5)[3:], processor=processor, date="2026-11-24")
    model.forget("bolt", processor=processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    read, its_processor = AnoPLeModel.from_pretrained(tmp_path), AnoPLeProcessor.from_pretrained(tmp_path)
    queries = [photograph(40 + number) for number in range(3)]
    for name in ("nut", "gasket"):
        assert_equal(answers(model, processor, queries, name), answers(read, its_processor, queries, name))
    assert {name: getattr(read.config, name) for name in STATE} == {
        name: getattr(model.config, name) for name in STATE
    }
    read.enroll("bolt", normals_of(photograph, 0))  # its processor lies beside it
    assert read.config.class_names == ["nut", "gasket", "bolt"]


def test_tiles_and_masks_of_a_product_are_found_by_either_name(make_detector, photograph):
    model, processor = make_detector()
    composed, apart = (unicodedata.normalize(form, "Prüfling") for form in ("NFC", "NFD"))
    mask = np.zeros(photograph(3).size[::-1], dtype=bool)
    mask[: len(mask) // 2] = True
    model.enroll(composed, normals_of(photograph, 3), processor=processor, tiling="2,2", ignore_mask=mask)
    answers = [next(iter(predict(model, processor, [photograph(9)], class_names=name))) for name in (composed, apart)]
    assert answers[0].raw_score == answers[1].raw_score and answers[0].ignored is not None
    assert np.array_equal(answers[0].ignored, answers[1].ignored) and answers[1].class_name == composed
    with pytest.raises(ValueError, match="exists: give it more"):
        model.enroll(apart, normals_of(photograph, 5), processor=processor)


def test_a_detector_from_before_with_accents_apart_is_measured(make_detector, photograph, tmp_path):
    model, processor = make_detector()
    composed, apart = (unicodedata.normalize(form, "Prüfling") for form in ("NFC", "NFD"))
    model.config.class_names[0] = processor.class_names[0] = apart  # as earlier versions kept it
    (tmp_path / apart / "good").mkdir(parents=True)
    (tmp_path / apart / "broken").mkdir()
    photograph(0).save(tmp_path / apart / "good" / "0.png")
    photograph(1).save(tmp_path / apart / "broken" / "0.png")
    for classes in (None, [apart], [composed]):
        report = evaluate(model, processor, tmp_path, classes=classes, progress=False)
        assert list(report.classes) == [composed] and report.rows[0].raw_score is not None
    with pytest.raises(ValueError, match="exists: give it more"):
        model.enroll(composed, normals_of(photograph, 5), processor=processor)


def test_accents_may_be_composed_or_apart(make_detector, photograph):
    model, processor = make_detector()
    composed, apart = (unicodedata.normalize(form, "Prüfling") for form in ("NFC", "NFD"))
    model.enroll(apart, normals_of(photograph, 3), processor=processor)
    assert composed != apart and model.config.class_names[-1] == composed == processor.class_names[-1]
    model.add_normals(apart, normals_of(photograph, 7)[:1], processor=processor)
    model.calibrate(apart, max_false_alarm_rate=0.1)
    assert processor.class_id(apart) == processor.class_id(composed) == 2
    assert model.config.calibration[composed]["max_false_alarm_rate"] == 0.1
    last = model.config.history[-1]
    assert (
        last["max_false_alarm_rate"] == 0.1 and last["line"] == model.config.calibration[composed]["image_threshold"]
    )
    assert model.config.history[-2]["max_false_alarm_rate"] == 0.05
    model.forget(apart, processor=processor)
    assert composed not in model.config.class_names


def test_the_log_says_what_was_done_when_with_which_files(make_detector, photograph, tmp_path):
    model, processor = make_detector()
    for number, image in enumerate(normals_of(photograph, 2, 5)):
        image.save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    model.enroll("gasket", paths[:3], processor=processor, date="2026-11-24T10:00:00+00:00")
    model.add_normals("gasket", [paths[3], photograph(9)], processor=processor, date="2026-11-25")
    model.forget("gasket", processor=processor)
    first, second, third = json.loads(json.dumps(model.config.history))
    assert first["action"] == "enroll" and first["files"] == ["0.png", "1.png", "2.png"]
    assert first["date"] == "2026-11-24T10:00:00+00:00" and first["known_photographs"] == first["photographs"] == 3
    assert second["action"] == "add_normals" and second["files"] == ["3.png", None] and second["date"] == "2026-11-25"
    assert (second["photographs"], second["known_photographs"]) == (2, 5)
    assert third["action"] == "forget" and third["known_photographs"] == 0
    assert abs((datetime.now().astimezone() - datetime.fromisoformat(third["date"])).total_seconds()) < 60
    assert {entry["class_name"] for entry in (first, second, third)} == {"gasket"}


@pytest.mark.parametrize("kind", ["folder", "generator", "arrays", "one"])
def test_photographs_come_from_anywhere(make_detector, photograph, tmp_path, kind):
    model, processor = make_detector()
    images = normals_of(photograph, 2)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    source = {
        "folder": tmp_path,
        "generator": (image for image in images),
        "arrays": [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images],
        "one": str(tmp_path / "0.png"),
    }[kind]
    model.enroll("gasket", source, processor=processor)
    count = 1 if kind == "one" else 3
    assert model.memory.counts[2] == [PATCHES] * count
    assert len(model.config.calibration["gasket"]["image_scores"]) == (0 if kind == "one" else 3)


def test_what_cannot_be_done_changes_nothing(make_detector, photograph, tmp_path):
    model, processor = make_detector()
    good = normals_of(photograph, 2)
    before = state_of(model)
    for call, error, message in (
        (lambda: model.enroll("nut", good, processor=processor), ValueError, "'nut' exists: .* add_normals"),
        (lambda: model.enroll(" ", good, processor=processor), ValueError, "needs a name, got ' '"),
        (lambda: model.enroll("gasket", [], processor=processor), ValueError, "at least one is needed"),
        (
            lambda: model.enroll("gasket", [good[0], tmp_path / "gone.png", b"x"], processor=processor),
            ImageError,
            "2 of 3 photographs cannot be used, nothing was changed: .*gone.png: there is no such file",
        ),
        (lambda: model.enroll("gasket", [good[0], good[0].copy()], processor=processor), ValueError, "photograph 2"),
        (lambda: model.enroll("gasket" * 40, good, processor=processor), ValueError, "shorter name"),
        (lambda: model.enroll("gasket", good), ValueError, "cannot be loaded from .*give processor="),
        (lambda: model.enroll("gasket", 5, processor=processor), ValueError, "a int holds no photographs"),
        (lambda: model.add_normals("gasket", good, processor=processor), ValueError, r"knows \['bolt', 'nut'\]"),
        (lambda: model.add_normals("nut", [b"x"], processor=processor), ImageError, "nothing was changed"),
        (lambda: model.forget("gasket", processor=processor), ValueError, r"knows \['bolt', 'nut'\]"),
    ):
        model._own_processor = None
        with pytest.raises(error, match=message):
            call()
        assert_unchanged(model, before)
        assert processor.class_names == ["bolt", "nut"]


def test_a_failure_half_way_is_undone(make_detector, photograph, monkeypatch):
    model, processor = make_detector()
    before = state_of(model)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "calibrate_further", stop)
    for call in (model.enroll, model.add_normals):
        with pytest.raises(KeyboardInterrupt):
            call("gasket" if call == model.enroll else "nut", normals_of(photograph, 2), processor=processor)
        assert_unchanged(model, before)


def test_a_processor_of_another_detector_is_refused(make_detector, make_processor, photograph):
    model, _ = make_detector()
    with pytest.raises(ValueError, match=r"processor knows the products \['x'\], the model \['bolt', 'nut'\]"):
        model.enroll("gasket", normals_of(photograph, 2), processor=make_processor(class_names=["x"]))


def test_the_only_product_stays(make_model, make_processor, photograph):
    model, processor = make_model(class_names=["bolt"]), make_processor(class_names=["bolt"])
    fit(model, processor, photograph)
    with pytest.raises(ValueError, match="'bolt' is the detector's only product: enroll another"):
        model.forget("bolt", processor=processor)
    model.enroll("nut", normals_of(photograph, 1), processor=processor)
    model.forget("bolt", processor=processor)
    assert model.config.class_names == ["nut"]


def test_photographs_that_are_known_are_refused_until_they_are_forgotten(make_detector, photograph):
    model, processor = make_detector()
    images = normals_of(photograph, 2)
    model.enroll("gasket", images[:2], processor=processor)
    with pytest.raises(ValueError, match="known already: photograph 2"):
        model.add_normals("gasket", [images[2], images[1]], processor=processor)
    model.forget("gasket", processor=processor)
    model.enroll("gasket", images[:1], processor=processor)
    model.add_normals("gasket", [images[1]], processor=processor)
    assert model.memory.counts[2] == [PATCHES] * 2


def test_more_normals_join_the_line(make_detector, photograph):
    model, processor = make_detector()
    images = normals_of(photograph, 2, 6)
    model.enroll("gasket", images[:3], processor=processor, max_false_alarm_rate=0.1)
    first = model.config.calibration["gasket"]
    line = model.add_normals("gasket", images[3:], processor=processor)
    assert line.max_false_alarm_rate == 0.1 and len(line.image_scores) == line.photographs == 6
    remaining = list(line.image_scores)
    for score in first["image_scores"]:
        remaining.remove(score)
    pixels = processor(images)["pixel_values"]
    exact = model.calibrate(pixels, 2, max_false_alarm_rate=0.1)
    for score in remaining:  # the new ones were measured as a calibration with all of them measures them
        assert min(abs(score - other) for other in exact.image_scores) < 1e-5
    assert sum(line.image_scores) >= sum(exact.image_scores) - 1e-5  # the earlier ones against a smaller memory
    assert line.memory_scale >= exact.memory_scale - 1e-6


def test_what_a_lone_photograph_said_of_itself_is_dropped(make_detector, photograph):
    model, processor = make_detector()
    images = normals_of(photograph, 2)
    model.enroll("gasket", images[:1], processor=processor)
    alone = model.config.calibration["gasket"]
    line = model.add_normals("gasket", images[1:], processor=processor)
    assert alone["estimate"] == "copies" and len(alone["jittered_image_scores"]) == 4 and not alone["image_scores"]
    assert line.estimate == "extrapolated" and len(line.image_scores) == line.photographs == 2
    assert not line.jittered_image_scores and not set(alone["jittered_image_scores"]) & set(line.image_scores)


def test_pooled_products_share_the_line_of_those_that_are_there(make_detector, photograph):
    model, processor = make_detector(class_identity="pooled")
    model.enroll("gasket", normals_of(photograph, 2), processor=processor)
    model.add_normals("gasket", [photograph(70)], processor=processor)
    assert sorted(model.config.calibration) == [POOLED, "bolt", "gasket", "nut"]
    assert len(model.config.calibration[POOLED]["image_scores"]) == 3 * 3 + 1
    model.forget("bolt", processor=processor)
    assert sorted(model.config.calibration) == [POOLED, "gasket", "nut"]
    assert len(model.config.calibration[POOLED]["image_scores"]) == 3 * 2 + 1
    with torch.no_grad():
        assert model(**processor(normals_of(photograph, 1))).calibrated_scores.isfinite().all()


def test_a_product_that_was_never_fitted_takes_its_first_normals(make_model, make_processor, photograph):
    model, processor = make_model(), make_processor()
    line = model.add_normals("nut", normals_of(photograph, 1), processor=processor)
    assert len(line.image_scores) == 3 and model.memory.sizes == [0, 3 * PATCHES]


def test_a_detector_in_half_precision_takes_products_too(make_detector, photograph, tmp_path):
    make_detector()[0].save_pretrained(tmp_path)
    model, processor = AnoPLeModel.from_pretrained(tmp_path, dtype=torch.bfloat16), make_detector()[1]
    model.enroll("gasket", normals_of(photograph, 2), processor=processor)
    model.add_normals("gasket", [photograph(70)], processor=processor)
    assert model.memory.bank(2).dtype == model.class_embeddings.dtype == torch.bfloat16
    assert model.config.calibration["gasket"]["image_threshold"] > 0
    results = model.as_pipeline()(normals_of(photograph, 2), class_name="gasket")
    assert all(result["label"] in ("normal", "anomalous") for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_photographs_that_only_the_memory_knows_are_refused_too(make_detector, photograph, dtype):
    model, processor = make_detector()  # its photographs are remembered without digests, as older versions did
    model, images = model.to(dtype), normals_of(photograph, 1, 5)
    before = state_of(model)
    with pytest.raises(ValueError, match="known already: photograph 2, photograph 3. Leave them out"):
        model.add_normals("nut", [images[3], *images[:2]], processor=processor)
    assert_unchanged(model, before)
    model.add_normals("nut", images[3:], processor=processor)
    assert model.memory.counts[1] == [PATCHES] * 5


def test_products_without_photographs_come_first(make_model, make_processor, photograph):
    """They would be judged without a memory beside products that have one."""
    model, processor = make_model(), make_processor()
    model.add_normals("bolt", normals_of(photograph, 0), processor=processor)
    with pytest.raises(ValueError, match=r"no photographs of \['nut'\].* add_normals"):
        model.enroll("gasket", normals_of(photograph, 2), processor=processor)
    assert model.config.class_names == ["bolt", "nut"]
