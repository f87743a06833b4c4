"""Raw scores on a scale on which 0.5 is the line, per class."""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .configuration_anople import AnoPLeConfig
from .lines_anople import ClassLine, fit_line
from .outputs_anople import AnoPLeOutput
from .verdict_anople import to_scale


POOLED = "*"


class ScoreCalibration:
    """
    Map raw scores to a scale on which 0.5 is the class' line: sigmoid((log score - log line) / spread).

    Order within a class is kept; +-1 spread from the line reads 0.73 and 0.27. It holds no tensors: the lines are floats
    in `config.calibration`, so they survive any precision and may be edited without reloading.
    """

    def __init__(self, config: AnoPLeConfig):
        self.config = config

    def knows(self, class_name: str) -> bool:
        """Say whether a class has a line."""
        return class_name in self.config.calibration

    def set(self, class_name: str, line: ClassLine) -> None:
        """Store the line of one class, and draw the common line of the pooled mode anew."""
        self._store({**self.config.calibration, class_name: asdict(line)}, line.max_false_alarm_rate)

    def remove(self, class_name: str) -> None:
        """Drop the line of one class, and draw the common line of the pooled mode anew."""
        lines = {name: line for name, line in self.config.calibration.items() if name != class_name}
        self._store(lines, lines[POOLED]["max_false_alarm_rate"] if POOLED in lines else 0.0)

    def _store(self, lines: dict[str, dict], pooled_rate: float) -> None:
        lines.pop(POOLED, None)
        if self.config.class_identity == "pooled":
            images, maxima, image_copies, map_copies = (
                [score for entry in lines.values() for score in entry.get(part, [])]
                for part in ("image_scores", "map_maxima", "image_copies", "map_copies")
            )
            if images or image_copies:
                pooled = fit_line(
                    images,
                    maxima,
                    max_false_alarm_rate=pooled_rate,
                    memory_scale=max(entry["memory_scale"] for entry in lines.values()),
                    image_copies=image_copies,
                    map_copies=map_copies,
                )
                lines[POOLED] = asdict(pooled)
        self.config.calibration = lines

    def memory_scales(self, class_ids: Tensor | None) -> Tensor | None:
        """Return each image's memory scale (batch,), or `None` before calibration."""
        if not self.covers(class_ids):
            return None
        return torch.tensor([line["memory_scale"] for line in self._lines(class_ids)])

    def product_lines(self, class_ids: Tensor) -> Tensor | None:
        """Return the lines (batch, 2) of the classes that were predicted; infinite where there are none."""
        entries = [self.config.calibration.get(name, {}) for name in self._names(class_ids)]
        lines = [entry.get("product_lines") or [math.inf, math.inf] for entry in entries]
        return None if not any(entry.get("product_lines") for entry in entries) else torch.tensor(lines)

    def covers(self, class_ids: Tensor | None) -> bool:
        """Say whether every class asked for has a line."""
        return all(name in self.config.calibration for name in self._names(class_ids))

    def apply(self, output: AnoPLeOutput) -> None:
        """Add calibrated scores and maps and p-values to an answer's raw ones, in place, if every class has a line."""
        ids = output.class_ids
        if not self.covers(ids):
            return
        output.calibrated_scores = self.images(output.image_scores, ids)
        output.calibrated_maps = self.maps(output.anomaly_maps, ids)
        output.p_values = self.p_values(output.image_scores, ids)

    def images(self, scores: Tensor, class_ids: Tensor | None) -> Tensor:
        """Calibrate image scores (batch,)."""
        return self._scale(scores, class_ids, "image")

    def maps(self, maps: Tensor, class_ids: Tensor | None) -> Tensor:
        """Calibrate maps (batch, height, width); a place at 0.5 is as odd as the oddest place of a photograph may be."""
        return self._scale(maps, class_ids, "map")

    def p_values(self, scores: Tensor, class_ids: Tensor | None) -> Tensor:
        """Give each image score (batch,) its [`p_value`] among the normals of its class; NaN where there is none."""
        lines = self._lines(class_ids)
        known = [line["image_scores"] if line.get("photographs") else None for line in lines]
        longest = max(len(normals or []) for normals in known)
        rows = [[*(normals or []), *[-math.inf] * (longest - len(normals or []))] for normals in known]
        totals = [math.nan if normals is None else len(normals) + 1.0 for normals in known]
        above = (scores.new_tensor(rows, dtype=torch.float32) >= scores.float()[:, None]).sum(1)
        return (1 + above) / scores.new_tensor(totals, dtype=torch.float32)

    def _scale(self, values: Tensor, class_ids: Tensor | None, part: str) -> Tensor:
        lines = self._lines(class_ids)
        shape = (-1,) + (1,) * (values.ndim - 1)
        line, spread = (
            torch.tensor([entry[f"{part}_{what}"] for entry in lines], device=values.device).view(shape)
            for what in ("line", "spread")
        )
        return to_scale(values, line, spread)

    def _lines(self, class_ids: Tensor | None) -> list[dict[str, Any]]:
        """Return the line of each image, or the one that all share."""
        return [self.config.calibration[name] for name in self._names(class_ids)]

    def _names(self, class_ids: Tensor | None) -> list[str]:
        if class_ids is None:
            return [POOLED]
        return [self.config.class_names[class_id] for class_id in class_ids.tolist()]


__all__ = ["POOLED", "ScoreCalibration"]
