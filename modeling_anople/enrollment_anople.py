"""
Products come and go: good images are checked, enrolled and added, products calibrated, renamed and forgotten, untrained.

Each is done whole or not at all, and written into the detector's log. Users reach these as verbs of the detector, which is
what `pipeline("image-anomaly-detection", ...)` returns.
"""

import contextlib
import functools
import hashlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import torch
from PIL import Image

from .calibration_anople import KnownDefects, ProductThreshold, check_rate, describe_lost_costs, fit_costs
from .configuration_anople import check_range
from .fitting_anople import (
    DEFAULT_FALSE_ALARM_RATE,
    calibrate_product,
    compare_recipes,
    describe_recipes,
    recalibrate_product,
    remember,
    score_images,
)
from .images_anople import (
    WHITE_RANGE,
    ImageError,
    ImageSource,
    MaskSource,
    PicturePrint,
    ignored_patches,
    images_of,
    is_flat,
    load_ignore_mask,
    load_image,
    mask_tensor,
    print_of,
    same_pictures,
    source_path,
    taken_at,
    with_masks,
)
from .inference_anople import TILES_AT_ONCE, TiledImage
from .modeling_anople import AnoPLeModel
from .processing_anople import AnoPLeProcessor
from .product_store_anople import SAME, ProductRecord, composed, log_of, new_name
from .scoring_anople import Detector
from .tiling_anople import Tiling, tiling_text


logger = logging.getLogger(__name__)

NAMED_FAILURES = 5
COST_RANGE = (1e-9, 1e12)
HELD = 64  # images of which what the model sees is held; more are opened again when they are needed
EXIF_TIME, SESSION = "%Y:%m:%d %H:%M:%S", timedelta(hours=1)
LARGEST_ROUNDING = 1e-5  # of the distance of an image to itself in the memory; in half precision eps / 16

ImageSources = ImageSource | Iterable[ImageSource]
IgnoreMasks = MaskSource | Sequence[MaskSource | None] | None


# --- Good images: all of them readable, and none of them twice ---


@dataclass
class NormalImages:
    """
    Good images, ready to be remembered.

    Args:
        images: in tiles.
        files: their names.
        digests: of their contents.
        prints: of what they show.
    """

    images: list[TiledImage]
    files: list[str | None]
    digests: list[str]
    prints: list[PicturePrint]

    @property
    def traces(self) -> dict[str, list]:
        """What the log keeps of them to know them again."""
        return {"digests": self.digests, "prints": self.prints}

    def common_mask(self, given: IgnoreMasks) -> np.ndarray | None:
        """Return what is ignored on all of them, where one mask was given that marks anything."""
        mask = None if isinstance(given, (list, tuple)) else self.images[0].ignore_mask
        return mask if mask is not None and mask.any() else None


def open_normals(
    sources: ImageSources,
    processor: AnoPLeProcessor,
    *,
    tiling: Tiling = None,
    ignore_mask: IgnoreMasks = None,
    once: bool = True,
    kind: Literal["good", "defective"] = "good",
) -> NormalImages:
    """
    Open good images, or defective ones, all or none.

    Args:
        sources: a list, folder, dataset or generator of whatever [`load_image`] opens.
        processor: the detector's.
        tiling: how they are cut.
        ignore_mask: what does not count, one mask for all, or a list with one (or `None`) for each.
        once: whether one that is another once more, in another format, is left out (see [`count_once`]).
        kind: what they are, for what is said of them.

    Raises:
        ValueError: if there is none, or one is there twice (its twin would make its score zero, and the threshold too low).
        ImageError: naming those that cannot be read.
    """
    normals, failures, taken = NormalImages([], [], [], []), [], []
    for source, given in with_masks(images_of(sources), ignore_mask):
        try:
            image = load_image(source, white_value=processor.white_value)
            mask = None if given is None else load_ignore_mask(given, image.size[::-1], photograph=source)
            refuse_flat(image, source)
            taken.append(taken_at(source))
        except ImageError as error:
            failures.append(str(error))
            continue
        normals.files.append(source_path(source))
        normals.digests.append(digest_of(image))
        normals.prints.append(print_of(image))
        tiled = TiledImage.of(image, processor, tiling, mask)
        if len(normals.prints) > HELD and isinstance(source, (str, os.PathLike)):
            tiled.reopen = functools.partial(load_image, source, white_value=processor.white_value)
            before = normals.images[-1].ignore_mask
            tiled.ignore_mask = before if before is not None and np.array_equal(before, mask) else mask
        normals.images.append(tiled.release())
    if failures:
        more = f" and {len(failures) - NAMED_FAILURES} more" if len(failures) > NAMED_FAILURES else ""
        raise ImageError(
            f"{len(failures)} of {len(failures) + len(normals.images)} images cannot be used, nothing was changed: "
            f"{' '.join(failures[:NAMED_FAILURES])}{more}"
        )
    if not normals.images:
        raise ValueError(f"No {kind} images were given: at least one is needed.")
    reject_duplicates(normals, [])
    if once:
        count_once(normals, kind)
    if kind == "good":
        hint_at_session(taken)
    return normals


def refuse_flat(image: Image.Image, source: ImageSource) -> None:
    """Refuse, by an `ImageError`, a good photograph that shows nothing."""
    if is_flat(image):
        raise ImageError(
            f"{source_path(source) or 'an image'}: is of one color, as with the lens cap on: leave it out, or, of a camera of 10 to 14 bits, say which value is white."
        )


def count_once(normals: NormalImages, kind: str = "good") -> None:
    """Leave out, in place, images that are another one once more, as PNG and as JPEG for instance, and say which."""
    twins = same_pictures(normals.prints)
    if not twins:
        return
    pairs = [f"{_name(normals.files, number)} as {_name(normals.files, first)}" for number, first in twins.items()]
    logger.warning(
        "%d of %d %s photographs are another one once more, and count once: %s. Give photographs of several parts.",
        len(twins),
        len(normals.prints),
        kind,
        _listed(pairs),
    )
    kept = [number for number in range(len(normals.prints)) if number not in twins]
    for name in ("images", "files", "digests", "prints"):
        setattr(normals, name, [getattr(normals, name)[number] for number in kept])


def hint_at_session(taken: Sequence[str | None]) -> None:
    """Say what to expect where all good images were taken within an hour."""
    times = sorted(datetime.strptime(each, EXIF_TIME) for each in taken if each and _is_time(each))
    if len(times) == len(taken) > 2 and times[-1] - times[0] < SESSION:
        logger.warning(
            "All %d good photographs were taken within one hour (%s): those of other days will look different, and more of "
            "them will be false alarms than asked for. Give photographs of several days.",
            len(times),
            times[0].date(),
        )


def _is_time(text: str) -> bool:
    try:
        return bool(datetime.strptime(text, EXIF_TIME))
    except ValueError:
        return False


def _name(files: Sequence[str | None], number: int) -> str:
    return files[number] or f"image {number + 1}"


def _listed(names: Sequence[str]) -> str:
    """Name the first few of many."""
    more = f" and {len(names) - NAMED_FAILURES} more" if len(names) > NAMED_FAILURES else ""
    return f"{', '.join(names[:NAMED_FAILURES])}{more}"


def reject_duplicates(normals: NormalImages, known: Iterable[str]) -> None:
    """Refuse images with the very pixels of another one, or of a known one, by its digest."""
    seen, duplicates = set(known), []
    for number, (file, digest) in enumerate(zip(normals.files, normals.digests, strict=True), start=1):
        if digest in seen:
            duplicates.append(file or f"image {number}")
        seen.add(digest)
    _reject(duplicates)


def _reject(names: Sequence[str]) -> None:
    """Refuse images by these names; none is well."""
    if names:
        raise ValueError(
            f"These images are given twice, or known already: {_listed(names)}. Leave them out; a twin says nothing "
            "new and would make the threshold too low."
        )


def near_duplicates(model: AnoPLeModel, images: Iterable[TiledImage], class_id: int) -> list[int]:
    """
    Number the images that lie on remembered ones at every place, where not all of these have a digest in the log.

    That is so in detectors of versions that logged none, and after `remember`.
    """
    product = model.products[class_id]
    if len(known_digests(model.config.history, product.name, held_out=False)) >= product.image_count:
        return []
    rounding, copies = max(LARGEST_ROUNDING, torch.finfo(model.dtype).eps / 16), []
    for number, image in enumerate(images):
        if _farthest_patch(model, image, class_id) <= rounding:
            copies.append(number)
        image.release()
    return copies


@torch.no_grad()
def _farthest_patch(model: AnoPLeModel, image: TiledImage, class_id: int) -> float:
    """
    Measure how far the oddest patch of an image is from a product's memory; infinite where none counts.

    Distances are measured in single precision, or the rounding of half precision would be larger than they are.
    """
    farthest = -1.0
    for numbers in torch.arange(len(image.boxes)).split(TILES_AT_ONCE):
        pixels, masks = image.prepare(numbers.tolist())
        features = model.memory_features(pixels.to(model.device, model.dtype)).float()
        distances = model.memory_maps(features, torch.full((len(pixels),), class_id)).cpu()
        if masks is not None:
            distances = distances.masked_fill(ignored_patches(masks, model.config.memory_grid_size), -1)
        farthest = max(farthest, float(distances.max()))
    return math.inf if farthest < 0 else farthest


def known_digests(history: Iterable[dict], class_name: str, *, held_out: bool = True) -> list[str]:
    """
    Read from a detector's log the digests of the images that a product has been given since it is there.

    Those that only set its threshold count unless `held_out` is off.
    """
    counting = (entry for entry in log_of(history, class_name) if held_out or entry["action"] != "calibrate")
    return [digest for entry in counting for digest in entry["digests"]]


def digest_of(image: Image.Image) -> str:
    """Digest the pixels of an image that [`load_image`] opened."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16]


def _warn_of_others(normals: NormalImages, model: AnoPLeModel, others: Iterable[str]) -> None:
    """Log a warning for images of a new product that the detector was given as one of the others."""
    for name in others:
        known = set(known_digests(model.config.history, name))
        if count := sum(digest in known for digest in normals.digests):
            logger.warning(
                "%d of these %d images are known as %r: only one of the two can be named.",
                count,
                len(normals.digests),
                name,
            )


# --- The verbs ---


@torch.no_grad()
def enroll(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    class_name: str,
    images: ImageSources,
    *,
    max_false_alarm_rate: float | None = None,
    batch_size: int = 8,
    date: str | None = None,
    tiling: Tiling | Literal["same"] = SAME,
    ignore_mask: IgnoreMasks = None,
    white_value: float | None = None,
    replace: bool = False,
) -> ProductThreshold:
    """
    Add a product from good images, without training: text embedding, memory, prototype and threshold.

    What the detector answers for another product, the class being given, does not change by one bit. (Where classes are
    pooled, all products share one memory and one threshold, and every new product moves both.)

    Args:
        model, processor: the detector; the processor learns the name.
        class_name: the new product; its words go into the prompts.
        images: good images: a list, folder, dataset or generator of whatever [`load_image`] opens.
        max_false_alarm_rate: share of good images that may lie above the threshold, from 0.0001 to below 0.5; by default
            that of the others.
        batch_size: images encoded at once.
        date: ISO date for the log; by default now.
        tiling: how this product's images are cut, now and whenever one is judged; by default as the others.
        ignore_mask: places that do not count, one mask for all images, which the product keeps for all later ones, or a
            list with one for each, which is not kept.
        white_value: of photographs with more than 8 bits, such as 4095 of a 12-bit camera; the detector keeps it for all
            its products.
        replace: whether a product of this name is there, which is forgotten as the new one is learned. Rate, tiling and
            ignore mask are then by default those that it had.

    Returns:
        The threshold that was fitted.

    Raises:
        ValueError: for a name that is taken (or, with `replace`, that is none's), no image, one given twice, or other
            products of which no image is known yet.
        ImageError: naming the images that cannot be read; nothing was changed.
    """
    config, products = model.config, model.products
    # 1. Refuse what cannot be before anything is opened.
    old_id = products.id_of(class_name) if replace else None
    old = None if old_id is None else products[old_id]
    class_name = new_name(class_name, config.class_names) if old is None else old.name
    if empty := [product.name for product in products if not product.image_count and product is not old]:
        raise ValueError(
            f"The detector knows no images of {empty}, which could not be judged beside a product that it remembers: give "
            "them some with add_normals first."
        )
    if processor.tokenizer is None:
        raise ValueError("This processor has no tokenizer, so no new product can be named: load it whole.")
    if old is not None:  # what is not asked for otherwise stays as it was
        tiling = old.record.tiling if tiling == SAME else tiling
        ignore_mask = products.mask_opener(old_id) if ignore_mask is None else ignore_mask
        max_false_alarm_rate = _rate_of(model, old_id, max_false_alarm_rate)
    setting = config.tiling if tiling == SAME else tiling_text(tiling)
    if setting != config.tiling and config.class_identity == "pooled":
        raise ValueError(f"Pooled classes share one tiling, {config.tiling!r}; got {tiling!r}: leave it out.")
    # 2. Open all images, and make the two texts.
    with _reads_by(model, processor, white_value), products.transaction():
        normals = open_normals(images, processor, tiling=setting, ignore_mask=ignore_mask)
        _warn_of_others(normals, model, [product.name for product in products if product is not old])
        if old is not None:
            _reject_defects(model, normals, old_id)
        ids = model.tokenize_class(class_name, processor.tokenizer)
        record = ProductRecord(class_name, tiling=SAME if setting == config.tiling else setting)
        # 3. Learn it, whole or not at all.
        class_id = products.add(record, ids, model.embed_text(ids)[0].detach())
        if old is not None:
            products.remove(old_id)
            products.log("forget", class_name, date=date)
            class_id -= 1
            products[class_id].keep_prints(old.unpacked_prints("defect_prints"), "defect_prints")
        if (mask := normals.common_mask(ignore_mask)) is not None:
            products.keep_mask(class_id, mask)
        threshold = _learn(model, normals, class_id, max_false_alarm_rate, batch_size)
        _warn_of_costs(class_name, old.record.threshold if old else None, threshold)
        products.log("enroll", class_name, files=normals.files, **normals.traces, date=date)
    processor.class_names = list(config.class_names)
    return threshold


@torch.no_grad()
def add_normals(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    class_name: str,
    images: ImageSources,
    *,
    max_false_alarm_rate: float | None = None,
    batch_size: int = 8,
    date: str | None = None,
    ignore_mask: IgnoreMasks = None,
    white_value: float | None = None,
) -> ProductThreshold:
    """
    Let a product know more good images, and fit its threshold anew (see [`calibrate_product`] for how, and its limits).

    Arguments and errors are those of [`enroll`]; the product must exist, and none of the images may have been added
    before. Without `ignore_mask` the product's own is used, where it keeps one; `"none"` ignores nothing.
    """
    class_id = model.products.id_of(class_name)
    with _reads_by(model, processor, white_value), model.products.transaction():
        normals = _open_more(model, processor, class_id, images, ignore_mask)
        _reject_known(model, normals, class_id)
        name, before = model.products[class_id].name, model.products[class_id].record.threshold
        threshold = _learn(model, normals, class_id, max_false_alarm_rate, batch_size)
        _warn_of_costs(name, before, threshold)
        model.products.log("add_normals", name, files=normals.files, **normals.traces, date=date)
    return threshold


@torch.no_grad()
def calibrate(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    class_name: str,
    images: ImageSources | None = None,
    *,
    defects: ImageSources | None = None,
    miss_cost: float | None = None,
    false_alarm_cost: float | None = None,
    max_false_alarm_rate: float | None = None,
    batch_size: int = 8,
    date: str | None = None,
    ignore_mask: IgnoreMasks = None,
    white_value: float | None = None,
) -> ProductThreshold:
    """
    Fit a product's threshold anew, with more good images that are not remembered, for another rate, or by known defects.

    The memory stays as it is, and so do all raw scores (see [`recalibrate_product`]). Given exactly the images that are
    remembered, it fits the threshold to them anew, as if all had been enrolled at once (see [`calibrate_product`]): after
    [`add_normals`] it is exact again. Arguments and errors are those of [`add_normals`]; without `images` only the rate
    changes.

    Known defects never enter the memory. They place the image's line where errors are expected to cost least (see
    [`fit_costs`]); the scores of good images, and so p-values, stay what they are, and so does the line of a map's places.
    With good images beside them, ways of scoring are compared too (see [`compare_recipes`]), and the result is logged.
    Without defects a line that was set by some is set by the good images alone again.

    Args:
        defects: images of defective parts, whatever [`load_image`] opens.
        miss_cost: what it costs where all defective parts pass: those of a day, say.
        false_alarm_cost: what it costs where all good parts of the same day are set aside.

    Raises:
        ValueError: also for a product without a threshold, if nothing would change, for an image that is given as good and as
            defective, for costs without defects, and for defects none of which scores above the lowest good image.
    """
    class_id = model.products.id_of(class_name)
    product = model.products[class_id]
    before = product.record.threshold
    if before is None:
        raise ValueError(f"{product.name!r} has no threshold yet: give it good images with add_normals first.")
    if max_false_alarm_rate is not None:
        check_rate(max_false_alarm_rate, len(before.image_scores))
    _check_costs(model, defects, miss_cost, false_alarm_cost)
    if images is None and max_false_alarm_rate is None and defects is None and before.defects is None:
        raise ValueError("Nothing would change: give good images, max_false_alarm_rate=..., defects=..., or several.")
    normals, remembered, bad = NormalImages([], [], [], []), None, None
    with _reads_by(model, processor, white_value), model.products.transaction():
        # 1. Open all, and refuse what was given twice.
        if images is not None:
            normals = _open_more(model, processor, class_id, images, ignore_mask, once=False)
            remembered = _in_order_of_memory(model, normals, class_id)
        if remembered is None:
            count_once(normals)  # earlier versions remembered all of them
            _reject_known(model, normals, class_id)
        if defects is not None:
            bad = _open_more(model, processor, class_id, defects, ignore_mask, kind="defective")
            _reject_good(model, bad, normals, class_id)
        # 2. The line of the good ones, and what defects and costs make of it.
        rate = _rate_of(model, class_id, max_false_alarm_rate)
        given = {"files": [], "digests": [], "prints": []}
        if remembered is not None:
            threshold = calibrate_product(model, remembered, class_id, max_false_alarm_rate=rate)
        else:
            threshold = recalibrate_product(
                model, normals.images, class_id, max_false_alarm_rate=rate, batch_size=batch_size
            )
            given = {"files": normals.files, **normals.traces}
        if bad is not None:
            costs = {"miss_cost": miss_cost or 1.0, "false_alarm_cost": false_alarm_cost or 1.0}
            files = [None if file is None else os.path.basename(file) for file in bad.files]
            scores = score_images(model, bad.images, class_id, batch_size=batch_size)
            threshold = fit_costs(threshold, KnownDefects(scores, files=files, digests=bad.digests, **costs))
            known = product.unpacked_prints("defect_prints")
            again = same_pictures([*known, *bad.prints], known=len(known))
            new = [each for number, each in enumerate(bad.prints, len(known)) if number not in again]
            product.keep_prints(new, "defect_prints")
            model.products.set_threshold(class_id, threshold)
            good = normals.images if remembered is None else remembered
            _compare(model, good, bad.images, class_id, remembered=remembered is not None, **costs)
        _warn_of_costs(product.name, before, threshold)
        model.products.log("calibrate", product.name, **given, defects=threshold.defects, date=date)
    return threshold


def _check_costs(
    model: AnoPLeModel, defects: ImageSources | None, miss_cost: float | None, false_alarm_cost: float | None
) -> None:
    costs = {"miss_cost": miss_cost, "false_alarm_cost": false_alarm_cost}
    for name, cost in costs.items():
        if cost is not None:
            if defects is None:
                raise ValueError(f"{name} places the line between good photographs and known defects: add defects.")
            check_range(name, cost, COST_RANGE)
    if defects is not None and model.config.class_identity == "pooled":
        raise ValueError("Pooled classes share one line, which the defects of one product cannot set: leave them out.")


def _compare(
    model: AnoPLeModel,
    good: Sequence[TiledImage],
    bad: Sequence[TiledImage],
    class_id: int,
    *,
    remembered: bool,
    miss_cost: float,
    false_alarm_cost: float,
) -> None:
    """Log which way of scoring tells defects apart best, or why that cannot be said."""
    if min(len(good), len(bad)) < 2:
        logger.info("Ways of scoring are compared where at least 2 good photographs and 2 defects are given together.")
        return
    costs = {"miss_cost": miss_cost, "false_alarm_cost": false_alarm_cost}
    logger.info("%s", describe_recipes(compare_recipes(model, good, bad, class_id, remembered=remembered, **costs)))


def _warn_of_costs(name: str, before: ProductThreshold | None, threshold: ProductThreshold) -> None:
    if said := describe_lost_costs(name, before, threshold):
        logger.warning("%s", said)


def forget(model: AnoPLeModel, processor: AnoPLeProcessor, class_name: str, *, date: str | None = None) -> None:
    """
    Remove a product: its memory, texts, prototype and threshold. The log keeps that it was there.

    The ids of the products after it go down by one, hence the processor, as in [`enroll`].

    Raises:
        ValueError: for an unknown name, with the known ones, or the only product.
    """
    class_id = model.products.id_of(class_name)
    name = model.products[class_id].name
    if len(model.products) == 1:
        raise ValueError(f"{name!r} is the detector's only product: enroll another one before.")
    with model.products.transaction():
        model.products.remove(class_id)
        model.products.log("forget", name, date=date)
    processor.class_names = list(model.config.class_names)


def rename(
    model: AnoPLeModel, processor: AnoPLeProcessor, class_name: str, new_class_name: str, *, date: str | None = None
) -> None:
    """
    Give a product another name. What the detector answers stays as it is, bit for bit.

    Memory, threshold and prompts stay: the words of the name that it was taught under remain in its prompts. To put those of
    the new name there, forget the product and enroll it anew.

    Args:
        model, processor: the detector; the processor learns the name.
        class_name: what the product is called.
        new_class_name: what it shall be called.
        date: ISO date for the log; by default now.

    Raises:
        ValueError: for an unknown name, with the known ones, or a new one that is taken or that [`enroll`] would refuse.
    """
    class_id = model.products.id_of(class_name)
    name = model.products[class_id].name
    new = new_name(new_class_name, [product.name for product in model.products if product.name != name])
    if new == composed(name):
        raise ValueError(f"{name!r} is called so already: give another name.")
    with model.products.transaction():
        model.products.rename(class_id, new)
        model.products.log("rename", new, former_name=name, date=date)
    processor.class_names = list(model.config.class_names)


def set_ignore_mask(model: AnoPLeModel, class_name: str, mask: ImageSource | None, *, date: str | None = None) -> None:
    """
    Keep what does not count on all images of a product, from now on wherever no other mask is given.

    It is used as one that is given: in score, map, explanation, and for images that are added or calibrate it later. What
    the product has learned before stays as it is, its threshold too; [`enroll`] with `ignore_mask` learns with the mask. No
    other product is touched.

    Args:
        class_name: the product.
        mask: anything that [`load_image`] opens, of the images' size; what is above 0 is ignored. `None` keeps none any
            more.
        date: ISO date for the log; by default now.

    Raises:
        ValueError: for an unknown product, or a mask that marks nothing or leaves no patch that counts.
        ImageError: if the mask cannot be read.
    """
    class_id = model.products.id_of(class_name)
    product, marked = model.products[class_id], None if mask is None else load_ignore_mask(mask)
    if marked is not None:
        if not marked.any():
            raise ValueError("The ignore_mask marks nothing: paint white what shall not count, or give None.")
        whole, grid = mask_tensor(marked, model.config.input_size)[None], model.config.memory_grid_size
        if model.products.tiling_of(class_id) is None and ignored_patches(whole, grid).all():
            raise ValueError("The ignore_mask leaves no patch that counts: mark less of the image.")
        if product.image_count:
            logger.info("%s was learned before this ignore_mask; its memory and threshold stay.", product.name)
    with model.products.transaction():
        model.products.keep_mask(class_id, marked)
        model.products.log("keep_ignore_mask" if mask is not None else "drop_ignore_mask", product.name, date=date)


@contextlib.contextmanager
def _reads_by(model: AnoPLeModel, processor: AnoPLeProcessor, white_value: float | None) -> Iterator[None]:
    """Read photographs by a white value from now on, unless what is done inside fails; `None` leaves it as it is."""
    before = processor.white_value
    if white_value is not None:
        check_range("white_value", white_value, WHITE_RANGE)
        if before not in (None, white_value):
            raise ValueError(
                f"This detector reads photographs of more than 8 bits by the white value {before:g}, and cannot read them by "
                f"{white_value:g} too: leave it out, or begin another detector."
            )
        if before is None and not model.products.remembers_nothing:
            logger.warning(
                "From now on all photographs of more than 8 bits are read by the white value %g, those of %s too.",
                white_value,
                ", ".join(model.config.class_names),
            )
        processor.white_value = white_value
    try:
        yield
    except BaseException:
        processor.white_value = before
        raise


def _open_more(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    class_id: int,
    images: ImageSources,
    ignore_mask: IgnoreMasks,
    *,
    once: bool = True,
    kind: Literal["good", "defective"] = "good",
) -> NormalImages:
    """Open more images of a product, as it is cut and masked."""
    if ignore_mask is None:
        ignore_mask = model.products.mask_opener(class_id)
    tiling = model.products.tiling_of(class_id)
    return open_normals(images, processor, tiling=tiling, ignore_mask=ignore_mask, once=once, kind=kind)


def _reject_known(model: AnoPLeModel, normals: NormalImages, class_id: int) -> None:
    """Refuse images that a product knows already, be it in another file format."""
    reject_duplicates(normals, known_digests(model.config.history, model.products[class_id].name))
    again = seen_before(model, class_id, normals.digests, normals.prints)
    _reject([_name(normals.files, number) for number in again])
    _reject([_name(normals.files, number) for number in near_duplicates(model, normals.images, class_id)])
    _reject_defects(model, normals, class_id)


def _reject_defects(model: AnoPLeModel, normals: NormalImages, class_id: int) -> None:
    """Refuse good images that a product knows as defective ones, be it in another file format."""
    bad = model.products[class_id].unpacked_prints("defect_prints")
    found = same_pictures([*bad, *normals.prints], known=len(bad))
    _reject_both([_name(normals.files, number - len(bad)) for number, first in found.items() if first < len(bad)])


def _reject_good(model: AnoPLeModel, bad: NormalImages, normals: NormalImages, class_id: int) -> None:
    """Refuse defective images that a product knows as good ones, or that are given as such."""
    known, both = len(normals.prints), same_pictures([*normals.prints, *bad.prints], known=len(normals.prints))
    again = {number - known for number in both} | set(seen_before(model, class_id, bad.digests, bad.prints))
    again |= set(near_duplicates(model, bad.images, class_id))
    _reject_both([_name(bad.files, number) for number in sorted(again)])


def _reject_both(names: Sequence[str]) -> None:
    if names:
        raise ValueError(
            f"These images are given, or known, as good and as defective: {_listed(names)}. A part is one of the two: leave "
            "them out of one."
        )


def seen_before(model: Detector, class_id: int, digests: Sequence[str], prints: Sequence[PicturePrint]) -> list[int]:
    """Number the images that a product was given as good ones before, or that are another one of these once more."""
    product = model.products[class_id]
    given, known = set(known_digests(model.config.history, product.name)), product.unpacked_prints()
    again = same_pictures([*known, *prints], known=len(known))
    return [number for number, digest in enumerate(digests) if digest in given or number + len(known) in again]


def _in_order_of_memory(model: AnoPLeModel, normals: NormalImages, class_id: int) -> list[TiledImage] | None:
    """Return images in the order of the memory if they are exactly those that it holds, by their digests, else `None`."""
    product = model.products[class_id]
    digests = known_digests(model.config.history, product.name, held_out=False)
    if len(digests) != product.image_count or sorted(digests) != sorted(normals.digests):
        return None
    images = dict(zip(normals.digests, normals.images, strict=True))
    return [images[digest] for digest in digests]


def _learn(
    model: AnoPLeModel, normals: NormalImages, class_id: int, rate: float | None, batch_size: int
) -> ProductThreshold:
    """Remember images and fit the threshold of their product."""
    rate, count = _rate_of(model, class_id, rate), model.products[class_id].image_count + len(normals.images)
    check_rate(rate, count if count > 1 else 0)  # before images are encoded for it
    remember(model, normals.images, class_id, batch_size=batch_size)
    return calibrate_product(model, normals.images, class_id, max_false_alarm_rate=rate)


def _rate_of(model: AnoPLeModel, class_id: int, rate: float | None) -> float:
    """Return the rate asked for, or that of a product's threshold, or that of the others."""
    thresholds = [model.products[class_id].record.threshold, *(product.record.threshold for product in model.products)]
    known = [threshold.max_false_alarm_rate for threshold in thresholds if threshold]
    return rate if rate is not None else next(iter(known), DEFAULT_FALSE_ALARM_RATE)


__all__ = [
    "IgnoreMasks",
    "ImageSources",
    "NormalImages",
    "add_normals",
    "calibrate",
    "digest_of",
    "enroll",
    "forget",
    "known_digests",
    "hint_at_session",
    "open_normals",
    "reject_duplicates",
    "near_duplicates",
    "rename",
    "seen_before",
    "set_ignore_mask",
]
