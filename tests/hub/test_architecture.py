"""First weights of the embedded CLIP: what the first perceptron overlooks, what it lets pass, and who decides."""

import math

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from hub.mini_clip.architecture import (
    color_rows,
    mini_config,
    new_mini_clip,
    start_by_hand,
    wave_positions,
    weight_groups,
    whitened_cosines,
)
from hub.mini_clip.patch_statistics import gabor_pair
from hub.mini_clip.renderer import Renderer
from hub.mini_clip.tokenizer import train_tokenizer
from modeling_anople.prompting_anople import encode_image


SIDE = 64
PHASES = [step * math.pi / 4 for step in range(8)]


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    """Pictures (96, 3, SIDE, SIDE) from -1 to 1, as many products as a step of the pretraining has."""
    pixels = Renderer(torch.Generator().manual_seed(1)).draw(24, size=SIDE).pixels
    return pixels.flatten(0, 1) * 2 - 1


@pytest.fixture(scope="module")
def config():
    return mini_config(train_tokenizer(), layers=2, image_size=SIDE)


def random_clip(config, seed: int = 0) -> CLIPModel:
    return new_mini_clip(config, torch.Generator().manual_seed(seed)).eval()


@pytest.fixture(scope="module")
def started(config, drawn) -> CLIPModel:
    clip = random_clip(config)
    start_by_hand(clip, drawn, torch.Generator().manual_seed(0))
    return clip


def features(clip: CLIPModel, pixels: Tensor) -> Tensor:
    """One inner patch after block 0: (images, width), of pictures from 0 to 1."""
    with torch.no_grad():
        return encode_image(clip, pixels * 2 - 1, out_indices=(0,)).intermediate[0][:, 5]


def wave(wavelength: float, phase: float, angle: float = 0.0) -> Tensor:
    """A gray sine wave (3, SIDE, SIDE), the same in each patch."""
    steps = torch.arange(16.0)
    place = steps[None] * math.cos(angle) + steps[:, None] * math.sin(angle)
    return (0.5 + 0.2 * torch.sin(2 * math.pi * place / wavelength + phase)).repeat(4, 4).expand(3, -1, -1)


def flat(*color: float) -> Tensor:
    return torch.tensor(color)[:, None, None].expand(3, SIDE, SIDE)


def phase_to_wavelength(clip: CLIPModel, wavelength: float) -> float:
    """How far phases of a wave lie apart, as a share of how far halved and doubled wavelengths lie from it."""
    same, shorter, longer = (
        features(clip, torch.stack([wave(wavelength * factor, phase) for phase in PHASES])) for factor in (1, 0.5, 2)
    )
    within = torch.cdist(same, same)[0, 1:].mean()
    return float(within / torch.cdist(same[:1], torch.cat([shorter, longer])).mean())


def test_the_start_overlooks_phase_and_random_weights_do_not(started, config):
    wavelengths, untrained = (3.0, 4.0, 5.66, 8.0), random_clip(config)
    shares = [phase_to_wavelength(started, length) for length in wavelengths]
    by_chance = [phase_to_wavelength(untrained, length) for length in wavelengths]
    assert all(share < chance for share, chance in zip(shares, by_chance, strict=True))
    assert sum(shares) / 4 < 0.85 and sum(by_chance) / 4 > 0.95


def test_orientation_is_told_from_phase(started):
    upright, lying = (
        features(started, torch.stack([wave(6.0, phase, angle) for phase in PHASES])) for angle in (0, math.pi / 2)
    )
    pairs = len(PHASES) * (len(PHASES) - 1)
    assert torch.cdist(upright, upright).sum() / pairs < 0.8 * torch.cdist(upright, lying).mean()


def test_colors_pass_in_proportion(started):
    """Twice the change of color moves a flat patch twice as far; red, green and blue move it elsewhere."""
    base = features(started, flat(0.5, 0.5, 0.5)[None])
    near, far = (features(started, flat(0.5 + step, 0.5, 0.5)[None]) - base for step in (0.1, 0.2))
    torch.testing.assert_close(2 * near, far, atol=0.15 * float(far.norm()), rtol=0)
    colors = [flat(0.7, 0.5, 0.5), flat(0.5, 0.7, 0.5), flat(0.5, 0.5, 0.7), flat(0.7, 0.7, 0.7)]
    moves = torch.nn.functional.normalize(features(started, torch.stack(colors)) - base, dim=-1)
    alike = (moves @ moves.T).fill_diagonal_(-1.0)
    assert alike.max() < 0.97


def test_the_first_perceptron_answers_with_mean_zero(started, drawn):
    """Over the pictures the start was given, its outputs have mean 0, so that the stream keeps its constant part."""
    vision, block = started.vision_model, started.vision_model.encoder.layers[0]
    with torch.no_grad():
        patches = vision.embeddings.patch_embedding(drawn).flatten(2).transpose(1, 2)
        places = vision.embeddings.position_embedding.weight[1:]
        tokens = vision.pre_layrnorm(patches + places)
        answers = block.mlp(block.layer_norm2(tokens)).flatten(0, 1)
    assert answers.isfinite().all()
    assert answers.mean(0).norm() < 0.1 * answers.std(0).norm()


def start_anew(config, drawn, clip_seed: int, start_seed: int) -> dict[str, Tensor]:
    clip = random_clip(config, clip_seed)
    start_by_hand(clip, drawn, torch.Generator().manual_seed(start_seed))
    return clip.state_dict()


def test_the_generator_alone_decides_the_weights(config, drawn):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = start_anew(config, drawn, 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = start_anew(config, drawn, 0, 0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = start_anew(config, drawn, 0, 1)
    assert not torch.equal(*(each["vision_model.encoder.layers.0.mlp.fc2.weight"] for each in (first, other)))
    other = start_anew(config, drawn, 1, 0)
    assert not torch.equal(*(each["vision_model.encoder.layers.1.mlp.fc1.weight"] for each in (first, other)))


def test_a_tower_too_narrow_for_the_units_is_refused(drawn):
    narrow = random_clip(mini_config(train_tokenizer(), width=128, layers=2, image_size=SIDE))
    with pytest.raises(ValueError, match=r"(?s)\d+ units for \d+ outputs .*take a wider tower"):
        start_by_hand(narrow, drawn, torch.Generator())


def test_patch_filters_are_uncorrelated_and_colors_are_where_they_are_said_to_be():
    filters = whitened_cosines(192, 16)
    assert filters.shape == (192, 3, 16, 16)
    flat_filters = torch.nn.functional.normalize(filters.flatten(1), dim=1)
    alike = flat_filters @ flat_filters.T - torch.eye(192)
    assert alike.abs().max() < 0.02  # brightness weights green a little more, so colors are not quite orthogonal to it
    brightness, first, second = color_rows(192)
    gray = torch.ones(3, 16, 16)
    answers = (filters * gray).sum((1, 2, 3))
    assert answers[brightness[0]].abs() > 1 and answers[torch.cat([first, second])].abs().max() < 1e-3
    assert len(brightness) == len(first) == len(second) == 24


@pytest.mark.parametrize("angle", [0.0, math.pi / 4, math.pi / 2])
def test_gabor_pairs_are_waves_without_a_mean(angle):
    even, odd = gabor_pair(16, 6.0, angle, (8.0, 8.0))
    assert even.shape == odd.shape == (16, 16)
    assert even.mean().abs() < 1e-6 and odd.mean().abs() < 1e-6
    assert (even * odd).sum().abs() < 0.02 * (even.norm() * odd.norm())
    torch.testing.assert_close(even.flip(0, 1), even, atol=1e-5, rtol=0)
    torch.testing.assert_close(odd.flip(0, 1), -odd, atol=1e-5, rtol=0)


def test_positions_are_all_different_and_the_class_token_has_none():
    places = wave_positions(14, 192)
    assert places.shape == (197, 192) and not places[0].any()
    assert torch.cdist(places[1:], places[1:]).fill_diagonal_(9.0).min() > 0.1
    torch.testing.assert_close(places[1:].norm(dim=1), torch.full((196,), 96**0.5))


def test_weight_groups_hold_every_weight_once_and_spare_the_first_blocks(started):
    groups = weight_groups(started, early=0.1, others=0.3)
    names = {id(weight): name for name, weight in started.named_parameters()}
    members = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(members) == sorted(names)
    found = {
        names[id(weight)]: (group["orthogonal"], group["ratio"]) for group in groups for weight in group["params"]
    }
    expected = {
        "vision_model.embeddings.patch_embedding.weight": (False, 0.03),
        "vision_model.encoder.layers.1.mlp.fc1.weight": (True, 0.1),
        "vision_model.encoder.layers.1.mlp.fc1.bias": (False, 0.03),
        "vision_model.post_layernorm.weight": (False, 0.3),
        "text_model.encoder.layers.0.mlp.fc1.weight": (True, 1.0),
        "text_model.embeddings.token_embedding.weight": (False, 0.3),
        "visual_projection.weight": (False, 0.3),
    }
    for name, (orthogonal, ratio) in expected.items():
        assert found[name] == (orthogonal, pytest.approx(ratio)), name
