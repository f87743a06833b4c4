"""A CLIP by folder, by Hub id from the cache, at a revision, offline; what cannot be had is refused with the remedy."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, CLIPModel

from hub.mini_clip.small_clip import write_small_clip
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.backbone_anople import clip_source
from modeling_anople.cli import main

from .fitting import REPOSITORY, write_products


SMALL = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
COMMITS = {"main": "a" * 40, "v2": "b" * 40}


def store(cache: Path, folder: Path, commit: str, name: str = "clip") -> None:
    """Put a checkpoint into a cache as huggingface_hub does: blobs by hash, and a snapshot of links to them."""
    repository = cache / f"models--org--{name}"
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    (repository / "snapshots" / commit).mkdir(parents=True)
    for path in folder.iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (repository / "snapshots" / commit / path.name).symlink_to(Path("../../blobs") / blob.name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache that holds org/clip twice: `main` and, with other weights and another input size, `v2`."""
    root = tmp_path_factory.mktemp("cache")
    for seed, (name, commit) in enumerate(COMMITS.items()):
        folder = write_small_clip(root / name, seed=seed, **{**SMALL, "image_size": 32 + 8 * seed})
        store(root / "hub", folder, commit)
        (root / "hub/models--org--clip/refs").mkdir(exist_ok=True)
        (root / f"hub/models--org--clip/refs/{name}").write_text(commit, encoding="utf-8")
    return root


def same_clip(model: AnoPLeModel, folder: Path) -> bool:
    weights = model.clip.state_dict()
    return all(torch.equal(weights[name], value) for name, value in load_file(folder / "model.safetensors").items())


def run(program: str, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Run Python code in a fresh process, which reads the variables of the Hub anew."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# -- by Hub id ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "main"),
        ({"revision": "main"}, "main"),
        ({"revision": "v2"}, "v2"),
        ({"revision": COMMITS["v2"]}, "v2"),
        ({"local_files_only": True, "token": "hf_any"}, "main"),
    ],
    ids=str,
)
def test_a_cached_clip_loads_by_id_and_revision(cache, options, found):
    options = {"cache_dir": cache / "hub", **options}
    model = AnoPLeModel.from_clip("org/clip", ["bolt"], **options)
    processor = AnoPLeProcessor.from_clip("org/clip", ["bolt"], **options)
    assert same_clip(model, cache / found) and model.dtype == torch.float32
    assert processor.image_size == model.config.image_size == {"main": 32, "v2": 40}[found]
    assert (
        processor.tokenizer("bolt")["input_ids"] == AutoTokenizer.from_pretrained(cache / found)("bolt")["input_ids"]
    )


OFFLINE = """
import sys
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.cli import main
AnoPLeModel.from_clip("org/clip", ["bolt"], revision="v2").save_pretrained(sys.argv[1])
AnoPLeProcessor.from_clip("org/clip", ["bolt"], revision="v2").save_pretrained(sys.argv[1])
sys.exit(main(["fit", *sys.argv[2:]]))
"""


def test_offline_by_environment_a_fresh_process_loads_and_fits(cache, tmp_path, photograph, capsys):
    data = str(write_products(tmp_path / "data", photograph))
    usual = ["--shots", "1", "--max_steps", "1", "--batch_size", "1", "--monitor_images", "0"]
    usual += ["--output_dir", str(tmp_path / "out")]
    arguments = [str(tmp_path / "loaded"), data, "--clip", "org/clip", "--clip_revision", "v2", *usual]
    done = run(OFFLINE, *arguments, HF_HUB_OFFLINE="1", HF_HOME=str(cache))
    assert done.returncode == 0, done.stderr[-2000:]
    assert same_clip(AnoPLeModel.from_pretrained(tmp_path / "loaded"), cache / "v2")
    assert AnoPLeProcessor.from_pretrained(tmp_path / "loaded").image_size == 40
    model = AnoPLeModel.from_pretrained(tmp_path / "out")
    assert same_clip(model, cache / "v2") and model.config.fit["clip_revision"] == "v2"
    capsys.readouterr()
    assert main(["fit", data, "--clip", "org/unknown", *usual, "--overwrite"]) == 2
    refused = capsys.readouterr().err
    assert "anople fit: org/unknown is no folder, and as a Hub id it cannot be loaded (offline" in refused
    assert "Traceback" not in refused
    assert same_clip(AnoPLeModel.from_pretrained(tmp_path / "out"), cache / "v2")  # nothing is lost


# -- what cannot be had ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AnoPLeModel, AnoPLeProcessor])
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("org/other", {}, r"org/other is no folder, and as a Hub id it cannot be loaded \(offline, by HF_HUB_OFFLINE"),
        (
            "org/clip",
            {"revision": "v3"},
            "org/clip is no folder, and as a Hub id at revision 'v3' it cannot be loaded",
        ),
        ("./out/clip", {}, r"\./out/clip is no folder"),
        ("/nowhere/clip", {}, "/nowhere/clip is no folder"),
    ],
)
def test_offline_and_unknown_is_refused_with_the_remedy(cache, kind, name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        kind.from_clip(name, ["bolt"], cache_dir=cache / "hub", **options)
    assert f"hf download {name}" in str(caught.value) and "give the folder of a CLIPModel, or 'mini'" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@pytest.fixture
def closed_door() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that lets nobody in and writes down what was asked for, and with which token."""
    asked = []

    class Door(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(401)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


ONLINE = """
import sys
from modeling_anople import AnoPLeModel
AnoPLeModel.from_clip("mini", ["bolt"]).save_pretrained(sys.argv[1] + "/mini")
AnoPLeModel.from_clip("org/clip", ["bolt"], local_files_only=True).save_pretrained(sys.argv[1] + "/cached")
try:
    AnoPLeModel.from_clip("org/private", ["bolt"], token="hf_mine")
except ValueError as error:
    open(sys.argv[1] + "/error", "w").write(str(error))
"""


def test_only_a_name_that_must_be_fetched_asks_the_hub_and_shows_it_the_token(cache, tmp_path, closed_door):
    address, asked = closed_door
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache / "hub")}
    done = run(ONLINE, str(tmp_path), HF_HOME=str(tmp_path), **hub)
    assert done.returncode == 0, done.stderr[-2000:]
    assert same_clip(AnoPLeModel.from_pretrained(tmp_path / "mini"), Path(clip_source("mini")))
    assert same_clip(AnoPLeModel.from_pretrained(tmp_path / "cached"), cache / "main")
    message = (tmp_path / "error").read_text(encoding="utf-8")
    assert message.startswith("org/private is no folder") and "`hf auth login` first if it is private" in message
    assert "hf_mine" not in message
    of_models = {(path.split("?")[0], token) for path, token in asked if "org/" in path}
    assert of_models and all("org/private" in path and token == "Bearer hf_mine" for path, token in of_models)


# -- folders that are no CLIP -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(small_clip_folder, tmp_path) -> Path:
    return shutil.copytree(small_clip_folder, tmp_path / "clip")


def keep_half(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("text_model.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (keep_half, r"lacks \d+ weights of a CLIPModel, text_model\..* give a checkpoint with both towers"),
        (cut, r"cannot be loaded as a CLIP \(.*\): give a folder with config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"cannot be loaded as a CLIP .*model\.safetensors"),
        (pickled, r"cannot be loaded as a CLIP .*model\.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), r"is no CLIPModel \(it has no config\.json\)"),
        (lambda folder: BertConfig().save_pretrained(folder), r"is no CLIPModel \(its model_type is 'bert'\)"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no vocabulary for its tokenizer"),
    ],
    ids=["one tower", "cut", "no weights", "weights in a pickle", "no config", "another model", "no tokenizer"],
)
def test_folders_that_are_no_whole_clip_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        AnoPLeModel.from_clip(str(folder), ["bolt"])
    assert str(caught.value).startswith(str(folder))


def test_a_processor_needs_the_pixels_statistics(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded as a CLIP .* give a folder .*preprocessor_config\.json"):
        AnoPLeProcessor.from_clip(str(folder), ["bolt"])


def test_a_tokenizer_may_come_from_elsewhere(folder, tokenizer):
    (folder / "tokenizer.json").unlink()
    assert AnoPLeModel.from_clip(str(folder), ["bolt"], tokenizer=tokenizer).products.prompt_ids().any()


def test_a_misspelt_option_of_the_processor_is_refused(folder):
    with pytest.raises(
        ValueError, match=r"got \['revison'\]: it takes image_size, white_value, cache_dir, .*revision"
    ):
        AnoPLeProcessor.from_clip(str(folder), ["bolt"], revison="v2")


@torch.no_grad()
def test_checkpoints_as_they_were_published_in_2021_load(folder, tokenizer):
    """Ids that name no token, position ids among the weights, sizes as numbers, a vocabulary in two files."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    weights |= {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    images = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "do_center_crop": True,
              "do_normalize": True, "do_resize": True, "resample": 3, "image_mean": [0.1, 0.2, 0.3],
              "image_std": [0.4, 0.5, 0.6]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    model = AnoPLeModel.from_clip(str(folder), ["bolt", "metal nut"], coupling="none")
    processor = AnoPLeProcessor.from_clip(str(folder), ["bolt", "metal nut"])
    texts = ["bolt.", "abnormal bolt.", "metal nut.", "abnormal metal nut."]
    ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    assert torch.equal(model.products.prompt_ids(), ids)
    features = CLIPModel.from_pretrained(folder).get_text_features(ids).pooler_output  # at the largest id, for eos 2
    expected = torch.nn.functional.normalize(features, dim=-1).unflatten(0, (2, 2))
    torch.testing.assert_close(model.products.text_embeddings(), expected, atol=1e-5, rtol=0)
    assert tuple(processor.image_processor.image_std) == (0.4, 0.5, 0.6) and processor.image_size == 32


def test_a_sharded_and_half_precision_clip_loads_whole(folder, tmp_path, clip_model):
    clip = CLIPModel.from_pretrained(folder).half()
    clip.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(folder / name, tmp_path / "shards")
    model = AnoPLeModel.from_clip(str(tmp_path / "shards"), ["bolt"])
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1 and model.dtype == torch.float32
    assert all(torch.equal(value, clip.state_dict()[name].float()) for name, value in model.clip.state_dict().items())
