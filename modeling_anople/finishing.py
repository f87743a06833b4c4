"""What turns a fitted model into a detector: class embeddings, memory, lines, and a look at its decoder."""

import dataclasses
import logging

from .modeling_anople import AnoPLeModel
from .monitoring import DecoderHealth, check_decoder
from .normals_anople import digest_of
from .options import TrainingConfig
from .photographs_anople import load_photograph
from .processing_anople import AnoPLeProcessor
from .shots import Shots
from .support_anople import describe_support
from .views_anople import Views


logger = logging.getLogger(__name__)


def finish(
    model: AnoPLeModel, processor: AnoPLeProcessor, shots: Shots, watched: dict | None, config: TrainingConfig
) -> DecoderHealth | None:
    """Store class embeddings, fill the memory, set the lines and check the decoder."""
    model.eval()
    model.store_class_embeddings()
    device = model.device
    names = model.config.class_names
    pixels, digests = [], []
    for class_id in range(len(shots.files)):
        images = [image for image, owner in zip(shots.images, shots.class_ids, strict=True) if owner == class_id]
        photographs = [load_photograph(image, white_value=processor.white_value) for image in images]
        digests.append([digest_of(photograph) for photograph in photographs])
        mask, tiling = model.masks.wanted(names[class_id]), model.config.tiling
        if tiling or mask:
            masks = [mask(photograph.size[::-1]) if mask else None for photograph in photographs]
            pixels.append(
                [Views.of(one, processor, tiling, mask) for one, mask in zip(photographs, masks, strict=True)]
            )
        else:
            pixels.append(processor(photographs)["pixel_values"].to(device))
        model.remember(pixels[class_id], class_id, sizes=[photograph.size[::-1] for photograph in photographs])
    statements: dict[str, list[str]] = {}
    for class_id in range(len(shots.files)):  # where classes are predicted or pooled, a line needs every memory
        line = model.calibrate(pixels[class_id], class_id, max_false_alarm_rate=config.max_false_alarm_rate)
        statements.setdefault(describe_support(dataclasses.asdict(line)), []).append(names[class_id])
    for statement, owners in statements.items():
        logger.info("%s: %s", ", ".join(owners), statement)
    for class_id, (name, files) in enumerate(shots.files.items()):
        model.log_history("fit", name, files=files, digests=digests[class_id])
    if watched is None:
        return None
    health = check_decoder(model, {name: values.to(device) for name, values in watched.items()})
    logger.info("%s", health.describe())
    health.warn()
    return health


__all__ = ["finish"]
