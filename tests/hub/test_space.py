"""From the demo to a Space by the real client, and the Space's files alone start it."""

import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import yaml
from gradio_client import handle_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hub.benchmarks.demo_program import free_port, new_client, running_program
from hub.publish.space import main

from ..local_hub.client import api, download_space, files_of, push, push_space


ROOT = Path(__file__).resolve().parents[2]


def test_the_space_is_all_there_and_starts_from_what_was_sent(client, hub, published, tmp_path):
    code, _, errors = client.call(push, published.detector, "me/judged")
    assert code == 0, errors
    code, _, errors = client.call(push_space, "me/shown", "--model", "me/judged", "--private")
    assert code == 0, errors
    files = client.call(files_of, "me/shown", repo_type="space")
    assert {"README.md", "requirements.txt", "LICENSE", "demo/app.py", "demo/checkpoint.txt"} <= files.keys()
    assert {f"modeling_anople/{path.name}" for path in (ROOT / "modeling_anople").glob("*.py")} <= files.keys()
    assert "modeling_anople/mini_clip/model.safetensors" in files
    assert not any(path.startswith(("hub/", "tests/")) or path.endswith((".pyc", ".pyi")) for path in files)
    assert client.call(api, "space_info", "me/shown").private
    titles = [entry.title for entry in client.call(api, "list_repo_commits", "me/shown", repo_type="space")]
    assert titles == ["Upload AnoPLe demo", "initial commit"]

    space = tmp_path / "space"
    for name, content in client.call(download_space, "me/shown", tmp_path / "cache").items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_bytes(content)
    environment = {**hub.environment(tmp_path / "home", "token-of-me"), "PYTHONPATH": ""}
    program = _WITHOUT_THE_CHECKOUT.format(checkout=str(ROOT), hidden=not_required(space / "requirements.txt"))
    command = ["-c", program, "--port", str(free_port())]
    with running_program(command, space, environment, log=tmp_path / "log") as address:
        answer = new_client(address).predict(handle_file(published.photographs[0]), "bolt", api_name="/inspect")
    assert answer[0]["product"] == "bolt"


def not_required(path: Path) -> set[str]:
    """Top-level modules of all that is installed here and that a requirements.txt does not bring along."""
    asked, brought = [pin.name for pin in map(Requirement, _requirements(path))], set()
    while asked:
        name = canonicalize_name(asked.pop())
        if name in brought:
            continue
        brought.add(name)
        wanted = map(Requirement, requires(name) or [])
        asked += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    owners = packages_distributions().items()
    hidden = {module for module, names in owners if not brought & {canonicalize_name(name) for name in names}}
    return hidden - {"demo", "modeling_anople"}  # which a Space has as files


def test_what_requirements_do_not_bring_along_is_hidden():
    hidden = not_required(ROOT / "demo/requirements.txt")
    assert {"pytest", "selenium", "matplotlib", "onnx"} <= hidden
    assert not hidden & {"torch", "gradio", "starlette", "gradio_client", "sympy", "pyarrow"}


# The tests' environment has the package installed from this checkout, and more libraries than a Space has. Here the
# Space's own copy must be what runs, and what its requirements bring along must be enough.
_WITHOUT_THE_CHECKOUT = """
import importlib.machinery, runpy, sys

class Required(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        found = super().find_distributions(context)
        return (one for one in found if one.name.lower().replace("-", "_") not in {hidden!r})

sys.argv[0] = "demo/app.py"
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.meta_path = [Required if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
sys.path = [place for place in sys.path if place not in ("", {checkout!r})]
program = runpy.run_path("demo/app.py")
import modeling_anople, demo
assert all({checkout!r} not in module.__file__ for module in (modeling_anople, demo)), modeling_anople.__file__
sys.exit(program["main"](sys.argv[1:]))
"""


def test_a_second_push_removes_what_is_gone_and_leaves_the_rest(client):
    assert client.call(push_space, "me/again")[0] == 0
    operations = client.call(add_files, "me/again", ["demo/old.py", "notes.txt"])
    assert operations
    code, _, errors = client.call(push_space, "me/again", "--message", "Once more")
    assert code == 0, errors
    files = client.call(files_of, "me/again", repo_type="space")
    assert "demo/old.py" not in files and "notes.txt" in files and "demo/checkpoint.txt" not in files


def add_files(repository: str, names: list[str]) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(name, b"old") for name in names]
    return HfApi().create_commit(repository, operations, commit_message="By hand", repo_type="space").oid


def test_what_cannot_be_is_refused(client, published):
    code, _, errors = client.call(push_space, "me/wrong", "--model", published.detector)
    assert code == 2 and "which a Space cannot see: push it first" in errors
    code, _, errors = client.call(push_space, "me/wrong", "--model", "me/nothing-there")
    assert code == 2 and "me/nothing-there" in errors and "Traceback" not in errors
    code, _, errors = client.call(push_space, "another/space")
    assert code == 2 and "403" in errors and "Nothing was changed" in errors
    code, _, errors = client.call(push_space, "space")
    assert code == 2 and "names no owner" in errors
    assert client.call(push_space, "me/open")[0] == 0
    code, _, errors = client.call(push_space, "me/open", "--private")
    assert code == 2 and "exists and is public" in errors


def test_a_dry_run_shows_what_would_be_sent(tmp_path):
    assert main(["me/shown", "--dry_run", str(tmp_path / "space")]) == 0
    assert (tmp_path / "space/demo/app.py").read_bytes() == (ROOT / "demo/app.py").read_bytes()
    assert main(["me/shown", "--dry_run", str(tmp_path / "space")]) == 2


def test_the_header_is_a_valid_one():
    head = yaml.safe_load((ROOT / "demo/README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["sdk"] == "gradio" and head["app_file"] == "demo/app.py" and head["license"] == "apache-2.0"
    assert len(head["short_description"]) <= 60 and isinstance(head["python_version"], str)
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {head["colorFrom"], head["colorTo"]} <= colors
    pins = [Requirement(line) for line in _requirements()]
    assert head["sdk_version"] == next(str(pin.specifier)[2:] for pin in pins if pin.name == "gradio")


def test_requirements_are_pinned_and_within_the_package_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {pin.name: pin for pin in map(Requirement, _requirements())}
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins.values())
    extras = project["optional-dependencies"]
    wanted_by_the_demo = [*project["dependencies"], *extras["train"], *extras["demo"]]
    for wanted in map(Requirement, wanted_by_the_demo):
        if wanted.name == "anople":  # lies beside the demo
            continue
        assert str(pins[wanted.name].specifier)[2:] in wanted.specifier, wanted


def _requirements(path: Path = ROOT / "demo/requirements.txt") -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
