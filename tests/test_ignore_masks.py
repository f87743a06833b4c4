"""
Places that do not count: nothing that lies there changes an answer, maps are 0 there, the memory never sees them.

A mask is given with an image, or kept by a product, which then answers as if it were given, and no other product's answer
changes.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from demo.inspect_tab import inspect_images
from demo.session import start_session
from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor, ImageError
from modeling_anople.cli import main
from modeling_anople.images_anople import fill_ignored, ignored_patches, mask_tensor
from modeling_anople.pipeline_anople import predict

from .detectors import detector_of, normals_of, write_detector
from .fitting import fit as fit_program
from .fitting import write_products


BOX = (24, 20, 48, 40)  # the lower right quarter of images of 48 x 40: 4 of 16 patches


@pytest.fixture
def mask() -> np.ndarray:
    marked = np.zeros((40, 48), dtype=np.uint8)
    marked[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 7
    return marked


@pytest.fixture
def marked(mask) -> np.ndarray:
    """The same mask as booleans."""
    return mask > 0


@pytest.fixture
def make(make_detector):
    """Make a detector that knows three images of each of bolt and nut; keywords are fields of its config."""

    def make(**config) -> AnomalyDetectionPipeline:
        return detector_of(*make_detector(**config))

    return make


@pytest.fixture
def detector(make) -> AnomalyDetectionPipeline:
    return make()


def with_another_number(image: Image.Image, seed: int) -> Image.Image:
    image, generator = image.copy(), np.random.default_rng(seed)
    image.paste(Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)), BOX[:2])
    return image


def answers(detector: AnomalyDetectionPipeline, images: list, names=None, **options) -> list[tuple]:
    found = list(predict(detector.model, detector.processor, images, class_names=names, **options))
    assert not any(each.error for each in found)
    return [(each.score, each.label, each.p_value, each.class_name, each.raw_map.tobytes()) for each in found]


def kept_masks(detector: AnomalyDetectionPipeline) -> dict[str, np.ndarray]:
    """The masks that products keep; the config must name just these, and their sizes."""
    masks = {product.name: product.unpacked_mask() for product in detector.model.products}
    masks = {name: mask for name, mask in masks.items() if mask is not None}
    assert {each.name: tuple(each.ignore_mask_size) for each in detector.products if each.ignore_mask_size} == {
        name: mask.shape for name, mask in masks.items()
    }
    return masks


# --- Masks that are given ---


def test_what_is_ignored_is_filled_from_around_it_and_leaves_no_trace(photograph, mask):
    image = photograph(1)
    filled = fill_ignored(image, mask > 0)
    assert filled == fill_ignored(with_another_number(image, 1), mask > 0) != image
    kept = np.asarray(filled)[mask == 0]
    assert np.array_equal(kept, np.asarray(image)[mask == 0])
    flat = fill_ignored(with_another_number(Image.new("RGB", (48, 40), (10, 90, 200)), 2), mask > 0)
    assert flat.getcolors() == [(48 * 40, (10, 90, 200))]
    assert fill_ignored(image, np.ones((40, 48), dtype=bool)).size == image.size


def test_patches_count_while_no_more_than_half_is_ignored(mask):
    patches = ignored_patches(mask_tensor(mask > 0, 32)[None], 4)
    assert patches.sum() == 4 and patches[0, 2:, 2:].all()
    half = np.zeros((32, 32), dtype=bool)
    half[:, :4] = True
    assert not ignored_patches(mask_tensor(half, 32)[None], 4).any()
    half[:, 4] = True
    assert ignored_patches(mask_tensor(half, 32)[None], 4)[0].sum(1).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("tiling", ["same", (2, 2)])
def test_nothing_under_the_mask_has_any_influence(detector, photograph, mask, tiling):
    model, processor = detector.model, detector.processor
    images = [photograph(3), with_another_number(photograph(3), 1), with_another_number(photograph(3), 2)]
    for choice in ({}, {"class_names": "bolt"}):
        judged = list(
            predict(model, processor, images, ignore_mask=mask, tiling=tiling, explain=True, batch_size=1, **choice)
        )  # one by one: on some processors the last digits depend on the place in a batch
        for other in judged[1:]:
            assert other.score == judged[0].score and np.array_equal(other.raw_map, judged[0].raw_map)
            assert other.explanation == judged[0].explanation
        full = judged[0].full_size_map()
        assert full.shape == (40, 48) and (full[mask > 0] == 0).all() and full[mask == 0].max() > 0
    seen = list(predict(model, processor, images, class_names="bolt"))
    assert len({answer.score for answer in seen}) == 3


def test_the_memory_holds_no_ignored_patch_and_a_masked_product_answers_alike(tmp_path, detector, photograph, mask):
    normals = normals_of(photograph, 7)
    detector.enroll("gasket", normals, ignore_mask=mask)
    bank = detector.model.products[2].bank
    assert bank.image_vectors == [12, 12, 12]
    for left, top, _, _ in bank.boxes.tolist():
        assert left < BOX[0] or top < BOX[1]
    numbered = [with_another_number(image, seed) for seed, image in enumerate(normals)]
    detector.enroll("seal", numbered, ignore_mask=[mask, Image.fromarray(mask), mask])
    assert torch.equal(detector.model.products[3].bank.vectors, bank.vectors)
    gasket, seal = (each.threshold for each in detector.products[2:])
    assert gasket.image_threshold == pytest.approx(seal.image_threshold, rel=0.3)  # the words differ
    detector.add_normals("gasket", [photograph(777)], ignore_mask=mask)
    assert bank.image_vectors == [12, 12, 12, 12]
    detector.save_pretrained(tmp_path)
    loaded = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path))
    first, again = (answers(each, numbered, "gasket", ignore_mask=mask) for each in (detector, loaded))
    assert first == again


def test_masks_that_cannot_be_meant_are_refused(tmp_path, detector, photograph, mask):
    result = detector(photograph(1), class_name="bolt", ignore_mask=mask[:-1])
    assert result["score"] is None and "48 x 39 pixels and its photograph 48 x 40" in result["error"]
    with pytest.raises(ImageError, match="48 x 39"):
        detector.enroll("gasket", normals_of(photograph, 7), ignore_mask=mask[:-1])
    with pytest.raises(ValueError, match="another number of photographs"):
        detector.enroll("gasket", normals_of(photograph, 7), ignore_mask=[mask])
    everything = np.ones((40, 48), dtype=bool)
    with pytest.raises(ValueError, match="leaves no patch"):
        detector.enroll("gasket", normals_of(photograph, 7), ignore_mask=everything)
    assert detector.model.config.class_names == ["bolt", "nut"] and len(detector.model.products) == 2
    result = detector(photograph(1), class_name="bolt", ignore_mask=tmp_path / "gone.png")
    assert "no such file" in result["error"]
    result = detector(photograph(1), class_name="bolt", ignore_mask=everything)
    assert "ignores the whole image" in result["error"]


def test_processor_pipeline_and_explanation_take_masks(detector, photograph, mask):
    image, other = photograph(3), with_another_number(photograph(3), 5)
    inputs = detector.processor([image, other], class_names="bolt", ignore_masks=mask)
    assert torch.equal(inputs["pixel_values"][0], inputs["pixel_values"][1])
    output = detector.model(**inputs)
    assert (output.memory_maps[:, 2:, 2:] == 0).all() and (output.anomaly_maps[:, 16:, 16:] == 0).all()
    results = detector([image, other], class_name="bolt", ignore_mask=mask, explain=True)
    assert results[0]["score"] == pytest.approx(output.calibrated_scores[0].item(), abs=1e-5)
    assert results[0]["score"] == results[1]["score"] and (results[1]["anomaly_map"][mask > 0] == 0).all()
    told = detector(other, class_name="bolt", ignore_mask=mask, explain=True)["explanation"]
    assert told == results[0]["explanation"] and (told.box[0] < BOX[0] + 1 or told.box[1] < BOX[1] + 1)


def test_a_map_is_whole_up_to_the_very_border_of_a_mask(detector, photograph, mask):
    image = photograph(3)
    output = detector.model(**detector.processor(image, class_names="bolt", ignore_masks=mask))
    [own] = detector.processor.post_process_anomaly_detection(output, target_sizes=[(40, 48)])
    result = detector(image, class_name="bolt", ignore_mask=mask)
    assert np.array_equal(result["anomaly_map"], np.where(mask > 0, 0, own["anomaly_map"]))
    thin = np.zeros((40, 48), dtype=bool)
    thin[20] = True  # hides no patch
    seen, hidden = (detector(image, class_name="bolt", ignore_mask=each)["anomaly_map"] for each in ("none", thin))
    assert (hidden[20] == 0).all() and (hidden[[19, 21]] > seen[[19, 21]].min() / 2).all()


def test_a_mask_between_patches_that_leaves_none_fails_alone(detector, photograph):
    nearly = np.ones((40, 48), dtype=bool)
    nearly[0, 0] = False
    found = detector([photograph(1), photograph(2)], ignore_mask=[nearly, None], batch_size=2)
    assert "leaves no patch" in found[0]["error"] and found[1]["error"] is None


def test_predict_and_enroll_take_a_mask(tmp_path, small_clip_folder, photograph, mask, capsys):
    folder = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for number, image in enumerate(normals_of(photograph, 7)):
        with_another_number(image, number).save(tmp_path / f"gasket{number}.png")
    paths, hidden = [str(tmp_path / f"gasket{n}.png") for n in range(3)], ["--ignore_mask", str(tmp_path / "mask.png")]
    assert main(["enroll", str(folder), "gasket", *paths, *hidden]) == 0
    assert AnoPLeModel.from_pretrained(folder).products[2].bank.image_vectors == [12, 12, 12]
    capsys.readouterr()
    assert main(["predict", str(folder), *paths, "--class", "gasket", "--output", str(tmp_path / "out"), *hidden]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3 and all(line["label"] == "normal" for line in lines)


# --- Masks that products keep ---


@pytest.mark.parametrize("tiling", ["same", (2, 2)])
@pytest.mark.parametrize("config", [{}, {"class_identity": "predicted"}, {"class_identity": "pooled"}])
def test_a_kept_mask_answers_as_one_that_is_given(make, photograph, marked, tiling, config):
    detector = make(**config)
    images = [photograph(3), with_another_number(normals_of(photograph, 0)[0], 1)]
    given = answers(detector, images, "bolt", ignore_mask=marked, tiling=tiling)
    bare = answers(detector, images, "bolt", tiling=tiling)
    asked = {"class_name": "bolt", "tiling": tiling, "explain": True}
    told = detector(images[1], ignore_mask=marked, **asked)["explanation"]
    names = (
        detector.model.config.class_names if config else ["bolt"]
    )  # where classes are predicted, either may be found
    for name in names:
        detector.set_ignore_mask(name, marked)
    assert answers(detector, images, "bolt", tiling=tiling) == given != bare
    assert answers(detector, images, "bolt", ignore_mask="none", tiling=tiling) == bare
    assert detector(images[1], **asked)["explanation"] == told
    found = detector(images, class_name="bolt", batch_size=2, tiling=tiling)
    assert [each["score"] for each in found] == [each[0] for each in given]
    full = next(predict(detector.model, detector.processor, images, class_names="bolt", tiling=tiling)).full_size_map()
    assert (full[marked] == 0).all() and (found[0]["anomaly_map"][marked] == 0).all() and full[~marked].max() > 0


@pytest.mark.parametrize("config", [{}, {"class_identity": "predicted"}])
@pytest.mark.parametrize("named", [True, False])
def test_no_other_products_answer_changes_by_one_bit(make, photograph, marked, config, named):
    detector = make(**config)
    images = [normals_of(photograph, owner, 6)[number] for number in (4, 5) for owner in (0, 1, 1)]
    names = ["bolt", "nut", "nut"] * 2 if named else None
    before = answers(detector, images, names, batch_size=6)
    assert [each[3] for each in before] == ["bolt", "nut", "nut"] * 2
    detector.set_ignore_mask("bolt", marked)
    after = answers(detector, images, names, batch_size=6)
    for number in range(6):
        assert (before[number] == after[number]) == (number % 3 > 0)
    numbered = [with_another_number(image, 7) if n % 3 == 0 else image for n, image in enumerate(images)]
    if named and not config:  # what is under the mask may still lead to another product
        assert answers(detector, numbered, names, batch_size=6) == after
    detector.set_ignore_mask("bolt", None)
    assert answers(detector, images, names, batch_size=6) == before


@pytest.mark.parametrize("config", [{}, {"class_identity": "predicted"}])
def test_an_unnamed_image_is_judged_once_and_found_out_before_where_a_mask_is_kept(
    make, photograph, marked, config, monkeypatch
):
    detector = make(**config)
    passes, encode = [], detector.model.prompted_pass
    monkeypatch.setattr(detector.model, "prompted_pass", lambda *given: passes.append(len(given[0])) or encode(*given))
    images = [normals_of(photograph, owner, 6)[4] for owner in (0, 1)]
    before = answers(detector, images)
    assert passes == [2]  # nobody keeps a mask: one pass through the tower finds out and judges
    detector.set_ignore_mask("bolt", marked)
    passes.clear()
    assert answers(detector, images[1:])
    assert passes == [
        1,
        1,
    ]  # the whole as it came, to find out whether a mask is to be laid over it; then the judgment
    passes.clear()
    both = answers(detector, images)
    assert passes == [2, 2] and both[1] == before[1] and both[0] != before[0]


def test_a_found_out_product_is_judged_with_its_mask_and_may_still_be_unknown(detector, photograph, marked):
    images = normals_of(photograph, 0, 2)
    given = answers(detector, images, ignore_mask=marked)
    assert [each[3] for each in given] == ["bolt", "bolt"]
    for name in ("bolt", "nut"):
        detector.set_ignore_mask(name, marked)
    assert answers(detector, images) == given
    for product in detector.model.products:
        record = product.record
        record.threshold = dataclasses.replace(record.threshold, novelty_thresholds=[1e-9, 1e-9])
    assert {each[1] for each in answers(detector, images)} == {"unknown product"}
    tiled = answers(detector, images, tiling=(2, 2))
    assert {each[1] for each in tiled} == {"unknown product"}


def test_enrolling_keeps_the_mask_and_later_images_are_taken_in_with_it(make, photograph, marked):
    more, held_out = [photograph(777)], normals_of(photograph, 7, 6)[4:]
    thresholds, banks = [], []
    for given in (True, False):
        detector = make()
        later = {"ignore_mask": marked} if given else {}
        detector.enroll("gasket", normals_of(photograph, 7), ignore_mask=marked)
        [(name, kept)] = kept_masks(detector).items()
        assert name == "gasket" and np.array_equal(kept, marked)
        detector.add_normals("gasket", more, **later)
        thresholds.append(detector.calibrate("gasket", held_out, **later))
        bank = detector.model.products[2].bank
        banks.append(bank.vectors)
        assert bank.image_vectors == [12, 12, 12, 12]
    assert thresholds[0] == thresholds[1] and torch.equal(*banks)
    judged = next(predict(detector.model, detector.processor, held_out[-1:], class_names="gasket"))
    assert judged.raw_score == pytest.approx(thresholds[1].image_scores[-1], abs=1e-6)
    detector.enroll("seal", normals_of(photograph, 8), ignore_mask=[marked, marked, None])
    detector.enroll("ring", normals_of(photograph, 9), ignore_mask="none")
    assert kept_masks(detector).keys() == {"gasket"}  # one for each image is not kept
    detector.add_normals("gasket", [photograph(778)], ignore_mask="none")
    assert detector.model.products[2].bank.image_vectors[-1] == 16


def test_masks_are_saved_exactly_at_one_bit_a_pixel(tmp_path, detector, photograph):
    mask = np.random.default_rng(0).random((37, 51)) < 0.3
    image, processor = photograph(3, size=(51, 37)), detector.processor
    detector.set_ignore_mask("nut", Image.fromarray(mask))
    expected = answers(detector, [image], "nut")
    detector.save_pretrained(tmp_path / "full")
    detector.save_pretrained(tmp_path / "adapter", adapter=True)
    kept = load_file(tmp_path / "full" / "model.safetensors")["products.1.ignore_mask"]
    assert kept.dtype == torch.uint8 and kept.numel() == (37 * 51 + 7) // 8
    for loaded in (
        AnoPLeModel.from_pretrained(tmp_path / "full"),
        AnoPLeModel.load_adapter(tmp_path / "adapter", clip=detector.model.clip),
        AnoPLeModel.from_pretrained(tmp_path / "full", dtype=torch.bfloat16),
    ):
        read = detector_of(loaded, processor)
        [(name, found)] = kept_masks(read).items()
        assert name == "nut" and np.array_equal(found, mask)
        if loaded.dtype == torch.float32:
            assert answers(read, [image], "nut") == expected
    detector.forget("bolt")
    assert "0.ignore_mask" in dict(detector.model.products.named_buffers())
    assert np.array_equal(kept_masks(detector)["nut"], mask)
    detector.save_pretrained(tmp_path / "less")
    less = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path / "less"))
    assert np.array_equal(kept_masks(less)["nut"], mask)
    detector.enroll("bolt", normals_of(photograph, 0))
    detector.forget("nut")
    assert not kept_masks(detector) and not detector.model.products.have_masks
    assert not [name for name, _ in detector.model.named_buffers() if "ignore_mask" in name]


def test_what_cannot_be_meant_is_refused_and_nothing_is_lost(tmp_path, detector, photograph, marked):
    detector.set_ignore_mask("bolt", marked)
    with pytest.raises(ValueError, match="marks nothing"):
        detector.set_ignore_mask("bolt", np.zeros_like(marked))
    with pytest.raises(ValueError, match="leaves no patch"):
        detector.set_ignore_mask("bolt", np.ones_like(marked))
    with pytest.raises(ValueError, match="not known"):
        detector.set_ignore_mask("gear", marked)
    with pytest.raises(ImageError, match="no such file"):
        detector.set_ignore_mask("bolt", tmp_path / "gone.png")
    with pytest.raises(ValueError, match="leaves no patch"):
        detector.enroll("gasket", normals_of(photograph, 7), ignore_mask=np.ones_like(marked))
    with pytest.raises(ImageError, match="keeps an ignore_mask of 48 x 40"):
        detector.add_normals("bolt", [photograph(5, size=(40, 40))])
    masks = kept_masks(detector)
    assert masks.keys() == {"bolt"} and np.array_equal(masks["bolt"], marked)


def test_keeping_a_mask_is_logged(detector, marked):
    detector.set_ignore_mask("bolt", marked, date="2026-11-24")
    detector.set_ignore_mask("bolt", None)
    kept, dropped = detector.model.config.history
    assert (kept["action"], dropped["action"]) == ("keep_ignore_mask", "drop_ignore_mask")
    assert kept["class_name"] == "bolt" and kept["date"] == "2026-11-24" and kept["known_photographs"] == 3


@pytest.mark.parametrize("tiling", ["same", (2, 2)])
@pytest.mark.parametrize("named", [True, False])
def test_an_image_of_another_size_than_the_mask_fails_alone(detector, photograph, marked, named, tiling):
    for name in ("bolt", "nut"):
        detector.set_ignore_mask(name, marked)
    images = [photograph(1), photograph(2, size=(60, 60)), photograph(3)]
    judge = {"detector": detector.model, "processor": detector.processor}
    options = {"class_names": "bolt" if named else None, "tiling": tiling}
    found = list(predict(**judge, sources=images, **options))
    assert [each.error is None for each in found] == [True, False, True]
    assert "keeps an ignore_mask of 48 x 40 pixels" in found[1].error and "60 x 60" in found[1].error
    assert all(value is None for name, value in vars(found[1]).items() if name not in ("source", "error"))
    alone = list(predict(**judge, sources=images[2:], **options))
    assert found[2].score == pytest.approx(alone[0].score, abs=1e-6)
    options = {"class_name": "bolt" if named else None, "tiling": tiling, "explain": True}
    results = detector(images, batch_size=3, **options)
    assert [each["error"] for each in results] == [each.error for each in found]
    assert results[1]["score"] is None and results[2]["score"] == found[2].score
    with pytest.raises(ImageError, match="keeps an ignore_mask"):
        detector(images[1], on_error="raise", **options)
    unmasked = next(predict(**judge, sources=images[1:2], ignore_mask="none", class_names="bolt"))
    assert unmasked.error is None


def test_the_commands_keep_masks(tmp_path, small_clip_folder, photograph, marked, capsys):
    folder = str(write_detector(tmp_path / "detector", small_clip_folder, photograph))
    picture = str(tmp_path / "mask.png")
    Image.fromarray(marked).save(picture)
    paths = [str(tmp_path / f"gasket{number}.png") for number in range(3)]
    for path, image in zip(paths, normals_of(photograph, 7), strict=True):
        image.save(path)

    def judge(*options: str) -> list[float]:
        capsys.readouterr()
        assert main(["predict", folder, *paths, "--class", "gasket", *options]) == 0
        return [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]

    assert main(["enroll", folder, "gasket", *paths, "--ignore_mask", picture]) == 0
    kept = judge()
    assert kept == judge("--ignore_mask", picture) != judge("--ignore_mask", "none")
    assert main(["products", folder]) == 0
    assert "gasket: An ignore mask of 48 x 40 pixels is kept (0.2 kB)." in capsys.readouterr().out
    assert main(["ignore", folder, "gasket", "none"]) == 0 and "No ignore mask" in capsys.readouterr().out
    assert judge() == judge("--ignore_mask", "none")
    assert main(["ignore", folder, "gasket", picture]) == 0 and judge() == kept
    assert main(["ignore", folder, "washer", picture]) == 2 and "washer" in capsys.readouterr().err


def test_a_fit_takes_a_folder_of_masks(tmp_path, small_clip_folder, photograph, marked):
    data, masks = write_products(tmp_path / "data", photograph), tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(marked).save(masks / "nut.png")
    options = ["--shots", "2", "--ignore_masks", str(masks)]
    folder = fit_program(*options, data=data, clip=small_clip_folder, output=tmp_path / "fitted")
    model, processor = AnoPLeModel.from_pretrained(folder), AnoPLeProcessor.from_pretrained(folder)
    detector = detector_of(model, processor)
    [(name, kept)] = kept_masks(detector).items()
    assert name == "nut" and np.array_equal(kept, marked)
    assert [each.image_vectors for each in detector.products] == [[16, 16], [12, 12]]
    assert model.config.fit["ignore_masks"] == "masks"
    shot = data / model.config.fit["files"]["nut"][0]
    found = answers(detector, [shot, with_another_number(Image.open(shot), 3)], "nut")
    assert found[0] == found[1]
    Image.fromarray(marked).save(masks / "washer.png")
    with pytest.raises(ValueError, match="washer"):
        fit_program(*options, data=data, clip=small_clip_folder, output=tmp_path / "again")


def test_the_demo_uses_the_kept_mask(tmp_path, small_clip_folder, photograph, marked):
    session = start_session(str(write_detector(tmp_path / "detector", small_clip_folder, photograph)))
    detector = detector_of(session.model, session.processor)
    detector.set_ignore_mask("bolt", marked)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths[:2]):
        with_another_number(photograph(3), number).save(path)
    photograph(3, size=(60, 60)).save(paths[2])
    first, second, other = inspect_images(session, [str(path) for path in paths], "bolt")
    [given] = detector(paths[:1], class_name="bolt", ignore_mask=marked)
    assert first.score == second.score == given["score"] and "keeps an ignore_mask" in other.error


# --- What a frame is like, which no mask changes ---


@pytest.mark.parametrize("tiling", [None, (1, 2)])
def test_a_mask_that_is_given_or_dropped_later_changes_no_frame(detector, photograph, marked, tmp_path, tiling):
    images = normals_of(photograph, 5, 5)
    for image in images:  # what is ignored makes up most of the light
        image.paste(Image.new("RGB", (48, 36), "white"), (0, 0))
    ignored = np.zeros((40, 48), dtype=bool)
    ignored[:36] = True
    ignored[30:36, :24] = False
    detector.enroll("plain", images[:4], tiling=tiling)
    detector.enroll("hidden", images[:4], tiling=tiling, ignore_mask=ignored)
    plain, hidden = (detector.model.products.named(name).record.frame for name in ("plain", "hidden"))
    assert plain == hidden
    for name, mask in (("plain", ignored), ("hidden", "none")):
        [answer] = predict(detector.model, detector.processor, images[4:], class_names=name, ignore_mask=mask)
        assert answer.reason in (None, "nothing like the product"), answer.reason
