"""Properties of images and tiles that hold whatever comes: any size, mode and aspect, any map."""

import numpy as np
import pytest
import torch
from PIL import Image


hypothesis = pytest.importorskip("hypothesis", reason="of the dev extra")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as draw  # noqa: E402

from modeling_anople import load_image  # noqa: E402
from modeling_anople.tiling_anople import LARGEST_COUNT, blend_maps, plan_tiles  # noqa: E402

from .detectors import detector_of, fit  # noqa: E402


CALM = {"deadline": None, "derandomize": True, "database": None}
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"]
sides = draw.integers(1, 3000)
tilings = draw.one_of(draw.just("auto"), draw.tuples(draw.integers(1, 9), draw.integers(1, 9)))


def picture(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    """Draw noise of any mode, over the whole range that the mode has."""
    generator, shape = np.random.default_rng(seed), size[::-1]
    if mode == "F":
        return Image.fromarray(generator.random(shape, dtype=np.float32))
    if mode in ("I", "I;16"):
        values = generator.integers(0, 65_536, shape)
        return Image.fromarray(values.astype(np.int32 if mode == "I" else np.uint16))
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = generator.integers(0, 256, (*shape, bands), dtype=np.uint8)
    if mode in ("1", "P"):
        return Image.fromarray(values[..., 0]).convert(mode)
    return Image.merge(mode, [Image.fromarray(values[..., band]) for band in range(bands)])


@settings(max_examples=100, **CALM)
@given(height=sides, width=sides, tiling=tilings, side=draw.sampled_from([16, 32, 224, 518]))
def test_tiles_cover_every_pixel_are_square_and_bounded(height, width, tiling, side):
    layout = plan_tiles((height, width), tiling, side)
    if layout is None:
        assert tiling == "auto" and max(height, width) <= 2 * side
        return
    seen = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in layout.boxes:
        assert right - left == bottom - top == layout.side
        seen[max(0, top) : bottom, max(0, left) : right] = True
    assert seen.all() and len(set(layout.boxes)) == len(layout.boxes)
    assert len(layout.boxes) <= (LARGEST_COUNT if tiling == "auto" else tiling[0] * tiling[1])


@settings(max_examples=30, **CALM)
@given(height=draw.integers(1, 400), width=draw.integers(1, 400), tiling=tilings, value=draw.floats(0, 1, width=32))
def test_blending_a_constant_gives_that_constant_and_nothing_leaves_its_range(height, width, tiling, value):
    layout = plan_tiles((height, width), tiling, 16)
    if layout is None:
        return
    count = len(layout.boxes)
    blended = blend_maps(torch.full((2, count, 16, 16), value), layout)
    assert blended.shape[0] == 2 and torch.isfinite(blended).all()
    torch.testing.assert_close(blended, torch.full_like(blended, value), atol=1e-6, rtol=1e-5)
    noise = torch.rand(1, count, 16, 16, generator=torch.Generator().manual_seed(count))
    blended = blend_maps(noise, layout)
    assert blended.min() >= noise.min() - 1e-6 and blended.max() <= noise.max() + 1e-6


@settings(max_examples=50, **CALM)
@given(
    mode=draw.sampled_from(MODES), width=draw.integers(1, 90), height=draw.integers(1, 90), seed=draw.integers(0, 99)
)
def test_any_mode_becomes_rgb_of_its_own_size(mode, width, height, seed):
    opened = load_image(picture(mode, (width, height), seed))
    assert opened.mode == "RGB" and opened.size == (width, height)


@settings(max_examples=30, **CALM)
@given(white=draw.sampled_from([255, 1023, 4095, 16383, 65535]), seed=draw.integers(0, 99))
def test_greyscale_is_scaled_by_a_fixed_rule_never_by_the_photograph(white, seed):
    values = np.sort(np.random.default_rng(seed).integers(0, white + 1, 300).astype(np.uint16))[None]
    grey = np.asarray(load_image(values, white_value=white))[0, :, 0].astype(int)
    assert np.array_equal(grey, np.rint(255 * (values[0] / white)).astype(int))
    part = np.asarray(load_image(values[:, :150], white_value=white))[0, :, 0]
    assert np.array_equal(part, grey[:150])  # what else is on the photograph does not matter


def test_a_twelve_bit_ramp_keeps_its_steps():
    ramp = np.arange(4096, dtype=np.uint16)[None]
    grey = np.asarray(load_image(ramp, white_value=4095))[0, :, 0].astype(int)
    assert set(np.diff(grey)) == {0, 1} and grey[0] == 0 and grey[-1] == 255 and len(set(grey)) == 256


@pytest.fixture
def detect(make_model, make_processor, photograph):
    processor = make_processor()
    return detector_of(fit(make_model(), processor, photograph), processor)


def test_any_size_mode_and_aspect_gives_a_finite_map_of_exactly_the_inputs_size(detect):
    @settings(max_examples=8, **CALM)
    @given(
        mode=draw.sampled_from(MODES),
        width=draw.integers(1, 90),
        height=draw.integers(1, 90),
        tiling=draw.sampled_from([None, "auto", (1, 2), (2, 2)]),
    )
    def check(mode, width, height, tiling):
        result = detect(picture(mode, (width, height), width), class_name="bolt", tiling=tiling)
        assert result["error"] is None and np.isfinite(result["score"])
        assert result["anomaly_map"].shape == (height, width) and np.isfinite(result["anomaly_map"]).all()
        assert 0 <= result["anomaly_map"].min() <= result["anomaly_map"].max() <= 1

    check()
