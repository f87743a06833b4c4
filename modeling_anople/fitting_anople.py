"""From normal images to what a detector knows of a product, without training: memory bank, prototype and threshold."""

import itertools
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .calibration_anople import (
    FrameLimits,
    ProductThreshold,
    cheapest_line,
    fit_novelty_thresholds,
    fit_threshold,
    student_quantile,
)
from .images_anople import ignored_patches
from .inference_anople import TILES_AT_ONCE, JudgedImage, TiledImage, predict_tiles, prepare_tiles
from .modeling_anople import AnoPLeModel
from .scoring_anople import AnoPLeOutput, novelty_scores
from .tiling_anople import ROTATION_COUNTS, jittered_copies, rotated_copies


logger = logging.getLogger(__name__)

DEFAULT_FALSE_ALARM_RATE = 0.05
LOWEST_USUAL_THRESHOLD = 0.01  # of raw scores: below lie only photographs that are copies of one another


# --- Memory and prototype ---


@torch.no_grad()
def remember(model: AnoPLeModel, images: Sequence[TiledImage], class_id: int, *, batch_size: int = 8) -> None:
    """
    Add normal images of one product to its memory, without what is ignored, and to its prototype.

    Where the memory would grow past `config.memory_limit`, the vectors that best cover all are kept.

    Args:
        images: normal images, in tiles.
        class_id: the product.
        batch_size: images encoded at once.

    Raises:
        ValueError: if there is no image, or nothing of one counts.
    """
    model.eval()
    if not images:
        raise ValueError(f"Class id {class_id} was given no good images: at least one is needed.")
    product, limit = model.products[class_id], model.config.memory_limit
    known, bank = product.image_count, product.bank
    _announce_memory(model, class_id, sum(len(image.boxes) for image in images))
    total = product.prototype.float() * known
    for batch in _batches(images, batch_size):
        for image, (embedding, vectors, boxes) in zip(batch, _encode(model, batch), strict=True):
            if not len(boxes):
                raise ValueError("The ignore_mask leaves no patch of a good image: mark less of it.")
            if not (vectors.isfinite().all() and embedding.isfinite().all()):
                raise ValueError(
                    f"What the detector sees of a good image of {product.name!r} is no finite number: its weights are broken, "
                    "copy or fit it again."
                )
            bank.add(vectors, [vectors.shape[1]], boxes)
            total = total + (embedding if image.layout is None else _embedding_of(model, image))
            image.release()
        if limit and bank.size > 2 * limit:  # however many images there are
            bank.reduce(limit)
    if limit:
        bank.reduce(limit)
    product.prototype = (total / (known + len(images))).to(product.prototype)
    model.products.outdate_sensitivity(class_id)
    model.products.write()


def _batches(images: Sequence[TiledImage], batch_size: int) -> Iterator[list[TiledImage]]:
    """Take images that are not cut several at a time, and those that are one by one: they have tiles enough."""
    for cut, several in itertools.groupby(images, key=lambda image: image.layout is not None):
        several = list(several)
        size = 1 if cut else batch_size
        yield from (several[start : start + size] for start in range(0, len(several), size))


def _encode(model: AnoPLeModel, images: Sequence[TiledImage]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """
    Encode all tiles of some images, a few at a time.

    Returns:
        For each image the global feature of its first tile (joint width), and what the memory takes of it: vectors (layers,
        vectors, width), and which pixels each saw (vectors, 4).
    """
    grid, rotations = model.config.memory_grid_size, model.config.memory_rotations
    queue = [(place, number) for place, image in enumerate(images) for number in range(len(image.boxes))]
    seen = [image.patch_boxes(grid, rotations) for image in images]  # (copies, tiles, patches, 4) each
    embeddings: list[Tensor | None] = [None] * len(images)
    vectors, boxes = ([[] for _ in images] for _ in range(2))
    at_once = max(TILES_AT_ONCE, len(images))
    for start in range(0, len(queue), at_once):
        chunk = queue[start : start + at_once]
        pixels, masks = prepare_tiles([(images[place], number) for place, number in chunk])
        pixels = pixels.to(model.device, model.dtype)
        for turn, (rotated, ignored) in enumerate(rotated_copies(pixels, rotations, masks)):
            # the CLIP need not look at rotated images for a memory with an encoder of its own
            features = model.encode_image(rotated) if turn == 0 or model.memory_encoder is None else None
            remembered = model.memory_features(rotated, features)  # (layers, tiles, patches, width)
            counts = torch.ones(len(chunk), grid**2, dtype=torch.bool)
            if ignored is not None:
                counts = ~ignored_patches(ignored, grid).flatten(1)
            for row, (place, number) in enumerate(chunk):
                if turn == 0 and number == 0:  # the tile as it is
                    embeddings[place] = F.normalize(features.pooled[row].float(), dim=-1)
                vectors[place].append(remembered[:, row, counts[row].to(model.device)])
                boxes[place].append(seen[place][turn, number][counts[row]])
    return [
        (embedding, torch.cat(own, dim=1), torch.cat(saw))
        for embedding, own, saw in zip(embeddings, vectors, boxes, strict=True)
    ]


def _embedding_of(model: AnoPLeModel, image: TiledImage) -> Tensor:
    """Return the global feature of an image that is cut, as a whole."""
    pixels, _ = image.whole().prepare([0])
    return model.embed_image(pixels.to(model.device, model.dtype)).float()[0]


def _announce_memory(model: AnoPLeModel, class_id: int, tiles: int) -> None:
    """Log how large the memory of a product will be, before it is."""
    config, product = model.config, model.products[class_id]
    vectors = product.bank.size + tiles * ROTATION_COUNTS[config.memory_rotations] * config.memory_grid_size**2
    kept = min(vectors, config.memory_limit or vectors)
    layers, _, width = product.bank.vectors.shape
    logger.info(
        "Memory of %s: %d vectors in each of %d layers, %.1f MB%s.",
        product.name,
        kept,
        layers,
        kept * layers * width * product.prototype.element_size() / 1e6,
        f" (of {vectors}, memory_limit)" if kept < vectors else "",
    )


# --- Threshold ---


@torch.no_grad()
def calibrate_product(
    model: AnoPLeModel,
    images: Sequence[TiledImage],
    class_id: int,
    *,
    max_false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
) -> ProductThreshold:
    """
    Fit one product's threshold to the images that were remembered last, in the order in which they were.

    Each image is scored against the memory of all others; [`fit_threshold`] fits the threshold to one score each. A lone
    image can only be compared with its own slightly moved and relit copies.

    Of images that were remembered earlier, and are no longer at hand, only the scores are left. They stay in the sample
    as they were measured, against a smaller memory; in a larger one distances only shrink, so the threshold comes out
    rather too high than too low. It is exact again when all images are given. What was measured on a lone first image,
    against itself, is dropped, and so are scores of earlier versions, which counted copies as images.

    Args:
        images: the last ones given to [`remember`]; all of them for an exact threshold.
        class_id: the product.
        max_false_alarm_rate: share of good images that may lie above the threshold.

    Raises:
        ValueError: for more images than are remembered.
    """
    model.eval()
    product = model.products[class_id]
    first = product.image_count - len(images)
    if first < 0:
        raise ValueError(
            f"{len(images)} images of {product.name!r} were given, whose memory holds {product.image_count}: give those "
            "that it remembers."
        )
    earlier = product.record.threshold if first else None
    alone = product.image_count == 1
    scores, maxima, novel, frames = [], [], [], []
    for place, image in enumerate(images):  # of each only numbers are kept, however many there are
        judged = _judge_normal(model, image, class_id, first + place, alone)
        # independent scores are the first of each image; those of copies serve a lone image alone
        scores.append(judged.output.image_scores.tolist())
        maxima.append(judged.output.anomaly_maps.flatten(1).amax(1).tolist())
        novel.append(_novelty_of_normal(model, judged.output, class_id))
        frames.append(judged.frame)
        image.release()
    novelty = torch.cat(novel).T.tolist()
    if (
        not first or product.record.frame is not None
    ):  # earlier versions kept none, and a part of all images is no range
        product.record.frame = FrameLimits.of(frames, product.record.frame if first else None)
    if earlier and first > 1:
        novelty = [old + new for old, new in zip(earlier.novelty_scores or [[], []], novelty, strict=True)]
    if alone:
        measured = {"image_scores": [], "map_maxima": []}
        measured |= {"jittered_image_scores": scores[0], "jittered_map_maxima": maxima[0]}
    else:
        measured = {"image_scores": [each[0] for each in scores], "map_maxima": [each[0] for each in maxima]}
    held_out = 0
    if earlier and earlier.image_count:
        held_out = earlier.held_out
        for name in ("image_scores", "map_maxima"):  # held-out ones stay last
            known = getattr(earlier, name)
            place = len(known) - held_out
            measured[name] = known[:place] + measured[name] + known[place:]
    threshold = fit_threshold(**measured, max_false_alarm_rate=max_false_alarm_rate, held_out=held_out)
    return _keep_threshold(model, class_id, threshold, novelty)


@torch.no_grad()
def recalibrate_product(
    model: AnoPLeModel,
    images: Sequence[TiledImage],
    class_id: int,
    *,
    max_false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    batch_size: int = 8,
) -> ProductThreshold:
    """
    Fit one product's threshold anew with good images that are not remembered; the memory stays as it is.

    They are scored as any image will be. Where they alone support the rate, the threshold rests on them alone (see
    [`fit_threshold`]); otherwise they join the scores that are known. Without any image it is only fitted for another
    rate.

    Args:
        images: good images, or none.
        class_id: the product, which has a threshold.
        max_false_alarm_rate: share of good images that may lie above the threshold.
        batch_size: images judged at once.
    """
    model.eval()
    known = model.products[class_id].record.threshold
    scores, maxima = (known.image_scores, known.map_maxima) if known.image_count else ([], [])
    frames = []
    for start in range(0, len(images), batch_size):
        batch = list(images[start : start + batch_size])
        for image in batch:
            image.class_id = class_id
        for judged in predict_tiles(model, batch, class_is_known=True):
            output = _counted(judged).output
            frames.append(judged.frame)
            scores = scores + output.image_scores.tolist()
            maxima = maxima + output.anomaly_maps.flatten(1).amax(1).tolist()
        for image in batch:
            image.release()
    threshold = fit_threshold(
        scores,
        maxima,
        max_false_alarm_rate=max_false_alarm_rate,
        jittered_image_scores=known.jittered_image_scores,
        jittered_map_maxima=known.jittered_map_maxima,
        held_out=known.held_out + len(images),
    )
    record = model.products[class_id].record
    if frames and record.frame is not None:
        record.frame = FrameLimits.of(frames, record.frame)
    return _keep_threshold(model, class_id, threshold, known.novelty_scores)


# --- Known defects: their scores, and which way of scoring tells them apart best ---


@torch.no_grad()
def score_images(
    model: AnoPLeModel, images: Sequence[TiledImage], class_id: int, *, batch_size: int = 8, remembered: bool = False
) -> list[float]:
    """
    Return the raw score of each image of a product, as any image is scored.

    Args:
        remembered: whether they are all that the memory holds, in its order; each is then left out of it.
    """
    scores, size = [], 1 if remembered else batch_size
    for start in range(0, len(images), size):
        batch = list(images[start : start + size])
        for image in batch:
            image.class_id = class_id
        own = (class_id, model.products[class_id].bank.vectors_of(start)) if remembered else None
        judged = predict_tiles(model, batch, class_is_known=True, exclude=own)
        scores += [float(_counted(each).output.image_scores[0]) for each in judged]
        for image in batch:
            image.release()
    if not all(map(math.isfinite, scores)):
        raise ValueError(
            "The scores of these images are not finite: the detector's weights are broken, copy or fit it again."
        )
    return scores


MOST_FOLDS = 5
RECIPES = {
    "memory alone": {"map_fusion": "memory", "image_fusion": "map"},
    "memory and text": {"map_fusion": "memory", "image_fusion": "harmonic"},
    "weighted": {"map_fusion": "weighted", "image_fusion": "weighted"},
    "decoder alone": {"map_fusion": "decoder", "image_fusion": "map", "image_map": "fused"},
}


@dataclass(frozen=True)
class RecipeResult:
    """
    How a way of scoring did on photographs that its line was not set by.

    Args:
        name: of the recipe.
        costs: of each fold, as of [`fit_costs`].
        found, defects: how many defects were found in all folds, of how many.
        alarms, normals: how many good ones were set aside, of how many.
    """

    name: str
    costs: list[float]
    found: int
    defects: int
    alarms: int
    normals: int

    def describe(self) -> str:
        """Say what it costs, and how much that differs between folds."""
        mean = statistics.fmean(self.costs)
        return (
            f"{self.name}: cost {mean:.3g} ({min(self.costs):.3g} to {max(self.costs):.3g} over {len(self.costs)} folds), "
            f"{self.found} of {self.defects} defects found, {self.alarms} of {self.normals} good ones set aside"
        )


def compare_recipes(
    model: AnoPLeModel,
    normals: Sequence[TiledImage],
    defects: Sequence[TiledImage],
    class_id: int,
    *,
    miss_cost: float,
    false_alarm_cost: float,
    remembered: bool = False,
) -> list[RecipeResult]:
    """
    Compare at most four ways of scoring, which need no training, by cross-validation over photographs.

    Fusion is a setting of the whole detector, which this leaves as it is. What was never fitted is not tried.

    Args:
        normals, defects: at least two of each; the line of each fold is set by those of the others.
        remembered: see [`score_images`].

    Returns:
        The present way first.
    """
    config = model.config
    fitted = {"memory alone", "memory and text"} | ({"decoder alone"} if config.fit else set())
    fitted |= {"weighted"} if config.fusion_weights else set()
    present = {name: getattr(config, name) for name in ("map_fusion", "image_fusion", "image_map")}
    same = [name for name, values in RECIPES.items() if {**present, **values} == present]
    recipes = {f"{same[0]} (as it is)" if same else "as it is": present}
    recipes |= {name: values for name, values in RECIPES.items() if name in fitted and name not in same}
    results = []
    for name, values in [*recipes.items()][:4]:
        try:
            for field, value in values.items():
                setattr(config, field, value)
            good = score_images(model, normals, class_id, remembered=remembered)
            bad = score_images(model, defects, class_id)
        finally:
            for field, value in present.items():
                setattr(config, field, value)
        results.append(_cross_validate(name, good, bad, miss_cost, false_alarm_cost))
    return results


def _cross_validate(
    name: str, good: Sequence[float], bad: Sequence[float], miss_cost: float, false_alarm_cost: float
) -> RecipeResult:
    folds = min(MOST_FOLDS, len(good), len(bad))
    costs, found, alarms = [], 0, 0
    for fold in range(folds):
        parts = [
            (list(each[fold::folds]), [s for n, s in enumerate(each) if n % folds != fold]) for each in (good, bad)
        ]
        (good_out, good_in), (bad_out, bad_in) = parts
        line = cheapest_line(good_in, bad_in, miss_cost, false_alarm_cost)
        hits, false = sum(score > line for score in bad_out), sum(score > line for score in good_out)
        costs.append(miss_cost * (1 - hits / len(bad_out)) + false_alarm_cost * false / len(good_out))
        found, alarms = found + hits, alarms + false
    return RecipeResult(name, costs, found, len(bad), alarms, len(good))


def describe_recipes(results: Sequence[RecipeResult]) -> str:
    """Say which way of scoring costs least, and whether so few photographs can tell it from the present one."""
    best = min(results, key=lambda each: statistics.fmean(each.costs))  # of equal ones the first
    said = "; ".join(each.describe() for each in results)
    if best is results[0]:
        return f"Ways of scoring, each judged on photographs left out: {said}. None is cheaper than the present one."
    gains = [before - after for before, after in zip(results[0].costs, best.costs, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    # 2.5 % for the best of several (Bonferroni); equal gains of few folds look surer than they are
    reach = student_quantile(1 - 0.025 / (len(results) - 1), len(gains) - 1)
    sure = len(gains) >= MOST_FOLDS and statistics.fmean(gains) > reach * error
    verdict = (
        f"{best.name} is cheapest, by Student's t over {len(gains)} folds"
        if sure
        else f"{best.name} is cheapest, but so few photographs cannot tell it from the present one"
    )
    return (
        f"Ways of scoring, each judged on photographs left out: {said}. {verdict}. The way of scoring is one of the whole detector "
        "and was left as it is."
    )


def _judge_normal(model: AnoPLeModel, image: TiledImage, class_id: int, number: int, alone: bool) -> JudgedImage:
    """Score an image, and jittered copies of it, against the memory without that image; a lone one's copies alone."""

    def copies(tile: Tensor) -> Tensor:
        jittered = jittered_copies(tile)
        return jittered if alone else torch.cat([tile[None], jittered])

    own = None if alone else (class_id, model.products[class_id].bank.vectors_of(number))
    image.class_id = class_id
    return _counted(predict_tiles(model, [image], class_is_known=True, exclude=own, copies=copies)[0])


def _counted(judged: JudgedImage | None) -> JudgedImage:
    if judged is None:
        raise ValueError("The ignore_mask leaves no patch that counts: mark less of the image.")
    return judged


def _novelty_of_normal(model: AnoPLeModel, output: AnoPLeOutput, class_id: int) -> Tensor:
    """Measure an image, and its copies, against the memory and the prototype without that image: (rows, 2)."""
    known, prototype = model.products[class_id].image_count, model.products[class_id].prototype.float()
    own = 0 if known == 1 else output.image_embeds[0].float() / known
    return novelty_scores(output.memory_maps, output.image_embeds, (prototype - own)[None]).cpu()


def _keep_threshold(
    model: AnoPLeModel, class_id: int, threshold: ProductThreshold, novelty: Sequence[Sequence[float]]
) -> ProductThreshold:
    """Add the thresholds of unknown products to a product's own, and keep both."""
    threshold = replace(
        threshold,
        novelty_scores=[sorted(values) for values in novelty],
        novelty_thresholds=fit_novelty_thresholds(novelty, rate=model.config.unknown_product_rate),
    )
    if threshold.image_threshold < LOWEST_USUAL_THRESHOLD:
        logger.warning(
            "The threshold of %s lies at %.4f, far below that of any product (0.05 and more): its good photographs are nearly the "
            "same, or show nothing. Any other photograph would be anomalous: give photographs of several parts.",
            model.products[class_id].name,
            threshold.image_threshold,
        )
    model.products.set_threshold(class_id, threshold)
    return threshold


__all__ = [
    "DEFAULT_FALSE_ALARM_RATE",
    "RecipeResult",
    "calibrate_product",
    "compare_recipes",
    "describe_recipes",
    "recalibrate_product",
    "remember",
    "score_images",
]
