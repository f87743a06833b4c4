"""Every photograph that arrives is judged once and put away, none is lost or replaced, and what is broken is never normal."""

import csv
import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from modeling_anople.inspection import watching
from modeling_anople.inspection.journal import JOURNAL, Journal
from modeling_anople.inspection.watching import Watch
from modeling_anople.saving_anople import locked

from .conftest import wait_until


def files_below(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_photographs_are_judged_and_put_away(plant, bolts):
    """Events, folders, names, broken files, files that grow, links and other files: one watch sees all of them."""
    names = ["a.png", "line 1/a.png", "螺丝 é.PNG", "b.jpg"]
    (plant.inbox / "line 1").mkdir()
    for name, bolt in zip(names[:2], bolts, strict=False):
        bolt.save(plant.inbox / name)
    outside = plant.inbox.parent / "outside.png"
    bolts[5].save(outside)
    (plant.inbox / "notes.txt").write_text("mine", encoding="utf-8")
    for hidden in (".hidden.png", "~open.png", "c.png.part", "c.tmp"):
        (plant.inbox / hidden).write_bytes(outside.read_bytes())
    with plant.watched():
        plant.wait_for(2)
        for name, bolt in zip(names[2:], bolts[2:], strict=False):
            bolt.save(plant.inbox / name)
        (plant.inbox / "link.png").symlink_to(outside)
        Image.new("RGB", (48, 40), "black").save(plant.inbox / "dark.png")
        (plant.inbox / "broken.png").write_bytes(b"no picture")
        content = outside.read_bytes()
        with (plant.inbox / "slow.png").open("wb") as file:  # its writer pauses for longer than a file must settle
            file.write(content[:500])
            file.flush()
            time.sleep(0.3)
            file.write(content[500:])
        rows = plant.wait_for(8)
    by_name = {os.path.relpath(row["path"], plant.inbox): row for row in rows}
    assert len(rows) == 8 and by_name.keys() == {*names, "link.png", "dark.png", "broken.png", "slow.png"}
    for name in [*names, "link.png", "slow.png"]:
        row = by_name[name]
        assert row["label"] == "normal" and row["unsure"] in (True, False) and row["class"] == "bolt", row
        place = f"{'unsure' if row['unsure'] else 'normal'}/{name}"
        assert row["file"] == str(plant.output / place) and row["overlay"].endswith(f"overlays/{place}.png")
        assert Image.open(row["overlay"]).width > 48  # the legend stands beside it
    assert Path(by_name["slow.png"]["file"]).read_bytes() == content == outside.read_bytes()
    dark, broken = by_name["dark.png"], by_name["broken.png"]
    assert dark["label"] == "anomalous" and dark["reason"] and dark["file"] == str(plant.output / "anomalous/dark.png")
    assert broken["label"] is None and "broken.png: is not an image" in broken["error"] and "overlay" not in broken
    assert (plant.output / "error/broken.png").read_bytes() == b"no picture"
    assert files_below(plant.inbox) - {".anople.lock"} == {
        "notes.txt",
        ".hidden.png",
        "~open.png",
        "c.png.part",
        "c.tmp",
    }
    with (plant.output / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [row["id"] for row in rows]
    assert not list((plant.output / "work").iterdir()) and len({row["id"] for row in rows}) == 8


@pytest.mark.parametrize("looks", [True, False])
def test_a_terminal_is_told_of_each_photograph(plant, bolts, caplog, monkeypatch, looks):
    monkeypatch.setattr("sys.stderr.isatty", lambda: looks, raising=False)
    bolts[0].save(plant.inbox / "a.png")
    with caplog.at_level("INFO", logger="modeling_anople"), plant.watched():
        plant.wait_for(1)
    assert any("a.png: " in message and " bolt" in message for message in caplog.messages) == looks


def test_a_name_is_never_taken_twice_and_a_restart_goes_on(plant, bolts):
    for number in range(3):
        with plant.watched(poll=True):
            bolts[number].save(plant.inbox / "same.png")
            plant.wait_for(number + 1)
    assert files_below(plant.output / "normal") == {"same.png", "same (2).png", "same (3).png"}
    for number, row in enumerate(plant.rows()):
        assert list(Image.open(row["file"]).getdata()) == list(bolts[number].getdata())


def test_copies_leave_the_photographs_and_judge_each_state_once(plant, bolts):
    plant.output = plant.inbox / "results"  # inside of what is watched
    before = {}
    for number in range(2):
        bolts[number].save(plant.inbox / f"{number}.png")
        before[f"{number}.png"] = (plant.inbox / f"{number}.png").read_bytes()
    for _ in range(2):
        with plant.watched(copy=True):
            plant.wait_for(2)
            time.sleep(0.3)
        assert len(plant.rows()) == 2
    assert all((plant.inbox / name).read_bytes() == content for name, content in before.items())
    with plant.watched(copy=True):
        bolts[2].save(plant.inbox / "0.png")  # a camera that writes one name again and again
        plant.wait_for(3)
    assert files_below(plant.output / "normal") == {"0.png", "1.png", "0 (2).png"}
    assert (plant.output / "normal/0.png").read_bytes() == before["0.png"]


def test_a_changed_detector_is_loaded_anew(plant, bolts, tmp_path):
    from modeling_anople.cli import main

    plant.detector = shutil.copytree(plant.detector, tmp_path / "detector")
    more = [tmp_path / f"more {number}.png" for number in range(2)]
    for path, bolt in zip(more, bolts[6:], strict=False):
        bolt.save(path)
    with plant.watched():
        bolts[0].save(plant.inbox / "first.png")
        plant.wait_for(1)
        assert main(["add_normals", str(plant.detector), "bolt", *map(str, more)]) == 0
        bolts[0].save(plant.inbox / "second.png")
        first, second = plant.wait_for(2)
    assert first["raw_score"] != second["raw_score"]


def test_a_changed_detector_that_fails_to_load_is_tried_again(plant, tmp_path, monkeypatch, caplog):
    detector = shutil.copytree(plant.detector, tmp_path / "detector")
    judge = watching._Judge(Watch(str(detector), plant.inbox, plant.output, class_name="bolt", device="cpu"))
    load_judge, before, tried = watching.load_judge, judge.model, []

    def load(*given):
        tried.append(given)
        if len(tried) == 1:
            raise RuntimeError("no memory\nfor it")
        return load_judge(*given)

    monkeypatch.setattr(watching, "load_judge", load)
    os.utime(detector / "config.json", (1, 1))
    assert not judge.has_changed() and judge.model is before and "in 1 s. no memory for it" in caplog.text
    assert not judge.has_changed() and len(tried) == 1  # not before the pause is over
    wait_until(judge.has_changed)
    assert judge.model is not before and not judge.has_changed() and len(tried) == 2


def test_what_stops_a_batch_stops_it_alone(plant, bolts, caplog):
    """A disk without room, or a folder that is gone, is waited for; then the same batch goes on."""
    with plant.watched(poll=True):
        bolts[0].save(plant.inbox / "0.png")
        plant.wait_for(1)
        shutil.rmtree(plant.output / "work")
        (plant.output / "work").write_text("in the way", encoding="utf-8")
        bolts[1].save(plant.inbox / "1.png")
        wait_until(lambda: "waiting until that is mended" in caplog.text)
        assert (plant.inbox / "1.png").exists() and len(plant.rows()) == 1
        (plant.output / "work").unlink()
        (plant.output / "work").mkdir()
        plant.wait_for(2)
    assert files_below(plant.output / "normal") == {"0.png", "1.png"}


def test_one_photograph_stops_no_line(plant, bolts, caplog, monkeypatch):
    """A bad sector, too little memory for one, and a heat map that cannot be drawn are errors of their photographs alone."""
    read_bytes, predict, load_image = Path.read_bytes, watching.predict, watching.load_image

    def read(path: Path) -> bytes:
        if path == plant.inbox / "sector.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(path)

    def judge(model, processor, sources, **options):
        if any("huge" in source["path"] for source in sources):
            raise MemoryError
        return predict(model, processor, sources, **options)

    def load(source, **options):
        if "drawn" in source["path"]:
            raise RuntimeError("no picture\nat all")
        return load_image(source, **options)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(watching, "predict", judge)
    monkeypatch.setattr(watching, "load_image", load)
    for name in ("a", "sector", "huge", "drawn", "b"):
        bolts[0].save(plant.inbox / f"{name}.png")
    with plant.watched(poll=True):
        rows = {Path(row["path"]).stem: row for row in plant.wait_for(5)}
    assert [rows[name]["label"] for name in ("a", "b", "sector", "huge", "drawn")] == ["normal"] * 2 + [None] * 3
    assert "cannot be read ([Errno 5] Input/output error)" in rows["sector"]["error"] and "file" not in rows["sector"]
    assert "could not be judged (MemoryError)" in rows["huge"]["error"]
    assert "could not be judged (no picture at all)" in rows["drawn"]["error"]
    assert files_below(plant.output / "error") == {"huge.png", "drawn.png"} and (plant.inbox / "sector.png").exists()
    assert "waiting until that is mended" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "screw"}, "'screw'"),
        ({"folder": "gone"}, "is no folder"),
        ({"folder": "results/normal"}, "holds the watched folder"),
    ],
)
def test_what_cannot_be_watched_is_said_before_anything_moves(plant, bolts, change, message):
    (plant.output / "normal").mkdir(parents=True)
    bolts[0].save(plant.inbox / "0.png")
    change = {**change, "folder": plant.inbox.parent / change["folder"]} if "folder" in change else change
    with pytest.raises(ValueError, match=message), plant.watched(**change):
        time.sleep(0.2)
    assert (plant.inbox / "0.png").exists()


def test_results_of_another_hand_and_of_another_watch_are_left_alone(plant, bolts, tmp_path):
    plant.output.mkdir()
    (plant.output / "results.jsonl").write_text("mine\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds results.jsonl, which no watch wrote"), plant.watched():
        pass
    (plant.output / "results.jsonl").unlink()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(plant.output):
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    try:
        with pytest.raises(ValueError, match="was still being changed by another program after 0 s"), plant.watched():
            time.sleep(0.2)
    finally:
        done.set()
        thread.join()
    (plant.output / JOURNAL).write_bytes(b"no journal" * 200)
    with pytest.raises(ValueError, match="journal.sqlite is damaged"), plant.watched():
        time.sleep(0.2)


def test_a_product_without_a_line_is_refused(plant, fitted, tmp_path):
    from modeling_anople.runtime.loading import load_detector

    model, processor = load_detector(str(fitted))
    model.products.named("bolt").record.threshold = None
    model.products.write()
    plant.detector = tmp_path / "bare"
    model.save_pretrained(plant.detector)
    processor.save_pretrained(plant.detector)
    with pytest.raises(ValueError, match="bolt has no line"), plant.watched():
        pass


def test_a_copy_is_kept_where_the_photograph_cannot_be_removed(plant, bolts, monkeypatch):
    """As from a share that may only be read: it is judged once all the same."""
    rename = os.rename

    def refuse(source, target):
        if str(source).startswith(str(plant.inbox)):
            raise PermissionError(13, "Permission denied")
        return rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    bolts[0].save(plant.inbox / "0.png")
    for _ in range(2):
        with plant.watched(poll=True):
            plant.wait_for(1)
            time.sleep(0.3)
    assert (
        len(plant.rows()) == 1
        and (plant.inbox / "0.png").exists()
        and files_below(plant.output / "normal") == {"0.png"}
    )
    journal = Journal(plant.output / JOURNAL)
    assert not journal.unfinished()
    journal.close()


def test_a_watch_needs_a_folder_that_can_be_written_or_copies(plant, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="add --copy"):
        Watch("x", plant.inbox, plant.output)
