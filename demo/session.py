"""What one person's browser holds: a detector of their own, their line, their answers, and a folder for their files."""

import copy
import dataclasses
import itertools
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor, load_photograph
from modeling_anople.runtime.loading import computing_device, load_detector

from .examples import STANDARD_PRODUCTS, STANDARD_SHOTS, draw_normals, standard_detector


FIND_IT = "find it yourself"
KEPT_SIDE = 1024  # pixels; larger photographs are kept smaller
KEPT = 4  # answers whose files stay: one may still be on its way to Gradio's cache while the next is written
_numbers = itertools.count()


@dataclass
class Finding:
    """
    What is known of one photograph.

    Args:
        name: of its file.
        error: why it could not be judged; everything below is then `None`.
        verdict: "normal", "anomalous" or "unknown product"; "no line" where the product has none.
        score: 0.5 is the calibrated line.
        line: the line it was held against.
        product: as which it was judged; `None` where it is unknown.
        found: whether the product was found by the detector.
        milliseconds: from opening the file to the answer.
        photograph, heat_map: pictures of one size, at most `DISPLAY_SIDE` long.
        path: of the file, where it was sent to.
    """

    name: str
    error: str | None = None
    verdict: str | None = None
    score: float | None = None
    line: float | None = None
    product: str | None = None
    found: bool = False
    milliseconds: float | None = None
    photograph: Image.Image | None = None
    heat_map: Image.Image | None = None
    path: str | None = None

    @property
    def words(self) -> str:
        """The answer as a person says it."""
        if self.error:
            return self.error
        return f"{self.verdict}, {self.score:.2f}; line at {self.line:.2f}"

    @property
    def numbers(self) -> dict[str, Any]:
        """The answer for programs."""
        answer = {"words": self.words, "verdict": self.verdict, "score": round(self.score, 6), "line": self.line}
        return answer | {"product": self.product, "found": self.found, "milliseconds": round(self.milliseconds, 1)}


@dataclass(frozen=True)
class Kept:
    """
    A good photograph.

    Args:
        name: of the file that was sent.
        path: of the copy, a PNG file.
        size: width and height of the photograph that was sent.
    """

    name: str
    path: Path
    size: tuple[int, int]

    @property
    def source(self) -> dict[str, Any]:
        """The photograph as the package's functions take it."""
        return {"path": self.name, "bytes": self.path.read_bytes()}

    def as_copied(self) -> "Kept":
        """The same photograph, after a detector was taught from the copy."""
        with Image.open(self.path) as copy:
            return dataclasses.replace(self, size=copy.size)


def keep_photographs(folder: Path, photographs: Iterable[tuple[str, Image.Image]]) -> list[Kept]:
    """Write photographs with their names into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for name, photograph in photographs:
        copy = photograph.copy()
        copy.thumbnail((KEPT_SIDE, KEPT_SIDE))
        kept.append(Kept(name, folder / f"{next(_numbers)}.png", photograph.size))
        copy.save(kept[-1].path, compress_level=1)
    return kept


class AnswerImages:
    """
    Writes the pictures of each answer into a folder of their own, and removes those of earlier answers.

    Gradio keeps files by their content. A file it copies once, whole, and renames into place; a picture that it must write
    itself it writes anew into the same place each time, and whoever is reading the equal one then gets half of it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._numbers, self._kept = itertools.count(), deque[Path]()

    def write(self, **pictures: Image.Image) -> tuple[str, ...]:
        """Write the pictures of one answer; returns their files, each named after its picture."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir(parents=True)
        files = [folder / f"{name}.webp" for name in pictures]
        for file, picture in zip(files, pictures.values(), strict=True):
            picture.save(file, quality=90, method=2)
        self._kept.append(folder)
        while len(self._kept) > KEPT:
            shutil.rmtree(self._kept.popleft(), ignore_errors=True)
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
        self.last: str | None = None  # the photograph that was judged last, and as which product
        self.last_product: str | None = None
        self.last_asked: str | None = None  # `None` where the detector was to find out
        self.findings: list[Finding] = []
        self.examples: list[Path] = []  # photographs to try, the same for all
        self.normals: dict[str, list[Kept]] = {}  # of each product the last photographs it was taught from
        self.stop, self.stop_fit = threading.Event(), threading.Event()
        self._shown: AnswerImages | None = None
        self._owned, self._first = False, None
        self._folder: tempfile.TemporaryDirectory | None = None

    def __deepcopy__(self, memo: dict) -> "Session":
        """Gradio copies the first value of its state for each browser: a new session on the shared detector."""
        session = Session(self.model, self.processor)
        session.examples, session.normals = self.examples, self.normals
        session._first = self  # whose folder holds the photographs of its products
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
    def shown(self) -> AnswerImages:
        """The pictures on this person's page, as files in this session's folder."""
        if self._shown is None:
            self._shown = AnswerImages(self.folder / "shown")
        return self._shown

    def keep_files(self, product: str, sources: list[dict]) -> None:
        """Keep good photographs as they were read from their files."""
        white = self.processor.white_value
        self.keep(product, [(one["path"], load_photograph(one, white_value=white)) for one in sources])

    def keep(self, product: str, photographs: list[tuple[str, Image.Image]]) -> None:
        """Keep good photographs, with their names, of which a product was taught; those of other sessions stay theirs."""
        kept = keep_photographs(self.folder / "normals", photographs)
        self.normals = {**self.normals, product: [*self.normals.get(product, []), *kept]}

    def normal(self, product: str, index: int) -> Kept | None:
        """Look up a product's good photograph by its place in the memory; `None` where it was taught elsewhere."""
        kept = self.normals.get(product, [])
        place = index - len(self.model.memory.counts[self.products.index(product)]) + len(kept)
        return kept[place] if 0 <= place < len(kept) else None

    def own(self) -> tuple[AnoPLeModel, AnoPLeProcessor]:
        """Return a detector that may be changed: from the first call on, nobody else sees this one."""
        if not self._owned:
            self.model, self.processor = copy_products(self.model, self.processor)
            self._owned = True
        return self.model, self.processor

    def adopt(self, model: AnoPLeModel, processor: AnoPLeProcessor) -> None:
        """Take a detector of the same products, taught from the same photographs."""
        self.model, self.processor, self._owned = model, processor, True

    def replace(self, model: AnoPLeModel, processor: AnoPLeProcessor) -> None:
        """Take another detector, which is this person's alone."""
        self.model, self.processor, self._owned = model, processor, True
        self.threshold = model.config.threshold
        self.last, self.last_product, self.last_asked, self.findings, self.normals = None, None, None, [], {}
        shutil.rmtree(self.folder / "normals", ignore_errors=True)


def known_product(session: Session, product: str | None) -> str | None:
    """
    Return the product's name, or `None` where it is to be found.

    Raises:
        ValueError: for an unknown one, with those that are known.
    """
    if not product or product == FIND_IT:
        return None
    if product not in session.products:
        known = ", ".join(session.products)
        raise ValueError(f"{product[:60]} is not known here: choose one of {known}, or teach it first.")
    return product


def copy_products(model: AnoPLeModel, processor: AnoPLeProcessor) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    """Copy a detector, except for the parts that enrolling never changes: CLIP, prompts, prefix, decoder, tokenizer."""
    own_processor = copy.copy(processor)
    own_processor.class_names = list(processor.class_names)
    shared = (model.clip, model.prompts, model.prefix, model.decoder)
    memo = {id(part): part for part in shared} | {id(processor): own_processor}
    return copy.deepcopy(model, memo), own_processor


def start_session(checkpoint: str | None = None) -> Session:
    """
    Load a detector, or without a checkpoint enrol some drawn products on the embedded CLIP, which takes seconds.

    Raises:
        ValueError: if the checkpoint cannot be loaded, with the remedy.
    """
    if checkpoint:
        model, processor = load_detector(checkpoint)
    else:
        model, processor = standard_detector()
    session = Session(model.to(computing_device()).eval(), processor)
    for name in () if checkpoint else STANDARD_PRODUCTS:
        drawn = draw_normals(name, STANDARD_SHOTS)
        session.keep(name, [(f"{name}, drawn {number}", picture) for number, picture in enumerate(drawn, start=1)])
    return session
