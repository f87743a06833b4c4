"""
The Space in an environment that holds nothing: `python -m tests.benchmarks.demo_space`.

The files that `hub.push_space` sends are written into an empty folder, and what their requirements.txt names is installed
into a new virtual environment, torch first. Its Python, which finds nothing of this checkout, then starts the app in that
folder, and the real client asks it: what it answers must equal what this checkout answers. It takes some minutes and
1.7 GB of disk, so it is no test. `--also "gradio[oauth,mcp]==6.31.0"` installs what a Space's own image adds.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from gradio_client import Client, handle_file
from huggingface_hub import SpaceCard

from demo.examples import NEW_PRODUCT, write_examples
from demo.inspecting import FIND_IT, inspect_photograph
from demo.session import start_session
from demo.teaching import teach
from hub.push_space import write_space

from ..demo_app import free_port, running_program


FIT_STEPS = 10
LISTED = (
    "torch",
    "gradio",
    "transformers",
    "huggingface_hub",
    "datasets",
    "accelerate",
    "pydantic",
    "starlette",
    "mcp",
)


def check_header(folder: Path) -> None:
    """
    Read the header as the Hub's client does, and look whether what it names is there.

    Raises:
        ValueError: for what the Hub would refuse, or could not start.
    """
    data = SpaceCard.load(folder / "README.md").data
    if data.sdk != "gradio" or not (folder / data.app_file).is_file():
        raise ValueError(f"sdk {data.sdk} with app_file {data.app_file}: no such app is sent.")
    if f"gradio=={data.sdk_version}" not in requirements(folder):
        raise ValueError(f"sdk_version {data.sdk_version} is not the gradio of requirements.txt.")
    if not re.fullmatch(r"3\.\d+", str(data.python_version)):
        raise ValueError(f"python_version {data.python_version} is none.")


def requirements(folder: Path) -> list[str]:
    """All that a folder's requirements.txt names."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def install(folder: Path, place: Path, also: list[str]) -> tuple[Path, dict[str, str]]:
    """
    Install what the Space asks for into a new environment; returns its Python and the versions there.

    Raises:
        ValueError: if the environment is not empty at first, torch comes a second time, or packages do not fit together.
    """
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    if extra := versions(python).keys() - {"pip", "setuptools"}:
        raise ValueError(f"The new environment is not empty: {sorted(extra)}.")
    torch = next(line for line in requirements(folder) if line.startswith("torch=="))
    run(python, "-m", "pip", "install", "--quiet", torch)
    first = versions(python)["torch"]
    run(python, "-m", "pip", "install", "--quiet", "--requirement", str(folder / "requirements.txt"), *also)
    run(python, "-m", "pip", "check")
    there = versions(python)
    if there["torch"] != first:
        raise ValueError(f"torch {first} was replaced by {there['torch']}.")
    if "+cpu" in first and (cuda := [name for name in there if name.startswith(("nvidia", "cuda"))]):
        raise ValueError(f"A build of torch for the CPU, and yet {cuda}.")
    return python, there


def versions(python: Path) -> dict[str, str]:
    """Name and version of all that is installed."""
    lines = run(python, "-m", "pip", "list", "--format", "freeze").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def run(python: Path, *arguments: str) -> str:
    """
    Run the new environment's Python.

    Raises:
        ValueError: if it fails, with what it said.
    """
    done = subprocess.run([str(python), *arguments], env=clean_environment(), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(arguments[:4])} failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


def clean_environment() -> dict[str, str]:
    """This environment without what would lead Python elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def ask(address: str, work: Path) -> tuple[int, int]:
    """
    Inspect, teach, inspect again and fit; returns how many answers were compared and how many were wrong.

    Scores are rounded to 6 places, and both sides run the same versions or nearly so: they may differ by 1e-4.
    """
    client, session = Client(address, verbose=False, analytics_enabled=False), start_session()
    examples = write_examples(work)
    good = [str(path) for path in examples.to_teach]
    asked = [(str(path), FIND_IT) for path in examples.to_inspect]
    compared = [(client.predict(handle_file(path), name, api_name="/inspect")[0], path, name) for path, name in asked]
    told = client.predict(NEW_PRODUCT, [handle_file(path) for path in good], api_name="/enroll")
    fabric = str(examples.to_inspect[-1])
    taught = client.predict(handle_file(fabric), NEW_PRODUCT, api_name="/inspect")[0]
    wrong = sum(differs(answer, inspect_photograph(session, path, name).numbers) for answer, path, name in compared)
    teach(session, NEW_PRODUCT, good)
    wrong += differs(taught, inspect_photograph(session, fabric, NEW_PRODUCT).numbers)
    wrong += told[0]["products"] != session.products
    wrong += "and kept" not in client.predict(FIT_STEPS, api_name="/fit")[1]
    return len(compared) + 3, wrong


def differs(answer: dict, expected: dict) -> bool:
    """Whether an answer is another one."""
    same = all(answer[name] == expected[name] for name in ("verdict", "product", "line"))
    return not same or abs(answer["score"] - expected["score"]) > 1e-4


def main() -> int:
    """Write, install, start and ask; prints what came of it and exits with 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--also", action="append", default=[], help="Install this too; may be given several times.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place, clock = Path(temporary), time.monotonic()
        space = place / "space"
        write_space(space)
        check_header(space)
        python, there = install(space, place / "environment", options.also)
        sys.stdout.write(f"{len(there)} packages installed in {time.monotonic() - clock:.0f} s: ")
        sys.stdout.write(", ".join(f"{name} {there[name]}" for name in LISTED if name in there) + "\n")
        command, clock = ["demo/app.py", "--port", str(free_port())], time.monotonic()
        environment = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "home")}
        with running_program(command, space, environment, log=place / "log", python=str(python)) as address:
            sys.stdout.write(f"The demo runs after {time.monotonic() - clock:.0f} s")
            compared, wrong = ask(address, place)
    sys.stdout.write(f"; {compared} answers compared with this checkout's, {wrong} wrong\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
