"""What the tests of inspection share: a fitted detector, its product's photographs, and a watch in a thread."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from modeling_anople.inspection.watching import Watch

from ..detectors import normals_of, write_detector


@pytest.fixture(scope="package")
def fitted(tmp_path_factory, small_clip_folder, photograph) -> Path:
    """A detector of bolt and nut, which no test may change where it lies."""
    return write_detector(tmp_path_factory.mktemp("detector"), small_clip_folder, photograph)


@pytest.fixture(scope="package")
def bolts(photograph) -> list[Image.Image]:
    """Good photographs of a bolt that the detector was not shown."""
    return normals_of(photograph, 0, 12)[3:]


class Plant:
    """A watched folder with its results."""

    def __init__(self, folder: Path, detector: Path):
        self.inbox, self.output, self.detector = folder / "inbox", folder / "results", detector
        self.inbox.mkdir()

    @contextlib.contextmanager
    def watched(self, *, folder: Path | None = None, **options) -> Iterator[Watch]:
        """Watch in a thread, whose error is raised here."""
        given = {"class_name": "bolt", "settle": 0.05, "device": "cpu", **options}
        watch, errors = Watch(str(self.detector), folder or self.inbox, self.output, **given), []

        def run() -> None:
            try:
                watch.run()
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield watch
        finally:
            watch.stop.set()
            thread.join(30)
        if errors:
            raise errors[0]

    def rows(self) -> list[dict]:
        """The rows that are written so far."""
        path = self.output / "results.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def wait_for(self, count: int, *, seconds: float = 20) -> list[dict]:
        """Wait for so many rows, and for nothing to be unfinished."""
        wait_until(lambda: len(self.rows()) >= count, seconds=seconds)
        return self.rows()


def wait_until(is_so: Callable[[], bool], *, seconds: float = 20) -> None:
    """Wait for something; an `AssertionError` if it does not come."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def plant(tmp_path, fitted) -> Plant:
    return Plant(tmp_path, fitted)
