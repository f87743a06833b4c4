"""
What people say of results: a good part that was set aside becomes one more good photograph, a bad part is kept in a list.

The list lies beside the results, and so does the detector as it was before, until it is put back or many others were added.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock

from ..calibration_anople import ProductThreshold, describe_guarantee, describe_lost_costs
from ..enrollment_anople import digest_of, known_digests
from ..images_anople import RESULTS, load_image
from ..pipeline_anople import AnomalyDetectionPipeline
from ..runtime.loading import load_config, load_detector
from ..saving_anople import ID, is_trace, locked, replacing, state_folder, sync
from .records import Rows, append_lines, now, record_id


FEEDBACK, BEFORE, LOCK = "feedback.jsonl", "before_feedback", ".feedback.lock"
KEPT = 5  # detectors, of as many feedbacks that can be undone
Verdict = Literal["good", "bad", "undo"]


@dataclass(frozen=True)
class Feedback:
    """
    One line of the list.

    Args:
        time: when it was said.
        id: of the record.
        verdict: "good", "bad" or "undo".
        path, file: of the photograph, as in its row.
        class_name: the product.
        label: what it was called.
        added: whether the detector learned from it, or, of "undo", was put back.
        before, after: what names the detector's state then; `None` where it did not change.
        said: what to tell the person.
    """

    time: str
    id: str
    verdict: Verdict
    path: str
    file: str | None
    class_name: str | None
    label: str | None
    added: bool = False
    before: str | None = None
    after: str | None = None
    said: str = ""


def give_feedback(checkpoint: str, id: str, verdict: Verdict, *, results: str | os.PathLike = ".") -> Feedback:
    """
    Say of one result whether the part is good or bad, or take that back.

    "good" of a part that was set aside, or was `unsure`, lets the detector learn its photograph by `add_normals`, in place and
    whole or not at all, and logged there. All else changes no detector. "undo" of a "good" that was learned puts the detector
    back as it was before, as long as nothing else has changed it since.

    Args:
        checkpoint: folder of the detector.
        id: of the record, 16 hexadecimal digits.
        results: folder that `anople watch`, `serve` or `predict` wrote.

    Returns:
        The line that was added to `feedback.jsonl` there.

    Raises:
        ValueError: for an unknown id, a photograph that is gone or has changed, a product that the detector does not know, and
            for what cannot be undone.
        OSError: if the detector cannot be written, which is as it was then, or the list, while the detector may have changed
            already: with room again, say the same once more.
    """
    folder = Path(os.path.abspath(results))
    if verdict not in ("good", "bad", "undo"):
        raise ValueError(f"{verdict!r} says nothing of a part: give good, bad or undo.")
    row = find_row(folder, id)
    with FileLock(folder / LOCK):
        last = last_feedback(folder, id)
        learned = last is not None and last.verdict == "good" and last.added
        if verdict == "undo":
            given = _undo(checkpoint, folder, row, last)
        elif learned:
            if verdict == "bad":
                raise ValueError(f"{id} was learned as good: undo that first (anople feedback DETECTOR {id} undo).")
            return last
        elif verdict == "good" and (row["label"] != "normal" or row.get("unsure")):
            given = _learn(checkpoint, folder, row)
        else:
            said = "It is in the list." if verdict == "bad" else "It was called normal already: it is in the list."
            given = _line(row, verdict, said=said)
        _append(folder / FEEDBACK, given)
    return given


def find_row(folder: Path, id: str) -> dict:
    """Find the newest row of an id in a folder of results; a `ValueError` without one."""
    found = None
    for row in Rows(folder):
        found = row if row.get("id") == id else found
    if found is None:
        raise ValueError(
            f"{folder} holds no result {id!r}: give an id of its {RESULTS}, or --results for another folder."
        )
    return found


def read_feedback(folder: Path) -> Iterator[Feedback]:
    """Read the list of a folder of results; torn lines, and those that nobody can have said, are passed over."""
    path = folder / FEEDBACK
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            given = Feedback(**json.loads(line))
            sound = isinstance(given.id, str) and isinstance(given.label, (str, type(None)))
            if sound and given.verdict in get_args(Verdict):
                yield given


def last_feedback(folder: Path, id: str) -> Feedback | None:
    """Return what was said last of a result."""
    return next((each for each in reversed([*read_feedback(folder)]) if each.id == id), None)


def answers_in(folder: Path) -> dict[str, Feedback]:
    """Return what is said of results by their id: the last "good" or "bad" of each, where that was not taken back."""
    last = {each.id: each for each in read_feedback(folder)}
    return {id: each for id, each in last.items() if each.verdict != "undo"}


def _line(row: dict, verdict: Verdict, **more: object) -> Feedback:
    return Feedback(now(), row["id"], verdict, row["path"], row.get("file"), row["class"], row["label"], **more)


def _append(path: Path, given: Feedback) -> None:
    """Add a line, and bring it to the disk."""
    with append_lines(path) as file:
        file.write(json.dumps(asdict(given)) + "\n")
        os.fsync(file.fileno())


# --- The detector learns, and is put back ---


def _photograph_of(row: dict, folder: Path) -> Path:
    """Find the photograph of a row, which must be the one that was judged."""
    if row["label"] is None:
        raise ValueError(f"{row['path']} was not judged ({row.get('error')}): there is nothing to learn from it.")
    if row["class"] is None:
        raise ValueError(
            f"{row['path']} was called {row['label']!r}, so nobody knows of what: `anople add_normals DETECTOR NAME PHOTOGRAPH`."
        )
    path = Path(row.get("file") or row["path"])
    if row.get("file") and not path.exists():  # the folder of results was moved
        path = next(
            (place for place in (folder / "/".join(path.parts[-n:]) for n in (2, 3, 4)) if place.exists()), path
        )
    if not path.is_file():
        raise ValueError(f"{path} is gone: give the photograph to `anople add_normals` from where it is now.")
    ids = (
        record_id(row["path"], lies_at=path),
        record_id(row["path"], content=path.read_bytes()),
    )  # the latter by serve
    if row["id"] not in ids:
        raise ValueError(f"{path} is not the photograph that was judged, it has changed since: judge it anew.")
    return path


def _learn(checkpoint: str, folder: Path, row: dict) -> Feedback:
    """Add the photograph of a row to the detector's good ones, keeping the detector as it is now beside the results."""
    path, place = _photograph_of(row, folder), Path(checkpoint)
    if not place.is_dir():
        raise ValueError(f"{checkpoint} is no folder here, so it cannot learn: give the folder of a detector.")
    with locked(place):
        config = load_config(checkpoint)
        _require_same_name(config.history, row)
        model, processor = load_detector(checkpoint)
        digest = digest_of(load_image(path, white_value=processor.white_value))
        if digest in known_digests(config.history, row["class"]):
            kept, said = folder / BEFORE / row["id"], "It is known already."
            old = load_config(str(kept)) if kept.is_dir() else None
            # learned by a program that was killed before it wrote the list, and nothing was done to the detector since
            if old is not None and config.history[:-1] == old.history:
                return _line(row, "good", added=True, before=getattr(old, ID), after=_state_of(place), said=said)
            return _line(row, "good", said=said)
        detector = AnomalyDetectionPipeline(model, processor=processor, device=model.device)
        line = model.products.named(row["class"]).record.threshold
        threshold: ProductThreshold = detector.add_normals(row["class"], [path])
        before = _state_of(place)
        _keep_before(place, folder / BEFORE / row["id"])
        detector.save_pretrained(place, adapter=bool(config.adapter_clip_sha256))
        after = _state_of(place)
    said = f"{row['class']} has learned it: threshold at raw score {threshold.image_threshold:.4f}. {describe_guarantee(threshold)}"
    said = f"{said} {describe_lost_costs(row['class'], line, threshold)}".rstrip()
    return _line(row, "good", added=True, before=before, after=after, said=said)


def _require_same_name(history: Iterable[dict], row: dict) -> None:
    """Refuse a row that names a product by what it was called, or by what another one was, before a product was renamed."""
    for entry in history:
        names = entry["class_name"], entry.get("former_name")
        if entry["action"] == "rename" and row["class"] in names and _time(entry["date"]) >= _time(row["time"]):
            raise ValueError(
                f"{row['path']} was judged as {row['class']!r} before {names[1]!r} was renamed to {names[0]!r}: give the "
                "photograph to `anople add_normals DETECTOR NAME PHOTOGRAPH` under the name that its product has now."
            )


def _time(written: str) -> datetime:
    return datetime.fromisoformat(written)


def _undo(checkpoint: str, folder: Path, row: dict, last: Feedback | None) -> Feedback:
    """Take back what was said last of a result."""
    if last is None or last.verdict == "undo":
        raise ValueError(f"Nothing was said of {row['id']}, so there is nothing to undo.")
    if not last.added:
        return _line(row, "undo", said=f"{last.verdict!r} is taken back.")
    kept, place = folder / BEFORE / row["id"], Path(checkpoint)
    with locked(place):
        state = _state_of(place)
        if last.before is None or state != last.before:  # else by a program that was killed before it wrote the list
            if not (kept / "config.json").exists():
                raise ValueError(
                    f"The detector before {row['id']} is no longer kept (the last {KEPT} are): it cannot be undone."
                )
            if state != last.after:
                raise ValueError(
                    f"{checkpoint} was changed after it learned {row['id']}: undo what came later first, `anople products` has the log."
                )
            with replacing(place) as unfinished:
                for path in _files_of(kept):
                    target = unfinished / path.relative_to(kept)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
        shutil.rmtree(kept, ignore_errors=True)
    return _line(
        row, "undo", added=True, before=last.after, after=last.before, said="The detector is as it was before that."
    )


def _state_of(place: Path) -> str | None:
    return json.loads((state_folder(place) / "config.json").read_text(encoding="utf-8")).get(ID)


def _keep_before(place: Path, kept: Path) -> None:
    """Keep a detector as it is; of those that are kept the oldest go."""
    unfinished = kept.with_name(f".{kept.name}.part")
    for each in (unfinished, kept):
        shutil.rmtree(each, ignore_errors=True)
    state = state_folder(place)
    for path in _files_of(state):
        target = unfinished / path.relative_to(state)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        sync(target)
    os.rename(unfinished, kept)
    sync(kept.parent)
    others = sorted((each for each in kept.parent.iterdir() if each != kept), key=lambda each: each.stat().st_mtime)
    for each in others[: max(0, len(others) + 1 - KEPT)]:
        shutil.rmtree(each)


def _files_of(folder: Path) -> list[Path]:
    """List the files of a detector's state."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(map(is_trace, path.relative_to(folder).parts))
    ]


__all__ = ["FEEDBACK", "Feedback", "answers_in", "find_row", "give_feedback", "last_feedback", "read_feedback"]
