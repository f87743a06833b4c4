"""
What is left of a detector's folder whatever happens to the program that changes it: `python -m hub.benchmarks.reliability`.

The verbs of the command line run in processes forked from a warm one. They are ended at each of their operations on files
(`kills`) and at random moments (`random`), beside a reader that never waits (`readers`), on a full disk and in a folder that
cannot be written (`disk`); bytes of the weights are flipped (`flips`), fits are killed and resumed (`fits`), and what the
comparison with the hash costs when a detector is loaded is timed (`load`). Each row of the table is a count or a time.
"""

import argparse
import builtins
import contextlib
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, pipeline

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor
from modeling_anople.cli import main as anople
from modeling_anople.runtime.loading import load_detector
from modeling_anople.saving_anople import is_trace, locked, state_folder
from modeling_anople.training import main as fit
from modeling_anople.training.__main__ import save as end_fit
from modeling_anople.training.finishing import STATE_FILE

from ..mini_clip.small_clip import byte_tokenizer, write_small_clip


KILLED = 99
COMMANDS = 20
LOADED = 20  # of so many folders of killed programs one is loaded before it is compared
Act = Callable[[Path], object]


# --- A process that ends at one of its operations on files ---

OPERATIONS = ("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir", "fsync")


@contextlib.contextmanager
def ending_at(number: int | None) -> Iterator[list[str]]:
    """
    End the process before its operation `number`, counted from 1: of `os`, and opening a file to write.

    A file that was opened so counts twice, before it is made and while it is still empty.

    Yields:
        The names of those that there have been, which grows.
    """
    done = []

    def step(name: str) -> None:
        done.append(name)
        if len(done) == number:
            os._exit(KILLED)

    def counted(name: str, function: Callable) -> Callable:
        def call(*arguments, **options):
            step(name)
            # what a process has written outlives it: to wait for the disk would show nothing here
            return None if name == "fsync" else function(*arguments, **options)

        return call

    def opened(file, mode="r", *arguments, **options):
        writes = set(mode) & set("wxa+")
        if writes:
            step("open")
        result = open_file(file, mode, *arguments, **options)
        if writes:
            step("opened")
        return result

    known, open_file = {name: getattr(os, name) for name in OPERATIONS}, io.open
    for name, function in known.items():
        setattr(os, name, counted(name, function))
    builtins.open = io.open = opened
    try:
        yield done
    finally:
        for name, function in known.items():
            setattr(os, name, function)
        builtins.open = io.open = open_file


def in_a_fork(act: Callable[[], object], *, seconds: float | None = None) -> int:
    """
    Do something in a copy of this process, silently.

    Args:
        seconds: after which it is killed, if it runs so long.

    Returns:
        Its exit code: what `act` returned if that is a number, 1 if it failed, -9 if it was killed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            result = act()
            code = result if isinstance(result, int) else 0
        finally:
            os._exit(code)
    if seconds is not None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return 0
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(act: Act, folder: Path, number: int) -> int:
    """Let `act` change a folder in a fork that ends at an operation; the exit code."""

    def run() -> object:
        with ending_at(number):
            return act(folder)

    return in_a_fork(run)


def operations(act: Act, folder: Path) -> list[str]:
    """Let `act` change a folder in a fork, and name its operations on files in their order."""
    reading, writing = os.pipe()

    def run() -> None:
        with ending_at(None) as done:
            act(folder)
        os.write(writing, " ".join(done).encode())

    code = in_a_fork(run)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        answer = file.read().decode()
    if code or not answer:
        raise RuntimeError(f"What should be killed fails by itself (exit code {code}).")
    return answer.split()


# --- What a folder holds: the state before, the one after, or neither ---


def contents(folder: Path) -> dict[str, object]:
    """Read all files of the state that a folder holds; of the log in its config all but the dates."""
    found = {}
    for path in state_folder(folder).iterdir():
        if path.is_file() and not is_trace(path.name) and path.name not in (STATE_FILE, "training_log.jsonl"):
            found[path.name] = path.read_bytes()
    if "config.json" in found:
        config = json.loads(found["config.json"])
        config["history"] = [{**entry, "date": None} for entry in config["history"]]
        found["config.json"] = config
    return found


class Change(NamedTuple):
    """A verb: the folder before it, and what changes it so. `act` does all of it, `save` has done all but the saving."""

    name: str
    before: Path
    act: Act
    save: Act


def judge(folder: Path, before: dict, after: dict) -> str:
    """
    Say which state a folder holds, `old`, `new` or `half`, where readers look for it and after the next program has written.

    Files are compared to the byte; those that [`kill_everywhere`] loads now and then are these two.
    """
    answers = []
    for _ in range(2):
        now = contents(folder)
        answers.append("old" if now == before else "new" if now == after else "half")
        with locked(folder):  # finishes or removes what is left
            pass
    left = [path.name for path in folder.iterdir() if path.name.startswith((".unfinished-", ".commit-"))]
    return answers[0] if answers[0] == answers[1] and not left else "half"


def copy_of(folder: Path, place: Path) -> Path:
    """Put a fresh copy of a folder at a place."""
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(folder, place))


def kill_everywhere(change: Change, act: Act, room: Path, *, every: int = 1) -> tuple[int, Counter]:
    """
    End a verb at each, or each so manieth, of its operations on files.

    Returns:
        How many operations there are, and how often which state was left.
    """
    before, place = contents(change.before), copy_of(change.before, room / "whole")
    total = len(operations(act, place))
    after, found = contents(place), Counter()
    for number in range(1, total + 1, every):
        place = copy_of(change.before, room / "killed")
        if (code := kill_at(act, place, number)) != KILLED:
            raise RuntimeError(f"{change.name} did not come to operation {number} (exit code {code}).")
        if number % LOADED == 1:
            load_detector(str(place))
        found[judge(place, before, after)] += 1
    return total, found


def kill_at_random(change: Change, room: Path, times: int, generator: random.Random) -> Counter:
    """Kill a verb that saves at random moments; how often which state was left."""
    before, place = contents(change.before), copy_of(change.before, room / "whole")
    start = time.monotonic()
    in_a_fork(lambda: change.save(place))
    seconds, after, found = time.monotonic() - start, contents(place), Counter()
    for _ in range(times):
        place = copy_of(change.before, room / "killed")
        in_a_fork(lambda place=place: change.save(place), seconds=generator.uniform(0, seconds))
        found[judge(place, before, after)] += 1
    return found


# --- A small detector, and its verbs ---


def photograph(seed: int, size: int = 48) -> Image.Image:
    """Draw a disc on a striped ground with a little noise."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size
    stripes = 90 + 40 * np.sin(12 * (rows + columns))
    disc = np.hypot(rows - 0.5, columns - 0.5) < generator.uniform(0.2, 0.35)
    gray = np.where(disc, 180 + 60 * rows, stripes)[..., None] + generator.normal(0, 4, (size, size, 3))
    return Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8))


class Room:
    """A folder with a small CLIP, a detector of two products on it, photographs, and the verbs that change the detector."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("bolt", "nut", "gasket"):
            (folder / "data" / name).mkdir(parents=True)
            for number in range(4):
                photograph(len(name) * 100 + number).save(folder / "data" / name / f"{number}.png")
        self.clip = write_small_clip(
            folder / "clip",
            image_size=32,
            patch_size=8,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
        )
        self.detector, self.larger = folder / "detector", folder / "larger"
        self.fit(self.detector, "--classes", "bolt", "nut")
        shutil.copytree(self.detector, self.larger)
        self.run("enroll", self.larger, "gasket", folder / "data" / "gasket")
        self.begun = Path(shutil.copytree(self.detector, folder / "begun"))
        (self.begun / STATE_FILE).write_bytes((folder / "clip" / "model.safetensors").read_bytes())

    def pictures(self, name: str, *numbers: int) -> list[Path]:
        """Name photographs of a product."""
        return [self.folder / "data" / name / f"{number}.png" for number in numbers]

    def run(self, *arguments: object) -> None:
        """Run a command, which must end well."""
        if code := anople([str(argument) for argument in arguments]):
            raise RuntimeError(f"anople {arguments[0]} ended with {code}.")

    def fit(self, output: Path, *options: str) -> Path:
        """Fit a detector in a few steps."""
        usual = [
            "--shots",
            "2",
            "--batch_size",
            "2",
            "--max_steps",
            "12",
            "--save_steps",
            "3",
            "--log_steps",
            "1",
            "--monitor_images",
            "2",
        ]
        places = ["--data_root", self.folder / "data", "--clip", self.clip, "--output_dir", output]
        return fit([*map(str, places), *usual, *options])

    def changes(self) -> list[Change]:
        """Return the verbs, each with all of its work done but the saving too."""
        verbs = {
            "enroll": (self.detector, "gasket", self.pictures("gasket", 0, 1)),
            "add_normals": (self.larger, "gasket", [self.new_picture()]),
            "calibrate": (self.larger, "gasket", None),
            "forget": (self.larger, "gasket", None),
        }
        found = []
        for verb, (before, name, pictures) in verbs.items():
            options = {"max_false_alarm_rate": 0.2} if verb == "calibrate" else {}
            words = [*(pictures or []), *(["--max_false_alarm_rate", "0.2"] if options else [])]
            detector = AnomalyDetectionPipeline(*load_detector(str(before))[:1])
            getattr(detector, verb)(name, *([pictures] if pictures else []), **options)
            act = self._command(verb, name, words)
            found.append(Change(verb, before, act, detector.save_pretrained))
        model, processor = load_detector(str(self.larger))
        found.append(Change("the end of fit", self.begun, *[lambda folder: end_fit(model, processor, folder)] * 2))
        return found

    def _command(self, verb: str, name: str, words: list) -> Act:
        return lambda folder: anople([verb, str(folder), name, *map(str, words)])

    def new_picture(self) -> Path:
        """Draw a photograph that no detector here has seen."""
        path = self.folder / "new.png"
        photograph(999).save(path)
        return path


# --- The rows of the table ---


def measure_kills(room: Room, options: argparse.Namespace) -> Iterator[tuple]:
    """End the verbs at every operation on files."""
    for change in room.changes():
        total, found = kill_everywhere(change, change.save, room.folder)
        yield f"{change.name}, ended at each of {total} operations", tell(found)
        if change.act is not change.save:
            found = kill_everywhere(change, change.act, room.folder, every=COMMANDS)[1]
            yield f"the whole command `anople {change.name}`, ended at every {COMMANDS}th", tell(found)


def measure_random(room: Room, options: argparse.Namespace) -> Iterator[tuple]:
    """Kill the verbs at random moments of saving."""
    generator = random.Random(options.seed)
    for change in room.changes():
        found = kill_at_random(change, room.folder, options.kills, generator)
        yield f"{change.name}, SIGKILL at {options.kills} random moments of the save", tell(found)


def tell(found: Counter) -> str:
    """Say how often which state was left."""
    return ", ".join(f"{found[name]} {name}" for name in ("old", "new", "half"))


def measure_readers(room: Room, options: argparse.Namespace) -> Iterator[tuple]:
    """Read a folder again and again while another process changes it again and again, three ways."""
    place = copy_of(room.detector, room.folder / "read")
    states = {load_detector(str(each))[0].config.content_sha256 for each in (room.detector, room.larger)}
    reads = {
        "anople predict": lambda: load_detector(str(place)),
        "AnoPLeModel.from_pretrained": lambda: _parts(AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(place))),
        "pipeline(...)": lambda: _parts(pipeline("image-anomaly-detection", model=str(place))),
    }
    for way, read in reads.items():
        found = read_beside(room, place, read, states, options.seconds / len(reads))
        yield (
            f"{way} in a loop beside enroll and forget, {options.seconds / len(reads):.0f} s",
            f"{found['whole']} whole, {found['mixed']} mixed, {found['error']} errors; {found['writes']} writes",
        )


def _parts(detector: AnomalyDetectionPipeline) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    return detector.model, detector.processor


def read_beside(room: Room, place: Path, read: Callable[[], tuple], states: set[str], seconds: float) -> Counter:
    """Read a folder as often as can be while a fork enrolls and forgets a product; how often it was whole, and what not."""
    found, end = Counter(), time.monotonic() + seconds
    reading, writing = os.pipe()

    def write() -> None:
        while time.monotonic() < end:
            room.run("enroll", place, "gasket", *room.pictures("gasket", 0, 1, 2, 3))
            room.run("forget", place, "gasket")
            os.write(writing, b"ww")

    writer = os.fork()
    if writer == 0:
        in_child(write)
    os.close(writing)
    while time.monotonic() < end:
        try:
            model, processor = read()
        except Exception as error:
            found["error"] += 1
            sys.stderr.write(f"{error}\n")
            continue
        names = [product.name for product in model.products]
        whole = model.config.content_sha256 in states and names == processor.class_names == model.config.class_names
        found["whole" if whole else "mixed"] += 1
    os.waitpid(writer, 0)
    with os.fdopen(reading, "rb") as file:
        found["writes"] = len(file.read())
    return found


def in_child(act: Callable[[], object]) -> None:
    """Do something silently, and end this process."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        act()
    finally:
        os._exit(0)


def flip(path: Path, place: int, mask: int) -> None:
    """Change bits of one byte of a file, in place."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def measure_flips(room: Room, options: argparse.Namespace) -> Iterator[tuple]:
    """Flip one byte of the weights at a time, anywhere and in the header, and let the command line judge."""
    generator, place = random.Random(options.seed), copy_of(room.larger, room.folder / "flipped")
    weights = place / "model.safetensors"
    size, picture = weights.stat().st_size, str(room.new_picture())
    with weights.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    for name, end in (("anywhere", size), ("in the header", header)):
        noticed = 0
        for _ in range(options.kills):
            where, mask = generator.randrange(end), generator.randrange(1, 256)
            flip(weights, where, mask)
            noticed += anople(["predict", str(place), picture]) == 2
            flip(weights, where, mask)
        yield f"one byte of model.safetensors flipped, {name}", f"{noticed} of {options.kills} noticed"
    yield "the same file, whole again", f"exit code {anople(['predict', str(place), picture])}"


def measure_fits(room: Room, options: argparse.Namespace) -> Iterator[tuple]:
    """Kill a fit at random moments, and go on by the same command with --resume."""
    generator = random.Random(options.seed)
    start = time.monotonic()
    in_a_fork(lambda: room.fit(room.folder / "whole fit") and 0)
    seconds, same, without_state = time.monotonic() - start, 0, 0
    expected = load_file(room.folder / "whole fit" / "model.safetensors")
    for number in range(options.fits):
        output = room.folder / f"fit {number}"
        moment = generator.uniform(0, seconds)
        in_a_fork(lambda output=output: room.fit(output) and 0, seconds=moment)
        without_state += not (output / STATE_FILE).exists() and not (output / "model.safetensors").exists()
        code = in_a_fork(lambda output=output: room.fit(output, "--resume") and 0)
        weights = load_file(output / "model.safetensors") if code == 0 else {}
        same += weights.keys() == expected.keys() and all(weights[name].equal(expected[name]) for name in expected)
        shutil.rmtree(output)
    yield (
        f"fit killed at {options.fits} random moments ({without_state} before the first state), resumed",
        f"the same weights {same} of {options.fits}",
    )


def measure_disk(room: Room, options: argparse.Namespace) -> Iterator[tuple]:
    """Enroll on disks that are too small, and on one that cannot be written."""
    pictures = room.pictures("gasket", 0, 1, 2, 3)
    needed = sum(path.stat().st_size for path in room.detector.iterdir() if path.is_file())
    found, said = Counter(), set()
    steps = range(1, 17)
    for step in steps:
        try:
            with disk(room.folder / "disk", needed + 200_000 + step * needed // 8) as place:
                detector = copy_of(room.detector, place / "detector")
                errors = io.StringIO()
                with contextlib.redirect_stderr(errors):
                    code = anople(["enroll", str(detector), "gasket", *map(str, pictures)])
                state = judge(detector, contents(room.detector), contents(room.larger))
                found[f"{state}, exit code {code}"] += 1
                if code:
                    said.add(errors.getvalue().strip().splitlines()[-1].replace(str(room.folder), "..."))
        except OSError as error:
            yield "a full disk", f"skipped: {error}"
            return
    yield (
        f"enroll on {len(steps)} disks of growing size",
        "; ".join(f"{count} {name}" for name, count in sorted(found.items())) + f". {min(said, default='')}",
    )
    with disk(room.folder / "disk", 4 * needed) as place:
        detector = copy_of(room.detector, place / "detector")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = anople(["enroll", str(detector), "gasket", *map(str, pictures)])
        same = contents(detector) == contents(room.detector)
        judged = anople(["predict", str(detector), str(pictures[0])])
        said = errors.getvalue().strip().splitlines()[-1].replace(str(room.folder), "...")
        yield (
            "enroll in a folder that cannot be written",
            f"{'old' if same else 'half'}, exit code {code}; predict there: {judged}. {said}",
        )


@contextlib.contextmanager
def disk(place: Path, size: int) -> Iterator[Path]:
    """
    Mount a disk in memory of so many bytes.

    Raises:
        OSError: where this user may not.
    """
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(done.stderr.strip() or "no disk can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def measure_load(room: Room, options: argparse.Namespace) -> Iterator[tuple]:
    """Load a detector with and without the comparison, in turns."""
    for name, model in (("the embedded CLIP", "mini"), ("a CLIP as large as ViT-B/16", _large_clip())):
        tokenizer = None if model == "mini" else byte_tokenizer()
        place = room.folder / "timed"
        AnoPLeModel.from_clip(model, ["bolt"], tokenizer=tokenizer).save_pretrained(place)
        seconds = {False: [], True: []}
        for number in range(options.loads + 1):
            for verify in seconds:
                start = time.perf_counter()
                AnoPLeModel.from_pretrained(place, verify=verify)
                if number:  # the first ones warm the disk's cache up
                    seconds[verify].append(time.perf_counter() - start)
        plain, checked = (1000 * statistics.median(seconds[verify]) for verify in (False, True))
        size = (place / "model.safetensors").stat().st_size / 1e6
        yield (
            f"loading a detector on {name} ({size:.0f} MB), median of {options.loads}",
            f"{plain:.0f} ms; {checked:.0f} ms with the hash ({checked - plain:+.0f} ms, {checked / plain:.2f} times)",
        )


def _large_clip() -> CLIPModel:
    config = CLIPConfig()
    config.vision_config.patch_size = 16
    config.text_config.eos_token_id = byte_tokenizer().eos_token_id
    return CLIPModel(config).eval()


PARTS = {
    "kills": measure_kills,
    "random": measure_random,
    "readers": measure_readers,
    "flips": measure_flips,
    "fits": measure_fits,
    "disk": measure_disk,
    "load": measure_load,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser("hub.benchmarks.reliability", description=__doc__.strip().splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"Of {', '.join(PARTS)}; by default all.")
    parser.add_argument("--kills", type=int, default=100, help="Random kills of each verb, and bytes flipped.")
    parser.add_argument("--fits", type=int, default=20, help="Fits that are killed.")
    parser.add_argument("--seconds", type=float, default=60, help="Of reading beside a writer.")
    parser.add_argument("--loads", type=int, default=15, help="Times that a detector is loaded to time it.")
    parser.add_argument("--seed", type=int, default=0, help="Of what is random.")
    parser.add_argument("--output", type=Path, help="Where to write the table; by default to stdout.")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}.")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # threads do not survive a fork
    rows = ["| what happened | what was left |", "|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        room = Room(Path(folder))
        for part in options.parts or PARTS:
            for row in PARTS[part](room, options):
                rows.append(f"| {row[0]} | {row[1]} |")
                sys.stderr.write(rows[-1] + "\n")
    text = "\n".join(rows) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
