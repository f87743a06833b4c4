"""Inspecting images, one and many: the verdict, the reason for its score, the table and the zip file."""

import base64
import csv
import io
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from demo.inputs import MAX_IMAGES
from demo.inspect_tab import (
    COLUMNS,
    CROP_SIDE,
    PAGE_COLUMNS,
    crop_around,
    draw_heat_map,
    explain_last,
    explanation_html,
    inspect_image,
    inspect_images,
    inspect_many,
    learn_last,
    page_row,
    page_table,
    show_row,
    stop,
    table_row,
    take_folder,
    undo_last,
    verdict_html,
    write_report,
)
from demo.session import PREDICT_PRODUCT
from demo.style import message_html
from demo.teach_tab import teach_product
from modeling_anople.pipeline_anople import Prediction, predict
from modeling_anople.runtime.heat_maps import number_regions, overlay

from ..test_images import encoded, with_size_in_header


def test_a_verdict_is_that_of_the_detector(session, nut):
    inspection = inspect_image(session, nut, "nut")
    with Image.open(nut) as picture:
        prediction = next(predict(session.model, session.processor, [picture.copy()], class_names="nut"))
        assert inspection.image.size == inspection.heat_map.size == picture.size
    assert (
        inspection.score == prediction.score and inspection.verdict == prediction.label and inspection.product == "nut"
    )
    assert inspection.words == f"{prediction.label}, {prediction.score:.2f}; line at 0.50"
    assert inspection.numbers["milliseconds"] > 0 and not inspection.product_predicted
    assert inspect_image(session, nut, PREDICT_PRODUCT).product_predicted


def test_colors_are_those_of_the_fixed_scale(session, nut):
    inspection = inspect_image(session, nut, "nut")
    quiet = overlay(inspection.image, np.zeros(inspection.image.size[::-1], np.float32))
    assert np.array_equal(np.asarray(quiet), np.asarray(inspection.image))
    assert not np.array_equal(np.asarray(inspection.heat_map), np.asarray(inspection.image))


def test_regions_of_the_picture_are_numbered_as_in_the_list(session):
    anomaly_map = np.zeros((64, 80), np.float32)
    anomaly_map[8:16, 10:30], anomaly_map[40:50, 40:60] = 0.7, 0.9
    prediction = Prediction(size=(64, 80), threshold=0.5, anomaly_map=anomaly_map)
    regions = prediction.find_regions()
    assert [each["box"][0] for each in regions] == [40, 10]
    image = Image.new("RGB", (160, 128), "grey")  # of which the map is half as large
    shown, heat_map = draw_heat_map(image, replace(prediction, size=(128, 160)), regions)
    expected = overlay(shown, replace(prediction, size=(128, 160)).full_size_map())
    number_regions(expected, [each["box"] for each in regions])
    assert np.array_equal(np.asarray(heat_map), np.asarray(expected))


def test_moving_the_threshold_changes_the_verdict_and_not_the_score(session, nut):
    before = inspect_image(session, nut, "nut")
    session.threshold = before.score - 0.01
    after = inspect_image(session, nut, "nut")
    assert after.score == before.score and after.verdict == "anomalous"
    session.threshold = before.score + 0.01
    assert inspect_image(session, nut, "nut").verdict == "normal"


def test_what_so_few_photographs_leave_open_is_called_unsure_wherever_it_is_shown(session, nut, files):
    Image.blend(Image.open(nut), Image.open(files[0]), 0.2).save(nut)
    session.threshold = 1.0  # between which and the oddest good photograph it lies
    inspection = inspect_image(session, nut, "nut")
    assert (inspection.verdict, inspection.unsure, inspection.shown) == ("normal", True, "unsure")
    assert (
        inspection.numbers["verdict"] == "normal" and inspection.numbers["unsure"]
    )  # as programs have always read it
    shown = verdict_html(inspection)
    assert 'class="verdict unsure"' in shown and f"<strong>unsure, {inspection.score:.2f}; line at 1.00" in shown
    assert "odder than every good photograph taught" in shown and "<svg" in shown
    table = page_table([(inspection, page_row(1, inspection))])
    column = PAGE_COLUMNS.index("verdict")
    assert table["data"][0][column] == "normal" and table["metadata"]["display_value"][0][column] == "? unsure"
    assert "#ffd24d" in table["metadata"]["styling"][0][column]
    assert table_row(1, inspection)[-1] == "unsure: odder than every good photograph taught"
    *_, words = list(inspect_many([nut], "nut", session, progress=lambda *_, **__: None))[-1]
    assert "1 photographs: 1 unsure." in words


def test_each_verdict_has_a_color_and_a_sign_of_its_own(session, nut):
    inspection = inspect_image(session, nut, "nut")
    kinds = ("normal", "anomalous", "unknown product", "no line")
    shown = [verdict_html(replace(inspection, verdict=kind, unsure=False)) for kind in kinds]
    assert [re.search(r'class="verdict (\w+)"', each)[1] for each in shown] == [
        "normal",
        "anomalous",
        "unsure",
        "unsure",
    ]
    signs = [re.search(r'<path d="([^"]+)"', each)[1] for each in shown]
    assert len(set(signs)) == 3 and all('aria-hidden="true"' in each for each in shown)


def test_what_is_no_photograph_is_refused_without_changing_anything(session, files, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(with_size_in_header(encoded("PNG"), 20000, 20000))
    (tmp_path / "large.png").write_bytes(with_size_in_header(encoded("PNG"), 9000, 9000))
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(files[0]).read_bytes()[:-900])
    for name, message in (
        ("text.png", "text.png is not a photograph"),
        ("huge.png", "huge.png is too large"),
        ("large.png", r"large.png is too large \(9000 x 9000\)"),
        ("cut.png", "cut.png"),
        ("gone.png", "gone.png is no longer here"),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            inspect_image(session, tmp_path / name, "nut")
        with pytest.raises(ValueError, match=message):
            teach_product(session, "screw", [*files, str(tmp_path / name)])
        assert str(tmp_path) not in str(refusal.value)
    assert session.products == ["bolt", "nut"]
    with pytest.raises(ValueError, match="no photograph yet"):
        inspect_image(session, None)
    with pytest.raises(ValueError, match="9 photographs are too many at once: give at most 8"):
        teach_product(session, "screw", files[:1] * 9)
    with pytest.raises(ValueError, match="given twice"):
        teach_product(session, "screw", [files[0], files[0]])


def test_many_photographs_give_a_table_and_a_zip(session, files, tmp_path):
    (tmp_path / "=1+1.png").write_text("no picture")
    paths = [files[0], str(tmp_path / "=1+1.png"), files[1]]
    inspections = list(inspect_images(session, paths, "bolt"))
    rows = [table_row(number, inspection) for number, inspection in enumerate(inspections, start=1)]
    assert [row[1] for row in rows] == ["screw 0.png", "=1+1.png", "screw 1.png"] and rows[1][2] == "not judged"
    assert all(len(row) == len(COLUMNS) for row in rows)
    path = write_report(session.folder, inspections)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["heat_maps/001-screw_0.png", "heat_maps/003-screw_1.png", "results.csv"]
        table = list(csv.DictReader(io.StringIO(archive.read("results.csv").decode())))
        with Image.open(archive.open("heat_maps/001-screw_0.png")) as picture:
            assert picture.width > inspections[0].image.width  # the legend is beside it
    assert [row["photograph"] for row in table] == ["screw 0.png", "'=1+1.png", "screw 1.png"]
    assert float(table[0]["score"]) == pytest.approx(inspections[0].score, abs=1e-4)


def test_the_table_shows_each_heat_map_small(session, files, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    inspections = list(inspect_images(session, [files[0], str(tmp_path / "text.png")], "bolt"))
    first, second = (page_row(number, inspection) for number, inspection in enumerate(inspections, start=1))
    assert len(first) == len(second) == len(PAGE_COLUMNS) and [first[0], *first[2:]] == table_row(1, inspections[0])
    picture = base64.b64decode(re.search(r'src="data:image/webp;base64,([^"]+)"', first[1])[1])
    assert Image.open(io.BytesIO(picture)).size == inspections[0].image.size and second[1] == ""


def test_of_a_folder_the_photographs_are_taken(session, files, tmp_path):
    others = [str(tmp_path / name) for name in ("Thumbs.db", "notes.txt", ".hidden.png", "a.JPG")]
    taken = take_folder([*others, files[1], files[0]], [files[2]], session)
    assert taken == [files[2], others[3], files[0], files[1]]
    with pytest.raises(gr.Error, match="no photograph in this folder"):
        take_folder(others[:3], None, session)
    with pytest.raises(gr.Error, match="101 photographs are too many"):
        take_folder(files[:1] * 101, None, session)


def test_stopping_keeps_what_was_judged(session, files):
    steps = inspect_many(files, "bolt", session, progress=lambda *_, **__: None)
    next(steps)
    assert "Stopping" in stop(session)
    (table, report, words) = list(steps)[-1]
    assert len(table["data"]) == 1 and "Stopped after 1 of 4" in words and Path(report).is_file()
    assert len(list(inspect_many(files, "bolt", session, progress=lambda *_, **__: None))) == 5
    with pytest.raises(Exception, match=f"500 photographs are too many at once: give at most {MAX_IMAGES}"):
        next(inspect_many(files[:1] * 500, "bolt", session))


def test_everything_on_the_page_is_escaped(session, nut, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    path.write_bytes(Path(nut).read_bytes())
    assert "<img" not in verdict_html(inspect_image(session, path, "nut"))
    assert "<b>" not in message_html("<b>")


def test_the_explanation_is_the_detectors_own_with_the_photograph_it_is_nearest_to(session, files):
    teach_product(session, "screw", files[:3])
    inspection = inspect_image(session, files[3], "screw")
    explained = explain_last(session)
    with Image.open(files[3]) as picture:
        explanation = next(
            predict(session.model, session.processor, [picture.convert("RGB")], class_names="screw", explain=True)
        ).explanation
    assert (
        explained.explanation.box == explanation.box
        and explained.explanation.nearest_index == explanation.nearest_index
    )
    assert explained.nearest_name == f"screw {explanation.nearest_index}.png" and explained.nearest.size == (
        CROP_SIDE,
        CROP_SIDE,
    )
    side = "past" if inspection.score > 0.5 else "below"
    assert (
        f"{inspection.score:.2f} is {abs(inspection.score - 0.5):.2f} {side} the line of screw, 0.50."
        in explained.words
    )
    assert explained.numbers["words"] == explained.words and explanation_html(explained).count("<img") == 2


def test_the_threshold_is_the_one_the_person_chose(session, files):
    teach_product(session, "screw", files[:3])
    session.threshold = 0.01
    inspect_image(session, files[3], "screw")
    assert "past the line of screw, 0.01" in explain_last(session).words


def test_words_stand_alone_where_no_photograph_is_at_hand(session, files):
    inspect_image(session, files[0], "nut")  # taught elsewhere
    explained = explain_last(session)
    assert explained.nearest is None and "nearest to one in good photograph" in explained.words
    assert explanation_html(explained).count("<img") == 1


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
def test_a_crop_is_a_square_that_shows_the_box_with_its_outline(box):
    picture = Image.new("RGB", (50, 40), "red")
    crop = crop_around(picture, box, (100, 80))
    assert crop.size == (CROP_SIDE, CROP_SIDE)
    colors = {color for _, color in crop.getcolors()}
    assert ((255, 255, 255) in colors) == (box is not None)


def test_a_part_that_is_good_is_learned_and_taken_back(session, start, files, nut):
    with pytest.raises(gr.Error, match="Inspect a photograph of a product first"):
        learn_last(session)
    before = inspect_image(session, nut, "nut")
    assert "nut now knows 4 good photographs" in learn_last(session)
    assert inspect_image(session, nut, "nut").score < before.score and start.image_count("nut") == 3
    with pytest.raises(gr.Error, match="known already"):
        learn_last(session)
    assert session.image_count("nut") == 4
    assert "as it was before" in undo_last(session)[0]
    assert session.image_count("nut") == 3 and inspect_image(session, nut, "nut").score == before.score
    with pytest.raises(gr.Error, match="nothing to undo"):
        undo_last(session)
    learn_last(session)
    teach_product(session, "screw", files[:2])
    with pytest.raises(gr.Error, match="was changed since"):
        undo_last(session)
    assert session.image_count("nut") == 4 and "screw" in session.products
