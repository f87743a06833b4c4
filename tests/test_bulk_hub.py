"""Data sets in shards on the Hub: streamed from there, at one commit, with the answers that the same files on disk have."""

import re
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd

from modeling_anople.cli import main

from .detectors import write_detector
from .local_hub.client import Client, anople, api
from .shards import answers_in, image_files, without_time, write_shards
from .test_sharding import launch


NAME = "me/photographs"


@pytest.fixture(scope="module")
def detector(tmp_path_factory, small_clip_folder, photograph) -> Path:
    return write_detector(tmp_path_factory.mktemp("bulk") / "detector", small_clip_folder, photograph)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, photograph) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), image_files(photograph))


@pytest.fixture(scope="module")
def on_hub(client, shards) -> str:
    """The shards in a private data set, parquet files below `data` and the tar beside them; the commit they came with."""
    client.call(api, "create_repo", NAME, repo_type="dataset", private=True)
    files = {f"data/{path.name}": path for path in sorted(shards.glob("*.parquet"))}
    files |= {
        "web.tar": shards / "web.tar",
        "README.md": b"# Photographs\n",
        "data/0.results.parquet": b"not one of them",
    }
    parts = [CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()]
    return client.call(api, "create_commit", NAME, parts, commit_message="photographs", repo_type="dataset").oid


def test_answers_are_those_of_the_files(client, on_hub, detector, shards, tmp_path):
    options = ["--class", "nut", "--output"]
    code, _, errors = client.call(anople, "predict", detector, f"hf://datasets/{NAME}", *options, tmp_path / "hub")
    assert code == 1, errors  # one photograph cannot be read
    assert main(["predict", str(detector), str(shards), *options, str(tmp_path / "disk")]) == 1
    expected = without_time(answers_in(tmp_path / "disk"))
    found = without_time(answers_in(tmp_path / "hub"))
    assert {name.removeprefix("data-"): rows for name, rows in found.items()} == expected
    metadata = pq.read_schema(tmp_path / "hub" / "data-1.results.parquet").metadata
    assert metadata[b"anople_shard"].decode() == f"hf://datasets/{NAME}@{on_hub}/data/1.parquet"


@pytest.mark.parametrize(
    ("place", "code", "expected"),
    [
        ("", 1, ["data-0", "data-1", "data-2", "web"]),
        ("/data", 1, ["data-0", "data-1", "data-2"]),
        ("/data/[02].parquet", 0, ["data-0", "data-2"]),
        ("/web.tar", 0, ["web"]),
    ],
    ids=str,
)
def test_part_of_a_data_set(client, on_hub, detector, tmp_path, place, code, expected):
    address = f"hf://datasets/{NAME}@{on_hub}{place}"
    ended, _, errors = client.call(anople, "predict", detector, address, "--class", "nut", "--output", tmp_path)
    assert ended == code, errors
    assert list(answers_in(tmp_path)) == [f"{name}.results.parquet" for name in expected]


def test_answers_to_another_file_are_not_kept(client, on_hub, detector, shards, tmp_path):
    """A newer commit counts only where it changed a file; files on disk and on the Hub are told apart."""
    address, options = f"hf://datasets/{NAME}", ["--class", "nut", "--output", tmp_path]
    assert client.call(anople, "predict", detector, f"{address}@{on_hub}/data/0.parquet", *options)[0] == 0
    before = (tmp_path / "data-0.results.parquet").read_bytes()
    changes = [
        CommitOperationAdd("data/0.parquet", str(shards / "2.parquet")),
        CommitOperationAdd("more/0.parquet", str(shards / "2.parquet")),
    ]
    for number, change in enumerate(changes[::-1]):
        client.call(api, "create_commit", NAME, [change], commit_message="a change", repo_type="dataset")
        code, _, errors = client.call(anople, "predict", detector, f"{address}/data", *options)
        if number == 0:
            assert code == 1, errors
            assert len(answers_in(tmp_path)) == 3 and (tmp_path / "data-0.results.parquet").read_bytes() == before
    assert code == 2 and f"@{on_hub}/data/0.parquet, and hf://datasets/{NAME}@" in errors
    assert "another folder of answers, or on the Hub the revision" in errors
    answered = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, errors = client.call(anople, "predict", detector, f"{address}@{on_hub}/data", *options)
    assert code == 1, errors  # all are answered, and one photograph could not be read
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == answered
    (tmp_path / "data-0.parquet").write_bytes((shards / "0.parquet").read_bytes())
    code, _, errors = client.call(anople, "predict", detector, tmp_path / "data-0.parquet", *options)
    assert code == 2 and "data-0.parquet is another file" in errors


@pytest.mark.parametrize(
    ("address", "token", "message"),
    [
        (f"hf://datasets/{NAME}", "token-of-another", "(?i)repository not found"),
        (f"hf://datasets/{NAME}@nowhere", None, "revision not found"),
        (f"hf://datasets/{NAME}/nothing", None, "nothing does not exist: nothing of that name is in me/photographs"),
        (
            f"hf://datasets/{NAME}/*.md",
            None,
            f"holds no shards .* copy in parquet: hf://datasets/{NAME}@refs/convert/parquet",
        ),
        ("hf://me/photographs", None, "is no data set: give hf://datasets/OWNER/NAME"),
    ],
    ids=str,
)
def test_what_is_not_there_is_said(client, on_hub, detector, tmp_path, address, token, message):
    code, _, errors = client.call(anople, "predict", detector, address, "--output", tmp_path / "out", token=token)
    assert code == 2
    assert re.search(message, errors), errors
    assert not (tmp_path / "out").exists()


def test_a_connection_that_is_lost_costs_nothing(client, on_hub, faults, detector, tmp_path):
    address = f"hf://datasets/{NAME}@{on_hub}/data/*.parquet"
    faults.cut_downloads = 2
    code, _, errors = client.call(anople, "predict", detector, address, "--class", "nut", "--output", tmp_path)
    assert code == 1 and faults.cut_downloads == 0, errors
    assert {name: len(rows) for name, rows in answers_in(tmp_path).items()} == {
        "data-0.results.parquet": 4,
        "data-1.results.parquet": 4,
        "data-2.results.parquet": 3,
    }


def test_two_processes_stream_from_the_hub(hub, on_hub, detector, shards, tmp_path):
    environment = hub.environment(tmp_path / "home", "token-of-me")
    place = f"hf://datasets/{NAME}@{on_hub}"
    options = ["--class", "nut", "--output", str(tmp_path / "two")]
    done = launch(2, "modeling_anople.cli", "predict", str(detector), place, *options, environment=environment)
    assert done.returncode == 1, done.stderr[-2000:]
    assert main(["predict", str(detector), str(shards), *options[:-1], str(tmp_path / "disk")]) == 1
    found = without_time(answers_in(tmp_path / "two"))
    assert {name.removeprefix("data-"): rows for name, rows in found.items()} == without_time(
        answers_in(tmp_path / "disk")
    )


def test_a_hub_that_cannot_be_reached_is_said(hub, detector, tmp_path):
    """The address of nobody, and a user who is offline on purpose."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for changed, message in (
        ({"HF_ENDPOINT": nobody}, f"the Hub at {nobody} cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
    ):
        client = Client({**hub.environment(tmp_path / "home", "token-of-me"), **changed})
        code, _, errors = client.call(
            anople, "predict", detector, f"hf://datasets/{NAME}", "--output", tmp_path / "out"
        )
        client.close()
        assert code == 2 and message in errors, errors
