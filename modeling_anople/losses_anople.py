"""The losses of AnoPLe: pixels (focal + Dice), images (contrastive cross-entropy) and alignment (paper.md 1.8)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_anople import AnoPLeConfig


@dataclass
class LossTerm:
    """
    One loss as a sum over its samples and their number.

    The mean is taken late, so that several processes, each with another number of positive views, can divide by the
    number all of them saw and reach the loss of one process.
    """

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over this process' samples; 0 where there is none, with a gradient of 0."""
        return self.total / self.count.clamp(min=1)


def focal_loss(margins: Tensor, mask: Tensor, *, gamma: float) -> LossTerm:
    """
    Focal loss averaged over each image's pixels (Lin et al., 2017; gamma 2, no alpha).

    Args:
        margins: (views, height, width), abnormal minus normal logit: a softmax over two is a sigmoid of their difference.
        mask: (views, height, width), 1 where anomalous.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(margins, mask, reduction="none")
    missing = 1 - (-cross_entropy).exp()
    per_view = (missing**gamma * cross_entropy).flatten(1).mean(1)
    return LossTerm(per_view.sum(), _count(per_view))


def dice_loss(probability: Tensor, mask: Tensor) -> LossTerm:
    """
    Dice loss 1 - (2 sum(pm) + 1) / (sum p + sum m + 1) of each view with a marked pixel (paper.md 1.8).

    Others do not count: on an empty mask it rests near 1 with hardly a gradient, and most views are empty.

    Args:
        probability: (views, height, width) of being anomalous.
        mask: (views, height, width), 1 where anomalous.
    """
    p, m = probability.float().flatten(1), mask.float().flatten(1)
    per_view = 1 - (2 * (p * m).sum(1) + 1) / (p.sum(1) + m.sum(1) + 1)
    chosen = mask.flatten(1).any(1)
    return LossTerm((per_view * chosen).sum(), chosen.sum())


def contrastive_loss(logits: Tensor, labels: Tensor) -> LossTerm:
    """
    Cross-entropy of images against their class' normal and abnormal text.

    Args:
        logits: (samples, 2).
        labels: (samples,) 0 normal, 1 anomalous, -1 left out.
    """
    chosen = labels >= 0
    per_sample = F.cross_entropy(logits.float(), labels.clamp(min=0), reduction="none")
    return LossTerm((per_sample * chosen).sum(), chosen.sum())


def alignment_loss(pooled: Tensor, features: Tensor, probability: Tensor, labels: Tensor, *, detach: str) -> LossTerm:
    """
    Pull an anomalous image's global feature towards its local evidence: 1 - <z_0, s>, s = sum_ij M_ij D_ij(z).

    Both sides have unit length, otherwise the product has no bound. Normal images are left out: their map goes to 0 and
    s to noise.

    Args:
        pooled: (views, width), unit length.
        features: (views, width, rows, columns), D_ij(z).
        probability: (views, rows, columns), M_ij.
        labels: (views,); views labelled 1 count.
        detach: `none` (literal), `decoder` (no gradient into s), `map` (none into M).
    """
    if detach == "map":
        probability = probability.detach()
    evidence = torch.einsum("bdhw,bhw->bd", features.float(), probability.float())
    evidence = F.normalize(evidence, dim=-1)
    if detach == "decoder":
        evidence = evidence.detach()
    chosen = labels == 1
    per_view = 1 - (pooled.float() * evidence).sum(-1)
    return LossTerm((per_view * chosen).sum(), chosen.sum())


def view_labels(mask: Tensor, config: AnoPLeConfig) -> Tensor:
    """
    Label views by the share of marked pixels: 1 from `min_positive_fraction` on, 0 without any, -1 (left out) between.

    Args:
        mask: (views, height, width).
    """
    share = mask.float().flatten(1).mean(1)
    return torch.where(share >= config.min_positive_fraction, 1, torch.where(share > 0, -1, 0))


def seeded_noise(seeds: Tensor | None, like: Tensor) -> Tensor:
    """Draw standard normal noise shaped `like`, row by row from the given seeds, or from torch's own generator."""
    if seeds is None:
        return torch.randn_like(like)
    rows = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return torch.stack(rows).to(like)


def loss_weights(config: AnoPLeConfig) -> dict[str, float]:
    """Read the weight of each loss term; the pixel loss is the sum of focal and Dice."""
    return {
        "focal": config.pixel_loss_weight,
        "dice": config.pixel_loss_weight,
        "image": config.image_loss_weight,
        "alignment": config.alignment_loss_weight,
    }


def total_loss(terms: dict[str, LossTerm], weights: dict[str, float]) -> Tensor:
    """Sum the terms' means by weight; a term without a weight is left out."""
    return sum(weights[name] * term.mean for name, term in terms.items() if weights.get(name))


@dataclass
class Answers:
    """
    What the losses look at, for one batch of views.

    Args:
        pooled: (views, width) unit-length global features z_0.
        text: (views, 2, width) unit-length class embeddings, normal and abnormal.
        features: (views, width, rows, columns) decoded D_ij(z).
        logits: (views, 2, rows, columns) of the map.
    """

    pooled: Tensor
    text: Tensor
    features: Tensor
    logits: Tensor


def detector_losses(
    config: AnoPLeConfig, answers: Answers, *, masks: Tensor, labels: Tensor, seeds: Tensor | None
) -> dict[str, LossTerm]:
    """
    Measure every loss of paper.md 1.8, latent anomalies included (1.7).

    Args:
        masks: (views, height, width), 1 where anomalous.
        labels: (views,) 1 anomalous, 0 normal, -1 left out.
        seeds: (views,) of the latent noise.
    """
    # latent anomalies: the global feature of each normal view once more, moved off the manifold
    pooled, image_labels = [answers.pooled], [labels]
    if config.latent_noise > 0:
        noise = config.latent_noise * seeded_noise(seeds, answers.pooled)
        pooled.append(F.normalize(answers.pooled + noise, dim=-1))
        image_labels.append(torch.where(labels == 0, 1, -1))
    with torch.autocast(masks.device.type, enabled=False):  # einsum would fall back to bfloat16
        masks, margins = masks.float(), answers.logits.float().diff(dim=1)
        margins = F.interpolate(margins, size=masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        text = answers.text.float()
        text_logits = [torch.einsum("bd,bcd->bc", z.float(), text) / config.temperature for z in pooled]
        return {
            "focal": focal_loss(margins, masks, gamma=config.focal_gamma),
            "dice": dice_loss(margins.sigmoid(), masks),
            "image": contrastive_loss(torch.cat(text_logits), torch.cat(image_labels)),
            "alignment": alignment_loss(
                answers.pooled,
                answers.features,
                answers.logits.float().softmax(1)[:, 1],
                labels,
                detach=config.alignment_detach,
            ),
        }


def _count(values: Tensor) -> Tensor:
    return torch.tensor(len(values), device=values.device)


__all__ = [
    "Answers",
    "LossTerm",
    "alignment_loss",
    "contrastive_loss",
    "detector_losses",
    "dice_loss",
    "focal_loss",
    "loss_weights",
    "seeded_noise",
    "total_loss",
    "view_labels",
]
