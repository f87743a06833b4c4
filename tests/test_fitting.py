"""What a detector learns of a product without training: its memory, its prototype and its threshold."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from modeling_anople import AnoPLeModel
from modeling_anople.calibration_anople import fit_threshold
from modeling_anople.fitting_anople import calibrate_product, recalibrate_product, remember
from modeling_anople.scoring_anople import AnoPLeOutput

from .detectors import pixel_images


PATCHES = 16


def ids(*class_ids: int) -> torch.Tensor:
    return torch.tensor(class_ids)


def learn(model: AnoPLeModel, pixels: torch.Tensor, class_id: int, **options):
    """Remember images and fit the threshold of their product."""
    images = pixel_images(pixels)
    remember(model, images, class_id)
    return calibrate_product(model, images, class_id, **options)


def images_of(model: AnoPLeModel) -> list[list[int]]:
    return [product["image_vectors"] for product in model.config.products]


# -- memory and prototype ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_remembering_fills_the_memory_the_prototype_and_the_config(make_model, make_pixels):
    model, pixels = make_model(), make_pixels(3)
    remember(model, pixel_images(pixels), 1)
    assert [bank.size for bank in model.products.banks] == [0, 3 * PATCHES]
    assert images_of(model) == [[], [PATCHES] * 3]
    features = model.encode_image(pixels)
    torch.testing.assert_close(model.products[1].prototype, F.normalize(features.pooled, dim=-1).mean(0))
    for number, layer in enumerate(model.config.memory_layers):
        expected = F.normalize(features.intermediate[layer].flatten(0, 1), dim=-1)
        torch.testing.assert_close(model.products[1].bank.vectors[number], expected)
    assert not model.products[0].prototype.any()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_remembering_in_parts_is_remembering_at_once(make_model, make_pixels, batch_size):
    whole, parts, pixels = make_model(), make_model(), make_pixels(5)
    remember(whole, pixel_images(pixels), 0)
    remember(parts, pixel_images(pixels[:2]), 0, batch_size=batch_size)
    remember(parts, pixel_images(pixels[2:]), 0, batch_size=batch_size)
    torch.testing.assert_close(parts.products[0].bank.vectors, whole.products[0].bank.vectors, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.products.prototypes(), whole.products.prototypes(), atol=1e-6, rtol=1e-5)
    assert images_of(parts) == images_of(whole) == [[PATCHES] * 5, []]


def test_no_image_is_refused(make_model):
    with pytest.raises(ValueError, match="Class id 1 was given no good images: at least one is needed"):
        remember(make_model(), [], 1)


@torch.no_grad()
@pytest.mark.parametrize("limit", [10, 40])
def test_the_memory_of_a_class_stays_within_its_limit(make_model, make_pixels, limit):
    model, free = make_model(memory_limit=limit), make_model(memory_limit=None)
    pixels = make_pixels(9)
    for detector in (model, free):
        remember(detector, pixel_images(pixels), 1)
        remember(detector, pixel_images(pixels[:1]), 0)
    assert [bank.size for bank in free.products.banks] == [PATCHES, 9 * PATCHES]
    assert [bank.size for bank in model.products.banks] == [min(limit, PATCHES), limit]
    counts = model.products[1].bank.image_vectors
    assert sum(counts) == limit and len(counts) == 9 and images_of(model)[1] == counts
    torch.testing.assert_close(model.products.prototypes(), free.products.prototypes())
    whole, kept = free.products[1].bank.vectors, model.products[1].bank.vectors
    places = [int((whole - vector[:, None]).abs().sum((0, 2)).argmin()) for vector in kept.unbind(1)]
    assert places == sorted(set(places))  # each is a whole one, in order
    assert [sum(place // PATCHES == image for place in places) for image in range(9)] == counts
    for image in range(9):
        own = model.products[1].bank.vectors_of(image)
        assert [place // PATCHES for place in places[own]] == [image] * counts[image]


def test_the_size_is_logged_before_the_memory_is_built(make_model, make_pixels, caplog, monkeypatch):
    model = make_model(memory_limit=40)
    monkeypatch.setattr(model, "encode_image", None)  # nothing has been encoded yet
    with caplog.at_level("INFO", logger="modeling_anople"), pytest.raises(TypeError):
        remember(model, pixel_images(make_pixels(5)), 1)
    assert "Memory of nut: 40 vectors in each of 2 layers, 0.0 MB (of 80, memory_limit)." in caplog.text


@torch.no_grad()
def test_a_reduced_memory_is_saved_and_grows_on(make_model, make_pixels, tmp_path):
    model = make_model(memory_limit=40)
    remember(model, pixel_images(make_pixels(6)), 0)
    model.save_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path)
    assert images_of(read) == images_of(model) and [bank.size for bank in read.products.banks] == [40, 0]
    for detector in (model, read):
        remember(detector, pixel_images(make_pixels(2, seed=5)), 0)
    assert torch.equal(read.products[0].bank.vectors, model.products[0].bank.vectors)
    assert read.products[0].image_count == 8
    assert torch.equal(read.products.prototypes(), model.products.prototypes())


# -- threshold --------------------------------------------------------------------------------------------------------


def test_calibrating_more_images_than_are_remembered_is_refused(make_model, make_pixels):
    model = make_model()
    remember(model, pixel_images(make_pixels(2)), 0)
    with pytest.raises(
        ValueError, match="3 images of 'bolt' were given, whose memory holds 2: give those that it rem"
    ):
        calibrate_product(model, pixel_images(make_pixels(3)), 0)
    assert model.products[0].record.threshold is model.config.products[0]["threshold"] is None


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_few_images_give_a_threshold(make_model, make_pixels, count):
    model, pixels = make_model(), make_pixels(count)
    remember(model, pixel_images(pixels), 0)
    with torch.no_grad():
        assert model(pixels, class_ids=torch.zeros(count, dtype=torch.long)).calibrated_scores is None
    fitted = calibrate_product(model, pixel_images(pixels), 0)
    scores = 0 if count == 1 else count  # a lone one has four copies, which are no images
    assert len(fitted.image_scores) == len(fitted.map_maxima) == scores
    assert len(fitted.jittered_image_scores) == len(fitted.jittered_map_maxima) == (4 if count == 1 else 0)
    assert fitted.image_threshold > max(fitted.image_scores + fitted.jittered_image_scores)
    assert fitted.image_spread >= 0.05
    assert (fitted.image_count, fitted.estimate) == (count, "copies" if count == 1 else "extrapolated")
    assert fitted.attainable_rate == (1 if count == 1 else 1 / (count + 1))
    with torch.no_grad():
        output = model(pixels, class_ids=torch.zeros(count, dtype=torch.long))
        assert (output.calibrated_scores < 0.5).all() and output.calibrated_maps.shape == (count, 32, 32)


def test_each_image_is_scored_against_the_others(make_model, make_pixels):
    model, pixels = make_model(), make_pixels(3)
    fitted = learn(model, pixels, 0)
    expected = []
    for number in range(3):
        other = make_model()
        remember(other, pixel_images(torch.cat([pixels[:number], pixels[number + 1 :]])), 0)
        with torch.no_grad():
            expected += other(pixels[number : number + 1], class_ids=ids(0)).image_scores.tolist()
    assert fitted.image_scores == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_a_reduced_memory_is_calibrated_image_by_image(make_model, make_pixels):
    model, pixels = make_model(memory_limit=40), make_pixels(6)
    fitted = learn(model, pixels, 0)
    bank, expected = model.products[0].bank, []
    for number in range(6):
        own, others = bank.vectors_of(number), make_model()
        rest = torch.cat([bank.vectors[:, : own.start], bank.vectors[:, own.stop :]], 1)
        others.products[0].bank.add(rest, [rest.shape[1]])
        expected.append(float(others(pixels[number : number + 1], class_ids=ids(0)).image_scores))
    assert fitted.image_scores == pytest.approx(expected, abs=1e-5)


def test_a_lower_rate_of_false_alarms_raises_the_threshold(make_model, make_pixels):
    model, images = make_model(), pixel_images(make_pixels(3))
    remember(model, images, 0)
    often, seldom = (calibrate_product(model, images, 0, max_false_alarm_rate=rate) for rate in (0.2, 0.01))
    assert seldom.image_threshold > often.image_threshold and seldom.map_threshold > often.map_threshold
    assert seldom.image_scores == often.image_scores


@torch.no_grad()
@pytest.mark.parametrize("image_map", ["memory", "fused"])
def test_normals_are_calibrated_as_they_are_scored_and_an_earlier_threshold_leaves_no_trace(
    make_model, make_pixels, image_map
):
    model, pixels = make_model(image_map=image_map), make_pixels(2)
    fitted = learn(model, pixels, 0)
    assert calibrate_product(model, pixel_images(pixels), 0) == fitted
    for number in range(2):
        own = (0, model.products[0].bank.vectors_of(number))
        output = model(pixels[number : number + 1], class_ids=ids(0), exclude=own)
        assert fitted.image_scores[number] == pytest.approx(float(output.image_scores), abs=1e-6)
        assert fitted.map_maxima[number] == pytest.approx(float(output.anomaly_maps.max()), abs=1e-6)


@torch.no_grad()
def test_a_product_is_untouched_by_another(make_model, make_pixels):
    model, bolts, nuts, query = make_model(), make_pixels(2), make_pixels(3, seed=1), make_pixels(4, seed=2)
    learn(model, bolts, 0)
    before = model(query, class_ids=ids(0, 0, 0, 0))
    learn(model, nuts, 1)
    after = model(query, class_ids=ids(0, 0, 0, 0))
    for name in ("image_scores", "anomaly_maps", "calibrated_scores", "calibrated_maps", "memory_maps"):
        assert torch.equal(before[name], after[name]), name
    other = model(query, class_ids=ids(1, 1, 1, 1))
    assert not torch.equal(other.memory_maps, after.memory_maps)


@torch.no_grad()
def test_an_unknown_product_says_how_to_fill_it(make_model, make_pixels):
    model = make_model()
    remember(model, pixel_images(make_pixels(1)), 0)
    with pytest.raises(ValueError, match=r"class id 1 is empty: fit the detector, or enroll the product"):
        model(make_pixels(2), class_ids=ids(0, 1))


@pytest.mark.parametrize("order", ["class by class", "all at first"])
def test_pooled_products_share_one_threshold(make_model, make_pixels, order):
    model, known = make_model(class_identity="pooled"), [make_pixels(2), make_pixels(1, seed=1)]
    for class_id, pixels in enumerate(known):
        remember(model, pixel_images(pixels), class_id)
        if order == "class by class":
            calibrate_product(model, pixel_images(pixels), class_id)
    if order == "all at first":
        for class_id, pixels in enumerate(known):
            calibrate_product(model, pixel_images(pixels), class_id)
    assert all(product.record.threshold for product in model.products)
    with torch.no_grad():
        output = model(torch.cat(known), class_ids=ids(0, 0, 1))
        assert output.class_ids is None and output.calibrated_scores.shape == (3,)
        blind = model(torch.cat(known))
    assert torch.equal(blind.calibrated_maps, output.calibrated_maps)
    pooled = model.config.pooled_threshold
    assert len(pooled["image_scores"]) == 2 and pooled["estimate"] == "extrapolated"


@torch.no_grad()
@pytest.mark.parametrize("class_prediction", ["prototype", "text"])
def test_thresholds_are_of_the_known_class_even_where_classes_are_predicted(make_model, make_pixels, class_prediction):
    predicted = make_model(class_identity="predicted", class_prediction=class_prediction)
    given = make_model()
    for model in (predicted, given):
        for class_id in (0, 1):  # before the other class is known
            learn(model, make_pixels(2, seed=class_id), class_id)
    assert predicted.config.products == given.config.products
    output = predicted(make_pixels(2, seed=1), class_ids=ids(0, 0))
    if class_prediction == "prototype":
        assert output.class_ids.tolist() == [1, 1]  # the given ids do not count
    else:
        similarity = output.image_embeds @ predicted.products.text_embeddings()[:, 0].T
        assert torch.equal(output.class_ids, similarity.argmax(1))


# -- a threshold that is fitted anew ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 2])
def test_scores_of_images_that_are_no_longer_at_hand_stay_in_the_sample(make_model, make_pixels, first):
    model, pixels = make_model(), make_pixels(4)
    earlier = learn(model, pixels[:first], 0)
    remember(model, pixel_images(pixels[first:]), 0)
    later = calibrate_product(model, pixel_images(pixels[first:]), 0)
    exact = calibrate_product(model, pixel_images(pixels), 0)
    assert later.image_scores[: len(earlier.image_scores)] == earlier.image_scores  # a lone one had none
    assert later.image_scores[-(4 - first) :] == exact.image_scores[first:]
    assert later.image_count == (3 if first == 1 else 4) and later.jittered_image_scores == []
    assert len(later.novelty_scores[0]) == (15 if first == 1 else 20)
    assert exact.image_count == 4 and len(exact.novelty_scores[0]) == 20


def judge(model: AnoPLeModel, pixels: torch.Tensor) -> AnoPLeOutput:
    with torch.no_grad():
        return model(pixels, class_ids=torch.zeros(len(pixels), dtype=torch.long))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_images_that_are_not_remembered_join_the_scores_as_they_are_judged(make_model, make_pixels, batch_size):
    model, pixels = make_model(), make_pixels(5)
    fitted = learn(model, pixels[:2], 0)
    output, vectors = judge(model, pixels[2:]), model.products[0].bank.vectors
    joined = recalibrate_product(model, pixel_images(pixels[2:]), 0, batch_size=batch_size)
    assert model.products[0].bank.vectors is vectors and model.products[0].record.threshold == joined
    assert joined.image_scores == pytest.approx(fitted.image_scores + output.image_scores.tolist(), abs=1e-6)
    maxima = output.anomaly_maps.flatten(1).amax(1).tolist()
    assert joined.map_maxima == pytest.approx(fitted.map_maxima + maxima, abs=1e-6)
    assert (joined.image_count, joined.held_out) == (5, 3) and joined.novelty_scores == fitted.novelty_scores
    alone = recalibrate_product(model, pixel_images(make_pixels(2, seed=9)), 0, max_false_alarm_rate=0.2)
    assert (alone.image_count, alone.held_out, alone.estimate) == (5, 5, "rank")  # five that are held out support it
    assert alone.image_scores[:3] == joined.image_scores[2:]


def test_another_rate_needs_no_image(make_model, make_pixels):
    model = make_model()
    fitted = learn(model, make_pixels(3), 0)
    again = recalibrate_product(model, [], 0, max_false_alarm_rate=0.2)
    expected = fit_threshold(fitted.image_scores, fitted.map_maxima, max_false_alarm_rate=0.2)
    assert again.image_threshold == expected.image_threshold and again.image_scores == fitted.image_scores
    assert model.config.products[0]["threshold"]["max_false_alarm_rate"] == 0.2


def test_held_out_scores_stay_last_when_more_is_remembered(make_model, make_pixels):
    model, pixels = make_model(), make_pixels(6)
    learn(model, pixels[:2], 0)
    before = recalibrate_product(model, pixel_images(pixels[2:4]), 0)
    remember(model, pixel_images(pixels[4:]), 0)
    after = calibrate_product(model, pixel_images(pixels[4:]), 0)
    assert after.held_out == 2 and after.image_count == 6
    assert after.image_scores[:2] == before.image_scores[:2] and after.image_scores[4:] == before.image_scores[2:]


def test_scores_of_copies_that_an_earlier_version_counted_are_dropped(make_model, make_pixels):
    model, pixels = make_model(), make_pixels(4)
    threshold = learn(model, pixels[:2], 0)
    counted = dataclasses.replace(threshold, image_count=0, image_scores=[0.9] * 10, map_maxima=[0.9] * 10)
    model.products.set_threshold(0, counted)
    again = recalibrate_product(model, pixel_images(pixels[2:]), 0)
    assert len(again.image_scores) == 2 and 0.9 not in again.image_scores
    model.products.set_threshold(0, dataclasses.replace(threshold, image_count=0))
    remember(model, pixel_images(pixels[2:]), 0)
    assert calibrate_product(model, pixel_images(pixels[2:]), 0).image_count == 2
