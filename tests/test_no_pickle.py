"""No pickle is read or written: not by the package, not by what publishes detectors, and none lies on the Hub."""

import ast
import io
import pickle
import zipfile

import pytest
import torch

from .fitting import REPOSITORY
from .hub.test_publish import push_well
from .local_hub.client import download


FILES = sorted(
    path for folder in ("modeling_anople", "hub") for path in (REPOSITORY / folder).rglob("*.py") if path.is_file()
)
UNPICKLING = REPOSITORY / "hub/open_clip/checkpoints.py"
LIBRARIES = {"pickle", "dill", "joblib", "shelve", "cloudpickle", "marshal"}
SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".zip")
CALLS = {
    ("torch", "load"),
    ("torch", "save"),
    ("np", "load"),
    ("np", "save"),
    ("numpy", "load"),
    ("pd", "read_pickle"),
}


def is_pickle(content: bytes) -> bool:
    """Tell a pickle by its first bytes (protocol 2 and later), and torch's archives of them by those of a zip file."""
    return content[:1] == b"\x80" and content[1:2] in b"\2\3\4\5" or content[:4] == b"PK\3\4"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_uses_pickle(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        assert not {name.split(".")[0] for name in names} & LIBRARIES
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else None
            if (owner, node.func.attr) == ("torch", "load"):  # a published file of another project, weights alone
                safe = [keyword for keyword in node.keywords if keyword.arg == "weights_only"]
                assert path == UNPICKLING and safe and safe[0].value.value is True
            else:
                assert (owner, node.func.attr) not in CALLS


def test_the_signs_of_a_pickle_are_known():
    file = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, file)
    assert is_pickle(file.getvalue()) and is_pickle(pickle.dumps([1])) and not is_pickle(b'{"a": 1}')
    with zipfile.ZipFile(archive := io.BytesIO(), "w") as zipped:
        zipped.writestr("a", "b")
    assert is_pickle(archive.getvalue())


@pytest.mark.parametrize("options", [[], ["--adapter"]], ids=["full", "adapter"])
def test_a_pushed_repository_holds_none(client, published, tmp_path, options):
    name = f"me/no-pickle{len(options)}"
    extras = ["--evaluation", published.evaluation, "--gallery", published.gallery]
    push_well(client, published.detector, name, *extras, *options)
    content = client.call(download, name, tmp_path)
    assert len(content) > 15
    for path, bytes_of_file in content.items():
        assert not path.endswith(SUFFIXES) and not is_pickle(bytes_of_file), path
        if path.endswith(".safetensors"):  # begins with the length of a header in JSON
            assert int.from_bytes(bytes_of_file[:8], "little") < len(bytes_of_file) and bytes_of_file[8:9] == b"{"
