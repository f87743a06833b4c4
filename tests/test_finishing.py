"""Alarms of fitting: a decoder that does not look at the image is noticed, one that does is not."""

import dataclasses
import logging
import re
from unittest import mock

import numpy as np
import pytest
import torch

from modeling_anople import AnoPLeModel, AnoPLeProcessor, load_image
from modeling_anople.data.drawn_products import draw_product
from modeling_anople.fitting_anople import remember
from modeling_anople.inference_anople import TiledImage
from modeling_anople.training.few_shot import choose_shots, make_samples, make_validation_batch
from modeling_anople.training.finishing import (
    DecoderHealth,
    _spoiled_views,
    check_decoder,
    describe_parts,
    image_weights,
    judge_maps,
    map_weights,
    measure_parts,
)
from modeling_anople.training.options import TrainingConfig, model_options


@pytest.fixture
def masks():
    """Six masks with a square each, every one elsewhere."""
    masks = torch.zeros(6, 32, 32)
    for number in range(6):
        row, column = divmod(number, 3)
        masks[number, 16 * row : 16 * row + 8, 8 * column : 8 * column + 8] = 1
    return masks


@pytest.fixture
def batch(make_pixels, masks):
    return {"pixel_values": make_pixels(6), "class_ids": torch.tensor([0, 1, 0, 1, 0, 1]), "mask_labels": masks}


@pytest.fixture
def products(tmp_path, photograph):
    """Two products, one with three photographs to spare beyond two shots, one with none."""
    for name, count in (("bolt", 5), ("nut", 2)):
        folder = tmp_path / "products" / name
        folder.mkdir(parents=True)
        for number in range(count):
            photograph(number + 10 * len(name)).save(folder / f"{number}.png")
    return tmp_path / "products"


def test_a_map_that_is_the_mask_is_perfect(masks):
    health = judge_maps(masks.clone(), masks, feature_spread=0.7)
    assert health.auroc == 1 and health.inside == 1 and health.outside == 0
    assert health.shuffled_auroc < 0.6
    assert health.problems == []


def test_a_coarse_map_is_brought_to_the_masks(masks):
    coarse = torch.nn.functional.avg_pool2d(masks, 4)
    assert judge_maps(coarse, masks, feature_spread=0.7).auroc > 0.98


def test_the_same_map_for_all_images_is_noticed(masks):
    shared = masks.mean(0, keepdim=True).expand(6, -1, -1)  # knows where defects are made, but not this image's
    health = judge_maps(shared, masks, feature_spread=0.7)
    assert health.auroc > 0.6
    assert health.auroc == pytest.approx(health.shuffled_auroc)
    assert len(health.problems) == 1 and "fit other images as well" in health.problems[0]


def test_features_that_hardly_vary_are_noticed():
    health = DecoderHealth(auroc=0.9, shuffled_auroc=0.5, feature_spread=0.01, inside=0.8, outside=0.1)
    assert len(health.problems) == 1 and "spread 0.010" in health.problems[0]


def test_a_constant_decoder_is_noticed_and_the_remedy_named(make_model, batch, caplog):
    model = make_model().eval()
    with torch.no_grad():
        model.decoder.project.weight.zero_()
        model.decoder.project.bias.normal_(generator=torch.Generator().manual_seed(0))
    health = check_decoder(model, batch)
    assert health.feature_spread < 1e-3 and health.auroc == pytest.approx(0.5, abs=0.1)
    assert len(health.problems) == 2
    with caplog.at_level(logging.WARNING, logger="modeling_anople"):
        health.warn()
    assert "collapsed" in caplog.text
    remedies = set(re.findall(r"--(\w+)", caplog.text))
    known = {field.name for options in (TrainingConfig, model_options()) for field in dataclasses.fields(options)}
    assert remedies and remedies <= known


def test_a_healthy_decoder_gives_no_warning(masks, caplog):
    with caplog.at_level(logging.WARNING, logger="modeling_anople"):
        judge_maps(masks.clone(), masks, feature_spread=0.7).warn()
    assert caplog.text == ""


def test_an_untrained_decoder_looks_at_the_image(make_model, batch):
    """Its maps mean nothing yet, but its features differ from place to place."""
    health = check_decoder(make_model().eval(), batch)
    assert health.feature_spread > 0.1


def test_the_figures_do_not_depend_on_the_batch_size(make_model, batch):
    model = make_model().eval()
    whole, parts = check_decoder(model, batch), check_decoder(model, batch, batch_size=4)
    assert whole.as_dict() == pytest.approx(parts.as_dict(), abs=1e-3)


def test_the_class_of_each_image_is_used(make_model, batch):
    model = make_model().eval()
    with torch.no_grad():
        model.products[1].text_embeddings = model.products[1].text_embeddings.flip(
            0
        )  # normal and abnormal text change places
    other = {**batch, "class_ids": 1 - batch["class_ids"]}
    assert check_decoder(model, batch).inside != pytest.approx(check_decoder(model, other).inside, abs=1e-5)


def test_figures_of_the_log_are_rounded():
    health = DecoderHealth(auroc=0.123456, shuffled_auroc=0.5, feature_spread=0.25, inside=0.1, outside=0.2)
    figures = health.as_dict()
    assert figures == {"auroc": 0.1235, "shuffled_auroc": 0.5, "feature_spread": 0.25, "inside": 0.1, "outside": 0.2}


def config_for(products, **options) -> TrainingConfig:
    return TrainingConfig(data_root=str(products), shots=2, **options)


def test_watched_photographs_are_not_among_the_shots(products):
    shots = choose_shots(config_for(products, monitor_images=6))
    held_out: dict[str, set[str]] = {name: set() for name in shots.files}
    for image, owner in shots.held_out:
        held_out[list(shots.files)[owner]].add(image["path"])
    chosen = {name: {str(products / path) for path in paths} for name, paths in shots.files.items()}
    assert len(held_out["bolt"]) == 3 and not held_out["bolt"] & chosen["bolt"]
    assert held_out["nut"] == chosen["nut"]  # none to spare


@pytest.mark.parametrize(("asked", "each"), [(1, 1), (2, 1), (4, 2), (5, 2)])
def test_all_classes_are_watched_equally(products, make_processor, asked, each):
    config = config_for(products, monitor_images=asked)
    shots = choose_shots(config)
    watched = make_validation_batch(config, make_processor(), shots)
    assert [owner for _, owner in shots.held_out] == [0] * each + [1] * each
    assert watched["class_ids"].bincount().tolist() == [2 * each, 2 * each]
    assert watched["pixel_values"].shape == (4 * each, 3, 32, 32)
    assert watched["view_ids"].unique().tolist() == [0]


def test_watched_defects_are_made_as_in_training_but_are_others(products, make_processor):
    config = config_for(products, monitor_images=4, pixel_anomaly="cut_paste")
    shots, processor = choose_shots(config), make_processor()
    watched, again = (make_validation_batch(config, processor, shots) for _ in range(2))
    assert all(torch.equal(watched[name], again[name]) for name in watched)
    assert watched["mask_labels"].flatten(1).any(1).all()
    trained = make_samples(config, processor, shots, 1)
    drawn = {trained[number]["mask_labels"].numpy().tobytes() for number in range(1, 40, 2)}
    assert not drawn & {mask[None].numpy().tobytes() for mask in watched["mask_labels"]}


def test_defects_are_watched_where_training_makes_none(products, make_processor):
    config = config_for(products, monitor_images=6, pixel_anomaly="none")
    assert make_validation_batch(config, make_processor(), choose_shots(config))["mask_labels"].any()


def test_watching_can_be_turned_off(products, make_processor):
    config = config_for(products, monitor_images=0)
    assert make_validation_batch(config, make_processor(), choose_shots(config)) is None


# -- what each part finds, and weighs --------------------------------------------------------------------------------


def log_odds_of(*distances: float, correlation: float = 0.0, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Draw log odds of parts with spread 1, so far apart on good and defective images, alike by a correlation."""
    parts = len(distances)
    covariance = np.full((parts, parts), correlation) + (1 - correlation) * np.eye(parts)
    noise = np.random.default_rng(0).multivariate_normal(np.zeros(parts), covariance, 2 * count)
    return noise[:count], noise[count:] + distances


def test_independent_maps_weigh_what_they_find():
    assert map_weights(*log_odds_of(2.0, 1.0, 0.5), [True] * 3) == pytest.approx([1, 0.5, 0.25], abs=0.02)


def test_a_map_that_repeats_the_memory_weighs_less():
    # by hand: covariance [[1, 0.5], [0.5, 1]], its inverse times (2, 1.5) is proportional to (1.25, 0.5)
    assert map_weights(*log_odds_of(2.0, 1.5, correlation=0.5), [True] * 2) == pytest.approx([1, 0.4], abs=0.03)
    assert map_weights(*log_odds_of(2.0, 0.5, correlation=0.8), [True] * 2) == [1, 0]  # and never less than nothing


def test_a_map_weighs_less_the_more_it_varies():
    normal, defective = log_odds_of(1.0, 1.0)
    normal[:, 1], defective[:, 1] = 2 * normal[:, 1], 2 * defective[:, 1]
    assert map_weights(normal, defective, [True] * 2) == pytest.approx([1, 0.5], abs=0.02)


def test_image_scores_weigh_what_they_find_by_how_they_vary():
    assert image_weights([0.8, 0.8], [0.5, 0.5], [True] * 2) == [1, 1]
    assert image_weights([0.8, 0.8, 0.7], [0.5, 1.0, 0.5], [True] * 3) == pytest.approx([1, 0.5, 0.6231], abs=1e-4)


def test_a_part_at_chance_has_no_weight_and_none_outweighs_the_memory():
    assert map_weights(*log_odds_of(0.5, 3.0, 3.0), [True, True, False]) == [1, 1, 0]
    assert image_weights([0.6, 0.99, 0.9], [0.5] * 3, [True, True, False]) == [1, 1, 0]


def test_a_single_defective_place_gives_weights_too():
    normal, defective = log_odds_of(2.0, 1.0)
    assert all(np.isfinite(map_weights(normal, defective[:1], [True] * 2)))


def test_a_memory_at_chance_answers_alone():
    assert map_weights(*log_odds_of(0.0, 3.0), [False, True]) == [1, 0]
    assert map_weights(*log_odds_of(-1.0, 3.0), [True, True]) == [1, 0]
    assert image_weights([0.5, 0.9], [0.5] * 2, [False, True]) == [1, 0]


@pytest.fixture(scope="module")
def drawn_shots(tmp_path_factory):
    """Two drawn boards and two drawn caps."""
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("bottle cap", "wooden board"):
        (folder / name).mkdir()
        for number in range(2):
            draw_product(name, np.random.default_rng(number), 96)[0].save(folder / name / f"{number}.png")
    return choose_shots(TrainingConfig(data_root=str(folder), shots=2))


@pytest.fixture(scope="module")
def embedded(drawn_shots):
    """The embedded CLIP, which remembers them."""
    names = list(drawn_shots.files)
    model = AnoPLeModel.from_clip("mini", names, map_fusion="weighted", image_fusion="weighted").eval()
    processor = AnoPLeProcessor.from_clip("mini", names)
    model.store_text_embeddings()
    for class_id in range(2):
        own = [
            image for image, owner in zip(drawn_shots.images, drawn_shots.class_ids, strict=True) if owner == class_id
        ]
        remember(model, [TiledImage.of(load_image(image), processor, None) for image in own], class_id)
    return model, processor


def test_the_memory_of_the_embedded_clip_is_seen_to_find_defects(embedded, drawn_shots):
    health = measure_parts(*embedded, drawn_shots)
    assert health["memory_map"].auroc > 0.7 and health["memory"].auroc > 0.6
    assert all(
        0 <= known.auroc <= 1 and 0.5 < known.chance < 0.7 and 0 <= known.weight <= 1 for known in health.values()
    )
    assert measure_parts(*embedded, drawn_shots) == health  # the same photographs, the same figures


def test_what_is_ignored_is_neither_spoiled_nor_judged(drawn_shots):
    mask = np.zeros((96, 96), dtype=bool)
    mask[:, :48] = True
    image, processor = drawn_shots.images[0], AnoPLeProcessor.from_clip("mini", list(drawn_shots.files))
    views = _spoiled_views(image, processor, None, 224, mask, [0])
    assert views.pixels.shape[1:] == (3, 224, 224) and len(views.pixels) == len(views.marked) == len(views.ignored) > 4
    assert views.ignored[:, :, :90].all() and not views.ignored[:, :, 130:].any()
    assert (
        views.marked[4:].flatten(1).any(1).all() and not views.marked[:, :, :90].any() and not views.marked[:4].any()
    )


def test_the_memory_is_as_good_with_half_of_each_photograph_ignored(drawn_shots):
    names = list(drawn_shots.files)
    mask = np.zeros((96, 96), dtype=bool)
    mask[:, :48] = True
    shots = dataclasses.replace(drawn_shots, masks=dict.fromkeys(names, mask))
    model, processor = AnoPLeModel.from_clip("mini", names).eval(), AnoPLeProcessor.from_clip("mini", names)
    model.store_text_embeddings()
    for class_id in range(2):
        own = [image for image, owner in zip(shots.images, shots.class_ids, strict=True) if owner == class_id]
        remember(model, [TiledImage.of(load_image(image), processor, None, mask) for image in own], class_id)
    health = measure_parts(model, processor, shots)
    assert health["memory_map"].auroc > 0.7 and health["memory"].auroc > 0.6


def test_photographs_on_which_no_defect_can_be_seen_leave_the_memory_alone(tmp_path, photograph):
    (tmp_path / "part").mkdir()
    photograph(0).save(tmp_path / "part" / "0.png")
    shots = choose_shots(TrainingConfig(data_root=str(tmp_path), shots=1))
    model, processor = AnoPLeModel.from_clip("mini", ["part"]).eval(), AnoPLeProcessor.from_clip("mini", ["part"])
    model.store_text_embeddings()
    remember(model, [TiledImage.of(load_image(shots.images[0]), processor, None)], 0)
    everywhere = np.ones(photograph(0).size[::-1], dtype=bool)
    everywhere[:2] = False  # what counts is too little for any defect
    health = measure_parts(model, processor, dataclasses.replace(shots, masks={"part": everywhere}))
    assert health == {} and "the memory answers alone" in describe_parts(health)


def test_a_decoder_that_answers_the_same_everywhere_has_no_weight(embedded, drawn_shots):
    model, processor = embedded

    decode = model.decoder.forward

    def blind(*given, **options):
        decoded = decode(*given, **options)
        decoded.logits = torch.zeros_like(decoded.logits)
        return decoded

    with mock.patch.object(model.decoder, "forward", blind):
        health = measure_parts(model, processor, drawn_shots)
    assert health["decoder_map"].weight == 0 and health["decoder"].weight == 0
