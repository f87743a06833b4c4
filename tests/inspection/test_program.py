"""`anople watch` as a program: its options, its end by a signal, and what it says where something is missing."""

import json
import os
import signal
import threading
import time

import pytest

from modeling_anople.cli import main
from modeling_anople.inspection.delivery import WEBHOOK_SECRET

from .conftest import wait_until


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Results go into a folder: add --output FOLDER."),
        (["--output", "new", "--settle", "0"], "--settle must lie within 0.05 and 3600"),
        (["--output", "new", "--every", "0"], "--every must lie within 0.01 and 86400"),
        (["--output", "new", "--webhook", "http://localhost/"], WEBHOOK_SECRET),
        (["--output", "new", "--mqtt", "localhost"], "--mqtt"),
        (["--output", "{inbox}"], "holds the watched folder"),
        (["--output", "{detector}"], "holds config.json, which no watch wrote"),
    ],
)
def test_what_cannot_be_is_one_line(plant, bolts, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(WEBHOOK_SECRET, raising=False)
    bolts[0].save(plant.inbox / "0.png")
    words = [word.format(inbox=plant.inbox, detector=plant.detector) for word in words]
    assert main(["watch", str(plant.detector), str(plant.inbox), *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("anople watch: ") and message in said, said
    assert (plant.inbox / "0.png").exists()


def test_no_other_command_replaces_the_results_of_a_watch(plant, bolts, capsys, tmp_path):
    bolts[0].save(plant.inbox / "0.png")
    with plant.watched():
        rows = plant.wait_for(1)
    bolts[1].save(tmp_path / "1.png")
    words = ["predict", plant.detector, tmp_path / "1.png", "--output", plant.output, "--overwrite"]
    assert main([str(word) for word in words]) == 2
    assert "holds the results of `anople watch`: name another folder" in capsys.readouterr().err
    assert plant.rows() == rows
    words[-2:] = [tmp_path / "of predict"]
    assert main([str(word) for word in words]) == 0
    [row] = [json.loads(line) for line in (tmp_path / "of predict/results.jsonl").read_text().splitlines()]
    assert row.keys() >= {"id", "time", *rows[0]} - {"file"} and len(row["id"]) == 16


def test_a_watch_warns_of_a_drift_once(plant, bolts, caplog):
    """Good photographs that all look like one another, and less like the calibration, one life after another."""
    for life in range(2):
        with plant.watched(interval=2, poll=True):
            for number in range(8):
                bolts[number].save(plant.inbox / f"{life} {number}.png")
            plant.wait_for(8 * (life + 1))
            time.sleep(0.1)
    assert caplog.text.count("the scores of what is called normal have become") == 1


def test_at_sigterm_it_ends_well_and_writes_its_page(plant, bolts, tmp_path):
    bolts[0].save(plant.inbox / "0.png")

    def end() -> None:
        plant.wait_for(1)
        os.kill(os.getpid(), signal.SIGTERM)

    ending, page = threading.Thread(target=end), tmp_path / "page.html"
    ending.start()
    places = [plant.detector, plant.inbox, "--output", plant.output, "--report", page]
    assert main(["watch", *map(str, places), "--settle", "0.05", "--poll"]) == 0
    ending.join()
    assert "1 photograph was inspected" in page.read_text(encoding="utf-8") and not list(plant.inbox.glob("*.png"))
    page.write_text("somebody's")
    assert main(["watch", *map(str, places), "--settle", "0.05"]) == 2  # before anything is judged
    assert page.read_text() == "somebody's"


def test_a_watch_tells_a_webhook(plant, bolts, monkeypatch):
    from modeling_anople.inspection.delivery import Webhook

    from .test_delivery import Inbox

    monkeypatch.setenv(WEBHOOK_SECRET, "between us")
    inbox = Inbox()
    with plant.watched(receivers=[Webhook(f"http://127.0.0.1:{inbox.port}/")]):
        bolts[0].save(plant.inbox / "0.png")
        wait_until(lambda: len(inbox.got) == 1)
    inbox.close()
    assert json.loads(inbox.got[0][1]) == plant.rows()[0]
