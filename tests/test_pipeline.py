"""The detector as users have it: every source of images, batches and streams; products by verbs; saved, pushed and loaded."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor, ImageError
from modeling_anople.pipeline_anople import predict

from .detectors import normals_of, write_detector
from .local_hub.client import download, files_of, pipeline_answers, push_pipeline


SIZES = [(48, 40), (30, 64), (7, 9), (100, 20), (33, 33)]
LISTS = ["paths", "strings", "PIL", "arrays", "tensors", "floats", "tuple", "bytes"]
STREAMS = ["generator", "folder", "folder name", "dataset", "streamed dataset"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_clip_folder, photograph):
    return write_detector(tmp_path_factory.mktemp("detector"), small_clip_folder, photograph)


@pytest.fixture(scope="module")
def detect(folder) -> AnomalyDetectionPipeline:
    return pipeline("image-anomaly-detection", model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def images(photograph) -> list[Pillow.Image]:
    return [photograph(seed, size=size) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def expected(detect, images) -> list[dict]:
    return [detect(image, class_name="nut") for image in images]


@pytest.fixture
def files(tmp_path, images):
    (tmp_path / "pictures/sub").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(tmp_path / "pictures" / ("sub" if number > 2 else ".") / f"{number}.png")
    return tmp_path / "pictures"


def assert_alike(results: list[dict], expected: list[dict]) -> None:
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        assert result.keys() == other.keys() and result["label"] == other["label"]
        assert result["class_name"] == other["class_name"] and result["error"] is other["error"] is None
        assert result["score"] == pytest.approx(other["score"], abs=1e-5)
        assert result["raw_score"] == pytest.approx(other["raw_score"], abs=1e-5)
        np.testing.assert_allclose(result["anomaly_map"], other["anomaly_map"], atol=1e-4)


# --- Judging ---


def test_results_are_the_models_own_at_the_images_own_size(folder, images, expected):
    model, processor = AnoPLeModel.from_pretrained(folder), AnoPLeProcessor.from_pretrained(folder)
    for image, result in zip(images, expected, strict=True):
        with torch.inference_mode():
            outputs = model(**processor(image, class_names="nut"))
        [own] = processor.post_process_anomaly_detection(outputs, target_sizes=[image.size[::-1]], regions=True)
        assert result.keys() == {*own, "path", "error", "reason"} and result["path"] is None
        assert result["score"] == own["score"] and result["raw_score"] == own["raw_score"]
        assert result["anomaly_map"].shape == image.size[::-1] and result["anomaly_map"].dtype == np.float32
        assert np.array_equal(result["anomaly_map"], own["anomaly_map"])
        assert result["regions"] == own["regions"]
        assert result["label"] == ("anomalous" if result["score"] > 0.5 or result["reason"] else "normal")
    assert len({result["score"] for result in expected}) == len(images)


def sources(images, files) -> dict:
    arrays = [np.array(image) for image in images]
    paths = [files / f"{number}.png" for number in range(3)] + [files / f"sub/{number}.png" for number in (3, 4)]
    rows = [{"path": str(path), "bytes": None} for path in paths]
    table = Dataset.from_dict({"image": rows, "number": [0, 1, 2, 3, 4]}).cast_column("image", Image())
    return {
        "paths": paths,
        "strings": [str(path) for path in paths],
        "PIL": images,
        "arrays": arrays,
        "tensors": [torch.from_numpy(array).permute(2, 0, 1) for array in arrays],
        "floats": [array.astype(np.float32) / 255 for array in arrays],
        "tuple": tuple(images),
        "bytes": [path.read_bytes() for path in paths],
        "generator": (image for image in images),
        "folder": files,
        "folder name": str(files),
        "dataset": table,
        "streamed dataset": table.to_iterable_dataset(),
    }


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("kind", LISTS + STREAMS)
def test_every_source_gives_the_same(detect, images, files, expected, kind, batch_size):
    results = detect(sources(images, files)[kind], class_name="nut", batch_size=batch_size)
    assert isinstance(results, Iterator) == (kind in STREAMS)
    results = list(results)
    assert_alike(results, expected)
    if kind in ("paths", "strings", "folder", "dataset"):
        assert [os.path.basename(result["path"]) for result in results] == [f"{number}.png" for number in range(5)]


def test_one_image_of_every_kind_gives_one_result(detect, images, files, expected):
    path = files / "0.png"
    array = np.array(images[0])
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    with path.open("rb") as opened:
        for one in (path, str(path), path.read_bytes(), images[0], array, tensor, opened, {"path": str(path)}):
            assert_alike([detect(one, class_name="nut")], expected[:1])
    assert detect(path)["path"] == str(path)
    for several in (np.stack([array, array]), torch.stack([tensor, tensor])):
        assert_alike(detect(several, class_name="nut"), expected[:1] * 2)
    assert detect([]) == []


def test_what_holds_no_images_is_refused(detect, tmp_path):
    for source, message in (
        (5, "a int holds no photographs"),
        (tmp_path, "holds no image files"),
        (Dataset.from_dict({"number": [1]}), r"columns \['number'\], of which \[\] hold images: give image_column"),
    ):
        with pytest.raises(ValueError, match=message):
            detect(source)


def test_a_dataset_with_several_images_is_asked_which(detect, images):
    columns = Features({"front": Image(), "back": Image(), "name": Value("string")})
    table = Dataset.from_dict({"front": images, "back": images[::-1], "name": list("abcde")}, features=columns)
    with pytest.raises(ValueError, match="image_column"):
        detect(table)
    fronts, backs = (list(detect(table, image_column=side, class_name="nut")) for side in ("front", "back"))
    assert_alike(backs, fronts[::-1])


@pytest.mark.parametrize("names", ["nut", None, "each"])
def test_a_stream_is_never_read_more_than_a_batch_ahead(detect, images, names):
    pulled = 0

    def camera() -> Iterator[Pillow.Image]:
        nonlocal pulled
        while True:  # it never ends
            pulled += 1
            yield images[pulled % len(images)]

    options = {"class_names": (("bolt", "nut")[number % 2] for number in range(10**9))} if names == "each" else {}
    options |= {"class_name": names} if names == "nut" else {}
    stream = detect(camera(), batch_size=3, **options)
    assert pulled == 0
    for number in range(10):
        result = next(stream)
        assert pulled == 3 * (number // 3 + 1)
        if names == "each":
            assert result["class_name"] == ("bolt", "nut")[number % 2]


def test_sixteen_bits_rotation_and_transparency_arrive_whole(detect, photograph, tmp_path):
    ramp = np.linspace(0, 65535, 48 * 40).reshape(40, 48).astype(np.uint16)
    Pillow.fromarray(ramp).save(tmp_path / "deep.png")
    eight = Pillow.fromarray(np.rint(ramp / 257).astype(np.uint8))
    deep = detect(tmp_path / "deep.png", class_name="nut")
    assert deep["score"] == pytest.approx(detect(eight, class_name="nut")["score"], abs=1e-6)
    image = photograph(3)
    exif = Pillow.Exif()
    exif[0x0112] = 6  # lies on its side
    image.save(tmp_path / "turned.png", exif=exif)
    turned = detect(tmp_path / "turned.png", class_name="nut")
    assert turned["anomaly_map"].shape == (48, 40)
    upright = detect(image.transpose(Pillow.Transpose.ROTATE_270), class_name="nut")
    assert turned["score"] == pytest.approx(upright["score"], abs=1e-6)
    clear = image.convert("RGBA")
    clear.putalpha(Pillow.linear_gradient("L").resize(image.size))
    over_white = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), clear)
    assert detect(clear, class_name="nut")["score"] == detect(over_white, class_name="nut")["score"]


def test_bad_images_keep_their_place_and_say_why(detect, images, expected, tmp_path):
    sources = [tmp_path / "gone.png", images[0], b"no picture", *images[1:]]
    for batch_size in (1, 2, 8):
        results = detect(sources, class_name="nut", batch_size=batch_size)
        assert [number for number, result in enumerate(results) if result["error"]] == [0, 2]
        assert "gone.png: there is no such file" in results[0]["error"] and results[0]["path"].endswith("gone.png")
        assert {results[0][name] for name in ("score", "label", "raw_score", "anomaly_map", "class_name")} == {None}
        assert_alike([results[1], *results[3:]], expected)
    damaged = Dataset.from_dict({"image": [{"path": None, "bytes": b"no picture"}] * 2}).cast_column("image", Image())
    assert ["Pillow can read" in result["error"] for result in detect(damaged)] == [True, True]


def test_bad_images_can_stop_the_call(detect, images, tmp_path):
    stream = detect(iter([images[0], tmp_path / "gone.png"]), class_name="nut", batch_size=2, on_error="raise")
    assert next(stream)["score"] > 0
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file"):
        next(stream)


def test_products_are_named_for_each_or_predicted(detect, photograph):
    sources = [*normals_of(photograph, 0), *normals_of(photograph, 1)]
    truth = ["bolt"] * 3 + ["nut"] * 3
    assert [result["class_name"] for result in detect(sources)] == truth
    wrong = detect(sources, class_names=truth[::-1], batch_size=4)
    assert [result["class_name"] for result in wrong] == truth[::-1]


def test_the_threshold_is_changed_without_reloading(folder, detect, images, expected):
    scores = sorted(result["score"] for result in expected)
    middle = (scores[1] + scores[2]) / 2
    labels = [result["label"] for result in detect(images, class_name="nut", threshold=middle)]
    assert labels.count("anomalous") == 3
    assert_alike(detect(images, class_name="nut"), expected)
    own = pipeline("image-anomaly-detection", model=str(folder), device="cpu", class_name="nut", threshold=middle)
    assert [result["label"] for result in own(images)] == labels
    detect.model.config.threshold = 0.0
    assert {result["label"] for result in detect(images, class_name="nut")} == {"anomalous"}
    detect.model.config.threshold = 0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_name": "screw"}, ValueError, r"'screw' is not known .* \['bolt', 'nut'\]"),
        ({"class_name": "nut", "class_names": ["nut"]}, ValueError, "not both"),
        ({"class_names": ["nut"]}, ValueError, "more sources than class names"),
        ({"threshold": 1.5}, ValueError, "within 0 and 1, got 1.5"),
        ({"on_error": "ignore"}, ValueError, "'return' or 'raise', got 'ignore'"),
        ({"batch_size": -1}, ValueError, "at least 1, got -1"),
        ({"class": "nut"}, TypeError, "knows no class: it takes class_name, class_names, threshold, .*, batch_size"),
    ],
)
def test_wrong_options_are_refused(detect, images, options, error, message):
    with pytest.raises(error, match=message):
        detect(images, **options)


def test_half_precision(folder, images, expected):
    half = pipeline("image-anomaly-detection", model=str(folder), device="cpu", dtype=torch.bfloat16)
    for result, other in zip(half(images, class_name="nut"), expected, strict=True):
        assert result["raw_score"] == pytest.approx(other["raw_score"], abs=0.03)


# --- Products come and go by verbs, with no processor to hand around ---


@pytest.fixture
def own(folder) -> AnomalyDetectionPipeline:
    """A detector that may be changed."""
    return pipeline("image-anomaly-detection", str(folder), device="cpu")


def known(detector: AnomalyDetectionPipeline) -> dict[str, int]:
    return {product.name: len(product.image_vectors) for product in detector.products}


def test_a_detector_learns_and_forgets_products(own, photograph):
    gaskets = normals_of(photograph, 2, 6)
    assert known(own) == {"bolt": 3, "nut": 3}
    enrolled = own.enroll("gasket", gaskets[:3])
    assert known(own) == {"bolt": 3, "nut": 3, "gasket": 3} and own.products[2].threshold == enrolled
    assert [result["class_name"] for result in own(gaskets[:3])] == ["gasket"] * 3
    assert own(gaskets[3], class_name="gasket")["class_name"] == "gasket"
    added = own.add_normals("gasket", gaskets[3:5])
    assert known(own)["gasket"] == 5 and own.products[2].threshold == added != enrolled
    calibrated = own.calibrate("gasket", gaskets[5:], max_false_alarm_rate=0.1)
    assert known(own)["gasket"] == 5 and own.products[2].threshold == calibrated
    assert (calibrated.image_count, calibrated.held_out, calibrated.max_false_alarm_rate) == (6, 1, 0.1)
    own.set_ignore_mask("gasket", np.eye(40, 48, dtype=bool))
    assert own.products[2].ignore_mask_size == [40, 48]
    own.forget("bolt")
    assert known(own) == {"nut": 3, "gasket": 5}
    assert own(gaskets[5], class_name="gasket")["class_name"] == "gasket"
    with pytest.raises(ValueError, match=r"'bolt' is not known .* \['nut', 'gasket'\]"):
        own(gaskets[5], class_name="bolt")
    actions = ["enroll", "add_normals", "calibrate", "keep_ignore_mask", "forget"]
    assert [entry["action"] for entry in own.model.config.history] == actions


def test_what_products_tells_changes_no_product(own, photograph):
    [bolt, _] = own.products
    before = own(photograph(0), class_name="bolt")["score"]
    bolt.threshold, bolt.name = dataclasses.replace(bolt.threshold, image_threshold=0.9), "screw"
    bolt.image_vectors.clear()
    assert known(own) == {"bolt": 3, "nut": 3} and own(photograph(0), class_name="bolt")["score"] == before


def test_a_saved_detector_knows_what_was_enrolled(own, photograph, tmp_path):
    own.enroll("gasket", normals_of(photograph, 2), tiling=(1, 2))
    own.processor.white_value = 4095
    here = own(normals_of(photograph, 2))
    own.save_pretrained(tmp_path)
    saved = pipeline("image-anomaly-detection", str(tmp_path), device="cpu")
    assert saved.products == own.products and saved.processor.class_names == ["bolt", "nut", "gasket"]
    assert saved.products[2].tiling == "1,2" and saved.processor.white_value == 4095
    assert_alike(saved(normals_of(photograph, 2)), here)
    assert [result["class_name"] for result in here] == ["gasket"] * 3


def test_a_detector_is_saved_over_its_own_folder(own, photograph, tmp_path):
    own.save_pretrained(tmp_path)
    detector = pipeline("image-anomaly-detection", str(tmp_path), device="cpu")
    detector.enroll("gasket", normals_of(photograph, 2))
    here = detector(normals_of(photograph, 2))
    detector.save_pretrained(tmp_path)
    assert_alike(pipeline("image-anomaly-detection", str(tmp_path), device="cpu")(normals_of(photograph, 2)), here)


def names_in(folder: Path) -> list[list[str]]:
    """The products that the config and the processor of a folder know."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [[values["name"] for values in config["products"]], AnoPLeProcessor.from_pretrained(folder).class_names]


@pytest.mark.parametrize("saved_by", ["detector", "model", "adapter", "adapter by model"])
def test_saving_over_what_was_there_leaves_nothing_of_it(own, small_clip_folder, photograph, tmp_path, saved_by):
    """Names in the folder that the model no longer has would shift the ids of all others."""

    def save() -> None:
        if saved_by == "model":
            own.model.save_pretrained(tmp_path)
        elif saved_by == "adapter by model":
            own.model.save_adapter(tmp_path)
        else:
            own.save_pretrained(tmp_path, adapter=saved_by == "adapter")

    nut, gaskets = normals_of(photograph, 1)[0], normals_of(photograph, 2)
    expected = own(nut, class_name="nut")
    own.enroll("gasket", gaskets)
    save()
    assert names_in(tmp_path) == [["bolt", "nut", "gasket"]] * 2
    own.forget("bolt")
    save()
    assert names_in(tmp_path) == [["nut", "gasket"]] * 2
    if "adapter" in saved_by:
        again = AnomalyDetectionPipeline(AnoPLeModel.load_adapter(tmp_path, clip=str(small_clip_folder)))
    else:
        again = pipeline("image-anomaly-detection", str(tmp_path), device="cpu")
    assert again.processor.class_names == again.model.config.class_names == ["nut", "gasket"]
    for each in (own, again):
        assert_alike([each(nut, class_name="nut")], [expected])
        assert each(gaskets)[0]["class_name"] == "gasket"


def test_a_detector_is_saved_without_its_clip(own, photograph, small_clip_folder, tmp_path):
    own.enroll("gasket", normals_of(photograph, 2))
    own.save_pretrained(tmp_path, adapter=True)
    assert (tmp_path / "adapter.safetensors").exists() and not (tmp_path / "model.safetensors").exists()
    again = AnomalyDetectionPipeline(AnoPLeModel.load_adapter(tmp_path, clip=str(small_clip_folder)))
    assert again.products == own.products
    assert_alike(again(normals_of(photograph, 2)), own(normals_of(photograph, 2)))
    with pytest.raises(ValueError, match="An adapter is saved by itself: leave out push_to_hub, and push its folder"):
        own.save_pretrained(tmp_path / "other", adapter=True, push_to_hub=True)


@pytest.mark.parametrize("by", ["push_to_hub", "save_pretrained"])
def test_a_pushed_detector_is_all_there(client, folder, photograph, tmp_path, by):
    paths = []
    for number, image in enumerate(normals_of(photograph, 2)):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    repository = f"me/pipeline-{by.replace('_', '-')}"
    here = client.call(push_pipeline, str(folder), repository, paths, by=by, target=str(tmp_path / "saved"))
    files = client.call(files_of, repository)
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files.keys()
    assert "pipeline_anople.py" in files
    text = client.call(download, repository, tmp_path / "cache")["processor_config.json"]
    assert json.loads(text)["class_names"] == ["bolt", "nut", "gasket"] and json.loads(text)["white_value"] == 4095
    there = client.call(pipeline_answers, repository, paths)
    assert [name for name, _ in there] == ["gasket"] * 3
    assert [score for _, score in there] == pytest.approx(here, abs=1e-5)


# --- Which model and processor make a detector, and where ---


def test_the_task_is_registered_and_needs_no_trust_where_the_package_is(folder, images, expected):
    assert "image-anomaly-detection" in PIPELINE_REGISTRY.get_supported_tasks()
    for made in (
        pipeline("image-anomaly-detection", model=str(folder), device="cpu"),
        pipeline(model=str(folder), trust_remote_code=True, device="cpu"),
        AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(folder)),
    ):
        assert type(made) is AnomalyDetectionPipeline and type(made.model) is AnoPLeModel
        assert_alike(made(images, class_name="nut"), expected)


def test_a_saved_pipeline_is_the_whole_folder(folder, detect, images, expected, tmp_path):
    detect.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()}
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["custom_pipelines"] == {
        "image-anomaly-detection": {
            "impl": "pipeline_anople.AnomalyDetectionPipeline",
            "pt": ["AutoModel"],
            "type": "image",
        }
    }
    assert_alike(
        pipeline("image-anomaly-detection", model=str(tmp_path), device="cpu")(images, class_name="nut"), expected
    )


def test_another_processor_is_refused(detect):
    with pytest.raises(ValueError, match="needs the detector's processor, got CLIPTokenizer"):
        AnomalyDetectionPipeline(detect.model, processor=detect.processor.tokenizer)


def test_a_detector_finds_its_processor_where_its_model_came_from(folder, images, expected):
    model = AnoPLeModel.from_pretrained(folder)
    detector = AnomalyDetectionPipeline(model, device=model.device)
    assert_alike(detector(images, class_name="nut"), expected)
    model, loop = AnoPLeModel.from_pretrained(folder), AnoPLeProcessor.from_pretrained(folder)
    scores = [each.score for each in predict(model, loop, images, class_names="nut")]
    assert scores == pytest.approx([result["score"] for result in expected], abs=1e-5)


CHILD = """
import json, os, sys
folder, pictures, answers = sys.argv[1:4]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_anople":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import pipeline

def use(answers, task=None):
    os.mkdir(answers)
    detect = pipeline(*([task] if task else []), model=folder, trust_remote_code=True, device="cpu")
    results = list(detect(pictures, class_name="nut", batch_size=2))
    detect.enroll("gasket", pictures)
    detect.enroll("ring", pictures)
    detect.forget("ring")
    detect.calibrate("gasket", max_false_alarm_rate=0.1)
    detect.save_pretrained(answers + "/again")
    again = pipeline(model=answers + "/again", trust_remote_code=True, device="cpu")
    assert "modeling_anople" not in sys.modules
    json.dump({
        "scores": [result["score"] for result in results],
        "shapes": [result["anomaly_map"].shape for result in results],
        "paths": [result["path"] for result in results],
        "again": [result["score"] for result in again(pictures, class_name="nut", batch_size=2)],
        "products": [product.name for product in again.products],
        "rates": [product.threshold.max_false_alarm_rate for product in again.products],
        "actions": [entry["action"] for entry in again.model.config.history],
    }, open(answers + "/answers.json", "w"))

if not os.fork():  # where no detector has been loaded yet; what fails here is missing in the end
    use(answers + "/no task named")
    sys.exit()
os.wait()
use(answers + "/task named", "image-anomaly-detection")
"""


def test_a_fresh_process_without_the_package_needs_the_folder_alone(folder, files, detect, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, str(folder), str(files), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = list(detect(files, class_name="nut", batch_size=2))
    here = [result["score"] for result in results]
    for place in ("task named", "no task named"):
        answers = json.loads((tmp_path / place / "answers.json").read_text(encoding="utf-8"))
        # the last bits of a matrix product depend on where its operands lie in memory, which differs between processes
        assert answers["scores"] == pytest.approx(here, abs=1e-5) and answers["again"] == pytest.approx(here, abs=1e-5)
        assert [tuple(shape) for shape in answers["shapes"]] == [result["anomaly_map"].shape for result in results]
        assert answers["paths"] == [result["path"] for result in results]
        assert answers["products"] == ["bolt", "nut", "gasket"]
        assert answers["rates"] == [0.05, 0.05, 0.1]
        assert answers["actions"] == ["enroll", "enroll", "forget", "calibrate"]


# --- What holds no number or no pixel ---


UNUSABLE = {
    "NaN": np.full((8, 8, 3), np.nan, np.float32),
    "infinite tensor": torch.full((3, 8, 8), torch.inf),
    "float picture": Pillow.fromarray(np.full((8, 8), np.nan, np.float32)),
    "none by none": Pillow.new("RGB", (0, 0)),
    "none by five": Pillow.new("L", (0, 5)),
    "no rows": np.zeros((0, 5, 3), np.uint8),
    "no name": "",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_image_without_numbers_or_pixels_is_an_error_row_and_stops_no_other(detect, images, expected, name):
    bad = UNUSABLE[name]
    first, wrong, last = detect([images[0], bad, images[1]], class_name="nut", batch_size=3)
    assert_alike([first, last], expected[:2])
    assert wrong["score"] is wrong["label"] is wrong["anomaly_map"] is None and wrong["error"].startswith("image in m")
    assert detect(bad, class_name="nut")["error"] == wrong["error"]
    [prediction] = predict(detect.model, detect.processor, [bad])
    assert prediction.error == wrong["error"]
    with pytest.raises(ImageError, match="image in memory"):
        detect(bad, on_error="raise")
    before = [*detect.model.config.class_names]
    with pytest.raises(ImageError, match="1 of 2 images cannot be used, nothing was changed"):
        detect.enroll("gasket", [images[0], bad])
    [masked] = detect([images[0]], class_name="nut", ignore_mask=[bad])
    assert masked["error"]
    with pytest.raises(ImageError):
        detect.set_ignore_mask("nut", bad)
    assert detect.model.config.class_names == before
