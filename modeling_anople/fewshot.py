"""From k good photographs per class to an endless, repeatable stream of training views."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from .copies_anople import MemoryCopies, move, turns_of
from .synthesis import PseudoAnomaly


def sample_few_shot(paths: Sequence[str], shots: int, *, seed: int, class_name: str) -> list[str]:
    """
    Choose the k good photographs of one class.

    Drawn from the sorted paths by a generator of its own for each (seed, class), so the choice depends neither on the
    file system nor on the other classes, and nested: 1 shot is part of 2 shots, which are part of 4.

    Returns:
        The chosen paths, sorted; all of them if there are no more than `shots`.

    Raises:
        ValueError: if `shots` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}.")
    generator = np.random.default_rng([seed, zlib.crc32(class_name.encode())])
    order = generator.permutation(len(paths))[:shots]
    return sorted(sorted(paths)[place] for place in order)


def square_image(photograph: Image.Image, side: int) -> Tensor:
    """Resize an RGB photograph to a square (bicubic, as the processor does): uint8 (3, side, side)."""
    resized = photograph.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class ViewSettings:
    """
    How a photograph becomes views.

    Args:
        image_size: side of a view in pixels.
        grid: the enlarged photograph is cut into grid x grid sub-images; 1 gives the global view alone.
        mean, std: normalisation of the image processor.
    """

    image_size: int
    grid: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def cut(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """
        Cut one enlarged photograph into its global view and its sub-images, in reading order (paper.md 1.5).

        Args:
            image: (3, grid x side, grid x side) within 0 and 1.
            mask: (grid x side, grid x side) bool.

        Returns:
            Normalised pixels (views, 3, side, side) and masks (views, side, side).
        """
        side, grid = self.image_size, self.grid
        pixels, masks = image[None], mask[None].float()
        if grid > 1:
            small = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
            small_mask = F.max_pool2d(masks[None], grid)[0]  # a mark survives shrinking
            # (3, grid, side, grid, side) -> (grid x grid, 3, side, side)
            parts = image.unflatten(2, (grid, side)).unflatten(1, (grid, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
            part_masks = (
                mask.float().unflatten(1, (grid, side)).unflatten(0, (grid, side)).transpose(1, 2).flatten(0, 1)
            )
            pixels, masks = torch.cat([small, parts]), torch.cat([small_mask, part_masks])
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std, masks


class FewShotDataset(Dataset):
    """
    An endless stream of training samples, each a function of the seed and its own number alone.

    Any process may therefore draw any sample, in any order, and a killed run goes on where it stopped. Every photograph
    comes once per round, in an order drawn for the round.

    Args:
        images: uint8 (3, grid x side, grid x side) of each good photograph.
        class_ids: the class of each.
        views: how a photograph becomes views.
        anomaly: the pixel-space pseudo-anomaly; `None` leaves all photographs as they are.
        anomaly_period: the last of every so many samples is made anomalous.
        turns: by which of [`turns_of`] a photograph is turned before, drawn anew for each sample.
        seed: of all draws.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        class_ids: Sequence[int],
        *,
        views: ViewSettings,
        anomaly: PseudoAnomaly | None,
        anomaly_period: int = 2,
        turns: MemoryCopies = "none",
        seed: int,
    ):
        if not images:
            raise ValueError("FewShotDataset was given no good photographs: at least one is needed.")
        self.images, self.class_ids = list(images), list(class_ids)
        self.views, self.anomaly, self.anomaly_period, self.seed = views, anomaly, anomaly_period, seed
        self.turns = turns_of(turns)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Make sample `number`: pixel_values (views, 3, side, side), mask_labels (views, side, side) and ids."""
        turn, place = divmod(number, len(self.images))
        order = np.random.default_rng([self.seed, turn]).permutation(len(self.images))
        chosen = int(order[place])
        state = np.random.default_rng([self.seed, 1, number]).integers(2**62)
        generator = torch.Generator().manual_seed(int(state))
        image = self.images[chosen].float() / 255
        if len(self.turns) > 1:
            turn = self.turns[int(torch.randint(len(self.turns), (1,), generator=generator))]
            image = move(image[None], turn[None])[0].clamp(0, 1)
        mask = torch.zeros(image.shape[1:], dtype=torch.bool)
        if self.anomaly is not None and (number + 1) % self.anomaly_period == 0:
            others = [other.float() / 255 for other in self._textures(chosen, generator)]
            image, mask = self.anomaly(image, others, generator)
        pixels, masks = self.views.cut(image, mask)
        count = len(pixels)
        return {
            "pixel_values": pixels,
            "mask_labels": masks,
            "class_ids": torch.full((count,), self.class_ids[chosen]),
            "view_ids": torch.arange(count),
            "noise_seeds": torch.randint(2**31, (count,), generator=generator),
        }

    def _textures(self, chosen: int, generator: torch.Generator) -> list[Tensor]:
        """Pick one other photograph, of any class, as the source of texture."""
        if len(self.images) == 1:
            return []
        other = int(torch.randint(len(self.images) - 1, (1,), generator=generator))
        return [self.images[other + (other >= chosen)]]


class StepSampler(Sampler):
    """Number the samples from the first that is still to be trained on to the last."""

    def __init__(self, start: int, stop: int):
        self.numbers = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def collate_views(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the views of several samples into one batch (samples x views, ...)."""
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


__all__ = ["FewShotDataset", "StepSampler", "ViewSettings", "collate_views", "sample_few_shot", "square_image"]
