"""Public data sets in their own trees: official numbers, licenses, and how each is laid out."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..images_anople import image_files


# --- What is known of the public data sets: where they are to be had, under which license, how they lie, how large they are ---


@dataclass(frozen=True)
class PublicSet:
    """
    Facts on one set, each from its authors' pages or, where so said, from others.

    Args:
        home: where it is to be had.
        license: of the photographs; says who says so where the authors' own words could not be read.
        layout: the tree that the reader expects.
        classes: name -> (train, good test, defective test photographs); `None` stands for a number in which the trees in
            use differ, or for all three where we do not know them.
        both_splits: name -> (good photographs of both splits, defective ones), where only these are published.
        totals: (train, good test, defective test) over all classes.
    """

    title: str
    home: str
    license: str
    layout: str
    classes: dict[str, tuple[int | None, int, int] | None] = field(default_factory=dict)
    both_splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    totals: tuple[int, int, int] | None = None

    def refusal(self, root: object, missing: str) -> str:
        """Say what is missing and where the set is to be had."""
        return f"{root} is no whole {self.title}: {missing}. Expected: {self.layout}. It is to be had at {self.home}; license: {self.license}."


# 3,629 train, 467 + 1,258 test in all
MVTEC = {
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}
# 304 photographs to validate on are counted with none of the three; the counts of each class could not be read anywhere
MVTEC_LOCO = ["breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"]
MVTEC_AD_2 = ["can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"]
# by the authors' table of their split, 1cls.csv: 8,659 train, 962 + 1,200 test in all
VISA = {
    "candle": (900, 100, 100),
    "capsules": (542, 60, 100),
    "cashew": (450, 50, 100),
    "chewinggum": (453, 50, 100),
    "fryum": (450, 50, 100),
    "macaroni1": (900, 100, 100),
    "macaroni2": (900, 100, 100),
    "pcb1": (904, 100, 100),
    "pcb2": (901, 100, 100),
    "pcb3": (905, 101, 100),
    "pcb4": (904, 101, 100),
    "pipe_fryum": (450, 50, 100),
}
REAL_IAD = [
    "audiojack",
    "bottle_cap",
    "button_battery",
    "end_cap",
    "eraser",
    "fire_hood",
    "mint",
    "mounts",
    "pcb",
    "phone_battery",
    "plastic_nut",
    "plastic_plug",
    "porcelain_doll",
    "regulator",
    "rolled_strip_base",
    "sim_card_set",
    "switch",
    "tape",
    "terminalblock",
    "toothbrush",
    "toy",
    "toy_brick",
    "transistor1",
    "u_block",
    "usb",
    "usb_adaptor",
    "vcpill",
    "wooden_beads",
    "woodstick",
    "zipper",
]
# as listings of the two archives have them; their sums are the published totals
MPDD = {
    "bracket_black": (289, 32, 47),
    "bracket_brown": (185, 26, 51),
    "bracket_white": (110, 30, 30),
    "connector": (128, 30, 14),
    "metal_plate": (54, 26, 71),
    "tubes": (122, 32, 69),
}
BTAD = {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)}
NOT_READ = "named on that page, which we could not read"
MEDICAL = "CC BY-NC-SA 4.0, says anomalib of BMAD"
BMAD = (
    "{0}/train/good (or {0}/valid/good/img), {0}/test/good, {0}/test/Ungood, masks in .../Ungood/label or anomaly_mask"
)

SETS = {
    "mvtec": PublicSet(
        "MVTec AD",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        "CC BY-NC-SA 4.0",
        "CLASS/train/good, CLASS/test/DEFECT, CLASS/ground_truth/DEFECT/STEM_mask.png",
        classes=dict(MVTEC),
        totals=(3629, 467, 1258),
    ),
    "visa": PublicSet(
        "VisA",
        "https://github.com/amazon-science/spot-diff",
        "CC BY 4.0",
        "split_csv/1cls.csv beside CLASS/Data/Images (raw), or CLASS/train/good, CLASS/test/bad (reorganised, also in 1cls/)",
        classes=dict(VISA),
        totals=(8659, 962, 1200),
    ),
    "mvtec_loco": PublicSet(
        "MVTec LOCO AD",
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
        "CC BY-NC-SA 4.0",
        "CLASS/train/good, CLASS/test/{good, logical_anomalies, structural_anomalies}, CLASS/ground_truth/DEFECT/STEM/*.png, "
        "CLASS/defects_config.json",
        classes=dict.fromkeys(MVTEC_LOCO),
        totals=(1772, 575, 993),
    ),
    "mvtec_ad2": PublicSet(
        "MVTec AD 2",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
        "CC BY-NC-SA 4.0",
        "CLASS/train/good, CLASS/test_public/{good, bad, ground_truth/bad}",
        classes=dict.fromkeys(MVTEC_AD_2),
    ),
    # realiad_jsons, by the notes of somebody who counted it: 36,465 to train on, 114,585 to test on, 51,329 of them with
    # a mask; the sum, 151,050, is the one that its authors state
    "real_iad": PublicSet(
        "Real-IAD",
        "https://realiad4ad.github.io/Real-IAD",
        "CC BY-NC-SA 4.0, says anomalib",
        "realiad_jsons/CLASS.json beside realiad_1024/CLASS (or 512, 256, raw)",
        classes=dict.fromkeys(REAL_IAD),
        totals=(36465, 63256, 51329),
    ),
    "mpdd": PublicSet(
        "MPDD",
        "https://github.com/stepanje/MPDD",
        "CC BY-NC-SA 4.0, says anomalib",
        "CLASS/train/good, CLASS/test/DEFECT, CLASS/ground_truth/DEFECT",
        classes=dict(MPDD),
        totals=(888, 176, 282),
    ),
    "btad": PublicSet(
        "BTAD",
        "http://avires.dimi.uniud.it/papers/btad/btad.zip",
        "CC BY-NC-SA 4.0, says anomalib; others found no word of its authors",
        "01, 02 and 03, each with train/ok, test/ok, test/ko, ground_truth/ko",
        classes=dict(BTAD),
        totals=(1799, 451, 290),
    ),
    "brain_mri": PublicSet(
        "BrainMRI",
        "https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
        NOT_READ,
        "yes/ and no/, also in brain_tumor_dataset/",
        classes={"brain": None},
        both_splits={"brain": (98, 155)},
    ),
    "br35h": PublicSet(
        "Br35H",
        "https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
        NOT_READ,
        "yes/ and no/",
        classes={"brain": None},
        both_splits={"brain": (1500, 1500)},
    ),
    "head_ct": PublicSet(
        "HeadCT",
        "https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
        NOT_READ,
        "labels.csv (id, hemorrhage) beside head_ct/head_ct/000.png",
        classes={"head": None},
        both_splits={"head": (100, 100)},
    ),
    # BMAD's tree has 1,542 and 4,297 to train on; the one with `valid` in their place has fewer
    "liver_ct": PublicSet(
        "LiverCT",
        "https://github.com/DorisBao/BMAD",
        MEDICAL,
        BMAD.format("Liver_AD"),
        classes={"liver": (None, 833, 660)},
    ),
    "resc": PublicSet(
        "RESC",
        "https://github.com/DorisBao/BMAD",
        MEDICAL,
        BMAD.format("Retina_RESC_AD"),
        classes={"retina": (None, 1041, 764)},
    ),
}


# --- Readers of public data sets that lie in trees of their own: one small function for each layout ---


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


def saturation_areas(folder: Path) -> list[tuple[Path, float]]:
    """
    Read from which area on the defects of a photograph of MVTec LOCO AD count as found.

    Args:
        folder: of the photograph's masks, `CLASS/ground_truth/DEFECT/STEM`; the number in a mask says which entry of
            `CLASS/defects_config.json` its defect is of.

    Returns:
        Each mask with an area in pixels; none where there is no such file.
    """
    table = folder.parents[2] / "defects_config.json" if len(folder.parents) > 2 else None
    if table is None or not (table.is_file() and folder.is_dir()):
        return []
    kinds = {entry["pixel_value"]: entry for entry in json.loads(table.read_text(encoding="utf-8"))}
    areas = []
    for path in image_files(folder, masks=True):
        with Image.open(path) as mask:
            values = mask.convert("L")
        number, area = values.getextrema()[1], values.width * values.height - values.histogram()[0]
        if number not in kinds:
            raise ValueError(f"{path} has the value {number}, which {table} does not list: copy the data set again.")
        limit = kinds[number]["saturation_threshold"]
        areas.append((path, limit * area if kinds[number]["relative_saturation"] else min(limit, area)))
    return areas


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
    return sorted(
        image_files(folder, masks=True),
        key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)],
    )


__all__ = [
    "PublicSet",
    "READERS",
    "Row",
    "SETS",
    "list_rows",
    "saturation_areas",
]
