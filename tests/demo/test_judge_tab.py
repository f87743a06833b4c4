"""Judging a threshold: what it would flag among the good images, and images that were fine."""

import pytest

from demo.judge_tab import add_normal_image, draw_threshold, judge_threshold
from demo.session import PREDICT_PRODUCT
from modeling_anople.calibration_anople import describe_support


def test_judging_counts_the_good_images_over_the_threshold(session):
    entry = session.model.config.calibration["nut"]
    low, calibrated, high = (judge_threshold(session, "nut", threshold) for threshold in (0.0, 0.5, 1.0))
    assert low.flagged == len(entry["image_scores"]) == 3 and high.flagged == 0
    assert calibrated.flagged == sum(score > entry["image_line"] for score in entry["image_scores"])
    assert session.threshold == 1.0
    assert "of 3 measurements of 3 good photographs" in calibrated.words
    assert describe_support(entry) in calibrated.words and "at best 1 in 4 can be promised" in calibrated.words
    drawn = draw_threshold(judge_threshold(session, "nut", 0.0))
    assert drawn.count("<circle") == drawn.count('class="flagged"') == 3
    with pytest.raises(ValueError, match="between 0 and 1"):
        judge_threshold(session, "nut", 1.5)


def test_an_image_that_was_fine_joins_the_good_ones(start, session, nut):
    before = start.model.config.calibration["nut"]
    assert "nut now knows 4 good photographs" in add_normal_image(session, "nut", nut)
    assert session.model.config.calibration["nut"] != before == start.model.config.calibration["nut"]
    with pytest.raises(ValueError, match="nut.png"):
        add_normal_image(session, "nut", nut)  # twice
    with pytest.raises(ValueError, match="Choose the product first"):
        add_normal_image(session, PREDICT_PRODUCT, nut)
