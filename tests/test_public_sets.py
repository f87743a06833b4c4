"""Miniatures of the real trees of public data sets: each is read as its authors split it, or refused with the reason."""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_anople.cli import compare, main
from modeling_anople.data import read_source, source_classes
from modeling_anople.data.public_sets import READERS, SETS, saturation_areas
from modeling_anople.training.few_shot import choose_shots
from modeling_anople.training.options import TrainingConfig


def pictures(root: Path, *names: str) -> Path:
    for path in (root / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(zlib.crc32(str(path).encode())).integers(256, size=(16, 16), dtype=np.uint8)
        Image.fromarray(values).save(path, format="PNG")
    return root


def visa(root: Path) -> Path:
    images, masks = "candle/Data/Images", "candle/Data/Masks/Anomaly/000.png"
    pictures(root, f"{images}/Normal/0001.JPG", f"{images}/Normal/0002.JPG", f"{images}/Anomaly/000.JPG", masks)
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text(
        "object,split,label,image,mask\r\n"
        f"candle,train,normal,{images}/Normal/0002.JPG,\r\n"
        f"candle,test,normal,{images}/Normal/0001.JPG,\r\n"
        f"candle,test,anomaly,{images}/Anomaly/000.JPG,{masks}\r\n"
    )
    return root


def visa_reorganised(root: Path) -> Path:
    places = ["train/good/0002.JPG", "test/good/0001.JPG", "test/bad/000.JPG", "ground_truth/bad/000.png"]
    return pictures(root, *(f"1cls/candle/{place}" for place in places))


def real_iad(root: Path) -> Path:
    tables = {"train": [("OK/S0001/toy_0001_OK_C1_1.jpg", None, "OK"), ("OK/S0001/toy_0001_OK_C2_1.jpg", None, "OK")]}
    mask = "NG/AK/S0002/toy_0002_NG_AK_C1_1.png"
    tables["test"] = [
        ("NG/AK/S0002/toy_0002_NG_AK_C1_1.jpg", mask, "AK"),
        ("OK/S0003/toy_0003_OK_C5_1.jpg", None, "OK"),
    ]
    for entry in (*tables["train"], *tables["test"]):
        pictures(root / "realiad_256/toy", *filter(None, entry[:2]))
    content = {
        split: [dict(zip(("image_path", "mask_path", "anomaly_class"), entry, strict=True)) for entry in entries]
        for split, entries in tables.items()
    }
    (root / "realiad_jsons/realiad_jsons").mkdir(parents=True)
    (root / "realiad_jsons/realiad_jsons/toy.json").write_text(json.dumps(content))
    return root


def btad(root: Path) -> Path:
    for name in ("01", "02", "03"):
        pictures(root / name, "train/ok/0000.bmp", "test/ok/0001.bmp", "test/ko/0002.bmp", "ground_truth/ko/0002.png")
    return root


def mpdd(root: Path) -> Path:
    for name in SETS["mpdd"].classes:
        pictures(root / name, "train/good/000.png", "test/good/000.png", "test/hole/000.png")
        pictures(root / name, "ground_truth/hole/000_mask.png")
    return root


def yes_no(root: Path) -> Path:
    return pictures(root / "brain_tumor_dataset", *(f"no/{n} no.jpeg" for n in range(7)), "yes/Y1.jpg").parent


def head_ct(root: Path) -> Path:
    pictures(root / "head_ct/head_ct", *(f"{number:03d}.png" for number in range(8)))
    (root / "labels.csv").write_text("id, hemorrhage\n" + "".join(f"{n},{int(n < 2)}\n" for n in range(8)))
    return root


def bmad(root: Path) -> Path:
    return pictures(
        root, "train/good/1.png", "test/good/img/2.png", "test/Ungood/img/3.png", "test/Ungood/label/3.png"
    )


def mvfa(root: Path) -> Path:
    names = "valid/good/img/1.png valid/Ungood/img/4.png test/good/img/2.png test/Ungood/img/3.png"
    return pictures(root, *names.split(), "test/Ungood/anomaly_mask/3.png")


@pytest.mark.parametrize(
    ("name", "make", "train", "good", "bad", "masks"),
    [
        ("visa", visa, 1, 1, 1, 1),
        ("visa", visa_reorganised, 1, 1, 1, 1),
        ("real_iad", real_iad, 2, 1, 1, 1),
        ("btad", btad, 3, 3, 3, 3),
        ("mpdd", mpdd, 6, 6, 6, 6),
        ("brain_mri", yes_no, 2, 5, 1, 0),
        ("br35h", yes_no, 2, 5, 1, 0),
        ("head_ct", head_ct, 2, 4, 2, 0),
        ("liver_ct", bmad, 1, 1, 1, 1),
        ("resc", mvfa, 1, 1, 1, 1),
    ],
)
def test_a_miniature_is_read_as_it_is_split(tmp_path, name, make, train, good, bad, masks):
    source = f"{name}:{make(tmp_path)}"
    learn, test = (read_source(source, split=split) for split in ("train", "test"))
    assert len(learn) == train and set(learn["label"]) == {0}
    assert (test["label"][:].count(0), test["label"][:].count(1)) == (good, bad)
    marked = [row for row in test if row["mask"]]
    assert len(marked) == masks and all(row["label"] for row in marked)
    assert all(Path(row["mask"]["path"]).is_file() for row in marked)
    assert all((tmp_path / row["path"]).exists() or (tmp_path / "1cls" / row["path"]).exists() for row in test)
    assert not set(learn["path"]) & set(test["path"])
    assert source_classes(source) == sorted(set(test["class_name"]))


def test_the_official_table_decides_what_visa_trains_on(tmp_path):
    assert read_source(f"visa:{visa(tmp_path)}", split="train")["path"][:] == ["candle/Data/Images/Normal/0002.JPG"]


def test_a_fit_draws_its_shots_from_a_public_set(tmp_path):
    shots = choose_shots(TrainingConfig(data_root=f"btad:{btad(tmp_path)}", shots=1, classes=["02"]))
    assert shots.files == {"02": ["02/train/ok/0000.bmp"]}


def test_shots_of_each_view_are_told_by_name(tmp_path):
    source = f"real_iad:{real_iad(tmp_path)}"
    names = ["OK/S0001/toy_0001_OK_C1_1.jpg", "OK/S0001/toy_0001_OK_C2_1.jpg"]
    per_class = choose_shots(TrainingConfig(data_root=source, shots=1))
    per_view = choose_shots(TrainingConfig(data_root=source, shots=1, view_pattern="_(C[1-5])_"))
    assert [len(files) for files in per_class.files.values()] == [1]
    assert [path.endswith(name) for path, name in zip(per_view.files["toy"], names, strict=True)] == [True, True]
    with pytest.raises(ValueError, match="does not fit toy_0001_OK_C1_1.jpg: it must fit every good photograph"):
        choose_shots(TrainingConfig(data_root=source, view_pattern="_(D)_"))


@pytest.mark.parametrize(("pattern", "what"), [("_C[1-5]_", "has 0 groups"), ("_(C", "is no regular expression")])
def test_a_wrong_view_pattern_is_refused(pattern, what):
    with pytest.raises(ValueError, match=what):
        TrainingConfig(data_root="data", view_pattern=pattern)


@pytest.mark.parametrize(
    ("name", "make", "lost", "what"),
    [
        ("visa", visa, "candle/Data/Images/Anomaly/000.JPG", "1 of 3 photographs are missing, first: .*000.JPG"),
        ("visa", visa, "candle/Data/Masks/Anomaly/000.png", "1 masks are missing"),
        ("real_iad", real_iad, "realiad_jsons/realiad_jsons/toy.json", "realiad_jsons/CLASS.json is missing"),
        ("real_iad", real_iad, "realiad_256/toy/OK/S0003/toy_0003_OK_C5_1.jpg", "1 of 4 photographs are missing"),
        ("btad", btad, "02/train/ok/0000.bmp", "no photographs in 02/train/ok"),
        ("head_ct", head_ct, "labels.csv", "labels.csv is missing"),
        ("head_ct", head_ct, "head_ct/head_ct/003.png", "1 pictures of labels.csv are missing, first: 3"),
        ("br35h", yes_no, "brain_tumor_dataset/yes/Y1.jpg", "no defective pictures"),
        ("liver_ct", bmad, "test/Ungood/img/3.png", "no pictures in test/Ungood"),
    ],
)
def test_a_tree_that_is_not_whole_is_refused_with_the_remedy(tmp_path, name, make, lost, what):
    (make(tmp_path) / lost).unlink()
    home, license = SETS[name].home, SETS[name].license
    with pytest.raises(ValueError, match=what) as caught:
        read_source(f"{name}:{tmp_path}", split="train")
    assert home in str(caught.value) and license in str(caught.value) and "Expected:" in str(caught.value)


@pytest.mark.parametrize("name", SETS)
def test_an_empty_folder_and_none_are_no_set(tmp_path, name):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=f"is no whole {SETS[name].title}: .*https?://"):
            read_source(f"{name}:{folder}", split="test")


def test_official_numbers_agree_with_their_sums():
    for name in ("mvtec", "visa", "mpdd", "btad"):
        counts = list(SETS[name].classes.values())
        assert tuple(map(sum, zip(*counts, strict=True))) == SETS[name].totals
    assert len(SETS["real_iad"].classes) == 30 and set(READERS) < set(SETS)
    assert sum(SETS["real_iad"].totals) == 151_050  # which its authors state


@pytest.mark.parametrize(
    ("official", "normals", "said", "agrees"),
    [
        ((3, 2, 1), None, "agrees", True),
        ((3, 2, 2), None, "differs: (3, 2, 2)", False),
        ((None, 2, 1), None, "agrees", True),
        ((None, 3, 1), None, "differs: (any, 3, 1)", False),
        (None, (5, 1), "agrees", True),
        (None, (6, 1), "differs: 6 good, 1 defective", False),
        (None, None, "not known to us", True),
    ],
)
def test_counts_are_compared(official, normals, said, agrees):
    assert compare((3, 2, 1), official, normals) == (said, agrees)


def test_check_prints_counts_beside_the_official_ones(tmp_path, capsys):
    assert main(["data", "check", "visa", str(visa(tmp_path))]) == 1  # eleven classes are missing
    printed = capsys.readouterr().out
    assert "| candle | 1 | 1 | 1 | differs: (900, 100, 100) |" in printed
    assert "| cashew | 0 | 0 | 0 | missing |" in printed and "CC BY 4.0" in printed


def test_a_class_without_official_numbers_is_not_said_to_differ(tmp_path, capsys):
    assert main(["data", "check", "real_iad", str(real_iad(tmp_path))]) == 1  # 29 classes are missing
    printed = capsys.readouterr().out
    assert "| toy | 2 | 1 | 1 | not known to us |" in printed
    assert "| all | 2 | 1 | 1 | differs: (36465, 63256, 51329) |" in printed


def test_a_whole_set_ends_with_0(tmp_path, capsys, monkeypatch):
    facts = dataclasses.replace(SETS["br35h"], both_splits={"brain": (7, 1)})
    monkeypatch.setitem(SETS, "br35h", facts)
    assert main(["data", "check", "br35h", str(yes_no(tmp_path))]) == 0
    assert "| brain | 2 | 5 | 1 | agrees |" in capsys.readouterr().out


def test_an_unknown_set_is_refused(tmp_path, capsys):
    assert main(["data", "check", "nothing", str(tmp_path)]) == 2
    assert "choose from mvtec, visa" in capsys.readouterr().err


def test_defects_of_mvtec_loco_count_from_their_saturation_on(tmp_path):
    """A tree as its authors lay it: a folder of masks for each photograph, and how much of each defect must be found."""
    root = pictures(tmp_path / "pushpins", "train/good/000.png", "validation/good/000.png", "test/good/000.png")
    entries = [("missing", 255, 20, False), ("broken", 254, 0.5, True), ("large", 253, 999, False)]
    keys = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
    (root / "defects_config.json").write_text(json.dumps([dict(zip(keys, entry, strict=True)) for entry in entries]))
    masks = root / "ground_truth/logical_anomalies/000"
    masks.mkdir(parents=True)
    for number, (_, value, _, _) in enumerate(entries):
        mask = np.zeros((10, 20), np.uint8)
        mask[:5, :10] = value
        Image.fromarray(mask).save(masks / f"{number:03d}.png")
    pictures(root, "test/logical_anomalies/000.png")
    rows = read_source(f"mvtec_loco:{tmp_path}", split="test")
    assert [mask and mask["path"] for mask in rows["mask"]] == [None, str(masks)]
    areas = saturation_areas(masks)
    assert [(path.name, area) for path, area in areas] == [("000.png", 20), ("001.png", 25.0), ("002.png", 50)]
    Image.fromarray(mask // 2).save(masks / "003.png")
    with pytest.raises(ValueError, match=r"003\.png has the value 126, which .*defects_config\.json does not list"):
        saturation_areas(masks)
    assert (
        saturation_areas(root / "test/good") == [] and len(read_source(f"mvtec_loco:{tmp_path}", split="train")) == 1
    )


def test_official_counts_of_classes_add_up_to_those_of_the_set():
    for name in ("mvtec", "visa", "mpdd", "btad"):
        assert tuple(map(sum, zip(*SETS[name].classes.values(), strict=True))) == SETS[name].totals
