"""Where a backbone comes from: the small CLIP that the package carries, a folder, or the Hub."""

from pathlib import Path
from typing import Any

from transformers.utils import resolve_revision


MINI_CLIP = "mini"

# What `from_pretrained` of transformers takes for a name on the Hub.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token", "subfolder")


def clip_source(name: str | Path) -> str:
    """
    Turn the name of a CLIP into what transformers loads: `"mini"` into the embedded one's folder, others as they are.

    Raises:
        ValueError: for `"mini"` where only a detector's own files are at hand, not the package.
    """
    if str(name) != MINI_CLIP:
        return str(name)
    folder = Path(__file__).parent / "mini_clip"
    if not (folder / "config.json").exists():
        raise ValueError(
            "The embedded CLIP 'mini' comes with the package `anople`, not with a detector's files: install anople and "
            "import from modeling_anople, or name another CLIP."
        )
    return str(folder)


def pin_revision(source: str, hub: dict[str, Any]) -> dict[str, Any]:
    """
    Replace `revision` among the arguments for the Hub by the commit it stands for now, where that can be found out.

    Weights and tokenizer then come from one commit, and a detector can name it.
    """
    access = {name: hub[name] for name in ("cache_dir", "token", "local_files_only") if name in hub}
    revision = resolve_revision(source, hub.get("revision"), **access)
    return {**hub, "revision": revision} if revision is not None else hub


def describe_source(name: Any, clip: Any, revision: str | None = None) -> dict[str, str | None]:
    """
    Say where a loaded CLIP came from, without the way to a local folder.

    Args:
        name: what the user called it, or the `CLIPModel` itself.
        clip: the loaded `CLIPModel`.
        revision: what [`pin_revision`] found.

    Returns:
        `kind` (`embedded`, `hub`, `folder`, or `model` for one that was never read from anywhere), `name`, and for a
        Hub id the commit as `revision`, where it is known.
    """
    place = str(name if isinstance(name, (str, Path)) else clip.name_or_path)
    if place in (MINI_CLIP, str(Path(__file__).parent / "mini_clip")):
        return {"kind": "embedded", "name": MINI_CLIP, "revision": None}
    if not place:
        return {"kind": "model", "name": None, "revision": None}
    if name_of(place) == place and not Path(place).exists():
        return {"kind": "hub", "name": place, "revision": getattr(revision, "resolved", revision)}
    return {"kind": "folder", "name": name_of(place), "revision": None}


def name_of(place: str | Path) -> str:
    """Return a folder's own name without the way to it; a Hub id (user/name) stays as it is."""
    text = str(place).replace("\\", "/")
    path = Path(text).expanduser()
    is_hub_id = len(path.parts) == 2 and not path.is_absolute() and ":" not in text and text[0] not in ".~"
    return text if is_hub_id and not path.exists() else path.resolve().name


__all__ = ["HUB_ARGUMENTS", "MINI_CLIP", "clip_source", "describe_source", "name_of", "pin_revision"]
