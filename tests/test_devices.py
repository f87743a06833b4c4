"""Where a detector computes: by itself, as told, or a refusal that says what is there."""

import json

import pytest
import torch

from modeling_anople.cli import main
from modeling_anople.devices import computing_device

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
    with pytest.raises(ValueError, match=f"There is no device '{name}' here .*: take auto or cpu"):
        computing_device(name)


def test_the_programs_say_so_before_they_judge(tmp_path, small_clip_folder, photograph, capsys):
    detector = write_detector(tmp_path / "detector", small_clip_folder, photograph)
    photograph(1).save(tmp_path / "photograph.png")
    for program in ("predict", "evaluate"):
        assert main([program, str(detector), str(tmp_path / "photograph.png"), "--device", "abacus"]) == 2
        assert "There is no device 'abacus' here" in capsys.readouterr().err
    assert main(["predict", str(detector), str(tmp_path / "photograph.png"), "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("normal", "anomalous")


def test_a_graph_is_not_sent_elsewhere(tmp_path, small_clip_folder, photograph, capsys):
    detector, graph = write_detector(tmp_path / "detector", small_clip_folder, photograph), tmp_path / "graph"
    assert main(["export", str(detector), str(graph)]) == 0
    photograph(1).save(tmp_path / "photograph.png")
    assert main(["predict", str(graph), str(tmp_path / "photograph.png"), "--device", "cuda"]) == 2
    assert "computes on the CPU: leave out --device cuda" in capsys.readouterr().err
