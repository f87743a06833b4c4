"""Which product a photograph shows, and whether it shows any of them."""

import torch
from torch import Tensor
from torch.nn import functional as F


SMALLEST_STRANGENESS = 1e-5  # what is below is rounding


class IdentityMixin:
    """Methods of [`AnoPLeModel`] that find out as which class a photograph is judged."""

    def identify(
        self, pooled: Tensor, embeddings: Tensor, class_ids: Tensor | None, *, known: bool = False
    ) -> Tensor | None:
        """Decide as which class each image is judged (paper.md 3.4): (batch,) ids on the CPU, or `None` for all pooled."""
        config = self.config
        if config.class_identity == "pooled" and not self.training:
            return None
        if class_ids is not None and (config.class_identity == "given" or self.training or known):
            self.check_ids(class_ids)
            return class_ids.cpu()
        prototypes = config.class_prediction == "prototype" and not self.memory.is_empty
        anchors = F.normalize(self.class_prototypes, dim=-1) if prototypes else embeddings[:, 0]
        return (pooled @ anchors.to(pooled.dtype).T).argmax(1).cpu()

    def finds_out(self, named: bool) -> bool:
        """Say whether the class of a photograph, which a user named or not, is predicted."""
        identity = self.config.class_identity
        return identity == "predicted" or (identity == "given" and not named)

    def check_ids(self, class_ids: Tensor) -> None:
        """Refuse ids of no class."""
        count, ids = len(self.config.class_names), class_ids.cpu()
        if not torch.compiler.is_compiling() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
            raise ValueError(f"class_ids must lie within 0 and {count - 1}, got {class_ids.tolist()}.")

    def recognise(
        self,
        memory_maps: Tensor | None,
        image_embeds: Tensor,
        class_ids: Tensor | None,
        ignored: Tensor | None = None,
    ) -> Tensor | None:
        """
        Say of images whose class was predicted whether they show a known product at all.

        An image is unknown where its [`strangeness`] lies above the line of the class that it is nearest to. The line
        was found from that class' normals alone (see [`calibrate`]); a defect does not reach it while it covers less
        than half of the photograph.

        Returns:
            (batch,) bool, or `None` where that cannot be told: pooled, without memory or lines, or turned off.
        """
        if class_ids is None or memory_maps is None or not self.config.unknown_product_rate:
            return None
        lines = self.calibration.product_lines(class_ids)
        if lines is None:
            return None
        values = strangeness(memory_maps, image_embeds, self.class_prototypes[class_ids], ignored)
        return (values <= lines.to(values)).all(1)


def strangeness(
    memory_maps: Tensor, image_embeds: Tensor, prototypes: Tensor, ignored: Tensor | None = None
) -> Tensor:
    """
    Measure how unlike a product images are as wholes: (batch, 2), at least `SMALLEST_STRANGENESS`.

    Args:
        memory_maps: (batch, grid, grid) distances to the product's nearest normal patches; their median counts.
        image_embeds: (batch, width) global features of unit length.
        prototypes: (batch, width) or (1, width) mean global feature of the product's normals; (1 - cosine) / 2 counts.
        ignored: (batch, grid, grid) patches that do not count.
    """
    distances = memory_maps.float() if ignored is None else memory_maps.float().masked_fill(ignored, torch.nan)
    medians = distances.flatten(1).nanmedian(1).values
    cosines = F.cosine_similarity(image_embeds.float(), prototypes.float(), dim=-1)
    return torch.stack([medians, (1 - cosines) / 2], dim=1).clamp(min=SMALLEST_STRANGENESS)


__all__ = ["IdentityMixin", "strangeness"]
