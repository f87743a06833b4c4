"""The choice of photographs, the views they are cut into, and the stream of training samples."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_anople.training.few_shot import (
    FewShotDataset,
    PseudoAnomaly,
    StepSampler,
    ViewSettings,
    collate_views,
    sample_few_shot,
    square_image,
)


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


def test_views_are_normalised_as_told():
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


@pytest.mark.parametrize(("grid", "grey_levels"), [(1, 0.0), (2, 3.0)])
def test_training_sees_photographs_as_the_processor_shows_them(photograph, make_processor, grid, grey_levels):
    """Enlarged and shrunk (grid 2), a photograph differs by at most 3 of 255 grey levels from one resized once."""
    normalisation, picture = make_processor().image_processor, photograph(4, size=(200, 160))
    views = ViewSettings(32, grid, tuple(normalisation.image_mean), tuple(normalisation.image_std))
    samples = FewShotDataset([square_image(picture, 32 * grid)], [0], views=views, anomaly=None, seed=0)
    shown = make_processor()(picture)["pixel_values"][0]
    levels = 255 * torch.tensor(normalisation.image_std).view(3, 1, 1)
    difference = ((samples[0]["pixel_values"][0] - shown) * levels).abs()
    assert float(difference.max()) <= grey_levels + 1e-4
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
