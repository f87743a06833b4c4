"""`anople fit --tiling`: what is trained on, remembered, calibrated and predicted are the tiles."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.cli import main
from modeling_anople.inference_anople import Views, judge_views
from modeling_anople.pipeline_anople import predict
from modeling_anople.training.few_shot import choose_shots, make_samples, make_validation_batch
from modeling_anople.training.options import TrainingConfig

from .fitting import fit
from .test_tiling import board


SPOT = (300, 60)
SHOTS, TILES = 3, 4


@pytest.fixture(scope="module")
def boards(tmp_path_factory) -> Path:
    """Four good strips of 512 x 128 to learn from, one good and one with a spot of 4 pixels to test."""
    root = tmp_path_factory.mktemp("boards")
    places = [(f"train/good/{n}", n, None) for n in range(4)] + [("test/good/0", 10, None), ("test/spot/0", 9, SPOT)]
    for place, seed, spot in places:
        file = root / "strip" / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        board(seed, spot=spot).save(file)
    mask = np.zeros((128, 512), dtype=np.uint8)
    mask[SPOT[1] : SPOT[1] + 4, SPOT[0] : SPOT[0] + 4] = 255
    (root / "strip" / "ground_truth" / "spot").mkdir(parents=True)
    Image.fromarray(mask).save(root / "strip" / "ground_truth" / "spot" / "0_mask.png")
    return root


@pytest.fixture(scope="module")
def folder(boards, small_clip_folder, tmp_path_factory) -> Path:
    options = ["--shots", str(SHOTS), "--tiling", "1,4"]
    return fit(*options, data=boards, clip=small_clip_folder, output=tmp_path_factory.mktemp("fit") / "detector")


@pytest.fixture
def detector(folder) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    return AnoPLeModel.from_pretrained(folder), AnoPLeProcessor.from_pretrained(folder)


def shown(detector, boards) -> list[Image.Image]:
    return [Image.open(boards / file).convert("RGB") for file in detector[0].config.fit["files"]["strip"]]


def test_a_fit_trains_and_watches_on_tiles(detector, boards):
    _, processor = detector
    config = TrainingConfig(data_root=str(boards), shots=SHOTS, monitor_images=1)
    shots = choose_shots(config)
    samples, whole = (make_samples(config, processor, shots, 2, tiling) for tiling in ("1,4", None))
    assert len(samples.images) == SHOTS * TILES and len(whole.images) == SHOTS
    first = shown(detector, boards)[0]
    for tile, picture in zip(samples.images, Views.of(first, processor, "1,4").pictures(), strict=False):
        assert picture.size[0] == picture.size[1]  # the aspect ratio is kept
        square = torch.from_numpy(np.array(picture.resize((64, 64), Image.Resampling.BICUBIC))).permute(2, 0, 1)
        assert torch.equal(tile, square)
    assert make_validation_batch(config, processor, shots, "1,4")["pixel_values"].shape[1:] == (3, 32, 32)


def test_the_memory_of_a_fit_holds_the_tiles(detector):
    model, _ = detector
    assert model.config.tiling == "1,4" and not model.config.product_tilings
    assert model.memory.counts == [[TILES * 16] * SHOTS]
    boxes = model.memory.boxes(0)
    assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 512 and boxes[:, 3].max() == 128
    widths = boxes[:, 2] - boxes[:, 0]
    assert widths.max() < 512 / 4 / 2  # a quarter of a tile, not of the photograph


def test_the_line_of_a_fit_is_set_by_tiled_scores_of_photographs_left_out(detector, boards):
    model, processor = detector
    line = model.config.calibration["strip"]
    assert line["photographs"] == SHOTS
    for number, image in enumerate(shown(detector, boards)):
        own = model.memory.vectors_of(0, number)
        tiled, whole = (
            judge_views(model, Views.of(image, processor, tiling), 0, exclude=own) for tiling in ("1,4", None)
        )
        assert line["image_scores"][number] == pytest.approx(tiled.image_scores.item(), rel=1e-5)
        assert line["map_maxima"][number] == pytest.approx(tiled.anomaly_maps.max().item(), rel=1e-5)
        assert line["image_scores"][number] != pytest.approx(whole.image_scores.item(), rel=1e-3)


def test_later_calibration_is_by_tiles_too(detector):
    model, processor = detector
    more = [board(seed) for seed in (20, 21)]
    line = model.calibrate("strip", more, processor=processor)
    assert line.held_out == 2
    for image, score in zip(more, line.image_scores[-2:], strict=True):
        judged = next(predict(model, processor, [image], class_names="strip"))
        assert judged.raw_score == pytest.approx(score, rel=1e-5)
        assert next(predict(model, processor, [image], tiling=None)).raw_score != pytest.approx(score, rel=1e-3)


def test_prediction_after_a_fit_uses_tiles_and_finds_what_wholes_do_not_show(detector, folder, boards, capsys):
    model, processor = detector
    paths = [boards / "strip" / "test" / kind / "0.png" for kind in ("spot", "good")]
    bad, good = predict(model, processor, paths, class_names="strip")
    tiles = judge_views(model, Views.of(Image.open(paths[0]).convert("RGB"), processor, "1,4"), 0)
    assert bad.raw_score == tiles.image_scores.item() and bad.raw_map.shape == tuple(tiles.anomaly_maps.shape[1:])
    assert bad.raw_map.shape[1] == 4 * bad.raw_map.shape[0]
    row, column = divmod(int(bad.full_size_map().argmax()), 512)
    assert abs(row - 62) <= 24 and abs(column - 302) <= 24 and bad.raw_score > 2 * good.raw_score
    plain, plain_good = predict(model, processor, paths, class_names="strip", tiling=None)
    assert plain.raw_score / plain_good.raw_score < bad.raw_score / good.raw_score
    capsys.readouterr()
    assert main(["predict", str(folder), str(paths[0])]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == bad.score
