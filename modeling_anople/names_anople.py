"""Names that are not known: which one may have been meant."""

import difflib
import unicodedata
from collections.abc import Iterable


def composed(name: str) -> str:
    """Write a name with composed letters (NFC): on a Mac a folder's name may have its accents apart."""
    return unicodedata.normalize("NFC", name)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean NAME?" for the known name that a word resembles, whatever their case; "" where none does."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1)
    return f" Did you mean {lower[near[0]]}?" if near else ""


__all__ = ["composed", "did_you_mean"]
