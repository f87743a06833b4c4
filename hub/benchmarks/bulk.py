"""
Memory and speed over very many photographs: `python -m hub.benchmarks.bulk`.

Made photographs of 64 x 64 pixels in parquet shards, judged by the commands of the README with a detector on a CLIP of
random weights (32 wide, 4 deep, 32 pixels), whose own share of the time is small: what is measured is everything around
it. The second run spreads over two processes.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, Image
from PIL import Image as Pillow

from hub.mini_clip.small_clip import write_small_clip
from modeling_anople import AnoPLeModel, AnoPLeProcessor

from .measuring import RESULTS, know, noise


ROOT = Path(__file__).parents[2]
SMALL = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


def write_shards(folder: Path, count: int, shard_size: int) -> None:
    """Write photographs of noise over a color."""
    generator = np.random.default_rng(0)
    for start in range(0, count, shard_size):
        files = []
        for _ in range(min(shard_size, count - start)):
            pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            place = io.BytesIO()
            Pillow.fromarray(pixels // 8 + generator.integers(0, 200, 3, dtype=np.uint8)).save(place, "JPEG")
            files.append({"bytes": place.getvalue(), "path": None})
        rows = Dataset.from_dict({"image": files}, features=Features(image=Image()))
        rows.to_parquet(folder / f"{start // shard_size:04d}.parquet")


def write_detector(folder: Path) -> Path:
    """Write a detector of one product."""
    clip = write_small_clip(folder / "clip", **SMALL)
    model, processor = AnoPLeModel.from_clip(str(clip), ["part"]), AnoPLeProcessor.from_clip(str(clip), ["part"])
    know(model, processor, noise(4, 32))
    model.save_pretrained(folder / "detector")
    processor.save_pretrained(folder / "detector")
    return folder / "detector"


def run(command: list[str], output: Path) -> dict:
    """Run a command and watch the memory of its processes."""
    start, samples = time.monotonic(), []
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(2):
            samples.append((len(list(output.glob("*.results.parquet"))), sum(map(resident, family(process.pid)))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    rows = sum(pq.read_metadata(path).num_rows for path in output.glob("*.results.parquet"))
    seconds = time.monotonic() - start
    working = [memory for shards, memory in samples if shards >= 1]
    quarter = max(1, len(working) // 4)
    return {
        "command": " ".join(["python", *command]),
        "exit": code,
        "photographs": rows,
        "seconds": round(seconds, 1),
        "per_second": round(rows / seconds, 1),
        "megabytes_first_quarter": round(sum(working[:quarter]) / quarter),
        "megabytes_last_quarter": round(sum(working[-quarter:]) / quarter),
        "megabytes_peak": round(max(memory for _, memory in samples)),
    }


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = children.read_text().split() if children.exists() else []
    return [pid, *(one for child in found for one in family(int(child)))]


def resident(pid: int) -> float:
    """Memory of a process that is really in use, in MB; 0 when it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=100_000)
    parser.add_argument("--shard_size", type=int, default=5_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "shards").mkdir()
        write_shards(folder / "shards", options.photographs, options.shard_size)
        detector = write_detector(folder)
        spread = "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1"
        rest = ["predict", str(detector), str(folder / "shards"), "--batch_size", "64", "--output"]
        rows = [
            run(["-m", "modeling_anople.cli", *rest, str(folder / "one")], folder / "one"),
            run([*spread.split(), "-m", "modeling_anople.cli", *rest, str(folder / "two")], folder / "two"),
        ]
    text = json.dumps(rows, indent=2).replace(place, "FOLDER")
    about = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bulk.json").write_text(
        json.dumps({"measured": json.loads(text), **about}, indent=2) + "\n", encoding="utf-8"
    )
    print(text)


if __name__ == "__main__":
    main()
