"""Where open_clip is, and what it computed: shared by the tests of the conversion."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from hub.convert_open_clip import main
from hub.open_clip_format import ARCHITECTURES


PACKAGES = Path(sys.prefix) / "open_clip"  # aside, see tests/open_clip_requirements.txt
VOCABULARY = PACKAGES / "open_clip" / "bpe_simple_vocab_16e6.txt.gz"
PROGRAM = Path(__file__).with_name("open_clip_reference.py")


class Reference(NamedTuple):
    """Files that open_clip wrote."""

    folder: Path

    def answers(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.answers")

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def facts(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))


def run_open_clip(folder: Path) -> Reference:
    """Let open_clip write weights and answers, in a process that alone sees its torchvision."""
    if not VOCABULARY.exists():
        pytest.skip(
            "open_clip is not installed: pip install --no-deps --target .venv/open_clip -r tests/open_clip_requirements.txt"
        )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(PROGRAM), str(folder), *ARCHITECTURES]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return Reference(folder)


def convert(*arguments) -> None:
    """Run the conversion program, which must succeed."""
    main([str(argument) for argument in ("--tokenizer", VOCABULARY, *arguments)])


def differences(folder: Path, answers: dict[str, torch.Tensor]) -> dict[str, float]:
    """Compare a converted folder with open_clip: largest difference of each kind of feature."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        vision = clip.vision_model(answers["pixels"], output_hidden_states=True)
        found = {
            "image": clip.visual_projection(vision.pooler_output),
            "patches": clip.vision_model.post_layernorm(vision.last_hidden_state[:, 1:]),
            "block": vision.hidden_states[2][:, 1:],
            "text": clip.get_text_features(answers["tokens"]).pooler_output,
            "scale": clip.logit_scale.exp(),
        }
    assert all(found[name].shape == answers[name].shape for name in found)
    return {name: float((value - answers[name]).abs().max()) for name, value in found.items()}
