"""What people give: the fields of the page, their files looked at before they are opened, and refusals in words."""

import contextlib
import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.data_classes import ImageData
from gradio.events import Dependency
from PIL import Image, UnidentifiedImageError

from .session import PREDICT_PRODUCT, Session
from .style import message_html


MAX_PIXELS = 50_000_000  # of one image
MAX_IMAGES = 100  # at once
MAX_UPLOAD = 200 * 2**20  # bytes of one file
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one question to the model at a time
HIDDEN = {"api_visibility": "private"}  # what clicks on the page need, and programs do not
FAILED = "This failed, and not by what you gave: try again. The reason stands in the log of the program."
# The camera that looks away from the person, and its picture as it is: a mirrored product is another one.
CAMERA = gr.WebcamOptions(
    mirror=False,
    constraints={
        "video": {"facingMode": {"ideal": "environment"}, "width": {"ideal": 1920}, "height": {"ideal": 1440}}
    },
)


class ImageFile(gr.Image):
    """
    Gradio's image field opens what it is sent, and with a damaged or huge file fails in words of its own before any
    function is called. This one gives the file's path to the function, which looks at it first. (It takes the options of
    `gr.Image` as they are: Gradio tells the page those that stand in the signature of `__init__`.)
    """

    is_template = True  # in the page it is a plain image field

    def preprocess(self, payload: ImageData | None) -> str | None:
        """Return the path of the uploaded file."""
        return payload.path if payload else None


def image_field(label: str, identity: str, sources: list[str], height: int) -> ImageFile:
    """Make a field for one image, which reaches the handler as the file that was sent."""
    return ImageFile(
        label=label,
        elem_id=identity,
        type="filepath",
        image_mode=None,
        sources=sources,
        height=height,
        webcam_options=CAMERA,
    )


def images_field(label: str, identity: str, height: int, **options: Any) -> gr.File:
    """Make a field for many images."""
    options = {"file_count": "multiple", "file_types": ["image"], **options}
    return gr.File(label=label, elem_id=identity, height=height, **options)


def product_field(names: list[str], identity: str) -> gr.Dropdown:
    """Make a list of products; names that are not in it reach the handler, which knows this session's."""
    return gr.Dropdown(names, value=names[0], label="Product", allow_custom_value=True, elem_id=identity)


@dataclass(frozen=True)
class ProductChange:
    """
    An event that changes products; the lists of them in all tabs change with it (see [`product_choices`]).

    Args:
        event: such as `button.click`.
        handler: gets `inputs` and the session, gives what goes into `outputs` and the lists.
        inputs, outputs: of the tab.
        message: the one of `outputs` in which a refusal is said.
        options: of the event.
    """

    event: Callable[..., Dependency]
    handler: Callable[..., tuple]
    inputs: list[Component]
    outputs: list[Component]
    message: gr.HTML
    options: dict[str, Any] = field(default_factory=dict)


def product_choices(session: Session, chosen: str | None = None) -> tuple:
    """Give the names of the products to the lists of Inspect and Live, and of Judge and Teach; one of them is chosen."""
    names = session.products
    asked = {"choices": [PREDICT_PRODUCT, *names], "value": chosen or PREDICT_PRODUCT}
    known = {"choices": names, "value": chosen or session.last_product or names[0]}
    return tuple(gr.update(**each) for each in (asked, asked, known, known))  # Gradio writes into each


@contextlib.contextmanager
def refusals(session: Session | None = None) -> Iterator[None]:
    """
    Refuse what a person can mend in words; Gradio takes messages for HTML, so they are escaped.

    Programs get an error. The page of a session says it where the answer would be (see [`say_refusals`]).
    """
    try:
        yield
    except ValueError as error:
        words, options = str(error), {"title": "Not possible", "duration": None, "print_exception": False}
        if session is not None:
            session.refusal = words
        raise gr.Error(html.escape(words), visible=session is None, **options) from error


def say_refusals(
    event: Dependency,
    session: gr.State,
    place: gr.HTML,
    *,
    emptied: Sequence[Component] = (),
    kept: Sequence[Component] = (),
) -> Dependency:
    """
    Let the page say why what it asked for was refused.

    Args:
        event: what may be refused.
        place: where the answer would stand.
        emptied: what else showed an earlier answer.
        kept: what else the event writes into, and stays as it is.
    """

    def say(session: Session) -> list[Any]:
        words, session.refusal = session.refusal or FAILED, None
        return [message_html(words, "refused"), *[None] * len(emptied), *[gr.skip()] * len(kept)]

    places = [place, *emptied, *kept]
    return event.failure(say, session, places, queue=False, show_progress="hidden", **HIDDEN)


def read_image(path: str | Path | None) -> dict[str, Any]:
    """
    Look at a file and return its short name and its bytes, as [`load_image`] takes them.

    The name is without folders, so that no message tells where the server keeps its files.

    Raises:
        ValueError: for no file, what is no image, or one with more than `MAX_PIXELS` pixels; nothing was decoded.
    """
    if not path:
        raise ValueError("There is no photograph yet: drop one, paste one, or click an example.")
    path = Path(path)
    try:
        return read_bytes(path.name, path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path.name} is no longer here: upload it again.") from error


def read_bytes(name: str, content: bytes) -> dict[str, Any]:
    """Look at the bytes of a photograph; result and errors are those of [`read_image`]."""
    try:  # this reads the head of the file alone
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(name)) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} is not a photograph that can be read: give a JPEG, PNG or similar.") from error
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(name, f" ({width} x {height})"))
    return {"path": name, "bytes": content}


def _too_large(name: str, size: str = "") -> str:
    return f"{name} is too large{size}: at most {MAX_PIXELS // 10**6} million pixels. Make it smaller, or cut it."


def check_count(files: list[str] | None, limit: int) -> list[str]:
    """
    Return the files, if there are some and not too many.

    Raises:
        ValueError: with how many may be given.
    """
    if not files:
        raise ValueError(f"There are no photographs yet: give 1 to {limit}.")
    if len(files) > limit:
        raise ValueError(f"{len(files)} photographs are too many at once: give at most {limit}.")
    return files


def images_among(paths: list[str]) -> list[str]:
    """Pick the files of a folder that are images by the ending of their names, in the order of their names."""
    endings = Image.registered_extensions()
    images = [path for path in paths if Path(path).suffix.lower() in endings and not Path(path).name.startswith(".")]
    return sorted(images, key=lambda path: Path(path).name)
