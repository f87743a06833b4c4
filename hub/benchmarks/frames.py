"""
Frames that show no part, or in other light, or out of focus: `python -m hub.benchmarks.frames DATA`.

DATA holds products as MVTec AD has them. Each is taught with some of its good training photographs, several times over, with
the embedded CLIP. Then it is said how many of its other good photographs get a reason, and how many frames of each kind,
made from good test photographs, are anomalous and get one. Margins were chosen by training photographs alone.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from modeling_anople.images_anople import list_images, load_image
from modeling_anople.pipeline_anople import Prediction, predict
from modeling_anople.runtime.loading import load_judge


def _light(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point(lambda value: min(255, round(factor * value)))


def _blurred(share: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.filter(ImageFilter.GaussianBlur(image.width / share))


def _noise(brightest: int) -> Callable[[Image.Image], Image.Image]:
    def make(image: Image.Image) -> Image.Image:
        values = np.random.default_rng(0).integers(brightest + 1, size=(image.height, image.width, 3), dtype=np.uint8)
        return Image.fromarray(values)

    return make


def _tinted(*factors: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: Image.fromarray((np.asarray(image) * np.array(factors)).clip(0, 255).astype(np.uint8))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "black": lambda image: Image.new("RGB", image.size),
    "lens cap": _noise(11),
    "white": lambda image: Image.new("RGB", image.size, "white"),
    "gray": lambda image: Image.new("RGB", image.size, (128, 128, 128)),
    "ground alone": lambda image: Image.new("RGB", image.size, image.getpixel((0, 0))),
    "noise": _noise(255),
    "blur of 1/16 of the width": _blurred(16),
    "blur of 1/64": _blurred(64),
    "double light": _light(2),
    "half light": _light(1 / 2),
    "quarter light": _light(1 / 4),
    "red light": _tinted(1.4, 0.9, 0.7),
    "blue light": _tinted(0.7, 0.9, 1.4),
}


def taught(product: str, photographs: Iterable[Path]) -> Callable[[Iterable], list[Prediction]]:
    """Teach a new detector one product; gives what judges photographs as of it."""
    with tempfile.TemporaryDirectory() as place:
        command = ["-m", "modeling_anople.cli", "enroll", f"{place}/new", product, *map(str, photographs)]
        subprocess.run([sys.executable, *command, "--clip", "mini"], check=True, capture_output=True)
        detector = load_judge(f"{place}/new")
    return lambda images: list(predict(*detector, images, class_names=product))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    products = sorted(path.name for path in options.data.iterdir() if (path / "train/good").is_dir())
    made = 3  # frames of each kind, for each product and seed
    good, reasons, found = Counter(), Counter(), Counter()
    for product in products:
        train, test = (list_images([options.data / product / split / "good"]) for split in ("train", "test"))
        for seed in range(options.seeds):
            shots = random.Random(seed).sample(train, options.shots)
            judge = taught(product, shots)
            for split, paths in (("train", [path for path in train if path not in shots]), ("test", test)):
                good[split] += len(paths)
                reasons.update((split, product, each.reason) for each in judge(paths) if each.reason)
            images = [load_image(path) for path in random.Random(seed).sample(test, made)]
            for kind, make in KINDS.items():
                judged = judge(map(make, images))
                found[product, kind] += sum(each.label == "anomalous" and each.reason is not None for each in judged)
    for split, count in good.items():
        own = {key[1:]: number for key, number in reasons.items() if key[0] == split}
        print(f"{sum(own.values())} of {count} good photographs of {split} have a reason: {own}")
    print("anomalous with a reason, of", made * options.seeds, *products, sep=" | ")
    for kind in KINDS:
        print(kind, *(found[product, kind] for product in products), sep=" | ")


if __name__ == "__main__":
    main()
