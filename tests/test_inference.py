"""What a fitted model answers, and from what."""

import pytest
import torch
from torch import nn

from .contract import ANSWERS, assert_same, fill, judge, training_batch


def test_prediction_never_runs_the_text_tower(make_model, make_pixels):
    model = fill(make_model(), make_pixels)
    before = judge(model, make_pixels)

    def refuse(*args, **kwargs):
        raise AssertionError("the text tower ran")

    for module in model.clip.text_model.modules():
        module.register_forward_pre_hook(refuse)
    assert_same(before, judge(model, make_pixels))
    assert "class_embeddings" in model.state_dict() and model.class_embeddings.any()
    with pytest.raises(AssertionError, match="the text tower ran"):
        model.embed_text()


@torch.no_grad()
def test_stored_class_embeddings_are_renewed_on_demand(make_model):
    model = make_model()
    assert torch.equal(model.class_embeddings, model.embed_text())
    model.prompts.text.normal_()
    assert not torch.allclose(model.class_embeddings, model.embed_text(), atol=1e-4)
    model.store_text_embeddings()
    assert torch.equal(model.class_embeddings, model.embed_text())


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
    texts = model.class_embeddings[torch.tensor([0, 1, 0])]
    normal, abnormal = ((texts[:, branch] * output.image_embeds).sum(1) / 0.07 for branch in (0, 1))
    torch.testing.assert_close(output.text_scores, abnormal.exp() / (normal.exp() + abnormal.exp()))
    peak = output.memory_maps.flatten(1).max(1).values
    torch.testing.assert_close(output.image_scores, 2 * output.text_scores * peak / (output.text_scores + peak))
    fine = nn.functional.interpolate(output.memory_maps[:, None], size=(16, 16), mode="bilinear")[:, 0]
    fused = 2 * fine * output.decoder_maps / (fine + output.decoder_maps)
    large = nn.functional.interpolate(fused[:, None], size=(32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(output.anomaly_maps, large, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_remembered_photograph_scores_lower_than_a_strange_one(make_model, make_pixels):
    model, ids = make_model(), torch.tensor([0, 0, 0])
    normals = make_pixels(1) + 0.1 * make_pixels(6, seed=1)
    model.remember(normals[:3], 0)
    model.calibrate(normals[:3], 0)
    normal, strange = model(normals[3:], class_ids=ids), model(make_pixels(3, seed=2), class_ids=ids)
    assert normal.image_scores.max() < strange.image_scores.min()
    assert normal.calibrated_scores.max() < 0.5 < strange.calibrated_scores.min()
    assert normal.calibrated_maps.max() < 0.5 < strange.calibrated_maps.amax((1, 2)).min()


@torch.no_grad()
def test_without_a_class_it_is_predicted(make_model, make_pixels):
    model = fill(make_model(), make_pixels)
    pixels = torch.cat([make_pixels(2, seed=1), make_pixels(2, seed=0)])
    output = model(pixels)
    assert output.class_ids.tolist() == [1, 1, 0, 0]  # the remembered photographs themselves
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


@pytest.mark.parametrize("memory_features", ["prompted", "frozen"])
@pytest.mark.parametrize("training", [False, True])
def test_hidden_states_and_attentions_are_the_vision_towers_alone(make_model, make_pixels, memory_features, training):
    model = fill(make_model(memory_features=memory_features), make_pixels)
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
