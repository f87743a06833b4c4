"""
Readers of public data sets that lie in trees of their own: one small function for each layout.

Each lists photographs without opening one. A reader takes the root, says ValueError where the tree is not whole, and
gives rows of a split.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .data import IMAGE_EXTENSIONS
from .public_sets import SETS, PublicSet


RESOLUTIONS = ("1024", "512", "256", "raw")  # of Real-IAD; the first that is there
EVERY = 5  # where a set has no split of its own, every fifth good picture in natural order is for training [U]


class Row(NamedTuple):
    """One photograph: where it and its mask lie, what it shows, and to which split it belongs."""

    split: str
    image: Path
    mask: Path | None
    class_name: str
    defect: str


def read_visa(root: Path, facts: PublicSet) -> Iterator[Row]:
    """Read the raw tree by the official table `split_csv/1cls.csv`: object, split, label, image, mask."""
    table = root / "split_csv" / "1cls.csv"
    with table.open(encoding="utf-8-sig", newline="") as file:
        for line in csv.DictReader(file):
            missing = [name for name in ("object", "split", "label", "image") if not line.get(name)]
            if missing:
                raise ValueError(facts.refusal(root, f"{table} has a row without {missing}: {line}"))
            defect = "good" if line["label"] == "normal" else "bad"
            yield Row(line["split"], root / line["image"], _path(root, line.get("mask")), line["object"], defect)


def read_real_iad(root: Path, facts: PublicSet) -> Iterator[Row]:
    """Read `realiad_jsons/CLASS.json`, which names all views of the photographs and their split."""
    tables = [root / "realiad_jsons" / "realiad_jsons", root / "realiad_jsons"]
    tables = next((sorted(folder.glob("*.json")) for folder in tables if any(folder.glob("*.json"))), [])
    images = next((root / f"realiad_{size}" for size in RESOLUTIONS if (root / f"realiad_{size}").is_dir()), None)
    if not tables or images is None:
        lacking = "realiad_jsons/CLASS.json" if not tables else "realiad_1024 (or 512, 256, raw)"
        raise ValueError(facts.refusal(root, f"{lacking} is missing"))
    for table in tables:
        content, folder = json.loads(table.read_text(encoding="utf-8")), images / table.stem
        for split in ("train", "test"):
            for entry in content.get(split, []):
                defect = "good" if entry["anomaly_class"] == "OK" else entry["anomaly_class"]
                yield Row(
                    split, folder / entry["image_path"], _path(folder, entry.get("mask_path")), table.stem, defect
                )


def read_btad(root: Path, facts: PublicSet) -> Iterator[Row]:
    """Read `01`, `02` and `03`; ok is good, ko is defective, masks have the photograph's stem."""
    for name in facts.classes:
        masks = {path.stem: path for path in _images(root / name / "ground_truth" / "ko")}
        for split, kind in (("train", "ok"), ("test", "ok"), ("test", "ko")):
            images = _images(root / name / split / kind)
            if not images:
                raise ValueError(facts.refusal(root, f"no photographs in {name}/{split}/{kind}"))
            defect = "good" if kind == "ok" else "ko"
            yield from (
                Row(split, path, masks.get(path.stem) if kind == "ko" else None, name, defect) for path in images
            )


def read_yes_no(root: Path, facts: PublicSet) -> Iterator[Row]:
    """Read the folders `yes` (tumour) and `no`; there is no split of the authors, so every fifth `no` is for training."""
    (name,) = facts.classes
    folder = next((place for place in (root, root / "brain_tumor_dataset") if (place / "no").is_dir()), root)
    yield from _without_split(_images(folder / "no"), _images(folder / "yes"), name, "tumour", root, facts)


def read_head_ct(root: Path, facts: PublicSet) -> Iterator[Row]:
    """Read `labels.csv` (id, hemorrhage), which numbers the pictures of `head_ct/head_ct`; split as of [`read_yes_no`]."""
    table = root / "labels.csv"
    if not table.exists():
        raise ValueError(facts.refusal(root, "labels.csv is missing"))
    with table.open(encoding="utf-8-sig", newline="") as file:
        lines = [{key.strip(): value.strip() for key, value in line.items()} for line in csv.DictReader(file)]
    places = {int(path.stem): path for path in _images(root / "head_ct" / "head_ct") if path.stem.isdigit()}
    if lost := [line["id"] for line in lines if int(line["id"]) not in places]:
        raise ValueError(facts.refusal(root, f"{len(lost)} pictures of labels.csv are missing, first: {lost[0]}"))
    good, bad = ([places[int(line["id"])] for line in lines if line["hemorrhage"] == mark] for mark in ("0", "1"))
    yield from _without_split(good, bad, "head", "hemorrhage", root, facts)


def read_bmad(root: Path, facts: PublicSet) -> Iterator[Row]:
    """Read BMAD's tree, or the one that MVFA made of it, which has `valid` in place of `train`; case does not matter."""
    (name,) = facts.classes
    train = _images(_below(root, "train", "good")) or _images(_below(root, "valid", "good"))
    good, bad = (_images(_below(root, "test", kind)) for kind in ("good", "ungood"))
    for place, images in (("train/good or valid/good", train), ("test/good", good), ("test/Ungood", bad)):
        if not images:
            raise ValueError(facts.refusal(root, f"no pictures in {place}"))
    defective = _below(root, "test", "ungood", img=False)
    folders = [path for path in _folders(defective) if path.name.lower() in ("label", "anomaly_mask")]
    masks = {path.stem: path for folder in folders for path in _images(folder)}
    yield from (Row("train", path, None, name, "good") for path in train)
    yield from (Row("test", path, None, name, "good") for path in good)
    yield from (Row("test", path, masks.get(path.stem), name, "ungood") for path in bad)


READERS: dict[str, Callable[[Path, PublicSet], Iterator[Row]]] = {
    "visa": read_visa,
    "real_iad": read_real_iad,
    "btad": read_btad,
    "brain_mri": read_yes_no,
    "br35h": read_yes_no,
    "head_ct": read_head_ct,
    "liver_ct": read_bmad,
    "resc": read_bmad,
}


def list_rows(name: str, root: Path) -> list[Row]:
    """List all photographs of a set; those that are listed but not there are refused."""
    facts = SETS[name]
    rows = list(READERS[name](root, facts))
    if lost := [row.image for row in rows if not row.image.exists()]:
        raise ValueError(facts.refusal(root, f"{len(lost)} of {len(rows)} photographs are missing, first: {lost[0]}"))
    if lost := [row.mask for row in rows if row.mask is not None and not row.mask.exists()]:
        raise ValueError(facts.refusal(root, f"{len(lost)} masks are missing, first: {lost[0]}"))
    return rows


def _without_split(
    good: Sequence[Path], bad: Sequence[Path], name: str, defect: str, root: Path, facts: PublicSet
) -> Iterator[Row]:
    if not good or not bad:
        raise ValueError(facts.refusal(root, f"no {'good' if not good else 'defective'} pictures"))
    for number, path in enumerate(good):
        yield Row("train" if number % EVERY == 0 else "test", path, None, name, "good")
    yield from (Row("test", path, None, name, defect) for path in bad)


def _path(root: Path, text: str | None) -> Path | None:
    return root / text if text else None


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _below(root: Path, *names: str, img: bool = True) -> Path:
    """Descend by names whatever their case, at last into `img` where there is one; a path that does not exist if not."""
    for name in (*names, *(["img"] if img else [])):
        found = next((path for path in _folders(root) if path.name.lower() == name), None)
        root = found or (root if name == "img" else root / name)
    return root


def _images(folder: Path) -> list[Path]:
    """List the image files directly in a folder, numbers as numbers."""
    inside = folder.iterdir() if folder.is_dir() else []
    images = [path for path in inside if path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")]
    return sorted(
        images, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
    )


__all__ = ["READERS", "Row", "list_rows"]
