"""Why a photograph got its score: where it is oddest, which normal patch comes nearest, and which line decided."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .images_anople import ImageError, ignored_patches, load_ignore_mask, load_photograph
from .inference_anople import SAME, TILES_AT_ONCE, Views, judge_batch, judge_views, lay_out, needs_views, read_batches
from .processing_anople import UNKNOWN_PRODUCT, AnoPLeProcessor
from .product_store_anople import kept_masks
from .scoring_anople import strangeness
from .tiling_anople import Tiling


Box = tuple[int, int, int, int]
PRODUCT_LINES = ("patches", "whole")  # the two numbers of `strangeness`


@dataclass
class Explanation:
    """
    What stands behind one answer; it changes none.

    Args:
        class_name: the product whose line and memory were used; `None` where classes are pooled.
        box: left, top, right, bottom of the worst region, in pixels of the photograph.
        score: that of the photograph, calibrated; the raw one where there is no line.
        line: the score above which a photograph is anomalous; `None` where the class has no line.
        past: score minus line; negative for a normal photograph.
        decided_by: `class_name`, and as `line` what decided: "image" (the line of the class), "pooled" (that of all
            classes together), "product patches" or "product whole" (the photograph shows no known product: its patches,
            or it as a whole, are too far from the nearest one), or `None`.
        nearest_photograph: name of the good photograph with the nearest patch, as the detector's log has it.
        nearest_index: its place among the product's good photographs, from 0; `None` without a memory.
        nearest_box: the nearest patch in that photograph's pixels; `None` where it was not kept.
        nearest_class: the product that photograph is of.
        nearest_distance: how far the patch of the worst region is from it, within 0 and 1.
    """

    class_name: str | None
    box: Box
    score: float
    line: float | None
    past: float | None
    decided_by: dict[str, str | None]
    nearest_photograph: str | None = None
    nearest_index: int | None = None
    nearest_box: Box | None = None
    nearest_class: str | None = None
    nearest_distance: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        return asdict(self)


@torch.no_grad()
def explain(
    model: Any,
    processor: AnoPLeProcessor,
    image: Any,
    class_name: str | None = None,
    *,
    tiling: Tiling = SAME,
    ignore_mask: Any = None,
) -> Explanation:
    """
    Judge one photograph and say what stands behind the answer.

    Args:
        model: a detector.
        processor: its processor.
        image: anything that [`load_photograph`] opens.
        class_name: the product; without it, predicted.
        tiling: how it is cut; by default as the product was learnt.
        ignore_mask: places that do not count; by default what the product keeps.

    Raises:
        ImageError: if the photograph cannot be read.
        ValueError: for an unknown class.
    """
    model.eval()
    photograph = load_photograph(image, white_value=processor.white_value)
    if needs_views(model.config, tiling):
        mask = None if ignore_mask is None else load_ignore_mask(ignore_mask, photograph.size[::-1])
        views = lay_out(model, processor, photograph, mask, class_name, tiling)
        class_id = None if class_name is None else processor.class_id(class_name)
        return explain_views(model, processor, views, judge_views(model, views, class_id))
    reading = {"class_names": class_name, "ignore_mask": ignore_mask, "masks": kept_masks(model)}
    batch = next(read_batches(processor, [photograph], **reading))
    output = judge_batch(model, processor, batch)
    if output is None:
        raise ImageError(batch.errors[0])
    pixels = batch.inputs["pixel_values"].to(model.device, model.dtype)
    return explain_outputs(model, processor, pixels, output, batch.readable_sizes)[0]


@torch.no_grad()
def explain_outputs(
    model: Any,
    processor: AnoPLeProcessor,
    pixel_values: Tensor | list[Views],
    outputs: Any,
    sizes: list[tuple[int, int]],
    threshold: float | None = None,
) -> list[Explanation]:
    """
    Say what stands behind answers that a model has given.

    Args:
        pixel_values: (batch, 3, side, side) that were judged.
        outputs: the [`AnoPLeOutput`] of them.
        sizes: (height, width) of each photograph.
        threshold: as it was given to `post_process_anomaly_detection`; by default that of the config.
    """
    threshold = model.config.threshold if threshold is None else threshold
    results = processor.post_process_anomaly_detection(outputs, threshold=threshold)
    explanations = []
    for number, (result, (height, width)) in enumerate(zip(results, sizes, strict=True)):
        class_id = None if outputs.class_ids is None else int(outputs.class_ids[number])
        line = None if result["label"] is None else threshold
        region = worst_region(result["anomaly_map"], 0.5 if line is None else line)
        explanation = Explanation(
            class_name=None if class_id is None else model.config.class_names[class_id],
            box=box_of(region, (height, width)),
            score=result["score"],
            line=line,
            past=None if line is None else result["score"] - line,
            decided_by=_decision(model, outputs, number, result["label"]),
        )
        if not model.memory.is_empty:
            chosen = pixel_values[number]
            find = _odd_patch_in_tiles if isinstance(chosen, Views) else _odd_patch
            patch, distance = find(model, chosen, class_id, torch.from_numpy(region))
            _name_nearest(explanation, model, patch, class_id, distance)
        explanations.append(explanation)
    return explanations


@torch.no_grad()
def explain_views(
    model: Any, processor: AnoPLeProcessor, views: Views, output: Any, threshold: float | None = None
) -> Explanation:
    """Say what stands behind the answer of [`judge_views`]; arguments are those of [`explain_outputs`]."""
    return explain_outputs(model, processor, [views], output, [views.size], threshold)[0]


def worst_region(anomaly_map: np.ndarray, line: float) -> np.ndarray:
    """
    Mark the region around the highest place of a map (height, width): what hangs together with it above the line.

    Where nothing is above the line, what hangs together above half of the highest value.
    """
    values = torch.from_numpy(np.ascontiguousarray(anomaly_map)).float()
    peak = values.max()
    allowed = values > (line if peak > line else peak / 2)
    region = torch.zeros_like(allowed)
    region.view(-1)[int(values.argmax())] = True
    size = 1
    while True:  # it grows by one place in all directions, as far as it may
        region = (F.max_pool2d(region[None].float(), 3, stride=1, padding=1)[0] > 0) & allowed | region
        if int(region.sum()) == size:
            return region.numpy()
        size = int(region.sum())


def box_of(region: np.ndarray, size: tuple[int, int]) -> Box:
    """Bound a marked region of a map in the pixels of its photograph, of this (height, width); rounded outwards."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    down, across = size[0] / region.shape[0], size[1] / region.shape[1]
    left, top = int(columns[0] * across), int(rows[0] * down)
    right, bottom = int(np.ceil((columns[-1] + 1) * across)), int(np.ceil((rows[-1] + 1) * down))
    return left, top, min(right, size[1]), min(bottom, size[0])


def _decision(model: Any, outputs: Any, number: int, label: str | None) -> dict[str, str | None]:
    """Say which line of which class decided."""
    if outputs.class_ids is None:
        return {"class_name": None, "line": None if label is None else "pooled"}
    class_ids = outputs.class_ids[number : number + 1]
    name = model.config.class_names[int(class_ids)]
    if label != UNKNOWN_PRODUCT:
        return {"class_name": name, "line": None if label is None else "image"}
    rows = slice(number, number + 1)
    values = strangeness(outputs.memory_maps[rows], outputs.image_embeds[rows], model.class_prototypes[class_ids])
    lines = model.calibration.product_lines(class_ids).to(values)
    return {"class_name": name, "line": f"product {PRODUCT_LINES[int((values / lines)[0].argmax())]}"}


def _odd_patch(model: Any, view: Tensor, class_id: int | None, region: Tensor) -> tuple[dict[int, Tensor], float]:
    """Pick the patch of the region that is farthest from all normal ones: its features, and how far."""
    inside = F.adaptive_max_pool2d(region[None].float(), model.config.grid_size).flatten(1) > 0
    return _farthest(model, view[None], class_id, inside)


def _odd_patch_in_tiles(
    model: Any, views: Views, class_id: int | None, region: Tensor
) -> tuple[dict[int, Tensor], float]:
    """Do so among the patches of all tiles whose centres lie in the region, or else the one nearest to its middle."""
    boxes = views.patch_boxes(model.config.grid_size)[0].float()  # (tiles, patches, 4)
    scale = torch.tensor([region.shape[1] / views.size[1], region.shape[0] / views.size[0]])
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2 * scale  # (tiles, patches, 2) as columns and rows of the map
    places = centres.long().minimum(torch.tensor([region.shape[1] - 1, region.shape[0] - 1]))
    inside = region[places[..., 1], places[..., 0]] & (boxes[..., 2:] > boxes[..., :2]).all(-1)
    if not inside.any():
        middle = region.nonzero().float().mean(0).flip(0) + 0.5
        gaps = (centres - middle).square().sum(-1)
        inside = gaps == gaps.min()
    best = None
    for numbers in inside.any(1).nonzero()[:, 0].split(TILES_AT_ONCE):
        inputs = views.prepare(numbers.tolist())
        counts = ~ignored_patches(inputs["ignore_masks"], model.config.grid_size).flatten(1)
        chosen = inside[numbers] & counts if (inside[numbers] & counts).any() else inside[numbers]
        found = _farthest(model, inputs["pixel_values"].to(model.device, model.dtype), class_id, chosen)
        best = found if best is None or found[1] > best[1] else best
    return best


def _farthest(model: Any, pixels: Tensor, class_id: int | None, inside: Tensor) -> tuple[dict[int, Tensor], float]:
    """Pick among marked patches (batch, patches) of these views the one that is farthest from the memory."""
    taps = model.memory_taps(pixels, model.encode_views(pixels))
    ids = None if class_id is None else torch.full((len(pixels),), class_id, device=pixels.device)
    distances = model.memory(taps, ids).float().cpu().masked_fill(~inside, -1).flatten()
    patch = int(distances.argmax())
    return {layer: tap.flatten(0, 1)[patch] for layer, tap in taps.items()}, float(distances[patch])


def _name_nearest(
    explanation: Explanation, model: Any, patch: dict[int, Tensor], class_id: int | None, distance: float
) -> None:
    """Find the normal patch that is nearest to one."""
    found, vector = model.memory.nearest(patch, class_id)
    index = model.memory.photograph_of(found, vector)
    explanation.nearest_class = model.config.class_names[found]
    explanation.nearest_index = index
    explanation.nearest_box = model.memory.box_of(found, vector)
    explanation.nearest_distance = distance
    explanation.nearest_photograph = photograph_name(model, explanation.nearest_class, index)


def photograph_name(model: Any, class_name: str, index: int) -> str | None:
    """Look up in the detector's log the name of a product's good photograph; `None` where the log lacks some."""
    files: list[str | None] = []
    for entry in model.config.history:
        if (
            entry["class_name"] == class_name and entry["action"] != "calibrate"
        ):  # whose photographs are not remembered
            files = [] if entry["action"] == "forget" else files + entry["files"]
    known = len(model.memory.counts[model.config.class_names.index(class_name)])
    return files[index] if len(files) == known else None


__all__ = ["Explanation", "box_of", "explain", "explain_outputs", "explain_views", "photograph_name", "worst_region"]
