"""When answers of pipelines are alike."""

import numpy as np
import pytest


def assert_alike(results: list[dict], expected: list[dict]) -> None:
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        assert result.keys() == other.keys() and result["label"] == other["label"]
        assert result["class_name"] == other["class_name"] and result["error"] is other["error"] is None
        assert result["score"] == pytest.approx(other["score"], abs=1e-5)
        assert result["raw_score"] == pytest.approx(other["raw_score"], abs=1e-5)
        np.testing.assert_allclose(result["anomaly_map"], other["anomaly_map"], atol=1e-4)
