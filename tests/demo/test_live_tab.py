"""A camera is watched: its frames are judged as photographs are, and nothing of them is kept."""

import base64
import io
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from demo.inputs import read_bytes
from demo.inspect_tab import inspect_source
from demo.live_tab import FRAME, inspect_frame

from ..test_images import encoded, with_size_in_header


def framed(content: bytes) -> str:
    return FRAME + base64.b64encode(content).decode()


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def test_a_frame_is_judged_as_a_photograph_and_leaves_nothing_behind(session, nut):
    content = jpeg(Image.open(nut))
    expected = inspect_source(session, read_bytes("This frame", content), "nut")
    verdict, picture = inspect_frame(framed(content), "nut", session)
    assert expected.words in verdict and f'class="verdict {expected.verdict}"' in verdict
    shown = Image.open(io.BytesIO(base64.b64decode(picture.split("base64,")[1].split('"')[0])))
    assert shown.size == Image.open(nut).size
    assert session.last_path is None and session.inspections == [] and not list(session.folder.rglob("*"))
    in_pieces = " ".join(framed(content)[start : start + 60] for start in range(0, len(framed(content)), 60))
    assert expected.words in inspect_frame(in_pieces, "nut", session)[0]


def test_a_frame_that_shows_no_part_says_so_and_is_not_called_normal(session, nut):
    dark = Image.eval(Image.open(nut).convert("RGB"), lambda value: value // 40)
    verdict, _ = inspect_frame(framed(jpeg(dark)), "nut", session)
    assert "anomalous (too dark)" in verdict and 'class="verdict anomalous"' in verdict


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "no frame of a camera"),
        ("file:///etc/passwd", "no frame of a camera"),
        (FRAME + "???", "no frame of a camera"),
        (FRAME + "A" * (8 * 2**20), "no frame of a camera"),
        (framed(b"no picture"), "This frame is not a photograph"),
        (framed(with_size_in_header(encoded("PNG"), 9000, 9000)), "This frame is too large"),
    ],
    ids=["none", "a path", "no letters", "long", "no picture", "large"],
)
def test_what_is_no_frame_is_refused(session, frame, message):
    with pytest.raises(gr.Error, match=message):
        inspect_frame(frame, "nut", session)
    assert message in session.refusal


def test_a_product_that_is_gone_is_said(session, nut):
    with pytest.raises(gr.Error, match="screw is not known here"):
        inspect_frame(framed(Path(nut).read_bytes()), "screw", session)
