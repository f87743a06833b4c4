"""How much of its first weights a CLIP keeps is chosen on drawn products, and the best is written."""

from functools import partial

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from hub import blend_mini_clip as program
from hub import pretrain_mini_clip
from hub.blend_mini_clip import main
from hub.draughtsman.episodes import Draughtsman
from hub.mini_clip import blend, write_checkpoint
from hub.mini_tokenizer import train_tokenizer


NAME = "visual_projection.weight"


class NearestToAQuarter:
    """A stand-in that likes a CLIP best whose projection has moved by a quarter from 1 towards 0."""

    def __init__(self, folder, seed):
        assert folder.name == f"drawn{seed}"

    def measure(self, clip, layers):
        away = (clip.state_dict()[NAME] - 0.75).abs().max().item()
        return {**dict.fromkeys(program.FIGURES, 50.0), "score": -away}


@pytest.fixture
def first(monkeypatch) -> CLIPModel:
    monkeypatch.setattr(pretrain_mini_clip, "Draughtsman", partial(Draughtsman, per_kind=1))
    options = pretrain_mini_clip.PretrainingConfig(seed=3, layers=2)
    return pretrain_mini_clip.build_learner(options).clip


def test_halves_are_means_and_ends_the_clips_themselves(first):
    other = {name: weight + 1 if weight.is_floating_point() else weight for name, weight in first.state_dict().items()}
    for share, moved in ((0, 0.0), (0.5, 0.5), (1, 1.0)):
        blended = blend(first, other, share).state_dict()
        for name, weight in first.state_dict().items():
            expected = weight + moved if weight.is_floating_point() else weight
            assert torch.allclose(blended[name], expected, atol=1e-6), name


def test_the_best_share_is_written(first, tmp_path, monkeypatch, capsys):
    built = pretrain_mini_clip.build_learner

    def of_zeros(config):
        assert (config.seed, config.layers, config.width) == (3, 2, 192)
        learner = built(config)
        learner.clip.visual_projection.weight.data.zero_()
        return learner

    monkeypatch.setattr(program, "build_learner", of_zeros)
    monkeypatch.setattr(program, "DrawnValidation", NearestToAQuarter)
    first.visual_projection.weight.data.fill_(1.0)
    write_checkpoint(tmp_path / "trained", first, train_tokenizer())
    main([str(tmp_path / "trained"), str(tmp_path / "out"), "--seed", "3"])
    table = (tmp_path / "out/table.md").read_text()
    assert table in capsys.readouterr().out and len(table.splitlines()) == 2 + 5
    written = CLIPModel.from_pretrained(tmp_path / "out/checkpoint", dtype=torch.float32)
    assert torch.allclose(written.state_dict()[NAME], torch.tensor(0.75))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out/checkpoint")) == 2048
