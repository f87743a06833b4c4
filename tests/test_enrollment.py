"""Products come and go: whole or not at all, the others untouched, a log, and the same answers after saving."""

import dataclasses
import io
import json
import time
import unicodedata
from copy import deepcopy
from datetime import datetime

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, ImageError, enrollment_anople
from modeling_anople.calibration_anople import ProductThreshold
from modeling_anople.enrollment_anople import digest_of, known_digests
from modeling_anople.evaluation import evaluate
from modeling_anople.fitting_anople import calibrate_product, remember, score_images
from modeling_anople.images_anople import PicturePrint, is_flat, print_of, same_pictures, taken_at
from modeling_anople.inference_anople import TiledImage, prepare_tiles
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime.loading import load_detector

from .contract import ANSWERS
from .detectors import detector_of, fit, normals_of, wholes


PATCHES = 16
STATE = ("products", "pooled_threshold", "history")

Answers = dict[str, torch.Tensor]


@pytest.fixture
def make(make_detector):
    """Make a detector that knows three images of each of bolt and nut; keywords are fields of its config."""

    def make(**config) -> AnomalyDetectionPipeline:
        return detector_of(*make_detector(**config))

    return make


@pytest.fixture
def detector(make) -> AnomalyDetectionPipeline:
    return make()


@torch.no_grad()
def answers(detector: AnomalyDetectionPipeline, images: list, class_name: str) -> Answers:
    output = detector.model(**detector.processor(images, class_names=class_name))
    return {name: output[name] for name in (*ANSWERS, "memory_maps", "text_scores")}


def assert_equal(first: Answers, second: Answers) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def threshold_of(detector: AnomalyDetectionPipeline, name: str) -> ProductThreshold:
    """The threshold that a detector judges by, which must be the one that stands in its config."""
    product = detector.model.products.named(name)
    [kept] = [each for each in detector.products if each.name == product.name]
    assert kept.threshold == product.record.threshold
    return kept.threshold


def image_count(detector: AnomalyDetectionPipeline, name: str) -> list[int]:
    """Vectors of each image of a product; the bank, its tensor and the config must agree."""
    product = detector.model.products.named(name)
    [kept] = [each for each in detector.products if each.name == product.name]
    assert kept.image_vectors == product.bank.image_vectors and product.bank.vectors.shape[1] == product.bank.size
    return kept.image_vectors


def state_of(model: AnoPLeModel) -> tuple[dict, dict]:
    return (
        {name: deepcopy(getattr(model.config, name)) for name in STATE},
        {name: value.clone() for name, value in model.state_dict().items()},
    )


def assert_unchanged(model: AnoPLeModel, before: tuple[dict, dict]) -> None:
    config, tensors = state_of(model)
    assert config == before[0] and tensors.keys() == before[1].keys()
    for name, value in tensors.items():
        assert torch.equal(value, before[1][name]), name
    model.products.write()
    assert model.config.products == before[0]["products"]  # the records are put back as well


def others(photograph, count: int) -> list:
    return [photograph(100 + number) for number in range(count)]


# --- New products ---


CHOICES = [{}, {"image_map": "fused"}, {"coupling": "none"}, {"class_identity": "predicted"}]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_other_products_do_not_change_by_one_bit(make, photograph, choice):
    detector = make(**choice)
    queries = [photograph(40 + number) for number in range(3)]
    detector.model.config.class_identity = "given"
    before = {name: answers(detector, queries, name) for name in ("bolt", "nut")}
    detector.enroll("gasket", normals_of(photograph, 2))
    gasket = answers(detector, queries, "gasket")
    detector.enroll("ring", normals_of(photograph, 3))
    detector.add_normals("ring", normals_of(photograph, 3, 5)[3:])
    for name in ("bolt", "nut"):
        assert_equal(answers(detector, queries, name), before[name])
    detector.forget("bolt")
    assert detector.model.config.class_names == detector.processor.class_names == ["nut", "gasket", "ring"]
    assert_equal(answers(detector, queries, "nut"), before["nut"])
    assert_equal(answers(detector, queries, "gasket"), gasket)
    with pytest.raises(ValueError, match="'bolt' is not known"):
        detector.processor(queries, class_names="bolt")


def test_an_enrolled_product_is_as_if_it_had_been_there_from_the_start(make, make_model, make_processor, photograph):
    names, queries = ["bolt", "nut", "gasket"], [photograph(40 + number) for number in range(3)]
    processor = make_processor(class_names=names)
    whole = detector_of(fit(make_model(class_names=names), processor, photograph), processor)
    later = make()
    later.enroll("gasket", normals_of(photograph, 2))
    first, second = (answers(each, queries, "gasket") for each in (whole, later))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4)
    found, expected = (dataclasses.asdict(threshold_of(each, "gasket")) for each in (later, whole))
    assert found.pop("estimate") == expected.pop("estimate") == "extrapolated"
    assert found.pop("defects") is expected.pop("defects") is None
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=0.02, err_msg=name)
    assert [image_count(later, name) for name in names] == [image_count(whole, name) for name in names]


def test_a_saved_detector_with_new_products_answers_bit_for_bit_the_same(detector, photograph, tmp_path):
    detector.enroll("gasket", normals_of(photograph, 2))
    detector.add_normals("nut", normals_of(photograph, 1, 5)[3:], date="2026-11-24")
    detector.forget("bolt")
    detector.save_pretrained(tmp_path)
    read = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path))  # its processor lies beside it
    assert read.processor.class_names == ["nut", "gasket"]
    queries = [photograph(40 + number) for number in range(3)]
    for name in ("nut", "gasket"):
        assert_equal(answers(detector, queries, name), answers(read, queries, name))
    for name in STATE:
        assert getattr(read.model.config, name) == getattr(detector.model.config, name)
    read.enroll("bolt", normals_of(photograph, 0))
    assert read.model.config.class_names == ["nut", "gasket", "bolt"]


def test_tiles_and_masks_of_a_product_are_found_by_either_name(detector, photograph):
    composed, apart = (unicodedata.normalize(form, "Prüfling") for form in ("NFC", "NFD"))
    mask = np.zeros(photograph(3).size[::-1], dtype=bool)
    mask[: len(mask) // 2] = True
    detector.enroll(composed, normals_of(photograph, 3), tiling="2,2", ignore_mask=mask)
    judged = [
        next(predict(detector.model, detector.processor, [photograph(9)], class_names=name))
        for name in (composed, apart)
    ]
    assert judged[0].raw_score == judged[1].raw_score and judged[0].ignored is not None
    assert np.array_equal(judged[0].ignored, judged[1].ignored) and judged[1].class_name == composed
    with pytest.raises(ValueError, match="exists: give it more"):
        detector.enroll(apart, normals_of(photograph, 5))


def test_a_detector_from_before_with_accents_apart_is_measured(detector, photograph, tmp_path):
    composed, apart = (unicodedata.normalize(form, "Prüfling") for form in ("NFC", "NFD"))
    detector.model.products[0].record.name = apart  # as earlier versions kept it
    detector.model.products.write()
    detector.processor.class_names[0] = apart
    (tmp_path / apart / "good").mkdir(parents=True)
    (tmp_path / apart / "broken").mkdir()
    photograph(0).save(tmp_path / apart / "good" / "0.png")
    photograph(1).save(tmp_path / apart / "broken" / "0.png")
    for classes in (None, [apart], [composed]):
        report = evaluate(detector.model, detector.processor, tmp_path, classes=classes, progress=False)
        assert list(report.classes) == [composed] and report.rows[0].raw_score is not None
    with pytest.raises(ValueError, match="exists: give it more"):
        detector.enroll(composed, normals_of(photograph, 5))


def test_accents_may_be_composed_or_apart(detector, photograph):
    composed, apart = (unicodedata.normalize(form, "Prüfling") for form in ("NFC", "NFD"))
    detector.enroll(apart, normals_of(photograph, 3))
    config, processor = detector.model.config, detector.processor
    assert composed != apart and config.class_names[-1] == composed == processor.class_names[-1]
    detector.add_normals(apart, normals_of(photograph, 7)[:1])
    detector.calibrate(apart, max_false_alarm_rate=0.1)
    assert processor.class_id(apart) == processor.class_id(composed) == 2
    threshold = threshold_of(detector, composed)
    assert threshold.max_false_alarm_rate == 0.1
    last = config.history[-1]
    assert last["max_false_alarm_rate"] == 0.1 and last["line"] == threshold.image_threshold
    assert config.history[-2]["max_false_alarm_rate"] == 0.05
    detector.forget(apart)
    assert composed not in config.class_names


def test_the_log_says_what_was_done_when_with_which_files(detector, photograph, tmp_path):
    for number, image in enumerate(normals_of(photograph, 2, 5)):
        image.save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    detector.enroll("gasket", paths[:3], date="2026-11-24T10:00:00+00:00")
    detector.add_normals("gasket", [paths[3], photograph(9)], date="2026-11-25")
    detector.forget("gasket")
    first, second, third = json.loads(json.dumps(detector.model.config.history))
    assert first["action"] == "enroll" and first["files"] == ["0.png", "1.png", "2.png"]
    assert first["date"] == "2026-11-24T10:00:00+00:00" and first["known_photographs"] == first["photographs"] == 3
    assert second["action"] == "add_normals" and second["files"] == ["3.png", None] and second["date"] == "2026-11-25"
    assert (second["photographs"], second["known_photographs"]) == (2, 5)
    assert third["action"] == "forget" and third["known_photographs"] == 0
    assert abs((datetime.now().astimezone() - datetime.fromisoformat(third["date"])).total_seconds()) < 60
    assert {entry["class_name"] for entry in (first, second, third)} == {"gasket"}


def test_a_renamed_product_answers_as_before_and_keeps_its_past(detector, photograph, tmp_path):
    for number, image in enumerate(normals_of(photograph, 2, 5)):
        image.save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    detector.enroll("gasket", paths[:3])
    query = photograph(7)
    before = detector([query, query], class_names=["gasket", "nut"], explain=True)
    tensors = {name: value.clone() for name, value in detector.model.state_dict().items()}
    detector.rename("gasket", "Dichtung", date="2026-11-30")
    after = detector([query, query], class_names=["Dichtung", "nut"], explain=True)
    assert all(torch.equal(value, tensors[name]) for name, value in detector.model.state_dict().items())
    for one, other, name in zip(before, after, ("Dichtung", "nut"), strict=True):
        assert one["score"] == other["score"] and np.array_equal(one["anomaly_map"], other["anomaly_map"])
        assert other["class_name"] == name
    assert after[0]["explanation"].nearest_photograph == before[0]["explanation"].nearest_photograph == "2.png"
    assert detector.processor.class_names == detector.model.config.class_names == ["bolt", "nut", "Dichtung"]
    last = detector.model.config.history[-1]
    assert (last["action"], last["former_name"], last["class_name"]) == ("rename", "gasket", "Dichtung")
    assert (last["date"], last["photographs"], last["known_photographs"]) == ("2026-11-30", 0, 3)
    with pytest.raises(ValueError, match="known already: .*0.png"):
        detector.add_normals("Dichtung", paths[:1])
    detector.enroll("gasket", paths[3:])  # the name is free, and its past is not the new product's
    assert known_digests(detector.model.config.history, "gasket") == [
        digest_of(Image.open(path)) for path in paths[3:]
    ]
    detector.rename("nut", "x")  # names change places
    detector.rename("gasket", "nut")
    assert len(known_digests(detector.model.config.history, "nut")) == 2
    assert known_digests(detector.model.config.history, "x") == []
    detector.save_pretrained(tmp_path / "d")
    assert detector_of(*load_detector(str(tmp_path / "d")))(query, class_name="Dichtung")["score"] == after[0]["score"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_replaced_product_is_the_same_as_one_forgotten_and_enrolled_and_keeps_its_settings(make, photograph, count):
    replaced, anew = make(), make()
    images = normals_of(photograph, 2)
    mask = np.eye(40, 48, dtype=bool)
    for detector in (replaced, anew):
        if count == 1:
            detector.forget("nut")
        detector.calibrate("bolt", max_false_alarm_rate=0.1)
        detector.set_ignore_mask("bolt", mask)
    replaced.enroll("bolt", images, replace=True)
    if count == 2:
        anew.forget("bolt")
        anew.enroll("bolt", images, ignore_mask=mask, max_false_alarm_rate=0.1)
        assert threshold_of(replaced, "bolt") == threshold_of(anew, "bolt")
        for name, value in anew.model.state_dict().items():
            assert torch.equal(value, replaced.model.state_dict()[name]), name
    product = replaced.model.products.named("bolt")
    assert (product.unpacked_mask() == mask).all() and threshold_of(replaced, "bolt").max_false_alarm_rate == 0.1
    assert replaced.model.config.class_names == replaced.processor.class_names == ["nut", "bolt"][-count:]
    assert [entry["action"] for entry in replaced.model.config.history[-2:]] == ["forget", "enroll"]
    assert len(known_digests(replaced.model.config.history, "bolt")) == 3
    with pytest.raises(ValueError, match="'gasket' is not known"):
        replaced.enroll("gasket", images, replace=True)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("nut", "'nut' exists"),
        ("bolt", "'bolt' is called so already: give another name"),
        (" ", "needs a name"),
        ("a/b", "is a path"),
        ("пut", "mixes letters that look alike"),
        ("unknown product", "take another name"),
    ],
)
def test_a_name_that_no_product_can_have_is_refused_when_one_is_renamed(detector, new, message):
    before = state_of(detector.model)
    with pytest.raises(ValueError, match=message):
        detector.rename("bolt", new)
    assert_unchanged(detector.model, before)
    with pytest.raises(ValueError, match=r"knows \['bolt', 'nut'\]"):
        detector.rename("gasket", "seal")
    detector.rename("bolt", "Bolt")  # which looks like its own name alone


@pytest.mark.parametrize("kind", ["folder", "generator", "arrays", "one"])
def test_images_come_from_anywhere(detector, photograph, tmp_path, kind):
    images = normals_of(photograph, 2)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    source = {
        "folder": tmp_path,
        "generator": (image for image in images),
        "arrays": [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images],
        "one": str(tmp_path / "0.png"),
    }[kind]
    detector.enroll("gasket", source)
    count = 1 if kind == "one" else 3
    assert image_count(detector, "gasket") == [PATCHES] * count
    assert len(threshold_of(detector, "gasket").image_scores) == (0 if kind == "one" else 3)


def test_what_cannot_be_done_changes_nothing(detector, photograph, tmp_path):
    good = normals_of(photograph, 2)
    before = state_of(detector.model)
    for call, error, message in (
        (lambda: detector.enroll("nut", good), ValueError, "'nut' exists: .* add_normals"),
        (lambda: detector.enroll(" ", good), ValueError, "needs a name, got ' '"),
        (lambda: detector.enroll("gasket", []), ValueError, "at least one is needed"),
        (
            lambda: detector.enroll("gasket", [good[0], tmp_path / "gone.png", b"x"]),
            ImageError,
            "2 of 3 images cannot be used, nothing was changed: .*gone.png: there is no such file",
        ),
        (lambda: detector.enroll("gasket", [good[0], good[0].copy()]), ValueError, "image 2"),
        (lambda: detector.enroll("gasket" * 40, good), ValueError, "shorter name"),
        (lambda: detector.enroll("gasket", 5), ValueError, "a int holds no photographs"),
        (lambda: detector.add_normals("gasket", good), ValueError, r"knows \['bolt', 'nut'\]"),
        (lambda: detector.add_normals("nut", [b"x"]), ImageError, "nothing was changed"),
        (lambda: detector.forget("gasket"), ValueError, r"knows \['bolt', 'nut'\]"),
    ):
        with pytest.raises(error, match=message):
            call()
        assert_unchanged(detector.model, before)
        assert detector.processor.class_names == ["bolt", "nut"]


@pytest.mark.parametrize("identity", ["given", "pooled"])
def test_a_failure_half_way_is_undone(make, photograph, monkeypatch, identity):
    detector = make(class_identity=identity)
    detector.set_ignore_mask("bolt", np.eye(40, 48, dtype=bool))
    before = state_of(detector.model)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_anople.enrollment_anople.calibrate_product", stop)
    monkeypatch.setattr("modeling_anople.enrollment_anople.recalibrate_product", stop)
    images = normals_of(photograph, 2)
    mask = np.eye(40, 48, dtype=bool)
    for call in (
        lambda: detector.enroll("gasket", images, ignore_mask=mask),
        lambda: detector.add_normals("nut", images),
        lambda: detector.calibrate("nut", images),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()
        assert_unchanged(detector.model, before)
    monkeypatch.setattr(detector.model.products, "log", stop)
    for call in (lambda: detector.forget("bolt"), lambda: detector.set_ignore_mask("bolt", None)):
        with pytest.raises(KeyboardInterrupt):
            call()
        assert_unchanged(detector.model, before)
    assert detector.processor.class_names == ["bolt", "nut"]


def test_the_only_product_stays(make_model, make_processor, photograph):
    processor = make_processor(class_names=["bolt"])
    detector = detector_of(fit(make_model(class_names=["bolt"]), processor, photograph), processor)
    with pytest.raises(ValueError, match="'bolt' is the detector's only product: enroll another"):
        detector.forget("bolt")
    detector.enroll("nut", normals_of(photograph, 1))
    detector.forget("bolt")
    assert detector.model.config.class_names == ["nut"]


def test_pooled_products_share_the_threshold_of_those_that_are_there(make, photograph):
    detector = make(class_identity="pooled")
    config = detector.model.config
    detector.enroll("gasket", normals_of(photograph, 2))
    detector.add_normals("gasket", [photograph(70)])
    assert [each.name for each in detector.products if each.threshold] == ["bolt", "nut", "gasket"]
    assert len(config.pooled_threshold["image_scores"]) == 3 * 3 + 1
    detector.forget("bolt")
    assert [each.name for each in detector.products if each.threshold] == ["nut", "gasket"]
    assert len(config.pooled_threshold["image_scores"]) == 3 * 2 + 1
    with torch.no_grad():
        assert detector.model(**detector.processor(normals_of(photograph, 1))).calibrated_scores.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_detector_in_half_precision_takes_products_too(detector, photograph, tmp_path, dtype):
    detector.save_pretrained(tmp_path)
    half = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path, dtype=dtype))
    half.enroll("gasket", normals_of(photograph, 2))
    half.add_normals("gasket", [photograph(70)])
    product = half.model.products.named("gasket")
    assert product.bank.vectors.dtype == product.text_embeddings.dtype == product.prototype.dtype == dtype
    assert product.prompt_ids.dtype == torch.long and product.bank.boxes.dtype == torch.int32
    assert threshold_of(half, "gasket").image_threshold > 0
    results = half(normals_of(photograph, 2), class_name="gasket")
    assert all(result["label"] in ("normal", "anomalous") for result in results)


def test_products_without_images_come_first(make_model, make_processor, photograph):
    """They would be judged without a memory beside products that have one."""
    detector = detector_of(make_model(), make_processor())
    detector.add_normals("bolt", normals_of(photograph, 0))
    with pytest.raises(ValueError, match=r"no images of \['nut'\].* add_normals"):
        detector.enroll("gasket", normals_of(photograph, 2))
    assert detector.model.config.class_names == ["bolt", "nut"]


# --- More normals ---


def test_images_that_are_known_are_refused_until_they_are_forgotten(detector, photograph):
    images = normals_of(photograph, 2)
    detector.enroll("gasket", images[:2])
    with pytest.raises(ValueError, match="known already: image 2"):
        detector.add_normals("gasket", [images[2], images[1]])
    detector.forget("gasket")
    detector.enroll("gasket", images[:1])
    detector.add_normals("gasket", [images[1]])
    assert image_count(detector, "gasket") == [PATCHES] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_that_only_the_memory_knows_are_refused_too(detector, photograph, dtype):
    model = detector.model.to(dtype)  # its images are remembered without digests, as older versions did
    images = normals_of(photograph, 1, 5)
    before = state_of(model)
    with pytest.raises(ValueError, match="known already: image 2, image 3. Leave them out"):
        detector.add_normals("nut", [images[3], *images[:2]])
    assert_unchanged(model, before)
    detector.add_normals("nut", images[3:])
    assert image_count(detector, "nut") == [PATCHES] * 5


def test_more_normals_join_the_threshold(detector, photograph):
    images = normals_of(photograph, 2, 6)
    first = detector.enroll("gasket", images[:3], max_false_alarm_rate=0.1)
    threshold = detector.add_normals("gasket", images[3:])
    assert threshold.max_false_alarm_rate == 0.1 and len(threshold.image_scores) == threshold.image_count == 6
    remaining = list(threshold.image_scores)
    for score in first.image_scores:
        remaining.remove(score)
    everything = wholes(images, detector.processor)
    exact = calibrate_product(detector.model, everything, 2, max_false_alarm_rate=0.1)
    for score in remaining:  # the new ones were measured as a calibration with all of them measures them
        assert min(abs(score - other) for other in exact.image_scores) < 1e-5
    assert sum(threshold.image_scores) >= sum(exact.image_scores) - 1e-5  # the earlier ones against a smaller memory


def test_what_a_lone_image_said_of_itself_is_dropped(detector, photograph):
    images = normals_of(photograph, 2)
    alone = detector.enroll("gasket", images[:1])
    threshold = detector.add_normals("gasket", images[1:])
    assert alone.estimate == "copies" and len(alone.jittered_image_scores) == 4 and not alone.image_scores
    assert threshold.estimate == "extrapolated" and len(threshold.image_scores) == threshold.image_count == 2
    assert not threshold.jittered_image_scores and not set(alone.jittered_image_scores) & set(threshold.image_scores)


def test_a_product_that_was_never_fitted_takes_its_first_normals(make_model, make_processor, photograph):
    detector = detector_of(make_model(), make_processor())
    threshold = detector.add_normals("nut", normals_of(photograph, 1))
    assert len(threshold.image_scores) == 3
    assert image_count(detector, "bolt") == [] and image_count(detector, "nut") == [PATCHES] * 3


# --- Thresholds, by images that are not remembered or for another rate of false alarms ---


@torch.no_grad()
def test_images_held_out_move_the_threshold_and_nothing_else(detector, photograph):
    before, bolt = threshold_of(detector, "nut"), threshold_of(detector, "bolt")
    tensors = state_of(detector.model)[1]
    images = others(photograph, 3)
    threshold = detector.calibrate("nut", images, date="2026-11-24")
    scores = detector.model(**detector.processor(images, class_names="nut")).image_scores.tolist()
    assert threshold.image_scores == pytest.approx(before.image_scores + scores, rel=1e-5)
    assert (threshold.image_count, threshold.held_out, threshold.estimate) == (6, 3, "extrapolated")
    assert threshold.attainable_rate == pytest.approx(1 / 7)
    assert threshold.novelty_scores == before.novelty_scores
    assert threshold.novelty_thresholds == before.novelty_thresholds
    assert threshold == threshold_of(detector, "nut") and threshold_of(detector, "bolt") == bolt
    for name, value in state_of(detector.model)[1].items():
        assert name.endswith(".prints") or torch.equal(value, tensors[name]), name
    assert image_count(detector, "nut") == [PATCHES] * 3
    entry = detector.model.config.history[-1]
    assert entry["action"] == "calibrate" and entry["class_name"] == "nut" and entry["date"] == "2026-11-24"
    assert (entry["photographs"], entry["known_photographs"], len(entry["digests"])) == (3, 3, 3)


def test_enough_of_them_set_the_threshold_by_rank_alone(detector, photograph):
    detector.calibrate("nut", others(photograph, 2))
    threshold = detector.calibrate("nut", others(photograph, 9)[2:], max_false_alarm_rate=0.1)
    assert (threshold.image_count, threshold.held_out, threshold.estimate) == (9, 9, "rank")
    assert threshold.image_threshold == max(threshold.image_scores) and threshold.max_false_alarm_rate == 0.1
    # in the batches in which the threshold was set: in others, the last digits of a score may round otherwise
    batches = [others(photograph, 2), others(photograph, 9)[2:]]
    results = [result for batch in batches for result in detector(batch, class_name="nut", batch_size=9)]
    assert all(result["label"] == "normal" for result in results)
    ranks = sorted(result["p_value"] for result in results)
    assert ranks == pytest.approx([number / 10 for number in range(2, 11)]) and ranks[-1] == 1


def test_given_all_that_is_remembered_a_threshold_is_exact_again(make, photograph):
    images, at_once, later = normals_of(photograph, 2, 5), make(), make()
    exact = at_once.enroll("gasket", images)
    later.enroll("gasket", images[:2])
    rough = later.add_normals("gasket", images[2:])
    tensors = state_of(later.model)[1]
    threshold = later.calibrate("gasket", images[::-1])  # in any order
    assert threshold.image_scores == pytest.approx(exact.image_scores, abs=1e-5) != rough.image_scores
    assert threshold.image_threshold == pytest.approx(exact.image_threshold, rel=1e-3)
    assert (threshold.image_count, threshold.held_out) == (5, 0)
    for name, value in state_of(later.model)[1].items():
        assert torch.equal(value, tensors[name]), name
    entry = later.model.config.history[-1]
    assert entry["action"] == "calibrate" and not entry["digests"]
    assert later.calibrate("gasket", others(photograph, 2)).held_out == 2  # whose names the log does not count twice


def test_only_the_rate_may_change(detector):
    before = threshold_of(detector, "nut")
    strict = detector.calibrate("nut", max_false_alarm_rate=0.01)
    assert strict.image_threshold > before.image_threshold and strict.map_threshold > before.map_threshold
    assert strict.image_scores == before.image_scores
    assert detector.calibrate("nut", max_false_alarm_rate=before.max_false_alarm_rate) == before


def test_a_lone_image_is_joined_by_others(detector, photograph):
    detector.enroll("gasket", [photograph(70)])
    assert detector.calibrate("gasket", max_false_alarm_rate=0.02).estimate == "copies"
    threshold = detector.calibrate("gasket", others(photograph, 2))
    assert (threshold.image_count, threshold.estimate) == (2, "extrapolated")
    assert not threshold.jittered_image_scores


def test_new_normals_join_before_those_held_out(detector, photograph):
    held_out = detector.calibrate("nut", others(photograph, 2))
    threshold = detector.add_normals("nut", [photograph(70)])
    assert threshold.held_out == 2 and threshold.image_count == 6
    assert threshold.image_scores[:3] == held_out.image_scores[:3]
    assert threshold.image_scores[4:] == held_out.image_scores[3:]


def test_scores_of_earlier_versions_are_dropped_because_they_count_copies(detector, photograph):
    record = detector.model.products.named("nut").record
    # what they did not keep has the value that it is read with
    kept = {"image_count": 0, "held_out": 0, "estimate": "", "attainable_rate": 1.0}
    kept |= {"jittered_image_scores": [], "jittered_map_maxima": []}
    record.threshold = dataclasses.replace(record.threshold, **kept)
    [result] = detector([photograph(70)], class_name="nut")
    assert result["label"] and result["p_value"] is None
    fitted = detector.calibrate("nut", others(photograph, 2), max_false_alarm_rate=0.4)  # two support no low rate
    assert fitted.image_count == 2


def test_a_calibration_that_cannot_be_changes_nothing(detector, photograph, make_model, make_processor):
    detector.enroll("gasket", normals_of(photograph, 2))
    detector.calibrate("gasket", others(photograph, 2))
    before = state_of(detector.model)
    for images, rate, words in (
        (None, None, "Nothing would change"),
        (others(photograph, 1), None, "known already: image 1"),
        (normals_of(photograph, 2)[:1], None, "known already: image 1"),
        ([], None, "No good images"),
        (None, 0.7, "at least 0.0001 and below 0.5, got 0.7"),
        (None, 1e-300, "below 0.5, got 1e-300"),
    ):
        with pytest.raises(ValueError, match=words):
            detector.calibrate("gasket", images, max_false_alarm_rate=rate)
    with pytest.raises(ValueError, match="'ring' is not known"):
        detector.calibrate("ring", max_false_alarm_rate=0.1)
    assert_unchanged(detector.model, before)
    unfitted = detector_of(make_model(), make_processor())
    with pytest.raises(ValueError, match="'bolt' has no threshold yet: give it good images with add_normals"):
        unfitted.calibrate("bolt", max_false_alarm_rate=0.1)


def test_what_is_remembered_twice_calibrates_twice(detector, photograph, caplog):
    images = [photograph(seed, size=(384, 320)) for seed in range(3)]
    images.append(Image.open(io.BytesIO(as_file(images[0], "JPEG", quality=75))).convert("RGB"))
    model, processor = detector.model, detector.processor
    detector.enroll("screw", images[:3], max_false_alarm_rate=0.4)
    # an earlier version remembered the twin too
    class_id = model.products.id_of("screw")
    remember(model, wholes(images[3:], processor), class_id)
    model.products.log("add_normals", "screw", files=[None], digests=[enrollment_anople.digest_of(images[3])])
    threshold = detector.calibrate("screw", images, max_false_alarm_rate=0.4)
    assert (threshold.image_count, threshold.held_out) == (4, 0) and "once more" not in caplog.text
    new = [photograph(seed, size=(384, 320)) for seed in (7, 8)]
    again = Image.open(io.BytesIO(as_file(new[0], "JPEG", quality=75))).convert("RGB")
    assert detector.calibrate("screw", [*new, again]).held_out == 2
    assert "1 of 3 good photographs are another one once more" in caplog.text


def test_a_saved_threshold_keeps_its_statement(detector, photograph, tmp_path):
    detector.calibrate("nut", others(photograph, 2))
    detector.save_pretrained(tmp_path)
    read = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path))  # its processor lies beside it
    assert read.products == detector.products
    threshold = read.calibrate("nut", others(photograph, 3)[2:])
    assert (threshold.image_count, threshold.held_out) == (6, 3)


# --- Where the verbs are ---


def test_the_detector_finds_its_own_processor_or_says_what_is_missing(make_detector, photograph, tmp_path):
    model, processor = make_detector()
    with pytest.raises(ValueError, match="cannot be loaded from .*give processor="):
        AnomalyDetectionPipeline(model)
    detector_of(model, processor).save_pretrained(tmp_path)
    processor.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        detector_of(model, processor).enroll("gasket", normals_of(photograph, 2))
    assert AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path)).processor.class_names == ["bolt", "nut"]


def test_a_processor_of_another_detector_is_refused(make_detector, make_processor):
    model, _ = make_detector()
    with pytest.raises(ValueError, match=r"processor knows the products \['x'\], the model \['bolt', 'nut'\]"):
        detector_of(model, make_processor(class_names=["x"]))


@pytest.mark.parametrize(
    ("former", "words"),
    [
        *(
            (verb, f"{verb} is a verb of the detector")
            for verb in ("enroll", "add_normals", "forget", "set_ignore_mask")
        ),
        ("refine_line", "calibrate is a verb of the detector"),
        ("as_pipeline", "The model is a part of the detector"),
    ],
)
def test_the_model_says_where_its_former_verbs_are(make_model, former, words):
    model = make_model()
    assert not hasattr(model, former)
    with pytest.raises(AttributeError, match=f'{words}.*pipeline\\("image-anomaly-detection"'):
        getattr(model, former)


# --- White of photographs with more than 8 bits ---


def twelve_bits(image: Image.Image) -> np.ndarray:
    return (np.asarray(image.convert("L")).astype(np.uint16) * 16).astype(np.uint16)


def test_a_white_value_given_with_a_product_is_kept(tmp_path, detector, photograph, caplog):
    images = normals_of(photograph, 2, 4)
    detector.enroll("grey", [image.convert("L") for image in images[:3]])
    detector.enroll("deep", [twelve_bits(image) for image in images[:3]], white_value=4080)
    assert (
        "all photographs of more than 8 bits are read by the white value 4080, those of bolt, nut, grey" in caplog.text
    )
    assert detector.model.products.named("deep").bank.vectors.equal(detector.model.products.named("grey").bank.vectors)
    detector.save_pretrained(tmp_path / "saved")
    again = pipeline("image-anomaly-detection", model=str(tmp_path / "saved"))
    assert again.processor.white_value == 4080
    new = [again(image, class_name="grey")["score"] for image in (images[3].convert("L"), twelve_bits(images[3]))]
    assert new[0] == new[1]
    with pytest.raises(ValueError, match="reads photographs of more than 8 bits by the white value 4080, and cannot"):
        detector.add_normals("deep", [twelve_bits(images[3])], white_value=1023)
    with pytest.raises(ValueError, match="white_value must lie within"):
        detector.add_normals("deep", [twelve_bits(images[3])], white_value=float("nan"))
    detector.add_normals("deep", [twelve_bits(images[3])], white_value=4080)


def test_a_white_value_is_dropped_with_the_product_that_could_not_be_learned(detector, photograph):
    with pytest.raises(ImageError, match="there is no such file"):
        detector.enroll("deep", [twelve_bits(photograph(0)), "nowhere.png"], white_value=4080)
    assert detector.processor.white_value is None


# --- Good photographs that are the same, or show nothing ---


def as_file(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_one_picture_in_several_formats_counts_once(detector, photograph, caplog):
    images = [photograph(seed, size=(384, 320)) for seed in range(3)]
    again = [as_file(images[0], "JPEG", quality=75), as_file(images[0], "WEBP", quality=75), as_file(images[2], "PNG")]
    with pytest.raises(ValueError, match="These images are given twice, or known already: image 6"):
        detector.enroll("screw", [*images, *again])
    detector.enroll("screw", [*images, *again[:2]])
    assert detector.model.products.named("screw").image_count == 3
    assert (
        "2 of 5 good photographs are another one once more, and count once: image 4 as image 1, image 5 as"
        in caplog.text
    )
    apart = detector.model.products.named("screw").bank.vectors
    detector.enroll("rivet", images)
    assert detector.model.products.named("rivet").bank.vectors.equal(apart)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 90}), ("WEBP", {"quality": 80})])
def test_a_picture_that_a_product_knows_is_known_in_another_format_too(detector, photograph, tmp_path, kind, options):
    images = [photograph(seed, size=(384, 320)) for seed in range(6)]
    again = [as_file(image, kind, **options) for image in images]
    detector.enroll("screw", images[:3])
    detector.calibrate("screw", images[3:5])
    product = detector.model.products.named("screw")
    product.bank.reduce(4)  # of a memory at its limit, no distance tells
    detector.save_pretrained(tmp_path / "saved")
    detector = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path / "saved"), device="cpu")
    before = detector.model.config.to_dict()
    for verb in (detector.add_normals, detector.calibrate):
        for known in (0, 4):  # remembered, and held out
            with pytest.raises(ValueError, match="These images are given twice, or known already: image 2. Leave"):
                verb("screw", [images[5], again[known]])
    assert detector.model.config.to_dict() == before
    detector.add_normals("screw", again[5:])
    with pytest.raises(ValueError, match="known already: image 1"):
        detector.add_normals("screw", images[5:])
    detector.forget("screw")
    detector.enroll("screw", again)


def grained(seed: int, side: int = 1024, light: float = 128) -> Image.Image:
    """A fine-grained surface: no two places have the same pixels, and all of them the same mean."""
    noise = np.random.default_rng(seed).normal(light, 20, (side, side)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noise).convert("RGB")


@pytest.mark.parametrize(("kind", "quality"), [("PNG", 100), ("JPEG", 75), ("WEBP", 75)])
def test_fine_grain_tells_photographs_apart_and_finds_those_of_another_format(kind, quality):
    images = [grained(seed) for seed in range(3)]
    again = Image.open(io.BytesIO(as_file(images[1], kind, quality=quality))).convert("RGB")
    prints = [print_of(image) for image in (*images, again)]
    assert np.abs(prints[0].small.astype(int) - prints[1].small).mean() < 1  # which a small picture does not see
    assert same_pictures(prints) == {3: 1}
    kept = [PicturePrint.unpacked(each.packed()) for each in prints]
    assert same_pictures(kept, known=3) == {3: 1} and kept[0].size == (1024, 1024)


def test_photographs_that_change_little_by_little_are_compared_with_those_kept(photograph):
    image = np.asarray(photograph(0, size=(96, 80))).clip(0, 200)
    steps = [Image.fromarray((image + np.uint8(number)).astype(np.uint8)) for number in range(4)]
    assert same_pictures([print_of(step) for step in steps]) == {1: 0, 3: 2}


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_lens_cap_is_no_good_photograph(detector, photograph, value):
    caps = [Image.new("RGB", (48, 40), (value,) * 3) for _ in range(3)]
    for number, cap in enumerate(caps):
        cap.putpixel((number, 0), (255 - value,) * 3)  # a pixel that is broken
    with pytest.raises(ImageError, match="3 of 4 images cannot be used, .* is of one color, as with the lens cap on"):
        detector.enroll("screw", [photograph(0), *caps])


@pytest.mark.parametrize(("ground", "part"), [(255, 60), (0, 200)])
def test_a_small_part_on_a_plain_ground_is_no_lens_cap(ground, part):
    image = Image.new("RGB", (1000, 1000), (ground,) * 3)
    image.paste((part,) * 3, (500, 500, 520, 520))  # 0.04 percent
    assert not is_flat(image)
    dark = np.random.default_rng(0).normal(4, 1.5, (1000, 1000)).clip(0, 255).astype(np.uint8)
    dark[::500, ::250] = 255  # 8 of a million pixels are hot
    assert is_flat(Image.fromarray(dark).convert("RGB"))


def test_a_date_that_cannot_be_read_refuses_no_photograph(tmp_path, detector, photograph, monkeypatch):
    images = normals_of(photograph, 2)
    files = [
        as_file(image, "JPEG", quality=95, exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff") for image in images
    ]
    detector.enroll("gasket", files)
    monkeypatch.setattr(Image.Exif, "get_ifd", broken)
    assert taken_at(files[0]) is None
    detector.enroll("screw", files)

    class Stream(io.RawIOBase):
        """Is read once."""

        def __init__(self, data: bytes):
            self.file, self.reads = io.BytesIO(data), 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            self.reads += 1
            return self.file.readinto(buffer)

    monkeypatch.undo()
    streams = [Stream(file) for file in files]
    detector.enroll("rivet", streams)
    assert image_count(detector, "rivet") == image_count(detector, "gasket")


def broken(*_) -> None:
    raise OSError("damaged")


def test_good_photographs_of_one_hour_get_a_hint(tmp_path, detector, photograph, caplog):
    for number, image in enumerate(normals_of(photograph, 2, 6)):
        exif = Image.Exif()
        exif[306] = f"2024:03:0{1 + number // 3} 10:{number}0:00"
        image.save(tmp_path / f"{number}.jpg", exif=exif, quality=95)
    detector.enroll("screw", sorted(tmp_path.glob("*.jpg")))
    assert "within one hour" not in caplog.text
    detector.enroll("rivet", sorted(tmp_path.glob("*.jpg"))[:3])
    assert (
        "All 3 good photographs were taken within one hour (2024-03-01): those of other days will look" in caplog.text
    )


def test_a_threshold_below_that_of_any_product_is_warned_of(detector, photograph, caplog):
    image = np.asarray(photograph(5, size=(96, 80))).astype(np.int16)
    for step in range(3):  # nearly the same, and not the same picture
        image[20 * step : 20 * step + 8, :8] += 12
    nearly = [np.clip(image + 3 * step, 0, 255).astype(np.uint8) for step in range(3)]
    threshold = detector.enroll("screw", nearly)
    assert 0 < threshold.image_threshold < 0.01
    assert "The threshold of screw lies at 0.00" in caplog.text and "far below that of any product" in caplog.text
    caplog.clear()
    assert detector.enroll("rivet", others(photograph, 3), max_false_alarm_rate=0.4).image_threshold > 0.01
    assert "far below that of any product" not in caplog.text


def test_many_photographs_are_opened_again_and_not_held(tmp_path, detector, photograph, monkeypatch):
    images = normals_of(photograph, 2, 5)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    products, learned = detector.model.products, []
    detector.enroll("screw", images)
    learned.append(products.named("screw"))
    detector.forget("screw")
    monkeypatch.setattr(enrollment_anople, "HELD", 2)
    opened = enrollment_anople.open_normals(sorted(tmp_path.glob("*.png")), detector.processor)
    assert [image.reopen is None for image in opened.images] == [True, True, False, False, False]
    assert all(image.image is None for image in opened.images) and opened.images[4]._prepared is None
    detector.enroll("screw", sorted(tmp_path.glob("*.png")))
    learned.append(products.named("screw"))
    assert learned[0].bank.vectors.equal(learned[1].bank.vectors)
    first, second = (each.record.threshold.image_scores for each in learned)
    assert first == second and len(first) == 5


def test_photographs_that_calibrate_are_let_go_again(tmp_path, detector, photograph, monkeypatch):
    for number, image in enumerate(others(photograph, 5)):
        image.save(tmp_path / f"{number}.png")
    monkeypatch.setattr(enrollment_anople, "HELD", 2)
    given = []
    recalibrate = enrollment_anople.recalibrate_product
    monkeypatch.setattr(
        enrollment_anople,
        "recalibrate_product",
        lambda model, images, *rest, **more: given.extend(images) or recalibrate(model, images, *rest, **more),
    )
    detector.enroll("gasket", normals_of(photograph, 2))
    detector.model.config.history.clear()  # of an earlier version: likeness to what is remembered is measured
    detector.calibrate("gasket", sorted(tmp_path.glob("*.png")), max_false_alarm_rate=0.4)
    assert [image.reopen is None for image in given] == [True, True, False, False, False]
    assert all(image.image is None for image in given) and all(image._prepared is None for image in given[2:])


def test_a_detector_without_frames_learns_none_from_a_part_of_its_photographs(detector, photograph):
    images = normals_of(photograph, 2, 5)
    detector.enroll("gasket", images[:3])
    record = detector.model.products.named("gasket").record
    record.frame = None  # of an earlier version
    detector.add_normals("gasket", images[3:])
    assert record.frame is None
    detector.calibrate("gasket", images)  # all that it remembers
    assert record.frame.count == 5
    detector.add_normals("gasket", others(photograph, 1))
    assert record.frame.count == 6


def test_tiles_of_an_image_that_was_let_go_open_it_once(detector, photograph, monkeypatch):
    opened = []
    image = TiledImage.of(photograph(0, size=(64, 64)), detector.processor, (2, 2))
    pixels = image.image
    image.reopen = lambda: opened.append(1) or time.sleep(0.05) or pixels
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    prepare_tiles([(image.release(), number) for number in range(4)])
    assert len(opened) == 1


def test_no_refusal_names_more_than_five(detector, photograph):
    images = [image for image in normals_of(photograph, 2, 8) for _ in range(2)]
    with pytest.raises(ValueError, match="image 2, image 4, image 6, image 8, image 10 and 3 more"):
        detector.enroll("screw", images)


# --- Known defects ---


def defects_of(photograph, class_id: int, count: int = 3) -> list[Image.Image]:
    """Good photographs of a class with a dark patch each."""
    defective = [image.copy() for image in normals_of(photograph, class_id, 10 + count)[10:]]
    for number, image in enumerate(defective):
        image.paste((10, 0, 0), (8 + 5 * number, 10, 26 + 5 * number, 26))
    return defective


def test_known_defects_set_the_line_by_costs_and_never_enter_the_memory(detector, photograph):
    memory = detector.model.products.named("nut").bank.vectors.clone()
    plain, defects = threshold_of(detector, "nut"), defects_of(photograph, 1)
    fitted = detector.calibrate("nut", defects=defects, miss_cost=3, false_alarm_cost=2)
    assert fitted == threshold_of(detector, "nut") and fitted.estimate == "costs"
    assert fitted.image_scores == plain.image_scores and fitted.map_threshold == plain.map_threshold
    scores = [result["raw_score"] for result in detector(defects, class_name="nut")]
    assert fitted.defects.scores == pytest.approx(scores, abs=1e-6)
    product = detector.model.products.named("nut")
    assert torch.equal(product.bank.vectors, memory) and product.prints is None
    entry = detector.model.config.history[-1]
    assert (entry["miss_cost"], entry["false_alarm_cost"]) == (3, 2) and entry["digests"] == []
    assert entry["defect_digests"] == fitted.defects.digests and len(entry["defects"]) == 3
    assert threshold_of(detector, "bolt").defects is None
    dear = detector.calibrate("nut", defects=defects, miss_cost=1000)
    assert dear.image_threshold < fitted.image_threshold


def test_what_was_a_defect_never_becomes_a_good_one(detector, photograph, tmp_path, caplog):
    caplog.set_level("WARNING")
    defects, good = defects_of(photograph, 1), normals_of(photograph, 1, 6)
    detector.calibrate("nut", defects=defects)
    defects[0].save(tmp_path / "again.jpg", quality=97, subsampling=0)
    for _ in range(2):  # also where the line is no longer set by them
        for known in (defects[0], tmp_path / "again.jpg"):
            with pytest.raises(ValueError, match="as good and as defective"):
                detector.add_normals("nut", [known])
        detector.add_normals("nut", [good.pop()])
    detector.calibrate("nut", defects=defects)
    assert len(detector.model.products.named("nut").defect_prints) == 3  # once each
    detector.rename("nut", "washer")
    assert detector.model.config.history[-1]["max_false_alarm_rate"] is None  # of a line by costs
    with pytest.raises(ValueError, match="as good and as defective"):
        detector.enroll("washer", [*good[:2], defects[1]], replace=True)
    detector.enroll("washer", good[:2], replace=True)
    assert "The line of washer was set by 3 known defects" in caplog.text
    detector.save_pretrained(tmp_path / "kept")
    with pytest.raises(ValueError, match="as good and as defective"):
        detector_of(*load_detector(str(tmp_path / "kept"))).add_normals("washer", [defects[2]])


def test_calibrating_without_defects_sets_the_line_by_the_good_ones_again(detector, photograph, caplog):
    plain = threshold_of(detector, "nut")
    detector.calibrate("nut", defects=defects_of(photograph, 1))
    assert detector.calibrate("nut") == plain
    assert "set by 3 known defects, and is set by its good photographs alone again" in caplog.text
    with pytest.raises(ValueError, match="Nothing would change"):
        detector.calibrate("nut")
    detector.calibrate("nut", defects=defects_of(photograph, 1))
    caplog.clear()
    assert detector.add_normals("nut", normals_of(photograph, 1, 4)[3:]).defects is None
    assert "to use the defects once more, give them to `anople calibrate --defects`" in caplog.text


def test_what_is_good_and_defective_at_once_is_refused_and_changes_nothing(detector, photograph):
    good, bad = normals_of(photograph, 1, 6), defects_of(photograph, 1)
    detector.calibrate("nut", good[3:5])
    before = state_of(detector.model)
    for images, defects, words in (
        (None, [good[0]], "good and as defective: image 1"),  # in the memory
        (None, [bad[0], good[3]], "good and as defective: image 2"),  # behind the line
        ([good[5]], [bad[0], good[5].copy()], "good and as defective: image 2"),
        (None, [], "No defective images"),
        (None, [bad[0], bad[0]], "given twice"),
        (None, ["gone.png"], "gone.png: there is no such file"),
    ):
        with pytest.raises(ValueError, match=words):
            detector.calibrate("nut", images, defects=defects)
    for options, words in (
        ({"miss_cost": 2}, "miss_cost places the line between good photographs and known defects: add defects"),
        ({"defects": bad, "miss_cost": 0}, "miss_cost must lie within 1e-09"),
        ({"defects": bad, "false_alarm_cost": float("nan")}, "false_alarm_cost must lie within"),
    ):
        with pytest.raises(ValueError, match=words):
            detector.calibrate("nut", **options)
    assert_unchanged(detector.model, before)
    detector.calibrate("nut", defects=bad)
    with pytest.raises(ValueError, match="good and as defective: image 1"):
        detector.add_normals("nut", [bad[1]])


def test_pooled_classes_take_no_defects(make, photograph):
    with pytest.raises(ValueError, match="Pooled classes share one line"):
        make(class_identity="pooled").calibrate("nut", defects=defects_of(photograph, 1))


@pytest.mark.parametrize("remembered", [False, True])
def test_ways_of_scoring_are_compared_on_photographs_left_out_and_stay_as_they_are(
    detector, photograph, caplog, remembered
):
    caplog.set_level("INFO")
    detector.enroll("gasket", normals_of(photograph, 2))
    good = normals_of(photograph, 2) if remembered else normals_of(photograph, 2, 7)[3:]
    before = {name: getattr(detector.model.config, name) for name in ("map_fusion", "image_fusion", "image_map")}
    threshold = detector.calibrate("gasket", good, defects=defects_of(photograph, 2, 4))
    assert len(threshold.image_scores) == (3 if remembered else 7)
    assert before == {name: getattr(detector.model.config, name) for name in before}
    [said] = [record.getMessage() for record in caplog.records if "Ways of scoring, each" in record.getMessage()]
    for way in ("as it is: cost", "memory alone: cost", "memory and text: cost"):
        assert way in said
    assert f"over {3 if remembered else 4} folds" in said and "of 4 defects found" in said and "weighted" not in said
    caplog.clear()
    detector.calibrate("gasket", defects=defects_of(photograph, 2))
    assert "compared where at least 2 good photographs and 2 defects are given together" in caplog.text


def test_the_memory_is_looked_up_without_the_photograph_itself(detector, photograph):
    detector.enroll("gasket", normals_of(photograph, 2))
    class_id = detector.model.products.id_of("gasket")
    images = wholes(normals_of(photograph, 2), detector.processor)
    left_out = score_images(detector.model, images, class_id, remembered=True)
    assert left_out == pytest.approx(threshold_of(detector, "gasket").image_scores, abs=1e-5)
    assert min(left_out) > max(score_images(detector.model, images, class_id))
