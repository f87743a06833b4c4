"""Words in a model card: any name, in any script, inside a sentence or a table."""

from collections.abc import Sequence


def cell(text: object) -> str:
    """Write text so that it stays inside a table's cell and is no markup."""
    clean = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    for sign in "\\|*_`<>[]":
        clean = clean.replace(sign, f"\\{sign}")
    return clean


def code(text: object) -> str:
    """Write a name in the letters of code."""
    clean = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    return f"`{clean.replace('`', chr(39)).replace('|', '/')}`"


def joined(words: Sequence[str], last: str = "and") -> str:
    """Join words as in a sentence: a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def percent(share: float, digits: int = 1) -> str:
    """Write a share of 1 in percent."""
    return f"{100 * share:.{digits}f}"


__all__ = ["cell", "code", "joined", "percent"]
