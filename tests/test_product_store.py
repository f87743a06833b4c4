"""What a detector knows of its products: one record each, written with every change, and put back whole where one fails."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from transformers import CLIPConfig

from modeling_anople import AnoPLeConfig, AnoPLeModel, ImageError
from modeling_anople.calibration_anople import FRAME_NUMBERS, FrameLimits, ProductThreshold, fit_threshold
from modeling_anople.fitting_anople import calibrate_product, recalibrate_product, remember
from modeling_anople.images_anople import PRINT_BYTES
from modeling_anople.product_store_anople import (
    Product,
    ProductRecord,
    ProductStore,
    Sensitivity,
    did_you_mean,
    find_class,
    new_name,
)

from .contract import assert_same, fill, judge
from .detectors import detector_of, normals_of, pixel_images


THRESHOLD = fit_threshold([0.1, 0.2], [0.3, 0.4], max_false_alarm_rate=0.05)
OTHER = fit_threshold([0.5, 0.6], [0.7, 0.8], max_false_alarm_rate=0.1)
SENSITIVITY = Sensitivity(
    *("2026-11-30", 12, 0, 0.2, 0.5, [0.3], {"scratch": [0.08]}, {"scratch": [0.32]}, {"turned, degrees": 45}, []),
    *({"scratch": [11]}, {"scratch": [12]}),
)
FACTS = {field.name for field in dataclasses.fields(ProductRecord)}


def make_store(**fields) -> ProductStore:
    clip = CLIPConfig(vision_config={"image_size": 32, "patch_size": 8})
    return ProductStore(AnoPLeConfig(clip_config=clip, **{"class_names": ["bolt", "nut"], **fields}))


def mark(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (height, width)).astype(bool)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "meant"),
    [("botle", " Did you mean bottle?"), ("GRID", " Did you mean Grid?"), ("screw", ""), ("", "")],
)
def test_the_nearest_known_name_is_offered(word, meant):
    assert did_you_mean(word, ["bottle", "Grid"]) == meant
    assert did_you_mean(word, []) == ""


def test_letters_of_a_name_may_be_composed_or_not():
    assert find_class("Mu\u0308tze", ["bolt", "M\u00fctze"]) == find_class("M\u00fctze", ["bolt", "Mu\u0308tze"]) == 1
    assert new_name("Mu\u0308tze", ["bolt"]) == "M\u00fctze"
    with pytest.raises(ValueError, match="exists: give it more images with add_normals, or forget it first"):
        new_name("Mu\u0308tze", ["M\u00fctze"])


@pytest.mark.parametrize("name", [None, 3, "nuts"])
def test_an_unknown_product_is_refused_with_the_known_ones(name):
    store = make_store()
    with pytest.raises(ValueError, match=rf"{name!r} is not known to this detector, which knows \['bolt', 'nut'\]"):
        store.id_of(name)
    assert store.named("nut") is store[1]


@pytest.mark.parametrize(
    ("name", "message"), [("", "needs a name"), (" ", "needs a name"), (3, "needs a name, got 3")]
)
def test_a_product_needs_a_name(name, message):
    with pytest.raises(ValueError, match=message):
        new_name(name, [])
    with pytest.raises(ValueError, match="what an image of no known product is called"):
        new_name("unknown product", [])


# -- one product ------------------------------------------------------------------------------------------------------


def test_a_record_is_a_product_again_with_tensors_of_its_size():
    config = make_store().config
    values = {
        "name": "bolt",
        "image_vectors": [16, 3],
        "has_boxes": True,
        "tiling": "2,3",
        "ignore_mask_size": [5, 7],
        "threshold": dataclasses.asdict(THRESHOLD),
        "frame": dataclasses.asdict(FrameLimits.of([[0.1 * number for number in range(len(FRAME_NUMBERS))]] * 2)),
        "print_count": 3,
        "defect_print_count": 0,
        "sensitivity": dataclasses.asdict(SENSITIVITY),
    }
    product = Product(ProductRecord.from_dict(values), config)
    assert product.describe() == values and values.keys() == FACTS
    assert product.bank.vectors.shape[1] == 19 and product.bank.boxes.shape == (19, 4)
    assert product.prints.shape == (3, PRINT_BYTES) and product.prints.dtype == torch.uint8
    assert product.image_count == 2 and product.ignore_mask.shape == (5,)  # 35 pixels, eight to a byte
    bare = Product(ProductRecord("nut"), config)
    assert bare.describe() == {**dataclasses.asdict(ProductRecord("nut"))} and bare.ignore_mask is None
    assert bare.image_count == 0 and bare.unpacked_mask() is None and bare.bank.boxes is None


def test_frames_that_an_earlier_version_described_by_other_numbers_are_not_asked_for_and_that_is_said(caplog):
    values = dataclasses.asdict(ProductRecord("bolt", frame=FrameLimits.of([[0.1, 0.2]] * 2)))
    assert ProductRecord.from_dict(values).frame is None
    store = ProductStore(AnoPLeConfig(products=[values, {"name": "nut"}]))
    assert store.named("bolt").record.frame is None
    assert "of bolt look like" in caplog.text and "`anople calibrate` once more" in caplog.text
    values["frame"]["mean"] = [0.1]
    with pytest.raises(ValueError, match="'bolt': the frame of a product must have as many finite numbers"):
        ProductRecord.from_dict(values)


def test_a_mask_comes_back_as_it_was_kept_and_fits_its_own_size_alone():
    store, mask = make_store(), mark()
    store.keep_mask(1, mask)
    assert np.array_equal(store[1].unpacked_mask(), mask) and store.have_masks
    assert np.array_equal(store.mask_opener(1)((5, 7)), mask)
    with pytest.raises(ImageError, match="'nut' keeps an ignore_mask of 7 x 5 pixels, and this image has 8 x 5"):
        store.mask_opener(1)((5, 8))
    assert store.mask_opener(0) is store.mask_opener(None) is None


@pytest.mark.parametrize(("own", "found"), [("same", "2,2"), (None, None), ("3,4", "3,4")])
def test_a_tiling_is_the_products_own_or_the_detectors(own, found):
    store = make_store(tiling="2,2", class_names=None, products=[{"name": "bolt", "tiling": own}])
    assert store.tiling_of(0) == found and store.tiling_of(None) == "2,2" and store.have_tilings == (own != "same")


# -- each change writes the config --------------------------------------------------------------------------------------


def test_every_change_of_a_product_stands_in_the_config(make_model, make_pixels):
    model, images = make_model(), pixel_images(make_pixels(3))
    store, config = model.products, model.config

    def facts(class_id: int = 1) -> dict:
        assert config.products == [product.describe() for product in store]
        return config.products[class_id]

    remember(model, images[:2], 1)
    assert facts()["image_vectors"] == [16, 16] and facts()["has_boxes"] and facts()["threshold"] is None
    fitted = calibrate_product(model, images[:2], 1)
    assert facts()["threshold"] == dataclasses.asdict(fitted)
    fitted = recalibrate_product(model, images[2:], 1)
    assert facts()["threshold"] == dataclasses.asdict(fitted) and fitted.held_out == 1
    store.keep_mask(1, mark())
    assert facts()["ignore_mask_size"] == [5, 7]
    store.keep_mask(1, None)
    assert facts()["ignore_mask_size"] is None
    ids = store.prompt_ids([0])
    assert store.add(ProductRecord("gasket", tiling="2,2"), ids, store[0].text_embeddings) == 2
    assert facts(2) == {**dataclasses.asdict(ProductRecord("gasket", tiling="2,2"))}
    store.remove(0)
    assert config.class_names == ["nut", "gasket"] and facts(0)["image_vectors"] == [16, 16]
    store.clear()
    assert facts(0)["image_vectors"] == [] and facts(0)["threshold"] is None and config.history == []
    assert facts(1)["tiling"] == "2,2" and store.remembers_nothing and not store[0].prototype.any()


def test_what_the_config_says_is_no_window_into_the_records():
    store = make_store()
    store.set_threshold(0, THRESHOLD)
    store.config.products[0]["threshold"]["image_scores"].append(7.0)
    store.config.products[0]["image_vectors"].append(7)
    assert store[0].record.threshold.image_scores == [0.1, 0.2] and store[0].bank.image_vectors == []
    store.write()
    assert store.config.products[0]["threshold"] == dataclasses.asdict(THRESHOLD)


def test_a_new_product_is_of_the_precision_of_the_others():
    store = make_store().to(torch.bfloat16)
    ids = torch.arange(154).view(2, 77)
    store.add(ProductRecord("gasket"), ids, torch.ones(2, 512))
    assert store[2].text_embeddings.dtype == store[2].bank.vectors.dtype == torch.bfloat16
    assert torch.equal(store.prompt_ids([2]), ids) and store.prompt_ids().shape == (6, 77)
    assert store.text_embeddings().shape == (3, 2, 512) and store.prototypes([2, 0]).shape == (2, 512)


def test_the_log_says_what_was_done_when_and_from_which_files(make_model, make_pixels):
    store = fill(make_model(), make_pixels).products
    store.log("enroll", "nut", files=["/home/me/photos/1.png", None], digests=["ab", "cd"], date="2026-01-02")
    store.log("forget", "gasket")
    first, second = store.config.history
    assert first["files"] == ["1.png", None] and first["digests"] == ["ab", "cd"] and first["date"] == "2026-01-02"
    assert (first["action"], first["class_name"]) == ("enroll", "nut")
    assert first["max_false_alarm_rate"] == 0.05 and store[1].record.threshold.image_threshold in first.values()
    assert second["max_false_alarm_rate"] is None and second["files"] == [] and second["date"].endswith("+00:00")


# -- a change that fails ------------------------------------------------------------------------------------------------


def everything(model: AnoPLeModel) -> tuple[dict, dict]:
    """Copy all that a change of products may touch."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = {name: copy.deepcopy(value) for name, value in model.config.to_dict().items() if name[0] != "_"}
    counts = [(list(each.bank.image_vectors), copy.deepcopy(each.record)) for each in model.products]
    return tensors, {**config, "counts": counts}


def assert_untouched(model: AnoPLeModel, before: tuple[dict, dict]) -> None:
    tensors, facts = everything(model)
    assert facts == before[1]
    assert tensors.keys() == before[0].keys()
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in tensors.items())


def change_all(model: AnoPLeModel, images: list) -> None:
    """Change all that a product has."""
    store = model.products
    store.add(ProductRecord("gasket"), store.prompt_ids([0]), store[1].text_embeddings)
    for class_id in (2, 0):
        remember(model, images, class_id)
        calibrate_product(model, images, class_id, max_false_alarm_rate=0.2)
    store.keep_mask(0, mark())
    store.keep_mask(1, None)
    store[0].text_embeddings = store[0].text_embeddings + 1
    store[0].prototype = store[0].prototype * 2
    store[1].bank.reduce(9)
    store[1].record.threshold.image_scores.append(0.5)
    store[1].record.tiling = "2,2"
    store.log("enroll", "gasket", files=["1.png"], digests=["ab"])
    store.remove(1)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("identity", ["given", "pooled"])
@pytest.mark.parametrize("limit", [None, 30])
def test_a_change_that_fails_leaves_nothing_behind(make_model, make_pixels, error, identity, limit):
    model = fill(make_model(class_identity=identity, memory_limit=limit), make_pixels)
    model.products.keep_mask(1, mark(3, 3))
    model.products.log("enroll", "nut", files=["0.png"])
    before, answer = everything(model), judge(model, make_pixels)
    products = list(model.products)
    assert (model.config.pooled_threshold is None) == (identity == "given")
    with pytest.raises(error, match="after all"), model.products.transaction():
        change_all(model, pixel_images(make_pixels(3, seed=5)))
        assert not torch.equal(model.products[0].prototype, before[0]["products.0.prototype"])
        raise error("after all")
    assert_untouched(model, before)
    assert list(model.products) == products
    assert_same(judge(model, make_pixels), answer)
    with model.products.transaction():  # and it may be tried again
        change_all(model, pixel_images(make_pixels(3, seed=5)))
    assert model.config.class_names == ["bolt", "gasket"] and len(model.config.history) == 2


@pytest.mark.parametrize("identity", ["given", "pooled"])
def test_clearing_can_be_put_back_too(make_model, make_pixels, identity):
    model = fill(make_model(class_identity=identity), make_pixels)
    before, answer = everything(model), judge(model, make_pixels)
    with pytest.raises(KeyError), model.products.transaction():
        model.products.clear()
        raise KeyError
    assert_untouched(model, before)
    assert_same(judge(model, make_pixels), answer)


def test_a_change_that_succeeds_stays():
    store = make_store()
    with store.transaction():
        store.set_threshold(0, THRESHOLD)
    assert store[0].record.threshold == THRESHOLD and store.config.products[0]["threshold"]


VERBS = {
    "enroll": lambda detector, images: detector.enroll("gasket", images),
    "add_normals": lambda detector, images: detector.add_normals("bolt", images),
    "calibrate": lambda detector, images: detector.calibrate("bolt", images),
    "enroll again": lambda detector, images: detector.enroll("bolt", images, replace=True),
    "rename": lambda detector, images: detector.rename("bolt", "screw"),
    "forget": lambda detector, images: detector.forget("bolt"),
    "set_ignore_mask": lambda detector, images: detector.set_ignore_mask("bolt", np.eye(40, 48)),
}


@pytest.mark.parametrize("identity", ["given", "pooled"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_fails_at_its_end_leaves_nothing_behind(make_detector, photograph, monkeypatch, verb, identity):
    model, processor = make_detector(class_identity=identity)
    detector, images, before = detector_of(model, processor), normals_of(photograph, 0, 6)[3:], everything(model)

    def fail(*arguments, **options):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ProductStore, "log", fail)
        with pytest.raises(OSError, match="no space left"):
            VERBS[verb](detector, images)
    assert_untouched(model, before)
    assert processor.class_names == ["bolt", "nut"] == model.config.class_names
    VERBS[verb](detector, images)
    assert (
        len(model.config.history) == (2 if verb == "enroll again" else 1)
        and processor.class_names == model.config.class_names
    )


def test_a_threshold_is_kept_as_plain_numbers():
    store = make_store(class_identity="pooled")
    store.set_threshold(0, THRESHOLD)
    store.set_threshold(1, OTHER)
    assert ProductThreshold.from_dict(store.config.products[1]["threshold"]) == OTHER
    assert ProductThreshold.from_dict(store.config.pooled_threshold).max_false_alarm_rate == 0.1
    text = store.config.to_json_string()
    assert '"pooled_threshold": {' in text and '"class_names"' not in text
