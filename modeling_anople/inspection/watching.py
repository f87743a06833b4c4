"""`anople watch`: every photograph that arrives in a folder is judged once, put away and told, by a process that may be killed."""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..export.graph_detector import ExportedDetector
from ..images_anople import load_image
from ..modeling_anople import AnoPLeModel
from ..pipeline_anople import Prediction, predict
from ..processing_anople import AnoPLeProcessor
from ..product_store_anople import ProductRecord
from ..runtime import one_line, printable
from ..runtime.loading import load_judge
from ..saving_anople import locked
from .arrivals import Arrival, Arrivals, wakes
from .cameras import Camera, is_camera
from .delivery import Courier, Receiver
from .drift import INTERVAL, DriftWatch, changed_at, follow, rows_since
from .records import Rows, record_id
from .report import describe_row, draw_verdict
from .results_folder import Judged, ResultsFolder


logger = logging.getLogger(__name__)

LONGEST_PAUSE = 60
LAST_SECONDS = 5  # for deliveries, when all else has ended
STATE_FILES = ("config.json", "thresholds.json", "graph.json")
FRAMES = "frames"  # of a camera, until they are judged
WARNED = "drift warned of"


@dataclass
class Watch:
    """
    What is watched, and how.

    Args:
        checkpoint: folder or Hub id of a detector, or folder of an exported graph.
        folder: where photographs arrive; or number or address of a camera, whose frames are put into the folder `frames` of the
            results.
        output: folder of the results.
        class_name: product of all; `None`: predicted.
        copy: whether photographs also stay where they arrive.
        poll: whether to look every `settle` seconds instead of waiting for events.
        settle: seconds for which a file must not change before it counts as whole.
        batch_size: photographs judged at once.
        every: seconds between two frames of a camera.
        min_area: pixels that a region must have to be listed.
        interval: photographs between two false warnings of a drift, on average and at least.
        device, dtype, revision: as of `load_judge`.
        receivers: who is told each result.
        stop: ends the watch after the batch that it is at.
    """

    checkpoint: str
    folder: str | Path
    output: Path
    class_name: str | None = None
    copy: bool = False
    poll: bool = False
    settle: float = 1.0
    batch_size: int = 8
    every: float = 1.0
    min_area: int = 1
    interval: int = INTERVAL
    device: str = "auto"
    dtype: str = "float32"
    revision: str | None = None
    receivers: Sequence[Receiver] = ()
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self):
        self.output = Path(os.path.abspath(self.output))
        self.camera: Camera | None = None
        if is_camera(str(self.folder)) and not os.path.exists(self.folder):
            place, self.folder = str(self.folder), self.output / FRAMES
            if self.copy:
                raise ValueError("Frames of a camera are moved: leave out --copy.")
            self.camera = Camera(place, self.folder, every=self.every, stop=self.stop)
            return
        self.folder = Path(os.path.abspath(self.folder))
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder: name the one in which photographs arrive.")
        if Path(os.path.realpath(self.folder)).is_relative_to(os.path.realpath(self.output)):
            raise ValueError(
                f"--output {self.output} holds the watched folder: name a folder inside of that, or elsewhere."
            )
        if not self.copy and not os.access(self.folder, os.W_OK):
            raise ValueError(f"nothing can be moved out of {self.folder}, which you may not write: add --copy.")

    def run(self) -> None:
        """
        Watch until `stop` is set, which SIGTERM and SIGINT do.

        Raises:
            ValueError: for what cannot be watched, judged or written, before anything is moved; for another watch there.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.output, wait=0))
            if self.camera is not None:
                self.folder.mkdir(exist_ok=True)
            if not self.copy:
                stack.enter_context(locked(self.folder, wait=0))  # two would judge one photograph each
            stack.enter_context(_stopping(self.stop))
            inspector = _Inspector(self)
            if self.camera is not None:
                self.camera.start()
            self._run(inspector)

    def _run(self, inspector: "_Inspector") -> None:
        failures, failed = 0, ""
        try:
            for change in wakes(self.folder, seconds=max(0.05, self.settle / 2), poll=self.poll, stop=self.stop):
                try:
                    inspector.step(None if failures else change)
                    if failures:
                        logger.warning("It goes on.")
                    failures, failed = 0, ""
                except OSError as error:  # a full disk, a share that is gone: all waits where it is
                    if str(error) != failed:
                        logger.error("%s: waiting until that is mended.", error)
                    failures, failed = failures + 1, str(error)
                    self.stop.wait(min(LONGEST_PAUSE, 2.0 ** min(failures, 10) / 2))
                if self.stop.is_set():
                    return
        finally:
            inspector.end()


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the watch after its batch; in another thread than the first, others do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.signal(kind, lambda *_: stop.set()) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class _Judge:
    """The detector of a watch, loaded anew when its folder has changed."""

    def __init__(self, watch: Watch):
        self._watch = watch
        # the state that could not be loaded, how often, and when it is tried again
        self._failed, self._failures, self._again = None, 0, 0.0
        self._state = self._look()
        self.model, self.processor = self._load()

    def _look(self) -> tuple:
        found = []
        for name in STATE_FILES:
            with contextlib.suppress(OSError):
                status = os.stat(Path(self._watch.checkpoint) / name)
                found.append((name, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def _load(self) -> tuple[AnoPLeModel | ExportedDetector, AnoPLeProcessor]:
        watch = self._watch
        model, processor = load_judge(watch.checkpoint, watch.revision, watch.device, watch.dtype)
        known = {record.name: record for record in map(ProductRecord.from_dict, model.config.products)}
        if watch.class_name is not None:
            processor.class_id(watch.class_name)
        used = [watch.class_name] if watch.class_name in known else list(known)
        if bare := [name for name in used if known[name].threshold is None]:
            raise ValueError(
                f"{bare[0]} has no line, so nothing of it can be called normal: `anople calibrate` it first."
            )
        return model, processor

    def has_changed(self) -> bool:
        """
        Load a detector that was changed. One that cannot be loaded is tried again with longer and longer pauses, and the one
        before judges meanwhile.
        """
        state = self._look()
        if state == self._state or (state == self._failed and time.monotonic() < self._again):
            return False
        try:
            self.model, self.processor = self._load()
        except Exception as error:  # of whatever kind: there is one that judges
            self._failures = self._failures + 1 if state == self._failed else 1
            before, pause = (
                min(LONGEST_PAUSE, 2.0 ** min(count, 10) / 2) for count in (self._failures - 1, self._failures)
            )
            if pause > before:  # not each time, once it is the longest
                logger.error(
                    "The detector was changed and cannot be loaded; the one before judges on. It is tried again in %g s. %s",
                    *(pause, one_line(error)),
                )
            self._failed, self._again = state, time.monotonic() + pause
            return False
        self._state, self._failed = state, None
        logger.info("%s was changed, and is loaded anew.", self._watch.checkpoint)
        return True


class _Inspector:
    """The work of a watch, step by step."""

    def __init__(self, watch: Watch):
        self._watch = watch
        self._judge = _Judge(watch)
        self._results = ResultsFolder(watch.output, copy=watch.copy, places=[each.name for each in watch.receivers])
        journal = self._results.journal
        for name, count in journal.waiting().items():
            if name not in self._results.places:
                logger.warning("%d results wait for the %s: start with --%s again to deliver them.", count, name, name)
        self._arrivals = Arrivals(
            watch.folder,
            settle=watch.settle,
            is_known=lambda each: journal.knows(each.path, each.size, each.changed),
            passed_over=(watch.output,),
        )
        self._couriers = [Courier(journal, each) for each in watch.receivers]
        self._results.finish()
        self._drifts = self._follow()
        for courier in self._couriers:
            courier.start()
        logger.info("Watching %s; results go to %s.", watch.folder, watch.output)

    def step(self, change: set[Path] | None) -> None:
        """Look at what has changed, `None` for all, and judge what is whole."""
        self._finish()
        if self._judge.has_changed():
            self._drifts = self._follow()
        if change is None:
            self._arrivals.scan()
        for path in change or ():
            self._arrivals.note(path)
        ready, size = self._arrivals.ready(), self._watch.batch_size
        for start in range(0, len(ready), size):
            self._inspect(ready[start : start + size])
            if self._watch.stop.is_set():
                return

    def end(self) -> None:
        """Deliver what can be delivered at once; the rest waits in the journal."""
        for courier in self._couriers:
            courier.end(LAST_SECONDS)

    def _inspect(self, batch: Sequence[Arrival]) -> None:
        read = [found for found in map(_read, batch) if found is not None]
        if any(each.error for each in read):
            os.scandir(self._watch.folder).close()  # where all of the folder is gone, its photographs have no errors
        described = [
            self._describe(each, Prediction(str(each.arrival.path), each.error)) for each in read if each.error
        ]
        if whole := [each for each in read if each.error is None]:
            described += self._judge_together(whole)
        # one with an error gets more time: perhaps its writer only pauses
        judged = [
            each for each in described if each.prediction.error is None or not self._arrivals.wait_longer(each.arrival)
        ]
        if not judged:
            return
        self._results.begin(judged)
        for each in judged:
            self._arrivals.judged(each.arrival)
        self._finish()

    def _finish(self) -> None:
        """Bring what is judged to its places, and tell what follows from it."""
        entries = self._results.finish()
        for entry in entries:
            if not entry.stays:
                self._arrivals.forget(entry.path)
        rows = [json.loads(entry.line) for entry in entries]
        if sys.stderr.isatty():  # somebody looks
            for row in rows:
                logger.info("%s", printable(describe_row(row, self._judge.model.config.threshold)))
        self._look_for_drift(rows)
        if entries:
            for courier in self._couriers:
                courier.wake()

    def _judge_together(self, batch: Sequence["_Read"]) -> list[Judged]:
        """Judge and describe photographs; where that fails, each alone, so that one does not take the others with it."""
        model, processor, name = self._judge.model, self._judge.processor, self._watch.class_name
        try:
            sources = [each.source for each in batch]
            predictions = predict(model, processor, sources, class_names=name, batch_size=self._watch.batch_size)
            return [self._describe(each, prediction) for each, prediction in zip(batch, predictions, strict=True)]
        except Exception as error:  # of whatever kind: the watch goes on, and the photograph is an error
            if len(batch) > 1:
                return [self._judge_together([each])[0] for each in batch]
            path = batch[0].arrival.path
            logger.warning("%s could not be judged: %s", path, one_line(error))
            failed = Prediction(str(path), f"{path}: could not be judged ({one_line(error)}).")
            return [self._describe(batch[0], failed)]

    def _describe(self, read: "_Read", prediction: Prediction) -> Judged:
        given = (read.arrival, read.id, read.content, prediction, read.arrival.path.relative_to(self._watch.folder))
        if prediction.error is not None:
            return Judged(*given)
        full = prediction.full_size_map()
        photograph = load_image(read.source, white_value=self._judge.processor.white_value)
        regions = prediction.find_regions(full, min_area=self._watch.min_area)
        return Judged(
            *given, regions, draw_verdict(photograph, full, prediction.as_row(regions), prediction.threshold)
        )

    # Drift.

    def _follow(self) -> dict[str, DriftWatch]:
        """Follow the products that are judged, from what the results say already."""
        config, interval = self._judge.model.config, self._watch.interval
        names = [self._watch.class_name] if self._watch.class_name in config.class_names else config.class_names
        drifts = {name: follow(config, name, interval=interval) for name in names}
        with contextlib.suppress(ValueError):  # there are none yet
            moments = {name: changed_at(config, name) for name in names}
            for row in Rows(self._watch.output):
                if (name := row.get("class")) in drifts:
                    for each in rows_since([row], name, moments[name]):
                        drifts[name].feed(each)
        return drifts

    def _look_for_drift(self, rows: Sequence[dict]) -> None:
        """Warn of each product once, until it is changed."""
        journal = self._results.journal
        for row in rows:
            if (name := row["class"]) not in self._drifts:
                continue
            has_changed, state = self._drifts[name].feed(row), str(changed_at(self._judge.model.config, name))
            if not has_changed or journal.fact(f"{WARNED} {name}") == state:
                continue
            advice = self._drifts[name].finding().advice()
            logger.warning("%s", advice)
            journal.note(f"{WARNED} {name}", state)
            body = json.dumps({"warning": "drift", "class": name, "time": row["time"], "advice": advice})
            journal.tell(body + "\n", self._results.places)


@dataclass
class _Read:
    """A photograph with the id of its record, and its bytes or what is said where they cannot be had."""

    arrival: Arrival
    id: str
    content: bytes | None = None
    error: str | None = None

    @property
    def source(self) -> dict[str, str | bytes | None]:
        return {"path": str(self.arrival.path), "bytes": self.content}


def _read(arrival: Arrival) -> _Read | None:
    """Read a photograph; `None` where it is gone, or has changed meanwhile."""
    read = _Read(arrival, record_id(arrival.path))
    try:
        read.content = arrival.path.read_bytes()
    except FileNotFoundError:
        return None
    except PermissionError:
        read.error = f"{arrival.path}: may not be read: let it be read, and save it anew."
    except (OSError, MemoryError) as error:
        read.error = f"{arrival.path}: cannot be read ({one_line(error)}): look at its disk, and save it anew."
    return read if Arrival.of(arrival.path) == arrival else None


__all__ = ["Watch"]
