"""What cannot be converted is refused by name, with the remedy, and leaves nothing behind."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hub.convert_open_clip import main
from hub.open_clip_format import ARCHITECTURES, clip_config, convert_weights
from hub.open_clip_tokenizer import read_vocabulary
from hub.small_clip import byte_tokenizer


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
    assert lines[-1].startswith("python -m hub.convert_open_clip: ") and "Traceback" not in "".join(lines)
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
def test_checkpoints_of_other_libraries_are_recognised(capsys, tmp_path, name, key, message):
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
