"""
Several people at the demo at once, and one who wants what is theirs:
`python -m hub.benchmarks.demo_load DETECTOR --minutes 10 --clients 8`.

The demo runs as a program of its own. Each client begins one session after the other, in which it teaches products, all
under the same names, and inspects photographs; each answer is compared with the one that was computed beforehand, alone. The
intruder is given what should be secret of the others' sessions (their hashes, event ids and files) and tries each of it. A
Markdown table of what came of it is printed.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from gradio_client import Client, handle_file

from demo.examples import draw_normal_images
from demo.inspect_tab import inspect_image
from demo.session import PREDICT_PRODUCT, Session, start_session
from demo.teach_tab import teach_product

from .demo_program import free_port, new_client, running_program


NAMES = ("mine", "my other")  # that every client teaches
SHOTS, VARIANTS = 3, 2  # photographs that a product is taught from; different sessions of each client
SCORE_ROUNDING = 2e-6  # scores are sent with six places
ALLOWED_GROWTH = 1.05  # of the server's memory, from the second to the last quarter of the time
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Step:
    """What a client does, and what it is to be told: of an inspection the numbers, of teaching the names of all products."""

    files: list[str]
    product: str
    expected: dict | list[str]

    @property
    def teaches(self) -> bool:
        return isinstance(self.expected, list)


@dataclass
class Secret:
    """What belongs to one session, and should be of no use to another."""

    session: str
    event: str | None
    files: list[str]


@dataclass
class Report:
    """What came of a run: seconds of each answer and each teaching, what went wrong, and the server's memory in MB."""

    clients: int
    minutes: float
    inspected: list[float] = field(default_factory=list)
    taught: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    attempts: int = 0
    breaches: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """The server's memory in the last quarter of the time, as a multiple of that in the second."""
        quarter = max(1, len(self.memory) // 4)
        return statistics.mean(self.memory[-quarter:]) / statistics.mean(
            self.memory[quarter : 2 * quarter] or self.memory
        )

    def problems(self) -> list[str]:
        """Say what must not be."""
        found = [*self.wrong, *self.lost, *self.breaches]
        if self.growth > ALLOWED_GROWTH and self.minutes >= 5:  # before that, the first answers still fill caches
            found.append(f"The server's memory grew to {self.growth:.2f} times.")
        return found

    def table(self) -> str:
        """Write all of it as a Markdown table."""
        seconds, quarter = sorted(self.inspected), max(1, len(self.memory) // 4)
        rows = {
            "clients, minutes": f"{self.clients}, {self.minutes:g}",
            "photographs inspected": f"{len(self.inspected)}",
            "products taught": f"{len(self.taught)}",
            "wrong answers": f"{len(self.wrong)}",
            "lost answers": f"{len(self.lost)}",
            "seconds for an inspection: median, 95 %, longest": ", ".join(
                f"{seconds[place]:.2f}" for place in (len(seconds) // 2, int(0.95 * len(seconds)), -1)
            ),
            "seconds to teach a product: median, longest": f"{statistics.median(self.taught):.2f}, {max(self.taught):.2f}",
            "attempts at others' sessions, successful": f"{self.attempts}, {len(self.breaches)}",
            "server's memory (MB) in each quarter of the time": ", ".join(
                f"{statistics.mean(self.memory[start : start + quarter] or self.memory[-1:]):.0f}"
                for start in range(0, 4 * quarter, quarter)
            ),
        }
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


# --- The clients ---


def write_session(start: Session, folder: Path, seed: int) -> list[Step]:
    """Draw the photographs of one session, and compute alone what its client is to be told."""
    session, steps = copy.deepcopy(start), []
    for number, name in enumerate(NAMES):
        paths = []
        for place, picture in enumerate(draw_normal_images("gear", SHOTS + 2, seed=10 * seed + number)):
            paths.append(str(folder / f"{seed}-{number}-{place}.png"))
            picture.save(paths[-1])
        teach_product(session, name, paths[:SHOTS])
        steps.append(Step(paths[:SHOTS], name, session.products))
        for path, product in ((paths[-1], name), (paths[-2], session.products[0]), (paths[-2], PREDICT_PRODUCT)):
            steps.append(Step([path], product, inspect_image(session, path, product).numbers))
    return steps


def is_right(told: dict | list[str], expected: dict | list[str]) -> bool:
    """Compare an answer with the one computed alone, but for the time it took and the rounding of its score."""
    if isinstance(expected, list):
        return told == expected
    same = all(told[name] == expected[name] for name in ("verdict", "line", "product", "found"))
    return same and abs(told["score"] - expected["score"]) < SCORE_ROUNDING


def ask_for_a_while(
    address: str, sessions: list[list[Step]], until: float, report: Report, secrets: deque[Secret]
) -> None:
    """One client: a session after the other until the time is over; what it was told goes into the report."""
    number = 0
    while time.monotonic() < until:
        client = new_client(address, download_files=False)
        for step in sessions[number % len(sessions)]:
            if time.monotonic() >= until:
                break
            try:
                _take_step(client, step, report, secrets)
            except Exception as error:  # whatever it is, the answer is lost
                report.lost.append(f"{step.product}: {type(error).__name__}: {error}")
        client.close()
        number += 1


def _take_step(client: Client, step: Step, report: Report, secrets: deque[Secret]) -> None:
    files, start = [handle_file(path) for path in step.files], time.monotonic()
    asked = (step.product, files) if step.teaches else (files[0], step.product)
    job = client.submit(*asked, api_name="/enroll" if step.teaches else "/inspect")
    told, *shown = job.result()
    (report.taught if step.teaches else report.inspected).append(time.monotonic() - start)
    if not is_right(told["products"] if step.teaches else told, step.expected):
        report.wrong.append(f"{step.product}: {told} in place of {step.expected}")
    pictures = [] if step.teaches else [picture["path"] for picture in shown[-1]]
    secrets.append(Secret(client.session_hash, job.communicator.event_id, pictures))


# --- The intruder ---


def intrude_for_a_while(address: str, photograph: str, until: float, report: Report, secrets: deque[Secret]) -> None:
    """Try what is secret of the newest sessions, with a client of one's own and without a cookie."""
    while time.monotonic() < until:
        if secrets:
            secret = secrets[-1]
            client = new_client(address, download_files=False)
            own_hash = client.session_hash
            for name, attempt in {
                **_by_the_client(client, photograph, secret),
                **_by_hand(address, client.cookies, secret),
                **{f"{name}, without a cookie": attempt for name, attempt in _by_hand(address, {}, secret).items()},
            }.items():
                report.attempts += 1
                if seen := attempt():
                    report.breaches.append(f"{name}: {seen}")
            client.session_hash = own_hash
            client.close()
        time.sleep(0.2)


def _by_the_client(client: Client, photograph: str, secret: Secret) -> dict[str, Callable[[], str | None]]:
    """Ask as another's session by its hash, and as one's own for another's products."""

    def ask(session: str, endpoint: str, *values) -> str | None:
        client.session_hash = session
        try:
            return str(client.predict(*values, api_name=endpoint))[:200]
        except Exception:  # refused, in whatever way
            return None

    own = client.session_hash
    return {
        "another's product": lambda: ask(own, "/inspect", handle_file(photograph), NAMES[0]),
        "another's session": lambda: ask(secret.session, "/inspect", handle_file(photograph), NAMES[0]),
        "another's detector": lambda: ask(secret.session, "/download"),
    }


def _by_hand(address: str, cookies: dict, secret: Secret) -> dict[str, Callable[[], str | None]]:
    """Send what belongs to another: its files, its events and its session, and take part in it."""

    def get(path: str) -> str | None:
        # a stream of answers may last: what it begins with tells
        with httpx.stream("GET", f"{address}gradio_api/{path}", cookies=cookies, timeout=30) as answer:
            if answer.status_code >= 400:
                return None
            first = next(answer.iter_text(), "")
            return None if "session_not_found" in first and '"session_not_found":true' in first else first[:200]

    def post(path: str, values: dict) -> str | None:
        answer = httpx.post(f"{address}gradio_api/{path}", json=values, cookies=cookies, timeout=30)
        return None if answer.status_code >= 400 else answer.text[:200]

    cancelled = {"session_hash": secret.session, "event_id": secret.event or "", "fn_index": 0}
    joined = {"session_hash": secret.session, "fn_index": 0, "data": []}
    tried = {f"file {path}": lambda path=path: get(f"file={path}") for path in secret.files}
    for path in secret.files:  # judged as a photograph of one's own
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, PREDICT_PRODUCT]
        tried[f"photograph {path}"] = lambda data=data: post(
            "queue/join", {**joined, "session_hash": f"own-{time.monotonic_ns()}", "data": data}
        )
    tried["answers of a session"] = lambda: get(f"queue/data?session_hash={secret.session}")
    tried["heartbeat of a session"] = lambda: get(f"heartbeat/{secret.session}")
    tried["a place in a session's queue"] = lambda: post("queue/join", joined)
    tried["end of an event"] = lambda: post("cancel", cancelled)
    if secret.event:
        tried["answer of an event"] = lambda: get(f"call/inspect/{secret.event}")
    return tried


# --- The run ---


def resident_megabytes(port: int) -> float:
    """Memory of the demo's process that listens on a port."""
    for folder in Path("/proc").glob("[0-9]*"):
        words = (folder / "cmdline").read_bytes().split(b"\0") if (folder / "cmdline").exists() else []
        if b"demo/app.py" in words and str(port).encode() in words:
            status = (folder / "status").read_text()
            return int(status.split("VmRSS:")[1].split()[0]) / 1024
    raise ValueError(f"No demo runs on port {port}.")


def measure(detector: str, *, clients: int, minutes: float, threads: int = 2) -> Report:
    """
    Run the demo, its clients and the intruder.

    Args:
        detector: folder or Hub id.
        clients: how many ask at once, beside the intruder.
        minutes: how long.
        threads: of the server.

    Returns:
        What came of it.
    """
    start, port, report = start_session(detector), free_port(), Report(clients, minutes)
    secrets: deque[Secret] = deque(maxlen=100)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sessions = [
            [write_session(start, folder, VARIANTS * client + variant) for variant in range(VARIANTS)]
            for client in range(clients)
        ]
        photograph = folder / "intruder.png"  # one that nobody else has: equal files have one place
        draw_normal_images("gear", 1, seed=10 * VARIANTS * clients)[0].save(photograph)
        command = ["demo/app.py", detector, "--port", str(port)]
        with running_program(command, ROOT, {"OMP_NUM_THREADS": str(threads)}, log=folder / "log") as address:
            address = f"{address.rstrip('/')}/"
            until = time.monotonic() + 60 * minutes
            with ThreadPoolExecutor(clients + 1) as pool:
                jobs = [pool.submit(ask_for_a_while, address, own, until, report, secrets) for own in sessions]
                jobs.append(pool.submit(intrude_for_a_while, address, str(photograph), until, report, secrets))
                wait = threading.Event()
                while not all(job.done() for job in jobs):
                    report.memory.append(resident_megabytes(port))
                    wait.wait(min(15, 60 * minutes / 12))
                for job in jobs:
                    job.result()
    return report


def main() -> int:
    """Measure and print the table; exits with 1 if anything was wrong, lost, seen by another, or if memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", help="Folder or Hub id.")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=1)
    options = parser.parse_args()
    report = measure(options.detector, clients=options.clients, minutes=options.minutes)
    sys.stdout.write(f"{report.table()}\n")
    problems = report.problems()
    sys.stderr.writelines(f"{problem}\n" for problem in problems[:20])
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
