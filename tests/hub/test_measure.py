"""Measuring frozen patch features by the memory alone, and what the embedded CLIP must reach."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPModel

import modeling_anople
from hub.mini_clip.features import clip_features, extract, gabor_features, make_features, rgb_features, standardized
from hub.mini_clip.measure import bank_scores, draw_bank, load_square_mask, main, measure, to_markdown
from hub.mini_clip.small_clip import write_small_clip
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.backbone_anople import MINI_CLIP, clip_source
from modeling_anople.data.drawn_products import draw_product, write_dataset
from modeling_anople.training.options import TrainingConfig


# --- The measuring program for frozen patch features: bank scores, draws, tables and the feature kinds ---


CLASSES = ["gear", "capsule"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "data"
    write_dataset(root, 0, classes=CLASSES, train=4, good=2, defective=3, size=64)
    return root


@pytest.fixture(scope="module")
def measured(drawn) -> dict:
    return measure(drawn, {"rgb": rgb_features}, shots=[1, 2], seeds=[0, 1, 2], progress=False)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, 3, 224, 224), dtype=torch.uint8, generator=generator)


def stripes(*, phase: float = 0.0, wavelength: float = 8.0, contrast: float = 0.3) -> torch.Tensor:
    """Draw gray vertical stripes: (1, 3, 224, 224)."""
    columns = 0.5 + contrast * torch.sin(2 * torch.pi * torch.arange(224) / wavelength + phase)
    return columns.expand(1, 3, 224, 224).contiguous()


def inner(features: torch.Tensor) -> torch.Tensor:
    """Keep the patches that do not touch the border: (1, 100, width)."""
    return features.unflatten(1, (14, 14))[:, 2:-2, 2:-2].flatten(1, 2)


@pytest.mark.parametrize(
    "patch, bank, expected",
    [
        ([1.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], 0.0),
        ([2.0, 0.0], [[7.0, 0.0]], 0.0),  # lengths do not matter
        ([1.0, 0.0], [[0.0, 1.0]], 0.5),
        ([1.0, 0.0], [[-1.0, 0.0]], 1.0),
        ([1.0, 0.0], [[-1.0, 0.0], [0.6, 0.8]], 0.2),  # the nearest counts
    ],
)
def test_a_score_is_half_of_one_minus_the_largest_cosine(patch, bank, expected):
    scores = bank_scores([torch.tensor([[patch]])], [torch.tensor(bank)])
    assert scores.shape == (1, 1) and scores.item() == pytest.approx(expected, abs=1e-6)


def test_scores_are_averaged_over_layers_of_any_width():
    features = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])]
    banks = [torch.tensor([[-1.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])]
    assert bank_scores(features, banks).item() == pytest.approx(0.75)


def test_many_patches_are_compared_as_few_are():
    generator = torch.Generator().manual_seed(0)
    features, bank = torch.randn(30, 196, 5, generator=generator), torch.randn(9, 5, generator=generator)
    alone = torch.cat([bank_scores([one[None]], [bank]) for one in features])
    torch.testing.assert_close(bank_scores([features], [bank]), alone)


@pytest.mark.parametrize("features, banks", [(1, []), (2, [3]), (1, [0])])
def test_banks_that_do_not_fit_are_refused(features, banks):
    with pytest.raises(ValueError, match="banks"):
        bank_scores([torch.ones(1, 4, 2)] * features, [torch.ones(size, 2) for size in banks])


def test_a_photograph_of_the_bank_scores_0_and_another_does_not(pictures):
    layers = extract(rgb_features, pictures)
    scores = bank_scores(layers, [layer[:2].flatten(0, 1) for layer in layers])
    assert scores[:2].max() < 1e-6 and scores[2].min() > 0.1


def test_the_draw_is_seeded_sorted_and_without_replacement():
    paths = [f"{number:02d}.png" for number in range(20)]
    draws = [draw_bank(paths, shots=6, seed=seed) for seed in range(8)]
    assert all(draw == sorted(set(draw)) and len(draw) == 6 and set(draw) <= set(paths) for draw in draws)
    assert len({tuple(draw) for draw in draws}) == 8
    assert draw_bank(paths[::-1], shots=6, seed=3) == draws[3]
    assert draw_bank(paths, shots=20, seed=0) == paths


@pytest.mark.parametrize("shots", [0, 3])
def test_an_impossible_number_of_shots_is_refused(shots):
    with pytest.raises(ValueError, match=f"shots is {shots} and there are 2"):
        draw_bank(["a", "b"], shots=shots, seed=0)


def test_all_figures_of_all_seeds_are_there(measured):
    assert measured["photographs"] == {name: {"train": 4, "normal": 2, "anomalous": 3} for name in CLASSES}
    for shots in ("1", "2"):
        summary = measured["features"]["rgb"][shots]
        assert set(summary["classes"]) == set(CLASSES)
        per_class = [metrics["pixel_auroc"]["values"] for metrics in summary["classes"].values()]
        mean = summary["mean"]["pixel_auroc"]
        assert mean["values"] == pytest.approx(np.mean(per_class, axis=0)) and len(mean["values"]) == 3
        assert mean["mean"] == pytest.approx(np.mean(mean["values"])) and 0 <= mean["mean"] <= 1
        assert mean["std"] == pytest.approx(np.std(mean["values"])) and mean["std"] > 0


def test_figures_do_not_depend_on_what_else_is_measured(drawn, measured):
    again = measure(drawn, {"rgb": rgb_features}, shots=[2], seeds=[1], classes=["capsule"], progress=False)
    for metric, figure in again["features"]["rgb"]["2"]["classes"]["capsule"].items():
        before = measured["features"]["rgb"]["2"]["classes"]["capsule"][metric]["values"][1]
        assert figure["values"] == pytest.approx([before], abs=1e-6)


def test_the_table_has_a_row_per_class_and_the_mean(measured):
    tables = to_markdown(measured).split("### ")[1:]
    assert [table.splitlines()[0] for table in tables] == ["rgb, k = 1", "rgb, k = 2"]
    for table in tables:
        rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
        assert [row[0].strip("| ") for row in rows] == ["class", "capsule", "gear", "mean"]
        assert all(len(row) == 4 for row in rows)
    figure = measured["features"]["rgb"]["2"]["mean"]["aupro"]
    assert f"{100 * figure['mean']:.1f} ± {100 * figure['std']:.1f} |" in tables[1].splitlines()[-1]


def test_features_that_know_the_defect_find_it(tmp_path):
    for place, color, count in (("train/good", 90, 1), ("test/good", 90, 2), ("test/hole", 90, 1)):
        (tmp_path / "plate" / place).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (60, 40), (color,) * 3).save(tmp_path / "plate" / place / f"{number}.png")
    hole = Image.new("RGB", (60, 40), (90, 90, 90))
    hole.paste((250, 20, 20), (30, 10, 45, 20))
    hole.save(tmp_path / "plate/test/hole/0.png")
    mask = Image.new("L", (120, 80))  # twice the photograph's size
    mask.paste(255, (60, 20, 90, 40))
    (tmp_path / "plate/ground_truth/hole").mkdir(parents=True)
    mask.save(tmp_path / "plate/ground_truth/hole/0_mask.png")
    results = measure(tmp_path, {"rgb": rgb_features}, shots=[1], seeds=[0], progress=False)
    mean = results["features"]["rgb"]["1"]["mean"]
    assert mean["image_auroc"]["mean"] == 1
    assert mean["pixel_auroc"]["mean"] > 0.98 and mean["aupro"]["mean"] > 0.9


def test_a_defect_without_a_mask_counts_for_the_image_alone(drawn, tmp_path):
    for split, kind in (("train", "good"), ("test", "good"), ("test", "hole")):
        (tmp_path / "gear" / split / kind).mkdir(parents=True)
        picture = next((drawn / "gear" / split).rglob("*.png"))
        (tmp_path / "gear" / split / kind / "0.png").write_bytes(picture.read_bytes())
    results = measure(tmp_path, {"rgb": rgb_features}, shots=[1], seeds=[0], progress=False)
    mean = results["features"]["rgb"]["1"]["mean"]
    assert mean["image_auroc"]["mean"] is not None and mean["pixel_auroc"]["mean"] is None
    assert to_markdown(results).splitlines()[-1].endswith("| n/a | n/a |")


@pytest.mark.parametrize("size", [(224, 224), (100, 50), (513, 300)])
def test_a_mask_of_any_size_becomes_the_square(size):
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    square = load_square_mask(mask)
    assert square.shape == (224, 224) and square.dtype == bool
    assert square[:, :110].all() and not square[:, 114:].any()


def test_a_class_without_test_photographs_is_named(drawn, tmp_path):
    (tmp_path / "nut/train/good").mkdir(parents=True)
    picture = next((drawn / "gear/train").rglob("*.png"))
    (tmp_path / "nut/train/good/0.png").write_bytes(picture.read_bytes())
    with pytest.raises(ValueError, match="'nut' has no test photographs"):
        measure(tmp_path, {"rgb": rgb_features}, shots=[1], seeds=[0], progress=False)


def test_rgb_keeps_each_patch_whole_and_in_reading_order():
    images = torch.zeros(1, 3, 224, 224)
    images[0, :, 16:32, 48:64] = torch.arange(16 * 16 * 3).view(3, 16, 16) / 1000
    (layer,) = rgb_features(images)
    assert layer.shape == (1, 196, 768)
    torch.testing.assert_close(layer[0, 14 + 3], torch.arange(768) / 1000 - 0.5)
    assert (layer[0, [14 + 2, 14 + 4, 3, 28 + 3]] == -0.5).all()


def test_gabor_features_tell_stripes_from_a_flat_patch_and_overlook_their_phase():
    (flat,) = gabor_features(torch.full((1, 3, 224, 224), 0.5))
    (here,), (there,) = (gabor_features(stripes(phase=phase)) for phase in (0.0, 2.0))
    assert here.shape == (1, 196, 54)
    moved = (inner(here) - inner(there)).norm(dim=-1).max()
    assert moved < 0.3 * (inner(here) - inner(flat)).norm(dim=-1).min()
    rgb_here, rgb_there = (inner(rgb_features(stripes(phase=phase))[0]) for phase in (0.0, 2.0))
    assert (rgb_here - rgb_there).norm(dim=-1).min() > rgb_here.norm(dim=-1).min()


@pytest.mark.parametrize("octave, wavelength", enumerate([3, 6, 12, 24]))
@pytest.mark.parametrize("turned", [False, True])
def test_the_filter_of_a_wave_answers_most(octave, wavelength, turned):
    wave = stripes(wavelength=wavelength, contrast=0.3)
    (layer,) = gabor_features(wave.transpose(2, 3) if turned else wave)
    answers = inner(layer)[..., :48].flatten(0, -2).mean(0).unflatten(0, (4, 2, 6))
    assert divmod(int(answers[:, 0].argmax()), 6) == (octave, 3 * turned)


def test_gabor_features_see_color():
    gray, red = torch.full((1, 3, 224, 224), 0.4), torch.full((1, 3, 224, 224), 0.4)
    # luminance is kept by lowering green
    red[:, 0], red[:, 1] = 0.6, 0.4 - 0.2 * 0.299 / 0.587
    first, second = gabor_features(gray)[0], gabor_features(red)[0]
    torch.testing.assert_close(first[..., :49], second[..., :49], atol=1e-3, rtol=0)
    assert (second - first)[..., 49].min() > 0.12


def test_standardized_features_have_mean_0_and_their_weight_as_deviation_over_the_normals(pictures):
    function = make_features("gabor", pictures)
    (layer,) = extract(function, pictures)
    torch.testing.assert_close(layer.mean((0, 1)), torch.zeros(54), atol=1e-3, rtol=0)
    expected = torch.cat([torch.ones(48), torch.full((6,), 2.5)])
    torch.testing.assert_close(layer.std((0, 1), correction=0), expected, atol=2e-3, rtol=0)
    (other,) = extract(function, pictures // 2)
    assert other.mean((0, 1)).abs().max() > 0.5  # other photographs are measured on the same scale


@pytest.mark.parametrize("normals", [None, torch.zeros(0, 3, 224, 224, dtype=torch.uint8)])
def test_standardizing_needs_normals(normals):
    with pytest.raises(ValueError, match="got none"):
        standardized(gabor_features, normals)


def test_clip_features_are_the_remembered_blocks_without_prompts(tmp_path, pictures):
    folder = write_small_clip(tmp_path / "clip", image_size=224)
    first, second = extract(clip_features(folder), pictures[:1])
    assert first.shape == second.shape == (1, 196, 96)
    for layer, again in zip((first, second), extract(make_features("random"), pictures[:1]), strict=True):
        torch.testing.assert_close(layer, again)
    clip = CLIPModel.from_pretrained(folder).eval()
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (pictures[:1] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        states = clip.vision_model(pixels, output_hidden_states=True).hidden_states
    # blocks 0 and 2 of 4; state 0 is the input of block 0
    for layer, state in zip((first, second), (states[1], states[3]), strict=True):
        torch.testing.assert_close(layer, state[:, 1:], atol=1e-5, rtol=1e-4)


def test_a_clip_of_another_size_and_an_unknown_kind_are_refused(small_clip_folder):
    with pytest.raises(ValueError, match="sees 32 pixels in patches of 8"):
        make_features(str(small_clip_folder))
    with pytest.raises(ValueError, match="give mini, rgb, gabor, random or the folder"):
        make_features("sift")


def test_features_of_another_grid_are_refused(pictures):
    with pytest.raises(ValueError, match=r"\(3, 49, 2\)"):
        extract(lambda images: [torch.zeros(len(images), 49, 2)], pictures)


def test_the_program_writes_figures_command_and_versions(drawn, tmp_path):
    main([str(drawn), "--features", "rgb", "gabor", "--shots", "1", "--seeds", "0", "--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(results["features"]) == ["rgb", "gabor"]
    assert results["command"].startswith("python -m hub.mini_clip.measure") and "--shots 1" in results["command"]
    assert {"python", "torch", "transformers"} <= set(results["versions"])
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == to_markdown(results)


# --- The embedded CLIP: there for everybody who has the package, small, offline, and better than chance on drawn products ---


FOLDER = Path(modeling_anople.__file__).parent / "mini_clip"


def test_it_is_the_default_of_fitting():
    assert TrainingConfig(data_root="any").clip == MINI_CLIP == "mini"


def test_the_folder_is_whole_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 16e6
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds == {"F16"}


def test_detector_and_processor_start_from_it_in_single_precision():
    names = ["bottle", "ボトル", "Nußschale 🥜"]
    model, processor = AnoPLeModel.from_clip("mini", names), AnoPLeProcessor.from_clip("mini", names)
    assert model.dtype == torch.float32 and model.config.grid_size == 14 and processor.image_size == 224
    picture = draw_product("gear", np.random.default_rng(0), size=96)[0]
    outputs = model(**processor(images=picture, class_names="ボトル"))
    assert outputs.anomaly_maps.shape == (1, 224, 224) and outputs.image_scores.isfinite().all()


def test_names_of_other_clips_pass_through(tmp_path):
    assert clip_source("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"
    assert clip_source(tmp_path) == str(tmp_path)
    assert clip_source("mini") == str(FOLDER)


def test_where_only_a_detectors_files_are_the_error_names_the_package(tmp_path, monkeypatch):
    (tmp_path / "carried").mkdir()
    for path in FOLDER.parent.glob("*_anople.py"):
        shutil.copy(path, tmp_path / "carried")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="install anople"):
        import_module("carried.backbone_anople").clip_source("mini")


def test_its_patches_tell_drawn_defects_better_than_untrained_ones(tmp_path):
    write_dataset(tmp_path / "drawn", 5, classes=["gear", "woven fabric"], train=4, good=6, defective=12, size=224)
    features = {kind: make_features(kind) for kind in ("mini", "random")}
    results = measure(tmp_path / "drawn", features, shots=[4], seeds=[0], progress=False)
    figures = {kind: by_shots["4"]["mean"] for kind, by_shots in results["features"].items()}
    assert figures["mini"]["image_auroc"]["mean"] > figures["random"]["image_auroc"]["mean"] + 0.05
    assert figures["mini"]["pixel_auroc"]["mean"] > figures["random"]["pixel_auroc"]["mean"] + 0.03


@pytest.mark.parametrize("key, value", [("model_type", "clip"), ("projection_dim", 128)])
def test_its_config_is_an_ordinary_clip_config(key, value):
    assert json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))[key] == value
