"""Which photographs have arrived whole in a watched folder, by events of the file system or by looking again and again."""

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..images_anople import HEIF_ENDINGS, IMAGE_EXTENSIONS, RAW_ENDINGS, RESULTS


logger = logging.getLogger(__name__)

ENDINGS = {*IMAGE_EXTENSIONS, *HEIF_ENDINGS, *RAW_ENDINGS}  # what cannot be opened goes to error/, with the reason
PASSED_STARTS = (".", "~")  # hidden, or of an editor; temporary names end in no ending of a photograph
PATIENCE = 10  # times the settling time until a file that cannot be read is called so
SCAN_SECONDS = 30  # between two looks at all of a folder: events may be lost


@dataclass(frozen=True)
class Arrival:
    """
    A file in one state.

    Args:
        path: absolute.
        size: in bytes.
        changed: time of the last change in nanoseconds.
    """

    path: Path
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "Arrival | None":
        """Look at a file; `None` for what is none, or is gone."""
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        return cls(path, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


@dataclass
class _Seen:
    arrival: Arrival
    since: float  # when it was first seen so, on the clock that only goes forward
    wait: float


class Arrivals:
    """
    The files of a folder and those below it that are not judged yet.

    A file counts when it has not changed for a while. Folders that are links are not entered, nor those of results.

    Args:
        folder: absolute.
        settle: seconds that a file must stay as it is.
        is_known: whether a file was judged in this state.
        passed_over: folders in which nothing arrives, such as that of the results.
    """

    def __init__(
        self, folder: Path, *, settle: float, is_known: Callable[[Arrival], bool], passed_over: tuple[Path, ...] = ()
    ):
        self.folder, self.settle, self.is_known = folder, settle, is_known
        self.passed_over = {os.path.realpath(each) for each in passed_over}
        self._seen: dict[Path, _Seen] = {}
        self._judged: dict[Path, Arrival] = {}  # which stay in the folder
        self._others: set[str] = set()  # endings of what is no photograph

    def scan(self) -> None:
        """Look at the whole folder; an `OSError` if that cannot be read."""
        os.scandir(self.folder).close()
        found = set(self._below(self.folder))
        for path in [*self._seen, *self._judged]:
            if path not in found:
                self.forget(path)
        for path in found:
            self._look_at(path)

    def note(self, path: Path) -> None:
        """Look at what has changed: a file, or a folder with all that is in it."""
        if not path.is_relative_to(self.folder):  # the folder was named by a link
            self.scan()
            return
        if not os.path.lexists(path):
            self.forget(path)
            return
        if any(part.startswith(PASSED_STARTS) for part in path.relative_to(self.folder).parts):
            return
        above = [
            parent for parent in (path, *path.parents) if parent != self.folder and parent.is_relative_to(self.folder)
        ]
        if any(each.is_dir() and not self._is_entered(each) for each in above):
            return
        for each in self._below(path) if path.is_dir() else filter(self._counts, [path]):
            self._look_at(each)

    def ready(self) -> list[Arrival]:
        """Return the files that are whole, in the order in which they were changed last."""
        now = time.monotonic()
        for path in list(self._seen):
            self._look_at(path)
        settled = [each.arrival for each in self._seen.values() if now - each.since >= each.wait]
        return sorted(settled, key=lambda each: (each.changed, os.fsencode(each.path)))

    def wait_longer(self, arrival: Arrival) -> bool:
        """Give a file that cannot be read more time, once; say whether it gets that."""
        seen = self._seen.get(arrival.path)
        if seen is None or seen.arrival != arrival:
            return True  # it has changed, and is looked at anew
        if seen.wait > self.settle:
            return False
        seen.wait = self.settle * PATIENCE
        return time.monotonic() - seen.since < seen.wait

    def judged(self, arrival: Arrival) -> None:
        """Look no more at a file in this state."""
        seen = self._seen.get(arrival.path)
        if seen is not None and seen.arrival == arrival:
            del self._seen[arrival.path]
        self._judged[arrival.path] = arrival

    def forget(self, path: Path) -> None:
        """Look at whatever has this name now: what had it is gone."""
        self._seen.pop(path, None)
        self._judged.pop(path, None)

    def _look_at(self, path: Path) -> None:
        arrival = Arrival.of(path)
        if arrival is None:
            self.forget(path)
            return
        seen = self._seen.get(path)
        if seen is not None and seen.arrival == arrival:
            return
        if seen is None and (self._judged.get(path) == arrival or self.is_known(arrival)):
            self._judged[path] = arrival
            return
        self._seen[path] = _Seen(arrival, time.monotonic(), self.settle)

    def _below(self, folder: Path) -> Iterator[Path]:
        if not self._is_entered(folder):
            return
        for path, folders, files in os.walk(folder, followlinks=False):
            here = Path(path)
            folders[:] = [name for name in folders if self._is_entered(here / name)]
            yield from filter(self._counts, (here / name for name in files))

    def _is_entered(self, folder: Path) -> bool:
        if folder == self.folder:
            return True
        if folder.name.startswith(PASSED_STARTS) or folder.is_symlink() or (folder / RESULTS).exists():
            return False
        return os.path.realpath(folder) not in self.passed_over

    def _counts(self, path: Path) -> bool:
        if path.name.startswith(PASSED_STARTS):
            return False
        if path.suffix.lower() in ENDINGS:
            return True
        kind = path.suffix.lower() or "without ending"
        if kind not in self._others and not kind.endswith((".tmp", ".part", "~")):
            self._others.add(kind)
            logger.warning(
                "%s is left where it is: %s is no ending of a photograph. So are all others of its kind.", path, kind
            )
        return False


def wakes(folder: Path, *, seconds: float, poll: bool, stop: threading.Event) -> Iterator[set[Path] | None]:
    """
    Tell when to look at a folder, until `stop` is set.

    Args:
        seconds: the longest time between two looks.
        poll: whether to look by the clock alone, where a file system tells nothing.

    Yields:
        What has changed; nothing after the longest time; `None` where all of the folder is to be looked at.
    """
    yield None
    if poll:
        while not stop.wait(seconds):
            yield None
        return
    from watchfiles import watch

    scanned = time.monotonic()
    timeout = max(10, round(1000 * seconds))
    changes = watch(
        folder, watch_filter=None, debounce=100, step=20, rust_timeout=timeout, yield_on_timeout=True, stop_event=stop
    )
    try:
        for change in changes:
            if time.monotonic() - scanned > SCAN_SECONDS:
                yield None
                scanned = time.monotonic()
            else:
                yield {Path(path) for _, path in change}
    except OSError as error:
        raise OSError(f"{folder} tells nothing of what arrives there ({error}): add --poll.") from error


__all__ = ["Arrival", "Arrivals", "wakes"]
