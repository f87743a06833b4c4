"""What people give: the fields of the page, their files looked at before they are opened, and refusals in words."""

import contextlib
import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image, UnidentifiedImageError


MAX_PIXELS = 50_000_000  # of one image
MAX_IMAGES = 100  # at once
MAX_UPLOAD = 200 * 2**20  # bytes of one file
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one question to the model at a time
HIDDEN = {"api_visibility": "private"}  # what clicks on the page need, and programs do not
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


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Show what a person can mend as a message; Gradio takes messages for HTML, so it is escaped."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(str(error)), title="Not possible", duration=None, print_exception=False) from error


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
    try:  # this reads the head of the file alone
        with Image.open(path) as image:
            width, height = image.size
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is no longer here: upload it again.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(path.name)) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path.name} is not a photograph that can be read: give a JPEG, PNG or similar.") from error
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(path.name, f" ({width} x {height})"))
    return {"path": path.name, "bytes": path.read_bytes()}


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
