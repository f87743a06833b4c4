"""Muon for matrices, AdamW for the rest, and a running average of all weights, as one optimizer."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


# Quintic Newton-Schulz coefficients of Jordan et al., "Muon", 2024: they push singular values to about 1
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Replace the singular values of (..., rows, columns) by about 1, in the dtype given; fp32 on CPU is fast."""
    a, b, c = COEFFICIENTS
    flat = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if flat else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if flat else x


class AveragedMuon(Optimizer):
    """
    Step matrices of blocks along the orthogonalized momentum, all else by AdamW, and average what comes out.

    Args:
        groups: dicts of `params`, `orthogonal` (2-D weights inside transformer blocks, for Muon) and `ratio`, the
            group's share of the learning rate.
        lr: of Muon; an orthogonalized step is scaled by 0.2 sqrt(longer side) to the size of AdamW's
            (Liu et al., "Muon is Scalable for LLM Training", 2025).
        average: decay of the running average, reached by way of (1 + steps) / (10 + steps).
    """

    def __init__(self, groups: list[dict], *, lr: float, weight_decay=0.02, momentum=0.95, betas=(0.9, 0.98),
                 average=0.999):  # fmt: skip
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "average": average}
        super().__init__([group for group in groups if group["params"]], settings)

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step and move the average."""
        for group in self.param_groups:
            group = {**group, "lr": group["lr"] * group["ratio"]}
            learned = [weight for weight in group["params"] if weight.grad is not None]
            if group["orthogonal"]:
                self._step_orthogonal(group, learned)
            else:
                self._step_adam(group, learned)
            for weight in group["params"]:
                self._average(group, weight)

    def _step_orthogonal(self, group: dict, weights: list[nn.Parameter]) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for weight in weights:
            state = self.state[weight]
            momentum = state.setdefault("momentum", torch.zeros_like(weight))
            momentum.lerp_(weight.grad, 1 - group["momentum"])
            shapes.setdefault(weight.shape, []).append(weight)
        # matrices of one shape are orthogonalized as one batch
        for shape, alike in shapes.items():
            pushed = [
                weight.grad.lerp(self.state[weight]["momentum"], group["momentum"]) for weight in alike
            ]  # Nesterov
            moves = orthogonalized(torch.stack(pushed))
            size = 0.2 * max(shape) ** 0.5 * group["lr"]
            for weight, move in zip(alike, moves.unbind(), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(move, alpha=-size)

    def _step_adam(self, group: dict, weights: list[nn.Parameter]) -> None:
        first, second = group["betas"]
        for weight in weights:
            state = self.state[weight]
            if "steps" not in state:
                state["steps"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
            state["steps"] += 1
            state["mean"].lerp_(weight.grad, 1 - first)
            state["square"].lerp_(weight.grad**2, 1 - second)
            steps = float(state["steps"])
            scale = (state["square"] / (1 - second**steps)).sqrt_().add_(1e-8)
            if weight.ndim > 1:
                weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - first**steps))

    def _average(self, group: dict, weight: nn.Parameter) -> None:
        state = self.state[weight]
        if "average" not in state:
            state["average"], state["averaged"] = weight.clone(), torch.zeros(())
        state["averaged"] += 1
        steps = float(state["averaged"])
        state["average"].lerp_(weight, 1 - min(group["average"], (1 + steps) / (10 + steps)))

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchange weights and their averages; call it again to go back."""
        for group in self.param_groups:
            for weight in group["params"]:
                if "average" in self.state[weight]:
                    kept = weight.clone()
                    weight.copy_(self.state[weight]["average"])
                    self.state[weight]["average"].copy_(kept)
