"""Images of every odd kind: opened right, or refused by name and with the remedy; several at a time, in their order."""

import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from modeling_anople import ImageError, load_image
from modeling_anople.images_anople import act_on_each, load_mask


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


KINDS = {  # file name: image, how it is saved, the colours to be seen
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
        photograph = load_image(source)
        assert photograph.mode == "RGB"
        np.testing.assert_allclose(np.asarray(photograph, dtype=float), expected, atol=1)


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    Image.new("RGB", (16, 16), (200, 60, 30)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.jpg"))[8, 8], (200, 60, 30), atol=6)


@pytest.mark.parametrize(("white", "brightest"), [(None, 16), (4095, 255)])
def test_twelve_bit_ramp_keeps_its_order_and_is_not_clipped(tmp_path, white, brightest):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    values = np.asarray(load_image(tmp_path / "ramp.png", white_value=white))[..., 0].ravel().astype(int)
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
    photograph = load_image(tmp_path / f"a.{ending}")
    assert photograph.size == (128, 96)
    np.testing.assert_allclose(np.asarray(photograph, dtype=float)[8::16, 8::16], COLOUR, atol=tolerance)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif"])
def test_first_frame_of_an_animation_counts(tmp_path, name):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / name).getpixel((2, 2)) == (255, 0, 0)


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
    assert (np.asarray(load_image(str(tmp_path / name))) == COLOUR).all()


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
        load_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused_by_name_with_the_remedy(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png: is a folder, not a photograph: give the files inside"):
        load_image(tmp_path / "folder.png")
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="x{300}: cannot be read whole"):
        load_image(tmp_path / ("x" * 300))


def test_what_never_ends_or_leads_nowhere_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    stream = "is a pipe, a socket or a device, not a file"
    for source, message in (
        (tmp_path / "pipe.png", f"pipe.png: {stream}"),
        ("/dev/zero", f"/dev/zero: {stream}"),
        (tmp_path / "loop.png", "loop.png: is a symbolic link that leads back to itself"),
        ("", "its name is empty"),
        (tmp_path / "a\0b.png", "null"),
        (tmp_path / "\ud800.png", "surrogates|no such file"),
    ):
        for opener in (load_image, load_mask):
            with pytest.raises(ImageError, match=message):
                opener(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_a_file_cut_anywhere_is_refused(kind):
    whole = encoded(kind)
    assert load_image(whole).size == (64, 48)
    for share in np.linspace(0, 0.95, 20):
        with pytest.raises(ImageError, match="image in memory: .* remove"):
            load_image(whole[: int(share * len(whole))])


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
                outcomes.append(load_image(bytes(damaged)).mode)
            except ImageError:
                outcomes.append("refused")
    assert {*outcomes} == {"RGB", "refused"}


# --- In memory ---


CLEAR = np.where(GREY < 100, 0, 255).astype(np.uint8)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


IN_MEMORY = {
    "uint8": (COLOUR, COLOUR),
    "grey": (GREY[..., None], grey(GREY)),
    "rgba": (np.dstack([COLOUR, CLEAR]), np.where(grey(CLEAR) == 0, 255, COLOUR)),
    "float": (COLOUR / 255, COLOUR),
    "a little outside": (COLOUR / 200, np.clip(COLOUR / 200 * 255, 0, 255)),
    "uint16": (COLOUR.astype(np.uint16) * 257, COLOUR),
    "bool": (GREY > 100, grey((GREY > 100) * 255)),
    "tensor": (torch.from_numpy(COLOUR.copy()).permute(2, 0, 1), COLOUR),
    "half tensor": (torch.from_numpy(GREY / 255)[None].bfloat16(), grey(GREY)),
    "picture": (Image.fromarray(COLOUR), COLOUR),
    "table": ({"path": "a.png", "bytes": png(Image.fromarray(COLOUR))}, COLOUR),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_images_in_memory_have_the_right_colours(name):
    source, expected = IN_MEMORY[name]
    np.testing.assert_allclose(np.asarray(load_image(source), dtype=float), expected, atol=1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (COLOUR.astype(float), "values from 0 to 235 do not fit the usual white of 1: scale them"),
        ((COLOUR / 255 - 0.45) / 0.2, "do not fit the usual white of 1"),
        (COLOUR.astype(np.int64), "int64 says nothing about white: give uint8"),
        (COLOUR[..., :2], r"shape \(6, 8, 2\) is no image: give \(height, width\)"),
        (np.zeros((0, 8), np.uint8), r"shape \(0, 8\) is no image"),
        (torch.zeros(2, 3, 8, 8), r"shape \(2, 3, 8, 8\) is no image"),
        (None, "a NoneType is no photograph: give a path"),
        ([COLOUR], "a list is no photograph: give a path"),
        ({"path": None, "bytes": None}, "image in a table: a NoneType is no photograph"),
    ],
)
def test_images_in_memory_that_mean_something_else_are_refused(source, message):
    with pytest.raises(ImageError, match=message):
        load_image(source)


NOT_FINITE = COLOUR / 255
NOT_FINITE[2, 3, 1] = np.nan


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (NOT_FINITE, "values that are not finite"),
        (np.where(GREY > 200, np.inf, GREY / 255), "values that are not finite"),
        (torch.from_numpy(NOT_FINITE).permute(2, 0, 1).half(), "values that are not finite"),
        (Image.fromarray(NOT_FINITE[..., 1].astype(np.float32)), "values that are not finite"),
        (encoded("TIFF", Image.fromarray(NOT_FINITE[..., 1].astype(np.float32))), "values that are not finite"),
        (Image.new("RGB", (0, 0)), r"has no pixels \(0 x 0\)"),
        (Image.new("F", (0, 5)), r"has no pixels \(0 x 5\)"),
        (np.zeros((5, 0, 3), np.uint8), "is no image"),
    ],
    ids=["array", "infinite", "tensor", "picture", "file", "none by none", "none by five", "no columns"],
)
def test_what_holds_no_number_or_no_pixel_is_refused_as_image_and_as_mask(source, message):
    for opener in (load_image, load_mask):
        with pytest.raises(ImageError, match=message):
            opener(source)
    with pytest.raises(ImageError, match=message):
        load_image(source, white_value=4095)


MARKED = GREY > 200
MASKS = {
    "ones.png": Image.fromarray(MARKED.astype(np.uint8)),
    "labels.png": Image.fromarray(MARKED.astype(np.uint16)),
    "labels.tif": Image.fromarray(MARKED.astype(np.int32) * 3),
    "shares.tif": Image.fromarray(MARKED.astype(np.float32) * 0.01),
    "bits.png": Image.fromarray(MARKED),
    "clear.png": Image.fromarray(np.dstack([np.full_like(COLOUR, 200), MARKED * np.uint8(255)])),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_mark_whatever_is_above_zero(tmp_path, name):
    MASKS[name].save(tmp_path / name)
    assert (load_mask(tmp_path / name, size=(6, 8)) == MARKED).all()


# --- Several at a time ---


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_items_are_acted_on_at_once_and_come_in_order(four_threads):
    second = threading.Event()

    def act(number: int) -> int:
        if number == 0:
            assert second.wait(timeout=10)  # ends after the next one
        else:
            second.set()
        return 10 * number

    assert act_on_each(act, [0, 1, 2, 3, 4, 5]) == [0, 10, 20, 30, 40, 50]


def test_with_one_thread_they_are_acted_on_here():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert set(act_on_each(lambda _: threading.current_thread(), "ab")) == {threading.current_thread()}
    finally:
        torch.set_num_threads(before)


def test_an_error_is_raised_to_the_caller(four_threads):
    with pytest.raises(ZeroDivisionError):
        act_on_each(lambda number: 1 // number, [2, 1, 0, 4])
