"""Checkpoints of open_clip become CLIPModel folders that answer the same, or are refused with a remedy."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hub.mini_clip.small_clip import byte_tokenizer
from hub.open_clip import checkpoints
from hub.open_clip.__main__ import main
from hub.open_clip.checkpoints import ARCHITECTURES, clip_config, convert_weights, load_tokenizer, read_vocabulary
from modeling_anople import AnoPLeModel, AnoPLeProcessor

from ..fitting import fit, write_products


# --- Where open_clip is, and what it computed: shared by the tests of the conversion ---


PACKAGES = Path(sys.prefix) / "open_clip"  # aside, see tests/hub/open_clip_requirements.txt
VOCABULARY = PACKAGES / "open_clip" / "bpe_simple_vocab_16e6.txt.gz"
PROGRAM = Path(__file__).with_name("open_clip_reference.py")


class Reference(NamedTuple):
    """Files that open_clip wrote."""

    folder: Path

    def answers(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.answers")

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def facts(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))


def run_open_clip(folder: Path) -> Reference:
    """Let open_clip write weights and answers, in a process that alone sees its torchvision."""
    if not VOCABULARY.exists():
        pytest.skip(
            "open_clip is not installed: pip install --no-deps --target .venv/open_clip -r tests/hub/open_clip_requirements.txt"
        )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(PROGRAM), str(folder), *ARCHITECTURES]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return Reference(folder)


def convert(*arguments) -> None:
    """Run the conversion program, which must succeed."""
    main([str(argument) for argument in ("--tokenizer", VOCABULARY, *arguments)])


def differences(folder: Path, answers: dict[str, torch.Tensor]) -> dict[str, float]:
    """Compare a converted folder with open_clip: largest difference of each kind of feature."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        vision = clip.vision_model(answers["pixels"], output_hidden_states=True)
        found = {
            "image": clip.visual_projection(vision.pooler_output),
            "patches": clip.vision_model.post_layernorm(vision.last_hidden_state[:, 1:]),
            "block": vision.hidden_states[2][:, 1:],
            "text": clip.get_text_features(answers["tokens"]).pooler_output,
            "scale": clip.logit_scale.exp(),
        }
    assert all(found[name].shape == answers[name].shape for name in found)
    return {name: float((value - answers[name]).abs().max()) for name, value in found.items()}


# --- Converted checkpoints compute what open_clip computes; open_clip itself says what that is ---


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
    assert "license: mit\n" in card and "| license of the weights | mit |" in card and "| own training |" in card
    assert CLIPImageProcessorPil.from_pretrained(tmp_path / "told").image_std == (0.25, 0.5, 0.5)


def test_pixels_are_prepared_as_beside_the_weights(open_clip, tmp_path):
    for name in ("wide.json", "wide.safetensors"):
        shutil.copy(open_clip.folder / name, tmp_path)
    preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.25]}
    neighbor = {"model_cfg": open_clip.facts("wide"), "preprocess_cfg": preprocessing}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(neighbor), encoding="utf-8")
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
    assert checkpoints._installed_vocabulary() == package / VOCABULARY.name
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


# --- What cannot be converted is refused by name, with the remedy, and leaves nothing behind ---


TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 9, "vocab_size": 600, "width": 16, "heads": 2, "layers": 1},
}


def block(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.ln_1.weight": (width,), f"{prefix}.ln_1.bias": (width,),
        f"{prefix}.attn.in_proj_weight": (3 * width, width), f"{prefix}.attn.in_proj_bias": (3 * width,),
        f"{prefix}.attn.out_proj.weight": (width, width), f"{prefix}.attn.out_proj.bias": (width,),
        f"{prefix}.ln_2.weight": (width,), f"{prefix}.ln_2.bias": (width,),
        f"{prefix}.mlp.c_fc.weight": (4 * width, width), f"{prefix}.mlp.c_fc.bias": (4 * width,),
        f"{prefix}.mlp.c_proj.weight": (width, 4 * width), f"{prefix}.mlp.c_proj.bias": (width,),
    }  # fmt: skip


SHAPES = {
    "positional_embedding": (9, 16), "text_projection": (16, 8), "logit_scale": (), "token_embedding.weight": (600, 16),
    "ln_final.weight": (16,), "ln_final.bias": (16,), "visual.class_embedding": (64,),
    "visual.positional_embedding": (5, 64), "visual.proj": (64, 8), "visual.conv1.weight": (64, 3, 8, 8),
    "visual.ln_pre.weight": (64,), "visual.ln_pre.bias": (64,), "visual.ln_post.weight": (64,), "visual.ln_post.bias": (64,),
    **block("transformer.resblocks.0", 16), **block("visual.transformer.resblocks.0", 64),
}  # fmt: skip


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def name(tmp_path) -> str:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY), encoding="utf-8")
    return str(tmp_path / "tiny.json")


def refused(capsys, tmp_path: Path, name: str, file: Path, *options: str) -> str:
    """Run the program, which must end with 2, one line and no folder; return the line."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as end:
        main([name, "--weights", str(file), "--output", str(tmp_path / "out"), *options])
    assert end.value.code == 2 and sorted(tmp_path.iterdir()) == before
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines[-1].startswith("python -m hub.open_clip: ") and "Traceback" not in "".join(lines)
    return lines[-1]


def test_weights_that_fit_are_taken(weights):
    assert len(convert_weights(weights, clip_config(TINY))) == len(weights) + 2 * 4  # q, k, v of weight and bias


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual.proj"), r"1 missing \(visual\.proj\)\. .*name the architecture"),
        (lambda w: w.update(logit_bias=torch.zeros(())), r"1 unexpected \(logit_bias\)"),
        (
            lambda w: w.update({"visual.proj": torch.zeros(8, 64)}),
            r"1 of another shape \(visual\.proj is \(8, 64\) and should be \(64, 8\)\)",
        ),
        (
            lambda w: w.update({f"visual.transformer.resblocks.1.{n}": torch.zeros(1) for n in range(9)}),
            r"9 unexpected \((visual\.transformer\.resblocks\.1\.\d, ){6}and 3 more\)",
        ),
        (
            lambda w: (w.pop("ln_final.bias"), w.update({"text.ln_final.bias": torch.zeros(16)})),
            r"1 missing \(ln_final\.bias\); 1 unexpected \(text\.ln_final\.bias\)",
        ),
    ],
    ids=["missing", "unexpected", "shape", "many", "both"],
)
def test_weights_that_do_not_fit_are_named(capsys, tmp_path, name, weights, change, message):
    change(weights)
    save_file(weights, tmp_path / "w.safetensors")
    assert re.search(message, refused(capsys, tmp_path, name, tmp_path / "w.safetensors"))


def test_the_architecture_that_fits_is_named():
    """Without their numbers: on the meta device."""
    models = {}
    for name in ("ViT-B-16", "ViT-B-32"):
        width, patch = 512, ARCHITECTURES[name]["vision_cfg"]["patch_size"]
        shapes = {
            "positional_embedding": (77, width), "text_projection": (width, width), "logit_scale": (),
            "token_embedding.weight": (49408, width), "ln_final.weight": (width,), "ln_final.bias": (width,),
            "visual.class_embedding": (768,), "visual.positional_embedding": ((224 // patch) ** 2 + 1, 768),
            "visual.proj": (768, width), "visual.conv1.weight": (768, 3, patch, patch),
            **{f"visual.ln_{place}.{kind}": (768,) for place in ("pre", "post") for kind in ("weight", "bias")},
        }  # fmt: skip
        for number in range(12):
            shapes |= block(f"transformer.resblocks.{number}", width)
            shapes |= block(f"visual.transformer.resblocks.{number}", 768)
        models[name] = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=r"visual\.conv1\.weight is .*Remedy: these are the weights of ViT-B-32\."):
        convert_weights(models["ViT-B-32"], clip_config(ARCHITECTURES["ViT-B-16"]))
    assert convert_weights(models["ViT-B-16"], clip_config(ARCHITECTURES["ViT-B-16-quickgelu"]))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("vision_model.embeddings.class_embedding", "a CLIPModel of transformers already, give its folder to --clip"),
        ("blocks.0.attn.qkv.weight", "an image tower of timm, take the open_clip checkpoint"),
    ],
)
def test_checkpoints_of_other_libraries_are_recognized(capsys, tmp_path, name, key, message):
    save_file({key: torch.zeros(1)}, tmp_path / "w.safetensors")
    assert message in refused(capsys, tmp_path, name, tmp_path / "w.safetensors")


class Scale(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_never_run(capsys, tmp_path, name):
    torch.jit.script(Scale()).save(tmp_path / "ViT-B-16.pt")
    message = refused(capsys, tmp_path, name, tmp_path / "ViT-B-16.pt")
    assert "TorchScript program" in message and "--clip openai/clip-vit-base-patch16" in message


class Intruder:
    """What a pickle can do when it is opened."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_pickle_that_would_run_code_is_not_opened(capsys, tmp_path, name, weights, place):
    intruder = Intruder(tmp_path / "ran")
    content = {"state_dict": weights, "extra": intruder} if place == "beside" else {**weights, "extra": intruder}
    torch.save(content, tmp_path / "w.pt")
    assert "more than weights, which is never opened" in refused(capsys, tmp_path, name, tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("w.safetensors", b"", "w.safetensors is damaged"),
        ("w.safetensors", b"\xff" * 100, "w.safetensors is damaged"),
        ("w.pt", b"", "w.pt is damaged"),
        ("w.pt", b"<html>Not found</html>", "w.pt is damaged"),
        ("gone.pt", None, "gone.pt is no file: give the weights"),
    ],
)
def test_damaged_files_are_refused(capsys, tmp_path, name, file, content, message):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    assert message in refused(capsys, tmp_path, name, tmp_path / file)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_file_cut_short_is_refused(capsys, tmp_path, name, weights, ending):
    path = tmp_path / f"w.{ending}"
    save_file(weights, path) if ending == "safetensors" else torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "damaged" in refused(capsys, tmp_path, name, path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, {"epoch": 3}, torch.zeros(3)], ids=repr)
def test_a_file_without_weights_is_refused(capsys, tmp_path, name, content):
    torch.save(content, tmp_path / "w.pt")
    assert "holds no weights by name" in refused(capsys, tmp_path, name, tmp_path / "w.pt")


def test_the_hash_in_the_name_is_checked(capsys, tmp_path, name, weights):
    torch.save(weights, tmp_path / "vit-laion400m_e32-699c4b84.pt")
    message = refused(capsys, tmp_path, name, tmp_path / "vit-laion400m_e32-699c4b84.pt")
    assert "its name promises one that begins with 699c4b84: download it again" in message


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({**TINY, "quick_gelu": True}, "differ in quick_gelu"),
        ({**TINY, "embed_dim": 9}, "differ in embed_dim"),
        (ARCHITECTURES["ViT-B-32-quickgelu"], "convert as ViT-B-32-quickgelu"),
        (None, "open_clip_config.json is damaged"),
    ],
)
def test_what_lies_beside_the_weights_must_agree(capsys, tmp_path, name, weights, theirs, message):
    save_file(weights, tmp_path / "w.safetensors")
    text = "{" if theirs is None else json.dumps({"model_cfg": theirs})
    (tmp_path / "open_clip_config.json").write_text(text, encoding="utf-8")
    assert message in refused(capsys, tmp_path, name, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"vision_cfg": {**TINY["vision_cfg"], "timm_model_name": "x"}}, r"\['vision_cfg.timm_model_name'\]"),
        ({"custom_text": True, "init_logit_bias": -10}, r"\['custom_text', 'init_logit_bias'\]"),
        ({"text_cfg": {**TINY["text_cfg"], "pool_type": "last"}}, r"\['text_cfg.pool_type'\]"),
        ({"text_cfg": None}, "is no model config of open_clip"),
        ({"vision_cfg": {"layers": 1}}, "lacks 'image_size'"),
    ],
)
def test_model_configs_that_transformers_cannot_express_are_refused(capsys, tmp_path, weights, entries, message):
    (tmp_path / "other.json").write_text(json.dumps({**TINY, **entries}), encoding="utf-8")
    save_file(weights, tmp_path / "w.safetensors")
    line = refused(capsys, tmp_path, str(tmp_path / "other.json"), tmp_path / "w.safetensors")
    assert re.search(message, line)


def test_an_unknown_name_is_refused_with_those_that_are_known(capsys, tmp_path):
    message = refused(capsys, tmp_path, "ViT-B-16-plus-240-quickgelu", tmp_path / "w.pt")
    assert "ViT-B-16-plus-240, ViT-B-16, ViT-B-16-quickgelu" in message and "JSON" in message


def test_without_a_vocabulary_the_remedy_is_named(capsys, tmp_path, name, weights, monkeypatch):
    monkeypatch.setattr("sys.path", [place for place in sys.path if not (Path(place) / "open_clip").exists()])
    save_file(weights, tmp_path / "w.safetensors")
    message = refused(capsys, tmp_path, name, tmp_path / "w.safetensors")
    assert "open_clip is not installed" in message and "pip install --no-deps open_clip_torch" in message


@pytest.mark.parametrize("kind", ["other", "none", "short", "text", "gap"])
def test_another_tokenizer_is_refused(capsys, tmp_path, name, weights, kind):
    place = tmp_path / "words"
    if kind == "other":
        byte_tokenizer().save_pretrained(place)
    elif kind == "short":
        place.write_text('"bpe#version: 0.2\ni n\nt h', encoding="utf-8")
    elif kind == "text":
        place.write_text("something\n" + "a b\n" * 600, encoding="utf-8")
    elif kind == "gap":
        place.write_text('"bpe#version: 0.2\n' + "aa bb\n" * 86, encoding="utf-8")
    save_file(weights, tmp_path / "w.safetensors")
    message = refused(capsys, tmp_path, name, tmp_path / "w.safetensors", "--tokenizer", str(place))
    expected = {"gap": "out of vocabulary", "other": "has 514 tokens with start 0", "none": "gives no CLIP tokenizer"}
    assert expected.get(kind, "is no list of merges for 600 tokens") in message and "give --tokenizer" in message


def test_a_vocabulary_is_read_as_it_was_published(tmp_path):
    """Merges beyond those that the model knows are left out; the last two tokens are start and end."""
    merges = ["t h", "th e</w>", *(f"{letter} {letter}" for letter in "abcdefgh"), "x x"]
    (tmp_path / "merges.txt").write_text("\n".join(['"bpe#version: 0.2', *merges]), encoding="utf-8")
    tokenizer = read_vocabulary(tmp_path / "merges.txt", vocab_size=512 + 10 + 2, max_length=9)
    assert tokenizer("The THE a").input_ids == [522, 513, 513, 256 + tokenizer.get_vocab()["a"], 523]
    assert "xx" not in tokenizer.get_vocab() and tokenizer.get_vocab()["hh"] == 521 and tokenizer.model_max_length == 9


def test_pixel_statistics_must_be_possible(capsys, tmp_path, name, weights):
    merges = ['"bpe#version: 0.2', *(f"{first} {second}" for first in "abcdefghi" for second in "abcdefghij")]
    (tmp_path / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    save_file(weights, tmp_path / "w.safetensors")
    options = ["--tokenizer", str(tmp_path / "merges.txt"), "--std", "0", "1", "1"]
    assert "std above 0" in refused(capsys, tmp_path, name, tmp_path / "w.safetensors", *options)


def test_what_is_there_already_is_kept(capsys, tmp_path, name, weights):
    save_file(weights, tmp_path / "w.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept", encoding="utf-8")
    assert "out is there already: choose another" in refused(capsys, tmp_path, name, tmp_path / "w.safetensors")
    assert (tmp_path / "out/mine").read_text(encoding="utf-8") == "kept"
