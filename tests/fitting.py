"""What the tests of fitting share: products to learn, the training program in this process or another, its results."""

import contextlib
import json
import logging
import math
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.training import main


REPOSITORY = Path(__file__).parents[1]
PARTS = {"train/good": 5, "test/good": 1, "test/scratch": 1, "ground_truth/scratch": 1}


def write_products(root: Path, photograph: Callable[..., Image.Image]) -> Path:
    """Write two products as an MVTec tree: five good photographs of each to learn from, two tests and a mask."""
    for number, name in enumerate(("bolt", "nut")):
        for part, count in PARTS.items():
            (root / name / part).mkdir(parents=True)
            for seed in range(count):
                photograph(10 * number + seed).save(root / name / part / f"{seed:03d}.png")
    return root


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Compute in one thread, so that sums do not depend on the machine, and leave no accelerator behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def fit(*options: str, data: Path, clip: Path, output: Path) -> Path:
    """Run the training program in this process: one shot, two steps, unless `options` tell otherwise."""
    usual = ["--shots", "1", "--max_steps", "2", "--batch_size", "2", "--log_steps", "1", "--monitor_images", "2"]
    with one_process():
        return main(["--data_root", str(data), "--clip", str(clip), "--output_dir", str(output), *usual, *options])


def start(arguments: list, folder: Path, **environment: str) -> subprocess.Popen:
    """Start a Python program of one thread, away from the user's own accelerate settings, in a group of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HOME": str(folder / "home"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def watching_files(opened: Callable[[str], None]) -> Iterator[None]:
    """Call a function with the path of each file that is opened meanwhile, before it is; not for those it opens itself."""
    active, busy = [True], []  # a hook stays as long as the process

    def watch(event: str, details: tuple) -> None:
        if event != "open" or not active or busy or not isinstance(details[0], str):
            return
        busy.append(True)
        try:
            opened(details[0])
        finally:
            busy.clear()

    sys.addaudithook(watch)
    try:
        yield
    finally:
        active.clear()


def launch(arguments: list, folder: Path, **environment: str) -> None:
    """Run such a program to its end, which must be a good one."""
    process = start(arguments, folder, **environment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


def launch_processes(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    """Run a module in several processes; on the CPU they go through torchrun (multi_gpu)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    usual = "-m accelerate.commands.accelerate_cli launch --num_machines 1 --mixed_precision no --dynamo_backend no"
    spread = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", port]
    return subprocess.run(
        [sys.executable, *usual.split(), *spread, "-m", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def in_two_processes(act: Callable[[int | None], int]) -> list[int]:
    """
    Fork two processes that accelerate joins.

    Args:
        act: what each does, the first with the id of the other; it returns an exit code.

    Returns:
        The exit codes; -9 of one that does not end.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}

    def run(rank: int, other: int | None) -> None:
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        os.environ.update(address, **ranks)
        AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run alone
        logging.getLogger().handlers.clear()  # those of pytest: a program logs to stderr
        torch.set_num_threads(1)
        sys.exit(act(other))

    forks = multiprocessing.get_context("fork")
    second = forks.Process(target=run, args=(1, None))
    second.start()
    first = forks.Process(target=run, args=(0, second.pid))
    first.start()
    for process in (first, second):
        process.join(60)
        process.kill()
        process.join()
    return [first.exitcode, second.exitcode]


def read_log(detector: Path) -> list[dict[str, float]]:
    """Read training_log.jsonl; every figure must be finite."""
    log = [json.loads(line) for line in (detector / "training_log.jsonl").read_text("utf-8").splitlines()]
    assert all(math.isfinite(value) for line in log for value in line.values())
    return log


def weights_of(detector: Path) -> dict[str, torch.Tensor]:
    """Read the saved weights and buffers."""
    return load_file(detector / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    """Compare two saved detectors bit for bit."""
    weights, others = weights_of(first), weights_of(second)
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def assert_it_predicts(detector: Path, data: Path, paths: list[str]) -> AnoPLeModel:
    """Load a detector anew and judge photographs of the class that their first folder names."""
    model, processor = AnoPLeModel.from_pretrained(detector), AnoPLeProcessor.from_pretrained(detector)
    batch = processor([data / path for path in paths], class_names=[path.split("/")[0] for path in paths])
    with torch.no_grad():
        outputs = model(**batch)
    for values in (outputs.calibrated_scores, outputs.calibrated_maps, outputs.image_scores, outputs.anomaly_maps):
        assert bool(values.isfinite().all()) and 0 <= float(values.min()) <= float(values.max()) <= 1
    return model
