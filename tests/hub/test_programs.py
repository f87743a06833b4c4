"""Programs under `hub`: they start their logs alike, and their old names say the new ones."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hub import MOVED

from ..fitting import REPOSITORY


@pytest.mark.parametrize("old", MOVED)
def test_the_old_name_of_a_program_says_the_new_one(old):
    done = subprocess.run([sys.executable, "-m", old, "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (
        done.returncode
        and done.stderr == f"`python -m {old}` is now `python -m {MOVED[old]}`, with the same options.\n"
    )
    new = find_spec(MOVED[old])
    assert new is not None and (new.submodule_search_locations is None or find_spec(f"{MOVED[old]}.__main__"))


@pytest.mark.parametrize(
    "name",
    ["modeling_anople.cli.__main__", "hub.publish.__main__", "hub.publish.space", "hub.open_clip.__main__",
     "hub.mini_clip.__main__", "hub.reproduce.__main__", "tests.local_hub.__main__"],
)  # fmt: skip
def test_every_program_starts_its_log_in_one_place(name):
    source = Path(find_spec(name).origin).read_text(encoding="utf-8")
    assert ("start_logging()" in source or "run_program(" in source) and "basicConfig" not in source
