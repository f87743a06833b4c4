"""The memory: banks of normal patch features, the nearest neighbor in them, and the coreset that thins them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


# --- Which of many vectors to keep, so that every other one has a kept one near it ---


SEARCH_WIDTH = 128
CANDIDATES = 64  # that are looked at together


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
    gaps, new = torch.full_like(squares, torch.inf), [0]
    while True:
        # all gaps after the new centers, in one product of matrices
        nearest = (squares[new] - 2 * (vectors @ vectors[new].T)).amin(1) + squares
        gaps = torch.minimum(gaps, nearest)
        gaps[new] = -torch.inf  # not twice, also where all that is left are copies
        if len(chosen) == limit:
            break
        new = _farthest(vectors, gaps, limit - len(chosen))
        chosen += new
    return torch.tensor(sorted(chosen), device=vectors.device)


def _farthest(vectors: Tensor, gaps: Tensor, most: int) -> list[int]:
    """
    Return the next centers of the greedy choice, in its order: as many as follow from the largest gaps alone (but for which
    of equally far ones comes first).

    No other vector has a larger gap than the smallest of these. Gaps only shrink, so the greedy choice takes none of the
    others before all of these have fallen below that.
    """
    largest = gaps.topk(min(CANDIDATES, len(gaps)))
    places, own, bound = largest.indices.tolist(), largest.values, largest.values[-1]
    between = torch.cdist(vectors[places], vectors[places], compute_mode="donot_use_mm_for_euclid_dist").square()
    own, between, found = own.cpu().numpy().copy(), between.cpu().numpy(), []
    while len(found) < most:
        at = int(own.argmax())
        if found and (own[at] < bound or own[at] == -np.inf):
            break
        found.append(places[at])
        own = np.minimum(own, between[at])
        own[at] = -np.inf
    return found


# --- The nearest of very many unit vectors, exactly, after a look at a few directions that hold most of their length ---


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


# --- Banks of normal patch features, and the distance of new ones to them ---

MANY = 4096  # vectors of a product from which on they are searched by bounds


class MemoryBank(nn.Module):
    """
    Remember unit-length patch features of one product's normal images (paper.md 1.9).

    `vectors` is (layers, vectors, width). `image_vectors` says how many of them are of each image, in the order of the
    bank. `boxes` (vectors, 4) says which part of its image each vector saw, int32 left, top, right and bottom in pixels,
    zeros where that is not known; `None` where it was never kept.
    """

    def __init__(self, layers: int, width: int, image_vectors: Sequence[int] = (), *, has_boxes: bool = False):
        super().__init__()
        self.image_vectors = list(image_vectors)
        self.register_buffer("vectors", torch.zeros(layers, self.size, width))
        self.register_buffer("boxes", torch.zeros(self.size, 4, dtype=torch.int32) if has_boxes else None)
        # the bank they were made of, which is held so that no other takes its place unseen; its state; one a layer
        self._searches: tuple[Tensor | None, tuple, list[NearestSearch]] = (None, (), [])

    @property
    def size(self) -> int:
        """Vectors per layer."""
        return sum(self.image_vectors)

    def vectors_of(self, image: int) -> slice:
        """Say which vectors are of image number `image`."""
        start = sum(self.image_vectors[:image])
        return slice(start, start + self.image_vectors[image])

    def image_of(self, vector: int) -> int:
        """Say of which image, counted from 0, a vector is."""
        return int((torch.tensor(self.image_vectors).cumsum(0) > vector).int().argmax())

    def box_of(self, vector: int) -> tuple[int, int, int, int] | None:
        """Say what a vector saw: left, top, right, bottom in pixels of its image; `None` where it is not known."""
        box = None if self.boxes is None else tuple(self.boxes[vector].tolist())
        return box if box and box[2] > box[0] else None

    @torch.no_grad()
    def add(self, vectors: Tensor, image_vectors: Sequence[int], boxes: Tensor | None = None) -> None:
        """
        Append the features of normal images.

        Args:
            vectors: (layers, vectors, width) of unit length, image after image.
            image_vectors: how many of them are of each image.
            boxes: (vectors, 4) what each saw, in pixels of its image; by default unknown.
        """
        if boxes is not None or self.boxes is not None:
            known = torch.zeros(self.size, 4) if self.boxes is None else self.boxes
            new = torch.zeros(vectors.shape[1], 4) if boxes is None else boxes
            self.boxes = torch.cat([part.to(self.vectors.device, torch.int32) for part in (known, new)])
        self.vectors = torch.cat([self.vectors, vectors.to(self.vectors)], dim=1)
        self.image_vectors += image_vectors

    @torch.no_grad()
    def reduce(self, limit: int) -> None:
        """
        Keep the `limit` vectors that best cover all of them, in their order (coreset of PatchCore, section 3.2; distances
        are those of the memory, over all layers together).
        """
        if self.size <= limit:
            return
        kept = k_center(self.vectors.transpose(0, 1).flatten(1).float(), limit)
        owners = torch.arange(len(self.image_vectors)).repeat_interleave(torch.tensor(self.image_vectors))[kept.cpu()]
        self.vectors = self.vectors[:, kept].clone()
        if self.boxes is not None:
            self.boxes = self.boxes[kept].clone()
        self.image_vectors = owners.bincount(minlength=len(self.image_vectors)).tolist()

    def parts(self, left_out: slice | None = None) -> list[tuple[Tensor, list[NearestSearch] | None]]:
        """Return the vectors and a search for each layer, or the two pieces around what is left out, to be compared whole."""
        if left_out is None or left_out.start == left_out.stop:
            return [(self.vectors, self._prepared_searches())]
        pieces = (self.vectors[:, : left_out.start], self.vectors[:, left_out.stop :])
        return [(piece, None) for piece in pieces if piece.shape[1]]

    def _prepared_searches(self) -> list[NearestSearch] | None:
        """Return a search for each layer of a large bank on the CPU, prepared when it is first looked up or has changed."""
        bank = self.vectors
        if bank.shape[1] < MANY or bank.dtype != torch.float32 or bank.device.type != "cpu":
            return None
        state = (bank.data_ptr(), None if bank.is_inference() else bank._version)
        searched, known, searches = self._searches
        if searched is not bank or known != state:
            with torch.inference_mode(False), torch.no_grad():
                searches = [NearestSearch(vectors) for vectors in bank]
            self._searches = bank, state, searches
        return searches


def memory_distances(
    features: Tensor,
    banks: Sequence[MemoryBank],
    class_ids: Tensor | None,
    *,
    chunk_size: int,
    exclude: tuple[int, slice] | None = None,
) -> Tensor:
    """
    Measure how far each patch is from the nearest remembered one.

    Args:
        features: (layers, batch, patches, width) of unit length.
        banks: one for each product.
        class_ids: (batch,) whose bank each image is compared with; `None` compares with all filled banks together.
        chunk_size: most similarities that exist at once.
        exclude: a class id and the vectors of its bank to leave out (an image's own, for leave-one-out).

    Returns:
        (batch, patches) mean over layers of (1 - cosine) / 2, within 0 and 1.

    Raises:
        ValueError: if a needed bank is empty, or empty without what is left out.
    """

    def parts_of(class_id: int) -> list[tuple[Tensor, list[NearestSearch] | None]]:
        if banks[class_id].size == 0:
            raise ValueError(f"The memory of class id {class_id} is empty: fit the detector, or enroll the product.")
        return banks[class_id].parts(exclude[1] if exclude and exclude[0] == class_id else None)

    if class_ids is None:
        filled = [class_id for class_id, bank in enumerate(banks) if bank.size] or [0]
        parts = [part for class_id in filled for part in parts_of(class_id)]
        return _nearest_distances(features, parts, chunk_size)
    shown = class_ids.unique().tolist()
    if len(shown) == 1:
        return _nearest_distances(features, parts_of(shown[0]), chunk_size)
    distances = features.new_empty(features.shape[1:3])
    for class_id in shown:
        rows = (class_ids == class_id).nonzero()[:, 0]
        distances[rows] = _nearest_distances(features[:, rows], parts_of(class_id), chunk_size)
    return distances


def _nearest_distances(
    features: Tensor, parts: Sequence[tuple[Tensor, list[NearestSearch] | None]], chunk_size: int
) -> Tensor:
    """Search all parts of banks in chunks of queries, so that at most `chunk_size` similarities exist at once."""
    if not parts:
        raise ValueError("exclude leaves nothing of the memory to compare with: remember more images.")
    queries = features.flatten(1, 2)  # (layers, batch x patches, width)
    rows = max(1, chunk_size // max(bank.shape[1] for bank, _ in parts))
    total = 0.0
    for layer in range(len(features)):
        nearest = [
            nearest_distance(queries[layer], bank[layer].to(queries), rows)
            if searches is None or queries.dtype != bank.dtype
            else searches[layer].distance(queries[layer], rows)
            for bank, searches in parts
        ]
        total = total + torch.stack(nearest).amin(0)
    return (total / len(features)).clamp(0, 1).unflatten(0, features.shape[1:3])


@torch.no_grad()
def nearest_vector(feature: Tensor, banks: Sequence[MemoryBank], class_id: int | None) -> tuple[int, int]:
    """
    Find the remembered patch that is nearest to one patch over all layers together.

    Args:
        feature: (layers, width) of the patch, unit length.
        banks: one for each product.
        class_id: whose memory is searched; `None` searches all.

    Returns:
        The class id and the number of the vector in its bank.
    """
    candidates = []
    for number in range(len(banks)) if class_id is None else [class_id]:
        if banks[number].size:
            gaps = (banks[number].vectors.float() - feature.float()[:, None]).square().sum((0, 2))
            candidates.append((float(gaps.min()), number, int(gaps.argmin())))
    return min(candidates)[1:]


__all__ = [
    "MemoryBank",
    "NearestSearch",
    "k_center",
    "memory_distances",
    "nearest_distance",
    "nearest_vector",
    "principal_directions",
]
