"""Losses of the pretraining: on constructed features they rank as they should, and each reaches the weights it is for."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hub.mini_clip.architecture import mini_config, new_mini_clip, start_by_hand
from hub.mini_clip.losses import EpisodeLearner, LossWeights, relation_loss
from hub.mini_clip.patch_statistics import TARGETS, patch_statistics, weigh, with_neighbors
from hub.mini_clip.renderer import Episode, Renderer
from hub.mini_clip.tokenizer import train_tokenizer
from modeling_anople.prompting_anople import encode_image


SIDE = 64
LOSSES = [entry.name for entry in dataclasses.fields(LossWeights)]
NONE = dict.fromkeys(LOSSES, 0.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def episode() -> Episode:
    drawn = Renderer(seeded(3), per_kind=1).draw(3, size=SIDE)
    assert drawn.masks.any()
    return drawn


@pytest.fixture(scope="module")
def learner(episode) -> EpisodeLearner:
    """A started CLIP of 3 blocks over 6 x 6 patches; taps after blocks 0 and 1."""
    tokenizer = train_tokenizer()
    clip = new_mini_clip(mini_config(tokenizer, layers=3, image_size=96), seeded(0))
    pixels = episode.pixels.flatten(0, 1)
    start_by_hand(clip, pixels * 2 - 1, seeded(0))
    learner = EpisodeLearner(clip, tokenizer, layers=(0, 1))
    learner.fit_targets(pixels)
    return learner


def rotation(width: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=seeded(seed))).Q


def constructed(normal: float, defective: float, *, width: int = 8) -> tuple[list[Tensor], Tensor]:
    """
    Make unit features (2 products, 4 photographs, 16 patches, width) of one layer, and cover (2, 16) of 4 patches.

    `normal` and `defective` are the angles, in radians, by which unmarked and marked patches turn from the bank's.
    """
    angles = torch.zeros(2, 4, 16)
    angles[:, 1:] = normal
    covered = torch.zeros(2, 16)
    covered[:, :4] = 0.8
    angles[:, -1, :4] = defective
    features = torch.zeros(2, 4, 16, width)
    features[..., 0], features[..., 1] = angles.cos(), angles.sin()
    return [features], covered


@pytest.mark.parametrize("banks", [1, 2])
def test_the_episodic_loss_wants_defects_far_and_normals_near(learner, banks):
    def loss(normal: float, defective: float) -> float:
        features, covered = constructed(normal, defective)
        with torch.no_grad():
            return float(learner.episodic_loss(features, covered, banks))

    good, blind, inverted = loss(0.05, 1.5), loss(0.05, 0.05), loss(0.05, 0.0)
    assert good < 0.7 * blind and good < 0.7 * inverted
    assert loss(0.05, 3.0) < good  # farther still
    if banks == 1:  # otherwise normal patches that turn are in the bank
        assert good < loss(1.5, 1.5) and good < loss(1.5, 0.0)


def test_the_episodic_loss_takes_pictures_without_a_visible_defect(learner):
    features, covered = constructed(0.1, 0.1)
    assert learner.episodic_loss(features, torch.zeros_like(covered), 1).isfinite()
    half, _ = constructed(0.1, 1.5)
    covered[0] = 0
    assert learner.episodic_loss(half, covered, 1).isfinite()


def test_hardly_touched_patches_are_neither_normal_nor_defective(learner):
    """What the four marked patches look like is of no account while the defect covers 2 % of each."""
    with torch.no_grad():
        losses = []
        for angle in (0.0, 1.5):
            features, covered = constructed(0.1, angle)
            losses.append(learner.episodic_loss(features, covered.clamp(max=0.02), 1))
    torch.testing.assert_close(*losses)


def test_relation_loss_knows_equal_geometry():
    vectors = torch.randn(2, 16, 12, generator=seeded(0))
    assert relation_loss(vectors, vectors @ rotation(12, 1)) < 1e-8
    assert relation_loss(3 * vectors, vectors) < 1e-8  # cosines have no length
    wider = torch.cat([vectors, torch.zeros(2, 16, 5)], dim=2)
    assert relation_loss(wider, vectors) < 1e-8
    others = torch.randn(2, 16, 12, generator=seeded(2))
    assert relation_loss(vectors, others) > 0.01
    assert relation_loss(vectors, torch.lerp(vectors, others, 0.2)) < relation_loss(vectors, others)


def test_relation_loss_compares_patches_of_all_places_when_there_are_many():
    """1024 patches of 4 pictures: a thinning by an even number would see some columns of the grid only."""
    vectors = torch.randn(16, 64, 6, generator=seeded(0))
    for place in range(8):
        spoiled = vectors.clone()
        spoiled[:, place::8] = torch.randn(16, 8, 6, generator=seeded(1))
        assert relation_loss(spoiled, vectors) > 1e-3


@pytest.mark.parametrize("left_out", LOSSES)
def test_a_weight_of_zero_leaves_its_loss_out(learner, episode, left_out):
    with torch.no_grad():
        losses = learner(episode, dataclasses.replace(LossWeights(), **{left_out: 0.0}), 1)
    assert set(losses) == set(LOSSES) - {left_out}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


@pytest.mark.parametrize("name", LOSSES)
def test_weights_scale_losses(learner, episode, name):
    with torch.no_grad():
        once, twice = (learner(episode, LossWeights(**{**NONE, name: weight}), 1) for weight in (1.0, 2.0))
    assert list(once) == [name]
    torch.testing.assert_close(2 * once[name], twice[name])


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_reaches_the_vision_tower(learner, episode, name):
    learner.zero_grad()
    learner(episode, LossWeights(**{**NONE, name: 1.0}), 1)[name].backward()
    gradients = {key: weight.grad for key, weight in learner.named_parameters() if weight.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["clip.vision_model.embeddings.patch_embedding.weight"].abs().max() > 0
    assert gradients["clip.vision_model.encoder.layers.0.mlp.fc1.weight"].abs().max() > 0
    texts = "clip.text_model.encoder.layers.0.mlp.fc1.weight" in gradients
    assert texts == (name in ("dense_text", "contrast"))
    assert any(key.startswith("heads.") for key in gradients) == (name == "regression")
    assert ("line" in gradients) == (name == "episodic")
    learner.zero_grad()


def test_encoding_at_full_size_is_the_packages_own(learner):
    pixels = torch.rand(2, 3, 96, 96, generator=seeded(1)) * 2 - 1
    with torch.no_grad():
        taps, patches, pooled = learner.encode(pixels, (0, 0))
        expected = encode_image(learner.clip.eval(), pixels, out_indices=(0, 1))
    for layer, tap in zip((0, 1), taps, strict=True):
        torch.testing.assert_close(tap, expected.intermediate[layer], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patches, F.normalize(expected.patches, dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, F.normalize(expected.pooled, dim=-1), atol=1e-5, rtol=1e-5)


def test_smaller_pictures_lie_at_their_corner_of_the_grid(learner):
    """Four by four patches at (1, 2) carry the positions of rows 1 to 4 and columns 2 to 5 of six by six."""
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=seeded(1)) * 2 - 1
    places = learner.clip.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        kept = places.clone()
        before = learner.encode(pixels, (1, 2))[0][0]
        assert not torch.equal(before, learner.encode(pixels, (0, 0))[0][0])
        grid = places[1:].view(6, 6, -1)
        inside = grid[1:5, 2:6].clone()
        grid.fill_(7.0)
        grid[1:5, 2:6] = inside
        after = learner.encode(pixels, (1, 2))[0][0]
        places.copy_(kept)
    assert before.shape == (1, 16, 192)
    torch.testing.assert_close(before, after)


def test_texts_become_unit_vectors_and_padding_does_not_matter(learner):
    texts = ["a bolt", "a photo of an abnormal circuit board with red parts", "部品"]
    with torch.no_grad():
        together, alone = learner.embed(texts), torch.cat([learner.embed([text]) for text in texts])
    assert together.shape == (3, 128)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_targets_are_standardized_and_see_texture_and_color(learner, episode):
    pixels = episode.pixels.flatten(0, 1)
    targets = patch_statistics(pixels)
    assert targets.shape == (12, 16, TARGETS) and targets.isfinite().all()
    weighed = weigh(targets, learner.target_mean, learner.target_spread).flatten(0, 1)
    assert weighed.mean(0).abs().max() < 1e-3
    torch.testing.assert_close(weighed.std(0), weigh(torch.ones(TARGETS), 0, 1), atol=2e-2, rtol=0)
    red = pixels * torch.tensor([1.0, 0.5, 0.5])[:, None, None]
    assert (patch_statistics(red)[..., -5] >= targets[..., -5]).float().mean() > 0.8  # red against green
    torch.testing.assert_close(
        patch_statistics(pixels.flip(3))[..., -6:], targets.unflatten(1, (4, 4)).flip(2).flatten(1, 2)[..., -6:]
    )


def test_neighbors_are_averaged_over_three_by_three_without_the_border():
    targets = torch.arange(16.0).view(1, 16, 1)
    averaged = with_neighbors(targets)[0, :, 0].view(4, 4)
    assert averaged[1, 1] == 5.0 and averaged[0, 0] == pytest.approx((0 + 1 + 4 + 5) / 4)
    torch.testing.assert_close(with_neighbors(torch.ones(2, 16, 3)), torch.ones(2, 16, 3))
