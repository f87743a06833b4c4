"""
Publish the demo as a Space: `anople push_space user/name --model user/detector`.

In a checkout `python -m hub.publish.space` is the same.

The demo, the package that it needs and the name of the detector go up in one commit; requirements are pinned. Nothing of
the demo is imported here: it is copied.
"""

import fnmatch
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard

import modeling_anople
from modeling_anople.runtime import run_program
from modeling_anople.runtime.loading import load_config
from modeling_anople.runtime.outputs import check_new_folder

from .upload import check_repo_id, compare_hashes, explained_failures, tell


ROOT = Path(__file__).resolve().parents[2]  # a checkout, or the folder programs/ of an installed package
PACKAGE = Path(modeling_anople.__file__).parent
CHECKPOINT_FILE = "demo/checkpoint.txt"  # where the demo looks for its detector
# What a push may replace or remove; anything else in a Space is left alone.
OWN_FILES = ("README.md", "requirements.txt", "LICENSE", "demo/*", "modeling_anople/*")


@dataclass
class PushSpaceOptions:
    """Options of `anople push_space`."""

    model: str | None = field(
        default=None,
        metadata={"help": "Hub id of the detector (user/name or user/name@revision); without it, drawn products."},
    )
    private: bool = field(default=False, metadata={"help": "Make a new Space that only you can see."})
    message: str = field(default="Upload AnoPLe demo", metadata={"help": "First line of the commit."})
    dry_run: str | None = field(default=None, metadata={"help": "Write what would be sent into this folder instead."})


def push_space(repo_id: str, options: PushSpaceOptions) -> str:
    """
    Publish the demo.

    Args:
        repo_id: user/name of the Space.

    Returns:
        The address of the commit, or the folder of a dry run.

    Raises:
        ValueError: for a wrong id, a model that is no detector on the Hub, a folder that is not empty, a public Space
            where a private one was asked for, and what the Hub refuses.
    """
    check_repo_id(repo_id)
    if options.dry_run:
        check_new_folder(options.dry_run, "--dry_run")
    if options.model:
        if Path(options.model).exists():
            raise ValueError(f"--model {options.model} is a folder here, which a Space cannot see: push it first.")
        load_config(options.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.dry_run or temporary)
        write_space(folder, options.model)
        return str(folder) if options.dry_run else _upload(folder, repo_id, options)


def write_space(folder: Path, model: str | None = None) -> None:
    """Write all files of the Space into a folder."""
    demo = ROOT / "demo"
    (folder / "demo").mkdir(parents=True, exist_ok=True)
    # the demo and the package as they lie here: what was tested is what runs there
    for path in sorted(demo.glob("*.py")):
        shutil.copy(path, folder / "demo")
    ignore = shutil.ignore_patterns("__pycache__", "*.py[co]", "programs")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignore)
    shutil.copy(ROOT / "LICENSE", folder)
    shutil.copy(demo / "requirements.txt", folder)
    card = RepoCard((demo / "README.md").read_text(encoding="utf-8"))
    if model:
        card.data["models"] = [model.partition("@")[0]]
        (folder / CHECKPOINT_FILE).write_text(f"{model}\n", encoding="utf-8")
    card.save(folder / "README.md")


def _upload(folder: Path, repo_id: str, options: PushSpaceOptions) -> str:
    """Send a folder in one commit, remove what an earlier push left over, and compare hashes."""
    api, space = HfApi(), {"repo_type": "space"}
    with explained_failures(repo_id):
        api.create_repo(repo_id, space_sdk="gradio", private=options.private or None, exist_ok=True, **space)
        known = api.space_info(repo_id)
        if options.private and not known.private:
            raise ValueError(f"--private was given, but {repo_id} exists and is public: make it private, or rename.")
        sent = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        gone = [entry.rfilename for entry in known.siblings if _is_left_over(entry.rfilename, sent)]
        operations = [CommitOperationAdd(name, path) for name, path in sent.items()]
        operations += [CommitOperationDelete(name) for name in gone]
        commit = api.create_commit(
            repo_id, operations, commit_message=options.message, parent_commit=known.sha, **space
        )
    compare_hashes(api, repo_id, commit.oid, operations, **space)
    return commit.commit_url


def _is_left_over(name: str, sent: dict[str, Path]) -> bool:
    return name not in sent and any(fnmatch.fnmatch(name, pattern) for pattern in OWN_FILES)


def main(arguments: list[str] | None = None, *, program: str = "python -m hub.publish.space") -> int:
    """Run the program, under the name that it was called by."""
    return run_program(
        program,
        PushSpaceOptions,
        lambda places, options: tell(push_space(places.repo_id, options), options.dry_run),
        arguments,
        repo_id="user/name of the Space; made if it does not exist.",
    )


if __name__ == "__main__":
    sys.exit(main())
