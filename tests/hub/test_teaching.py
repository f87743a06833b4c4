"""Teaching the embedded CLIP: pictures with a manifest, features that go on where they ended, runs that repeat exactly."""

import json
import shutil
import subprocess
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, CLIPModel, Dinov2Config, Dinov2Model

from hub.mini_clip.features import GRID, SIDE
from hub.mini_clip.renderer import Renderer
from hub.mini_clip.teaching import features as caching
from hub.mini_clip.teaching import judging
from hub.mini_clip.teaching import pictures as gathering
from hub.mini_clip.teaching.__main__ import LOG_FILE, TeachingConfig, first_clip, learning_rate, main, teach
from hub.mini_clip.teaching.features import Teacher, compute_features, learning_rows, load_squares, open_features
from hub.mini_clip.teaching.judging import judge, write_made_products
from hub.mini_clip.teaching.lessons import Lessons, turned
from hub.mini_clip.teaching.packages import fetch, find_sources, licenses
from hub.mini_clip.teaching.pictures import Cutting, cut_squares, gather, read_manifest
from hub.mini_clip.teaching.pictures import main as gather_from_command_line
from hub.mini_clip.teaching.pupil import Pupil
from modeling_anople.runtime.loading import STATE_FILE


def grain(seed: int, width: int, height: int, bands: str = "RGB") -> Image.Image:
    """Blotches of color, of several sizes."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 20, width // 20, len(bands)), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Two photographs and a copy of one, a cut-out object, an archive, and four files that are of no use."""
    folder = tmp_path_factory.mktemp("photographs")
    grain(0, 500, 460).save(folder / "wood.png")
    grain(1, 480, 240).save(folder / "stone.jpg")
    shutil.copy(folder / "wood.png", folder / "wood_again.png")
    cut_out = grain(2, 300, 200)
    cut_out.putalpha(Image.fromarray(np.pad(np.full((100, 200), 255, np.uint8), 50)))
    cut_out.save(folder / "shell.png")
    grain(3, 300, 300).save(folder / "wall.bmp")
    with zipfile.ZipFile(folder / "more.pk3", "w") as archive:
        archive.write(folder / "wall.bmp", "textures/wall.bmp")
    (folder / "wall.bmp").unlink()
    grain(4, 300, 300).save(folder / "wood_norm.png")
    grain(5, 60, 60).save(folder / "small.png")
    Image.new("RGB", (300, 300), "gray").save(folder / "plain.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory) -> Path:
    """A vision model of two tiny blocks that sees 14 x 14 places of 2 pixels."""
    folder = tmp_path_factory.mktemp("teacher")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(
            Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=2)
        )
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photographs, teacher_folder) -> Path:
    """Gathered squares with the tiny teacher's features."""
    folder = tmp_path_factory.mktemp("pictures")
    gather(folder, {"own": photographs}, cutting=Cutting(most=4, grounds=3))
    teacher = Teacher(str(teacher_folder), blocks=[1, 2])
    compute_features(folder, teacher, source=str(teacher_folder))
    return folder


def tiny(pictures: Path, output: Path, **options) -> TeachingConfig:
    """Four steps of two pictures, in the first block alone."""
    small = {"batch": 2, "places": 64, "pupil_blocks": [1, 1], "teacher_blocks": [1, 2], "warmup_steps": 1}
    steps = {"steps": 4, "falling": 2, "save_steps": 1, "log_steps": 1, "judge_steps": 0}
    return TeachingConfig(pictures=str(pictures), output_dir=str(output), **{**small, **steps, **options})


def test_pictures_of_a_folder_are_cut_once_and_listed(photographs, tmp_path):
    rows = gather(tmp_path, {"own": photographs}, facts={"own": {"version": "1", "license": ["CC0"]}})
    assert {row["source"] for row in rows} >= {"shell.png", "stone.jpg", "more.pk3/textures/wall.bmp"}
    assert not {row["source"] for row in rows} & {"wood_norm.png", "small.png", "plain.png", "broken.png"}
    assert len({row["source"] for row in rows} & {"wood.png", "wood_again.png"}) == 1
    assert rows == read_manifest(tmp_path) and {row["license"][0] for row in rows} == {"CC0"}
    for row in rows:
        with Image.open(tmp_path / row["file"]) as square:
            assert square.size == (SIDE, SIDE) and square.mode == "RGB"


def test_what_is_cut_is_decided_by_seed_and_bytes(photographs):
    data = (photographs / "wood.png").read_bytes()
    first, again, other = (cut_squares(data, Cutting(seed=seed)) for seed in (0, 0, 1))
    assert [box for _, box in first] == [box for _, box in again] != [box for _, box in other]
    assert all(one.tobytes() == two.tobytes() for (one, _), (two, _) in zip(first, again, strict=True))


def test_a_cut_out_object_lies_on_other_grounds(photographs):
    squares = cut_squares((photographs / "shell.png").read_bytes(), Cutting(grounds=4))
    corners = {np.asarray(square)[0, 0].tobytes() for square, _ in squares}
    assert len(squares) == 4 and len(corners) > 1


def test_drawn_products_come_beside(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "Renderer", partial(Renderer, per_kind=1))
    words = [str(tmp_path), "--folder", str(photographs), "--drawn", "3", "--most_per_picture", "1"]
    gather_from_command_line(words)
    drawn = [row for row in read_manifest(tmp_path) if row["package"] == "drawn"]
    assert len(drawn) == 3 and not any(row["aside"] for row in drawn)


def test_an_empty_folder_and_a_missing_manifest_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures"):
        gather(tmp_path / "out", {"own": tmp_path / "empty"})
    with pytest.raises(ValueError, match=r"hub\.mini_clip\.teaching\.pictures"):
        read_manifest(tmp_path)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="packages are Debian's")
def test_a_package_gives_pictures_version_and_licenses(tmp_path):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: walls\nVersion: 1.2-3\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: walls\n"
    )
    (tree / "usr/share/doc/walls").mkdir(parents=True)
    (tree / "usr/share/doc/walls/copyright").write_text(
        "Files: *\nLicense: CC-BY-SA-4.0\nLicense:\n text\nLicense: CC0\n"
    )
    grain(0, 200, 200).save(tree / "usr/share/wall.png")
    work = tmp_path / "work"
    work.mkdir()
    subprocess.run(["dpkg-deb", "--build", tree, work / "walls_1.2-3_all.deb"], check=True, capture_output=True)
    unpacked = fetch("walls", work)
    assert (work / "walls.version").read_text() == "1.2-3\n"
    assert licenses(unpacked, "walls") == ["CC-BY-SA-4.0", "CC0"] and licenses(unpacked, "floors") == []
    assert [source.name for source in find_sources("walls", unpacked)] == ["usr/share/wall.png"]


def test_features_go_on_where_they_ended(pictures, teacher_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "FLUSH", 2)
    shutil.copytree(pictures, tmp_path / "again")
    teacher = Teacher(str(teacher_folder), blocks=[1, 2])
    options = {"source": str(teacher_folder), "name": "other", "batch": 2}
    assert compute_features(tmp_path / "again", teacher, max_minutes=0, **options) == 2
    assert len(open_features(tmp_path / "again", "other")[0]) == 2
    assert compute_features(tmp_path / "again", teacher, **options) == len(learning_rows(pictures))
    resumed, whole = open_features(tmp_path / "again", "other")[0], open_features(pictures)[0]
    assert np.abs(resumed.astype(np.float32) - whole).max() < 2e-3  # batches of other sizes round otherwise
    assert np.allclose(np.linalg.norm(whole.astype(np.float32), axis=-1), 1, atol=2e-3)
    with pytest.raises(ValueError, match="blocks"):
        compute_features(pictures, Teacher(str(teacher_folder), blocks=[2]), source=str(teacher_folder))


def test_a_zoomed_teacher_has_the_same_places(teacher_folder):
    answers = Teacher(str(teacher_folder), blocks=[2], zoom=2)(torch.rand(1, 3, SIDE, SIDE))
    assert answers.shape == (1, 1, GRID**2, 16)
    with pytest.raises(ValueError, match="blocks 1 to 2"):
        Teacher(str(teacher_folder), blocks=[3])


class Levels:
    """A teacher that knows the brightness of each place, and of its corner."""

    blocks, width, side, zoom = (1,), 2, SIDE, 1

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        level = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), SIDE // GRID).flatten(2)
        return torch.stack([level, 1 - level], dim=-1)


def test_views_turn_pictures_and_features_alike(pictures):
    compute_features(pictures, Levels(), source="levels", name="levels")
    lessons = Lessons(pictures, batch=3, places=50, seed=1, name="levels")
    views = {view: turned(torch.arange(4).view(2, 2), view).tolist() for view in range(8)}
    assert len({str(view) for view in views.values()}) == 8
    for step in range(4):
        lesson = lessons.lesson(step)
        assert torch.allclose(Levels()(lesson.pixels), lesson.wanted, atol=2e-3)
        assert len(lesson.places) == 50 and int(lesson.places.max()) < 3 * GRID**2


def test_lessons_depend_on_seed_and_step_alone(pictures):
    rows = len(learning_rows(pictures))
    one, two = (Lessons(pictures, batch=2, places=10, from_pictures=1, seed=0) for _ in range(2))
    ahead = list(one.ahead(0, rows // 2))
    seen = torch.cat([lesson.pixels for lesson in ahead]).sum((1, 2, 3))
    assert len(seen.unique()) == 2 * (rows // 2)  # a round shows none twice
    later = two.lesson(3)
    assert torch.equal(later.pixels, ahead[3].pixels) and torch.equal(later.places, ahead[3].places)
    assert int(later.places.max()) < GRID**2
    with pytest.raises(ValueError, match="fewer than"):
        Lessons(pictures, batch=rows + 1, places=10)


def test_a_run_repeats_exactly_and_resumes_exactly(pictures, tmp_path):
    weights = {}
    for name in ("one", "two"):
        weights[name] = load_file(teach(tiny(pictures, tmp_path / name)) / "model.safetensors")
    half_way = tiny(pictures, tmp_path / "three", max_minutes=0)
    for _ in range(4):  # a piece of one step each
        teach(half_way)
        half_way.resume = True
    weights["three"] = load_file(tmp_path / "three/checkpoint/model.safetensors")
    for name in ("two", "three"):
        assert all(torch.equal(weights["one"][key], weights[name][key]) for key in weights["one"])
    logs = [[json.loads(line) for line in (tmp_path / name / LOG_FILE).open()] for name in ("one", "three")]
    assert [[line["regression"] for line in log] for log in logs][0] == [line["regression"] for line in logs[1]]
    states = [load_file(tmp_path / name / STATE_FILE) for name in ("one", "three")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with pytest.raises(ValueError, match="relation"):
        teach(tiny(pictures, tmp_path / "one", resume=True, relation=1.0))


def test_it_learns_and_leaves_the_text_tower(pictures, tmp_path):
    words = ["--pictures", str(pictures), "--output_dir", str(tmp_path), "--batch", "4", "--places", "64"]
    words += ["--pupil_blocks", "1", "1", "--teacher_blocks", "1", "2", "--steps", "30", "--falling", "5", "--half"]
    words += ["--log_steps", "1", "--judge_steps", "0", "--average", "0.9", "--warmup_steps", "5", "--most", "4"]
    main(words)
    losses = [json.loads(line) for line in (tmp_path / LOG_FILE).open()]
    assert losses[-1]["regression"] < 0.6 * losses[0]["regression"]
    taught, mini = CLIPModel.from_pretrained(tmp_path / "checkpoint"), first_clip(tiny(pictures, tmp_path))[0]
    changed = {
        name for name, weight in taught.state_dict().items() if not torch.equal(weight, mini.state_dict()[name])
    }
    assert changed and all(".embeddings." in n or ".pre_" in n or ".layers.0." in n for n in changed)
    assert not any(name.startswith("text") for name in changed)


def test_other_towers_and_wrong_blocks(pictures, tmp_path):
    with pytest.raises(ValueError, match="start by hand"):
        first_clip(tiny(pictures, tmp_path, layers=2))
    deeper, pixels = first_clip(tiny(pictures, tmp_path, layers=7))[0], torch.rand(1, 3, SIDE, SIDE)
    streams = Pupil(deeper, blocks=(6, 7), width=16).streams(pixels)
    assert torch.equal(*streams)  # a block that mini lacks adds nothing at first
    by_hand, _ = first_clip(tiny(pictures, tmp_path, layers=1, width=224, start="by_hand"))
    assert Pupil(by_hand, blocks=(1,), width=16).streams(pixels)[0].shape == (1, GRID**2, 224)
    clip, _ = first_clip(tiny(pictures, tmp_path, layers=2, width=64, start="random"))
    assert clip.config.vision_config.hidden_size == 64 and clip.config.vision_config.num_hidden_layers == 2
    with pytest.raises(ValueError, match="blocks 1 to 2"):
        Pupil(clip, blocks=(3,), width=16)
    with pytest.raises(ValueError, match="as many"):
        tiny(pictures, tmp_path, pupil_blocks=[1])
    with pytest.raises(ValueError, match="features are of blocks"):
        teach(tiny(pictures, tmp_path, teacher_blocks=[2, 1]))


def test_the_rate_rises_stays_and_falls(pictures, tmp_path):
    config = tiny(pictures, tmp_path, steps=100, falling=20, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10:80] == [1.0] * 70 and rates[-1] == pytest.approx(0.05)
    assert rates[80:] == sorted(rates[80:], reverse=True)


def test_made_products_are_judged(pictures, tmp_path, monkeypatch):
    for name, count in {"TRAIN": 4, "GOOD": 2, "DEFECTIVE": 3}.items():
        monkeypatch.setattr(judging, name, count)
    shutil.copytree(pictures, tmp_path / "pictures")
    manifest = tmp_path / "pictures/manifest.jsonl"
    rows = [{**row, "aside": True} for row in read_manifest(pictures)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_made_products(tmp_path / "made", tmp_path / "pictures", products=2)
    figures = judge(lambda images: list(Levels()(images).unbind(1)), tmp_path / "made")
    assert set(figures) == {"i_1", "p_1", "pro_1", "i_4", "p_4", "pro_4", "score"}
    assert all(0 <= value <= 100 for value in figures.values())
    with pytest.raises(ValueError, match="set aside"):
        write_made_products(tmp_path / "many", tmp_path / "pictures", products=99)


def test_squares_are_read_as_they_were_written(pictures):
    rows = learning_rows(pictures)
    assert load_squares(pictures, rows[:2]).shape == (2, 3, SIDE, SIDE)
    assert sorted(row["file"] for row in rows) == sorted(row["file"] for row in read_manifest(pictures, aside=False))
