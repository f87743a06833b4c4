"""Nothing that is no finite number is ever a verdict, wherever it comes from; and a verdict hangs on its own image alone."""

import dataclasses
import itertools
import json
import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor, cli
from modeling_anople.calibration_anople import ProductThreshold, calibrate, fit_threshold, label_of
from modeling_anople.fitting_anople import remember
from modeling_anople.runtime.loading import load_detector, load_judge
from modeling_anople.saving_anople import mark
from modeling_anople.scoring_anople import AnoPLeOutput, broken_answers

from .detectors import detector_of, normals_of, wholes


BROKEN = [math.nan, math.inf, -math.inf]


@pytest.fixture(scope="module")
def saved(small_clip_folder, photograph, tmp_path_factory):
    """A folder with a detector of two products."""
    detector = detector_of(
        AnoPLeModel.from_clip(str(small_clip_folder), ["bolt", "nut"]),
        AnoPLeProcessor.from_clip(str(small_clip_folder), ["bolt", "nut"]),
    )
    for class_id, name in enumerate(("bolt", "nut")):
        detector.add_normals(name, normals_of(photograph, class_id))
    folder = tmp_path_factory.mktemp("saved") / "detector"
    detector.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to break."""
    return shutil.copytree(saved, tmp_path / "detector")


def edit_weights(folder, change) -> None:
    """Change model.safetensors in place; its state stays the one that it was saved with."""
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


def edit_config(folder, change) -> None:
    """Change config.json in place."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config)
    path.write_text(json.dumps(config), "utf-8")


# -- weights ------------------------------------------------------------------------------------------------------------


PLACES = ["clip.vision_model.post_layernorm.weight", "clip.vision_model.encoder.layers.1.mlp.fc1.bias", "decoder"]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fusion", [{}, {"map_fusion": "memory", "image_fusion": "map"}], ids=["fused", "memory"])
def test_one_broken_weight_makes_an_error_of_every_image_that_it_reaches(
    make_detector, photograph, place, value, fusion
):
    model, processor = make_detector()
    for name, setting in fusion.items():
        setattr(model.config, name, setting)
    weights = [weight for name, weight in model.named_parameters() if name.startswith(place)]
    with torch.no_grad():
        weights[0].view(-1)[0] = value
    for options in ({"class_name": "nut"}, {}):
        results = detector_of(model, processor)([photograph(70), photograph(71)], batch_size=2, **options)
        for result in results:
            assert (result["error"] is None) == (result["label"] is not None)
            if place != "decoder" or not fusion:  # the memory alone asks no decoder
                assert "not finite" in result["error"] and result["score"] is result["raw_score"] is None


@pytest.mark.parametrize("value", BROKEN)
def test_one_broken_number_of_a_memory_is_refused_with_its_product_before_anything_is_judged(folder, value, capsys):
    edit_weights(folder, lambda tensors: tensors["products.1.bank.vectors"][0, 3].fill_(value))
    with pytest.raises(ValueError, match=r"bank.vectors of 'nut' holds numbers that are not finite"):
        AnoPLeModel.from_pretrained(folder)
    assert cli.main(["predict", str(folder), "any.png"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("lost", "words"), [("products.1.prototype", "has no"), ("decoder.", "has no")])
def test_a_weight_that_is_missing_is_not_drawn_at_random(folder, lost, words):
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(lost)])
    with pytest.raises(ValueError, match=rf"{words} {lost}.*Copy the folder again"):
        AnoPLeModel.from_pretrained(folder)


def test_a_product_that_config_and_weights_do_not_share_is_refused(folder):
    edit_config(folder, lambda config: config["products"].pop())
    with pytest.raises(ValueError, match=r"has the unknown products\.1\."):
        AnoPLeModel.from_pretrained(folder)


def test_the_command_line_counts_a_broken_score_as_a_photograph_that_cannot_be_judged(
    make_detector, photograph, tmp_path, monkeypatch, capsys
):
    model, processor = make_detector()
    with torch.no_grad():
        model.clip.vision_model.post_layernorm.bias[0] = math.nan
    photograph(1).save(tmp_path / "one.png")
    monkeypatch.setattr("modeling_anople.runtime.loading.load_judge", lambda *options: (model, processor))
    assert cli.main(["predict", "anywhere", str(tmp_path / "one.png")]) == 1
    row = json.loads(capsys.readouterr().out)
    assert "not finite" in row["error"] and row["label"] is row["score"] is None


@pytest.mark.parametrize("verb", ["enroll", "add_normals", "calibrate"])
def test_nothing_is_learned_from_scores_that_are_not_finite(make_detector, photograph, verb):
    model, processor = make_detector()
    detector = detector_of(model, processor)
    before = [product.describe() for product in model.products]
    with torch.no_grad():
        model.clip.vision_model.post_layernorm.bias[0] = math.nan
    name, images = (
        ("gasket", normals_of(photograph, 3)) if verb == "enroll" else ("nut", [photograph(70), photograph(71)])
    )
    with pytest.raises(ValueError, match=r"finite|no number"):
        getattr(detector, verb)(name, images)
    assert [product.describe() for product in model.products] == before and len(model.config.history) == 0


# -- thresholds -----------------------------------------------------------------------------------------------------------


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0, -1, 1e9, 1e-300, None, "0.1", [], True])
FIELDS = [each.name for each in dataclasses.fields(ProductThreshold)]
GOOD = fit_threshold([0.1, 0.14, 0.12, 0.2], [0.3, 0.5, 0.4, 0.35], max_false_alarm_rate=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *itertools.product(["image_threshold", "map_threshold"], [*BROKEN, 0, -0.1, 1e9, None, "0.1"]),
        *itertools.product(["image_spread", "map_spread"], [*BROKEN, 0, -0.1, None, "0.1"]),
    ],
)
def test_a_threshold_that_cannot_be_is_refused_by_product_and_field(folder, field, value, capsys):
    edit_config(folder, lambda config: config["products"][1]["threshold"].update({field: value}))
    with pytest.raises(ValueError, match=rf"threshold of 'nut' cannot be: ({field}|For 5 %)"):
        AnoPLeModel.from_pretrained(folder)
    for command in (["predict", str(folder), "any.png"], ["products", str(folder)]):
        assert cli.main(command) == 2
    assert "nut" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["image_threshold", "map_spread", "image_scores"])
def test_a_threshold_that_lacks_a_field_is_refused(folder, field):
    edit_config(folder, lambda config: config["products"][0]["threshold"].pop(field))
    with pytest.raises(ValueError, match=rf"threshold of 'bolt' cannot be: it lacks {field}"):
        AnoPLeModel.from_pretrained(folder)


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1, math.inf])
def test_a_decision_threshold_out_of_range_is_refused(folder, value, photograph):
    detector = detector_of(*load_detector(str(folder)))
    with pytest.raises(ValueError, match=r"threshold must lie within 0 and 1"):
        detector([photograph(1)], threshold=value)
    detector.model.config.threshold = value
    with pytest.raises(ValueError, match=r"threshold must lie within 0 and 1"):
        detector([photograph(1)])
    edit_config(folder, lambda config: config.update(threshold=value))
    with pytest.raises(Exception, match=r"threshold must lie within 0 and 1"):
        AnoPLeModel.from_pretrained(folder)


@given(st.sampled_from(FIELDS), NUMBERS, st.lists(st.floats(2**-20, 1, width=32), min_size=2, max_size=20))
@settings(deadline=None, max_examples=400)
def test_any_edit_of_a_threshold_is_refused_or_keeps_the_order_of_scores(field, value, scores):
    values = {**dataclasses.asdict(GOOD), field: value}
    try:
        edited = ProductThreshold.from_dict(values)
    except ValueError:
        return
    raw = torch.tensor(sorted(scores))
    for part in ("image", "map"):
        calibrated = calibrate(raw, [edited] * len(scores), part)
        assert calibrated.isfinite().all() and (calibrated.diff() >= 0).all()


@given(st.floats(), st.floats(0, 1))
def test_a_label_implies_a_finite_score(score, threshold):
    if math.isfinite(score):
        assert label_of(score, threshold) == ("anomalous" if score > threshold else "normal")
    else:
        with pytest.raises(ValueError, match="neither normal nor anomalous"):
            label_of(score, threshold)


@pytest.mark.parametrize("score", BROKEN)
def test_no_threshold_is_fitted_to_what_is_no_number(score):
    with pytest.raises(ValueError, match="no number to set a line by"):
        fit_threshold([0.1, score], [0.1, 0.2], max_false_alarm_rate=0.05)
    with pytest.raises(ValueError, match="no number to set a line by"):
        fit_threshold([], [], max_false_alarm_rate=0.05, jittered_image_scores=[0.1], jittered_map_maxima=[score])


def test_a_line_above_every_score_is_refused_when_it_is_fitted(make_model, make_processor, photograph):
    detector = detector_of(make_model(), make_processor())
    with pytest.raises(
        ValueError, match=r"No threshold can be set for 'bolt'.*nothing would ever be anomalous: 9999 good"
    ):
        detector.add_normals("bolt", [photograph(1)], max_false_alarm_rate=1e-4)
    assert detector.model.products.remembers_nothing


def test_answers_name_what_of_them_is_broken():
    output = AnoPLeOutput(
        image_scores=torch.tensor([0.1, math.nan, 0.3, math.inf]),
        anomaly_maps=torch.zeros(4, 2, 2),
        image_embeds=torch.tensor([[1.0, 0.0]] * 2 + [[math.nan, 0.0]] + [[1.0, 0.0]]),
    )
    assert broken_answers(output) == [None, "score", "global feature", "score"]
    output.anomaly_maps[0, 1, 1] = -math.inf
    assert broken_answers(output)[0] == "anomaly map"


# -- one image, one verdict -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(small_clip_folder, photograph):
    """A detector whose third product is remembered and has no threshold."""
    names = ["bolt", "nut", "screw"]
    processor = AnoPLeProcessor.from_clip(str(small_clip_folder), names)
    detector = detector_of(AnoPLeModel.from_clip(str(small_clip_folder), names), processor)
    for class_id, name in enumerate(names[:2]):
        detector.add_normals(name, normals_of(photograph, class_id))
    remember(detector.model, wholes(normals_of(photograph, 2), processor), 2)
    return detector


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from(["bolt", "nut", "screw"]), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_is_judged_as_each_of_its_images(mixed, photograph, chosen, batch_size):
    images = [photograph(seed) if readable else b"no image" for seed, _, readable in chosen]
    names = [name for _, name, _ in chosen]
    together = mixed(images, class_names=names, batch_size=batch_size)
    for image, name, result in zip(images, names, together, strict=True):
        alone = mixed(image, class_name=name)
        assert (result["label"], result["error"]) == (alone["label"], alone["error"])
        assert (result["p_value"] is None) == (alone["p_value"] is None) == (result["label"] is None)
        if result["error"] is None:
            assert result["score"] == pytest.approx(alone["score"], abs=1e-5)
            assert (result["label"] is None) == (name == "screw")


@torch.no_grad()
def test_the_model_itself_answers_for_each_image_too(mixed, photograph):
    processor = mixed.processor
    output = mixed.model(**processor([photograph(1), photograph(2)], class_names=["bolt", "screw"]))
    assert output.calibrated_scores.isfinite().tolist() == output.p_values.isfinite().tolist() == [True, False]
    assert output.calibrated_maps[0].isfinite().all() and output.calibrated_maps[1].isnan().all()
    labels = [result["label"] for result in processor.post_process_anomaly_detection(output)]
    assert labels[0] is not None and labels[1] is None


# -- processor and model --------------------------------------------------------------------------------------------------


def test_a_processor_that_numbers_the_products_otherwise_is_refused(folder, capsys):
    path = folder / "processor_config.json"
    values = {**json.loads(path.read_text("utf-8")), "class_names": ["nut", "bolt"]}
    path.write_text(json.dumps(values), "utf-8")
    mark(path, values["content_sha256"])  # as if it had been saved so
    for load in (load_detector, load_judge):
        with pytest.raises(ValueError, match=r"knows the products \['nut', 'bolt'\], config.json \['bolt', 'nut'\]"):
            load(str(folder))
    with pytest.raises(ValueError, match=r"The processor knows the products \['nut', 'bolt'\]"):
        AnomalyDetectionPipeline(
            AnoPLeModel.from_pretrained(folder), processor=AnoPLeProcessor.from_pretrained(folder)
        )
    assert cli.main(["predict", str(folder), "any.png"]) == 2 and capsys.readouterr().out == ""


# -- ways that a reviewer found ---------------------------------------------------------------------------------------


def test_an_infinite_answer_of_a_convolutional_head_is_no_certainty(make_detector, photograph):
    model, processor = make_detector(decoder_head="conv", image_map="fused", image_fusion="map", map_fusion="decoder")
    heads = [weight for name, weight in model.decoder.named_parameters() if weight.shape == (2,)]
    with torch.no_grad():
        heads[0][1] = -math.inf
    [result] = detector_of(model, processor)([photograph(70)], class_name="nut")
    assert "not finite" in result["error"] and result["label"] is None


@pytest.mark.parametrize(("field", "value"), [("image_threshold", 1.0), ("image_spread", 1e9), ("map_spread", 1e39)])
def test_a_line_that_calls_everything_normal_is_refused(field, value):
    with pytest.raises(ValueError, match=r"cannot be: "):
        ProductThreshold.from_dict({**dataclasses.asdict(GOOD), field: value})


def test_a_line_put_above_every_score_by_hand_judges_nothing_and_is_not_saved(make_detector, photograph, tmp_path):
    model, processor = make_detector()
    record = model.products.named("nut").record
    record.threshold = dataclasses.replace(record.threshold, image_threshold=5.0)
    detector = detector_of(model, processor)
    with pytest.raises(ValueError, match="nothing would ever be anomalous"):
        detector([photograph(70)], class_name="nut")
    with pytest.raises(ValueError, match="nothing would ever be anomalous"):
        detector.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "config.json").exists()


def test_a_processor_that_was_changed_by_hand_is_refused(folder, capsys):
    path = folder / "processor_config.json"
    values = json.loads(path.read_text("utf-8"))
    values["image_processor"]["image_std"] = [50.0, 50.0, 50.0]
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(ValueError, match="processor_config.json was damaged, or changed by hand"):
        AnoPLeProcessor.from_pretrained(folder)
    assert cli.main(["predict", str(folder), "any.png"]) == 2 and capsys.readouterr().out == ""
