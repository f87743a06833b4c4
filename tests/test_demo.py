"""The demo's functions, without a server: what is said, what is refused, and that nobody sees another's products."""

import ast
import base64
import csv
import io
import json
import re
import stat
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from demo.app import chosen_checkpoint
from demo.inputs import MAX_IMAGES, read_image
from demo.inspect_tab import (
    COLUMNS,
    PAGE_COLUMNS,
    inspect,
    inspect_image,
    inspect_images,
    inspect_many,
    page_row,
    stop,
    table_row,
    take_folder,
    verdict_html,
    write_report,
)
from demo.judge_tab import add_normal_image, draw_threshold, judge_threshold
from demo.session import ANSWERS_KEPT, PREDICT_PRODUCT, start_session
from demo.style import message_html
from demo.teach_tab import checked_name, teach_product
from demo.transfer import pack_detector, unpack_detector
from modeling_anople import cli
from modeling_anople.calibration_anople import describe_support
from modeling_anople.runtime.heat_maps import overlay
from modeling_anople.prediction import predict

from .demo_app import session_of
from .detectors import normals_of, write_detector, write_screws


DEMO = Path(__file__).resolve().parents[1] / "demo"


@pytest.fixture(scope="module")
def detector(tmp_path_factory, small_clip_folder, photograph) -> Path:
    return write_detector(tmp_path_factory.mktemp("demo") / "detector", small_clip_folder, photograph)


@pytest.fixture(scope="module")
def start(detector):
    return start_session(str(detector))


@pytest.fixture
def session(start):
    return session_of(start)


@pytest.fixture
def files(tmp_path, photograph) -> list[str]:
    """Four photographs of something new."""
    return write_screws(tmp_path, photograph)


@pytest.fixture
def nut(tmp_path, photograph) -> str:
    normals_of(photograph, 1, 5)[4].save(tmp_path / "nut.png")
    return str(tmp_path / "nut.png")


@pytest.mark.parametrize("path", sorted(DEMO.glob("*.py")), ids=lambda path: path.name)
def test_the_demo_knows_the_package_alone(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    }
    modules |= {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert not modules & {"hub", "tests", "torchvision", "pickle", "cv2"}


def test_a_verdict_is_that_of_the_detector(session, nut):
    inspection = inspect_image(session, nut, "nut")
    with Image.open(nut) as picture:
        known = next(predict(session.model, session.processor, [picture.copy()], class_names="nut"))
        assert inspection.image.size == inspection.heat_map.size == picture.size
    assert inspection.score == known.score and inspection.verdict == known.label and inspection.product == "nut"
    assert inspection.words == f"{known.label}, {known.score:.2f}; line at 0.50"
    assert inspection.numbers["milliseconds"] > 0 and not inspection.product_predicted
    assert inspect_image(session, nut, PREDICT_PRODUCT).product_predicted


def test_colours_are_those_of_the_fixed_scale(session, nut):
    inspection = inspect_image(session, nut, "nut")
    quiet = overlay(inspection.image, np.zeros(inspection.image.size[::-1], np.float32))
    assert np.array_equal(np.asarray(quiet), np.asarray(inspection.image))
    assert not np.array_equal(np.asarray(inspection.heat_map), np.asarray(inspection.image))


def test_moving_the_line_changes_the_verdict_and_not_the_score(session, nut):
    before = inspect_image(session, nut, "nut")
    session.threshold = before.score - 0.01
    after = inspect_image(session, nut, "nut")
    assert after.score == before.score and after.verdict == "anomalous"
    session.threshold = before.score + 0.01
    assert inspect_image(session, nut, "nut").verdict == "normal"


def test_teaching_makes_a_product_in_this_session_alone(start, session, files):
    scores = inspect_image(start, files[0], "nut").score
    words = teach_product(session, " screw ", files)
    assert "screw is ready, from 4 good photographs" in words and session.products == ["bolt", "nut", "screw"]
    assert start.products == session_of(start).products == ["bolt", "nut"]
    assert start.processor.class_names == ["bolt", "nut"] and len(start.model.config.history) == 0
    assert session.model.clip is start.model.clip and session.model.memory is not start.model.memory
    assert inspect_image(session, files[0], "screw").verdict == "normal"
    assert inspect_image(start, files[0], "nut").score == scores
    with pytest.raises(ValueError, match="screw is not known here: choose one of bolt, nut"):
        inspect_image(start, files[0], "screw")


def test_the_standard_session_is_copied_only_when_products_change(start):
    one, another = session_of(start), session_of(start)
    assert one.model is another.model is start.model and one.folder != another.folder
    one.own_detector()
    assert one.model is not start.model and another.model is start.model


@pytest.mark.parametrize(
    "name", ["../../x", "<script>alert(1)</script>", "", "  ", "a" * 61, "a/b", "a\\b", "a\nb", "_", None]
)
def test_names_that_are_none_are_refused(session, files, name):
    with pytest.raises(ValueError, match="cannot be a product's name|no name yet"):
        teach_product(session, name, files)
    assert session.products == ["bolt", "nut"]
    assert checked_name(" Schraube M3 (verzinkt) ") == "Schraube M3 (verzinkt)" and checked_name("ねじ") == "ねじ"


def test_what_is_no_photograph_is_refused_without_changing_anything(session, files, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
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
    assert [line["photograph"] for line in table] == ["screw 0.png", "'=1+1.png", "screw 1.png"]
    assert float(table[0]["score"]) == pytest.approx(inspections[0].score, abs=1e-4)


def test_the_table_shows_each_heat_map_small(session, files, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    inspections = list(inspect_images(session, [files[0], str(tmp_path / "text.png")], "bolt"))
    first, second = (page_row(number, inspection) for number, inspection in enumerate(inspections, start=1))
    assert len(first) == len(second) == len(PAGE_COLUMNS) and [first[0], *first[2:]] == table_row(1, inspections[0])
    picture = base64.b64decode(re.search(r'src="data:image/webp;base64,([^"]+)"', first[1])[1])
    assert Image.open(io.BytesIO(picture)).size == inspections[0].image.size and second[1] == ""


def test_of_a_folder_the_photographs_are_taken(files, tmp_path):
    others = [str(tmp_path / name) for name in ("Thumbs.db", "notes.txt", ".hidden.png", "a.JPG")]
    assert take_folder([*others, files[1], files[0]], [files[2]]) == [files[2], others[3], files[0], files[1]]
    with pytest.raises(gr.Error, match="no photograph in this folder"):
        take_folder(others[:3], None)
    with pytest.raises(gr.Error, match="101 photographs are too many"):
        take_folder(files[:1] * 101, None)


def test_stopping_keeps_what_was_judged(session, files):
    steps = inspect_many(files, "bolt", session, progress=lambda *_, **__: None)
    next(steps)
    assert "Stopping" in stop(session)
    (rows, report, words) = list(steps)[-1]
    assert len(rows) == 1 and "Stopped after 1 of 4" in words and Path(report).is_file()
    assert len(list(inspect_many(files, "bolt", session, progress=lambda *_, **__: None))) == 5
    with pytest.raises(Exception, match=f"500 photographs are too many at once: give at most {MAX_IMAGES}"):
        next(inspect_many(files[:1] * 500, "bolt", session))


def test_pictures_are_files_of_the_session_and_do_not_gather(session, files):
    answers = [inspect(path, "bolt", session)[2] for path in files * 3]
    photograph, heat_map = (Path(path) for path in answers[-1])
    assert session.folder in photograph.parents and photograph.name == "photograph.webp"
    with Image.open(photograph) as one, Image.open(heat_map) as other, Image.open(files[0]) as sent:
        assert one.size == other.size == sent.size
    assert len({path for answer in answers for path in answer}) == 24
    assert len(list((session.folder / "answers").glob("*/*"))) == 2 * ANSWERS_KEPT


def test_judging_counts_the_normals_over_the_line(session):
    line = session.model.config.calibration["nut"]
    low, calibrated, high = (judge_threshold(session, "nut", threshold) for threshold in (0.0, 0.5, 1.0))
    assert low.flagged == len(line["image_scores"]) == 3 and high.flagged == 0
    assert calibrated.flagged == sum(score > line["image_line"] for score in line["image_scores"])
    assert session.threshold == 1.0
    assert "of 3 measurements of 3 good photographs" in calibrated.words
    assert describe_support(line) in calibrated.words and "at best 1 in 4 can be promised" in calibrated.words
    drawn = draw_threshold(judge_threshold(session, "nut", 0.0))
    assert drawn.count("<circle") == drawn.count('class="flagged"') == 3
    with pytest.raises(ValueError, match="between 0 and 1"):
        judge_threshold(session, "nut", 1.5)


def test_a_photograph_that_was_fine_joins_the_normals(start, session, nut):
    before = start.model.config.calibration["nut"]
    assert "nut now knows 4 good photographs" in add_normal_image(session, "nut", nut)
    assert session.model.config.calibration["nut"] != before == start.model.config.calibration["nut"]
    with pytest.raises(ValueError, match="nut.png"):
        add_normal_image(session, "nut", nut)  # twice
    with pytest.raises(ValueError, match="Choose the product first"):
        add_normal_image(session, PREDICT_PRODUCT, nut)


def test_a_detector_goes_home_and_comes_back(session, start, files):
    teach_product(session, "screw", files)
    score = inspect_image(session, files[0], "screw").score
    other = session_of(start)
    assert "knows bolt, nut, screw" in unpack_detector(other, pack_detector(session))
    assert inspect_image(other, files[0], "screw").score == score
    assert start.products == ["bolt", "nut"]
    teach_product(other, "screw two", files)
    assert other.products[-1] == "screw two"


def test_a_large_clip_stays_behind(session, start, files, monkeypatch):
    monkeypatch.setattr("demo.transfer.MAX_CLIP_IN_ZIP", 0)
    teach_product(session, "screw", files)
    path = pack_detector(session)
    assert any(name.endswith("adapter.safetensors") for name in zipfile.ZipFile(path).namelist())
    other = session_of(start)
    unpack_detector(other, path)
    assert inspect_image(other, files[0], "screw").score == inspect_image(session, files[0], "screw").score


def _rezip(path: Path, target: Path, change) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, change(entry.filename, source.read(entry)))
    return target


def test_a_zip_that_is_not_what_it_should_be_is_refused(session, start, tmp_path):
    good = pack_detector(session)
    link = zipfile.ZipInfo("detector/config.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        archive.writestr("../../evil.txt", "x")
    with zipfile.ZipFile(tmp_path / "rooted.zip", "w") as archive:
        archive.writestr("/evil.txt", "x")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.bin", b"\0" * (90 * 2**20))
    (tmp_path / "text.zip").write_text("no zip")

    def larger(name: str, content: bytes) -> bytes:
        if not name.endswith("/config.json"):
            return content
        return json.dumps(
            {**json.loads(content), "memory_sizes": [10**9, 48], "memory_photographs": [[10**9], [48]]}
        ).encode()

    _rezip(good, tmp_path / "larger.zip", larger)
    _rezip(good, tmp_path / "cut.zip", lambda name, content: content[: len(content) // 2])
    for name, message in (
        ("link", "holds a link"),
        ("up", "leads out of its folder"),
        ("rooted", "leads out of its folder"),
        ("empty", "holds no detector"),
        ("bomb", "too large"),
        ("text", "not a zip file"),
        ("larger", "not those that its settings describe"),
        ("cut", "holds no detector that can be loaded"),
    ):
        other = session_of(start)
        with pytest.raises(ValueError, match=message):
            unpack_detector(other, tmp_path / f"{name}.zip")
        assert other.products == ["bolt", "nut"] and not list(other.folder.iterdir()), name
    assert not (tmp_path / "evil.txt").exists() and not Path("/evil.txt").exists()


def test_code_in_a_zip_stays_there(session, start, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\n".encode()
    path = _rezip(
        pack_detector(session), tmp_path / "code.zip", lambda name, content: code if name.endswith(".py") else content
    )
    unpack_detector(session_of(start), path)
    assert not mark.exists()


def test_everything_on_the_page_is_escaped(session, nut, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    path.write_bytes(Path(nut).read_bytes())
    assert "<img" not in verdict_html(inspect_image(session, path, "nut"))
    assert "<b>" not in message_html("<b>")


def test_a_session_folder_goes_with_its_session(start):
    session = session_of(start)
    folder = session.folder
    assert folder.is_dir()
    del session
    assert not folder.exists()


def test_reading_gives_the_name_without_its_folder(nut):
    assert read_image(nut)["path"] == "nut.png"


def test_anople_demo_runs_the_one_beside_the_package(capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--help"])
    assert ended.value.code == 0 and "usage: anople demo" in capsys.readouterr().out
    assert cli.main(["demo", str(tmp_path)]) == 2
    assert "holds no detector" in capsys.readouterr().err
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "modeling_anople" / "cli" / "__init__.py"))
    assert cli.main(["demo"]) == 2
    assert "the demo is not installed with the package" in capsys.readouterr().err


def test_the_detector_is_chosen_in_order(monkeypatch, tmp_path):
    monkeypatch.delenv("ANOPLE_CHECKPOINT", raising=False)
    monkeypatch.setattr("demo.app.CHECKPOINT_FILE", tmp_path / "checkpoint.txt")
    assert chosen_checkpoint(None) is None
    (tmp_path / "checkpoint.txt").write_text("user/name\n")
    assert chosen_checkpoint(None) == "user/name"
    monkeypatch.setenv("ANOPLE_CHECKPOINT", "other/name")
    assert chosen_checkpoint(None) == "other/name" and chosen_checkpoint("given") == "given"
