"""AnoPLeProcessor: photographs of any kind, class names and masks -> tensors, and answers -> the photographs' own size."""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .backbone_anople import HUB_ARGUMENTS, load_clip_config, load_clip_part, load_clip_tokenizer
from .calibration_anople import label_of
from .configuration_anople import LARGEST_SIDE, AnoPLeConfig, check_ranges
from .images_anople import (
    WHITE_RANGE,
    ImageSource,
    MaskSource,
    act_on_each,
    fill_ignored,
    load_ignore_mask,
    load_image,
    load_mask,
    mask_tensor,
)
from .product_store_anople import UNKNOWN_PRODUCT, find_class
from .saving_anople import adopt_processor, check_processor, finder, read_place
from .scoring_anople import broken_answers


SIDE_RANGES = dict.fromkeys(("height", "width", "shortest_edge", "longest_edge"), (1, LARGEST_SIDE))


class AnoPLeProcessor(ProcessorMixin):
    """
    Turn photographs, class names and masks into tensors, and answers into results.

    Args:
        image_processor: a CLIP image processor; its PIL form is used whatever is installed, so that pixel values do not
            depend on the machine. The sides that it brings photographs to are at most 4096 pixels.
        tokenizer: the CLIP tokenizer; only new products need it.
        class_names (`list[str]`): the products, in the order of their ids.
        white_value (`float`, *optional*): white of photographs with more than 8 bits for each channel, 1e-06 to
            4294967296; 4095 for a 12-bit camera.

    Raises:
        ValueError: for a number out of its range.
    """

    _auto_class = "AutoProcessor"
    name_or_path = ""  # where it was loaded from

    def __init__(self, image_processor=None, tokenizer=None, class_names=None, white_value=None, **kwargs):
        if image_processor is not None and not isinstance(image_processor, CLIPImageProcessorPil):
            settings = image_processor.to_dict()
            settings.pop("image_processor_type", None)
            image_processor = CLIPImageProcessorPil(**settings)
        for name in ("size", "crop_size"):
            if sides := getattr(image_processor, name, None):
                check_ranges(sides, SIDE_RANGES, f"{name}.")
        self.class_names = list(class_names or [])
        self.white_value = white_value
        check_ranges(self, {"white_value": WHITE_RANGE})
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_clip(
        cls,
        clip: str,
        class_names: Sequence[str],
        *,
        image_size: int | None = None,
        white_value: float | None = None,
        **kwargs,
    ) -> "AnoPLeProcessor":
        """
        Build the processor of a new detector from the CLIP it stands on.

        Photographs are resized to the square that the tower sees, without a crop, because defects sit at borders too.

        Args:
            clip: `"mini"` for the embedded CLIP, or Hub id or folder of a checkpoint.
            class_names: the products.
            image_size: side of the square in pixels, `model.config.input_size` of a detector that sees more than its CLIP was
                pretrained on; by default that.
            white_value: of photographs with more than 8 bits for each channel; by default what their files say.
            kwargs: `revision`, `cache_dir`, `token`, `local_files_only` of transformers.

        Raises:
            ValueError: for an unknown keyword, or a name that cannot be found, with the remedy.
        """
        if unknown := sorted(set(kwargs) - set(HUB_ARGUMENTS)):
            raise ValueError(
                f"from_clip of the processor got {unknown}: it takes image_size, white_value, {', '.join(HUB_ARGUMENTS)}."
            )
        side = image_size or load_clip_config(clip, **kwargs).vision_config.image_size
        known = load_clip_part(CLIPImageProcessorPil, clip, **kwargs)
        image_processor = CLIPImageProcessorPil(
            size={"height": side, "width": side},
            do_center_crop=False,
            image_mean=known.image_mean,
            image_std=known.image_std,
        )
        tokenizer = load_clip_tokenizer(clip, **kwargs)
        return cls(image_processor, tokenizer, class_names=class_names, white_value=white_value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """
        Load the processor of a detector, as `ProcessorMixin.from_pretrained` does.

        Raises:
            ValueError: if it was not saved together with the detector that lies beside it.
        """
        kwargs.pop("dtype", None)  # which `pipeline` hands on; a tokenizer that keeps it cannot be saved
        load, hub = super().from_pretrained, {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        others = {name: value for name, value in kwargs.items() if name not in hub}

        def read(place: str | os.PathLike, hub: dict) -> "AnoPLeProcessor":
            check_processor(finder(place, hub))
            return load(place, **hub, **others)

        processor = read_place(pretrained_model_name_or_path, hub, read)
        processor.name_or_path = str(pretrained_model_name_or_path)
        return processor

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save as every processor; beside a detector that is saved there already, as its own."""
        super().save_pretrained(save_directory, **kwargs)
        adopt_processor(Path(save_directory))

    @property
    def image_size(self) -> int:
        """Side of the square that the model sees."""
        return self.image_processor.size["height"]

    @property
    def model_input_names(self) -> list[str]:
        """What a call with images alone returns."""
        return ["pixel_values"]

    def __call__(self, images=None, class_names=None, masks=None, ignore_masks=None, **kwargs) -> BatchFeature:
        """
        Prepare photographs for the model.

        Args:
            images: one photograph or a list of them, each anything that [`load_image`] opens.
            class_names: the product of all of them, or a list with one for each.
            masks: ground truth, one or a list, each anything that opens as an image, or `None` for a good photograph.
            ignore_masks: what does not count, one for all or a list with one (or `None`) for each, of its photograph's
                size; what lies there is painted over before anything sees it.

        Returns:
            `pixel_values` (batch, 3, side, side), `class_ids` (batch,) with `class_names`, `mask_labels`
            (batch, side, side) with `masks`, `ignore_masks` (batch, side, side) shares with `ignore_masks`.

        Raises:
            ImageError: naming the photograph, if one cannot be read or a mask has another size.
            ValueError: for an unknown class, naming those that are known, or a keyword that the image processor lacks.
        """
        if unknown := sorted(kwargs.keys() - self.image_processor.valid_kwargs.__annotations__.keys()):
            raise ValueError(
                f"AnoPLeProcessor got {unknown}: it takes images, class_names, masks, ignore_masks and options of its image "
                "processor, such as do_resize. The words of a product are tokenized once, when it is enrolled."
            )
        if images is None or (isinstance(images, (list, tuple)) and not images):
            raise ValueError("AnoPLeProcessor needs images=..., got none.")
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        photographs = [load_image(image, white_value=self.white_value) for image in images]
        kwargs.pop("return_tensors", None)
        if ignore_masks is not None:
            photographs, hidden = self._ignore(photographs, images, ignore_masks)
        data = self._to_tensors(photographs, kwargs)
        if ignore_masks is not None:
            data["ignore_masks"] = hidden
        if class_names is not None:
            names = [class_names] * len(images) if isinstance(class_names, str) else list(class_names)
            if len(names) != len(images):
                raise ValueError(f"{len(images)} images were given with {len(names)} class names: give one for each.")
            data["class_ids"] = torch.tensor([self.class_id(name) for name in names])
        if masks is not None:
            masks = list(masks) if isinstance(masks, (list, tuple)) else [masks]
            if len(masks) != len(images):
                raise ValueError(
                    f"{len(images)} images were given with {len(masks)} masks: give one or None for each."
                )
            sizes = [photograph.size[::-1] for photograph in photographs]
            data["mask_labels"] = torch.stack(
                [self._mask_tensor(*each) for each in zip(masks, sizes, images, strict=True)]
            )
        return BatchFeature(data)

    def class_id(self, class_name: str) -> int:
        """Return the id of a product; an unknown name is refused with the known ones."""
        return find_class(class_name, self.class_names)

    def _to_tensors(self, photographs: list[Image.Image], options: dict) -> dict[str, torch.Tensor]:
        prepare = functools.partial(self.image_processor, return_tensors="pt", **options)
        parts = act_on_each(prepare, photographs)
        if len(shapes := {tuple(part["pixel_values"].shape[1:]) for part in parts}) > 1:
            raise ValueError(
                f"Photographs of {sorted(shapes)} are no batch: leave do_resize on, or give one at a time."
            )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _ignore(
        self, photographs: list[Image.Image], sources: list, ignore_masks: MaskSource | Sequence[MaskSource | None]
    ) -> tuple[list, torch.Tensor]:
        """Paint over what is ignored, and bring the masks to the square that the model sees."""
        given = ignore_masks if isinstance(ignore_masks, (list, tuple)) else [ignore_masks] * len(photographs)
        if len(given) != len(photographs):
            raise ValueError(
                f"{len(photographs)} images were given with {len(given)} ignore_masks: give one for all, or for each."
            )
        filled, hidden = [], []
        for photograph, source, mask in zip(photographs, sources, given, strict=True):
            if mask is not None:
                mask = load_ignore_mask(mask, photograph.size[::-1], photograph=source)
            filled.append(photograph if mask is None else fill_ignored(photograph, mask))
            hidden.append(mask_tensor(mask, self.image_size))
        return filled, torch.stack(hidden)

    def _mask_tensor(self, mask: ImageSource | None, size: tuple[int, int], photograph: ImageSource) -> torch.Tensor:
        if mask is None:
            return torch.zeros(self.image_size, self.image_size)
        marked = Image.fromarray(load_mask(mask, size=size, photograph=photograph).astype(np.uint8) * 255)
        marked = marked.resize((self.image_size, self.image_size), Image.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(marked) > 0).float()

    def post_process_anomaly_detection(
        self,
        outputs,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.5,
        regions: bool = False,
    ) -> list[dict]:
        """
        Turn a model's answer into one result per photograph.

        Args:
            outputs: an [`AnoPLeOutput`].
            target_sizes: (height, width) of each photograph; its map is brought to that size. Without it, the model's.
            threshold: calibrated score above which a photograph is anomalous; usually `model.config.threshold`.
            regions: whether the regions above the threshold are listed.

        Returns:
            Dictionaries with `score` (calibrated, 0.5 is the line), `label` ("normal" or "anomalous"), `unsure` (whether it
            is normal, and yet odder than every good photograph behind an extrapolated line), `raw_score`, `p_value` (see
            [`p_value`]; `None` where there is none), `anomaly_map` (float32 array, 0.5 is the line), `class_name`, and
            `regions` above the threshold (see [`find_regions`]; `None` without calibration, or where they were not asked
            for). Without calibration `score` is the raw score, the map is raw and `label` is `None`. Where the class was
            predicted and the photograph shows none of the products, `label` is "unknown product" and `class_name` is
            `None`; score, p-value and map are as the nearest one. `error` is `None`, or says which number is not finite;
            all else is `None` then.
        """
        count = len(outputs.image_scores)
        if target_sizes is not None and len(target_sizes) != count:
            raise ValueError(f"{count} results were given {len(target_sizes)} target_sizes: give one for each.")
        known, results = outputs.is_known_class, []
        p_values = _finite(outputs.p_values, count)
        for number, broken in enumerate(broken_answers(outputs)):
            if broken is not None:
                error = f"Its {broken} is not finite: the detector's weights are broken, copy or fit it again."
                results.append({**dict.fromkeys(RESULTS), "error": error})
                continue
            calibrated = outputs.calibrated_scores is not None and bool(outputs.calibrated_scores[number].isfinite())
            score = (outputs.calibrated_scores if calibrated else outputs.image_scores)[number].item()
            anomaly_map = (outputs.calibrated_maps if calibrated else outputs.anomaly_maps)[number].detach().float()
            anomaly_map = anomaly_map[None, None]
            if target_sizes is not None:
                size = tuple(int(side) for side in target_sizes[number])
                anomaly_map = F.interpolate(anomaly_map, size=size, mode="bilinear", align_corners=False)
            label = label_of(score, threshold) if calibrated else None
            unsure = outputs.is_unsure is not None and bool(outputs.is_unsure[number])
            unknown = known is not None and not bool(known[number])
            nameless = unknown or outputs.class_ids is None or not self.class_names
            anomaly_map = anomaly_map[0, 0].cpu().numpy()
            results.append(
                {
                    "score": score,
                    "label": UNKNOWN_PRODUCT if unknown else label,
                    "unsure": unsure and label == "normal" and not unknown,
                    "raw_score": outputs.image_scores[number].item(),
                    "p_value": p_values[number],
                    "anomaly_map": anomaly_map,
                    "regions": find_regions(anomaly_map, threshold) if calibrated and regions else None,
                    "class_name": None if nameless else self.class_names[int(outputs.class_ids[number])],
                    "error": None,
                }
            )
        return results


RESULTS = ("score", "label", "unsure", "raw_score", "p_value", "anomaly_map", "regions", "class_name", "error")


# --- Every region of a map above the threshold ---


MOST_REGIONS = 1000  # that are listed of one map


def find_regions(anomaly_map: np.ndarray, threshold: float, *, min_area: int = 1) -> list[dict]:
    """
    List the regions of a map (height, width) above a threshold, the largest peak first, and no more than 1,000 of them.

    What touches, also at a corner, is one region.

    Args:
        min_area: regions of fewer pixels are left out.

    Returns:
        Of each its `box` (left, top, right, bottom), `area` in pixels, `peak` and `centroid` (x, y).
    """
    runs = _runs_of(np.asarray(anomaly_map) > threshold)
    if runs is None:
        return []
    marked, rows, starts, ends, of_run, areas = runs
    (height, width), count, lengths = marked.shape, len(areas), ends - starts
    peaks = np.maximum.reduceat(np.asarray(anomaly_map)[marked], np.cumsum(lengths) - lengths)
    across = np.bincount(of_run, lengths * (starts + ends - 1) / 2) / areas
    down = np.bincount(of_run, lengths * rows) / areas
    left, top, right, bottom, peak = (np.full(count, value) for value in (width, height, 0, 0, -np.inf))
    for bound, values, keep in (
        (left, starts, np.minimum),
        (top, rows, np.minimum),
        (right, ends, np.maximum),
        (bottom, rows + 1, np.maximum),
        (peak, peaks, np.maximum),
    ):
        keep.at(bound, of_run, values)
    order = [number for number in np.lexsort((-areas, -peak)) if areas[number] >= min_area]
    return [
        {
            "box": [int(bound[number]) for bound in (left, top, right, bottom)],
            "area": int(areas[number]),
            "peak": round(float(peak[number]), 6),
            "centroid": [round(float(across[number]), 1), round(float(down[number]), 1)],
        }
        for number in order[:MOST_REGIONS]
    ]


def mark_regions(anomaly_map: np.ndarray, threshold: float, *, min_area: int = 1) -> np.ndarray:
    """Mark the regions that [`find_regions`] lists, and those beyond its 1,000: booleans of the map's size."""
    runs = _runs_of(np.asarray(anomaly_map) > threshold)
    if runs is None:
        return np.zeros(np.shape(anomaly_map), dtype=bool)
    marked, _, starts, ends, of_run, areas = runs
    marked[marked] = np.repeat(areas[of_run] >= min_area, ends - starts)
    return marked


def _runs_of(marked: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """
    Cut each row into runs of marked places, and sort these by regions: runs that touch those of the next row are joined.

    Returns:
        The marked places; row, start and end of each run, in reading order; the number of its region, from 0; the area of
        each region. `None` where nothing is marked.
    """
    if not marked.any():
        return None
    edges = np.diff(np.pad(marked.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    labels = _join_runs(rows, starts, ends, marked.shape[1] + 2)
    _, of_run = np.unique(labels, return_inverse=True)
    return marked, rows, starts, ends, of_run, np.bincount(of_run, ends - starts).astype(int)


def _join_runs(rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, stride: int) -> np.ndarray:
    """Number runs, sorted by row and start, so that those that touch, directly or through others, have one number."""
    begin, stop = rows * stride + starts, rows * stride + ends
    low = np.searchsorted(stop, (rows + 1) * stride + starts)  # runs of the next row that end no earlier
    high = np.searchsorted(begin, (rows + 1) * stride + ends, side="right")  # and begin no later
    counts = np.maximum(high - low, 0)
    first = np.repeat(np.arange(len(rows)), counts)
    second = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
    labels = np.arange(len(rows))
    while len(first):
        one, other = labels[first], labels[second]
        apart = one != other
        if not apart.any():
            break
        smaller, larger = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
        np.minimum.at(labels, larger, smaller)
        while not np.array_equal(labels, shorter := labels[labels]):  # to the smallest of its region
            labels = shorter
    return labels


def _finite(values: torch.Tensor | None, count: int) -> list[float | None]:
    """List numbers without the noise of half and single precision, `None` for NaN and for no tensor at all."""
    if values is None:
        return [None] * count
    return [None if math.isnan(value) else round(value, 6) for value in values.tolist()]


def check_sight(processor: AnoPLeProcessor, config: AnoPLeConfig) -> None:
    """Refuse, by a `ValueError`, a processor that prepares images of another side or normalization than a detector takes."""
    images = processor.image_processor
    if processor.image_size != config.input_size:
        raise ValueError(
            f"The processor prepares images of {processor.image_size} pixels, and the model takes {config.input_size}: give "
            f"AnoPLeProcessor.from_clip(..., image_size={config.input_size})."
        )
    wanted, found = (config.image_mean, config.image_std), (list(images.image_mean), list(images.image_std))
    if config.memory_encoder is not None and not np.allclose(wanted, found, atol=1e-6):
        raise ValueError(
            f"The processor normalizes images with mean and deviation {found}, and the model's memory encoder expects {wanted}: "
            "give from_clip image_mean=... and image_std=... of this processor, or the processor that belongs to this model."
        )


__all__ = ["AnoPLeProcessor", "check_sight", "find_regions", "mark_regions"]
