"""One door to all data: `NAME:FOLDER` for a public set in its own tree, anything else as `read_dataset` reads it."""

import os
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from .data import FEATURES, SPLITS, list_classes, read_dataset
from .public_layouts import READERS, list_rows
from .public_sets import SETS


def read_source(source: str | Path, *, split: str, classes: Sequence[str] | None = None) -> Dataset:
    """
    Read one split of any data source without opening a photograph.

    Args:
        source: `visa:FOLDER`, `real_iad:FOLDER` and so on for a public set of [`SETS`], else what [`read_dataset`] reads.
        split: `train` or `test`.
        classes: products to keep; by default all.

    Raises:
        ValueError: where a public set is not whole, with what is missing, where it is to be had and its licence; and as
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


__all__ = ["read_source", "source_classes", "split_source"]
