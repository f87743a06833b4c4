from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from modeling_anople import AnoPLeConfig, AnoPLeModel
from modeling_anople.prompting_anople import BidirectionalPrompts, class_prompt_ids, encode_image, encode_text


SHAPES = {
    "vision_deeper": ({"hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 5}, {"num_hidden_layers": 2}),
    "text_deeper": ({"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}, {"num_hidden_layers": 4}),
}


def odd_clip(tokenizer, shape: str, **text) -> CLIPModel:
    """A CLIP whose towers differ in every size and whose norms and biases are not the identity."""
    vision_config, text_config = SHAPES[shape]
    config = CLIPConfig(
        vision_config={"intermediate_size": 44, "image_size": 30, "patch_size": 6, **vision_config},
        text_config={
            "hidden_size": 48,
            "intermediate_size": 52,
            "num_attention_heads": 3,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **text_config,
            **text,
        },
        projection_dim=20,
    )
    for tower in (config.vision_config, config.text_config):
        tower.hidden_act = text.get("hidden_act", "gelu")
    torch.manual_seed(0)
    clip = CLIPModel(config).eval()
    with torch.no_grad():
        for weight in clip.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return clip


class Inputs:
    """Record what each block of a tower is given."""

    def __init__(self, tower: nn.Module):
        self.blocks: list[Tensor] = []
        for layer in tower.encoder.layers:
            layer.register_forward_pre_hook(lambda module, args: self.blocks.append(args[0].detach()))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_prompts_features_are_those_of_clip(tokenizer, make_pixels, attention, activation, shape):
    reference = odd_clip(tokenizer, shape, hidden_act=activation)
    model = AnoPLeModel.from_clip(
        deepcopy(reference), ["bolt", "metal_nut"], tokenizer=tokenizer, coupling="none", prefix="none"
    )
    for clip in (reference, model):
        clip.set_attn_implementation(attention)
    tower = model.clip.vision_model
    assert tower.config._attn_implementation == model.clip.text_model.config._attn_implementation == attention
    pixels, ids = make_pixels(2, side=30), model.products.prompt_ids()
    with torch.no_grad():
        image = reference.get_image_features(pixels).pooler_output
        text = reference.get_text_features(ids).pooler_output
        torch.testing.assert_close(model.encode_image(pixels).pooled, image, atol=1e-6, rtol=0)
        torch.testing.assert_close(encode_text(model.clip, ids), text, atol=1e-6, rtol=0)
        unit = F.normalize(text, dim=-1).view(2, 2, -1)
        torch.testing.assert_close(model.embed_text(), unit, atol=1e-6, rtol=0)
        torch.testing.assert_close(model.products.text_embeddings(), unit, atol=1e-6, rtol=0)


def test_checkpoints_that_name_end_token_two_mean_the_highest_id(tokenizer):
    clip = odd_clip(tokenizer, "text_deeper", eos_token_id=2)
    ids = class_prompt_ids(tokenizer, ["bolt"], prompt_count=0, max_length=20)
    with torch.no_grad():
        expected = clip.get_text_features(ids).pooler_output
        torch.testing.assert_close(encode_text(clip, ids), expected, atol=1e-6, rtol=0)
    assert not torch.equal(expected[0], expected[1])


def test_intermediate_patches_are_the_hidden_states_after_the_named_blocks(clip_model, make_pixels):
    pixels = make_pixels(2)
    with torch.no_grad():
        hidden = clip_model.get_image_features(pixels, output_hidden_states=True).hidden_states
        intermediate = encode_image(clip_model, pixels, out_indices=(0, 2)).intermediate
    assert sorted(intermediate) == [0, 2]
    for block, patches in intermediate.items():
        torch.testing.assert_close(patches, hidden[block + 1][:, 1:], atol=1e-6, rtol=0)


# -- the prompts ----------------------------------------------------------------------------------------------------


def prompts_of(shape: str, tokenizer, **fields) -> BidirectionalPrompts:
    config = AnoPLeConfig(clip_config=odd_clip(tokenizer, shape).config.to_dict(), **fields)
    prompts = BidirectionalPrompts(config)
    torch.manual_seed(1)
    for weight in prompts.parameters():
        nn.init.normal_(weight)
    return prompts


@pytest.mark.parametrize("projection", ["shared", "per_layer"])
@pytest.mark.parametrize("shape", SHAPES)
def test_coupled_prompts_are_the_own_ones_and_the_projected_others(tokenizer, shape, projection):
    prompts = prompts_of(shape, tokenizer, coupling_projection=projection, prompt_length=3)
    text, vision = prompts()
    for own, other, layers, coupled in (
        (prompts.text, prompts.vision, prompts.vision_to_text, text),
        (prompts.vision, prompts.text, prompts.text_to_vision, vision),
    ):
        assert len(layers) == (2 if projection == "per_layer" else 1) and len(coupled) == len(own)
        for block, tokens in enumerate(coupled):
            expected = own[block]
            if block < len(other):  # deeper blocks have no counterpart and keep their free prompts
                linear = layers[block if projection == "per_layer" else 0]
                expected = torch.cat([expected, other[block] @ linear.weight.T + linear.bias])
            torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=1e-6)
            assert torch.equal(tokens[:3], own[block])
    depths = {len(text), len(vision)}
    assert depths == ({2, 5} if shape == "vision_deeper" else {2, 4})


def test_projections_read_the_uncoupled_prompts(tokenizer):
    prompts = prompts_of("vision_deeper", tokenizer)
    before = [tokens.clone() for tokens in prompts()[0]]
    with torch.no_grad():
        prompts.text.add_(1.0)  # reaches text directly, and vision; but not text by way of vision
    after = prompts()[0]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[4:], new[4:]) and not torch.equal(old[:4], new[:4])
    with torch.no_grad():
        prompts.vision[0].add_(1.0)
    assert torch.equal(prompts()[0][1], after[1]) and not torch.equal(prompts()[0][0], after[0])


@pytest.mark.parametrize(("depth", "text", "vision"), [(1, 1, 1), (3, 2, 3), (9, 2, 4)])
def test_there_are_prompts_for_prompt_depth_blocks_and_no_more(make_model, depth, text, vision):
    prompts = make_model(prompt_depth=depth).prompts
    assert (len(prompts.text), len(prompts.vision)) == (text, vision)
    assert [len(tokens) for tokens in prompts()] == [text, vision]


def test_first_values_have_the_configured_spread(tokenizer):
    config = AnoPLeConfig(prompt_std=0.5)
    prompts = BidirectionalPrompts(config)
    for weight in (prompts.text, prompts.vision):
        assert abs(float(weight.detach().std()) - 0.5) < 0.02 and abs(float(weight.detach().mean())) < 0.02


# -- the walk -------------------------------------------------------------------------------------------------------

COUNTS = {
    "both": (6, 6),
    "text_to_vision": (3, 6),
    "vision_to_text": (6, 3),
    "uncoupled": (3, 3),
    "text_only": (3, 0),
    "vision_only": (0, 3),
    "none": (0, 0),
}


@pytest.mark.parametrize("coupling", COUNTS)
def test_both_towers_see_as_many_tokens_as_the_coupling_says(make_model, make_pixels, coupling):
    model = make_model(coupling=coupling, prompt_length=3)
    text, vision = Inputs(model.clip.text_model), Inputs(model.clip.vision_model)
    with torch.no_grad():
        model.embed_text()
        model.encode_image(make_pixels(2))
    text_count, vision_count = COUNTS[coupling]
    assert (model.config.text_prompt_count, model.config.vision_prompt_count) == COUNTS[coupling]
    words = len("abnormal") + len("bolt") + len(".")  # the longest row; the small tokenizer has one token for a byte
    assert {block.shape[1] for block in text.blocks} == {1 + text_count + words + 1}
    assert {block.shape[1] for block in vision.blocks} == {1 + 16 + vision_count + 1}  # class token, patches, prefix


@pytest.mark.parametrize(("prefix", "extra"), [("token", 1), ("none", 0)])
def test_each_prefix_mode_reaches_its_slots(make_model, make_pixels, prefix, extra):
    model = make_model(prefix=prefix, prompt_length=2, prompt_depth=3, coupling="uncoupled", prompt_std=1.0)
    seen = Inputs(model.clip.vision_model)
    view_ids = torch.tensor([0, 3])
    with torch.no_grad():
        model.encode_image(make_pixels(2), view_ids)
    first, free = 17, model.prompts.vision.detach()
    views = None if prefix == "none" else model.prefix.embeddings.detach()[view_ids]
    assert {block.shape[1] for block in seen.blocks} == {first + 2 + extra}
    for number in (1, 2):  # block 0 sees them behind the first norm
        assert torch.equal(seen.blocks[number][:, first : first + 2], free[number].expand(2, -1, -1))
        if extra:  # it flows on, and is not put there anew
            assert not torch.equal(seen.blocks[number][:, -1], views)
    tokens = free[0].expand(2, -1, -1)
    tokens = torch.cat([tokens, views[:, None]], dim=1) if extra else tokens
    with torch.no_grad():
        normed = model.clip.vision_model.pre_layrnorm(tokens)
    torch.testing.assert_close(seen.blocks[0][:, first:], normed)
    last = seen.blocks[3][:, first : first + 2]  # behind prompt_depth the slots flow on
    assert all(not torch.allclose(last[0], prompts, atol=1e-3) for prompts in free)


def test_deep_text_prompts_overwrite_their_slots_and_flow_on_behind_the_depth(make_model):
    model = make_model(prompt_length=2, prompt_depth=1, prompt_std=1.0)
    seen = Inputs(model.clip.text_model)
    with torch.no_grad():
        model.embed_text()
        prompts = model.prompts()[0][0]
    positions = model.clip.text_model.embeddings.position_embedding.weight[1:5].detach()
    assert torch.equal(seen.blocks[0][:, 1:5], (prompts + positions).expand(4, -1, -1))
    assert not torch.allclose(seen.blocks[1][0, 1:5], prompts, atol=1e-2)
    deeper = make_model(prompt_length=2, prompt_depth=2, prompt_std=1.0)
    seen = Inputs(deeper.clip.text_model)
    with torch.no_grad():
        deeper.embed_text()
        assert torch.equal(seen.blocks[1][:, 1:5], deeper.prompts()[0][1].expand(4, -1, -1))


def test_where_the_other_tower_ends_projected_tokens_flow_on(make_model, make_pixels):
    model = make_model(prompt_length=2, prompt_std=1.0)  # 2 text blocks, 4 vision blocks
    seen = Inputs(model.clip.vision_model)
    with torch.no_grad():
        model.encode_image(make_pixels(1))
        prompts = model.prompts()[1]
    assert [len(tokens) for tokens in prompts] == [4, 4, 2, 2]
    assert torch.equal(seen.blocks[1][0, 17:21], prompts[1])
    assert torch.equal(seen.blocks[2][0, 17:19], prompts[2])
    assert not torch.allclose(seen.blocks[2][0, 19:21], prompts[1][2:], atol=1e-2)
    assert seen.blocks[3].shape[1] == 17 + 4 + 1


def test_ids_of_placeholders_and_behind_the_end_have_no_effect(make_model):
    model = make_model()
    ids, prompts = model.products.prompt_ids(), model.prompts()[0]
    count = model.config.text_prompt_count
    with torch.no_grad():
        expected = encode_text(model.clip, ids, prompts=prompts)
        other = ids.clone()
        other[:, 1 : 1 + count] = torch.arange(5, 5 + count)
        assert torch.equal(encode_text(model.clip, other, prompts=prompts), expected)
        tail = ids.clone()
        tail[:, 60:] = 7
        torch.testing.assert_close(encode_text(model.clip, tail, prompts=prompts), expected, atol=1e-6, rtol=0)
        words = ids.clone()
        words[:, 1 + count] += 1
        assert not torch.allclose(encode_text(model.clip, words, prompts=prompts), expected, atol=1e-4)
