"""Whether what is tested is what the paper tested, told by names and numbers: no photograph is opened."""

from collections import Counter
from collections.abc import Mapping, Sequence

from modeling_anople.cli import compare
from modeling_anople.data import read_source
from modeling_anople.data.public_sets import SETS

from .options import ReproduceOptions


def count_tests(source: str, classes: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
    """Count the good and the defective test photographs of each class."""
    rows = read_source(source, split="test", classes=classes)
    names = rows["class_name"][:]
    counts = Counter(zip(names, rows["label"][:], strict=True))
    return {name: (counts[name, 0], counts[name, 1]) for name in dict.fromkeys(names)}


def unlike_paper(tested: Mapping[str, tuple[int, int]], options: ReproduceOptions) -> str | None:
    """
    Say why the paper's figures do not stand beside ours: what is tested is not the whole set that `data_set` names.

    Args:
        tested: class -> good and defective test photographs.

    Returns:
        A sentence; `None` where it is that set, as far as official numbers are known, and where `data_set` names none.
    """
    if options.data_set == "other":
        return None
    facts = SETS[options.data_set]
    reasons = [f"--{name} was given" for name in ("classes", "test_images") if getattr(options, name)]
    if missing := [name for name in facts.classes if name not in tested]:
        reasons.append(f"missing: {', '.join(missing)}")
    if others := [name for name in tested if name not in facts.classes]:
        reasons.append(f"no classes of it: {', '.join(others)}")
    known = [name for name in tested if name in facts.classes]
    differ = [name for name in known if not _agrees(tested[name], facts.classes[name])]
    if differ and not options.test_images:
        reasons.append(f"other numbers of test photographs than the official ones: {', '.join(differ)}")
    total = tuple(map(sum, zip(*tested.values(), strict=True)))
    if not reasons and not _agrees(total, facts.totals):
        reasons.append("another number of test photographs in all than the official one")
    left_out = f"The paper's figures are left out, for what is tested is not the whole {facts.title}"
    return f"{left_out} ({'; '.join(reasons)})." if reasons else None


def _agrees(tested: tuple[int, ...], official: tuple | None) -> bool:
    """Compare the numbers of test photographs alone, where they are known."""
    return compare((None, *tested), official and (None, *official[1:]), None)[1]


__all__ = ["count_tests", "unlike_paper"]
