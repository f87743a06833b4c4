"""Teaching products without training, and fitting prompts: the package's own loop, on a copy, to be stopped at any time."""

from copy import deepcopy
from pathlib import Path

import gradio as gr
import pytest
import torch
from PIL import Image

from demo.inspect_tab import explain_last, inspect_image
from demo.session import Session
from demo.teach_tab import (
    MAX_STEPS,
    checked_name,
    fit,
    fit_prompts,
    forget,
    look_at,
    products_html,
    rename,
    replace,
    stop_fit,
    teach_product,
    undo,
)
from demo.transfer import pack_detector, unpack_detector
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.enrollment_anople import add_normals

from ..detectors import normals_of, set_by_costs
from ..fitting import one_process
from .demo_app import session_of


@pytest.fixture(scope="module")
def fit_start(small_clip_folder, photograph, tmp_path_factory):
    """Two products, whose photographs are at hand."""
    folder = tmp_path_factory.mktemp("normals")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AnoPLeModel.from_clip(str(small_clip_folder), ["bolt"])
    processor = AnoPLeProcessor.from_clip(str(small_clip_folder), ["bolt"])
    pictures = normals_of(photograph, 0)
    add_normals(model, processor, "bolt", pictures)
    fit_session = Session(model.eval(), processor)
    fit_session.keep_images("bolt", [(f"bolt {number}.png", picture) for number, picture in enumerate(pictures)])
    for number, picture in enumerate(normals_of(photograph, 1)):
        picture.save(folder / f"nut {number}.png")
    teach_product(fit_session, "nut", [str(path) for path in sorted(folder.iterdir())])
    return fit_session


@pytest.fixture
def fit_session(fit_start):
    return session_of(fit_start)


@pytest.fixture
def asked(tmp_path, photograph) -> str:
    photograph(105).save(tmp_path / "asked.png")
    return str(tmp_path / "asked.png")


@pytest.fixture(autouse=True)
def alone():
    with one_process():
        yield


def state(model: AnoPLeModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_teaching_makes_a_product_in_this_session_alone(start, session, files):
    scores = inspect_image(start, files[0], "nut").score
    words = teach_product(session, " screw ", files)
    assert "screw is ready, from 4 good photographs" in words and session.products == ["bolt", "nut", "screw"]
    assert start.products == session_of(start).products == ["bolt", "nut"]
    assert start.processor.class_names == ["bolt", "nut"] and len(start.model.config.history) == 0
    assert session.model.clip is start.model.clip and session.model.products is not start.model.products
    assert inspect_image(session, files[0], "screw").verdict == "normal"
    assert inspect_image(start, files[0], "nut").score == scores
    with pytest.raises(ValueError, match="screw is not known here: choose one of bolt, nut"):
        inspect_image(start, files[0], "screw")


def choices(answer: tuple) -> list[list[str]]:
    """What the lists of Inspect, Live, Judge and Teach offer after a change."""
    return [update["choices"] for update in answer[-4:]]


def test_a_product_is_renamed_in_this_session_alone_and_scores_as_before(start, session, files):
    teach_product(session, "screw", files[:3])
    before = inspect_image(session, files[3], "screw")
    answer = rename("screw", " bolt M3 ", session)
    names = ["bolt", "nut", "bolt M3"]
    assert answer[0] == {"words": "screw is called bolt M3 now. Its scores are as before.", "products": names}
    assert choices(answer) == [["find it yourself", *names]] * 2 + [names] * 2 and start.products == ["bolt", "nut"]
    assert session.last_product == "bolt M3" and explain_last(session).explanation.score == before.score
    assert explain_last(session).nearest is not None  # its photographs go with it
    for name, message in (
        ("nut", "exists"),
        ("a/b", "cannot be a product"),
        ("", "no name yet"),
        ("bolt M3", "so already"),
    ):
        with pytest.raises(gr.Error, match=message):
            rename("bolt M3", name, session)
    assert choices(undo(session))[2] == ["bolt", "nut", "screw"] and session.last_product == "screw"
    assert inspect_image(session, files[3], "screw").score == before.score and session.normal_images["screw"]


def test_a_product_is_forgotten_in_this_session_alone_but_for_the_last_one(start, session, nut):
    score = inspect_image(session, nut, "nut").score
    answer = forget("nut", session)
    assert answer[0]["products"] == session.products == ["bolt"] and start.products == ["bolt", "nut"]
    assert choices(answer)[2:] == [["bolt"]] * 2 and session.last_product is None
    with pytest.raises(gr.Error, match="bolt is the only product, and a detector needs one: teach another one before"):
        forget("bolt", session)
    with pytest.raises(gr.Error, match="nut is not known here"):
        forget("nut", session)
    undo(session)
    assert inspect_image(session, nut, "nut").score == score


def test_a_product_is_replaced_when_that_is_asked_for_alone(start, session, files, nut):
    with pytest.raises(ValueError, match="known already: .* or press Replace product"):
        teach_product(session, "nut", files)
    with pytest.raises(gr.Error, match="screw is not known here"):
        replace("screw", files, 0, session)
    with pytest.raises(gr.Error, match="known already"):
        replace("nut", [files[0], files[0]], 0, session)
    assert session.image_count("nut") == 3 and session.model is start.model
    with session.undoable():
        set_by_costs(session.own_detector()[0], "nut")
    answer = replace("nut", files, 0, session)
    assert "nut is taught anew, from 4 good photographs" in answer[0]["words"]
    assert (
        "The line of nut was set by 2 known defects, and is" in answer[0]["words"] and answer[0]["words"] in answer[1]
    )
    assert session.image_count("nut") == 4 == len(session.normal_images["nut"]) and start.image_count("nut") == 3
    assert inspect_image(session, files[0], "nut").score < inspect_image(start, files[0], "nut").score
    undo(session)
    assert session.image_count("nut") == 3 and "nut" not in session.normal_images
    forget("bolt", session)
    assert replace("nut", files[:2], 0, session)[0]["products"] == ["nut"]  # the last one, too


def test_chosen_photographs_are_shown_and_those_that_cannot_be_used_say_why(session, files, tmp_path):
    assert look_at(None, 0, session) == ""
    text, flat, cut = (tmp_path / name for name in ("<b>.png", "flat.png", "cut.png"))
    text.write_text("no picture")
    Image.new("RGB", (64, 64), "gray").save(flat)
    cut.write_bytes(Path(files[0]).read_bytes()[:-900])
    shown = look_at([*files[:2], *map(str, (text, flat, cut))], 0, session)
    assert shown.count("<img") == 2 and shown.count('class="refused"') == 3 and "screw 1.png" in shown
    assert "&lt;b&gt;.png is not a photograph" in shown and "flat.png: is of one color" in shown and "cut.png" in shown
    assert str(tmp_path) not in shown
    many = look_at(files[:1] * 9, 0, session)
    assert "9 photographs are too many at once: give at most 8." in many and many.count("<img") == 8


def test_known_products_show_what_they_were_taught_from_as_far_as_it_is_here(session, files):
    teach_product(session, "screw", files)
    shown = products_html(session)
    assert shown.count("<img") == 4 and "<strong>bolt</strong> <span>3 good photographs, not here</span>" in shown
    assert "<strong>screw</strong> <span>4 good photographs</span>" in shown and 'alt="screw 3.png"' in shown
    session.keep_images("bolt", [("<i>.png", Image.open(files[0]))] * 9)
    assert products_html(session).count("<img") == 12 and "<i>" not in products_html(session)


@pytest.mark.parametrize(
    "name", ["../../x", "<script>alert(1)</script>", "", "  ", "a" * 61, "a/b", "a\\b", "a\nb", "_", None]
)
def test_names_that_are_none_are_refused(session, files, name):
    with pytest.raises(ValueError, match="cannot be a product's name|no name yet"):
        teach_product(session, name, files)
    assert session.products == ["bolt", "nut"]
    assert checked_name(" Schraube M3 (verzinkt) ") == "Schraube M3 (verzinkt)" and checked_name("ねじ") == "ねじ"


def test_fitting_changes_this_session_alone_and_renews_memory_and_thresholds(fit_start, fit_session, asked):
    before, products = state(fit_start.model), deepcopy(fit_start.model.config.products)
    steps = list(fit_prompts(fit_session, 10))
    assert len(steps) == 12 and len(steps[-1].losses) == 10 and all(loss > 0 for loss in steps[-1].losses)
    assert "Fitted for 10 steps. Memory and lines of bolt, nut are set anew." in steps[-1].words
    after, now = state(fit_start.model), state(fit_session.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert products == fit_start.model.config.products != fit_session.model.config.products
    assert fit_session.model.clip is fit_start.model.clip and not fit_session.model.training
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], now[name])}
    assert {"prompts", "decoder", "products"} <= changed and "clip" not in changed
    assert [one.image_count for one in fit_session.model.products] == [
        one.image_count for one in fit_start.model.products
    ]
    assert [entry["action"] for entry in fit_session.model.config.history] == ["fit", "fit"]
    other = session_of(fit_start)
    unpack_detector(other, pack_detector(fit_session))
    assert inspect_image(other, asked, "nut").score == inspect_image(fit_session, asked, "nut").score


def test_a_fit_that_is_stopped_leaves_a_detector_that_is_whole(fit_session, asked, photograph, tmp_path):
    set_by_costs(fit_session.own_detector()[0], "bolt")
    before = fit_session.model
    steps = fit(200, fit_session)
    for _ in range(3):
        losses, message = next(steps)
    assert fit_session.model is before  # still the one before
    assert list(losses["step"]) == [1, 2] and (losses["loss"] > 0).all() and "2 of 200 steps are done" in message
    assert "Stopping" in stop_fit(fit_session)
    *_, (_, message) = steps
    assert "Stopped after 2 of 200 steps, and kept." in message
    assert "The line of bolt was set by 2 known defects, and is" in message and "line of nut" not in message
    assert fit_session.model is not before
    assert inspect_image(fit_session, asked, "nut").verdict in ("normal", "anomalous")
    photograph(999).save(tmp_path / "new.png")
    teach_product(fit_session, "screw", [str(tmp_path / "new.png")])
    assert fit_session.products == ["bolt", "nut", "screw"]


def test_a_product_taught_meanwhile_is_not_lost(fit_session, asked):
    steps = fit_prompts(fit_session, 10)
    next(steps)
    teach_product(fit_session, "screw", [asked])
    with pytest.raises(ValueError, match="changed while this was fitting"):
        list(steps)
    assert fit_session.products == ["bolt", "nut", "screw"]


def test_what_cannot_be_fitted_is_refused(fit_session, fit_start):
    with pytest.raises(ValueError, match=f"10 to {MAX_STEPS} steps, got 5000"):
        next(fit_prompts(fit_session, 5000))
    loaded = session_of(fit_start)
    unpack_detector(loaded, pack_detector(fit_session))
    with pytest.raises(ValueError, match="those of bolt, nut are not here"):
        next(fit_prompts(loaded, 10))
