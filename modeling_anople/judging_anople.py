"""Whole photographs in a batch, each with the mask that its product keeps, and one answer for each."""

from typing import Any

import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature

from .ignoring_anople import ignored_patches
from .outputs_anople import AnoPLeOutput
from .photographs_anople import ImageError
from .processing_anople import AnoPLeProcessor
from .reading_anople import Batch


@torch.no_grad()
def judge_batch(model: Any, processor: AnoPLeProcessor, batch: Batch) -> AnoPLeOutput | None:
    """
    Judge the prepared photographs of a batch as wholes.

    Where none is named and products keep masks, all are judged as they came, which finds out what they show. If a product
    that was found keeps a mask, it is laid over its photographs and the batch is judged once more, in the same shape, so
    that the answers of the others stay the same (bit for bit; a graph runs each product apart, and its last digits move).

    Args:
        model: a detector, or a graph of one.
        batch: of [`read_batches`]; its masks, pixels and errors are brought to what was judged.

    Returns:
        A row for each photograph that could be judged; `None` if there is none.
    """
    if batch.inputs is None:
        return None
    output, failed = model(**_inputs_for(model, batch)), {}
    if not model.masks.is_empty and model.finds_out("class_ids" in batch.inputs):
        laid, failed = _lay_kept_masks(model, processor, batch, output.class_ids)
        if laid:
            output = _judge_again(model, batch, output.class_ids)
    for row in _without_patches(model, batch):
        failed.setdefault(row, "The ignore_mask leaves no patch that counts: mark less of the photograph.")
    if not failed:
        return output
    kept = [row for row in range(len(batch.opened)) if row not in failed]
    batch.refuse(failed)
    rows = {name: value[kept] for name, value in output.items() if isinstance(value, Tensor)}
    return AnoPLeOutput(**rows) if kept else None


def _inputs_for(model: Any, batch: Batch) -> BatchFeature:
    inputs = batch.inputs.to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs


def _lay_kept_masks(
    model: Any, processor: AnoPLeProcessor, batch: Batch, class_ids: Tensor
) -> tuple[bool, dict[int, str]]:
    """
    Lay the masks of the products that were found over the photographs without one, in place.

    Returns:
        Whether there was one to lay, and an error for each photograph whose mask does not fit.
    """
    pixels, laid, failed = batch.inputs["pixel_values"], False, {}
    for row, ((photograph, mask, name), class_id) in enumerate(zip(batch.opened, class_ids.tolist(), strict=True)):
        wanted = model.masks.wanted(model.config.class_names[class_id]) if mask is None else None
        if wanted is None:
            continue
        try:
            mask = wanted(photograph.size[::-1])
        except ImageError as error:
            failed[row] = str(error)
            continue
        prepared, laid = processor([photograph], ignore_masks=[mask]), True
        pixels[row] = prepared["pixel_values"][0]
        if "ignore_masks" not in batch.inputs:
            batch.inputs["ignore_masks"] = torch.zeros(len(pixels), *prepared["ignore_masks"].shape[1:])
        batch.inputs["ignore_masks"][row] = prepared["ignore_masks"][0]
        batch.opened[row] = (photograph, mask, name)
    return laid, failed


def _judge_again(model: Any, batch: Batch, class_ids: Tensor) -> AnoPLeOutput:
    """Judge photographs under their masks as the products that they were found to show without."""
    inputs = _inputs_for(model, batch)
    output = model(**{**inputs, "class_ids": class_ids}, exclude=(0, slice(0, 0)))
    ignored = ignored_patches(inputs["ignore_masks"], model.config.grid_size)
    output.known_products = model.recognise(output.memory_maps, output.image_embeds, class_ids, ignored)
    return output


def _without_patches(model: Any, batch: Batch) -> list[int]:
    """Name the rows of which nothing counts."""
    if "ignore_masks" not in batch.inputs:
        return []
    ignored = ignored_patches(batch.inputs["ignore_masks"], model.config.grid_size)
    return ignored.flatten(1).all(1).nonzero()[:, 0].tolist()


__all__ = ["judge_batch"]
