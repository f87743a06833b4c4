"""
What a watch has begun and not ended, on disk: a process that is killed at any moment goes on where it was.

One SQLite file, so that each change is there whole or not at all. It lies in the folder of results, which is locked by
whoever writes it.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


JOURNAL = "journal.sqlite"
TABLES = """
CREATE TABLE IF NOT EXISTS photographs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL, size INTEGER NOT NULL, changed INTEGER NOT NULL,
    sha256 TEXT NOT NULL, line TEXT NOT NULL, target BLOB NOT NULL, overlay BLOB, results_at INTEGER NOT NULL,
    table_at INTEGER NOT NULL, stays INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_path ON photographs (path);
CREATE TABLE IF NOT EXISTS deliveries (
    number INTEGER PRIMARY KEY AUTOINCREMENT, place TEXT NOT NULL, body TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_due ON deliveries (place, due, number);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass
class Entry:
    """
    A photograph that is judged, and not yet where it belongs.

    Args:
        number: of this entry; it names its files in the work folder.
        path: where the photograph was found.
        size, changed: bytes, and the time of the last change in nanoseconds, of the file that was judged.
        sha256: of its content.
        line: its row as a JSON line.
        target: where the photograph goes, below the folder of results; `None` where it cannot be read, or is lost.
        overlay: where its heat map goes; `None` of what was not judged.
        results_at, table_at: how long the two tables were before the batch of this entry.
        stays: whether the photograph also stays where it was found.
    """

    number: int
    path: Path
    size: int
    changed: int
    sha256: str
    line: str
    target: Path | None
    overlay: Path | None
    results_at: int
    table_at: int
    stays: bool

    def values(self) -> tuple:
        """The columns of the table, in its order."""
        target = b"" if self.target is None else os.fsencode(self.target)  # the column takes no NULL
        overlay = None if self.overlay is None else os.fsencode(self.overlay)
        return (
            *(self.number, os.fsencode(self.path), self.size, self.changed, self.sha256, self.line),
            *(target, overlay, self.results_at, self.table_at, self.stays),
        )


@dataclass
class Delivery:
    """A result that somebody waits for: `body` is its JSON line."""

    number: int
    body: str
    attempts: int


class Journal:
    """
    The open journal of one folder of results. All methods may be called from several threads.

    Raises:
        ValueError: for a file that is no journal.
        OSError: if nothing can be written there, of every method.
    """

    def __init__(self, path: Path):
        self.path, self._lock = path, threading.RLock()
        with self._explained():
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(TABLES)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                raise OSError(
                    f"{self.path} cannot be written ({error}): make room there, and make it writable."
                ) from error
            except sqlite3.DatabaseError as error:
                raise ValueError(
                    f"{self.path} is damaged ({error}): move it away; photographs in the work folder beside it go back by hand."
                ) from error

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """All that is done inside, or nothing of it."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, question: str, *values: object) -> list[tuple]:
        with self._explained():
            return self._connection.execute(question, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._explained():
            self._connection.close()

    # Photographs.

    def next_number(self) -> int:
        """Return the number that the next entry will have; none is given twice."""
        return self._rows("SELECT ifnull(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'photographs'")[0][0]

    def begin(self, entries: Iterable[Entry]) -> None:
        """Keep judged photographs: from here on their verdicts are final."""
        with self._change() as connection:
            connection.executemany(
                f"INSERT INTO photographs VALUES ({', '.join('?' * 11)}, 0)", [each.values() for each in entries]
            )

    def update(self, entry: Entry) -> None:
        """Keep another line, target and stay of an entry."""
        with self._change() as connection:
            connection.execute("INSERT OR REPLACE INTO photographs VALUES (?,?,?,?,?,?,?,?,?,?,?,0)", entry.values())

    def unfinished(self) -> list[Entry]:
        """Return the entries that are not yet [`finish`]ed, in their order."""
        rows = self._rows("SELECT * FROM photographs WHERE NOT done ORDER BY number")
        return [
            Entry(
                *(number, Path(os.fsdecode(path)), size, changed, sha256, line),
                *(Path(os.fsdecode(each)) if each else None for each in (target, overlay)),
                *(results_at, table_at, bool(stays)),
            )
            for number, path, size, changed, sha256, line, target, overlay, results_at, table_at, stays, _ in rows
        ]

    def finish(self, entries: Iterable[Entry], places: Iterable[str]) -> None:
        """Note that photographs are where they belong, and that their results wait to be delivered to each place."""
        with self._change() as connection:
            for entry in entries:
                if entry.stays:
                    connection.execute("UPDATE photographs SET done = 1, stays = 1 WHERE number = ?", (entry.number,))
                else:
                    connection.execute("DELETE FROM photographs WHERE number = ?", (entry.number,))
                for place in places:
                    connection.execute("INSERT INTO deliveries (place, body) VALUES (?, ?)", (place, entry.line))

    def knows(self, path: Path, size: int, changed: int) -> bool:
        """Say whether this state of a file was judged, and stays where it is."""
        found = self._rows(
            "SELECT 1 FROM photographs WHERE path = ? AND size = ? AND changed = ? LIMIT 1",
            os.fsencode(path),
            size,
            changed,
        )
        return bool(found)

    # Deliveries.

    def tell(self, body: str, places: Iterable[str]) -> None:
        """Keep a message until it is delivered to each place."""
        with self._change() as connection:
            for place in places:
                connection.execute("INSERT INTO deliveries (place, body) VALUES (?, ?)", (place, body))

    def next_delivery(self, place: str) -> Delivery | None:
        """Return the delivery to a place that has been due for longest, `None` where none is due."""
        question = (
            "SELECT number, body, attempts FROM deliveries WHERE place = ? AND due <= ? ORDER BY due, number LIMIT 1"
        )
        found = self._rows(question, place, time.time())
        return Delivery(*found[0]) if found else None

    def postpone(self, delivery: Delivery, seconds: float) -> None:
        """Try a delivery again later."""
        with self._change() as connection:
            connection.execute(
                "UPDATE deliveries SET attempts = attempts + 1, due = ? WHERE number = ?",
                (time.time() + seconds, delivery.number),
            )

    def delivered(self, delivery: Delivery) -> None:
        """Forget a delivery, which has arrived."""
        with self._change() as connection:
            connection.execute("DELETE FROM deliveries WHERE number = ?", (delivery.number,))

    def waiting(self) -> dict[str, int]:
        """Count what was not delivered yet, by place."""
        return dict(self._rows("SELECT place, count(*) FROM deliveries GROUP BY place"))

    # Facts.

    def fact(self, name: str) -> str | None:
        """Return what was noted under a name."""
        found = self._rows("SELECT value FROM facts WHERE name = ?", name)
        return found[0][0] if found else None

    def note(self, name: str, value: str) -> None:
        """Note something under a name."""
        with self._change() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


__all__ = ["JOURNAL", "Delivery", "Entry", "Journal"]
