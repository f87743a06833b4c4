"""
The Space in an environment that holds nothing: `python -m hub.benchmarks.demo_space`.

The files that `hub.publish.space` sends are written into an empty folder, and what their requirements.txt names is installed
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
from demo.inspect_tab import inspect_image
from demo.session import PREDICT_PRODUCT, Session, start_session
from demo.teach_tab import teach_product
from hub.publish.space import write_space

from .demo_program import free_port, new_client, running_program


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


def ask(address: str, work: Path) -> tuple[int, list[str]]:
    """
    Inspect, teach, inspect again and fit; returns how many answers there were, and those that are wrong.

    Scores may differ by 1e-4: both sides run the same versions or nearly so, perhaps with another number of threads.
    """
    client, session, examples = new_client(address), start_session(), write_examples(work)
    good = [str(path) for path in examples.to_teach]
    asked = [(str(path), PREDICT_PRODUCT) for path in examples.to_inspect]
    pairs = [_both(client, session, path, product) for path, product in asked]
    told = client.predict(NEW_PRODUCT, [handle_file(path) for path in good], api_name="/enroll")
    teach_product(session, NEW_PRODUCT, good)
    pairs.append(_both(client, session, str(examples.to_inspect[-1]), NEW_PRODUCT))
    wrong = [f"{there}, but here {here}" for there, here in pairs if _differ(there, here)]
    if told[0]["products"] != session.products:
        wrong.append(f"taught: {told[0]}")
    *_, (_, fitted) = client.submit(FIT_STEPS, api_name="/fit")
    if f"Fitted for {FIT_STEPS} steps" not in fitted:
        wrong.append(f"fitted: {fitted}")
    return len(pairs) + 2, wrong


def _both(client: Client, session: Session, path: str, product: str) -> tuple[dict, dict]:
    there = client.predict(handle_file(path), product, api_name="/inspect")[0]
    return there, inspect_image(session, path, product).numbers


def _differ(there: dict, here: dict) -> bool:
    same = all(there[name] == here[name] for name in ("verdict", "product", "line"))
    return not same or abs(there["score"] - here["score"]) > 1e-4


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
            count, wrong = ask(address, place)
    sys.stdout.write(f"; of {count} answers {len(wrong)} are not this checkout's\n")
    sys.stdout.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
