"""One call: every source of photographs, batches, streams, bad files and options."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from transformers import pipeline

from modeling_anople import AnoPLeModel, AnoPLeProcessor, ImageError

from ..detectors import normals_of
from .answers import assert_alike


LISTS = ["paths", "strings", "PIL", "arrays", "tensors", "floats", "tuple", "bytes"]
STREAMS = ["generator", "folder", "folder name", "dataset", "streamed dataset"]


def test_results_are_the_models_own_at_the_photographs_own_size(folder, images, expected):
    model, processor = AnoPLeModel.from_pretrained(folder), AnoPLeProcessor.from_pretrained(folder)
    for image, result in zip(images, expected, strict=True):
        with torch.inference_mode():
            outputs = model(**processor(image, class_names="nut"))
        [own] = processor.post_process_anomaly_detection(outputs, target_sizes=[image.size[::-1]])
        assert result.keys() == {*own, "path", "error"} and result["path"] is None
        assert result["score"] == own["score"] and result["raw_score"] == own["raw_score"]
        assert result["anomaly_map"].shape == image.size[::-1] and result["anomaly_map"].dtype == np.float32
        assert np.array_equal(result["anomaly_map"], own["anomaly_map"])
        assert result["label"] == ("anomalous" if result["score"] > 0.5 else "normal")
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


def test_one_photograph_of_every_kind_gives_one_result(detect, images, files, expected):
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


def test_what_holds_no_photographs_is_refused(detect, tmp_path):
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
    clear.putalpha(0)
    white = Pillow.new("RGB", image.size, "white")
    assert detect(clear, class_name="nut")["score"] == detect(white, class_name="nut")["score"]


def test_bad_photographs_keep_their_place_and_say_why(detect, images, expected, tmp_path):
    sources = [tmp_path / "gone.png", images[0], b"no picture", *images[1:]]
    for batch_size in (1, 2, 8):
        results = detect(sources, class_name="nut", batch_size=batch_size)
        assert [number for number, result in enumerate(results) if result["error"]] == [0, 2]
        assert "gone.png: there is no such file" in results[0]["error"] and results[0]["path"].endswith("gone.png")
        assert {results[0][name] for name in ("score", "label", "raw_score", "anomaly_map", "class_name")} == {None}
        assert_alike([results[1], *results[3:]], expected)
    damaged = Dataset.from_dict({"image": [{"path": None, "bytes": b"no picture"}] * 2}).cast_column("image", Image())
    assert ["Pillow can read" in result["error"] for result in detect(damaged)] == [True, True]


def test_bad_photographs_can_stop_the_call(detect, images, tmp_path):
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
