import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from modeling_anople.evaluation.metrics import SATURATED_LIMIT, PixelMetrics, image_metrics, mean_metrics


SEEDS = [0, 1, 2]


def measure(maps, masks, fpr_limit=0.3):
    metrics = PixelMetrics(fpr_limit)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.update(anomaly_map, mask)
    return metrics.compute()


def distinct_maps(rng, images, size):
    """Maps without any tie, whose scores k / 65536 are exact in 16 bits, so that every score has its own bin."""
    return (rng.permutation(2**16)[: images * size * size] / 2**16).reshape(images, size, size)


def tied_maps(rng, images, size):
    return rng.integers(0, 12, (images, size, size)) / 16


def defect_masks(images, size):
    """Small, large, diagonal and ring-shaped regions; the first two images are normal, one given as None."""
    masks = np.zeros((images, size, size), dtype=bool)
    masks[2, 1, 1] = masks[2, 2, 2] = masks[2, 3, 1] = True  # three pixels that touch at corners only
    masks[2, 8:20, 6:20] = True
    masks[3, 5, 5] = True
    masks[3, 10:14, 0:2] = True
    masks[4, 4:16, 4:16] = True
    masks[4, 7:12, 7:12] = False  # a hole
    masks[4, 9, 9] = True  # a region of its own inside the hole
    return [None, *masks[1:]]


def as_arrays(maps, masks):
    return [np.zeros(m.shape, dtype=bool) if mask is None else mask for m, mask in zip(maps, masks, strict=True)]


def reference_aupro(maps, masks, limit):
    """Walk over every distinct score as a threshold, with a plain loop over images and regions."""
    masks = as_arrays(maps, masks)
    regions = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [anomaly_map[labelled == number] for number in range(1, count + 1)]
    normal = np.concatenate([anomaly_map[~mask] for anomaly_map, mask in zip(maps, masks, strict=True)])
    x, y, area = 0.0, 0.0, 0.0
    for threshold in sorted(set(np.ravel(maps)), reverse=True):
        next_x = np.mean(normal >= threshold)
        next_y = np.mean([np.mean(region >= threshold) for region in regions])
        if next_x > limit:
            at_limit = y + (next_y - y) * (limit - x) / (next_x - x)
            return (area + (limit - x) * (y + at_limit) / 2) / limit
        area += (next_x - x) * (y + next_y) / 2
        x, y = next_x, next_y
    return area / limit


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("decimals", [1, 12])
def test_image_metrics_equal_scikit_learn(seed, decimals):
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0, 1] * 20 + [1] * 13)
    scores = np.round(rng.normal(size=labels.size) + labels, decimals)
    metrics = image_metrics(scores, labels)
    assert metrics["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    best = max(f1_score(labels, scores >= threshold) for threshold in scores)
    assert metrics["image_f1_max"] == pytest.approx(best, abs=1e-12)
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [True, True, True]])
def test_image_metrics_of_one_class_are_not_applicable(labels):
    assert image_metrics([0.1, 0.5, 0.3], labels) == {"image_auroc": None, "image_ap": None, "image_f1_max": None}


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, np.nan, 0.2], [0, 1, 1], r"1 of 3 scores .* scores\[1\] = nan"),
        ([0.1, 0.3, np.inf], [0, 1, 1], r"scores\[2\] = inf"),
        ([np.nan, 0.3], [0, 0], "not finite"),  # also where nothing would have been computed
        ([0.1, 0.2, 0.3], [0, 1], r"\(3,\) and labels \(2,\)"),
        ([[0.1, 0.2]], [[0, 1]], "one score and one label"),
        ([0.1, 0.2], [0, 255], "255"),
        ([0.1, 0.2], [-1, 1], "use 0 for normal"),
    ],
)
def test_image_metrics_refuse_bad_input(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        image_metrics(scores, labels)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("gain", "ap_tolerance"),  # 1 crowds all scores between 1/4 and 4/5, 16 pushes most against 0 and 1
    [(1, 1e-5), (4, 1e-6), (16, 1e-6)],
)
def test_pixel_auroc_and_ap_equal_scikit_learn_on_random_floats(seed, gain, ap_tolerance):
    rng = np.random.default_rng(seed)
    masks = rng.random((4, 160, 160)) < 0.1
    logits = gain * (rng.uniform(-1, 1, masks.shape) + 0.3 * masks)
    maps = (1 / (1 + np.exp(-logits))).astype(np.float32)
    metrics, labels, scores = measure(maps, masks), masks.ravel(), maps.ravel()
    assert metrics["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert metrics["pixel_ap"] == pytest.approx(average_precision_score(labels, scores), abs=ap_tolerance)


@pytest.mark.parametrize("edge", [2.0**-23, 2.0**-10, 0.5, 1 - 2.0**-8, 1.0, 1.5])
def test_scores_keep_their_order_across_the_seams_between_bins(edge):
    scores = edge * (1 + np.arange(-8, 8) / 2**16)
    assert measure([scores[None]], [scores[None] >= edge])["pixel_auroc"] == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make_maps", [distinct_maps, tied_maps])
def test_pixel_metrics_are_exact_where_scores_fit_their_bins(seed, make_maps):
    maps, masks = make_maps(np.random.default_rng(seed), 5, 24), defect_masks(5, 24)
    metrics = measure(maps, masks)
    labels, scores = np.ravel(as_arrays(maps, masks)), np.ravel(maps)
    assert metrics["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics["pixel_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("make_maps", [distinct_maps, tied_maps])
def test_aupro_equals_the_slow_reference(seed, limit, make_maps):
    maps, masks = make_maps(np.random.default_rng(seed), 5, 24), defect_masks(5, 24)
    assert measure(maps, masks, limit)["aupro"] == pytest.approx(reference_aupro(maps, masks, limit), abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_aupro_equals_the_slow_reference_on_smooth_maps_that_follow_the_defects(seed):
    rng = np.random.default_rng(seed)
    masks = defect_masks(5, 24)
    noisy = np.array(as_arrays(np.zeros((5, 24, 24)), masks)) + rng.random((5, 24, 24))
    maps = ndimage.gaussian_filter(noisy / 2, (0, 1, 1))
    for dtype, tolerance in [(np.float16, 1e-9), (np.float32, 2e-5)]:  # 2,880 pixels: one tie weighs much
        found = measure(maps.astype(dtype), masks)["aupro"]
        assert 0.4 < found < 1
        assert found == pytest.approx(reference_aupro(maps.astype(dtype), masks, 0.3), abs=tolerance)


@pytest.mark.parametrize(
    ("rank", "expected"),  # the limit is this many of 12 normal pixels: on a step of the curve, then within a tie
    [(1, 0.5), (1.5, (0.5 + 0.5 * (0.75 + 0.875) / 2) / 1.5)],
)
def test_aupro_by_hand_with_a_diagonal_region_and_a_tie(rank, expected):
    mask = np.zeros((3, 5), dtype=int)
    mask[0, 0] = mask[1, 1] = 1  # one region: its pixels touch at a corner
    mask[2, 4] = 1
    anomaly_map = np.full((3, 5), 0.1)
    anomaly_map[2, 4] = 0.9  # overlap 1/2 at rate 0
    anomaly_map[0, 4] = 0.8  # rate 1/12
    anomaly_map[0, 0] = 0.7  # overlap 3/4
    anomaly_map[1, 1] = anomaly_map[2, 0] = 0.6  # overlap 1 at rate 2/12; 7/8 at 1.5/12, by interpolation
    metrics = PixelMetrics(fpr_limit=rank / 12)
    metrics.update(anomaly_map, mask)
    assert metrics.n_regions == 2
    assert metrics.compute()["aupro"] == pytest.approx(expected, abs=1e-12)


def test_a_perfect_map_scores_one():
    mask = np.zeros((16, 16), dtype=bool)
    mask[2:5, 2:5] = mask[10, 10] = True
    assert measure([0.2 + 0.5 * mask], [mask]) == pytest.approx({"pixel_auroc": 1, "pixel_ap": 1, "aupro": 1})


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0, 7.0])
def test_a_constant_map_scores_chance(value):
    mask = np.zeros((10, 10), dtype=bool)
    mask[:2, :5] = True
    expected = {"pixel_auroc": 0.5, "pixel_ap": 0.1, "aupro": 0.15}
    assert measure([np.full((10, 10), value)], [mask]) == pytest.approx(expected, abs=1e-12)


def test_extreme_scores_keep_their_side_and_are_tied_only_outside_the_bins():
    mask = np.array([[False, False, True, True]])
    for low, high in [(0.0, 2.0**-24), (-0.0, 2.0**-24), (1 - 2.0**-24, 1.0), (1.9999, 2.0)]:
        assert measure([np.array([[low, low, high, high]])], [mask])["pixel_auroc"] == 1
    for low, high in [(0.0, 1e-9), (2.0, 500.0)]:
        assert measure([np.array([[low, low, high, high]])], [mask])["pixel_auroc"] == 0.5


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("mask_dtype", [np.uint8, np.int64, np.float32])
def test_any_float_map_and_any_0_1_mask_is_accepted(dtype, mask_dtype):
    maps, masks = tied_maps(np.random.default_rng(0), 5, 24), defect_masks(5, 24)
    converted = [None if mask is None else mask.astype(mask_dtype) for mask in masks]
    assert measure(maps.astype(dtype), converted) == measure(maps, masks)


def test_none_and_an_empty_mask_both_mean_a_normal_image():
    maps, masks = distinct_maps(np.random.default_rng(0), 5, 24), defect_masks(5, 24)
    assert masks[0] is None
    assert measure(maps, masks) == measure(maps, as_arrays(maps, masks))


def test_pixel_metrics_are_not_applicable_without_both_kinds_of_pixels():
    nothing = {"pixel_auroc": None, "pixel_ap": None, "aupro": None}
    anomaly_map = np.random.default_rng(0).random((8, 8))
    assert PixelMetrics().compute() == nothing
    assert measure([anomaly_map], [None]) == nothing
    assert measure([anomaly_map], [np.zeros((8, 8), dtype=bool)]) == nothing
    assert measure([anomaly_map], [np.ones((8, 8), dtype=bool)]) == nothing
    assert None not in measure([anomaly_map] * 2, [np.ones((8, 8), dtype=bool), None]).values()


def test_merged_shards_equal_a_single_pass_in_any_order():
    maps, masks = distinct_maps(np.random.default_rng(0), 5, 24), defect_masks(5, 24)
    expected = measure(maps, masks)
    shards = [PixelMetrics(), PixelMetrics()]
    for number in [4, 0, 3, 1, 2]:
        shards[number % 2].update(maps[number], masks[number])
        shards[0].compute()  # may be asked for at any time
    second = shards[1].compute()
    shards[0].merge(shards[1])
    assert shards[0].compute() == pytest.approx(expected, abs=1e-12)
    assert shards[0].n_regions == 6
    assert shards[1].compute() == second
    assert measure(maps[::-1], masks[::-1]) == pytest.approx(expected, abs=1e-12)


def test_shards_with_different_limits_do_not_merge():
    with pytest.raises(ValueError, match=r"0\.3 here and 0\.1 in the other"):
        PixelMetrics(0.3).merge(PixelMetrics(0.1))


def test_state_does_not_grow_with_images():
    def state_bytes(metrics):
        state = vars(metrics).values()
        assert all(isinstance(value, (np.ndarray, int, float)) for value in state)  # no list to grow
        return sum(value.nbytes for value in state if isinstance(value, np.ndarray))

    rng = np.random.default_rng(0)
    metrics, sizes = PixelMetrics(), []
    for _ in range(50):
        metrics.update(rng.random((32, 32)), rng.random((32, 32)) < 0.1)
        sizes.append(state_bytes(metrics))
    assert sizes[0] == sizes[-1] < 50 * 2**20


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "message"),
    [
        (np.zeros((4, 6)), np.zeros((6, 4)), r"mask has size \(6, 4\) and the anomaly map \(4, 6\); resize"),
        (np.zeros((4, 6)), np.zeros((1, 4, 6)), r"\(1, 4, 6\)"),
        (np.array([[0.1, np.nan]]), None, "1 of 2 scores of the anomaly map are not finite"),
        (np.array([[0.1, np.inf]]), np.array([[0, 1]]), "not finite"),
        (np.array([[0.1, 1e39]]), None, "not finite in float32"),
        (np.array([[0.1, -0.5]]), None, r"-0\.5, but scores must be >= 0"),
        (np.zeros((1, 4, 6)), None, r"shape \(1, 4, 6\)"),
        (np.zeros((0, 6)), None, r"shape \(0, 6\)"),
        (np.zeros((1, 2)), np.array([[0, 255]]), "holds 255; binarise"),
        (np.zeros((1, 2)), np.array([[0, 0.5]]), r"holds 0\.5; binarise"),
    ],
)
def test_update_refuses_bad_input_and_counts_nothing(anomaly_map, mask, message):
    maps, masks = tied_maps(np.random.default_rng(0), 5, 24), defect_masks(5, 24)
    metrics = PixelMetrics()
    for good_map, good_mask in zip(maps, masks, strict=True):
        metrics.update(good_map, good_mask)
    with pytest.raises(ValueError, match=message):
        metrics.update(anomaly_map, mask)
    assert metrics.compute() == measure(maps, masks)


@pytest.mark.parametrize("limit", [0, -0.1, 1.5, np.nan])
def test_fpr_limit_must_be_a_rate(limit):
    with pytest.raises(ValueError, match="fpr_limit is"):
        PixelMetrics(limit)


def test_mean_metrics_weigh_classes_equally_and_skip_what_is_not_applicable():
    per_class = {
        "bottle": {"image_auroc": 0.5, "aupro": 0.25, "pixel_ap": None},
        "cable": {"image_auroc": 1.0, "aupro": None, "pixel_ap": None},
        "pill": {"image_auroc": 0.0},
    }
    assert mean_metrics(per_class) == {"image_auroc": 0.5, "aupro": 0.25, "pixel_ap": None}
    assert mean_metrics({}) == {}


# --- Saturated overlap of regions ---


def spro_by_definition(scores: list, regions: list[list[tuple[np.ndarray, int]]], limit: float) -> float:
    """Walk over all thresholds: the mean over regions of min(covered pixels / saturation area, 1), up to a false positive rate."""
    thresholds = np.unique(np.concatenate([each.ravel() for each in scores]))[::-1]
    fprs, overlaps = [0.0], [0.0]
    normal = [
        ~np.logical_or.reduce([mask for mask, _ in own]) if own else np.ones(each.shape, bool)
        for each, own in zip(scores, regions, strict=True)
    ]
    count = sum(map(np.sum, normal))
    for threshold in thresholds:
        found = [
            min((each[mask] >= threshold).sum() / area, 1)
            for each, own in zip(scores, regions, strict=True)
            for mask, area in own
        ]
        fprs.append(sum((each[good] >= threshold).sum() for each, good in zip(scores, normal, strict=True)) / count)
        overlaps.append(np.mean(found))
    grid = np.linspace(0, limit, 20_001)
    return float(np.trapezoid(np.interp(grid, fprs, overlaps), grid) / limit)


def test_saturated_overlap_is_that_of_its_definition():
    generator = np.random.default_rng(0)
    scores = [generator.random((40, 40)).astype(np.float16).astype(np.float32) for _ in range(3)]
    large, small = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    large[2:20, 3:30], small[30:34, 30:38] = True, True
    scores[0][large] += 0.6
    scores[0][small] += 0.3
    regions = [[(large, 50), (small, 32)], [(small, 8)], []]
    whole, parts = PixelMetrics(), [PixelMetrics() for _ in scores]
    for each, own, part in zip(scores, regions, parts, strict=True):
        mask = np.logical_or.reduce([mask for mask, _ in own]) if own else None
        for metrics in (whole, part):
            metrics.update(each, mask, own)
    expected = spro_by_definition(scores, regions, SATURATED_LIMIT)
    assert whole.compute()["auspro"] == pytest.approx(expected, abs=2e-3)
    merged = PixelMetrics()
    for part in parts:
        merged.merge(part)
    assert merged.compute()["auspro"] == pytest.approx(whole.compute()["auspro"], abs=1e-9)
    plain = PixelMetrics()
    plain.update(scores[0], large)
    assert "auspro" not in plain.compute()
