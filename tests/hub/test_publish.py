"""A detector goes to a Hub and comes back: what a push sends, and what it must not touch, claim or show."""

import json
import os
import signal
from pathlib import Path

import pytest

from hub.publish.folder import choose_pictures, is_own
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.saving_anople import is_trace

from ..fitting import REPOSITORY, start
from ..local_hub.__main__ import main
from ..local_hub.client import anople, answers_of, api, download, files_of, push, push_plainly, save_and_push
from ..local_hub.judge_from_hub import judge
from .published import LOCAL, fitted_anew


# --- From a fitted folder to a Hub and back, by the real client over a real connection ---


def answers_here(folder: Path, photographs: list[str]) -> list[dict]:
    return judge(AnoPLeModel.from_pretrained(folder), AnoPLeProcessor.from_pretrained(folder), photographs)


def push_well(client, *arguments, token: str | None = None) -> str:
    code, output, errors = client.call(push, *arguments, token=token)
    assert code == 0, errors
    return output


def test_a_pushed_detector_is_all_there(client, published, tmp_path):
    extras = ["--evaluation", published.evaluation, "--gallery", published.gallery]
    push_well(client, published.detector, "me/detector", *extras)
    files = client.call(files_of, "me/detector")
    assert {
        "README.md",
        "config.json",
        "evaluation.json",
        "model.safetensors",
        "processor_config.json",
    } <= files.keys()
    assert {path.name for path in REPOSITORY.glob("modeling_anople/*_anople.py")} <= files.keys()
    assert any(path.startswith("samples/") and path.endswith(".jpg") for path in files)
    assert [entry.title for entry in client.call(api, "list_repo_commits", "me/detector")] == [
        "Upload AnoPLe detector",
        "initial commit",
    ]
    content = client.call(download, "me/detector", tmp_path / "cache")
    assert content.keys() == files.keys()
    texts = b"".join(text for name, text in content.items() if not name.endswith((".jpg", ".safetensors")))
    assert LOCAL.encode() not in texts and str(tmp_path.parent).encode() not in texts
    assert json.loads(content["config.json"])["fit"]["files"]["nut"] == ["nut/train/good/001.png"]

    answers = client.call(answers_of, "me/detector", published.photographs)
    assert answers == answers_here(published.detector, published.photographs)


def test_a_private_detector_needs_a_token(client, published, tmp_path):
    push_well(client, published.detector, "me/private", "--private")
    assert client.call(api, "model_info", "me/private").private
    picture = published.photographs[0]
    for token in ("", "nonsense"):
        code, output, errors = client.call(anople, "predict", "me/private", picture, token=token)
        assert (code, output) == (2, "") and errors.count("\n") <= 1 and "Traceback" not in errors
        assert "me/private is no folder, and as a Hub id it cannot be reached (401" in errors
        assert "hf auth login" in errors and "HF_TOKEN" in errors
    code, _, errors = client.call(anople, "predict", "me/private", picture, token="token-of-another")
    assert code == 2 and "cannot be found (404)" in errors
    code, output, errors = client.call(anople, "predict", "me/private", picture, "--class", "bolt")
    assert code == 0 and json.loads(output)["class"] == "bolt", errors


def test_pushing_to_what_is_not_ours_is_refused(client, published):
    code, _, errors = client.call(push, published.detector, "another/thing")
    assert code == 2 and "another/thing cannot be reached (403" in errors and "Nothing was changed" in errors
    code, _, errors = client.call(push, published.detector, "me/thing", token="")
    assert code == 2 and "hf auth login" in errors
    for name, message in (("thing", "names no owner"), ("a/b/c", "is no id on the Hub"), ("me/a b", "is no id")):
        code, _, errors = client.call(push, published.detector, name)
        assert code == 2 and message in errors
    client.call(api, "create_repo", "me/public")
    code, _, errors = client.call(push, published.detector, "me/public", "--private")
    assert code == 2 and "me/public exists and is public" in errors
    assert client.call(files_of, "me/public").keys() == {".gitattributes"}


def test_two_revisions_load_as_themselves(client, published, tmp_path):
    push_well(client, published.detector, "me/two")
    first = client.call(api, "model_info", "me/two").sha
    push_well(client, published.other, "me/two", "--revision", "trial")
    push_well(client, published.other, "me/two", "--message", "Other prompts")
    second = client.call(api, "model_info", "me/two").sha
    one, two = (answers_here(folder, published.photographs) for folder in (published.detector, published.other))
    assert one != two
    for revision, expected in ((first, one), (second, two), ("trial", two), ("main", two)):
        options = {"revision": revision, "cache_dir": tmp_path}
        assert client.call(answers_of, "me/two", published.photographs, **options) == expected
    places = (["me/two"], [f"me/two@{first}"], ["me/two", "--revision", "trial"])
    for place, expected in zip(places, (two, one, two), strict=True):
        name, *options = place
        code, output, errors = client.call(anople, "predict", name, *published.photographs, *options)
        scores = [json.loads(line)["score"] for line in output.splitlines()]
        assert code == 0 and scores == pytest.approx([entry["score"] for entry in expected], abs=1e-6), errors
    code, _, errors = client.call(anople, "predict", "me/two@nowhere", published.photographs[0])
    assert code == 2 and "has no revision 'nowhere'" in errors


@pytest.fixture
def pushed(client, published, request) -> tuple[str, dict[str, str]]:
    """A repository of its own with the first detector, and its files."""
    name = f"me/{request.node.name[:60].replace('[', '-').rstrip(']')}"
    push_well(client, published.detector, name)
    return name, client.call(files_of, name)


def test_an_upload_whose_client_dies_changes_nothing(client, hub, faults, published, pushed, tmp_path):
    (name, before), new = pushed, fitted_anew(published.other, tmp_path / "new")
    faults.hold_uploads = True
    environment = hub.environment(tmp_path / "home", "token-of-me")
    process = start(["-m", "hub.publish", new, name], tmp_path, **environment)
    assert faults.reached.wait(timeout=100)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    faults.reset()
    assert client.call(files_of, name) == before
    answers = answers_here(published.detector, published.photographs)
    assert client.call(answers_of, name, published.photographs) == answers
    push_well(client, new, name)
    assert client.call(answers_of, name, published.photographs) == answers_here(new, published.photographs)


def test_a_connection_that_breaks_during_an_upload_is_made_again(client, faults, published, pushed, tmp_path):
    (name, before), new = pushed, fitted_anew(published.other, tmp_path / "new")
    faults.cut_uploads = 1
    push_well(client, new, name)
    puts = [address for method, address in faults.seen if method == "PUT"]
    # once cut off and once whole; before it, where no other test came first, the weights of the detector pushed earlier
    assert puts[-2] == puts[-1] and puts.count(puts[-1]) == 2 and len(puts) <= 3
    assert client.call(files_of, name) != before


def test_a_commit_that_is_cut_off_changes_nothing(client, faults, published, pushed, tmp_path):
    (name, before), new = pushed, fitted_anew(published.other, tmp_path / "new")
    faults.cut_commits = 1
    code, _, errors = client.call(push, new, name)
    assert code == 2 and "was not pushed" in errors and "push again" in errors and "Traceback" not in errors
    assert client.call(files_of, name) == before
    push_well(client, new, name)
    assert client.call(files_of, name) != before


def test_bytes_that_changed_on_the_way_are_noticed(client, faults, published, pushed):
    name, files = pushed
    faults.corrupt = "model.safetensors"
    code, output, errors = client.call(anople, "predict", name, published.photographs[0])
    assert (code, output) == (2, "") and "model.safetensors is damaged: its sha256 is" in errors
    assert files["model.safetensors"] in errors and "Remove" in errors


def test_a_push_leaves_nothing_of_the_last_one_behind(client, published, pushed):
    name, _ = pushed
    client.call(api, "upload_file", repo_id=name, path_in_repo="notes.md", path_or_fileobj=b"kept")
    push_well(client, published.detector, name, "--max_shard_size", "100KB", "--gallery", published.gallery)
    files = client.call(files_of, name)
    shards = [path for path in files if path.startswith("model-") and path.endswith(".safetensors")]
    assert len(shards) > 1 and "model.safetensors.index.json" in files and "model.safetensors" not in files
    answers = answers_here(published.detector, published.photographs)
    assert client.call(answers_of, name, published.photographs) == answers
    push_well(client, published.detector, name)
    files = client.call(files_of, name)
    assert not [path for path in files if path.startswith(("model-", "samples/")) or path.endswith("index.json")]
    assert "notes.md" in files and "model.safetensors" in files


def test_plain_push_to_hub_works_too(client, published, tmp_path):
    client.call(push_plainly, str(published.detector), "me/plain", private=True)
    content = client.call(download, "me/plain", tmp_path)
    assert {"config.json", "model.safetensors", "processor_config.json", "modeling_anople.py"} <= content.keys()
    answers = client.call(answers_of, "me/plain", published.photographs)
    assert answers == answers_here(published.detector, published.photographs)


def test_saving_with_push_to_hub_pushes_the_processor_too(client, published, tmp_path):
    client.call(save_and_push, str(published.detector), str(tmp_path / "saved"), "me/saved", private=True)
    content = client.call(download, "me/saved", tmp_path)
    saved = {path.name for path in (tmp_path / "saved").iterdir() if not is_trace(path.name)}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= saved <= content.keys()
    assert client.call(api, "model_info", "me/saved").private


def test_there_and_back_in_fresh_processes(published, capsys, caplog):
    """The command of the README: pushed by one process, loaded with its own code by another, compared here."""
    with caplog.at_level("INFO"):
        assert main(["--", str(published.detector), *published.photographs]) == 0, capsys.readouterr().err
    expected = [entry["score"] for entry in answers_here(published.detector, published.photographs)]
    lines = [line for line in caplog.messages if " from the Hub: " in line]
    assert lines == [
        f"{score:.6f} here, {score:.6f} from the Hub: {path}"
        for score, path in zip(expected, published.photographs, strict=True)
    ]
    assert caplog.messages[-1] == f"All {len(expected)} scores and maps agree bit for bit."


def test_a_round_trip_without_a_detector_ends_with_one_line(published, capsys, tmp_path):
    assert main([str(tmp_path), *published.photographs]) == 2
    assert capsys.readouterr().err.startswith(f"tests.local_hub: {tmp_path} holds no detector")


# --- What a push must not touch, must not claim and must not show ---


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
    process = start(["-m", "hub.publish", new, "me/quiet"], tmp_path, **environment)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "Pushed: http" in output, output
    assert "grant=" not in output and "HTTP Request" not in output
