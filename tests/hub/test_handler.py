"""The handler of an Inference Endpoint, in a published folder and a process that has nothing else of the project."""

import base64
import json
import os
import subprocess
import sys

import pytest

from hub.publish.__main__ import main
from hub.publish.handler import decoded
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime.loading import load_judge

from ..detectors import normals_of, write_detector


ENDPOINT = """
import base64, json, sys
folder, asked = sys.argv[1], json.load(sys.stdin)
sys.path.insert(0, folder)
from handler import EndpointHandler
handler, answers = EndpointHandler(folder), []
for data in asked:
    try:
        answers.append(handler(data))
    except ValueError as error:
        answers.append(str(error))
assert "modeling_anople" not in sys.modules, "the installed package was used"
json.dump(answers, sys.stdout, allow_nan=False)
"""


def test_a_published_folder_answers_as_the_detector(small_clip_folder, photograph, tmp_path):
    detector = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    assert main([str(detector), "me/detector", "--dry_run", str(tmp_path / "sent")]) == 0
    needed = (tmp_path / "sent" / "requirements.txt").read_text()
    assert "transformers<6,>=5.20" in needed and "torch" not in needed.replace("beside torch", "")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, picture in zip(paths, [*normals_of(photograph, 0, 2), photograph(9)], strict=True):
        picture.save(path)
    sent = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    asked = [
        {"inputs": sent},
        {"inputs": f"data:image/png;base64,{sent[0]}", "parameters": {"product": "bolt", "threshold": 0.0}},
        {"inputs": [sent[0], "no base64!", "größe", str(paths[0]), {"path": str(paths[0])}, 7]},
        {"inputs": sent[0], "parameters": {"product": "blot"}},
        {"inputs": sent[0], "parameters": {"top_k": 1}},
        {"inputs": []},
    ]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", ENDPOINT, str(tmp_path / "sent")]
    done = subprocess.run(
        command, input=json.dumps(asked), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    many, named, broken, unknown, wrong, none = json.loads(done.stdout)

    model, processor = load_judge(str(detector))
    for row, expected in zip(many, predict(model, processor, paths), strict=True):
        ours = expected.as_row(expected.find_regions())
        assert {**row, "seconds": 0} == {**ours, "seconds": 0, "score": pytest.approx(ours["score"], abs=2e-6),
                                         "raw_score": pytest.approx(ours["raw_score"], abs=2e-6)}  # fmt: skip
    assert [(row["class"], row["label"]) for row in named] == [("bolt", "anomalous")]
    assert broken[0]["label"] is not None and all(row["error"] and row["label"] is None for row in broken[1:])
    assert "Did you mean bolt?" in unknown and "top_k is no parameter" in wrong and "No photograph" in none


def test_an_adapter_has_no_handler(small_clip_folder, photograph, tmp_path):
    detector = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    assert main([str(detector), "me/detector", "--adapter", "--dry_run", str(tmp_path / "sent")]) == 0
    assert not {"handler.py", "requirements.txt"} & {path.name for path in (tmp_path / "sent").iterdir()}


@pytest.mark.parametrize("sent", ["/etc/hostname", "größe", {"path": "/etc/hostname"}, ["/etc/hostname"], None, 1.5])
def test_what_is_sent_names_no_file(sent):
    assert isinstance(decoded(sent), bytes)
