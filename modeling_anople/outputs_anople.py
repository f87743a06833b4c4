"""What a detector answers."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from .losses_anople import LossTerm


@dataclass
class AnoPLeOutput(ModelOutput):
    """
    Hold the answers of an [`AnoPLeModel`]. Raw values order the photographs of one class; calibrated ones are comparable.

    Args:
        loss (`Tensor`, *optional*): weighted sum of the losses, with `mask_labels`.
        loss_terms (`dict[str, LossTerm]`, *optional*): focal, dice, image and alignment loss as sum and count.
        image_scores (`Tensor` of shape (batch,)): raw image score, higher is more anomalous.
        anomaly_maps (`Tensor` of shape (batch, side, side)): raw fused map, upsampled and smoothed.
        calibrated_scores (`Tensor` of shape (batch,), *optional*): 0.5 is the line of the class.
        calibrated_maps (`Tensor` of shape (batch, side, side), *optional*): 0.5 is the line of the class.
        p_values (`Tensor` of shape (batch,), *optional*): conformal p-value among the class' normals, NaN where unknown.
        text_scores (`Tensor` of shape (batch,)): probability of the abnormal text against the normal one.
        decoder_maps (`Tensor` of shape (batch, rows, columns)): the decoder's anomaly probability.
        memory_maps (`Tensor` of shape (batch, grid, grid), *optional*): distance to the nearest normal patch.
        class_ids (`Tensor` of shape (batch,), *optional*): the class each image was judged as; absent when pooled.
        known_products (`Tensor` of shape (batch,), *optional*): whether an image shows the class predicted for it.
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
    text_scores: Tensor | None = None
    decoder_maps: Tensor | None = None
    memory_maps: Tensor | None = None
    class_ids: Tensor | None = None
    known_products: Tensor | None = None
    image_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


__all__ = ["AnoPLeOutput"]
