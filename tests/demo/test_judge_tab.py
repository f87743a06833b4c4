"""Judging a threshold: what it would flag among the good images, and images that were fine."""

import pytest

from demo.judge_tab import add_normal, add_normal_image, draw_threshold, judge_threshold
from demo.session import PREDICT_PRODUCT
from modeling_anople.calibration_anople import describe_guarantee

from ..detectors import normals_of, set_by_costs


def test_judging_counts_the_good_images_over_the_threshold(session):
    calibrated = session.model.products.named("nut").record.threshold
    low, middle, high = (judge_threshold(session, "nut", threshold) for threshold in (0.0, 0.5, 1.0))
    assert low.flagged == len(calibrated.image_scores) == 3 and high.flagged == 0
    assert middle.flagged == sum(score > calibrated.image_threshold for score in calibrated.image_scores)
    assert session.threshold == 1.0
    assert "of 3 measurements of 3 good photographs" in middle.words
    assert describe_guarantee(calibrated) in middle.words and "at best 1 in 4 can be promised" in middle.words
    assert middle.open_from == middle.scores[-1] < 0.5  # above the oddest good one the line is a guess
    assert f"between {middle.open_from:.2f}, the oddest of them, and your line is called unsure" in middle.words
    assert 'class="open"' in draw_threshold(middle) and ">unsure<" in draw_threshold(high)
    assert "unsure" not in low.words + draw_threshold(low)
    drawn = draw_threshold(judge_threshold(session, "nut", 0.0))
    assert drawn.count("<circle") == drawn.count('class="flagged"') == 3
    with pytest.raises(ValueError, match="between 0 and 1"):
        judge_threshold(session, "nut", 1.5)


def test_an_image_that_was_fine_joins_the_good_ones(start, session, nut):
    before = start.model.config.products[1]["threshold"]
    assert "nut now knows 4 good photographs" in add_normal_image(session, "nut", nut)
    assert session.model.config.products[1]["threshold"] != before == start.model.config.products[1]["threshold"]
    with pytest.raises(ValueError, match="nut.png"):
        add_normal_image(session, "nut", nut)  # twice
    with pytest.raises(ValueError, match="Choose the product first"):
        add_normal_image(session, PREDICT_PRODUCT, nut)


def test_a_line_that_defects_had_set_is_not_lost_in_silence(session, nut, photograph, tmp_path):
    set_by_costs(session.own_detector()[0], "nut")
    said = add_normal("nut", nut, 0.5, session)[0]
    assert "The line of nut was set by 2 known defects, and is set by its good photographs alone again" in said
    normals_of(photograph, 1, 6)[5].save(tmp_path / "more.png")
    assert "defects" not in add_normal_image(session, "nut", str(tmp_path / "more.png"))  # once
