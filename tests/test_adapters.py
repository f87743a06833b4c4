"""Adapters: a detector without its CLIP, and nothing but that CLIP under it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, CLIPModel

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.backbone_anople import clip_source, describe_source, name_of
from modeling_anople.fitting_anople import calibrate_product, remember
from modeling_anople.runtime.loading import load_detector
from modeling_anople.saving_anople import FROZEN, align_weights, hash_weights

from .contract import assert_same, fill, judge, learnables
from .detectors import pixel_images
from .hub.test_publish import answers_here, push_well
from .local_hub.client import answers_of, api, push, push_clip, start_detector


@pytest.fixture
def fitted(make_model, make_pixels) -> AnoPLeModel:
    """A detector in which nothing is what a fresh start would draw again."""
    model = make_model()
    with torch.no_grad():
        for weight in learnables(model).values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        model.store_text_embeddings()
    return fill(model, make_pixels)


@torch.no_grad()
def test_base_and_adapter_are_the_full_checkpoint_bit_for_bit(fitted, small_clip_folder, make_pixels, tmp_path):
    fitted.save_pretrained(tmp_path / "full")
    fitted.save_adapter(tmp_path / "adapter")
    full = AnoPLeModel.from_pretrained(tmp_path / "full")
    generator = torch.random.get_rng_state()
    for clip in (small_clip_folder, str(small_clip_folder), CLIPModel.from_pretrained(small_clip_folder)):
        read = AnoPLeModel.load_adapter(tmp_path / "adapter", clip=clip)
        assert not read.training and read.config.adapter_clip_sha256 is None
        assert read.config.products == full.config.products and read.config.products[0]["threshold"]
        assert_same(judge(full, make_pixels), judge(read, make_pixels))
        assert full.state_dict().keys() == read.state_dict().keys()
    assert torch.equal(generator, torch.random.get_rng_state())
    held = load_file(tmp_path / "adapter/adapter.safetensors")
    assert (
        not [name for name in held if name.startswith(FROZEN)]
        and "prompts.text" in held
        and "products.0.bank.vectors" in held
    )


@torch.no_grad()
def test_an_adapter_of_the_embedded_clip_finds_it(tmp_path):
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model, processor = (kind.from_clip("mini", ["a"]) for kind in (AnoPLeModel, AnoPLeProcessor))
    remember(model, pixel_images(pixels), 0)
    calibrate_product(model, pixel_images(pixels), 0)
    model.save_pretrained(tmp_path / "full")
    for save in (model.save_adapter, processor.save_pretrained):
        save(tmp_path / "adapter")
    full, read = AnoPLeModel.from_pretrained(tmp_path / "full"), load_detector(str(tmp_path / "adapter"))[0]
    assert read.config.clip_source == {"kind": "embedded", "name": "mini", "revision": None}
    for name in ("image_scores", "anomaly_maps", "calibrated_scores", "calibrated_maps"):
        assert torch.equal(full(pixels)[name], read(pixels)[name])
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    assert size < 4e6 < (tmp_path / "full/model.safetensors").stat().st_size


def test_another_clip_is_refused_with_both_hashes(fitted, small_clip_folder, clip_model, tmp_path):
    fitted.save_adapter(tmp_path)
    expected = hash_weights(fitted.clip.state_dict())
    with torch.no_grad():
        clip_model.logit_scale.add_(1e-6)
    with pytest.raises(ValueError, match=rf"{expected}.*{hash_weights(clip_model.state_dict())}.*give that CLIP"):
        AnoPLeModel.load_adapter(tmp_path, clip=clip_model)
    half = CLIPModel.from_pretrained(small_clip_folder, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="precision"):
        AnoPLeModel.load_adapter(tmp_path, clip=half)
    with pytest.raises(ValueError, match=expected):
        AnoPLeModel.load_adapter(tmp_path, clip="mini")


def test_an_adapter_is_no_full_detector_nor_the_other_way_round(fitted, tmp_path):
    fitted.save_adapter(tmp_path / "adapter")
    fitted.save_pretrained(tmp_path / "full")
    for load in (AnoPLeModel, AutoModel):
        with pytest.raises(ValueError, match=r"holds no CLIP. Load it with AnoPLeModel.load_adapter\('.*adapter'\)"):
            load.from_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is a full detector, no adapter: load it with AnoPLeModel.from_pretrained"):
        AnoPLeModel.load_adapter(tmp_path / "full")
    with pytest.raises(ValueError, match=r"load_adapter got \['threshold'\]"):
        AnoPLeModel.load_adapter(tmp_path / "adapter", threshold=0.4)


def test_a_clip_without_a_name_must_be_given(make_model, tmp_path):
    model = make_model()
    model.config.clip_source = {"kind": "model", "name": None, "revision": None}
    model.save_adapter(tmp_path)
    with pytest.raises(
        ValueError, match=r"a CLIP without a name, which cannot be found again .*clip=.*SHA-256 [0-9a-f]{64}"
    ):
        AnoPLeModel.load_adapter(tmp_path)


def test_an_adapter_that_lacks_a_part_is_refused(fitted, small_clip_folder, tmp_path):
    fitted.save_adapter(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "prefix": "none"}), encoding="utf-8")
    with pytest.raises(ValueError, match="has unknown .*prefix"):
        AnoPLeModel.load_adapter(tmp_path, clip=small_clip_folder)


@torch.no_grad()
def test_half_precision(fitted, small_clip_folder, make_pixels, tmp_path):
    fitted.save_pretrained(tmp_path / "full")
    half = AnoPLeModel.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    half.save_adapter(tmp_path / "adapter")
    read = AnoPLeModel.load_adapter(tmp_path / "adapter", clip=small_clip_folder)
    pixels = make_pixels(2).to(torch.bfloat16)
    assert read.dtype == torch.bfloat16 and torch.equal(half(pixels).anomaly_maps, read(pixels).anomaly_maps)


def test_the_hash_is_what_its_description_says():
    tensors = {"b": torch.tensor([[1, 2], [3, 4]], dtype=torch.int16).T, "a": torch.tensor(1.5, dtype=torch.bfloat16)}
    text = b"a\0torch.bfloat16\0\0\xc0\x3f" + b"b\0torch.int16\0" + b"2,2\0" + b"\1\0\3\0\2\0\4\0"
    assert hash_weights(tensors) == hashlib.sha256(text).hexdigest()
    assert hash_weights({"a": torch.zeros(2, 3)}) != hash_weights({"a": torch.zeros(3, 2)})
    assert hash_weights({"a": torch.zeros(1)}) != hash_weights({"a": torch.zeros(1, dtype=torch.int32)})


def test_weights_that_lie_crookedly_are_moved():
    linear = torch.nn.Linear(8, 8)
    values = torch.randn(65)
    linear.weight.data = values[1:].view(8, 8)
    assert linear.weight.data_ptr() % 64 and align_weights(linear) is linear
    assert linear.weight.data_ptr() % 64 == 0 and torch.equal(linear.weight.detach().flatten(), values[1:])


def test_saved_weights_are_used_where_they_lie_in_their_files(make_model, make_pixels, tmp_path, monkeypatch):
    model = fill(make_model(), make_pixels)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="200KB")
    model.save_adapter(tmp_path / "adapter")
    (tmp_path / "whole/model_backup.safetensors").write_bytes(b"not ours")
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole/model_backup.safetensors").read_bytes() == b"not ours"
    (tmp_path / "whole/model_backup.safetensors").unlink()
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) > 4 and not list(tmp_path.rglob("*.part"))
    for file in files:
        begin = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        header = json.loads(file.read_bytes()[8:begin])
        config = json.loads((file.parent / "config.json").read_text("utf-8"))
        metadata = {"format": "pt", "content_sha256": config["content_sha256"]}
        assert begin % 64 == 0 and header.pop("__metadata__") == metadata
        for name, (first, last) in ((name, entry["data_offsets"]) for name, entry in header.items()):
            assert first % 64 == 0 or last - first < 64 or name.endswith(".prompt_ids")  # 1232 bytes each
    monkeypatch.setattr("modeling_anople.checkpoint_anople.align_weights", lambda model: model)
    for folder in ("whole", "parts"):
        read = AnoPLeModel.from_pretrained(tmp_path / folder)
        maps = Path("/proc/self/maps")
        assert not maps.exists() or str(tmp_path / folder) in maps.read_text()  # used there, not copied
        crooked = {name: one for name, one in read.state_dict().items() if one.data_ptr() % 64}
        assert all(one.nbytes < 64 or name.endswith(".prompt_ids") for name, one in crooked.items())
        assert not any(one.nbytes >= 64 for one in crooked.values() if one.is_floating_point())
        assert hash_weights(read.state_dict()) == hash_weights(model.state_dict())


def test_where_a_clip_came_from(make_model, small_clip_folder, clip_model, tokenizer, loaded_clip):
    embedded = {"kind": "embedded", "name": "mini", "revision": None}
    mini = CLIPModel.from_pretrained(clip_source("mini"))
    assert describe_source("mini", mini) == describe_source(mini, mini) == embedded
    folder = {"kind": "folder", "name": "small", "revision": None}
    started = AnoPLeModel.from_clip(str(small_clip_folder), ["a"])
    assert started.config.clip_source == folder == make_model().config.clip_source
    assert str(small_clip_folder) not in started.config.to_json_string()
    unnamed = CLIPModel(loaded_clip.config)
    assert AnoPLeModel.from_clip(unnamed, ["a"], tokenizer=tokenizer).config.clip_source["kind"] in ("model", "folder")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/data/mvtec", "mvtec"),
        ("/data/mvtec/", "mvtec"),
        ("./mvtec", "mvtec"),
        ("~/photos/mvtec", "mvtec"),
        ("a/b/mvtec", "mvtec"),
        ("C:\\photos\\mvtec", "mvtec"),
        ("C:\\mvtec", "mvtec"),
        ("user/mvtec", "user/mvtec"),  # an id on the Hub
        ("mini", "mini"),
        ("mvtec.parquet", "mvtec.parquet"),
    ],
)
def test_names_without_the_way_to_them(place, name):
    assert name_of(place) == name


def test_a_folder_that_looks_like_an_id_is_still_a_folder(tmp_path, monkeypatch):
    (tmp_path / "user/mvtec").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert name_of("user/mvtec") == "mvtec"


def test_an_adapter_finds_a_clip_in_a_subfolder(small_clip_folder, tmp_path):
    repository, commit = tmp_path / "models--org--clips", "c" * 40
    shutil.copytree(small_clip_folder, repository / "snapshots" / commit / "small")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit, encoding="utf-8")
    access = {"cache_dir": str(tmp_path), "local_files_only": True}
    model = AnoPLeModel.from_clip("org/clips", ["bolt"], subfolder="small", **access)
    assert model.config.clip_source == {"kind": "hub", "name": "org/clips", "revision": commit, "subfolder": "small"}
    model.save_adapter(tmp_path / "adapter")
    loaded = AnoPLeModel.load_adapter(tmp_path / "adapter", **access)
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


def test_an_adapter_on_the_hub_finds_its_clip_at_its_commit(client, small_clip_folder, published, tmp_path):
    first = client.call(push_clip, str(small_clip_folder), "me/clip")
    source = client.call(start_detector, "me/clip", str(tmp_path / "full"))
    assert source == {"kind": "hub", "name": "me/clip", "revision": first}
    push_well(client, tmp_path / "full", "me/adapter", "--adapter")
    client.call(push_clip, str(small_clip_folder), "me/clip", change=0.1)  # the CLIP moves on
    paths = published.photographs
    here = answers_here(tmp_path / "full", paths)
    assert client.call(answers_of, "me/adapter", paths, load="load_adapter") == here
    sent = [entry.rfilename for entry in client.call(api, "model_info", "me/adapter").siblings]
    assert "adapter.safetensors" in sent and "model.safetensors" not in sent
    with pytest.raises(ValueError, match=r"Load it with AnoPLeModel.load_adapter\('me/adapter'\)"):
        client.call(answers_of, "me/adapter", paths)
    with pytest.raises(ValueError, match="was made on the CLIP 'me/clip' at revision"):
        client.call(answers_of, "me/adapter", paths, load="load_adapter", clip="me/clip")
    code, _, errors = client.call(push, "me/adapter", "me/whole")  # and an adapter becomes a full detector again
    assert code == 0, errors
    assert client.call(answers_of, "me/whole", paths) == here
