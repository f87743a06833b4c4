"""The thread that owns a detector and judges what many requests ask, together; and what it tells of itself."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..pipeline_anople import Prediction, predict
from ..processing_anople import AnoPLeProcessor
from ..runtime import one_line
from ..scoring_anople import Detector


logger = logging.getLogger(__name__)

BATCH_WAIT = 0.005  # seconds that the first photograph of a batch waits for others
READY = "The server does not take photographs any more: ask another, or start it again."


# --- Figures for Prometheus ---


class Figures:
    """What `/metrics` tells, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        named = {"registry": self.registry}
        self.photographs = Counter(
            "anople_photographs", "Photographs answered, by product and verdict.", ["product", "verdict"], **named
        )
        self.refused = Counter("anople_refused_requests", "Requests not taken, by HTTP status.", ["status"], **named)
        self.requests = Histogram(
            "anople_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["method", "path", "status"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            **named,
        )
        self.batches = Histogram(
            "anople_batch_photographs",
            "Photographs that were judged together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            **named,
        )
        self.judging = Counter("anople_judging_seconds", "Time that the detector has worked.", **named)
        self.waiting = Gauge("anople_waiting_photographs", "Photographs that wait for the detector.", **named)

    def count(self, row: dict) -> None:
        """Count an answered photograph."""
        verdict = "unsure" if row.get("unsure") else row["label"] or "no threshold"
        verdict = "error" if row.get("error") else verdict
        self.photographs.labels(row["class"] or "none", verdict).inc()


# --- The thread that owns the detector ---


class QueueFull(Exception):
    """
    More waits than may wait.

    Args:
        seconds: after which there should be room.
    """

    def __init__(self, seconds: int):
        super().__init__(f"Too many photographs wait already: try again in {seconds} s.")
        self.seconds = seconds


class Closed(Exception):
    """The server is being stopped."""


@dataclass
class Asked:
    """A photograph that waits: its name, its bytes, the product where one was named, and the answer that is to come."""

    name: str
    content: bytes
    product: str | None
    answer: Future = field(default_factory=Future)


class Judge:
    """
    One thread that judges what several requests ask, together.

    Args:
        detector, processor: as `load_judge` returns them.
        batch_size: photographs judged at once.
        limit: photographs that may wait.
    """

    def __init__(
        self, detector: Detector, processor: AnoPLeProcessor, figures: Figures, *, batch_size: int = 8, limit: int = 64
    ):
        self.detector, self.processor = detector, processor
        self.figures, self.batch_size, self.limit = figures, batch_size, limit
        self._waiting: deque[Asked] = deque()
        self._changed, self._closing = threading.Condition(), False
        self._seconds_each = 0.1  # a first guess, until photographs were judged
        figures.waiting.set_function(lambda: len(self._waiting))
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether photographs are taken and answered."""
        return self._thread.is_alive() and not self._closing

    def replace(self, detector: Detector, processor: AnoPLeProcessor) -> None:
        """Judge with another state of the detector from the next batch on."""
        with self._changed:
            self.detector, self.processor = detector, processor

    def seconds_to_wait(self) -> int:
        """Say after how long what waits now should be answered."""
        return max(1, math.ceil(len(self._waiting) * self._seconds_each))

    def submit(self, photographs: Sequence[tuple[str, bytes]], product: str | None) -> list[Future]:
        """
        Let photographs wait for their turn, all or none.

        Args:
            photographs: name and bytes of each.
            product: of all of them; `None`: predicted.

        Returns:
            A future with the [`Prediction`] of each; one that failed has its `error` set.

        Raises:
            QueueFull: if there is no room for all of them.
            Closed: after [`close`] was called.
        """
        asked = [Asked(name, content, product) for name, content in photographs]
        with self._changed:
            if self._closing:
                raise Closed(READY)
            if len(self._waiting) + len(asked) > self.limit:
                raise QueueFull(self.seconds_to_wait())
            self._waiting.extend(asked)
            self._changed.notify()
        return [each.answer for each in asked]

    def close(self) -> None:
        """Take nothing new, answer what waits, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            wanted = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
            if not wanted:
                continue
            start = time.perf_counter()
            for asked, prediction in zip(wanted, self._judge(wanted), strict=True):
                asked.answer.set_result(prediction)
            seconds = time.perf_counter() - start
            self._seconds_each += 0.2 * (seconds / len(wanted) - self._seconds_each)
            self.figures.judging.inc(seconds)
            self.figures.batches.observe(len(wanted))

    def _next_batch(self) -> list[Asked]:
        """Wait for photographs, and a moment longer for more of them; empty when there are none and none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._changed.wait_for(lambda: len(self._waiting) >= self.batch_size or self._closing, BATCH_WAIT)
            batch: list[Asked] = []
            left: deque[Asked] = deque()
            for asked in self._waiting:  # in one batch either all products are named, or none
                alike = not batch or (asked.product is None) == (batch[0].product is None)
                (batch if alike and len(batch) < self.batch_size else left).append(asked)
            self._waiting = left
        return batch

    def _judge(self, batch: list[Asked]) -> list[Prediction]:
        """Judge photographs together; where that fails, each alone, so that one does not take the others with it."""
        sources = [{"path": asked.name, "bytes": asked.content} for asked in batch]
        names = [asked.product for asked in batch] if batch[0].product is not None else None
        with self._changed:
            detector, processor = self.detector, self.processor
        try:
            return list(predict(detector, processor, sources, class_names=names, batch_size=len(batch)))
        except Exception as error:  # of whatever kind: the thread goes on, and the photograph is an error
            if len(batch) > 1:
                return [self._judge([asked])[0] for asked in batch]
            logger.warning("%s could not be judged: %s", batch[0].name, one_line(error))
            return [Prediction(sources[0], error=f"{batch[0].name}: could not be judged ({one_line(error)}).")]


__all__ = ["Asked", "Closed", "Figures", "Judge", "QueueFull"]
