import io
import json
import unicodedata
from pathlib import Path

import datasets
import pytest
from PIL import Image

from modeling_anople.data import FEATURES, IMAGE_EXTENSIONS, DataOptions, list_classes, read_dataset
from modeling_anople.images_anople import list_images


def pictures(root: Path, *names: str, value: int = 0) -> Path:
    for path in (root / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), value).save(path, format="PNG")
    return root


def mvtec(root: Path) -> Path:
    """Two normals, one good and two defective test images; masks written in another order than the images."""
    names = ["train/good/0.png", "train/good/1.png", "test/good/0.png", "test/crack/0.png", "test/crack/1.png"]
    pictures(root / "bottle", *names)
    pictures(root / "bottle/ground_truth/crack", "1_mask.png", value=11)
    pictures(root / "bottle/ground_truth/crack", "0.png", value=10)
    return root


def paths(source: str | Path, split: str, **kwargs) -> list[str]:
    return read_dataset(source, split=split, **kwargs)["path"][:]


def mask_names(dataset: datasets.Dataset) -> list[str | None]:
    return [mask and Path(mask["path"]).name for mask in dataset["mask"]]


def test_mvtec_tree_gives_every_column(tmp_path):
    train, test = (read_dataset(mvtec(tmp_path), split=split) for split in ("train", "test"))
    assert train.features == test.features == FEATURES
    assert train["path"][:] == ["bottle/train/good/0.png", "bottle/train/good/1.png"]
    assert train["label"][:] == [0, 0] and train["defect"][:] == ["good", "good"] and mask_names(train) == [None, None]
    assert test["path"][:] == ["bottle/test/crack/0.png", "bottle/test/crack/1.png", "bottle/test/good/0.png"]
    assert test["label"][:] == [1, 1, 0] and test["defect"][:] == ["crack", "crack", "good"]
    assert set(test["class_name"]) == {"bottle"}
    assert test[0]["image"] == {"bytes": None, "path": str(tmp_path / "bottle/test/crack/0.png")}


def test_masks_are_matched_by_stem_not_by_position(tmp_path):
    pictures(mvtec(tmp_path) / "bottle/test", "crack/10.png", "crack/2.jpg", "crack/a.b.png", "scratch/10.png")
    for value, name in enumerate(["crack/2_mask.png", "crack/a.b_mask.png", "crack/10.png", "scratch/10_mask.PNG"]):
        pictures(tmp_path / "bottle/ground_truth", name, value=20 + value)
    dataset = read_dataset(tmp_path, split="test")
    names = ["crack/0.png", "crack/1.png", "crack/2.jpg", "crack/10.png", "crack/a.b.png", "good/0.png"]
    assert dataset["path"][:] == [f"bottle/test/{name}" for name in [*names, "scratch/10.png"]]
    values = [mask and Image.open(mask["path"]).getpixel((0, 0)) for mask in dataset["mask"]]
    assert values == [10, 11, 20, 22, 21, None, 23]


def test_missing_and_unmatched_masks_are_counted_in_warnings(tmp_path, caplog):
    read_dataset(mvtec(tmp_path), split="test")
    assert not caplog.records
    pictures(tmp_path / "bottle", "test/crack/7.png", "test/crack/8.png", "ground_truth/crack/9_mask.png")
    pictures(tmp_path / "bottle", "ground_truth/gone/0_mask.png", "ground_truth/gone/1_mask.png", "test/Good/0.png")
    dataset = read_dataset(tmp_path, split="test")
    assert mask_names(dataset) == [None, "0.png", "1_mask.png", None, None, None]
    assert dataset["label"][:] == [0, 1, 1, 1, 1, 0] and dataset[0]["defect"] == "good"  # test/Good first
    missing, unmatched = [record.getMessage() for record in caplog.records]
    assert "no mask for 2 defective images" in missing and "7.png" in missing
    assert "3 masks match no image" in unmatched and "9_mask.png" in unmatched


def test_rows_are_in_natural_order_of_class_and_path(tmp_path):
    expected = ["part2/good/09.png", "part2/good/9.png", "part2/good/10.png", "part2/good/b.png", "part10/good/1.png"]
    pictures(tmp_path, *expected)
    assert paths(tmp_path, "train") == expected
    assert list_classes(tmp_path) == ["part2", "part10"]
    assert paths(tmp_path, "train", classes=["part10", "part2", "part2"]) == expected


def test_extensions_are_case_insensitive_and_other_files_ignored(tmp_path):
    wanted = [f"{index:02d}{extension.upper()}" for index, extension in enumerate(sorted(IMAGE_EXTENSIONS))]
    good = pictures(tmp_path / "nut/good", *wanted, ".hidden.png", "._0.png", "notes.txt", "Thumbs.db")
    (good / "folder.png").mkdir()
    (good / "98.png").touch()  # unreadable files are listed, for the caller to refuse by name
    (good / "99.png").symlink_to(tmp_path / "gone.png")
    assert {".jfif", ".jpe", ".mpo", ".tga", ".jp2", ".avif"} < IMAGE_EXTENSIONS
    assert not {".ico", ".h5", ".eps", ".fits", ".mpg", ".grib", ".pdf", ".psd"} & IMAGE_EXTENSIONS
    assert paths(tmp_path, "train") == [f"nut/good/{name}" for name in [*wanted, "98.png", "99.png"]]


def test_unicode_spaces_and_long_names_below_a_relative_source(tmp_path, monkeypatch):
    names = [f"{'x' * 250}.png", "a b #%?.png", "日本.png"]
    root = pictures(tmp_path / "Größe ü", *(f"good/{name}" for name in names))
    monkeypatch.chdir(root)
    dataset = read_dataset(".", split="train")
    assert dataset["path"][:] == sorted(f"good/{name}" for name in names)
    assert dataset[0]["class_name"] == "Größe ü"
    assert [image["path"] for image in dataset["image"]] == [str(root / path) for path in dataset["path"]]


def test_symlinked_class_folder_is_followed(tmp_path):
    mvtec(tmp_path / "elsewhere")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere/bottle", target_is_directory=True)
    assert paths(tmp_path / "root", "train") == ["link/train/good/0.png", "link/train/good/1.png"]
    assert mask_names(read_dataset(tmp_path / "root", split="test")) == ["0.png", "1_mask.png", None]


@pytest.mark.parametrize("prefix", ["train/good/", "good/", ""])
def test_single_class_root_is_named_after_its_folder(tmp_path, prefix):
    root = pictures(tmp_path / "gear", f"{prefix}0.png")
    assert list_classes(root) == ["gear"]
    assert paths(root, "train") == [f"{prefix}0.png"]


def test_layouts_may_differ_per_class(tmp_path):
    pictures(mvtec(tmp_path), "flat/0.jpg", "mixed/good/0.png", "mixed/bent/0.png", "mixed/bent/1.png", "stray.png")
    pictures(tmp_path / "mixed/ground_truth", "bent/1.png", "7.png")
    (tmp_path / "empty").mkdir()
    assert list_classes(tmp_path) == ["bottle", "flat", "mixed"]
    assert paths(tmp_path, "train", classes=["mixed", "flat"]) == ["flat/0.jpg", "mixed/good/0.png"]
    mixed = read_dataset(tmp_path, split="test", classes=["mixed"])
    assert mixed["path"][:] == ["mixed/bent/0.png", "mixed/bent/1.png"] and mixed["label"][:] == [1, 1]
    assert mixed["defect"][:] == ["bent", "bent"] and mask_names(mixed) == [None, "1.png"]
    flat = read_dataset(tmp_path, split="test", classes=["flat"])
    assert len(flat) == 0 and flat.features == FEATURES


def test_images_of_no_split_are_warned_about(tmp_path, caplog):
    pictures(tmp_path, "flat/0.png", "flat/scratch/0.png", "flat/scratch/1.png", "mixed/good/0.png", "mixed/1.png")
    pictures(mvtec(tmp_path), "bottle/test/7.png", "bottle/train/bad/7.png")
    read_dataset(tmp_path, split="train")
    places = {str(record.args[0].relative_to(tmp_path)): record.args[1] for record in caplog.records}
    assert places == {"flat/scratch": 2, "mixed": 1, "bottle/test": 1, "bottle/train/bad": 1}


def png_bytes() -> bytes:
    Image.new("L", (2, 2)).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def test_parquet_round_trip_is_silent_and_leaves_no_files(tmp_path, capfd):
    pictures(mvtec(tmp_path / "tree"), "nut/good/0.png", "nut/bent/0.png")
    tree = {split: read_dataset(tmp_path / "tree", split=split) for split in ("train", "test")}
    pictures(tmp_path, "data/assets/logo.png")
    for split, dataset in tree.items():
        rows = [row | {"image": {"bytes": Path(row["image"]["path"]).read_bytes()}} for row in dataset]
        shuffled = datasets.Dataset.from_list(rows[::-1], features=FEATURES)
        shuffled.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    for split, dataset in tree.items():
        found = read_dataset(tmp_path / "data", split=split)
        assert found.features == FEATURES
        for column in ("label", "class_name", "defect", "path"):
            assert found[column][:] == dataset[column][:]
        assert [mask is None for mask in found["mask"]] == [mask is None for mask in dataset["mask"]]
        files = [Path(image["path"]).read_bytes() for image in dataset["image"]]
        assert [image["bytes"] for image in found["image"]] == files
    assert list_classes(tmp_path / "data") == ["bottle", "nut"]
    assert paths(tmp_path / "data", "train", classes=["nut"]) == ["nut/good/0.png"]
    assert capfd.readouterr() == ("", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_single_parquet_file_with_other_column_names(tmp_path):
    stored = {"bytes": png_bytes(), "path": "0.png"}
    columns = {"image": [stored] * 4, "segmentation": [None, stored, None, None], "label": [1, 0, 2, 3]}
    columns |= {"object": [1, 0, 0, 1], "split": ["train", "test", "train", "test"]}
    table = datasets.Dataset.from_dict(columns)
    for name, names in {"label": ["torn", "good", "ok", "anomalous"], "object": ["screw", "bolt"]}.items():
        table = table.cast_column(name, datasets.ClassLabel(names=names))
    table.to_parquet(tmp_path / "things.parquet")
    train, test = (read_dataset(tmp_path / "things.parquet", split=split) for split in ("train", "test"))
    assert train["class_name"][:] == ["bolt", "screw"] and train["label"][:] == [0, 0]
    assert train["path"][:] == ["train/000000-0.png", "train/000001-0.png"]  # one name for all, so numbered
    assert test["class_name"][:] == ["bolt", "screw"] and test["defect"][:] == ["anomalous", "torn"]
    assert mask_names(test) == [None, "0.png"]


def write_parquet(path: Path, **columns) -> Path:
    length = len(next(iter(columns.values())))
    images = [{"bytes": png_bytes(), "path": f"{index}.png"} for index in range(length)]
    datasets.Dataset.from_dict({"image": images, **columns}).to_parquet(path)
    return path


@pytest.mark.parametrize("labels", [[0, 1], [False, True], [0.0, 1.0], ["Normal", "abnormal"], ["0", "1"]])
def test_label_spellings_and_class_named_after_the_source(tmp_path, labels):
    dataset = read_dataset(write_parquet(tmp_path / "gear.parquet", label=labels), split="train")
    assert dataset["label"][:] == [0, 1] and dataset["defect"][:] == ["good", "anomalous"]
    assert dataset["class_name"][:] == ["gear", "gear"] and dataset["path"][:] == ["0.png", "1.png"]
    assert len(read_dataset(tmp_path / "gear.parquet", split="test")) == 0


@pytest.mark.parametrize("labels", [[0, 2], [0, -1], [0, None], ["good", ""], ["good", "7"]])
def test_unreadable_label_is_refused(tmp_path, labels):
    with pytest.raises(ValueError, match=r"Label .* in .*gear\.parquet cannot be read: use 0"):
        read_dataset(write_parquet(tmp_path / "gear.parquet", label=labels), split="train")


METADATA = {
    "jsonl": """{"file_name": "test/b 1.png", "mask_file_name": null, "label": 0, "category": "001"}
{"file_name": "test/b 2.png", "mask_file_name": "masks/ü.png", "label": 1, "category": "001"}

{"file_name": "train/a.png", "label": 0, "category": "001"}
{"file_name": "validation/v.png", "label": 0, "category": "001"}
""",
    "csv": "\ufefffile_name,mask_file_name,label,class_name\r\ntest/b 1.png,,0,001\r\n"
    "test/b 2.png,masks/ü.png,1,001\r\ntrain/a.png,,0,001\r\nvalidation/v.png,,0,001\r\n",
}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_imagefolder_metadata_with_null_masks(tmp_path, suffix):
    root = pictures(tmp_path, "test/b 1.png", "test/b 2.png", "train/a.png", "validation/v.png", "masks/ü.png")
    (root / f"metadata.{suffix}").write_text(METADATA[suffix], encoding="utf-8", newline="")
    train, test = (read_dataset(root, split=split) for split in ("train", "test"))
    assert train["path"][:] == ["train/a.png"] and train["mask"][:] == [None] and train.features == FEATURES
    assert test["path"][:] == ["test/b 1.png", "test/b 2.png"] and test["label"][:] == [0, 1]
    assert mask_names(test) == [None, "ü.png"] and test["defect"][:] == ["good", "anomalous"]
    assert Image.open(test[1]["mask"]["path"]).size == Image.open(test[1]["image"]["path"]).size == (2, 2)
    assert list_classes(root) == ["001"]


def test_imagefolder_metadata_in_split_folders_and_split_column(tmp_path):
    pictures(tmp_path, "train/good/0.png", "test/0.png", "train/1.png")
    lines = {"train": [("good/0.png", 0, None), ("1.png", 1, "test")], "test": [("0.png", 1, None)]}
    for split, rows in lines.items():
        records = [json.dumps({"file_name": name, "label": label, "split": to}) for name, label, to in rows]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(records), encoding="utf-8")
    assert paths(tmp_path, "train") == ["train/good/0.png"]
    assert paths(tmp_path, "test") == ["test/0.png", "train/1.png"]


def test_hub_data_set_columns_are_normalised(monkeypatch):
    image = {"bytes": png_bytes(), "path": None}
    table = datasets.Dataset.from_dict({"image": [image, image], "label": [0, 1], "extra": [1, 2]})
    hub = {"user/name": datasets.DatasetDict(train=table, validation=table)}
    monkeypatch.setattr(datasets, "load_dataset", hub.__getitem__)  # the Hub itself needs a network
    dataset = read_dataset("user/name", split="train")
    assert dataset.features == FEATURES and dataset["class_name"][:] == ["name", "name"]
    assert dataset["label"][:] == [0, 1] and dataset[0]["image"] == image and dataset["mask"][:] == [None, None]
    assert dataset["path"][:] == ["train/000000-image", "train/000001-image"]
    assert len(read_dataset("user/name", split="test")) == 0


def test_hub_failure_says_that_it_is_no_path_either(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'no-such/data-set' is no path .* Check the spelling"):
        read_dataset("no-such/data-set", split="train")


@pytest.mark.parametrize("source", ["missing", "./a/b", "a/b/c", Path("a/b")])
def test_missing_path_is_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / source} does not exist: check the path"):
        list_classes(source)


def test_wrong_sources_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"0\.png is a file: give the folder"):
        list_classes(pictures(tmp_path, "nut/0.png") / "nut/0.png")
    (tmp_path / "void/sub").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"(?s)No class folders in .*void.*1\. MVTec.*2\. plain.*3\. a data set"):
        list_classes(tmp_path / "void")
    pictures(tmp_path / "splits", "train/0.png", "test/good/0.png")  # split folders are no classes
    with pytest.raises(ValueError, match="No class folders in .*splits"):
        list_classes(tmp_path / "splits")
    with pytest.raises(ValueError, match="split must be 'train' or 'test', not 'val'"):
        read_dataset(tmp_path, split="val")
    with pytest.raises(ValueError, match=r"No class \['screw'\] in .*Classes there: bottle, gear\."):
        read_dataset(pictures(mvtec(tmp_path / "tree"), "gear/0.png"), split="test", classes=["gear", "screw"])


NO_NORMALS = {"nut/train/bad/0.png": "nut/train/good", "nut/bent/0.png": "nut", "nut/good/notes.txt": "nut/good"}


@pytest.mark.parametrize(("name", "folder"), NO_NORMALS.items())
def test_class_without_normals_names_class_and_folder(tmp_path, name, folder):
    pictures(mvtec(tmp_path), name)
    with pytest.raises(ValueError, match=f"Class 'nut' has no normal photographs in {tmp_path / folder}:"):
        read_dataset(tmp_path, split="train")
    assert len(read_dataset(tmp_path, split="train", classes=["bottle"])) == 2


def test_table_errors_name_file_and_remedy(tmp_path):
    for name in ("only_test", "validation-0"):
        with pytest.raises(ValueError, match=f"Class '{name}' has no normal photographs in the train split of"):
            read_dataset(write_parquet(tmp_path / f"{name}.parquet", label=[0]), split="train")
    with pytest.raises(ValueError, match=r"x\.parquet has no column 'label', only \['image'\]"):
        read_dataset(write_parquet(tmp_path / "x.parquet", size=[1]), split="train")
    with pytest.raises(ValueError, match="Class 'nut' has no normal photographs in the train split of"):
        read_dataset(write_parquet(tmp_path / "y.parquet", label=[0, 1], category=["gear", "nut"]), split="train")
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("name,label\n0.png,0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"metadata\.csv has a row without `file_name`.*Add it"):
        list_classes(tmp_path)
    metadata.rename(tmp_path / "metadata.jsonl")
    with pytest.raises(ValueError, match=r"metadata\.jsonl is no UTF-8 jsonl file"):
        list_classes(tmp_path)


def test_a_folder_with_its_accents_apart_is_the_class_with_composed_ones(tmp_path, photograph):
    composed, apart = (unicodedata.normalize(form, "Flasche grün") for form in ("NFC", "NFD"))
    (tmp_path / apart / "good").mkdir(parents=True)
    photograph(0).save(tmp_path / apart / "good" / "0.png")
    assert list_classes(tmp_path) == [composed] != [apart]
    for name in (composed, apart):
        (row,) = read_dataset(tmp_path, split="train", classes=[name])
        assert row["class_name"] == composed and Path(row["image"]["path"]).exists()
    rows = datasets.Dataset.from_dict({"image": [row["image"]["path"]], "class_name": [apart], "label": [0]})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "rows.parquet")
    assert list_classes(tmp_path / "rows.parquet") == [composed]
    (tmp_path / "rows.parquet").unlink()
    if not (tmp_path / composed).exists():  # a Mac finds the one folder by both names
        (tmp_path / composed / "good").mkdir(parents=True)
        photograph(1).save(tmp_path / composed / "good" / "1.png")
        with pytest.raises(ValueError, match="two folders of one name, their accents written in two ways"):
            list_classes(tmp_path)


# --- Folders as factories have them ---


def listed(root: Path, split: str) -> dict[str, tuple[str, str | None]]:
    """Photograph -> what it shows, and its mask, both below the root."""
    rows = read_dataset(root, split=split)
    masks = [mask and Path(mask["path"]).relative_to(root).as_posix() for mask in rows["mask"]]
    return dict(zip(rows["path"], zip(rows["defect"], masks, strict=True), strict=True))


@pytest.mark.parametrize("good", ["good", "Good", "OK", "ok", "normal", "Normal"])
def test_good_photographs_lie_in_folders_of_any_usual_name(tmp_path, good):
    pictures(tmp_path, f"tree/train/{good}/0.png", f"tree/test/{good}/0.png", "tree/test/NG/0.png")
    pictures(tmp_path, f"plain/{good}/0.png", "plain/NG/0.png", "plain/MASK/0.png")
    assert listed(tmp_path, "train") == {
        f"plain/{good}/0.png": ("good", None),
        f"tree/train/{good}/0.png": ("good", None),
    }
    assert listed(tmp_path, "test") == {
        "plain/NG/0.png": ("NG", "plain/MASK/0.png"),
        "tree/test/NG/0.png": ("NG", None),
        f"tree/test/{good}/0.png": ("good", None),
    }


def test_the_folders_of_a_data_set_are_found_in_any_case(tmp_path):
    pictures(tmp_path, "gear/Train/Good/monday/0.JPG", "gear/TEST/Scratch/a b.JPG", "gear/TEST/GOOD/tuesday/7.JPG")
    pictures(tmp_path, "gear/Ground_Truth/Scratch/a b_mask.png")
    assert listed(tmp_path, "train") == {"gear/Train/Good/monday/0.JPG": ("good", None)}
    assert listed(tmp_path, "test") == {
        "gear/TEST/GOOD/tuesday/7.JPG": ("good", None),
        "gear/TEST/Scratch/a b.JPG": ("Scratch", "gear/Ground_Truth/Scratch/a b_mask.png"),
    }


def test_good_photographs_lie_straight_in_train_or_in_a_folder_for_each_day(tmp_path):
    pictures(tmp_path, "flat/train/0.png", "flat/test/bad/1.png")
    pictures(tmp_path, "days/train/good/monday/0.png", "days/train/good/tuesday/0.png", "days/test/bad/monday/0.png")
    pictures(tmp_path, "days/test/bad/tuesday/0.png", "days/ground_truth/bad/tuesday/0_mask.png")
    assert [*listed(tmp_path, "train")] == [
        "days/train/good/monday/0.png",
        "days/train/good/tuesday/0.png",
        "flat/train/0.png",
    ]
    assert listed(tmp_path, "test") == {
        "days/test/bad/monday/0.png": ("bad", None),
        "days/test/bad/tuesday/0.png": ("bad", "days/ground_truth/bad/tuesday/0_mask.png"),
        "flat/test/bad/1.png": ("bad", None),
    }


@pytest.mark.parametrize("name", ["masks", "MASK", "gt", "Labels", "annotations", "results", "@eaDir", "__MACOSX"])
def test_folders_of_masks_and_of_programs_are_neither_product_nor_defect(tmp_path, name, caplog):
    pictures(tmp_path, "gear/good/0.png", "gear/bad/0.png", f"gear/{name}/0.png", f"gear/good/{name}/7.png")
    pictures(tmp_path, f"{name}/0.png")
    assert list_classes(tmp_path) == ["gear"]
    assert [*listed(tmp_path, "train")] == ["gear/good/0.png"]
    assert (
        f"passed over 1 file (1 {'files' if name in ('results', '@eaDir', '__MACOSX') else 'masks'} in {name})"
        in caplog.text
    )
    assert {path: defect for path, (defect, _) in listed(tmp_path, "test").items()} == {"gear/bad/0.png": "bad"}
    # of any folder, these may be what a camera looked at
    shown = [f"{name}/0.png", "gear/bad/0.png", "gear/good/0.png", f"gear/good/{name}/7.png", f"gear/{name}/0.png"]
    expected = shown if name in ("Labels", "annotations", "results") else shown[1:3]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path])) == sorted(expected)


def test_photographs_that_are_called_label_are_photographs_where_no_data_set_is_read(tmp_path, caplog):
    names = ["front.png", "front_label.png", "label_12.png", "12.png", "label/1.png", "seg-12.png"]
    pictures(tmp_path, *names, "front_mask.png", "12_GT.png", "ground_truth/front.png")
    (tmp_path / "masks").mkdir()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path])) == sorted(names)
    assert "passed over 3 files (2 masks beside their photographs, 1 masks in ground_truth)" in caplog.text
    caplog.clear()
    pictures(tmp_path / "other", "a.png")
    (tmp_path / "other/masks").mkdir()
    assert [path.name for path in list_images([tmp_path / "other"])] == ["a.png"] and not caplog.text


def test_what_this_program_wrote_is_never_read_as_photographs(tmp_path):
    pictures(tmp_path, "gear/good/0.png", "gear/bad/0.png")
    line = {"path": "0.png", "class": "gear", "score": 0.1, "label": "normal", "overlay": "gear/out/0000-0.png"}
    for folder in (tmp_path / "gear/out", tmp_path / "out", tmp_path / "gear/bad"):
        pictures(folder, "0000-0.png")
        (folder / "results.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    pictures(tmp_path, "gallery/01-gear.png", "gear/gallery/01-gear.png")
    for folder in (tmp_path / "gallery", tmp_path / "gear/gallery"):
        (folder / "index.html").write_text("<html><title>AnoPLe</title>", encoding="utf-8")
    assert list_classes(tmp_path) == ["gear"]
    assert [*listed(tmp_path, "train")] == ["gear/good/0.png"] and [*listed(tmp_path, "test")] == ["gear/bad/0.png"]
    assert [path.name for path in list_images([tmp_path])] == ["0.png", "0.png"]


def test_a_folder_that_is_one_product_is_refused_with_the_folder_to_give(tmp_path):
    root = pictures(tmp_path / "gear", "OK/0.png", "NG/0.png", "MASK/0.png")
    with pytest.raises(
        ValueError, match=rf"gear is itself one product \(NG, OK inside\): give the folder above it, {tmp_path} "
    ):
        list_classes(root)
    assert list_classes(tmp_path) == ["gear"]


def test_linked_folders_are_followed_once(tmp_path):
    pictures(tmp_path, "gear/good/day/0.png", "elsewhere/1.png")
    (tmp_path / "gear/good/loop").symlink_to(tmp_path / "gear/good", target_is_directory=True)
    (tmp_path / "gear/good/day/up").symlink_to(tmp_path / "gear", target_is_directory=True)
    (tmp_path / "gear/good/other").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    names = [path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path / "gear"])]
    assert names == ["gear/good/day/0.png", "gear/good/other/1.png"]
    assert paths(tmp_path, "train", classes=["gear"]) == names
    (tmp_path / "again").symlink_to(tmp_path / "gear", target_is_directory=True)
    (tmp_path / "gear/good/self").symlink_to("self")
    assert list_classes(tmp_path) == ["elsewhere", "gear"]
    assert [path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path / "gear"])] == names


def test_photographs_of_one_name_and_two_endings_are_told_of(tmp_path, caplog):
    pictures(tmp_path, "gear/good/0.png", "gear/bad/1.jpg", "gear/bad/1.png", "gear/bad/2.png")
    assert [*listed(tmp_path, "test")] == ["gear/bad/1.jpg", "gear/bad/1.png", "gear/bad/2.png"]
    assert "2 defective photographs have one of the same name beside them, which may be a mask: " in caplog.text


MASK_NAMES = [
    "0_mask.png",
    "0.png",
    "0_GT.PNG",
    "0.jpg.png",
    "0_MASK.bmp",
    "mask_0.png",
    "0_label.png",
    "00.png",
    "GT-0.tif",
]


@pytest.mark.parametrize("name", MASK_NAMES)
def test_masks_are_found_by_all_usual_names(tmp_path, name, caplog):
    other = "010.png" if name == "00.png" else name.replace("0", "10", 1)
    pictures(tmp_path, "gear/good/0.png", "gear/bad/0.jpg", "gear/bad/10.jpg")
    pictures(tmp_path / "gear", f"masks/bad/{name}", f"gt/{other}")
    masks = {path: mask for path, (_, mask) in listed(tmp_path, "test").items()}
    assert masks == {"gear/bad/0.jpg": f"gear/masks/bad/{name}", "gear/bad/10.jpg": f"gear/gt/{other}"}
    assert not caplog.messages


def test_masks_beside_their_photographs_are_their_masks(tmp_path):
    pictures(
        tmp_path,
        "gear/good/0.png",
        "gear/good/0_GT.png",
        "gear/bad/1.jpg",
        "gear/bad/1_label.bmp",
        "gear/bad/gt_2.png",
    )
    assert [*listed(tmp_path, "train")] == ["gear/good/0.png"]
    assert listed(tmp_path, "test") == {
        "gear/bad/1.jpg": ("bad", "gear/bad/1_label.bmp"),
        "gear/bad/gt_2.png": ("bad", None),  # whose photograph is not there
    }


def test_a_folder_of_several_masks_stands_for_all_of_them(tmp_path):
    pictures(tmp_path, "box/train/good/0.png", "box/test/logical/000.png", "box/test/logical/001.png")
    pictures(tmp_path, "box/ground_truth/logical/000/000.png", "box/ground_truth/logical/000/001.png")
    pictures(tmp_path, "box/ground_truth/logical/001/000.png")
    masks = {path: mask for path, (_, mask) in listed(tmp_path, "test").items()}
    assert masks == {
        f"box/test/logical/{number}.png": f"box/ground_truth/logical/{number}" for number in ("000", "001")
    }


@pytest.mark.parametrize("pattern", ["{stem}-truth.tif", "{defect}/{stem}-truth.tif"])
def test_a_pattern_says_how_masks_are_named(tmp_path, pattern):
    pictures(tmp_path, "gear/good/0.png", "gear/bad/0.jpg", "gear/masks/bad/0-truth.tif", "gear/masks/bad/0.png")
    rows = read_dataset(tmp_path, split="test", options=DataOptions(mask_pattern=pattern))
    assert mask_names(rows) == ["0-truth.tif"]
    with pytest.raises(ValueError, match="mask_pattern .* cannot be filled in .*: use {stem}"):
        read_dataset(tmp_path, split="test", options=DataOptions(mask_pattern="{file}"))


def test_masks_without_photographs_and_the_reverse_are_counted_and_three_named(tmp_path, caplog):
    pictures(
        tmp_path,
        "gear/good/0.png",
        *(f"gear/bad/a{n}.png" for n in range(5)),
        *(f"gear/masks/b{n}.png" for n in range(4)),
    )
    assert all(mask is None for _, mask in listed(tmp_path, "test").values())
    missing, unmatched = caplog.messages
    assert "no mask for 5 defective images, first: " in missing and missing.count(".png") == 3
    assert "4 masks match no image, first: " in unmatched and unmatched.count(".png") == 3


TABLES = {
    "semicolons.csv": ("\ufefffile_name;label;mask_file_name;operator\r\n", ";"),
    "commas.csv": ("file_name , label, mask_file_name ,operator\n", ","),
    "tabs.tsv": ("file_name\tlabel\tmask_file_name\toperator\n", "\t"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_spreadsheets_write_them(tmp_path, name):
    header, mark = TABLES[name]
    pictures(tmp_path, "day 1/0.png", "day 1/1.png", "masks/1.png")
    lines = [["day 1\\0.png", "0", "", "me"], ["day 1/1.png", " scratch ", "masks\\1.png", "you", "and more"]]
    text = header + "".join(mark.join(line) + "\n" for line in lines)
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    rows = read_dataset(tmp_path, split="train", options=DataOptions(table=name))
    assert rows["path"][:] == ["day 1/0.png", "day 1/1.png"] and rows["defect"][:] == ["good", "scratch"]
    assert mask_names(rows) == [None, "1.png"] and set(rows["class_name"]) == {tmp_path.name}
    (tmp_path / name).rename(tmp_path / "metadata.csv")
    if name != "tabs.tsv":
        assert read_dataset(tmp_path, split="train")["path"][:] == rows["path"][:]


def test_any_table_splits_a_folder_by_its_columns(tmp_path):
    pictures(tmp_path, *(f"{number}.png" for number in range(4)), "m3.png")
    lines = ["bild,Klasse,Urteil,Teil,wahr"]
    lines += ["0.png,gear,ok,Train,", "1.png,gear,ok,TEST,", "2.png,gear,ok,val,", "3.png,gear,crack,test,m3.png"]
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    named = {"image_column": "bild", "class_column": "Klasse", "label_column": "Urteil", "split_column": "Teil"}
    options = DataOptions(table="list.csv", mask_column="wahr", **named)
    assert list_classes(tmp_path, options) == ["gear"]
    assert read_dataset(tmp_path, split="train", options=options)["path"][:] == ["0.png"]
    test = read_dataset(tmp_path, split="test", options=options)
    assert (
        test["path"][:] == ["1.png", "3.png"] and mask_names(test) == [None, "m3.png"] and test["label"][:] == [0, 1]
    )
    with pytest.raises(ValueError, match=r"list\.csv has no column Bild, only bild, Klasse, Urteil, Teil, wahr"):
        list_classes(tmp_path, DataOptions(table="list.csv", image_column="Bild"))
    with pytest.raises(FileNotFoundError, match=r"There is no table other\.csv"):
        list_classes(tmp_path, DataOptions(table="other.csv"))
    with pytest.raises(ValueError, match="Teil are columns of a table: add --table FILE"):
        list_classes(tmp_path, DataOptions(split_column="Teil"))


def test_files_that_a_table_names_and_are_not_there_are_counted_first(tmp_path):
    pictures(tmp_path, "0.png")
    lines = ["file_name,label", "0.png,0", *(f"lost{number}.png,0" for number in range(5))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"5 of the files that .*metadata\.csv names \(6 photographs\) are missing: \S+lost0"
    ) as caught:
        read_dataset(tmp_path, split="train")
    assert "lost2" in str(caught.value) and "lost3" not in str(caught.value)
