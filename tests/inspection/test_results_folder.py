"""What was judged comes to its place, or its row says why it did not, whatever became of the file meanwhile."""

import json
import os
from pathlib import Path

import pytest

from modeling_anople.inspection.arrivals import Arrival
from modeling_anople.inspection.results_folder import Judged, ResultsFolder
from modeling_anople.pipeline_anople import Prediction
from modeling_anople.product_store_anople import UNKNOWN_PRODUCT


@pytest.fixture
def results(tmp_path) -> ResultsFolder:
    return ResultsFolder(tmp_path / "results", copy=False)


def judged(path: Path, content: bytes | None, name: str | None = None) -> Judged:
    path.write_bytes(content or b"")
    prediction = Prediction(str(path), f"{path}: is not an image.")
    return Judged(Arrival.of(path), "0" * 16, content, prediction, Path(name or path.name))


@pytest.mark.parametrize(
    ("label", "unsure", "folder"),
    [
        ("normal", True, "unsure"),
        ("normal", False, "normal"),
        ("normal", None, "normal"),
        ("anomalous", True, "anomalous"),
        (UNKNOWN_PRODUCT, False, "anomalous"),
        (None, None, "error"),
    ],
)
def test_what_is_unsure_has_a_folder_of_its_own(results, tmp_path, label, unsure, folder):
    each = judged(tmp_path / "a.png", b"a")
    each.prediction = Prediction("a.png", None, label=label, unsure=unsure)
    results.begin([each])
    (entry,) = results.finish()
    assert entry.target == Path(folder, "a.png") and (results.folder / entry.target).read_bytes() == b"a"


def test_what_cannot_be_read_stays_and_has_a_row(results, tmp_path):
    results.begin([judged(tmp_path / "a.png", None), judged(tmp_path / "b.png", b"b")])
    unread, read = results.finish()
    assert unread.target is None and "file" not in json.loads(unread.line) and (tmp_path / "a.png").exists()
    assert read.target == Path("error/b.png") and not results.journal.unfinished()
    assert results.journal.knows(tmp_path / "a.png", unread.size, unread.changed)


@pytest.mark.parametrize("newer", [None, b"a newer one"])
def test_a_photograph_that_is_lost_before_a_restart_leaves_its_row(results, tmp_path, newer):
    path = tmp_path / "a.png"
    results.begin([judged(path, b"what was judged")])
    results.journal.close()  # killed here; then the camera removes its file, or writes another one
    path.unlink()
    if newer:
        path.write_bytes(newer)
    again = ResultsFolder(results.folder, copy=False)
    (entry,) = again.finish()
    assert entry.target is None and "file" not in json.loads(entry.line) and not again.journal.unfinished()
    assert (results.folder / "results.jsonl").read_text() == entry.line
    assert not path.exists() if newer is None else path.read_bytes() == newer


def test_one_name_for_years_takes_few_looks_each(results, monkeypatch):
    """Numbers follow each other, also within a batch and where some were taken out; no place is given that has a file."""
    for number in range(2, 1001):
        (results.folder / "normal" / f"same ({number}).png").touch()
    (results.folder / "overlays/normal").mkdir()
    (results.folder / "overlays/normal/same.png.png").touch()  # a heat map whose photograph was taken out
    looks, lexists = [], os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: looks.append(path) or lexists(path))
    taken = set()
    for _ in range(3):
        taken.add(results._free_name(Path("normal"), Path("same.png"), taken))
    assert {path.name for path in taken} == {f"same ({number}).png" for number in (1001, 1002, 1003)}
    assert len(looks) < 3 * 50
    (results.folder / "normal/same (512).png").unlink()
    again = results._free_name(Path("normal"), Path("same.png"), taken)
    assert again not in taken and not lexists(results.folder / again)
