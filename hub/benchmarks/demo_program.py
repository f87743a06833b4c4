"""The demo as a program of its own on loopback, and the client that asks it: for benchmarks and tests."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gradio_client import Client


@contextlib.contextmanager
def running_program(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    *,
    log: Path,
    wait: float = 300,
    python: str = sys.executable,
) -> Iterator[str]:
    """Run a program that starts the demo in a folder; gives the address it prints."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
    with log.open("w") as output:
        program = subprocess.Popen([python, *command], cwd=folder, env=variables, stdout=output, stderr=output)
        try:
            yield _address(program, log, time.monotonic() + wait)
        finally:
            program.terminate()
            program.wait(timeout=20)


def _address(program: subprocess.Popen, log: Path, until: float) -> str:
    while time.monotonic() < until and program.poll() is None:
        if found := re.search(r"Running on local URL:\s+(http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"The demo did not start:\n{log.read_text()}")


def new_client(address: str, **options) -> Client:
    """Connect as a program does; the client's own 5 s for an answer are too few where the machine is busy."""
    return Client(address, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 120}, **options)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]
