"""One door to all data: folder trees, imagefolders, parquet files, Hub data sets and public sets, each as one `datasets.Dataset`."""

import csv
import functools
import json
import logging
import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

import datasets
import pyarrow.compute
import pyarrow.dataset
from datasets import ClassLabel, Dataset, Features, Image, Value

from ..images_anople import IMAGE_EXTENSIONS
from .public_sets import READERS, SETS, list_rows


# --- Image sources (folder trees, imagefolders, parquet files, Hub data sets), each as one `datasets.Dataset` ---


logger = logging.getLogger(__name__)

_IMAGE, _TEXT = Image(decode=False), Value("string")
_LABEL = ClassLabel(names=["normal", "anomalous"])
FEATURES = Features(image=_IMAGE, mask=_IMAGE, label=_LABEL, class_name=_TEXT, defect=_TEXT, path=_TEXT)
SPLITS = ("train", "test")
_composed = functools.partial(unicodedata.normalize, "NFC")  # on a Mac a folder's name has its accents apart

_LAYOUTS = f"""Accepted layouts (images: {", ".join(sorted(IMAGE_EXTENSIONS))}):
  1. MVTec tree:    CLASS/train/good/*, CLASS/test/DEFECT/*, CLASS/ground_truth/DEFECT/STEM_mask.png
  2. plain folders: CLASS/* (normals only), or CLASS/good/* with one more folder for each defect
  3. a data set:    metadata.jsonl or metadata.csv with `file_name`, parquet files (train-*, test-*), or a Hub id "user/name\""""
_ALIASES = {name: (name,) for name in FEATURES} | {
    "mask": ("mask", "mask_image", "segmentation"),
    "class_name": ("class_name", "category", "object", "class"),
    "path": ("path", "file_name"),
}
_NORMAL_NAMES = {"normal", "good", "ok", "0", "0.0", "false"}
_ANOMALOUS_NAMES = {"anomalous", "anomaly", "abnormal", "defective", "defect", "bad", "ng", "1", "1.0", "true"}
_Table = Dataset | pyarrow.dataset.Dataset


class _Layout(NamedTuple):
    """Where one class keeps its photographs; the images directly in `unread` folders belong to no split."""

    normals: Path
    tests: dict[str, Path]  # defect -> folder
    masks: Path | None
    unread: list[Path]


class _Source(NamedTuple):
    root: Path | str
    name: str  # of the one class, where a table names none
    layouts: dict[str, _Layout]  # class -> layout, of a folder tree
    tables: dict[str, _Table]  # split -> table, of any other source


def read_dataset(source: str | Path, *, split: str, classes: Sequence[str] | None = None) -> Dataset:
    """Read one split, `"train"` or `"test"`, of an image source without decoding any image.

    `source` is an MVTec tree, a folder with one folder of photographs per class, a single class folder, a folder with
    `metadata.jsonl` or `metadata.csv`, a parquet file or a folder of them, or a Hub data set id. Rows have the columns
    of `FEATURES`, in natural order of class and path; `classes` keeps only these. Normals are never re-split: a plain
    folder of normals has zero test rows, and next to a plain `good` folder the test rows are its defect folders only.
    Masks are found by file stem and are None where there is none. Rows of metadata and parquet files belong to the
    split of a `split` column, of a folder or parquet file named after it, else to train; a label text that is no word
    for normal or anomalous names a defect. A parquet split is held in memory. Raises FileNotFoundError where `source`
    does not exist, and ValueError where it has no accepted layout, a class of `classes` is missing, a label is
    unreadable, or (train) a class has no normals.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}.")
    opened = _open(source)
    known = _class_names(opened)
    wanted = [_composed(name) for name in classes or known]
    if missing := [name for name in wanted if name not in known]:
        raise ValueError(f"No class {missing} in {opened.root}. Classes there: {', '.join(known)}.")
    dataset = (_read_tree if opened.layouts else _read_table)(opened, split, wanted)
    if split == "train":
        normals = {name for name, label in zip(dataset["class_name"][:], dataset["label"][:]) if label == 0}
        for name in [name for name in wanted or [opened.name] if name not in normals]:
            place = opened.layouts[name].normals if opened.layouts else f"the train split of {opened.root}"
            raise ValueError(f"Class {name!r} has no normal photographs in {place}: put them there.\n{_LAYOUTS}")
    return dataset


def list_classes(source: str | Path) -> list[str]:
    """List the class names of an image source, sorted with numbers as numbers; errors as for `read_dataset`."""
    return _class_names(_open(source))


def _class_names(opened: _Source) -> list[str]:
    tables = [_pick(table, ("class_name", "label")) for table in opened.tables.values()]
    names = {_composed(str(value)) for raw in tables for value in _values(raw, "class_name", opened.name)}
    return sorted({*opened.layouts, *names}, key=_natural_key)


def _natural_key(text: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", text)  # text, digits, text, ...
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


def _open(source: str | Path) -> _Source:
    root = Path(os.path.abspath(Path(source).expanduser()))
    if not root.exists() and isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        return _Source(source, source.partition("/")[2], {}, _open_hub(source))
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist: check the path. A Hub data set is named 'user/name'.")
    if root.is_file() and root.suffix.lower() != ".parquet":
        raise ValueError(f"{root} is a file: give the folder that holds the class folders.\n{_LAYOUTS}")
    name = root.stem if root.is_file() else root.name
    if tables := _open_metadata(root):
        return _Source(root, name, {}, tables)
    layouts = _class_layouts(root)
    is_mvtec = any(layout.normals.parts[-2:] == ("train", "good") for layout in layouts.values())
    parquet = (
        [root] if root.is_file() else [] if is_mvtec else sorted(filter(Path.is_file, root.rglob("[!.]*.parquet")))
    )
    if parquet:  # loose pictures beside them are no class
        return _Source(root, name, {}, _open_parquet(root, parquet))
    if not layouts:
        raise ValueError(f"No class folders in {root}: no folder there has train/, good/ or images.\n{_LAYOUTS}")
    return _Source(root, name, layouts, {})


def _class_layouts(root: Path) -> dict[str, _Layout]:
    single = (root / "train" / "good").is_dir() or (root / "good").is_dir()
    folders = [root] if single else [path for path in _subfolders(root) if _is_class(path)]
    folders = folders or ([root] if _images(root) else [])
    mvtec = {path for path in folders if any((path / split).is_dir() for split in SPLITS)}
    layouts = {_composed(path.name): (_mvtec_layout if path in mvtec else _plain_layout)(path) for path in folders}
    if len(layouts) < len(folders):
        raise ValueError(f"{root} has two folders of one name, their accents written in two ways: rename one of them.")
    return layouts


def _is_class(folder: Path) -> bool:
    if folder.name in (*SPLITS, "ground_truth"):  # part of a class, unless a product has that name
        return (folder / "train" / "good").is_dir()
    inside = _subfolders(folder)
    return any(path.name in (*SPLITS, "good") for path in inside) or any(_images(path) for path in (folder, *inside))


def _mvtec_layout(folder: Path) -> _Layout:
    train, test = folder / "train", folder / "test"
    unread = [folder, train, *(path for path in _subfolders(train) if path.name != "good"), test]
    return _Layout(train / "good", {path.name: path for path in _subfolders(test)}, folder / "ground_truth", unread)


def _plain_layout(folder: Path) -> _Layout:
    others = {path.name: path for path in _subfolders(folder)}
    masks = others.pop("ground_truth", None)
    if "good" in others:
        return _Layout(others.pop("good"), others, masks, [folder])
    return _Layout(folder, {}, masks, list(others.values()))


def _subfolders(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir()) if folder.is_dir() else ()
    return [path for path in inside if not path.name.startswith(".") and path.is_dir()]


def _images(folder: Path) -> list[Path]:
    """List the image files directly in a folder, sorted; none where it does not exist."""
    inside = folder.iterdir() if folder.is_dir() else []
    files = sorted(path for path in inside if not path.name.startswith(".") and not path.is_dir())
    images = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS]
    logger.debug("%s: %d images, %d other files ignored", folder, len(images), len(files) - len(images))
    return images


def _read_tree(opened: _Source, split: str, classes: Collection[str]) -> Dataset:
    rows, read = [], _train_images if split == "train" else _test_images
    for name in {*classes}:
        for image, mask, defect in read(opened.layouts[name]):
            path = image.relative_to(opened.root).as_posix()
            rows.append((str(image), mask and str(mask), int(defect != "good"), name, defect, path))
    rows.sort(key=lambda row: (_natural_key(row[3]), _natural_key(row[5])))
    return Dataset.from_dict({name: [row[i] for row in rows] for i, name in enumerate(FEATURES)}, features=FEATURES)


def _train_images(layout: _Layout) -> list[tuple[Path, None, str]]:
    for folder in layout.unread:
        if count := len(_images(folder)):
            logger.warning("%s: %d images ignored, they belong to no split of this layout", folder, count)
    return [(image, None, "good") for image in _images(layout.normals)]


def _test_images(layout: _Layout) -> list[tuple[Path, Path | None, str]]:
    rows, truths = [], {path.name: _images(path) for path in _subfolders(layout.masks)} if layout.masks else {}
    for defect, folder in layout.tests.items():
        masks = {path.stem: path for path in truths.get(defect, [])}
        pairs = [(image, masks.get(f"{image.stem}_mask", masks.get(image.stem))) for image in _images(folder)]
        rows += [(image, mask, "good" if defect.lower() == "good" else defect) for image, mask in pairs]
    if missing := [image for image, mask, defect in rows if mask is None and defect != "good" and layout.masks]:
        logger.warning("%s: no mask for %d defective images, first: %s", layout.masks, len(missing), missing[0])
    used = {mask for _, mask, _ in rows}
    if unmatched := [mask for masks in truths.values() for mask in masks if mask not in used]:
        logger.warning("%s: %d masks match no image, first: %s", layout.masks, len(unmatched), unmatched[0])
    return rows


def _open_hub(name: str) -> dict[str, _Table]:
    try:
        return {split: table for split, table in datasets.load_dataset(name).items() if split in SPLITS}
    except OSError as error:
        message = f"{name!r} is no path on this disk, and as a Hub data set it could not be loaded: {error}."
        raise FileNotFoundError(f"{message} Check the spelling; offline, give a local path.") from error


def _open_metadata(root: Path) -> dict[str, _Table]:
    files = [root / below / f"metadata.{end}" for end in ("jsonl", "csv") for below in ("", *SPLITS)]
    rows = {split: {} for split in SPLITS}
    for file in filter(Path.is_file, files):
        for record in _records(file):
            if "file_name" not in record:
                raise ValueError(f"{file} has a row without `file_name`: {record}. Add it, or rename the file.")
            path = PurePosixPath(file.parent.relative_to(root), record["file_name"])
            row = {name: record[name] for name in ("label", "defect", *_ALIASES["class_name"]) if name in record}
            row |= {"path": str(path), "image": str(root / path)}
            if "mask_file_name" in record:
                row["mask"] = str(file.parent / record["mask_file_name"])
            if (split := record.get("split") or _split_of(path.parent.parts)) in SPLITS:
                rows[split][str(path)] = row
    names = {name for table in rows.values() for row in table.values() for name in row}
    features = Features({name: FEATURES[name] if name in ("image", "mask") else _TEXT for name in names})
    tables = {split: {name: [row.get(name) for row in rows[split].values()] for name in names} for split in SPLITS}
    return {split: Dataset.from_dict(tables[split], features=features) for split in SPLITS if rows[split]}


def _records(file: Path) -> list[dict[str, str]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            lines = csv.DictReader(stream) if file.suffix == ".csv" else map(json.loads, filter(str.strip, stream))
            return [{key: str(value) for key, value in line.items() if value not in (None, "")} for line in lines]
    except (ValueError, AttributeError, csv.Error) as error:  # a line may hold no row
        raise ValueError(f"{file} is no UTF-8 {file.suffix[1:]} file: {error}. Save it as one.") from error


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


def read_source(source: str | Path, *, split: str, classes: Sequence[str] | None = None) -> Dataset:
    """
    Read one split of any data source without opening a photograph.

    Args:
        source: `visa:FOLDER`, `real_iad:FOLDER` and so on for a public set of [`SETS`], else what [`read_dataset`] reads.
        split: `train` or `test`.
        classes: products to keep; by default all.

    Raises:
        ValueError: where a public set is not whole, with what is missing, where it is to be had and its license; and as
            for [`read_dataset`].
    """
    name, root = split_source(source)
    if name is None or _is_tree(name, root):
        return read_dataset(root if name else source, split=split, classes=classes)
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


def source_classes(source: str | Path) -> list[str]:
    """List the classes of any data source."""
    name, root = split_source(source)
    if name is None or _is_tree(name, root):
        return list_classes(root if name else source)
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
    "read_source",
    "source_classes",
    "split_source",
]
