"""A saved detector is the detector: in this process, in a fresh one, and where the package is not installed."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.fitting_anople import calibrate_product, remember

from .contract import ANSWERS, assert_same, fill, judge, learnables, training_batch
from .detectors import detector_of, pixel_images, wholes
from .encoders import encoder_options


CHOICES = [{"coupling": "text_to_vision"}, {"coupling": "none"}, {"decoder_head": "conv"}, {"prefix": "none"}]


REMEMBERS = ("the CLIP remembers", "a memory encoder")


@pytest.fixture
def make_fitted(make_model, make_processor, photograph):
    """Make a detector with everything in it, its processor, and photographs to judge."""

    def make(remembers: str) -> tuple[AnoPLeModel, AnoPLeProcessor, list[Image.Image]]:
        options = encoder_options() if remembers == "a memory encoder" else {}
        model, processor = make_model(**options), make_processor()
        with torch.no_grad():
            for weight in learnables(model).values():  # nothing may be what a fresh start would draw again
                weight.add_(0.05 * torch.randn_like(weight))
            model.store_text_embeddings()
        for class_id in (0, 1):
            images = wholes([photograph(10 * class_id + number) for number in range(3)], processor)
            remember(model, images, class_id)
            calibrate_product(model, images, class_id)
        model.config.fit = {"shots": 3}
        return model, processor, [photograph(30 + number) for number in range(3)]

    return make


@pytest.fixture(params=REMEMBERS)
def fitted(request, make_fitted):
    return make_fitted(request.param)


def encoder_of(model: AnoPLeModel) -> dict:
    """The keyword by which an adapter gets its memory encoder, which was never saved; nothing where it has none."""
    return {} if model.memory_encoder is None else {"memory_encoder": model.memory_encoder.model}


@torch.no_grad()
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_saved_detector_answers_bit_for_bit_the_same(make_model, make_pixels, tmp_path, choice):
    model = fill(make_model(**choice), make_pixels)
    before = judge(model, make_pixels)
    model.save_pretrained(tmp_path)
    for read in (AnoPLeModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(read) is AnoPLeModel and not read.training
        assert {name: tuple(value.shape) for name, value in read.state_dict().items()} == {
            name: tuple(value.shape) for name, value in model.state_dict().items()
        }
        assert_same(before, judge(read, make_pixels))


def test_learning_goes_on_where_it_was_saved(make_model, make_pixels, tmp_path):
    model = fill(make_model(), make_pixels)
    model.save_pretrained(tmp_path)
    read = AnoPLeModel.from_pretrained(tmp_path)
    losses = [m.freeze_clip().train()(**training_batch(m, make_pixels)).loss for m in (model, read)]
    assert torch.equal(*losses)
    remember(read, pixel_images(make_pixels(1, seed=3)), 0)
    read.save_pretrained(tmp_path)
    assert [bank.size for bank in AnoPLeModel.from_pretrained(tmp_path).products.banks] == [48, 32]


@torch.no_grad()
def test_half_precision_loading_keeps_the_thresholds(make_model, make_pixels, tmp_path):
    model = fill(make_model(), make_pixels)
    model.save_pretrained(tmp_path)
    half = AnoPLeModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.config.products == model.config.products and half.config.products[1]["threshold"]
    assert half.products[0].bank.vectors.dtype == half.products[0].prototype.dtype == torch.bfloat16
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    pixels = make_pixels(3, seed=7)
    output = half(pixels.to(torch.bfloat16), class_ids=torch.tensor([0, 1, 0]))
    torch.testing.assert_close(
        output.image_scores.float(), judge(model, make_pixels).image_scores, atol=0.02, rtol=0.05
    )


CHILD = """
import sys
road, package, *folders = sys.argv[1:]
if road == "package":
    sys.path.insert(0, package)
    from modeling_anople import AnoPLeModel, AnoPLeProcessor
else:
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "modeling_anople":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Absent())
    try:
        import modeling_anople
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit("the package could be imported")
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, pipeline
import torch

def carry_on(model, folder):
    target = folder + "-carried"
    assert model.__module__.startswith("transformers_modules.")
    model.save_pretrained(target + "/full")
    model.save_adapter(target + "/adapter")
    detector = pipeline("image-anomaly-detection", model=target + "/full", trust_remote_code=True)
    assert detector.model.__module__.startswith("transformers_modules.")
    detector.enroll("gasket", [Image.open(f"{folder}/{n}.png") for n in range(2)])
    detector.save_pretrained(target + "/enrolled")

for folder in folders:
    if road == "package":
        models = {"own": AnoPLeModel.from_pretrained(folder), "auto": AutoModel.from_pretrained(folder)}
        processor = AutoProcessor.from_pretrained(folder)
        assert type(processor) is AnoPLeProcessor and type(models["auto"]) is AnoPLeModel
    else:
        models = {"remote": AutoModel.from_pretrained(folder, trust_remote_code=True)}
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor([Image.open(f"{folder}/{n}.png") for n in range(3)], class_names=["nut", "bolt", "nut"])
    for name, model in models.items():
        with torch.no_grad():
            output = model(**inputs)
        results = processor.post_process_anomaly_detection(output, target_sizes=[(40, 48)] * 3)
        answers = {key: output[key] for key in ("image_scores", "anomaly_maps", "calibrated_scores", "calibrated_maps")}
        answers["map"] = torch.stack([torch.from_numpy(result["anomaly_map"]) for result in results])
        save_file(answers, f"{folder}/{name}.safetensors")
    if road != "package":
        carry_on(model, folder)
        assert "modeling_anople" not in sys.modules
"""


@torch.no_grad()
@pytest.mark.parametrize(("road", "names"), [("package", ["own", "auto"]), ("trust_remote_code", ["remote"])])
def test_a_fresh_process_answers_bit_for_bit_the_same(make_fitted, small_clip_folder, tmp_path, road, names):
    """As remote code it also saves, enrolls and hands on all code."""
    saved = {tmp_path / f"detector {number}": make_fitted(remembers) for number, remembers in enumerate(REMEMBERS)}
    for folder, (model, processor, photographs) in saved.items():
        detector_of(model, processor).save_pretrained(folder)
        for number, image in enumerate(photographs):
            image.save(folder / f"{number}.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    package = os.path.dirname(os.path.dirname(sys.modules["modeling_anople"].__file__))
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, road, package, *map(str, saved)],
        cwd=elsewhere,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "modules" / "transformers_modules").exists() == (road == "trust_remote_code")
    for folder, (model, processor, photographs) in saved.items():
        inputs = processor(photographs, class_names=["nut", "bolt", "nut"])
        output = model(**inputs)
        results = processor.post_process_anomaly_detection(output, target_sizes=[(40, 48)] * 3)
        expected = {name: output[name] for name in ANSWERS}
        expected["map"] = torch.stack([torch.from_numpy(result["anomaly_map"]) for result in results])
        for name in names:
            answers = load_file(folder / f"{name}.safetensors")
            for key, value in expected.items():
                assert torch.equal(answers[key], value), (folder.name, name, key)
        if road == "trust_remote_code":
            assert_carried_on(Path(f"{folder}-carried"), folder, model, inputs, small_clip_folder)


def assert_carried_on(target: Path, folder: Path, model: AnoPLeModel, inputs: dict, clip: Path) -> None:
    """What remote code wrote is the detector that it was loaded from, with all code."""
    for name in ("full", "adapter", "enrolled"):
        assert code_in(target / name) == code_in(folder), name
        assert (target / name / "processor_config.json").exists()
    adapter = AnoPLeModel.load_adapter(target / "adapter", clip=clip, **encoder_of(model))
    for read in (
        AnoPLeModel.from_pretrained(target / "full"),
        AnoPLeModel.from_pretrained(target / "enrolled"),
        adapter,
    ):
        assert_same(model(**inputs), read(**inputs))
    assert read.config.class_names == ["bolt", "nut"]
    assert AnoPLeProcessor.from_pretrained(target / "enrolled").class_names == ["bolt", "nut", "gasket"]


def test_a_saved_folder_names_its_own_code(fitted, tmp_path):
    model, processor, _ = fitted
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"]["AutoModel"] == "modeling_anople.AnoPLeModel"
    assert config["auto_map"]["AutoConfig"] == "configuration_anople.AnoPLeConfig"
    assert [product["image_vectors"] for product in config["products"]] == [[16] * 3] * 2
    assert [product["name"] for product in config["products"] if product["threshold"]] == ["bolt", "nut"]
    assert config["fit"] == {"shots": 3}
    assert AutoConfig.from_pretrained(tmp_path).products == model.config.products
    saved = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    assert saved["auto_map"]["AutoProcessor"] == "processing_anople.AnoPLeProcessor"


def test_a_detector_takes_its_processor_along(fitted, tmp_path):
    model, processor, photographs = fitted
    model.save_pretrained(tmp_path / "first")
    assert not (tmp_path / "first/processor_config.json").exists()  # it was never seen with one
    processor.save_pretrained(tmp_path / "first")
    AnoPLeModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    read = AutoProcessor.from_pretrained(tmp_path / "second")
    assert type(read) is AnoPLeProcessor and read.class_names == ["bolt", "nut"]
    assert torch.equal(read(photographs)["pixel_values"], processor(photographs)["pixel_values"])


def test_a_checkpoint_cut_short_is_refused(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(SafetensorError, match="incomplete"):
        AnoPLeModel.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_refused(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["prompts.text"] = weights["prompts.text"][:, :2].clone()
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file(weights, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AnoPLeModel.from_pretrained(tmp_path)


def test_a_folder_without_a_config_is_refused(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        AutoModel.from_pretrained(tmp_path)


# -- the code that a detector carries -----------------------------------------------------------------------------------


def code_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("by", ["model", "detector"])
def test_a_detector_carries_all_code_its_pipelines_too(fitted, tmp_path, adapter, by):
    model, processor, _ = fitted
    if by == "detector":
        detector_of(model, processor).save_pretrained(tmp_path, adapter=adapter)
    elif adapter:
        model.save_adapter(tmp_path)
    else:
        model.save_pretrained(tmp_path)
    package = code_in(Path(sys.modules["modeling_anople"].__file__).parent)
    assert code_in(tmp_path) == {name: text for name, text in package.items() if name.endswith("_anople.py")}
    assert "pipeline_anople.py" in code_in(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["custom_pipelines"]["image-anomaly-detection"]


@torch.no_grad()
def test_a_new_detector_is_saved_as_an_adapter_at_once(make_model, small_clip_folder, make_pixels, tmp_path):
    model = make_model()
    model.save_adapter(tmp_path)
    read = AnoPLeModel.load_adapter(tmp_path, clip=small_clip_folder)
    assert torch.equal(read.products.text_embeddings(), model.products.text_embeddings())
    assert torch.equal(read(make_pixels(2)).anomaly_maps, model(make_pixels(2)).anomaly_maps)
    storages = {each.text_embeddings.untyped_storage().data_ptr() for each in model.products}
    assert len(storages) == 2


def test_code_of_another_version_in_the_folder_is_replaced(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    fresh = code_in(tmp_path)
    for name in fresh:
        (tmp_path / name).write_text("raise ImportError\n", "utf-8")
    make_model().save_pretrained(tmp_path)
    assert code_in(tmp_path) == fresh


@torch.no_grad()
@pytest.mark.parametrize("adapter", [False, True])
def test_a_threshold_that_was_moved_by_hand_is_saved(fitted, small_clip_folder, tmp_path, adapter):
    model, processor, photographs = fitted
    record = model.products.named("nut").record
    record.threshold = dataclasses.replace(record.threshold, image_threshold=0.5 * record.threshold.image_threshold)
    detector_of(model, processor).save_pretrained(tmp_path, adapter=adapter)
    if adapter:
        read = AnoPLeModel.load_adapter(tmp_path, clip=small_clip_folder, **encoder_of(model))
    else:
        read = AnoPLeModel.from_pretrained(tmp_path)
    inputs = processor(photographs, class_names="nut")
    assert_same(model(**inputs), read(**inputs))
    assert read.config.products == model.config.products


def test_the_processor_that_is_used_with_a_model_is_saved_with_it(fitted, photograph, tmp_path):
    model, processor, _ = fitted
    processor.white_value = 4095
    detector_of(model, processor).enroll("gasket", [photograph(50), photograph(51)])
    model.save_pretrained(tmp_path)
    read = AnoPLeProcessor.from_pretrained(tmp_path)
    assert read.class_names == ["bolt", "nut", "gasket"] and read.white_value == 4095
