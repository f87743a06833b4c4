"""The memory: distances of the definition, the nearest of many found without comparing all, and a coreset that covers all."""

import copy
import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_anople import memory_anople
from modeling_anople.memory_anople import (
    BLOCK,
    SEARCH_WIDTH,
    MemoryBank,
    NearestSearch,
    k_center,
    memory_distances,
    nearest_distance,
    nearest_vector,
    principal_directions,
)


LAYERS, PATCHES, WIDTH = 2, 9, 6


def draw_features(images: int, seed: int) -> Tensor:
    """Unit vectors (layers, images, patches, width)."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(LAYERS, images, PATCHES, WIDTH, generator=generator), dim=-1)


def remember(bank: MemoryBank, features: Tensor, boxes: Tensor | None = None) -> None:
    bank.add(features.flatten(1, 2), [features.shape[2]] * features.shape[1], boxes)


def banks_of(*known: Tensor | None) -> list[MemoryBank]:
    """One bank for each product, an empty one for `None`."""
    banks = [MemoryBank(LAYERS, WIDTH) for _ in known]
    for bank, features in zip(banks, known, strict=True):
        if features is not None:
            remember(bank, features)
    return banks


def distances_of(
    features: Tensor,
    banks: list[MemoryBank],
    class_ids: list[int] | None,
    exclude=None,
    *,
    chunk_size: int = 8_388_608,
) -> Tensor:
    ids = None if class_ids is None else torch.tensor(class_ids)
    return memory_distances(features, banks, ids, chunk_size=chunk_size, exclude=exclude)


def slow_distance(query: Tensor, known: list[Tensor]) -> Tensor:
    """Compare vector by vector, as the definition reads."""
    batch = query.shape[1]
    answer = torch.zeros(batch, PATCHES)
    for image, patch, layer in itertools.product(range(batch), range(PATCHES), range(LAYERS)):
        vector = query[layer, image, patch]
        cosines = [
            float(vector @ other / (vector.norm() * other.norm()))
            for features in known
            for other in features[layer].flatten(0, 1)
        ]
        answer[image, patch] += (1 - max(cosines)) / 2 / LAYERS
    return answer


def test_distances_are_those_of_the_definition():
    known, query = draw_features(2, seed=0), draw_features(3, seed=1)
    banks = banks_of(None, known)
    torch.testing.assert_close(distances_of(query, banks, [1, 1, 1]), slow_distance(query, [known]), atol=1e-6, rtol=0)
    assert [bank.size for bank in banks] == [0, 2 * PATCHES]


def test_images_of_several_classes_in_one_batch_meet_their_own_bank():
    known, query = [draw_features(1, seed=0), draw_features(2, seed=1)], draw_features(4, seed=9)
    ids = [1, 0, 1, 0]
    distances = distances_of(query, banks_of(*known), ids)
    for image, class_id in enumerate(ids):
        expected = slow_distance(query[:, image : image + 1], [known[class_id]])
        torch.testing.assert_close(distances[image : image + 1], expected, atol=1e-6, rtol=0)


def test_pooled_search_takes_the_nearest_of_all_classes():
    known, query = [draw_features(1, seed=0), draw_features(2, seed=1)], draw_features(2, seed=9)
    distances = distances_of(query, banks_of(*known), None)
    torch.testing.assert_close(distances, slow_distance(query, known), atol=1e-6, rtol=0)


def test_pooled_search_needs_only_one_class_that_is_known():
    known, query = draw_features(1, seed=0), draw_features(2, seed=9)
    with pytest.raises(ValueError, match=r"fit the detector, or enroll the product"):
        distances_of(query, banks_of(None, None, None), None)
    distances = distances_of(query, banks_of(None, known, None), None)
    torch.testing.assert_close(distances, slow_distance(query, [known]), atol=1e-6, rtol=0)


def test_a_known_patch_is_at_no_distance_and_its_opposite_far():
    known = draw_features(1, seed=0)
    assert float(distances_of(known, banks_of(known), [0]).max()) < 1e-6
    opposite = -known[:, :, :1].expand(-1, -1, PATCHES, -1)
    torch.testing.assert_close(distances_of(opposite, banks_of(known[:, :, :1]), [0]), torch.ones(1, PATCHES))


@pytest.mark.parametrize("class_ids", [[0, 0], None])
def test_excluded_vectors_are_as_if_never_remembered(class_ids):
    images, other = draw_features(3, seed=0), draw_features(1, seed=5)
    banks = banks_of(images, other)
    for number in range(3):
        without = banks_of(torch.cat([images[:, :number], images[:, number + 1 :]], dim=1), other)
        query = images[:, [number, 0]]
        distances = distances_of(query, banks, class_ids, (0, banks[0].vectors_of(number)))
        torch.testing.assert_close(distances, distances_of(query, without, class_ids), atol=1e-6, rtol=0)
        assert float(distances[0].max()) > 0.01


def test_what_is_excluded_from_another_class_does_not_matter():
    banks, query = banks_of(draw_features(2, seed=0), draw_features(2, seed=1)), draw_features(2, seed=9)
    expected = distances_of(query, banks, [0, 0])
    assert torch.equal(distances_of(query, banks, [0, 0], (1, slice(0, PATCHES))), expected)


def test_leaving_everything_out_is_refused():
    known = draw_features(1, seed=0)
    with pytest.raises(ValueError, match="leaves nothing"):
        distances_of(known, banks_of(known), [0], (0, slice(0, PATCHES)))


def test_one_class_is_untouched_by_another():
    banks, query = banks_of(draw_features(2, seed=0), draw_features(2, seed=1)), draw_features(2, seed=9)
    before, answer = banks[0].vectors.clone(), distances_of(query, banks, [0, 0])
    remember(banks[1], draw_features(5, seed=2))
    assert torch.equal(distances_of(query, banks, [0, 0]), answer) and torch.equal(banks[0].vectors, before)
    assert torch.equal(distances_of(query, banks[:1], [0, 0]), answer)


def test_adding_in_parts_is_adding_at_once():
    features = draw_features(3, seed=0)
    [parts], [whole] = banks_of(None), banks_of(features)
    for number in range(3):
        remember(parts, features[:, number : number + 1])
    assert torch.equal(parts.vectors, whole.vectors) and parts.image_vectors == whole.image_vectors == [PATCHES] * 3


class LargestProduct(TorchDispatchMode):
    """Watch matrix products and keep the number of entries of the largest."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.largest = max(self.largest, answer.numel())
        return answer


@pytest.mark.parametrize("chunk_size", [1, 50, 200])
@pytest.mark.parametrize("pooled", [False, True])
def test_chunks_bound_the_similarities_and_change_nothing(chunk_size, pooled):
    banks, query = banks_of(draw_features(2, seed=0), draw_features(1, seed=1)), draw_features(4, seed=9)
    ids = None if pooled else [0, 0, 1, 0]
    with LargestProduct() as whole:
        expected = distances_of(query, banks, ids)
    with LargestProduct() as chunks:
        distances = distances_of(query, banks, ids, chunk_size=chunk_size)
    torch.testing.assert_close(distances, expected, atol=1e-6, rtol=0)
    assert chunks.largest <= max(chunk_size, 2 * PATCHES)  # a chunk holds one query at least
    assert whole.largest == (4 if pooled else 3) * PATCHES * 2 * PATCHES


def test_an_empty_bank_is_refused_with_the_remedy():
    known = draw_features(2, seed=0)
    with pytest.raises(ValueError, match=r"class id 1 is empty: fit the detector, or enroll the product"):
        distances_of(known, banks_of(known, None), [0, 1])


@pytest.mark.parametrize("has_boxes", [False, True])
def test_a_bank_is_sized_by_its_counts_and_travels_in_the_state(has_boxes):
    [bank] = banks_of(None)
    boxes = torch.arange(2 * PATCHES * 4).view(-1, 4) if has_boxes else None
    remember(bank, draw_features(2, seed=0), boxes)
    empty = MemoryBank(LAYERS, WIDTH, bank.image_vectors, has_boxes=has_boxes)
    assert empty.size == 2 * PATCHES and empty.vectors.shape == bank.vectors.shape
    empty.load_state_dict(bank.state_dict())
    assert torch.equal(empty.vectors, bank.vectors) and ("boxes" in bank.state_dict()) == has_boxes
    assert not has_boxes or (torch.equal(empty.boxes, bank.boxes) and bank.boxes.dtype == torch.int32)


def test_a_bank_knows_whose_each_vector_is_and_what_it_saw():
    [bank] = banks_of(None)
    bank.add(draw_features(1, seed=0)[:, 0, :4], [4])
    boxes = torch.tensor([[0, 0, 8, 8], [8, 0, 16, 8], [0, 0, 0, 0]])
    bank.add(draw_features(1, seed=1)[:, 0, :3], [1, 2], boxes)
    assert [bank.image_of(vector) for vector in range(7)] == [0, 0, 0, 0, 1, 2, 2]
    assert [bank.vectors_of(image) for image in range(3)] == [slice(0, 4), slice(4, 5), slice(5, 7)]
    assert [bank.box_of(vector) for vector in range(7)] == [None] * 4 + [(0, 0, 8, 8), (8, 0, 16, 8), None]
    assert banks_of(draw_features(1, seed=0))[0].box_of(0) is None


def test_half_precision_features_are_compared_in_their_own_precision():
    known, query = draw_features(2, seed=0), draw_features(2, seed=1)
    [bank] = banks_of(None)
    remember(bank.to(torch.bfloat16), known)
    assert bank.vectors.dtype == torch.bfloat16
    distances = distances_of(query.to(torch.bfloat16), [bank], [0, 0])
    assert distances.dtype == torch.bfloat16
    torch.testing.assert_close(distances.float(), slow_distance(query, [known]), atol=0.02, rtol=0)


@pytest.mark.parametrize("class_id", [0, 1, None])
def test_the_nearest_vector_is_that_of_all_layers_together(class_id):
    known = [draw_features(3, seed=0), draw_features(2, seed=1), None]
    banks = banks_of(*known)
    for feature in draw_features(1, seed=9)[:, 0].unbind(1):
        gaps = {
            (number, vector): float((each - feature).square().sum())
            for number, features in enumerate(known[:2])
            for vector, each in enumerate(features.flatten(1, 2).unbind(1))
            if class_id in (None, number)
        }
        assert nearest_vector(feature, banks, class_id) == min(gaps, key=gaps.get)


# -- the nearest of very many ---------------------------------------------------------------------------------------


def clustered(vectors: int, width: int, *, noise: float, seed: int) -> Tensor:
    """Unit vectors around few centers, as patches of images are."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(20, width, generator=torch.Generator().manual_seed(0)) + 2
    chosen = centers[torch.randint(20, (vectors,), generator=generator)]
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


@pytest.mark.parametrize("ids", [None, [0, 1, 0, 0]], ids=["pooled", "given"])
def test_a_memory_that_searches_answers_as_one_that_compares_all(monkeypatch, ids):
    banks, query = banks_of(draw_features(3, seed=0), draw_features(1, seed=1)), draw_features(4, seed=9)
    expected = distances_of(query, banks, ids)
    monkeypatch.setattr(memory_anople, "MANY", 20)
    torch.testing.assert_close(distances_of(query, banks, ids), expected, atol=2e-7, rtol=0)
    assert [len(bank._searches[2]) for bank in banks] == [LAYERS, 0]


@pytest.mark.usefixtures("searched")
def test_a_bank_that_changed_is_searched_anew():
    banks, others, query = (
        banks_of(draw_features(3, seed=0)),
        banks_of(draw_features(3, seed=1)),
        draw_features(2, seed=9),
    )
    before = distances_of(query, banks, [0, 0])
    twins = copy.deepcopy(banks)
    expected = distances_of(query, others, [0, 0])
    banks[0].load_state_dict(others[0].state_dict())  # in place
    assert torch.equal(distances_of(query, banks, [0, 0]), expected) and not torch.equal(expected, before)
    assert torch.equal(distances_of(query, twins, [0, 0]), before)
    remember(banks[0], query[:, :1])
    assert float(distances_of(query, banks, [0, 0])[0].max()) < 1e-6
    banks[0].vectors, banks[0].image_vectors = others[0].vectors, list(others[0].image_vectors)
    assert torch.equal(distances_of(query, banks, [0, 0]), expected)
    banks[0].reduce(22)
    reduced = distances_of(query, banks, [0, 0])
    copied = banks_of(None)
    copied[0].add(banks[0].vectors, [22])
    assert torch.equal(reduced, distances_of(query, copied, [0, 0])) and not torch.equal(reduced, expected)
    banks[0].vectors, banks[0].image_vectors = banks[0].vectors[:, :0], []
    with pytest.raises(ValueError, match="class id 0 is empty"):
        distances_of(query, banks, [0, 0])


@pytest.mark.usefixtures("searched")
def test_distances_have_a_gradient_after_a_look_without_one():
    banks, query = banks_of(draw_features(3, seed=0)), draw_features(1, seed=9)
    with torch.inference_mode():
        expected = distances_of(query, banks, [0]).clone()
    query.requires_grad_()
    distances = distances_of(query, banks, [0])
    torch.testing.assert_close(distances.detach(), expected)
    distances.sum().backward()
    assert float(query.grad[0].abs().max()) > 0


# -- the coreset: a cover, always the same, within twice the best -------------------------------------------------------


def largest_gap(vectors: Tensor, kept: Tensor) -> float:
    return float(torch.cdist(vectors, vectors[kept]).amin(1).max())


def draw(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_the_cover_is_at_most_twice_as_wide_as_the_best(seed):
    vectors = draw(9, 2, seed)
    best = min(largest_gap(vectors, torch.tensor(kept)) for kept in itertools.combinations(range(9), 3))
    assert largest_gap(vectors, k_center(vectors, 3)) <= 2 * best + 1e-5


def test_each_group_is_found_before_any_is_taken_twice():
    centers = 10 * draw(8, 6)
    vectors = (centers[:, None] + 0.1 * draw(40, 6, seed=1).unflatten(0, (8, 5))).flatten(0, 1)
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
    centers = 20 * draw(40, 600, seed=3)
    grouped = (centers[:, None] + vectors[:280].unflatten(0, (40, 7))).flatten(0, 1)
    assert largest_gap(grouped, k_center(grouped, 40)) < 0.3 * largest_gap(grouped, at_random[at_random < 280])


def test_copies_do_not_stop_it():
    vectors = torch.ones(6, 4)
    assert len(k_center(vectors, 4).unique()) == 4
    assert k_center(vectors, 9).tolist() == list(range(6))
    with pytest.raises(ValueError, match="at least one vector, got limit 0"):
        k_center(vectors, 0)


def test_a_reduced_bank_keeps_vectors_in_order_with_their_images_and_boxes():
    [bank], features = banks_of(None), draw_features(4, seed=0)
    boxes = torch.arange(4 * PATCHES)[:, None].expand(-1, 4)
    remember(bank, features, boxes)
    bank.reduce(10)
    kept = bank.boxes[:, 0].tolist()
    assert len(kept) == 10 == bank.size and kept == sorted(set(kept))
    assert torch.equal(bank.vectors, features.flatten(1, 2)[:, kept])
    assert bank.image_vectors == [sum(place // PATCHES == image for place in kept) for image in range(4)]
    before = bank.vectors
    bank.reduce(10)
    assert bank.vectors is before
