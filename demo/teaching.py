"""Teach a new product from a few good photographs, or show a known one another that was fine."""

import re

from modeling_anople import load_photograph

from .inspecting import known_product
from .reading import check_count, read_photograph
from .session import Session


MAX_SHOTS, MAX_PRODUCTS, MAX_NORMALS = 8, 50, 200
_NAME = re.compile(r"[^\W_][\w .,()+-]{0,59}")


def checked_name(name: str | None) -> str:
    """
    Return a product's name without spaces around it.

    Raises:
        ValueError: for what is no plain name.
    """
    name = (name or "").strip()
    if not name:
        raise ValueError("The product has no name yet: type one, such as bottle.")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:60]} cannot be a product's name: begin with a letter or digit, and use letters, digits, spaces and "
            "_ - . , ( ) + only, at most 60 of them."
        )
    return name


def teach(session: Session, name: str | None, files: list[str] | None, *, keep: bool = True) -> str:
    """
    Add a product to a session's own detector, without training; says what it knows now.

    Args:
        keep: whether the photographs stay in the session's folder, to be shown beside what is like them.

    Raises:
        ValueError: for a name that is none or is taken, too few or too many photographs, and ones that cannot be used;
            nothing was changed.
    """
    name = checked_name(name)
    if name in session.products:
        raise ValueError(f"{name} is known already: choose another name, or add photographs under Judge.")
    if len(session.products) >= MAX_PRODUCTS:
        raise ValueError(f"This detector knows {MAX_PRODUCTS} products, which is as many as the demo takes.")
    photographs = [read_photograph(path) for path in check_count(files, MAX_SHOTS)]
    model, processor = session.own()
    line = model.enroll(name, photographs, processor=processor)
    if keep:
        _keep(session, name, photographs)
    count = len(photographs)
    return (
        f"{name} is ready, from {count} good photograph{'s' if count > 1 else ''}. Its line is set for at most "
        f"{line.max_false_alarm_rate:.0%} false alarms. Inspect a photograph of it now."
    )


def add_fine(session: Session, product: str | None, path: str | None) -> str:
    """
    Show a product of a session's own detector one more good photograph; says how many it knows now.

    Raises:
        ValueError: for an unknown product, a photograph that cannot be used or is known already; nothing was changed.
    """
    name = known_product(session, product)
    if name is None:
        raise ValueError("Choose the product first.")
    class_id = session.products.index(name)
    if len(session.model.memory.counts[class_id]) >= MAX_NORMALS:
        raise ValueError(f"{name} has {MAX_NORMALS} photographs, which is as many as the demo takes.")
    photograph = read_photograph(path)
    model, processor = session.own()
    model.add_normals(name, [photograph], processor=processor)
    _keep(session, name, [photograph])
    return f"Added. {name} now knows {len(model.memory.counts[class_id])} good photographs, and its line is set anew."


def _keep(session: Session, name: str, photographs: list[dict]) -> None:
    white = session.processor.white_value
    session.keep(name, [(one["path"], load_photograph(one, white_value=white)) for one in photographs])
