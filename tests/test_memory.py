import itertools

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPConfig

from modeling_anople import AnoPLeConfig
from modeling_anople.memory_anople import NormalMemory


LAYERS, PATCHES, WIDTH = (0, 2), 9, 6


def make_memory(classes: int = 2, **fields) -> NormalMemory:
    clip = CLIPConfig(
        vision_config={"hidden_size": WIDTH, "num_attention_heads": 1, "num_hidden_layers": 3, "image_size": 96}
    )
    names = [f"class {number}" for number in range(classes)]
    return NormalMemory(AnoPLeConfig(clip_config=clip, class_names=names, memory_layers=list(LAYERS), **fields))


def make_taps(photographs: int, seed: int) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(photographs, PATCHES, WIDTH, generator=generator) for layer in (0, 1, 2)}


def slow_distance(query: dict[int, Tensor], known: list[dict[int, Tensor]]) -> Tensor:
    """Compare vector by vector, as the definition reads."""
    batch = len(query[LAYERS[0]])
    answer = torch.zeros(batch, PATCHES)
    for image, patch, layer in itertools.product(range(batch), range(PATCHES), LAYERS):
        vector = query[layer][image, patch]
        cosines = [
            float(vector @ other / (vector.norm() * other.norm()))
            for taps in known
            for other in taps[layer].flatten(0, 1)
        ]
        answer[image, patch] += (1 - max(cosines)) / 2 / len(LAYERS)
    return answer


def test_distances_are_those_of_the_definition():
    memory, known, query = make_memory(), make_taps(2, seed=0), make_taps(3, seed=1)
    memory.add(known, 1)
    distances = memory(query, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(distances, slow_distance(query, [known]), atol=1e-6, rtol=0)
    assert memory.sizes == [0, 2 * PATCHES]


def test_photographs_of_several_classes_in_one_batch_meet_their_own_bank():
    memory, query = make_memory(), make_taps(4, seed=9)
    known = [make_taps(1, seed=0), make_taps(2, seed=1)]
    for class_id, taps in enumerate(known):
        memory.add(taps, class_id)
    ids = torch.tensor([1, 0, 1, 0])
    distances = memory(query, ids)
    for image, class_id in enumerate(ids.tolist()):
        single = {layer: taps[image : image + 1] for layer, taps in query.items()}
        expected = slow_distance(single, [known[class_id]])
        torch.testing.assert_close(distances[image : image + 1], expected, atol=1e-6, rtol=0)


def test_pooled_search_takes_the_nearest_of_all_classes():
    memory, query = make_memory(), make_taps(2, seed=9)
    known = [make_taps(1, seed=0), make_taps(2, seed=1)]
    for class_id, taps in enumerate(known):
        memory.add(taps, class_id)
    torch.testing.assert_close(memory(query, None), slow_distance(query, known), atol=1e-6, rtol=0)


def test_pooled_search_needs_only_one_class_that_is_known():
    memory, query, known = make_memory(3), make_taps(2, seed=9), make_taps(1, seed=0)
    with pytest.raises(ValueError, match=r"fill it with model\.remember"):
        memory(query, None)
    memory.add(known, 1)
    torch.testing.assert_close(memory(query, None), slow_distance(query, [known]), atol=1e-6, rtol=0)


def test_a_known_patch_is_at_no_distance_and_its_opposite_far():
    memory, known = make_memory(), make_taps(1, seed=0)
    memory.add({layer: 5 * taps for layer, taps in known.items()}, 0)
    ids = torch.tensor([0])
    assert float(memory(known, ids).max()) < 1e-6
    lone = make_memory()
    lone.add({layer: taps[:, :1] for layer, taps in known.items()}, 0)
    opposite = {layer: -taps[:, :1].expand(-1, PATCHES, -1) for layer, taps in known.items()}
    torch.testing.assert_close(lone(opposite, ids), torch.ones(1, PATCHES))


@pytest.mark.parametrize("class_ids", [[0, 0], None])
def test_excluded_vectors_are_as_if_never_remembered(class_ids):
    memory, photographs = make_memory(), make_taps(3, seed=0)
    memory.add(photographs, 0)
    memory.add(make_taps(1, seed=5), 1)
    ids = None if class_ids is None else torch.tensor(class_ids)
    for number in range(3):
        others = {layer: torch.cat([taps[:number], taps[number + 1 :]]) for layer, taps in photographs.items()}
        without = make_memory()
        without.add(others, 0)
        without.add(make_taps(1, seed=5), 1)
        query = {layer: taps[[number, 0]] for layer, taps in photographs.items()}
        exclude = (0, slice(number * PATCHES, (number + 1) * PATCHES))
        torch.testing.assert_close(memory(query, ids, exclude), without(query, ids), atol=1e-6, rtol=0)
        assert float(memory(query, ids, exclude)[0].max()) > 0.01


def test_what_is_excluded_from_another_class_does_not_matter():
    memory, query = make_memory(), make_taps(2, seed=9)
    for class_id in (0, 1):
        memory.add(make_taps(2, seed=class_id), class_id)
    ids = torch.tensor([0, 0])
    assert torch.equal(memory(query, ids, (1, slice(0, PATCHES))), memory(query, ids))


def test_leaving_everything_out_is_refused():
    memory, taps = make_memory(), make_taps(1, seed=0)
    memory.add(taps, 0)
    with pytest.raises(ValueError, match="leaves nothing"):
        memory(taps, torch.tensor([0]), (0, slice(0, PATCHES)))


def test_one_class_is_untouched_by_another():
    memory, query = make_memory(), make_taps(2, seed=9)
    memory.add(make_taps(2, seed=0), 0)
    ids, before = torch.tensor([0, 0]), memory.bank(0).clone()
    answer = memory(query, ids)
    memory.add(make_taps(5, seed=1), 1)
    assert torch.equal(memory(query, ids), answer) and torch.equal(memory.bank(0), before)
    memory.clear(1)
    assert torch.equal(memory(query, ids), answer) and memory.sizes == [2 * PATCHES, 0]


def test_adding_in_parts_is_adding_at_once():
    parts, whole, taps = make_memory(), make_memory(), make_taps(3, seed=0)
    whole.add(taps, 0)
    for number in range(3):
        parts.add({layer: values[number : number + 1] for layer, values in taps.items()}, 0)
    assert torch.equal(parts.bank(0), whole.bank(0))


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
    small, large = make_memory(memory_chunk_size=chunk_size), make_memory()
    for memory in (small, large):
        memory.add(make_taps(2, seed=0), 0)
        memory.add(make_taps(1, seed=1), 1)
    query, ids = make_taps(4, seed=9), None if pooled else torch.tensor([0, 0, 1, 0])
    with LargestProduct() as whole:
        expected = large(query, ids)
    with LargestProduct() as chunks:
        torch.testing.assert_close(small(query, ids), expected, atol=1e-6, rtol=0)
    assert chunks.largest <= max(chunk_size, 2 * PATCHES)  # a chunk holds one query at least
    assert whole.largest == (4 if pooled else 3) * PATCHES * 2 * PATCHES


def test_an_empty_bank_is_refused_with_the_remedy():
    memory, taps = make_memory(), make_taps(2, seed=0)
    memory.add(taps, 0)
    with pytest.raises(ValueError, match=r"class id 1 is empty: .* model\.remember"):
        memory(taps, torch.tensor([0, 1]))


def test_banks_are_sized_by_the_config_and_travel_in_the_state():
    memory = make_memory()
    memory.add(make_taps(2, seed=0), 1)
    empty = make_memory(memory_sizes=memory.sizes)
    empty.load_state_dict(memory.state_dict())
    assert empty.sizes == [0, 2 * PATCHES] and torch.equal(empty.bank(1), memory.bank(1))


def test_half_precision_features_are_compared_in_their_own_precision():
    memory, known, query = make_memory().to(torch.bfloat16), make_taps(2, seed=0), make_taps(2, seed=1)
    memory.add(known, 0)
    assert memory.bank(0).dtype == torch.bfloat16
    half = {layer: taps.to(torch.bfloat16) for layer, taps in query.items()}
    distances = memory(half, torch.tensor([0, 0]))
    assert distances.dtype == torch.bfloat16
    torch.testing.assert_close(distances.float(), slow_distance(query, [known]), atol=0.02, rtol=0)
