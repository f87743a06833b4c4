"""The learning curve: what a pretraining log says, as a picture."""

import json

import pytest
from PIL import Image


pytest.importorskip("matplotlib")

from hub.plot_learning import draw, main, read_log  # noqa: E402


@pytest.fixture
def log(tmp_path):
    lines = [{"step": n, "minutes": n / 10, "episodic": 2 / n, "relation": 3 / n, "size": 128} for n in range(1, 6)]
    lines[-1] |= {"size": 224, "i_auroc_4": 80.0, "p_auroc_4": 90.0}
    path = tmp_path / "training_log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_losses_start_at_1_and_figures_are_as_logged(log):
    left, right = draw(read_log(log)).axes
    curves = {line.get_label(): line.get_ydata() for line in left.lines}
    assert curves["episodic"][0] == 1 and curves["episodic"][-1] == pytest.approx(0.2)
    assert list(right.lines[0].get_ydata()) == [80.0]


def test_a_picture_is_written(log, tmp_path):
    main([str(log), str(tmp_path / "new" / "curve.png")])
    assert Image.open(tmp_path / "new" / "curve.png").size[0] > 500


def test_an_empty_log_is_refused(tmp_path):
    (tmp_path / "log").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no line"):
        read_log(tmp_path / "log")
