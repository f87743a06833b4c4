"""What tells one detector's state from another's, so that figures stay with the detector they were measured on."""

import hashlib
import json

from .modeling_anople import AnoPLeModel
from .weights_anople import hash_weights


def detector_sha256(model: AnoPLeModel) -> str:
    """
    Hash what a detector learnt: all weights but the CLIP's, names of products, lines and threshold.

    Returns:
        64 hexadecimal digits. The memory holds features of the CLIP, and thereby stands for it.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("clip.")}
    config = model.config
    lines = [config.class_names, config.calibration, config.threshold]
    text = json.dumps([hash_weights(own), *lines], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


__all__ = ["detector_sha256"]
