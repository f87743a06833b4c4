"""Several processes: the same evaluation, nothing twice and nothing lost."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from modeling_anople.cli import main

from .detectors import normals_of, write_detector
from .fitting import REPOSITORY


@pytest.fixture(scope="module")
def places(tmp_path_factory, small_clip_folder, photograph) -> tuple[Path, Path]:
    """A detector, and 7 photographs of one product and 4 of another, one of them unreadable."""
    root = tmp_path_factory.mktemp("sharding")
    detector = write_detector(root / "detector", small_clip_folder, photograph)
    for class_id, (name, count) in enumerate((("bolt", 7), ("nut", 4))):
        for number, image in enumerate(normals_of(photograph, class_id, count + 3)[3:]):
            folder = root / "data" / name / "test" / ("scratch" if number % 2 else "good")
            folder.mkdir(parents=True, exist_ok=True)
            if number % 2:
                place = (5 * number, 10, 5 * number + 9, 30)
                image.paste((20, 200, 40), place)
                mask = Image.new("L", image.size)
                mask.paste(255, place)
                masks = root / "data" / name / "ground_truth/scratch"
                masks.mkdir(parents=True, exist_ok=True)
                mask.save(masks / f"{number}_mask.png")
            image.save(folder / f"{number}.png")
    (root / "data/nut/test/good/broken.png").write_bytes(b"no picture")
    return detector, root / "data"


def launch(processes: int, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a module in several processes; on the CPU they go through torchrun (multi_gpu)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    usual = "-m accelerate.commands.accelerate_cli launch --num_machines 1 --mixed_precision no --dynamo_backend no"
    spread = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", port]
    return subprocess.run(
        [sys.executable, *usual.split(), *spread, "-m", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {}), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_two_processes_give_the_evaluation_of_one(places, tmp_path, capsys):
    """In batches of 3: 3 and 2 of them, the last ones of 1 and 2, so one process has more, and of another size."""
    usual = [*map(str, places), "--batch_size", "3", "--evaluation_size", "48"]
    outputs = {
        number: ["--json", f"{tmp_path}/{number}.json", "--csv", f"{tmp_path}/{number}.csv"] for number in (1, 2)
    }
    done = launch(2, "modeling_anople.evaluation", *usual, *outputs[2])
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(["evaluate", *usual, *outputs[1]]) == 0
    assert capsys.readouterr().out == done.stdout  # the table, once
    assert (tmp_path / "2.json").read_text() == (tmp_path / "1.json").read_text()
    assert done.stderr.count("is not an image") == 1  # logged once
    report = json.loads((tmp_path / "1.json").read_text())
    assert report["mean"]["normal"] == 6 and report["mean"]["anomalous"] == 5 and len(report["errors"]) == 1
    assert 0 < report["mean"]["aupro"] < 1
    rows = []
    for number in (1, 2):
        with open(tmp_path / f"{number}.csv", encoding="utf-8", newline="") as file:
            rows.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert rows[0] == rows[1] and len({row["path"] for row in rows[0]}) == len(rows[0]) == 12
