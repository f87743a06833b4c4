"""Where a detector computes: by itself, as told, or a refusal that says what is there."""

import json
import multiprocessing
import os

import pytest
import torch

from hub.reproduce.options import ReproduceOptions
from modeling_anople.cli import main
from modeling_anople.data import shards as bulk
from modeling_anople.runtime import loading
from modeling_anople.runtime.loading import computing_device, loader_workers, one_order_of_sums

from . import fitting
from .detectors import write_detector


def test_a_gpu_is_taken_where_there_is_one_unless_accelerate_was_told_to_keep_off(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(device) or torch.zeros(0))
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    computing_device()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    computing_device()
    computing_device("cuda:1")
    assert asked == ["cuda", "cpu", "cuda:1"]


def test_without_a_gpu_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert computing_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "abacus", "xpu:7"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(ValueError, match=f"The device '{name}' cannot be used here .*: take cpu"):
        computing_device(name)


def test_the_programs_say_so_before_they_judge(tmp_path, small_clip_folder, photograph, capsys):
    detector = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    photograph(1).save(tmp_path / "photograph.png")
    for program in ("predict", "evaluate"):
        assert main([program, str(detector), str(tmp_path / "photograph.png"), "--device", "abacus"]) == 2
        assert "The device 'abacus' cannot be used here" in capsys.readouterr().err
    assert main(["predict", str(detector), str(tmp_path / "photograph.png"), "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("normal", "anomalous")


def test_processes_are_joined_before_a_device_is_taken(monkeypatch, tmp_path):
    """Each of several processes has its own GPU only after that."""
    done = []
    monkeypatch.setattr(loading, "join_processes", lambda: done.append("joined"))
    monkeypatch.setattr(loading, "load_judge", lambda *arguments: done.append("loaded") or (None, None))
    monkeypatch.setattr(bulk, "predict_shards", lambda *arguments, **options: 0)
    (tmp_path / "shard.parquet").touch()
    assert main(["predict", "detector", str(tmp_path / "shard.parquet"), "--output", str(tmp_path)]) == 0
    assert done == ["joined", "loaded"]


def test_a_gpu_has_its_photographs_prepared_by_other_processes_and_a_cpu_has_not(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    assert loader_workers(torch.device("cpu")) == 0
    assert [loader_workers(torch.device("cuda", 1), processes) for processes in (1, 2, 4, 16)] == [8, 6, 3, 0]
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert loader_workers(torch.device("cuda")) == 0


def test_one_order_of_sums_leaves_things_as_they_were(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = torch.are_deterministic_algorithms_enabled()
    with one_order_of_sums(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled() == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(KeyError), one_order_of_sums(torch.device("cuda")):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise KeyError
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(before)


def test_a_table_is_refused_a_device_before_its_first_fit():
    with pytest.raises(ValueError, match="'abacus' cannot be used"):
        ReproduceOptions("data", device="abacus")


@pytest.mark.parametrize("more", [[], ["--class", "bolt"], ["--explain"], ["--class", "nut", "--tiling", "2,2"]])
def test_bfloat16_answers_nearly_alike(tmp_path, small_clip_folder, photograph, capsys, more):
    detector = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    photograph(1).save(tmp_path / "photograph.png")
    rows = []
    for dtype in ("float32", "bfloat16"):
        assert main(["predict", str(detector), str(tmp_path / "photograph.png"), "--dtype", dtype, *more]) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert rows[1]["raw_score"] == pytest.approx(rows[0]["raw_score"], abs=0.02)
    assert rows[1]["raw_score"] != rows[0]["raw_score"] and rows[1].keys() == rows[0].keys()


def test_evaluation_in_bfloat16(tmp_path, small_clip_folder, photograph):
    detector = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    data = fitting.write_products(tmp_path / "data", photograph)
    report = tmp_path / "report.json"
    assert main(["evaluate", str(detector), str(data), "--dtype", "bfloat16", "--json", str(report)]) == 0
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["mean"]["pixel_auroc"] is not None and found["dtype"] == "bfloat16"
