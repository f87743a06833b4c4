"""What one person's browser holds: a detector of their own, a threshold, their answers, and a folder for their files."""

import contextlib
import copy
import dataclasses
import functools
import itertools
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import nn

from modeling_anople import AnoPLeModel, AnoPLeProcessor, load_image
from modeling_anople.calibration_anople import ProductThreshold, describe_lost_costs
from modeling_anople.enrollment_anople import forget, rename
from modeling_anople.runtime.loading import announce_mini, computing_device, load_detector

from .examples import STANDARD_PRODUCTS, STANDARD_SHOTS, draw_normal_images, standard_detector


PREDICT_PRODUCT = "find it yourself"  # in the lists of products: the detector is to say which one an image shows
NORMAL_IMAGE_SIDE = 1024  # pixels; larger images are kept smaller
ANSWERS_KEPT = 4  # answers whose files stay: one may still be on its way to Gradio's cache while the next is written
SAMPLE_SIDE = 56  # pixels of the small picture of a good image
_file_numbers = itertools.count()


@dataclass
class Inspection:
    """
    What is known of one image.

    Args:
        name: of its file.
        error: why it could not be judged; everything below is then `None`.
        verdict: "normal", "anomalous" or "unknown product"; "no line" where the product has no threshold.
        reason: why the image is no photograph of its product, whatever its score; `None` where it may be one.
        regions: what is above the threshold, largest peak first, as numbered on the heat map: `box`, `area`, `peak` and
            `centroid` of each.
        unsure: whether it is called normal, and yet is odder than every good image that was taught.
        score: within 0 and 1 where the product is calibrated, to 0.5; else the raw score.
        threshold: what the score was held against.
        product: as which it was judged; `None` where it is unknown.
        product_predicted: whether the detector was to say which product it is.
        milliseconds: from opening the file to the answer.
        image, heat_map: pictures of one size.
        path: of the file, where it was sent to.
    """

    name: str
    error: str | None = None
    verdict: str | None = None
    reason: str | None = None
    regions: list[dict[str, Any]] | None = None
    unsure: bool | None = None
    score: float | None = None
    threshold: float | None = None
    product: str | None = None
    product_predicted: bool = False
    milliseconds: float | None = None
    image: Image.Image | None = None
    heat_map: Image.Image | None = None
    path: str | None = None

    @property
    def shown(self) -> str:
        """The verdict in the words that stand on the page: "unsure" for what is normal and yet left open."""
        return "not judged" if self.error else "unsure" if self.unsure else self.verdict

    @property
    def remark(self) -> str | None:
        """Why the verdict is as it is, where that is not the score alone."""
        return self.reason or ("unsure: odder than every good photograph taught" if self.unsure else None)

    @property
    def words(self) -> str:
        """The answer as a person says it."""
        if self.error:
            return self.error
        verdict = f"{self.verdict} ({self.remark})" if self.remark else self.verdict
        return f"{verdict}, {self.score:.2f}; line at {self.threshold:.2f}"

    @property
    def numbers(self) -> dict[str, Any]:
        """The answer for programs, under the names that they have always read."""
        return {
            "words": self.words,
            "verdict": self.verdict,
            "unsure": self.unsure,
            "reason": self.reason,
            "regions": self.regions,
            "score": round(self.score, 6),
            "line": self.threshold,
            "product": self.product,
            "found": self.product_predicted,
            "milliseconds": round(self.milliseconds, 1),
        }


@dataclass(frozen=True)
class NormalImage:
    """
    A good image that a product was taught from: the detector's memory keeps features alone.

    Args:
        name: of the file that was sent.
        path: of the copy, a PNG file.
        size: width and height of the image that the product was taught from.
    """

    name: str
    path: Path
    size: tuple[int, int]

    @functools.cached_property
    def sample(self) -> Image.Image:
        """The image as a small square; made once."""
        with Image.open(self.path) as image:
            return small_square(image)

    @property
    def source(self) -> dict[str, Any]:
        """The image as the package's functions take it."""
        return {"path": self.name, "bytes": self.path.read_bytes()}

    def as_copied(self) -> "NormalImage":
        """The same image, after a detector was taught from the copy."""
        with Image.open(self.path) as image:
            return dataclasses.replace(self, size=image.size)


def small_square(image: Image.Image) -> Image.Image:
    """Cut the middle of an image to a small square, as lists show it."""
    return ImageOps.fit(image.convert("RGB"), (SAMPLE_SIDE, SAMPLE_SIDE))


def save_normal_images(folder: Path, images: Iterable[tuple[str, Image.Image]]) -> list[NormalImage]:
    """Write images with their names into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    for name, image in images:
        small = image.copy()
        small.thumbnail((NORMAL_IMAGE_SIDE, NORMAL_IMAGE_SIDE))
        path = folder / f"{next(_file_numbers)}.png"
        small.save(path, compress_level=1)
        saved.append(NormalImage(name, path, image.size))
    return saved


class AnswerImages:
    """
    Writes the pictures of each answer into a folder of their own, and removes those of earlier answers.

    Gradio keeps files by their content. A file it copies once, whole, and renames into place; a picture that it must write
    itself it writes anew into the same place each time, and whoever is reading the equal one then gets half of it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._numbers, self._written = itertools.count(), deque[Path]()

    def write(self, **images: Image.Image) -> tuple[str, ...]:
        """Write the pictures of one answer; returns their files, each named after its picture."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir(parents=True)
        files = [folder / f"{name}.webp" for name in images]
        for file, image in zip(files, images.values(), strict=True):
            image.save(file, quality=90, method=2)
        self._written.append(folder)
        while len(self._written) > ANSWERS_KEPT:
            shutil.rmtree(self._written.popleft(), ignore_errors=True)
        return tuple(str(file) for file in files)


class Session:
    """
    One person's detector and files.

    It begins with the detector that all share. What changes products first takes a copy of all that products change; the
    CLIP, prompts and decoder, which they do not change, stay shared. The folder goes when the session does.
    """

    def __init__(self, model: AnoPLeModel, processor: AnoPLeProcessor):
        self.model, self.processor = model, processor
        self.threshold = model.config.threshold
        self.last_path: str | None = None  # the image that was judged last, and as which product
        self.last_product: str | None = None
        self.last_requested: str | None = None  # the product that was asked for; `None` where it was to be predicted
        self.inspections: list[Inspection] = []
        self.examples: list[Path] = []  # images to try, the same for all
        self.normal_images: dict[str, list[NormalImage]] = {}  # of each product the last ones it was taught from
        self.stop, self.stop_fit = threading.Event(), threading.Event()
        self.refusal: str | None = None  # why the last request was refused, until the page has said it
        self._owns_detector = False
        self._before: tuple | None = (
            None  # detector and good images before the last one that can be undone, and its log
        )
        self._origin: Session | None = None
        self._answer_images: AnswerImages | None = None
        self._folder: tempfile.TemporaryDirectory | None = None

    def __deepcopy__(self, memo: dict) -> "Session":
        """Gradio copies the first value of its state for each browser: a new session on the shared detector."""
        session = Session(self.model, self.processor)
        session.examples, session.normal_images = self.examples, self.normal_images
        session._origin = self  # whose folder holds the images of its products, and goes with it
        return session

    @property
    def products(self) -> list[str]:
        """Names of the products that this person's detector knows."""
        return list(self.model.config.class_names)

    @property
    def folder(self) -> Path:
        """This session's own folder, removed with it."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="anople-session-")
        return Path(self._folder.name)

    @property
    def answer_images(self) -> AnswerImages:
        """The pictures on this person's page, as files in this session's folder."""
        if self._answer_images is None:
            self._answer_images = AnswerImages(self.folder / "answers")
        return self._answer_images

    def resolve_product(self, product: str | None) -> str | None:
        """
        Return the product's name, or `None` where the detector is to predict it.

        Raises:
            ValueError: for an unknown one, with those that are known.
        """
        if not product or product == PREDICT_PRODUCT:
            return None
        if product not in self.products:
            names = ", ".join(self.products)
            raise ValueError(f"{product[:60]} is not known here: choose one of {names}, or teach it first.")
        return product

    def image_count(self, product: str) -> int:
        """How many good images a product's memory is of."""
        return self.model.products.named(product).image_count

    @property
    def lines(self) -> dict[str, ProductThreshold | None]:
        """The line of each product that this person's detector knows."""
        return {product.name: product.record.threshold for product in self.model.products}

    def lost_costs(self, before: dict[str, ProductThreshold | None]) -> str:
        """Say, with a space before it, which of these lines were set by known defects and are no longer; or nothing."""
        said = [describe_lost_costs(name, before.get(name), line) for name, line in self.lines.items()]
        return "".join(f" {each}" for each in said if each)

    def remember_last(self, inspection: Inspection) -> None:
        """Make an image the one that is explained and judged next."""
        self.last_path, self.last_product = inspection.path, inspection.product
        self.last_requested = None if inspection.product_predicted else inspection.product

    def keep_sources(self, product: str, sources: list[dict[str, Any]]) -> None:
        """Keep good images as [`read_image`] gave them."""
        white = self.processor.white_value
        self.keep_images(product, [(source["path"], load_image(source, white_value=white)) for source in sources])

    def keep_images(self, product: str, images: Iterable[tuple[str, Image.Image]]) -> None:
        """Keep good images, with their names, of which a product was taught; those of other sessions stay theirs."""
        saved = save_normal_images(self.folder / "normals", images)
        self.normal_images = {**self.normal_images, product: [*self.normal_images.get(product, []), *saved]}

    def normal_image(self, product: str, index: int) -> NormalImage | None:
        """Look up a product's good image by its place in the memory; `None` where it was taught elsewhere."""
        images = self.normal_images.get(product, [])
        # The memory may begin with images of which no copy is here: those that are here are its last ones.
        position = index - self.image_count(product) + len(images)
        return images[position] if 0 <= position < len(images) else None

    def rename(self, product: str, name: str) -> None:
        """Call a product otherwise, in this session."""
        model, processor = self.own_detector()
        rename(model, processor, product, name)
        self.normal_images = {name if each == product else each: images for each, images in self.normal_images.items()}
        self._call(product, name)

    def _call(self, product: str, name: str) -> None:
        """Let what was inspected name a product otherwise."""
        for inspection in self.inspections:
            inspection.product = name if inspection.product == product else inspection.product
        last = [name if each == product else each for each in (self.last_product, self.last_requested)]
        self.last_product, self.last_requested = last

    def forget(self, product: str) -> None:
        """Forget a product, in this session."""
        model, processor = self.own_detector()
        forget(model, processor, product)
        self.drop_images(product)
        self._drop_unknown()

    def drop_images(self, product: str) -> None:
        """No longer keep a product's good images; their files stay with the session, since it may be undone."""
        self.normal_images = {each: images for each, images in self.normal_images.items() if each != product}

    def _drop_unknown(self) -> None:
        """No longer name a product as the last one that is not known any more."""
        last = [each if each in self.products else None for each in (self.last_product, self.last_requested)]
        self.last_product, self.last_requested = last

    def own_detector(self) -> tuple[AnoPLeModel, AnoPLeProcessor]:
        """Return a detector that may be changed: from the first call on, nobody else sees this one."""
        if not self._owns_detector:
            model = self.model  # of which enrollment never changes these parts
            shared = (*model.frozen_towers, model.prompts, model.prefix, model.decoder)
            self.model, self.processor = copy_detector(model, self.processor, shared=shared)
            self._owns_detector = True
        return self.model, self.processor

    @contextlib.contextmanager
    def undoable(self) -> Iterator[None]:
        """Let what is done inside change a copy of the detector, so that [`undo`] can go back to this one."""
        before = self.model, self.processor, self.normal_images, self._owns_detector
        self._owns_detector = False
        try:
            yield
        except BaseException:
            self.model, self.processor, self.normal_images, self._owns_detector = before
            raise
        self._before = *before, self.model, self.model.config.history

    def undo(self) -> None:
        """
        Go back to the detector before the last change that was [`undoable`].

        Raises:
            ValueError: if there was none, or something else has changed it since.
        """
        if self._before is None:
            raise ValueError("There is nothing to undo.")
        *before, model, history = self._before
        if self.model is not model or model.config.history != history:
            raise ValueError("The detector was changed since: it cannot be undone.")
        self.model, self.processor, self.normal_images, self._owns_detector = before
        self._before = None
        if history and history[-1]["action"] == "rename":
            self._call(history[-1]["class_name"], history[-1]["former_name"])
        self._drop_unknown()

    def adopt(self, model: AnoPLeModel, processor: AnoPLeProcessor) -> None:
        """Take a detector of the same products, taught from the copies of the same images."""
        self.model, self.processor, self._owns_detector = model, processor, True
        self.normal_images = {
            name: [image.as_copied() for image in images] for name, images in self.normal_images.items()
        }

    def replace(self, model: AnoPLeModel, processor: AnoPLeProcessor) -> None:
        """Take another detector, which is this person's alone."""
        self.model, self.processor, self._owns_detector = model, processor, True
        self.threshold = model.config.threshold
        self.last_path, self.last_product, self.last_requested = None, None, None
        self.inspections, self.normal_images = [], {}
        shutil.rmtree(self.folder / "normals", ignore_errors=True)


def copy_detector(
    model: AnoPLeModel, processor: AnoPLeProcessor, *, shared: Iterable[nn.Module | None]
) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    """
    Copy a detector, except for the tokenizer, the parts of the model that both shall share, and the products' tensors: these
    are replaced when a product changes, never written into.
    """
    own_processor = copy.copy(processor)
    own_processor.class_names = list(processor.class_names)
    memo = {id(part): part for part in (*shared, *model.products.buffers())} | {id(processor): own_processor}
    return copy.deepcopy(model, memo), own_processor


def start_session(checkpoint: str | None = None) -> Session:
    """
    Load a detector, or without a checkpoint enroll some drawn products on the embedded CLIP, which takes seconds.

    Raises:
        ValueError: if the checkpoint cannot be loaded, with the remedy.
    """
    model, processor = load_detector(checkpoint) if checkpoint else standard_detector()
    announce_mini(model.config)
    session = Session(model.to(computing_device()).eval(), processor)
    for name in () if checkpoint else STANDARD_PRODUCTS:
        images = draw_normal_images(name, STANDARD_SHOTS)
        session.keep_images(name, [(f"{name}, drawn {number}", image) for number, image in enumerate(images, start=1)])
    return session
