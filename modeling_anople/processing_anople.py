"""AnoPLeProcessor: photographs of any kind, class names and masks -> tensors, and answers -> the photographs' own size."""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional as F
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .backbone_anople import HUB_ARGUMENTS, load_clip_config, load_clip_part, load_clip_tokenizer


# White value of modes that have no fixed one; never taken from the photograph itself, or two photographs of one part
# would be scaled differently.
WHITE_VALUES = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0, "I": 65535.0, "F": 1.0}
# Resampling leaves the range a little; values farther out are on another scale.
ACCEPTED_RANGE = (-0.5, 1.5)
ANY_MARK = 1e-6  # white value of masks: whatever is above 0 becomes visible


class ImageError(ValueError):
    """A photograph that cannot be used; the message names it and says what to do."""


def load_photograph(source: Any, *, white_value: float | None = None) -> Image.Image:
    """
    Open a photograph of any kind as RGB, upright.

    EXIF rotation is applied. Alpha is laid over white. 16-bit and float greyscale are divided by a fixed white value:
    65535 for integers, 1.0 for floats, or `white_value` (4095 for a 12-bit camera). Colour profiles are ignored, and so
    are all frames but the first.

    Args:
        source: path, file, bytes, `{"path", "bytes"}` as `datasets.Image(decode=False)` gives, PIL image, array
            (height, width) or (height, width, 1 | 3 | 4), or tensor (1 | 3 | 4, height, width), of bool, uint8, uint16
            or floats within 0 and 1.
        white_value: overrides the white value of 16-bit and float greyscale.

    Raises:
        ImageError: if it cannot be read whole, or has values on another scale.
    """
    return _load(source, white_value, "white")


def load_mask(source: Any, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """
    Open a ground-truth mask as booleans (height, width); any value above 0 marks a defect, transparency does not.

    Args:
        size: (height, width) of its photograph.

    Raises:
        ImageError: if it cannot be read or has another size.
    """
    mask = np.asarray(_load(source, ANY_MARK, "black")).any(axis=-1)
    if size is not None and mask.shape != tuple(size):
        raise ImageError(
            f"{_name_of(source)}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels and its photograph "
            f"{size[1]} x {size[0]}: export the mask at the photograph's own size."
        )
    return mask


def _load(source: Any, white_value: float | None, background: str) -> Image.Image:
    try:
        return _read(source, white_value, background)
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        raise ImageError(f"{_name_of(source)}: {_reason(error)}") from error


def _read(source: Any, white_value: float | None, background: str) -> Image.Image:
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return _to_rgb(_from_array(source, white_value), white_value, background)
    if isinstance(source, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(source), white_value, background)
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read"):
        raise ImageError(f"a {type(source).__name__} is no photograph: give a path, bytes, a PIL image or an array.")
    with Image.open(source) as image:
        return _to_rgb(ImageOps.exif_transpose(image), white_value, background)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "there is no such file."
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a photograph: give the files inside."
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow can read: check or remove the file."
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large to open ({error}): make it smaller, or cut it into tiles."
    return f"cannot be read whole ({error}): copy it again or remove it."


def _name_of(source: Any) -> str:
    if isinstance(source, dict):
        source = source.get("path") or "image in a table"
    if not isinstance(source, (str, os.PathLike)):  # a file, or a PIL image that was opened from one
        source = getattr(source, "filename", "") or getattr(source, "name", "")
    return str(source) if isinstance(source, (str, os.PathLike)) and str(source) else "image in memory"


def _from_array(array: np.ndarray | torch.Tensor, white_value: float | None) -> Image.Image:
    if isinstance(array, torch.Tensor):
        array = (array.float() if array.is_floating_point() else array).detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ImageError(f"shape {array.shape} is no image: give (height, width) or (height, width, 3).")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if array.dtype.kind != "f" and array.dtype != np.uint16 and (white_value is None or array.dtype.kind not in "iu"):
        raise ImageError(
            f"{array.dtype} says nothing about white: give uint8, uint16, floats within 0 and 1, or bool."
        )
    return Image.fromarray(_scaled(array, white_value, 1.0 if array.dtype.kind == "f" else 65535.0))


def _scaled(array: np.ndarray, white_value: float | None, usual_white: float) -> np.ndarray:
    """Bring grey values to uint8; without a `white_value`, ones that cannot have been meant for the usual white fail."""
    values = np.nan_to_num(np.asarray(array, dtype=np.float64)) / (white_value or usual_white)
    if white_value is None and not ACCEPTED_RANGE[0] <= values.min() <= values.max() <= ACCEPTED_RANGE[1]:
        raise ImageError(
            f"values from {np.min(array):g} to {np.max(array):g} do not fit the usual white of {usual_white:g}: "
            "scale them, or give the processor the white_value of your camera."
        )
    return np.clip(np.rint(255 * values), 0, 255).astype(np.uint8)


def _to_rgb(image: Image.Image, white_value: float | None, background: str) -> Image.Image:
    if image.mode in WHITE_VALUES:
        image = Image.fromarray(_scaled(np.asarray(image), white_value, WHITE_VALUES[image.mode]))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


class AnoPLeProcessor(ProcessorMixin):
    """
    Turn photographs, class names and masks into tensors, and answers into results.

    Args:
        image_processor: a CLIP image processor; its PIL form is used whatever is installed, so that pixel values do not
            depend on the machine.
        tokenizer: the CLIP tokenizer; only new products need it.
        class_names (`list[str]`): the products, in the order of their ids.
        white_value (`float`, *optional*): white of 16-bit and float greyscale, 4095 for a 12-bit camera.
    """

    def __init__(self, image_processor=None, tokenizer=None, class_names=None, white_value=None, **kwargs):
        if image_processor is not None and not isinstance(image_processor, CLIPImageProcessorPil):
            settings = image_processor.to_dict()
            settings.pop("image_processor_type", None)
            image_processor = CLIPImageProcessorPil(**settings)
        self.class_names = list(class_names or [])
        self.white_value = white_value
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_clip(cls, clip: str, class_names: Sequence[str], **kwargs) -> "AnoPLeProcessor":
        """
        Build the processor of a new detector from the CLIP it stands on.

        Photographs are resized to the square that the tower sees, without a crop, because defects sit at borders too.

        Args:
            clip: `"mini"` for the embedded CLIP, or Hub id or folder of a checkpoint.
            class_names: the products.
            kwargs: `revision`, `cache_dir`, `token`, `local_files_only` of transformers.

        Raises:
            ValueError: for an unknown keyword, or a name that cannot be found, with the remedy.
        """
        if unknown := sorted(set(kwargs) - set(HUB_ARGUMENTS)):
            raise ValueError(f"from_clip of the processor got {unknown}: it takes {', '.join(HUB_ARGUMENTS)}.")
        side = load_clip_config(clip, **kwargs).vision_config.image_size
        known = load_clip_part(CLIPImageProcessorPil, clip, **kwargs)
        image_processor = CLIPImageProcessorPil(
            size={"height": side, "width": side},
            do_center_crop=False,
            image_mean=known.image_mean,
            image_std=known.image_std,
        )
        return cls(image_processor, load_clip_tokenizer(clip, **kwargs), class_names=class_names)

    @property
    def image_size(self) -> int:
        """Side of the square that the model sees."""
        return self.image_processor.size["height"]

    def __call__(self, images=None, class_names=None, masks=None, **kwargs) -> BatchFeature:
        """
        Prepare photographs for the model.

        Args:
            images: one photograph or a list of them, each anything that [`load_photograph`] opens.
            class_names: the product of all of them, or a list with one for each.
            masks: ground truth, one or a list, each anything that opens as an image, or `None` for a good photograph.

        Returns:
            `pixel_values` (batch, 3, side, side), `class_ids` (batch,) with `class_names`, `mask_labels`
            (batch, side, side) with `masks`.

        Raises:
            ImageError: naming the photograph, if one cannot be read or a mask has another size.
            ValueError: for an unknown class, naming those that are known.
        """
        if images is None or (isinstance(images, (list, tuple)) and not images):
            raise ValueError("AnoPLeProcessor needs images=..., got none.")
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        photographs = [load_photograph(image, white_value=self.white_value) for image in images]
        kwargs.pop("return_tensors", None)
        data = dict(self.image_processor(photographs, return_tensors="pt", **kwargs))
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
                [self._mask_tensor(mask, size) for mask, size in zip(masks, sizes, strict=True)]
            )
        return BatchFeature(data)

    def class_id(self, class_name: str) -> int:
        """Return the id of a product; an unknown name is refused with the known ones."""
        if class_name not in self.class_names:
            raise ValueError(
                f"The class {class_name!r} is not known to this detector, which knows {self.class_names}."
            )
        return self.class_names.index(class_name)

    def _mask_tensor(self, mask: Any, size: tuple[int, int]) -> torch.Tensor:
        if mask is None:
            return torch.zeros(self.image_size, self.image_size)
        marked = Image.fromarray(load_mask(mask, size=size).astype(np.uint8) * 255)
        marked = marked.resize((self.image_size, self.image_size), Image.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(marked) > 0).float()

    def post_process_anomaly_detection(
        self, outputs, target_sizes: Sequence[tuple[int, int]] | None = None, threshold: float = 0.5
    ) -> list[dict[str, Any]]:
        """
        Turn a model's answer into one result per photograph.

        Args:
            outputs: an [`AnoPLeOutput`].
            target_sizes: (height, width) of each photograph; its map is brought to that size. Without it, the model's.
            threshold: calibrated score above which a photograph is anomalous; usually `model.config.threshold`.

        Returns:
            Dictionaries with `score` (calibrated, 0.5 is the line), `label` ("normal" or "anomalous"), `raw_score`,
            `anomaly_map` (float32 array, 0.5 is the line), `class_name`. Without calibration `score` is the raw score,
            the map is raw and `label` is `None`.
        """
        calibrated = outputs.calibrated_scores is not None
        scores = outputs.calibrated_scores if calibrated else outputs.image_scores
        maps = (outputs.calibrated_maps if calibrated else outputs.anomaly_maps).detach().float()
        if target_sizes is not None and len(target_sizes) != len(scores):
            raise ValueError(f"{len(scores)} results were given {len(target_sizes)} target_sizes: give one for each.")
        results = []
        for number, score in enumerate(scores.tolist()):
            anomaly_map = maps[number : number + 1, None]
            if target_sizes is not None:
                size = tuple(int(side) for side in target_sizes[number])
                anomaly_map = F.interpolate(anomaly_map, size=size, mode="bilinear", align_corners=False)
            ids = outputs.class_ids
            results.append(
                {
                    "score": score,
                    "label": ("anomalous" if score > threshold else "normal") if calibrated else None,
                    "raw_score": outputs.image_scores[number].item(),
                    "anomaly_map": anomaly_map[0, 0].cpu().numpy(),
                    "class_name": None if ids is None or not self.class_names else self.class_names[int(ids[number])],
                }
            )
        return results


__all__ = ["AnoPLeProcessor", "ImageError", "load_mask", "load_photograph"]
