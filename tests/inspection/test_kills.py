"""A watch that is killed at any moment judges each photograph exactly once; `hub.benchmarks.watch_kills` runs all of it."""

import json
import os
import subprocess
import sys

from modeling_anople.inspection.delivery import WEBHOOK_SECRET


# In a process of its own, as processes are forked from it, which those with many threads cannot do safely.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from hub.benchmarks.watch_kills import kill_at_random, operations

torch.set_num_threads(1)
detector, folder = map(Path, sys.argv[1:])
found = kill_at_random(detector, folder, count=12, kills=3, seed=0)
ended, faults = operations(detector, folder, every=19)
print(json.dumps([found.faults, found.told, found.code, ended, faults]))
"""


def test_each_photograph_is_judged_once_however_often_the_watch_is_killed(tmp_path, fitted):
    """12 photographs and 3 kills at random moments, and an end at every 19th operation on files."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", WEBHOOK_SECRET: "between us"}
    words = [sys.executable, "-c", PROGRAM, str(fitted), str(tmp_path)]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert said.returncode == 0, said.stderr
    faults, told, code, ended, faults_of_operations = json.loads(said.stdout.splitlines()[-1])
    assert (faults, told, code, faults_of_operations) == ([], 12, 0, []) and ended > 1
