"""A detector with all that a push can take along: figures, a gallery, and a config that knows too much."""

import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

from modeling_anople import AnoPLeModel
from modeling_anople.cli import main

from ..detectors import write_detector


LOCAL = "/home/somebody/secret"
FIT = {
    "shots": 3,
    "seed": 0,
    "max_steps": 7,
    "batch_size": 2,
    "pixel_anomaly": "perlin",
    "data_root": f"{LOCAL}/drawn",
    "clip": f"{LOCAL}/small",
    "output_dir": f"{LOCAL}/out",
    "files": {"bolt": ["bolt/train/good/000.png", "bolt/train/good/|`*.png"], "nut": ["nut/train/good/001.png"]},
}


@dataclass
class Published:
    """Folders and files of a detector that was fitted and evaluated."""

    detector: Path
    other: Path
    evaluation: Path
    gallery: Path
    photographs: list[str]


def write_published(root: Path, clip: Path, photograph) -> Published:
    """Write two detectors, and evaluate the first on a few drawn parts."""
    detector = write_detector(root / "detector", clip, photograph)
    other = write_detector(root / "other", clip, photograph, coupling="text_only")
    for folder in (detector, other):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "fit": FIT}), encoding="utf-8")
    drawn = root / "drawn"
    counts = ["--train", "1", "--good", "2", "--defective", "2", "--size", "48"]
    assert main(["draw", str(drawn), "--classes", "gear", "capsule", *counts]) == 0
    for old, new in (("gear", "bolt"), ("capsule", "nut")):
        (drawn / old).rename(drawn / new)
    evaluation, gallery = root / "evaluation.json", root / "gallery"
    options = ["--json", str(evaluation), "--gallery", str(gallery), "--evaluation_size", "32"]
    assert main(["evaluate", str(detector), str(drawn), *options]) == 0
    photographs = sorted(str(path) for path in drawn.glob("*/test/good/*.png"))
    return Published(detector, other, evaluation, gallery, photographs)


def fitted_anew(folder: Path, target: Path) -> Path:
    """Copy a detector with its prototypes changed, as another fit would have left them; no Hub knows these weights yet."""
    shutil.copytree(folder, target)
    model = AnoPLeModel.from_pretrained(target)
    for product in model.products:
        product.prototype = product.prototype + 0.1 + zlib.crc32(str(target).encode()) / 2**32
    model.save_pretrained(target)
    return target
