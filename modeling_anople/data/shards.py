"""
Judge very many images: a data set in shards, parquet files or WebDataset tars, answered shard by shard.

A shard is streamed, and its answers appear whole or not at all; a run that was killed goes on with the shards that have
none. Over several processes (`accelerate launch -m modeling_anople.cli predict ...`) each takes every n-th of those left.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Image, IterableDataset, load_dataset
from tqdm.auto import tqdm

from ..pipeline_anople import Prediction, predict
from ..processing_anople import AnoPLeProcessor
from ..product_store_anople import find_class
from ..runtime.loading import Shard, join_processes
from ..scoring_anople import Detector


logger = logging.getLogger(__name__)

# metadata of the answers to a shard on the Hub: its address, and the hash of its bytes
ADDRESS, CONTENT = b"anople_shard", b"anople_shard_hash"
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
        "unsure": pa.bool_(),
        "reason": pa.string(),
        "error": pa.string(),
        "seconds": pa.float32(),
    }
)
EARLIEST = [name for name in SCHEMA.names if name not in ("unsure", "reason")]  # columns of every version


def predict_shards(
    detector: Detector,
    processor: AnoPLeProcessor,
    shards: list[Shard],
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
        detector, processor: the network or an exported graph of it, and its processor.
        shards: what [`list_shards`] names.
        folder: gets the answers of each (`NAME.results.parquet` for `NAME.parquet` or `NAME.tar`, with the folders before
            it for `FOLDER/NAME.parquet` on the Hub): a row for each photograph, in their order, with the columns of
            `SCHEMA`. Shards that have theirs are passed over.
        class_name: the product of all photographs.
        class_column: the column that names the product of each; without either it is predicted.
        image_column: the column of photographs; not needed where only one holds images.

    Returns:
        How many photographs of all shards could not be read, or are of an unknown product, now or when they were
        answered.

    Raises:
        ValueError: for a shard without such columns, both `class_name` and `class_column`, an unknown `class_name`, a
            `class_column` that names no known product in a shard's first 256 rows, or answers in `folder` to another
            file of a shard's name.
    """
    if class_name is not None and class_column is not None:
        raise ValueError("Give the product of all photographs (class_name) or the column that names it, not both.")
    state = join_processes()
    folder.mkdir(parents=True, exist_ok=True)
    left = _left_of(shards, folder, state)
    own = left[state.process_index :: state.num_processes]
    before = [folder / shard.answers for shard in shards if shard not in left]
    failed = sum(map(_unread_in, before)) if state.is_main_process else 0
    with tqdm(desc="predict", unit=" photographs", disable=None if state.is_main_process else True) as bar:
        for shard in own:
            logger.info("Process %d answers %s.", state.process_index, shard.place)
            rows = _open(shard)
            column = _image_column(rows, shard, image_column)
            if class_column is not None and class_column not in rows.column_names:
                raise ValueError(f"{shard.place} has no column {class_column!r}, but {rows.column_names}.")
            target = folder / shard.answers
            with _whole_file(target) as path, pq.ParquetWriter(path, _schema_of(shard)) as writer:
                for part in _answers(detector, processor, shard, rows, column, class_name, class_column, batch_size):
                    writer.write_table(pa.Table.from_pylist(part, SCHEMA))
                    bar.update(len(part))
            failed += (unread := _unread_in(target))
            logger.info(
                "%s has the answers; %d photographs could not be read or are of an unknown product.", target, unread
            )
    # all end together and alike: a process that ended early with an error would have the launcher end the others
    return sum(gather_object([failed])) if state.num_processes > 1 else failed


def _left_of(shards: list[Shard], folder: Path, state: PartialState) -> list[Shard]:
    """Name the shards without answers, as the main process sees them: each would take others while files appear."""
    said: list[list[Shard] | ValueError | None] = [None]
    if state.is_main_process:
        try:
            said = [[shard for shard in shards if not _is_answered(shard, folder / shard.answers)]]
        except ValueError as error:
            said = [error]
    broadcast_object_list(said)
    if isinstance(said[0], ValueError):
        raise said[0]
    return said[0]


def _is_answered(shard: Shard, target: Path) -> bool:
    """Say whether a shard has its answers."""
    if not target.exists():
        return False
    schema = _schema_in(target)
    # earlier versions wrote fewer columns
    if schema is None or not {*EARLIEST} <= {*schema.names} <= {*SCHEMA.names}:
        raise ValueError(
            f"{target} is there already and holds no answers that this version knows: give another folder."
        )
    known = schema.metadata or {}
    if known.get(CONTENT, b"").decode() != shard.content:
        answered = known.get(ADDRESS, b"a file on disk").decode()
        raise ValueError(
            f"{target} answers {answered}, and {shard.place} is another file: give another folder of answers, or on the "
            "Hub the revision that was read before (NAME@REVISION)."
        )
    logger.info("%s is answered already.", shard.place)
    return True


def _schema_in(target: Path) -> pa.Schema | None:
    """Read what columns a parquet file has; `None` of another file."""
    try:
        return pq.read_schema(target) if target.is_file() else None
    except (OSError, pa.ArrowException):
        return None


def _unread_in(target: Path) -> int:
    """Count the rows of a file of answers that have an error, by what parquet says of that column."""
    found = pq.read_metadata(target)
    number = found.schema.names.index("error")
    groups = [found.row_group(group) for group in range(found.num_row_groups)]
    return sum(group.num_rows - group.column(number).statistics.null_count for group in groups)


def _schema_of(shard: Shard) -> pa.Schema:
    """Name the columns of answers; those of a shard on the Hub say which version it was."""
    return SCHEMA.with_metadata({ADDRESS: shard.place, CONTENT: shard.content}) if shard.content else SCHEMA


def _open(shard: Shard) -> IterableDataset:
    """Stream a shard; a `ValueError` names one that cannot be read."""
    with _named(shard):
        rows = load_dataset(shard.builder, data_files=[shard.place], split="train", streaming=True)
        return rows if rows.features is not None else rows._resolve_features()


@contextlib.contextmanager
def _named(shard: Shard) -> Iterator[None]:
    """Name the shard in an error of what reads it: parquet, tar and the Hub's client have each their own."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{shard.place} cannot be read ({reason}): copy it again, or leave it out.") from error


def _image_column(rows: IterableDataset, shard: Shard, asked: str | None) -> str:
    images = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
    if not images:
        raise ValueError(
            f"{shard.place} has the columns {rows.column_names}, none of which is of images: write it with the photographs' "
            "column cast to datasets.Image()."
        )
    column = asked or (images[0] if len(images) == 1 else "image")
    if column not in images:
        raise ValueError(
            f"{shard.place} has the columns {rows.column_names}, of which {images} hold images: give --image_column one of these."
        )
    return column


def _answers(
    detector: Detector,
    processor: AnoPLeProcessor,
    shard: Shard,
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
    for start, part in _in_parts(_rows_of(table, shard), part_size):
        predictions = _judge_rows(
            detector, processor, part, column, class_name, class_column, batch_size, first=not start
        )
        try:  # no map outlives its row
            answers = [
                {
                    "number": start + number,
                    "path": str(row[named]) if named else (row[column] or {}).get("path"),
                    **{name: getattr(prediction, name) for name in SCHEMA.names[2:]},
                }
                for number, (row, prediction) in enumerate(zip(part, predictions, strict=True))
            ]
        except ValueError as error:  # no product is known, for instance
            raise ValueError(f"Rows {start} to {start + len(part) - 1} of a shard: {error}") from error
        yield answers


def _judge_rows(
    detector: Detector,
    processor: AnoPLeProcessor,
    rows: list[dict],
    column: str,
    class_name: str | None,
    class_column: str | None,
    batch_size: int,
    *,
    first: bool,
) -> Iterator[Prediction]:
    """
    Judge rows; those of an unknown product have an error.

    Raises:
        ValueError: if the product of no row is known, of the `first` ones of a shard: the column holds something else.
    """
    faults: dict[int, ValueError] = {}
    for number, row in enumerate(rows if class_column is not None else ()):
        try:
            if row[class_column] is None:
                raise ValueError(f"no product is given in {class_column}.")
            find_class(row[class_column], processor.class_names)
        except ValueError as error:
            faults[number] = error
    if first and len(faults) == len(rows):
        raise faults[0]
    known = [row for number, row in enumerate(rows) if number not in faults]
    classes = class_name if class_column is None else [row[class_column] for row in known]
    images = [row[column] for row in known]
    predictions = predict(detector, processor, images, class_names=classes, batch_size=batch_size)
    for number in range(len(rows)):
        yield Prediction(error=str(faults[number])) if number in faults else next(predictions)


def _rows_of(table: IterableDataset, shard: Shard) -> Iterator[dict]:
    with _named(shard):
        yield from table


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
    unfinished = target.with_name(f".unfinished-{target.name}")
    try:
        yield unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


__all__ = ["SCHEMA", "predict_shards"]
