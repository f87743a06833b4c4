"""
Gather pictures to learn from.

    python -m hub.mini_clip.teaching.pictures OUT                       # of Debian packages, and drawn products
    python -m hub.mini_clip.teaching.pictures OUT --folder PHOTOGRAPHS  # photographs of your own, and drawn products

Squares of 224 pixels are cut from free photographs and textures of Debian packages, cut-out objects are laid on plain
grounds, and drawn products come beside them. What is cut is a function of the seed and of each file's own bytes, so
the order of files and packages is immaterial. OUT/manifest.jsonl says of every square where it comes from.
"""

import argparse
import hashlib
import io
import json
import logging
import math
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from modeling_anople.runtime import start_logging

from ..features import SIDE
from ..renderer import Renderer
from .packages import PACKAGES, Source, copyright_file, fetch, find_sources, licenses


logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
SMALLEST = 150  # pixels: a smaller square would be enlarged to mush
LARGEST = 4.0  # of SIDE: how much of a large photograph one square shows
PLAIN = 5.0  # of 255: standard deviation below which a square shows nothing
SHOWN = 0.02  # least share of a cut-out object in its square
QUALITY = 95  # of JPEG
ASIDE = 40  # one file in so many is set aside to choose by
PIXELS = 2**26  # a larger picture is left out


@dataclass(frozen=True)
class Cutting:
    """How many squares to cut: at most `most` from a picture, one per `each` square sides of its area, but at least
    `grounds` of a cut-out object, each on another ground."""

    most: int = 40
    each: float = 1.0
    grounds: int = 5
    seed: int = 0


def cut_squares(data: bytes, cutting: Cutting) -> list[tuple[Image.Image, list[int]]]:
    """
    Cut random squares from a picture and resize them to 224 pixels; transparent ones are laid on plain grounds.

    Args:
        data: bytes of a file that Pillow reads.

    Returns:
        RGB squares, each with its box (left, top, right, bottom) in the picture; none for a picture that cannot be
        read, that is too small, or that shows nothing.
    """
    digest = hashlib.sha256(data).digest()
    generator = np.random.default_rng([cutting.seed, int.from_bytes(digest[:8], "little")])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data))
            if picture.width * picture.height > PIXELS:
                return []
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except Exception:  # Pillow raises whatever a broken file makes its decoders raise
        return []
    shorter = min(picture.size)
    if shorter < SMALLEST:
        return []
    count = round(picture.width * picture.height / (cutting.each * SIDE**2))
    squares = []
    least = cutting.grounds if picture.mode == "RGBA" else 1
    for _ in range(max(least, min(cutting.most, count))):
        largest = min(shorter, LARGEST * SIDE)
        side = round(math.exp(generator.uniform(math.log(min(SMALLEST, largest)), math.log(largest))))
        left, top = (int(generator.integers(0, length - side + 1)) for length in picture.size)
        box = [left, top, left + side, top + side]
        if picture.mode == "RGBA" and generator.random() < 0.5:
            side = max(picture.size)  # the whole object, with a margin of its ground
            box = [(picture.width - side) // 2, (picture.height - side) // 2]
            box += [box[0] + side, box[1] + side]
        square = picture.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        if square.mode == "RGBA":
            square = lay_on_ground(square, generator)
        if square is not None and np.asarray(square.convert("L"), np.float32).std() >= PLAIN:
            squares.append((square, box))
    return squares


def lay_on_ground(square: Image.Image, generator: np.random.Generator) -> Image.Image | None:
    """Lay a transparent square on a plain ground with soft light and grain; None if hardly anything shows in it."""
    alpha = np.asarray(square.getchannel("A"), np.float32) / 255
    if alpha.mean() < SHOWN:
        return None
    color = generator.uniform(10, 245, 3)
    if generator.random() < 0.5:
        color[:] = color.mean()  # grey, as most tables and trays are
    slope = generator.uniform(-25, 25, 2)
    down, across = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    ground = color + (slope[0] * down + slope[1] * across)[..., None]
    ground = ground + generator.normal(0, generator.uniform(0, 5), (SIDE, SIDE, 1))
    mixed = ground + alpha[..., None] * (np.asarray(square.convert("RGB"), np.float32) - ground)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def likeness(square: Image.Image) -> bytes:
    """Describe a square by which of neighboring places is brighter (8 x 9): equal for copies at other sizes."""
    small = np.asarray(square.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes()


def cut_file(source: Source, cutting: Cutting) -> tuple[str, list[tuple[Image.Image, list[int]]]]:
    """Return the SHA-256 of a file's bytes, and its squares."""
    try:
        data = source.read()
    except (OSError, ValueError, RuntimeError, NotImplementedError):  # a damaged archive, an unknown compression
        return "", []
    return hashlib.sha256(data).hexdigest(), cut_squares(data, cutting)


def draw_squares(count: int, seed: int) -> Iterator[Image.Image]:
    """Draw products by `hub.mini_clip.renderer`, good and defective ones, 224 pixels large."""
    generator = torch.Generator().manual_seed(seed)
    renderer = None
    for number in range(math.ceil(count / 16)):
        if number % 25 == 0:
            renderer = Renderer(generator)  # with textures drawn anew
        pixels = renderer.draw(8, normals=1, size=SIDE).pixels.flatten(0, 1)
        for picture in (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy():
            yield Image.fromarray(picture)


def set_aside(digest: str) -> bool:
    """Say whether a file is kept from training, to choose by: one in `ASIDE`, by its bytes."""
    return int(digest[:8], 16) % ASIDE == 0


class Collection:
    """Squares in a folder with their manifest, without copies, packed a thousand to a folder."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rows, self.known = folder, [], set()
        self.files, self.counts = set(), Counter()

    def add(self, square: Image.Image, row: dict) -> None:
        """Write a square that resembles none before it, and its row."""
        like = likeness(square)
        if like in self.known:
            return
        self.known.add(like)
        name = f"squares/{len(self.rows) // 1000:03d}/{len(self.rows):06d}.jpg"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        square.save(path, quality=QUALITY)
        self.rows.append({"file": name, **row})
        self.counts[row["package"]] += 1

    def write_manifest(self) -> None:
        """Write what was added, beside an earlier manifest, and then in its place."""
        unfinished = self.folder / f"{MANIFEST}.part"
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        os.replace(unfinished, self.folder / MANIFEST)


def gather(
    folder: Path,
    places: dict[str, Path],
    *,
    facts: dict[str, dict] | None = None,
    cutting: Cutting | None = None,
    most_per_package: int | None = None,
    drawn: int = 0,
) -> list[dict]:
    """
    Cut the pictures of several folders into `folder`/squares and write `folder`/manifest.jsonl.

    Args:
        places: name of a package, or of anything else -> folder with its pictures.
        facts: name -> what the manifest says of all its squares (`version`, `license`).
        most_per_package: squares of one name at most; files are then taken in an order that their names' hash decides.
        drawn: squares of drawn products to add.

    Returns:
        The rows of the manifest: `file`, `package`, `source`, `sha256` of the source, `box`, `aside` and the facts.

    Raises:
        ValueError: if nothing at all was found.
    """
    cutting = cutting or Cutting()
    collection = Collection(folder)
    shutil.rmtree(folder / "squares", ignore_errors=True)
    for package, place in places.items():
        sources = list(find_sources(package, place))
        # a limit then takes from all of a package, not from its first folders
        sources.sort(key=lambda source: hashlib.sha256(source.name.encode()).digest())
        bar = tqdm(total=len(sources), desc=package)
        with ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0)))) as pool:
            remaining = iter(sources)
            while batch := list(islice(remaining, 64)):
                if most_per_package is not None and collection.counts[package] >= most_per_package:
                    break
                found = pool.map(lambda source: cut_file(source, cutting), batch)
                for source, (digest, squares) in zip(batch, found, strict=True):
                    bar.update()
                    if digest in collection.files:
                        continue
                    collection.files.add(digest)
                    row = {"package": package, **(facts or {}).get(package, {}), "source": source.name}
                    for square, box in squares:
                        aside = set_aside(digest)
                        collection.add(square, row | {"sha256": digest, "box": box, "aside": aside})
        bar.close()
        collection.write_manifest()
    for number, square in enumerate(islice(draw_squares(drawn, cutting.seed), drawn)):
        collection.add(square, {"package": "drawn", "source": f"hub.mini_clip.renderer {number}", "aside": False})
    if not collection.rows:
        raise ValueError(f"no pictures of at least {SMALLEST} pixels in {', '.join(map(str, places.values()))}.")
    collection.write_manifest()
    return collection.rows


def read_manifest(folder: Path, *, aside: bool | None = None) -> list[dict]:
    """
    Read the rows of a manifest; `aside` picks those set aside, or those to learn from.

    Raises:
        ValueError: if there is none.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path} is missing: run `python -m hub.mini_clip.teaching.pictures {folder}` first.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if aside is None or row["aside"] == aside]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch, cut and write; say how many squares each package gave."""
    start_logging()
    parser = argparse.ArgumentParser(
        prog="python -m hub.mini_clip.teaching.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, help="folder for squares and manifest")
    parser.add_argument("--packages", nargs="*", default=list(PACKAGES), help="Debian packages to take from")
    parser.add_argument("--folder", type=Path, nargs="*", default=[], help="photographs of your own; no package then")
    parser.add_argument("--work", type=Path, help="where packages are unpacked; by default OUT/packages")
    parser.add_argument("--most_per_package", type=int, default=3000, help="squares of one package at most")
    parser.add_argument("--most_per_picture", type=int, default=Cutting.most, help="squares of one picture at most")
    parser.add_argument("--drawn", type=int, default=2000, help="squares of drawn products to add")
    parser.add_argument("--seed", type=int, default=0, help="of all that is cut and drawn")
    options = parser.parse_args(arguments)
    places, facts = {folder.name: folder for folder in options.folder}, {}
    work = options.work or options.out / "packages"
    for package in [] if options.folder else options.packages:
        try:
            places[package] = fetch(package, work)
        except ValueError as error:  # one package less is no reason to end
            logger.warning("%s", error)
            continue
        version = (work / f"{package}.version").read_text(encoding="utf-8").strip()
        facts[package] = {"version": version, "license": licenses(places[package], package)}
        if (terms := copyright_file(places[package], package)).is_file():
            (options.out / "licenses").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(terms, options.out / "licenses" / f"{package}.txt")
    cutting = Cutting(most=options.most_per_picture, seed=options.seed)
    rows = gather(
        options.out,
        places,
        facts=facts,
        cutting=cutting,
        most_per_package=options.most_per_package,
        drawn=options.drawn,
    )
    for package, count in Counter(row["package"] for row in rows).items():
        logger.info("%6d %s", count, package)
    logger.info("%6d in all, %d of them set aside", len(rows), sum(row["aside"] for row in rows))


if __name__ == "__main__":
    main()
