"""`python -m hub.reproduce.drawn_defects`: a test set of good photographs alone."""

import numpy as np
import pytest
from PIL import Image

from hub.reproduce.drawn_defects import main
from modeling_anople.data import read_dataset, read_source
from modeling_anople.data.drawn_products import draw_product


@pytest.fixture
def products(tmp_path):
    generator = np.random.default_rng(0)
    for name, count in (("wooden board", 7), ("capsule", 3)):
        folder = tmp_path / "data" / name / "train" / "good"
        folder.mkdir(parents=True)
        for number in range(count):
            draw_product(name, generator, 96)[0].save(folder / f"{number}.png")
        (tmp_path / "data" / name / "test" / "good").mkdir(parents=True)
        (tmp_path / "data" / name / "test" / "good" / "never read.png").write_text("no picture")
    return tmp_path / "data"


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_good_photographs_are_held_out_and_some_are_damaged(products, tmp_path):
    out = tmp_path / "out"
    assert main([str(products), str(out), "--test_images", "2", "--side", "128"]) == 0
    train, test = (read_dataset(out, split=split) for split in ("train", "test"))
    counts = {
        name: (train["class_name"][:].count(name), test["class_name"][:].count(name))
        for name in ("wooden board", "capsule")
    }
    assert counts == {"wooden board": (3, 4), "capsule": (1, 2)}
    assert not {path.rsplit("/", 1)[1] for path in train["path"]} & {path.rsplit("/", 1)[1] for path in test["path"]}
    originals = {row["path"].replace("/", "__").rsplit(".", 1)[0]: row for row in read_source(products, split="train")}
    assert sum(test["label"][:]) == 3
    for row in test:
        stem = row["path"].rsplit("/", 1)[1].rsplit(".", 1)[0]
        picture = (
            Image.open(products / originals[stem]["path"]).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
        )
        shown = np.asarray(Image.open(out / row["path"]))
        changed = (shown != np.asarray(picture)).any(axis=2)
        if row["label"]:
            mask = np.asarray(Image.open(next(out.rglob(f"{stem}_mask.png")))) > 0
            assert mask.any() and not changed[~mask].any() and changed[mask].all()
        else:
            assert not changed.any()


def test_the_same_seed_draws_the_same_set_and_never_over_another(products, tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert (
            main([str(products), str(tmp_path / name), "--test_images", "2", "--seed", str(seed), "--side", "128"])
            == 0
        )
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")
    assert main([str(products), str(tmp_path / "a")]) != 0
    assert "is not empty" in capsys.readouterr().err


def test_too_few_photographs_are_refused(products, tmp_path, capsys):
    (products / "capsule/train/good/0.png").unlink()
    assert main([str(products), str(tmp_path / "out")]) != 0
    assert "capsule has 2 good photographs; it takes at least 3" in capsys.readouterr().err
