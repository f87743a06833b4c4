"""Alarms of fitting: does the decoder look at the image at all? (paper.md section 7)"""

import logging
from dataclasses import asdict, dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from .fusion_anople import resize_maps
from .modeling_anople import AnoPLeModel


logger = logging.getLogger(__name__)

SMALLEST_SPREAD = 0.05
SMALLEST_ADVANTAGE = 0.02


@dataclass
class DecoderHealth:
    """
    What the decoder answers on made defects over photographs that fitting did not see.

    Args:
        auroc: pixel AUROC of the decoder's maps.
        shuffled_auroc: the same with every map laid on another image: what a map that ignores its image reaches.
        feature_spread: root mean square distance of the unit-length features from their mean over places, 0 to 1.
        inside, outside: mean probability on defects and off them.
    """

    auroc: float
    shuffled_auroc: float
    feature_spread: float
    inside: float
    outside: float

    @property
    def problems(self) -> list[str]:
        """Say in words what is wrong; empty if nothing is."""
        found = []
        if self.feature_spread < SMALLEST_SPREAD:
            found.append(f"its features hardly vary over the image (spread {self.feature_spread:.3f})")
        if self.auroc - self.shuffled_auroc < SMALLEST_ADVANTAGE:
            found.append(
                f"its maps fit other images as well (AUROC {self.auroc:.3f}, shuffled {self.shuffled_auroc:.3f})"
            )
        return found

    def warn(self) -> None:
        """Log a warning with the remedy if the decoder has collapsed."""
        if self.problems:
            logger.warning(
                "The decoder has collapsed: %s. Train longer, raise --decoder_learning_rate, or lower "
                "--alignment_loss_weight; until then --map_fusion memory does without it.",
                " and ".join(self.problems),
            )

    def describe(self) -> str:
        """Say the figures in one sentence."""
        return (
            f"The decoder's maps find made defects with pixel AUROC {self.auroc:.3f}; maps of other photographs in their "
            f"place reach {self.shuffled_auroc:.3f}."
        )

    def as_dict(self) -> dict[str, float]:
        """Return the figures, rounded for a log."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@torch.no_grad()
def check_decoder(model: AnoPLeModel, batch: dict[str, Tensor], *, batch_size: int = 8) -> DecoderHealth:
    """
    Measure the decoder on a fixed set of global views with made defects.

    Args:
        model: in evaluation mode, its class embeddings stored.
        batch: pixel_values (images, 3, side, side), class_ids and mask_labels; the images in any order.
    """
    maps, spreads = [], []
    for pixels, ids in zip(batch["pixel_values"].split(batch_size), batch["class_ids"].split(batch_size), strict=True):
        features = model.encode_views(pixels)
        decoded = model.decoder(features.patches, features.taps, model.class_embeddings[ids])
        places = decoded.features.float().flatten(2)
        spreads.append((places - places.mean(2, keepdim=True)).square().sum(1).mean(1).sqrt())
        maps.append(decoded.logits.float().softmax(1)[:, 1])
    return judge_maps(torch.cat(maps), batch["mask_labels"], feature_spread=float(torch.cat(spreads).mean()))


def judge_maps(maps: Tensor, masks: Tensor, *, feature_spread: float) -> DecoderHealth:
    """
    Compare maps (images, rows, columns) with their masks (images, height, width), and with those of other images.

    Args:
        masks: at least one pixel marked and one not.
    """
    masks = masks.cpu()
    maps = resize_maps(maps, tuple(masks.shape[-2:])).cpu()
    marked = masks.flatten().numpy() > 0.5
    return DecoderHealth(
        auroc=float(roc_auc_score(marked, maps.flatten().numpy())),
        shuffled_auroc=float(roc_auc_score(marked, maps.roll(1, dims=0).flatten().numpy())),
        feature_spread=feature_spread,
        inside=float(maps[masks > 0.5].mean()),
        outside=float(maps[masks <= 0.5].mean()),
    )


__all__ = ["DecoderHealth", "check_decoder", "judge_maps"]
