"""
Judge photographs by a detector from the Hub with nothing but transformers: `python judge_from_hub.py user/name PATHS`.

The code that runs is the one that came with the detector; this file imports nothing of the project.
"""

import hashlib
import json
import sys

import torch
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin


def judge(model: PreTrainedModel, processor: ProcessorMixin, paths: list[str]) -> list[dict]:
    """Answer for each photograph: calibrated score (`None` without a line), raw score, and a hash of the map's values."""
    answers = []
    with torch.inference_mode():
        for path in paths:
            output = model(**processor(images=path))
            calibrated, anomaly_map = output.calibrated_scores, output.anomaly_maps.contiguous().numpy()
            answers.append(
                {
                    "score": None if calibrated is None else float(calibrated),
                    "raw_score": float(output.image_scores),
                    "map": hashlib.sha256(anomaly_map.tobytes()).hexdigest(),
                }
            )
    return answers


def main() -> None:
    """Load by name, judge and print the answers as JSON."""
    name, revision, *paths = sys.argv[1:]
    options = {"trust_remote_code": True, "revision": revision}
    model, processor = (kind.from_pretrained(name, **options) for kind in (AutoModel, AutoProcessor))
    if "modeling_anople" in sys.modules:
        raise SystemExit("The installed package was used, not the code that came with the detector.")
    sys.stdout.write(json.dumps(judge(model, processor, paths)))


if __name__ == "__main__":
    main()
