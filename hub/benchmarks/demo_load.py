"""
Several people at the demo at once for a while: `python -m hub.benchmarks.demo_load --clients 8 --seconds 60`.

The demo runs as a program of its own. Each client is a session with a product of its own under one and the same name;
each answer is compared with the one computed here, alone. Lost and wrong answers, seconds per answer and the server's
memory are printed.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gradio_client import handle_file

from demo.examples import draw_normal_images
from demo.inspect_tab import inspect_image
from demo.session import start_session
from demo.teach_tab import teach_product

from .demo_program import free_port, new_client, running_program


NAME = "mine"
ROOT = Path(__file__).resolve().parents[2]


def resident_megabytes(port: int) -> float:
    """Memory of the demo's process that listens on a port."""
    for folder in Path("/proc").glob("[0-9]*"):
        words = (folder / "cmdline").read_bytes().split(b"\0") if (folder / "cmdline").exists() else []
        if b"demo/app.py" in words and str(port).encode() in words:
            status = (folder / "status").read_text()
            return int(status.split("VmRSS:")[1].split()[0]) / 1024
    raise ValueError(f"No demo runs on port {port}.")


def ask_for_a_while(address: str, folder: Path, session, number: int, until: float) -> list[tuple[float, bool]]:
    """One client: teach once, then inspect until the time is over; seconds and whether each answer was right."""
    paths = []
    for place, picture in enumerate(draw_normal_images("gear", 6, seed=number)):
        paths.append(str(folder / f"{number}-{place}.png"))
        picture.save(paths[-1])
    teach_product(session, NAME, paths[:3])
    expected = {path: inspect_image(session, path, NAME).score for path in paths[3:]}
    client, answers = new_client(address), []
    client.predict(NAME, [handle_file(path) for path in paths[:3]], api_name="/enroll")
    while time.monotonic() < until:
        path, start = paths[3 + len(answers) % 3], time.monotonic()
        numbers, *_ = client.predict(handle_file(path), NAME, api_name="/inspect")
        answers.append(
            (time.monotonic() - start, abs(numbers["score"] - expected[path]) < 2e-6)
        )  # rounded to 6 places
    return answers


def main() -> int:
    """Run the clients and print what came of it; exit with 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    start, port = start_session(), free_port()
    with tempfile.TemporaryDirectory() as place:
        command, folder = ["demo/app.py", "--port", str(port)], Path(place)
        with running_program(command, ROOT, {"OMP_NUM_THREADS": "2"}, log=folder / "log") as address:
            until = time.monotonic() + options.seconds
            with ThreadPoolExecutor(options.clients) as pool:
                jobs = [
                    pool.submit(ask_for_a_while, address, folder, copy.deepcopy(start), number, until)
                    for number in range(options.clients)
                ]
                memory = []
                while not all(job.done() for job in jobs):
                    memory.append(resident_megabytes(port))
                    time.sleep(options.seconds / 12)
                answers = [answer for job in jobs for answer in job.result()]
    seconds, wrong = sorted(spent for spent, _ in answers), sum(not right for _, right in answers)
    shown = ", ".join(f"{value:.0f}" for value in memory)
    sys.stdout.write(
        f"{len(answers)} answers to {options.clients} clients, {wrong} wrong, none lost; seconds: median "
        f"{statistics.median(seconds):.2f}, longest {seconds[-1]:.2f}; server's memory in MB: {shown}\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
