import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_anople import memory_anople
from modeling_anople.memory_anople import BLOCK, NearestSearch, nearest_distance, principal_directions

from .test_memory import make_memory, make_taps


def clustered(vectors: int, width: int, *, noise: float, seed: int) -> Tensor:
    """Unit vectors around few centres, as patches of photographs are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, width, generator=torch.Generator().manual_seed(0)) + 2
    chosen = centres[torch.randint(20, (vectors,), generator=generator)]
    return F.normalize(chosen + noise * torch.randn(vectors, width, generator=generator), dim=-1)


@pytest.mark.parametrize("noise", [0.0, 0.2, 5.0])
@pytest.mark.parametrize("vectors", [BLOCK - 1, 10 * BLOCK, 1003])
@pytest.mark.parametrize("width", [20, 96])
def test_the_search_finds_what_comparing_all_finds(noise, vectors, width):
    bank, queries = clustered(vectors, width, noise=noise, seed=1), clustered(70, width, noise=noise, seed=2)
    queries = torch.cat([queries, bank[::50], -bank[:3]])
    expected = nearest_distance(queries, bank)
    for rows in (1, 16, 10_000):
        torch.testing.assert_close(NearestSearch(bank).distance(queries, rows), expected, atol=2e-7, rtol=0)


def test_what_is_alike_in_all_but_the_last_directions_is_told_apart():
    bank = torch.zeros(4096, 96)
    bank[:, 0], bank[:, 1:] = 1, 1e-3 * torch.randn(4096, 95, generator=torch.Generator().manual_seed(0))
    bank = F.normalize(bank, dim=-1)
    answers = NearestSearch(bank).distance(bank[:40], 40)
    assert float(answers.max()) < 1e-12


def test_few_directions_hold_most_of_the_length():
    vectors = clustered(500, 96, noise=0.1, seed=1)
    directions = principal_directions(vectors, 32)
    torch.testing.assert_close(directions.T @ directions, torch.eye(32), atol=1e-5, rtol=0)
    best = torch.linalg.svdvals(vectors)[:32].square().sum()
    assert float((vectors @ directions).square().sum() / best) > 0.99


@pytest.fixture
def searched(monkeypatch) -> None:
    monkeypatch.setattr(memory_anople, "MANY", 20)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_memory_that_searches_answers_as_one_that_compares_all(monkeypatch, pooled):
    memory, query = make_memory(), make_taps(4, seed=9)
    memory.add(make_taps(3, seed=0), 0)
    memory.add(make_taps(1, seed=1), 1)
    ids = None if pooled else torch.tensor([0, 1, 0, 0])
    expected = memory(query, ids)
    monkeypatch.setattr(memory_anople, "MANY", 20)
    torch.testing.assert_close(memory(query, ids), expected, atol=2e-7, rtol=0)
    assert list(memory._searches) == [0]


@pytest.mark.usefixtures("searched")
def test_a_bank_that_changed_is_searched_anew():
    memory, other, ids = make_memory(), make_memory(), torch.tensor([0, 0])
    memory.add(make_taps(3, seed=0), 0)
    other.add(make_taps(3, seed=1), 0)
    query = make_taps(2, seed=9)
    before = memory(query, ids)
    twin = copy.deepcopy(memory)
    memory.load_state_dict(other.state_dict())  # in place
    assert torch.equal(memory(query, ids), other(query, ids)) and not torch.equal(memory(query, ids), before)
    assert torch.equal(twin(query, ids), before)
    memory.add({layer: taps[:1] for layer, taps in query.items()}, 0)
    assert float(memory(query, ids)[0].max()) < 1e-6
    memory.restore(other.contents)
    assert torch.equal(memory(query, ids), other(query, ids))
    memory.clear(0)
    with pytest.raises(ValueError, match="class id 0 is empty"):
        memory(query, ids)


@pytest.mark.usefixtures("searched")
def test_distances_have_a_gradient_after_a_look_without_one():
    memory, query = make_memory(), make_taps(1, seed=9)
    memory.add(make_taps(3, seed=0), 0)
    with torch.inference_mode():
        expected = memory(query, torch.tensor([0])).clone()
    query = {layer: taps.requires_grad_() for layer, taps in query.items()}
    distances = memory(query, torch.tensor([0]))
    torch.testing.assert_close(distances.detach(), expected)
    distances.sum().backward()
    assert float(query[0].grad.abs().max()) > 0
