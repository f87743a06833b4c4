"""Converted checkpoints compute what open_clip computes; open_clip itself says what that is."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hub import open_clip_tokenizer
from hub.open_clip_format import ARCHITECTURES, clip_config, convert_weights
from hub.open_clip_tokenizer import load_tokenizer
from modeling_anople import AnoPLeModel, AnoPLeProcessor

from .converting import VOCABULARY, Reference, convert, differences, run_open_clip
from .fitting import fit, write_products


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory) -> Reference:
    return run_open_clip(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(scope="module")
def converted(open_clip, tmp_path_factory) -> Path:
    """The folders of the small models, by their names."""
    root = tmp_path_factory.mktemp("converted")
    for name in ("exact", "quick", "wide"):
        weights = open_clip.folder / f"{name}.safetensors"
        convert(open_clip.folder / f"{name}.json", "--weights", weights, "--output", root / name)
    return root


# -- features -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "activation"), [("exact", "gelu"), ("quick", "quick_gelu"), ("wide", "gelu")])
def test_features_are_those_of_open_clip(open_clip, converted, name, activation):
    config = CLIPModel.config_class.from_pretrained(converted / name)
    assert config.vision_config.hidden_act == config.text_config.hidden_act == activation
    found, answers = differences(converted / name, open_clip.answers(name)), open_clip.answers(name)
    assert max(found.values()) < 1e-4, found
    assert all(answers[kind].abs().max() > 0.1 for kind in found)  # there is something to compare


def test_the_papers_backbone_at_its_full_size(open_clip, tmp_path):
    """Half precision, inside a training checkpoint, as `.pt`."""
    weights = open_clip.folder / "full.pt"
    convert("ViT-B-16-plus-240", "--weights", weights, "--output", tmp_path / "full", "--dtype", "float16")
    found = differences(tmp_path / "full", open_clip.answers("full"))
    assert max(found.values()) < 1e-4, found
    with safe_open(tmp_path / "full/model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    processor = AnoPLeProcessor.from_clip(str(tmp_path / "full"), ["bolt"])
    assert processor.image_size == 240


def test_the_wrong_activation_is_seen(open_clip, converted, tmp_path):
    weights = open_clip.folder / "exact.safetensors"
    convert(open_clip.folder / "quick.json", "--weights", weights, "--output", tmp_path / "wrong")
    found = differences(tmp_path / "wrong", open_clip.answers("exact"))
    assert min(found["image"], found["patches"], found["text"]) > 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_is_open_clips_own(open_clip, name):
    """Its published config is ours, and weights of exactly its shapes are taken."""
    published = open_clip.facts("published")
    assert ARCHITECTURES[name] == published["configs"][name]
    weights = {key: torch.empty(shape, device="meta") for key, shape in published["shapes"][name].items()}
    config = clip_config(ARCHITECTURES[name])
    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    made = convert_weights(weights, config)
    assert {key: value.shape for key, value in made.items()} == {key: value.shape for key, value in expected.items()}


# -- files ----------------------------------------------------------------------------------------------------------


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["plain", "wrapped", "module", "wrapped module"])
def test_legacy_files_give_the_same_folder(open_clip, converted, tmp_path, kind):
    content = open_clip.weights("wide")
    if "module" in kind:
        content = {f"module.{name}": value for name, value in content.items()}
    if "wrapped" in kind:
        content = {"epoch": 32, "name": "any", "state_dict": content, "optimizer": {"state": {}, "param_groups": [{}]}}
    torch.save(content, tmp_path / "legacy.pt")
    convert(open_clip.folder / "wide.json", "--weights", tmp_path / "legacy.pt", "--output", tmp_path / "clip")
    assert digest(tmp_path / "clip") == digest(converted / "wide")


def test_the_folder_is_whole_and_without_pickles(converted):
    names = {path.name for path in (converted / "exact").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json",
                     "tokenizer_config.json"}  # fmt: skip
    assert not list(converted.glob("*.part"))
    assert AutoProcessor.from_pretrained(converted / "exact").tokenizer.model_max_length == 77
    assert load_file(converted / "exact/model.safetensors")["logit_scale"].dtype == torch.float32


def test_the_card_tells_where_the_weights_are_from(open_clip, converted, tmp_path):
    weights = open_clip.folder / "wide.safetensors"
    hashed = hashlib.sha256(weights.read_bytes()).hexdigest()
    card = (converted / "wide/README.md").read_text(encoding="utf-8")
    for text in ("`wide.safetensors`", hashed, "| source | not stated |", "see the source", "exact GELU", "42 x 42"):
        assert text in card, text
    assert "license:" not in card
    told = ["--source", "own training", "--license", "mit", "--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.5, 0.5]
    convert(open_clip.folder / "wide.json", "--weights", weights, "--output", tmp_path / "told", *told)
    card = (tmp_path / "told/README.md").read_text(encoding="utf-8")
    assert "license: mit\n" in card and "| licence of the weights | mit |" in card and "| own training |" in card
    assert CLIPImageProcessorPil.from_pretrained(tmp_path / "told").image_std == (0.25, 0.5, 0.5)


def test_pixels_are_prepared_as_beside_the_weights(open_clip, tmp_path):
    for name in ("wide.json", "wide.safetensors"):
        shutil.copy(open_clip.folder / name, tmp_path)
    preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.25]}
    neighbour = {"model_cfg": open_clip.facts("wide"), "preprocess_cfg": preprocessing}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(neighbour), encoding="utf-8")
    convert(tmp_path / "wide.json", "--weights", tmp_path / "wide.safetensors", "--output", tmp_path / "clip")
    processor = AnoPLeProcessor.from_clip(str(tmp_path / "clip"), ["bolt"])
    images = processor.image_processor
    assert (images.image_mean, images.image_std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.25)) and processor.image_size == 42


def test_pixels_are_those_of_open_clip(open_clip, converted):
    expected = load_file(open_clip.folder / "photograph.answers")["pixels"]
    images = CLIPImageProcessorPil.from_pretrained(converted / "exact")
    with Image.open(open_clip.folder / "photograph.png") as photograph:
        pixels = images(photograph, return_tensors="pt")["pixel_values"][0]
    np.testing.assert_allclose(pixels, expected, atol=1e-5)


# -- tokenizer ------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_open_clip(open_clip, converted):
    tokenizer = AutoTokenizer.from_pretrained(converted / "exact")
    ids = open_clip.facts("texts")["ids"]
    assert len(ids) > 10 and tokenizer.eos_token_id == 49407
    assert {text: tokenizer(text)["input_ids"] for text in ids} == ids


def test_only_what_ftfy_mends_differs(open_clip, converted):
    """open_clip repairs such texts first; the repaired text has the same tokens."""
    tokenizer = AutoTokenizer.from_pretrained(converted / "exact")
    for mended, ids in open_clip.facts("texts")["mended"].values():
        assert tokenizer(mended, add_special_tokens=False)["input_ids"] == ids


@torch.no_grad()
def test_texts_have_open_clips_features_however_they_are_filled_up(open_clip, converted):
    """open_clip fills up with 0 and reads at the largest id; transformers fills up with 49407 and reads at the first."""
    texts, answers = list(open_clip.facts("texts")["ids"]), open_clip.answers("exact")
    tokens = AutoTokenizer.from_pretrained(converted / "exact")(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    ids = tokens["input_ids"]
    assert torch.equal(ids.argmax(1), answers["tokens"].argmax(1)) and ids.shape == (len(texts), 77)
    features = CLIPModel.from_pretrained(converted / "exact").get_text_features(**tokens).pooler_output
    torch.testing.assert_close(features, answers["text"], atol=1e-4, rtol=0)


def test_a_folder_with_a_tokenizer_gives_the_same(open_clip, converted, tmp_path):
    given = load_tokenizer(str(converted / "exact"), vocab_size=49408, max_length=77)
    read = load_tokenizer(str(VOCABULARY), vocab_size=49408, max_length=77)
    assert given.get_vocab() == read.get_vocab()
    assert given("Metal nut, 3 mm")["input_ids"] == read("Metal nut, 3 mm")["input_ids"]


def test_an_installed_open_clip_lends_its_vocabulary_without_being_imported(open_clip, tmp_path, monkeypatch):
    package = tmp_path / "open_clip"
    package.mkdir()
    shutil.copy(VOCABULARY, package)
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_clip_tokenizer._installed_vocabulary() == package / VOCABULARY.name
    assert len(load_tokenizer(None, vocab_size=49408, max_length=77)) == 49408


# -- use ------------------------------------------------------------------------------------------------------------


def test_a_detector_is_fitted_on_a_converted_folder(converted, tmp_path, photograph):
    data = write_products(tmp_path / "data", photograph)
    folder = fit(data=data, clip=converted / "exact", output=tmp_path / "detector")
    model, processor = AnoPLeModel.from_pretrained(folder), AnoPLeProcessor.from_pretrained(folder)
    result = model(**processor(images=data / "bolt/test/good/000.png", class_names="bolt"))
    assert result.calibrated_scores.isfinite().all() and result.anomaly_maps.shape == (1, 32, 32)
    weights = load_file(converted / "exact/model.safetensors")
    assert all(torch.equal(model.clip.state_dict()[name], weight) for name, weight in weights.items())


def test_a_sharded_or_half_precision_start_is_single_precision(open_clip, converted, tmp_path):
    weights = {name: value.half() for name, value in open_clip.weights("wide").items()}
    save_file(weights, tmp_path / "half.safetensors")
    convert(open_clip.folder / "wide.json", "--weights", tmp_path / "half.safetensors", "--output", tmp_path / "clip")
    assert load_file(tmp_path / "clip/model.safetensors")["logit_scale"].dtype == torch.float32
    assert AnoPLeModel.from_clip(str(tmp_path / "clip"), ["a"], prompt_length=2).dtype == torch.float32
