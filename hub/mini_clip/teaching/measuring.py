"""
Measure what pupils learned by the memory bank alone.

    python -m hub.mini_clip.teaching.measuring DATA CHECKPOINT --blocks 4 6

The protocol is that of `hub.mini_clip.measure`, with any blocks. For reporting only: what is chosen is chosen on made
products (`hub.mini_clip.teaching.judging`) and on drawn ones.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import CLIPModel

from modeling_anople.backbone_anople import clip_source

from ..architecture import MEAN, STD
from ..features import PatchFeatures, tower_features
from ..measure import measure, to_markdown
from .features import Teacher


def checkpoint_features(folder: str, blocks: Sequence[int]) -> PatchFeatures:
    """Take a checkpoint's residual stream after `blocks`, counted from 1."""
    clip = CLIPModel.from_pretrained(clip_source(folder), dtype=torch.float32).eval()
    return tower_features(clip, tuple(block - 1 for block in blocks), mean=MEAN, std=STD)


def teacher_features(folder: str, blocks: Sequence[int], zoom: int = 1) -> PatchFeatures:
    """Take a teacher's stream after `blocks`, on the pupil's grid of places."""
    teacher = Teacher(folder, blocks=blocks, zoom=zoom)
    return lambda images: list(teacher(images).unbind(1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the figures where asked for, and show the table."""
    parser = argparse.ArgumentParser(
        prog="python -m hub.mini_clip.teaching.measuring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("data", type=Path, help="data set folder")
    parser.add_argument("checkpoint", help="folder of a CLIP, mini, or with --teacher of any vision model")
    parser.add_argument(
        "--blocks", type=int, nargs="+", action="append", help="counted from 1; several times for more"
    )
    parser.add_argument("--teacher", action="store_true", help="the folder is a teacher's")
    parser.add_argument("--zoom", type=int, default=1, help="places of the teacher along one of the pupil")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(arguments)
    kinds = {}
    for blocks in options.blocks or [[4, 6]]:
        name = f"{Path(options.checkpoint).name}, blocks {' '.join(map(str, blocks))}"
        if options.teacher:
            kinds[name] = teacher_features(options.checkpoint, blocks, options.zoom)
        else:
            kinds[name] = checkpoint_features(options.checkpoint, blocks)
    results = measure(options.data, kinds, shots=options.shots, seeds=options.seeds)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(to_markdown(results))


if __name__ == "__main__":
    main()
