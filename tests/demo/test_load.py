"""Several people at the demo at once, and an intruder: the benchmark, for six seconds."""

from hub.benchmarks.demo_load import Report, is_right, measure

from ..detectors import write_detector


def test_three_clients_and_an_intruder(tmp_path, small_clip_folder, photograph):
    detector = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    report = measure(str(detector), clients=3, minutes=6 / 60, threads=1)
    assert report.problems() == []
    assert len(report.inspected) >= 3 and len(report.taught) >= 3 and report.attempts >= 10
    assert len(report.memory) > 3 and "| wrong answers | 0 |" in report.table()


def test_what_must_not_be_is_said():
    numbers = {"verdict": "normal", "score": 0.25, "line": 0.5, "product": "nut", "found": False}
    assert is_right({**numbers, "milliseconds": 3.0}, numbers) and not is_right({**numbers, "score": 0.26}, numbers)
    assert not is_right(["nut"], ["nut", "bolt"])
    report = Report(8, 10, memory=[100, 100, 100, 100, 120, 120, 140, 140], wrong=["a"], lost=["b"], breaches=["c"])
    assert report.problems() == ["a", "b", "c", "The server's memory grew to 1.40 times."]
