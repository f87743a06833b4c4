"""State of an unfinished fit, in one safetensors file that is replaced whole: kill the program at any time and go on."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


STATE_FILE = "unfinished.safetensors"


def save_state(folder: Path, *, step: int, settings: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """
    Write learnable weights, optimiser state and the step, without pickle and without the frozen CLIP.

    Samples, noise and learning rate are functions of the step, so nothing else is needed to go on exactly.
    """
    tensors = {f"model.{name}": weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    for number, entries in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{number}.{name}": value for name, value in entries.items()})
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    unfinished = folder / f"{STATE_FILE}.part"
    save_file(tensors, unfinished, metadata={"step": str(step), "settings": json.dumps(settings, sort_keys=True)})
    os.replace(unfinished, folder / STATE_FILE)


def load_state(folder: Path, *, settings: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """
    Bring model and optimiser to where [`save_state`] left them.

    Returns:
        The number of steps done; 0 if the folder holds no state.

    Raises:
        ValueError: if the state belongs to a fit with other settings, naming those that differ, or is damaged.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, known = int(metadata["step"]), json.loads(metadata["settings"])
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it and start anew without --resume.") from error
    now = json.loads(json.dumps(settings, sort_keys=True))
    differing = sorted(name for name in {*known, *now} if known.get(name) != now.get(name))
    if differing:
        pairs = ", ".join(f"{name}: {known.get(name)!r} then, {now.get(name)!r} now" for name in differing)
        raise ValueError(f"--resume in {folder} with other settings ({pairs}): repeat them, or start in a new folder.")
    weights = dict(model.named_parameters())
    state: dict[int, dict] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            if part == "model":
                weights[rest].copy_(tensor)
            else:
                number, entry = rest.split(".", 1)
                state.setdefault(int(number), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def trim_log(path: Path, step: int) -> None:
    """Drop what a log says of steps after `step`: a resumed fit repeats them, and a fresh one starts its log anew."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


__all__ = ["STATE_FILE", "load_state", "save_state", "trim_log"]
