"""Where a backbone comes from: the small CLIP that the package carries, a folder, or the Hub."""

from pathlib import Path


MINI_CLIP = "mini"


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


__all__ = ["MINI_CLIP", "clip_source"]
