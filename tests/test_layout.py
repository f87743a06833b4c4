"""Who may import whom, and what travels to the Hub: kept by reading the source."""

import ast
import functools
import sys
from pathlib import Path

import pytest

import modeling_anople


PACKAGE = Path(modeling_anople.__file__).parent
REPOSITORY = PACKAGE.parent
TRAVELLING = sorted(PACKAGE.glob("*_anople.py"))
FILES = sorted(PACKAGE.rglob("*.py"))
HUB_LIBRARIES = {
    "torch",
    "transformers",
    "huggingface_hub",
    "filelock",
    "numpy",
    "PIL",
}  # the Hub's client brings filelock

# Who stands on whom. A file may import from its own floor and from those before it, never from those behind it.
FLOORS = [
    ("configuration_anople.py", "images_anople.py", "tiling_anople.py"),  # facts and pictures
    ("*_anople.py",),  # the parts of the network, and what answers become
    ("modeling_anople.py",),
    ("inference_anople.py", "fitting_anople.py", "enrollment_anople.py", "explanation_anople.py"),
    ("pipeline_anople.py",),
    ("runtime/*", "export/*", "data/*"),
    ("training/*", "evaluation/*", "inspection/*"),
    ("cli/*",),
]
FORBIDDEN = [
    *(("training/*", "evaluation/*"), ("data/*", "training/*"), ("evaluation/*", "training/*")),
    *(("inspection/*", "training/*"), ("inspection/*", "evaluation/*")),
]


def matches(path: Path, pattern: str) -> bool:
    return path.relative_to(PACKAGE).match(pattern)


def floor_of(path: Path) -> int | None:
    """The floor whose pattern names a file most closely; the root's `__init__`, which is lazy, has none."""
    found = [
        (len(pattern.strip("*")), number)
        for number, floor in enumerate(FLOORS)
        for pattern in floor
        if matches(path, pattern)
    ]
    return max(found)[1] if found else None


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def libraries(path: Path) -> set[str]:
    """Top-level names of all absolute imports, also of those inside functions."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@functools.cache
def imported(path: Path) -> frozenset[Path]:
    """Files of the package that a file imports, also inside functions and for types alone."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for place in [base / alias.name for alias in node.names] + [base]:
            file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
            if file.exists() and file != PACKAGE / "__init__.py":
                found.add(file)
                if place != base:
                    continue
    return frozenset(found - {path})


def reachable(path: Path, *, seen: tuple[Path, ...] = ()) -> set[Path]:
    """All files that importing one brings along; a circle fails."""
    assert path not in seen, f"circle: {' -> '.join(each.name for each in (*seen, path))}"
    return set().union(*({each} | reachable(each, seen=(*seen, path)) for each in imported(path)))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", TRAVELLING, ids=name_of)
def test_what_travels_is_flat_and_needs_few_libraries(path):
    assert libraries(path) <= HUB_LIBRARIES | sys.stdlib_module_names
    assert imported(path) <= set(TRAVELLING)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.level:  # the Hub finds `from .name_anople import X` alone
            assert node.level == 1 and node.module and "." not in node.module


def test_the_root_holds_what_travels_and_nothing_else():
    assert set(PACKAGE.glob("*.py")) == {PACKAGE / "__init__.py", *TRAVELLING}


@pytest.mark.parametrize("path", [path for path in FILES if floor_of(path) is not None], ids=name_of)
def test_imports_point_down(path):
    assert not libraries(path) & {"hub", "demo", "tests", "modeling_anople"}
    for other in imported(path):
        assert floor_of(other) <= floor_of(path), f"{name_of(path)} stands on {name_of(other)}, which is above it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_make_no_circle(path):
    reachable(path)


@pytest.mark.parametrize("above, below", FORBIDDEN)
def test_some_folders_do_not_know_each_other(above, below):
    """Training cannot see a test score, and data know neither."""
    for path in FILES:
        if matches(path, above):
            assert not [name_of(each) for each in reachable(path) if matches(each, below)], name_of(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_unsafe_or_fragile_is_used(path):
    assert not libraries(path) & {"torchvision", "cv2", "pickle", "dill", "joblib", "matplotlib"}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save"), ("np", "load")}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "eval", "exec"}


def test_a_saved_detector_carries_the_code_it_needs_and_no_other(make_model, make_processor, tmp_path):
    make_model().save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.glob("*.py")}
    assert saved <= {path.name for path in TRAVELLING}
    for name in ("modeling_anople.py", "processing_anople.py", "pipeline_anople.py"):
        assert {each.name for each in reachable(PACKAGE / name)} | {name} <= saved
    for name in saved:
        assert (tmp_path / name).read_bytes() == (PACKAGE / name).read_bytes()


def test_what_publishes_knows_neither_the_tests_nor_the_demo():
    files = sorted((REPOSITORY / "hub").rglob("*.py"))
    if not files:
        pytest.skip("installed without its repository")
    for path in files:
        benchmark = "benchmarks" in path.parts  # some measure the demo
        assert not libraries(path) & ({"tests"} if benchmark else {"tests", "demo"}), path
