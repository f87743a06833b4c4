"""A memory with an encoder of its own: any vision transformer, at its own size, and everything else as without it."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from modeling_anople import AnomalyDetectionPipeline, AnoPLeConfig, AnoPLeModel, AnoPLeProcessor
from modeling_anople.backbone_anople import TowerInput, load_encoder_config, token_states
from modeling_anople.cli import main
from modeling_anople.export.graph_detector import OnnxEngine, OpenVinoEngine, to_openvino
from modeling_anople.fitting_anople import remember
from modeling_anople.images_anople import ignored_patches
from modeling_anople.runtime.loading import load_detector
from modeling_anople.saving_anople import align_weights, hash_weights, mark
from modeling_anople.training.few_shot import make_samples

from .contract import assert_same, fill, judge, training_batch
from .detectors import detector_of, fit, normals_of, wholes, write_screws
from .encoders import KINDS, LEADING, MEAN, SQUARE, STD, WIDE, encoder_options, make_encoder, write_encoder
from .fitting import write_products
from .test_from_clip import store


REAL = Path(__file__).parents[2] / "shared/models/dinov2-small-focus"
SIDE = 42  # a grid of 6 x 6, larger than the small CLIP's 32 pixels


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "dino", license="apache-2.0")


@pytest.fixture
def make_both(make_model, small_clip_folder, encoder_folder):
    """Start detectors with a memory encoder, and their processors."""

    def make(side: int = SIDE, **config) -> tuple[AnoPLeModel, AnoPLeProcessor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            names = config.pop("class_names", ["bolt", "nut"])
            options = {"memory_encoder": str(encoder_folder), "memory_image_size": side, **config}
            model = align_weights(
                AnoPLeModel.from_clip(str(small_clip_folder), names, **options)
            )  # as one that is read
        side = model.config.input_size
        return model, AnoPLeProcessor.from_clip(str(small_clip_folder), names, image_size=side)

    return make


# -- what the memory sees ------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", [28, 42, 14])
@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_holds_the_patches_of_any_vision_transformer(make_model, kind, side):
    encoder = make_encoder(kind)
    model = make_model(**encoder_options(kind, side), memory_layers=[0, 2])
    config = model.config
    assert (config.memory_encoder.model_type, config.memory_encoder.num_hidden_layers) == (kind, 3)
    assert (config.memory_grid_size, config.input_size, config.grid_size) == (side // 7, max(side, 32), 4)
    pixels = torch.randn(2, 3, config.input_size, config.input_size, generator=torch.Generator().manual_seed(0))
    features = model.memory_features(pixels)
    assert features.shape == (2, 2, (side // 7) ** 2, 32)
    # by hand: CLIP's normalization undone, the encoder's made, resampled, and its own states after blocks 1 and 3
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.image_mean, config.image_std))
    images = F.interpolate(pixels * std + mean, size=(side, side), mode="bicubic", antialias=True)
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    states = token_states(encoder, images)
    assert states[0].shape[1] == LEADING.get(kind, 0) + (side // 7) ** 2
    expected = torch.stack([states[block][:, LEADING.get(kind, 0) :] for block in (1, 3)])
    torch.testing.assert_close(features, F.normalize(expected, dim=-1), atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "siglip2_vision_model"])
def test_an_encoder_is_run_as_transformers_runs_it(kind):
    encoder, pixels = make_encoder(kind), torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    for one, other in zip(
        token_states(encoder, pixels), encoder(pixels, output_hidden_states=True).hidden_states, strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("sides", [(32, 14), (42, 28), (30, 42)])
def test_images_are_resampled_as_by_antialiased_bicubic_interpolation(sides):
    pixels = torch.randn(2, 3, sides[0], sides[0], generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(pixels, size=(sides[1], sides[1]), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(TowerInput(*sides)(pixels), expected, atol=1e-5, rtol=1e-5)


def test_an_image_of_the_towers_side_is_not_resampled_and_any_other_is_refused():
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert TowerInput(32, 32)(pixels) is pixels and TowerInput(42, 32)(pixels) is pixels
    for wrong in (torch.zeros(1, 3, 30, 30), torch.zeros(1, 3, 42, 32)):
        with pytest.raises(ValueError, match="this detector takes 42 x 42: prepare them with its own processor"):
            TowerInput(42, 32)(wrong)


@torch.no_grad()
def test_the_clip_sees_and_says_what_it_does_without_an_encoder(make_model, make_pixels):
    with_encoder, without = make_model(**encoder_options()), make_model()
    pixels = make_pixels(2)
    for one, other in zip(
        (with_encoder.embed_image(pixels), with_encoder.products.text_embeddings()),
        (without.embed_image(pixels), without.products.text_embeddings()),
        strict=True,
    ):
        assert torch.equal(one, other)
    fill(with_encoder, make_pixels), fill(without, make_pixels)
    one, other = judge(with_encoder, make_pixels), judge(without, make_pixels)
    assert torch.equal(one.text_scores, other.text_scores) and torch.equal(one.decoder_maps, other.decoder_maps)
    assert not torch.equal(one.memory_maps, other.memory_maps)
    assert torch.equal(with_encoder.products.prototypes(), without.products.prototypes())


@torch.no_grad()
def test_the_clip_may_see_more_than_it_was_pretrained_on(make_model, make_pixels):
    model = make_model(image_size=64)
    assert (model.config.image_size, model.config.grid_size, model.config.input_size) == (64, 8, 64)
    pixels = make_pixels(2, side=64)
    model.prefix, no_prompts = None, make_model(image_size=64, coupling="none", prefix="none")
    expected = no_prompts.clip.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(no_prompts.encode_image(pixels).pooled, expected)
    assert model.memory_features(pixels).shape == (2, 2, 64, 32)
    with pytest.raises(ValueError, match="32 x 32 pixels, and this detector takes 64 x 64"):
        model.embed_image(make_pixels(2))
    with pytest.raises(ValueError, match=r"image_size must be a multiple of the patches' 8 pixels, got 60: take 64"):
        make_model(image_size=60)


def test_the_input_is_as_large_as_the_larger_of_the_two(make_model):
    sides = {(32, 14): 32, (32, 42): 42, (64, 42): 64}
    for (clip, memory), expected in sides.items():
        config = make_model(image_size=clip, **encoder_options(side=memory)).config
        assert (config.image_size, config.memory_image_size, config.input_size) == (clip, memory, expected)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, [4, 6]), (24, [9, 13]), (4, [1]), (1, [0])],
)
def test_the_middle_blocks_are_two_about_the_middle(depth, blocks):
    encoder = {"model_type": "dinov2", "num_hidden_layers": depth, "patch_size": 14, "image_size": 518}
    numbers = {name: [0.5] * 3 for name in ("memory_image_mean", "memory_image_std", "image_mean", "image_std")}
    config = AnoPLeConfig(memory_encoder=encoder, **numbers)
    assert config.memory_layers == blocks and (config.memory_side, config.memory_grid_size) == (518, 37)
    middle = AnoPLeConfig(clip_config={"vision_config": {"num_hidden_layers": depth}}, memory_layers="middle")
    assert middle.memory_layers == blocks
    assert AnoPLeConfig().memory_layers == [2, 7]  # the CLIP's default is what it was


@torch.no_grad()
def test_a_model_of_two_towers_gives_its_vision_tower(make_model, clip_model, tmp_path):
    siglip = SiglipModel(
        SiglipConfig(
            vision_config={**WIDE, **SQUARE},
            text_config={**WIDE, "vocab_size": 20, "max_position_embeddings": 8},
        )
    ).eval()
    for two in (siglip, clip_model):
        two.save_pretrained(tmp_path / two.config.model_type)
        options = {"memory_image_mean": MEAN, "memory_image_std": STD}
        for encoder in (two, str(tmp_path / two.config.model_type)):
            model = make_model(memory_encoder=encoder, **options)
            assert type(model.memory_encoder.model) is type(two.vision_model)
            weights, own = two.vision_model.state_dict(), model.memory_encoder.model.state_dict()
            assert all(torch.equal(weights[name], tensor) for name, tensor in own.items()) and len(own) < len(weights)


def test_a_given_encoder_stays_as_it_is(make_model):
    options = encoder_options()
    before = copy.deepcopy(options["memory_encoder"].state_dict())
    model = make_model(**options)
    assert options["memory_encoder"].config.num_hidden_layers == 6
    after = options["memory_encoder"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(weight.requires_grad for weight in model.freeze_clip().memory_encoder.parameters())
    assert model.train().memory_encoder.training is False


# -- what is no encoder ---------------------------------------------------------------------------------------------

NO_GRIDS = {
    "no vision transformer with a grid of patches": [
        lambda: ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])),
        lambda: BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)),
    ],
    "has no square grid of": [
        lambda: SwinModel(SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], image_size=56, window_size=7)),
        lambda: ViTMAEModel(ViTMAEConfig(**WIDE, **SQUARE)),
    ],
}


@pytest.mark.parametrize(("words", "make"), [(words, make) for words, models in NO_GRIDS.items() for make in models])
def test_a_model_without_a_grid_of_patch_tokens_is_refused(make_model, words, make):
    with pytest.raises(ValueError, match=words) as caught:
        make_model(memory_encoder=make().eval(), memory_image_mean=MEAN, memory_image_std=STD)
    assert "\n" not in str(caught.value) and "give another memory_encoder" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory_image_size": 30}, r"memory_image_size must be a multiple of the patches' 7 pixels, got 30: take 28"),
        ({"memory_layers": [6]}, r"memory_layers \[6\] are no blocks of a vision tower with 6: use 0 to 5"),
        (
            {"memory_image_std": [0.1, 0.0, 0.1]},
            "memory_image_std must lie within 0.001 and 1, got 0.0",
        ),
        ({"memory_image_mean": None}, "memory_image_mean must be three numbers"),
        (
            {"memory_encoder": None, "memory_image_mean": None, "memory_image_std": None},
            "memory_image_size is of a memory enc",
        ),
        ({"memory_encoder": "nowhere"}, "nowhere is no folder here, and a model on the Hub is named user/name"),
        (
            {"memory_encoder": "org/none"},
            r"org/none is no folder, .* give the folder of a vision model of transformers\.",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_remedy(make_model, options, words):
    with pytest.raises(ValueError, match=words):
        make_model(**{**encoder_options(), **options})


def test_a_folder_that_lacks_something_is_refused(make_model, encoder_folder, tmp_path):
    folder = write_encoder(tmp_path / "bare")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        ValueError, match="does not say how its images are normalized .* give memory_image_mean and memory"
    ):
        make_model(memory_encoder=str(folder))
    assert make_model(memory_encoder=str(folder), memory_image_mean=MEAN, memory_image_std=STD)
    model = make_encoder()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "layer.1.mlp.fc1" not in name}
    model.save_pretrained(tmp_path / "half", state_dict=tensors)
    with pytest.raises(
        ValueError, match=r"half is not the whole dinov2 .* encoder.layer.1.mlp.fc1.* give the checkpoint"
    ):
        make_model(memory_encoder=str(tmp_path / "half"), memory_image_mean=MEAN, memory_image_std=STD)


def test_what_no_patch_needs_may_be_absent_and_is_then_the_same_each_time(make_model, tmp_path):
    model = ViTModel(ViTConfig(**WIDE, **SQUARE), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    options = {"memory_encoder": str(tmp_path), "memory_image_mean": MEAN, "memory_image_std": STD}
    assert len({hash_weights(make_model(**options).memory_encoder.model.state_dict()) for _ in range(2)}) == 1


# -- everything works with it as without ------------------------------------------------------------------------------


@torch.no_grad()
def test_a_detector_judges_and_learns_with_it(make_both, photograph, tmp_path):
    model, processor = make_both(tiling="auto", memory_rotations="quarter_turns", memory_limit=100)
    detector = detector_of(fit(model, processor, photograph), processor)
    assert [bank.vectors.shape for bank in model.products.banks] == [(2, 100, 32)] * 2
    pictures = [*normals_of(photograph, 0, 2), photograph(901, size=(200, 90))]  # the last one in several tiles
    results = detector(pictures, class_names=["bolt"] * 3, explain=True)
    assert [result["error"] for result in results] == [None] * 3
    assert results[2]["anomaly_map"].shape == (90, 200)
    assert all(result["explanation"].nearest_class == "bolt" for result in results)
    assert detector(pictures[0])["class_name"] == "bolt"  # the CLIP's prototypes find it
    detector.enroll("screw", write_screws(tmp_path, photograph))
    detector.add_normals("bolt", normals_of(photograph, 0, 5)[3:])
    detector.calibrate("nut", normals_of(photograph, 1, 5)[3:])
    detector.forget("nut")
    assert [record.name for record in detector.products] == ["bolt", "screw"]
    assert detector(pictures[0], class_name="screw")["score"] > detector(pictures[0], class_name="bolt")["score"]


@torch.no_grad()
def test_what_is_ignored_is_so_on_the_memorys_own_grid(make_both, photograph):
    model, processor = make_both(class_names=["bolt"])
    mask = np.zeros((40, 48), dtype=bool)
    mask[:20] = True  # the upper three of its six rows
    detector = detector_of(model, processor)
    detector.add_normals("bolt", normals_of(photograph, 0, 3), ignore_mask=mask)
    assert list(model.products[0].bank.image_vectors) == [18] * 3
    image = np.array(normals_of(photograph, 0, 1)[0])
    changed = image.copy()
    changed[:15] = 255
    first, second = (detector(each, class_name="bolt", ignore_mask=mask) for each in (image, changed))
    assert not first["anomaly_map"][:18].any() and first["anomaly_map"][25:].any()
    assert abs(first["raw_score"] - second["raw_score"]) < 0.1 * first["raw_score"] + 1e-3
    output = model(**processor([Image.fromarray(image)], class_names="bolt", ignore_masks=[mask]))
    ignored = ignored_patches(processor([Image.fromarray(image)], ignore_masks=[mask])["ignore_masks"], 6)
    assert output.memory_maps.shape == (1, 6, 6) and not output.memory_maps[ignored].any()


def test_boxes_of_the_memory_are_those_of_its_own_patches(make_both, photograph):
    model, processor = make_both(class_names=["bolt"])
    remember(model, wholes([photograph(1, size=(60, 60))], processor), 0)
    boxes = model.products[0].bank.boxes
    assert boxes.shape == (36, 4) and boxes[0].tolist() == [0, 0, 10, 10] and boxes[-1].tolist() == [50, 50, 60, 60]


@torch.no_grad()
def test_a_finer_memory_is_not_lost_in_a_coarser_map(make_both):
    model, processor = make_both(side=140, class_names=["bolt"], map_fusion="memory", smoothing=0.0)
    assert (model.config.memory_grid_size, 4 * model.config.grid_size) == (20, 16)
    remember(model, wholes([Image.new("RGB", (140, 140), "grey")], processor), 0)
    picture = np.full((140, 140, 3), 128, dtype=np.uint8)
    picture[70:77, 70:77] = 255
    output = model(**processor([Image.fromarray(picture)], class_names="bolt"))
    expected = F.interpolate(output.memory_maps[:, None], size=(140, 140), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(output.anomaly_maps, expected)


def test_training_runs_the_clip_alone_and_learns_the_same(make_model, make_pixels, monkeypatch):
    losses = []
    for options in ({}, encoder_options()):
        model = make_model(**options).freeze_clip().train()
        if model.memory_encoder is not None:
            monkeypatch.setattr(type(model.memory_encoder), "forward", None)
        losses.append(model(**training_batch(model, make_pixels)).loss)
    assert torch.equal(*losses)


def test_views_for_training_have_the_clips_own_side(make_both, photograph):
    from modeling_anople.training import TrainingConfig
    from modeling_anople.training.few_shot import Shots

    model, processor = make_both(class_names=["bolt"])
    pictures = normals_of(photograph, 0, 2)
    shots = Shots({"bolt": ["a", "b"]}, pictures, [0, 0], [])
    samples = make_samples(
        TrainingConfig("", pixel_anomaly="none"), processor, shots, 2, None, model.config.image_size
    )
    assert samples[0]["pixel_values"].shape == (5, 3, 32, 32)


def test_half_precision_reads_and_judges(make_both, photograph, tmp_path):
    model, processor = make_both()
    fit(model, processor, photograph).save_pretrained(tmp_path)
    half = AnoPLeModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert half.memory_encoder.input.matrix is None and half.clip_input.matrix.dtype == torch.bfloat16
    pictures = normals_of(photograph, 0, 1) + [photograph(900)]
    scores = [
        [result["raw_score"] for result in detector_of(each, processor)(pictures, class_name="bolt")]
        for each in (model, half)
    ]
    np.testing.assert_allclose(*scores, atol=0.02, rtol=0.1)


# -- saved and found again --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_detector_holds_its_encoder(make_both, photograph, tmp_path):
    model, processor = make_both()
    detector = detector_of(fit(model, processor, photograph), processor)
    detector.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["memory_encoder"]["model_type"] == "dinov2" and config["memory_encoder"]["num_hidden_layers"] == 4
    assert config["memory_encoder_source"] == {
        "kind": "folder",
        "name": "dino",
        "revision": None,
        "license": "apache-2.0",
    }
    assert str(tmp_path.parent) not in json.dumps(config)
    picture = photograph(900)
    for read in (AnoPLeModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        inputs = processor([picture], class_names="nut")
        assert_same(read(**inputs), model(**inputs))
        assert (read.config.memory_image_mean, read.config.memory_layers) == (MEAN, [1, 3])


def test_an_adapter_names_and_hashes_both_and_finds_the_encoder(
    make_both, small_clip_folder, encoder_folder, photograph, tmp_path
):
    model, processor = make_both()
    fit(model, processor, photograph).save_adapter(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "full")
    saved = AnoPLeConfig.from_pretrained(tmp_path / "adapter")
    assert saved.adapter_clip_sha256 and saved.memory_encoder_sha256 == hash_weights(
        model.memory_encoder.model.state_dict()
    )
    # a folder's name is no way to it
    with pytest.raises(
        ValueError, match=r"the memory encoder 'dino', which cannot be found again .* memory_encoder=\.\.\."
    ):
        AnoPLeModel.load_adapter(tmp_path / "adapter", clip=small_clip_folder)
    full = AnoPLeModel.from_pretrained(tmp_path / "full")
    inputs = processor([photograph(900)], class_names="nut")
    encoders = (
        encoder_folder,
        str(encoder_folder),
        AutoModel.from_pretrained(encoder_folder),
        full.memory_encoder.model,
    )
    for encoder in encoders:
        read = AnoPLeModel.load_adapter(tmp_path / "adapter", clip=small_clip_folder, memory_encoder=encoder)
        with torch.no_grad():
            assert_same(read(**inputs), full(**inputs))
        assert read.config.memory_encoder_sha256 is None
    other = write_encoder(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError, match=rf"made on the memory encoder 'dino' .* {saved.memory_encoder_sha256}, but the memory"
    ):
        AnoPLeModel.load_adapter(tmp_path / "adapter", clip=small_clip_folder, memory_encoder=other)
    with pytest.raises(ValueError, match="is not the whole dinov2 that was asked for"):
        other = write_encoder(tmp_path / "clip", "clip_vision_model")
        AnoPLeModel.load_adapter(tmp_path / "adapter", clip=small_clip_folder, memory_encoder=other)


@torch.no_grad()
def test_an_encoder_of_the_hub_is_pinned_and_found_again_by_its_adapter(small_clip_folder, photograph, tmp_path):
    commits = {"main": "a" * 40, "v2": "b" * 40}
    for seed, (name, commit) in enumerate(commits.items()):
        store(tmp_path / "hub", write_encoder(tmp_path / name, seed=seed, license="mit"), commit, "dino")
        (tmp_path / "hub/models--org--dino/refs").mkdir(exist_ok=True)
        (tmp_path / f"hub/models--org--dino/refs/{name}").write_text(commit, encoding="utf-8")
    clip, names = CLIPModel.from_pretrained(small_clip_folder), ["bolt", "nut"]
    processor = AnoPLeProcessor.from_clip(str(small_clip_folder), names)
    options = {"memory_encoder": "org/dino", "memory_encoder_revision": "v2", "cache_dir": tmp_path / "hub"}
    model = align_weights(AnoPLeModel.from_clip(clip, names, tokenizer=processor.tokenizer, **options))
    assert model.config.memory_encoder_source == {
        "kind": "hub",
        "name": "org/dino",
        "revision": commits["v2"],
        "license": "mit",
    }
    weights = make_encoder(seed=1).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.memory_encoder.model.state_dict().items())
    fit(model, processor, photograph).save_adapter(tmp_path / "adapter")
    read = AnoPLeModel.load_adapter(tmp_path / "adapter", clip=small_clip_folder, cache_dir=tmp_path / "hub")
    inputs = processor([photograph(900)], class_names="nut")
    assert_same(read(**inputs), model(**inputs))


def test_an_adapter_without_an_encoder_takes_none(
    make_model, make_pixels, small_clip_folder, encoder_folder, tmp_path
):
    fill(make_model(), make_pixels).save_adapter(tmp_path)
    with pytest.raises(ValueError, match="has no memory encoder, its CLIP remembers: leave memory_encoder out"):
        AnoPLeModel.load_adapter(tmp_path, clip=small_clip_folder, memory_encoder=encoder_folder)


@pytest.mark.parametrize("kind", KINDS)
def test_one_id_names_a_state_with_an_encoder_however_it_was_saved(
    make_model, make_pixels, small_clip_folder, kind, tmp_path
):
    """Of some kinds transformers would write the weights under other names than an adapter hashes them by."""
    model = fill(make_model(**encoder_options(kind)), make_pixels)
    model.save_pretrained(tmp_path / "whole")
    state, encoder = model.config.content_sha256, model.memory_encoder.model
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert model.config.content_sha256 == state
    model.save_adapter(tmp_path / "adapter")
    assert model.config.content_sha256 == state
    adapter = AnoPLeModel.load_adapter(
        tmp_path / "adapter", clip=small_clip_folder, memory_encoder=encoder, verify=True
    )
    for read in (*(AnoPLeModel.from_pretrained(tmp_path / name, verify=True) for name in ("whole", "parts")), adapter):
        read.save_pretrained(tmp_path / "again")
        assert read.config.content_sha256 == state
        read.save_adapter(tmp_path / "other")
        assert read.config.content_sha256 == state
    next(encoder.parameters()).view(-1)[0] += 1
    model.save_pretrained(tmp_path / "changed")
    assert model.config.content_sha256 != state


def test_no_weights_of_an_encoder_are_left_behind_lost_or_damaged_unseen(make_model, tmp_path):
    model = make_model(**encoder_options())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    assert list(tmp_path.glob("*.safetensors*")) == [weights]
    whole = load_file(weights)
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    name = next(name for name in whole if name.startswith("memory_encoder.model.encoder.layer"))
    save_file({**whole, name: whole[name] + 1}, weights, metadata)
    with pytest.raises(ValueError, match="model.safetensors.* damaged"):
        AnoPLeModel.from_pretrained(tmp_path, verify=True)
    save_file({other: tensor for other, tensor in whole.items() if other != name}, weights, metadata)
    with pytest.raises(ValueError, match=f"has no {name}: its weights are not those that its config.json describes"):
        AnoPLeModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_hidden_layers", 10**12), ("hidden_size", 10**6), ("patch_size", 0), ("image_size", 10**6)],
)
def test_an_encoder_that_no_machine_can_hold_is_refused_at_once(encoder_folder, tmp_path, name, value):
    sizes = {"model_type": "dinov2", "image_size": 28, "patch_size": 7}
    others = dict.fromkeys(("image_mean", "memory_image_mean"), MEAN) | dict.fromkeys(
        ("image_std", "memory_image_std"), STD
    )
    assert AnoPLeConfig(memory_encoder=sizes, **others).memory_grid_size == 4
    with pytest.raises(ValueError, match=rf"memory_encoder.{name} must lie within 1 and \d+, got {value}"):
        AnoPLeConfig(memory_encoder={**sizes, name: value}, **others)
    with pytest.raises(ValueError, match="The memory encoder has .* weights, and 100000000000 are the most"):
        AnoPLeConfig(memory_encoder={**sizes, "num_hidden_layers": 1000, "hidden_size": 60_000}, **others)
    with pytest.raises(ValueError, match="memory_encoder is a bert, no vision transformer with a grid of patches"):
        AnoPLeConfig(memory_encoder={"model_type": "bert"}, **others)
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, name: value}), "utf-8")
    with pytest.raises(ValueError, match=rf"memory_encoder.{name} must lie within"):
        load_encoder_config(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_broken_weight_of_an_encoder_makes_an_error_of_every_image(make_both, photograph, value):
    model, processor = make_both()
    detector = detector_of(fit(model, processor, photograph), processor)
    with torch.no_grad():
        next(model.memory_encoder.model.encoder.layer[-1].parameters()).view(-1)[0] = value
    for result in detector([photograph(70), photograph(71)], class_name="nut"):
        assert "not finite" in result["error"] and result["score"] is result["label"] is None
    with pytest.raises(ValueError, match="is no finite number"):
        detector.add_normals("nut", normals_of(photograph, 0, 2))


def test_a_processor_that_was_changed_by_hand_is_refused_with_its_detector(make_both, photograph, tmp_path):
    model, processor = make_both()
    detector_of(fit(model, processor, photograph), processor).save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    written = path.read_text("utf-8")
    for fields, words in (
        ({"size": {"height": 28, "width": 28}}, "prepares images of 28 pixels, and the model takes 42"),
        ({"image_mean": [0.1, 0.1, 0.1]}, "the model's memory encoder expects"),
    ):
        values = json.loads(written)
        values["image_processor"] |= fields
        path.write_text(json.dumps(values), "utf-8")
        mark(path, values["content_sha256"])  # as if it had been saved so
        with pytest.raises(ValueError, match=words):
            load_detector(str(tmp_path))


def test_a_processor_of_another_side_or_normalization_is_refused(make_both, make_processor):
    model, processor = make_both()
    with pytest.raises(
        ValueError, match=r"prepares images of 32 pixels, and the model takes 42: give .*image_size=42"
    ):
        AnomalyDetectionPipeline(model, processor=make_processor())
    processor.image_processor.image_mean = [0.1, 0.1, 0.1]
    with pytest.raises(ValueError, match="the model's memory encoder expects"):
        AnomalyDetectionPipeline(model, processor=processor)


# -- graphs -----------------------------------------------------------------------------------------------------------


class Encoding(nn.Module):
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.encoder(pixel_values))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dinov2_with_registers", "siglip2_vision_model"])
def test_an_encoder_is_the_same_in_a_graph(make_model, make_pixels, tmp_path, kind, request):
    """Of the two whose positions are interpolated with antialiasing; here from 4 x 4 to 2 x 2, where that matters."""
    from modeling_anople.export import _without_checks

    encoder = make_model(**encoder_options(kind, 14), memory_layers=[1]).memory_encoder
    pixels, path = make_pixels(3), tmp_path / "model.onnx"
    expected = torch.stack(encoder(pixels))
    with _without_checks(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Encoding(encoder),
            kwargs={"pixel_values": pixels[:2]},
            f=str(path),
            dynamo=True,
            dynamic_shapes={"pixel_values": {0: "batch"}},
            output_names=["tokens"],
            opset_version=20,
            external_data=False,
            verbose=False,
        )
    answers = [OnnxEngine(path, 1).run({"pixel_values": pixels.numpy()}, ("tokens",))[0]]
    to_openvino(path)
    answers.append(
        OpenVinoEngine(path.with_name("model.xml"), 1).run({"pixel_values": pixels.numpy()}, ("tokens",))[0]
    )
    for answer in answers:
        np.testing.assert_allclose(answer, expected.numpy(), atol=1e-4)


# -- programs ---------------------------------------------------------------------------------------------------------


def test_enroll_begins_a_detector_with_an_encoder(small_clip_folder, encoder_folder, photograph, tmp_path, capsys):
    paths = write_screws(tmp_path, photograph)
    words = [
        "--clip",
        str(small_clip_folder),
        "--memory_encoder",
        str(encoder_folder),
        "--memory_image_size",
        str(SIDE),
    ]
    assert main(["enroll", str(tmp_path / "first"), "screw", *paths, *words]) == 0
    model, processor = load_detector(str(tmp_path / "first"))
    assert (model.config.memory_grid_size, processor.image_size) == (6, SIDE)
    assert model.config.memory_encoder_source["name"] == encoder_folder.name
    assert main(["predict", str(tmp_path / "first"), paths[0], "--class", "screw"]) == 0
    capsys.readouterr()
    assert main(["products", str(tmp_path / "first")]) == 0
    assert (
        f"{144:7}  {4e-6 * 144 * 2 * 32:9.1f}" in capsys.readouterr().out
    )  # 4 x 36 vectors of 2 layers of 32 numbers
    assert main(["enroll", str(tmp_path / "first"), "nut", paths[0], "--memory_encoder", "x/y"]) == 2
    assert "--memory_encoder is of a new detector: begin one with --clip" in capsys.readouterr().err
    words = ["--clip", str(small_clip_folder), "--image_size", "64"]
    assert main(["enroll", str(tmp_path / "larger"), "screw", *paths, *words]) == 0
    model, processor = load_detector(str(tmp_path / "larger"))
    assert (model.config.grid_size, processor.image_size, model.memory_encoder) == (8, 64, None)


def test_fit_takes_an_encoder_and_goes_on_where_it_is_finished(
    small_clip_folder, encoder_folder, photograph, tmp_path
):
    data, out = write_products(tmp_path / "data", photograph), tmp_path / "out"
    words = ["fit", str(data), "--clip", str(small_clip_folder), "--memory_encoder", str(encoder_folder)]
    words += ["--memory_image_size", str(SIDE), "--memory_layers", "1", "2", "--shots", "2", "--max_steps", "1"]
    words += ["--batch_size", "2", "--output_dir", str(out)]
    assert main(words) == 0
    model, processor = load_detector(str(out))
    assert (model.config.memory_layers, model.config.memory_grid_size, processor.image_size) == ([1, 2], 6, SIDE)
    assert model.config.fit["memory_encoder"] == encoder_folder.name
    assert main([*words, "--resume"]) == 0


# -- a real one -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.skipif(not REAL.is_dir(), reason="no real encoder is at hand")
def test_a_real_encoder_tells_a_hole_from_a_board(make_both, photograph):
    model, processor = make_both(side=224, class_names=["board"], memory_encoder=str(REAL), image_fusion="map")
    assert model.config.memory_layers == [4, 6] and model.config.memory_grid_size == 16
    assert model.config.memory_image_mean == [0.485, 0.456, 0.406]
    board = Image.fromarray(np.tile(np.linspace(90, 160, 224).astype(np.uint8)[:, None, None], (1, 224, 3)))
    detector = detector_of(model, processor)
    detector.add_normals("board", [board, board.transpose(Image.Transpose.FLIP_TOP_BOTTOM)])
    damaged = np.array(board)
    damaged[100:124, 150:174] = 20
    result = detector(damaged, class_name="board")
    assert result["raw_score"] > 5 * detector(board, class_name="board")["raw_score"]
    row, column = np.unravel_index(result["anomaly_map"].argmax(), result["anomaly_map"].shape)
    assert 90 < row < 134 and 140 < column < 184
