"""Families of products: how their members look and what they are called."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Ranges from which a product is designed; nouns go into its captions."""

    nouns: tuple[str, ...]
    full: bool = False  # fills the frame, as fabric does
    round: bool = False  # a disc, so that it may lie at any angle
    hollow: float = 0.0  # chance of a ring
    toothed: float = 0.0  # chance of a modulated outline
    periodic: float = 0.0  # strength of the regular pattern
    see_through: float = 0.0  # chance that the pattern has holes
    tiles: tuple[str, ...] = ("cloud", "grain")
    roughness: float = 0.5  # strength of the random texture
    parts: tuple[int, int] = (0, 3)
    repeated: float = 0.3  # chance that a part comes in rows or in a circle
    colourful: float = 0.5  # saturation


FAMILIES = (
    Family(("fabric", "carpet", "cloth", "textile"), full=True, periodic=1.0, tiles=("fibre", "grain"), parts=(0, 1)),
    Family(
        ("grid", "wire mesh", "metal grid", "sieve"),
        full=True,
        periodic=1.0,
        see_through=0.9,
        roughness=0.2,
        tiles=("grain", "cloud"),
        parts=(0, 0),
        colourful=0.15,
    ),
    Family(("wood", "wooden board", "plank", "veneer"), full=True, tiles=("fibre",), roughness=1.0, parts=(0, 1)),
    Family(("leather", "paper", "rubber", "plaster"), full=True, tiles=("cells", "rings", "grain"), parts=(0, 0)),
    Family(
        ("tile", "stone", "marble", "concrete"),
        full=True,
        tiles=("ridges", "speckle", "cloud"),
        parts=(0, 0),
        roughness=1.0,
        colourful=0.3,
    ),
    Family(
        ("metal plate", "steel sheet", "casting", "magnetic tile"),
        tiles=("fibre", "grain"),
        parts=(0, 4),
        colourful=0.1,
        roughness=0.3,
    ),
    Family(
        ("gear", "washer", "metal nut", "bearing"),
        round=True,
        hollow=0.6,
        toothed=0.6,
        tiles=("fibre", "grain"),
        parts=(1, 4),
        repeated=0.6,
        colourful=0.1,
        roughness=0.25,
    ),
    Family(
        ("bottle", "bottle cap", "lid", "can"),
        round=True,
        hollow=0.4,
        toothed=0.2,
        tiles=("cloud", "grain"),
        parts=(2, 5),
        roughness=0.2,
    ),
    Family(
        ("pill", "tablet", "candle", "button"), round=True, tiles=("grain", "speckle"), parts=(0, 3), roughness=0.3
    ),
    Family(
        ("hazelnut", "nut", "cashew", "fruit"),
        round=True,
        toothed=0.3,
        tiles=("fibre", "cloud", "ridges"),
        parts=(0, 2),
        roughness=0.9,
    ),
    Family(
        ("cookie", "bread", "macaroni", "chewing gum"),
        round=True,
        toothed=0.3,
        tiles=("grain", "cells", "speckle"),
        parts=(0, 4),
        repeated=0.6,
        roughness=0.9,
    ),
    Family(
        ("circuit board", "pcb", "connector", "sensor"),
        periodic=0.3,
        tiles=("grain",),
        parts=(4, 5),
        repeated=0.7,
        roughness=0.2,
    ),
    Family(("capsule", "cable", "tube", "fuse"), tiles=("cloud", "grain"), parts=(1, 4), roughness=0.2),
    Family(
        ("foam", "sponge", "filter", "honeycomb"),
        full=True,
        tiles=("cells", "rings"),
        roughness=1.0,
        parts=(0, 0),
        periodic=0.3,
    ),
    Family(("label", "package", "box", "card"), tiles=("cloud", "grain"), parts=(2, 5), repeated=0.5, roughness=0.15),
    Family(("toothbrush", "zipper", "comb", "brush"), periodic=0.7, tiles=("fibre",), parts=(1, 4), repeated=0.8),
)

COLOURS = {  # name -> hue, saturation, value
    "red": (0.0, 0.8, 0.75), "orange": (0.08, 0.8, 0.85), "yellow": (0.15, 0.75, 0.9), "green": (0.36, 0.7, 0.55),
    "blue": (0.6, 0.75, 0.65), "purple": (0.77, 0.6, 0.55), "pink": (0.92, 0.4, 0.9), "brown": (0.07, 0.65, 0.45),
    "beige": (0.1, 0.25, 0.82), "white": (0.1, 0.03, 0.92), "grey": (0.6, 0.05, 0.55), "black": (0.6, 0.1, 0.12),
}  # fmt: skip
