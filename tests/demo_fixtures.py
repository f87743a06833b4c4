"""What the tests in a browser share: Chromium, the demo it looks at, and where pictures and downloads go."""

from pathlib import Path

import pytest

from demo.examples import write_examples
from demo.session import start_session

from .browser import browser, needs_chromium
from .demo_app import running


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
