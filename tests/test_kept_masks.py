"""Ignore masks that products keep: the answers of a mask that is given, in the checkpoint, and no other product's matter."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from demo.inspect_tab import inspect_images
from demo.session import start_session
from modeling_anople import AnoPLeModel, AnoPLeProcessor, ImageError
from modeling_anople.cli import main
from modeling_anople.explanation_anople import explain
from modeling_anople.pipeline_anople import full_size_map, predict

from .detectors import normals_of, write_detector
from .fitting import fit as fit_program
from .fitting import write_products
from .test_ignoring import with_another_number


@pytest.fixture
def mask() -> np.ndarray:
    marked = np.zeros((40, 48), dtype=bool)
    marked[20:, 24:] = True
    return marked


def answers(model, processor, images, names=None, **options) -> list[tuple]:
    found = list(predict(model, processor, images, class_names=names, **options))
    assert not any(each.error for each in found)
    return [(each.score, each.label, each.p_value, each.class_name, each.raw_map.tobytes()) for each in found]


@pytest.mark.parametrize("tiling", ["same", (2, 2)])
@pytest.mark.parametrize("config", [{}, {"class_identity": "predicted"}, {"class_identity": "pooled"}])
def test_a_kept_mask_answers_as_one_that_is_given(make_detector, photograph, mask, tiling, config):
    model, processor = make_detector(**config)
    images = [photograph(3), with_another_number(normals_of(photograph, 0)[0], 1)]
    given = answers(model, processor, images, "bolt", ignore_mask=mask, tiling=tiling)
    bare = answers(model, processor, images, "bolt", tiling=tiling)
    told = explain(model, processor, images[1], "bolt", ignore_mask=mask, tiling=tiling)
    for name in model.config.class_names if config else ["bolt"]:  # where classes are predicted, either may be found
        model.set_ignore_mask(name, mask)
    assert answers(model, processor, images, "bolt", tiling=tiling) == given != bare
    assert answers(model, processor, images, "bolt", ignore_mask="none", tiling=tiling) == bare
    assert explain(model, processor, images[1], "bolt", tiling=tiling) == told
    found = model.as_pipeline(processor)(images, class_name="bolt", batch_size=2, tiling=tiling)
    assert [each["score"] for each in found] == [each[0] for each in given]
    full = full_size_map(next(predict(model, processor, images, class_names="bolt", tiling=tiling)))
    assert (full[mask] == 0).all() and (found[0]["anomaly_map"][mask] == 0).all() and full[~mask].max() > 0


@pytest.mark.parametrize("config", [{}, {"class_identity": "predicted"}])
@pytest.mark.parametrize("named", [True, False])
def test_no_other_products_answer_changes_by_one_bit(make_detector, photograph, mask, config, named):
    model, processor = make_detector(**config)
    images = [normals_of(photograph, owner, 6)[number] for number in (4, 5) for owner in (0, 1, 1)]
    names = ["bolt", "nut", "nut"] * 2 if named else None
    before = answers(model, processor, images, names, batch_size=6)
    assert [each[3] for each in before] == ["bolt", "nut", "nut"] * 2
    model.set_ignore_mask("bolt", mask)
    after = answers(model, processor, images, names, batch_size=6)
    for number in range(6):
        assert (before[number] == after[number]) == (number % 3 > 0)
    numbered = [with_another_number(image, 7) if n % 3 == 0 else image for n, image in enumerate(images)]
    if named and not config:  # what is under the mask may still lead to another product
        assert answers(model, processor, numbered, names, batch_size=6) == after
    model.set_ignore_mask("bolt", None)
    assert answers(model, processor, images, names, batch_size=6) == before


@pytest.mark.parametrize("config", [{}, {"class_identity": "predicted"}])
def test_an_unnamed_photograph_is_judged_once_unless_a_mask_is_laid_over_it(
    make_detector, photograph, mask, config, monkeypatch
):
    model, processor = make_detector(**config)
    images = [normals_of(photograph, owner, 6)[4] for owner in (0, 1)]
    before = answers(model, processor, images)
    model.set_ignore_mask("bolt", mask)
    passes, walk = [], model.walk_views
    monkeypatch.setattr(model, "walk_views", lambda *given: passes.append(1) or walk(*given))
    assert answers(model, processor, images[1:]) and len(passes) == 1
    both = answers(model, processor, images)
    assert len(passes) == 3 and both[1] == before[1] and both[0] != before[0]


def test_a_found_out_product_is_judged_with_its_mask_and_may_still_be_unknown(make_detector, photograph, mask):
    model, processor = make_detector()
    images = normals_of(photograph, 0, 2)
    given = answers(model, processor, images, ignore_mask=mask)
    assert [each[3] for each in given] == ["bolt", "bolt"]
    for name in ("bolt", "nut"):
        model.set_ignore_mask(name, mask)
    assert answers(model, processor, images) == given
    for line in model.config.calibration.values():
        line["novelty_thresholds"] = [1e-9, 1e-9]
    assert {each[1] for each in answers(model, processor, images)} == {"unknown product"}
    tiled = answers(model, processor, images, tiling=(2, 2))
    assert {each[1] for each in tiled} == {"unknown product"}


def test_enrolling_keeps_the_mask_and_later_photographs_are_taken_in_with_it(make_detector, photograph, mask):
    more, held_out = [photograph(777)], normals_of(photograph, 7, 6)[4:]
    lines, banks = [], []
    for given in (True, False):
        model, processor = make_detector()
        later = {"ignore_mask": mask} if given else {}
        model.enroll("gasket", normals_of(photograph, 7), processor=processor, ignore_mask=mask)
        assert np.array_equal(model.masks.of("gasket"), mask) and model.masks.of("bolt") is None
        model.add_normals("gasket", more, processor=processor, **later)
        model.calibrate("gasket", held_out, processor=processor, **later)
        lines.append(model.config.calibration["gasket"])
        banks.append(model.memory.bank(2))
        assert model.memory.counts[2] == [12, 12, 12, 12]
    assert lines[0] == lines[1] and torch.equal(*banks)
    line = model.config.calibration["gasket"]["image_scores"][-1]
    assert next(predict(model, processor, held_out[-1:], class_names="gasket")).raw_score == pytest.approx(
        line, abs=1e-6
    )
    model.enroll("seal", normals_of(photograph, 8), processor=processor, ignore_mask=[mask, mask, None])
    model.enroll("ring", normals_of(photograph, 9), processor=processor, ignore_mask="none")
    assert set(model.config.ignore_mask_sizes) == {"gasket"}  # one for each photograph is not kept
    model.add_normals("gasket", [photograph(778)], processor=processor, ignore_mask="none")
    assert model.memory.counts[2][-1] == 16


def test_masks_are_saved_exactly_at_one_bit_a_pixel(tmp_path, make_detector, make_model, photograph):
    model, processor = make_detector()
    mask = np.random.default_rng(0).random((37, 51)) < 0.3
    image = photograph(3, size=(51, 37))
    model.set_ignore_mask("nut", Image.fromarray(mask))
    expected = answers(model, processor, [image], "nut")
    model.save_pretrained(tmp_path / "full")
    model.save_adapter(tmp_path / "adapter")
    kept = load_file(tmp_path / "full" / "model.safetensors")["masks.mask_1"]
    assert kept.dtype == torch.uint8 and kept.numel() == (37 * 51 + 7) // 8
    for loaded in (
        AnoPLeModel.from_pretrained(tmp_path / "full"),
        AnoPLeModel.load_adapter(tmp_path / "adapter", clip=model.clip),
        AnoPLeModel.from_pretrained(tmp_path / "full", dtype=torch.bfloat16),
    ):
        assert np.array_equal(loaded.masks.of("nut"), mask) and loaded.masks.of("bolt") is None
        if loaded.dtype == torch.float32:
            assert answers(loaded, processor, [image], "nut") == expected
    model.forget("bolt", processor=processor)
    assert "mask_0" in dict(model.masks.named_buffers()) and np.array_equal(model.masks.of("nut"), mask)
    model.save_pretrained(tmp_path / "less")
    assert np.array_equal(AnoPLeModel.from_pretrained(tmp_path / "less").masks.of("nut"), mask)
    model.enroll("bolt", normals_of(photograph, 0), processor=processor)
    model.forget("nut", processor=processor)
    assert model.masks.is_empty and not list(model.masks.buffers())


def test_what_cannot_be_meant_is_refused_and_nothing_is_lost(tmp_path, make_detector, photograph, mask):
    model, processor = make_detector()
    model.set_ignore_mask("bolt", mask)
    with pytest.raises(ValueError, match="marks nothing"):
        model.set_ignore_mask("bolt", np.zeros_like(mask))
    with pytest.raises(ValueError, match="leaves no patch"):
        model.set_ignore_mask("bolt", np.ones_like(mask))
    with pytest.raises(ValueError, match="not known"):
        model.set_ignore_mask("gear", mask)
    with pytest.raises(ImageError, match="no such file"):
        model.set_ignore_mask("bolt", tmp_path / "gone.png")
    with pytest.raises(ValueError, match="leaves no patch"):
        model.enroll("gasket", normals_of(photograph, 7), processor=processor, ignore_mask=np.ones_like(mask))
    with pytest.raises(ImageError, match="keeps an ignore_mask of 48 x 40"):
        model.add_normals("bolt", [photograph(5, size=(40, 40))], processor=processor)
    assert np.array_equal(model.masks.of("bolt"), mask) and set(model.config.ignore_mask_sizes) == {"bolt"}


@pytest.mark.parametrize("tiling", ["same", (2, 2)])
@pytest.mark.parametrize("named", [True, False])
def test_a_photograph_of_another_size_than_the_mask_fails_alone(make_detector, photograph, mask, named, tiling):
    model, processor = make_detector()
    for name in ("bolt", "nut"):
        model.set_ignore_mask(name, mask)
    images = [photograph(1), photograph(2, size=(60, 60)), photograph(3)]
    options = {"class_names": "bolt" if named else None, "tiling": tiling}
    found = list(predict(model, processor, images, **options))
    assert [each.error is None for each in found] == [True, False, True]
    assert "keeps an ignore_mask of 48 x 40 pixels" in found[1].error and "60 x 60" in found[1].error
    alone = list(predict(model, processor, images[2:], **options))
    assert found[2].score == pytest.approx(alone[0].score, abs=1e-6)
    options = {"class_name": "bolt" if named else None, "tiling": tiling, "explain": True}
    results = model.as_pipeline(processor)(images, batch_size=3, **options)
    assert [each["error"] for each in results] == [each.error for each in found]
    assert results[1]["score"] is None and results[2]["score"] == found[2].score
    with pytest.raises(ImageError, match="keeps an ignore_mask"):
        explain(model, processor, images[1], "bolt" if named else None, tiling=tiling)
    unmasked = next(predict(model, processor, images[1:2], ignore_mask="none", **{"class_names": "bolt"}))
    assert unmasked.error is None


def test_a_mask_between_patches_that_leaves_none_fails_alone(make_detector, photograph):
    model, processor = make_detector()
    nearly = np.ones((40, 48), dtype=bool)
    nearly[0, 0] = False
    found = list(predict(model, processor, [photograph(1), photograph(2)], ignore_mask=[nearly, None]))
    assert "leaves no patch" in found[0].error and found[1].error is None


def test_the_commands_keep_masks(tmp_path, small_clip_folder, photograph, mask, capsys):
    folder = str(write_detector(tmp_path / "detector", small_clip_folder, photograph))
    picture = str(tmp_path / "mask.png")
    Image.fromarray(mask).save(picture)
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


def test_a_fit_takes_a_folder_of_masks(tmp_path, small_clip_folder, photograph, mask):
    data, masks = write_products(tmp_path / "data", photograph), tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(mask).save(masks / "nut.png")
    options = ["--shots", "2", "--ignore_masks", str(masks)]
    folder = fit_program(*options, data=data, clip=small_clip_folder, output=tmp_path / "fitted")
    model, processor = AnoPLeModel.from_pretrained(folder), AnoPLeProcessor.from_pretrained(folder)
    assert np.array_equal(model.masks.of("nut"), mask) and model.masks.of("bolt") is None
    assert model.memory.counts == [[16, 16], [12, 12]] and model.config.fit["ignore_masks"] == "masks"
    shot = data / model.config.fit["files"]["nut"][0]
    found = answers(model, processor, [shot, with_another_number(Image.open(shot), 3)], "nut")
    assert found[0] == found[1]
    Image.fromarray(mask).save(masks / "washer.png")
    with pytest.raises(ValueError, match="washer"):
        fit_program(*options, data=data, clip=small_clip_folder, output=tmp_path / "again")


def test_the_demo_uses_the_kept_mask(tmp_path, small_clip_folder, photograph, mask):
    session = start_session(str(write_detector(tmp_path / "detector", small_clip_folder, photograph)))
    session.model.set_ignore_mask("bolt", mask)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths[:2]):
        with_another_number(photograph(3), number).save(path)
    photograph(3, size=(60, 60)).save(paths[2])
    first, second, other = inspect_images(session, [str(path) for path in paths], "bolt")
    given = next(predict(session.model, session.processor, paths[:1], class_names="bolt", ignore_mask=mask))
    assert first.score == second.score == given.score and "keeps an ignore_mask" in other.error
