"""The contract of the model: what every configuration must do, what learns, and how one starts from a CLIP."""

from copy import deepcopy

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from hub.benchmarks.measuring import b16_plus_config
from modeling_anople import AnoPLeConfig, AnoPLeModel
from modeling_anople.configuration_anople import COUPLING_MODES

from .contract import ANSWERS, assert_same, fill, judge, learnables, training_batch


CHOICES = [
    {},
    *({"coupling": mode} for mode in COUPLING_MODES if mode != "both"),
    {"coupling_projection": "per_layer"},
    {"coupling": "text_to_vision", "coupling_projection": "per_layer", "prompt_depth": 1},
    *({"prefix": mode} for mode in ("deep_token", "add", "none")),
    {"prefix": "deep_token", "coupling": "none"},
    {"view_grid": 1},
    {"view_grid": 3},
    {"sub_image_losses": "pixel"},
    {"decoder_head": "conv"},
    {"decoder_input": "unit"},
    {"decoder_layers": [1, 3]},
    {"decoder_layers": [0, 1, 2, 3], "decoder_head": "conv", "decoder_widths": [7, 3]},
    {"value_attention_layers": 2},
    {"latent_noise": 0.0},
    {"latent_noise_target": "patches"},
    {"dice_views": "all", "dice_symmetric": True},
    {"alignment_detach": "none"},
    {"alignment_detach": "map"},
    {"memory_features": "frozen"},
    {"memory_layers": [3]},
    {"map_fusion": "memory"},
    {"map_fusion": "decoder"},
    {"image_map": "fused"},
    {"image_fusion": "map"},
    {"image_fusion": "text"},
    {"fusion_scale": "normal"},
    {"smoothing": 0.0},
    {"class_identity": "predicted"},
    {"class_identity": "predicted", "class_prediction": "text"},
    {"class_identity": "pooled"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())) or "default")
def test_every_choice_trains_and_then_judges(make_model, make_pixels, choice):
    model = make_model(**choice).freeze_clip().train()
    output = model(**training_batch(model, make_pixels))
    assert set(output.loss_terms) == {"focal", "dice", "image", "alignment"}
    assert output.loss.isfinite() and output.image_scores is None
    output.loss.backward()
    gradients = {name: weight.grad for name, weight in learnables(model).items() if weight.grad is not None}
    assert gradients and all(gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.any() for gradient in gradients.values())

    fill(model, make_pixels)
    assert not model.training
    output = judge(model, make_pixels)
    assert output.image_scores.shape == output.calibrated_scores.shape == (3,)
    assert output.anomaly_maps.shape == output.calibrated_maps.shape == (3, 32, 32)
    assert output.decoder_maps.shape == (3, 16, 16) and output.memory_maps.shape == (3, 4, 4)
    for name in (*ANSWERS, "text_scores", "decoder_maps", "memory_maps"):
        assert output[name].isfinite().all() and output[name].min() >= 0 and output[name].max() <= 1 + 1e-6, name
    assert output.loss is None and (output.class_ids is None) == (choice.get("class_identity") == "pooled")


@torch.no_grad()
@pytest.mark.parametrize("view_grid", [1, 2, 3])
def test_there_is_a_prefix_for_each_view(make_model, make_pixels, view_grid):
    model = make_model(view_grid=view_grid)
    views = 1 if view_grid == 1 else 1 + view_grid**2
    assert len(model.prefix.embeddings) == model.config.num_views == views
    pixels = make_pixels(1).expand(views, -1, -1, -1)
    pooled = model.encode_image(pixels, torch.arange(views)).pooled
    assert len({tuple(row) for row in pooled.tolist()}) == views  # each view is seen differently
    assert torch.equal(model.encode_image(pixels[:1]).pooled, model.encode_image(pixels[:1], torch.tensor([0])).pooled)


@torch.no_grad()
def test_prediction_uses_the_global_prefix_alone(make_model, make_pixels):
    model = make_model()
    fill(model, make_pixels)
    before = judge(model, make_pixels)
    model.prefix.embeddings[1:] += 1
    assert_same(before, judge(model, make_pixels))
    model.prefix.embeddings[0] += 1
    assert not torch.equal(judge(model, make_pixels).anomaly_maps, before.anomaly_maps)


# -- what learns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reloaded", [False, True], ids=["new", "reloaded"])
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"coupling_projection": "per_layer", "prefix": "add", "decoder_layers": [0, 3]},
        {"prefix": "deep_token", "alignment_detach": "none", "value_attention_layers": 1},
    ],
    ids=["default", "per_layer", "literal"],
)
def test_all_learnables_get_a_gradient_and_clip_none(make_model, make_pixels, tmp_path, choice, reloaded):
    model = make_model(**choice)
    if reloaded:
        model.save_pretrained(tmp_path)
        model = AnoPLeModel.from_pretrained(tmp_path)
    model.freeze_clip().train()
    assert model.training and not any(module.training for module in model.clip.modules())
    output = model(**training_batch(model, make_pixels))
    assert all(int(term.count) > 0 for term in output.loss_terms.values())
    output.loss.backward()
    for name, weight in learnables(model).items():
        parts = weight if name in ("prompts.text", "prompts.vision", "prefix.embeddings") else [weight]
        assert weight.requires_grad and weight.grad is not None, name
        assert all(gradient.any() for gradient in (weight.grad if len(parts) > 1 else [weight.grad])), name
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.clip.parameters())
    model.eval()
    assert not model.decoder.training


@pytest.mark.parametrize(("detach", "moved"), [("decoder", False), ("none", True), ("map", True)])
def test_alignment_alone_moves_the_decoder_only_where_it_may(make_model, make_pixels, detach, moved):
    model = make_model(alignment_detach=detach).freeze_clip().train()
    terms = model(**training_batch(model, make_pixels)).loss_terms
    terms["alignment"].mean.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.decoder.parameters()) == moved
    assert model.prompts.vision.grad.any() and model.prefix.embeddings.grad.any()


def test_gradient_checkpointing_is_refused_rather_than_without_effect(make_model):
    with pytest.raises(ValueError, match="does not support .* checkpointing"):
        make_model().gradient_checkpointing_enable()


@pytest.mark.parametrize(("projection", "low", "high"), [("shared", 2.0e6, 2.5e6), ("per_layer", 10e6, 13e6)])
def test_a_large_clip_gets_as_few_learnables_as_the_design_says(projection, low, high):
    config = AnoPLeConfig(
        clip_config=b16_plus_config(49408, 49407), class_names=["bolt"], coupling_projection=projection
    )
    with torch.device("meta"):
        model = AnoPLeModel(config)
    text, vision, joint, length, depth, views = 640, 896, 640, 4, 9, 5
    projections = 1 if projection == "shared" else depth
    prompts = depth * length * (text + vision) + projections * (text * vision + vision + vision * text + text)
    first = 9 * joint * 128 + 128 + 2 * 128 + 4 * 128 * 128 + 128  # conv, norm, transposed conv
    second = 9 * 128 * 64 + 64 + 2 * 64 + 4 * 64 * 64 + 64
    decoder = first + second + 64 * joint + joint
    count = sum(weight.numel() for weight in learnables(model).values())
    assert count == prompts + views * vision + decoder
    assert low <= count <= high


# -- from CLIP ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_wrapping_a_clip_leaves_it_as_it_was(clip_model, tokenizer, make_pixels):
    pixels, ids = make_pixels(2), tokenizer(["abc", "xyz"], return_tensors="pt").input_ids
    weights = deepcopy(clip_model.state_dict())
    image, text = clip_model.get_image_features(pixels).pooler_output, clip_model.get_text_features(ids).pooler_output
    model = AnoPLeModel.from_clip(clip_model, ["bolt", "nut"], tokenizer=tokenizer)
    fill(model, make_pixels)
    assert model.clip is clip_model and all(torch.equal(value, weights[name]) for name, value in weights.items())
    assert torch.equal(clip_model.get_image_features(pixels).pooler_output, image)
    assert torch.equal(clip_model.get_text_features(ids).pooler_output, text)
    for name, value in model.clip.state_dict().items():
        assert torch.equal(value, weights[name]), name


@torch.no_grad()
def test_a_folder_and_the_model_in_it_start_the_same_detector(small_clip_folder, clip_model, tokenizer, make_pixels):
    torch.manual_seed(0)
    named = AnoPLeModel.from_clip(str(small_clip_folder), ["bolt", "nut"])
    torch.manual_seed(0)
    given = AnoPLeModel.from_clip(clip_model, ["bolt", "nut"], tokenizer=tokenizer)
    assert_same(judge(fill(named, make_pixels), make_pixels), judge(fill(given, make_pixels), make_pixels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"promt_length": 4, "shots": 2}, r"\['promt_length', 'shots'\], which are no fields of AnoPLeConfig"),
        ({"dtype": "bfloat16"}, r"\['dtype'\]"),
        ({"class_names": []}, r"at least one class name, got \[\]"),
        ({"class_names": "bolt"}, "list with at least one class name, got 'bolt'"),
        ({"class_names": ["bolt", "bolt"]}, r"more than once: \['bolt'\]"),
        ({"coupling": "sideways"}, "sideways"),
        ({"prompt_depth": 0}, "prompt_depth must be at least 1, got 0"),
        ({"class_names": ["x" * 80]}, "give the class a shorter name"),
    ],
)
def test_a_wrong_start_is_refused_with_the_remedy(small_clip_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        AnoPLeModel.from_clip(str(small_clip_folder), **{"class_names": ["bolt"], **arguments})


def test_a_clip_without_its_tokenizer_is_refused(clip_model):
    with pytest.raises(ValueError, match=r"CLIPModel without its tokenizer: pass tokenizer="):
        AnoPLeModel.from_clip(clip_model, ["bolt"])


@pytest.mark.parametrize(
    ("side", "patch"), [(64, 32), (32, 14), (48, 14), (30, 16)], ids=["B/32", "L/14", "336", "B/16"]
)
def test_backbones_of_any_patch_size_and_resolution(tokenizer, make_pixels, side, patch):
    size = {"hidden_size": 24, "intermediate_size": 30, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**size, "image_size": side, "patch_size": patch},
        text_config={**size, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        projection_dim=10,
    )
    model = AnoPLeModel.from_clip(CLIPModel(config), ["bolt"], tokenizer=tokenizer, decoder_widths=[8, 4])
    pixels, grid = make_pixels(2, side=side), side // patch
    model.remember(pixels, 0)
    model.calibrate(pixels, 0)
    with torch.no_grad():
        output = model(pixels)
    assert output.memory_maps.shape == (2, grid, grid) and output.anomaly_maps.shape == (2, side, side)
    assert float(output.memory_maps.max()) < 1e-5
