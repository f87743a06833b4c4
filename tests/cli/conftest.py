"""What the tests of commands share: a fitted detector."""

from pathlib import Path

import pytest

from ..detectors import write_detector


@pytest.fixture(scope="package")
def fitted(tmp_path_factory, small_clip_folder, photograph) -> Path:
    """A detector of bolt and nut, which no test may change where it lies."""
    return write_detector(tmp_path_factory.mktemp("detector"), small_clip_folder, photograph)
