"""A record's id names one file in one state; its time is of this moment."""

import os
import re
from datetime import UTC, datetime

from modeling_anople.inspection.records import COLUMNS, record_id, to_row
from modeling_anople.pipeline_anople import Prediction


def test_an_id_is_of_one_file_in_one_state(tmp_path):
    path, other = tmp_path / "a.png", tmp_path / "b.png"
    for each in (path, other):
        each.write_bytes(b"one")
        os.utime(each, ns=(10**9, 10**9))
    first = record_id(path)
    assert re.fullmatch("[0-9a-f]{16}", first) and record_id(os.path.relpath(path)) == first
    assert record_id(other) != first  # another file, with the same content
    path.write_bytes(b"two")
    os.utime(path, ns=(10**9, 10**9))
    assert record_id(path) != first  # another content
    path.write_bytes(b"one")
    os.utime(path, ns=(2 * 10**9, 2 * 10**9))
    assert record_id(path) != first  # the same once more, as of a camera that hangs
    os.utime(path, ns=(10**9, 10**9))
    assert record_id(path) == first
    moved = path.rename(tmp_path / "moved.png")
    assert record_id(path, lies_at=moved) == first


def test_what_cannot_be_read_has_an_id_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ids = {record_id(tmp_path / name) for name in ("missing", "pipe", "x" * 300, "zero\0byte")}
    assert len(ids) == 4


def test_bytes_without_a_file_are_named_by_name_and_content():
    assert record_id("a.png", content=b"one") == record_id("a.png", content=b"one")
    assert (
        len({record_id("a.png", content=b"one"), record_id("a.png", content=b"two"), record_id("b", content=b"one")})
        == 3
    )


def test_a_row_has_its_time_and_where_the_photograph_lies(tmp_path):
    before = datetime.now(UTC).replace(microsecond=0)
    row = to_row(tmp_path / "a.png", Prediction(error="broken"), file=tmp_path / "error/a.png")
    assert before <= datetime.fromisoformat(row["time"]) <= datetime.now(UTC) and row["time"].endswith("Z")
    assert row["file"] == str(tmp_path / "error/a.png") and row["error"] == "broken" and row["label"] is None
    assert row.keys() <= set(COLUMNS)
