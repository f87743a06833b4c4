"""What one person's browser holds: a detector of their own, their line, and a folder for their files."""

import copy
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.runtime.loading import computing_device, load_detector

from .examples import draw_normals
from .normals import Kept, keep_photographs
from .showing import Shown


STANDARD_PRODUCTS = ("wooden board", "capsule", "circuit board")
STANDARD_SHOTS = 4


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
        self.findings: list[Any] = []
        self.examples: list[Path] = []  # photographs to try, the same for all
        self.normals: dict[str, list[Kept]] = {}  # of each product the last photographs it was taught from
        self.stop, self.stop_fit = threading.Event(), threading.Event()
        self._shown: Shown | None = None
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
    def shown(self) -> Shown:
        """The pictures on this person's page, as files in this session's folder."""
        if self._shown is None:
            self._shown = Shown(self.folder / "shown")
        return self._shown

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


def standard_detector() -> tuple[AnoPLeModel, AnoPLeProcessor]:
    """Enrol the standard products from photographs that are drawn here; always the same."""
    first = STANDARD_PRODUCTS[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AnoPLeModel.from_clip("mini", [first])
    processor = AnoPLeProcessor.from_clip("mini", [first])
    for name in STANDARD_PRODUCTS:
        learn = model.add_normals if name == first else model.enroll
        learn(name, draw_normals(name, STANDARD_SHOTS), processor=processor)
    return model, processor
