"""What a detector knows of each product without training: its normal patches, its prototype and its line."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .calibration_anople import ClassLine, fit_line


class ProductsMixin:
    """Methods of [`AnoPLeModel`] that fill the memory and set the lines."""

    @torch.no_grad()
    def remember(self, pixel_values: Tensor, class_id: int, *, batch_size: int = 8) -> None:
        """
        Add good photographs of one product to its memory and its prototype.

        Args:
            pixel_values: (photographs, 3, side, side), global views of normal photographs.
            class_id: the product.
            batch_size: photographs encoded at once.

        Raises:
            ValueError: if there is no photograph.
        """
        self.eval()
        if len(pixel_values) == 0:
            raise ValueError(f"Class id {class_id} was given no good photographs: at least one is needed.")
        known = self.memory.sizes[class_id] // self.config.grid_size**2
        total = self.class_prototypes[class_id].float() * known
        for part in pixel_values.split(batch_size):
            features = self.encode_views(part)
            self.memory.add(self.memory_taps(part, features), class_id)
            total = total + F.normalize(features.pooled.float(), dim=-1).sum(0)
        self.class_prototypes[class_id] = total / (known + len(pixel_values))
        self.config.memory_sizes = self.memory.sizes

    @torch.no_grad()
    def calibrate(self, pixel_values: Tensor, class_id: int, *, max_false_alarm_rate: float = 0.05) -> ClassLine:
        """
        Set one product's line from the photographs that were remembered, in the order in which they were.

        Each photograph is scored against the memory of the others. A lone photograph can only be compared with its own
        slightly moved and relit copies; such copies of every photograph also widen the sample.

        Args:
            pixel_values: (photographs, 3, side, side), exactly those given to [`remember`].
            class_id: the product.
            max_false_alarm_rate: share of good photographs that may lie above the line.

        Raises:
            ValueError: if these are not the photographs of the memory, by their number.
        """
        self.eval()
        patches = self.config.grid_size**2
        if len(pixel_values) * patches != self.memory.sizes[class_id]:
            raise ValueError(
                f"calibrate got {len(pixel_values)} photographs of class id {class_id}, whose memory holds "
                f"{self.memory.sizes[class_id] // patches}: give the same ones as to remember(...)."
            )
        name = self.config.class_names[class_id]
        judged = self._judge_normals(pixel_values, class_id)
        scale = max(float(output.memory_maps.max()) for output in judged)
        if self.config.fusion_scale == "normal":
            self.calibration.set(name, ClassLine.unset(memory_scale=scale))
            judged = self._judge_normals(pixel_values, class_id)
        images = torch.cat([output.image_scores for output in judged]).tolist()
        maxima = torch.cat([output.anomaly_maps.flatten(1).amax(1) for output in judged]).tolist()
        line = fit_line(images, maxima, max_false_alarm_rate=max_false_alarm_rate, memory_scale=scale)
        self.calibration.set(name, line)
        return line

    def _judge_normals(self, pixel_values: Tensor, class_id: int) -> list:
        """Score each photograph, and disturbed copies of it, against the memory without that photograph."""
        patches, alone = self.config.grid_size**2, len(pixel_values) == 1
        judged = []
        for number, photograph in enumerate(pixel_values):
            copies = disturbed_copies(photograph)
            batch = copies if alone else torch.cat([photograph[None], copies])
            left_out = 0 if alone else patches
            exclude = (class_id, slice(number * patches, number * patches + left_out))
            class_ids = torch.full((len(batch),), class_id, device=batch.device)
            judged.append(self(batch, class_ids=class_ids, exclude=exclude))
        return judged


def disturbed_copies(photograph: Tensor) -> Tensor:
    """
    Move and relight a photograph (3, side, side) a little, as the next one of the same part might be.

    Four copies: shifted by 2 % either way, turned by 2 degrees with 3 % more contrast, enlarged by 3 % with 3 % less.
    None is mirrored: many parts have a side.
    """
    moves = torch.tensor(
        [
            [[1.0, 0.0, 0.04], [0.0, 1.0, 0.04]],
            [[1.0, 0.0, -0.04], [0.0, 1.0, -0.04]],
            [[0.9994, -0.0349, 0.0], [0.0349, 0.9994, 0.0]],
            [[0.97, 0.0, 0.0], [0.0, 0.97, 0.0]],
        ]
    ).to(photograph)
    gains = torch.tensor([1.0, 1.0, 1.03, 0.97]).to(photograph).view(-1, 1, 1, 1)
    batch = photograph.expand(len(moves), -1, -1, -1)
    grid = F.affine_grid(moves, list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False) * gains


__all__ = ["ProductsMixin", "disturbed_copies"]
