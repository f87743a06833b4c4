"""A false alarm becomes a good photograph, and can be taken back; what is bad is kept in a list."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from modeling_anople.cli import main
from modeling_anople.inspection.feedback import BEFORE, FEEDBACK, KEPT, give_feedback, read_feedback
from modeling_anople.pipeline_anople import AnomalyDetectionPipeline
from modeling_anople.runtime.loading import load_detector


@pytest.fixture
def checkpoint(tmp_path, fitted) -> Path:
    return shutil.copytree(fitted, tmp_path / "detector")


@pytest.fixture
def results(tmp_path, checkpoint, bolts, photograph, capsys) -> Path:
    """Four photographs of which the first two, whole other ones, are called anomalous, and one that cannot be read."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    pictures = [photograph(41), photograph(42), bolts[0], bolts[1]]
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"none")
    assert (
        main(["predict", str(checkpoint), str(folder), "--class", "bolt", "--output", str(tmp_path / "results")]) == 1
    )
    capsys.readouterr()
    return tmp_path / "results"


def rows_of(results: Path) -> list[dict]:
    return [json.loads(line) for line in (results / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_false_alarm_is_learned_and_taken_back(checkpoint, results, capsys):
    rows = rows_of(results)
    first, second = [row["id"] for row in rows if row["label"] == "anomalous"][:2]
    before = contents(checkpoint)

    def say(id: str, verdict: str, code: int = 0) -> str:
        assert main(["feedback", str(checkpoint), id, verdict, "--results", str(results)]) == code
        output = capsys.readouterr()
        return output.err if code else output.out

    assert "0.png: good. bolt has learned it: threshold at raw score" in say(first, "good")
    learned = contents(checkpoint)
    assert learned != before and "add_normals bolt: 0.png" in run_products(checkpoint, capsys)
    assert "bolt has learned it" in say(first, "good") and contents(checkpoint) == learned  # once
    assert "was learned as good: undo that first" in say(first, "bad", 2)
    say(second, "good")
    assert "was changed after it learned" in say(first, "undo", 2)
    assert "The detector is as it was before that" in say(second, "undo")
    assert contents(checkpoint) == learned
    say(first, "undo")
    assert contents(checkpoint) == before
    assert "there is nothing to undo" in say(first, "undo", 2)
    said = [(each.id, each.verdict, each.added) for each in read_feedback(results)]
    assert said == [(first, "good", True), (second, "good", True), (second, "undo", True), (first, "undo", True)]


def run_products(checkpoint: Path, capsys) -> str:
    assert main(["products", str(checkpoint)]) == 0
    return capsys.readouterr().out


def test_what_is_bad_is_kept_in_a_list_and_changes_nothing(checkpoint, results):
    before, row = contents(checkpoint), next(row for row in rows_of(results) if row["label"] == "normal")
    with (results / "feedback.jsonl").open("w") as file:
        file.write('{"torn')
    assert give_feedback(str(checkpoint), row["id"], "bad", results=results).verdict == "bad"
    assert give_feedback(str(checkpoint), row["id"], "undo", results=results).said == "'bad' is taken back."
    given = give_feedback(str(checkpoint), row["id"], "good", results=results)
    assert given.added is bool(row["unsure"])
    assert [each.verdict for each in read_feedback(results)] == ["bad", "undo", "good"]
    assert contents(checkpoint) == before or row["unsure"]


def test_a_row_from_before_a_rename_teaches_no_other_product(checkpoint, results):
    alarm = next(row for row in rows_of(results) if row["label"] == "anomalous")
    assert main(["rename", str(checkpoint), alarm["class"], "washer"]) == 0
    before = contents(checkpoint)
    with pytest.raises(ValueError, match=f"before '{alarm['class']}' was renamed to 'washer'"):
        give_feedback(str(checkpoint), alarm["id"], "good", results=results)
    assert contents(checkpoint) == before


def test_a_torn_row_takes_no_other_rows_feedback(checkpoint, results):
    rows = rows_of(results)
    lines = [json.dumps(row) for row in rows]
    (results / "results.jsonl").write_text("\n".join([lines[0], lines[1][:70], *lines[1:]]) + "\n", encoding="utf-8")
    for row in rows[:2]:
        assert give_feedback(str(checkpoint), row["id"], "bad", results=results).id == row["id"]


def test_what_cannot_be_learned_is_refused_and_changes_nothing(checkpoint, results, tmp_path):
    rows, before = rows_of(results), contents(checkpoint)
    alarm, broken = next(row for row in rows if row["label"] == "anomalous"), rows[-1]

    def refused(match: str, id: str = alarm["id"], place: object = checkpoint, verdict: str = "good") -> None:
        with pytest.raises(ValueError, match=match):
            give_feedback(str(place), id, verdict, results=results)
        assert contents(checkpoint) == before and not list(read_feedback(results))

    refused("holds no result 'x'", id="x")
    refused("was not judged", id=broken["id"])
    refused("give good, bad or undo", verdict="perhaps")
    refused("is no folder here", place="someone/detector")
    picture = Image.open(alarm["path"])
    picture.load()
    Image.new("RGB", picture.size, "red").save(alarm["path"])
    refused("is not the photograph that was judged")
    Path(alarm["path"]).unlink()
    refused("is gone")


def test_a_program_killed_before_the_list_was_written_is_gone_on_with(checkpoint, results):
    before, alarm = contents(checkpoint), next(row for row in rows_of(results) if row["label"] == "anomalous")
    give_feedback(str(checkpoint), alarm["id"], "good", results=results)
    (results / "feedback.jsonl").unlink()
    assert give_feedback(str(checkpoint), alarm["id"], "good", results=results).added
    give_feedback(str(checkpoint), alarm["id"], "undo", results=results)
    assert contents(checkpoint) == before and KEPT > 1


def change(checkpoint: Path, *verbs: tuple) -> None:
    """Do something to the detector by hand, as `anople add_normals` and `enroll` do."""
    model, processor = load_detector(str(checkpoint))
    detector = AnomalyDetectionPipeline(model, processor=processor, device=model.device)
    for verb, *given in verbs:
        getattr(detector, verb)(*given)
    detector.save_pretrained(checkpoint)


def test_undo_deletes_nothing_that_was_learned_since_an_earlier_undo(checkpoint, results, photograph):
    alarm = next(row for row in rows_of(results) if row["label"] == "anomalous")
    for verdict in ("good", "undo"):
        give_feedback(str(checkpoint), alarm["id"], verdict, results=results)
    assert not (results / BEFORE / alarm["id"]).exists()
    change(checkpoint, ("add_normals", "bolt", [alarm["path"]]))
    given = give_feedback(str(checkpoint), alarm["id"], "good", results=results)
    assert not given.added and given.said == "It is known already."
    today = contents(checkpoint)
    assert give_feedback(str(checkpoint), alarm["id"], "undo", results=results).said == "'good' is taken back."
    assert contents(checkpoint) == today


def test_undo_deletes_no_product_that_was_enrolled_after_a_program_was_killed(checkpoint, results, photograph):
    alarm = next(row for row in rows_of(results) if row["label"] == "anomalous")
    give_feedback(str(checkpoint), alarm["id"], "good", results=results)
    (results / FEEDBACK).unlink()  # killed before it wrote the list
    change(checkpoint, ("enroll", "screw", [photograph(seed) for seed in (61, 62, 63)]))
    today = contents(checkpoint)
    assert not give_feedback(str(checkpoint), alarm["id"], "good", results=results).added
    give_feedback(str(checkpoint), alarm["id"], "undo", results=results)
    assert contents(checkpoint) == today


def test_an_undo_killed_before_the_list_was_written_is_gone_on_with(checkpoint, results):
    before, alarm = contents(checkpoint), next(row for row in rows_of(results) if row["label"] == "anomalous")
    give_feedback(str(checkpoint), alarm["id"], "good", results=results)
    said = (results / FEEDBACK).read_bytes()
    give_feedback(str(checkpoint), alarm["id"], "undo", results=results)
    (results / FEEDBACK).write_bytes(said)
    assert give_feedback(str(checkpoint), alarm["id"], "undo", results=results).added
    assert contents(checkpoint) == before
    assert give_feedback(str(checkpoint), alarm["id"], "good", results=results).after is not None


def test_a_moved_folder_of_results_still_finds_its_photographs(checkpoint, plant, photograph, tmp_path):
    plant.detector = checkpoint
    photograph(41).save(plant.inbox / "0.png")
    with plant.watched():
        [row] = plant.wait_for(1)
    assert row["label"] == "anomalous"
    moved = plant.output.rename(tmp_path / "elsewhere")
    assert give_feedback(str(checkpoint), row["id"], "good", results=moved).added
