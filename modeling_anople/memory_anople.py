"""The memory: banks of normal patch features, the nearest neighbour in them, and the coreset that thins them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .configuration_anople import AnoPLeConfig


# --- Which of many vectors to keep, so that every other one has a kept one near it ---


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


# --- The normal memory: patch features of the good photographs of each class, and the distance of a new one to them ---


MANY = 4096  # vectors of a class from which on they are searched by bounds


class NormalMemory(nn.Module):
    """
    Remember unit-length patch features of normal photographs, one bank per class (paper.md 1.9).

    Banks are separate buffers, so that a class never touches another's and looking one class up costs the same however
    many there are. `counts` says, for each class, how many vectors are of each photograph, in the order of the bank;
    it stands in `config.memory_photographs`. A photograph adds `patches` vectors to each layer. `boxes` says which part
    of its photograph each vector saw; classes of checkpoints that were saved before it was kept have none.
    """

    def __init__(self, config: AnoPLeConfig):
        super().__init__()
        self.layers = tuple(config.memory_layers)
        self.width = config.clip_config.vision_config.hidden_size
        self.chunk_size = config.memory_chunk_size
        self.counts: list[list[int]] = []
        # class id -> the bank, which is held so that no other takes its place unseen; its state; a search for each layer
        self._searches: dict[int, tuple[Tensor, tuple, list[NearestSearch]]] = {}
        for counts, boxed in zip(config.memory_photographs, config.memory_boxes, strict=True):
            boxes = torch.zeros(sum(counts), 4, dtype=torch.int32) if boxed else None
            self.append_class(torch.zeros(len(self.layers), sum(counts), self.width), counts, boxes)

    def append_class(self, bank: Tensor, counts: Sequence[int] = (), boxes: Tensor | None = None) -> None:
        """
        Add a class with its features (layers, vectors, width) and how many of them each photograph has.

        Args:
            boxes: (vectors, 4) int32, left, top, right and bottom of each in pixels of its photograph; zeros: unknown.
        """
        self.register_buffer(f"bank_{len(self.counts)}", bank)
        self.register_buffer(f"boxes_{len(self.counts)}", boxes)
        self.counts.append(list(counts))

    def boxes(self, class_id: int) -> Tensor | None:
        """Return the boxes (vectors, 4) of one class, `None` where they were never kept."""
        return getattr(self, f"boxes_{class_id}")

    @property
    def boxed(self) -> list[bool]:
        """Whether boxes are kept, for each class."""
        return [self.boxes(class_id) is not None for class_id in range(len(self.counts))]

    def bank(self, class_id: int) -> Tensor:
        """Return the features (layers, vectors, width) of one class."""
        return getattr(self, f"bank_{class_id}")

    @property
    def contents(self) -> list[tuple[Tensor, list[int], Tensor | None]]:
        """The bank, the counts and the boxes of each class, to be put back with [`restore`]."""
        return [(self.bank(number), list(counts), self.boxes(number)) for number, counts in enumerate(self.counts)]

    def restore(self, contents: list[tuple[Tensor, list[int], Tensor | None]]) -> None:
        """Hold these classes and no other; banks are taken as they are."""
        for class_id in range(len(self.counts)):
            delattr(self, f"bank_{class_id}")
            delattr(self, f"boxes_{class_id}")
        self.counts, self._searches = [], {}
        for entry in contents:
            self.append_class(*entry)

    @property
    def sizes(self) -> list[int]:
        """Vectors per layer, for each class."""
        return [sum(counts) for counts in self.counts]

    @property
    def is_empty(self) -> bool:
        """Whether nothing of any class is remembered."""
        return not any(self.counts)

    def vectors_of(self, class_id: int, photograph: int) -> slice:
        """Say which vectors of a class' bank are of its photograph number `photograph`."""
        counts = self.counts[class_id]
        start = sum(counts[:photograph])
        return slice(start, start + counts[photograph])

    @torch.no_grad()
    def add(self, taps: dict[int, Tensor], class_id: int, boxes: Tensor | None = None) -> None:
        """
        Append the patch features of normal photographs, {layer: (photographs, patches, width)}, to one class.

        Args:
            boxes: (photographs, patches, 4) what each patch saw, in pixels of its photograph; by default unknown.
        """
        known, features = self.bank(class_id), self._stack(taps)  # (layers, photographs, patches, width)
        setattr(self, f"bank_{class_id}", torch.cat([known, features.flatten(1, 2).to(known)], dim=1))
        if boxes is not None or self.boxes(class_id) is not None:
            kept = torch.zeros(known.shape[1], 4) if self.boxes(class_id) is None else self.boxes(class_id)
            new = torch.zeros(*features.shape[1:3], 4) if boxes is None else boxes
            joined = torch.cat([part.reshape(-1, 4).to(known.device, torch.int32) for part in (kept, new)])
            setattr(self, f"boxes_{class_id}", joined)
        self.counts[class_id] += [features.shape[2]] * features.shape[1]

    @torch.no_grad()
    def reduce(self, class_id: int, limit: int) -> None:
        """
        Keep the `limit` vectors of a class that best cover all of them, in their order (coreset of PatchCore, section
        3.2; distances are those of the memory, over all layers together).
        """
        bank, counts = self.bank(class_id), self.counts[class_id]
        if bank.shape[1] <= limit:
            return
        kept = k_center(bank.transpose(0, 1).flatten(1).float(), limit)
        owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[kept.cpu()]
        setattr(self, f"bank_{class_id}", bank[:, kept].clone())
        if self.boxes(class_id) is not None:
            setattr(self, f"boxes_{class_id}", self.boxes(class_id)[kept].clone())
        self.counts[class_id] = owners.bincount(minlength=len(counts)).tolist()

    @torch.no_grad()
    def clear(self, class_id: int) -> None:
        """Forget all features of one class."""
        known = self.bank(class_id)
        setattr(self, f"bank_{class_id}", known[:, :0].clone())
        if self.boxes(class_id) is not None:
            setattr(self, f"boxes_{class_id}", self.boxes(class_id)[:0].clone())
        self.counts[class_id] = []

    def forward(
        self, taps: dict[int, Tensor], class_ids: Tensor | None, exclude: tuple[int, slice] | None = None
    ) -> Tensor:
        """
        Measure how far each patch is from the nearest remembered one.

        Args:
            taps: layer -> (batch, patches, width).
            class_ids: (batch,) whose bank each image is compared with; `None` compares with all filled banks together.
            exclude: a class id and the vectors of its bank to leave out (a photograph's own, for leave-one-out).

        Returns:
            (batch, patches) mean over layers of (1 - cosine) / 2, within 0 and 1.

        Raises:
            ValueError: if a needed bank is empty, or empty without what is left out.
        """
        features = self._stack(taps)
        if class_ids is None:
            filled = [class_id for class_id, size in enumerate(self.sizes) if size] or [0]
            return self._distance(features, [part for class_id in filled for part in self._parts(class_id, exclude)])
        shown = class_ids.unique().tolist()
        if len(shown) == 1:
            return self._distance(features, self._parts(shown[0], exclude))
        distances = features.new_empty(features.shape[1:3])
        for class_id in shown:
            rows = (class_ids == class_id).nonzero()[:, 0]
            distances[rows] = self._distance(features[:, rows], self._parts(class_id, exclude))
        return distances

    @torch.no_grad()
    def nearest(self, taps: dict[int, Tensor], class_id: int | None) -> tuple[int, int]:
        """
        Find the remembered patch that is nearest to one patch over all layers together.

        Args:
            taps: layer -> (width,) of the patch.
            class_id: whose memory is searched; `None` searches all.

        Returns:
            The class id and the number of the vector in its bank.
        """
        query = self._stack(taps).float()[:, None]  # (layers, 1, width)
        found = []
        for number in range(len(self.counts)) if class_id is None else [class_id]:
            if self.sizes[number]:
                gaps = [
                    (bank.float() - one).square().sum(1) for bank, one in zip(self.bank(number), query, strict=True)
                ]
                total = torch.stack(gaps).sum(0)
                found.append((float(total.min()), number, int(total.argmin())))
        return min(found)[1:]

    def photograph_of(self, class_id: int, vector: int) -> int:
        """Say of which photograph of a class, counted from 0, a vector of its bank is."""
        counts = torch.tensor(self.counts[class_id])
        return int((counts.cumsum(0) > vector).int().argmax())

    def box_of(self, class_id: int, vector: int) -> tuple[int, int, int, int] | None:
        """Say what a vector saw: left, top, right, bottom in pixels of its photograph; `None` where it is not known."""
        boxes = self.boxes(class_id)
        box = None if boxes is None else tuple(boxes[vector].tolist())
        return box if box and box[2] > box[0] else None

    def _stack(self, taps: dict[int, Tensor]) -> Tensor:
        """Bring taps to unit length as (layers, batch, patches, width)."""
        return nn.functional.normalize(torch.stack([taps[layer] for layer in self.layers]), dim=-1)

    def _parts(
        self, class_id: int, exclude: tuple[int, slice] | None
    ) -> list[tuple[Tensor, list[NearestSearch] | None]]:
        """Return the bank of one class and its searches, or two pieces of it around what is left out, to be compared whole."""
        bank = self.bank(class_id)
        if bank.shape[1] == 0:
            raise ValueError(
                f"The memory of class id {class_id} is empty: fit the model, or fill it with model.remember(...)."
            )
        if exclude is None or exclude[0] != class_id or exclude[1].start == exclude[1].stop:
            return [(bank, self._searches_of(class_id))]
        pieces = (bank[:, : exclude[1].start], bank[:, exclude[1].stop :])
        return [(piece, None) for piece in pieces if piece.shape[1]]

    def _searches_of(self, class_id: int) -> list[NearestSearch] | None:
        """Return a search for each layer of a large bank on the CPU, prepared when it is first looked up or has changed."""
        bank = self.bank(class_id)
        if bank.shape[1] < MANY or bank.dtype != torch.float32 or bank.device.type != "cpu":
            return None
        state = (bank.data_ptr(), None if bank.is_inference() else bank._version)
        searched, known, searches = self._searches.get(class_id, (None, None, []))
        if searched is not bank or known != state:
            with torch.inference_mode(False), torch.no_grad():
                searches = [NearestSearch(vectors) for vectors in bank]
            self._searches[class_id] = bank, state, searches
        return searches

    def _distance(self, features: Tensor, banks: list[tuple[Tensor, list[NearestSearch] | None]]) -> Tensor:
        """Search all banks in chunks of queries, so that at most `chunk_size` similarities exist at once."""
        if not banks:
            raise ValueError("exclude leaves nothing of the memory to compare with: remember more photographs.")
        queries = features.flatten(1, 2)  # (layers, batch x patches, width)
        rows = max(1, self.chunk_size // max(bank.shape[1] for bank, _ in banks))
        total = 0.0
        for layer in range(len(self.layers)):
            found = [
                nearest_distance(queries[layer], bank[layer].to(queries.dtype), rows)
                if searches is None or queries.dtype != bank.dtype
                else searches[layer].distance(queries[layer], rows)
                for bank, searches in banks
            ]
            total = total + torch.stack(found).amin(0)
        return (total / len(self.layers)).clamp(0, 1).unflatten(0, features.shape[1:3])


__all__ = [
    "NearestSearch",
    "NormalMemory",
    "k_center",
    "nearest_distance",
    "principal_directions",
]
