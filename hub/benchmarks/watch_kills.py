"""
Whether each photograph is judged exactly once, whatever happens to the watch: `python -m hub.benchmarks.watch_kills`.

Photographs are dropped at random moments, in all the ways that programs write files, while `anople watch` is killed at random
moments and started again (`random`); it is also ended at each of its operations on files (`operations`), and runs on a disk
that is full for a while (`disk`). Afterwards each photograph must have one row, one place and one heat map, with the bytes that
were dropped, and its result must have reached the webhook. The table goes to hub/benchmarks/results/watch_kills.md.
"""

import argparse
import contextlib
import csv
import http.server
import io
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor
from modeling_anople.cli import main as anople
from modeling_anople.inspection.delivery import WEBHOOK_SECRET
from modeling_anople.inspection.journal import JOURNAL, Journal
from modeling_anople.saving_anople import LOCK_FILE

from ..mini_clip.small_clip import write_small_clip
from .reliability import KILLED, disk, ending_at, in_a_fork, photograph


RESULTS = Path(__file__).parent / "results" / "watch_kills.md"
SETTLE = 0.05  # seconds
START_SECONDS = 30
DEADLINE = 120  # seconds after the last kill


# --- What is dropped, and who is told ---


def pictures(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Make photographs of which no two are the same: file name and content; every tenth is none at all."""
    generator, made = np.random.default_rng(seed), []
    for number in range(count):
        content = io.BytesIO()
        noise = generator.normal(0, 4, (48, 48, 3))
        pixels = np.asarray(photograph(300), dtype=np.float64) + noise
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(content, format="png")
        name = f"{('', 'line 1/', 'line 2/深/')[number % 3]}part {number:03d}.png"
        made.append((name, b"no photograph %d" % number if number % 10 == 9 else content.getvalue()))
    return made


def drop(path: Path, content: bytes, manner: str) -> None:
    """Write a file as programs do: at once, with pauses, beside and renamed, or elsewhere and moved here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if manner == "at once":
        path.write_bytes(content)
    elif manner == "with pauses":
        with path.open("wb") as file:
            for start in range(0, len(content), max(1, len(content) // 3)):
                file.write(content[start : start + max(1, len(content) // 3)])
                file.flush()
                time.sleep(SETTLE / 2)
    else:
        beside = path.with_name(f".{path.name}" if manner == "hidden and renamed" else f"{path.name}.part")
        beside.write_bytes(content)
        beside.rename(path)


MANNERS = ("at once", "with pauses", "hidden and renamed", "part and renamed")


class Listener:
    """A webhook on this machine; it counts the results by their id."""

    def __init__(self):
        self.got: Counter[str] = Counter()
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"]))
                if not text.endswith(b"}\n"):  # its sender was killed
                    return
                listener.got[json.loads(text).get("id", "warning")] += 1
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self) -> "Listener":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


# --- The watch, in a process that is killed ---


@dataclass
class Plant:
    """A detector with a folder that it watches and one of results."""

    detector: Path
    inbox: Path
    output: Path
    class_name: str = "bolt"
    webhook: str | None = None
    copy: bool = False

    def watch(self) -> int:
        """Run `anople watch`."""
        torch.set_num_threads(1)  # threads do not survive a fork
        options = ["--class", self.class_name, "--settle", SETTLE, "--device", "cpu", "--output", self.output]
        options += ["--webhook", self.webhook] if self.webhook else []
        options += ["--copy"] if self.copy else []
        return anople(["watch", *map(str, [self.detector, self.inbox, *options])])

    @property
    def log(self) -> Path:
        """What the last process said."""
        return self.output.with_name(f"{self.output.name}.log")

    def start(self) -> int:
        """Start it in a fork; returns the process."""
        self.log.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                said = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(said, 1)
                os.dup2(said, 2)
                code = self.watch()
            finally:
                os._exit(code)
        return child

    def rows(self) -> list[dict]:
        """The rows that are written; a torn line is none."""
        path, found = self.output / "results.jsonl", []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def is_amid_a_batch(self) -> bool:
        """Say whether photographs are judged, and not yet where they belong."""
        if not (self.output / JOURNAL).exists():
            return False
        with contextlib.closing(Journal(self.output / JOURNAL)) as journal:
            return bool(journal.unfinished())

    def finish(self, count: int, is_told: Callable[[], bool] = lambda: True) -> int:
        """Let it run until all is judged and told, and end it by SIGTERM; returns its exit code."""
        child, end = self.start(), time.monotonic() + DEADLINE

        def is_done() -> bool:
            watching = self.log.exists() and "Watching" in self.log.read_text(encoding="utf-8", errors="replace")
            return watching and len(self.rows()) >= count and not self.is_amid_a_batch() and is_told()

        while time.monotonic() < end and not is_done():
            time.sleep(0.02)
            if os.waitpid(child, os.WNOHANG)[0]:
                return -1  # it ended by itself
        time.sleep(4 * SETTLE)  # would anything be judged again?
        os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def faults(plant: Plant, dropped: Sequence[tuple[str, bytes]]) -> list[str]:
    """Name all that is not as it must be when each photograph has been judged."""
    found, rows = [], plant.rows()
    by_path: dict[str, list[dict]] = {}
    for row in rows:
        by_path.setdefault(os.path.relpath(row["path"], plant.inbox), []).append(row)
    for name, content in dropped:
        mine = by_path.pop(name, [])
        if len(mine) != 1:
            found.append(f"{name}: {len(mine)} rows")
            continue
        found += _faults_of(plant, name, content, mine[0])
    found += [f"{name}: nobody dropped it" for name in by_path]
    return found + _faults_of_folder(plant, rows, len(dropped))


def _faults_of(plant: Plant, name: str, content: bytes, row: dict) -> Iterator[str]:
    is_photograph = not content.startswith(b"no photograph")
    if Path(row["file"]).read_bytes() != content:
        yield f"{name}: another content"
    folder = {None: "error", "normal": "unsure" if row.get("unsure") else "normal"}.get(row["label"], "anomalous")
    is_there = Path(row["file"]).relative_to(plant.output).parts[0] == folder
    if not is_there or is_photograph != (row["label"] is not None):
        yield f"{name}: in the wrong folder"
    if is_photograph:
        with Image.open(row["overlay"]) as picture:
            picture.load()
    if (plant.inbox / name).exists() != plant.copy:
        yield f"{name}: {'gone' if plant.copy else 'still'} in the watched folder"


def _faults_of_folder(plant: Plant, rows: list[dict], count: int) -> list[str]:
    found = []
    stored = [
        path
        for name in ("normal", "unsure", "anomalous", "error")
        for path in (plant.output / name).rglob("*")
        if path.is_file()
    ]
    drawn = [path for path in (plant.output / "overlays").rglob("*") if path.is_file()]
    if len(stored) != count or len(drawn) != sum(row["label"] is not None for row in rows):
        found.append(f"{len(stored)} photographs and {len(drawn)} heat maps are kept")
    left = [path.name for path in (plant.output / "work").iterdir()]
    left += [
        path.name for path in plant.inbox.rglob("*") if path.is_file() and path.name != LOCK_FILE and not plant.copy
    ]
    if left:
        found.append(f"left over: {left}")
    text = (plant.output / "results.jsonl").read_text(encoding="utf-8")
    if len(text.splitlines()) != len(rows) or not text.endswith("\n"):
        found.append("a torn line in results.jsonl")
    with (plant.output / "results.csv").open(encoding="utf-8", newline="") as file:
        if [row["id"] for row in csv.DictReader(file)] != [row["id"] for row in rows]:
            found.append("results.csv has other rows")
    with contextlib.closing(Journal(plant.output / JOURNAL)) as journal:
        if journal.unfinished() or journal.waiting():
            found.append("the journal is not done")
    return found


@dataclass
class Outcome:
    """
    What came of one run.

    Args:
        photographs, kills: how many there were.
        midway: how many of the kills came when photographs were judged, and not yet where they belong.
        faults: all that is not as it must be.
        told, told_twice: results that reached the webhook, and those that did more than once.
        code: with which the last process ended.
        seconds: of all of it.
    """

    photographs: int
    kills: int
    midway: int
    faults: list[str]
    told: int
    told_twice: int
    code: int
    seconds: float


def kill_at_random(
    detector: Path,
    folder: Path,
    *,
    count: int,
    kills: int,
    seed: int,
    copy: bool = False,
    inbox: Path | None = None,
) -> Outcome:
    """
    Drop photographs while the watch is killed and started again.

    Args:
        inbox: the watched folder; by default one in `folder`.
    """
    generator, dropped = random.Random(seed), pictures(count, seed)
    start, midway, droppers = time.monotonic(), 0, []
    with Listener() as listener:
        plant = Plant(detector, inbox or folder / "inbox", folder / "results", webhook=listener.url, copy=copy)
        plant.inbox.mkdir(parents=True, exist_ok=True)

        def drop_all(share: Sequence[tuple[str, bytes]], seed: int) -> None:
            own = random.Random(seed)
            for name, content in share:
                time.sleep(own.uniform(0, 0.1))
                drop(plant.inbox / name, content, own.choice(MANNERS))

        for number in range(kills):
            child, before = plant.start(), len(plant.rows())
            share = dropped[number * count // kills : (number + 1) * count // kills]
            droppers.append(threading.Thread(target=drop_all, args=(share, generator.getrandbits(32))))
            droppers[-1].start()
            if number % 5 == 4:  # while it starts, or later
                time.sleep(generator.uniform(0, 1))
            else:  # while it works
                end = time.monotonic() + START_SECONDS
                while len(plant.rows()) == before and time.monotonic() < end:
                    time.sleep(0.001)
                time.sleep(generator.uniform(0, 0.3))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            midway += plant.is_amid_a_batch()
        for dropper in droppers:
            dropper.join()
        code = plant.finish(count, lambda: len(listener.got) >= count)
        twice = sum(each > 1 for each in listener.got.values())
        seconds = time.monotonic() - start
        return Outcome(count, kills, midway, faults(plant, dropped), len(listener.got), twice, code, seconds)


# --- Ended at each operation on files ---


def operations(detector: Path, folder: Path, *, every: int = 1, copy: bool = False) -> tuple[int, list[str]]:
    """
    End the watch at each, or each so manieth, of its operations on files, of three photographs, and let another go on.

    Returns:
        How many operations it was ended at, and all that was not as it must be then.
    """
    dropped, found, ended, number = pictures(2, 7) + [("none.png", b"no photograph")], [], 0, 1
    while True:
        place = folder / f"operation {number}"
        plant = Plant(detector, place / "inbox", place / "results", copy=copy)
        plant.inbox.mkdir(parents=True)
        for name, content in dropped:
            drop(plant.inbox / name, content, "at once")

        def run(plant: Plant = plant, number: int = number) -> int:
            def end_when_done() -> None:
                while len(plant.rows()) < len(dropped):
                    time.sleep(0.01)
                time.sleep(4 * SETTLE)
                os.kill(os.getpid(), signal.SIGTERM)

            threading.Thread(target=end_when_done, daemon=True).start()
            with ending_at(number):
                return plant.watch()

        code = in_a_fork(run)
        last = plant.finish(len(dropped))
        found += [f"operation {number}: {each}" for each in faults(plant, dropped)]
        found += [f"operation {number}: exit code {last}"] if last else []
        shutil.rmtree(place)
        if code != KILLED:
            return ended, found + ([f"by itself it ended with {code}"] if code else [])
        ended, number = ended + 1, number + every


# --- A disk that is full for a while ---


def on_a_full_disk(detector: Path, folder: Path, *, count: int) -> list[str]:
    """Keep results on a disk that is too small, and make it larger; all that is not as it must be afterwards."""
    dropped = pictures(count, 11)
    with disk(folder / "disk", 120_000) as place:
        plant = Plant(detector, folder / "full inbox", place / "results")
        plant.inbox.mkdir()
        for name, content in dropped:
            drop(plant.inbox / name, content, "at once")
        child = plant.start()
        time.sleep(4)
        waiting = sum(path.is_file() for path in plant.inbox.rglob("part*"))
        alive = os.waitpid(child, os.WNOHANG)[0] == 0
        subprocess.run(["mount", "-o", "remount,size=50m", str(place)], check=True)
        end = time.monotonic() + DEADLINE
        while len(plant.rows()) < count and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        found = [] if alive and waiting > 0 else [f"the disk was not full ({waiting} waited, alive: {alive})"]
        return found + faults(plant, dropped)


# --- The program ---


def write_detector(folder: Path) -> Path:
    """Make a small detector that knows bolts."""
    clip = write_small_clip(
        folder / "clip",
        image_size=32,
        patch_size=8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    model = AnoPLeModel.from_clip(str(clip), ["bolt"])
    detector = AnomalyDetectionPipeline(model, processor=AnoPLeProcessor.from_clip(str(clip), ["bolt"]))
    detector.add_normals("bolt", [photograph(300 + number) for number in range(4)])
    detector.save_pretrained(folder / "detector")
    return folder / "detector"


def rows(detector: Path, room: Path, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Run all of it; yield the rows of the table."""
    for name, copy, elsewhere in (
        ("moved", False, False),
        ("copied", True, False),
        ("moved from another disk", False, True),
    ):
        place = room / name
        place.mkdir()
        with contextlib.ExitStack() as stack:
            inbox = stack.enter_context(disk(room / "shared", 50_000_000)) / "inbox" if elsewhere else None
            found = kill_at_random(
                detector,
                place,
                count=options.photographs,
                kills=options.kills,
                seed=options.seed,
                copy=copy,
                inbox=inbox,
            )
        yield (
            f"{found.photographs} photographs {name}, {found.kills} SIGKILLs at random moments ({found.midway} amid a "
            "batch)",
            f"{'; '.join(found.faults) or f'each judged exactly once, {found.photographs} of {found.photographs}'}; webhook: "
            f"{found.told} told, {found.told_twice} of them twice; last exit code {found.code}; {found.seconds:.0f} s",
        )
    for name, copy in (("moved", False), ("copied", True)):
        ended, found = operations(detector, room, copy=copy)
        yield f"3 photographs {name}, ended at each of {ended} operations on files", "; ".join(found) or "no fault"
    try:
        found = on_a_full_disk(detector, room, count=40)
        yield "40 photographs on a disk that is full for a while", "; ".join(found) or "no fault"
    except OSError as error:
        yield "a full disk", f"skipped: {error}"


def main(arguments: list[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(prog="python -m hub.benchmarks.watch_kills", description=__doc__.split("\n")[1])
    parser.add_argument("--photographs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ[WEBHOOK_SECRET] = "of this benchmark"
    lines = [
        "# A watch that is killed",
        "",
        f"`python -m hub.benchmarks.watch_kills --photographs {options.photographs} --kills {options.kills} --seed {options.seed}`, "
        "on two virtual cores, Linux; a small detector. A result may reach the webhook twice, where the process was killed between "
        "the answer and its note of it; the id is the same then.",
        "",
        "| What happened | What came of it |",
        "|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        for what, found in rows(write_detector(room), room, options):
            lines.append(f"| {what} | {found} |")
            print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
