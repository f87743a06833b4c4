"""Files that people send, looked at before they are opened: how many, how large, and whether they are photographs."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError


MAX_PIXELS = 50_000_000
MAX_PHOTOGRAPHS = 100  # at once
MAX_UPLOAD = 200 * 2**20  # bytes of one file


def read_photograph(path: str | Path | None) -> dict:
    """
    Look at a file and return its short name and its bytes, as [`load_photograph`] takes them.

    The name is without folders, so that no message tells where the server keeps its files.

    Raises:
        ValueError: for no file, what is no image, or one with more than `MAX_PIXELS` pixels; nothing was decoded.
    """
    if not path:
        raise ValueError("There is no photograph yet: drop one, paste one, or click an example.")
    path = Path(path)
    try:
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


def check_count(files: list | None, limit: int) -> list:
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


def photographs_among(paths: list[str]) -> list[str]:
    """Pick the files of a folder that are photographs by the ending of their names, in the order of their names."""
    endings = Image.registered_extensions()
    picked = [path for path in paths if Path(path).suffix.lower() in endings and not Path(path).name.startswith(".")]
    return sorted(picked, key=lambda path: Path(path).name)
