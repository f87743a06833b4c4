"""
A plant's load on `anople serve`: `python -m hub.benchmarks.serve_load --minutes 5 --clients 8`.

The server runs as a program of its own on a detector of drawn products, or on one that is given. First one client asks for one
photograph after the other, then several ask at once; every fourth request has four photographs, one of which is broken. Each
answer is compared with that of the same photograph judged alone, before, in this process. The table goes to
`hub/benchmarks/results/serve_load.md`; the program ends with 1 if an answer was wrong or missing, or memory grew.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch

from modeling_anople.cli import main as anople
from modeling_anople.images_anople import list_images
from modeling_anople.pipeline_anople import Prediction, predict
from modeling_anople.runtime.loading import load_judge

from .measuring import RESULTS, keep_table


PRODUCTS, SHOTS = ("gear", "capsule"), 8  # drawn, where no detector is given
SCORE_ROUNDING = 2e-6
ALLOWED_GROWTH = 1.05  # of the server's memory, from the second to the last quarter of the time
SECONDS_BETWEEN_LOOKS = 2  # at the server's memory


@dataclass
class Phase:
    """What came of one part of the run: seconds of each request with one photograph, and what went wrong."""

    name: str
    seconds: list[float] = field(default_factory=list)
    photographs: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    duration: float = 0.0

    def row(self) -> str:
        """Write it as a row of the table."""
        ordered = sorted(self.seconds)
        median, late = (1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
        return (
            f"| {self.name} | {self.photographs} | {self.photographs / self.duration:.1f} | {median:.0f} | {late:.0f} | "
            f"{self.refused} | {len(self.wrong)} |"
        )


# --- The detector, and what it answers alone ---


def draw_detector(folder: Path) -> tuple[str, list[Path]]:
    """Draw products and let a detector know them; return its folder and test photographs."""
    counts = ["--train", str(SHOTS), "--good", "10", "--defective", "10"]
    run_here("draw", str(folder / "drawn"), "--classes", *PRODUCTS, *counts)
    for number, name in enumerate(PRODUCTS):
        begin = [] if number else ["--clip", "mini"]
        run_here("enroll", str(folder / "detector"), name, str(folder / "drawn" / name / "train" / "good"), *begin)
    return str(folder / "detector"), list_images([str(folder / "drawn" / name / "test") for name in PRODUCTS])


def run_here(*arguments: str) -> None:
    """Run an `anople` command in this process."""
    if anople(list(arguments)):
        raise SystemExit(f"anople {arguments[0]} failed.")


def is_right(row: dict, expected: Prediction) -> bool:
    """Compare an answer with the one that was computed alone; a batch may move its last digits."""
    if expected.error:
        return bool(row.get("error")) and row["label"] is None and row["score"] is None
    same = row["label"] == expected.label and row["class"] == expected.class_name and not row.get("error")
    return same and abs(row["score"] - expected.score) < SCORE_ROUNDING


# --- The server and its clients ---


def start_server(detector: str, log: Path, threads: int) -> tuple[subprocess.Popen, str]:
    """Start `anople serve` on a free port; return the process and its address."""
    command = [sys.executable, "-m", "modeling_anople.cli.__main__", "serve", detector, "--port", "0"]
    with log.open("w") as output:
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        server = subprocess.Popen(command, stderr=output, env=variables)
    while server.poll() is None:
        if found := re.search(r" at (http://\S+)/docs", log.read_text()):
            return server, found[1]
        time.sleep(0.1)
    raise SystemExit(f"The server did not start:\n{log.read_text()}")


def ask_for_a_while(address: str, paths: list[Path], expected: list[Prediction], until: float, phase: Phase) -> None:
    """One client: a request after the other until the time is over; 429 is asked again after as long as it says."""
    contents, number = [path.read_bytes() for path in paths], 0
    with httpx.Client(timeout=120) as client:
        while time.monotonic() < until:
            number += 1
            first = (7 * number + threading.get_ident()) % (len(paths) - 1)
            chosen = [first, (first + 1) % (len(paths) - 1), len(paths) - 1, first] if number % 4 == 0 else [first]
            files = [("files", (paths[each].name, contents[each])) for each in chosen]
            start = time.perf_counter()
            answer = client.post(f"{address}/predict", files=files)
            if answer.status_code == 429:
                phase.refused += 1
                time.sleep(int(answer.headers["Retry-After"]))
                continue
            if answer.status_code != 200:
                phase.wrong.append(f"{answer.status_code}: {answer.text[:200]}")
                continue
            if len(chosen) == 1:
                phase.seconds.append(time.perf_counter() - start)
            rows = answer.json()["results"]
            phase.photographs += len(rows)
            for row, each in zip(rows, chosen, strict=True):
                if not is_right(row, expected[each]):
                    phase.wrong.append(f"{row} in place of {expected[each]}")


def run_phase(
    name: str, address: str, paths: list[Path], expected: list[Prediction], clients: int, minutes: float
) -> Phase:
    """Let clients ask for a while."""
    phase, start = Phase(name), time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        jobs = [
            pool.submit(ask_for_a_while, address, paths, expected, start + 60 * minutes, phase) for _ in range(clients)
        ]
        for job in jobs:
            job.result()
    phase.duration = time.monotonic() - start
    return phase


def megabytes_of(server: subprocess.Popen) -> float:
    """Resident memory of the server."""
    return int(Path(f"/proc/{server.pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def watch_memory(server: subprocess.Popen, ended: threading.Event, memory: list[float]) -> None:
    """Look at the server's memory until the run has ended."""
    while not ended.wait(SECONDS_BETWEEN_LOOKS):
        memory.append(megabytes_of(server))


def quarters_of(memory: list[float]) -> list[float]:
    """Average the memory over each quarter of the time."""
    size = max(1, len(memory) // 4)
    return [statistics.mean(memory[start : start + size] or memory[-1:]) for start in range(0, 4 * size, size)]


def measure(
    detector: str, paths: list[Path], folder: Path, *, clients: int, minutes: float, threads: int
) -> tuple[str, list[str]]:
    """
    Run the server and its clients.

    Returns:
        The table, and what must not be.
    """
    broken = folder / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:300])
    paths = [*paths, broken]
    model, processor = load_judge(detector)
    expected = [next(predict(model, processor, [path])) for path in paths]
    del model
    server, address = start_server(detector, folder / "log", threads)
    memory, ended = [], threading.Event()
    try:
        alone = run_phase("one client, one by one", address, paths, expected, 1, minutes / 5)
        watcher = threading.Thread(target=watch_memory, args=(server, ended, memory))
        watcher.start()
        together = run_phase(f"{clients} clients at once", address, paths, expected, clients, minutes)
        ended.set()
        watcher.join()
        figures = httpx.get(f"{address}/metrics").text
    finally:
        ended.set()
        server.terminate()
        code = server.wait(60)
    total, batches = (
        float(re.search(rf"^anople_batch_photographs_{name} (\S+)", figures, re.MULTILINE)[1])
        for name in ("sum", "count")
    )
    quarters = quarters_of(memory)
    growth = quarters[3] / quarters[1]
    problems = [*alone.wrong, *together.wrong]
    if growth > ALLOWED_GROWTH and minutes >= 2:  # before that, the first answers still fill caches
        problems.append(f"The server's memory grew to {growth:.2f} times.")
    if code:
        problems.append(f"The server ended with {code}.")
    lines = [
        "| | photographs | per second | median, ms | 95 %, ms | refused (429) | wrong |",
        "|---|---|---|---|---|---|---|",
        alone.row(),
        together.row(),
        "",
        "Milliseconds are of requests with one photograph, from the first byte sent to the last received.",
        f"{total / batches:.2f} photographs were judged together on average.",
        f"Memory of the server in each quarter of the time: {', '.join(f'{each:.0f}' for each in quarters)} MB.",
        f"{minutes:g} minutes with {clients} clients, {minutes / 5:g} before with one; the server computed on {threads} of "
        f"{os.cpu_count()} CPU threads with torch {torch.__version__}, and the clients on the same machine.",
    ]
    return "\n".join(lines) + "\n", problems


def main() -> int:
    """Measure and write the table; exits with 1 if anything was wrong or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", help="Folder of a detector or graph; by default drawn products.")
    parser.add_argument("--photographs", nargs="+", help="With --detector: photographs to send, or folders of them.")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--threads", type=int, default=2, help="Of the server.")
    parser.add_argument("--output", type=Path, default=RESULTS / "serve_load.md")
    options = parser.parse_args()
    if bool(options.detector) != bool(options.photographs):
        parser.error("give --detector and --photographs together, or neither.")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        detector, paths = options.detector, options.photographs and list_images(options.photographs)
        if not detector:
            detector, paths = draw_detector(folder)
        text, problems = measure(
            detector, paths, folder, clients=options.clients, minutes=options.minutes, threads=options.threads
        )
    about = f"`python -m hub.benchmarks.serve_load --minutes {options.minutes:g} --clients {options.clients}`\n\n"
    keep_table(options.output, "Load on `anople serve`", about + text)
    sys.stderr.writelines(f"{problem}\n" for problem in problems[:20])
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
