"""The renderer of the pretraining pictures: the same state draws the same, masks tell where, cameras stay cameras."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from hub.mini_clip import renderer as episodes
from hub.mini_clip.renderer import VISIBLE, Episode, Renderer, designs
from hub.mini_clip.renderer.defects import KINDS, draw_kinds
from hub.mini_clip.renderer.designs import FAMILIES
from hub.mini_clip.renderer.scenes import LUMINANCE, compress, cosine_basis, expose, focus, sense
from hub.mini_clip.renderer.textures import KINDS as TILES
from hub.mini_clip.renderer.textures import TileBank, draw_tile, log_uniform


SIDE = 64


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def draw(seed: int, products: int = 3, **how) -> Episode:
    return Renderer(seeded(seed), per_kind=1).draw(products, size=SIDE, **how)


def pictures(count: int, seed: int = 0) -> Tensor:
    """Smooth pictures (count, 3, SIDE, SIDE) that keep away from black and white."""
    coarse = torch.rand(count, 3, 8, 8, generator=seeded(seed))
    return 0.2 + 0.6 * F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")


def test_the_same_state_draws_the_same_episode_and_another_seed_another():
    first, again, other = draw(5), draw(5), draw(6)
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.masks, again.masks)
    assert (first.nouns, first.captions, first.defects) == (again.nouns, again.captions, again.defects)
    assert not torch.equal(first.pixels, other.pixels)


def test_the_global_generator_has_no_say_and_is_left_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first.pixels, draw(5).pixels)


def test_episodes_of_one_renderer_differ():
    renderer = Renderer(seeded(0), per_kind=1)
    first, second = (renderer.draw(2, size=SIDE).pixels for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("products", "normals", "size"), [(1, 1, 32), (2, 3, 64), (3, 2, 96)])
def test_an_episode_has_the_shapes_and_ranges_it_promises(products, normals, size):
    episode = Renderer(seeded(size), per_kind=1).draw(products, normals=normals, size=size)
    assert episode.pixels.shape == (products, normals + 1, 3, size, size) and episode.pixels.dtype == torch.float32
    assert episode.pixels.min() >= 0 and episode.pixels.max() <= 1
    assert episode.masks.shape == (products, size, size) and episode.masks.dtype == torch.bool
    assert len(episode.nouns) == len(episode.captions) == len(episode.defects) == products
    assert all(noun in caption for noun, caption in zip(episode.nouns, episode.captions, strict=True))
    assert set(episode.defects) <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_defect_changes_pixels(kind, monkeypatch):
    monkeypatch.setattr(episodes, "draw_kinds", lambda count, generator: [kind] * count)
    share = draw(3, 12, normals=1).masks.flatten(1).float().mean(1)
    assert (share > 0).sum() >= 4, f"{kind} shows in too few pictures"
    assert share.max() < 0.9  # a defect, not another picture


def test_most_defects_show_and_all_kinds_are_drawn():
    shown = torch.cat([draw(seed, 12, normals=1).masks.flatten(1).any(1) for seed in range(3)])
    assert shown.float().mean() > 0.75
    drawn = draw_kinds(2000, seeded(0))
    assert set(drawn) == set(KINDS)
    assert drawn.count("scratch") / 2000 == pytest.approx(KINDS["scratch"] / sum(KINDS.values()), abs=0.03)


def test_the_mask_marks_where_the_defective_picture_differs(monkeypatch):
    """With a camera that neither shakes nor compresses, the same instance without its defect is the reference."""
    monkeypatch.setattr(episodes, "sense", lambda pictures, sigma, generator: pictures)
    monkeypatch.setattr(episodes, "compress", lambda pictures, generator: pictures)
    spoiled = draw(11, 8)
    monkeypatch.setattr(episodes, "VISIBLE", 2.0)  # nothing stands out that far
    assert not draw(11, 8).masks.any()
    scene, calls = episodes.draw_scene, []

    def without_defect(drawn, shot, bank, size, changes=None):
        calls.append(changes)
        return scene(drawn, shot, bank, size, None)

    def without_overlay(*arguments):
        changes, overlay = defects(*arguments)
        overlay.cover = torch.zeros_like(overlay.cover)
        return changes, overlay

    defects = episodes.draw_defects
    monkeypatch.setattr(episodes, "draw_scene", without_defect)
    monkeypatch.setattr(episodes, "draw_defects", without_overlay)
    sound = draw(11, 8)
    assert len(calls) == 2 and calls[1] is not None
    torch.testing.assert_close(sound.pixels[:, :-1], spoiled.pixels[:, :-1], atol=1e-6, rtol=0)
    change = (sound.pixels[:, -1] - spoiled.pixels[:, -1]).abs().amax(1)
    assert torch.equal(spoiled.masks, change > VISIBLE) and spoiled.masks.any()


def test_normals_of_one_product_resemble_each_other_more_than_other_products():
    """By coarse colors, since patterns may be shifted and discs turned; over several draws of 16 products."""
    found = []
    for seed in range(7, 11):
        pixels = draw(seed, 16).pixels[:, :2]
        coarse = F.avg_pool2d(pixels.flatten(0, 1), SIDE // 2).flatten(1).unflatten(0, (16, 2))
        distances = torch.cdist(coarse[:, 0], coarse[:, 1])
        own, others = distances.diagonal(), distances[~torch.eye(16, dtype=torch.bool)]
        assert own.mean() < 0.35 * others.mean()
        found.append((distances.argmin(1) == torch.arange(16)).float().mean())
    assert torch.stack(found).mean() > 0.7


def test_good_photographs_of_a_product_are_not_copies():
    first, second = draw(8, 6).pixels[:, 0], draw(8, 6).pixels[:, 1]
    assert ((first - second).abs().flatten(1).mean(1) > 0.002).all()


@pytest.mark.parametrize("number", range(len(FAMILIES)), ids=lambda number: FAMILIES[number].nouns[0])
def test_every_family_yields_finite_pictures(number, monkeypatch):
    family, choice = FAMILIES[number], designs.choice
    monkeypatch.setattr(
        designs, "choice", lambda generator, items: family if items is FAMILIES else choice(generator, items)
    )
    episode = draw(number, 4, normals=1)
    assert set(episode.nouns) <= set(family.nouns)
    assert episode.pixels.isfinite().all() and (episode.pixels.flatten(2).std(2) > 0.003).all()


@pytest.mark.parametrize("kind", TILES)
def test_tiles_are_standardized_and_periodic(kind):
    for seed in range(3):
        tile = draw_tile(kind, seeded(seed), 128)
        assert tile.shape == (128, 128) and tile.isfinite().all()
        assert tile.mean().abs() < 1e-3 and tile.std() == pytest.approx(1.0, abs=1e-3)
        for axis in (0, 1):
            steps = (tile.roll(1, axis) - tile).abs().movedim(axis, 0)
            assert steps[0].mean() < 3 * steps[1:].mean()  # across the edge and within


def test_tiles_are_looked_up_over_the_whole_plane():
    bank = TileBank(seeded(0), per_kind=1, size=64)
    place = torch.rand(2, 2, 5, 5, generator=seeded(1))
    numbers = torch.tensor([0, 3])
    here, there = bank.look_up(numbers, *place), bank.look_up(numbers, place[0] + 2, place[1] - 1)
    torch.testing.assert_close(here, there, atol=2e-3, rtol=0)
    center = torch.full((1, 1, 1), 10.5 / 64)
    assert bank.look_up(torch.tensor([3]), center, 2 * center - 0.5 / 64).item() == pytest.approx(
        bank.tiles[3, 20, 10].item(), abs=1e-4
    )


def test_a_bank_picks_suitable_tiles():
    bank = TileBank(seeded(0), per_kind=2, size=32)
    picked = bank.pick(seeded(1), [("fiber",)] * 20 + [("cells", "rings")] * 20)
    assert {TILES[int(number) // 2] for number in picked[:20]} == {"fiber"}
    assert {TILES[int(number) // 2] for number in picked[20:]} == {"cells", "rings"}


def test_exposure_multiplies_and_stays_in_range():
    bright = expose(pictures(1).clone(), torch.tensor([[2.0, 1.0, 0.5]]))
    expected = (pictures(1) * torch.tensor([2.0, 1.0, 0.5])[:, None, None]).clamp(0, 1)
    torch.testing.assert_close(bright, expected)


def test_focus_keeps_the_mean_and_blurs_each_picture_by_its_own_sigma():
    point = torch.zeros(3, 3, 33, 33)
    point[:, :, 16, 16] = 1.0
    blurred = focus(point, torch.tensor([0.0, 0.7, 1.2]))
    torch.testing.assert_close(blurred.sum((2, 3)), torch.ones(3, 3))
    torch.testing.assert_close(blurred[0], point[0], atol=1e-6, rtol=0)
    assert blurred[0].max() > blurred[1].max() > blurred[2].max()
    squares = ((torch.arange(33.0) - 16) ** 2)[:, None]
    assert (blurred[1, 0] * squares).sum().sqrt() == pytest.approx(0.7, rel=0.03)
    flat = torch.full((1, 3, 16, 16), 0.4)
    torch.testing.assert_close(focus(flat, torch.tensor([1.0])), flat)


def test_sensors_count_in_256_steps_and_add_the_noise_asked_for():
    seen = sense(pictures(2), torch.tensor([0.0, 0.02]), seeded(0))
    torch.testing.assert_close(seen * 255, (seen * 255).round(), atol=1e-4, rtol=0)
    assert seen.min() >= 0 and seen.max() <= 1
    error = (seen - pictures(2)).flatten(1)
    assert error[0].abs().max() <= 0.5 / 255 + 1e-6
    assert error[1].std() == pytest.approx(0.02, rel=0.05)


def test_fine_compression_changes_little_and_coarse_more():
    noisy = sense(pictures(1, seed=3).expand(8, -1, -1, -1), torch.full((8,), 0.02), seeded(4))
    factors = log_uniform(seeded(9), 0.1, 1.0, (8, 1, 1, 1, 1)).flatten()  # what `compress` draws first
    change = compress(noisy.clone(), seeded(9)) - noisy
    errors = change.flatten(1).square().mean(1).sqrt()
    assert factors.min() < 0.25 and factors.max() > 0.8
    assert errors[factors.argmin()] < 0.012 and errors[factors.argmin()] < 0.9 * errors[factors.argmax()]
    assert errors.min() > 0.001 and errors.max() < 0.03
    torch.testing.assert_close(change[:, 0], change[:, 2], atol=1e-5, rtol=0)  # luminance only
    assert (change.mean((2, 3)).abs() < 1e-2).all()


def test_compression_rounds_coefficients_to_the_table():
    gray = pictures(1)[:, :1].expand(-1, 3, -1, -1)
    factor = log_uniform(seeded(2), 0.1, 1.0, (1, 1, 1, 1, 1))
    packed = compress(gray.clone(), seeded(2))[0, 0]
    basis = cosine_basis(8)
    torch.testing.assert_close(basis @ basis.T, torch.eye(8), atol=1e-5, rtol=0)
    blocks = packed.unflatten(1, (-1, 8)).unflatten(0, (-1, 8)).transpose(1, 2)
    counts = basis @ blocks @ basis.T / (LUMINANCE * factor[0, 0] / 255)
    torch.testing.assert_close(counts, counts.round(), atol=2e-2, rtol=0)
