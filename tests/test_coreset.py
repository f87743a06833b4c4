"""The coreset: a cover, always the same, within twice the best; and a memory that stays within its limit."""

import itertools

import pytest
import torch

from modeling_anople.memory_anople import SEARCH_WIDTH, k_center


def largest_gap(vectors: torch.Tensor, kept: torch.Tensor) -> float:
    return float(torch.cdist(vectors, vectors[kept]).amin(1).max())


def draw(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_the_cover_is_at_most_twice_as_wide_as_the_best(seed):
    vectors = draw(9, 2, seed)
    best = min(largest_gap(vectors, torch.tensor(kept)) for kept in itertools.combinations(range(9), 3))
    assert largest_gap(vectors, k_center(vectors, 3)) <= 2 * best + 1e-5


def test_each_group_is_found_before_any_is_taken_twice():
    centres = 10 * draw(8, 6)
    vectors = (centres[:, None] + 0.1 * draw(40, 6, seed=1).unflatten(0, (8, 5))).flatten(0, 1)
    assert (k_center(vectors, 8) // 5).tolist() == list(range(8))


@pytest.mark.parametrize("width", [3, SEARCH_WIDTH + 50])
def test_the_choice_is_ordered_distinct_and_repeatable(width):
    vectors = draw(50, width)
    kept = k_center(vectors, 20)
    assert torch.equal(kept, kept.unique()) and len(kept) == 20 and kept[0] == 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(kept, k_center(vectors, 20))
    assert torch.equal(kept, k_center(vectors.clone(), 20))


def test_wide_vectors_are_covered_nearly_as_well_through_the_projection():
    vectors = draw(300, 600) + 3 * draw(300, 600, seed=1)[:1]
    at_random = torch.randperm(300, generator=torch.Generator().manual_seed(2))[:40]
    centres = 20 * draw(40, 600, seed=3)
    grouped = (centres[:, None] + vectors[:280].unflatten(0, (40, 7))).flatten(0, 1)
    assert largest_gap(grouped, k_center(grouped, 40)) < 0.3 * largest_gap(grouped, at_random[at_random < 280])


def test_copies_do_not_stop_it():
    vectors = torch.ones(6, 4)
    assert len(k_center(vectors, 4).unique()) == 4
    assert k_center(vectors, 9).tolist() == list(range(6))
    with pytest.raises(ValueError, match="at least one vector, got limit 0"):
        k_center(vectors, 0)


PATCHES = 16


@torch.no_grad()
@pytest.mark.parametrize("limit", [10, 40])
def test_the_memory_of_a_class_stays_within_its_limit(make_model, make_pixels, limit):
    model, free = make_model(memory_limit=limit), make_model(memory_limit=None)
    pixels = make_pixels(9)
    for detector in (model, free):
        detector.remember(pixels, 1)
        detector.remember(pixels[:1], 0)
    assert free.memory.sizes == [PATCHES, 9 * PATCHES]
    assert model.memory.sizes == model.config.memory_sizes == [min(limit, PATCHES), limit]
    assert sum(model.config.memory_photographs[1]) == limit and len(model.config.memory_photographs[1]) == 9
    torch.testing.assert_close(model.class_prototypes, free.class_prototypes)
    whole, kept = free.memory.bank(1), model.memory.bank(1)
    places = [int((whole - vector[:, None]).abs().sum((0, 2)).argmin()) for vector in kept.unbind(1)]
    assert places == sorted(set(places))  # each is a whole one, in order
    counts = [sum(place // PATCHES == photograph for place in places) for photograph in range(9)]
    assert counts == model.memory.counts[1]
    for photograph in range(9):
        own = model.memory.vectors_of(1, photograph)
        assert [place // PATCHES for place in places[own]] == [photograph] * counts[photograph]


@torch.no_grad()
def test_a_reduced_memory_is_calibrated_photograph_by_photograph(make_model, make_pixels):
    model, pixels = make_model(memory_limit=40), make_pixels(6)
    model.remember(pixels, 0)
    line = model.calibrate(pixels, 0)
    expected = []
    for number in range(6):
        own = model.memory.vectors_of(0, number)
        bank = model.memory.bank(0)
        others = make_model()
        others.memory.restore(
            [
                (torch.cat([bank[:, : own.start], bank[:, own.stop :]], 1), [40 - own.stop + own.start]),
                others.memory.contents[1],
            ]
        )
        expected.append(float(others(pixels[number : number + 1], class_ids=torch.tensor([0])).image_scores))
    for score in expected:
        assert min(abs(score - other) for other in line.image_scores) < 1e-5


def test_the_size_is_logged_before_the_memory_is_built(make_model, make_pixels, caplog, monkeypatch):
    model = make_model(memory_limit=40)
    monkeypatch.setattr(model, "encode_image", None)  # nothing has been encoded yet
    with caplog.at_level("INFO", logger="modeling_anople"), pytest.raises(TypeError):
        model.remember(make_pixels(5), 1)
    assert "Memory of nut: 40 vectors in each of 2 layers, 0.0 MB (of 80, memory_limit)." in caplog.text


@torch.no_grad()
def test_a_reduced_memory_is_saved_and_grows_on(make_model, make_pixels, tmp_path):
    model = make_model(memory_limit=40)
    model.remember(make_pixels(6), 0)
    model.save_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path)
    assert read.memory.counts == model.memory.counts and read.memory.sizes == [40, 0]
    for detector in (model, read):
        detector.remember(make_pixels(2, seed=5), 0)
    assert torch.equal(read.memory.bank(0), model.memory.bank(0)) and len(read.memory.counts[0]) == 8
    assert torch.equal(read.class_prototypes, model.class_prototypes)
