"""What a fit does when it is told to stop, and how long it says that it will take."""

import os
import shlex
import signal
import threading
import time
from types import FrameType
from typing import Self

import torch

from ..data.drawn_products import DEFECTS
from ..modeling_anople import AnoPLeModel
from ..runtime import YES_OR_NO, Stopped
from ..tiling_anople import ROTATION_COUNTS
from .finishing import MEASURED_IMAGES


# --- Ctrl-C and SIGTERM: the step at hand is ended and saved; told again, all ends at once ---

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0  # in which a launcher passes on what the terminal has sent to each of its processes already


class StopRequest:
    """
    Take SIGINT and SIGTERM while a fit runs, in the main thread; elsewhere nothing is changed.

    Workers that are forked meanwhile pay no heed to SIGINT, which a terminal sends to them too, nor to a SIGTERM that is
    sent to all processes, where [`heed_the_fit_alone`] begins them.

    Attributes:
        asked: whether the loop is to end after the step at hand.
        in_loop: whether there is a loop that looks at `asked`; where there is none, the first signal ends all at once.
        saved: steps that are on the disk, `None` while there is nothing of this fit to go on with.
    """

    def __init__(self, max_steps: int):
        self.max_steps, self.saved, self.in_loop, self.asked = max_steps, None, False, False
        self._number, self._since = signal.SIGINT, 0.0

    def __enter__(self) -> Self:
        here, self._owner = threading.current_thread() is threading.main_thread(), os.getpid()
        self._before = {each: signal.signal(each, self._ask) for each in SIGNALS} if here else {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end(self) -> Stopped:
        """Return what ends the program, and says what is kept."""
        if self.saved is None:
            return Stopped("before its first step", number=self._number)
        return Stopped(f"with {self.saved} of {self.max_steps} steps saved", number=self._number, can_resume=True)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a worker of the data loader that only begins: the fit ends it
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        if several and self.asked and time.monotonic() - self._since < ECHO_SECONDS:
            return
        again, self._number, self._since = self.asked, number, time.monotonic()
        if again or not self.in_loop:
            raise self.end()
        self.asked = True
        if os.environ.get("RANK", "0") == "0":  # no logger: its lock may be held by what this interrupts
            os.write(2, b"\nStopping after this step, which is saved; once more ends at once.\n")


def heed_the_fit_alone(worker: int, *, fit: int) -> None:
    """
    Let a worker of the data loader end by SIGTERM only where the fit, the process of this id, sends that.

    systemd and `docker stop` may send it to all processes at once. A worker that ended by it would take the fit down with an
    error before the step at hand is saved.
    """
    if not hasattr(signal, "sigwaitinfo"):  # on macOS nobody can say who sent it
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != fit:
            pass
        os._exit(0)  # as torch has it: with another code the fit would take it for a failure

    threading.Thread(target=wait, daemon=True).start()


def resume_command(arguments: list[str]) -> str:
    """Write the command that goes on with a fit: the same arguments with --resume and without --overwrite."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return "the same accelerate launch, with --resume"
    kept, words = [], arguments[1:] if arguments[:1] == ["--data_root"] else list(arguments)
    while words:
        word = words.pop(0)
        if word.partition("=")[0] not in ("--resume", "--overwrite"):
            kept.append(word)
        elif "=" not in word and words and words[0].lower() in YES_OR_NO:
            words.pop(0)
    return shlex.join(["anople", "fit", *kept, "--resume"])


# --- How long it will take, by its first steps ---

TIMED_STEPS = 4  # after the first one, which is slower than the others
LONG = 60  # seconds of a whole fit, below which nothing is said
TRIAL_STEPS = 80


class Stopwatch:
    """Times the first steps of a fit, of which it takes the mean."""

    def __init__(self, first: int):
        self.first, self._begin = first, None

    def seconds_per_step(self, step: int) -> float | None:
        """Return the figure once, after the last of the timed steps; to be called after each."""
        if step == self.first + 1:
            self._begin = time.monotonic()
        if step != self.first + 1 + TIMED_STEPS or self._begin is None:
            return None
        return (time.monotonic() - self._begin) / TIMED_STEPS


@torch.no_grad()
def seconds_to_finish(model: AnoPLeModel, images: int, monitor_images: int) -> float:
    """
    Reckon how long memory and lines will take: looks at a photograph that they need, times one that is timed now.

    Args:
        images: good photographs of all products together; each is taken for a single tile.
        monitor_images: on which the decoder is checked.
    """
    pixels = torch.zeros(4, 3, model.config.input_size, model.config.input_size)
    pixels = pixels.to(model.device, model.dtype)
    begin = time.monotonic()
    model.memory_features(pixels, model.encode_image(pixels)).cpu()
    look = (time.monotonic() - begin) / len(pixels)
    turned, scored = ROTATION_COUNTS[model.config.memory_rotations], 1 + 4  # a photograph and its jittered copies
    spoiled = 1 + len(DEFECTS) if "weighted" in (model.config.map_fusion, model.config.image_fusion) else 0
    return look * (images * (turned + scored) + min(images, MEASURED_IMAGES) * spoiled + monitor_images)


def describe_duration(left: int, per_step: float, finish: float) -> str:
    """
    Say how long a fit will take; empty where that is no longer than a minute.

    Args:
        left: steps to do.
        per_step, finish: seconds of a step, and of what comes after the last one.
    """
    if left * per_step + finish <= LONG:
        return ""
    steps = "1 step" if left == 1 else f"{left} steps"
    said = f"About {minutes(left * per_step)} for {steps}, and {minutes(finish)} for memory and lines after them."
    if left > 2 * TRIAL_STEPS:
        said += f" To try things, --max_steps {TRIAL_STEPS} takes about {minutes(TRIAL_STEPS * per_step + finish)}."
    return said


def minutes(seconds: float) -> str:
    """Say a duration as a person would, to two digits."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds" if seconds >= 1.5 else "1 second"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 10 * 3600 else f"{round(seconds / 3600)} hours"


__all__ = [
    "StopRequest",
    "Stopwatch",
    "describe_duration",
    "heed_the_fit_alone",
    "minutes",
    "resume_command",
    "seconds_to_finish",
]
