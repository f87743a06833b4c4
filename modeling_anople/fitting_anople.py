"""What a detector knows of each product without training: its normal patches, its prototype and its line."""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .calibration_anople import ClassLine, fit_line, fit_product_lines
from .inference_anople import Views, judge_views, remember_views
from .scoring_anople import AnoPLeOutput, strangeness
from .tiling_anople import TURNS, disturbed_copies, turned_boxes, turned_copies


logger = logging.getLogger(__name__)

DEFAULT_FALSE_ALARM_RATE = 0.05


class ProductsMixin:
    """Methods of [`AnoPLeModel`] that fill the memory and set the lines."""

    @torch.no_grad()
    def remember(
        self,
        pixel_values: Tensor | Sequence[Views],
        class_id: int,
        *,
        batch_size: int = 8,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """
        Add good photographs of one product to its memory and its prototype.

        Where the memory would grow past `config.memory_limit`, the vectors that best cover all are kept.

        Args:
            pixel_values: (photographs, 3, side, side), global views of normal photographs; or their [`Views`], with
                tiles and with masks of what is ignored.
            class_id: the product.
            batch_size: photographs encoded at once.
            sizes: (height, width) of each photograph, so that explanations can say where on it a patch lies.

        Raises:
            ValueError: if there is no photograph.
        """
        self.eval()
        if len(pixel_values) == 0:
            raise ValueError(f"Class id {class_id} was given no good photographs: at least one is needed.")
        if not isinstance(pixel_values, Tensor):
            self._announce_memory(class_id, sum(len(views.boxes) for views in pixel_values))
            return remember_views(self, pixel_values, class_id)
        self._announce_memory(class_id, len(pixel_values))
        known, limit = len(self.memory.counts[class_id]), self.config.memory_limit
        total = self.class_prototypes[class_id].float() * known
        wholes = None if sizes is None else [(0, 0, width, height) for height, width in sizes]
        kind = self.config.memory_copies
        boxes = None if wholes is None else turned_boxes(wholes, self.config.grid_size, kind).transpose(0, 1)
        for start in range(0, len(pixel_values), batch_size):
            chosen = slice(start, start + batch_size)
            taps = []
            for pixels, _ in turned_copies(pixel_values[chosen], kind):
                features = self.encode_views(pixels)
                if not taps:  # the photographs as they are
                    total = total + F.normalize(features.pooled.float(), dim=-1).sum(0)
                taps.append(self.memory_taps(pixels, features))
            joined = {layer: torch.cat([part[layer] for part in taps], dim=1) for layer in self.memory.layers}
            self.memory.add(joined, class_id, None if boxes is None else boxes[chosen].flatten(1, 2))
            if limit and self.memory.sizes[class_id] > 2 * limit:  # however many photographs there are
                self.memory.reduce(class_id, limit)
        if limit:
            self.memory.reduce(class_id, limit)
        self.class_prototypes[class_id] = total / (known + len(pixel_values))
        self.note_memory()

    def note_memory(self) -> None:
        """Tell the config what the memory holds, so that it can be loaded."""
        self.config.memory_sizes = self.memory.sizes
        self.config.memory_photographs = [list(counts) for counts in self.memory.counts]
        self.config.memory_boxes = self.memory.boxed

    def _announce_memory(self, class_id: int, photographs: int) -> None:
        """Log how large the memory of a class will be, before it is."""
        copies = TURNS[self.config.memory_copies]
        vectors = self.memory.sizes[class_id] + photographs * copies * self.config.grid_size**2
        kept = min(vectors, self.config.memory_limit or vectors)
        numbers = kept * len(self.memory.layers) * self.memory.width
        logger.info(
            "Memory of %s: %d vectors in each of %d layers, %.1f MB%s.",
            self.config.class_names[class_id],
            kept,
            len(self.memory.layers),
            numbers * self.class_prototypes.element_size() / 1e6,
            f" (of {vectors}, memory_limit)" if kept < vectors else "",
        )

    @torch.no_grad()
    def calibrate(
        self,
        pixel_values: Tensor | Sequence[Views],
        class_id: int,
        *,
        max_false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    ) -> ClassLine:
        """
        Set one product's line from the photographs that were remembered, in the order in which they were.

        Each photograph is scored against the memory of the others; [`fit_line`] sets the line from one score each. A lone
        photograph can only be compared with its own slightly moved and relit copies.

        Args:
            pixel_values: (photographs, 3, side, side), exactly those given to [`remember`].
            class_id: the product.
            max_false_alarm_rate: share of good photographs that may lie above the line.

        Raises:
            ValueError: if these are not the photographs of the memory, by their number.
        """
        self.eval()
        known = len(self.memory.counts[class_id])
        if len(pixel_values) != known:
            raise ValueError(
                f"calibrate got {len(pixel_values)} photographs of class id {class_id}, whose memory holds {known}: give "
                "the same ones as to remember(...)."
            )
        return self._set_line(pixel_values, class_id, max_false_alarm_rate, first=0)

    @torch.no_grad()
    def calibrate_further(
        self,
        pixel_values: Tensor | Sequence[Views],
        class_id: int,
        *,
        max_false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    ) -> ClassLine:
        """
        Set one product's line anew after more photographs were remembered, the earlier ones no longer being at hand.

        The new ones are scored against the memory of all others. Of the earlier ones only the scores are left. They stay
        in the sample as they were measured, against a smaller memory; in a larger one distances only shrink, so the line
        comes out rather too high than too low. It is exact again after [`calibrate`] with all photographs. What was
        measured on a lone first photograph, against itself, is dropped, and so are scores of earlier versions, which
        counted copies as photographs.

        Args:
            pixel_values: (photographs, 3, side, side), the last ones given to [`remember`].
            class_id: the product.
            max_false_alarm_rate: share of good photographs that may lie above the line.
        """
        self.eval()
        first = len(self.memory.counts[class_id]) - len(pixel_values)
        return self._set_line(pixel_values, class_id, max_false_alarm_rate, first=first)

    @torch.no_grad()
    def calibrate_held_out(
        self,
        pixel_values: Tensor | Sequence[Views] | None,
        class_id: int,
        *,
        max_false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        batch_size: int = 8,
    ) -> ClassLine:
        """
        Set one product's line anew with good photographs that are not remembered; the memory stays as it is.

        They are scored as any photograph will be. Where they alone support the rate, the line rests on them alone (see
        [`fit_line`]); otherwise they join the scores that are known. Without any photograph the line is only set for
        another rate.

        Args:
            pixel_values: (photographs, 3, side, side), or their [`Views`], or `None`.
            class_id: the product, which has a line.
            max_false_alarm_rate: share of good photographs that may lie above the line.
            batch_size: photographs encoded at once.
        """
        self.eval()
        name = self.config.class_names[class_id]
        line = ClassLine(**self.config.calibration[name])
        if not line.photographs:
            line.image_scores, line.map_maxima = [], []
        images, maxima = [], []
        for output in self._judge_held_out(() if pixel_values is None else pixel_values, class_id, batch_size):
            images += output.image_scores.tolist()
            maxima += output.anomaly_maps.flatten(1).amax(1).tolist()
        return self._store_line(
            fit_line(
                line.image_scores + images,
                line.map_maxima + maxima,
                max_false_alarm_rate=max_false_alarm_rate,
                memory_scale=line.memory_scale,
                image_copies=line.image_copies,
                map_copies=line.map_copies,
                held_out=line.held_out + len(images),
            ),
            class_id,
            line.strangeness,
        )

    def _judge_held_out(
        self, pixel_values: Tensor | Sequence[Views], class_id: int, batch_size: int
    ) -> Iterator[AnoPLeOutput]:
        if not isinstance(pixel_values, Tensor):
            yield from (judge_views(self, views, class_id, exclude=slice(0, 0)) for views in pixel_values)
            return
        for part in pixel_values.split(batch_size):
            ids = torch.full((len(part),), class_id, device=part.device)
            yield self(part, class_ids=ids, exclude=(class_id, slice(0, 0)))

    def _set_line(
        self, pixel_values: Tensor | Sequence[Views], class_id: int, rate: float, *, first: int
    ) -> ClassLine:
        """Score the photographs from number `first` on, join earlier scores and fit the line."""
        name = self.config.class_names[class_id]
        earlier = ClassLine(**self.config.calibration[name]) if first and self.calibration.knows(name) else None
        judged = self._judge_normals(pixel_values, class_id, first)
        scale = max(float(output.memory_maps.max()) for output in judged)
        if earlier and first > 1:
            scale = max(scale, earlier.memory_scale)
        if self.config.fusion_scale == "normal":
            self.calibration.set(name, ClassLine.unset(memory_scale=scale))
            judged = self._judge_normals(pixel_values, class_id, first)
        images = [output.image_scores.tolist() for output in judged]
        maxima = [output.anomaly_maps.flatten(1).amax(1).tolist() for output in judged]
        strange = self._strangeness_of_normals(judged, class_id)
        if earlier and first > 1:
            strange = [old + new for old, new in zip(earlier.strangeness or [[], []], strange, strict=True)]
        measured, kept = _scores_of(images, maxima, alone=len(self.memory.counts[class_id]) == 1), 0
        if earlier and earlier.photographs:
            kept = earlier.held_out
            measured["image_scores"] = _joined(earlier.image_scores, measured["image_scores"], kept)
            measured["map_maxima"] = _joined(earlier.map_maxima, measured["map_maxima"], kept)
        line = fit_line(**measured, max_false_alarm_rate=rate, memory_scale=scale, held_out=kept)
        return self._store_line(line, class_id, strange)

    def _store_line(self, line: ClassLine, class_id: int, strange: list[list[float]]) -> ClassLine:
        """Add the lines of unknown products to a class' line, and keep it."""
        line.strangeness = [sorted(values) for values in strange]
        line.product_lines = fit_product_lines(strange, rate=self.config.unknown_product_rate)
        self.calibration.set(self.config.class_names[class_id], line)
        return line

    def _judge_normals(self, pixel_values: Tensor | Sequence[Views], class_id: int, first: int) -> list:
        """Score each photograph, and disturbed copies of it, against the memory without that photograph."""
        alone = len(self.memory.counts[class_id]) == 1
        judged = []
        for number, photograph in enumerate(pixel_values, start=first):
            if isinstance(photograph, Views):
                judged.append(self._judge_views(photograph, class_id, number, alone))
                continue
            copies = disturbed_copies(photograph)
            batch = copies if alone else torch.cat([photograph[None], copies])
            own = slice(0, 0) if alone else self.memory.vectors_of(class_id, number)
            class_ids = torch.full((len(batch),), class_id, device=batch.device)
            judged.append(self(batch, class_ids=class_ids, exclude=(class_id, own)))
        return judged

    def _judge_views(self, views: Views, class_id: int, number: int, alone: bool) -> AnoPLeOutput:
        """Do so for a photograph in tiles; every tile is disturbed alike."""

        def copies(tile: Tensor) -> Tensor:
            return disturbed_copies(tile) if alone else torch.cat([tile[None], disturbed_copies(tile)])

        own = slice(0, 0) if alone else self.memory.vectors_of(class_id, number)
        return judge_views(self, views, class_id, exclude=own, copies=copies)

    def _strangeness_of_normals(self, judged: list, class_id: int) -> list[list[float]]:
        """Measure each photograph, and its copies, against the memory and the prototype without that photograph."""
        known, prototype = len(self.memory.counts[class_id]), self.class_prototypes[class_id].float()
        rows = []
        for output in judged:
            own = 0 if known == 1 else output.image_embeds[0].float() / known
            rows.append(strangeness(output.memory_maps, output.image_embeds, (prototype - own)[None]))
        return torch.cat(rows).T.tolist()


def _scores_of(images: list[list[float]], maxima: list[list[float]], *, alone: bool) -> dict[str, list[float]]:
    """Tell independent scores, the first of each photograph, from those of a lone photograph's copies."""
    if alone:
        return {"image_scores": [], "map_maxima": [], "image_copies": images[0], "map_copies": maxima[0]}
    return {"image_scores": [each[0] for each in images], "map_maxima": [each[0] for each in maxima]}


def _joined(earlier: list[float], new: list[float], held_out: int) -> list[float]:
    """Put scores of remembered photographs between earlier ones and those of photographs held out."""
    place = len(earlier) - held_out
    return earlier[:place] + new + earlier[place:]


__all__ = ["DEFAULT_FALSE_ALARM_RATE", "ProductsMixin"]
