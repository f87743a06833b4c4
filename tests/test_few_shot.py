"""The stream of training samples: the choice of images, the views they are cut into, and pseudo-anomalies with exact masks."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modeling_anople.training.few_shot import (
    TEXTURE_OPERATIONS,
    FewShotDataset,
    PseudoAnomaly,
    StepSampler,
    ViewSettings,
    augment_texture,
    blend_texture,
    choose_shots,
    collate_views,
    cut_paste,
    perlin_mask,
    perlin_noise,
    sample_few_shot,
    square_image,
)
from modeling_anople.training.options import TrainingConfig


PATHS = [f"bolt/train/good/{number:03d}.png" for number in range(20)]
PLAIN = ViewSettings(16, 2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def make_samples(photograph):
    """Make streams over small photographs; keywords go to FewShotDataset."""

    def make(count: int = 3, *, views: ViewSettings = PLAIN, seed: int = 0, kind: str = "cut_paste", **settings):
        images = [square_image(photograph(number), views.image_size * views.grid) for number in range(count)]
        anomaly = None if kind == "none" else PseudoAnomaly(kind=kind)
        return FewShotDataset(images, list(range(count)), views=views, anomaly=anomaly, seed=seed, **settings)

    return make


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("class_name", ["bolt", "nut", "Flasche ü"])
def test_shots_are_sorted_and_nested(seed, class_name):
    chosen = {shots: sample_few_shot(PATHS, shots, seed=seed, class_name=class_name) for shots in (1, 2, 4, 8)}
    assert all(files == sorted(files) and len(set(files)) == shots for shots, files in chosen.items())
    assert set(chosen[1]) < set(chosen[2]) < set(chosen[4]) < set(chosen[8]) < set(PATHS)


def test_shots_depend_on_neither_the_order_of_the_files_nor_on_other_classes():
    expected = sample_few_shot(PATHS, 4, seed=3, class_name="bolt")
    for attempt in range(5):
        shuffled = random.Random(attempt).sample(PATHS, len(PATHS))
        sample_few_shot(shuffled, 2, seed=3, class_name=f"other{attempt}")
        assert sample_few_shot(shuffled, 4, seed=3, class_name="bolt") == expected
    assert sample_few_shot(PATHS, 4, seed=3, class_name="nut") != expected  # a class of the same names


def test_seeds_choose_differently_and_reach_every_file():
    by_seed = [tuple(sample_few_shot(PATHS, 2, seed=seed, class_name="bolt")) for seed in range(60)]
    assert len(set(by_seed)) > 40
    assert {path for files in by_seed for path in files} == set(PATHS)


def test_fewer_files_than_shots_gives_all_of_them():
    assert sample_few_shot(PATHS[2::-1], 4, seed=0, class_name="bolt") == PATHS[:3]


def test_shots_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sample_few_shot(PATHS, 0, seed=0, class_name="bolt")


def test_square_image_is_the_resized_photograph(photograph):
    image = square_image(photograph(0, size=(48, 32)), 24)
    assert image.shape == (3, 24, 24) and image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0), np.asarray(photograph(0, size=(48, 32)).resize((24, 24), 3)))


def test_sub_images_are_the_quarters_in_reading_order():
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[3, 20] = True  # top right
    pixels, masks = PLAIN.cut(image, mask)
    assert pixels.shape == (5, 3, 16, 16) and masks.shape == (5, 16, 16)
    quarters = [image[:, :16, :16], image[:, :16, 16:], image[:, 16:, :16], image[:, 16:, 16:]]
    assert all(torch.equal(view, quarter) for view, quarter in zip(pixels[1:], quarters, strict=True))
    assert masks.flatten(1).sum(1).tolist() == [1, 0, 1, 0, 0]
    assert masks[2, 3, 4] == 1 and masks[0, 1, 10] == 1


@pytest.mark.parametrize("grid", [2, 3])
def test_the_global_mask_is_the_pooled_mask_of_the_sub_images(grid):
    views = ViewSettings(8, grid, (0.0,) * 3, (1.0,) * 3)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(8 * grid, 8 * grid, generator=generator) < 0.03
    _, masks = views.cut(torch.rand(3, 8 * grid, 8 * grid, generator=generator), mask)
    rows = [torch.cat(list(masks[1 + grid * row : 1 + grid * (row + 1)]), dim=1) for row in range(grid)]
    whole = torch.cat(rows)
    assert torch.equal(whole, mask.float())
    assert torch.equal(masks[0], torch.nn.functional.max_pool2d(whole[None], grid)[0])
    assert 0 < masks[0].sum() < masks[0].numel()


def test_views_are_normalized_as_told():
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels, _ = ViewSettings(16, 2, mean, std).cut(image, mask)
    plain, _ = PLAIN.cut(image, mask)
    expected = (plain - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torch.allclose(pixels, expected)


def test_grid_one_gives_the_global_view_alone(make_samples):
    sample = make_samples(views=ViewSettings(16, 1, (0.0,) * 3, (1.0,) * 3))[1]
    assert sample["pixel_values"].shape == (1, 3, 16, 16)
    assert sample["view_ids"].tolist() == [0]


@pytest.mark.parametrize(("grid", "gray_levels"), [(1, 0.0), (2, 3.0)])
def test_training_sees_photographs_as_the_processor_shows_them(photograph, make_processor, grid, gray_levels):
    """Enlarged and shrunk (grid 2), a photograph differs by at most 3 of 255 gray levels from one resized once."""
    normalization, picture = make_processor().image_processor, photograph(4, size=(200, 160))
    views = ViewSettings(32, grid, tuple(normalization.image_mean), tuple(normalization.image_std))
    samples = FewShotDataset([square_image(picture, 32 * grid)], [0], views=views, anomaly=None, seed=0)
    shown = make_processor()(picture)["pixel_values"][0]
    levels = 255 * torch.tensor(normalization.image_std).view(3, 1, 1)
    difference = ((samples[0]["pixel_values"][0] - shown) * levels).abs()
    assert float(difference.max()) <= gray_levels + 1e-4
    assert float(difference.mean()) < 0.5


def test_a_sample_is_a_function_of_seed_and_number(make_samples):
    first, again, other = make_samples(), make_samples(), make_samples(seed=1)
    kept = [first[number] for number in range(8)]
    for number in (7, 0, 3, 3, 5, 1):
        assert kept[number].keys() == again[number].keys()
        assert all(torch.equal(kept[number][name], again[number][name]) for name in kept[number])
    assert any(not torch.equal(kept[n]["pixel_values"], other[n]["pixel_values"]) for n in range(8))
    assert all(not torch.equal(kept[n]["noise_seeds"], other[n]["noise_seeds"]) for n in range(8))


def test_samples_leave_the_photographs_as_they_are(make_samples):
    samples = make_samples(kind="perlin")
    before = [image.clone() for image in samples.images]
    for number in range(12):
        samples[number]
    assert all(torch.equal(image, old) for image, old in zip(samples.images, before, strict=True))


def test_every_photograph_comes_once_per_round_in_changing_order(make_samples):
    samples = make_samples(count=5, kind="none")
    rounds = [[int(samples[5 * turn + place]["class_ids"][0]) for place in range(5)] for turn in range(8)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 4


def test_every_second_sample_is_made_anomalous(make_samples):
    samples = make_samples()
    assert [bool(samples[number]["mask_labels"].any()) for number in range(6)] == [False, True] * 3


def test_with_period_one_every_sample_is_made_anomalous(make_samples):
    samples = make_samples(anomaly_period=1)
    assert all(samples[number]["mask_labels"].any() for number in range(6))


@pytest.mark.parametrize("kind", ["perlin", "cut_paste", "both"])
def test_pixels_change_under_the_mask_alone_and_anew_each_time(make_samples, photograph, kind):
    samples = make_samples(count=1, kind=kind)
    whole = samples.images[0].float() / 255
    clean, _ = PLAIN.cut(whole, torch.zeros(32, 32, dtype=torch.bool))
    masks = []
    for number in range(1, 40, 2):
        sample = samples[number]
        changed = (sample["pixel_values"][1:] - clean[1:]).abs().amax(1) > 0
        assert not (changed & (sample["mask_labels"][1:] == 0)).any()
        masks.append(sample["mask_labels"][0])
    assert sum(bool(mask.any()) for mask in masks) > 10
    assert not torch.equal(masks[0], masks[1])


def test_textures_come_from_other_photographs(make_samples):
    samples, generator = make_samples(count=4), torch.Generator().manual_seed(0)
    for chosen in range(4):
        drawn = [samples._textures(chosen, generator)[0] for _ in range(40)]
        sources = {next(n for n, image in enumerate(samples.images) if image is texture) for texture in drawn}
        assert sources == {0, 1, 2, 3} - {chosen}
    assert make_samples(count=1)._textures(0, generator) == []


def test_no_photographs_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        FewShotDataset([], [], views=PLAIN, anomaly=None, seed=0)


def test_a_batch_joins_the_views_of_its_samples(make_samples):
    samples = make_samples()
    loader = DataLoader(samples, batch_size=2, sampler=StepSampler(3, 9), collate_fn=collate_views)
    batches = list(loader)
    assert len(batches) == 3
    assert batches[0]["pixel_values"].shape == (10, 3, 16, 16) and batches[0]["mask_labels"].shape == (10, 16, 16)
    assert torch.equal(batches[0]["pixel_values"][5:], samples[4]["pixel_values"])
    assert batches[0]["view_ids"].tolist() == [0, 1, 2, 3, 4] * 2
    assert batches[0]["class_ids"].tolist() == [*samples[3]["class_ids"], *samples[4]["class_ids"]]


def test_the_sampler_numbers_what_is_left():
    assert list(StepSampler(4, 8)) == [4, 5, 6, 7] and len(StepSampler(4, 8)) == 4
    assert len(StepSampler(8, 8)) == 0


# -- pseudo-anomalies: any size, sane statistics, one generator as the only source of chance ------------------------------


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
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
            result = augment_texture(draw_image(8, 11), seeded(seed))
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
        image = draw_image(256, 256)
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
            areas = [cut_paste(draw_image(side, side), seeded(seed))[1].sum() / side**2 for seed in range(40)]
            return np.median([area for area in areas if area < 0.015])

        assert median_scar(384) == pytest.approx(median_scar(128), rel=0.25)

    def test_mask_is_exact(self):
        """Every masked pixel of a gray image is that gray, jittered: no blank pixel from the rotation."""
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
        image, textures = draw_image(*size), [draw_image(40, 30, seed=1), draw_image(*size, seed=2)]
        for seed in range(8):
            for choice in (textures, []):
                result, mask = PseudoAnomaly(kind)(image, choice, seeded(seed))
                assert (result.shape, result.dtype) == (image.shape, torch.float32)
                assert (mask.shape, mask.dtype) == (size, torch.bool)
                assert 0 <= result.min() <= result.max() <= 1

    def test_changes_the_inside_only(self, kind):
        image, textures = draw_image(80, 96), [draw_image(80, 96, seed=1)]
        changed, masked = 0, 0
        for seed in range(30):
            result, mask = PseudoAnomaly(kind)(image, textures, seeded(seed))
            assert torch.equal(result[:, ~mask], image[:, ~mask])
            changed += (result != image).any(0).sum().item()
            masked += mask.sum().item()
        assert masked > 30 * 10
        assert changed > 0.97 * masked

    def test_generator_is_the_only_source_of_chance(self, kind):
        image, textures = draw_image(64, 64), [draw_image(64, 64, seed=1), draw_image(64, 64, seed=2)]
        before = torch.get_rng_state()
        first = [PseudoAnomaly(kind)(image, textures, seeded(seed)) for seed in range(6)]
        second = [PseudoAnomaly(kind)(image, textures, seeded(seed)) for seed in range(6)]
        assert torch.equal(before, torch.get_rng_state())
        for (image_a, mask_a), (image_b, mask_b) in zip(first, second, strict=True):
            assert torch.equal(image_a, image_b) and torch.equal(mask_a, mask_b)
        assert len({mask.numpy().tobytes() for _, mask in first}) == 6

    def test_inputs_are_left_alone(self, kind):
        image, texture = draw_image(64, 64), draw_image(64, 64, seed=1)
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
            PseudoAnomaly(kind)(image, [draw_image(8, 8)], seeded(0))


def test_empty_mask_returns_the_image():
    image = draw_image(32, 32)
    result, mask = PseudoAnomaly(perlin_threshold=0.999)(image, [], seeded(0))
    assert not mask.any()
    assert torch.equal(result, image)


def test_textures_are_all_used_and_resized():
    """Black image, textures of one plain color each: what shows up tells which one was drawn."""
    image = torch.zeros(3, 32, 32)
    anomaly = PseudoAnomaly(blend_max=0.0, perlin_threshold=-0.99)

    def colors(textures):
        return {tuple(anomaly(image, textures, seeded(seed))[0].amax((1, 2)).tolist()) for seed in range(12)}

    red, blue = (torch.tensor(color).view(3, 1, 1).expand(3, 10, 7) for color in ([0.6, 0.1, 0.1], [0.1, 0.1, 0.6]))
    assert colors([red]) != colors([blue])
    assert colors([red, blue]) <= colors([red]) | colors([blue])
    assert not colors([red, blue]) <= colors([red])
    assert not colors([red, blue]) <= colors([blue])


def test_both_is_half_and_half():
    """Only the Perlin recipe looks at the textures, so only it can stumble over a bad one."""
    bad, perlin = torch.full((3, 48, 48), 2.0), 0
    for seed in range(80):
        try:
            PseudoAnomaly("both")(draw_image(48, 48), [bad], seeded(seed))
        except ValueError:
            perlin += 1
    assert 25 < perlin < 55


@pytest.mark.parametrize("option", [{"blend_max": 0.0}, {"perlin_threshold": 0.2}, {"perlin_max_exponent": 1}])
def test_parameters_reach_the_recipe(option):
    image, textures = draw_image(32, 32), [draw_image(32, 32, seed=1)]
    default, changed = ([PseudoAnomaly(**o)(image, textures, seeded(s))[0] for s in range(5)] for o in ({}, option))
    assert not torch.equal(torch.stack(default), torch.stack(changed))


def test_own_texture_is_turned():
    """Each row of the image has one color; a texture that has not been turned rarely breaks that."""
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


def test_a_fit_draws_no_picture_twice_and_none_of_one_color(tmp_path, photograph, caplog):
    good = tmp_path / "gear/train/good"
    good.mkdir(parents=True)
    images = [photograph(seed, size=(384, 320)) for seed in range(3)]
    for number, image in enumerate(images):
        image.save(good / f"{number}.png")
        image.save(good / f"{number} again.jpg", quality=85)
        image.save(good / f"{number} copy.png")
    Image.new("RGB", (96, 80)).save(good / "cap.png")
    for seed in range(3):
        shots = choose_shots(TrainingConfig(data_root=str(tmp_path), shots=4, seed=seed))
        assert sorted(Path(file).name[0] for file in shots.files["gear"]) == ["0", "1", "2"]
        assert (
            len(shots.images) == 3
            and "gear: 7 good photographs are another one once more, or of one color" in caplog.text
        )
    for number in range(3):
        (good / f"{number} again.jpg").unlink()
        (good / f"{number} copy.png").unlink()
    (good / "cap.png").unlink()
    caplog.clear()
    shots = choose_shots(TrainingConfig(data_root=str(tmp_path), shots=2, seed=1))
    names = [f"gear/train/good/{number}.png" for number in range(3)]
    assert shots.files["gear"] == sample_few_shot(names, 2, seed=1, class_name="gear") and not caplog.messages
