"""Words for a taught tower: what learns, what stays, names of cut-out objects, and a run that goes on exactly."""

import json
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hub.mini_clip import __main__ as pretraining
from hub.mini_clip.__main__ import PretrainingConfig, Supply
from hub.mini_clip.architecture import mini_config, new_mini_clip, write_checkpoint
from hub.mini_clip.renderer import Renderer
from hub.mini_clip.teaching import words
from hub.mini_clip.teaching.words import judge_words, name_of_object, named_lesson, named_rows, teach_words
from modeling_anople.backbone_anople import clip_source


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A CLIP with a tower of one narrow block."""
    tokenizer = AutoTokenizer.from_pretrained(clip_source("mini"))
    clip = new_mini_clip(mini_config(tokenizer, width=32, layers=1), torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("clip") / "checkpoint"
    write_checkpoint(folder, clip, tokenizer)
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A manifest of three named objects, one of them set aside, and of a letter."""
    rows = []
    for number, stem in enumerate(("animals/zebra-2", "food/candy_cane", "food/pizza", "symbols/letter_a")):
        Image.new("RGB", (224, 224), (60 * number, 100, 50)).save(tmp_path / f"{number}.jpg")
        source = f"usr/share/tuxpaint/stamps/{stem}.png"
        rows.append({"file": f"{number}.jpg", "package": words.NAMED, "source": source, "aside": number == 2})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_stamps_are_called_after_what_they_show(pictures):
    assert name_of_object("stamps/food/candy_cane-2.png") == "candy cane"
    assert name_of_object("stamps/symbols/letters/a_b.png") is None and name_of_object("stamps/x/0.png") is None
    groups = named_rows(pictures)
    assert set(groups) == {"zebra", "candy cane"}
    rows, names = named_lesson(groups, 0, 0)
    assert len(set(names)) == 2 and [groups[name][0] for name in names] == rows


def test_words_learn_and_the_tower_stays(checkpoint, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "Renderer", partial(Renderer, per_kind=1))
    supply = Supply(PretrainingConfig(last_products=2, seed=0), 0)
    # steps decide what is drawn (tests of pretraining), so that each is drawn once for all three runs
    monkeypatch.setattr(supply, "episode", cache(supply.episode))
    monkeypatch.setattr(words, "Supply", lambda config, process: supply)
    options = {"pictures": pictures, "steps": 2, "products": 2, "save_steps": 1}
    whole = load_file(teach_words(checkpoint, tmp_path / "one", **options) / "model.safetensors")
    before = load_file(checkpoint / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], whole[name])}
    assert {"visual_projection.weight", "text_projection.weight"} <= changed
    assert not any("vision_model" in name and "post_layernorm" not in name for name in changed)
    losses = [json.loads(line) for line in (tmp_path / "one" / words.LOG_FILE).open()]
    assert [line["step"] for line in losses] == [1, 2]
    assert set(losses[0]) == {"step", "dense_text", "contrast", "names"}
    # killed before the state of its second step was written
    save, known = words.save_state, []

    def save_twice(folder, *, step, **rest):
        if step == 2 and not known:
            known.append(step)
            raise KeyboardInterrupt
        save(folder, step=step, **rest)

    monkeypatch.setattr(words, "save_state", save_twice)
    with pytest.raises(KeyboardInterrupt):
        teach_words(checkpoint, tmp_path / "two", **options)
    resumed = load_file(teach_words(checkpoint, tmp_path / "two", resume=True, **options) / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_text_alone_is_judged(checkpoint, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for folder in ("train/good", "test/good", "test/scratch", "ground_truth/scratch"):
        (tmp_path / "lid" / folder).mkdir(parents=True)
        for number in range(2):
            mask = folder.startswith("ground")
            pixels = torch.randint(256, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
            picture = Image.fromarray((pixels[..., 0] > 128).astype("uint8") * 255 if mask else pixels)
            picture.save(tmp_path / "lid" / folder / f"{number}{'_mask' if mask else ''}.png")
    figures = judge_words(checkpoint, tmp_path)
    assert set(figures) == {"lid", "mean"}
    assert all(0 <= figures["mean"][name] <= 1 for name in ("image_auroc", "best_patch_auroc", "pixel_auroc", "aupro"))
