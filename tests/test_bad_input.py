"""Photographs, folders and checkpoints of every odd kind: handled right, or refused by name and with the remedy."""

import io
import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from modeling_anople import ImageError, load_photograph
from modeling_anople.cli import main

from .detectors import normals_of, write_detector


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5  # a ramp from 0 to 235
COLOUR = np.stack([GREY, GREY[::-1], np.full_like(GREY, 77)], axis=-1)
ALPHA = np.where(GREY < 100, 0, np.where(GREY < 200, 128, 255)).astype(np.uint8)
WIDE = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1394  # 0 to 65518
PALETTE = np.stack([GREY // 5, GREY // 5 * 2, np.full_like(GREY, 200)], axis=-1)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return share * colours + 255 * (1 - share)


def grey_alpha() -> Image.Image:
    return Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])


def in_palette() -> Image.Image:
    """The pixels are the numbers 0 to 47; colour n is (n, 2 n, 200)."""
    image = Image.frombytes("P", (8, 6), (GREY // 5).tobytes())
    image.putpalette([value for number in range(48) for value in (number, 2 * number, 200)])
    return image


def in_ink() -> Image.Image:
    inks = [Image.fromarray(255 - channel) for channel in np.moveaxis(COLOUR, -1, 0)]
    return Image.merge("CMYK", [*inks, Image.new("L", (8, 6))])


KINDS = {  # file name: photograph, how it is saved, the colours to be seen
    "grey.png": (Image.fromarray(GREY), {}, grey(GREY)),
    "grey alpha.png": (grey_alpha(), {}, over_white(grey(GREY), ALPHA)),
    "rgba.png": (Image.fromarray(np.dstack([COLOUR, ALPHA])), {}, over_white(COLOUR, ALPHA)),
    "rgb.bmp": (Image.fromarray(COLOUR), {}, COLOUR),
    "palette.png": (in_palette(), {}, PALETTE),
    "palette clear.png": (in_palette(), {"transparency": 20}, np.where(grey(GREY) == 100, 255, PALETTE)),
    "grey clear.png": (Image.fromarray(GREY), {"transparency": 50}, grey(np.where(GREY == 50, 255, GREY))),
    "one bit.png": (Image.fromarray(GREY > 100), {}, grey((GREY > 100) * 255)),
    "sixteen.png": (Image.fromarray(WIDE), {}, grey(np.rint(WIDE / 257))),
    "sixteen.tif": (Image.fromarray(WIDE), {}, grey(np.rint(WIDE / 257))),
    "thirty two.tif": (Image.fromarray(WIDE.astype(np.int32)), {}, grey(np.rint(WIDE / 257))),
    "float.tif": (Image.fromarray(GREY.astype(np.float32) / 255), {}, grey(GREY)),
    "cmyk.tif": (in_ink(), {}, COLOUR),
    "lab.tif": (Image.new("LAB", (8, 6), (255, 128, 128)), {}, grey(np.full_like(GREY, 255))),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_has_the_right_colours(tmp_path, name):
    image, options, expected = KINDS[name]
    image.save(tmp_path / name, **options)
    for source in (tmp_path / name, str(tmp_path / name), (tmp_path / name).read_bytes()):
        photograph = load_photograph(source)
        assert photograph.mode == "RGB"
        np.testing.assert_allclose(np.asarray(photograph, dtype=float), expected, atol=1)


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    Image.new("RGB", (16, 16), (200, 60, 30)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(np.asarray(load_photograph(tmp_path / "a.jpg"))[8, 8], (200, 60, 30), atol=6)


@pytest.mark.parametrize(("white", "brightest"), [(None, 16), (4095, 255)])
def test_twelve_bit_ramp_keeps_its_order_and_is_not_clipped(tmp_path, white, brightest):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    values = np.asarray(load_photograph(tmp_path / "ramp.png", white_value=white))[..., 0].ravel().astype(int)
    assert (np.diff(values) >= 0).all() and values[0] == 0 and values[-1] == brightest
    counts = np.bincount(values)[1:-1]
    assert counts.min() >= 4096 // (brightest + 1) - 17 and counts.max() - counts.min() <= 1  # evenly spread


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("ending", "tolerance"), [("png", 0), ("jpg", 25)])
def test_exif_rotated_photographs_are_upright(tmp_path, orientation, ending, tolerance):
    blocks = np.kron(COLOUR, np.ones((16, 16, 1), dtype=np.uint8))  # which JPEG keeps
    stored = blocks.transpose(1, 0, 2) if orientation > 4 else blocks
    flips = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}
    down, right = flips.get(orientation, (1, 1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored[::down, ::right]).save(tmp_path / f"a.{ending}", exif=exif)
    photograph = load_photograph(tmp_path / f"a.{ending}")
    assert photograph.size == (128, 96)
    np.testing.assert_allclose(np.asarray(photograph, dtype=float)[8::16, 8::16], COLOUR, atol=tolerance)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif"])
def test_first_frame_of_an_animation_counts(tmp_path, name):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert load_photograph(tmp_path / name).getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (1, 40), (40, 3), (8000, 2000)])
def test_odd_sizes_reach_the_model_as_the_same_square(tmp_path, make_processor, size):
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.putpixel((0, 0), (255, 0, 0))
    image.save(tmp_path / "a.png", compress_level=1)
    processor = make_processor()
    pixels = processor(tmp_path / "a.png")["pixel_values"]
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    expected = (expected - processor.image_processor.image_mean) / processor.image_processor.image_std
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["ü/日本.png", "a b/ﺍ😀'\".png", f"{'n' * 200}.png", f"{'d' * 120}/{'é' * 100}/f.png"]
)
def test_any_path_opens(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(COLOUR).save(tmp_path / name)
    assert (np.asarray(load_photograph(str(tmp_path / name))) == COLOUR).all()


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    file = io.BytesIO()
    image = image or Image.fromarray(np.random.default_rng(0).integers(256, size=(48, 64, 3), dtype=np.uint8))
    image.save(file, format=kind, **options)
    return file.getvalue()


def with_size_in_header(png: bytes, width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


FLOATS = Image.fromarray(GREY.astype(np.float32))
BROKEN = {
    "empty.png": (b"", "not an image that Pillow can read: check or remove"),
    "text.jpg": (b"not a picture", "not an image that Pillow can read: check or remove"),
    "cut.png": (encoded("PNG")[:300], "cannot be read whole .*: copy it again or remove it"),
    "cut.jpg": (encoded("JPEG")[:-200], "cannot be read whole .*: copy it again or remove it"),
    "changed.png": (encoded("PNG")[:90] + b"?" + encoded("PNG")[91:], "cannot be read whole .*: copy it again"),
    "bomb.png": (with_size_in_header(encoded("PNG"), 30000, 30000), "too large to open .*: make it smaller, or cut"),
    "bright.tif": (encoded("TIFF", FLOATS), "values from 0 to 235 do not fit the usual white of 1: scale them"),
    "deep.tif": (encoded("TIFF", FLOATS.point(lambda v: v * 1000).convert("I")), "white of 65535: .* the white_value"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_name_with_the_remedy(tmp_path, name):
    data, message = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=f"{name}: .*{message}") as caught:
        load_photograph(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused_by_name_with_the_remedy(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png: is a folder, not a photograph: give the files inside"):
        load_photograph(tmp_path / "folder.png")
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file"):
        load_photograph(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="x{300}: cannot be read whole"):
        load_photograph(tmp_path / ("x" * 300))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_a_file_cut_anywhere_is_refused(kind):
    whole = encoded(kind)
    assert load_photograph(whole).size == (64, 48)
    for share in np.linspace(0, 0.95, 20):
        with pytest.raises(ImageError, match="image in memory: .* remove"):
            load_photograph(whole[: int(share * len(whole))])


def test_damaged_files_raise_nothing_else():
    """Decoders raise nearly anything; a caller has to know one error only."""
    generator, outcomes = np.random.default_rng(0), []
    for kind in ["PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", *(["AVIF"] if features.check("avif") else [])]:
        whole = encoded(kind)
        for _ in range(50):
            damaged = bytearray(whole)
            for place in (len(whole) * generator.random(4) ** 2).astype(int):
                damaged[place] = generator.integers(256)
            try:
                outcomes.append(load_photograph(bytes(damaged)).mode)
            except ImageError:
                outcomes.append("refused")
    assert {*outcomes} == {"RGB", "refused"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, small_clip_folder, photograph) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"), small_clip_folder, photograph)


def test_bad_files_cost_a_batch_nothing_but_themselves(tmp_path, checkpoint, photograph, capsys):
    good = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(good, normals_of(photograph, 0), strict=True):
        image.save(path)
    bad = [tmp_path / name for name in ("cut.png", "empty.png", "bomb.png", "bright.tif", "gone.png")]
    for path in bad[:-1]:
        path.write_bytes(BROKEN[path.name][0])
    assert main(["predict", str(checkpoint), *map(str, good), "--class", "bolt"]) == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    mixed = [bad[0], good[0], bad[1], bad[2], good[1], bad[3], bad[4], good[2]]
    assert main(["predict", str(checkpoint), *map(str, mixed), "--class", "bolt"]) == 1
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in mixed]
    for line in (line for line in lines if Path(line["path"]) in bad):
        assert line["error"].startswith(line["path"] + ": ") and line["score"] is line["label"] is None
    judged = [line for line in lines if Path(line["path"]) in good]
    assert [line["score"] for line in judged] == pytest.approx([line["score"] for line in alone], abs=1e-5)
    assert not any("error" in line for line in judged) and "Traceback" not in output.err


def cut(name: str, share: float):
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(share * len(whole))])

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("model.safetensors", 0.5), r"model\.safetensors is damaged .*: copy the folder again, or fit"),
        (cut("model.safetensors", 0), r"model\.safetensors is damaged"),
        (cut("config.json", 0.5), r"config\.json is damaged .*: copy the folder again"),
        (cut("processor_config.json", 0.5), r"processor_config\.json is damaged"),
        (cut("tokenizer.json", 0.5), r"tokenizer\.json is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors.*give the --output"),
        (
            lambda folder: (folder / "config.json").unlink(),
            r"holds no detector \(no config\.json\): give the --output",
        ),
    ],
)
def test_damaged_checkpoints_are_refused_by_name(tmp_path, checkpoint, capsys, damage, message):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    damage(folder)
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    assert_refused(capsys, ["predict", str(folder), str(tmp_path / "a.png")], f"{folder}.*{message}")


def test_what_is_no_detector_is_refused(tmp_path, small_clip_folder, capsys):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    picture = str(tmp_path / "a.png")
    assert_refused(capsys, ["predict", str(small_clip_folder), picture], "its model_type is 'clip', not 'anople'")
    assert_refused(
        capsys, ["predict", str(tmp_path / "gone"), picture], "gone is no folder, and as a Hub id it cannot"
    )
    assert_refused(capsys, ["predict", picture, picture], r"a\.png holds no detector")


def test_data_that_cannot_be_used_is_refused(tmp_path, checkpoint, capsys):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    (tmp_path / "data/bolt/train/good").mkdir(parents=True)
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    for command in (["fit"], ["evaluate", str(checkpoint)]):
        assert_refused(capsys, [*command, str(tmp_path / "file")], "file is a file: give the folder")
        assert_refused(capsys, [*command, str(tmp_path / "gone")], "gone does not exist: check the path")
    assert_refused(
        capsys, ["fit", str(tmp_path / "data")], "Class 'bolt' has no normal photographs in .*good: put them"
    )
    predict = ["predict", str(checkpoint)]
    assert_refused(capsys, [*predict, str(tmp_path / "data")], "data holds no image files: give photographs")
    named = [*predict, str(tmp_path / "a.png")]
    assert_refused(capsys, [*named, "--class", "screw"], r"class 'screw' is not known .* knows \['bolt', 'nut'\]")
    assert_refused(capsys, [*named, "--output", str(tmp_path / "file")], "file is a file: name a folder")


def assert_refused(capsys, arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    last = [line for line in output.err.splitlines() if line.startswith(f"anople {arguments[0]}: ")]
    assert len(last) == 1 and "Traceback" not in output.err and output.out == ""
    assert re.search(message, last[0])
