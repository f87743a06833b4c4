"""Detectors by name: folders, Hub ids and revisions, refusals of one line, and no more libraries than judging needs."""

import json
import logging
import subprocess
import sys

import pytest

from modeling_anople.cli import main
from modeling_anople.runtime.loading import _log_once, load_detector, split_revision

from .detectors import detector_of
from .fitting import REPOSITORY, start
from .local_hub.client import anople


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("user/name", None, ("user/name", None)),
        ("user/name@v1", None, ("user/name", "v1")),
        ("user/name", "v1", ("user/name", "v1")),
        ("user/name@", None, ("user/name", None)),
    ],
)
def test_a_revision_may_be_written_behind_the_name(name, revision, expected):
    assert split_revision(name, revision) == expected


def test_two_revisions_are_refused():
    with pytest.raises(ValueError, match="user/name@v1 names a revision and --revision v2 another: give one"):
        split_revision("user/name@v1", "v2")


def test_a_folder_has_no_revision(published, capsys):
    picture = published.photographs[0]
    assert main(["predict", str(published.detector), picture, "--revision", "v1"]) == 2
    assert "only a Hub id has revisions" in capsys.readouterr().err
    copy = published.detector.rename(published.detector.with_name("a@b"))  # a folder may be called so
    try:
        assert load_detector(str(copy))[0].config.class_names == ["bolt", "nut"]
    finally:
        copy.rename(published.detector)


def test_what_the_small_clip_is_is_said_once_and_only_where_something_is_learned(
    make_detector, photograph, tmp_path, caplog, capsys
):
    _log_once.cache_clear()
    model, processor = make_detector()
    detector, paths = str(tmp_path / "detector"), [str(tmp_path / f"{number}.png") for number in range(4)]
    for number, path in enumerate(paths):
        photograph(number).save(path)

    def run(*arguments: str) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="modeling_anople"):
            assert main([*arguments]) == 0
        return caplog.text + capsys.readouterr().out

    said = []
    for kind in ("folder", "embedded"):
        model.config.clip_source = {"kind": kind, "name": "mini", "revision": None}
        detector_of(model, processor).save_pretrained(detector)
        commands = [("enroll", detector, f"{kind} {number}", *paths[:2]) for number in range(2)]
        commands += [("predict", detector, paths[3]), ("products", detector), ("doctor", detector)]
        said += [run(*command).count("docs/which_encoder.md") for command in commands]
    assert said == [0, 0, 0, 0, 0, 1, 0, 0, 1, 1]
    assert "--clip NAME or --memory_encoder NAME" in run("products", detector)


def test_offline_the_variable_is_named(capsys):
    assert main(["predict", "nobody/nothing", "a.png"]) == 2
    error = capsys.readouterr().err
    assert "nobody/nothing is no folder, and as a Hub id it is not in the cache, and HF_HUB_OFFLINE" in error


def test_what_is_not_there_or_no_detector(client, published):
    from .local_hub.client import api

    client.call(api, "create_repo", "me/empty")
    picture = published.photographs[0]
    for name, message in (
        ("me/nothing", "me/nothing is no folder, and as a Hub id it cannot be found (404): check its spelling"),
        ("me/empty", "me/empty on the Hub holds no detector (no config.json)"),
        ("a/b/c", "a/b/c is no folder, and as a Hub id it cannot be loaded"),
    ):
        code, output, errors = client.call(anople, "predict", name, picture)
        assert (code, output) == (2, "") and message in errors and "Traceback" not in errors


def test_evaluate_takes_an_id_too(client, published):
    from .hub.test_publish import push_well

    push_well(client, published.detector, "me/evaluated")
    data = published.evaluation.with_name("drawn")
    options = ["--evaluation_size", 32]
    code, there, errors = client.call(anople, "evaluate", "me/evaluated@main", data, *options)
    assert code == 0, errors
    code, here, _ = client.call(anople, "evaluate", published.detector, data, *options)
    assert there == here and "| mean " in there


def test_without_a_network_the_cache_is_used_and_that_is_said(client, published, tmp_path):
    from .hub.test_publish import push_well

    push_well(client, published.detector, "me/cached")
    code, there, errors = client.call(anople, "predict", "me/cached", published.photographs[0], "--class", "bolt")
    assert code == 0, errors
    environment = {**client.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody listens there
    arguments = ["-m", "modeling_anople.cli", "predict", "me/cached", published.photographs[0], "--class", "bolt"]
    process = start(arguments, tmp_path, **environment)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "Traceback" not in output, output
    assert "me/cached is used from the cache, not compared with the Hub" in output
    [line] = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert line["score"] == pytest.approx(json.loads(there)["score"], abs=1e-6)


EXTRAS = ("accelerate", "datasets", "pyarrow", "sklearn")
LIGHT = """
import json, sys
from importlib.machinery import PathFinder

class Without(PathFinder):  # as if they were not installed
    @classmethod
    def find_spec(cls, name, *places):
        return None if name.split(".")[0] in {extras} else super().find_spec(name, *places)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import modeling_anople.runtime.loading
from modeling_anople.cli import main
for arguments, code in json.loads(sys.argv[1]):
    assert main(arguments) == code
assert not set({extras}) & set(sys.modules)
"""


def test_without_the_extras_photographs_are_judged_and_what_needs_one_names_it(published, tmp_path, capsys):
    judging = ["predict", str(published.detector), published.photographs[0], "--class", "bolt"]
    evaluating = ["evaluate", str(published.detector), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(extras=EXTRAS), json.dumps([(judging, 0), (evaluating, 2)])],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0 and "pip install 'anople[evaluate]'" in done.stderr, done.stderr
    assert main(judging) == 0
    here, there = (json.loads(text) for text in (capsys.readouterr().out, done.stdout))
    assert there["score"] == pytest.approx(here["score"], abs=1e-6)
