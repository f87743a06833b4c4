"""What a detector answers: text, decoder and memory fused into scores and maps, and which product an image shows."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .calibration_anople import are_unsure, calibrate, p_values
from .configuration_anople import AnoPLeConfig
from .images_anople import mask_out
from .losses_anople import LossTerm
from .product_store_anople import ProductStore


# --- What a detector answers ---


@dataclass
class AnoPLeOutput(ModelOutput):
    """
    Hold the answers of an [`AnoPLeModel`]. Raw values order the images of one class; calibrated ones are comparable.

    Args:
        loss (`Tensor`, *optional*): weighted sum of the losses, with `mask_labels`.
        loss_terms (`dict[str, LossTerm]`, *optional*): focal, dice, image and alignment loss as sum and count.
        image_scores (`Tensor` of shape (batch,)): raw image score, higher is more anomalous.
        anomaly_maps (`Tensor` of shape (batch, side, side)): raw fused map, upsampled and smoothed.
        calibrated_scores (`Tensor` of shape (batch,), *optional*): 0.5 is the threshold of the class; NaN for an image whose
            class has none, and absent where none has.
        calibrated_maps (`Tensor` of shape (batch, side, side), *optional*): likewise.
        p_values (`Tensor` of shape (batch,), *optional*): conformal p-value among the class' normals, NaN where unknown.
        is_unsure (`Tensor` of shape (batch,), *optional*): whether an image is odder than every good one of its class,
            beyond which its threshold was extrapolated.
        text_scores (`Tensor` of shape (batch,)): probability of the abnormal text against the normal one.
        decoder_maps (`Tensor` of shape (batch, rows, columns)): the decoder's anomaly probability.
        memory_maps (`Tensor` of shape (batch, grid, grid), *optional*): distance to the nearest normal patch.
        class_ids (`Tensor` of shape (batch,), *optional*): the class each image was judged as; absent when pooled.
        is_known_class (`Tensor` of shape (batch,), *optional*): whether an image shows the class predicted for it.
        image_embeds (`Tensor` of shape (batch, joint width)): unit-length global feature.
        hidden_states, attentions (`tuple`, *optional*): of the vision tower, when asked for.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, LossTerm] | None = None
    image_scores: Tensor | None = None
    anomaly_maps: Tensor | None = None
    calibrated_scores: Tensor | None = None
    calibrated_maps: Tensor | None = None
    p_values: Tensor | None = None
    is_unsure: Tensor | None = None
    text_scores: Tensor | None = None
    decoder_maps: Tensor | None = None
    memory_maps: Tensor | None = None
    class_ids: Tensor | None = None
    is_known_class: Tensor | None = None
    image_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def broken_answers(output: AnoPLeOutput) -> list[str | None]:
    """
    Name for each image what of its answer is no finite number, `None` where all is well.

    Whatever a verdict rests on counts: the raw score, the raw map, and the global feature by which a class is predicted.
    """
    broken: list[str | None] = [None] * len(output.image_scores)
    for name, what in (("image_embeds", "global feature"), ("anomaly_maps", "anomaly map"), ("image_scores", "score")):
        if (values := getattr(output, name)) is not None:
            finite = values.reshape(len(values), -1).isfinite().all(1).tolist()
            broken = [old if whole else what for old, whole in zip(broken, finite, strict=True)]
    return broken


# --- How several answers become one: means of scores, upsampling and smoothing of maps (paper.md 1.9) ---


SMALLEST_PROBABILITY = 1e-4  # of which, and of its complement, log odds are taken


def harmonic_mean(first: Tensor, second: Tensor, *, floor: float = 1e-6) -> Tensor:
    """Harmonic mean 2ab / (a + b) of two scores within 0 and 1; both are raised to `floor` so that neither can be 0."""
    first, second = first.clamp(floor, 1.0), second.clamp(floor, 1.0)
    return 2 * first * second / (first + second)


def log_odds(probabilities: Tensor) -> Tensor:
    """Log odds of scores within 0 and 1, which are first brought within 0.0001 and 0.9999."""
    return probabilities.float().clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY).logit()


def weighted_pool(first: Tensor, *others: tuple[Tensor, float]) -> Tensor:
    """
    Pool scores within 0 and 1 into one: the log odds of the first plus those of the others, each times its weight.

    This is the logarithmic opinion pool (Genest and Zidek, Combining probability distributions, Statistical Science 1,
    1986). Where no other has a weight, the first is returned as it is.
    """
    weighing = [(values, weight) for values, weight in others if weight]
    if not weighing:
        return first
    return (log_odds(first) + sum(weight * log_odds(values) for values, weight in weighing)).sigmoid()


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps (batch, rows, columns) to another size by bilinear interpolation."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def smooth_maps(maps: Tensor, *, size: int, sigma: float) -> Tensor:
    """
    Upsample maps (batch, rows, columns) to (batch, size, size) and blur them.

    Args:
        sigma: standard deviation of the Gaussian as a share of the side; 0 blurs not. The kernel reaches 3 sigma and the
            border is mirrored.
    """
    maps = resize_maps(maps, (size, size))
    radius = min(math.ceil(3 * sigma * size), size - 1)
    if radius < 1:
        return maps
    places = torch.arange(-radius, radius + 1, device=maps.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / (sigma * size)) ** 2)
    kernel = (kernel / kernel.sum()).to(maps.dtype)
    maps = F.pad(maps.unsqueeze(1), (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(maps, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).squeeze(1)


def fuse_maps(decoder_maps: Tensor, memory_maps: Tensor | None, config: AnoPLeConfig) -> Tensor:
    """
    Fuse the decoder's and the memory's maps, then upsample and smooth: (batch, image side, image side).

    Args:
        decoder_maps: (batch, rows, columns) probabilities.
        memory_maps: (batch, grid, grid) distances, or `None` where nothing is remembered: the decoder answers alone.
    """
    if memory_maps is None or config.map_fusion == "decoder":
        fused = decoder_maps
    else:
        finer = max(tuple(maps.shape[-2:]) for maps in (decoder_maps, memory_maps))
        decoder_maps, memory_maps = resize_maps(decoder_maps, finer), resize_maps(memory_maps.float(), finer)
        if config.map_fusion == "weighted":
            fused = weighted_pool(memory_maps, (decoder_maps, _weight(config, "decoder_map")))
        else:
            fused = memory_maps if config.map_fusion == "memory" else harmonic_mean(decoder_maps, memory_maps)
    return smooth_maps(fused, size=config.input_size, sigma=config.smoothing)


def fuse_images(
    text_scores: Tensor, decoder_maps: Tensor, memory_maps: Tensor | None, fused_maps: Tensor, config: AnoPLeConfig
) -> Tensor:
    """Fuse the text score of each image with the maximum of a map, or of two: (batch,)."""
    maps = memory_maps if config.image_map == "memory" and memory_maps is not None else fused_maps
    peaks = _peaks(maps)
    if config.image_fusion == "harmonic":
        return harmonic_mean(text_scores, peaks)
    if config.image_fusion == "weighted":
        decoder = _peaks(decoder_maps), _weight(config, "decoder")
        return weighted_pool(peaks, decoder, (text_scores, _weight(config, "text")))
    return peaks if config.image_fusion == "map" else text_scores


def _peaks(maps: Tensor) -> Tensor:
    return maps.float().flatten(1).amax(1)


def _weight(config: AnoPLeConfig, part: str) -> float:
    return (config.fusion_weights or {}).get(part, 0.0)


def fuse_scores(output: AnoPLeOutput, ignored: Tensor | None, config: AnoPLeConfig) -> None:
    """
    Fuse text, decoder and memory into raw scores and maps, in place (paper.md 1.9).

    Args:
        output: with `text_scores`, `decoder_maps` and, unless nothing is remembered, `memory_maps`.
        ignored: (batch, grid, grid) patches that do not count.
    """
    output.memory_maps = mask_out(output.memory_maps, ignored)
    output.decoder_maps = mask_out(output.decoder_maps, ignored)
    output.anomaly_maps = mask_out(fuse_maps(output.decoder_maps, output.memory_maps, config), ignored)
    output.image_scores = fuse_images(
        output.text_scores, output.decoder_maps, output.memory_maps, output.anomaly_maps, config
    )


# --- Which product an image shows, and whether it shows any of them ---

SMALLEST_NOVELTY = 1e-5  # what is below is rounding


class Detector(ABC):
    """
    What judges images: the network, or an exported graph of it. Inference takes either by this type.

    Attributes:
        config: its configuration.
        products: what it knows of each product.
        device, dtype: where it computes, and with what.
    """

    config: AnoPLeConfig
    products: ProductStore
    device: torch.device
    dtype: torch.dtype
    training: bool

    @abstractmethod
    def __call__(
        self,
        pixel_values: Tensor,
        class_ids: Tensor | None = None,
        *,
        class_is_known: bool = False,
        exclude: tuple[int, slice] | None = None,
        ignore_masks: Tensor | None = None,
    ) -> AnoPLeOutput:
        """Judge images (batch, 3, side, side); arguments as of [`AnoPLeModel.forward`]."""

    @abstractmethod
    def embed_image(self, pixel_values: Tensor) -> Tensor:
        """Embed images (batch, 3, side, side) as wholes: unit length (batch, joint width)."""

    def identify(
        self, pooled: Tensor, class_ids: Tensor | None = None, *, class_is_known: bool = False
    ) -> Tensor | None:
        """
        Decide as which class each image is judged (paper.md 3.4).

        Args:
            pooled: (batch, joint width) global features of unit length.
            class_ids: (batch,) what the caller says of each image.
            class_is_known: whether that holds also where classes are predicted.

        Returns:
            (batch,) ids on the CPU, or `None` for all products pooled.
        """
        config = self.config
        if config.class_identity == "pooled" and not self.training:
            return None
        if class_ids is not None and (config.class_identity == "given" or self.training or class_is_known):
            self.check_class_ids(class_ids)
            return class_ids.cpu()
        if config.class_prediction == "prototype" and not self.products.remembers_nothing:
            anchors = F.normalize(self.products.prototypes(), dim=-1)
        else:
            anchors = self.products.text_embeddings()[:, 0]
        return (pooled @ anchors.to(pooled).T).argmax(1).cpu()

    def must_identify(self, named: bool) -> bool:
        """Say whether the class of an image, which a user named or not, is predicted."""
        identity = self.config.class_identity
        return identity == "predicted" or (identity == "given" and not named)

    def check_class_ids(self, class_ids: Tensor) -> None:
        """Refuse ids of no class."""
        count, ids = len(self.products), class_ids.cpu()
        if not torch.compiler.is_compiling() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
            raise ValueError(f"class_ids must lie within 0 and {count - 1}, got {class_ids.tolist()}.")

    def is_known_class(
        self,
        memory_maps: Tensor | None,
        image_embeds: Tensor,
        class_ids: Tensor | None,
        ignored: Tensor | None = None,
        *,
        reach: float = 1.0,
    ) -> Tensor | None:
        """
        Say of images whose class was predicted whether they show a known product at all.

        An image is of none where its [`novelty_scores`] lie above the thresholds of the class that it is nearest to. These
        were fitted to that class' normals alone; a defect does not reach them while it covers less than half of the image.

        Args:
            reach: how many times as far as its thresholds an image may be.

        Returns:
            (batch,) bool, or `None` where that cannot be told: pooled, without memory or thresholds, or turned off.
        """
        if class_ids is None or memory_maps is None or not self.config.unknown_product_rate:
            return None
        limits = self.novelty_thresholds(class_ids)
        if limits is None:
            return None
        prototypes = self.products.prototypes(class_ids.tolist()).to(image_embeds.device)
        scores = novelty_scores(memory_maps, image_embeds, prototypes, ignored)
        return (scores <= reach * limits.to(image_embeds.device)).all(1)

    def novelty_thresholds(self, class_ids: Tensor) -> Tensor | None:
        """Return the thresholds (batch, 2) of predicted classes, infinite where a class has none; `None` if none has."""
        limits = [threshold and threshold.novelty_thresholds for threshold in self.products.thresholds(class_ids, 0)]
        return torch.tensor([each or [math.inf, math.inf] for each in limits]) if any(limits) else None

    def apply_thresholds(self, output: AnoPLeOutput) -> None:
        """Add what thresholds say of raw scores and maps, in place; calibrated ones are NaN where the class has none."""
        thresholds = self.products.thresholds(output.class_ids, len(output.image_scores))
        if not any(thresholds):
            return
        output.calibrated_scores = calibrate(output.image_scores, thresholds, "image")
        output.calibrated_maps = calibrate(output.anomaly_maps, thresholds, "map")
        output.p_values = p_values(output.image_scores, thresholds)
        output.is_unsure = are_unsure(output.image_scores, thresholds)


def novelty_scores(
    memory_maps: Tensor, image_embeds: Tensor, prototypes: Tensor, ignored: Tensor | None = None
) -> Tensor:
    """
    Measure how unlike a product images are as wholes: (batch, 2), at least `SMALLEST_NOVELTY`.

    Args:
        memory_maps: (batch, ...) distances to the product's nearest normal patches; their median counts.
        image_embeds: (batch, width) global features of unit length.
        prototypes: (batch, width) or (1, width) mean global feature of the product's normals; (1 - cosine) / 2 counts.
        ignored: of the maps' shape, patches that do not count.
    """
    distances = memory_maps.float() if ignored is None else memory_maps.float().masked_fill(ignored, torch.nan)
    medians = distances.flatten(1).nanmedian(1).values
    cosines = F.cosine_similarity(image_embeds.float(), prototypes.float(), dim=-1)
    return torch.stack([medians, (1 - cosines) / 2], dim=1).clamp(min=SMALLEST_NOVELTY)


__all__ = [
    "AnoPLeOutput",
    "Detector",
    "broken_answers",
    "fuse_images",
    "fuse_maps",
    "fuse_scores",
    "harmonic_mean",
    "log_odds",
    "novelty_scores",
    "resize_maps",
    "smooth_maps",
    "weighted_pool",
]
