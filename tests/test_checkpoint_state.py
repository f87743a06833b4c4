"""A detector's folder holds one state, the old or the new one, whatever happens to the program that changes it."""

import json
import os
import random
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file
from transformers import AutoModel, CLIPModel, pipeline

from hub.benchmarks.reliability import (
    KILLED,
    Room,
    contents,
    copy_of,
    disk,
    flip,
    in_a_fork,
    judge,
    kill_at,
    kill_at_random,
    kill_everywhere,
    operations,
    read_beside,
)
from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor, saving_anople
from modeling_anople.cli import main as anople
from modeling_anople.runtime.loading import load_config, load_detector, load_judge
from modeling_anople.saving_anople import StateError, locked, read_state, replacing, state_folder

from .detectors import detector_of


@pytest.fixture(scope="module")
def one_thread():
    """Threads do not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def room(one_thread, tmp_path_factory) -> Room:
    """A detector of bolt and nut, a larger one that knows gaskets too, and the verbs that change them."""
    return Room(tmp_path_factory.mktemp("room"))


@pytest.fixture
def folder(room, tmp_path) -> Path:
    """A copy of the detector of bolt and nut."""
    return copy_of(room.detector, tmp_path / "detector")


def ids(folder: Path) -> set[str | None]:
    """The ids that the files of a folder bear."""
    files = [folder / "config.json", folder / "processor_config.json", *folder.glob("*.safetensors")]
    return {saving_anople._state_of(path) for path in files}


# --- Killed ---


@pytest.mark.parametrize(
    "verb", ["enroll", "add_normals", "calibrate", "forget", "the end of fit"], ids=lambda verb: verb.split()[-1]
)
def test_a_program_that_ends_at_any_operation_leaves_the_old_state_or_the_new_one(room, tmp_path, verb):
    """At every seventh of enroll, at every twentieth of the others; `hub.benchmarks.reliability` takes all."""
    change = next(change for change in room.changes() if change.name == verb)
    total, found = kill_everywhere(change, change.save, tmp_path, every=7 if verb == "enroll" else 20)
    assert total > 60 and found["half"] == 0 and found["old"] > 0 and found["new"] > 0
    assert kill_at_random(change, tmp_path, 1, random.Random(0))["half"] == 0


def test_what_a_killed_program_had_switched_to_is_read_at_once_and_put_in_place_by_the_next(room, folder):
    change = room.changes()[0]
    switch = operations(change.save, copy_of(folder, folder.with_name("whole"))).index("rename") + 1
    assert kill_at(change.save, folder, switch + 1) == KILLED and state_folder(folder) != folder
    names = ["bolt", "nut", "gasket"]
    assert json.loads((folder / "config.json").read_text("utf-8"))["products"][-1]["name"] == "nut"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert load_detector(str(folder))[0].config.class_names == load_config(str(folder)).class_names == names
    assert load_detector(str(folder))[0].name_or_path == str(folder)
    for detector in (pipeline("image-anomaly-detection", model=str(folder)), AutoModel.from_pretrained(folder)):
        assert detector.products[2].name == "gasket"
    assert AnoPLeProcessor.from_pretrained(folder).class_names == names
    assert {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file()
    } == before  # reading writes nothing
    room.run("forget", folder, "bolt")
    assert not [path.name for path in folder.iterdir() if path.name.startswith((".commit", ".unfinished"))]
    assert load_detector(str(folder))[1].class_names == ["nut", "gasket"]


def test_a_file_system_without_links_does(room, folder, monkeypatch):
    def refuse(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    room.run("enroll", folder, "gasket", room.folder / "data" / "gasket")
    assert contents(folder) == contents(room.larger)


def test_a_full_disk_leaves_the_old_state(room, tmp_path, capsys):
    size = sum(path.stat().st_size for path in room.detector.iterdir() if path.is_file())
    try:
        with disk(tmp_path / "disk", size * 3 // 2) as place:
            folder = copy_of(room.detector, place / "detector")
            assert anople(["enroll", str(folder), "gasket", str(room.pictures("gasket", 0)[0])]) == 2
            assert contents(folder) == contents(room.detector)
            assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    except OSError as error:
        pytest.skip(f"no disk can be mounted: {error}")
    said = capsys.readouterr().err.splitlines()[-1]
    assert "could not be written, and is as it was" in said and "No space left" in said and "make room there" in said


def test_a_folder_that_cannot_be_written_is_said_and_read(room, folder, capsys):
    if os.geteuid() == 0:
        pytest.skip("this user may write everywhere; `reliability disk` mounts a disk for it")
    folder.chmod(0o555)
    (folder / saving_anople.LOCK_FILE).chmod(0o444)
    assert anople(["forget", str(folder), "nut"]) == 2
    assert "cannot be changed" in capsys.readouterr().err
    assert load_detector(str(folder))[0].config.class_names == ["bolt", "nut"]


# --- Two at once ---


def test_of_two_that_enroll_at_once_none_is_lost(room, folder):
    words = [["enroll", folder, name, *room.pictures(data, 2, 3)] for name, data in (("a", "gasket"), ("b", "nut"))]
    codes = []
    threads = [
        threading.Thread(target=lambda one=one: codes.append(in_a_fork(lambda: anople([str(word) for word in one]))))
        for one in words
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    assert set(load_detector(str(folder))[1].class_names) == {"bolt", "nut", "a", "b"}


def test_who_waits_says_so_and_gives_up(folder, capsys, caplog, monkeypatch):
    monkeypatch.setattr(saving_anople, "LOCK_SECONDS", 0.2)
    before = contents(folder)
    other = FileLock(folder / saving_anople.LOCK_FILE)  # as another program has it
    with other:
        assert anople(["forget", str(folder), "nut"]) == 2
        assert f"{folder} is being changed by another program: waiting up to" in caplog.text
        assert "was still being changed by another program after 0.2 s: end that, or" in capsys.readouterr().err
        threading.Timer(0.1, other.release).start()
        assert contents(folder) == before
        monkeypatch.setattr(saving_anople, "LOCK_SECONDS", 60)
        time.sleep(0.2)
    assert anople(["forget", str(folder), "nut"]) == 0


def test_two_new_detectors_in_one_folder_are_not_one_over_the_other(room, tmp_path):
    """Both find no folder and begin; the second to be saved sees that it is there by then."""
    from modeling_anople.cli import enrollment

    with enrollment.changing(str(tmp_path / "new"), None, begun=True) as save:
        shutil.copytree(room.detector, tmp_path / "new")
        with pytest.raises(ValueError, match="is not empty"):
            save(detector_of(*load_detector(str(room.larger))))
    assert contents(tmp_path / "new") == contents(room.detector)


@pytest.mark.parametrize("way", ["load_detector", "pipeline"])
def test_a_reader_beside_a_writer_reads_whole_states(room, folder, way):
    reads = {
        "load_detector": lambda: load_detector(str(folder)),
        "pipeline": lambda: (lambda detector: (detector.model, detector.processor))(
            pipeline("image-anomaly-detection", model=str(folder))
        ),
    }
    states = {load_config(str(each)).content_sha256 for each in (room.detector, room.larger)}
    found = read_beside(room, folder, reads[way], states, 4)
    assert found["mixed"] == found["error"] == 0 and found["whole"] > 0 and found["writes"] > 0


def test_what_changes_while_it_is_read_is_read_again(tmp_path):
    def write(text: str) -> None:
        with replacing(tmp_path) as place:
            for name in ("config.json", "other.json"):
                (place / name).write_text(text, "utf-8")

    seen = []

    def read(place: Path) -> list[str]:
        texts = [(place / "config.json").read_text("utf-8")]
        if len(seen) < 2:
            write(f'"{len(seen) + 2}"')
        seen.append(texts)
        return [*texts, (place / "other.json").read_text("utf-8")]

    write('"1"')
    assert read_state(tmp_path, read) == ['"3"', '"3"'] and len(seen) == 3

    def fail(place: Path) -> None:
        seen.append(place)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        read_state(tmp_path, fail)
    assert len(seen) == 4  # nothing has changed, so once is enough


def test_the_lock_may_be_taken_again_by_who_has_it(tmp_path):
    with locked(tmp_path), replacing(tmp_path) as place:
        (place / "config.json").write_text("{}", "utf-8")
        with locked(tmp_path):
            assert place.exists()  # what its owner is writing is not taken for what a killed program left
    assert sorted(path.name for path in tmp_path.iterdir()) == [".anople.lock", "config.json"]
    with pytest.raises(ValueError, match="is a file: name a folder"), locked(tmp_path / "config.json"):
        pass


# --- Which state it is ---


def test_one_id_names_a_state_in_all_its_files_however_it_was_saved(room, folder, tmp_path):
    [state] = ids(room.detector)
    detector = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(folder))
    for number, options in enumerate(({}, {"adapter": True}, {"max_shard_size": "100KB"})):
        detector.save_pretrained(tmp_path / str(number), **options)
        assert ids(tmp_path / str(number)) == {state}
    again = AnoPLeModel.load_adapter(tmp_path / "1", clip=room.clip, verify=True)
    again.save_pretrained(tmp_path / "again")
    assert ids(tmp_path / "again") == {state} == {again.config.content_sha256}
    detector.calibrate("nut", max_false_alarm_rate=0.2)
    detector.save_pretrained(tmp_path / "moved")
    [moved] = ids(tmp_path / "moved")
    assert moved != state
    for place in (tmp_path / "2", tmp_path / "moved"):
        AnoPLeModel.from_pretrained(place, verify=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "processor_config.json"])
def test_files_of_two_states_are_refused_by_their_names(room, folder, capsys, name):
    shutil.copy(room.larger / name, folder / name)
    other = "processor_config.json" if name == "processor_config.json" else "model.safetensors"
    said = re.escape(f"{folder}/config.json (of state ") + ".*" + re.escape(f"{folder}/{other} (of state ")
    said += ".*were not saved together: copy the folder again whole, or save"
    assert anople(["predict", str(folder), str(room.pictures("nut", 0)[0])]) == 2
    assert re.search(said, capsys.readouterr().err)
    for read in (load_detector, load_config, load_judge, AnoPLeModel.from_pretrained):
        with pytest.raises(StateError, match=said):
            read(str(folder))
    with pytest.raises(ValueError, match="were not saved together"):  # among much else that transformers says
        pipeline("image-anomaly-detection", model=str(folder))


@pytest.mark.parametrize("part", ["anywhere", "in the header", "in its padding", "behind its end"])
def test_any_byte_of_the_weights_that_flips_is_noticed(room, folder, part):
    generator, weights = random.Random(0), folder / "model.safetensors"
    size, raw = weights.stat().st_size, weights.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    first = len(raw[:header].rstrip(b" ")) if part == "in its padding" else 0
    if part == "behind its end":
        weights.write_bytes(raw + b"\0")
        with pytest.raises(ValueError, match="damaged"):
            load_detector(str(folder))
        return
    if first == header:
        pytest.skip("the header of this one has none")
    for _ in range(8):
        where = generator.randrange(first, size if part == "anywhere" else header)
        mask = generator.randrange(1, 256)
        flip(weights, where, mask)
        with pytest.raises(ValueError, match="damaged|not saved together"):
            load_detector(str(folder))
        flip(weights, where, mask)
    load_detector(str(folder))


def test_a_config_that_was_changed_by_hand_is_refused_with_the_way_to_keep_it(room, folder, capsys):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["threshold"] = 0.6
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    picture = str(room.pictures("nut", 0)[0])
    assert anople(["predict", str(folder), picture]) == 2
    said = capsys.readouterr().err
    assert "was damaged, or changed by hand" in said and "if config.json was changed on purpose, save it anew" in said
    remedy = f"AnoPLeModel.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    assert remedy in said
    eval(remedy, {"AnoPLeModel": AnoPLeModel})
    assert anople(["predict", str(folder), picture]) == 0
    assert load_config(str(folder)).threshold == 0.6


def test_a_detector_that_was_saved_without_an_id_still_loads(room, folder, caplog):
    for name in ("config.json", "processor_config.json"):
        values = json.loads((folder / name).read_text("utf-8"))
        values.pop("content_sha256")
        (folder / name).write_text(json.dumps(values), "utf-8")
    weights = AnoPLeModel.from_pretrained(room.detector).state_dict()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    AnoPLeModel.from_pretrained(folder)
    assert not caplog.text
    load_detector(str(folder))
    assert "config.json cannot be verified, as it was saved without a hash: save it anew" in caplog.text
    room.run("calibrate", folder, "nut", "--max_false_alarm_rate", "0.2")
    assert None not in ids(folder) and len(ids(folder)) == 1


def test_weights_of_the_other_kind_go_and_files_of_others_stay(room, folder, clip_model, tmp_path):
    (folder / "README.md").write_text("mine", "utf-8")
    (folder / "model_backup.safetensors").write_bytes(b"mine")
    detector = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(folder))

    def weights() -> set[str]:
        return {path.name for path in folder.glob("*.safetensors*")} - {"model_backup.safetensors"}

    detector.save_pretrained(folder, max_shard_size="100KB")
    assert "model.safetensors.index.json" in weights() and "model.safetensors" not in weights() and len(weights()) > 3
    detector.save_pretrained(folder, adapter=True)
    assert weights() == {"adapter.safetensors"}
    detector.save_pretrained(folder)
    assert weights() == {"model.safetensors"}
    assert (folder / "README.md").read_text("utf-8") == "mine" and (folder / "model_backup.safetensors").exists()
    clip_model.save_pretrained(tmp_path / "clip")  # an adapter beside the CLIP that somebody keeps there
    detector.save_pretrained(tmp_path / "clip", adapter=True)
    assert (tmp_path / "clip/model.safetensors").exists()


def test_a_processor_stays_with_the_model_that_is_saved_beside_it(make_model, make_processor, tmp_path):
    processor = make_processor()
    processor.white_value = 4095
    make_model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert len(ids(tmp_path)) == 1
    make_model(seed=1).save_pretrained(tmp_path)  # which never saw a processor
    assert len(ids(tmp_path)) == 1 and AnoPLeProcessor.from_pretrained(tmp_path).white_value == 4095


def test_the_config_of_another_detector_is_refused(room, folder):
    with pytest.raises(ValueError, match="config=... is of another detector than"):
        AnoPLeModel.from_pretrained(folder, config=load_config(str(room.larger)))
    config = load_config(str(folder))
    config.threshold = 0.7
    assert AnoPLeModel.from_pretrained(folder, config=config).config.threshold == 0.7


def test_an_adapter_is_verified_too(room, folder, tmp_path):
    AnoPLeModel.from_pretrained(folder).save_adapter(tmp_path / "adapter")
    weights = tmp_path / "adapter/adapter.safetensors"
    clip = CLIPModel.from_pretrained(room.clip)
    AnoPLeModel.load_adapter(tmp_path / "adapter", clip=clip, verify=True)
    flip(weights, weights.stat().st_size - 10, 1)
    with pytest.raises(StateError, match=r"save it anew in Python: AnoPLeModel.load_adapter\(.*\).save_adapter\("):
        AnoPLeModel.load_adapter(tmp_path / "adapter", clip=clip, verify=True)


def test_a_verb_that_writes_file_by_file_would_be_found_half(room, tmp_path):
    """The harness itself sees what it is there to see."""

    def save(folder: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((room.larger / name).read_bytes())

    before, place = contents(room.detector), copy_of(room.detector, tmp_path / "killed")
    assert kill_at(save, place, 3) == KILLED
    assert judge(place, before, contents(room.larger)) == "half"
