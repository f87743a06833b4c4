"""Evaluation: figures that can be recomputed from its own files, gaps that are said, and a gallery in order."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from modeling_anople import evaluation
from modeling_anople.cli import main
from modeling_anople.data import read_dataset
from modeling_anople.evaluation import EvaluationReport, evaluate, make_gallery
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime.heat_maps import GAP, PANEL_TEXT_HEIGHT, PICTURE_HEIGHT
from modeling_anople.scoring_anople import resize_maps

from .detectors import fit, normals_of, write_detector
from .fitting import in_two_processes


IMAGE_METRICS = {"image_auroc", "image_ap", "image_f1_max"}
PIXEL_METRICS = {"pixel_auroc", "pixel_ap", "aupro"}
COUNTS = {"normal", "anomalous"}
NAMES = ["9", "10", "b", "a.b"]  # in another order than their masks, which are written the other way round


def write_tests(root: Path, photograph) -> Path:
    """Write 4 good and 4 scratched test photographs of each class, the scratches in different places, with masks."""
    for class_id, name in enumerate(("bolt", "nut")):
        for part in ("test/good", "test/scratch", "ground_truth/scratch"):
            (root / name / part).mkdir(parents=True)
        for number, image in enumerate(normals_of(photograph, class_id, count=11)[3:]):  # not those of the memory
            stem, kind = NAMES[number % 4], "scratch" if number >= 4 else "good"
            if kind == "scratch":
                place = (5 * (number - 4), 8 * (number - 4), 5 * (number - 4) + 12, 8 * (number - 4) + 5)
                ImageDraw.Draw(image).rectangle(place, fill=(20, 200, 40))
                mask = Image.new("L", image.size)
                ImageDraw.Draw(mask).rectangle(place, fill=255)
                mask.save(root / name / f"ground_truth/scratch/{stem}_mask.png")
            image.save(root / name / f"test/{kind}/{stem}.png")
    return root


@pytest.fixture
def data(tmp_path, photograph) -> Path:
    return write_tests(tmp_path / "data", photograph)


@pytest.fixture
def detector(make_model, make_processor, photograph):
    processor = make_processor()
    model = fit(make_model(), processor, photograph)
    model.config.fit = {"shots": 3, "seed": 7}
    return model, processor


def measure(detector, data, **options) -> EvaluationReport:
    return evaluate(*detector, data, progress=False, **({"evaluation_size": 64} | options))


def written(report: EvaluationReport, folder: Path) -> tuple[dict, list[dict]]:
    """Read the two files back; a NaN in the JSON fails."""
    report.write_json(folder / "new/evaluation.json")
    report.write_csv(folder / "new/images.csv")
    text = (folder / "new/evaluation.json").read_text(encoding="utf-8")
    with open(folder / "new/images.csv", encoding="utf-8", newline="") as file:
        return json.loads(text, parse_constant=pytest.fail), list(csv.DictReader(file))


def recomputed(rows: list[dict]) -> dict[str, float]:
    truth = [row["anomalous"] == "True" for row in rows]
    scores = [float(row["raw_score"]) for row in rows]
    precision, recall, _ = precision_recall_curve(truth, scores)
    return {
        "image_auroc": roc_auc_score(truth, scores),
        "image_ap": average_precision_score(truth, scores),
        "image_f1_max": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
    }


@pytest.mark.parametrize("part", ["fused", "memory", "decoder", "text"])
def test_image_metrics_are_those_of_scikit_learn_on_the_table(tmp_path, detector, data, part):
    report, rows = written(measure(detector, data, part=part), tmp_path)
    assert report["score"] == part and len(rows) == 16
    for name, entry in report["classes"].items():
        expected = recomputed([row for row in rows if row["class_name"] == name])
        assert {key: entry[key] for key in expected} == pytest.approx(expected, abs=1e-9)
        assert (entry["normal"], entry["anomalous"]) == (4, 4)
        assert (entry["pixel_auroc"] is None) == (part == "text")
    for key in IMAGE_METRICS:
        assert report["mean"][key] == pytest.approx(np.mean([entry[key] for entry in report["classes"].values()]))


def test_the_scores_are_those_of_the_part_asked_for(detector, data):
    for part in ("fused", "memory", "decoder", "text"):
        rows = [row for row in measure(detector, data, part=part).rows if row.class_name == "nut"]
        sources = [data / row.path for row in rows]
        expected = list(predict(*detector, sources, class_names="nut", part=part))
        assert [row.raw_score for row in rows] == pytest.approx([each.raw_score for each in expected], abs=1e-5)


@pytest.mark.parametrize("size", [40, 64])
def test_pixel_metrics_compare_each_photograph_with_its_own_mask(detector, data, size):
    (data / "bolt/ground_truth/scratch/9_mask.png").unlink()  # the others' places in the folder move up
    report = measure(detector, data, evaluation_size=size)
    for name in ("bolt", "nut"):
        maps, masks = [], []
        for path in sorted((data / name).glob("test/*/*.png")):
            mask = data / name / f"ground_truth/{path.parent.name}/{path.stem}_mask.png"
            if path.parent.name == "scratch" and not mask.exists():
                continue
            [prediction] = predict(*detector, [path], class_names=name)
            maps.append(resize_maps(torch.from_numpy(prediction.raw_map)[None], (size, size))[0].numpy().ravel())
            picture = Image.open(mask) if mask.exists() else Image.new("L", (48, 40))
            masks.append(np.asarray(picture.resize((size, size), Image.Resampling.NEAREST)).ravel() > 0)
        scores, truth = np.concatenate(maps), np.concatenate(masks)
        assert report.classes[name]["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-4)
        assert report.classes[name]["pixel_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-3)
        assert 0 <= report.classes[name]["aupro"] <= 1


def test_the_files_have_the_promised_keys(tmp_path, detector, data):
    report, rows = written(measure(detector, data), tmp_path)
    assert report.keys() == {
        "mean",
        "classes",
        "class_identity",
        "score",
        "shots",
        "seed",
        "evaluation_size",
        "memory_encoder",
        "memory_image_size",
        "clip",
        "detector_sha256",
        "errors",
    }
    expected = IMAGE_METRICS | PIXEL_METRICS | COUNTS | {"false_alarm_rate", "detection_rate"}
    assert report["classes"].keys() == {"bolt", "nut"} and report["mean"].keys() == expected
    assert all(entry.keys() == expected for entry in report["classes"].values())
    assert (report["shots"], report["seed"], report["evaluation_size"]) == (3, 7, 64)
    assert report["class_identity"] == "given" and report["errors"] == {}
    assert (report["mean"]["normal"], report["mean"]["anomalous"]) == (8, 8)
    columns = "path class_name defect anomalous score raw_score p_value label judged_as seconds error"
    assert list(rows[0]) == columns.split()
    assert {row["defect"] for row in rows} == {"good", "scratch"}


def test_rates_count_the_labels_at_the_threshold(detector, data):
    report = measure(detector, data)
    middle = np.median([row.score for row in report.rows])
    detector[0].config.threshold = float(middle)
    report = measure(detector, data)
    for name, entry in report.classes.items():
        for key, anomalous in (("false_alarm_rate", False), ("detection_rate", True)):
            scores = [row.score for row in report.rows if row.class_name == name and row.anomalous == anomalous]
            assert entry[key] == np.mean(np.array(scores) > middle)


def test_what_cannot_be_measured_is_null(tmp_path, detector, data):
    shutil.rmtree(data / "bolt/ground_truth")
    shutil.rmtree(data / "nut/test/scratch")
    report = measure(detector, data)
    bolt, nut = report.classes["bolt"], report.classes["nut"]
    assert all(bolt[key] is None for key in PIXEL_METRICS) and all(bolt[key] is not None for key in IMAGE_METRICS)
    assert all(nut[key] is None for key in IMAGE_METRICS | PIXEL_METRICS | {"detection_rate"})
    assert nut["false_alarm_rate"] is not None and (nut["normal"], nut["anomalous"]) == (4, 0)
    assert report.mean["image_auroc"] == bolt["image_auroc"] and report.mean["aupro"] is None
    assert written(report, tmp_path)[0]["mean"]["pixel_ap"] is None
    assert report.to_markdown().splitlines()[-1].count("n/a") == 3


def test_without_a_threshold_there_are_no_rates(make_model, make_processor, data):
    report = measure((make_model(), make_processor()), data)
    assert report.mean["false_alarm_rate"] is None and report.mean["detection_rate"] is None
    assert report.mean["image_auroc"] is not None and (report.protocol["shots"], report.protocol["seed"]) == (
        None,
        None,
    )


def test_a_mask_of_another_size_costs_its_pixels_only(detector, data):
    whole = measure(detector, data)
    Image.new("L", (20, 20), 255).save(data / "bolt/ground_truth/scratch/10_mask.png")
    report = measure(detector, data)
    [error] = [row.error for row in report.rows if row.error]
    assert "10_mask.png: the mask has 20 x 20 pixels and its photograph 48 x 40" in error
    assert report.to_dict()["errors"] == {"bolt/test/scratch/10.png": error}
    for key in IMAGE_METRICS | COUNTS:
        assert report.classes["bolt"][key] == whole.classes["bolt"][key]
    assert report.classes["bolt"]["pixel_auroc"] not in (None, whole.classes["bolt"]["pixel_auroc"])
    assert report.classes["nut"] == pytest.approx(whole.classes["nut"], abs=1e-5)


def test_masks_that_look_inverted_or_empty_are_warned_of_once(detector, data, caplog):
    for name, value in (("bolt", 255), ("nut", 0)):
        mask = data / name / "ground_truth/scratch/9_mask.png"
        Image.new("L", Image.open(mask).size, value).save(mask)
    measure(detector, data)
    [warned] = [message for message in caplog.messages if "masks" in message]
    assert "Of 8 masks 1 mark more than half of their photograph and 1 mark nothing, though of a defect" in warned


def test_an_unreadable_photograph_is_reported_and_left_out(tmp_path, detector, data, caplog):
    (data / "nut/test/good/b.png").write_bytes(b"\x89PNG broken")
    (data / "nut/ground_truth/scratch/9_mask.png").write_bytes(b"")
    report, rows = written(measure(detector, data), tmp_path)
    assert (report["classes"]["nut"]["normal"], report["classes"]["nut"]["anomalous"]) == (3, 4)
    assert "b.png: is not an image" in report["errors"]["nut/test/good/b.png"]
    assert "9_mask.png: is not an image" in report["errors"]["nut/test/scratch/9.png"]
    assert len(caplog.records) == 2 and len(rows) == 16
    left = [row for row in rows if row["class_name"] == "nut" and row["raw_score"]]
    assert len(left) == 7 and report["classes"]["nut"]["image_ap"] == pytest.approx(recomputed(left)["image_ap"])


def test_classes_that_the_detector_does_not_know(detector, data, caplog):
    shutil.copytree(data / "nut", data / "screw")
    assert measure(detector, data).classes.keys() == {"bolt", "nut"}
    assert "Left out, unknown to the detector: screw" in caplog.text
    assert measure(detector, data, classes=["nut"]).classes.keys() == {"nut"}
    with pytest.raises(ValueError, match=r"'screw' is not known .* knows \['bolt', 'nut'\]"):
        measure(detector, data, classes=["screw", "nut"])


def test_data_without_tests_is_refused_with_the_remedy(tmp_path, detector, photograph):
    (tmp_path / "bolt/train/good").mkdir(parents=True)
    photograph(0).save(tmp_path / "bolt/train/good/0.png")
    with pytest.raises(ValueError, match="no test photographs of .*: put them into CLASS/test/good .*anople predict"):
        measure(detector, tmp_path)
    with pytest.raises(ValueError, match="evaluation_size must lie within 1 and 4096, got 0"):
        measure(detector, tmp_path, evaluation_size=0)


def test_predicted_classes_are_told(detector, data):
    detector[0].config.class_identity = "predicted"
    report = measure(detector, data)
    good = [row for row in report.rows if not row.anomalous]
    assert (
        report.protocol["class_identity"] == "predicted"
        and [row.judged_as for row in good] == ["bolt"] * 4 + ["nut"] * 4
    )


def test_gallery_shows_the_worst_errors_first(tmp_path, detector, data):
    report = measure(detector, data)
    rows = evaluation.test_rows(data, ["bolt", "nut"])
    index = make_gallery(*detector, rows, report, tmp_path / "gallery")
    names = sorted(path.name for path in index.parent.iterdir() if path.is_file())
    assert names == ["01-bolt.png", "02-nut.png", "index.html"]
    page = index.read_text(encoding="utf-8")
    assert "01-bolt.png" in page and "02-nut.png" in page and "shots 3, seed 7" in page
    for name, entry in report.classes.items():
        found, alarms = round(4 * entry["detection_rate"]), round(4 * entry["false_alarm_rate"])
        said = f"Of 4 defective photographs {found} were found and {4 - found} missed, of 4 good ones {alarms} gave a"
        assert f"{said} false alarm." in page, name
    heads = re.findall(r"<th[^>]*>([^<]+)</th>", page)
    assert heads[:5] == ["product", "good", "defective", "found", "false alarms"] and not any(
        "_" in each for each in heads
    )
    for number, name in enumerate(("bolt", "nut"), start=1):
        sheet = Image.open(index.parent / f"{number:02d}-{name}.png")
        own = [row for row in report.rows if row.class_name == name]
        severities = {row.path: 1 - row.score if row.anomalous else row.score for row in own}
        worst = sorted(severities, key=severities.get, reverse=True)
        panel_height = PANEL_TEXT_HEIGHT + PICTURE_HEIGHT + GAP + 1
        for place, path in enumerate(worst):  # 8 photographs: 4 worst, then all the others
            shown = Image.open(data / path).resize(
                (round(48 * PICTURE_HEIGHT / 40), PICTURE_HEIGHT), Image.Resampling.LANCZOS
            )
            top = 44 + 1 + place * panel_height + PANEL_TEXT_HEIGHT
            found = sheet.crop((GAP, top, GAP + shown.width, top + shown.height))
            np.testing.assert_array_equal(np.asarray(found), np.asarray(shown))


def test_gallery_keeps_single_pictures_of_errors_and_of_a_success(tmp_path, detector, data):
    highest = max(row.score for row in measure(detector, data).rows if not row.anomalous)
    detector[0].config.threshold = 0.9 * highest  # so low that a good photograph is called anomalous
    report = measure(detector, data)
    folder = make_gallery(*detector, evaluation.test_rows(data, ["bolt", "nut"]), report, tmp_path / "gallery").parent
    entries = json.loads((folder / "samples/samples.json").read_text(encoding="utf-8"))
    by_path = {row.path: row for row in report.rows}
    assert {entry["kind"] for entry in entries} <= {"false alarm", "miss", "found"} and len(entries) <= 6
    assert "false alarm" in {entry["kind"] for entry in entries}
    for entry in entries:
        row = by_path[entry["path"]]
        wrong = (row.label == "anomalous") != row.anomalous
        assert (entry["class"], entry["score"]) == (row.class_name, row.score)
        assert wrong == (entry["kind"] in ("false alarm", "miss"))
        assert Image.open(folder / "samples" / entry["file"]).height == PANEL_TEXT_HEIGHT + PICTURE_HEIGHT + GAP
    for name in ("bolt", "nut"):
        errors = [entry["severity"] for entry in entries if entry["class"] == name and entry["kind"] != "found"]
        assert errors == sorted(errors, reverse=True) and len(errors) <= 2


def test_gallery_of_photographs_in_a_table_with_gaps(tmp_path, make_model, make_processor, data):
    """No files, no thresholds, a mask that does not fit and a photograph that cannot be read."""
    Image.new("L", (20, 20), 255).save(data / "bolt/ground_truth/scratch/10_mask.png")
    (data / "nut/test/good/b.png").write_bytes(b"")
    rows = read_dataset(data, split="test").map(_with_bytes)
    detector = make_model(), make_processor()
    index = make_gallery(*detector, rows, measure(detector, rows), tmp_path / "gallery")
    assert len(list(index.parent.glob("*.png"))) == 2


def _with_bytes(row: dict) -> dict:
    return {
        name: row[name] and {"path": None, "bytes": Path(row[name]["path"]).read_bytes()} for name in ("image", "mask")
    }


# Several processes: nothing twice and nothing lost.


@pytest.fixture(scope="module")
def places(tmp_path_factory, small_clip_folder, photograph) -> tuple[Path, Path]:
    """A detector, and 7 photographs of one product and 4 of another, one of them unreadable."""
    root = tmp_path_factory.mktemp("processes")
    detector = write_detector(root / "detector", small_clip_folder, photograph)
    for class_id, (name, count) in enumerate((("bolt", 7), ("nut", 4))):
        for number, image in enumerate(normals_of(photograph, class_id, count + 3)[3:]):
            folder = root / "data" / name / "test" / ("scratch" if number % 2 else "good")
            folder.mkdir(parents=True, exist_ok=True)
            if number % 2:
                place = (5 * number, 10, 5 * number + 9, 30)
                image.paste((20, 200, 40), place)
                mask = Image.new("L", image.size)
                mask.paste(255, place)
                masks = root / "data" / name / "ground_truth/scratch"
                masks.mkdir(parents=True, exist_ok=True)
                mask.save(masks / f"{number}_mask.png")
            image.save(folder / f"{number}.png")
    (root / "data/nut/test/good/broken.png").write_bytes(b"no picture")
    return detector, root / "data"


def test_two_processes_give_the_evaluation_of_one(places, tmp_path, capfd):
    """In batches of 3: 3 and 2 of them, the last ones of 1 and 2, so one process has more, and of another size."""
    usual = [*map(str, places), "--batch_size", "3", "--evaluation_size", "48"]
    outputs = {
        number: ["--json", f"{tmp_path}/{number}.json", "--csv", f"{tmp_path}/{number}.csv"] for number in (1, 2)
    }
    ended = in_two_processes(lambda _: main(["evaluate", *usual, *outputs[2]]))
    done = capfd.readouterr()
    assert ended == [0, 0], done.err[-3000:]
    assert main(["evaluate", *usual, *outputs[1]]) == 0
    assert capfd.readouterr().out == done.out  # the table, once
    assert (tmp_path / "2.json").read_text() == (tmp_path / "1.json").read_text()
    assert done.err.count("is not an image") == 1  # logged once
    report = json.loads((tmp_path / "1.json").read_text())
    assert report["mean"]["normal"] == 6 and report["mean"]["anomalous"] == 5 and len(report["errors"]) == 1
    assert 0 < report["mean"]["aupro"] < 1
    rows = []
    for number in (1, 2):
        with open(tmp_path / f"{number}.csv", encoding="utf-8", newline="") as file:
            rows.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert rows[0] == rows[1] and len({row["path"] for row in rows[0]}) == len(rows[0]) == 12
