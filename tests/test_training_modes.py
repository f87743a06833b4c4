"""Every switch of the method and every layout of data, from the command line to a detector that judges photographs."""

import gc
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, Value

from modeling_anople import AnoPLeModel, AnoPLeProcessor, load_image
from modeling_anople.fitting_anople import calibrate_product
from modeling_anople.training.few_shot import choose_shots
from modeling_anople.training.options import TrainingConfig

from . import fitting
from .detectors import wholes
from .fitting import assert_it_predicts, assert_same_weights, read_log, write_products


@pytest.fixture(scope="module")
def products(tmp_path_factory, photograph) -> Path:
    return write_products(tmp_path_factory.mktemp("products"), photograph)


@pytest.fixture
def fit(products, small_clip_folder, tmp_path):
    """Fit a detector to the products in this process; two steps unless told otherwise."""

    def run(*options: str, data: Path = products, output: str = "detector") -> Path:
        return fitting.fit(*options, data=data, clip=small_clip_folder, output=tmp_path / output)

    return run


# every value of every switch, switches that have nothing to do with each other together
MODES = [
    "--coupling both --pixel_anomaly perlin --memory_layers 0 2",
    "--coupling text_to_vision --pixel_anomaly cut_paste --memory_rotations quarter_turns",
    "--coupling vision_to_text --pixel_anomaly both --image_map fused",
    "--coupling uncoupled --pixel_anomaly none",
    "--coupling text_only --view_grid 1 --num_workers 1",
    "--coupling vision_only --view_grid 3 --gradient_accumulation_steps 2",
    "--coupling none --latent_noise 0",
    "--coupling none --prefix none",
    "--coupling_projection per_layer --prompt_depth 2 --prompt_length 2 --pixel_loss_weight 0",
    "--prefix none --image_loss_weight 0",
    "--decoder_head conv --latent_noise 0.05",
    "--decoder_head conv --alignment_detach decoder --class_identity pooled",
    "--decoder_layers 1 3 --decoder_widths 8 4 --alignment_loss_weight 0",
    "--alignment_detach none --alignment_warmup 0 --class_identity predicted --class_prediction text",
    "--alignment_detach decoder --alignment_warmup 0 --map_fusion decoder --image_fusion text --max_false_alarm_rate 0.4",
    "--alignment_detach map --alignment_warmup 0 --mixed_precision bf16",
]


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_trains_and_gives_a_detector(fit, products, mode):
    detector = fit(*mode.split(), "--batch_size", "4")
    log = read_log(detector)
    assert [line["step"] for line in log] == [1, 2]
    model = assert_it_predicts(detector, products, ["bolt/test/scratch/000.png", "nut/test/good/000.png"])
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    words = mode.split()
    for place, word in enumerate(words[:-1]):
        name, value = word[2:], words[place + 1]
        if word.startswith("--") and hasattr(model.config, name) and isinstance(getattr(model.config, name), str):
            assert getattr(model.config, name) == value


def test_workers_prepare_the_same_photographs(fit):
    assert_same_weights(fit(output="none"), fit("--num_workers", "2", output="two"))


def test_what_can_be_promised_is_said_once_for_all_products_alike(fit, caplog):
    with caplog.at_level(logging.INFO, logger="modeling_anople"):
        fit()
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in said if "can be promised" in line] == ["bolt, nut"]
    (health,) = [line for line in said if "find made defects" in line]
    assert re.search(r"AUROC 0\.\d{3}; maps of other photographs in their place reach [01]\.\d{3}\.$", health)


def models_in_memory() -> int:
    return sum(type(one) is AnoPLeModel for one in gc.get_objects())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_nothing_of_a_fit_outlives_it(fit, precision):
    """A model in a cycle waits for the collector with all its GPU memory; many fits in a row would fill the GPU."""
    gc.collect()
    gc.disable()
    try:
        before = models_in_memory()
        fit("--mixed_precision", precision)
        assert models_in_memory() <= before
    finally:
        gc.enable()


def test_bfloat16_stays_near_full_precision(fit):
    full, half = read_log(fit(output="full")), read_log(fit("--mixed_precision", "bf16", output="half"))
    assert full != half
    assert all(line == pytest.approx(expected, abs=0.05) for line, expected in zip(half, full, strict=True))


IDENTITIES = ["--mixed_precision bf16", "--class_identity pooled", "--class_identity predicted --image_map fused"]


def thresholds_of(model: AnoPLeModel) -> dict[str, dict | None]:
    thresholds = {product["name"]: product["threshold"] for product in model.config.products}
    return json.loads(json.dumps({**thresholds, "of all": model.config.pooled_threshold}))


@pytest.mark.parametrize("options", IDENTITIES)
def test_the_thresholds_are_those_of_the_finished_detector(fit, products, options):
    """Fitted in full precision, which predicts, and when the memory of every product is there to compare with."""
    detector = fit(*options.split(), "--shots", "2")
    model, processor = AnoPLeModel.from_pretrained(detector), AnoPLeProcessor.from_pretrained(detector)
    kept = thresholds_of(model)
    for class_id, paths in enumerate(model.config.fit["files"].values()):
        images = wholes([load_image(products / path) for path in paths], processor)
        calibrate_product(model, images, class_id)
    assert kept.keys() == thresholds_of(model).keys() == {"bolt", "nut", "of all"}
    for name, threshold in thresholds_of(model).items():
        assert (threshold is None) == (kept[name] is None) == (name == "of all" and "pooled" not in options)
        for field, value in (threshold or {}).items():
            if value is None:
                assert kept[name][field] is None
                continue
            if field == "estimate":
                assert value == kept[name][field] == "extrapolated"
                continue
            ours, theirs = (torch.tensor(numbers, dtype=torch.float64) for numbers in (kept[name][field], value))
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6, msg=lambda text: f"{name}, {field}: {text}")


def test_plain_folders_give_the_same_detector_as_an_mvtec_tree(fit, products, tmp_path):
    plain = tmp_path / "plain"
    for name in ("bolt", "nut"):
        shutil.copytree(products / name / "train" / "good", plain / name)
    tree, folders = fit("--shots", "2", output="tree"), fit("--shots", "2", data=plain, output="folders")
    files = [AnoPLeModel.from_pretrained(detector).config.fit["files"] for detector in (tree, folders)]
    assert [[Path(path).name for path in paths] for paths in files[0].values()] == [
        [Path(path).name for path in paths] for paths in files[1].values()
    ]
    assert_same_weights(tree, folders)


def test_one_photograph_of_one_product_is_enough(fit, photograph, tmp_path, caplog):
    (tmp_path / "one" / "bolt").mkdir(parents=True)
    photograph(0).save(tmp_path / "one" / "bolt" / "only.jpg")
    detector = fit("--shots", "1", data=tmp_path / "one")
    model = assert_it_predicts(detector, tmp_path / "one", ["bolt/only.jpg"])
    assert [product["image_vectors"] for product in model.config.products] == [[16]]
    assert model.config.fit["files"] == {"bolt": ["bolt/only.jpg"]}
    assert not any(record.levelno == logging.WARNING and "shots" in record.getMessage() for record in caplog.records)


def test_a_parquet_file_and_a_metadata_folder_are_sources_too(fit, photograph, tmp_path):
    """Rows without a split belong to train; those that are anomalous are no shots."""
    rows = [("bolt", number, int(number == 1)) for number in range(3)] + [("nut", number, 0) for number in (3, 4)]
    folder = tmp_path / "folder"
    folder.mkdir()
    for _, number, _ in rows:
        photograph(number).save(folder / f"{number}.png")
    with (folder / "metadata.jsonl").open("w") as file:
        for name, number, label in rows:
            file.write(json.dumps({"file_name": f"{number}.png", "class_name": name, "label": label}) + "\n")
    columns = {
        "image": [
            {"bytes": (folder / f"{number}.png").read_bytes(), "path": f"{number}.png"} for _, number, _ in rows
        ],
        "class_name": [name for name, _, _ in rows],
        "label": [label for _, _, label in rows],
    }
    features = Features(image=Image(), class_name=Value("string"), label=Value("int64"))
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "parts.parquet")
    detectors = [
        fit("--shots", "4", data=source, output=source.stem) for source in (folder, tmp_path / "parts.parquet")
    ]
    for detector in detectors:
        config = AnoPLeModel.from_pretrained(detector).config
        assert config.fit["files"] == {"bolt": ["0.png", "2.png"], "nut": ["3.png", "4.png"]}
    assert_same_weights(*detectors)


def test_a_damaged_photograph_that_only_watches_is_left_out(fit, products, tmp_path, caplog):
    data = shutil.copytree(products, tmp_path / "data")
    chosen = AnoPLeModel.from_pretrained(fit(output="first")).config.fit["files"]
    for name in ("bolt", "nut"):
        for path in (data / name / "train" / "good").iterdir():
            if path.relative_to(data).as_posix() not in chosen[name]:
                path.write_bytes(b"no picture")
    detector = fit(data=data)
    said = [record.getMessage() for record in caplog.records if "Held out to check the decoder" in record.getMessage()]
    assert said and all("is not an image that Pillow can read" in line for line in said)
    assert AnoPLeModel.from_pretrained(detector).config.fit["decoder_health"] is None


def test_fewer_photographs_than_shots_are_all_used_with_a_warning(fit, products, caplog):
    detector = fit("--shots", "7", "--classes", "bolt")
    config = AnoPLeModel.from_pretrained(detector).config
    assert config.fit["files"] == {"bolt": [f"bolt/train/good/{number:03d}.png" for number in range(5)]}
    assert config.products[0]["image_vectors"] == [16] * 5
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("bolt" in text and "5" in text and "7" in text for text in warnings)


def test_the_choice_of_one_class_does_not_depend_on_the_others(products):
    whole, alone = (
        choose_shots(TrainingConfig(data_root=str(products), shots=2, classes=classes)).files["nut"]
        for classes in (None, ["nut"])
    )
    assert whole == alone


def test_a_photograph_that_cannot_be_read_is_named(fit, products, tmp_path):
    data = shutil.copytree(products, tmp_path / "products")
    for path in (data / "nut/train/good").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"nut.train.good.00\d\.png: .*(again|remove)"):
        fit(data=data)


def test_the_white_value_of_a_12_bit_camera_is_fitted_and_kept(fit, tmp_path):
    folder = tmp_path / "camera" / "bolt"
    folder.mkdir(parents=True)
    ramp = np.linspace(0, 4095, 48 * 40).reshape(48, 40).astype(np.uint16)
    PIL.Image.fromarray(ramp).save(folder / "0.png")
    told = fit("--white_value", "4095", data=tmp_path / "camera", output="told")
    with pytest.raises(ValueError, match="as with the lens cap on: .* --white_value"):
        fit(data=tmp_path / "camera", output="untold")
    processor = AnoPLeProcessor.from_pretrained(told)
    assert processor.white_value == 4095
    pixels = processor(folder / "0.png")["pixel_values"]
    assert pixels.max() - pixels.min() > 3  # the whole range, and none of it clipped
