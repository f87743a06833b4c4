"""What a push must not touch, must not claim and must not show."""

import json

import pytest

from hub.repository_folder import choose_pictures, is_own

from .fitting import REPOSITORY, start
from .hub_client import api, files_of, push
from .published import fitted_anew


def put(client, repository: str, **files: bytes) -> None:
    for name, content in files.items():
        client.call(api, "upload_file", repo_id=repository, path_in_repo=name, path_or_fileobj=content)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("adapter.safetensors", True),
        ("memory_anople.py", True),
        ("tokenizer_config.json", True),
        ("samples/01-miss-1.jpg", True),
        (".eval_results/anople.yaml", True),
        ("unet/model.safetensors", False),
        ("lora.safetensors", False),
        ("text/tokenizer.json", False),
        ("old/memory_anople.py", False),
        ("samples/notes.md", False),
        ("samples/more/01-miss-1.jpg", False),
        (".eval_results/other.yaml", False),
    ],
)
def test_which_files_are_a_pushs_own(name, own):
    assert is_own(name) is own


def test_files_of_others_stay_where_they_are(client, published):
    code, _, errors = client.call(push, published.detector, "me/shared")
    assert code == 0, errors
    kept = {"other/model.safetensors": b"1", "lora.safetensors": b"2", "text/tokenizer.json": b"{}"}
    put(client, "me/shared", **kept, **{"samples/99-miss-1.jpg": b"3"})
    code, _, errors = client.call(push, published.detector, "me/shared")
    assert code == 0, errors
    files = client.call(files_of, "me/shared")
    assert kept.keys() <= files.keys() and "samples/99-miss-1.jpg" not in files


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("bert", {"config.json": b'{"model_type": "bert"}'}, "the model_type 'bert', not 'anople'"),
        ("odd", {"config.json": b"[]", "model.safetensors": b"1"}, "the model_type None, not 'anople'"),
        ("parts", {"unet/weights.bin": b"1"}, "holds weights of no AnoPLe detector (unet/weights.bin)"),
    ],
)
def test_another_model_is_not_pushed_over(client, published, name, files, words):
    repository = f"me/{name}"
    client.call(api, "create_repo", repository)
    put(client, repository, **files)
    before = client.call(files_of, repository)
    for revision in ("main", "trial"):
        code, _, errors = client.call(push, published.detector, repository, "--revision", revision)
        assert code == 2 and words in errors and "ush to another name" in errors, errors
    assert client.call(files_of, repository) == before
    assert [branch.name for branch in client.call(api, "list_repo_refs", repository).branches] == ["main"]


def test_a_push_that_could_not_be_compared_is_called_a_push(client, faults, published):
    faults.refuse_listings = 1
    code, _, errors = client.call(push, published.detector, "me/unsure")
    sha = client.call(api, "model_info", "me/unsure").sha
    assert code == 2 and f"was pushed as {sha}, but could not be compared" in errors
    assert "Nothing was changed" not in errors and "not pushed" not in errors
    assert "model.safetensors" in client.call(files_of, "me/unsure")


@pytest.mark.parametrize("file", ["/etc/hostname", "../../secret.png", "sub/a.jpg", "..", ""])
def test_a_gallery_names_only_its_own_pictures(tmp_path, file):
    (tmp_path / "samples").mkdir()
    (tmp_path / "index.html").touch()
    entry = {"file": file, "kind": "passed", "class": "a", "severity": 0.5}
    (tmp_path / "samples/samples.json").write_text(json.dumps([entry]), encoding="utf-8")
    with pytest.raises(ValueError, match="which is no picture beside it"):
        choose_pictures(tmp_path)


def test_addresses_that_grant_access_are_not_shown(hub, published, tmp_path):
    environment = hub.environment(tmp_path / "home", "token-of-me")
    new = fitted_anew(published.detector, tmp_path / "new")  # large files that the Hub has not got
    process = start(["-m", "hub.push", new, "me/quiet"], tmp_path, **environment)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "Pushed: http" in output, output
    assert "grant=" not in output and "HTTP Request" not in output


@pytest.mark.parametrize(
    "program", ["anople", "push", "push_space", "round_trip", "convert_open_clip", "pretrain_mini_clip"]
)
def test_every_program_starts_its_log_in_one_place(program):
    path = REPOSITORY / ("modeling_anople/cli.py" if program == "anople" else f"hub/{program}.py")
    source = path.read_text(encoding="utf-8")
    assert ("start_logging()" in source or "run_program(" in source) and "basicConfig" not in source
