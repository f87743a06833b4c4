"""
From raw scores to a verdict: plain functions of arrays and lines, outside the model, so that an exported one has them too.

Arrays need numpy alone; a tensor brings its own methods.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from torch import Tensor


SMALLEST_SCORE = 1e-9


def to_scale(values: "Tensor | np.ndarray", line: Any, spread: Any) -> "Tensor | np.ndarray":
    """
    Bring raw values to the scale on which 0.5 is the line: sigmoid((log value - log line) / spread).

    Args:
        values: raw scores or maps, a tensor or an array of any shape.
        line, spread: numbers, or tensors or arrays that broadcast over the values.

    Returns:
        float32 of the same kind and shape, within 0 and 1. Order is kept; the line itself is 0.5.
    """
    if not isinstance(values, np.ndarray):
        values = values.float()
        line, spread = (each if hasattr(each, "device") else values.new_tensor(each) for each in (line, spread))
        return ((values.clamp(min=SMALLEST_SCORE).log() - line.log()) / spread).sigmoid()
    line, spread = (np.asarray(each, dtype=np.float32) for each in (line, spread))
    steps = (np.log(np.maximum(np.asarray(values, np.float32), np.float32(SMALLEST_SCORE))) - np.log(line)) / spread
    return 1 / (1 + np.exp(-np.clip(steps, -80, 80)))


def p_value(score: float, line: Mapping[str, Any] | None) -> float | None:
    """
    Return the share of good photographs that would score at least this, judged by rank among the product's normals.

    It is the conformal p-value, (1 + number of normals that score at least this) / (n + 1), over the n independent normal
    scores behind the line (Vovk, Gammerman and Shafer, chapter 2). It never lies below 1 / (n + 1), however odd a
    photograph is. `None` without a line, or where copies were counted as normals (lines of earlier versions).
    """
    if not line or not line.get("photographs"):
        return None
    normals = np.asarray(line["image_scores"], np.float32)  # a model's scores have no more digits
    return (1 + int((normals >= np.float32(score)).sum())) / (len(normals) + 1)


def label_of(score: float, threshold: float) -> str:
    """Name what a calibrated score says: "anomalous" above the threshold."""
    return "anomalous" if score > threshold else "normal"


def judge(
    image_scores: np.ndarray,
    anomaly_maps: np.ndarray | None,
    lines: Sequence[Mapping[str, Any] | None],
    *,
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """
    Judge raw answers, as a model or its exported form gives them, by the lines of their products.

    Args:
        image_scores: (batch,) raw image scores.
        anomaly_maps: (batch, height, width) raw maps, or `None`.
        lines: each photograph's line, `config.calibration.get(class_name)`.
        threshold: calibrated score above which a photograph is anomalous, `config.threshold`.

    Returns:
        Dictionaries with `score`, `label`, `raw_score`, `p_value` and `anomaly_map`, as of
        `AnoPLeProcessor.post_process_anomaly_detection`.

    Raises:
        ValueError: if there are more or fewer lines than scores.
    """
    if len(lines) != len(image_scores):
        raise ValueError(f"{len(image_scores)} scores were given {len(lines)} lines: give one or None for each.")
    results = []
    for number, (raw, line) in enumerate(zip(image_scores.tolist(), lines, strict=True)):
        score, anomaly_map = raw, None if anomaly_maps is None else anomaly_maps[number]
        if line:
            score = float(to_scale(image_scores[number : number + 1], line["image_line"], line["image_spread"])[0])
            if anomaly_map is not None:
                anomaly_map = to_scale(anomaly_map, line["map_line"], line["map_spread"])
        results.append(
            {
                "score": score,
                "label": label_of(score, threshold) if line else None,
                "raw_score": raw,
                "p_value": p_value(raw, line),
                "anomaly_map": anomaly_map,
            }
        )
    return results


__all__ = ["judge", "label_of", "p_value", "to_scale"]
