"""
A large encoder's patch features of gathered pictures, computed once.

    python -m hub.mini_clip.teaching.features OUT --teacher facebook/dinov2-small

They lie in one memory-mapped file of half floats beside the pictures, (pictures, blocks, places, width), each vector of
unit length. Kill it at any time and call it again: it goes on with the next picture.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from modeling_anople.runtime import start_logging

from ..features import GRID
from .pictures import read_manifest


BLOCKS = (5, 7)  # of the teacher, counted from 1: the best pair on made products, see hub.mini_clip.teaching.judging
FLUSH = 256  # pictures between two notes of how far it has come
OPEN_FACTS = ("done",)  # what changes in a cache's description while it fills


class Teacher:
    """A frozen vision model of transformers that describes a grid of 14 x 14 places, as the pupil's patches are.

    Args:
        source: folder or Hub id of a model whose outputs are a stream of tokens, the last of them its places.
        blocks: after which the stream is taken, counted from 1.
        zoom: places of the teacher along a place of the pupil; more than one are averaged.

    Raises:
        ValueError: for blocks that it lacks.
    """

    def __init__(self, source: str, *, blocks: Sequence[int] = BLOCKS, zoom: int = 1):
        model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
        self.model = getattr(model, "vision_model", model)
        config = self.model.config
        if not blocks or not 1 <= min(blocks) <= max(blocks) <= config.num_hidden_layers:
            raise ValueError(f"{source} has blocks 1 to {config.num_hidden_layers}; got {list(blocks)}.")
        leave_out_later_blocks(self.model, config.num_hidden_layers, max(blocks))
        self.blocks, self.zoom, self.width = tuple(blocks), zoom, config.hidden_size
        self.side = GRID * zoom * config.patch_size
        processor = AutoImageProcessor.from_pretrained(source)
        self.mean, self.std = (
            torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std)
        )

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Describe pictures (images, 3, 224, 224) from 0 to 1: unit vectors (images, blocks, 196, width)."""
        resized = F.interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        normal = (resized.clamp(0, 1) - self.mean) / self.std
        positions = {} if self.side == self.model.config.image_size else self._interpolated()
        states = self.model(normal, output_hidden_states=True, **positions).hidden_states
        grid = GRID * self.zoom
        layers = []
        for block in self.blocks:
            # what comes before the places are class and register tokens
            laid = states[block][:, -(grid**2) :].transpose(1, 2).unflatten(2, (grid, grid))
            pooled = F.avg_pool2d(laid.float(), self.zoom) if self.zoom > 1 else laid.float()
            layers.append(F.normalize(pooled.flatten(2).transpose(1, 2), dim=-1))
        return torch.stack(layers, dim=1)

    def _interpolated(self) -> dict[str, bool]:
        """Ask for position embeddings of another size, of the models that have to be asked."""
        return {} if self.model.config.model_type == "dinov2" else {"interpolate_pos_encoding": True}


def leave_out_later_blocks(model: nn.Module, depth: int, last: int) -> None:
    """Cut a model's list of `depth` blocks after the one numbered `last`: what comes later need not be computed."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                setattr(module, name, child[:last])


@dataclass(frozen=True)
class FeatureFile:
    """Where a cache lies: `NAME.npy` with the half floats, and `NAME.json` with what they are and how many are done."""

    folder: Path
    name: str = "features"

    @property
    def data(self) -> Path:
        """The memory-mapped array."""
        return self.folder / f"{self.name}.npy"

    @property
    def facts(self) -> Path:
        """Its description."""
        return self.folder / f"{self.name}.json"

    def read_facts(self) -> dict | None:
        """Return the description, None before there is one."""
        return json.loads(self.facts.read_text(encoding="utf-8")) if self.facts.exists() else None

    def write_facts(self, facts: dict) -> None:
        """Replace the description whole."""
        unfinished = self.facts.with_suffix(".part")
        unfinished.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, self.facts)


def learning_rows(folder: Path) -> list[dict]:
    """Return the manifest's rows to learn from, in an order that their sources' hash decides: each part is a fair sample."""
    rows = read_manifest(folder, aside=False)
    return sorted(rows, key=lambda row: hashlib.sha256(f"{row['source']} {row['file']}".encode()).digest())


def load_square(path: Path) -> Tensor:
    """Read a gathered square: uint8 (3, 224, 224)."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def load_squares(folder: Path, rows: Sequence[dict]) -> Tensor:
    """Read several gathered squares: uint8 (images, 3, 224, 224)."""
    return torch.stack([load_square(folder / row["file"]) for row in rows])


def compute_features(
    folder: Path,
    teacher: Teacher,
    *,
    source: str,
    most: int | None = None,
    batch: int = 16,
    max_minutes: float | None = None,
    name: str = "features",
) -> int:
    """
    Fill, or go on filling, the cache of a folder's pictures.

    Args:
        source: the teacher's name, for the description.
        most: pictures in all; by default all of them.
        max_minutes: end by then.

    Returns:
        How many pictures are done.

    Raises:
        ValueError: if the cache there is of another teacher, of other blocks or pictures.
    """
    cache, rows = FeatureFile(folder, name), learning_rows(folder)[:most]
    shape = (len(rows), len(teacher.blocks), GRID**2, teacher.width)
    facts = {
        "teacher": Path(source).name,
        "blocks": list(teacher.blocks),
        "side": teacher.side,
        "zoom": teacher.zoom,
        "pictures": len(rows),
        "rows": hashlib.sha256("\n".join(row["file"] for row in rows).encode()).hexdigest(),
        "done": 0,
    }
    known = cache.read_facts()
    if known is not None:
        if differing := [key for key in facts if key not in OPEN_FACTS and known.get(key) != facts[key]]:
            raise ValueError(f"{cache.data} differs in {', '.join(differing)}: remove it, or give another --name.")
        facts["done"] = known["done"]
        array = np.lib.format.open_memmap(cache.data, mode="r+")
    else:
        array = np.lib.format.open_memmap(cache.data, mode="w+", dtype=np.float16, shape=shape)
        cache.write_facts(facts)
    began = time.monotonic()
    bar = tqdm(total=len(rows), initial=facts["done"], desc="teacher")
    # a thread for each batch, not for each product of matrices: where others use the machine too, none waits for another
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        while facts["done"] < len(rows):
            upto = min(facts["done"] + FLUSH, len(rows))
            parts = [(start, min(start + batch, upto)) for start in range(facts["done"], upto, batch)]
            found = pool.map(lambda part: teacher(load_squares(folder, rows[slice(*part)]).float() / 255), parts)
            for part, answers in zip(parts, found, strict=True):
                array[slice(*part)] = answers.half().numpy()
                bar.update(part[1] - part[0])
            array.flush()
            facts["done"] = upto
            cache.write_facts(facts)
            if max_minutes is not None and time.monotonic() - began > 60 * max_minutes:
                break
    torch.set_num_threads(threads)
    bar.close()
    return facts["done"]


def open_features(folder: Path, name: str = "features") -> tuple[np.ndarray, dict]:
    """
    Open a cache to read.

    Returns:
        The finished pictures' half floats (pictures, blocks, 196, width), mapped, and the description.

    Raises:
        ValueError: if there is none.
    """
    cache = FeatureFile(Path(folder), name)
    facts = cache.read_facts()
    if facts is None or not facts["done"]:
        raise ValueError(
            f"{cache.data} holds no features: run `python -m hub.mini_clip.teaching.features {folder}` first."
        )
    return np.lib.format.open_memmap(cache.data, mode="r")[: facts["done"]], facts


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute features by the command line."""
    start_logging()
    parser = argparse.ArgumentParser(
        prog="python -m hub.mini_clip.teaching.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, help="folder that `hub.mini_clip.teaching.pictures` wrote")
    parser.add_argument("--teacher", required=True, help="folder or Hub id of a vision model")
    parser.add_argument("--blocks", type=int, nargs="+", default=list(BLOCKS), help="of the teacher, from 1")
    parser.add_argument("--zoom", type=int, default=1, help="places of the teacher along one of the pupil")
    parser.add_argument("--most", type=int, help="pictures in all")
    parser.add_argument("--max_minutes", type=float, help="end by then")
    parser.add_argument("--name", default="features", help="of the cache's files")
    options = parser.parse_args(arguments)
    teacher = Teacher(options.teacher, blocks=options.blocks, zoom=options.zoom)
    compute_features(
        options.out,
        teacher,
        source=options.teacher,
        most=options.most,
        max_minutes=options.max_minutes,
        name=options.name,
    )


if __name__ == "__main__":
    main()
