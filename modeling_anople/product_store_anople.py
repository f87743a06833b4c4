"""What a detector knows of each product, in one record: facts that stand in the config, and the tensors they size."""

import contextlib
import copy
import difflib
import logging
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .calibration_anople import FrameLimits, KnownDefects, ProductThreshold, UnreachableThreshold, fit_pooled_threshold
from .configuration_anople import AnoPLeConfig, leads_elsewhere
from .images_anople import PRINT_BYTES, ImageError, PicturePrint
from .memory_anople import MemoryBank


logger = logging.getLogger(__name__)


UNKNOWN_PRODUCT = "unknown product"
SAME = "same"  # tiling as the detector has it

MaskOpener = Callable[[tuple[int, int]], np.ndarray]  # opens a product's ignore mask for an image of (height, width)


# --- Names of products ---

# Scripts some of whose letters look like another's, and these letters, each above the Latin one that it looks like.
ALIKE_SCRIPTS = {"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "COPTIC", "CHEROKEE"}
UNITS = "\u03a9\u03bc"  # ohm and micro, which stand among letters of any script
LOOK_ALIKES = str.maketrans(
    "АВЕКМНОРСТУХІЈЅаеорсухіјѕԁһӏ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαορν",
    "ABEKMHOPCTYXIJSaeopcyxijsdhl" + "ABEZHIKMNOPTYXaopv",
)
INVISIBLE = ("VARIATION SELECTOR", "FILLER", "BRAILLE PATTERN BLANK", "GRAPHEME JOINER")  # printable, says Unicode


def composed(name: str) -> str:
    """Write a name with composed letters (NFC): on a Mac a folder's name may have its accents apart."""
    return unicodedata.normalize("NFC", name)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean NAME?" for the known name that a word resembles, whatever their case; "" where none does."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1)
    return f" Did you mean {lower[near[0]]}?" if near else ""


def find_class(class_name: str | None, class_names: list[str]) -> int:
    """
    Return the id of a product; letters may be composed or not.

    Raises:
        ValueError: for an unknown name; says which are known, and which of them it resembles.
    """
    if class_name in class_names:
        return class_names.index(class_name)
    if isinstance(class_name, str) and composed(class_name) in (names := [composed(name) for name in class_names]):
        return names.index(composed(class_name))
    meant = did_you_mean(class_name, class_names) if isinstance(class_name, str) else ""
    raise ValueError(f"The class {class_name!r} is not known to this detector, which knows {class_names}.{meant}")


def new_name(name: str, known: Sequence[str]) -> str:
    """
    Return the name of a new product with composed letters.

    Raises:
        ValueError: for one that it cannot have: what cannot be seen or leads out of a folder, blanks at an end, letters of
            scripts that look alike (Latin, Greek, Cyrillic and a few more; the signs of ohm and micro may stand anywhere),
            a name that is taken, or one that looks like another. What looks alike in one script, as 0 and O, is allowed.
    """
    if not isinstance(name, str) or not _looks_of(name):
        raise ValueError(f"A product needs a name, got {name!r}.")
    if hidden := sorted({letter for letter in name if not letter.isprintable()}):
        raise ValueError(
            f"The name {name!r} holds what cannot be seen ({', '.join(map(ascii, hidden))}): leave it out."
        )
    if name != name.strip():
        raise ValueError(f"The name {name!r} begins or ends with a blank: leave it out.")
    if leads_elsewhere(name):
        raise ValueError(f"The name {name!r} is a path: take one without / and \\.")
    if len(scripts := _alike_scripts(name)) > 1:
        raise ValueError(
            f"The name {name!r} mixes letters that look alike ({', '.join(scripts)}): write it in one script."
        )
    if (name := composed(name)) == UNKNOWN_PRODUCT:
        raise ValueError(f"{name!r} is what an image of no known product is called: take another name.")
    if name in map(composed, known):
        raise ValueError(f"The class {name!r} exists: give it more images with add_normals, or forget it first.")
    if alike := next((other for other in known if _looks_of(other) == _looks_of(name)), None):
        raise ValueError(f"The name {name!r} looks like that of the class {alike!r}: take another name.")
    return name


def _alike_scripts(name: str) -> list[str]:
    """Name the scripts of `ALIKE_SCRIPTS` that a name has letters of; the name of a letter begins with its script."""
    letters = (letter for letter in unicodedata.normalize("NFKC", name) if letter.isalpha() and letter not in UNITS)
    return sorted({unicodedata.name(letter, "?").split()[0] for letter in letters} & ALIKE_SCRIPTS)


def _looks_of(name: str) -> str:
    """Write a name so that two which look alike are one: wide and other forms of letters, other scripts, blanks."""
    letters = unicodedata.normalize("NFKC", name).translate(LOOK_ALIKES)
    shown = (each for each in letters if not any(mark in unicodedata.name(each, "") for mark in INVISIBLE))
    return " ".join("".join(shown).split())


def log_of(history: Iterable[dict], class_name: str) -> list[dict]:
    """Read from a detector's log the entries of the product that has a name now, since it is there, under all names it had."""
    lives: dict[str, list[dict]] = {}
    for entry in history:
        name = entry["class_name"]
        if entry["action"] == "forget":
            lives.pop(name, None)
            continue
        if entry["action"] == "rename":
            lives[name] = lives.pop(entry["former_name"], [])
        lives.setdefault(name, []).append(entry)
    return lives.get(class_name, [])


# --- One product ---


FOUND_SHARE = 0.9  # of drawn defects, from which on a size counts as found


@dataclass(frozen=True)
class Sensitivity:
    """
    What drawn defects the threshold of a product finds, and what its good photographs bear, as `anople sensitivity` measured.

    Args:
        date: ISO date of the measurement.
        photographs: good photographs that it was measured on, none of which the product knew.
        false_alarms: how many of them are called anomalous as they are.
        line, threshold: raw score, and calibrated score, from which on a photograph was called anomalous then.
        contrasts: of the defects, as shares of white.
        smallest: of each kind, at each contrast, the size as a share of the photograph's longer side from which on
            `FOUND_SHARE` of them are found; `None` where that is not so up to the largest.
        largest: likewise the largest size that tells; 0 where too few could be drawn of all sizes.
        bears: of each change of a good photograph the most at which no more false alarms came than were allowed for; `None`
            where the least was too much.
        breaks: of which changes the next step is not borne; of the others all that was tried is.
        found, cases: likewise how many were found of how many that were judged, of the smallest size, else of the largest, else
            of the one with the most cases.
    """

    date: str
    photographs: int
    false_alarms: int
    line: float
    threshold: float
    contrasts: list[float]
    smallest: dict[str, list[float | None]]
    largest: dict[str, list[float]]
    bears: dict[str, float | None]
    breaks: list[str]
    found: dict[str, list[int]] = field(default_factory=dict)
    cases: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self):
        tables = (self.smallest, self.largest, self.found, self.cases)
        cells = [each for table in tables for row in table.values() for each in row if each is not None]
        numbers = [self.line, self.threshold, self.photographs, self.false_alarms, *self.contrasts, *cells]
        numbers += [each for each in self.bears.values() if each is not None]
        if not all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers):
            raise ValueError("its sensitivity holds what is no finite number: run anople sensitivity again.")

    def describe_defects(self) -> str:
        """Say from which size on defects are found; where numbers of cases are missing, that is not known."""
        parts = []
        for kind, sizes in self.smallest.items():
            counts = [table.get(kind, [0] * len(sizes)) for table in (self.found, self.cases)]
            cells = [self._cell(*values) for values in zip(sizes, self.largest[kind], *counts, strict=True)]
            parts.append(f"{kind} {' / '.join(cells)}")
        contrasts = " / ".join(f"{100 * each:g}" for each in self.contrasts)
        return (
            f"Drawn defects of which {100 * FOUND_SHARE:g} % are found, by their longer side in % of the photograph's, at "
            f"{contrasts} % contrast ({self.photographs} photographs, {self.date[:10]}): {'; '.join(parts)}."
        )

    @staticmethod
    def _cell(smallest: float | None, largest: float, found: int, cases: int) -> str:
        if not cases:
            return "not measured"
        said = "too few could be drawn" if not largest else f"not up to {100 * largest:g}"
        if smallest is not None:
            said = f"from {100 * smallest:g}"
        return f"{said} ({found} of {cases})"

    def describe_changes(self) -> str:
        """Say what a good photograph bears."""
        parts = [
            f"{name}: {'none' if most is None else f'{most:g}'}{'' if name in self.breaks else ' (all that was tried)'}"
            for name, most in self.bears.items()
        ]
        return f"Changes that a good photograph bears: {'; '.join(parts)}."


@dataclass
class ProductRecord:
    """
    The facts of one product, as they stand in `config.products`. A new fact is one more line here.

    Args:
        name: what a user calls it; the words of the first name it had are in its prompts.
        image_vectors: memory vectors, in each layer, of each remembered image, in the order in which images were added.
        has_boxes: whether it was kept which part of its image each vector saw.
        tiling: how its images are cut: "auto", "ROWS,COLUMNS", `None` for wholes, or "same" as the detector's.
        ignore_mask_size: (height, width) of the ignore mask that it keeps, `None` without one.
        threshold: fitted from its normals, `None` before.
        frame: what the frames of its normals are like as wholes, `None` before and in detectors of earlier versions.
        print_count: of how many photographs that it was given it is kept what tells them from others.
        defect_print_count: of how many known defects, likewise.
        sensitivity: what its threshold was measured to find, `None` before, and after any change of memory, mask or threshold.
    """

    name: str
    image_vectors: list[int] = field(default_factory=list)
    has_boxes: bool = False
    tiling: str | None = SAME
    ignore_mask_size: list[int] | None = None
    threshold: ProductThreshold | None = None
    frame: FrameLimits | None = None
    print_count: int = 0
    defect_print_count: int = 0
    sensitivity: Sensitivity | None = None

    @classmethod
    def from_dict(cls, values: dict) -> "ProductRecord":
        """Read an entry of `config.products`; a `ValueError` for a threshold that cannot be names product and field."""
        record = cls(**values)
        record.threshold = ProductThreshold.from_dict(values.get("threshold"), repr(record.name))
        record.image_vectors = list(record.image_vectors)
        if record.frame is not None:
            try:
                record.frame = FrameLimits(**values["frame"])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{record.name!r}: {error} Copy the detector again, or enroll the product anew."
                ) from error
            if record.frame.is_outdated:
                record.frame = None
        if record.sensitivity is not None:
            try:
                record.sensitivity = Sensitivity(**values["sensitivity"])
            except (TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{record.name!r}: {error} Copy the detector again.") from error
        return record

    def valid_sensitivity(self, config: AnoPLeConfig) -> Sensitivity | None:
        """Return the sensitivity if it was measured with the threshold that counts now; one may have been moved by hand."""
        limit, known = self.threshold, self.sensitivity
        if config.class_identity == "pooled":
            limit = ProductThreshold.from_dict(config.pooled_threshold, "all products together")
        if known is None or limit is None:
            return None
        return known if (known.line, known.threshold) == (limit.image_threshold, config.threshold) else None

    @property
    def mask_bytes(self) -> int:
        """Size of the packed ignore mask: one bit for each pixel."""
        height, width = self.ignore_mask_size or (0, 0)
        return -(-height * width // 8)


class Product(nn.Module):
    """
    One product: its record, and its tensors, whose sizes follow from the record.

    Tensors: `bank` (see [`MemoryBank`]); `prompt_ids` (2, length) tokens of its normal and its abnormal prompt;
    `text_embeddings` (2, joint width) of them, unit length; `prototype` (joint width), the mean global feature of its
    normals; `ignore_mask`, packed eight pixels to a byte in reading order, `None` without one; `prints` (photographs,
    `PRINT_BYTES`) of the photographs that it was given, packed, `None` without any; `defect_prints` likewise of known
    defects, which never enter the memory.
    """

    def __init__(self, record: ProductRecord, config: AnoPLeConfig):
        super().__init__()
        self.record = record
        clip, width = config.clip_config, config.clip_config.projection_dim
        self.bank = MemoryBank(
            len(config.memory_layers),
            config.memory_tower.hidden_size,
            record.image_vectors,
            has_boxes=record.has_boxes,
        )
        self.register_buffer("prompt_ids", torch.zeros(2, clip.text_config.max_position_embeddings, dtype=torch.long))
        self.register_buffer("text_embeddings", torch.zeros(2, width))
        self.register_buffer("prototype", torch.zeros(width))
        packed = torch.zeros(record.mask_bytes, dtype=torch.uint8)
        self.register_buffer("ignore_mask", packed if record.ignore_mask_size else None)
        for name, count in (("prints", record.print_count), ("defect_prints", record.defect_print_count)):
            self.register_buffer(name, torch.zeros(count, PRINT_BYTES, dtype=torch.uint8) if count else None)

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def image_count(self) -> int:
        """Number of remembered images."""
        return len(self.bank.image_vectors)

    def describe(self) -> dict:
        """Bring the record to what the tensors are now, and return it as an entry of `config.products`."""
        self.record.image_vectors = list(self.bank.image_vectors)
        self.record.has_boxes = self.bank.boxes is not None
        self.record.print_count = 0 if self.prints is None else len(self.prints)
        self.record.defect_print_count = 0 if self.defect_prints is None else len(self.defect_prints)
        return asdict(self.record)

    def unpacked_prints(self, name: Literal["prints", "defect_prints"] = "prints") -> list[PicturePrint]:
        """Return what is kept of the photographs that it was given, or of known defects."""
        packed = getattr(self, name)
        return [] if packed is None else [PicturePrint.unpacked(row) for row in packed.cpu().numpy()]

    def keep_prints(self, prints: Sequence[PicturePrint], name: Literal["prints", "defect_prints"] = "prints") -> None:
        """Keep what tells photographs, or known defects, from others, behind what is kept already."""
        if prints:
            known = getattr(self, name)
            rows = torch.from_numpy(np.stack([each.packed() for each in prints])).to(self.prototype.device)
            setattr(self, name, rows if known is None else torch.cat([known, rows]))

    def unpacked_mask(self) -> np.ndarray | None:
        """Return the ignore mask (height, width) as booleans, `None` without one."""
        if self.ignore_mask is None:
            return None
        height, width = self.record.ignore_mask_size
        bits = np.unpackbits(self.ignore_mask.cpu().numpy(), count=height * width)
        return bits.reshape(height, width).astype(bool)

    def open_mask(self, size: tuple[int, int]) -> np.ndarray:
        """Return the ignore mask for an image of (height, width); an `ImageError` if it has another size."""
        height, width = self.record.ignore_mask_size
        if (height, width) != tuple(size):
            raise ImageError(
                f"{self.name!r} keeps an ignore_mask of {width} x {height} pixels, and this image has {size[1]} x "
                f"{size[0]}: give one of its own size as ignore_mask, or 'none' to have all of it count."
            )
        return self.unpacked_mask()


# --- All products ---


class ProductStore(nn.ModuleList):
    """
    All products of a detector, in the order of their class ids, and the log of how they came to be.

    Whatever changes a product goes through here: the config's `products`, `pooled_threshold` and `history` are written by
    this class alone, after every change and before a detector is saved. To move a threshold by hand, put another one at
    `store.named(...).record.threshold` (`dataclasses.replace`): answers change at once, and [`write`] tells the config.
    """

    def __init__(self, config: AnoPLeConfig):
        super().__init__(Product(ProductRecord.from_dict(values), config) for values in config.products)
        self.config = config
        self._pooled_threshold()  # refuses one that cannot be
        unchecked = [
            product.name
            for product, values in zip(self, config.products, strict=True)
            if values.get("frame") and product.record.frame is None
        ]
        if unchecked:
            logger.warning(
                "An earlier version learned what photographs of %s look like, in numbers that are no longer used: a dark or "
                "blurred one is not told from a good one until the good photographs that it was taught are given to `anople "
                "calibrate` once more.",
                ", ".join(unchecked),
            )

    def id_of(self, class_name: str) -> int:
        """Return the id of a product; a `ValueError` for an unknown one names those that are known."""
        return find_class(class_name, self.config.class_names)

    def named(self, class_name: str) -> Product:
        """Return a product by its name; errors as of [`id_of`]."""
        return self[self.id_of(class_name)]

    @property
    def banks(self) -> list[MemoryBank]:
        """The memory of each product."""
        return [product.bank for product in self]

    @property
    def remembers_nothing(self) -> bool:
        """Whether no product has a memory."""
        return not any(product.bank.size for product in self)

    def check_finite(self) -> None:
        """Refuse, by a `ValueError`, products with numbers that are not finite: whatever was compared with them would be, too."""
        for product in self:
            for name, tensor in product.named_buffers():
                if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
                    raise ValueError(
                        f"{name} of {product.name!r} holds numbers that are not finite: copy the detector again, or forget the "
                        "product and enroll it anew."
                    )

    @property
    def have_masks(self) -> bool:
        """Whether any product keeps an ignore mask."""
        return any(product.ignore_mask is not None for product in self)

    @property
    def have_tilings(self) -> bool:
        """Whether any product has a tiling of its own."""
        return any(product.record.tiling != SAME for product in self)

    def text_embeddings(self, class_ids: Iterable[int] | None = None) -> Tensor:
        """Stack normal and abnormal text embeddings: (classes, 2, joint width), of all products or of these."""
        return torch.stack([self[each].text_embeddings for each in self._ids(class_ids)])

    def prototypes(self, class_ids: Iterable[int] | None = None) -> Tensor:
        """Stack the mean global features of the normals: (classes, joint width), of all products or of these."""
        return torch.stack([self[each].prototype for each in self._ids(class_ids)])

    def prompt_ids(self, class_ids: Iterable[int] | None = None) -> Tensor:
        """Stack the prompts' tokens: (2 x classes, length), normal first, of all products or of these."""
        return torch.cat([self[each].prompt_ids for each in self._ids(class_ids)])

    def _ids(self, class_ids: Iterable[int] | None) -> Iterable[int]:
        return range(len(self)) if class_ids is None else class_ids

    def thresholds(self, class_ids: Tensor | None, count: int) -> list[ProductThreshold | None]:
        """Return the threshold of each of `count` images, or the one that all share; `None` where there is none."""
        if class_ids is None:
            return [self._pooled_threshold()] * count
        known = [self[class_id].record.threshold for class_id in class_ids.tolist()]
        for threshold in filter(None, known):
            threshold.check_reach()  # one that was put there by hand
        return known

    def _pooled_threshold(self) -> ProductThreshold | None:
        return ProductThreshold.from_dict(self.config.pooled_threshold, "all products together")

    def tiling_of(self, class_id: int | None) -> str | None:
        """Say how the images of a product are cut: its own setting, or else the detector's."""
        own = SAME if class_id is None else self[class_id].record.tiling
        return self.config.tiling if own == SAME else own

    def mask_opener(self, class_id: int | None) -> MaskOpener | None:
        """Return what opens the mask of a product for an image of some (height, width), `None` where it keeps none."""
        if class_id is None or self[class_id].ignore_mask is None:
            return None
        return self[class_id].open_mask

    # Changes. Each writes the config.

    def add(self, record: ProductRecord, prompt_ids: Tensor, text_embeddings: Tensor) -> int:
        """
        Add a product of which nothing is remembered yet, and return its id; no other product is touched.

        Args:
            prompt_ids: (2, length).
            text_embeddings: (2, joint width), unit length.
        """
        product = Product(record, self.config)
        if len(self):
            product.to(self[0].text_embeddings)  # device and precision of the others
        product.prompt_ids, product.text_embeddings = prompt_ids, text_embeddings.to(product.text_embeddings)
        self.append(product)
        self.write()
        return len(self) - 1

    def remove(self, class_id: int) -> None:
        """Take a product out; ids of those behind it go down by one."""
        del self[class_id]
        self._fit_pooled(None)
        self.write()

    def rename(self, class_id: int, name: str) -> None:
        """Give a product another name; its prompts and all else stay, and so do its scores."""
        self[class_id].record.name = name
        self.write()

    def clear(self) -> None:
        """Drop all images, thresholds and the log, so that products can be learned anew; their texts, tilings and masks stay."""
        for product in self:
            layers, _, width = product.bank.vectors.shape
            product.bank = MemoryBank(layers, width).to(product.bank.vectors)
            product.prototype, product.record.threshold = torch.zeros_like(product.prototype), None
            product.record.frame = product.record.sensitivity = product.prints = None
        self.config.history, self.config.pooled_threshold = [], None
        self.write()

    def set_threshold(self, class_id: int, threshold: ProductThreshold) -> None:
        """
        Keep the threshold of one product, and fit the common one of the pooled mode anew.

        Raises:
            UnreachableThreshold: if it lies above every score.
        """
        try:
            threshold.check_reach()
        except UnreachableThreshold as error:
            raise UnreachableThreshold(f"No threshold can be set for {self[class_id].name!r}. {error}") from error
        self[class_id].record.threshold = threshold
        self._fit_pooled(threshold.max_false_alarm_rate)
        self.outdate_sensitivity(class_id)
        self.write()

    def keep_sensitivity(self, class_id: int, sensitivity: Sensitivity) -> None:
        """Keep what a product was measured to find, until its memory, mask or threshold change."""
        self[class_id].record.sensitivity = sensitivity
        self.write()

    def outdate_sensitivity(self, class_id: int) -> None:
        """Drop what was measured before a change of a product; where products are pooled, it was one of all."""
        for product in self if self.config.class_identity == "pooled" else [self[class_id]]:
            product.record.sensitivity = None

    def keep_mask(self, class_id: int, mask: np.ndarray | None) -> None:
        """Keep what is to be ignored (height, width) on all images of a product, or nothing any more."""
        product = self[class_id]
        product.record.ignore_mask_size = None if mask is None else list(mask.shape)
        packed = None if mask is None else torch.from_numpy(np.packbits(mask)).to(product.prototype.device)
        product.ignore_mask = packed
        self.outdate_sensitivity(class_id)
        self.write()

    def log(
        self,
        action: str,
        class_name: str,
        *,
        files: Sequence[str | None] = (),
        digests: Sequence[str] = (),
        prints: Sequence[PicturePrint] = (),
        defects: KnownDefects | None = None,
        former_name: str | None = None,
        date: str | None = None,
    ) -> None:
        """
        Write into the history what was done to a product, when, from which files, and where its threshold lies now.

        File names stand there without their folders; `digests` are of the images' pixels. `prints` of them are kept with
        the product. Of `defects` names, digests and costs stand there too; `former_name` is what one that was renamed was
        called before.
        """
        names = self.config.class_names
        product = self[names.index(class_name)] if class_name in names else None
        threshold = product.record.threshold if product else None
        entry = {
            "date": date or datetime.now(UTC).isoformat(timespec="seconds"),
            "action": action,
            "class_name": class_name,
            "photographs": len(files),
            "files": [None if file is None else Path(file).name for file in files],
            "digests": list(digests),
            "known_photographs": product.image_count if product else 0,
            "line": threshold.image_threshold if threshold else None,
            # a line by costs keeps none
            "max_false_alarm_rate": threshold.max_false_alarm_rate if threshold and not threshold.defects else None,
        }
        if defects is not None:
            entry |= {"defects": defects.files, "defect_digests": defects.digests}
            entry |= {"miss_cost": defects.miss_cost, "false_alarm_cost": defects.false_alarm_cost}
        if former_name is not None:
            entry["former_name"] = former_name
        self.config.history = [*self.config.history, entry]
        if prints:
            product.keep_prints(prints)
            self.write()

    def write(self) -> None:
        """Let the config say what is held."""
        for product in self:
            if product.record.threshold:
                product.record.threshold.check_reach()
        self.config.products = [product.describe() for product in self]

    def _fit_pooled(self, rate: float | None) -> None:
        """Fit the threshold that all share anew, where products are pooled; without a rate for the one it had."""
        if self.config.class_identity != "pooled":
            return
        known = self.config.pooled_threshold
        rate = known["max_false_alarm_rate"] if rate is None and known else rate
        fitted = [product.record.threshold for product in self if product.record.threshold]
        pooled = fit_pooled_threshold(fitted, rate) if rate else None
        try:
            if pooled:
                pooled.check_reach()
        except UnreachableThreshold as error:
            logger.warning("All products together have no threshold, and so no label. %s", error)
            pooled = None
        self.config.pooled_threshold = asdict(pooled) if pooled else None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Put everything back if what is done inside fails. Tensors are replaced, never written into, so none is copied."""
        products = list(self)
        states = [_state_of(product) for product in products]
        config = {name: copy.deepcopy(getattr(self.config, name)) for name in ("pooled_threshold", "history")}
        try:
            yield
        except BaseException:
            while len(self):
                del self[-1]
            self.extend(products)
            for product, state in zip(products, states, strict=True):
                _restore(product, state)
            for name, value in config.items():
                setattr(self.config, name, value)
            self.write()
            raise


def _state_of(product: Product) -> tuple:
    bank = product.bank
    return copy.deepcopy(product.record), list(bank.image_vectors), dict(bank._buffers), dict(product._buffers)


def _restore(product: Product, state: tuple) -> None:
    product.record, product.bank.image_vectors, product.bank._buffers, product._buffers = state


__all__ = [
    "SAME",
    "UNKNOWN_PRODUCT",
    "MaskOpener",
    "Product",
    "ProductRecord",
    "ProductStore",
    "Sensitivity",
    "composed",
    "did_you_mean",
    "find_class",
    "log_of",
    "new_name",
]
