"""The package as pip installs it from its wheel: it publishes and shows what it does in the checkout, which it lacks."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import hatchling.build
import pytest

from hub.benchmarks.demo_program import free_port, running_program

from ..fitting import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel's content alone."""
    folder, before = tmp_path_factory.mktemp("wheel"), os.getcwd()
    os.chdir(REPOSITORY)  # where pip calls it
    try:
        wheel = hatchling.build.build_wheel(str(folder))
    finally:
        os.chdir(before)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "install",
        "--no-deps",
        "--no-compile",
    ]
    subprocess.run([*pip, "--target", folder / "site", folder / wheel], check=True)
    return folder / "site"


def test_the_wheel_holds_all_of_the_package_and_no_other_name(installed):
    metadata, *names = sorted(path.name for path in installed.iterdir())
    assert metadata.startswith("anople-") and names == ["bin", "modeling_anople"]
    package = installed / "modeling_anople"
    held = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    there = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "modeling_anople").rglob("*") if path.is_file()}
    assert {
        path.relative_to("modeling_anople").as_posix() for path in there if "__pycache__" not in path.parts
    } <= held


# what runs has the tests' libraries, and of this project what was installed: the checkout is not on its path
_PROGRAM = """
import sys

sys.path = [place for place in sys.path if place not in ("", {checkout!r})]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
from modeling_anople.cli import main

assert main(["push", {detector!r}, "me/parts", "--dry_run", "sent"]) == 0
assert main(["push_space", "me/shown", "--dry_run", "space"]) == 0
assert all(sys.modules[name].__file__.startswith({site!r}) for name in ("modeling_anople", "hub", "hub.publish"))
sys.exit(main(["demo", {detector!r}, "--port", "{port}"]))
"""


def test_from_the_wheel_a_detector_is_published_and_the_demo_answers(installed, fitted, tmp_path):
    environment = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    told = subprocess.run([installed / "bin/anople", "--help"], env=environment, cwd=tmp_path, capture_output=True)
    assert told.returncode == 0 and b"\n  push CHECKPOINT USER/NAME" in told.stderr
    program = _PROGRAM.format(checkout=str(REPOSITORY), detector=str(fitted), site=str(installed), port=free_port())
    with running_program(["-c", program], tmp_path, environment, log=tmp_path / "log") as address:
        page = urlopen(address, timeout=30).read().decode()
        tools = tools_of(address)
    assert "Show it a few good photographs of a product" in page and tools == ["inspect", "enroll"]
    assert "anople predict me/parts" in (tmp_path / "sent/README.md").read_text(encoding="utf-8")
    assert (tmp_path / "sent/handler.py").is_file() and (tmp_path / "space/demo/app.py").is_file()
    assert not (tmp_path / "space/modeling_anople/programs").exists()


def tools_of(address: str) -> list[str]:
    """Ask the program, which has a server of its own, for its tools: the handlers of the page are none."""
    import anyio

    from ..demo.test_server_tools import connected

    async def ask() -> list[str]:
        async with connected(f"{address.rstrip('/')}/") as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    return anyio.run(ask)
