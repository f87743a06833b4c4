"""A record's id names one file in one state; its time is of this moment."""

import json
import os
import re
from datetime import UTC, datetime

import pytest

from modeling_anople.inspection.records import COLUMNS, Rows, append_lines, record_id, to_row
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


def test_new_columns_come_last():
    assert COLUMNS[:4] == ("path", "class", "score", "label") and COLUMNS[-3:] == ("id", "time", "file")


def test_lines_that_are_no_rows_are_passed_over_and_told_once(tmp_path, caplog):
    sound = [{"path": name, "class": "bolt", "score": 0.1, "label": "normal"} for name in ("a", "b")]
    wrong = [{**sound[0], "time": "yesterday"}, {**sound[0], "score": float("nan")}, {"path": "x"}, 7]
    lines = [json.dumps(each) for each in (sound[0], *wrong, sound[1])]
    (tmp_path / "results.jsonl").write_text("\n".join([lines[0], '{"path": "to', *lines[1:]]), encoding="utf-8")
    for _ in range(2):
        rows = Rows(tmp_path)
        assert list(rows) == sound and rows.damaged == 5
    assert [each.getMessage() for each in caplog.records] == [
        f"{tmp_path / 'results.jsonl'}: 5 lines are damaged and passed over."
    ]
    (tmp_path / "results.jsonl").write_text("7\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no results"):
        list(Rows(tmp_path))


@pytest.mark.parametrize(("before", "after"), [(None, "a\n"), ("", "a\n"), ("x\n", "x\na\n"), ("ü", "ü\na\n")])
def test_a_line_is_added_after_a_torn_one(before, after, tmp_path):
    path = tmp_path / "lines"
    if before is not None:
        path.write_text(before, encoding="utf-8")
    with append_lines(path) as file:
        file.write("a\n")
        assert path.read_text(encoding="utf-8") == after  # at once
