import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from transformers import CLIPConfig

from modeling_anople import AnoPLeConfig
from modeling_anople.scoring_anople import fuse_images, fuse_maps, harmonic_mean, resize_maps, smooth_maps


def make_config(**fields) -> AnoPLeConfig:
    fields = {"smoothing": 0.0, **fields}
    return AnoPLeConfig(clip_config=CLIPConfig(vision_config={"image_size": 32, "patch_size": 8}), **fields)


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("first", "second", "mean"),
    [
        (0.5, 0.5, 0.5),
        (0.2, 0.6, 0.3),
        (1.0, 1.0, 1.0),
        (1.0, 0.0, 2e-6 / (1 + 1e-6)),  # nothing is 0, or one part could silence the other for good
        (0.0, 0.0, 1e-6),
        (3.0, 1.0, 1.0),
    ],
)
def test_harmonic_mean(first, second, mean):
    a, b = torch.tensor([first], dtype=torch.float64), torch.tensor([second], dtype=torch.float64)
    assert float(harmonic_mean(a, b)) == pytest.approx(mean, rel=1e-9)
    assert float(harmonic_mean(b, a)) == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.1, 0.5])
def test_a_constant_map_stays_constant(sigma):
    maps = smooth_maps(torch.full((2, 4, 4), 0.3), size=32, sigma=sigma)
    torch.testing.assert_close(maps, torch.full((2, 32, 32), 0.3))


@pytest.mark.parametrize("sigma", [0.05, 0.15])
def test_blur_is_that_of_scipy(sigma):
    maps = random_maps(1, 24, 24)
    expected = gaussian_filter(
        maps[0].double().numpy(), sigma * 24, mode="mirror", radius=int(np.ceil(3 * sigma * 24))
    )
    np.testing.assert_allclose(smooth_maps(maps, size=24, sigma=sigma)[0].numpy(), expected, atol=1e-6)


def test_no_blur_leaves_the_upsampled_map():
    maps = random_maps(2, 4, 4)
    assert torch.equal(smooth_maps(maps, size=12, sigma=0.0), resize_maps(maps, (12, 12)))


def test_resizing_keeps_places_and_size():
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 3] = 1.0
    large = resize_maps(maps, (40, 20))
    assert large.shape == (1, 40, 20)
    row, column = divmod(int(large.argmax()), 20)
    assert 10 <= row < 20 and 15 <= column < 20
    assert resize_maps(maps, (4, 4)) is maps


@pytest.mark.parametrize("fusion", ["harmonic", "memory", "decoder"])
def test_maps_are_fused_as_the_config_says(fusion):
    decoder, memory = random_maps(2, 16, 16), random_maps(2, 4, 4, seed=1)
    fused = fuse_maps(decoder, memory, None, make_config(map_fusion=fusion))
    fine = resize_maps(memory, (16, 16))
    expected = {"harmonic": 2 * decoder * fine / (decoder + fine), "memory": fine, "decoder": decoder}[fusion]
    torch.testing.assert_close(fused, resize_maps(expected, (32, 32)))


@pytest.mark.parametrize("fusion", ["harmonic", "memory"])
def test_scales_divide_the_memory_map_of_each_image_and_stop_at_one(fusion):
    config, decoder, memory = (
        make_config(map_fusion=fusion),
        random_maps(2, 16, 16),
        random_maps(2, 4, 4, seed=1) + 0.1,
    )
    scaled = fuse_maps(decoder, memory, torch.tensor([2.0, 0.5]), config)
    by_hand = torch.stack([memory[0] / 2, (memory[1] / 0.5).clamp(max=1)])
    torch.testing.assert_close(scaled, fuse_maps(decoder, by_hand, None, config))
    assert not torch.allclose(scaled, fuse_maps(decoder, memory, None, config))


@pytest.mark.parametrize("fusion", ["harmonic", "memory", "decoder"])
def test_without_a_memory_the_decoder_answers_alone(fusion):
    decoder = random_maps(2, 16, 16)
    assert torch.equal(fuse_maps(decoder, None, None, make_config(map_fusion=fusion)), resize_maps(decoder, (32, 32)))


@pytest.mark.parametrize("image_map", ["memory", "fused"])
@pytest.mark.parametrize("image_fusion", ["harmonic", "map", "text"])
def test_image_scores_are_fused_as_the_config_says(image_map, image_fusion):
    config = make_config(image_map=image_map, image_fusion=image_fusion)
    text, memory, fused = torch.tensor([0.2, 0.9]), random_maps(2, 4, 4), random_maps(2, 32, 32, seed=1)
    peak = torch.stack([image.max() for image in (memory if image_map == "memory" else fused)])
    expected = {"harmonic": 2 * text * peak / (text + peak), "map": peak, "text": text}[image_fusion]
    torch.testing.assert_close(fuse_images(text, memory, fused, config), expected)


def test_without_a_memory_the_fused_map_gives_the_peak():
    fused = random_maps(2, 32, 32)
    scores = fuse_images(torch.zeros(2), None, fused, make_config(image_map="memory", image_fusion="map"))
    assert torch.equal(scores, fused.flatten(1).amax(1))
