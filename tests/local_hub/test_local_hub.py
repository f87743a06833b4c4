"""The Hub of this machine, as the real client sees it: repositories, revisions, rights, and bytes that must be right."""

import hashlib
import json
import logging
from urllib.request import Request, urlopen

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from . import LocalHub
from .client import api, download, files_of


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def commit(client, repository: str, *operations, **options) -> str:
    """Send a commit and return its hash."""
    options = {"commit_message": "a change", **options}
    return client.call(api, "create_commit", repository, list(operations), **options).oid


def test_files_come_back_as_they_went(client, tmp_path):
    client.call(api, "create_repo", "me/files")
    large, small = bytes(range(256)) * 5000, "ü\n".encode()
    commit(client, "me/files", add("w.safetensors", large), add("a/b/c.txt", small), add("empty.txt", b""))
    assert client.call(files_of, "me/files")["w.safetensors"] == hashlib.sha256(large).hexdigest()
    found = client.call(download, "me/files", tmp_path)
    assert found.keys() == {".gitattributes", "w.safetensors", "a/b/c.txt", "empty.txt"}
    assert (found["w.safetensors"], found["a/b/c.txt"], found["empty.txt"]) == (large, small, b"")
    paths = client.call(api, "get_paths_info", "me/files", ["a/b/c.txt", "nowhere"])
    assert [entry.path for entry in paths] == ["a/b/c.txt"]
    top = client.call(api, "list_repo_tree", "me/files")
    assert [type(entry).__name__ for entry in top if entry.path == "a"] == ["RepoFolder"]


def test_what_was_sent_before_is_not_sent_again(client, hub, faults):
    client.call(api, "create_repo", "me/again")
    for name in ("one", "two"):
        commit(client, "me/again", add(f"{name}.safetensors", b"the same bytes" * 999))
    assert [method for method, path in faults.seen if path.startswith("/large-files")] == ["PUT"]
    before = client.call(api, "model_info", "me/again").sha
    assert commit(client, "me/again", add("one.safetensors", b"the same bytes" * 999)) == before


def test_revisions_stay_and_branches_move(client, tmp_path):
    client.call(api, "create_repo", "me/history")
    first = commit(client, "me/history", add("a.txt", b"1"), add("b.txt", b"1"))
    client.call(api, "create_branch", "me/history", branch="trial")
    second = commit(client, "me/history", add("a.txt", b"2"), CommitOperationDelete("b.txt"), revision="trial")
    refs = client.call(api, "list_repo_refs", "me/history").branches
    assert {ref.name: ref.target_commit for ref in refs} == {"main": first, "trial": second}
    for revision, expected in ((first, b"1"), ("main", b"1"), (second, b"2"), ("trial", b"2")):
        assert client.call(download, "me/history", tmp_path, revision=revision)["a.txt"] == expected
    assert "b.txt" not in client.call(files_of, "me/history", revision="trial")
    titles = [entry.title for entry in client.call(api, "list_repo_commits", "me/history", revision="trial")]
    assert titles == ["a change", "a change", "initial commit"]
    with pytest.raises(RevisionNotFoundError):
        client.call(files_of, "me/history", revision="nowhere")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        commit(client, "me/history", add("a.txt", b"3"), parent_commit="0" * 40)


def test_rights(client):
    client.call(api, "create_repo", "me/secret", private=True)
    assert client.call(api, "whoami")["name"] == "me"
    assert client.call(api, "model_info", "me/secret").private
    for token, error in ((False, RepositoryNotFoundError), ("token-of-another", RepositoryNotFoundError)):
        with pytest.raises(error):
            client.call(api, "model_info", "me/secret", token=token)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        client.call(api, "model_info", "me/secret", token="nonsense")
    with pytest.raises(HfHubHTTPError, match="403"):
        client.call(api, "create_repo", "another/thing")
    client.call(api, "create_repo", "me/open")
    with pytest.raises(HfHubHTTPError, match="Only me may write"):
        commit(client, "me/open", add("a.txt", b"1"), token="token-of-another")
    listed = [entry.id for entry in client.call(api, "list_models", author="me", token="token-of-another")]
    assert "me/open" in listed and "me/secret" not in listed
    with pytest.raises(RemoteEntryNotFoundError):
        client.call(api, "hf_hub_download", "me/open", "nowhere.txt")


def test_a_space(client, tmp_path):
    address = client.call(api, "create_repo", "me/demo", repo_type="space", space_sdk="gradio")
    assert (address.repo_type, address.repo_id) == ("space", "me/demo")
    (tmp_path / "app.py").write_text("import gradio\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("---\nsdk: gradio\n---\n", encoding="utf-8")
    client.call(api, "upload_folder", repo_id="me/demo", folder_path=tmp_path, repo_type="space")
    assert {"app.py", "README.md"} <= client.call(files_of, "me/demo", repo_type="space").keys()
    assert client.call(api, "space_info", "me/demo").sdk == "gradio"
    assert "me/demo" in [space.id for space in client.call(api, "list_spaces", author="me")]
    found = client.call(download, "me/demo", tmp_path / "cache", repo_type="space")
    assert found["app.py"] == b"import gradio\n"
    with pytest.raises(RepositoryNotFoundError):
        client.call(api, "model_info", "me/demo")  # a model of that name is another thing
    with pytest.raises(ValueError, match="No space_sdk"):
        client.call(api, "create_repo", "me/nothing", repo_type="space")


def test_a_broken_card_is_refused_before_anything_is_sent(client, faults):
    client.call(api, "create_repo", "me/card")
    with pytest.raises(ValueError, match="Invalid metadata in README"):
        commit(client, "me/card", add("README.md", b"---\nlicense: [mit\n---\n"), add("w.safetensors", b"w" * 999))
    assert not [path for _, path in faults.seen if path.startswith("/large-files")]


def test_bytes_with_another_hash_are_refused(client, hub):
    client.call(api, "create_repo", "me/wrong")
    announced = hashlib.sha256(b"what was announced").hexdigest()
    body = json.dumps({"operation": "upload", "objects": [{"oid": announced, "size": 18}]}).encode()
    headers = {"Authorization": "Bearer token-of-me"}
    batch = urlopen(Request(f"{hub.endpoint}/me/wrong.git/info/lfs/objects/batch", body, headers))
    address = json.loads(batch.read())["objects"][0]["actions"]["upload"]["href"]
    with pytest.raises(OSError, match="400"):
        urlopen(Request(address, b"something else ...", method="PUT"))
    assert not hub.store.path_of(announced).exists() and not list(hub.store.unfinished.iterdir())
    with pytest.raises(OSError, match="403"):
        urlopen(Request(address.replace("grant=", "grant=x"), b"what was announced", method="PUT"))
    assert urlopen(Request(address, b"what was announced", method="PUT")).status == 200
    assert hub.store.path_of(announced).read_bytes() == b"what was announced"


def test_a_cut_download_goes_on_where_it_was(client, faults, tmp_path):
    client.call(api, "create_repo", "me/cut")
    content = bytes(range(256)) * 4000
    commit(client, "me/cut", add("w.safetensors", content))
    faults.cut_downloads = 1
    assert client.call(download, "me/cut", tmp_path)["w.safetensors"] == content
    assert sum(method == "GET" and path.endswith("w.safetensors") for method, path in faults.seen) == 2


def test_nothing_of_the_users_own_is_used(hub, tmp_path):
    variables = hub.environment(tmp_path, "token-of-me")
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_XET_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH"):
        assert variables[name].startswith(str(tmp_path)), name


def test_a_hub_leaves_the_logging_of_its_process_alone(tmp_path):
    """uvicorn's own settings close all handlers, and some close the stream that they write to."""
    closed = []

    class Handler(logging.StreamHandler):
        def close(self):
            closed.append(self)
            super().close()

    handler = Handler()
    with LocalHub(tmp_path, {}):
        pass
    assert closed == [] and handler.stream is not None
