"""What tests of the demo share: a small detector and its sessions; Chromium, and the demo it looks at."""

from pathlib import Path

import pytest

from demo.examples import write_examples
from demo.session import Session, start_session

from ..detectors import normals_of, write_detector, write_screws
from .browser import browser, needs_chromium
from .demo_app import running, session_of


@pytest.fixture(scope="module")
def start(tmp_path_factory, small_clip_folder, photograph) -> Session:
    """What all browsers begin with: a detector of bolts and nuts, taught elsewhere."""
    return start_session(str(write_detector(tmp_path_factory.mktemp("demo") / "d", small_clip_folder, photograph)))


@pytest.fixture
def session(start) -> Session:
    """What a new browser gets."""
    return session_of(start)


@pytest.fixture
def files(tmp_path, photograph) -> list[str]:
    """Four photographs of something new."""
    return write_screws(tmp_path, photograph)


@pytest.fixture
def nut(tmp_path, photograph) -> str:
    """A photograph of a nut that the detector has not seen."""
    normals_of(photograph, 1, 5)[4].save(tmp_path / "nut.png")
    return str(tmp_path / "nut.png")


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def address(examples):
    needs_chromium()  # before anything slow
    with running(start_session(), examples) as address:
        yield address


@pytest.fixture
def downloads(chrome, tmp_path) -> Path:
    chrome.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    return tmp_path
