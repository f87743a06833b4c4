"""Fitting prompts in the demo: the package's own loop, on a copy, to be stopped at any time."""

import pytest
import torch

from demo.inspect_tab import inspect_image
from demo.session import Session
from demo.teach_tab import MAX_STEPS, fit, fit_prompts, stop_fit, teach_product
from demo.transfer import pack_detector, unpack_detector
from modeling_anople import AnoPLeModel, AnoPLeProcessor

from .demo_app import session_of
from .detectors import normals_of
from .fitting import one_process


@pytest.fixture(scope="module")
def start(small_clip_folder, photograph, tmp_path_factory):
    """Two products, whose photographs are at hand."""
    folder = tmp_path_factory.mktemp("normals")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AnoPLeModel.from_clip(str(small_clip_folder), ["bolt"])
    processor = AnoPLeProcessor.from_clip(str(small_clip_folder), ["bolt"])
    pictures = normals_of(photograph, 0)
    model.add_normals("bolt", pictures, processor=processor)
    session = Session(model.eval(), processor)
    session.keep_images("bolt", [(f"bolt {number}.png", picture) for number, picture in enumerate(pictures)])
    for number, picture in enumerate(normals_of(photograph, 1)):
        picture.save(folder / f"nut {number}.png")
    teach_product(session, "nut", [str(path) for path in sorted(folder.iterdir())])
    return session


@pytest.fixture
def session(start):
    return session_of(start)


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


def test_fitting_changes_this_session_alone_and_renews_memory_and_lines(start, session, asked):
    before, lines = state(start.model), start.model.config.calibration
    steps = list(fit_prompts(session, 10))
    assert len(steps) == 12 and len(steps[-1].losses) == 10 and all(loss > 0 for loss in steps[-1].losses)
    assert "Fitted for 10 steps. Memory and lines of bolt, nut are set anew." in steps[-1].words
    after, now = state(start.model), state(session.model)
    assert all(torch.equal(before[name], after[name]) for name in before) and lines == start.model.config.calibration
    assert session.model.clip is start.model.clip and not session.model.training
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], now[name])}
    assert {"prompts", "decoder", "memory", "class_embeddings"} <= changed and "clip" not in changed
    assert session.model.memory.counts == start.model.memory.counts
    assert [entry["action"] for entry in session.model.config.history] == ["fit", "fit"]
    other = session_of(start)
    unpack_detector(other, pack_detector(session))
    assert inspect_image(other, asked, "nut").score == inspect_image(session, asked, "nut").score


def test_a_fit_that_is_stopped_leaves_a_detector_that_is_whole(session, asked, photograph, tmp_path):
    before = session.model
    steps = fit(200, session)
    for _ in range(3):
        curve, told = next(steps)
    assert session.model is before  # still the one before
    assert 'aria-label="Loss of 2 of 200 steps' in curve and "2 of 200 steps are done" in told
    assert "Stopping" in stop_fit(session)
    curve, told = list(steps)[-1]
    assert "Stopped after 2 of 200 steps, and kept." in told
    assert session.model is not before and inspect_image(session, asked, "nut").verdict in ("normal", "anomalous")
    photograph(999).save(tmp_path / "new.png")
    teach_product(session, "screw", [str(tmp_path / "new.png")])
    assert session.products == ["bolt", "nut", "screw"]


def test_a_product_taught_meanwhile_is_not_lost(session, asked):
    steps = fit_prompts(session, 10)
    next(steps)
    teach_product(session, "screw", [asked])
    with pytest.raises(ValueError, match="changed while this was fitting"):
        list(steps)
    assert session.products == ["bolt", "nut", "screw"]


def test_what_cannot_be_fitted_is_refused(session, start):
    with pytest.raises(ValueError, match=f"10 to {MAX_STEPS} steps, got 5000"):
        next(fit_prompts(session, 5000))
    loaded = session_of(start)
    unpack_detector(loaded, pack_detector(session))
    with pytest.raises(ValueError, match="those of bolt, nut are not here"):
        next(fit_prompts(loaded, 10))
