"""Image-level and pixel-level metrics of anomaly detection: arrays in, floats out.

`None` stands for "not applicable": a metric that the data cannot define is never replaced by a number.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score


_DROPPED_BITS = 23 - 16  # of float32's mantissa


def _pattern(score: float | np.ndarray) -> np.ndarray:
    """Return sign-less exponent and upper mantissa bits; for scores >= 0 they have the order of the scores."""
    return np.ascontiguousarray(score, dtype=np.float32).view(np.int32) >> _DROPPED_BITS


# Bins, from low to high: one for all scores below 2^-24, then [2^-24, 1/2), [1/2, 1), [1, 2), one for 2 and more.
_LOWEST, _HIGHEST = int(_pattern(2.0**-24)[0]) - 1, int(_pattern(2.0)[0])
_HALF, _ONE = int(_pattern(0.5)[0]), int(_pattern(1.0)[0])
# From 1/2 to 1 it is the distance to 1 that is binned, so that saturated probabilities stay apart. Added to 2^-8,
# a distance has float32's own step there (2^-24) as its finest bin, and nothing is rounded.
_OFFSET = np.float32(2.0**-8)
_FARTHEST = int(_pattern(0.5 + _OFFSET)[0])
_UPPER_BINS = _FARTHEST - int(_pattern(_OFFSET)[0])
_BINS = (_HALF - _LOWEST) + _UPPER_BINS + (_HIGHEST - _ONE + 1)
SATURATED_LIMIT = 0.05  # false positive rate up to which AUsPRO is integrated, as its authors do
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def image_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float | None]:
    """Compute AUROC, average precision and the best F1 of image scores, as scikit-learn defines them.

    Args:
        scores: (images,) finite floats, higher means more anomalous.
        labels: (images,) 0 for normal and 1 for anomalous.

    Returns:
        `image_auroc`, `image_ap` (step-wise average precision, no interpolation) and `image_f1_max` (over every
        threshold of the precision-recall curve), each in [0, 1]. All are None unless both classes are present:
        with one class alone they are undefined or the same for any scores.

    Raises:
        ValueError: if the lengths differ, a score is not finite, or a label is neither 0 nor 1.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    _check_images(scores, labels)
    labels = labels.astype(np.int64)
    if np.unique(labels).size < 2:
        return {"image_auroc": None, "image_ap": None, "image_f1_max": None}
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "image_f1_max": float(f1.max()),
    }


class PixelMetrics:
    """Accumulate pixel AUROC, average precision and AUPRO over images in about 47 MB, however many there are.

    Scores are counted in 2 million bins that keep their order: by the exponent and the upper 16 mantissa bits of
    float32, and from 1/2 to 1 by the distance to 1. Float16 maps are counted exactly. Float32 scores closer than
    1 part in 65,536 may count as tied, which moves AUROC and AUPRO by about 1e-7 and average precision by some 1e-6
    on full-size test sets. All scores below 2^-24 (6e-8) are tied, and so are all of 2 or more: bring maps to [0, 1]
    first.

    AUPRO is the area under the per-region overlap curve (Bergmann et al., "Uninformed Students", CVPR 2020): the
    mean over all regions of the covered share, against the false positive rate over all normal pixels, up to
    `fpr_limit`, divided by `fpr_limit`. A region is one 8-connected component of one mask, and all regions weigh the
    same. A map that is constant everywhere gets `fpr_limit / 2`. What differs from common implementations:

    - every distinct (binned) score is a threshold; common code takes 200 equally spaced ones between the lowest and
      the highest score, which leaves few of them where the false positive rate is small when scores are skewed;
    - the curve is interpolated linearly at `fpr_limit`; common code drops the points beyond it and stretches the
      remaining rates to [0, 1];
    - masks are used as they are, without filling holes, and predictions are not dilated.

    Where regions are given with the area from which on they count as found, AUsPRO is the area under the saturated
    per-region overlap (Bergmann et al., "Beyond Dents and Scratches", IJCV 2022) up to `SATURATED_LIMIT`: a region of which
    as many pixels are covered as that area has counts whole.

    Args:
        fpr_limit: highest false positive rate that AUPRO integrates to, in (0, 1].

    Raises:
        ValueError: if `fpr_limit` lies outside (0, 1].
    """

    def __init__(self, fpr_limit: float = 0.3) -> None:
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit is {fpr_limit}; give a rate above 0 and at most 1, such as 0.3.")
        self.fpr_limit = fpr_limit
        self.n_regions = 0
        self._normal = np.zeros(_BINS, dtype=np.int64)  # normal pixels in each bin
        self._anomalous = np.zeros(_BINS, dtype=np.int64)  # anomalous pixels in each bin
        self._coverage = np.zeros(_BINS, dtype=np.float64)  # 1 / area of its region, for each anomalous pixel
        self.n_saturated = 0
        self._saturated = np.zeros(
            0
        )  # 1 / saturation area, for as many of the highest pixels of a region; empty without

    def update(
        self, anomaly_map: ArrayLike, mask: ArrayLike | None, regions: Sequence[tuple[np.ndarray, float]] = ()
    ) -> None:
        """Add one image; nothing changes when the input is refused.

        Args:
            anomaly_map: (height, width) finite scores >= 0, higher means more anomalous.
            mask: (height, width) bool or 0/1 with 1 on the defects, or None for a normal image.
            regions: masks (height, width) of single defects, each with the area from which on it counts as found.

        Raises:
            ValueError: if the map is not 2-D, not finite or has negative scores, or if the mask has another size or
                other values than 0 and 1.
        """
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf and is refused below
            scores = np.asarray(anomaly_map, dtype=np.float32)
        _check_map(scores)
        bins = _to_bins(scores)
        if mask is None:
            np.add.at(self._normal, bins.ravel(), 1)
            return
        mask = _as_mask(mask, scores.shape)
        labels, n_regions = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
        labels = labels[mask]  # (anomalous pixels,) region numbers from 1
        np.add.at(self._normal, bins[~mask], 1)
        np.add.at(self._anomalous, bins[mask], 1)
        np.add.at(self._coverage, bins[mask], 1.0 / np.bincount(labels)[labels])
        self.n_regions += n_regions
        for region, area in regions:
            if not self._saturated.size:
                self._saturated = np.zeros(_BINS, dtype=np.float64)
            highest = np.sort(bins[region])[::-1][: max(1, round(area))]
            np.add.at(self._saturated, highest, 1.0 / max(1, len(highest)))
            self.n_saturated += bool(len(highest))

    def merge(self, other: "PixelMetrics") -> None:
        """Add everything that `other` has seen, as if its images had been given to this object.

        Raises:
            ValueError: if the two have different values of `fpr_limit`.
        """
        if other.fpr_limit != self.fpr_limit:
            raise ValueError(
                f"fpr_limit is {self.fpr_limit} here and {other.fpr_limit} in the other; create both with the same."
            )
        self.n_regions += other.n_regions
        self._normal += other._normal
        self._anomalous += other._anomalous
        self._coverage += other._coverage
        self.n_saturated += other.n_saturated
        if other._saturated.size:
            self._saturated = other._saturated + (self._saturated if self._saturated.size else 0)

    def compute(self) -> dict[str, float | None]:
        """Return `pixel_auroc`, `pixel_ap` and `aupro` of all images so far, and `auspro` where regions were given, each in [0, 1].

        All are None while no anomalous pixel or no normal pixel has been seen.
        """
        occupied = np.flatnonzero(self._normal + self._anomalous)[::-1]  # highest scores first
        true_positives = _cumulate(self._anomalous[occupied])
        false_positives = _cumulate(self._normal[occupied])
        if not true_positives[-1] or not false_positives[-1]:
            return {"pixel_auroc": None, "pixel_ap": None, "aupro": None}
        recall = true_positives / true_positives[-1]
        precision = true_positives[1:] / (true_positives + false_positives)[1:]
        fpr = false_positives / false_positives[-1]
        overlap = _cumulate(self._coverage[occupied]) / self.n_regions
        found = {
            "pixel_auroc": float(auc(fpr, recall)),
            "pixel_ap": float(np.sum(np.diff(recall) * precision)),
            "aupro": _area_up_to(self.fpr_limit, fpr, overlap),
        }
        if self.n_saturated:
            saturated = _cumulate(self._saturated[occupied]) / self.n_saturated
            found["auspro"] = _area_up_to(SATURATED_LIMIT, fpr, saturated)
        return found


def mean_metrics(per_class: dict[str, dict[str, float | None]]) -> dict[str, float | None]:
    """Average each metric over classes with equal weight.

    Classes where a metric is None or missing are left out of its mean; a metric that no class has is None.
    """
    names = dict.fromkeys(name for metrics in per_class.values() for name in metrics)
    return {name: _mean([metrics.get(name) for metrics in per_class.values()]) for name in names}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _to_bins(scores: np.ndarray) -> np.ndarray:
    """Return the bin of each float32 score >= 0, in the order of the scores."""
    patterns = np.clip(_pattern(scores), _LOWEST, _HIGHEST)
    bins = np.where(patterns < _ONE, patterns - _LOWEST, patterns - _HIGHEST + _BINS - 1)
    upper = (patterns >= _HALF) & (patterns < _ONE)
    bins[upper] = _HALF - _LOWEST + _FARTHEST - _pattern(1 - scores[upper] + _OFFSET)
    return bins.astype(np.intp)


def _cumulate(counts: np.ndarray) -> np.ndarray:
    """Return the running sum with a leading 0: what lies above each threshold, from none to all."""
    return np.concatenate([np.zeros(1, dtype=counts.dtype), np.cumsum(counts)])


def _area_up_to(limit: float, fpr: np.ndarray, overlap: np.ndarray) -> float:
    """Integrate overlap over fpr from 0 to `limit` by trapezoids, and divide by `limit`."""
    kept = np.searchsorted(fpr, limit, side="right")
    x = np.append(fpr[:kept], limit)
    y = np.append(overlap[:kept], np.interp(limit, fpr, overlap))
    return float(auc(x, y) / limit)


def _check_images(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores have shape {scores.shape} and labels {labels.shape}; give one score and one label per image."
        )
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} of {scores.size} scores are not finite, the first is scores[{wrong[0]}] = "
            f"{scores[wrong[0]]}; find out why the model returns it, or leave that image out."
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels hold {np.unique(labels)[:5]}; use 0 for normal and 1 for anomalous images.")


def _check_map(scores: np.ndarray) -> None:
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"the anomaly map has shape {scores.shape}; give one image's (height, width) map at a time.")
    if not np.isfinite(scores).all():
        wrong = int(np.count_nonzero(~np.isfinite(scores)))
        raise ValueError(
            f"{wrong} of {scores.size} scores of the anomaly map are not finite in float32; "
            "find out why the model returns them: often a division by 0, or an overflow in half precision."
        )
    if scores.min() < 0:
        raise ValueError(
            f"the lowest score of the anomaly map is {scores.min()}, but scores must be >= 0; "
            "bring logits or differences to a scale that starts at 0, for example with a sigmoid."
        )


def _as_mask(mask: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise ValueError(
            f"the mask has size {mask.shape} and the anomaly map {shape}; "
            "resize the map (bilinear) or the mask (nearest neighbor) so that both agree."
        )
    wrong = mask[(mask != 0) & (mask != 1)]
    if wrong.size:
        raise ValueError(f"the mask holds {wrong[0]}; binarise it to 0 and 1, for example with `mask > 0`.")
    return mask.astype(bool)
