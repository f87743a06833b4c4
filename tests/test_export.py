"""A graph answers as the model that it was made from, and its products follow the detector while it stays."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import httpx
import numpy as np
import pytest
import torch

from modeling_anople import AnoPLeProcessor
from modeling_anople import export as exporting
from modeling_anople.cli import main
from modeling_anople.export import export_detector, export_products, quantize
from modeling_anople.export.graph_detector import ExportedDetector, check_origin, to_openvino
from modeling_anople.inspection.server import Settings
from modeling_anople.inspection.watching import Watch
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime.loading import load_detector, load_judge

from .detectors import detector_of, normals_of, write_detector
from .encoders import encoder_options
from .serving import alone, ask, is_right, serving


VARIANTS = {
    "usual": {},
    "memory encoder, larger, unprompted, pooled, other fusion": {  # tracing takes seconds: all that is unlike in one
        **encoder_options("dinov2_with_registers", 42),
        **{"class_identity": "pooled", "coupling": "none"},
        **{"decoder_head": "conv", "image_map": "fused", "map_fusion": "harmonic"},
    },
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory, small_clip_folder, photograph):
    """By variant, a detector's folder and that of its graph; tracing takes seconds, so each is made once."""
    made = {}

    def make(variant: str) -> tuple[Path, Path]:
        if variant not in made:
            folder = tmp_path_factory.mktemp("export")
            detector = write_detector(folder / "detector", small_clip_folder, photograph, **VARIANTS[variant])
            before = os.umask(0o022)
            try:
                assert run("export", detector, folder / "graph") == 0
            finally:
                os.umask(before)
            made[variant] = detector, folder / "graph"
        return made[variant]

    return make


def run(*words: object) -> int:
    return main([str(word) for word in words])


def follow(detector: Path, earlier: Path, graph: Path) -> None:
    """Copy an export and put the products of a changed detector beside the graph: as exported anew, without tracing."""
    shutil.copytree(earlier, graph)
    assert run("export", detector, graph, "--products_only") == 0


@pytest.fixture(params=VARIANTS)
def pair(request, exports):
    return exports(request.param)


@pytest.fixture
def usual(exports):
    return exports("usual")


@pytest.fixture
def traced_before(usual, monkeypatch) -> None:
    """Take the graph of `usual` in place of tracing it again, for tests that look at what comes with it or is made of it."""

    def write_graph(model, path: Path) -> None:
        check_origin(model, usual[1])  # raises for any other detector
        shutil.copyfile(usual[1] / "model.onnx", path)

    monkeypatch.setattr(exporting, "write_graph", write_graph)


@pytest.fixture(scope="module")
def pictures(photograph):
    """Good photographs of both products, ones of neither, and odd ones."""
    known = [*normals_of(photograph, 0, 2), *normals_of(photograph, 1, 2)]
    return known + [photograph(900 + number, size=(40, 70)) for number in range(3)]


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    marked = np.zeros((40, 48), dtype=bool)
    marked[10:30, 20:40] = True
    return marked


def assert_alike(folder: Path, graph: Path, pictures: list, **options) -> None:
    here, there = (list(predict(*load_judge(str(place)), pictures, **options)) for place in (folder, graph))
    for one, other in zip(here, there, strict=True):
        assert (one.label, one.class_name, one.error) == (other.label, other.class_name, other.error)
        if one.error:
            continue
        assert other.score == pytest.approx(one.score, abs=1e-4) and one.score > 0
        assert other.raw_score == pytest.approx(one.raw_score, abs=1e-5)
        np.testing.assert_allclose(other.anomaly_map, one.anomaly_map, atol=1e-4)
        np.testing.assert_allclose(other.raw_map, one.raw_map, atol=1e-5)


@pytest.mark.parametrize("options", [{"class_names": "nut"}, {}, {"batch_size": 2}], ids=str)
def test_scores_maps_and_labels_are_the_models(pair, pictures, options):
    assert_alike(*pair, pictures, **options)


def test_a_batch_of_several_products(pair, pictures):
    assert_alike(*pair, pictures, class_names=["nut", "bolt", "nut", "bolt", "nut", "bolt", "nut"])


@pytest.mark.parametrize("tiling", ["same", (2, 2), (1, 3)])
@pytest.mark.parametrize("name", ["bolt", None])
def test_masks_that_are_given_and_tiles(pair, pictures, mask, name, tiling):
    masks = [mask, None, mask, mask, *[None] * 3]
    assert_alike(*pair, pictures, class_names=name, tiling=tiling, ignore_mask=masks)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, exports, small_clip_folder, photograph, mask):
    """A detector with a mask of one product and tiles of the other, and its graph, by how products are told apart."""
    made = {}

    def make(identity: str) -> tuple[Path, Path]:
        if identity not in made:
            folder = tmp_path_factory.mktemp("kept")
            place = write_detector(folder / "detector", small_clip_folder, photograph, class_identity=identity)
            detector = detector_of(*load_detector(str(place)))
            detector.set_ignore_mask("bolt", mask)
            detector.enroll("washer", normals_of(photograph, 2), tiling=(2, 2))
            detector.save_pretrained(place)
            follow(place, exports("usual")[1], folder / "graph")
            made[identity] = place, folder / "graph"
        return made[identity]

    return make


@pytest.mark.parametrize("names", [["bolt", "washer", "nut"] * 2 + ["bolt"], None])
@pytest.mark.parametrize("identity", ["given", "predicted"])
def test_masks_and_tilings_that_products_keep(kept, pictures, identity, names):
    detector, graph = kept(identity)
    assert_alike(detector, graph, pictures, class_names=names)
    found = list(predict(*load_judge(str(graph)), pictures, class_names=names))
    wrong_size = [each.error for each in found if each.error]
    assert all("keeps an ignore_mask" in error for error in wrong_size) and len(wrong_size) < len(found)
    assert wrong_size or identity == "predicted" or names is None  # the last is a bolt, and smaller than its mask
    assert any(each.ignored is not None for each in found)
    model, _ = load_judge(str(graph))
    assert model.state_dict()["products.0.ignore_mask"].dtype == torch.uint8


def test_a_mask_alone_that_a_product_keeps(usual, tmp_path, pictures, mask):
    detector, graph = usual
    masked = detector_of(*load_detector(str(detector)))
    masked.set_ignore_mask("nut", mask)
    masked.save_pretrained(tmp_path / "detector")
    follow(tmp_path / "detector", graph, tmp_path / "graph")
    for names in ("nut", None, "bolt"):
        assert_alike(tmp_path / "detector", tmp_path / "graph", pictures, class_names=names)


@pytest.mark.parametrize("part", ["memory", "decoder", "text"])
def test_each_part(pair, pictures, part):
    detector, graph = pair
    values = [
        [one.raw_score for one in predict(*load_judge(str(place)), pictures, class_names="bolt", part=part)]
        for place in (detector, graph)
    ]
    assert values[1] == pytest.approx(values[0], abs=1e-5)


def test_predict_takes_a_graph_as_it_takes_a_detector(usual, pictures, tmp_path, capsys):
    files = []
    for number, picture in enumerate(pictures):
        files.append(str(tmp_path / f"{number}.png"))
        picture.save(files[-1])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines = []
    for place in usual:
        output = tmp_path / place.name
        assert main(["predict", str(place), *files, str(tmp_path / "broken.png"), "--output", str(output)]) == 1
        lines.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
        assert len(list(output.glob("*.png"))) == len(files)
    for one, other in zip(*lines, strict=True):
        for key in ("score", "raw_score"):
            value, found = one.pop(key), other.pop(key)
            assert found == (None if value is None else pytest.approx(value, abs=1e-4))
        timeless = [{**line, "seconds": 0, "overlay": 0, "time": 0} for line in (one, other)]
        assert timeless[0] == timeless[1]


def test_a_watch_and_drift_take_a_graph(usual, pictures, tmp_path):
    _, graph = usual
    (tmp_path / "inbox").mkdir()
    pictures[0].save(tmp_path / "inbox/0.png")
    watch = Watch(str(graph), tmp_path / "inbox", tmp_path / "results", class_name="bolt", settle=0.05, poll=True)
    thread = threading.Thread(target=watch.run)
    thread.start()
    end = time.monotonic() + 30
    while not (tmp_path / "results/normal/0.png").exists() and time.monotonic() < end:
        time.sleep(0.02)
    watch.stop.set()
    thread.join()
    assert len(list((tmp_path / "results/overlays/normal").iterdir())) == 1
    assert main(["drift", str(graph), str(tmp_path / "results")]) == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory, exports) -> Path:
    """The usual graph, with its weights in a file of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "LARGEST_IN_ONE_FILE", 0)
        detector = load_detector(str(exports("usual")[0]))
        return export_detector(*detector, tmp_path_factory.mktemp("large") / "graph")


@pytest.mark.parametrize("weights", ["float32", "int8", "int8_dynamic"])
def test_weights_that_are_too_large_for_one_file(usual, large, pictures, tmp_path, weights):
    _, graph = usual
    folder = Path(shutil.copytree(large, tmp_path / "large"))
    if weights != "float32":
        quantize(folder / "model.onnx", weights)
    assert sorted(path.name for path in folder.glob("model*")) == ["model.onnx", "model.onnx.data"]
    moved = folder.rename(tmp_path / "moved")
    here, there = (list(predict(*load_judge(str(place)), pictures, class_names="nut")) for place in (graph, moved))
    near = 1e-5 if weights == "float32" else 0.02
    assert [one.raw_score for one in there] == pytest.approx([one.raw_score for one in here], abs=near)


def test_a_detector_that_cuts_all_photographs(usual, tmp_path, small_clip_folder, photograph, pictures):
    detector = write_detector(tmp_path / "detector", small_clip_folder, photograph, tiling="2,2")
    follow(detector, usual[1], tmp_path / "graph")
    assert_alike(detector, tmp_path / "graph", pictures, class_names="nut")
    assert_alike(detector, tmp_path / "graph", pictures)


def test_leave_one_out_is_refused(usual):
    model, _ = load_judge(str(usual[1]))
    with pytest.raises(ValueError, match="compares with all of a memory"):
        model(torch.zeros(1, 3, 32, 32), class_ids=torch.tensor([0]), exclude=(0, slice(0, 4)))


@pytest.mark.parametrize("weights", ["int8", "int8_dynamic"])
def test_weights_in_8_bits(usual, pictures, tmp_path, weights):
    _, graph = usual
    folder = Path(shutil.copytree(graph, tmp_path / "small"))
    quantize(folder / "model.onnx", weights)
    assert not list(folder.glob("whole*"))
    sizes = [(place / "model.onnx").stat().st_size for place in (graph, folder)]
    assert sizes[1] < 0.95 * sizes[0]  # the CLIP is so small that the graph's own text weighs a lot
    here, there = (list(predict(*load_judge(str(place)), pictures, class_names="nut")) for place in (graph, folder))
    away = [abs(one.raw_score - other.raw_score) for one, other in zip(here, there, strict=True)]
    assert 0 < max(away) < 0.02 and [one.label for one in here] == [other.label for other in there]


def test_a_threshold_is_moved_without_the_graph(usual, pictures):
    _, graph = usual
    model, processor = load_judge(str(graph))
    (score,) = [one.score for one in predict(model, processor, pictures[:1], class_names="bolt")]
    thresholds = json.loads((graph / "thresholds.json").read_text(encoding="utf-8"))
    moved = {**thresholds, "threshold": score / 2}
    (graph / "thresholds.json").write_text(json.dumps(moved), encoding="utf-8")
    try:
        (again,) = predict(*load_judge(str(graph)), pictures[:1], class_names="bolt")
    finally:
        (graph / "thresholds.json").write_text(json.dumps(thresholds), encoding="utf-8")
    assert again.score == score and again.label == "anomalous" and "sigmoid" in thresholds["about"]


def test_the_graph_runs_without_torch(usual, tmp_path):
    """Only ONNX Runtime and numpy: as a program in another language would."""
    program = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
shapes = {entry.name: [side if isinstance(side, int) else 3 for side in entry.shape] for entry in session.get_inputs()}
answers = session.run(None, {name: numpy.ones(shape, numpy.float32) for name, shape in shapes.items()})
assert "torch" not in sys.modules
print([answer.shape for answer in answers])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(usual[1] / "model.onnx")], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("[(3,), (3, 32, 32), (3, 4, 4)"), done.stderr


def test_what_cannot_be_exported_or_opened_is_refused(usual, make_model, small_clip_folder, photograph, tmp_path):
    detector, graph = usual
    with pytest.raises(ValueError, match="is not empty: name a new folder"):
        export_detector(*load_detector(str(detector)), graph)
    empty, processor = make_model(), AnoPLeProcessor.from_clip(str(small_clip_folder), ["bolt", "nut"])
    with pytest.raises(ValueError, match=r"\['bolt', 'nut'\] have no memory: fit"):
        export_detector(empty, processor, tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    with pytest.raises(ValueError, match="A graph says nothing of what stands behind"):
        next(predict(*load_judge(str(graph)), [photograph(1)], explain=True))
    assert main(["enroll", str(graph), "gasket", "any.png", "--output", str(tmp_path / "more")]) == 2
    config = json.loads((graph / "config.json").read_text(encoding="utf-8"))
    assert [product["threshold"] for product in config["products"]] == [None, None]
    assert config.get("pooled_threshold") is None
    with pytest.raises(ValueError, match="holds a graph, which judges and learns nothing"):
        load_detector(str(graph))
    (tmp_path / "cut").mkdir()
    for path in graph.iterdir():
        (tmp_path / "cut" / path.name).write_bytes(path.read_bytes()[: 999 if path.suffix == ".onnx" else None])
    with pytest.raises(ValueError, match="cannot be run .* make it again with anople export"):
        ExportedDetector(tmp_path / "cut")
    (tmp_path / "cut/thresholds.json").unlink()
    with pytest.raises(ValueError, match=r"no whole export \(thresholds.json is missing\)"):
        ExportedDetector(tmp_path / "cut")


def test_an_export_may_be_replaced_and_leaves_the_model_as_it_was(usual, tmp_path, capsys):
    detector, graph = usual
    shutil.copytree(graph, tmp_path / "graph")
    assert run("export", detector, tmp_path / "graph") == 2
    assert "add --overwrite" in capsys.readouterr().err
    (tmp_path / "graph/notes/2024").mkdir(parents=True)
    (tmp_path / "graph/notes/2024/a.txt").write_text("the user's own", encoding="utf-8")
    (tmp_path / "graph/config.json").write_text("{}", encoding="utf-8")
    model, processor = load_detector(str(detector))
    model.half()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_detector(model, processor, tmp_path / "graph", overwrite=True)
    after = model.state_dict()
    assert all(tensor.dtype == after[name].dtype and tensor.equal(after[name]) for name, tensor in before.items())
    assert (tmp_path / "graph/model.onnx").stat().st_mtime > (graph / "model.onnx").stat().st_mtime
    assert (tmp_path / "graph/notes/2024/a.txt").read_text(encoding="utf-8") == "the user's own"
    assert json.loads((tmp_path / "graph/config.json").read_text(encoding="utf-8"))["model_type"] == "anople"


def test_a_graph_is_not_sent_elsewhere(usual, photograph, tmp_path, capsys):
    photograph(1).save(tmp_path / "photograph.png")
    for options in (["--device", "cuda"], ["--dtype", "bfloat16"]):
        assert run("predict", usual[1], tmp_path / "photograph.png", *options) == 2
        assert "leave out --device and --dtype" in capsys.readouterr().err


def test_openvino_answers_as_the_model_too(pair, pictures, tmp_path):
    pytest.importorskip("openvino")
    detector, graph = pair
    shutil.copytree(graph, tmp_path / "graph")
    with mock.patch("openvino_telemetry.Telemetry.send_event") as told:
        to_openvino(tmp_path / "graph/model.onnx")
    told.assert_not_called()
    assert sorted(path.name for path in (tmp_path / "graph").glob("model.*")) == ["model.bin", "model.xml"]
    for options in ({"class_names": "nut"}, {}, {"batch_size": 3}):
        assert_alike(detector, tmp_path / "graph", pictures, **options)


@pytest.mark.usefixtures("traced_before")
def test_the_command_writes_an_openvino_graph(usual, tmp_path):
    pytest.importorskip("openvino")
    graph = tmp_path / "graph"
    assert main(["export", str(usual[0]), str(graph), "--format", "openvino"]) == 0
    assert {"graph.bin", "graph.xml"} <= set(load_judge(str(graph))[0].state_dict())
    with pytest.raises(ValueError, match="holds a graph, which judges and learns nothing"):
        load_detector(str(graph))
    (graph / "model.xml").write_text("<net/>", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be run .* make it again with anople export"):
        ExportedDetector(graph)


@pytest.mark.parametrize("weights", ["int8", "int8_dynamic"])
def test_openvino_takes_no_weights_of_8_bits(usual, tmp_path, weights):
    with pytest.raises(ValueError, match="leave one of the two out"):
        export_detector(*load_detector(str(usual[0])), tmp_path / "graph", format="openvino", weights=weights)


# Products and thresholds beside a graph follow the detector.


@pytest.fixture
def place(tmp_path, usual) -> Path:
    """A folder with a detector and its graph."""
    return Path(shutil.copytree(usual[0].parent, tmp_path / "place"))


@pytest.fixture
def washers(tmp_path, photograph) -> list[str]:
    """Good photographs of a product that is not known yet."""
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path, image in zip(paths, normals_of(photograph, 2, 4), strict=True):
        image.save(path)
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change(detector: Path, washers: list[str]) -> None:
    """Enroll a product, with a rate and tiles of its own, and move the threshold of another."""
    assert run("enroll", detector, "washer", *washers[:2], "--tiling", "2,2", "--max_false_alarm_rate", "0.2") == 0
    assert run("calibrate", detector, "nut", "--max_false_alarm_rate", "0.3") == 0


def test_all_files_have_the_mode_that_the_umask_allows(usual):
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in usual[1].iterdir()}
    assert modes and modes == dict.fromkeys(modes, "0o644")


@pytest.mark.usefixtures("traced_before")
def test_a_changed_detector_is_followed_without_a_new_graph(place, washers, photograph):
    detector, graph = place / "detector", place / "graph"
    (graph / "notes.txt").write_text("the user's own")
    old, inode = contents(graph), (graph / "model.onnx").stat().st_ino
    change(detector, washers)
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
    model, _ = load_detector(str(place / "detector"))
    model.config.smoothing = 0.02
    model.save_pretrained(place / "detector")


def earlier_version(place: Path) -> None:
    (place / "graph/graph.json").unlink()


def no_graph(place: Path) -> None:
    (place / "graph/model.onnx").unlink()


def no_thresholds(place: Path) -> None:
    (place / "graph/thresholds.json").unlink()


def version_0_1(place: Path) -> None:
    """Its thresholds lay in `lines.json`."""
    (place / "graph/thresholds.json").rename(place / "graph/lines.json")


def no_memory(place: Path) -> None:
    model, _ = load_detector(str(place / "detector"))
    bank = model.products[1].bank
    bank.vectors, bank.boxes, bank.image_vectors = bank.vectors[:, :0], None, []
    model.products.write()
    model.save_pretrained(place / "detector")


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (
            other_weights,
            [],
            "another detector (it differs in the weights of CLIP, memory encoder, prompts or decoder): name",
        ),
        (other_smoothing, [], "another detector (it differs in smoothing): name"),
        (earlier_version, [], "does not say what its graph was made from: export anew, with --overwrite"),
        (no_graph, [], "is no whole export (model.onnx is missing)"),
        (no_thresholds, [], "is no whole export (thresholds.json is missing)"),
        (version_0_1, [], "is no whole export (thresholds.json is missing): make it again with anople export"),
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


@pytest.mark.usefixtures("traced_before")
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_graph_in_another_form_is_followed_too(place, washers, weights):
    detector, graph = place / "detector", place / "moved"
    if weights == "float32":
        (place / "graph").rename(graph)
    else:
        export_detector(*load_detector(str(detector)), graph, weights=weights)
    small = (graph / "model.onnx").read_bytes()
    change(detector, washers)
    (place / "current").symlink_to(graph)  # what a service reads
    assert run("export", detector, place / "current", "--products_only") == 0
    assert (place / "current").is_symlink() and (graph / "model.onnx").read_bytes() == small
    assert load_judge(str(place / "current"))[0].config.class_names == ["bolt", "nut", "washer"]


@pytest.mark.parametrize(
    "called", ["modeling_anople.processing_anople.AnoPLeProcessor.save_pretrained", "pathlib.Path.rename"]
)
def test_a_stopped_program_leaves_the_export_as_it_was(place, washers, monkeypatch, called):
    change(place / "detector", washers)
    before = contents(place / "graph")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    model, processor = load_detector(str(place / "detector"))
    monkeypatch.setattr(called, stop)
    with pytest.raises(KeyboardInterrupt):
        export_products(model, processor, place / "graph")
    assert contents(place / "graph") == before
    assert sorted(path.name for path in place.iterdir()) == ["detector", "graph"]


def test_products_of_a_graph_are_listed_with_their_thresholds(place, washers, capsys):
    change(place / "detector", washers)
    assert run("export", place / "detector", place / "graph", "--products_only") == 0
    capsys.readouterr()
    tables = []
    for name in ("detector", "graph"):
        assert run("products", place / name) == 0
        tables.append(capsys.readouterr().out)
    assert tables[1] == tables[0] and "none" not in tables[1]
    thresholds = json.loads((place / "graph/thresholds.json").read_text())
    thresholds["products"]["nut"]["image_threshold"] = 0.9753
    (place / "graph/thresholds.json").write_text(json.dumps(thresholds))
    assert run("products", place / "graph") == 0
    assert "0.9753" in capsys.readouterr().out
    (place / "graph/thresholds.json").unlink()
    assert run("products", place / "graph") == 2
    assert "thresholds.json is missing" in capsys.readouterr().err


def test_a_graph_is_served_as_its_detector_and_learns_nothing(usual, pictures, tmp_path):
    detector, graph = usual
    paths = [tmp_path / f"{number}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    with serving(Settings(str(graph), token="open sesame")) as address:
        assert all(map(is_right, ask(address, paths).json()["results"], alone(detector, paths)))
        files, token = [("files", ("a.png", paths[0].read_bytes()))], {"Authorization": "Bearer open sesame"}
        refused = httpx.post(f"{address}/products/screw", files=files, headers=token, timeout=60)
    assert refused.status_code == 400 and "holds a graph" in refused.json()["detail"]
