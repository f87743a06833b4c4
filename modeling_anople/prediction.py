"""The one loop that runs a detector: sources in, predictions out, in batches, one bad file never stopping the rest."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .explanation_anople import Explanation, explain_outputs, explain_views
from .images_anople import ImageError, clear_ignored, hide, ignored_patches
from .inference_anople import SAME, Batch, judge_batch, judge_views, lay_out, needs_views, read_batches
from .modeling_anople import AnoPLeModel, AnoPLeOutput
from .processing_anople import AnoPLeProcessor
from .product_store_anople import kept_masks
from .scoring_anople import resize_maps, smooth_maps
from .tiling_anople import Tiling


Part = Literal["fused", "memory", "decoder", "text"]


@dataclass
class Prediction:
    """
    What is known of one photograph.

    Args:
        error: why it could not be judged; everything below is then `None`.
        size: (height, width) of the photograph.
        score: calibrated, 0.5 is the line of its class; the raw score where the class has no line.
        label: "normal", "anomalous" or "unknown product", `None` where the class has no line.
        p_value: of the whole detector's score, by rank among the class' normals; `None` where there are none.
        raw_score, raw_map: of the part asked for, for metrics; the map is (side, side), `None` for the text part.
        anomaly_map: float32 (side, side), calibrated, 0.5 is the line; `None` where the class has no line.
        class_name: the class it was judged as; `None` when pooled, or of an unknown product.
        seconds: its share of the time from reading to answer.
        explanation: what stands behind the answer, where that was asked for.
        ignored: bool (height, width) of the photograph, the places that did not count; maps are 0 there.
    """

    error: str | None = None
    size: tuple[int, int] | None = None
    score: float | None = None
    label: str | None = None
    p_value: float | None = None
    raw_score: float | None = None
    raw_map: np.ndarray | None = None
    anomaly_map: np.ndarray | None = None
    class_name: str | None = None
    seconds: float | None = None
    explanation: Explanation | None = None
    ignored: np.ndarray | None = None


def predict(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    sources: Iterable[Any],
    *,
    class_names: str | Iterable[str] | None = None,
    batch_size: int = 8,
    part: Part = "fused",
    explain: bool = False,
    tiling: Tiling = SAME,
    ignore_mask: Any = None,
) -> Iterator[Prediction]:
    """
    Judge photographs one after the other, `batch_size` at a time.

    Args:
        sources: anything that `load_photograph` opens; read as they are needed.
        class_names: the product of all, or one for each in step with `sources`. `None`: predicted.
        batch_size: how many are read, and judged, at once.
        part: which score and map the raw values are of.
        explain: whether to say what stands behind each answer.
        tiling: "auto", (rows, columns) or `None`; by default as each product was learnt. A line holds for that alone.
        ignore_mask: places that do not count, one mask for all photographs, or a list with one (or `None`) for each; by
            default what each product keeps. `"none"` ignores nothing.

    Yields:
        One [`Prediction`] for each source, in order; an unreadable one has `error` set.

    Raises:
        ValueError: for a class that the detector does not know, more or fewer class names than sources, a batch size
            below 1, the memory's part of a detector without one, or what a graph cannot do.
    """
    model.eval()
    start = time.perf_counter()
    by_views = needs_views(model.config, tiling)
    if explain and not hasattr(model, "memory_taps"):
        raise ValueError("A graph says nothing of what stands behind an answer: explain needs the detector itself.")
    reading = {"class_names": class_names, "batch_size": batch_size, "by_views": by_views, "ignore_mask": ignore_mask}
    for batch in read_batches(processor, sources, **reading, masks=kept_masks(model)):
        if by_views:
            predictions = _judge_opened(model, processor, batch, part, explain, tiling)
        else:
            predictions = _judge(model, processor, batch, part, explain)
        share = (time.perf_counter() - start) / max(1, len(batch.readable_sizes))
        for prediction in predictions:
            prediction.seconds = None if prediction.error else share
        yield from predictions
        start = time.perf_counter()


def _judge(
    model: AnoPLeModel, processor: AnoPLeProcessor, batch: Batch, part: Part, explain: bool
) -> list[Prediction]:
    with torch.inference_mode():
        outputs = judge_batch(model, processor, batch)
        predictions = [
            Prediction(error=error, size=size) for error, size in zip(batch.errors, batch.sizes, strict=True)
        ]
        if outputs is None:
            return predictions
        scores, maps = part_scores(model, outputs, part)
        if "ignore_masks" in batch.inputs:
            maps = hide(maps, ignored_patches(batch.inputs["ignore_masks"], model.config.grid_size).to(scores.device))
        pixels, sizes = batch.inputs["pixel_values"].to(model.device, model.dtype), batch.readable_sizes
        explanations = explain_outputs(model, processor, pixels, outputs, sizes) if explain else []
    results = processor.post_process_anomaly_detection(outputs, threshold=model.config.threshold)
    judged = [prediction for prediction in predictions if prediction.error is None]
    for number, (prediction, result, mask) in enumerate(zip(judged, results, batch.hidden, strict=True)):
        prediction.score, prediction.label, prediction.p_value = result["score"], result["label"], result["p_value"]
        prediction.raw_score = float(scores[number])
        prediction.ignored = mask
        prediction.raw_map = None if maps is None else clear_ignored(maps[number].float().cpu().numpy(), mask)
        prediction.anomaly_map = None if result["label"] is None else clear_ignored(result["anomaly_map"], mask)
        prediction.class_name = result["class_name"]
        prediction.explanation = explanations[number] if explain else None
    return predictions


def _judge_opened(
    model: AnoPLeModel, processor: AnoPLeProcessor, batch: Batch, part: Part, explain: bool, tiling: Tiling
) -> list[Prediction]:
    """Judge photographs by their tiles, one after the other."""
    predictions = [Prediction(error=error, size=size) for error, size in zip(batch.errors, batch.sizes, strict=True)]
    readable = [prediction for prediction in predictions if prediction.error is None]
    for prediction, (photograph, mask, name) in zip(readable, batch.opened, strict=True):
        with torch.inference_mode():
            class_id = None if name is None else processor.class_id(name)
            try:
                views = lay_out(model, processor, photograph, mask, name, tiling)
            except ImageError as error:  # its product's mask has another size
                prediction.error, prediction.size = str(error), None
                continue
            mask, output = views.mask, judge_views(model, views, class_id)
            raw = output
            if part != "fused":
                raw = judge_views(model, views, class_id, score=lambda tiles: part_scores(model, tiles, part))
            prediction.explanation = explain_views(model, processor, views, output) if explain else None
        result = processor.post_process_anomaly_detection(output, threshold=model.config.threshold)[0]
        prediction.score, prediction.label, prediction.class_name, prediction.p_value = (
            result[key] for key in ("score", "label", "class_name", "p_value")
        )
        prediction.raw_score, prediction.ignored = float(raw.image_scores[0]), mask
        if raw.anomaly_maps is not None:
            prediction.raw_map = clear_ignored(raw.anomaly_maps[0].float().cpu().numpy(), mask)
        prediction.anomaly_map = None if result["label"] is None else clear_ignored(result["anomaly_map"], mask)
    return predictions


def part_scores(model: AnoPLeModel, outputs: AnoPLeOutput, part: Part) -> tuple[Tensor, Tensor | None]:
    """
    Pick the raw image scores (batch,) and maps (batch, side, side) of one part of the detector.

    The memory's image score is its unsmoothed maximum, as in the fused score; the decoder's the maximum of its smoothed
    map; the text has no map.
    """
    if part == "text":
        return outputs.text_scores, None
    if part == "fused":
        return outputs.image_scores, outputs.anomaly_maps
    raw = outputs.memory_maps if part == "memory" else outputs.decoder_maps
    if raw is None:
        raise ValueError("part='memory' of a detector that remembers nothing: fit it, or call model.remember(...).")
    maps = smooth_maps(raw.float(), size=model.config.image_size, sigma=model.config.smoothing)
    return (raw if part == "memory" else maps).flatten(1).amax(1), maps


def full_size_map(prediction: Prediction) -> np.ndarray:
    """Bring a prediction's map to the photograph's own size, within 0 and 1; the raw map where there is no line."""
    values = prediction.raw_map if prediction.anomaly_map is None else prediction.anomaly_map
    full = resize_maps(torch.from_numpy(values)[None], prediction.size)[0].clamp(0, 1).numpy()
    return clear_ignored(full, prediction.ignored)


__all__ = ["Part", "Prediction", "full_size_map", "part_scores", "predict"]
