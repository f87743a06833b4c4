"""Whole photographs in a batch, each with the mask that its product keeps, and one answer for each."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .ignoring_anople import ignored_patches
from .outputs_anople import AnoPLeOutput
from .photographs_anople import ImageError
from .processing_anople import AnoPLeProcessor
from .reading_anople import Batch


@torch.no_grad()
def judge_batch(model: Any, processor: AnoPLeProcessor, batch: Batch) -> AnoPLeOutput | None:
    """
    Judge the prepared photographs of a batch as wholes.

    Where none is named and products keep masks, each photograph's product is found out on it as it came, and then its mask
    is laid over it. The others are judged in a batch of the same shape as without masks, so their answers stay the same,
    bit for bit.

    Args:
        model: a detector, or a graph of one, which keeps no masks.
        batch: of [`read_batches`]; its masks, pixels and errors are brought to what was judged.

    Returns:
        A row for each photograph that could be judged; `None` if there is none.
    """
    if batch.inputs is None:
        return None
    class_ids, failed = _lay_kept_masks(model, processor, batch)
    inputs = batch.inputs.to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    ignored = None
    if "ignore_masks" in inputs:
        ignored = ignored_patches(inputs["ignore_masks"], model.config.grid_size)
        for row in ignored.flatten(1).all(1).nonzero()[:, 0].tolist():
            failed.setdefault(row, "The ignore_mask leaves no patch that counts: mark less of the photograph.")
    if class_ids is None:
        output = model(**inputs)
    else:  # found out before masks were laid over, which might else change what is found
        output = model(**{**inputs, "class_ids": class_ids}, exclude=(0, slice(0, 0)))
        output.known_products = model.recognise(output.memory_maps, output.image_embeds, class_ids, ignored)
    if not failed:
        return output
    kept = [row for row in range(len(batch.opened)) if row not in failed]
    batch.refuse(failed)
    rows = {name: value[kept] for name, value in output.items() if isinstance(value, Tensor)}
    return AnoPLeOutput(**rows) if kept else None


def _lay_kept_masks(model: Any, processor: AnoPLeProcessor, batch: Batch) -> tuple[Tensor | None, dict[int, str]]:
    """
    Find out the products of unnamed photographs and lay their masks over them, in place.

    Returns:
        Their class ids, or `None` where that was not needed; and an error for each whose mask does not fit.
    """
    masks, identity = getattr(model, "masks", None), model.config.class_identity
    named = "class_ids" in batch.inputs and identity != "predicted"
    if masks is None or masks.is_empty or named or identity == "pooled":
        return None, {}
    pixels, failed = batch.inputs["pixel_values"], {}
    embeds = F.normalize(model.encode_views(pixels.to(model.device, model.dtype)).pooled, dim=-1)
    class_ids = model.identify(embeds, model.class_embeddings, None)
    for row, ((photograph, mask, name), class_id) in enumerate(zip(batch.opened, class_ids.tolist(), strict=True)):
        wanted = masks.wanted(model.config.class_names[class_id]) if mask is None else None
        if wanted is None:
            continue
        try:
            mask = wanted(photograph.size[::-1])
        except ImageError as error:
            failed[row] = str(error)
            continue
        laid = processor([photograph], ignore_masks=[mask])
        pixels[row] = laid["pixel_values"][0]
        if "ignore_masks" not in batch.inputs:
            batch.inputs["ignore_masks"] = torch.zeros(len(pixels), *laid["ignore_masks"].shape[1:])
        batch.inputs["ignore_masks"][row] = laid["ignore_masks"][0]
        batch.opened[row] = (photograph, mask, name)
    return class_ids, failed


__all__ = ["judge_batch"]
