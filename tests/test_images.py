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
from modeling_anople.data.drawn_products import PRODUCTS, draw_product
from modeling_anople.images_anople import act_on_each, heif_is_installed, load_ignore_mask, load_mask


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


# --- More than 8 bits for each channel, as cameras write them ---


TWELVE = (COLOUR.astype(np.uint16) * 16 + COLOUR // 16).astype(np.uint16)  # 0 to 4095 in files of 16 bits


def sixteen_bit_png(values: np.ndarray, transparent: tuple | None = None) -> bytes:
    """Write a PNG of 16 bits for each of 1 to 4 channels (Pillow writes grey values alone), each row filtered as another one."""
    height, width, channels = values.shape
    rows, step = values.astype(">u2").tobytes(), 2 * channels
    lines, before = b"", bytes(step * width)
    for number in range(height):
        line = rows[number * step * width : (number + 1) * step * width]
        if number % 2:  # less what is above
            lines += b"\x02" + bytes((here - there) % 256 for here, there in zip(line, before, strict=True))
        else:  # less what is to the left
            lines += b"\x01" + bytes((here - there) % 256 for here, there in zip(line, bytes(step) + line))
        before = line

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    clear = b"" if transparent is None else chunk(b"tRNS", struct.pack(f">{channels}H", *transparent))
    return b"\x89PNG\r\n\x1a\n" + header + clear + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, order: str = "<", planes: int = 1, **tags: int) -> bytes:
    """Write a TIFF of one strip (or one for each plane) by hand; `tags` are its numbers of photometric and so on."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    stored = np.moveaxis(values, -1, 0) if planes == 2 else values
    data = stored.astype(values.dtype.newbyteorder(order)).tobytes()
    numbers = {256: width, 257: height, 259: 1, 262: 2 if channels > 2 else 1, 277: channels, 278: height, 284: planes}
    numbers |= {{"photometric": 262, "orientation": 274, "bits": 258}[name]: value for name, value in tags.items()}
    strips = channels if planes == 2 else 1
    count = len(numbers) + (258 not in numbers) + 2 + (channels == 4)
    extra = 8 + 2 + 12 * count + 4
    size = len(data) // strips
    starts = extra + 2 * channels + 8 * strips
    entries = {tag: (3, 1, struct.pack(order + "HH", value, 0)) for tag, value in numbers.items()}
    wide = struct.pack(order + f"{channels}H", *[bits] * channels)
    if 258 not in entries:
        entries[258] = (3, channels, struct.pack(order + "I", extra) if channels > 2 else (wide + bytes(4))[:4])
    offsets = struct.pack(order + f"{strips}I", *(starts + size * number for number in range(strips)))
    lengths = struct.pack(order + f"{strips}I", *[size] * strips)
    place = extra + 2 * channels
    entries[273] = (4, strips, offsets if strips == 1 else struct.pack(order + "I", place))
    entries[279] = (4, strips, lengths if strips == 1 else struct.pack(order + "I", place + 4 * strips))
    if channels == 4:
        entries[338] = (3, 1, struct.pack(order + "HH", 0, 0))  # a fourth channel of no meaning
    table = b"".join(struct.pack(order + "HHI", tag, *entries[tag][:2]) + entries[tag][2] for tag in sorted(entries))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "I", 8) + struct.pack(order + "H", count) + table + bytes(4)
    return head + wide + offsets + lengths + data


def ppm(values: np.ndarray, white: int) -> bytes:
    kind = b"P6" if values.shape[-1] == 3 else b"P5"
    return kind + f" {values.shape[1]} {values.shape[0]} {white}\n".encode() + values.astype(">u2").tobytes()


OPAQUE, EMPTY = np.full((6, 8, 1), 4095, np.uint16), np.zeros((6, 8, 1), np.uint16)
DEEP = {  # a 12-bit camera's values: file, colours to be seen with white value 4095
    "grey.png": (sixteen_bit_png(TWELVE[..., :1]), grey(COLOUR[..., 0])),
    "grey alpha.png": (sixteen_bit_png(np.concatenate([TWELVE[..., :1], OPAQUE], -1)), grey(COLOUR[..., 0])),
    "rgb.png": (sixteen_bit_png(TWELVE), COLOUR),
    "rgba.png": (sixteen_bit_png(np.concatenate([TWELVE, OPAQUE], -1)), COLOUR),
    "unused.png": (sixteen_bit_png(np.concatenate([TWELVE, EMPTY], -1)), COLOUR),
    "clear.png": (
        sixteen_bit_png(TWELVE, tuple(TWELVE[2, 3].tolist())),
        np.where((COLOUR[2, 3] == COLOUR).all(-1)[..., None], 255, COLOUR),
    ),
    "grey.tif": (tiff(TWELVE[..., :1]), grey(COLOUR[..., 0])),
    "zero is white.tif": (tiff(4095 - TWELVE[..., :1], photometric=0), grey(COLOUR[..., 0])),
    "rgb.tif": (tiff(TWELVE), COLOUR),
    "motorola.tif": (tiff(TWELVE, ">"), COLOUR),
    "four.tif": (tiff(np.concatenate([TWELVE, EMPTY], -1)), COLOUR),
    "turned.tif": (tiff(TWELVE[::-1, ::-1], orientation=3), COLOUR),
    "rgb.ppm": (ppm(TWELVE, 65535), COLOUR),
    "said.ppm": (ppm(TWELVE, 4095), COLOUR),
    "said.pgm": (ppm(TWELVE[..., :1], 4095), grey(COLOUR[..., 0])),
    "array": (TWELVE, COLOUR),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_white_value_holds_for_every_kind_of_deep_file(tmp_path, name, caplog):
    data, expected = DEEP[name]
    path = data
    if isinstance(data, bytes):
        path = tmp_path / name
        path.write_bytes(data)
    np.testing.assert_allclose(np.asarray(load_image(path, white_value=4095), dtype=float), expected, atol=1)
    assert not caplog.messages
    dark = np.asarray(load_image(path), dtype=float)
    if name.startswith("said"):  # white stands in the file
        np.testing.assert_allclose(dark, expected, atol=1)
    elif name != "zero is white.tif":
        assert (
            dark[expected < 255].max() <= 16
            and "no value is above" in caplog.text
            and "4095 for 12 bits" in caplog.text
        )


@pytest.mark.parametrize("kind", ["tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_colours_keep_all_their_bits(tmp_path, kind):
    """Pillow writes no 16-bit colours: its reader of compressed files is met by grey values, and by the shared case."""
    Image.fromarray(TWELVE[..., 0]).save(tmp_path / "a.tif", compression=kind)
    seen = np.asarray(load_image(tmp_path / "a.tif", white_value=4095), dtype=float)
    np.testing.assert_allclose(seen, grey(COLOUR[..., 0]), atol=1)


def test_sixteen_bits_that_are_all_used_are_seen_as_ever(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(sixteen_bit_png(COLOUR.astype(np.uint16) * 257))
    assert (np.asarray(load_image(tmp_path / "a.png")) == COLOUR).all() and not caplog.messages
    assert (np.asarray(load_image(tmp_path / "a.png", white_value=4095))[COLOUR > 16] == 255).all()
    assert "are above the white value 4095 and seen as white" in caplog.text
    whole = 65535 - COLOUR[..., :1].astype(np.uint16) * 257
    (tmp_path / "a.tif").write_bytes(tiff(whole, photometric=0))
    assert (np.asarray(load_image(tmp_path / "a.tif")) == grey(COLOUR[..., 0])).all()


def test_deep_colours_that_no_white_value_reaches_are_refused(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.jp2", irreversible=False)
    assert (np.asarray(load_image(tmp_path / "a.jp2", white_value=4095)) == COLOUR).all()  # it has 8 bits
    data = bytearray((tmp_path / "a.jp2").read_bytes())
    data[data.find(b"\xff\x4f\xff\x51") + 42] = 11  # it says that it has 12
    (tmp_path / "b.jp2").write_bytes(data)
    (tmp_path / "planes.tif").write_bytes(tiff(TWELVE, planes=2))
    for name, white in (("b.jp2", 4095), ("planes.tif", 4095), ("planes.tif", None)):
        with pytest.raises(ImageError, match=f"{name}: holds more than 8 bits .*: save it as a 16-bit PNG"):
            load_image(tmp_path / name, white_value=white)


def test_a_fourth_channel_of_zeros_is_unused_and_not_clear():
    empty = np.zeros((6, 8, 1), np.uint8)
    for source in (np.dstack([COLOUR, empty]), Image.fromarray(np.dstack([COLOUR, empty]))):
        assert (np.asarray(load_image(source)) == COLOUR).all()


def test_the_largest_page_of_a_tiff_is_taken_and_named(tmp_path, caplog):
    pages = [Image.new("RGB", (4, 3), "red"), Image.fromarray(COLOUR), Image.new("RGB", (2, 2), "lime")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert (np.asarray(load_image(tmp_path / "a.tif")) == COLOUR).all()
    assert f"{tmp_path / 'a.tif'}: has 3 pages; page 2 is taken (8 x 6)." in caplog.text


def test_heic_and_raw_files_are_refused_with_what_converts_them(tmp_path):
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    for name in ("a.heic", "b.jpg"):
        (tmp_path / name).write_bytes(heic)
        wanted = (
            "cannot be read|not an image"
            if heif_is_installed()
            else "HEIC photograph: pip install pillow-heif, or convert"
        )
        with pytest.raises(ImageError, match=wanted):
            load_image(tmp_path / name)
    encoded_preview = encoded("TIFF", Image.fromarray(COLOUR))
    (tmp_path / "a.NEF").write_bytes(encoded_preview)  # Pillow reads the small picture inside
    with pytest.raises(ImageError, match=r"a\.NEF: is a raw file of a camera: export it as 16-bit TIFF or PNG"):
        load_image(tmp_path / "a.NEF")


def behind_filters(photograph: Image.Image, pattern: str) -> np.ndarray:
    """What a color sensor sees of a photograph: of each pixel one color alone, less red and blue than green."""
    colors = np.asarray(photograph) * np.array([0.6, 1.0, 0.7])
    seen = np.zeros(colors.shape[:2], dtype=np.uint8)
    for place, color in enumerate(pattern):
        row, column = divmod(place, 2)
        seen[row::2, column::2] = colors[row::2, column::2, "RGB".index(color)]
    return seen


@pytest.mark.parametrize("pattern", ["RGGB", "GRBG", "BGGR"])
def test_what_a_color_sensor_saw_is_no_grey_photograph(tmp_path, pattern):
    seen = behind_filters(draw_product("gear", np.random.default_rng(0))[0], pattern)
    Image.fromarray(seen).save(tmp_path / "eight.png")
    Image.fromarray(seen.astype(np.uint16) * 16).save(tmp_path / "twelve.tif")
    for source, white_value in [(seen, None), (tmp_path / "eight.png", None), (tmp_path / "twelve.tif", 4095)]:
        with pytest.raises(ImageError, match="a Bayer pattern.*cv2.COLOR_BayerRG2RGB"):
            load_image(source, white_value=white_value)


def test_grey_photographs_and_fine_patterns_are_no_mosaics_of_colors():
    lines = np.arange(256)
    patterns = [
        200 * ((lines[:, None] % period < 1) | (lines % period < 1)) for period in (3, 4, 5, 6, 8)
    ]  # grids, exact to the pixel
    patterns += [200 * ((lines[:, None] // side + lines // side) % 2) for side in (1, 2, 3, 4)]  # checkerboards
    patterns += [100 + 20 * (lines[:, None] % 2) + 0 * lines]  # a camera that reads every second row first
    patterns += [np.random.default_rng(0).integers(256, size=(256, 256))]
    photographs = [draw_product(name, np.random.default_rng(1))[0].convert("L") for name in PRODUCTS]
    halved = [photograph.resize((128, 128), Image.Resampling.NEAREST) for photograph in photographs]
    for grey in [*patterns, *photographs, *halved]:
        load_image(np.asarray(grey).astype(np.uint8))


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


ROWS, COLUMNS = np.mgrid[:64, :80]
MARKED = np.hypot(ROWS - 30, COLUMNS - 44) < 14
SOFT = Image.fromarray(MARKED.astype(np.uint8) * 255).resize((40, 32), Image.Resampling.BOX).resize((80, 64))
NOISE = np.random.default_rng(0).integers(3, size=MARKED.shape, dtype=np.uint8)
BAR = (ROWS < 8) & (COLUMNS < 20)


def numbered(values: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.frombytes("P", values.shape[::-1], values.astype(np.uint8).tobytes())
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


def numbered_with_alpha(values: np.ndarray, colours: list[int]) -> Image.Image:
    """A picture of mode PA, which no file that Pillow writes has."""
    image = Image.new("PA", values.shape[::-1])
    both = np.dstack([values.astype(np.uint8), np.full(values.shape, 255, np.uint8)])
    image.frombytes(both.tobytes())
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


MASKS = {  # file name: picture, what it marks
    "ones.png": (Image.fromarray(MARKED.astype(np.uint8)), MARKED),
    "labels.png": (Image.fromarray(MARKED.astype(np.uint16)), MARKED),
    "labels.tif": (Image.fromarray(MARKED.astype(np.int32) * 3), MARKED),
    "shares.tif": (Image.fromarray(MARKED.astype(np.float32) * 0.01), MARKED),
    "two labels.png": (Image.fromarray(MARKED + 2 * BAR.astype(np.uint8)), MARKED | BAR),
    "grey labels.png": (Image.fromarray(MARKED * np.uint8(200) + BAR * np.uint8(80)), MARKED | BAR),
    "loco.png": (Image.fromarray(MARKED * np.uint8(236)), MARKED),
    "deep.png": (Image.fromarray(MARKED.astype(np.uint16) * 65535), MARKED),
    "bits.png": (Image.fromarray(MARKED), MARKED),
    "noise.png": (Image.fromarray(np.where(MARKED, 255, NOISE)), MARKED),
    "red.png": (Image.fromarray(np.dstack([MARKED * np.uint8(255), 0 * NOISE, 0 * NOISE])), MARKED),
    "clear.png": (Image.fromarray(np.dstack([np.full((64, 80, 3), 200, np.uint8), MARKED * np.uint8(255)])), MARKED),
    "black on clear.png": (
        Image.fromarray(np.dstack([np.zeros((64, 80, 3), np.uint8), MARKED * np.uint8(255)])),
        MARKED,
    ),
    "unused alpha.png": (
        Image.fromarray(np.dstack([np.repeat(MARKED[..., None] * np.uint8(255), 3, -1), 0 * NOISE])),
        MARKED,
    ),
    "numbers.png": (numbered(MARKED, [0, 0, 0, 128, 0, 0]), MARKED),
    "coloured ground.png": (numbered(MARKED, [68, 1, 84, 253, 231, 37]), MARKED),
    "white ground.png": (numbered(MARKED, [255, 255, 255, 0, 0, 0]), MARKED),
    "void.png": (numbered(np.where(BAR, 255, MARKED), [0, 0, 0, 128, 0, 0]), MARKED),
    "low numbers and void.png": (Image.fromarray(np.where(BAR, 255, MARKED * np.uint8(2))), MARKED),
    "grey.gif": (Image.fromarray(MARKED * np.uint8(255)), MARKED),
    "grey ramp.png": (
        numbered(MARKED * np.uint8(255), [value for grey in range(256) for value in (grey,) * 3]),
        MARKED,
    ),
    "numbers and alpha.tif": (numbered_with_alpha(MARKED, [0, 0, 0, 128, 0, 0]), MARKED),
    "grey ramp and alpha.tif": (
        numbered_with_alpha(MARKED * np.uint8(255), [value for grey in range(256) for value in (grey,) * 3]),
        MARKED,
    ),
    "nothing.png": (Image.fromarray(0 * NOISE), MARKED & False),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_mark_what_their_kind_means(tmp_path, name):
    image, expected = MASKS[name]
    if image.mode == "PA":
        assert (load_mask(image, size=(64, 80)) == expected).all()
        return
    image.save(tmp_path / name)
    assert (load_mask(tmp_path / name, size=(64, 80)) == expected).all()


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {"quality": 50}), ("b.jpg", {"quality": 95}), ("c.png", {})])
def test_soft_masks_mark_from_half_of_white_on(tmp_path, name, options):
    image = SOFT if name == "c.png" else Image.fromarray(MARKED * np.uint8(255))
    image.save(tmp_path / name, **options)
    mask = load_mask(tmp_path / name)
    assert (mask & MARKED).sum() / (mask | MARKED).sum() > 0.9


@pytest.mark.parametrize("name", ["faint.png", "faint.jpg", "deep.png", "shares.tif", "numbers.png", "folder"])
def test_whatever_is_above_0_is_ignored(tmp_path, name):
    grey = np.where(MARKED, 255, np.where(BAR, 40, 0)).astype(np.uint8)
    image = {
        "deep.png": Image.fromarray(grey.astype(np.uint16)),
        "shares.tif": Image.fromarray(grey / np.float32(255)),
        "numbers.png": numbered(grey, [255, 255, 255] + [0] * 765),
    }.get(name, Image.fromarray(grey))
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        image.save(path / "0.png")
    else:
        image.save(path, **({"quality": 95} if name.endswith("jpg") else {}))
    ignored = load_ignore_mask(path, (64, 80))
    assert ignored[MARKED | BAR].all() and (name.endswith("jpg") or not ignored[~(MARKED | BAR)].any())
    assert (load_ignore_mask(path) == ignored).all()


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_ignore_mask_on_stored_pixels_is_turned_along_with_its_photograph(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(MARKED * np.uint8(40))
    stored.convert("RGB").save(tmp_path / "photo.png", exif=exif)
    stored.save(tmp_path / "mask.png")
    upright = load_image(tmp_path / "photo.png")
    given = {"size": upright.size[::-1], "photograph": tmp_path / "photo.png"}
    if orientation == 3:
        with pytest.raises(ImageError, match="turned by its EXIF orientation"):
            load_ignore_mask(tmp_path / "mask.png", **given)
    else:
        assert (load_ignore_mask(tmp_path / "mask.png", **given) == (np.asarray(upright)[..., 0] > 0)).all()


@pytest.mark.parametrize("white", [255, 4095])
def test_a_loaded_picture_of_a_ppm_opens(white):
    values = np.arange(36).reshape(3, 4, 3) * white // 35
    data = f"P6 4 3 {white}\n".encode() + values.astype(np.uint8 if white == 255 else ">u2").tobytes()
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    found = np.asarray(load_image(loaded)).astype(int)
    assert np.abs(found - values * 255 / white).max() <= 1


def test_a_folder_of_masks_marks_what_any_of_them_does(tmp_path):
    for number, part in enumerate((MARKED, BAR)):
        Image.fromarray(part * np.uint8(255)).save(tmp_path / f"{number}.png")
    assert (load_mask(tmp_path) == MARKED | BAR).all()
    assert (load_mask({"path": str(tmp_path), "bytes": None}, size=(64, 80)) == MARKED | BAR).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_on_stored_pixels_is_turned_along_with_its_photograph(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(MARKED * np.uint8(255))
    stored.convert("RGB").save(tmp_path / "photo.png", exif=exif)
    photograph = load_image(tmp_path / "photo.png")
    upright = np.asarray(photograph)[..., 0] > 0
    stored.save(tmp_path / "stored.png")
    Image.fromarray(upright).save(tmp_path / "upright.png")
    stored.save(tmp_path / "said.png", exif=exif)
    size = photograph.size[::-1]
    for name in ("stored.png", "upright.png", "said.png"):
        given = {"size": size, "photograph": tmp_path / "photo.png"}
        if name != "said.png" and 2 <= orientation <= 4:  # either way round it has this size
            with pytest.raises(ImageError, match=r"turned by its EXIF orientation .*: save the photograph upright"):
                load_mask(tmp_path / name, **given)
        else:
            assert (load_mask(tmp_path / name, **given) == upright).all()


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
