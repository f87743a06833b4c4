"""`anople data check NAME ROOT`: whether a public set is whole."""

import sys
from collections import Counter
from dataclasses import dataclass

from .command_line import make_parser, parse


USAGE = "anople data check NAME ROOT: count a public data set, and compare with the official numbers.\n"


@dataclass
class CheckOptions:
    """`anople data check` has no options."""


def data(arguments: list[str]) -> int:
    """Run `check`; exit with 1 where a number differs from the official one."""
    if not arguments or arguments[0] != "check":
        sys.stderr.write(USAGE)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    from .public_sets import SETS

    places = {"name": f"One of {', '.join(SETS)}.", "root": "Its folder."}
    found, _ = parse(make_parser("data check", CheckOptions, **places), arguments[1:])
    if found.name not in SETS:
        raise ValueError(f"No public set {found.name!r} is known: choose from {', '.join(SETS)}.")
    lines, whole = count_set(found.name, found.root)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if whole else 1


def count_set(name: str, root: str) -> tuple[list[str], bool]:
    """Count train, good and defective test photographs of each class; return a table, and whether all numbers agree."""
    from .public_sets import SETS
    from .sources import read_source

    facts, counts = SETS[name], Counter()
    for split in ("train", "test"):
        rows = read_source(f"{name}:{root}", split=split)
        counts.update(
            (owner, split, bool(label)) for owner, label in zip(rows["class_name"], rows["label"], strict=True)
        )
    lines, whole = ["| class | train | test, good | test, defective | official |", "|---|---|---|---|---|"], True
    totals = (0, 0, 0)
    for owner in dict.fromkeys([*facts.classes, *sorted({owner for owner, _, _ in counts})]):
        ours = counts[owner, "train", False], counts[owner, "test", False], counts[owner, "test", True]
        said, agrees = compare(ours, facts.classes.get(owner), facts.both_splits.get(owner))
        if not any(ours) or owner not in facts.classes:
            said, agrees = "missing" if not any(ours) else "no class of this set", False
        whole &= agrees
        totals = tuple(map(sum, zip(totals, ours, strict=True)))
        lines.append(f"| {owner} | {' | '.join(map(str, ours))} | {said} |")
    said, agrees = compare(totals, facts.totals, None)
    lines += [
        f"| all | {' | '.join(map(str, totals))} | {said} |",
        "",
        f"{facts.title}: {facts.home}; licence: {facts.licence}.",
    ]
    return lines, whole and agrees


def compare(ours: tuple, official: tuple | None, both_splits: tuple | None) -> tuple[str, bool]:
    """Say whether counts agree with the official ones; `None` agrees with all, `both_splits` counts both splits together."""
    if official is not None:
        agrees = all(there in (here, None) for here, there in zip(ours, official, strict=True))
        return ("agrees", True) if agrees else (f"differs: {official}".replace("None", "any"), False)
    if both_splits is not None:
        good, bad = ours[0] + ours[1], ours[2]
        return (
            ("agrees", True)
            if (good, bad) == both_splits
            else (f"differs: {both_splits[0]} good, {both_splits[1]} defective", False)
        )
    return "not known to us", True


__all__ = ["compare", "count_set", "data"]
