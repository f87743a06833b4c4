"""The demo shows why: the worst region beside the nearest good place, and the line in words."""

from pathlib import Path

import pytest
from PIL import Image

from demo.inspect_tab import (
    CROP_SIDE,
    crop_around,
    explain_last,
    explanation_html,
    inspect_image,
    inspect_images,
    show_row,
)
from demo.judge_tab import add_normal_image
from demo.session import PREDICT_PRODUCT, start_session
from demo.teach_tab import teach_product
from demo.transfer import pack_detector, unpack_detector
from modeling_anople.explanation_anople import explain

from .demo_app import session_of
from .detectors import write_detector, write_screws


@pytest.fixture(scope="module")
def start(tmp_path_factory, small_clip_folder, photograph):
    return start_session(str(write_detector(tmp_path_factory.mktemp("why") / "d", small_clip_folder, photograph)))


@pytest.fixture
def session(start):
    return session_of(start)


@pytest.fixture
def files(tmp_path, photograph) -> list[str]:
    return write_screws(tmp_path, photograph)


def test_the_explanation_is_the_detectors_own_with_the_photograph_it_is_nearest_to(session, files):
    teach_product(session, "screw", files[:3])
    inspection = inspect_image(session, files[3], "screw")
    why = explain_last(session)
    with Image.open(files[3]) as picture:
        known = explain(session.model, session.processor, picture.convert("RGB"), "screw")
    assert why.explanation.box == known.box and why.explanation.nearest_index == known.nearest_index
    assert why.nearest_name == f"screw {known.nearest_index}.png" and why.nearest.size == (CROP_SIDE, CROP_SIDE)
    side = "past" if inspection.score > 0.5 else "below"
    assert f"{inspection.score:.2f} is {abs(inspection.score - 0.5):.2f} {side} the line of screw, 0.50." in why.words
    assert why.numbers["words"] == why.words and explanation_html(why).count("<img") == 2


def test_the_line_is_the_one_the_person_chose(session, files):
    teach_product(session, "screw", files[:3])
    session.threshold = 0.01
    inspect_image(session, files[3], "screw")
    assert "past the line of screw, 0.01" in explain_last(session).words


def test_words_stand_alone_where_no_photograph_is_at_hand(session, files):
    inspect_image(session, files[0], "nut")  # taught elsewhere
    why = explain_last(session)
    assert why.nearest is None and "nearest to one in good photograph" in why.words
    assert explanation_html(why).count("<img") == 1


def test_photographs_added_later_are_found_at_their_place(session, files):
    add_normal_image(session, "nut", files[0])
    assert [session.normal_image("nut", index) is not None for index in range(5)] == [False, False, False, True, False]
    assert session.normal_image("nut", 3).name == "screw 0.png"
    inspect_image(session, files[0], "nut")
    assert explain_last(session).nearest_name == "screw 0.png"


def test_one_session_keeps_its_photographs_from_another_and_a_loaded_detector_has_none(session, start, files):
    teach_product(session, "screw", files)
    assert start.normal_images == session_of(start).normal_images == {}
    unpack_detector(session, pack_detector(session))
    assert session.normal_images == {} and not (session.folder / "normals").exists()
    inspect_image(session, files[0], "screw")
    assert explain_last(session).nearest is None


def test_a_row_of_the_table_is_explained_as_it_was_judged(session, files):
    session.inspections = list(inspect_images(session, files[:2], "nut"))
    inspect_image(session, files[3], PREDICT_PRODUCT)

    class Row:
        row_value = [1]

    show_row(session, Row())
    assert session.last_path == files[0] and session.last_requested == "nut"
    assert explain_last(session).explanation.class_name == "nut"


def test_without_an_answer_there_is_nothing_to_explain(session):
    with pytest.raises(ValueError, match="no photograph yet"):
        explain_last(session)


def test_a_name_in_the_explanation_is_escaped(session, files, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    path.write_bytes(Path(files[0]).read_bytes())
    teach_product(session, "screw", [str(path)])
    inspect_image(session, files[1], "screw")
    page = explanation_html(explain_last(session))
    assert "onerror" in page and "<img src=x" not in page


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (90, 70, 100, 80), (0, 0, 100, 80), (40, 30, 44, 34), None])
def test_a_cut_out_is_a_square_that_shows_the_box_with_its_outline(box):
    picture = Image.new("RGB", (50, 40), "red")
    patch = crop_around(picture, box, (100, 80))
    assert patch.size == (CROP_SIDE, CROP_SIDE)
    colours = {colour for _, colour in patch.getcolors()}
    assert ((255, 255, 255) in colours) == (box is not None)
