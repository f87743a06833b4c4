"""A fit that is killed goes on as if nothing had happened."""

import multiprocessing
import os
import shlex
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_anople import cli
from modeling_anople.training.finishing import STATE_FILE, load_state, save_state, trim_log

from . import fitting
from .fitting import assert_same_weights, read_log, write_products


LONG = [
    "--shots",
    "2",
    "--max_steps",
    "40",
    "--batch_size",
    "2",
    "--log_steps",
    "1",
    "--save_steps",
    "2",
    "--monitor_images",
    "2",
]
FEW = [
    *("--shots", "1", "--max_steps", "6", "--batch_size", "2", "--log_steps", "1", "--monitor_images", "2"),
]
SETTINGS = {"seed": 0, "files": {"bolt": ["000.png"]}, "rate": 0.1, "classes": None}


@pytest.fixture(scope="module")
def products(tmp_path_factory, photograph) -> Path:
    return write_products(tmp_path_factory.mktemp("products"), photograph)


@pytest.fixture
def fit(products, small_clip_folder, tmp_path):
    """Fit a detector to the products in this process."""

    def run(*options: str, output: str = "detector") -> Path:
        return fitting.fit(*options, data=products, clip=small_clip_folder, output=tmp_path / output)

    return run


@pytest.fixture(scope="module")
def killed_once(products, small_clip_folder, tmp_path_factory) -> Path:
    """The folder of a fit that was ended by SIGKILL soon after its first state."""
    detector = tmp_path_factory.mktemp("killed") / "detector"
    fit = partial(fitting.fit, *LONG, data=products, clip=small_clip_folder, output=detector)
    process = multiprocessing.get_context("fork").Process(target=fit)
    process.start()
    deadline = time.monotonic() + 120
    while not (detector / STATE_FILE).exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return detector


@pytest.fixture
def killed(killed_once, tmp_path) -> Path:
    """A copy of that folder, where `fit` writes by default."""
    return shutil.copytree(killed_once, tmp_path / "detector")


def steps_done(folder: Path) -> int:
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        return int(file.metadata()["step"])


def test_a_killed_fit_resumes_to_the_same_weights(fit, killed):
    assert 2 <= steps_done(killed) < 40 and not (killed / "model.safetensors").exists()
    whole = fit(*LONG, output="whole")
    assert fit(*LONG, "--resume", "--save_steps", "7") == killed
    assert_same_weights(whole, killed)
    assert [line["step"] for line in read_log(killed)] == list(range(1, 41))
    assert read_log(killed) == read_log(whole)
    assert not list(killed.glob(f"{STATE_FILE}*")) and not list(whole.glob(f"{STATE_FILE}*"))


@pytest.fixture(scope="module")
def whole(products, small_clip_folder, tmp_path_factory) -> Path:
    """What `FEW` steps give that nobody stops."""
    return fitting.fit(*FEW, data=products, clip=small_clip_folder, output=tmp_path_factory.mktemp("whole") / "it")


def stop_at(step: int, folder: Path, arguments: list, *signals: int) -> int:
    """Run `anople fit`; send signals when it opens its log for a step, the sixth one's, before the first its
    photographs, or behind the last what it saves."""
    waiting = list(signals)

    def send(path: str) -> None:
        log = folder / "training_log.jsonl"
        done = len(log.read_text("utf-8").splitlines()) if log.exists() else 0
        where = {0: ".png", 7: ".safetensors"}.get(step, str(log))
        if done == max(0, step - 1) and path.endswith(where):
            while waiting:
                signal.raise_signal(waiting.pop())

    with fitting.one_process(), fitting.watching_files(send):
        return cli.main(["fit", *map(str, arguments)])


@pytest.mark.parametrize(
    ("step", "signals", "saved"),
    [
        (3, [signal.SIGTERM], 3),
        (3, [signal.SIGINT, signal.SIGINT], 2),  # the second ends at once: the step at hand is lost
        (7, [signal.SIGINT], 6),  # while memory and lines are made
    ],
)
def test_a_fit_that_is_told_to_stop_keeps_its_steps(
    products, small_clip_folder, tmp_path, whole, capfd, step, signals, saved
):
    folder = tmp_path / "a detector"
    arguments = [products, "--clip", small_clip_folder, "--output_dir", folder, "--overwrite", *FEW]
    save = ["--save_steps", "2"] if len(signals) == 2 else []
    assert stop_at(step, folder, [*arguments, *save], *signals) == 128 + signals[-1]
    assert not (folder / "model.safetensors").exists() and steps_done(folder) == saved
    said = f"anople fit: stopped with {saved} of 6 steps saved. Go on with: anople "
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith(said)]
    words = shlex.split(line.removeprefix(said))
    assert words[:2] == ["fit", str(products)] and "--overwrite" not in words
    with fitting.one_process():
        assert cli.main(words) == 0
    assert_same_weights(whole, folder)
    assert read_log(folder) == read_log(whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_processes_stop_together_where_one_is_asked_while_another_saves_the_last_step(
    products, small_clip_folder, tmp_path
):
    folder = tmp_path / "detector"
    arguments = ["fit", products, "--clip", small_clip_folder, "--output_dir", folder, *FEW]

    def fit_one(other: int | None) -> int:
        waiting = [other] if other else []

        def send(path: str) -> None:
            if waiting and STATE_FILE in path:
                os.kill(waiting.pop(), signal.SIGTERM)
                time.sleep(0.3)  # until it is there

        with fitting.watching_files(send):
            return cli.main([*map(str, arguments), "--save_steps", "6"])

    assert fitting.in_two_processes(fit_one) == [128 + signal.SIGINT, 128 + signal.SIGTERM]
    assert steps_done(folder) == 6 and not (folder / "model.safetensors").exists()


def test_a_fit_that_is_stopped_before_its_first_step_keeps_nothing(products, small_clip_folder, tmp_path, capfd):
    arguments = [products, "--clip", small_clip_folder, "--output_dir", tmp_path / "detector", *FEW]
    assert stop_at(0, tmp_path / "detector", arguments, signal.SIGTERM) == 143
    assert "anople fit: stopped before its first step." in capfd.readouterr().err.splitlines()


def test_whatever_was_written_after_the_last_state_is_written_anew(fit, killed):
    """Lines of the log, the last of them in part, and half of the detector."""
    done = steps_done(killed)
    (killed / "model.safetensors").write_bytes(b"the first half of a detector")
    with (killed / "training_log.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"step": {done + 1}, "loss": 99.0}}\n{{"step": {done + 2}, "lo')
    with pytest.raises(ValueError, match="already holds a detector"):
        fit(*LONG)
    log = read_log(fit(*LONG, "--resume"))
    assert [line["step"] for line in log] == list(range(1, 41))
    assert all(line["loss"] < 50 for line in log)
    assert len(load_file(killed / "model.safetensors")) > 100


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--seed 1", ["seed: 0 then, 1 now", "files"]),
        ("--max_steps 50", ["max_steps: 40 then, 50 now"]),
        ("--prompt_length 2", ["prompt_length: None then, 2 now"]),
        ("--classes nut", ["classes: None then, ['nut'] now"]),
        ("--pixel_anomaly both --mixed_precision bf16", ["pixel_anomaly", "mixed_precision: 'no' then, 'bf16' now"]),
    ],
)
def test_other_settings_are_refused_and_named(fit, killed, options, names):
    before = (killed / STATE_FILE).read_bytes()
    with pytest.raises(ValueError, match="with other settings") as error:
        fit(*LONG, "--resume", *options.split())
    assert all(name in str(error.value) for name in names)
    assert (killed / STATE_FILE).read_bytes() == before


@pytest.mark.parametrize("damage", ["cut short", "not a state", "no settings"])
def test_a_damaged_state_is_refused_with_the_remedy(fit, killed, damage):
    state = killed / STATE_FILE
    if damage == "cut short":
        state.write_bytes(state.read_bytes()[:-1000])
    elif damage == "not a state":
        state.write_bytes(b"{}")
    else:
        save_file(load_file(state), state)
    with pytest.raises(ValueError, match=rf"{STATE_FILE} cannot be read .*: remove it"):
        fit(*LONG, "--resume")
    state.unlink()
    assert [line["step"] for line in read_log(fit("--resume"))] == [1, 2]


def test_without_a_state_a_resumed_fit_starts_anew(fit):
    plain, resumed = fit(output="plain"), fit("--resume", output="resumed")
    assert_same_weights(plain, resumed)


def test_a_fresh_fit_in_the_folder_of_a_killed_one_starts_its_own_log(fit, killed):
    assert len(read_log(killed)) > 1
    assert [line["step"] for line in read_log(fit("--max_steps", "1", "--save_steps", "9", "--overwrite"))] == [1]
    assert not (killed / STATE_FILE).exists()


@pytest.fixture
def make_learner():
    """Make a small network with a frozen part, and its optimiser; one seed, one start."""

    def make(seed: int = 0):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
        model[0].requires_grad_(False)
        return model, torch.optim.AdamW([{"params": model[2].parameters(), "base_lr": 0.5}], lr=0.1)

    return make


def learn(model, optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


def test_weights_and_optimiser_state_survive_exactly(make_learner, tmp_path):
    whole, optimizer = make_learner()
    learn(whole, optimizer, range(3))
    save_state(tmp_path, step=3, settings=SETTINGS, model=whole, optimizer=optimizer)
    learn(whole, optimizer, range(3, 6))
    model, optimizer = make_learner()
    with torch.no_grad():
        model[2].weight.add_(1)
    assert load_state(tmp_path, settings=dict(reversed(SETTINGS.items())), model=model, optimizer=optimizer) == 3
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.5]
    learn(model, optimizer, range(3, 6))
    assert all(
        torch.equal(weight, other) for weight, other in zip(model.parameters(), whole.parameters(), strict=True)
    )


def test_a_state_holds_no_frozen_weights(make_learner, tmp_path):
    model, optimizer = make_learner()
    learn(model, optimizer, range(1))
    save_state(tmp_path, step=1, settings=SETTINGS, model=model, optimizer=optimizer)
    names = set(load_file(tmp_path / STATE_FILE))
    assert {name for name in names if name.startswith("model.")} == {"model.2.weight", "model.2.bias"}
    assert len(names) == 2 + 2 * 3  # two moments and the step of each


def test_a_state_is_replaced_whole(make_learner, tmp_path):
    """What a killed save left behind is neither read nor in the way."""
    model, optimizer = make_learner()
    learn(model, optimizer, range(1))
    (tmp_path / f"{STATE_FILE}.part").write_bytes(b"half a state")
    assert load_state(tmp_path, settings=SETTINGS, model=model, optimizer=optimizer) == 0
    for step in (1, 2):
        save_state(tmp_path, step=step, settings=SETTINGS, model=model, optimizer=optimizer)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    assert load_state(tmp_path, settings=SETTINGS, model=model, optimizer=optimizer) == 2


def test_settings_that_came_or_went_are_named(make_learner, tmp_path):
    model, optimizer = make_learner()
    save_state(tmp_path, step=1, settings=SETTINGS, model=model, optimizer=optimizer)
    now = {**SETTINGS, "files": {"bolt": ["001.png"]}, "coupling": "none"}
    now.pop("rate")
    with pytest.raises(ValueError) as error:
        load_state(tmp_path, settings=now, model=model, optimizer=optimizer)
    for text in ("coupling: None then, 'none' now", "rate: 0.1 then, None now", "'001.png'"):
        assert text in str(error.value)
    assert "seed" not in str(error.value)


def test_the_log_is_cut_behind_a_step(tmp_path):
    log = tmp_path / "log.jsonl"
    trim_log(log, 3)
    assert not log.exists()
    log.write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n{"st', encoding="utf-8")
    trim_log(log, 3)
    assert log.read_text(encoding="utf-8") == '{"step": 2}\n{"step": 3}\n'
    trim_log(log, 0)
    assert log.read_text(encoding="utf-8") == ""
