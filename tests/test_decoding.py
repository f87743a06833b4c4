import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig

from modeling_anople import AnoPLeConfig
from modeling_anople.decoding_anople import AnomalyDecoder


GRID, JOINT, VISION = 4, 20, 24


def make_decoder(**fields) -> AnomalyDecoder:
    clip = CLIPConfig(
        vision_config={"hidden_size": VISION, "image_size": 32, "patch_size": 8, "num_hidden_layers": 3},
        projection_dim=JOINT,
    )
    torch.manual_seed(0)
    return AnomalyDecoder(AnoPLeConfig(clip_config=clip, decoder_widths=[12, 6], **fields)).eval()


def make_inputs(batch: int = 2) -> tuple[torch.Tensor, dict[int, torch.Tensor], torch.Tensor]:
    torch.manual_seed(1)
    intermediate = {block: torch.randn(batch, GRID**2, VISION) for block in range(3)}
    return torch.randn(batch, GRID**2, JOINT), intermediate, F.normalize(torch.randn(batch, 2, JOINT), dim=-1)


@torch.no_grad()
def test_logits_compare_unit_length_features_with_both_texts_at_each_place():
    decoder, (patches, intermediate, texts) = make_decoder(temperature=0.05), make_inputs()
    decoded = decoder(patches, intermediate, texts)
    assert decoded.features.shape == (2, JOINT, 4 * GRID, 4 * GRID) and decoded.logits.shape == (2, 2, 16, 16)
    torch.testing.assert_close(decoded.features.norm(dim=1), torch.ones(2, 16, 16))
    for image in range(2):
        for branch in range(2):
            for row, column in ((0, 0), (3, 12), (15, 15)):
                cosine = float(decoded.features[image, :, row, column] @ texts[image, branch])
                assert float(decoded.logits[image, branch, row, column]) == pytest.approx(cosine / 0.05, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("row", "column"), [(0, 3), (3, 0), (3, 3)])
def test_a_changed_patch_changes_the_map_at_its_place(row, column):
    decoder, (patches, intermediate, texts) = make_decoder(), make_inputs(1)
    other = patches.clone()
    other[0, row * GRID + column] *= -1
    change = (decoder(other, intermediate, texts).features - decoder(patches, intermediate, texts).features).norm(
        dim=1
    )[0]
    quarter = change.unfold(0, 8, 8).unfold(1, 8, 8).sum((-1, -2)).argmax()  # one number for each 8 x 8 places
    assert divmod(int(quarter), 2) == (row // 2, column // 2)


@torch.no_grad()
def test_the_length_of_patch_tokens_does_not_count():
    decoder, (patches, intermediate, texts) = make_decoder(), make_inputs()
    torch.testing.assert_close(
        decoder(7 * patches, intermediate, texts).logits, decoder(patches, intermediate, texts).logits
    )


@torch.no_grad()
def test_images_of_a_batch_do_not_meet():
    decoder, (patches, intermediate, texts) = make_decoder(), make_inputs(3)
    alone = decoder(patches[1:2], {}, texts[1:2]).logits
    torch.testing.assert_close(decoder(patches, intermediate, texts).logits[1:2], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_named_blocks_feed_it_instead_of_the_final_patches():
    decoder, (patches, intermediate, texts) = make_decoder(decoder_layers=[0, 2]), make_inputs()
    before = decoder(patches, intermediate, texts).logits
    assert torch.equal(decoder(torch.zeros_like(patches), intermediate, texts).logits, before)
    assert torch.equal(decoder(patches, {**intermediate, 1: torch.zeros_like(intermediate[1])}, texts).logits, before)
    for block in (0, 2):
        assert not torch.allclose(
            decoder(patches, {**intermediate, block: intermediate[block].flip(1)}, texts).logits, before
        )


@torch.no_grad()
def test_an_untrained_conv_head_answers_the_prior_everywhere():
    decoder, inputs = make_decoder(decoder_head="conv"), make_inputs()
    decoder.reset_head()
    decoded = decoder(*inputs)
    torch.testing.assert_close(decoded.logits.softmax(1)[:, 1], torch.full((2, 16, 16), 0.03))
    assert decoded.features.shape == (2, JOINT, 16, 16)
    torch.nn.init.normal_(decoder.head.weight)
    assert float(decoder(*inputs).logits.std()) > 0.1


@pytest.mark.parametrize("widths", [[5, 3], [16, 7], [8, 8]])
def test_any_widths_find_groups(widths):
    clip = CLIPConfig(vision_config={"hidden_size": VISION, "image_size": 32, "patch_size": 8}, projection_dim=JOINT)
    decoder = AnomalyDecoder(AnoPLeConfig(clip_config=clip, decoder_widths=widths))
    patches, intermediate, texts = make_inputs()
    assert decoder(patches, intermediate, texts).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("head", ["text", "conv"])
def test_logits_without_features_are_the_same(head):
    decoder, (patches, intermediate, texts) = make_decoder(decoder_head=head), make_inputs()
    torch.nn.init.normal_(decoder.project.bias)
    if head == "conv":
        torch.nn.init.normal_(decoder.head.weight)
    whole, quick = decoder(patches, intermediate, texts), decoder(patches, intermediate, texts, need_features=False)
    assert quick.features is None and whole.features is not None
    torch.testing.assert_close(quick.logits, whole.logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_decoded_has_no_part_that_all_patches_share():
    decoder, (patches, intermediate, texts), seen = make_decoder(), make_inputs(), []
    decoder.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(patches + 3, intermediate, texts)
    torch.testing.assert_close(seen[0].mean(dim=(2, 3)), torch.zeros(2, JOINT), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var(dim=(1, 2, 3), correction=0), torch.ones(2), atol=1e-2, rtol=0)
