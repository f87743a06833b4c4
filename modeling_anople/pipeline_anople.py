"""The detector as users have it: one object that judges images from any source, learns products, and is saved as one."""

import inspect
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import Pipeline

from .calibration_anople import ProductThreshold
from .enrollment_anople import (
    IgnoreMasks,
    ImageSources,
    add_normals,
    calibrate,
    enroll,
    forget,
    rename,
    set_ignore_mask,
)
from .explanation_anople import Explanation, explain
from .images_anople import ImageError, ImageSource, images_of, is_one_image, mask_out_map, source_path
from .inference_anople import JudgedImage, OpenedImage, Part, TiledImage, open_batches, predict_tiles, tile_images
from .modeling_anople import AnoPLeModel
from .processing_anople import AnoPLeProcessor, check_sight, find_regions
from .product_store_anople import SAME, ProductRecord, composed
from .scoring_anople import Detector, resize_maps
from .tiling_anople import Tiling, tiling_text


# --- The one loop that runs a detector ---


@dataclass
class Prediction:
    """
    What is known of one image.

    Args:
        source: where the image came from.
        error: why it could not be judged; everything below is then `None`.
        size: (height, width) of the image.
        score: calibrated, 0.5 is the threshold of its class; the raw score where the class has none.
        label: "normal", "anomalous" or "unknown product", `None` where the class has no threshold.
        unsure: whether it is called normal, and yet is odder than every good image behind the threshold, which was
            extrapolated beyond them: so few cannot tell.
        reason: why the image is no photograph of its product, whatever its score ("too dark", "out of focus", "nothing like
            the product", ...); it is called anomalous then. `None` where it may be one.
        threshold: calibrated score above which the image, and each region, is anomalous.
        p_value: of the whole detector's score, by rank among the class' normals; `None` where there are none.
        raw_score, raw_map: of the part asked for, for metrics; the map is (rows, columns), `None` for the text part.
        anomaly_map: float32 (rows, columns), calibrated, 0.5 is the threshold; `None` where the class has none.
        class_name: the class it was judged as; `None` when pooled, or of an unknown product.
        seconds: its share of the time from reading to answer.
        explanation: what stands behind the answer, where that was asked for.
        ignored: bool (height, width) of the image, the places that did not count. [`full_size_map`] is 0 there; the coarse
            maps are not, or what is next to these places would fade when they are enlarged.
    """

    source: ImageSource | None = None
    error: str | None = None
    size: tuple[int, int] | None = None
    score: float | None = None
    label: str | None = None
    unsure: bool | None = None
    reason: str | None = None
    threshold: float | None = None
    p_value: float | None = None
    raw_score: float | None = None
    raw_map: np.ndarray | None = None
    anomaly_map: np.ndarray | None = None
    class_name: str | None = None
    seconds: float | None = None
    explanation: Explanation | None = None
    ignored: np.ndarray | None = None

    def full_size_map(self) -> np.ndarray:
        """Bring the map to the image's own size, within 0 and 1; the raw map where there is no threshold."""
        values = self.raw_map if self.anomaly_map is None else self.anomaly_map
        full = resize_maps(torch.from_numpy(values)[None], self.size)[0].clamp(0, 1).numpy()
        return mask_out_map(full, self.ignored)

    def find_regions(self, full_map: np.ndarray | None = None, *, min_area: int = 1) -> list[dict] | None:
        """List the regions of the full-size map above the threshold: see [`find_regions`]; `None` without a threshold."""
        if self.anomaly_map is None:
            return None
        full_map = self.full_size_map() if full_map is None else full_map
        return find_regions(full_map, self.threshold, min_area=min_area)

    def as_row(self, regions: list[dict] | None = None) -> dict:
        """
        Put what is known into a dict for JSON, in which every number is finite; reason and error only where there is one.

        Args:
            regions: as of [`find_regions`]; left out where there are none to list.
        """
        row = {"class": self.class_name, "score": self.score, "label": self.label, "unsure": self.unsure}
        row |= {"reason": self.reason} if self.reason else {}
        row |= {"raw_score": self.raw_score, "p_value": self.p_value}
        row["seconds"] = self.seconds and round(self.seconds, 4)
        row |= {} if regions is None else {"regions": regions}
        return row | ({"error": self.error} if self.error else {})


def predict(
    detector: Detector,
    processor: AnoPLeProcessor,
    sources: Iterable[ImageSource],
    *,
    class_names: str | Iterable[str] | None = None,
    batch_size: int = 8,
    part: Part = "fused",
    explain: bool = False,
    tiling: Tiling = SAME,
    ignore_mask: IgnoreMasks = None,
    threshold: float | None = None,
) -> Iterator[Prediction]:
    """
    Judge images one after the other, `batch_size` at a time, one bad file never stopping the rest.

    Args:
        detector: the network, or an exported graph of it.
        sources: anything that `load_image` opens; read as they are needed, never more than a batch ahead.
        class_names: the product of all, or one for each in step with `sources`. `None`: predicted.
        batch_size: how many are read, and judged, at once.
        part: which score and map the raw values are of.
        explain: whether to say what stands behind each answer.
        tiling: "auto", (rows, columns) or `None`; by default as each product was learned. A threshold holds for that alone.
        ignore_mask: places that do not count, one mask for all images, or a list with one (or `None`) for each; by default
            what each product keeps. `"none"` ignores nothing.
        threshold: calibrated score above which an image is anomalous; by default that of the config.

    Yields:
        One [`Prediction`] for each source, in order; an unreadable one has `error` set.

    Raises:
        ValueError: for a class that the detector does not know, more or fewer class names than sources, a batch size
            below 1, the memory's part of a detector without one, or what a graph cannot do.
    """
    if explain and not hasattr(detector, "memory_features"):
        raise ValueError("A graph says nothing of what stands behind an answer: explain needs the detector itself.")
    if isinstance(detector, torch.nn.Module):
        detector.eval()  # in training it looks nothing up in its memory
    if processor.class_names != detector.config.class_names:
        raise ValueError(
            f"The processor knows the products {processor.class_names}, the detector {detector.config.class_names}: give the "
            "processor that belongs to this detector."
        )
    threshold = detector.config.threshold if threshold is None else threshold
    _check_threshold(threshold)
    start = time.perf_counter()
    batches = open_batches(processor, sources, class_names=class_names, batch_size=batch_size, ignore_mask=ignore_mask)
    for batch in batches:
        predictions = _predict_batch(detector, processor, batch, part, explain, tiling, threshold)
        judged = [prediction for prediction in predictions if prediction.error is None]
        for prediction in judged:
            prediction.seconds = (time.perf_counter() - start) / len(judged)
        yield from predictions
        start = time.perf_counter()


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie within 0 and 1, got {threshold}; a fitted one is 0.5.")


@torch.inference_mode()
def _predict_batch(
    detector: Detector,
    processor: AnoPLeProcessor,
    batch: list[OpenedImage],
    part: Part,
    explained: bool,
    tiling: Tiling,
    threshold: float,
) -> list[Prediction]:
    """Cut, judge and describe the images of a batch."""
    predictions = [Prediction(opened.source, opened.error) for opened in batch]
    readable = [place for place, opened in enumerate(batch) if opened.error is None]
    tiled, places = [], []
    for place, image in zip(
        readable, tile_images(detector, processor, [batch[place] for place in readable], tiling=tiling), strict=True
    ):
        if isinstance(image, ImageError):  # its product's mask has another size
            predictions[place].error = str(image)
        else:
            tiled.append(image)
            places.append(place)
    for place, image, judged in zip(places, tiled, predict_tiles(detector, tiled, part=part), strict=True):
        if judged is None:
            predictions[place].error = "The ignore_mask leaves no patch that counts: mark less of the image."
            continue
        _describe(predictions[place], processor, image, judged, threshold)
        if explained and predictions[place].error is None:
            predictions[place].explanation = explain(detector, processor, image, judged, threshold)
    return predictions


def _describe(
    prediction: Prediction, processor: AnoPLeProcessor, image: TiledImage, judged: JudgedImage, threshold: float
) -> None:
    """Write what a detector said of an image into its prediction, in place."""
    result = processor.post_process_anomaly_detection(judged.output, threshold=threshold)[0]
    raw = [each for each in (judged.part_scores, judged.part_maps) if each is not None]
    if result["error"] is None and not all(each.isfinite().all() for each in raw):
        result["error"] = (
            "What one part says of it is not finite: the detector's weights are broken, copy or fit it again."
        )
    if result["error"] is not None:
        prediction.error = result["error"]
        return
    prediction.size, prediction.ignored, prediction.threshold = image.size, image.ignore_mask, threshold
    for name in ("score", "label", "unsure", "p_value", "class_name"):
        setattr(prediction, name, result[name])
    prediction.reason = None if result["label"] is None else judged.reason
    if prediction.reason is not None and result["label"] == "normal":
        prediction.label, prediction.unsure = "anomalous", False
    prediction.raw_score = float(judged.part_scores[0])
    if judged.part_maps is not None:
        prediction.raw_map = judged.part_maps[0].float().cpu().numpy()
    if result["label"] is not None:
        prediction.anomaly_map = result["anomaly_map"]


# --- The detector: model and processor, with verbs ---


class AnomalyDetectionPipeline(Pipeline):
    """
    Judge images from any source; the model is loaded once, and nothing is drawn. And learn products, without training.

    ```python
    detector = pipeline("image-anomaly-detection", model="out/first")
    detector("photo.jpg", class_name="bottle")["score"]
    for result in detector(camera(), class_name="bottle"):  # a generator in gives a generator out
        ...
    detector.enroll("gasket", "gaskets/good")
    detector.save_pretrained("out/second")
    ```

    All options are those of the constructor or of a call.

    Args:
        class_name (`str`): the product of all images.
        class_names (iterable of `str`): the product of each, in step with them. Without either, predicted.
        threshold (`float`): score above which an image is anomalous; by default that of the model's config.
        batch_size (`int`, defaults to 1): images judged at once.
        on_error (`"return"` or `"raise"`, defaults to `"return"`): what an image that cannot be read does.
        image_column (`str`): of a `datasets.Dataset` with several columns of images.
        explain (`bool`, defaults to `False`): whether each result has an `explanation`, see [`Explanation`].
        tiling (`"auto"`, (rows, columns) or `None`): how images are cut; by default as each product was learned.
        ignore_mask: places that do not count (nonzero), one mask for all images, or a list with one for each; by default
            what each product keeps. `"none"` ignores nothing.
        min_area (`int`, defaults to 1): pixels that a region must have to be listed.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = False

    model: AnoPLeModel
    processor: AnoPLeProcessor

    def __init__(self, model: AnoPLeModel, *args, processor: AnoPLeProcessor | None = None, **kwargs):
        """
        Put model and processor together.

        Args:
            processor: the detector's; by default the one that lies where the model was loaded from.

        Raises:
            ValueError: for a processor of another kind, or of another detector: one with products that this never had, or
                that numbers them otherwise.
        """
        processor = model.load_processor() if processor is None else processor
        if not hasattr(processor, "post_process_anomaly_detection"):
            raise ValueError(
                f"This pipeline needs the detector's processor, got {type(processor).__name__}: give "
                "processor=AnoPLeProcessor.from_pretrained(...)."
            )
        config = model.config
        log = ((entry["class_name"], entry.get("former_name")) for entry in config.history)
        had = {composed(name) for names in (config.class_names, *log) for name in names if name is not None}
        has, known = (list(map(composed, names)) for names in (config.class_names, processor.class_names))
        # both from one folder: it was changed after the model was read, and pictures are prepared as ever
        beside = bool(model.name_or_path) and getattr(processor, "name_or_path", "") == model.name_or_path
        in_order = [name for name in has if name in known] == [name for name in known if name in has]
        if not in_order or not (beside or had.issuperset(known)):
            raise ValueError(
                f"The processor knows the products {processor.class_names}, the model {config.class_names}: give the "
                "processor that belongs to this model."
            )
        check_sight(processor, config)
        super().__init__(model, *args, processor=processor, **kwargs)
        self.processor.class_names = list(self.model.config.class_names)  # the model's are those that it knows
        self.model.own_processor = self.processor
        self.model.eval()

    # Judging.

    def _sanitize_parameters(
        self,
        *,
        class_name: str | None = None,
        class_names: Iterable[str] | None = None,
        threshold: float | None = None,
        on_error: Literal["return", "raise"] | None = None,
        image_column: str | None = None,
        explain: bool | None = None,
        tiling: Tiling = SAME,
        ignore_mask: IgnoreMasks = None,
        min_area: int | None = None,
        **unknown: object,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            known = list(inspect.signature(self._sanitize_parameters).parameters)[:-1]
            raise TypeError(f"The pipeline knows no {', '.join(unknown)}: it takes {', '.join(known)}, batch_size.")
        if class_name is not None and class_names is not None:
            raise ValueError("Give class_name for all images, or class_names with one for each; not both.")
        if threshold is not None:
            _check_threshold(threshold)
        if on_error not in (None, "return", "raise"):
            raise ValueError(f"on_error must be 'return' or 'raise', got {on_error!r}.")
        names = class_name if class_names is None else class_names
        judging = {"class_names": names, "ignore_mask": ignore_mask, "threshold": threshold, "explain": explain}
        judging = {name: value for name, value in judging.items() if value is not None}
        if tiling != SAME:
            judging["tiling"] = tiling_text(tiling)
        reading = {} if image_column is None else {"image_column": image_column}
        if min_area is not None and min_area < 1:
            raise ValueError(f"min_area must be at least 1 pixel, got {min_area}.")
        failing = {"on_error": on_error, "min_area": min_area}
        return reading, judging, {name: value for name, value in failing.items() if value is not None}

    def __call__(
        self, inputs: ImageSources, *, batch_size: int | None = None, **options
    ) -> dict | list[dict] | Iterator[dict]:
        """
        Judge images.

        Args:
            inputs: one image (path, bytes, PIL image, array (height, width[, channels]) or tensor (channels, height,
                width)); a list, or an array or tensor with one axis more; a folder, with all images in it, sorted;
                a `datasets.Dataset`, also streamed; a generator or any other iterable.
            batch_size: images judged at once; a stream is never read farther ahead.
            options: see the class.

        Returns:
            For one image a dict, for a list, array or tensor a list of dicts, for all else an iterator of dicts that
            works as it is asked: `score` (0.5 is the threshold), `label`, `reason` (why it is no photograph of its product, or
            `None`), `regions` above the threshold (see [`find_regions`]), `raw_score`, `p_value` (share of good images
            that score at least this, by rank among the product's normals; or `None`), `anomaly_map` (float32, of the
            image's own size), `class_name`, `path` (or `None`) and `error` (or `None`; otherwise all else is).

        Raises:
            ValueError: for options that cannot be, an unknown class, or a source without images.
            ImageError: for an image that cannot be read, with `on_error="raise"`.
        """
        known = (self._preprocess_params, self._forward_params, self._postprocess_params)
        given = self._sanitize_parameters(**options)
        reading, judging, failing = ({**old, **new} for old, new in zip(known, given, strict=True))
        sources = self.preprocess(inputs, **reading)
        predictions = self.forward(sources, batch_size=batch_size or self._batch_size or 1, **judging)
        results = (self.postprocess(each, explain=judging.get("explain", False), **failing) for each in predictions)
        if is_one_image(inputs):
            return next(results)
        return list(results) if isinstance(inputs, (list, tuple, np.ndarray, Tensor)) else results

    def preprocess(self, input_: ImageSources, image_column: str | None = None) -> Iterable[ImageSource]:
        """Turn whatever holds images into a stream of them; nothing is opened here."""
        return images_of(input_, image_column=image_column)

    def forward(self, model_inputs: Iterable[ImageSource], **forward_params) -> Iterator[Prediction]:
        """Judge a stream of images where the model is."""
        return self._forward(model_inputs, **forward_params)

    def _forward(self, input_tensors: Iterable[ImageSource], **options) -> Iterator[Prediction]:
        return predict(self.model, self.processor, input_tensors, **options)

    def postprocess(
        self,
        model_outputs: Prediction,
        explain: bool = False,
        on_error: Literal["return", "raise"] = "return",
        min_area: int = 1,
    ) -> dict:
        """Turn a prediction into the dict that a call returns."""
        prediction = model_outputs
        if prediction.error is not None and on_error == "raise":
            raise ImageError(prediction.error)
        names = ("score", "label", "unsure", "reason", "raw_score", "p_value", "class_name", "error")
        result = {name: getattr(prediction, name) for name in names}
        full = result["anomaly_map"] = None if prediction.error else prediction.full_size_map()
        result["regions"] = None if prediction.error else prediction.find_regions(full, min_area=min_area)
        result["path"] = source_path(prediction.source)
        return {**result, "explanation": prediction.explanation} if explain else result

    # Products. Each verb is done whole or not at all, and logged.

    @property
    def products(self) -> list[ProductRecord]:
        """What is known of each product, in the order of their class ids."""
        return [ProductRecord.from_dict(values) for values in self.model.config.products]

    def enroll(self, class_name: str, images: ImageSources, **options) -> ProductThreshold:
        """Add a product from good images, without training; options, result and errors of `enrollment_anople.enroll`."""
        return enroll(self.model, self.processor, class_name, images, **options)

    def add_normals(self, class_name: str, images: ImageSources, **options) -> ProductThreshold:
        """Let a product know more good images; options, result and errors of `enrollment_anople.add_normals`."""
        return add_normals(self.model, self.processor, class_name, images, **options)

    def calibrate(self, class_name: str, images: ImageSources | None = None, **options) -> ProductThreshold:
        """Fit a product's threshold anew; options, result and errors of `enrollment_anople.calibrate`."""
        return calibrate(self.model, self.processor, class_name, images, **options)

    def forget(self, class_name: str, **options) -> None:
        """Remove a product; options and errors of `enrollment_anople.forget`."""
        forget(self.model, self.processor, class_name, **options)

    def rename(self, class_name: str, new_class_name: str, **options) -> None:
        """Give a product another name, no score changes; options and errors of `enrollment_anople.rename`."""
        rename(self.model, self.processor, class_name, new_class_name, **options)

    def set_ignore_mask(self, class_name: str, mask: ImageSource | None, **options) -> None:
        """Keep what does not count on a product's images; options and errors of `enrollment_anople.set_ignore_mask`."""
        set_ignore_mask(self.model, class_name, mask, **options)

    # Saving.

    def save_pretrained(self, save_directory: str | os.PathLike, *, adapter: bool = False, **kwargs) -> None:
        """
        Write the detector's folder: weights, config, processor and code.

        Args:
            save_directory: the folder.
            adapter: whether to leave the frozen CLIP out (see [`AnoPLeModel.load_adapter`]).
            kwargs: those of transformers' `save_pretrained`; `push_to_hub=True` pushes it all.
        """
        if adapter and kwargs:
            raise ValueError(f"An adapter is saved by itself: leave out {', '.join(kwargs)}, and push its folder.")
        if adapter:
            self.model.save_adapter(save_directory)
        else:
            self.model.save_pretrained(save_directory, **kwargs)


__all__ = ["AnomalyDetectionPipeline", "Prediction", "predict"]
