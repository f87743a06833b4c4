"""
Where a watch puts judged photographs, their heat maps and rows; each exactly once, whenever the process is killed.

A batch is written into the journal first: from there on its verdicts are final. Then its files are brought to their places
and its rows to the tables, by steps of which each may be done again, and only then the journal lets it go. No file is ever
replaced: a second photograph of a name gets a number. A photograph is moved by grabbing it with one rename and looking at
what was grabbed; a newer one goes back.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..images_anople import RESULTS
from ..pipeline_anople import Prediction
from ..saving_anople import sync
from .arrivals import Arrival
from .journal import JOURNAL, Entry, Journal
from .records import TABLE_HEADER, table_text, to_row


logger = logging.getLogger(__name__)

TABLE = "results.csv"
OVERLAYS, WORK = "overlays", "work"
FOLDERS = ("normal", "unsure", "anomalous", "error")
NAME_BYTES = 240  # file systems allow 255; some are kept for numbers and endings
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


@dataclass
class Judged:
    """
    A photograph and what was said of it.

    Args:
        arrival: the file, in the state that was judged.
        id: of its record.
        content: its bytes; `None` where it cannot be read.
        prediction: the verdict.
        regions: of its heat map; `None` without one.
        overlay: the photograph with its heat map.
        inside: the file's place below the watched folder.
    """

    arrival: Arrival
    id: str
    content: bytes | None
    prediction: Prediction
    inside: Path
    regions: list[dict] | None = None
    overlay: Image.Image | None = None


def folder_of_verdict(prediction: Prediction) -> str:
    """Name the folder of a verdict; only what is called normal without a doubt is among the normal."""
    if prediction.error is not None or prediction.label is None:
        return "error"
    if prediction.label != "normal":
        return "anomalous"
    return "unsure" if prediction.unsure else "normal"


class ResultsFolder:
    """
    An open folder of results, which the caller has locked.

    Args:
        folder: absolute; made where it is missing.
        copy: whether photographs also stay where they were found.
        places: who each result is delivered to.

    Raises:
        ValueError: for a folder with results that no watch wrote, or of a detector.
        OSError: if nothing can be written there.
    """

    def __init__(self, folder: Path, *, copy: bool, places: Sequence[str] = ()):
        if not (folder / JOURNAL).exists():
            for name in (RESULTS, TABLE, "config.json"):
                if os.path.lexists(folder / name):
                    raise ValueError(f"{folder} holds {name}, which no watch wrote: name another folder for --output.")
        self.folder, self.copy, self.places = folder, copy, tuple(places)
        for name in (*FOLDERS, OVERLAYS, WORK):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.journal = Journal(folder / JOURNAL)
        self._contents: dict[int, bytes] = {}
        self._clean_work()

    def _clean_work(self) -> None:
        """Remove what was begun before its batch was in the journal: drawings and copies, never a photograph."""
        known = {str(entry.number) for entry in self.journal.unfinished()}
        for path in (self.folder / WORK).iterdir():
            if path.stem not in known and path.suffix in (".overlay", ".part"):
                path.unlink()
            elif path.stem not in known:
                logger.warning("%s is of no photograph that the journal knows: move it to where it belongs.", path)

    # A batch.

    def begin(self, batch: Sequence[Judged]) -> None:
        """Write a batch into the journal: from here on its verdicts are final. Then [`finish`] brings it to its places."""
        number, entries, taken = self.journal.next_number(), [], set[Path]()
        ends = [path.stat().st_size if path.exists() else 0 for path in (self.folder / RESULTS, self.folder / TABLE)]
        for each in batch:
            target, overlay = None, None
            if each.content is not None:
                target = self._free_name(Path(folder_of_verdict(each.prediction)), each.inside, taken)
                taken.add(target)
            if each.overlay is not None:
                overlay = _overlay_of(target)
                each.overlay.save(self._work(number, "overlay"), format="png")
            self._contents[number] = each.content
            arrival, content = each.arrival, each.content or b""
            digest = hashlib.sha256(content).hexdigest()
            line = self._line_of(each, target, overlay)
            stays = self.copy or target is None
            state = (number, arrival.path, arrival.size, arrival.changed, digest)
            entries.append(Entry(*state, line, target, overlay, *ends, stays))
            number += 1
        self.journal.begin(entries)

    def finish(self) -> list[Entry]:
        """Bring all that was begun to its places, and return it; what an `OSError` stops is gone on with by the next call."""
        entries = self.journal.unfinished()
        if not entries:
            return []
        for entry in entries:
            self._place(entry)
        lines = [entry.line for entry in entries]
        complete(self.folder / RESULTS, entries[0].results_at, [line.encode() for line in lines])
        rows = [table_text(json.loads(line)).encode(errors="backslashreplace") for line in lines]
        header = [] if entries[0].table_at else [TABLE_HEADER.encode()]
        complete(self.folder / TABLE, entries[0].table_at, header + rows)
        self.journal.finish(entries, self.places)
        self._contents.clear()
        return entries

    def _line_of(self, each: Judged, target: Path | None, overlay: Path | None) -> str:
        path = each.arrival.path
        file = None if target is None else self.folder / target
        row = to_row(path, each.prediction, each.regions, id=each.id, file=file)
        row |= {} if overlay is None else {"overlay": str(self.folder / overlay)}
        return json.dumps(row) + "\n"  # ASCII: any name, also one that no text can have

    def _work(self, number: int, kind: str) -> Path:
        return self.folder / WORK / f"{number}.{kind}"

    def _free_name(self, folder: Path, inside: Path, taken: Collection[Path] = ()) -> Path:
        """Find a name that no file has, below the folder of results; as deep as the photograph lay where that can be."""
        name = _shortened(inside.name)
        parent = folder / inside.parent
        try:
            (self.folder / parent).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):  # a photograph has the name of a folder
            parent = folder

        def numbered(number: int) -> Path:
            return parent / (name if number == 1 else f"{Path(name).stem} ({number}){Path(name).suffix}")

        def is_free(number: int) -> bool:
            target = numbered(number)
            return target not in taken and not any(
                os.path.lexists(self.folder / each) for each in (target, _overlay_of(target))
            )

        # a camera may write one name for years: the first free number after one that has a file, in few looks
        last, free = 0, 1
        while not is_free(free):
            last, free = free, 2 * free
        while free - last > 1:
            middle = (last + free) // 2
            last, free = (last, middle) if is_free(middle) else (middle, free)
        return numbered(free)

    # One photograph.

    def _place(self, entry: Entry) -> None:
        """Bring a photograph, where there is one, and its heat map to their places."""
        if entry.target is not None:
            self._place_photograph(entry)
        drawn = self._work(entry.number, "overlay")
        if entry.overlay is not None and drawn.exists():
            (self.folder / entry.overlay).parent.mkdir(parents=True, exist_ok=True)
            put(drawn, self.folder / entry.overlay)
        if not entry.stays and entry.target is not None:
            self._remove_source(entry)

    def _place_photograph(self, entry: Entry) -> None:
        work, target = self._work(entry.number, "photograph"), self.folder / entry.target
        if _sha256(target) == entry.sha256:
            if _sha256(work) == entry.sha256:
                work.unlink()
        elif self._take(entry, work):
            while True:
                try:
                    put(work, self.folder / entry.target)
                    break
                except FileExistsError:  # somebody put a file there meanwhile
                    self._rename(entry)
        else:
            logger.warning("%s is gone since it was judged: its row is all that is left of it.", entry.path)
            self._rename(entry, lost=True)

    def _rename(self, entry: Entry, *, lost: bool = False) -> None:
        """Give an entry another name, or none where its photograph is lost, in the journal as well."""
        row = json.loads(entry.line)
        if lost:
            entry.target = None
            del row["file"]
        else:
            parent, name = Path(entry.target.parts[0]), Path(*entry.target.parts[1:])
            entry.target = self._free_name(parent, name)
            row["file"] = str(self.folder / entry.target)
        entry.line = json.dumps(row) + "\n"
        self.journal.update(entry)

    def _take(self, entry: Entry, work: Path) -> bool:
        """Bring the photograph that was judged into the work folder, moved or copied; say whether it is still there."""
        if _sha256(work) == entry.sha256:
            return True
        if os.path.lexists(work):  # grabbed just before the end, and not what was judged
            give_back(work, entry.path)
        state = Arrival(entry.path, entry.size, entry.changed)
        if not entry.stays and not entry.path.is_symlink() and Arrival.of(entry.path) == state:
            grabbed = True
            try:
                os.rename(entry.path, work)
            except OSError:  # another file system, or nothing can be taken from there
                grabbed = False
            if grabbed and _sha256(work) == entry.sha256:
                return True
            if grabbed:
                give_back(work, entry.path)
        content = self._contents.get(entry.number)
        if content is None and Arrival.of(entry.path) == state:
            content = entry.path.read_bytes()
        if content is None or hashlib.sha256(content).hexdigest() != entry.sha256:
            return False
        unfinished = self._work(entry.number, "part")
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.utime(unfinished, ns=(entry.changed, entry.changed))
        os.rename(unfinished, work)
        return True

    def _remove_source(self, entry: Entry) -> None:
        """Remove a photograph that was copied; where that cannot be done it stays, and is not judged again."""
        grabbed = entry.path.with_name(f".anople-{entry.sha256[:16]}")
        try:
            if not os.path.lexists(grabbed):  # by a process that was killed just then
                if Arrival.of(entry.path) != Arrival(entry.path, entry.size, entry.changed):
                    return  # moved, or another one by now
                if _sha256(entry.path) != entry.sha256:
                    return
                sync((self.folder / entry.target).parent)
                os.rename(entry.path, grabbed)
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("%s was copied, and cannot be removed (%s): it stays.", entry.path, error.strerror)
            entry.stays = True
            self.journal.update(entry)
            return
        if _sha256(grabbed) == entry.sha256:
            grabbed.unlink()
        else:
            give_back(grabbed, entry.path)


def _overlay_of(target: Path) -> Path:
    return Path(OVERLAYS) / target.with_name(f"{target.name}.png")


def _shortened(name: str) -> str:
    stem, ending = Path(name).stem, Path(name).suffix
    while len(os.fsencode(stem + ending)) > NAME_BYTES:
        stem = stem[:-1]
    return stem + ending


def _sha256(path: Path) -> str | None:
    """Hash the content of a file; `None` where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None


def put(source: Path, target: Path) -> None:
    """
    Give a file another name in the same file system, replacing nothing.

    Raises:
        FileExistsError: if another file has that name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        if not os.path.samefile(source, target):
            raise
    except OSError as error:
        if error.errno == errno.EXDEV:  # a folder that leads to another file system
            beside = target.with_name(f".{target.name[:40]}.part")
            shutil.copy2(source, beside)
            sync(beside)
            put(beside, target)
            sync(target.parent)
            os.unlink(source)
            return
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.rename(source, target)
        return
    os.unlink(source)


def give_back(grabbed: Path, path: Path) -> None:
    """Put a photograph that was grabbed by mistake back under its name, or with a number beside a newer one."""
    number = 1
    while True:
        name = path if number == 1 else path.with_name(f"{path.stem} ({number}){path.suffix}")
        try:
            put(grabbed, name)
            return
        except FileExistsError:
            number += 1


def complete(path: Path, start: int, lines: Sequence[bytes]) -> None:
    """
    See to it that lines stand in a file once each, from a place on, of which some may stand there, the last one torn.

    Args:
        start: where the first one begins; what is before stays. Lines that somebody has moved are looked for by their text.
    """
    wanted = b"".join(lines)
    with open(path, "ab+") as file:
        file.seek(0)
        is_shorter = file.seek(0, os.SEEK_END) < start
        file.seek(0 if is_shorter else start)
        found = file.read()
        if not is_shorter and wanted.startswith(found):
            file.write(wanted[len(found) :])
        elif is_shorter or not found.startswith(wanted):  # somebody has changed the file
            file.write(b"\n" if found and not found.endswith(b"\n") else b"")
            file.write(b"".join(line for line in lines if line not in found))
        file.flush()
        os.fsync(file.fileno())


__all__ = ["FOLDERS", "TABLE", "Judged", "ResultsFolder", "complete", "folder_of_verdict", "give_back", "put"]
