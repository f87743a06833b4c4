"""Pseudo-anomalies: exact masks, sane statistics, any size, one generator as the only source of chance."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_anople.training.few_shot import (
    TEXTURE_OPERATIONS,
    PseudoAnomaly,
    augment_texture,
    blend_texture,
    cut_paste,
    perlin_mask,
    perlin_noise,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=seeded(seed))


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(40, 200, (24, 32, 3), dtype=np.uint8))


def reference_noise(height: int, width: int, scale: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Gradient noise pixel by pixel, corner by corner, as the textbook has it."""
    fade = np.polynomial.Polynomial([0, 0, 0, 10, -15, 6])
    angles = 2 * math.pi * torch.rand(scale[0] + 1, scale[1] + 1, generator=generator)
    noise = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            y, x = (row + 0.5) * scale[0] / height, (column + 0.5) * scale[1] / width
            for i in (int(y), int(y) + 1):
                for j in (int(x), int(x) + 1):
                    slope = (y - i) * math.sin(angles[i, j]) + (x - j) * math.cos(angles[i, j])
                    noise[row, column] += fade(1 - abs(y - i)) * fade(1 - abs(x - j)) * slope
    return math.sqrt(2) * noise


class TestPerlin:
    @pytest.mark.parametrize(("size", "scale"), [((12, 16), (2, 4)), ((11, 17), (4, 2)), ((9, 9), (1, 1))])
    def test_noise_equals_the_textbook_sum(self, size, scale):
        noise = perlin_noise(*size, scale, seeded(1))
        torch.testing.assert_close(noise, reference_noise(*size, scale, seeded(1)), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("arguments", [(0, 8, (1, 1)), (8, 8, (0, 1))])
    def test_noise_refuses_empty_sizes(self, arguments):
        with pytest.raises(ValueError, match="start at 1, got height="):
            perlin_noise(*arguments, seeded(0))

    def test_mask_coverage(self):
        """Measured over 2,000 draws at 480 px: mean 5.6 %, empty 4.7 %."""
        generator = seeded(0)
        coverage = torch.tensor([perlin_mask(128, 128, generator).float().mean() for _ in range(300)])
        assert 0.04 < coverage.mean() < 0.07
        assert 0.01 < (coverage == 0).float().mean() < 0.1
        assert coverage.max() < 0.7

    def test_threshold_and_scale_shape_the_mask(self):
        def edges_and_area(**options):
            masks = torch.stack([perlin_mask(96, 96, seeded(seed), **options) for seed in range(60)])
            return (masks[:, 1:] != masks[:, :-1]).float().mean(), masks.float().mean()

        edges, area = edges_and_area()
        coarse_edges, _ = edges_and_area(max_scale_exponent=1)
        _, low_area = edges_and_area(threshold=0.2)
        assert coarse_edges < edges / 2
        assert low_area > 2 * area

    def test_mask_is_rotated_and_has_no_blank_corners(self):
        """A single unrotated cell is zero at the corners of the frame; a zero-filled rotation is blank there."""
        generator = seeded(0)
        masks = torch.stack([perlin_mask(64, 64, generator, max_scale_exponent=0) for _ in range(300)])
        assert masks[:, 0, 0].any()
        assert masks[:, -1, 0].any()


class TestTexture:
    @pytest.mark.parametrize("name", TEXTURE_OPERATIONS)
    def test_operation_keeps_the_format_and_changes_the_picture(self, name):
        before = np.array(picture())
        results = [TEXTURE_OPERATIONS[name](picture(), seeded(seed)) for seed in range(5)]
        assert all(result.mode == "RGB" and result.size == picture().size for result in results)
        assert any((np.array(result) != before).mean() > 0.05 for result in results)
        np.testing.assert_array_equal(results[0], TEXTURE_OPERATIONS[name](picture(), seeded(0)))

    def test_rotation_leaves_no_blank_corner(self):
        for size in [(40, 40), (90, 11)]:
            white = Image.new("RGB", size, "white")
            assert all(np.array(TEXTURE_OPERATIONS["rotate"](white, seeded(seed))).min() == 255 for seed in range(20))

    def test_three_different_operations_keep_shape_and_range(self, monkeypatch):
        applied = []

        def recorded(name, operation):
            return lambda picture, generator: (applied.append(name), operation(picture, generator))[1]

        for name, operation in list(TEXTURE_OPERATIONS.items()):
            monkeypatch.setitem(TEXTURE_OPERATIONS, name, recorded(name, operation))
        everything = set()
        for seed in range(40):
            applied.clear()
            result = augment_texture(photograph(8, 11), seeded(seed))
            assert (result.shape, result.dtype) == ((3, 8, 11), torch.float32)
            assert 0 <= result.min() <= result.max() <= 1
            assert len(applied) == len(set(applied)) == 3
            everything |= set(applied)
        assert everything == set(TEXTURE_OPERATIONS)
        assert len(everything) == 10

    def test_blend_is_the_convex_mix_under_the_mask(self):
        image, texture = torch.zeros(3, 6, 6), torch.ones(3, 6, 6)
        mask = torch.eye(6, dtype=torch.bool)
        shares = []
        for seed in range(60):
            blended = blend_texture(image, texture, mask, seeded(seed))
            assert (blended[:, ~mask] == 0).all()
            assert blended[:, mask].unique().numel() == 1
            shares.append(blended[0, 0, 0].item())
        assert 0.2 <= min(shares) < 0.3  # beta, the photograph's share, is at most 0.8
        assert 0.9 < max(shares) <= 1
        assert (blend_texture(image, texture, mask, seeded(0), blend_max=0.0)[:, mask] == 1).all()


class TestCutPaste:
    def test_areas_and_aspects(self):
        image = photograph(256, 256)
        rectangles, scars = [], []
        for seed in range(200):
            _, mask = cut_paste(image, seeded(seed))
            rows, columns = mask.any(1).sum().item(), mask.any(0).sum().item()
            area = mask.sum().item()
            if area > 0.015 * mask.numel():
                assert area == rows * columns
                rectangles.append((area / mask.numel(), rows / columns))
            else:
                scars.append((area, math.hypot(rows, columns)))
        assert 70 < len(scars) < 130
        areas, aspects = np.array(rectangles).T
        assert 0.0195 < areas.min() < 0.03
        assert 0.13 < areas.max() < 0.153
        assert 0.28 < aspects.min() < 0.45
        assert 2.2 < aspects.max() < 3.5
        areas, extents = np.array(scars).T
        assert areas.min() >= 15
        assert areas.max() <= 25 * 16 * 1.05
        assert extents.max() < 45

    def test_scar_grows_with_the_image(self):
        def median_scar(side):
            areas = [cut_paste(photograph(side, side), seeded(seed))[1].sum() / side**2 for seed in range(40)]
            return np.median([area for area in areas if area < 0.015])

        assert median_scar(384) == pytest.approx(median_scar(128), rel=0.25)

    def test_mask_is_exact(self):
        """Every masked pixel of a grey image is that grey, jittered: no blank pixel from the rotation."""
        image = torch.full((3, 96, 96), 0.5)
        jittered = 0
        for seed in range(60):
            result, mask = cut_paste(image, seeded(seed))
            assert (result[:, ~mask] == 0.5).all()
            assert ((result[:, mask] - 0.5).abs() < 0.06).all()
            jittered += ((result[:, mask] - 0.5).abs() > 0.01).all().item()
        assert jittered > 30


@pytest.mark.parametrize("kind", ["perlin", "cut_paste", "both"])
class TestPseudoAnomaly:
    @pytest.mark.parametrize("size", [(64, 64), (241, 333), (16, 16), (5, 90), (1, 1)])
    def test_any_size(self, kind, size):
        image, textures = photograph(*size), [photograph(40, 30, seed=1), photograph(*size, seed=2)]
        for seed in range(8):
            for choice in (textures, []):
                result, mask = PseudoAnomaly(kind)(image, choice, seeded(seed))
                assert (result.shape, result.dtype) == (image.shape, torch.float32)
                assert (mask.shape, mask.dtype) == (size, torch.bool)
                assert 0 <= result.min() <= result.max() <= 1

    def test_changes_the_inside_only(self, kind):
        image, textures = photograph(80, 96), [photograph(80, 96, seed=1)]
        changed, masked = 0, 0
        for seed in range(30):
            result, mask = PseudoAnomaly(kind)(image, textures, seeded(seed))
            assert torch.equal(result[:, ~mask], image[:, ~mask])
            changed += (result != image).any(0).sum().item()
            masked += mask.sum().item()
        assert masked > 30 * 10
        assert changed > 0.97 * masked

    def test_generator_is_the_only_source_of_chance(self, kind):
        image, textures = photograph(64, 64), [photograph(64, 64, seed=1), photograph(64, 64, seed=2)]
        before = torch.get_rng_state()
        first = [PseudoAnomaly(kind)(image, textures, seeded(seed)) for seed in range(6)]
        second = [PseudoAnomaly(kind)(image, textures, seeded(seed)) for seed in range(6)]
        assert torch.equal(before, torch.get_rng_state())
        for (image_a, mask_a), (image_b, mask_b) in zip(first, second, strict=True):
            assert torch.equal(image_a, image_b) and torch.equal(mask_a, mask_b)
        assert len({mask.numpy().tobytes() for _, mask in first}) == 6

    def test_inputs_are_left_alone(self, kind):
        image, texture = photograph(64, 64), photograph(64, 64, seed=1)
        image_copy, texture_copy = image.clone(), texture.clone()
        for seed in range(20):
            result, _ = PseudoAnomaly(kind)(image, [texture], seeded(seed))
            result.zero_()
            assert torch.equal(image, image_copy) and torch.equal(texture, texture_copy)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (torch.zeros(4, 8, 8), r"shape \(3, height, width\), got torch.float32 of shape \(4, 8, 8\)"),
            (torch.zeros(3, 0, 8), r"of shape \(3, 0, 8\)"),
            (torch.zeros(3, 8, 8, dtype=torch.uint8), "must be float32 .* got torch.uint8"),
            (torch.full((3, 8, 8), 255.0), r"in \[0, 1\], got 255.0 to 255.0: divide"),
            (torch.full((3, 8, 8), -0.1), r"in \[0, 1\]"),
            (torch.full((3, 8, 8), torch.nan), "got nan to nan"),
        ],
    )
    def test_refuses_other_images(self, kind, image, message):
        with pytest.raises(ValueError, match=message):
            PseudoAnomaly(kind)(image, [photograph(8, 8)], seeded(0))


def test_empty_mask_returns_the_image():
    image = photograph(32, 32)
    result, mask = PseudoAnomaly(perlin_threshold=0.999)(image, [], seeded(0))
    assert not mask.any()
    assert torch.equal(result, image)


def test_textures_are_all_used_and_resized():
    """Black image, textures of one plain colour each: what shows up tells which one was drawn."""
    image = torch.zeros(3, 32, 32)
    anomaly = PseudoAnomaly(blend_max=0.0, perlin_threshold=-0.99)

    def colours(textures):
        return {tuple(anomaly(image, textures, seeded(seed))[0].amax((1, 2)).tolist()) for seed in range(12)}

    red, blue = (torch.tensor(colour).view(3, 1, 1).expand(3, 10, 7) for colour in ([0.6, 0.1, 0.1], [0.1, 0.1, 0.6]))
    assert colours([red]) != colours([blue])
    assert colours([red, blue]) <= colours([red]) | colours([blue])
    assert not colours([red, blue]) <= colours([red])
    assert not colours([red, blue]) <= colours([blue])


def test_both_is_half_and_half():
    """Only the Perlin recipe looks at the textures, so only it can stumble over a bad one."""
    bad, perlin = torch.full((3, 48, 48), 2.0), 0
    for seed in range(80):
        try:
            PseudoAnomaly("both")(photograph(48, 48), [bad], seeded(seed))
        except ValueError:
            perlin += 1
    assert 25 < perlin < 55


@pytest.mark.parametrize("option", [{"blend_max": 0.0}, {"perlin_threshold": 0.2}, {"perlin_max_exponent": 1}])
def test_parameters_reach_the_recipe(option):
    image, textures = photograph(32, 32), [photograph(32, 32, seed=1)]
    default, changed = ([PseudoAnomaly(**o)(image, textures, seeded(s))[0] for s in range(5)] for o in ({}, option))
    assert not torch.equal(torch.stack(default), torch.stack(changed))


def test_own_texture_is_turned():
    """Each row of the image has one colour; a texture that has not been turned rarely breaks that."""
    image = torch.linspace(0, 1, 32).view(1, 32, 1).repeat(3, 1, 32)
    anomaly = PseudoAnomaly(blend_max=0.0, perlin_threshold=-0.99)
    results = [anomaly(image, [], seeded(seed))[0] for seed in range(40)]
    assert sum((result.std(dim=2).max() > 0.05).item() for result in results) > 22


@pytest.mark.parametrize(
    ("name", "value"),
    [("kind", "nsa"), ("blend_max", 1.5), ("perlin_threshold", 1.0), ("perlin_max_exponent", -1)],
)
def test_parameters_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} must .* got {value!r}"):
        PseudoAnomaly(**{name: value})


@pytest.mark.parametrize(
    ("texture", "mask", "message"),
    [
        (torch.zeros(3, 4, 4), torch.zeros(8, 8, dtype=torch.bool), "texture is .* resize"),
        (torch.zeros(3, 8, 8), torch.zeros(8, 8), "mask must be bool .* got torch.float32"),
        (torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool), r"mask must be bool .* \(1, 8, 8\)"),
    ],
)
def test_blend_refuses_mismatched_inputs(texture, mask, message):
    with pytest.raises(ValueError, match=message):
        blend_texture(torch.zeros(3, 8, 8), texture, mask, seeded(0))
