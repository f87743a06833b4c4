"""Why an image got its score: where it is oddest, which normal patch comes nearest, and which threshold decided."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .images_anople import ignored_patches
from .inference_anople import TILES_AT_ONCE, JudgedImage, TiledImage
from .memory_anople import nearest_vector
from .modeling_anople import AnoPLeModel
from .processing_anople import AnoPLeProcessor
from .product_store_anople import UNKNOWN_PRODUCT, log_of
from .scoring_anople import AnoPLeOutput, novelty_scores


Box = tuple[int, int, int, int]
NOVELTY = ("patches", "whole")  # the two numbers of `novelty_scores`


@dataclass
class Explanation:
    """
    What stands behind one answer; it changes none.

    Args:
        class_name: the product whose threshold and memory were used; `None` where classes are pooled.
        box: left, top, right, bottom of the worst region, in pixels of the image.
        score: that of the image, calibrated; the raw one where there is no threshold.
        line: the score above which an image is anomalous; `None` where the class has no threshold.
        past: score minus line; negative for a normal image.
        decided_by: `class_name`, and as `line` what decided: "image" (the threshold of the class), "pooled" (that of all
            classes together), "frame" (it is no photograph of the product, see `reason` of the result), "product patches" or "product whole" (the image shows no known product: its patches, or it
            as a whole, are too far from the nearest one), or `None`.
        nearest_photograph: name of the good image with the nearest patch, as the detector's log has it.
        nearest_index: its place among the product's good images, from 0; `None` without a memory.
        nearest_box: the nearest patch in that image's pixels; `None` where it was not kept.
        nearest_class: the product that image is of.
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

    def as_dict(self) -> dict:
        """Return everything as plain values that JSON can hold."""
        return asdict(self)


@torch.no_grad()
def explain(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    image: TiledImage,
    judged: JudgedImage,
    threshold: float | None = None,
) -> Explanation:
    """
    Say what stands behind the answer that a detector gave to an image.

    Args:
        image: as it was judged.
        judged: the answer, of one row.
        threshold: calibrated score above which an image is anomalous; by default that of the config.
    """
    threshold, output = model.config.threshold if threshold is None else threshold, judged.output
    result = processor.post_process_anomaly_detection(output, threshold=threshold)[0]
    class_id = None if output.class_ids is None else int(output.class_ids[0])
    limit = None if result["label"] is None else threshold
    region = worst_region(result["anomaly_map"], 0.5 if limit is None else limit)
    explanation = Explanation(
        class_name=None if class_id is None else model.config.class_names[class_id],
        box=box_of(region, image.size),
        score=result["score"],
        line=limit,
        past=None if limit is None else result["score"] - limit,
        decided_by=_decision(model, output, class_id, result["label"]),
    )
    if judged.reason is not None and result["label"] == "normal":
        explanation.decided_by["line"] = "frame"
    if not model.products.remembers_nothing:
        feature, distance = _odd_patch(model, image, class_id, torch.from_numpy(region))
        _name_nearest(explanation, model, feature, class_id, distance)
    return explanation


def worst_region(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """
    Mark the region around the highest place of a map (height, width): what hangs together with it above the threshold.

    Where nothing is above the threshold, what hangs together above half of the highest value.
    """
    values = torch.from_numpy(np.ascontiguousarray(anomaly_map)).float()
    peak = values.max()
    allowed = values > (threshold if peak > threshold else peak / 2)
    region = torch.zeros_like(allowed)
    region.view(-1)[int(values.argmax())] = True
    size = 1
    while True:  # it grows by one place in all directions, as far as it may
        region = (F.max_pool2d(region[None].float(), 3, stride=1, padding=1)[0] > 0) & allowed | region
        if int(region.sum()) == size:
            return region.numpy()
        size = int(region.sum())


def box_of(region: np.ndarray, size: tuple[int, int]) -> Box:
    """Bound a marked region of a map in the pixels of its image, of this (height, width); rounded outwards."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    down, across = size[0] / region.shape[0], size[1] / region.shape[1]
    left, top = int(columns[0] * across), int(rows[0] * down)
    right, bottom = int(np.ceil((columns[-1] + 1) * across)), int(np.ceil((rows[-1] + 1) * down))
    return left, top, min(right, size[1]), min(bottom, size[0])


def _decision(
    model: AnoPLeModel, output: AnoPLeOutput, class_id: int | None, label: str | None
) -> dict[str, str | None]:
    """Say which threshold of which class decided."""
    if class_id is None:
        return {"class_name": None, "line": None if label is None else "pooled"}
    name = model.config.class_names[class_id]
    if label != UNKNOWN_PRODUCT:
        return {"class_name": name, "line": None if label is None else "image"}
    scores = novelty_scores(output.memory_maps, output.image_embeds, model.products.prototypes([class_id]))
    limits = model.novelty_thresholds(output.class_ids).to(scores)
    return {"class_name": name, "line": f"product {NOVELTY[int((scores / limits)[0].argmax())]}"}


def _odd_patch(model: AnoPLeModel, image: TiledImage, class_id: int | None, region: Tensor) -> tuple[Tensor, float]:
    """
    Pick among the patches that a region of the map touches the one that is farthest from the memory.

    Returns:
        Its features (layers, width), and how far it is.
    """
    inside = _patches_in(region, image, model.config.memory_grid_size)
    best = None
    for numbers in inside.any(1).nonzero()[:, 0].split(TILES_AT_ONCE):
        pixels, masks = image.prepare(numbers.tolist())
        chosen = inside[numbers]
        if masks is not None:
            counts = ~ignored_patches(masks, model.config.memory_grid_size).flatten(1)
            chosen = chosen & counts if (chosen & counts).any() else chosen
        features = model.memory_features(pixels.to(model.device, model.dtype))
        ids = None if class_id is None else torch.full((len(pixels),), class_id)
        distances = model.memory_maps(features, ids).flatten(1).float().cpu().masked_fill(~chosen, -1).flatten()
        patch = int(distances.argmax())
        if best is None or float(distances[patch]) > best[1]:
            best = features.flatten(1, 2)[:, patch], float(distances[patch])
    return best


def _patches_in(region: Tensor, image: TiledImage, grid: int) -> Tensor:
    """Say which patches of the tiles (tiles, patches) a marked region (rows, columns) of the image's map touches."""
    # how many marked places lie above and left of each corner: four of these say how many lie in a box
    sums = F.pad(region.int().cumsum(0).cumsum(1), (1, 0, 1, 0))
    rows, columns = region.shape
    down, across = rows / image.size[0], columns / image.size[1]
    exact = _exact_boxes(image, grid)  # (tiles, patches, 4)
    left, right = (exact[..., 0] * across).floor(), (exact[..., 2] * across).ceil()
    top, bottom = (exact[..., 1] * down).floor(), (exact[..., 3] * down).ceil()
    left, right = (each.long().clamp(0, columns) for each in (left, right))
    top, bottom = (each.long().clamp(0, rows) for each in (top, bottom))
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left] > 0


def _exact_boxes(image: TiledImage, grid: int) -> Tensor:
    """Return left, top, right, bottom (tiles, patches, 4) of the patches in the image's pixels, not rounded."""
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    places = torch.stack([columns, rows, columns + 1, rows + 1], dim=-1).flatten(0, 1).double() / grid
    tiles = torch.tensor(image.boxes, dtype=torch.double)[:, None]  # (tiles, 1, 4)
    return (tiles[..., :2].repeat(1, 1, 2) + places * (tiles[..., 2:] - tiles[..., :2]).repeat(1, 1, 2)).round(
        decimals=6
    )


def _name_nearest(
    explanation: Explanation, model: AnoPLeModel, feature: Tensor, class_id: int | None, distance: float
) -> None:
    """Name the normal patch that is nearest to one, in place."""
    nearest_class, vector = nearest_vector(feature, model.products.banks, class_id)
    product = model.products[nearest_class]
    explanation.nearest_class = product.name
    explanation.nearest_index = product.bank.image_of(vector)
    explanation.nearest_box = product.bank.box_of(vector)
    explanation.nearest_distance = distance
    explanation.nearest_photograph = image_name(model, product.name, explanation.nearest_index)


def image_name(model: AnoPLeModel, class_name: str, index: int) -> str | None:
    """Look up in the detector's log the name of a product's good image; `None` where the log lacks some."""
    # images that only calibrated the product are not remembered
    entries = (entry for entry in log_of(model.config.history, class_name) if entry["action"] != "calibrate")
    files = [file for entry in entries for file in entry["files"]]
    return files[index] if len(files) == model.products.named(class_name).image_count else None


__all__ = ["Explanation", "box_of", "explain", "image_name", "worst_region"]
