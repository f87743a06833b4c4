"""One door to all data: folder trees, imagefolders, parquet files, Hub data sets and public sets, each as one `datasets.Dataset`."""

import csv
import functools
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import datasets
import pyarrow.compute
import pyarrow.dataset
from datasets import ClassLabel, Dataset, Features, Image, Value

from ..images_anople import (
    IMAGE_EXTENSIONS,
    MASK_FOLDERS,
    describe_counts,
    image_files,
    masks_beside,
    owner_stem,
    walk_images,
    why_no_photographs,
)
from ..runtime import TABLES
from .public_sets import READERS, SETS, list_rows


# --- Image sources (folder trees, imagefolders, parquet files, Hub data sets), each as one `datasets.Dataset` ---


logger = logging.getLogger(__name__)

_IMAGE, _TEXT = Image(decode=False), Value("string")
_LABEL = ClassLabel(names=["normal", "anomalous"])
FEATURES = Features(image=_IMAGE, mask=_IMAGE, label=_LABEL, class_name=_TEXT, defect=_TEXT, path=_TEXT)
SPLITS = ("train", "test")
_composed = functools.partial(unicodedata.normalize, "NFC")  # on a Mac a folder's name has its accents apart

NAMED = 3  # of what is missing
SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}  # others are no split of ours

_LAYOUTS = f"""Accepted layouts (images: {", ".join(sorted(IMAGE_EXTENSIONS))}):
  1. MVTec tree:    CLASS/train/good/*, CLASS/test/DEFECT/*, CLASS/ground_truth/DEFECT/STEM_mask.png
  2. plain folders: CLASS/* (normals only), or CLASS/good/* with one more folder for each defect
  3. a data set:    metadata.jsonl or metadata.csv with `file_name`, any other table (--table), parquet files (train-*,
                    test-*), or a Hub id "user/name"
`good` may be called ok or normal; masks may lie in mask, masks, gt or label(s), and be named as --mask_pattern says"""
_ALIASES = {name: (name,) for name in FEATURES} | {
    "mask": ("mask", "mask_image", "segmentation"),
    "class_name": ("class_name", "category", "object", "class"),
    "path": ("path", "file_name"),
}
# Columns of tables for which no option names another one.
_COLUMNS = {
    "image": ("file_name", "image", "path", "filename", "image_path", "file"),
    "label": ("label",),
    "defect": ("defect",),
    "mask": ("mask_file_name", "mask", "mask_path", "mask_image", "segmentation"),
    "class_name": _ALIASES["class_name"],
    "split": ("split",),
}
NORMAL_FOLDERS = {"good", "ok", "normal", "normals"}  # in any case
DEFECT_FOLDERS = {"bad", "ng", "nok", "ko", "defect", "defective", "anomalous", "anomaly", "abnormal"}
TEST_FOLDERS = ("test", "test_public")  # the second one is that of MVTec AD 2
_NORMAL_NAMES = {"normal", "good", "ok", "0", "0.0", "false"}
_ANOMALOUS_NAMES = {"anomalous", "anomaly", "abnormal", "defective", "defect", "bad", "ng", "1", "1.0", "true"}
_Table = Dataset | pyarrow.dataset.Dataset


class _Layout(NamedTuple):
    """Where one class keeps its photographs; the images directly in `unread` folders belong to no split."""

    normals: list[Path]
    tests: dict[str, list[Path]]  # defect -> folders
    masks: list[Path]
    unread: list[Path]


@dataclass(kw_only=True)
class DataOptions:
    """Options of every command that reads data: a table in place of folders, and how masks are named."""

    table: str | None = field(
        default=None,
        metadata={
            "heading": TABLES,
            "help": "CSV, TSV, JSON lines or parquet file that lists the photographs, in or beside DATA.",
        },
    )
    image_column: str | None = field(
        default=None, metadata={"heading": TABLES, "help": "Of --table: the photographs' files."}
    )
    label_column: str | None = field(
        default=None, metadata={"heading": TABLES, "help": "Of --table: 0 or good, 1 or a defect."}
    )
    mask_column: str | None = field(
        default=None, metadata={"heading": TABLES, "help": "Of --table: the masks' files."}
    )
    class_column: str | None = field(default=None, metadata={"heading": TABLES, "help": "Of --table: the products."})
    split_column: str | None = field(default=None, metadata={"heading": TABLES, "help": "Of --table: train or test."})
    mask_pattern: str | None = field(
        default=None,
        metadata={
            "heading": TABLES,
            "help": "How the mask of a photograph is called, from its folder of masks on, such as {stem}_truth.png or "
            "{defect}/{name}.",
        },
    )

    def columns(self) -> dict[str, str]:
        """Return the columns of a table that were named, by what they hold."""
        named = {"class_name": self.class_column, "split": self.split_column}
        named |= {"image": self.image_column, "label": self.label_column, "mask": self.mask_column}
        return {name: column for name, column in named.items() if column is not None}


class _Source(NamedTuple):
    root: Path | str
    name: str  # of the one class, where a table names none
    layouts: dict[str, _Layout]  # class -> layout, of a folder tree
    tables: dict[str, _Table]  # split -> table, of any other source


def read_dataset(
    source: str | Path, *, split: str, classes: Sequence[str] | None = None, options: DataOptions | None = None
) -> Dataset:
    """Read one split, `"train"` or `"test"`, of an image source without decoding any image.

    `source` is an MVTec tree, a folder with one folder of photographs per class, a single class folder, a folder with
    `metadata.jsonl` or `metadata.csv`, a parquet file or a folder of them, or a Hub data set id. Rows have the columns
    of `FEATURES`, in natural order of class and path; `classes` keeps only these. Normals are never re-split: a plain
    folder of normals has zero test rows, and next to a plain `good` folder the test rows are its defect folders only.
    Masks are found by name and are None where there is none; of several for one photograph it is their folder. Rows of metadata and parquet files belong to the
    split of a `split` column, of a folder or parquet file named after it, else to train; a label text that is no word
    for normal or anomalous names a defect. A parquet split is held in memory. Raises FileNotFoundError where `source`
    does not exist, and ValueError where it has no accepted layout, a class of `classes` is missing, a label is
    unreadable, or (train) a class has no normals.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}.")
    options = options or DataOptions()
    opened = _open(source, options)
    known = _class_names(opened)
    wanted = [_composed(name) for name in classes or known]
    if missing := [name for name in wanted if name not in known]:
        raise ValueError(f"No class {missing} in {opened.root}. Classes there: {', '.join(known)}.")
    dataset = _read_tree(opened, split, wanted, options) if opened.layouts else _read_table(opened, split, wanted)
    if split == "train":
        normals = {name for name, label in zip(dataset["class_name"][:], dataset["label"][:]) if label == 0}
        for name in [name for name in wanted or [opened.name] if name not in normals]:
            place = opened.layouts[name].normals[0] if opened.layouts else f"the train split of {opened.root}"
            raise ValueError(f"Class {name!r} has no normal photographs in {place}: put them there.\n{_LAYOUTS}")
    return dataset


def list_classes(source: str | Path, options: DataOptions | None = None) -> list[str]:
    """List the class names of an image source, sorted with numbers as numbers; errors as for `read_dataset`."""
    return _class_names(_open(source, options or DataOptions()))


def _class_names(opened: _Source) -> list[str]:
    tables = [_pick(table, ("class_name", "label")) for table in opened.tables.values()]
    names = {_composed(str(value)) for raw in tables for value in _values(raw, "class_name", opened.name)}
    return sorted({*opened.layouts, *names}, key=_natural_key)


def _natural_key(text: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", text)  # text, digits, text, ...
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


def _open(source: str | Path, options: DataOptions) -> _Source:
    root = Path(os.path.abspath(Path(source).expanduser()))
    if not root.exists() and isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        return _Source(source, source.partition("/")[2], {}, _open_hub(source))
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist: check the path. A Hub data set is named 'user/name'.")
    if root.is_file() and root.suffix.lower() != ".parquet":
        raise ValueError(f"{root} is a file: give the folder that holds the class folders.\n{_LAYOUTS}")
    name = root.stem if root.is_file() else root.name
    if options.table is not None:
        return _Source(root, name, {}, _open_tables(root, [_table_in(root, options.table)], options))
    if named := options.columns():
        raise ValueError(f"{', '.join(named.values())} are columns of a table: add --table FILE.")
    places = [root / below / f"metadata.{end}" for end in ("jsonl", "csv") for below in ("", *SPLITS)]
    if tables := _open_tables(root, list(filter(Path.is_file, places)), options):
        return _Source(root, name, {}, tables)
    layouts = _class_layouts(root)
    is_mvtec = any(layout.normals[0].parent.name.casefold() == "train" for layout in layouts.values())
    parquet = (
        [root] if root.is_file() else [] if is_mvtec else sorted(filter(Path.is_file, root.rglob("[!.]*.parquet")))
    )
    if parquet:  # loose pictures beside them are no class
        return _Source(root, name, {}, _open_parquet(root, parquet))
    if not layouts:
        raise ValueError(f"No class folders in {root}: no folder there has train/, good/ or images.\n{_LAYOUTS}")
    return _Source(root, name, layouts, {})


def _class_layouts(root: Path) -> dict[str, _Layout]:
    inside = _subfolders(root)
    single = _normal_folders(_named(root, "train")) or [path for path in inside if path.name.casefold() == "good"]
    parts = [path.name for path in inside if path.name.casefold() in NORMAL_FOLDERS | DEFECT_FOLDERS]
    if parts and not single:
        raise ValueError(
            f"{root} is itself one product ({', '.join(parts)} inside): give the folder above it, {root.parent} (with "
            f"--classes {root.name} if there are others).\n{_LAYOUTS}"
        )
    folders = [root] if single else _without_links_to_others([path for path in inside if _is_class(path)])
    folders = folders or ([root] if _images(root) else [])
    mvtec = {path for path in folders if any(_named(path, split).is_dir() for split in ("train", *TEST_FOLDERS))}
    layouts = {_composed(path.name): (_mvtec_layout if path in mvtec else _plain_layout)(path) for path in folders}
    if len(layouts) < len(folders):
        raise ValueError(f"{root} has two folders of one name, their accents written in two ways: rename one of them.")
    return layouts


def _without_links_to_others(folders: Sequence[Path]) -> list[Path]:
    own = {path.resolve() for path in folders if not path.is_symlink()}
    return [path for path in folders if not (path.is_symlink() and path.resolve() in own)]


def _is_class(folder: Path) -> bool:
    if folder.name.casefold() in ("train", *TEST_FOLDERS):  # part of a class, unless a product has that name
        return bool(_normal_folders(_named(folder, "train")))
    inside = _subfolders(folder)
    parts = {"train", *TEST_FOLDERS} | NORMAL_FOLDERS
    return any(path.name.casefold() in parts for path in inside) or any(_images(path) for path in (folder, *inside))


def _mvtec_layout(folder: Path) -> _Layout:
    train, tests = _named(folder, "train"), [_named(folder, name) for name in TEST_FOLDERS]
    tests = [path for path in tests if path.is_dir()]
    normals = _normal_folders(train) or ([train] if _images(train) else [train / "good"])
    unread = [folder, *([] if normals == [train] else [train])]
    unread += [path for path in _subfolders(train) if path not in normals]
    unread += [*tests[:1], *_normal_folders(_named(folder, "validation"))]
    kinds = _by_defect([path for test in tests[:1] for path in _subfolders(test)])
    return _Layout(normals, kinds, _mask_folders(folder, *tests), unread)


def _plain_layout(folder: Path) -> _Layout:
    others, masks = _subfolders(folder), _mask_folders(folder)
    if normals := _normal_folders(folder):
        return _Layout(normals, _by_defect([path for path in others if path not in normals]), masks, [folder])
    return _Layout([folder], {}, masks, others)


def _by_defect(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Sort folders of test photographs by what they show; those of good ones are "good"."""
    kinds: dict[str, list[Path]] = {}
    for path in folders:
        kinds.setdefault("good" if path.name.casefold() in NORMAL_FOLDERS else path.name, []).append(path)
    return kinds


def _subfolders(folder: Path) -> list[Path]:
    """List the folders inside one that may hold photographs, sorted."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else ()
    shown = [path for path in inside if not path.name.startswith(".") and path.is_dir()]
    return [path for path in shown if why_no_photographs(path) is None]


def _named(folder: Path, name: str) -> Path:
    """Return the folder of a name inside one, in any case; where there is none, where it would be."""
    alike = (path for path in _subfolders(folder) if path.name.casefold() == name)
    return folder / name if (folder / name).is_dir() else next(alike, folder / name)


def _normal_folders(folder: Path) -> list[Path]:
    return [path for path in _subfolders(folder) if path.name.casefold() in NORMAL_FOLDERS]


def _mask_folders(*folders: Path) -> list[Path]:
    inside = [path for folder in folders for path in sorted(folder.iterdir())]
    return [path for path in inside if path.name.casefold() in MASK_FOLDERS and path.is_dir()]


def _images(folder: Path) -> list[Path]:
    """List the image files directly in a folder, sorted; none where it does not exist."""
    return image_files(folder)


def _images_of(layout_folder: Path, passed: Counter[str]) -> list[Path]:
    """List the photographs of a folder of one kind, also those in folders below it, by day for instance."""
    name = layout_folder.name.casefold()
    if name in NORMAL_FOLDERS or layout_folder.parent.name.casefold() in TEST_FOLDERS:
        return list(walk_images(layout_folder, passed))
    return image_files(layout_folder, passed)


def _read_tree(opened: _Source, split: str, classes: Collection[str], options: DataOptions) -> Dataset:
    rows = []
    for name in {*classes}:
        layout = opened.layouts[name]
        found = _train_images(layout) if split == "train" else _test_images(layout, options.mask_pattern)
        for image, mask, defect in found:
            path = image.relative_to(opened.root).as_posix()
            rows.append((str(image), mask and str(mask), int(defect != "good"), name, defect, path))
    rows.sort(key=lambda row: (_natural_key(row[3]), _natural_key(row[5])))
    return Dataset.from_dict({name: [row[i] for row in rows] for i, name in enumerate(FEATURES)}, features=FEATURES)


def _train_images(layout: _Layout) -> list[tuple[Path, None, str]]:
    for folder in layout.unread:
        if count := len(_images(folder)):
            logger.warning("%s: %d images ignored, they belong to no split of this layout", folder, count)
    passed: Counter[str] = Counter()
    images = [image for folder in layout.normals for image in _images_of(folder, passed)]
    _say_passed(layout.normals[0], passed)
    return [(image, None, "good") for image in images]


def _say_passed(folder: Path, passed: Counter[str]) -> None:
    if passed:
        logger.warning("%s: passed over %s.", folder, describe_counts(passed))


def _test_images(layout: _Layout, pattern: str | None) -> list[tuple[Path, Path | None, str]]:
    images, found, passed = {}, {}, Counter()  # defect -> (folder, photograph); photograph -> mask
    for defect, folders in layout.tests.items():
        images[defect] = [(folder, image) for folder in folders for image in _images_of(folder, passed)]
    if layout.tests:
        _say_passed(next(iter(layout.tests.values()))[0].parent, passed)
    # masks beside photographs, then those of a folder for each defect, then those in one folder for all
    for parent in {image.parent for pairs in images.values() for _, image in pairs}:
        beside = masks_beside(path.name for path in image_files(parent, masks=True))
        found |= {parent / image: parent / mask for image, mask in beside.items()}
    masks = [mask for folder in layout.masks for mask in _masks_in(folder, images)]
    for defect, pairs in sorted(images.items(), key=lambda item: item[0] == "good"):
        kinds = {defect, *(folder.name for folder, _ in pairs)}
        own = [mask for mask in masks if mask.kind in kinds]
        found |= _match_masks([pair for pair in pairs if pair[1] not in found], own, pattern, defect)
    common = [mask for mask in masks if mask.kind is None]
    defective = [pair for defect, pairs in images.items() if defect != "good" for pair in pairs]
    for pairs in (defective, images.get("good", [])):
        taken = {*found.values()}
        left = [mask for mask in common if mask.path not in taken]
        found |= _match_masks([pair for pair in pairs if pair[1] not in found], left, pattern, "")
    rows = [(image, found.get(image), defect) for defect, pairs in images.items() for _, image in pairs]
    where = layout.masks[0] if layout.masks else "beside the photographs"
    missing = [image for image, mask, defect in rows if mask is None and defect != "good"]
    if missing and found or missing and layout.masks:
        logger.warning("%s: no mask for %d defective images, first: %s", where, len(missing), _first(missing))
    names = Counter((image.parent, image.stem) for image, _, defect in rows if defect != "good")
    if twice := [image for image, mask, defect in rows if mask is None and names[image.parent, image.stem] > 1]:
        logger.warning(
            "%d defective photographs have one of the same name beside them, which may be a mask: %s. Move masks to "
            "ground_truth, or rename them to STEM_mask.",
            len(twice),
            _first(twice),
        )
    used = {*found.values()}
    if unmatched := [mask.path for mask in masks if mask.path not in used]:
        logger.warning("%s: %d masks match no image, first: %s", where, len(unmatched), _first(unmatched))
    return rows


def _first(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:NAMED]))


class _Mask(NamedTuple):
    """A mask, or a folder of all masks of one photograph: in which folder of masks, and of which kind of defect."""

    path: Path
    folder: Path
    kind: str | None  # None: one folder for all


def _masks_in(folder: Path, images: dict[str, list[tuple[Path, Path]]]) -> Iterator[_Mask]:
    """List the masks in a folder of masks: its own, those in a folder for each defect, and folders of several for one image."""
    yield from (_Mask(path, folder, None) for path in image_files(folder, masks=True))
    stems = {kind: {image.stem for _, image in pairs} for kind, pairs in images.items()}
    for defect in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        kind = next((kind for kind in stems if kind.casefold() == defect.name.casefold()), None)
        kind = "good" if kind is None and defect.name.casefold() in NORMAL_FOLDERS else kind or defect.name
        for parent, below, _ in os.walk(defect):
            joined = [name for name in below if Path(parent) == defect and name in stems.get(kind, ())]
            yield from (_Mask(defect / name, defect, kind) for name in joined)
            below[:] = [name for name in below if name not in joined]
            yield from (_Mask(path, defect, kind) for path in image_files(Path(parent), masks=True))


def _match_masks(
    images: Sequence[tuple[Path, Path]], masks: Sequence[_Mask], pattern: str | None, defect: str
) -> dict[Path, Path]:
    """
    Match photographs, each with the folder of its kind, and masks by their names; the closest way of naming first.

    STEM_mask, STEM, another word for mask before or behind the stem, the same number; in folders of the same name, then in any.
    """
    found: dict[Path, Path] = {}

    def match(image_key: Any, mask_key: Any, *, shared: bool = False) -> None:
        by_key: dict[Any, list[Path]] = {}
        taken = {*found.values()}
        for mask in masks:
            if mask.path not in taken and (key := mask_key(mask)) is not None:
                by_key.setdefault(key, []).append(mask.path)
        keys = {image: image_key(folder, image) for folder, image in images if image not in found}
        counts = Counter(keys.values())
        for image, key in keys.items():
            if key is not None and len(by_key.get(key, ())) == 1 and (shared or counts[key] == 1):
                found[image] = by_key[key][0]

    if pattern is not None:
        for name in ("relative to its kind", "relative to all"):
            top = name == "relative to all"
            match(
                lambda folder, image: _by_pattern(pattern, image, defect or folder.name).casefold(),
                lambda mask, top=top: _place_of(mask, top=top),
                shared=True,
            )
        return found
    for where in (lambda path, folder: path.parent.relative_to(folder).as_posix().casefold(), lambda path, folder: ""):
        ways = [
            (lambda stem: f"{stem}_mask", lambda path: path.stem.casefold(), True),
            (lambda stem: stem, lambda path: path.stem.casefold(), True),
            (lambda stem: stem, lambda path: owner_stem(path.name), False),
            (_number, lambda path: _number(owner_stem(path.name)), False),
        ]
        for of_image, of_mask, shared in ways:

            def image_key(folder: Path, image: Path, of_image=of_image, where=where) -> tuple | None:
                key = of_image(_composed(image.stem).casefold())
                return None if key is None else (where(image, folder), key)

            def mask_key(mask: _Mask, of_mask=of_mask, where=where) -> tuple | None:
                key = of_mask(mask.path.with_name(_composed(mask.path.name)))
                return None if key is None else (where(mask.path, mask.folder), key)

            match(image_key, mask_key, shared=shared)
    return found


def _number(stem: str) -> int | None:
    return int(stem) if stem.isdecimal() else None


def _by_pattern(pattern: str, image: Path, defect: str) -> str:
    try:
        return pattern.format(stem=image.stem, name=image.name, defect=defect)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"--mask_pattern {pattern!r} cannot be filled in ({error}): use {{stem}}, {{name}} and {{defect}}."
        ) from error


def _place_of(mask: _Mask, *, top: bool) -> str:
    """Write the place of a mask below the folder of its kind, or below that of all masks."""
    folder = mask.folder.parent if top and mask.kind is not None else mask.folder
    return mask.path.relative_to(folder).as_posix().casefold()


def _open_hub(name: str) -> dict[str, _Table]:
    try:
        return {split: table for split, table in datasets.load_dataset(name).items() if split in SPLITS}
    except OSError as error:
        message = f"{name!r} is no path on this disk, and as a Hub data set it could not be loaded: {error}."
        raise FileNotFoundError(f"{message} Check the spelling; offline, give a local path.") from error


def _table_in(root: Path, table: str) -> Path:
    places = [root / table, Path(table).expanduser().absolute()]
    if not (found := next(filter(Path.is_file, places), None)):
        raise FileNotFoundError(f"There is no table {table}, neither in {root} nor here: check --table.")
    return found


def _open_tables(root: Path, files: Sequence[Path], options: DataOptions) -> dict[str, _Table]:
    """Read tables of photographs, CSV and the like, by splits; files that are missing are counted before anything else."""
    rows: dict[str, dict[str, dict]] = {split: {} for split in SPLITS}
    missing, count, other = [], 0, Counter()
    for file in files:
        for record in _records(file):
            columns = _columns_of(file, record, options)
            image = _place_in(file, root, record[columns["image"]])
            row = {
                name: record[columns[name]]
                for name in ("label", "defect", "class_name")
                if columns.get(name) in record
            }
            path = image.relative_to(root) if image.is_relative_to(root) else image
            row |= {"path": path.as_posix(), "image": str(image)}
            if columns.get("mask") in record:
                row["mask"] = str(_place_in(file, root, record[columns["mask"]]))
            count += 1
            missing += [row[name] for name in ("image", "mask") if name in row and not Path(row[name]).exists()]
            word = record.get(columns.get("split", "")) or _split_of(path.parent.parts)
            if (split := SPLIT_WORDS.get(word.casefold(), word)) in SPLITS:
                rows[split][row["path"]] = row
            else:
                other[word] += 1
    if missing:
        raise ValueError(
            f"{len(missing)} of the files that {', '.join(map(str, files))} names ({count} photographs) are missing: "
            f"{', '.join(missing[:NAMED])}. Put them there, or mend the table."
        )
    if other:
        logger.warning("%s: left out, of neither train nor test: %s.", files[0], describe_counts(other))
    names = {name for table in rows.values() for row in table.values() for name in row}
    features = Features({name: FEATURES[name] if name in ("image", "mask") else _TEXT for name in names})
    tables = {split: {name: [row.get(name) for row in rows[split].values()] for name in names} for split in SPLITS}
    return {split: Dataset.from_dict(tables[split], features=features) for split in SPLITS if rows[split]}


def _columns_of(file: Path, record: dict[str, str], options: DataOptions) -> dict[str, str]:
    """Say which column of a row holds what: as options name them, or by their usual names."""
    named = options.columns()
    if options.table is not None and (wrong := [each for each in named.values() if each not in record.keys() | {""}]):
        known = _header_of(file)
        if wrong := [each for each in wrong if each not in known]:
            raise ValueError(f"{file} has no column {', '.join(wrong)}, only {', '.join(known)}.")
    usual = {name: next((each for each in known if each in record), "") for name, known in _COLUMNS.items()}
    columns = {name: column for name, column in (usual | named).items() if column}
    if record.get(columns.get("image", "")) is None:
        hint = "rename the file" if options.table is None else "name the column with --image_column"
        raise ValueError(f"{file} has a row without `{named.get('image', 'file_name')}`: {record}. Add it, or {hint}.")
    return columns


def _place_in(file: Path, root: Path, text: str) -> Path:
    """Find what a table names: relative to the table, or to the data; written as Windows does, too."""
    parts = [text] if (file.parent / text).exists() else [text, text.replace("\\", "/")]
    places = [Path(os.path.normpath(folder / part)) for part in parts for folder in (file.parent, root)]
    return next((place for place in places if place.exists()), places[-2])


@functools.lru_cache(maxsize=8)
def _header_of(file: Path) -> list[str]:
    return list(dict.fromkeys(name for record in _records(file, empty=True) for name in record))


def _records(file: Path, *, empty: bool = False) -> list[dict[str, str]]:
    """Read the rows of a table, whatever separates its cells; cells without a value are left out unless they are asked for."""
    kind = file.suffix.lower()
    if kind == ".parquet":
        lines = pyarrow.dataset.dataset(file).to_table().to_pylist()
    else:
        try:
            with open(file, encoding="utf-8-sig", newline="") as stream:
                lines = list(
                    map(json.loads, filter(str.strip, stream)) if kind == ".jsonl" else _csv_rows(stream.read())
                )
            if not all(isinstance(line, dict) for line in lines):
                raise ValueError("a line holds no row")
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{file} is no UTF-8 {kind[1:]} file: {error}. Save it as one.") from error
    cells = [
        {str(key).strip(): str(value).strip() for key, value in line.items() if key is not None and value is not None}
        for line in lines
    ]
    return cells if empty else [{key: value for key, value in line.items() if value} for line in cells]


def _csv_rows(text: str) -> list[dict[str, str]]:
    """Read rows of cells that commas, semicolons or tabulators part: whichever the first line has most of."""
    first = text.partition("\n")[0]
    return list(csv.DictReader(text.splitlines(keepends=True), delimiter=max(",;\t", key=first.count)))


def _open_parquet(root: Path, files: list[Path]) -> dict[str, _Table]:
    """Map splits to unread parquet files, by a `split` column or else by names such as `test-00000.parquet`."""
    whole = pyarrow.dataset.dataset(files)
    if "split" in whole.schema.names:
        return {split: whole.filter(pyarrow.compute.field("split") == split) for split in SPLITS}
    splits = {path: _split_of([*path.relative_to(root).parts, *re.split(r"[\W\d_]+", path.stem)]) for path in files}
    groups = {split: [path for path in files if splits[path] == split] for split in SPLITS}
    return {split: pyarrow.dataset.dataset(group) for split, group in groups.items() if group}


def _split_of(words: Collection[str]) -> str:
    return next((word for word in ("test", "validation", "val") if word in map(str.lower, words)), "train")


def _pick(table: _Table, names: Sequence[str]) -> Dataset:
    """Return the columns of these names or their aliases; others are not read from parquet files."""
    present = table.column_names if isinstance(table, Dataset) else table.schema.names
    columns = {alias: name for name in names for alias in [item for item in _ALIASES[name] if item in present][:1]}
    picked = table if isinstance(table, Dataset) else Dataset(table.to_table(columns=list(columns)))
    return picked.select_columns(list(columns)).rename_columns(columns)


def _values(raw: Dataset, name: str, default: str | None = None) -> list[Any]:
    """Return a column as a list, class labels by their names."""
    if name not in raw.column_names:
        return [default] * len(raw)
    values, names = raw[name][:], getattr(raw.features[name], "names", None)
    return values if names is None else [None if value in (None, -1) else names[value] for value in values]


def _read_label(value: Any, root: Path | str) -> str:
    """Return "good", "anomalous", or a label that names a defect as it is."""
    name = str(value).strip().lower()
    if name in _NORMAL_NAMES or name in _ANOMALOUS_NAMES:
        return "good" if name in _NORMAL_NAMES else "anomalous"
    if not isinstance(value, str) or not re.search(r"[^\W\d]", name):
        raise ValueError(f"Label {value!r} in {root} cannot be read: use 0 or 'normal', 1 or 'anomalous'.")
    return value


def _read_table(opened: _Source, split: str, classes: Collection[str]) -> Dataset:
    if split not in opened.tables:
        return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    raw = _pick(opened.tables[split], list(FEATURES))
    for name in ("image", "label"):
        if name not in raw.column_names:
            raise ValueError(f"{opened.root} has no column {name!r}, only {raw.column_names}: rename or add it.")
    if "mask" not in raw.column_names:
        raw = raw.add_column("mask", [None] * len(raw), feature=_IMAGE)
    raw = raw.cast_column("image", _IMAGE).cast_column("mask", _IMAGE)
    labels = [_read_label(value, opened.root) for value in _values(raw, "label")]
    names = [_composed(str(value)) for value in _values(raw, "class_name", opened.name)]
    defects = [defect or label for defect, label in zip(_values(raw, "defect"), labels)]
    stored = pyarrow.compute.struct_field(raw.data.column("image"), "path").to_pylist()
    paths = [path or PurePath(file or "").name for path, file in zip(_values(raw, "path"), stored)]
    if not all(paths) or len(set(paths)) < len(paths):
        paths = [f"{split}/{row:06d}-{path or 'image'}" for row, path in enumerate(paths)]
    dataset = raw.select_columns(["image", "mask"])
    numbers = [int(label != "good") for label in labels]
    for name, values in zip(("label", "class_name", "defect", "path"), (numbers, names, defects, paths)):
        dataset = dataset.add_column(name, values, feature=FEATURES[name])
    keys = [(_natural_key(name), _natural_key(path)) for name, path in zip(names, paths)]
    keep = [row for row in sorted(range(len(keys)), key=keys.__getitem__) if names[row] in classes]
    return dataset.select(keep, keep_in_memory=True)


# --- One door to all data: `NAME:FOLDER` for a public set in its own tree, anything else as `read_dataset` reads it ---


def read_source(
    source: str | Path, *, split: str, classes: Sequence[str] | None = None, options: DataOptions | None = None
) -> Dataset:
    """
    Read one split of any data source without opening a photograph.

    Args:
        source: `visa:FOLDER`, `real_iad:FOLDER` and so on for a public set of [`SETS`], else what [`read_dataset`] reads.
        split: `train` or `test`.
        classes: products to keep; by default all.
        options: a table in place of folders, and how masks are named.

    Raises:
        ValueError: where a public set is not whole, with what is missing, where it is to be had and its license; and as
            for [`read_dataset`].
    """
    name, root = split_source(source)
    if name is None or _is_tree(name, root):
        return read_dataset(root if name else source, split=split, classes=classes, options=options)
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}.")
    rows = list_rows(name, root)
    known = list(dict.fromkeys(row.class_name for row in rows))
    if missing := [wanted for wanted in classes or () if wanted not in known]:
        raise ValueError(f"No class {missing} in {root}. Classes there: {', '.join(known)}.")
    kept = [row for row in rows if row.split == split and row.class_name in (classes or known)]
    kept.sort(key=lambda row: row.class_name)  # stable: in a class, as listed
    columns = {
        "image": [str(row.image) for row in kept],
        "mask": [row.mask and str(row.mask) for row in kept],
        "label": [int(row.defect != "good") for row in kept],
        "class_name": [row.class_name for row in kept],
        "defect": [row.defect for row in kept],
        "path": [row.image.relative_to(root).as_posix() for row in kept],
    }
    return Dataset.from_dict(columns, features=FEATURES)


def source_classes(source: str | Path, options: DataOptions | None = None) -> list[str]:
    """List the classes of any data source."""
    name, root = split_source(source)
    if name is None or _is_tree(name, root):
        return list_classes(root if name else source, options)
    return sorted({row.class_name for row in list_rows(name, root)})


def split_source(source: str | Path) -> tuple[str | None, Path]:
    """Split `NAME:FOLDER` into the set's name and its folder; the name is None for any other source."""
    name, mark, folder = str(source).partition(":")
    if not mark or name not in SETS:
        return None, Path(source)
    root = Path(os.path.abspath(Path(folder).expanduser()))
    if not root.is_dir():
        raise ValueError(SETS[name].refusal(root, "there is no such folder"))
    return name, _tree_root(name, root)


def _tree_root(name: str, root: Path) -> Path:
    """Return where the classes lie: VisA's official script puts them into `1cls`."""
    return root / "1cls" if name == "visa" and (root / "1cls").is_dir() else root


def _is_tree(name: str, root: Path) -> bool:
    """Tell whether a set lies as an MVTec tree, which `read_dataset` reads; refuse one that lies in neither way."""
    if name in READERS and (name != "visa" or (root / "split_csv" / "1cls.csv").exists()):
        return False
    if not any(root.glob("*/train/good")):
        raise ValueError(SETS[name].refusal(root, "no class has train/good"))
    return True


__all__ = [
    "DataOptions",
    "read_source",
    "source_classes",
    "split_source",
]
