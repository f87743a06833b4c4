"""The contract of the model: what every configuration must do, what learns, what a fitted one answers, and from what."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from hub.benchmarks.measuring import b16_plus_config
from modeling_anople import AnoPLeConfig, AnoPLeModel
from modeling_anople.configuration_anople import COUPLING_MODES
from modeling_anople.fitting_anople import calibrate_product, remember
from modeling_anople.modeling_anople import VERBS

from .contract import ANSWERS, assert_same, fill, judge, learnables, training_batch
from .detectors import detector_of, pixel_images


CHOICES = [
    {},
    *({"coupling": mode} for mode in COUPLING_MODES if mode != "both"),
    {"coupling_projection": "per_layer"},
    {"coupling": "text_to_vision", "coupling_projection": "per_layer", "prompt_depth": 1},
    {"prefix": "none"},
    {"view_grid": 1},
    {"view_grid": 3},
    {"decoder_head": "conv"},
    {"decoder_layers": [1, 3]},
    {"decoder_layers": [0, 1, 2, 3], "decoder_head": "conv", "decoder_widths": [7, 3]},
    {"latent_noise": 0.0},
    {"alignment_detach": "none"},
    {"alignment_detach": "map"},
    {"memory_layers": [3]},
    {"map_fusion": "memory"},
    {"map_fusion": "decoder"},
    {"image_map": "fused"},
    {"image_fusion": "map"},
    {"image_fusion": "text"},
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
        {"coupling_projection": "per_layer", "decoder_layers": [0, 3]},
        {"alignment_detach": "none"},
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
        ({"memory_copies": "none"}, "memory_copies is called memory_rotations now"),
        ({"dice_symmetric": True}, r"dice_symmetric is no longer there.*leave it out \(it is False now\)"),
        ({"class_names": []}, r"at least one class name, got \[\]"),
        ({"class_names": "bolt"}, "list with at least one class name, got 'bolt'"),
        ({"class_names": ["bolt", "bolt"]}, r"more than once: \['bolt'\]"),
        ({"coupling": "sideways"}, "sideways"),
        ({"prompt_depth": 0}, "prompt_depth must lie within 1 and 1000, got 0"),
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
    remember(model, pixel_images(pixels), 0)
    # scores of an untrained CLIP may lie so far apart that the line of a smaller rate is above them all
    calibrate_product(model, pixel_images(pixels), 0, max_false_alarm_rate=0.4)
    with torch.no_grad():
        output = model(pixels)
    assert output.memory_maps.shape == (2, grid, grid) and output.anomaly_maps.shape == (2, side, side)
    assert float(output.memory_maps.max()) < 1e-5


# -- what it answers, and from what -----------------------------------------------------------------------------------


def test_prediction_never_runs_the_text_tower(make_model, make_pixels):
    model = fill(make_model(), make_pixels)
    before = judge(model, make_pixels)

    def refuse(*args, **kwargs):
        raise AssertionError("the text tower ran")

    for module in model.clip.text_model.modules():
        module.register_forward_pre_hook(refuse)
    assert_same(before, judge(model, make_pixels))
    assert "products.1.text_embeddings" in model.state_dict() and model.products.text_embeddings().any()
    with pytest.raises(AssertionError, match="the text tower ran"):
        model.embed_text()


@torch.no_grad()
def test_stored_text_embeddings_are_renewed_on_demand(make_model):
    model = make_model()
    assert torch.equal(model.products.text_embeddings(), model.embed_text())
    model.prompts.text.normal_()
    assert not torch.allclose(model.products.text_embeddings(), model.embed_text(), atol=1e-4)
    model.store_text_embeddings()
    assert torch.equal(model.products.text_embeddings(), model.embed_text())


@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(make_model, make_pixels):
    model = fill(make_model(), make_pixels)
    pixels, ids = make_pixels(4, seed=7), torch.tensor([0, 1, 1, 0])
    whole = model(pixels, class_ids=ids)
    for number in range(4):
        single = model(pixels[number : number + 1], class_ids=ids[number : number + 1])
        for name in ANSWERS:
            torch.testing.assert_close(single[name][0], whole[name][number], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_text_and_memory_meet_as_the_configured_formula_says(make_model, make_pixels):
    model = fill(make_model(smoothing=0.0), make_pixels)
    output = judge(model, make_pixels)
    texts = model.products.text_embeddings([0, 1, 0])
    normal, abnormal = ((texts[:, branch] * output.image_embeds).sum(1) / 0.07 for branch in (0, 1))
    torch.testing.assert_close(output.text_scores, abnormal.exp() / (normal.exp() + abnormal.exp()))
    peak = output.memory_maps.flatten(1).max(1).values
    torch.testing.assert_close(output.image_scores, 2 * output.text_scores * peak / (output.text_scores + peak))
    fine = nn.functional.interpolate(output.memory_maps[:, None], size=(16, 16), mode="bilinear")[:, 0]
    fused = 2 * fine * output.decoder_maps / (fine + output.decoder_maps)
    large = nn.functional.interpolate(fused[:, None], size=(32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(output.anomaly_maps, large, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_normal_image_scores_lower_than_a_strange_one(make_model, make_pixels):
    model, ids = make_model(), torch.tensor([0, 0, 0])
    normals = make_pixels(1) + 0.1 * make_pixels(6, seed=1)
    remember(model, pixel_images(normals[:3]), 0)
    calibrate_product(model, pixel_images(normals[:3]), 0)
    normal, strange = model(normals[3:], class_ids=ids), model(make_pixels(3, seed=2), class_ids=ids)
    assert normal.image_scores.max() < strange.image_scores.min()
    assert normal.calibrated_scores.max() < 0.5 < strange.calibrated_scores.min()
    assert normal.calibrated_maps.max() < 0.5 < strange.calibrated_maps.amax((1, 2)).min()


@torch.no_grad()
def test_without_a_class_it_is_predicted(make_model, make_pixels):
    model = fill(make_model(), make_pixels)
    pixels = torch.cat([make_pixels(2, seed=1), make_pixels(2, seed=0)])
    output = model(pixels)
    assert output.class_ids.tolist() == [1, 1, 0, 0]  # the remembered images themselves
    assert_same(output, model(pixels, class_ids=torch.tensor([1, 1, 0, 0])))
    other = model(pixels, class_ids=torch.tensor([0, 0, 1, 1]))
    assert other.class_ids.tolist() == [0, 0, 1, 1] and not torch.equal(other.memory_maps, output.memory_maps)


@torch.no_grad()
@pytest.mark.parametrize("class_id", [-1, 2])
def test_an_impossible_class_id_is_refused(make_model, make_pixels, class_id):
    with pytest.raises(ValueError, match=f"within 0 and 1, got .0, {class_id}."):
        make_model()(make_pixels(2), class_ids=torch.tensor([0, class_id]))


@torch.no_grad()
def test_before_anything_is_remembered_the_decoder_answers_alone(make_model, make_pixels):
    output = judge(make_model(smoothing=0.0), make_pixels)
    assert output.memory_maps is None and output.calibrated_scores is None
    large = nn.functional.interpolate(output.decoder_maps[:, None], size=(32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(output.anomaly_maps, large)


@torch.no_grad()
def test_losses_can_be_measured_in_evaluation_too(make_model, make_pixels):
    model = fill(make_model(), make_pixels)
    batch = training_batch(model, make_pixels)
    measured = model(**batch)
    assert measured.image_scores is not None
    torch.testing.assert_close(measured.loss, model.train()(**batch).loss)
    batch["mask_labels"] = torch.zeros_like(batch["mask_labels"])
    labelled = model(**batch, labels=torch.tensor([0, -1, -1, -1, -1] * 2)).loss_terms
    assert int(labelled["image"].count) == 4 and int(labelled["alignment"].count) == 0


# -- hidden states --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_hidden_states_and_attentions_are_the_vision_towers_alone(make_model, make_pixels, training):
    model = fill(make_model(), make_pixels)
    model.set_attn_implementation("eager")
    batch = {"pixel_values": make_pixels(2), "class_ids": torch.tensor([0, 1])}
    plain = model(**batch)
    assert plain.hidden_states is None and plain.attentions is None
    output = model.train(training)(**batch, output_hidden_states=True, output_attentions=True)
    tokens = 1 + 16 + 8 + 1  # class token, patches, prompts, prefix
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, tokens, 32)] * 5
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, tokens, tokens)] * 4
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 4, tokens))
    last = model.clip.vision_model.post_layernorm(output.hidden_states[-1][:, 0])
    pooled = nn.functional.normalize(model.clip.visual_projection(last), dim=-1)
    torch.testing.assert_close(pooled, output.image_embeds)


def test_an_answer_may_be_a_tuple(make_model, make_pixels):
    model = make_model()
    batch = training_batch(model, make_pixels)
    answer, output = model(**batch, return_dict=False), model(**batch)
    assert isinstance(answer, tuple) and torch.equal(answer[0], output.loss)  # the loss comes first
    assert torch.equal(answer[2], output.image_scores) and torch.equal(answer[3], output.anomaly_maps)


# -- what it leaves to others -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_memory_holds_unit_vectors_of_the_configured_blocks(make_model, make_pixels):
    model = make_model(memory_layers=[3, 1])
    encoded = model.encode_image(make_pixels(2))
    features = model.memory_features(make_pixels(2), encoded)
    assert torch.equal(features, model.memory_features(make_pixels(2)))
    assert features.shape == (2, 2, 16, 32)
    for row, block in enumerate((3, 1)):
        torch.testing.assert_close(features[row], nn.functional.normalize(encoded.intermediate[block], dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("class_id", [0, 1])
def test_a_known_class_is_not_predicted(make_model, make_pixels, class_id):
    model = fill(make_model(class_identity="predicted"), make_pixels)
    pixels, ids = make_pixels(2, seed=7), torch.tensor([class_id] * 2)
    known = model(pixels, class_ids=ids, class_is_known=True)
    assert known.class_ids.tolist() == ids.tolist() and known.is_known_class is None
    model.config.class_identity = "given"
    assert_same(known, model(pixels, class_ids=ids))


REMEDY = r'which has model and processor: detector = pipeline\("image-anomaly-detection", FOLDER\)'


@pytest.mark.parametrize(("earlier", "verb"), VERBS.items())
def test_verbs_that_need_the_processor_name_the_object_that_has_it(make_model, make_processor, earlier, verb):
    model = make_model()
    with pytest.raises(AttributeError, match=f"^{verb} is a verb of the detector, {REMEDY}"):
        getattr(model, earlier)
    assert not hasattr(model, earlier)
    assert callable(getattr(detector_of(model, make_processor()), verb))


def test_a_model_says_what_a_pipeline_is_made_of(make_model):
    with pytest.raises(AttributeError, match=f"^The model is a part of the detector, {REMEDY}"):
        make_model().as_pipeline(None)


def test_any_other_missing_name_is_missing_as_usual(make_model):
    with pytest.raises(AttributeError, match="'AnoPLeModel' object has no attribute 'enrol'"):
        make_model().enrol  # noqa: B018


def test_labels_need_masks(make_model, make_pixels):
    model = make_model()
    for mode in (True, False):
        with pytest.raises(
            ValueError, match="labels were given without mask_labels, which the losses need: give both"
        ):
            model.train(mode)(make_pixels(2), class_ids=torch.tensor([0, 1]), labels=torch.tensor([0, 1]))


def test_the_input_is_embedded_by_the_patches_convolution(make_model):
    model = make_model()
    patches = model.get_input_embeddings()
    assert patches is model.clip.vision_model.embeddings.patch_embedding
    model.set_input_embeddings(other := deepcopy(patches))
    assert model.get_input_embeddings() is other
