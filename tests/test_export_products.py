"""An export's products and lines follow the detector while its graph stays."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from modeling_anople.cli import main
from modeling_anople.export import export_detector, export_products
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime.loading import load_detector, load_judge

from .detectors import normals_of, write_detector


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_clip_folder, photograph) -> Path:
    """A folder with a detector and its graph, written under a usual umask."""
    folder = tmp_path_factory.mktemp("made")
    write_detector(folder / "detector", small_clip_folder, photograph)
    before = os.umask(0o022)
    try:
        assert main(["export", str(folder / "detector"), str(folder / "graph")]) == 0
    finally:
        os.umask(before)
    return folder


@pytest.fixture
def place(tmp_path, made) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))


@pytest.fixture
def pictures(tmp_path, photograph) -> list[str]:
    """Good photographs of a product that is not known yet."""
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path, image in zip(paths, normals_of(photograph, 2, 4), strict=True):
        image.save(path)
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(*words: object) -> int:
    return main([str(word) for word in words])


def change(detector: Path, pictures: list[str]) -> None:
    """Enroll a product, with a rate and tiles of its own, and move the line of another."""
    assert run("enroll", detector, "washer", *pictures[:2], "--tiling", "2,2", "--max_false_alarm_rate", "0.2") == 0
    assert run("calibrate", detector, "nut", "--max_false_alarm_rate", "0.3") == 0


def test_all_files_have_the_mode_that_the_umask_allows(made):
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in (made / "graph").iterdir()} == {
        path.name: "0o644" for path in (made / "graph").iterdir()
    }


def test_a_changed_detector_is_followed_without_a_new_graph(place, pictures, photograph):
    detector, graph = place / "detector", place / "graph"
    (graph / "notes.txt").write_text("the user's own")
    old, inode = contents(graph), (graph / "model.onnx").stat().st_ino
    change(detector, pictures)
    assert run("export", detector, graph, "--products_only") == 0
    export_detector(*load_detector(str(detector)), place / "whole")
    kept = {name: old[name] for name in ("model.onnx", "graph.json", "notes.txt")}
    assert contents(graph) == contents(place / "whole") | kept
    assert (graph / "model.onnx").stat().st_ino == inode  # a graph of gigabytes is not copied
    assert sorted(path.name for path in place.iterdir()) == ["detector", "graph", "whole"]
    shown = [image for number in range(3) for image in normals_of(photograph, number, 2)] + [photograph(900)]
    for name in ("bolt", "nut", "washer", None):
        here, there = (
            list(predict(*load_judge(str(folder)), shown, class_names=name)) for folder in (detector, graph)
        )
        assert [(each.label, each.class_name) for each in there] == [(each.label, each.class_name) for each in here]
        assert [each.score for each in there] == pytest.approx([each.score for each in here], abs=1e-4)
        assert {each.label for each in there} - {None}


def test_a_forgotten_product_goes_also_where_links_cannot_be_had(place, monkeypatch, photograph):
    def refuse(*arguments, **options):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    assert run("forget", place / "detector", "bolt") == 0
    assert run("export", place / "detector", place / "graph", "--products_only") == 0
    here, there = (next(predict(*load_judge(str(place / name)), [photograph(1)])) for name in ("detector", "graph"))
    assert there.class_name == here.class_name and there.score == pytest.approx(here.score, abs=1e-4)
    assert load_judge(str(place / "graph"))[0].config.class_names == ["nut"]


def other_weights(place: Path) -> None:
    model, processor = load_detector(str(place / "detector"))
    with torch.no_grad():
        model.prompts.vision[0, 0, 0] += 1e-3
    model.save_pretrained(place / "detector")


def other_smoothing(place: Path) -> None:
    path = place / "detector/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "smoothing": 0.02}))


def earlier_version(place: Path) -> None:
    (place / "graph/graph.json").unlink()


def no_graph(place: Path) -> None:
    (place / "graph/model.onnx").unlink()


def no_lines(place: Path) -> None:
    (place / "graph/lines.json").unlink()


def no_memory(place: Path) -> None:
    model, _ = load_detector(str(place / "detector"))
    model.memory.restore([(model.memory.bank(0), model.memory.counts[0]), (model.memory.bank(1)[:, :0], [])])
    model.note_memory()
    model.save_pretrained(place / "detector")


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (other_weights, [], "another detector (it differs in the weights of CLIP, prompts or decoder): name"),
        (other_smoothing, [], "another detector (it differs in smoothing): name"),
        (earlier_version, [], "does not say what its graph was made from: export anew, with --overwrite"),
        (no_graph, [], "is no whole export (model.onnx is missing)"),
        (no_lines, [], "is no whole export (lines.json is missing)"),
        (no_memory, [], "['nut'] have no memory"),
        (None, ["--weights", "int8"], "--products_only keeps the graph: leave out --format, --weights"),
        (None, ["--format", "openvino"], "--products_only keeps the graph"),
        (None, ["--overwrite"], "--products_only keeps the graph"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(place, capsys, spoil, options, message):
    if spoil:
        spoil(place)
    before = contents(place / "graph")
    assert run("export", place / "detector", place / "graph", "--products_only", *options) == 2
    assert message in capsys.readouterr().err
    assert contents(place / "graph") == before
    assert sorted(path.name for path in place.iterdir()) == ["detector", "graph"]


def test_a_folder_that_is_not_there_is_no_export(place, capsys):
    assert run("export", place / "detector", place / "new", "--products_only") == 2
    assert "new is no whole export" in capsys.readouterr().err and not (place / "new").exists()


@pytest.mark.parametrize("options", [{}, {"weights": "int8"}], ids=str)
def test_a_graph_in_another_form_is_followed_too(place, pictures, options):
    detector, graph = place / "detector", place / "moved"
    export_detector(*load_detector(str(detector)), graph, **options)
    small = (graph / "model.onnx").read_bytes()
    change(detector, pictures)
    (place / "current").symlink_to(graph)  # what a service reads
    assert run("export", detector, place / "current", "--products_only") == 0
    assert (place / "current").is_symlink() and (graph / "model.onnx").read_bytes() == small
    assert load_judge(str(place / "current"))[0].config.class_names == ["bolt", "nut", "washer"]


@pytest.mark.parametrize(
    ("called", "first"),
    [("modeling_anople.processing_anople.AnoPLeProcessor.save_pretrained", None), ("pathlib.Path.rename", "new")],
)
def test_a_stopped_program_leaves_the_export_as_it_was(place, pictures, monkeypatch, called, first):
    change(place / "detector", pictures)
    before, rename = contents(place / "graph"), Path.rename

    def stop(it, target):
        if first is None or it.name == first:
            raise KeyboardInterrupt
        return rename(it, target)

    model, processor = load_detector(str(place / "detector"))
    monkeypatch.setattr(called, stop)
    with pytest.raises(KeyboardInterrupt):
        export_products(model, processor, place / "graph")
    assert contents(place / "graph") == before
    assert sorted(path.name for path in place.iterdir()) == ["detector", "graph"]


def test_products_of_a_graph_are_listed_with_their_lines(place, pictures, capsys):
    change(place / "detector", pictures)
    assert run("export", place / "detector", place / "graph", "--products_only") == 0
    capsys.readouterr()
    tables = []
    for name in ("detector", "graph"):
        assert run("products", place / name) == 0
        tables.append(capsys.readouterr().out)
    assert tables[1] == tables[0] and "none" not in tables[1]
    lines = json.loads((place / "graph/lines.json").read_text())
    lines["classes"]["nut"]["image_threshold"] = 0.9753
    (place / "graph/lines.json").write_text(json.dumps(lines))
    assert run("products", place / "graph") == 0
    assert "0.9753" in capsys.readouterr().out
    (place / "graph/lines.json").unlink()
    assert run("products", place / "graph") == 2
    assert "lines.json is missing" in capsys.readouterr().err
