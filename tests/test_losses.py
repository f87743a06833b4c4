import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig

from modeling_anople import AnoPLeConfig
from modeling_anople.decoding_anople import AnomalyDecoder
from modeling_anople.losses_anople import (
    Answers,
    LossTerm,
    alignment_loss,
    contrastive_loss,
    detector_losses,
    dice_loss,
    focal_loss,
    loss_weights,
    seeded_noise,
    total_loss,
    view_labels,
)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def square_masks() -> Tensor:
    """Three views of 6 x 6: none marked, a 2 x 2 square, all."""
    masks = torch.zeros(3, 6, 6)
    masks[1, 1:3, 2:4] = 1
    masks[2] = 1
    return masks


def check(term: LossTerm, per_sample: list[float]) -> None:
    assert term.total.item() == pytest.approx(sum(per_sample), rel=1e-5) and int(term.count) == len(per_sample)
    assert term.mean.item() == pytest.approx(sum(per_sample) / max(1, len(per_sample)), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 3.5])
def test_focal_loss(gamma):
    margins, masks = 2 * values(3, 6, 6), square_masks()
    expected = []
    for view in range(3):
        pixels = []
        for margin, marked in zip(margins[view].flatten().tolist(), masks[view].flatten().tolist(), strict=True):
            abnormal = 1 / (1 + math.exp(-margin))
            right = abnormal if marked else 1 - abnormal
            pixels.append(-((1 - right) ** gamma) * math.log(right))
        expected.append(sum(pixels) / 36)
    check(focal_loss(margins, masks, gamma=gamma), expected)


def test_focal_loss_and_its_gradient_stay_finite_for_sure_answers():
    margins = torch.tensor([[[-200.0, 200.0], [200.0, -200.0]]], requires_grad=True)
    term = focal_loss(margins, torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), gamma=2.0)
    term.total.backward()
    assert float(term.total.detach()) == pytest.approx(100.0) and margins.grad.isfinite().all()
    assert margins.grad[0, 1, 0] > 0 > margins.grad[0, 1, 1]


def slow_dice(probability: Tensor, mask: Tensor) -> float:
    return 1 - (2 * float((probability * mask).sum()) + 1) / (float(probability.sum()) + float(mask.sum()) + 1)


def test_dice_loss():
    probability, masks = values(3, 6, 6).sigmoid(), square_masks()
    check(dice_loss(probability, masks), [slow_dice(p, m) for p, m in zip(probability[1:], masks[1:], strict=True)])


def test_dice_of_unmarked_views_moves_nothing():
    probability = values(3, 6, 6).sigmoid().requires_grad_()
    dice_loss(probability, square_masks()).total.backward()
    assert not probability.grad[0].any() and probability.grad[1].all() and probability.grad[2].all()


def test_a_term_without_samples_is_zero_with_a_gradient_of_zero():
    probability = torch.full((2, 4, 4), 0.5, requires_grad=True)
    term = dice_loss(probability, torch.zeros(2, 4, 4))
    term.mean.backward()
    assert float(term.mean.detach()) == 0 and int(term.count) == 0 and not probability.grad.any()


def test_contrastive_loss_leaves_out_unlabelled_samples():
    logits = values(4, 2)
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = [-math.log(probability[0, 0]), -math.log(probability[1, 1]), -math.log(probability[3, 1])]
    check(contrastive_loss(logits, torch.tensor([0, 1, -1, 1])), expected)


@pytest.mark.parametrize("detach", ["none", "decoder", "map"])
def test_alignment_loss_and_where_its_gradient_stops(detach):
    pooled = F.normalize(values(3, 5), dim=-1).requires_grad_()
    features = F.normalize(values(3, 5, 4, 4, seed=1), dim=1).requires_grad_()
    probability = values(3, 4, 4, seed=2).sigmoid().requires_grad_()
    term = alignment_loss(pooled, features, probability, torch.tensor([1, 0, 1]), detach=detach)
    expected = []
    for view in (0, 2):
        evidence = torch.zeros(5)
        for row in range(4):
            for column in range(4):
                evidence += probability[view, row, column].detach() * features[view, :, row, column].detach()
        expected.append(1 - float(pooled[view].detach() @ evidence / evidence.norm()))
    check(term, expected)
    term.total.backward()
    assert pooled.grad[0].any() and not pooled.grad[1].any()
    assert (features.grad is not None and bool(features.grad.any())) == (detach != "decoder")
    assert (probability.grad is not None and bool(probability.grad.any())) == (detach == "none")


def test_labels_follow_the_share_of_marked_pixels():
    masks = torch.zeros(4, 10, 10)
    masks[1, 0, 0] = masks[2, 0, 0] = masks[2, 5, 5] = 1
    masks[3] = 1
    config = AnoPLeConfig(min_positive_fraction=0.02)
    assert view_labels(masks, config).tolist() == [0, -1, 1, 1]
    assert view_labels(masks, AnoPLeConfig(min_positive_fraction=0.01)).tolist() == [0, 1, 1, 1]


def test_noise_belongs_to_its_seed_and_not_to_its_place():
    like = torch.zeros(3, 7)
    noise = seeded_noise(torch.tensor([5, 8, 5]), like)
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert torch.equal(seeded_noise(torch.tensor([8]), like[:1])[0], noise[1])
    large = seeded_noise(torch.arange(40), torch.zeros(40, 1000))
    assert abs(float(large.mean())) < 0.02 and abs(float(large.std()) - 1) < 0.02
    state = torch.random.get_rng_state()
    seeded_noise(torch.tensor([1]), like[:1])
    assert torch.equal(torch.random.get_rng_state(), state)


# -- all of them ----------------------------------------------------------------------------------------------------

GRID, WIDTH, VIEWS = 4, 12, 6


class Batch:
    """Six views with the answers of a real decoder: 0, 1 and 3 normal, 2 and 4 anomalous, 5 hardly marked."""

    def __init__(self, **fields):
        clip = CLIPConfig(vision_config={"image_size": 32, "patch_size": 8, "hidden_size": 24}, projection_dim=WIDTH)
        self.config = AnoPLeConfig(clip_config=clip, decoder_widths=[6, 5], **fields)
        torch.manual_seed(0)
        self.decoder = AnomalyDecoder(self.config)
        self.pooled = F.normalize(values(VIEWS, WIDTH), dim=-1)
        self.patches = values(VIEWS, GRID**2, WIDTH, seed=1)
        self.text = F.normalize(values(VIEWS, 2, WIDTH, seed=2), dim=-1)
        self.masks = torch.zeros(VIEWS, 32, 32)
        self.masks[2, 3:20, 5:9] = self.masks[4, 20:, 20:] = self.masks[5, 0, 0] = 1
        self.seeds = torch.arange(100, 100 + VIEWS)

    def terms(self, rows: slice = slice(None), **replaced) -> dict[str, LossTerm]:
        text = self.text[rows]
        decoded = self.decoder(self.patches[rows], {}, text)
        return detector_losses(
            self.config,
            Answers(self.pooled[rows], text, decoded.features, decoded.logits),
            masks=self.masks[rows],
            labels=view_labels(self.masks[rows], self.config),
            **{"seeds": self.seeds[rows], **replaced},
        )


def test_counts_without_latent_anomalies():
    terms = Batch(latent_noise=0.0).terms()
    counts = {name: int(term.count) for name, term in terms.items()}
    assert counts == {"focal": 6, "dice": 3, "image": 5, "alignment": 2}


def test_latent_anomalies_are_noisy_normals_called_anomalous():
    plain, noisy = Batch(latent_noise=0.0), Batch(latent_noise=1e-6)
    before, after = plain.terms(), noisy.terms()
    assert int(after["image"].count) == int(before["image"].count) + 3
    logits = torch.einsum("bd,bcd->bc", plain.pooled, plain.text)[[0, 1, 3]] / 0.07
    added = float(F.cross_entropy(logits, torch.tensor([1, 1, 1]), reduction="sum"))
    assert float(after["image"].total - before["image"].total) == pytest.approx(added, rel=1e-3)
    for name in ("focal", "dice", "alignment"):
        assert torch.equal(after[name].total, before[name].total)


def test_latent_noise_has_the_configured_size():
    noisy = Batch(latent_noise=0.3)
    expected = 0.0
    for view in (0, 1, 3):
        noise = torch.randn(WIDTH, generator=torch.Generator().manual_seed(100 + view))
        disturbed = F.normalize(noisy.pooled[view] + 0.3 * noise, dim=-1)
        logits = noisy.text[view] @ disturbed / 0.07
        expected += float(F.cross_entropy(logits[None], torch.tensor([1])))
    before = float(Batch(latent_noise=0.0).terms()["image"].total)
    assert float(noisy.terms()["image"].total) - before == pytest.approx(expected, rel=1e-4)


def test_losses_do_not_depend_on_who_computes_which_view():
    batch = Batch(latent_noise=0.1)
    whole, again = batch.terms(), batch.terms()
    parts = [batch.terms(slice(0, 2)), batch.terms(slice(2, 3)), batch.terms(slice(3, None))]
    other = batch.terms(seeds=batch.seeds + 1)
    for name, term in whole.items():
        assert torch.equal(term.total, again[name].total)
        torch.testing.assert_close(sum(part[name].total for part in parts), term.total, atol=1e-5, rtol=1e-5)
        assert int(sum(part[name].count for part in parts)) == int(term.count)
    assert not torch.equal(other["image"].total, whole["image"].total)
    assert torch.equal(other["focal"].total, whole["focal"].total)


def test_maps_are_compared_with_masks_at_the_masks_size():
    batch = Batch(latent_noise=0.0)
    logits = batch.decoder(batch.patches, {}, batch.text).logits
    assert logits.shape[-2:] == (16, 16)
    margins = F.interpolate(logits[:, 1:] - logits[:, :1], size=(32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(batch.terms()["focal"].total, focal_loss(margins, batch.masks, gamma=2.0).total)
    dice = dice_loss(margins.sigmoid(), batch.masks)
    torch.testing.assert_close(batch.terms()["dice"].total, dice.total)


def test_the_loss_is_the_weighted_sum_of_means():
    config = AnoPLeConfig(pixel_loss_weight=2.0, image_loss_weight=0.5, alignment_loss_weight=0.0)
    terms = {
        name: LossTerm(torch.tensor(total), torch.tensor(count))
        for name, total, count in (
            ("focal", 4.0, 2),
            ("dice", 3.0, 3),
            ("image", 10.0, 1),
            ("alignment", float("nan"), 1),
        )
    }
    assert float(total_loss(terms, loss_weights(config))) == 2 * 2 + 2 * 1 + 0.5 * 10


def test_a_constant_decoder_is_no_answer_to_the_alignment():
    """With `detach="decoder"` the alignment loss alone gives the decoder no gradient; literally it does."""
    for detach, moved in (("decoder", False), ("map", True), ("none", True)):
        batch = Batch(alignment_detach=detach)
        batch.pooled.requires_grad_()
        batch.terms()["alignment"].mean.backward()
        assert any(weight.grad is not None and weight.grad.any() for weight in batch.decoder.parameters()) == moved
        assert batch.pooled.grad[[2, 4]].any()
