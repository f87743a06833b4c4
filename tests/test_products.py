import pytest
import torch
from torch.nn import functional as F

from modeling_anople.calibration_anople import POOLED


PATCHES = 16


def ids(*class_ids: int) -> torch.Tensor:
    return torch.tensor(class_ids)


@torch.no_grad()
def test_remembering_fills_the_memory_the_prototype_and_the_config(make_model, make_pixels):
    model, pixels = make_model(), make_pixels(3)
    model.remember(pixels, 1)
    assert model.memory.sizes == model.config.memory_sizes == [0, 3 * PATCHES]
    features = model.encode_image(pixels)
    torch.testing.assert_close(model.class_prototypes[1], F.normalize(features.pooled, dim=-1).mean(0))
    for number, layer in enumerate(model.memory.layers):
        expected = F.normalize(features.taps[layer].flatten(0, 1), dim=-1)
        torch.testing.assert_close(model.memory.bank(1)[number], expected)
    assert not model.class_prototypes[0].any()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_remembering_in_parts_is_remembering_at_once(make_model, make_pixels, batch_size):
    whole, parts, pixels = make_model(), make_model(), make_pixels(5)
    whole.remember(pixels, 0)
    parts.remember(pixels[:2], 0, batch_size=batch_size)
    parts.remember(pixels[2:], 0, batch_size=batch_size)
    torch.testing.assert_close(parts.memory.bank(0), whole.memory.bank(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.class_prototypes, whole.class_prototypes, atol=1e-6, rtol=1e-5)


def test_no_photograph_is_refused(make_model, make_pixels):
    with pytest.raises(ValueError, match="Class id 1 was given no good photographs: at least one is needed"):
        make_model().remember(make_pixels(1)[:0], 1)


@pytest.mark.parametrize("count", [1, 3])
def test_calibrating_other_photographs_than_the_remembered_ones_is_refused(make_model, make_pixels, count):
    model = make_model()
    model.remember(make_pixels(2), 0)
    with pytest.raises(
        ValueError, match=f"got {count} photographs of class id 0, whose memory holds 2: give the same"
    ):
        model.calibrate(make_pixels(count), 0)
    assert not model.config.calibration


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_few_photographs_set_a_line(make_model, make_pixels, count):
    model, pixels = make_model(), make_pixels(count)
    model.remember(pixels, 0)
    with torch.no_grad():
        assert model(pixels, class_ids=torch.zeros(count, dtype=torch.long)).calibrated_scores is None
    line = model.calibrate(pixels, 0)
    scores = 0 if count == 1 else count  # a lone one has four copies, which are no photographs
    assert len(line.image_scores) == len(line.map_maxima) == scores
    assert len(line.jittered_image_scores) == len(line.jittered_map_maxima) == (4 if count == 1 else 0)
    assert line.image_threshold > max(line.image_scores + line.jittered_image_scores)
    assert line.image_spread >= 0.05 and line.memory_scale > 0
    assert (line.photographs, line.estimate) == (count, "copies" if count == 1 else "extrapolated")
    assert line.attainable_rate == (1 if count == 1 else 1 / (count + 1))
    with torch.no_grad():
        output = model(pixels, class_ids=torch.zeros(count, dtype=torch.long))
        assert (output.calibrated_scores < 0.5).all() and output.calibrated_maps.shape == (count, 32, 32)


def test_each_photograph_is_scored_against_the_others(make_model, make_pixels):
    model, pixels = make_model(), make_pixels(3)
    model.remember(pixels, 0)
    line = model.calibrate(pixels, 0)
    expected = []
    for number in range(3):
        other = make_model()
        other.remember(torch.cat([pixels[:number], pixels[number + 1 :]]), 0)
        with torch.no_grad():
            expected += other(pixels[number : number + 1], class_ids=ids(0)).image_scores.tolist()
    assert line.image_scores == pytest.approx(expected, rel=1e-4)


def test_a_lower_rate_of_false_alarms_raises_the_line(make_model, make_pixels):
    model, pixels = make_model(), make_pixels(3)
    model.remember(pixels, 0)
    often, seldom = (model.calibrate(pixels, 0, max_false_alarm_rate=rate) for rate in (0.2, 0.01))
    assert seldom.image_threshold > often.image_threshold and seldom.map_threshold > often.map_threshold
    assert seldom.image_scores == often.image_scores


@torch.no_grad()
def test_a_product_is_untouched_by_another(make_model, make_pixels):
    model, bolts, nuts, query = make_model(), make_pixels(2), make_pixels(3, seed=1), make_pixels(4, seed=2)
    model.remember(bolts, 0)
    model.calibrate(bolts, 0)
    before = model(query, class_ids=ids(0, 0, 0, 0))
    model.remember(nuts, 1)
    model.calibrate(nuts, 1)
    after = model(query, class_ids=ids(0, 0, 0, 0))
    for name in ("image_scores", "anomaly_maps", "calibrated_scores", "calibrated_maps", "memory_maps"):
        assert torch.equal(before[name], after[name]), name
    other = model(query, class_ids=ids(1, 1, 1, 1))
    assert not torch.equal(other.memory_maps, after.memory_maps)


@torch.no_grad()
def test_an_unknown_product_says_how_to_fill_it(make_model, make_pixels):
    model = make_model()
    model.remember(make_pixels(1), 0)
    with pytest.raises(ValueError, match=r"class id 1 is empty: fit the model, or fill it with model\.remember"):
        model(make_pixels(2), class_ids=ids(0, 1))


@torch.no_grad()
def test_scaled_distances_are_calibrated_as_they_are_scored(make_model, make_pixels):
    model, pixels = make_model(fusion_scale="normal", image_map="fused"), make_pixels(2)
    model.remember(pixels, 0)
    line = model.calibrate(pixels, 0)
    again = model.calibrate(pixels, 0)
    assert line == again  # an earlier scale leaves no trace
    exclude = (0, slice(0, PATCHES))
    output = model(pixels[:1], class_ids=ids(0), exclude=exclude)
    raw = make_model(image_map="fused")
    raw.remember(pixels, 0)
    unscaled = raw(pixels[:1], class_ids=ids(0), exclude=exclude)
    assert not torch.allclose(output.anomaly_maps, unscaled.anomaly_maps)
    assert min(abs(score - float(output.image_scores)) for score in line.image_scores) < 1e-6
    largest = max(float(model(p[None], class_ids=ids(0), exclude=e).memory_maps.max()) for p, e in _left_out(pixels))
    assert line.memory_scale >= largest - 1e-6


def _left_out(pixels: torch.Tensor):
    return [(p, (0, slice(n * PATCHES, (n + 1) * PATCHES))) for n, p in enumerate(pixels)]


@pytest.mark.parametrize("order", ["class by class", "all at first"])
def test_pooled_products_share_one_line(make_model, make_pixels, order):
    model, photographs = make_model(class_identity="pooled"), [make_pixels(2), make_pixels(1, seed=1)]
    for class_id, pixels in enumerate(photographs):
        model.remember(pixels, class_id)
        if order == "class by class":
            model.calibrate(pixels, class_id)
    if order == "all at first":
        for class_id, pixels in enumerate(photographs):
            model.calibrate(pixels, class_id)
    assert sorted(model.config.calibration) == [POOLED, "bolt", "nut"]
    with torch.no_grad():
        output = model(torch.cat(photographs), class_ids=ids(0, 0, 1))
        assert output.class_ids is None and output.calibrated_scores.shape == (3,)
        blind = model(torch.cat(photographs))
    assert torch.equal(blind.calibrated_maps, output.calibrated_maps)
    pooled = model.config.calibration[POOLED]
    assert len(pooled["image_scores"]) == 2 and pooled["estimate"] == "extrapolated"


@torch.no_grad()
@pytest.mark.parametrize("class_prediction", ["prototype", "text"])
def test_lines_are_set_as_the_known_class_even_where_classes_are_predicted(make_model, make_pixels, class_prediction):
    predicted = make_model(class_identity="predicted", class_prediction=class_prediction)
    given = make_model()
    for model in (predicted, given):
        for class_id in (0, 1):  # before the other class is known
            model.remember(make_pixels(2, seed=class_id), class_id)
            model.calibrate(make_pixels(2, seed=class_id), class_id)
    assert predicted.config.calibration == given.config.calibration
    output = predicted(make_pixels(2, seed=1), class_ids=ids(0, 0))
    if class_prediction == "prototype":
        assert output.class_ids.tolist() == [1, 1]  # the given ids do not count
    else:
        similarity = output.image_embeds @ predicted.class_embeddings[:, 0].T
        assert torch.equal(output.class_ids, similarity.argmax(1))
