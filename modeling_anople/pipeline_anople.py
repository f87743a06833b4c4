"""One call: `pipeline("image-anomaly-detection", model=folder)(photographs)`, whatever the photographs are in."""

import inspect
import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Pipeline
from transformers.utils import ModelOutput

from .explanation_anople import explain_outputs, explain_views
from .images_anople import ImageError, clear_ignored, is_one_photograph, photographs_of, source_path
from .inference_anople import SAME, Batch, judge_batch, judge_views, lay_out, needs_views, read_batches
from .product_store_anople import kept_masks
from .tiling_anople import Tiling, tiling_text


UNREAD = dict.fromkeys(("score", "label", "raw_score", "p_value", "anomaly_map", "class_name"))


class AnomalyDetectionPipeline(Pipeline):
    """
    Judge photographs from any source; the model is loaded once, and nothing is drawn.

    ```python
    detect = pipeline("image-anomaly-detection", model="out/first")
    detect("photo.jpg", class_name="bottle")["score"]
    for result in detect(camera(), class_name="bottle"):  # a generator in gives a generator out
        ...
    ```

    Options, of the constructor or of a call:
        class_name (`str`): the product of all photographs.
        class_names (iterable of `str`): the product of each, in step with them. Without either, predicted.
        threshold (`float`): score above which a photograph is anomalous; by default that of the model's config.
        batch_size (`int`, defaults to 1): photographs judged at once.
        on_error (`"return"` or `"raise"`, defaults to `"return"`): what a photograph that cannot be read does.
        image_column (`str`): of a `datasets.Dataset` with several columns of images.
        explain (`bool`, defaults to `False`): whether each result has an `explanation`, see [`Explanation`].
        tiling (`"auto"`, (rows, columns) or `None`): how photographs are cut; by default as each product was learnt.
        ignore_mask: places that do not count (nonzero), one mask for all photographs, or a list with one for each; by
            default what each product keeps. `"none"` ignores nothing.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.processor, "post_process_anomaly_detection"):
            raise ValueError(
                f"This pipeline needs the detector's processor, got {type(self.processor).__name__}: give "
                "processor=AnoPLeProcessor.from_pretrained(...)."
            )
        self.processor.class_names = list(self.model.config.class_names)  # the model's are those that it knows
        self.model.eval()

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
        ignore_mask: Any = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            known = list(inspect.signature(self._sanitize_parameters).parameters)[:-1]
            raise TypeError(f"The pipeline knows no {', '.join(unknown)}: it takes {', '.join(known)}, batch_size.")
        if class_name is not None and class_names is not None:
            raise ValueError("Give class_name for all photographs, or class_names with one for each; not both.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie within 0 and 1, got {threshold}; a fitted line is 0.5.")
        if on_error not in (None, "return", "raise"):
            raise ValueError(f"on_error must be 'return' or 'raise', got {on_error!r}.")
        names = class_name if class_names is None else class_names
        reading = {"class_names": names, "image_column": image_column, "ignore_mask": ignore_mask}
        answering = {"threshold": threshold, "explain": explain}
        given = [
            {name: value for name, value in part.items() if value is not None}
            for part in (reading, {"on_error": on_error}, answering)
        ]
        if tiling != SAME:
            given[0]["tiling"] = tiling_text(tiling)
        return tuple(given)

    def __call__(
        self, inputs: Any, *, batch_size: int | None = None, **options
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """
        Judge photographs.

        Args:
            inputs: one photograph (path, bytes, PIL image, array (height, width[, channels]) or tensor (channels, height,
                width)); a list, or an array or tensor with one axis more; a folder, with all photographs in it, sorted;
                a `datasets.Dataset`, also streamed; a generator or any other iterable.
            batch_size: photographs judged at once; a stream is never read farther ahead.
            options: see the class.

        Returns:
            For one photograph a dict, for a list, array or tensor a list of dicts, for all else an iterator of dicts
            that works as it is asked: `score` (0.5 is the line), `label`, `raw_score`, `p_value` (share of good
            photographs that score at least this, by rank among the product's normals; or `None`), `anomaly_map` (float32,
            of the photograph's own size), `class_name`, `path` (or `None`) and `error` (or `None`; otherwise all else is).

        Raises:
            ValueError: for options that cannot be, an unknown class, or a source without photographs.
            ImageError: for a photograph that cannot be read, with `on_error="raise"`.
        """
        known = (self._preprocess_params, self._forward_params, self._postprocess_params)
        given = self._sanitize_parameters(**options)
        reading, failing, answering = ({**old, **new} for old, new in zip(known, given, strict=True))
        sources = photographs_of(inputs, image_column=reading.pop("image_column", None))
        tiling = reading.pop("tiling", SAME)
        reading["by_views"] = needs_views(self.model.config, tiling)
        reading["masks"] = kept_masks(self.model)
        batches = read_batches(self.processor, sources, batch_size=batch_size or self._batch_size or 1, **reading)
        results = self._answer(batches, {**answering, "tiling": tiling}, **failing)
        if is_one_photograph(inputs):
            return next(results)
        return list(results) if isinstance(inputs, (list, tuple, np.ndarray, Tensor)) else results

    def _answer(
        self, batches: Iterator[Batch], options: dict, on_error: Literal["return", "raise"] = "return"
    ) -> Iterator[dict[str, Any]]:
        tiling = options.pop("tiling")
        for batch in batches:
            opened = batch.opened if batch.inputs is None else ()
            answers = [self._judge_opened(*each, tiling, **options) for each in opened]
            known = self.postprocess((batch, None), **options) if answers else None
            for number, answer in zip([n for n, e in enumerate(batch.errors) if not e], answers, strict=False):
                known[number] = {**known[number], **answer}
            for result in known or self.postprocess((batch, self.forward(batch)), **options):
                if result["error"] and on_error == "raise":
                    raise ImageError(result["error"])
                yield result

    def _judge_opened(
        self,
        photograph: Image.Image,
        mask: np.ndarray | None,
        class_name: str | None,
        tiling: Tiling,
        threshold: float | None = None,
        explain: bool = False,
    ) -> dict[str, Any]:
        """Judge one photograph by its tiles, a few of which exist at a time."""
        line = self.model.config.threshold if threshold is None else threshold
        class_id = None if class_name is None else self.processor.class_id(class_name)
        with self.device_placement(), torch.inference_mode():
            try:
                views = lay_out(self.model, self.processor, photograph, mask, class_name, tiling)
            except ImageError as error:  # its product's mask has another size
                return {"error": str(error)}
            output = judge_views(self.model, views, class_id)
            told = explain_views(self.model, self.processor, views, output, line) if explain else None
        result = self.processor.post_process_anomaly_detection(output, target_sizes=[views.size], threshold=line)[0]
        result["anomaly_map"] = clear_ignored(result["anomaly_map"], views.mask)
        return {**result, "explanation": told} if explain else result

    def preprocess(self, input_: Any, class_names: str | Iterable[str] | None = None) -> Batch:
        """Read one photograph."""
        masks = kept_masks(self.model)
        return next(read_batches(self.processor, [input_], class_names=class_names, batch_size=1, masks=masks))

    def forward(self, model_inputs: Batch, **forward_params) -> ModelOutput | None:
        """Run the model on a batch where the model is."""
        with self.device_placement(), torch.inference_mode():
            return self._forward(model_inputs, **forward_params)

    def _forward(self, input_tensors: Batch) -> ModelOutput | None:
        return judge_batch(self.model, self.processor, input_tensors)

    def postprocess(
        self, model_outputs: tuple[Batch, ModelOutput | None], threshold: float | None = None, explain: bool = False
    ) -> list[dict[str, Any]]:
        """Turn an answer into one dict for each photograph of its batch."""
        batch, outputs = model_outputs
        results = []
        if outputs is not None:
            line = self.model.config.threshold if threshold is None else threshold
            results = self.processor.post_process_anomaly_detection(
                outputs, target_sizes=batch.readable_sizes, threshold=line
            )
            for result, mask in zip(results, batch.hidden, strict=True):
                result["anomaly_map"] = clear_ignored(result["anomaly_map"], mask)
            if explain:
                self._explain(batch, outputs, results, line)
        unread = {**UNREAD, "explanation": None} if explain else UNREAD
        spread = batch.spread(results) if outputs is not None else [None] * len(batch.sources)
        return [
            {**(result or unread), "path": source_path(source), "error": error}
            for source, error, result in zip(batch.sources, batch.errors, spread, strict=True)
        ]

    def _explain(self, batch: Batch, outputs: ModelOutput, results: list[dict[str, Any]], line: float) -> None:
        pixels = batch.inputs["pixel_values"].to(self.model.device, self.model.dtype)
        with self.device_placement(), torch.inference_mode():
            found = explain_outputs(self.model, self.processor, pixels, outputs, batch.readable_sizes, line)
        for result, explanation in zip(results, found, strict=True):
            result["explanation"] = explanation

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Write the detector's folder: weights, config, processor and code."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["AnomalyDetectionPipeline"]
