"""Which of many vectors to keep, so that every other one has a kept one near it."""

import torch
from torch import Tensor


SEARCH_WIDTH = 128


@torch.no_grad()
def k_center(vectors: Tensor, limit: int) -> Tensor:
    """
    Choose vectors greedily: the first, then again and again the one farthest from all chosen so far.

    The greedy answer to the k-center problem, its largest gap at most twice the smallest possible, as PatchCore thins
    its memory (Roth et al. 2022, section 3.2 and algorithm 1). Like there, wide vectors are searched through a random
    projection to 128 numbers, which nearly keeps distances (Johnson and Lindenstrauss); its draw is fixed, so the same
    vectors in the same order always give the same choice.

    Args:
        vectors: (vectors, width), float32.
        limit: how many to choose.

    Returns:
        Their places (limit,), ascending; all places where there are no more than `limit`.

    Raises:
        ValueError: if `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"k_center must choose at least one vector, got limit {limit}.")
    if len(vectors) <= limit:
        return torch.arange(len(vectors), device=vectors.device)
    width = vectors.shape[1]
    if width > SEARCH_WIDTH:
        draw = torch.randn(width, SEARCH_WIDTH, generator=torch.Generator().manual_seed(0))
        vectors = vectors @ (draw / SEARCH_WIDTH**0.5).to(vectors)
    squares, chosen = vectors.square().sum(1), [0]
    gaps = torch.full_like(squares, torch.inf)
    for _ in range(limit - 1):
        centre = vectors[chosen[-1]]
        gaps = torch.minimum(gaps, squares - 2 * (vectors @ centre) + squares[chosen[-1]])
        gaps[chosen[-1]] = -torch.inf  # not twice, also where all that is left are copies
        chosen.append(int(gaps.argmax()))
    return torch.tensor(sorted(chosen), device=vectors.device)


__all__ = ["k_center"]
