"""
Judge very many photographs: a data set in shards, parquet files or WebDataset tars, on disk or on the Hub, answered
shard by shard.

A shard is streamed, and its answers appear whole or not at all; a run that was killed goes on with the shards that have
none. Over several processes (`accelerate launch -m modeling_anople.cli predict ...`) each takes every n-th shard.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import gather_object
from datasets import Image, IterableDataset, load_dataset
from tqdm.auto import tqdm

from .prediction import predict
from .processes import join_processes
from .sources_anople import ANSWERS, is_on_hub, shards_in


logger = logging.getLogger(__name__)

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
ADDRESS = b"anople_shard"  # the metadata of answers in which the address on the Hub stands
NAMES = ("path", "file_name", "__key__", "id")  # columns that say which photograph it is, in this order of preference
SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "path": pa.string(),
        "class_name": pa.string(),
        "score": pa.float32(),
        "raw_score": pa.float32(),
        "p_value": pa.float32(),
        "label": pa.string(),
        "error": pa.string(),
        "seconds": pa.float32(),
    }
)


def list_shards(places: list[str]) -> list[Path | str]:
    """
    Name the shards, sorted within their folder or data set; those on the Hub by a commit, so that all are of one version.

    Raises:
        ValueError: if two have the same name, because their answers would.
        FileNotFoundError: for what the Hub does not have, or not for you.
    """
    shards = [shard for place in places for shard in shards_in(place)]
    names = [answers_of(shard) for shard in shards]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Several shards would be answered in {double[0]}: give them in separate runs.")
    return shards


def answers_of(shard: Path | str) -> str:
    """Name the file of a shard's answers: on the Hub shards in different folders often have one name, so with those."""
    if not is_on_hub(shard):
        return f"{Path(shard).stem}{ANSWERS}"
    place = str(shard).partition("@")[2].partition("/")[2]  # after the commit
    return f"{place.rpartition('.')[0].replace('/', '-')}{ANSWERS}"


def predict_shards(
    model: Any,
    processor: Any,
    shards: list[Path | str],
    folder: Path,
    *,
    class_name: str | None = None,
    class_column: str | None = None,
    image_column: str | None = None,
    batch_size: int = 8,
) -> int:
    """
    Judge the photographs of shards and write a parquet file of answers for each.

    Args:
        model, processor: of a detector, or of an exported one.
        shards: files, or addresses on the Hub that name a commit, as `list_shards` gives them.
        folder: gets `NAME.results.parquet` for each `NAME.parquet` or `NAME.tar`: a row for each photograph, in their
            order, with the columns of `SCHEMA`. Shards that have theirs are passed over.
        class_name: the product of all photographs.
        class_column: the column that names the product of each; without either it is predicted.
        image_column: the column of photographs; not needed where only one holds images.

    Returns:
        How many photographs could not be read, by all processes together.

    Raises:
        ValueError: for a shard without such columns, both `class_name` and `class_column`, an unknown product, or answers
            in `folder` that are of another version of a shard on the Hub.
    """
    if class_name is not None and class_column is not None:
        raise ValueError("Give the product of all photographs (class_name) or the column that names it, not both.")
    state = join_processes()
    folder.mkdir(parents=True, exist_ok=True)
    left = [shard for shard in shards if not _is_answered(shard, folder / answers_of(shard))]
    if state.num_processes > 1:
        left = gather_object([left])[0]  # as one of them saw it: each would take others while files appear
    own = left[state.process_index :: state.num_processes]
    failed = 0
    with tqdm(desc="predict", unit=" photographs", disable=None if state.is_main_process else True) as bar:
        for shard in own:
            target = folder / answers_of(shard)
            rows = _open(shard)
            column = _image_column(rows, shard, image_column)
            if class_column is not None and class_column not in rows.column_names:
                raise ValueError(f"{shard} has no column {class_column!r}, but {rows.column_names}.")
            with _whole_file(target) as path, pq.ParquetWriter(path, _schema_of(shard)) as writer:
                for part in _answers(model, processor, rows, column, class_name, class_column, batch_size):
                    failed += sum(entry["error"] is not None for entry in part)
                    writer.write_table(pa.Table.from_pylist(part, SCHEMA))
                    bar.update(len(part))
    # all end together and alike: a process that ended early with an error would have the launcher end the others
    return sum(gather_object([failed])) if state.num_processes > 1 else failed


def _is_answered(shard: Path | str, target: Path) -> bool:
    """Say whether a shard has its answers."""
    if not target.exists():
        return False
    answered = (pq.read_schema(target).metadata or {}).get(ADDRESS, b"").decode()
    if is_on_hub(shard) and answered != shard:
        raise ValueError(
            f"{target} answers {answered or 'a file on disk'}, and not {shard}: give another folder of answers, or the "
            "revision that was read before (NAME@REVISION)."
        )
    logger.info("%s is answered already.", shard)
    return True


def _schema_of(shard: Path | str) -> pa.Schema:
    """Name the columns of answers; those of a shard on the Hub say which version it was."""
    return SCHEMA.with_metadata({ADDRESS: shard}) if is_on_hub(shard) else SCHEMA


def _open(shard: Path | str) -> IterableDataset:
    """Stream a shard."""
    rows = load_dataset(BUILDERS[Path(shard).suffix], data_files=[str(shard)], split="train", streaming=True)
    return rows if rows.features is not None else rows._resolve_features()


def _image_column(rows: IterableDataset, shard: Path | str, asked: str | None) -> str:
    images = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
    column = asked or (images[0] if len(images) == 1 else "image")
    if column not in images:
        raise ValueError(
            f"{shard} has the columns {rows.column_names}, of which {images} hold images: give --image_column one of these."
        )
    return column


def _answers(
    model: Any,
    processor: Any,
    rows: IterableDataset,
    column: str,
    class_name: str | None,
    class_column: str | None,
    batch_size: int,
    part_size: int = 256,
) -> Iterator[list[dict]]:
    """Judge rows as they come; answers in parts that fit into memory."""
    others = [name for name in rows.column_names if name in (*NAMES, class_column)]
    table = rows.select_columns([column, *others]).cast_column(column, Image(decode=False))
    named = next((name for name in NAMES if name in others), None)
    for start, part in _in_parts(table, part_size):
        classes = class_name if class_column is None else [row[class_column] for row in part]
        images = [row[column] for row in part]
        predictions = predict(model, processor, images, class_names=classes, batch_size=batch_size)
        yield [
            {
                "number": start + number,
                "path": str(row[named]) if named else (row[column] or {}).get("path"),
                **{name: getattr(prediction, name) for name in SCHEMA.names[2:]},
            }
            for number, (row, prediction) in enumerate(zip(part, predictions, strict=True))
        ]


def _in_parts(rows: Iterable[dict], size: int) -> Iterator[tuple[int, list[dict]]]:
    start, part = 0, []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield start, part
            start, part = start + size, []
    if part:
        yield start, part


@contextlib.contextmanager
def _whole_file(target: Path) -> Iterator[Path]:
    """Give a file to write that is put in place when it is whole."""
    unfinished = target.with_suffix(".part")
    try:
        yield unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


__all__ = ["SCHEMA", "answers_of", "list_shards", "predict_shards"]
