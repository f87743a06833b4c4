"""Who may import whom, and what travels to the Hub: kept by reading the source."""

import ast
import functools
import sys
from pathlib import Path

import pytest

import modeling_anople


PACKAGE = Path(modeling_anople.__file__).parent
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
TRAVELLING = [name for name in MODULES if name.endswith("_anople")]
HUB_LIBRARIES = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"}
OUTSIDE = {"hub", "demo", "tests", "modeling_anople"}


@functools.cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def libraries(name: str) -> set[str]:
    """Top-level names of all absolute imports, also of those inside functions."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@functools.cache
def siblings(name: str) -> set[str]:
    """Modules of the package that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{name} imports from above the package"
            found |= {alias.name for alias in node.names} if node.module is None else {node.module}
    return found


@functools.cache
def reachable(name: str, *, seen: tuple[str, ...] = ()) -> set[str]:
    """All modules that importing one brings along; a cycle fails."""
    assert name not in seen, f"cycle: {' -> '.join((*seen, name))}"
    found = set()
    for sibling in siblings(name):
        found |= {sibling} | reachable(sibling, seen=(*seen, name))
    return found


@pytest.mark.parametrize("name", TRAVELLING)
def test_what_travels_is_flat_and_needs_few_libraries(name):
    assert libraries(name) <= HUB_LIBRARIES | sys.stdlib_module_names
    assert siblings(name) <= set(TRAVELLING)
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ImportFrom) and node.level:  # the Hub finds `from .name_anople import X` alone
            assert node.module and "." not in node.module


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    assert siblings(name) <= set(MODULES)
    assert not libraries(name) & OUTSIDE
    assert name not in reachable(name)


@pytest.mark.parametrize(
    "name",
    [
        "data",
        "synthesis",
        "metrics",
        "visualization",
        "backbone_anople",
        "photographs_anople",
        "sources_anople",
        "support_anople",
        "verdict_anople",
        "tiling_anople",
        "threads_anople",
        "names_anople",
        "devices",
    ],
)
def test_pure_modules_import_no_sibling(name):
    assert name in MODULES and not siblings(name)


def test_the_processor_knows_only_photographs_threads_verdicts_names_and_where_a_clip_comes_from():
    known = {"backbone_anople", "ignoring_anople", "names_anople", "photographs_anople", "threads_anople"}
    assert siblings("processing_anople") == known | {"verdict_anople"}


def test_training_cannot_see_a_test_score():
    assert not reachable("training") & {"evaluation", "gallery", "metrics"}


def test_the_method_does_not_know_its_tools():
    tools = {"training", "prediction", "evaluation", "gallery", "loading", "cli", "data", "fewshot", "metrics"}
    assert not set().union(*(reachable(name) for name in TRAVELLING)) & {*tools, "visualization"}


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_long(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 320


@pytest.mark.parametrize("name", MODULES)
def test_nothing_unsafe_or_fragile_is_used(name):
    assert not libraries(name) & {"torchvision", "cv2", "pickle", "dill", "joblib", "matplotlib"}
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save"), ("np", "load")}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "eval", "exec"}


def test_a_saved_detector_carries_the_code_it_needs_and_no_other(make_model, make_processor, tmp_path):
    make_model().save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    saved = {path.stem for path in tmp_path.glob("*.py")}
    needed = {"modeling_anople", "processing_anople", *reachable("modeling_anople")}
    assert saved == needed and saved <= set(TRAVELLING)
    for name in saved:
        assert (tmp_path / f"{name}.py").read_bytes() == MODULES[name].read_bytes()


def test_the_wheel_holds_the_package_alone():
    project = PACKAGE.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("installed without its repository")
    assert 'packages = ["modeling_anople"]' in project.read_text(encoding="utf-8")


def test_what_publishes_knows_neither_the_tests_nor_the_demo():
    files = sorted((PACKAGE.parent / "hub").rglob("*.py"))
    if not files:
        pytest.skip("installed without its repository")
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.level == 0 else []
            assert not {name.split(".")[0] for name in names} & {"tests", "demo"}, path
