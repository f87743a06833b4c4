"""The program: what it may import, how it is started, and which detector it takes."""

import ast
from pathlib import Path

import pytest

from demo.app import chosen_checkpoint
from modeling_anople.cli import __main__ as cli


DEMO = Path(__file__).resolve().parents[2] / "demo"


@pytest.mark.parametrize("path", sorted(DEMO.glob("*.py")), ids=lambda path: path.name)
def test_the_demo_knows_the_package_alone(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    }
    modules |= {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert not modules & {"hub", "tests", "torchvision", "pickle", "cv2"}


def test_anople_demo_runs_the_one_that_came_with_the_package(capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--help"])
    assert ended.value.code == 0 and "usage: anople demo" in capsys.readouterr().out
    assert cli.main(["demo", str(tmp_path)]) == 2
    assert "holds no detector" in capsys.readouterr().err
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "modeling_anople" / "cli" / "__main__.py"))
    assert cli.main(["demo"]) == 2
    assert "came without demo/app.py: install a wheel of anople" in capsys.readouterr().err


def test_the_detector_is_chosen_in_order(monkeypatch, tmp_path):
    monkeypatch.delenv("ANOPLE_CHECKPOINT", raising=False)
    monkeypatch.setattr("demo.app.CHECKPOINT_FILE", tmp_path / "checkpoint.txt")
    assert chosen_checkpoint(None) is None
    (tmp_path / "checkpoint.txt").write_text("user/name\n")
    assert chosen_checkpoint(None) == "user/name"
    monkeypatch.setenv("ANOPLE_CHECKPOINT", "other/name")
    assert chosen_checkpoint(None) == "other/name" and chosen_checkpoint("given") == "given"
