"""The nearest of very many unit vectors, exactly, after a look at a few directions that hold most of their length."""

import torch
from torch import Tensor


DIRECTIONS = 32
BLOCK = 64  # vectors whose bounds are looked at together
SLACK = 1e-5  # in cosines; bounds are rounded
HARD = 100  # a query with more than one in so many vectors left is compared with all


class NearestSearch:
    """
    Find what `nearest_distance` finds, without comparing all with all.

    With P the directions and r the length of what is off them, Cauchy and Schwarz give
    <q, n> <= <Pq, Pn> + r(q) r(n), one product of 33 numbers for each pair. The vector with the highest bound is
    measured, and then those alone whose bound is above what it reached: no other can be nearer.
    """

    @torch.no_grad()
    def __init__(self, bank: Tensor):
        """
        Prepare a bank.

        Args:
            bank: (vectors, width) of unit length. It is kept as it is, not copied.
        """
        self.bank = bank
        self.directions = principal_directions(bank, min(DIRECTIONS, bank.shape[1]))
        padding = -len(bank) % BLOCK  # with the last vector once more
        places = torch.arange(len(bank) + padding, device=bank.device).clamp(max=len(bank) - 1)
        self.short = self._shorten(bank)[places].T.contiguous()  # (directions + 1, vectors)

    def _shorten(self, vectors: Tensor) -> Tensor:
        """Bring vectors to (vectors, directions + 1): their parts along the directions and the length of the rest."""
        parts = vectors @ self.directions
        rest = (vectors.square().sum(1) - parts.square().sum(1)).clamp(min=0).sqrt()
        return torch.cat([parts, rest[:, None]], dim=1)

    def distance(self, queries: Tensor, rows: int) -> Tensor:
        """Return the distance (queries,) of unit vectors (queries, width) to the nearest one, `rows` at once."""
        return torch.cat([self._distance(part) for part in queries.split(rows)])

    def _distance(self, queries: Tensor) -> Tensor:
        bounds = (self._shorten(queries) @ self.short).unflatten(1, (-1, BLOCK))  # (queries, blocks, BLOCK)
        highest = bounds.amax(2)
        every, block = torch.arange(len(queries), device=queries.device), highest.argmax(1)
        first = block * BLOCK + bounds[every, block].argmax(1)
        distances = self._gaps(queries, first)
        reached = 1 - 2 * distances - SLACK
        rows, blocks = (highest > reached[:, None]).nonzero(as_tuple=True)
        pairs, places = (bounds[rows, blocks] > reached[rows, None]).nonzero(as_tuple=True)
        rows, vectors = rows[pairs], blocks[pairs] * BLOCK + places
        hard = rows.bincount(minlength=len(queries)) > len(self.bank) / HARD
        left = ~hard[rows]
        rows, vectors = rows[left], vectors[left]
        distances = distances.scatter_reduce(0, rows, self._gaps(queries[rows], vectors), "amin")
        most = hard.nonzero()[:, 0]
        return distances.index_copy(0, most, nearest_distance(queries[most], self.bank)) if len(most) else distances

    def _gaps(self, queries: Tensor, vectors: Tensor) -> Tensor:
        return (queries - self.bank[vectors.clamp(max=len(self.bank) - 1)]).square().sum(1) / 4


def principal_directions(vectors: Tensor, count: int, rounds: int = 2) -> Tensor:
    """
    Return orthonormal directions (width, count) that hold nearly the most of the length of vectors (vectors, width).

    Subspace iteration from vectors at even steps, without chance.
    """
    start = vectors[torch.linspace(0, len(vectors) - 1, count, device=vectors.device).long()]
    found = torch.linalg.qr(start.T).Q
    for _ in range(rounds):
        found = torch.linalg.qr(vectors.T @ (vectors @ found)).Q
    return found


def nearest_distance(queries: Tensor, bank: Tensor, rows: int | None = None) -> Tensor:
    """
    Return the distance (queries,) of unit vectors (queries, width) to the nearest of a bank (vectors, width), `rows` at once.

    It is (1 - cosine) / 2, taken as |query - nearest|^2 / 4, which is the same for unit vectors: 1 - cosine would leave
    little but rounding where they are almost equal.
    """
    parts = [queries] if rows is None else queries.split(rows)
    nearest = torch.cat([(part @ bank.T).argmax(1) for part in parts])
    return (queries - bank[nearest]).square().sum(1) / 4


__all__ = ["NearestSearch", "nearest_distance", "principal_directions"]
