"""What a fit says of its time, and with which command it goes on; that it goes on exactly is in test_checkpointing.py."""

import logging
import multiprocessing
import os
import signal
import time
from functools import partial

import pytest
from accelerate import Accelerator
from torch.utils.data import DataLoader

from modeling_anople.training import progress
from modeling_anople.training.__main__ import _is_asked
from modeling_anople.training.progress import (
    StopRequest,
    describe_duration,
    heed_the_fit_alone,
    minutes,
    resume_command,
)

from . import fitting
from .fitting import write_products


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["--data_root", "my data", "--shots", "2"], "anople fit 'my data' --shots 2 --resume"),
        (["data", "--overwrite", "--seed", "1"], "anople fit data --seed 1 --resume"),
        (["data", "--overwrite", "yes", "--resume", "false"], "anople fit data --resume"),
        (["data", "--overwrite=true", "--resume"], "anople fit data --resume"),
    ],
)
def test_the_command_that_goes_on_overwrites_nothing(arguments, command):
    assert resume_command(arguments) == command


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 second"), (5.4, "5 seconds"), (100, "2 minutes"), (3000, "50 minutes"), (9000, "2.5 hours")],
)
def test_a_duration_is_said_as_people_do(seconds, said):
    assert minutes(seconds) == said


def test_a_long_fit_names_a_short_one():
    said = describe_duration(2000, per_step=1.5, finish=30)
    assert said == (
        "About 50 minutes for 2000 steps, and 30 seconds for memory and lines after them. To try things, --max_steps 80 "
        "takes about 2 minutes."
    )
    assert "--max_steps" not in describe_duration(100, per_step=1.5, finish=30)
    assert describe_duration(20, per_step=1.5, finish=30) == ""


def test_a_fit_says_once_how_long_it_will_take(tmp_path, photograph, small_clip_folder, caplog, monkeypatch):
    monkeypatch.setattr(progress, "LONG", 0)
    products = write_products(tmp_path / "products", photograph)
    with caplog.at_level(logging.INFO, logger="modeling_anople"):
        fitting.fit("--max_steps", "6", data=products, clip=small_clip_folder, output=tmp_path / "detector")
    [said] = [line for line in caplog.messages if line.startswith("About")]
    assert "for 1 step, and 1 second for memory and lines" in said


def test_a_process_that_is_asked_while_all_agree_is_heard_at_the_next_look():
    def look(other: int | None) -> int:
        accelerator = Accelerator()
        with StopRequest(10) as stop:
            stop.in_loop = True
            accelerator.wait_for_everyone()
            if other is not None:
                time.sleep(0.3)  # until the other one waits for this one's look
                os.kill(other, signal.SIGTERM)
            looks = [_is_asked(stop, accelerator) for _ in range(2)]
        accelerator.end_training()
        return 0 if looks == [False, True] else 1

    assert fitting.in_two_processes(look) == [0, 0]


def test_a_signal_to_all_processes_leaves_the_workers_to_the_fit():
    """As systemd sends it, here to the group of a program of its own: batches come on, and the workers end with the loader."""
    reader, writer = os.pipe()
    program = os.fork()
    if program == 0:
        code = 1
        try:
            os.setsid()
            others = multiprocessing.active_children()  # of the process that runs the tests
            with StopRequest(10) as stop:
                stop.in_loop = True
                begin = partial(heed_the_fit_alone, fit=os.getpid())
                batches = iter(DataLoader(range(1_000_000), num_workers=2, worker_init_fn=begin))
                next(batches), next(batches)  # one of each: both have begun
                os.write(writer, b".")
                while not stop.asked:
                    next(batches)
                after = [next(batches) for _ in range(200)]
                workers = [each for each in multiprocessing.active_children() if each not in others]
                workers[0].terminate()  # as the loader does with one that hangs
                workers[0].join(10)
                code = 0 if (len(after), len(workers), workers[0].exitcode) == (200, 2, 0) else 2
        finally:
            os._exit(code)
    os.read(reader, 1)
    os.killpg(program, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]) == 0


def test_workers_of_the_data_loader_leave_it_to_the_fit(capfd):
    with StopRequest(10) as stop:
        stop.in_loop = True
        worker = os.fork()
        if worker == 0:
            try:
                for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # the second one ends a fit at once
                    signal.raise_signal(number)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGTERM
        assert not stop.asked and capfd.readouterr().err == ""
