"""Large images in tiles: how they lie, how their maps become one, and what training, memory and threshold know of them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor
from modeling_anople.cli import main
from modeling_anople.fitting_anople import calibrate_product, remember
from modeling_anople.inference_anople import TiledImage, predict_tiles, prepare_tiles
from modeling_anople.pipeline_anople import Prediction, predict
from modeling_anople.scoring_anople import AnoPLeOutput
from modeling_anople.tiling_anople import LARGEST_COUNT, blend_maps, plan_tiles, tiling_text
from modeling_anople.training.few_shot import choose_shots, make_samples, make_validation_batch
from modeling_anople.training.options import TrainingConfig

from .detectors import detector_of, write_detector
from .fitting import fit as fit_program


SPOT = (300, 60)
SHOTS, TILES = 3, 4


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
def detector(make_detector) -> AnomalyDetectionPipeline:
    return detector_of(*make_detector())


def tiled(image: Image.Image, detector: AnomalyDetectionPipeline, tiling: str | None, class_id: int) -> TiledImage:
    """Cut an image of a known product."""
    cut = TiledImage.of(image, detector.processor, tiling)
    cut.class_id = class_id
    return cut


def judge(detector: AnomalyDetectionPipeline, image: TiledImage, own: slice | None = None) -> AnoPLeOutput:
    """Judge an image, without some vectors of its product's memory."""
    exclude = None if own is None else (image.class_id, own)
    return predict_tiles(detector.model, [image], exclude=exclude)[0].output


def predict_one(detector: AnomalyDetectionPipeline, image: Image.Image, name: str | None, **options) -> Prediction:
    return next(predict(detector.model, detector.processor, [image], class_names=name, **options))


def tilings_of(detector: AnomalyDetectionPipeline) -> dict[str, str | None]:
    """The tilings of products that have one of their own."""
    return {each.name: each.tiling for each in detector.products if each.tiling != "same"}


# --- How tiles lie ---


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


# --- What they are good for ---


def test_tiling_finds_a_small_defect_on_a_long_board_and_plain_resizing_does_not(detector):
    detector.enroll("board", [board(n) for n in range(3)], tiling=(2, 6))
    detector.enroll("strip", [board(n) for n in range(3)])
    assert tilings_of(detector) == {"board": "2,6"}
    bad, good = board(9, spot=SPOT), board(10)
    options = {"class_names": "board", "explain": True}
    found, fine = predict(detector.model, detector.processor, [bad, good], **options)
    assert found.label == "anomalous" and fine.label == "normal" and found.score > 0.5 > fine.score
    row, column = divmod(int(found.full_size_map().argmax()), 512)
    assert 40 <= row <= 86 and 280 <= column <= 326
    plain = predict_one(detector, bad, "strip")
    assert plain.label == "normal" and plain.raw_score < found.raw_score / 2
    told = detector(bad, class_name="board", explain=True)["explanation"]
    assert told.score == pytest.approx(found.score, abs=1e-6)
    for explanation in (told, found.explanation):
        left, top, right, bottom = explanation.box
        assert left < 306 and right > 300 and top < 66 and bottom > 60 and explanation.nearest_index in (0, 1, 2)
        assert explanation.nearest_box[2] <= 512 and explanation.nearest_box[3] <= 128


def test_other_products_answer_as_before_and_all_is_kept_when_saved(tmp_path, detector, photograph):
    image = photograph(3)
    before = predict_one(detector, image, "bolt")
    detector.enroll("board", [board(n) for n in range(2)], tiling=(1, 4))
    after = predict_one(detector, image, "bolt")
    assert after.score == pytest.approx(before.score, abs=1e-6)
    bank = detector.model.products[2].bank
    assert bank.image_vectors == [64, 64] and bank.vectors_of(1) == slice(64, 128)
    detector.save_pretrained(tmp_path)
    loaded = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(tmp_path))
    expected, again = (predict_one(each, board(5), "board") for each in (detector, loaded))
    assert again.score == expected.score and np.array_equal(again.raw_map, expected.raw_map)
    loaded.add_normals("board", [board(7)])
    assert loaded.model.products[2].bank.image_vectors == [64, 64, 64]
    loaded.forget("board")
    assert not tilings_of(loaded)


def test_an_images_score_is_the_highest_of_its_tiles_and_the_pipeline_says_the_same(detector):
    detector.enroll("board", [board(n) for n in range(2)], tiling=(1, 4))
    image = board(8, spot=(40, 40))
    cut = tiled(image, detector, "1,4", 2)
    tiles, _ = prepare_tiles([(cut, number) for number in range(len(cut.boxes))])
    assert tiles.shape[0] == 4
    with torch.no_grad():
        scores = detector.model(tiles, class_ids=torch.full((4,), 2)).image_scores
    assert judge(detector, cut).image_scores.item() == pytest.approx(scores.max().item(), abs=1e-6)
    results = detector([image, b"no picture", board(8)], class_name="board", explain=True, batch_size=2)
    assert results[0]["raw_score"] == pytest.approx(scores.max().item(), abs=1e-6) and results[1]["error"]
    assert results[0]["anomaly_map"].shape == (128, 512) and results[0]["explanation"].score == results[0]["score"]
    named = detector(image)  # the class is predicted on the whole image
    assert named["class_name"] in detector.model.config.class_names and named["anomaly_map"].shape == (128, 512)
    untiled = detector(image, class_name="board", tiling=None)
    assert untiled["raw_score"] != results[0]["raw_score"] and untiled["anomaly_map"].shape == (128, 512)


def test_leave_one_out_leaves_out_all_tiles_of_an_image(detector):
    detector.model.products.clear()
    cut = [tiled(board(n), detector, "1,4", 1) for n in range(4)]
    remember(detector.model, cut[:3], 1)
    threshold = calibrate_product(detector.model, cut[:3], 1)
    others = judge(detector, cut[0], detector.model.products[1].bank.vectors_of(0)).image_scores.item()
    assert min(abs(score - others) for score in threshold.image_scores) < 1e-6
    assert threshold.image_threshold > others
    with pytest.raises(ValueError, match="4 images of 'nut' were given, whose memory holds 3"):
        calibrate_product(detector.model, cut, 1)


def test_the_commands_take_tilings(tmp_path, small_clip_folder, photograph, capsys):
    folder = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    for number in range(2):
        board(number).save(tmp_path / f"board{number}.png")
    paths = [str(tmp_path / "board0.png"), str(tmp_path / "board1.png")]
    assert main(["enroll", str(folder), "board", *paths, "--tiling", "1,4"]) == 0
    assert tilings_of(AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(folder))) == {"board": "1,4"}
    capsys.readouterr()
    answers = []
    for options in ([], ["--tiling", "1,4"], ["--tiling", "none"]):
        assert main(["predict", str(folder), paths[0], "--class", "board", *options]) == 0
        answers.append(json.loads(capsys.readouterr().out)["score"])
    assert answers[0] == answers[1] != answers[2]
    assert main(["predict", str(folder), paths[0], "--tiling", "2x8"]) == 2
    assert "2x8" in capsys.readouterr().err


# --- `anople fit --tiling`: what is trained on, remembered, calibrated and predicted are the tiles ---


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
    output = tmp_path_factory.mktemp("fit") / "detector"
    return fit_program(*options, data=boards, clip=small_clip_folder, output=output)


@pytest.fixture
def fitted(folder) -> AnomalyDetectionPipeline:
    return AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(folder))


def shown(fitted, boards) -> list[Image.Image]:
    return [Image.open(boards / file).convert("RGB") for file in fitted.model.config.fit["files"]["strip"]]


def test_a_fit_trains_and_watches_on_tiles(folder, fitted, boards):
    processor = AnoPLeProcessor.from_pretrained(folder)
    config = TrainingConfig(data_root=str(boards), shots=SHOTS, monitor_images=1)
    shots = choose_shots(config)
    samples, whole = (make_samples(config, processor, shots, 2, tiling) for tiling in ("1,4", None))
    assert len(samples.images) == SHOTS * TILES and len(whole.images) == SHOTS
    first = shown(fitted, boards)[0]
    for tile, picture in zip(samples.images, TiledImage.of(first, processor, "1,4").pictures(), strict=False):
        assert picture.size[0] == picture.size[1]  # the aspect ratio is kept
        square = torch.from_numpy(np.array(picture.resize((64, 64), Image.Resampling.BICUBIC))).permute(2, 0, 1)
        assert torch.equal(tile, square)
    assert make_validation_batch(config, processor, shots, "1,4")["pixel_values"].shape[1:] == (3, 32, 32)


def test_the_memory_of_a_fit_holds_the_tiles(fitted):
    assert fitted.model.config.tiling == "1,4" and not tilings_of(fitted)
    [product] = fitted.model.products
    assert product.bank.image_vectors == [TILES * 16] * SHOTS
    boxes = product.bank.boxes
    assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 512 and boxes[:, 3].max() == 128
    widths = boxes[:, 2] - boxes[:, 0]
    assert widths.max() < 512 / 4 / 2  # a quarter of a tile, not of the image


def test_the_threshold_of_a_fit_is_that_of_tiled_scores_of_images_left_out(fitted, boards):
    [product] = fitted.model.products
    threshold = product.record.threshold
    assert threshold.image_count == SHOTS
    for number, image in enumerate(shown(fitted, boards)):
        own = product.bank.vectors_of(number)
        cut, whole = (judge(fitted, tiled(image, fitted, tiling, 0), own) for tiling in ("1,4", None))
        assert threshold.image_scores[number] == pytest.approx(cut.image_scores.item(), rel=1e-5)
        assert threshold.map_maxima[number] == pytest.approx(cut.anomaly_maps.max().item(), rel=1e-5)
        assert threshold.image_scores[number] != pytest.approx(whole.image_scores.item(), rel=1e-3)


def test_later_calibration_is_by_tiles_too(fitted):
    more = [board(seed) for seed in (21, 24)]
    threshold = fitted.calibrate("strip", more)
    assert threshold.held_out == 2
    for image, score in zip(more, threshold.image_scores[-2:], strict=True):
        assert predict_one(fitted, image, "strip").raw_score == pytest.approx(score, rel=1e-5)
        assert predict_one(fitted, image, None, tiling=None).raw_score != pytest.approx(score, rel=1e-3)


def test_prediction_after_a_fit_uses_tiles_and_finds_what_wholes_do_not_show(fitted, folder, boards, capsys):
    paths = [boards / "strip" / "test" / kind / "0.png" for kind in ("spot", "good")]
    loop = {"detector": fitted.model, "processor": fitted.processor, "sources": paths, "class_names": "strip"}
    bad, good = predict(**loop)
    tiles = judge(fitted, tiled(Image.open(paths[0]).convert("RGB"), fitted, "1,4", 0))
    assert bad.raw_score == tiles.image_scores.item() and bad.raw_map.shape == tuple(tiles.anomaly_maps.shape[1:])
    assert bad.raw_map.shape[1] == 4 * bad.raw_map.shape[0]
    row, column = divmod(int(bad.full_size_map().argmax()), 512)
    assert abs(row - 62) <= 24 and abs(column - 302) <= 24 and bad.raw_score > 2 * good.raw_score
    plain, plain_good = predict(**loop, tiling=None)
    assert plain.raw_score / plain_good.raw_score < bad.raw_score / good.raw_score
    capsys.readouterr()
    assert main(["predict", str(folder), str(paths[0])]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == bad.score


@pytest.mark.parametrize("tiling", ["100000,100000", (100_000, 100_000), "1,4097", (65, 64)])
def test_more_tiles_than_can_be_had_are_refused(tiling):
    with pytest.raises(ValueError, match="tiles: at most 4096 can be had"):
        tiling_text(tiling)
    assert tiling_text((64, 64)) == "64,64"


@pytest.mark.parametrize("tiling", [(math.inf, 2), (None, 1), "nan,2", "9" * 5000 + ",1", ()])
def test_what_is_no_number_of_tiles_is_refused(tiling):
    with pytest.raises(ValueError, match="tiling must be 'auto', rows and columns"):
        tiling_text(tiling)
