"""The optimizer of the pretraining: orthogonal steps for matrices, AdamW for the rest, and the average of weights."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from hub.mini_clip.optimizer import AveragedMuon, orthogonalized
from modeling_anople.training.finishing import load_state, save_state


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))


def make_optimizer(model: nn.Module, **how) -> AveragedMuon:
    """Give the middle matrix and the first to Muon, the rest to AdamW."""
    matrices = [model[0].weight, model[2].weight]
    others = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    return AveragedMuon(
        [
            {"params": matrices, "orthogonal": True, "ratio": 1.0},
            {"params": others, "orthogonal": False, "ratio": 0.3},
        ],
        **{"lr": 0.02, "average": 0.9, **how},
    )


def advance(model: nn.Module, optimizer: AveragedMuon, steps: range) -> list[float]:
    """Learn the sum and the difference of the inputs' halves; the step alone decides the batch."""
    losses = []
    for step in steps:
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
        aim = torch.stack([x.sum(1), x[:, :3].sum(1) - x[:, 3:].sum(1)], dim=1)
        loss = (model(x) - aim).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


@pytest.mark.parametrize("shape", [(32, 8), (8, 32), (16, 16), (3, 24, 8), (2, 2, 8, 24)])
def test_orthogonalized_brings_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    answer = orthogonalized(matrices)
    assert answer.shape == matrices.shape and answer.dtype == matrices.dtype
    values = torch.linalg.svdvals(answer)
    assert values.max() < 1.35 and values.median() > 0.6
    if shape[-1] != shape[-2]:  # of a square one, the smallest may still be on its way
        assert values.min() > 0.5


def test_orthogonalized_keeps_directions_and_treats_a_batch_one_by_one():
    matrices = torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(1))
    together = orthogonalized(matrices)
    for matrix, answer in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalized(matrix), answer, atol=1e-5, rtol=1e-4)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        turned = left.T @ answer @ right.T
        assert (turned - turned.diag().diag()).abs().max() < 1e-4 and (turned.diag() > 0).all()
    torch.testing.assert_close(orthogonalized(matrices.mT), together.mT, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(orthogonalized(100 * matrices), together, atol=1e-4, rtol=1e-3)
    assert torch.equal(orthogonalized(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("shape", [(6, 6), (3, 9), (9, 3)])
def test_a_step_moves_against_the_gradient(orthogonal, shape):
    weight = nn.Parameter(torch.zeros(shape))
    optimizer = AveragedMuon([{"params": [weight], "orthogonal": orthogonal, "ratio": 1.0}], lr=0.01)
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert (weight.detach() * weight.grad).sum() < 0
    if orthogonal:
        expected = -0.01 * 0.2 * max(shape) ** 0.5 * orthogonalized(weight.grad)
    else:
        expected = -0.01 * weight.grad.sign()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_ratio_scales_the_step(orthogonal):
    moves = []
    for ratio in (1.0, 0.25):
        weight = nn.Parameter(torch.ones(4, 6))
        optimizer = AveragedMuon([{"params": [weight], "orthogonal": orthogonal, "ratio": ratio}], lr=0.01)
        weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        moves.append(weight.detach() - 1)
    torch.testing.assert_close(moves[0], 4 * moves[1], atol=1e-6, rtol=1e-3)


def test_decay_pulls_matrices_and_leaves_vectors():
    matrix, table, vector = (nn.Parameter(torch.ones(shape)) for shape in ((4, 4), (5, 4), (4,)))
    groups = [
        {"params": [matrix], "orthogonal": True, "ratio": 1.0},
        {"params": [table, vector], "orthogonal": False, "ratio": 0.5},
    ]
    optimizer = AveragedMuon(groups, lr=0.1, weight_decay=0.2)
    for weight in (matrix, table, vector):
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for weight, expected in ((matrix, 0.98), (table, 0.99), (vector, 1.0)):
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, expected))


def test_weights_without_gradient_stay_and_empty_groups_are_dropped():
    weight, idle = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    groups = [
        {"params": [weight, idle], "orthogonal": True, "ratio": 1.0},
        {"params": [], "orthogonal": False, "ratio": 1.0},
    ]
    optimizer = AveragedMuon(groups, lr=0.1)
    weight.grad = torch.eye(3)
    optimizer.step()
    assert len(optimizer.param_groups) == 1
    assert torch.equal(idle.detach(), torch.ones(3, 3)) and not torch.equal(weight.detach(), torch.ones(3, 3))


def test_it_learns():
    model = network()
    losses = advance(model, make_optimizer(model), range(150))
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])


def test_the_average_lags_behind_and_swapping_twice_restores():
    model = network()
    optimizer = make_optimizer(model)
    advance(model, optimizer, range(20))
    before = weights_of(model)
    optimizer.swap_average()
    averaged = weights_of(model)
    assert all(not torch.equal(a, b) for a, b in zip(averaged, before, strict=True))
    optimizer.swap_average()
    assert all(torch.equal(a, b) for a, b in zip(weights_of(model), before, strict=True))
    optimizer.swap_average()
    assert all(torch.equal(a, b) for a, b in zip(weights_of(model), averaged, strict=True))


def test_the_average_is_what_its_decay_says():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = AveragedMuon([{"params": [weight], "orthogonal": False, "ratio": 1.0}], lr=0.5, average=0.3)
    expected = None
    for step in range(1, 9):
        weight.grad = torch.ones(3)
        optimizer.step()
        now, decay = weight.detach().clone(), min(0.3, (1 + step) / (10 + step))
        expected = now if expected is None else decay * expected + (1 - decay) * now
    optimizer.swap_average()
    torch.testing.assert_close(weight.detach(), expected)


def test_swapping_before_the_first_step_changes_nothing():
    model = network()
    before = weights_of(model)
    make_optimizer(model).swap_average()
    assert all(torch.equal(a, b) for a, b in zip(weights_of(model), before, strict=True))


def test_a_saved_state_goes_on_bit_by_bit(tmp_path: Path):
    model = network()
    optimizer = make_optimizer(model)
    advance(model, optimizer, range(5))
    save_state(tmp_path, step=5, settings={"seed": 0}, model=model, optimizer=optimizer)
    advance(model, optimizer, range(5, 12))

    resumed = network(seed=1)
    other = make_optimizer(resumed)
    assert load_state(tmp_path, settings={"seed": 0}, model=resumed, optimizer=other) == 5
    advance(resumed, other, range(5, 12))
    for _ in range(2):  # the weights, then their averages
        assert all(torch.equal(a, b) for a, b in zip(weights_of(model), weights_of(resumed), strict=True))
        optimizer.swap_average()
        other.swap_average()


def test_a_state_dict_goes_on_bit_by_bit():
    model = network()
    optimizer = make_optimizer(model)
    advance(model, optimizer, range(4))
    copy = network(seed=1)
    copy.load_state_dict(model.state_dict())
    other = make_optimizer(copy, lr=0.5)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    assert advance(model, optimizer, range(4, 9)) == advance(copy, other, range(4, 9))
