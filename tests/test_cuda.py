"""On a GPU: the answers of the CPU, by every road. Left out where there is none."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from modeling_anople import AnoPLeModel
from modeling_anople.cli import main
from modeling_anople.data.drawn_products import write_dataset
from modeling_anople.runtime.loading import computing_device, load_judge
from modeling_anople.training import main as fit_program

from . import fitting
from .detectors import detector_of, normals_of, write_detector


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU here.")

CLOSE = {"rtol": 0, "atol": 1e-3}  # seen on an H200: 0.0005 in a map, below 0.0001 in scores


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Let accelerate use the GPU, from which the other tests keep it off."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with fitting.one_process():
        AcceleratorState._reset_state(reset_partial_state=True)
        yield


@pytest.fixture
def detector(tmp_path, small_clip_folder, photograph):
    return write_detector(tmp_path / "detector", small_clip_folder, photograph)


@pytest.fixture
def files(tmp_path, photograph) -> list[str]:
    folder = tmp_path / "photographs"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        photograph(number).save(path)
    return [str(path) for path in paths]


def lines_of(capsys, *arguments: str) -> list[dict]:
    assert main(["predict", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("config", [{}, {"class_identity": "pooled"}, {"memory_rotations": "quarter_turns"}])
def test_scores_and_maps_are_those_of_the_cpu(make_detector, make_pixels, config):
    model, _ = make_detector(**config)
    pixels, ids = make_pixels(5), torch.tensor([0, 1, 1, 0, 1])
    with torch.inference_mode():
        for known, given in ((ids, ids.cuda()), (ids, ids), (None, None)):
            expected = model.cpu()(pixels, class_ids=known)
            found = model.cuda()(pixels.cuda(), class_ids=given)
            if expected.class_ids is not None:
                assert torch.equal(found.class_ids.cpu(), expected.class_ids) and found.class_ids.is_cuda
            if expected.is_known_class is not None:
                assert torch.equal(found.is_known_class.cpu(), expected.is_known_class)
            for name in ("image_scores", "calibrated_scores", "anomaly_maps", "memory_maps", "decoder_maps"):
                torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), **CLOSE)


def test_learning_a_product_on_the_gpu_gives_the_threshold_of_the_cpu(make_detector, photograph):
    thresholds = {}
    for device in ("cpu", "cuda"):
        model, processor = make_detector()
        detector, mask = detector_of(model.to(device), processor), np.zeros((40, 48), dtype=bool)
        mask[20:, 24:] = True
        assert detector.device.type == device
        images = normals_of(photograph, 3, 6)
        detector.enroll("washer", images[:3], ignore_mask=mask)
        detector.add_normals("washer", images[3:5])
        detector.calibrate("washer", images[5:])
        detector.enroll("ring", normals_of(photograph, 4), tiling=(2, 2))
        detector.forget("bolt")
        thresholds[device] = [dataclasses.asdict(each.threshold) for each in detector.products]
        assert {buffer.device.type for buffer in detector.model.products.buffers()} == {device}
    for here, there in zip(thresholds["cuda"], thresholds["cpu"], strict=True):
        assert here.keys() == there.keys()
        for name, value in there.items():
            if isinstance(value, str):
                assert here[name] == value
            else:
                torch.testing.assert_close(torch.tensor(here[name]), torch.tensor(value), **CLOSE)


@pytest.mark.parametrize("identity", ["given", "predicted", "pooled"])
def test_the_detector_answers_as_on_the_cpu(make_detector, photograph, identity):
    answers = {}
    for device in ("cpu", "cuda"):
        model, processor = make_detector(class_identity=identity)
        detector = detector_of(model.to(device), processor)
        mask = np.zeros((40, 48), dtype=bool)
        mask[20:, 24:] = True
        detector.set_ignore_mask("nut", mask)
        images = [normals_of(photograph, owner, 5)[4] for owner in (0, 1, 1)]
        answers[device] = [
            result
            for tiling in ("same", (2, 2))
            for result in detector(images, tiling=tiling, explain=True, batch_size=2)
        ]
    for here, there in zip(answers["cuda"], answers["cpu"], strict=True):
        assert here["error"] is there["error"] is None
        assert (here["label"], here["class_name"]) == (there["label"], there["class_name"])
        assert here["score"] == pytest.approx(there["score"], abs=1e-3)
        np.testing.assert_allclose(here["anomaly_map"], there["anomaly_map"], atol=1e-3)
        assert here["explanation"].score == pytest.approx(there["explanation"].score, abs=1e-3)


def test_predict_takes_the_gpu_by_itself_and_the_cpu_when_told(detector, files, capsys, monkeypatch):
    assert load_judge(str(detector), device="auto")[0].device == computing_device("cuda")
    here = lines_of(capsys, str(detector), *files)
    there = lines_of(capsys, str(detector), *files, "--device", "cpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert load_judge(str(detector), device="auto")[0].device.type == "cpu"
    for one, other in zip(here, there, strict=True):
        assert one["label"] == other["label"] and one["class"] == other["class"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


@pytest.mark.parametrize("more", [["--explain"], ["--tiling", "2,2"]])
def test_explanations_and_tiles(detector, files, capsys, more):
    class_name = ["--class_name", "bolt"]
    here = lines_of(capsys, str(detector), *files, *class_name, *more)
    there = lines_of(capsys, str(detector), *files, *class_name, *more, "--device", "cpu")
    for one, other in zip(here, there, strict=True):
        assert one["raw_score"] == pytest.approx(other["raw_score"], abs=1e-4)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_fit_on_the_gpu_is_measured_alike_on_the_cpu(tmp_path, precision, capsys):
    data, folder = tmp_path / "data", tmp_path / "fitted"
    write_dataset(data, 0, classes=["gear", "bottle cap"], train=4, good=4, defective=4, size=96)
    options = ["--shots", "2", "--max_steps", "3", "--batch_size", "2", "--monitor_images", "2", "--num_workers", "2"]
    assert main(["fit", str(data), *options, "--mixed_precision", precision, "--output_dir", str(folder)]) == 0
    model = AnoPLeModel.from_pretrained(folder)
    assert model.device.type == "cpu" and model.dtype == torch.float32
    reports = []
    for device in ("cuda", "cpu"):
        file = tmp_path / f"{device}.json"
        assert main(["evaluate", str(folder), str(data), "--json", str(file), "--device", device]) == 0
        reports.append(json.loads(file.read_text(encoding="utf-8")))
    here, there = (report["mean"] for report in reports)
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        assert here[name] == pytest.approx(there[name], abs=1e-3), name


@pytest.mark.parametrize(
    "mode", ["", "--mixed_precision bf16", "--coupling uncoupled --prefix none", "--decoder_head conv"]
)
def test_the_same_seed_gives_the_same_bits(tmp_path, small_clip_folder, photograph, mode):
    data = fitting.write_products(tmp_path / "data", photograph)
    options = ["--data_root", str(data), "--clip", str(small_clip_folder), "--max_steps", "6", "--monitor_images", "2"]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        fit_program([*options, *mode.split(), "--output_dir", str(folder)])
    fitting.assert_same_weights(*folders)


def test_half_precision_stays_near(make_detector, make_pixels):
    model, _ = make_detector()
    pixels = make_pixels(4).cuda()
    with torch.inference_mode():
        expected = model.cuda()(pixels, class_ids=torch.zeros(4, dtype=torch.long, device="cuda"))
        half = model.bfloat16()(pixels.bfloat16(), class_ids=torch.zeros(4, dtype=torch.long, device="cuda"))
    torch.testing.assert_close(half.image_scores.float(), expected.image_scores, rtol=0, atol=0.02)
