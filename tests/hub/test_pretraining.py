"""Pretraining of the embedded CLIP, and the programs around it: ablations, blends and the plot of a log."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel, HfArgumentParser

from hub.mini_clip import __main__ as program
from hub.mini_clip import blend as blend_program
from hub.mini_clip import measure, plot
from hub.mini_clip.__main__ import LOG_FILE, PretrainingConfig, Supply, learning_rate, main, pretrain
from hub.mini_clip.ablate import SMALL, VARIANTS, figures_of, folder_of, to_markdown
from hub.mini_clip.architecture import blend, write_checkpoint
from hub.mini_clip.renderer import Renderer
from hub.mini_clip.tokenizer import train_tokenizer
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.data.drawn_products import write_dataset
from modeling_anople.training.finishing import STATE_FILE


# --- The pretraining program in a few tiny steps: deterministic, resumable at any step, and its checkpoint loads ---


class WeightValidation:
    """A stand-in that judges a CLIP by its weights alone and remembers the layers it was asked for."""

    asked: list[tuple[int, ...]] = []

    def __init__(self, folder: Path):
        assert folder.name == "held_out"

    def measure(self, clip: CLIPModel, layers: tuple[int, ...]) -> dict[str, float]:
        self.asked.append(layers)
        return {"score": round(clip.visual_projection.weight.abs().sum().item(), 4)}


@pytest.fixture(autouse=True)
def small_bank(monkeypatch):
    """A stock of seven tiles is drawn in no time."""
    monkeypatch.setattr(program, "Renderer", partial(Renderer, per_kind=1))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(program, "DrawnValidation", WeightValidation)


def tiny(folder: Path, **options) -> PretrainingConfig:
    """Four steps of two products over 4 x 4 patches, all at one size."""
    small = {"products": 2, "last_products": 2, "size": 64, "last_part": 0.0, "layers": 2, "warmup_steps": 2}
    steps = {"steps": 4, "evaluate_steps": 4, "save_steps": 1, "log_steps": 1}
    return PretrainingConfig(output_dir=str(folder), **{**small, **steps, **options})


def log_of(folder: Path) -> list[dict]:
    """The log without what the clock says."""
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("minutes", "images_per_second")}
            for line in lines]  # fmt: skip


def assert_same_run(first: Path, second: Path) -> None:
    for name in (STATE_FILE, "checkpoint/model.safetensors"):
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys()
        assert not [key for key in ours if not torch.equal(ours[key], theirs[key])], name
    assert log_of(first) == log_of(second)


def kill_at(monkeypatch, fatal: int, folder: Path) -> None:
    """Run until the episode of step `fatal` is asked for, as if the program were interrupted there."""
    draw = Supply.episode

    def episode(self, step: int, *, last: bool):
        if step == fatal:
            raise KeyboardInterrupt
        return draw(self, step, last=last)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Supply, "episode", episode)
        pretrain(tiny(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run of four steps."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "Renderer", partial(Renderer, per_kind=1))
        patch.setattr(program, "DrawnValidation", WeightValidation)
        assert pretrain(tiny(folder)) == folder / "checkpoint"
    return folder


def test_a_run_is_logged_step_by_step(finished):
    lines = log_of(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [("score" in line) for line in lines] == [False, False, False, True]
    names = {"episodic", "dense_text", "relation", "regression", "contrast"}
    assert all(names <= set(line) and line["size"] == 64 for line in lines)


def test_the_same_options_give_the_same_weights_bit_by_bit(finished, quick, tmp_path):
    torch.manual_seed(99)
    pretrain(tiny(tmp_path))
    assert_same_run(finished, tmp_path)


def test_another_seed_gives_other_weights(finished, quick, tmp_path):
    pretrain(tiny(tmp_path, steps=1, seed=1))
    ours, theirs = (load_file(folder / "checkpoint/model.safetensors") for folder in (finished, tmp_path))
    name = "text_model.embeddings.token_embedding.weight"
    assert not torch.allclose(ours[name], theirs[name], atol=1e-2)


@pytest.mark.parametrize("fatal", [1, 3])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(finished, quick, tmp_path, monkeypatch, fatal):
    kill_at(monkeypatch, fatal, tmp_path)
    assert not (tmp_path / "checkpoint").exists()
    assert [line["step"] for line in log_of(tmp_path)] == list(range(1, fatal + 1))
    pretrain(tiny(tmp_path, resume=True))
    assert_same_run(finished, tmp_path)


def test_resuming_a_finished_run_changes_nothing(quick, tmp_path):
    pretrain(tiny(tmp_path, steps=2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    pretrain(tiny(tmp_path, steps=2, resume=True))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "named"), [({"seed": 1}, "seed: 0 then, 1 now"), ({"products": 3}, "products: 2")]
)
def test_resuming_with_other_settings_is_refused(finished, quick, options, named):
    before = (finished / STATE_FILE).read_bytes()
    with pytest.raises(ValueError, match=named):
        pretrain(tiny(finished, resume=True, **options))
    assert (finished / STATE_FILE).read_bytes() == before and len(log_of(finished)) == 4


def test_weights_of_losses_may_change_on_resuming(quick, tmp_path):
    pretrain(tiny(tmp_path, steps=1))
    pretrain(tiny(tmp_path, steps=2, resume=True, contrast=0.0))
    assert ["contrast" in line for line in log_of(tmp_path)] == [True, False]


@pytest.mark.parametrize("step", [1, 7, program.TILE_LIFE + 3])
def test_the_seed_and_the_step_alone_decide_an_episode(step):
    """Whoever drew the steps before, and whoever comes fresh, draws the same."""
    config = tiny(Path("unused"), size=32)
    steady, fresh = Supply(config, 0), Supply(config, 0)
    for earlier in range(max(0, step - 6), step):
        steady.episode(earlier, last=False)
    (ours, *places), (theirs, *same_places) = (supply.episode(step, last=False) for supply in (steady, fresh))
    assert places == same_places and ours.defects == theirs.defects
    same = torch.equal(steady.renderer.bank.tiles, fresh.renderer.bank.tiles)
    assert same, "the stocks of textures differ"
    assert torch.equal(ours.pixels, theirs.pixels)


def test_steps_seeds_and_processes_draw_different_episodes():
    seed_0, seed_1 = (tiny(Path("unused"), size=32, seed=seed) for seed in (0, 1))
    drawn = [
        Supply(config, process).episode(step, last=False)[0].pixels
        for config, process, step in ((seed_0, 0, 0), (seed_0, 0, 1), (seed_0, 1, 0), (seed_1, 0, 0))
    ]
    assert all(not torch.equal(a, b) for number, a in enumerate(drawn) for b in drawn[:number])


def test_the_last_part_is_larger_and_corners_stay_on_the_grid():
    supply = Supply(tiny(Path("unused"), products=3, last_products=1, size=160), 0)
    shown = [supply.episode(step, last=step > 30) for step in range(32)]
    assert shown[0][0].pixels.shape == (3, 4, 3, 160, 160) and shown[31][0].pixels.shape == (1, 4, 3, 224, 224)
    assert {corner for _, _, corner in shown[:31]} <= {(r, c) for r in range(5) for c in range(5)}
    assert len({corner for _, _, corner in shown[:31]}) > 10 and shown[31][2] == (0, 0)
    assert {banks for _, banks, _ in shown} == {1, 2}


def test_the_checkpoint_is_an_ordinary_clip_and_starts_a_detector(finished):
    folder = finished / "checkpoint"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    clip, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(["a bolt", "a damaged metal nut"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = clip(**tokens, pixel_values=torch.zeros(1, 3, 224, 224, dtype=clip.dtype)).logits_per_image
    assert logits.shape == (1, 2) and logits.isfinite().all()
    model, processor = (kind.from_clip(str(folder), ["bolt"]) for kind in (AnoPLeModel, AnoPLeProcessor))
    assert (model.config.image_size, model.config.grid_size, processor.image_size) == (224, 14, 224)
    assert tuple(model.config.memory_layers) == WeightValidation.asked[0]


def test_the_checkpoint_holds_the_average_and_the_state_the_weights(finished):
    """
    After four steps the average lags behind. What is written lies half way between it and the first weights, and writing
    it leaves the run its own single-precision weights.
    """
    name = "visual_projection.weight"
    first = program.build_learner(tiny(finished)).clip.state_dict()[name]
    state, written = load_file(finished / STATE_FILE), load_file(finished / "checkpoint/model.safetensors")[name]
    weight = state[f"model.clip.{name}"]
    averages = [value for key, value in state.items() if key.endswith(".average") and value.shape == weight.shape]
    assert any(torch.equal(((value + first) / 2).half(), written) for value in averages)
    assert not torch.equal(weight.half(), written) and weight.dtype == torch.float32
    assert not torch.equal(weight.half().float(), weight)


def test_without_first_weights_the_checkpoint_is_the_average(quick, tmp_path):
    pretrain(tiny(tmp_path, first_share=0.0))
    name = "visual_projection.weight"
    written = load_file(tmp_path / "checkpoint/model.safetensors")[name]
    values = [value for key, value in load_file(tmp_path / STATE_FILE).items() if key.endswith(".average")]
    assert any(torch.equal(value.half(), written) for value in values if value.shape == written.shape)


def test_a_share_beyond_1_is_refused(tmp_path):
    with pytest.raises(ValueError, match="first_share is 1.5: give a share from 0 to 1"):
        tiny(tmp_path, first_share=1.5)


def test_the_best_checkpoint_is_kept(quick, tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(WeightValidation, "measure", lambda self, clip, layers: {"score": next(scores)})
    kept = []
    write = program.write_checkpoint
    monkeypatch.setattr(program, "write_checkpoint", lambda *how: kept.append(write(*how)))
    pretrain(tiny(tmp_path, steps=3, evaluate_steps=1))
    assert len(kept) == 2 and [line["score"] for line in log_of(tmp_path)] == [1.0, 3.0, 2.0]


def test_a_run_ends_when_its_minutes_are_over(quick, tmp_path):
    main([f"--output_dir={tmp_path}", "--max_minutes=0.0001", "--steps=500", "--products=2", "--last_products=2",
          "--size=64", "--last_part=0", "--layers=2"])  # fmt: skip
    assert len(log_of(tmp_path)) == 1 and "score" in log_of(tmp_path)[0]
    assert (tmp_path / "checkpoint/config.json").exists()


def test_held_out_products_are_drawn_and_judged(tmp_path, monkeypatch):
    """The real validation, of one product instead of all: its figures are in the log."""
    monkeypatch.setattr(measure, "write_dataset", partial(write_dataset, classes=["capsule"]))
    pretrain(tiny(tmp_path, steps=1))
    (line,) = log_of(tmp_path)
    figures = [line[name] for name in ("i_auroc_1", "p_auroc_1", "i_auroc_4", "p_auroc_4")]
    assert all(0 <= figure <= 100 for figure in figures) and line["p_auroc_4"] > 50
    assert line["score"] == pytest.approx(sum(figures) / 4, abs=1e-3)
    assert [path.name for path in (tmp_path / "held_out").iterdir()] == ["capsule"]


@pytest.mark.parametrize(
    ("step", "progress", "share"),
    [
        (0, 0.0, 0.1),  # warming up
        (4, 0.05, 0.5),
        (9, 0.1, 1.0),
        (50, 0.5, 1.0),  # steady until the last 40 %
        (60, 0.6, 1.0),
        (80, 0.8, 0.5),
        (99, 0.99, 0.025),
        (100, 1.0, 0.0),
        (120, 1.2, 0.0),  # the clock may run beyond the end
        (4, 0.9, 0.125),  # out of time while warming up
    ],
)
def test_learning_rates(step, progress, share):
    config = PretrainingConfig(learning_rate=2e-3, warmup_steps=10, decay=0.4)
    assert learning_rate(config, step, progress) == pytest.approx(2e-3 * share)


# --- The table of loss ablations: which runs it takes from where ---


FIGURES = {"i_auroc_1": 60.0, "p_auroc_1": 70.0, "i_auroc_4": 80.0, "p_auroc_4": 90.0, "score": 75.0}


def write_log(folder, *lines):
    folder.mkdir(parents=True)
    (folder / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_valid_run_of_its_own(name):
    words = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    parser = HfArgumentParser(PretrainingConfig, allow_abbrev=False)
    (config,), (usual,) = (parser.parse_args_into_dataclasses([*words, *more]) for more in (VARIANTS[name], []))
    assert (config == usual) == (name == "all losses")


def test_the_last_figures_count_and_an_unfinished_run_has_none(tmp_path):
    write_log(tmp_path / "done", {"step": 1, **FIGURES, "i_auroc_4": 1.0}, {"step": 2, **FIGURES}, {"step": 3})
    write_log(tmp_path / "begun", {"step": 1})
    assert figures_of(tmp_path / "done")["i_auroc_4"] == 80.0
    assert figures_of(tmp_path / "begun") is None and figures_of(tmp_path / "none") is None


def test_the_table_is_the_mean_over_seeds_of_what_is_done(tmp_path):
    for seed, figure in ((0, 80.0), (1, 90.0)):
        write_log(folder_of(tmp_path, "all losses", seed), {"step": 1, **FIGURES, "i_auroc_4": figure})
    rows = to_markdown(tmp_path, [0, 1, 2]).splitlines()
    assert rows[2] == "| all losses | 2 | 60.0 | 70.0 | 85.0 | 90.0 |" and len(rows) == 3


# --- How much of its first weights a CLIP keeps is chosen on drawn products, and the best is written ---


NAME = "visual_projection.weight"


class NearestToAQuarter:
    """A stand-in that likes a CLIP best whose projection has moved by a quarter from 1 towards 0."""

    def __init__(self, folder, seed):
        assert folder.name == f"drawn{seed}"

    def measure(self, clip, layers):
        away = (clip.state_dict()[NAME] - 0.75).abs().max().item()
        return {**dict.fromkeys(blend_program.FIGURES, 50.0), "score": -away}


@pytest.fixture
def first() -> CLIPModel:
    return program.build_learner(PretrainingConfig(seed=3, layers=2)).clip


def test_halves_are_means_and_ends_the_clips_themselves(first):
    other = {name: weight + 1 if weight.is_floating_point() else weight for name, weight in first.state_dict().items()}
    for share, moved in ((0, 0.0), (0.5, 0.5), (1, 1.0)):
        blended = blend(first, other, share).state_dict()
        for name, weight in first.state_dict().items():
            expected = weight + moved if weight.is_floating_point() else weight
            assert torch.allclose(blended[name], expected, atol=1e-6), name


def test_the_best_share_is_written(first, tmp_path, monkeypatch, capsys):
    built = program.build_learner

    def of_zeros(config):
        assert (config.seed, config.layers, config.width) == (3, 2, 192)
        learner = built(config)
        learner.clip.visual_projection.weight.data.zero_()
        return learner

    monkeypatch.setattr(blend_program, "build_learner", of_zeros)
    monkeypatch.setattr(blend_program, "DrawnValidation", NearestToAQuarter)
    first.visual_projection.weight.data.fill_(1.0)
    write_checkpoint(tmp_path / "trained", first, train_tokenizer())
    blend_program.main([str(tmp_path / "trained"), str(tmp_path / "out"), "--seed", "3"])
    table = (tmp_path / "out/table.md").read_text()
    assert table in capsys.readouterr().out and len(table.splitlines()) == 2 + 5
    written = CLIPModel.from_pretrained(tmp_path / "out/checkpoint", dtype=torch.float32)
    assert torch.allclose(written.state_dict()[NAME], torch.tensor(0.75))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out/checkpoint")) == 2048


# --- The learning curve: what a pretraining log says, as a picture ---


@pytest.fixture
def log(tmp_path):
    lines = [{"step": n, "minutes": n / 10, "episodic": 2 / n, "relation": 3 / n, "size": 128} for n in range(1, 6)]
    lines[-1] |= {"size": 224, "i_auroc_4": 80.0, "p_auroc_4": 90.0}
    path = tmp_path / "training_log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_losses_start_at_1_and_figures_are_as_logged(log):
    left, right = plot.draw(plot.read_log(log)).axes
    curves = {line.get_label(): line.get_ydata() for line in left.lines}
    assert curves["episodic"][0] == 1 and curves["episodic"][-1] == pytest.approx(0.2)
    assert list(right.lines[0].get_ydata()) == [80.0]


def test_a_picture_is_written(log, tmp_path):
    plot.main([str(log), str(tmp_path / "new" / "curve.png")])
    assert Image.open(tmp_path / "new" / "curve.png").size[0] > 500


def test_an_empty_log_is_refused(tmp_path):
    (tmp_path / "log").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no line"):
        plot.read_log(tmp_path / "log")
