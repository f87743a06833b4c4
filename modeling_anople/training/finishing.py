"""The end of a fit, and what it takes to go on with an unfinished one: state, memory, thresholds, and a look at the decoder."""

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ..calibration_anople import UnreachableThreshold, describe_guarantee
from ..configuration_anople import FUSED_PARTS, AnoPLeConfig
from ..data.drawn_products import DEFECTS, central_disc, draw_defect
from ..enrollment_anople import digest_of, hint_at_session
from ..fitting_anople import calibrate_product, remember
from ..images_anople import load_ignore_mask, load_image, print_of, taken_at
from ..inference_anople import TiledImage
from ..modeling_anople import AnoPLeModel
from ..processing_anople import AnoPLeProcessor
from ..runtime.loading import STATE_FILE
from ..saving_anople import sync
from ..scoring_anople import AnoPLeOutput, log_odds, resize_maps, smooth_maps
from ..tiling_anople import jittered_copies
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


# --- How well each part finds defects, and what it therefore weighs in the answer ---


MEASURED_IMAGES = 64  # at most, of all products together
CERTAINTY = 1.645  # standard deviations of an AUROC by chance, beyond which a part is believed to see anything: 5 %
LARGEST_AUROC = 0.999  # none of so few images is perfect
PIXEL_STEP = 4  # pixels of a map between two that are compared


@dataclass
class PartHealth:
    """
    How well one part of a detector tells made defects from good photographs.

    Args:
        auroc: within 0 and 1, 0.5 is chance.
        chance: what one in twenty parts that see nothing would reach on as many images.
        weight: of its log odds in the answer, the memory's being 1.
    """

    auroc: float
    chance: float
    weight: float


@torch.no_grad()
def measure_parts(
    model: AnoPLeModel, processor: AnoPLeProcessor, shots: Shots, *, seed: int = 0
) -> dict[str, PartHealth]:
    """
    Measure memory, decoder and text on the photographs of a fit, each against the memory of the others.

    A photograph is moved and relit a little, and so are its copies with a defect of each drawn kind; fitting draws
    defects of other kinds. A lone photograph is compared with itself.

    Args:
        model: in evaluation mode, with a memory of exactly these photographs.
        shots: the good photographs; of many products some are taken, in their order.
        seed: of the defects.

    Returns:
        The health of `memory_map`, `decoder_map` (over pixels that count), `memory`, `decoder` and `text` (over photographs);
        nothing where no defect can be seen on any of them.
    """
    config, side = model.config, model.config.input_size
    logits: dict[str, list[np.ndarray]] = {name: [] for name in ("memory_map", "memory", *FUSED_PARTS)}
    images, pixels, per_product = [], [], max(1, MEASURED_IMAGES // len(shots.files))
    for class_id in range(min(len(shots.files), MEASURED_IMAGES)):
        own = [image for image, owner in zip(shots.images, shots.class_ids, strict=True) if owner == class_id]
        answers: dict[str, list[Tensor]] = {name: [] for name in logits}
        counted, marked = [], []
        for number, image in enumerate(own[:per_product]):
            mask = shots.mask_of(class_id)
            views = _spoiled_views(image, processor, config.tiling, side, mask, [seed, class_id, number])
            alone = model.products[class_id].image_count == 1
            output = model(
                views.pixels.to(model.device, model.dtype),
                class_ids=torch.full((len(views.pixels),), class_id),
                class_is_known=True,
                exclude=None if alone else (class_id, model.products[class_id].bank.vectors_of(number)),
                ignore_masks=views.ignored.to(model.device) if views.ignored.any() else None,
            )
            for name, values in _answers_of(output, config).items():
                answers[name].append(log_odds(values.float()).cpu())
            marked.append(views.marked)
            counted.append(~views.ignored[:, ::PIXEL_STEP, ::PIXEL_STEP])
        spoiled, places = torch.cat(marked).flatten(1).any(1), torch.cat(counted)
        for name, parts in answers.items():  # products differ by their level, which their own thresholds take away
            values = torch.cat(parts)
            if values.ndim == 1:
                logits[name].append((values - values[~spoiled].mean()).numpy())
            else:
                level = values[~spoiled][places[~spoiled]].mean()
                logits[name].append((values - level)[places].numpy())
        images.append(spoiled.numpy())
        at = torch.cat(marked)[:, ::PIXEL_STEP, ::PIXEL_STEP]
        good = (~spoiled)[:, None, None].expand(at.shape)
        pixels.append(torch.stack([at[places], good[places]]).numpy())
    spoiled, (at, good) = np.concatenate(images), np.concatenate(pixels, axis=1)
    if not at.any():
        return {}
    # of Mann and Whitney's statistic; pixels of an image are of one kind with each other, and do not count for more
    bad, whole = int(spoiled.sum()), len(spoiled)
    chance = 0.5 + CERTAINTY * math.sqrt((whole + 1) / (12 * bad * (whole - bad)))
    health = {}
    for beside, (defective, normal) in {"memory_map": (at, good), "memory": (spoiled, ~spoiled)}.items():
        names = [beside, *(name for name in FUSED_PARTS if name.endswith("map") == beside.endswith("map"))]
        values = np.stack([np.concatenate(logits[name]) for name in names], axis=1)
        aurocs = [float(roc_auc_score(defective, column)) for column in values.T]
        sees = [auroc > chance for auroc in aurocs]
        if beside == "memory_map":
            weights = map_weights(values[normal], values[defective], sees)
        else:
            weights = image_weights(aurocs, values[normal].std(0), sees)
        health |= {name: PartHealth(auroc, chance, weight) for name, auroc, weight in zip(names, aurocs, weights)}
    return health


def map_weights(normal: np.ndarray, defective: np.ndarray, sees: Sequence[bool]) -> list[float]:
    """
    Weigh maps so that their sum tells defective places best: Fisher's linear discriminant (Annals of Eugenics 7, 1936).

    It is the difference of the means, by the inverse of the covariance within the two kinds: a map that mostly repeats the
    memory's weighs little, however much it finds alone.

    Args:
        normal, defective: log odds (places, maps), the memory's first.
        sees: which maps find more than chance; others have no weight.

    Returns:
        Of each map its share of the memory's weight, within 0 and 1. Where the memory itself would have none, there is
        nothing to compare with, and it answers alone.
    """
    parts = [number for number, each in enumerate(sees) if each]
    shares = dict.fromkeys(range(len(sees)), 0.0) | {0: 1.0}
    if parts[:1] == [0]:
        # divided by the count, so that a single place has one, too
        within = (np.cov(normal[:, parts].T, bias=True) + np.cov(defective[:, parts].T, bias=True)) / 2
        weights = np.linalg.pinv(np.atleast_2d(within)) @ (defective[:, parts].mean(0) - normal[:, parts].mean(0))
        if weights[0] > 0:
            shares |= zip(parts, weights / weights[0], strict=True)
    return [round(float(np.clip(share, 0, 1)), 4) for share in shares.values()]


def image_weights(aurocs: Sequence[float], spreads: Sequence[float], sees: Sequence[bool]) -> list[float]:
    """
    Weigh image scores by the same discriminant, as if they were independent: photographs are too few to know how not.

    Args:
        aurocs: of each part, the memory's first.
        spreads: standard deviations of their log odds on good photographs.
        sees: which parts find more than chance; others have no weight.

    Returns:
        As [`map_weights`]: the distance between the two kinds in spreads, by the spread, as a share of the memory's.
    """
    evidence = [
        math.sqrt(2) * NormalDist().inv_cdf(min(auroc, LARGEST_AUROC)) / max(spread, SMALLEST_SPREAD)
        if sees_any
        else 0.0
        for auroc, spread, sees_any in zip(aurocs, spreads, sees, strict=True)
    ]
    if not evidence[0]:
        return [1.0, *[0.0] * (len(evidence) - 1)]
    return [round(float(min(1.0, each / evidence[0])), 4) for each in evidence]


def _answers_of(output: AnoPLeOutput, config: AnoPLeConfig) -> dict[str, Tensor]:
    """Return the answers of each part as they are fused: maps of some pixels, (images, rows, columns), and scores."""
    maps = {
        f"{name}_map": smooth_maps(values.float(), size=config.input_size, sigma=config.smoothing)
        for name, values in (("memory", output.memory_maps), ("decoder", output.decoder_maps))
    }
    peaks = {"memory": output.memory_maps, "decoder": output.decoder_maps}
    return {
        **{name: values[:, ::PIXEL_STEP, ::PIXEL_STEP] for name, values in maps.items()},
        **{name: values.flatten(1).amax(1) for name, values in peaks.items()},
        "text": output.text_scores,
    }


@dataclass
class SpoiledViews:
    """
    A good photograph and copies of it with a defect each, all moved and relit a little.

    Args:
        pixels: what the model takes (views, 3, side, side).
        marked: which pixels are defective (views, side, side), bool.
        ignored: which do not count, alike.
    """

    pixels: Tensor
    marked: Tensor
    ignored: Tensor


def _spoiled_views(
    image: dict, processor: AnoPLeProcessor, tiling: str | None, side: int, mask: np.ndarray | None, seed: list[int]
) -> SpoiledViews:
    """Make the views of a photograph; of one that is cut, of the tile nearest to its center."""
    photograph = load_image(image, white_value=processor.white_value)
    mask = None if mask is None else load_ignore_mask(mask, photograph.size[::-1])
    tiled = TiledImage.of(photograph, processor, tiling, mask)
    middle = np.array(photograph.size) / 2
    distances = [np.hypot(*(np.add(box[:2], box[2:]) / 2 - middle)) for box in tiled.boxes]
    picture, ignored = tiled.crop(int(np.argmin(distances)))
    square = picture.resize((side, side), Image.Resampling.BICUBIC)
    if ignored is None:
        ignored = np.zeros((side, side), dtype=bool)
    else:
        ignored = np.asarray(Image.fromarray(ignored).resize((side, side), Image.Resampling.NEAREST))
    object_mask = central_disc(side, side) & ~ignored
    pictures, marks, generator = [square], [np.zeros((side, side), dtype=bool)], np.random.default_rng(seed)
    for kind in DEFECTS:
        try:
            spoiled, marked = draw_defect(kind, square, object_mask, generator)
        except ValueError:  # none of this kind can be seen on it
            continue
        pictures.append(spoiled)
        marks.append(marked)
    pixels = processor(pictures, ignore_masks=[ignored] * len(pictures) if ignored.any() else None)["pixel_values"]
    ignored_marks = np.stack([ignored] * len(pictures))
    marked, unseen = (
        _jittered(torch.from_numpy(each)[:, None])[:, 0] > 0.5 for each in (np.stack(marks), ignored_marks)
    )
    return SpoiledViews(_jittered(pixels), marked & ~unseen, unseen)


def _jittered(values: Tensor) -> Tensor:
    """Give all jittered copies of the first (n, channels, side, side), and one of each other, no two neighbours alike."""
    copies = [jittered_copies(each.float()) for each in values]
    return torch.cat([copies[0], *(every[number % len(every)][None] for number, every in enumerate(copies[1:]))])


def describe_parts(health: dict[str, PartHealth]) -> str:
    """Say in a sentence what each part finds and weighs."""
    if not health:
        return "No made defect can be seen on these photographs, so nothing is known of the parts: the memory answers alone."
    found = ", ".join(f"{name.replace('_', ' ')} {known.auroc:.3f}" for name, known in health.items())
    weighed = ", ".join(f"{name.replace('_', ' ')} {health[name].weight:g}" for name in FUSED_PARTS)
    return f"AUROC of each part on made defects: {found}. Weights beside the memory: {weighed}."


# --- What turns a fitted model into a detector: class embeddings, memory, lines, and a look at its decoder ---


def finish(
    model: AnoPLeModel, processor: AnoPLeProcessor, shots: Shots, validation: dict | None, config: TrainingConfig
) -> DecoderHealth | None:
    """Store text embeddings, fill the memory, fit the thresholds and check the decoder."""
    model.eval()
    model.store_text_embeddings()
    # 1. The memory of every product: where classes are predicted or pooled, a threshold needs them all.
    images, digests, prints = [], [], []
    hint_at_session([taken_at(source) for source in shots.images])
    for class_id in range(len(shots.files)):
        own, hashes, seen = [], [], []
        for source, owner in zip(shots.images, shots.class_ids, strict=True):
            if owner == class_id:
                image = load_image(source, white_value=processor.white_value)
                hashes.append(digest_of(image))
                seen.append(print_of(image))
                mask = _mask_of(model, class_id, image)
                own.append(TiledImage.of(image, processor, model.config.tiling, mask).release())
        images.append(own)
        digests.append(hashes)
        prints.append(seen)
        remember(model, images[class_id], class_id)
    # 2. What each part weighs in the answer, on which the thresholds rest.
    if "weighted" in (model.config.map_fusion, model.config.image_fusion):
        parts = measure_parts(model, processor, shots, seed=config.seed)
        model.config.fusion_weights = {name: parts[name].weight for name in FUSED_PARTS if parts}
        logger.info("%s", describe_parts(parts))
    # 3. Thresholds, and what they can promise, said once for products of which the same holds.
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
        model.products.log("fit", name, files=files, digests=digests[class_id], prints=prints[class_id])
    # 4. Whether the decoder sees defects at all, on images that were not trained on.
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
