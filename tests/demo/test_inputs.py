"""Files that people send, looked at before they are opened."""

from pathlib import Path

import gradio as gr
import pytest

from demo.inputs import check_count, images_among, read_image, refusals
from demo.session import Session

from ..test_images import encoded, with_size_in_header


def test_an_image_is_read_under_its_name_without_its_folder(nut):
    assert read_image(nut) == {"path": "nut.png", "bytes": Path(nut).read_bytes()}


@pytest.mark.parametrize(
    "name, message",
    [
        ("text.png", "text.png is not a photograph that can be read"),
        ("huge.png", "huge.png is too large: at most 50 million pixels"),  # Pillow itself will not open it
        ("large.png", r"large.png is too large \(9000 x 9000\)"),
        ("gone.png", "gone.png is no longer here"),
    ],
)
def test_what_is_no_image_is_refused_and_no_folder_is_told(tmp_path, name, message):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(with_size_in_header(encoded("PNG"), 20000, 20000))
    (tmp_path / "large.png").write_bytes(with_size_in_header(encoded("PNG"), 9000, 9000))
    with pytest.raises(ValueError, match=message) as refusal:
        read_image(tmp_path / name)
    assert str(tmp_path) not in str(refusal.value)


def test_a_refusal_is_an_error_for_programs_and_kept_for_its_place_on_the_page(session: Session):
    with pytest.raises(gr.Error) as refusal, refusals(session):
        raise ValueError("<b> is no name: give another.")
    assert session.refusal == "<b> is no name: give another." and not refusal.value.visible  # nothing pops up
    assert refusal.value.message == "&lt;b&gt; is no name: give another."
    with pytest.raises(gr.Error) as refusal, refusals():  # a tool, which has no page
        raise ValueError("no")
    assert refusal.value.visible


@pytest.mark.parametrize("files, message", [(None, "give 1 to 2"), ([], "give 1 to 2"), (["a"] * 3, "at most 2")])
def test_too_few_or_too_many_files_are_refused(files, message):
    assert check_count(["a", "b"], 2) == ["a", "b"]
    with pytest.raises(ValueError, match=message):
        check_count(files, 2)


def test_images_of_a_folder_are_told_by_their_endings_and_sorted_by_name():
    names = ["b/2.png", "notes.txt", "a/3.JPG", ".hidden.png", "c/1.webp"]
    assert images_among(names) == ["c/1.webp", "b/2.png", "a/3.JPG"]
