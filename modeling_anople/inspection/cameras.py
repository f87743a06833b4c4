"""A camera as a folder in which photographs arrive: its frames are written there, one each few seconds."""

import logging
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit


logger = logging.getLogger(__name__)

SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "tcp", "file")
MOST_WAITING = 100  # frames that are not judged yet; beyond them none is taken
LONGEST_PAUSE = 60
SECONDS = 10  # without a frame until a camera counts as gone


def is_camera(place: str) -> bool:
    """Say whether a place is the number of a camera, or the address of one, and no folder."""
    return (place.isascii() and place.isdigit()) or urlsplit(place).scheme in SCHEMES


class Camera(threading.Thread):
    """
    Takes frames until `stop` is set. A camera that is gone is tried again with longer and longer pauses.

    Args:
        place: number of a camera of this machine, or an address that FFmpeg opens (`rtsp://...`).
        folder: where frames are written, each at once, named by its time.
        every: seconds between two frames.

    Raises:
        ModuleNotFoundError: without PyAV.
    """

    def __init__(self, place: str, folder: Path, *, every: float, stop: threading.Event):
        import av

        super().__init__(name="camera", daemon=True)
        self._av, self._place, self._folder, self._every, self._ended = av, place, folder, every, stop
        parts = urlsplit(place)
        self.name_for_logs = f"camera {place}" if not parts.scheme else f"{parts.scheme}://{parts.hostname or ''}"
        self._behind = False

    def run(self) -> None:
        """Take frames."""
        failures = 0
        while not self._ended.is_set():
            try:
                taken = self._take()
                reason = "its stream has ended"
            except (
                Exception
            ) as error:  # of FFmpeg, of the camera, of a disk that is full: whatever it is, it is tried again
                taken, reason = 0, f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
            if self._ended.is_set():
                return
            failures = 1 if taken else failures + 1
            if failures == 1:
                logger.warning("%s gives no frames (%s): trying again.", self.name_for_logs, reason)
            self._ended.wait(min(LONGEST_PAUSE, 2.0 ** min(failures, 10) / 4))

    def _take(self) -> int:
        """Take frames until the stream ends; return how many."""
        taken, due = 0, time.monotonic()
        with self._open() as stream:
            for frame in stream.decode(video=0):  # all are decoded, or what is taken would be of long ago
                if self._ended.is_set():
                    break
                if time.monotonic() >= due and not self._is_behind():
                    self._write(frame)
                    taken, due = taken + 1, time.monotonic() + self._every
        return taken

    def _open(self):
        if self._place.isdigit():
            return self._av.open(f"/dev/video{self._place}", format="v4l2", timeout=SECONDS)
        options = {"rtsp_transport": "tcp"} if self._place.startswith("rtsp") else {}
        return self._av.open(self._place, options=options, timeout=SECONDS)

    def _write(self, frame: "av.VideoFrame") -> None:  # noqa: F821  imported where there is a camera
        name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%fZ.png")
        unfinished = self._folder / f".{name}"
        frame.to_image().save(unfinished, compress_level=1)
        os.rename(unfinished, self._folder / name)

    def _is_behind(self) -> bool:
        behind = sum(1 for _ in os.scandir(self._folder)) >= MOST_WAITING
        if behind and not self._behind:
            logger.warning("%s is faster than the detector: frames are left out.", self.name_for_logs)
        self._behind = behind
        return behind


__all__ = ["Camera", "is_camera"]
