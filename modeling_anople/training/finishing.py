"""The end of a fit, and what it takes to go on with an unfinished one: state, memory, thresholds, and a look at the decoder."""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ..calibration_anople import UnreachableThreshold, describe_guarantee
from ..enrollment_anople import digest_of, hint_at_session
from ..fitting_anople import calibrate_product, remember
from ..images_anople import load_image, taken_at
from ..inference_anople import TiledImage
from ..modeling_anople import AnoPLeModel
from ..processing_anople import AnoPLeProcessor
from ..runtime.loading import STATE_FILE
from ..saving_anople import sync
from ..scoring_anople import resize_maps
from .few_shot import Shots
from .options import TrainingConfig


# --- State of an unfinished fit, in one safetensors file that is replaced whole: kill the program at any time and go on ---


def save_state(folder: Path, *, step: int, settings: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """
    Write learnable weights, optimizer state and the step, without pickle and without the frozen CLIP.

    Samples, noise and learning rate are functions of the step, so nothing else is needed to go on exactly.
    """
    tensors = {f"model.{name}": weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    for number, entries in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{number}.{name}": value for name, value in entries.items()})
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    unfinished = folder / f"{STATE_FILE}.part"
    save_file(tensors, unfinished, metadata={"step": str(step), "settings": json.dumps(settings, sort_keys=True)})
    sync(unfinished)
    os.replace(unfinished, folder / STATE_FILE)
    sync(folder)


def remove_state(folder: Path) -> None:
    """Remove the state of a fit that has ended, or is not to go on, and what a killed program left half-written of one."""
    for name in (STATE_FILE, f"{STATE_FILE}.part"):
        (folder / name).unlink(missing_ok=True)


def load_state(folder: Path, *, settings: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """
    Bring model and optimizer to where [`save_state`] left them.

    Returns:
        The number of steps done; 0 if the folder holds no state.

    Raises:
        ValueError: if the state belongs to a fit with other settings, naming those that differ, or is damaged.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, known = int(metadata["step"]), json.loads(metadata["settings"])
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it and start anew without --resume.") from error
    now = json.loads(json.dumps(settings, sort_keys=True))
    differing = sorted(name for name in {*known, *now} if known.get(name) != now.get(name))
    if differing:
        pairs = ", ".join(f"{name}: {known.get(name)!r} then, {now.get(name)!r} now" for name in differing)
        raise ValueError(f"--resume in {folder} with other settings ({pairs}): repeat them, or start in a new folder.")
    weights = dict(model.named_parameters())
    state: dict[int, dict] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            if part == "model":
                weights[rest].copy_(tensor)
            else:
                number, entry = rest.split(".", 1)
                state.setdefault(int(number), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def trim_log(path: Path, step: int) -> None:
    """Drop what a log says of steps after `step`: a resumed fit repeats them, and a fresh one starts its log anew."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        unfinished = path.with_name(f"{path.name}.part")
        unfinished.write_text("".join(kept), encoding="utf-8")
        os.replace(unfinished, path)


# --- Alarms of fitting: does the decoder look at the image at all? (paper.md section 7) ---


logger = logging.getLogger(__name__)

SMALLEST_SPREAD = 0.05
SMALLEST_ADVANTAGE = 0.02


@dataclass
class DecoderHealth:
    """
    What the decoder answers on made defects over photographs that fitting did not see.

    Args:
        auroc: pixel AUROC of the decoder's maps.
        shuffled_auroc: the same with every map laid on another image: what a map that ignores its image reaches.
        feature_spread: root mean square distance of the unit-length features from their mean over places, 0 to 1.
        inside, outside: mean probability on defects and off them.
    """

    auroc: float
    shuffled_auroc: float
    feature_spread: float
    inside: float
    outside: float

    @property
    def problems(self) -> list[str]:
        """Say in words what is wrong; empty if nothing is."""
        found = []
        if self.feature_spread < SMALLEST_SPREAD:
            found.append(f"its features hardly vary over the image (spread {self.feature_spread:.3f})")
        if self.auroc - self.shuffled_auroc < SMALLEST_ADVANTAGE:
            found.append(
                f"its maps fit other images as well (AUROC {self.auroc:.3f}, shuffled {self.shuffled_auroc:.3f})"
            )
        return found

    def warn(self) -> None:
        """Log a warning with the remedy if the decoder has collapsed."""
        if self.problems:
            logger.warning(
                "The decoder has collapsed: %s. Train longer, raise --decoder_learning_rate, or lower "
                "--alignment_loss_weight; until then --map_fusion memory does without it.",
                " and ".join(self.problems),
            )

    def describe(self) -> str:
        """Say the figures in one sentence."""
        return (
            f"The decoder's maps find made defects with pixel AUROC {self.auroc:.3f}; maps of other photographs in their "
            f"place reach {self.shuffled_auroc:.3f}."
        )

    def as_dict(self) -> dict[str, float]:
        """Return the figures, rounded for a log."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@torch.no_grad()
def check_decoder(model: AnoPLeModel, batch: dict[str, Tensor], *, batch_size: int = 8) -> DecoderHealth:
    """
    Measure the decoder on a fixed set of global views with made defects.

    Args:
        model: in evaluation mode, its class embeddings stored.
        batch: pixel_values (images, 3, side, side), class_ids and mask_labels; the images in any order.
    """
    maps, spreads = [], []
    for pixels, ids in zip(batch["pixel_values"].split(batch_size), batch["class_ids"].split(batch_size), strict=True):
        features = model.encode_image(pixels)
        text = model.products.text_embeddings(ids.tolist())
        decoded = model.decoder(features.patches, features.intermediate, text)
        places = decoded.features.float().flatten(2)
        spreads.append((places - places.mean(2, keepdim=True)).square().sum(1).mean(1).sqrt())
        maps.append(decoded.logits.float().softmax(1)[:, 1])
    return judge_maps(torch.cat(maps), batch["mask_labels"], feature_spread=float(torch.cat(spreads).mean()))


def judge_maps(maps: Tensor, masks: Tensor, *, feature_spread: float) -> DecoderHealth:
    """
    Compare maps (images, rows, columns) with their masks (images, height, width), and with those of other images.

    Args:
        masks: at least one pixel marked and one not.
    """
    masks = masks.cpu()
    maps = resize_maps(maps, tuple(masks.shape[-2:])).cpu()
    marked = masks.flatten().numpy() > 0.5
    return DecoderHealth(
        auroc=float(roc_auc_score(marked, maps.flatten().numpy())),
        shuffled_auroc=float(roc_auc_score(marked, maps.roll(1, dims=0).flatten().numpy())),
        feature_spread=feature_spread,
        inside=float(maps[masks > 0.5].mean()),
        outside=float(maps[masks <= 0.5].mean()),
    )


# --- What turns a fitted model into a detector: class embeddings, memory, lines, and a look at its decoder ---


def finish(
    model: AnoPLeModel, processor: AnoPLeProcessor, shots: Shots, validation: dict | None, config: TrainingConfig
) -> DecoderHealth | None:
    """Store text embeddings, fill the memory, fit the thresholds and check the decoder."""
    model.eval()
    model.store_text_embeddings()
    # 1. The memory of every product: where classes are predicted or pooled, a threshold needs them all.
    images, digests = [], []
    hint_at_session([taken_at(source) for source in shots.images])
    for class_id in range(len(shots.files)):
        own, hashes = [], []
        for source, owner in zip(shots.images, shots.class_ids, strict=True):
            if owner == class_id:
                image = load_image(source, white_value=processor.white_value)
                hashes.append(digest_of(image))
                mask = _mask_of(model, class_id, image)
                own.append(TiledImage.of(image, processor, model.config.tiling, mask).release())
        images.append(own)
        digests.append(hashes)
        remember(model, images[class_id], class_id)
    # 2. Thresholds, and what they can promise, said once for products of which the same holds.
    statements: dict[str, list[str]] = {}
    for class_id, name in enumerate(shots.files):
        rate = config.max_false_alarm_rate
        try:
            threshold = calibrate_product(model, images[class_id], class_id, max_false_alarm_rate=rate)
        except UnreachableThreshold as error:  # what was fitted is kept
            logger.warning("%s Until anople add_normals shows it more, its photographs have no label.", error)
            continue
        statements.setdefault(describe_guarantee(threshold), []).append(name)
    for statement, names in statements.items():
        logger.info("%s: %s", ", ".join(names), statement)
    for class_id, (name, files) in enumerate(shots.files.items()):
        model.products.log("fit", name, files=files, digests=digests[class_id])
    # 3. Whether the decoder sees defects at all, on images that were not trained on.
    if validation is None:
        return None
    health = check_decoder(model, {name: values.to(model.device) for name, values in validation.items()})
    logger.info("%s", health.describe())
    health.warn()
    return health


def _mask_of(model: AnoPLeModel, class_id: int, image: Image.Image) -> np.ndarray | None:
    opener = model.products.mask_opener(class_id)
    return opener(image.size[::-1]) if opener else None


__all__ = [
    "DecoderHealth",
    "STATE_FILE",
    "check_decoder",
    "finish",
    "judge_maps",
    "load_state",
    "remove_state",
    "save_state",
    "trim_log",
]
