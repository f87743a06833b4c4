"""The training program: in one process and two, what it learns, what it logs and what it never opens."""

import logging
import shutil
import socket
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file

from modeling_anople import AnoPLeModel, AnoPLeProcessor, cli
from modeling_anople.losses_anople import LossTerm
from modeling_anople.training import TrainingConfig, combine_losses, learning_rate_factor, make_optimizer
from modeling_anople.training.finishing import STATE_FILE

from . import fitting
from .detectors import detector_of
from .fitting import (
    assert_it_predicts,
    assert_same_weights,
    launch,
    one_process,
    read_log,
    watching_files,
    weights_of,
    write_products,
)


SIX_STEPS = [
    "--shots",
    "2",
    "--max_steps",
    "6",
    "--batch_size",
    "4",
    "--log_steps",
    "1",
    "--monitor_images",
    "2",
    "--alignment_warmup",
    "0",
]
ACCELERATE = "-m accelerate.commands.accelerate_cli launch --num_machines 1 --mixed_precision no --dynamo_backend no"


@pytest.fixture(scope="module")
def products(tmp_path_factory, photograph) -> Path:
    return write_products(tmp_path_factory.mktemp("products"), photograph)


@pytest.fixture(scope="module")
def launched(products, small_clip_folder, tmp_path_factory) -> Path:
    """A detector that `accelerate launch` fitted in one process."""
    folder = tmp_path_factory.mktemp("launched")
    places = ["--data_root", products, "--clip", small_clip_folder, "--output_dir", folder / "detector"]
    launcher = [*ACCELERATE.split(), "--cpu", "--num_processes", "1", "-m", "modeling_anople.training"]
    launch([*launcher, *places, *SIX_STEPS], folder)
    return folder / "detector"


@pytest.fixture
def fit(products, small_clip_folder, tmp_path):
    """Fit a detector to the products in this process; two steps unless told otherwise."""

    def run(*options: str, data: Path = products, output: str = "detector") -> Path:
        return fitting.fit(*options, data=data, clip=small_clip_folder, output=tmp_path / output)

    return run


def test_accelerate_launch_and_anople_fit_give_the_same_weights(launched, products, small_clip_folder, tmp_path):
    places = ["--clip", str(small_clip_folder), "--output_dir", str(tmp_path / "detector")]
    with one_process():
        assert cli.main(["fit", str(products), *places, *SIX_STEPS]) == 0
    assert_same_weights(launched, tmp_path / "detector")
    assert read_log(launched) == read_log(tmp_path / "detector")
    fits = [AnoPLeModel.from_pretrained(folder).config.fit for folder in (launched, tmp_path / "detector")]
    assert fits[0] == fits[1] and fits[0]["processes"] == 1
    assert_it_predicts(launched, products, ["bolt/test/scratch/000.png", "nut/test/good/000.png"])


def test_two_processes_reach_the_losses_of_one(launched, products, small_clip_folder, tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts one process; more on a CPU go through torchrun (multi_gpu)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = ["--data_root", products, "--clip", small_clip_folder, "--output_dir", tmp_path / "detector"]
    launcher = [*ACCELERATE.split(), "--multi_gpu", "--num_processes", "2", "--main_process_port", port]
    command = [*launcher, "-m", "modeling_anople.training", *places, *SIX_STEPS]
    launch(command, tmp_path, ACCELERATE_USE_CPU="true")
    assert AnoPLeModel.from_pretrained(tmp_path / "detector").config.fit["processes"] == 2
    log, expected = read_log(tmp_path / "detector"), read_log(launched)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert all(line == pytest.approx(alone, abs=1e-4) for line, alone in zip(log, expected, strict=True))
    assert all(line["alignment"] > 0 for line in log)
    weights, others = weights_of(launched), weights_of(tmp_path / "detector")
    assert {name: weight.shape for name, weight in weights.items()} == {n: w.shape for n, w in others.items()}
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=1e-3, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


LEARNABLE = ["prompts.", "prefix.", "decoder."]


def test_only_prompts_prefix_and_decoder_are_trained(launched, small_clip_folder):
    weights = weights_of(launched)
    source = load_file(small_clip_folder / "model.safetensors")
    assert len(source) > 50
    assert [name for name in source if not torch.equal(source[name], weights[f"clip.{name}"])] == []
    set_seed(0)
    start = AnoPLeModel.from_clip(str(small_clip_folder), ["bolt", "nut"])
    trained = {name for name, weight in start.named_parameters() if not torch.equal(weight, weights[name])}
    assert {name for name, _ in start.named_parameters() if name.startswith(tuple(LEARNABLE))} == trained
    assert {weight.dtype for weight in weights.values()} == {
        torch.float32,
        torch.int64,
        torch.int32,
        torch.uint8,  # prints of its photographs
    }


def test_the_chosen_files_are_logged_and_kept(fit, products, caplog):
    with caplog.at_level(logging.INFO, logger="modeling_anople"):
        detector = fit("--shots", "2", "--seed", "5")
    files = AnoPLeModel.from_pretrained(detector).config.fit["files"]
    assert list(files) == ["bolt", "nut"]
    for name, paths in files.items():
        assert len(paths) == 2 and paths == sorted(paths)
        assert all((products / path).is_file() and path.startswith(f"{name}/train/good/") for path in paths)
        assert f"{name}, 2 shots: {paths[0]}, {paths[1]}" in caplog.text
    assert AnoPLeModel.from_pretrained(detector).config.fit["seed"] == 5


def test_a_detector_names_folders_without_the_way_to_them(fit, products, small_clip_folder):
    detector = fit()
    config = AnoPLeModel.from_pretrained(detector).config
    assert (config.fit["data_root"], config.fit["clip"]) == (products.name, small_clip_folder.name)
    assert config.clip_source == {"kind": "folder", "name": small_clip_folder.name, "revision": None}
    for path in detector.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not [place for place in (products, small_clip_folder, detector) if str(place.parent) in text], path


def test_the_photographs_of_the_fit_are_no_new_ones(fit, products):
    folder = fit("--shots", "2")
    model = AnoPLeModel.from_pretrained(folder)
    entries = [entry for entry in model.config.history if entry["class_name"] == "nut"]
    assert [len(entry["digests"]) for entry in entries] == [2]
    used = [products / path for path in model.config.fit["files"]["nut"]]
    new = sorted({*(products / "nut/train/good").iterdir()} - {*used})
    detector = detector_of(model, AnoPLeProcessor.from_pretrained(folder))
    before = model.products.named("nut").record.threshold.image_threshold
    with pytest.raises(ValueError, match=f"known already: {used[0]}, {used[1]}. Leave them out"):
        detector.add_normals("nut", [new[0], *used])
    nut = model.products.named("nut")
    assert nut.record.threshold.image_threshold == before and nut.image_count == 2
    detector.add_normals("nut", new)
    assert nut.image_count == 5


def test_a_finished_detector_is_not_overwritten_unasked(fit):
    detector = fit()
    before = (detector / "model.safetensors").read_bytes()
    for options, said in ((["--seed", "1"], ":"), (["--seed", "1", "--resume"], " of other settings:"), ([], ":")):
        with pytest.raises(ValueError, match=f"already holds a detector{said}.*--overwrite"):
            fit(*options)
    assert fit("--resume") == detector  # nothing is left to do
    other = ["--decoder_widths", "8", "4", "--overwrite"]
    assert fit(*other) == fit(*other[:-1], "--resume")
    with pytest.raises(ValueError, match="of other settings"):
        fit("--resume")
    fit("--overwrite")
    assert (detector / "model.safetensors").read_bytes() == before
    fit("--seed", "1", "--overwrite")
    assert (detector / "model.safetensors").read_bytes() != before
    assert [line["step"] for line in read_log(detector)] == [1, 2]


def test_an_unfinished_fit_is_not_begun_anew_unasked(fit, products, capsys):
    detector = fit()
    (detector / "model.safetensors").unlink()
    (detector / "config.json").unlink()
    (detector / STATE_FILE).write_bytes(b"as a killed fit leaves it")
    log = (detector / "training_log.jsonl").read_bytes()
    with pytest.raises(ValueError, match="unfinished fit: go on with --resume, or begin anew with --overwrite"):
        fit()
    assert (detector / "training_log.jsonl").read_bytes() == log
    assert cli.main(["predict", str(detector), str(products)]) == 2
    assert "holds an unfinished fit: finish it by `anople fit` with --resume" in capsys.readouterr().err
    fit("--overwrite")
    assert not (detector / STATE_FILE).exists() and (detector / "model.safetensors").exists()


def test_the_log_is_finite_and_names_every_loss(launched):
    log = read_log(launched)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert all(line.keys() == {"step", "loss", "focal", "dice", "image", "alignment"} for line in log)
    for line in log:
        parts = line["focal"] + line["dice"] + line["image"] + line["alignment"]
        assert line["loss"] == pytest.approx(parts, abs=1e-5)


def test_losses_fall(fit):
    rates = ["--prompt_learning_rate", "1e-3", "--decoder_learning_rate", "3e-3", "--alignment_loss_weight", "0"]
    log = read_log(fit("--max_steps", "30", "--batch_size", "4", *rates))
    assert sum(line["loss"] for line in log[-5:]) < 0.9 * sum(line["loss"] for line in log[:5])


def test_alignment_waits_for_its_warm_up(fit):
    log = read_log(fit("--max_steps", "4", "--alignment_warmup", "0.5", "--batch_size", "4"))
    parts = [line["focal"] + line["dice"] + line["image"] for line in log]
    added = [line["loss"] - part for line, part in zip(log, parts, strict=True)]
    assert added[:2] == pytest.approx([0, 0], abs=1e-5)
    assert added[2:] == pytest.approx([line["alignment"] for line in log[2:]], abs=1e-5)


def test_the_log_has_every_so_manieth_step_and_the_last(fit):
    assert [line["step"] for line in read_log(fit("--max_steps", "5", "--log_steps", "2"))] == [2, 4, 5]


def test_no_steps_give_an_untrained_detector(fit, products):
    assert_it_predicts(fit("--max_steps", "0"), products, ["bolt/test/good/000.png"])


def test_tensorboard_gets_the_losses(fit):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    detector = fit("--report_to", "tensorboard")
    events = list(detector.rglob("events.out.tfevents.*"))
    assert events
    read = EventAccumulator(str(events[0].parent))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2]
    logged = [line["loss"] for line in read_log(detector)]
    assert [event.value for event in read.Scalars("loss")] == pytest.approx(logged, abs=1e-5)


def test_no_test_photograph_is_opened(fit, products, tmp_path):
    data = shutil.copytree(products, tmp_path / "products")
    for path in [*data.glob("*/test/*/*.png"), *data.glob("*/ground_truth/*/*.png")]:
        path.write_bytes(b"no picture")
    opened = []
    with watching_files(opened.append):
        fit(*SIX_STEPS[:2], data=data)
    inside = [Path(path).relative_to(data).parts for path in opened if path.startswith(str(data))]
    assert {parts[0] for parts in inside if parts[1:3] == ("train", "good")} == {"bolt", "nut"}
    assert [parts for parts in inside if "test" in parts or "ground_truth" in parts] == []


def config_with(**options) -> TrainingConfig:
    return TrainingConfig(data_root="nowhere", **options)


def test_the_learning_rate_warms_up_and_falls_to_its_end():
    config = config_with(max_steps=100, warmup_ratio=0.1, final_learning_rate_ratio=0.02)
    factors = [learning_rate_factor(step, config) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(factors) == factors[10] == 1
    assert all(later < earlier for earlier, later in zip(factors[10:], factors[11:], strict=False))
    assert factors[55] == pytest.approx(0.51)
    assert factors[99] == pytest.approx(0.02, abs=1e-3) and factors[100] == pytest.approx(0.02)


@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_the_learning_rate_of_short_fits_is_positive(max_steps):
    config = config_with(max_steps=max_steps, warmup_ratio=0.05)
    assert all(0 < learning_rate_factor(step, config) <= 1 for step in range(max_steps))


@pytest.mark.parametrize("prefix", ["token", "none"])
def test_decoder_and_prompts_have_rates_of_their_own(make_model, prefix):
    model = make_model(prefix=prefix).freeze_clip()
    config = config_with(prompt_learning_rate=0.25, decoder_learning_rate=0.5, weight_decay=0.125)
    optimizer = make_optimizer(model, config)
    names = {id(weight): name for name, weight in model.named_parameters()}
    rates = {names[id(weight)]: group["base_lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rates == {
        name: 0.5 if name.startswith("decoder.") else 0.25
        for name, _ in model.named_parameters()
        if name.startswith(tuple(LEARNABLE))
    }
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.125}


def test_the_rates_of_the_command_line_are_used(fit, small_clip_folder):
    """With a rate of 0 for the decoder, it stays at its first values while the prompts move."""
    weights = weights_of(fit("--decoder_learning_rate", "0", "--prompt_learning_rate", "0.01", "--seed", "4"))
    set_seed(4)
    start = AnoPLeModel.from_clip(str(small_clip_folder), ["bolt", "nut"])
    moved = {name.split(".")[0] for name, weight in start.named_parameters() if not weight.equal(weights[name])}
    assert moved == {"prompts", "prefix"}


def test_losses_are_weighted_means_over_their_own_samples():
    terms = {
        "focal": LossTerm(torch.tensor(6.0), torch.tensor(4)),
        "dice": LossTerm(torch.tensor(3.0), torch.tensor(0)),
    }
    with one_process():
        loss, means = combine_losses(Accelerator(cpu=True), terms, {"focal": 2.0, "dice": 0.5})
    assert means == {"focal": 1.5, "dice": 3.0}
    assert float(loss) == 2 * 1.5 + 0.5 * 3


@pytest.mark.parametrize(
    "options",
    [
        {"shots": 0},
        {"batch_size": 0},
        {"max_steps": -1},
        {"num_workers": -1},
        {"gradient_accumulation_steps": 0},
        {"log_steps": 0},
        {"save_steps": 0},
        {"batch_size": 3, "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        config_with(**options)
