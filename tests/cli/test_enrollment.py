"""`anople products, enroll, add_normals, rename, forget` on a saved detector."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor
from modeling_anople.cli import main

from ..detectors import detector_of, normals_of


@pytest.fixture
def checkpoint(tmp_path, fitted) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "detector"))


@pytest.fixture
def pictures(tmp_path, photograph) -> list[Path]:
    (tmp_path / "gasket").mkdir()
    paths = [tmp_path / f"gasket/{number}.png" for number in range(5)]
    for path, image in zip(paths, normals_of(photograph, 2, 5), strict=True):
        image.save(path)
    return paths


def run(capsys, *arguments: object, code: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == code
    output = capsys.readouterr()
    return output.err if code else output.out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_products_come_grow_and_go(capsys, checkpoint, pictures):
    answer = run(capsys, "enroll", checkpoint, "gasket", *pictures[:3], "--max_false_alarm_rate", "0.1")
    assert "gasket: 3 good photographs, threshold at raw score 0." in answer and "(for 0.1 false alarms)" in answer
    assert (
        "With 3 photographs at best 1 in 4 can be promised. 10 % is asked for, so the line is set by extra" in answer
    )
    again = run(capsys, "enroll", checkpoint, "gasket", *pictures[:3], "--replace")
    assert again == answer  # rate too
    assert "gasket: 5 good" in run(capsys, "add_normals", checkpoint, "gasket", *pictures[3:])
    [line] = run(capsys, "predict", checkpoint, pictures[0]).splitlines()
    assert '"class": "gasket"' in line
    table = run(capsys, "products", checkpoint)
    rows = [row.split() for row in table.splitlines()]
    assert rows[0][:2] == ["product", "photographs"]
    assert [row[:3] for row in rows[1:4]] == [["bolt", "3", "48"], ["nut", "3", "48"], ["gasket", "5", "80"]]
    assert rows[3][-1] == "0.1" and float(rows[3][-2]) > 0
    assert table.splitlines()[4].startswith("bolt: With 3 photographs at best 1 in 4 can be promised.")
    assert table.splitlines()[6].startswith("gasket: With 5 photographs at best 1 in 6 can be promised. 10 % is asked")
    said = r"enroll gasket: 0\.png, 1\.png, 2\.png; line 0\.\d{4} for 0\.1 false alarms$"
    assert re.search(said, table.splitlines()[7]) and re.search(said, table.splitlines()[9])
    assert re.search(r"add_normals gasket: 3\.png, 4\.png; line 0\.\d{4} for 0\.1 ", table.splitlines()[10])
    said = run(capsys, "rename", checkpoint, "gasket", "seal")
    assert said.startswith("gasket is called seal now; its scores are as before.")
    [renamed] = run(capsys, "predict", checkpoint, pictures[0]).splitlines()
    score = re.compile(r'"score": [\d.]+')
    assert '"class": "seal"' in renamed and score.search(renamed)[0] == score.search(line)[0]
    assert run(capsys, "products", checkpoint).splitlines()[-1].split(";")[0].endswith("rename seal, before: gasket")
    assert "seal is forgotten" in run(capsys, "forget", checkpoint, "seal")
    table = run(capsys, "products", checkpoint)
    assert "\nseal" not in table and table.rstrip().endswith("forget seal")
    assert AnoPLeModel.from_pretrained(checkpoint).config.class_names == ["bolt", "nut"]


def test_the_threshold_is_calibrated_by_images_or_for_another_rate(capsys, checkpoint, pictures):
    answer = run(capsys, "calibrate", checkpoint, "nut", *pictures, "--max_false_alarm_rate", "0.2")
    assert "nut: 3 good photographs, threshold at raw score 0." in answer
    assert "With 5 photographs 1 in 6 can be promised. 20 % is asked for, and the line is the largest" in answer
    bolt, nut = AnoPLeModel.from_pretrained(checkpoint).products
    threshold = nut.record.threshold
    assert (threshold.image_count, threshold.held_out, threshold.estimate) == (5, 5, "rank")
    assert threshold.attainable_rate == pytest.approx(1 / 6) and bolt.bank.size == nut.bank.size == 48
    assert bolt.record.image_vectors == nut.record.image_vectors == [16, 16, 16]
    table = run(capsys, "products", checkpoint)
    drawn = f"; line {threshold.image_threshold:.4f} for 0.2 false alarms"
    assert table.rstrip().endswith(f"calibrate nut: 0.png, 1.png, 2.png, 3.png, 4.png{drawn}")
    answer = run(capsys, "calibrate", checkpoint, "nut", "--max_false_alarm_rate", "0.05")
    assert "With 5 photographs at best 1 in 6 can be promised. 5 % is asked for" in answer
    assert "Nothing would change" in run(capsys, "calibrate", checkpoint, "nut", code=2)
    before = contents(checkpoint)
    assert "it is a share, 0.05 is 5 %" in run(
        capsys, "calibrate", checkpoint, "nut", "--max_false_alarm_rate", "5", code=2
    )
    assert "known already" in run(capsys, "calibrate", checkpoint, "nut", pictures[0], code=2)
    assert contents(checkpoint) == before


def test_known_defects_set_a_line_by_costs(capsys, checkpoint, pictures, photograph, tmp_path):
    for number, picture in enumerate(pictures[3:]):
        image = Image.open(picture).convert("RGB")
        image.paste((10, 0, 0), (8, 10, 26, 26))
        image.save(tmp_path / f"bad {number}.png")
    run(capsys, "enroll", checkpoint, "gasket", *pictures[:3])
    answer = run(capsys, "calibrate", checkpoint, "gasket", "--defects", *tmp_path.glob("bad*"), "--miss_cost", 5)
    assert (
        "(by 2 known defects). The line was set by 2 known defects and 3 photographs, where a miss (cost 5)" in answer
    )
    table = run(capsys, "products", checkpoint)
    assert re.search(r"gasket +3 +48 +0\.0 +0\.\d{4} +by costs\n", table)
    said = r"calibrate gasket; known defects bad \d.png, bad \d.png; a miss costs 5, a false alarm 1; line 0\.\d{4} by costs"
    assert re.search(said, table)
    assert "(for 0.05 false alarms)" in run(capsys, "calibrate", checkpoint, "gasket")
    before = contents(checkpoint)
    assert "add --defects PHOTOGRAPHS" in run(capsys, "calibrate", checkpoint, "gasket", "--miss_cost", 2, code=2)
    known = ("--defects", pictures[0])
    assert "good and as defective" in run(capsys, "calibrate", checkpoint, "gasket", *known, code=2)
    assert contents(checkpoint) == before


def test_the_answers_of_the_others_stay(capsys, checkpoint, pictures, photograph, tmp_path):
    photograph(7).save(tmp_path / "query.png")

    def answer(*options: object) -> dict:
        line = run(capsys, "predict", checkpoint, tmp_path / "query.png", *options)
        return {part for part in line.split(", ") if "seconds" not in part and "time" not in part}

    before = answer("--class", "nut")
    run(capsys, "enroll", checkpoint, "gasket", pictures[0].parent)
    assert answer("--class", "nut") == before
    run(capsys, "forget", checkpoint, "bolt")
    assert answer("--class", "nut") == before


def test_another_folder_takes_the_changed_detector(capsys, checkpoint, fitted, pictures, tmp_path):
    before = contents(checkpoint)
    run(capsys, "enroll", checkpoint, "gasket", pictures[0], "--output", tmp_path / "new")
    assert contents(checkpoint) == before and contents(tmp_path / "new").keys() == before.keys()
    assert "already holds a detector: choose another --output" in run(
        capsys, "forget", checkpoint, "bolt", "--output", tmp_path / "new", code=2
    )
    assert AnoPLeModel.from_pretrained(tmp_path / "new").config.class_names == ["bolt", "nut", "gasket"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enroll", "{}", "nut", "PICTURE"], "'nut' exists: give it more images with add_normals"),
        (["enroll", "{}", "gasket", "PICTURE", "gone.png"], "gone.png: there is no such file"),
        (["enroll", "{}", "gasket", "PICTURE", "PICTURE"], "given twice"),
        (["enroll", "someone/detector", "gasket", "PICTURE"], "is no folder here, .* add --output"),
        (["enroll", "nowhere", "gasket", "PICTURE", "--output", "new"], "nowhere is no folder, and as a Hub id it"),
        (["add_normals", "{}", "gasket", "PICTURE"], r"'gasket' is not known .* \['bolt', 'nut'\]"),
        (["rename", "{}", "bolt", "nut"], "'nut' exists"),
        (["forget", "{}", "gasket"], r"'gasket' is not known .* \['bolt', 'nut'\]"),
        (["products", "nowhere"], "nowhere is no folder, and as a Hub id it"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    capsys, monkeypatch, checkpoint, pictures, tmp_path, arguments, message
):
    before = contents(checkpoint)
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace("{}", str(checkpoint)).replace("PICTURE", str(pictures[0])) for word in arguments]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"anople {arguments[0]}: ")
    assert re.search(message, error)
    assert contents(checkpoint) == before and not (tmp_path / "new/config.json").exists()


def test_an_adapter_stays_an_adapter(capsys, checkpoint, small_clip_folder, pictures, photograph, tmp_path):
    """Its processor lies beside it and is found there without being named."""
    adapter, image = tmp_path / "adapter", photograph(3)
    full = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(checkpoint))
    full.enroll("washer", pictures[:2])
    full.save_pretrained(adapter, adapter=True)
    detector = AnomalyDetectionPipeline(AnoPLeModel.load_adapter(adapter, clip=str(small_clip_folder)))
    detector.enroll("gasket", pictures[2:])
    detector.save_pretrained(adapter, adapter=True)
    assert not (adapter / "model.safetensors").exists()
    again = AnomalyDetectionPipeline(AnoPLeModel.load_adapter(adapter, clip=str(small_clip_folder)))
    assert [each.name for each in again.products] == again.processor.class_names == ["bolt", "nut", "washer", "gasket"]
    assert AnoPLeProcessor.from_pretrained(adapter).class_names == again.processor.class_names
    answers = [each(image, class_name="gasket")["score"] for each in (detector, again)]
    assert answers[0] == pytest.approx(answers[1], abs=1e-4)


def test_commands_keep_an_adapter_of_the_embedded_clip_an_adapter(capsys, photograph, pictures, tmp_path):
    folder = tmp_path / "adapter"
    detector = detector_of(AnoPLeModel.from_clip("mini", ["bolt"]), AnoPLeProcessor.from_clip("mini", ["bolt"]))
    detector.add_normals("bolt", normals_of(photograph, 0))
    detector.save_pretrained(folder, adapter=True)
    run(capsys, "enroll", folder, "gasket", *pictures[:2])
    assert (folder / "adapter.safetensors").exists() and not (folder / "model.safetensors").exists()
    assert "gasket" in run(capsys, "products", folder)
    assert [product.bank.size for product in AnoPLeModel.load_adapter(folder).products] == [588, 392]


def test_a_program_killed_while_saving_damages_nothing(capsys, checkpoint, pictures, monkeypatch):
    before = contents(checkpoint)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_anople.processing_anople.AnoPLeProcessor.save_pretrained", stop)
    assert main(["enroll", str(checkpoint), "gasket", str(pictures[0])]) == 130
    assert contents(checkpoint) == before and {path.name for path in checkpoint.iterdir()} == before.keys()


def test_a_detector_begins_with_its_first_product(capsys, pictures, tmp_path):
    new = tmp_path / "new"
    seen = ["--memory_rotations", "quarter_turns", "--memory_limit", "300"]
    said = run(capsys, "enroll", new, "bolt", *pictures, "--clip", "mini", *seen)
    config = AnoPLeModel.config_class.from_pretrained(new)
    assert (config.memory_rotations, config.memory_limit) == ("quarter_turns", 300)
    assert sum(config.products[0]["image_vectors"]) == 300
    assert f"bolt: {len(pictures)} good photographs" in said and str(new) in said
    run(capsys, "enroll", new, "nut", pictures[0], "--tiling", "2,2")
    lines = [json.loads(line) for line in run(capsys, "predict", new, *pictures, "--class", "bolt").splitlines()]
    assert {line["label"] for line in lines} == {"normal"} and all(0 <= line["score"] <= 1 for line in lines)
    model = AnoPLeModel.from_pretrained(new)
    assert model.config.map_fusion == "memory" and model.config.class_names == ["bolt", "nut"]
    for more, message in ((["--clip", "mini"], "is not empty"), (["--tiling", "x"], "tiling")):
        assert main(["enroll", str(new), "cap", str(pictures[0]), *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["enroll", str(tmp_path / "none"), "cap", str(pictures[0])]) == 2
    assert "or begin a detector with `anople enroll FOLDER NAME PHOTOGRAPHS --clip mini`" in capsys.readouterr().err


def test_a_detector_begins_nowhere_else(capsys, checkpoint, pictures, tmp_path, monkeypatch):
    before = contents(checkpoint)
    monkeypatch.chdir(checkpoint)
    for place in (".", str(checkpoint)):
        assert main(["enroll", place, "gasket", str(pictures[0]), "--clip", "mini"]) == 2
        assert "is not empty: a detector begins in a new folder" in capsys.readouterr().err
    assert contents(checkpoint) == before
    for name, message in (("unknown product", "take another name"), (" ", "name is empty: give a value")):
        assert main(["enroll", str(tmp_path / "new"), name, str(pictures[0]), "--clip", "mini"]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert main(["enroll", str(tmp_path / "new"), "x", str(pictures[0]), "--clip", "word"]) == 2
    assert "word is no folder here, and a model on the Hub is named user/name" in capsys.readouterr().err


def test_the_same_images_as_two_products_are_noticed(capsys, checkpoint, pictures, caplog, tmp_path):
    for number, name in enumerate(("gasket", "seal")):
        run(capsys, "enroll", checkpoint, name, *pictures[:2])
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == number
    assert warnings == ["2 of these 2 images are known as 'gasket': only one of the two can be named."]
    assert main(["enroll", str(checkpoint), "unknown product", str(pictures[2])]) == 2
    assert "take another name" in capsys.readouterr().err


def test_a_detector_begins_and_grows_with_the_white_value_of_a_camera(tmp_path, capsys, small_clip_folder, photograph):
    for number, image in enumerate(normals_of(photograph, 2, 5)):
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 16
        Image.fromarray(deep).save(tmp_path / f"{number}.png")
    paths, folder = [tmp_path / f"{number}.png" for number in range(5)], tmp_path / "detector"
    white = ["--white_value", "4080"]
    run(capsys, "enroll", folder, "gasket", *paths[:3], "--clip", small_clip_folder, *white)
    assert AnoPLeProcessor.from_pretrained(folder).white_value == 4080
    run(capsys, "add_normals", folder, "gasket", paths[3])
    error = run(capsys, "add_normals", folder, "gasket", paths[4], "--white_value", "1023", code=2)
    assert "by the white value 4080, and cannot read them by 1023 too: leave it out" in error
    assert "--white_value must lie within" in run(
        capsys, "enroll", folder, "b", *paths[:3], "--white_value", "0", code=2
    )
