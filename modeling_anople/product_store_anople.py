"""What a detector keeps of each product beside its memory and its threshold."""

import difflib
import functools
import logging
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .configuration_anople import AnoPLeConfig
from .images_anople import ImageError, ignored_patches, load_mask, mask_tensor
from .tiling_anople import tiling_of


# --- Names that are not known: which one may have been meant ---


def composed(name: str) -> str:
    """Write a name with composed letters (NFC): on a Mac a folder's name may have its accents apart."""
    return unicodedata.normalize("NFC", name)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean NAME?" for the known name that a word resembles, whatever their case; "" where none does."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1)
    return f" Did you mean {lower[near[0]]}?" if near else ""


# --- What each product keeps ignored: one mask for all its photographs, in the checkpoint, until another one is given ---


logger = logging.getLogger(__name__)

KeptMask = tuple[Tensor, list[int]]  # the packed mask and its (height, width)


class KeptMasks(nn.Module):
    """
    Keep a mask for some products, of the photographs' own size and exact: one bit for each pixel.

    A mask of 1024 x 1024 takes 128 KiB. Bits are packed eight to a byte in reading order, into a buffer `mask_N` for class
    id N; the sizes stand by name in `config.ignore_mask_sizes`.
    """

    def __init__(self, config: AnoPLeConfig):
        super().__init__()
        self.config = config
        sizes = dict(config.ignore_mask_sizes)
        self.restore({name: (torch.zeros(_bytes_of(size), dtype=torch.uint8), size) for name, size in sizes.items()})

    @property
    def is_empty(self) -> bool:
        """Whether no product keeps a mask."""
        return not self.config.ignore_mask_sizes

    @property
    def contents(self) -> dict[str, KeptMask]:
        """The packed mask and its (height, width) of each product that keeps one, to be put back with [`restore`]."""
        ids = {name: class_id for class_id, name in enumerate(self.config.class_names)}
        return {
            name: (getattr(self, f"mask_{ids[name]}"), size) for name, size in self.config.ignore_mask_sizes.items()
        }

    def restore(self, contents: dict[str, KeptMask]) -> None:
        """Keep these masks and no other, under the ids that the config's class names have now."""
        for name in list(self._buffers):
            delattr(self, name)
        for class_id, name in enumerate(self.config.class_names):
            if name in contents:
                self.register_buffer(f"mask_{class_id}", contents[name][0])
        self.config.ignore_mask_sizes = {name: list(size) for name, (_, size) in contents.items()}

    def keep(self, class_name: str, mask: np.ndarray | None, device: torch.device) -> None:
        """Keep a mask (height, width) for one product, or none any more."""
        contents = {name: kept for name, kept in self.contents.items() if name != class_name}
        if mask is not None:
            contents[class_name] = (torch.from_numpy(np.packbits(mask)).to(device), list(mask.shape))
        self.restore(contents)

    def of(self, class_name: str) -> np.ndarray | None:
        """Return the mask (height, width) of one product as booleans, `None` where it keeps none."""
        if class_name not in self.config.ignore_mask_sizes:
            return None
        packed, (height, width) = self.contents[class_name]
        bits = np.unpackbits(packed.cpu().numpy(), count=height * width)
        return bits.reshape(height, width).astype(bool)

    def wanted(self, class_name: str | None) -> Callable[[tuple[int, int]], np.ndarray] | None:
        """
        Return what opens the mask of a product for a photograph of some (height, width), `None` where it keeps none.

        It raises an `ImageError` for a photograph of another size than the mask.
        """
        if class_name not in self.config.ignore_mask_sizes:
            return None
        return functools.partial(self._fitting, class_name)

    def _fitting(self, class_name: str, size: tuple[int, int]) -> np.ndarray:
        height, width = self.config.ignore_mask_sizes[class_name]
        if (height, width) != tuple(size):
            raise ImageError(
                f"{class_name!r} keeps an ignore_mask of {width} x {height} pixels, and this photograph has {size[1]} x "
                f"{size[0]}: give one of its own size as ignore_mask, or 'none' to have all of it count."
            )
        return self.of(class_name)


class KeptMasksMixin:
    """Methods of [`AnoPLeModel`] that keep a product's ignore mask."""

    def set_ignore_mask(self, class_name: str, mask: Any, *, date: str | None = None) -> None:
        """
        Keep what does not count on all photographs of a product, from now on wherever no other mask is given.

        It is used as one that is given: in score, map, explanation, and for photographs that are added or calibrate it
        later. What the product has learnt before stays as it is, its line too; [`enroll`] with `ignore_mask` learns with
        the mask. No other product is touched.

        Args:
            class_name: the product.
            mask: anything that [`load_photograph`] opens, of the photographs' size; what is above 0 is ignored. `None`
                keeps none any more.
            date: ISO date for the log; by default now.

        Raises:
            ValueError: for an unknown product, or a mask that marks nothing or leaves no patch that counts.
            ImageError: if the mask cannot be read.
        """
        class_id, class_name = self._known(class_name)
        marked = None if mask is None else load_mask(mask)
        if marked is not None:
            if not marked.any():
                raise ValueError("The ignore_mask marks nothing: paint white what shall not count, or give None.")
            if tiling_of(self.config, class_name) is None and self.leaves_nothing(marked):
                raise ValueError("The ignore_mask leaves no patch that counts: mark less of the photograph.")
            if self.memory.counts[class_id]:
                logger.info(
                    "%s was learnt before this ignore_mask; its memory and its line stay as they are.", class_name
                )
        self.masks.keep(class_name, marked, self.device)
        self.log_history("keep_ignore_mask" if mask is not None else "drop_ignore_mask", class_name, date=date)

    def leaves_nothing(self, mask: np.ndarray) -> bool:
        """Say whether a mask (height, width) leaves no patch of the whole photograph that counts."""
        whole = mask_tensor(mask, self.config.image_size)[None]
        return bool(ignored_patches(whole, self.config.grid_size).all())

    def ignore_mask_for(self, class_name: str, given: Any) -> Any:
        """Return the mask given with a call, or else the product's own."""
        return self.masks.wanted(class_name) if given is None else given


def kept_masks(model: Any) -> KeptMasks | None:
    """Return what products keep where photographs are judged as the product that is named."""
    return None if model.config.class_identity == "predicted" else model.masks


def _bytes_of(size: list[int]) -> int:
    return -(-size[0] * size[1] // 8)


__all__ = [
    "KeptMask",
    "KeptMasks",
    "KeptMasksMixin",
    "composed",
    "did_you_mean",
    "kept_masks",
]
