"""What transformers' own tests may fail at: the tests that `transformers_exceptions.md` lists, and they must."""

import re
from pathlib import Path

import pytest

from .upstream import SOURCE


EXCEPTIONS = Path(__file__).parents[1] / "transformers_exceptions.md"
ROW = re.compile(r"\| `(\w+)::(test_\w+)` \| (.+) \|")
MARKERS = ("accelerate_tests", "flash_attn_3_test", "flash_attn_4_test", "flash_attn_mps_test", "flash_attn_test")
MARKERS += (
    "is_expert_parallel_test",
    "is_fsdp_test",
    "is_pipeline_test",
    "is_tensor_parallel_test",
    "is_training_test",
)
MARKERS += ("generate", "order", "slow", "torch_compile_test")
collect_ignore_glob = [] if SOURCE else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Know the marks of transformers' tests."""
    for name in MARKERS:
        config.addinivalue_line("markers", f"{name}: of transformers' own tests")


def listed() -> dict[tuple[str, str], str]:
    """The reason of each listed test, by the names of its class and itself."""
    rows = map(ROW.fullmatch, EXCEPTIONS.read_text(encoding="utf-8").splitlines())
    return {(row[1], row[2]): row[3] for row in rows if row}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect listed tests to fail: one that passes fails the run, as does one that does not exist."""
    ours = [item for item in items if item.path.parent == Path(__file__).parent and item.cls]
    reasons, classes = listed(), {item.cls.__name__ for item in ours}
    for item in ours:
        if reason := reasons.pop((item.cls.__name__, item.name), None):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    if unknown := [name for name in reasons if name[0] in classes]:
        raise pytest.UsageError(f"{EXCEPTIONS.name} lists tests that do not exist: remove {unknown}.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Fail a listed test that was skipped: it needs no exception."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("xfail"):
        report.outcome, report.longrepr = "failed", f"{item.name} is skipped: remove it from {EXCEPTIONS.name}."
    return report
