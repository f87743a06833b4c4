"""Large photographs in tiles: how they lie, how their maps become one, and what the memory and the line know of them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_anople import AnoPLeModel
from modeling_anople.cli import main
from modeling_anople.explanation_anople import explain
from modeling_anople.inference_anople import Views, judge_views
from modeling_anople.pipeline_anople import predict
from modeling_anople.tiling_anople import LARGEST_COUNT, blend_maps, plan_tiles, tiling_text

from .detectors import fit, write_detector


def board(seed: int, *, spot: tuple[int, int] | None = None) -> Image.Image:
    """A strip of 512 x 128, softly shaded, in light and noise of its own, and a spot of 4 pixels where that is asked for."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:128, 0:512]
    grey = 110 + 30 * np.sin(columns / 20) + 30 * np.cos(rows / 20) + generator.normal(0, 3, rows.shape)
    grey += 2 * generator.normal()
    picture = np.repeat(np.clip(grey, 0, 255)[..., None], 3, axis=2).astype(np.uint8)
    if spot:
        picture[spot[1] : spot[1] + 4, spot[0] : spot[0] + 4] = (255, 40, 30)
    return Image.fromarray(picture)


@pytest.fixture
def detector(make_model, make_processor, photograph):
    processor = make_processor()
    return fit(make_model(), processor, photograph), processor


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, None), ("none", None), ("auto", "auto"), ("2,8", "2,8"), ((2, 8), "2,8"), ([1, 3], "1,3")],
)
def test_a_tiling_is_written_in_one_way(given, kept, make_model):
    assert tiling_text(given) == kept
    assert make_model(tiling=kept).config.tiling == kept


@pytest.mark.parametrize("given", ["2", "2,0", "a,b", (1, 2, 3), 5, "2x8"])
def test_another_tiling_is_refused(given):
    with pytest.raises(ValueError, match="rows and columns"):
        tiling_text(given)


def test_auto_cuts_by_the_models_side_and_never_more_than_the_bound():
    assert plan_tiles((400, 448), "auto", 224) is None
    layout = plan_tiles((1000, 1000), "auto", 224)
    assert layout.side == 448 and len(layout.boxes) == 9
    large = plan_tiles((2000, 8000), "auto", 224)
    assert LARGEST_COUNT / 2 < len(large.boxes) <= LARGEST_COUNT and large.side > 448
    assert len(plan_tiles((60_000, 10), "auto", 32).boxes) <= LARGEST_COUNT
    rows = {box[1] for box in plan_tiles((2000, 8000), (2, 8), 224).boxes}
    assert len(rows) == 2 and len(plan_tiles((2000, 8000), (2, 8), 224).boxes) == 16


def test_blended_maps_lie_where_the_tiles_do():
    layout = plan_tiles((64, 256), (1, 4), 32)
    truth = torch.zeros(64, 256)
    truth[20:30, 100:110] = 1
    cut = []
    for left, top, right, bottom in layout.boxes:
        tile = torch.zeros(bottom - top, right - left)
        inside = truth[max(0, top) : bottom, max(0, left) : right]
        tile[max(0, -top) : max(0, -top) + len(inside), max(0, -left) : max(0, -left) + inside.shape[1]] = inside
        cut.append(torch.nn.functional.interpolate(tile[None, None], size=(32, 32), mode="area")[0, 0])
    blended = blend_maps(torch.stack(cut)[None], layout)
    full = torch.nn.functional.interpolate(blended[None], size=(64, 256), mode="bilinear")[0, 0]
    row, column = divmod(int(full.argmax()), 256)
    assert 19 <= row <= 30 and 99 <= column <= 110 and full[:, :90].max() < 0.05 and full[:, 120:].max() < 0.05


def test_tiling_finds_a_small_defect_on_a_long_board_and_plain_resizing_does_not(detector):
    model, processor = detector
    settings = {"processor": processor}
    model.enroll("board", [board(n) for n in range(3)], tiling=(2, 6), **settings)
    model.enroll("strip", [board(n) for n in range(3)], **settings)
    assert model.config.product_tilings == {"board": "2,6"}
    bad, good = board(9, spot=(300, 60)), board(10)
    found, fine = list(predict(model, processor, [bad, good], class_names="board"))
    assert found.label == "anomalous" and fine.label == "normal" and found.score > 0.5 > fine.score
    row, column = divmod(int(found.full_size_map().argmax()), 512)
    assert 40 <= row <= 86 and 280 <= column <= 326
    plain = next(predict(model, processor, [bad], class_names="strip"))
    assert plain.label == "normal" and plain.raw_score < found.raw_score / 2
    told = explain(model, processor, bad, "board")
    assert told.score == pytest.approx(found.score, abs=1e-6)
    left, top, right, bottom = told.box
    assert left < 306 and right > 300 and top < 66 and bottom > 60 and told.nearest_index in (0, 1, 2)
    assert told.nearest_box[2] <= 512 and told.nearest_box[3] <= 128


def test_other_products_answer_as_before_and_all_is_kept_when_saved(tmp_path, detector, photograph):
    model, processor = detector
    image = photograph(3)
    before = next(predict(model, processor, [image], class_names="bolt"))
    model.enroll("board", [board(n) for n in range(2)], processor=processor, tiling=(1, 4))
    after = next(predict(model, processor, [image], class_names="bolt"))
    assert after.score == pytest.approx(before.score, abs=1e-6)
    assert model.memory.counts[2] == [64, 64] and model.memory.vectors_of(2, 1) == slice(64, 128)
    model.save_pretrained(tmp_path)
    loaded = AnoPLeModel.from_pretrained(tmp_path)
    expected = next(predict(model, processor, [board(5)], class_names="board"))
    again = next(predict(loaded, processor, [board(5)], class_names="board"))
    assert again.score == expected.score and np.array_equal(again.raw_map, expected.raw_map)
    loaded.add_normals("board", [board(7)], processor=processor)
    assert loaded.memory.counts[2] == [64, 64, 64]
    loaded.forget("board", processor=processor)
    assert not loaded.config.product_tilings


def test_a_photographs_score_is_the_highest_of_its_tiles_and_the_pipeline_says_the_same(detector):
    model, processor = detector
    model.enroll("board", [board(n) for n in range(2)], processor=processor, tiling=(1, 4))
    image = board(8, spot=(40, 40))
    views = Views.of(image, processor, "1,4")
    tiles = torch.cat([inputs["pixel_values"] for inputs in views.batches()])
    assert tiles.shape[0] == 4
    scores = model(tiles, class_ids=torch.full((4,), 2)).image_scores
    merged = judge_views(model, views, 2)
    assert merged.image_scores.item() == pytest.approx(scores.max().item(), abs=1e-6)
    detect = model.as_pipeline(processor)
    results = detect([image, b"no picture", board(8)], class_name="board", explain=True, batch_size=2)
    assert results[0]["raw_score"] == pytest.approx(scores.max().item(), abs=1e-6) and results[1]["error"]
    assert results[0]["anomaly_map"].shape == (128, 512) and results[0]["explanation"].score == results[0]["score"]
    named = detect(image)  # the class is predicted on the whole photograph
    assert named["class_name"] in model.config.class_names and named["anomaly_map"].shape == (128, 512)
    untiled = detect(image, class_name="board", tiling=None)
    assert untiled["raw_score"] != results[0]["raw_score"] and untiled["anomaly_map"].shape == (128, 512)


def test_the_commands_take_tilings(tmp_path, small_clip_folder, photograph, capsys):
    folder = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    for number in range(2):
        board(number).save(tmp_path / f"board{number}.png")
    paths = [str(tmp_path / "board0.png"), str(tmp_path / "board1.png")]
    assert main(["enroll", str(folder), "board", *paths, "--tiling", "1,4"]) == 0
    assert AnoPLeModel.from_pretrained(folder).config.product_tilings == {"board": "1,4"}
    capsys.readouterr()
    answers = []
    for options in ([], ["--tiling", "1,4"], ["--tiling", "none"]):
        assert main(["predict", str(folder), paths[0], "--class", "board", *options]) == 0
        answers.append(json.loads(capsys.readouterr().out)["score"])
    assert answers[0] == answers[1] != answers[2]
    assert main(["predict", str(folder), paths[0], "--tiling", "2x8"]) == 2
    assert "2x8" in capsys.readouterr().err


def test_leave_one_out_leaves_out_all_tiles_of_a_photograph(detector):
    model, processor = detector
    normals = [board(n) for n in range(3)]
    views = [Views.of(image, processor, "1,4") for image in normals]
    model.memory.clear(1)
    model.class_prototypes[1] = 0
    model.remember(views, 1)
    line = model.calibrate(views, 1)
    others = judge_views(model, views[0], 1, exclude=model.memory.vectors_of(1, 0)).image_scores.item()
    assert min(abs(score - others) for score in line.image_scores) < 1e-6 and line.image_threshold > others
    with pytest.raises(ValueError, match="whose memory holds 3"):
        model.calibrate(views[:2], 1)
