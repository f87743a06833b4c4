"""Fixtures that several test files share: a small CLIP with random weights, detectors on it, and photographs."""

import gc
import json
import os
import signal


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
if gc.isenabled():  # until all is imported: to look through what libraries hold takes a third of the time
    gc.disable()

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from hub.mini_clip.small_clip import byte_tokenizer, write_small_clip
from modeling_anople import AnoPLeModel, AnoPLeProcessor

from .detectors import fit
from .hub.published import Published, write_published
from .local_hub import LocalHub
from .local_hub.client import Client
from .local_hub.faults import Faults


if torch.cuda.is_available():  # what tests compare bit for bit is computed on the CPU; those of test_cuda.py undo this
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")

CLASS_NAMES = ["bolt", "nut"]
LONG = {"test_browser", "test_export", "test_publish", "test_shards", "test_training_modes", "test_training"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that at the end no process waits for another."""
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the libraries: accelerate starts it after each fit, and it would take as long as that."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Take Ctrl-C as a terminal's programs do; those that a shell starts in the background would ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _disk() -> Iterator[None]:
    """Do not wait for the disk: what a process has written outlives it, and no test pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses what is no open file too
        yield


@pytest.fixture(scope="session")
def small_clip_folder(tmp_path_factory) -> Path:
    """A CLIP checkpoint of 4 x 4 patches of 8 pixels; vision 32 wide and 4 deep, text 64 wide and 2 deep."""
    return write_small_clip(
        tmp_path_factory.mktemp("clip") / "small",
        image_size=32,
        patch_size=8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
    )


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return byte_tokenizer()


@pytest.fixture
def clip_model(small_clip_folder) -> CLIPModel:
    """The small CLIP, read anew for each test."""
    return CLIPModel.from_pretrained(small_clip_folder).eval()


@pytest.fixture(scope="session")
def loaded_clip(small_clip_folder) -> CLIPModel:
    return CLIPModel.from_pretrained(small_clip_folder)


@pytest.fixture
def make_model(loaded_clip, tokenizer) -> Callable[..., AnoPLeModel]:
    """Start detectors on the small CLIP; keywords are fields of AnoPLeConfig, `class_names` among them."""

    def make(*, class_names: list[str] | None = None, seed: int = 0, **config) -> AnoPLeModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            clip = deepcopy(loaded_clip)  # three times as fast as reading the folder
            return AnoPLeModel.from_clip(clip, class_names or CLASS_NAMES, tokenizer=tokenizer, **config)

    return make


@pytest.fixture
def make_processor(small_clip_folder) -> Callable[..., AnoPLeProcessor]:
    """Build processors of the small CLIP."""

    def make(*, class_names: list[str] | None = None) -> AnoPLeProcessor:
        return AnoPLeProcessor.from_clip(str(small_clip_folder), class_names or CLASS_NAMES)

    return make


@pytest.fixture(scope="session")
def photograph() -> Callable[..., Image.Image]:
    """Make photographs: a bright, shaded disc on a striped ground, with a little noise; one seed, one photograph."""

    def make(seed: int = 0, *, size: tuple[int, int] = (48, 40)) -> Image.Image:
        generator = np.random.default_rng(seed)
        width, height = size
        rows, columns = np.mgrid[0:height, 0:width] / min(size)
        stripes = 90 + 40 * np.sin(2 * np.pi * (rows + columns) * generator.uniform(2, 6))
        centre = generator.uniform(0.4, 0.6, 2)
        disc = np.hypot(rows - centre[0], columns - centre[1]) < generator.uniform(0.2, 0.35)
        grey = np.where(disc, 180 + 60 * rows, stripes)[..., None] * generator.uniform(0.8, 1, 3)
        return Image.fromarray(np.clip(grey + generator.normal(0, 4, grey.shape), 0, 255).astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def _fitted_detectors() -> dict[str, tuple[AnoPLeModel, AnoPLeProcessor]]:
    return {}


@pytest.fixture
def make_detector(
    make_model, make_processor, photograph, _fitted_detectors
) -> Callable[..., tuple[AnoPLeModel, AnoPLeProcessor]]:
    """Make a detector that knows three photographs of each class, and its processor: copies of one that is fitted once."""

    def make(**config) -> tuple[AnoPLeModel, AnoPLeProcessor]:
        key = json.dumps(config, sort_keys=True)
        if key not in _fitted_detectors:
            processor = make_processor()
            _fitted_detectors[key] = fit(make_model(**config), processor, photograph), processor
        return deepcopy(_fitted_detectors[key])

    return make


@pytest.fixture(scope="session")
def make_pixels() -> Callable[..., torch.Tensor]:
    """Make normalised pixel values (photographs, 3, side, side): smooth random pictures, one seed, one batch."""

    def make(count: int, *, seed: int = 0, side: int = 32) -> torch.Tensor:
        coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")

    return make


@pytest.fixture(scope="session")
def _faulty_hub(tmp_path_factory) -> Iterator[tuple[LocalHub, Faults]]:
    faults = Faults()
    users = {"token-of-me": "me", "token-of-another": "another"}
    with LocalHub(tmp_path_factory.mktemp("hub"), users, around=faults.around) as hub:
        yield hub, faults


@pytest.fixture
def hub(_faulty_hub) -> LocalHub:
    """A Hub on this machine with the users `me` and `another`, for the real client."""
    return _faulty_hub[0]


@pytest.fixture
def faults(_faulty_hub) -> Iterator[Faults]:
    """What may go wrong on the way to that Hub; nothing does until a test says so."""
    _faulty_hub[1].reset()
    yield _faulty_hub[1]
    _faulty_hub[1].reset()


@pytest.fixture(scope="session")
def client(_faulty_hub, tmp_path_factory) -> Iterator[Client]:
    """A process with the real client, logged in as `me`."""
    client = Client(_faulty_hub[0].environment(tmp_path_factory.mktemp("home"), "token-of-me"))
    yield client
    client.close()


@pytest.fixture(scope="session")
def published(tmp_path_factory, small_clip_folder, photograph) -> Published:
    """A detector with figures and a gallery, and another one that answers differently."""
    return write_published(tmp_path_factory.mktemp("published"), small_clip_folder, photograph)
