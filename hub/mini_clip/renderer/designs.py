"""What products look like: their families, the designs of a batch of them, and the instances before the camera."""

import colorsys
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..tokenizer import article
from .textures import TileBank, chance, choice, log_uniform, uniform


# --- Families of products: how their members look and what they are called ---


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
    colorful: float = 0.5  # saturation


FAMILIES = (
    Family(("fabric", "carpet", "cloth", "textile"), full=True, periodic=1.0, tiles=("fiber", "grain"), parts=(0, 1)),
    Family(
        ("grid", "wire mesh", "metal grid", "sieve"),
        full=True,
        periodic=1.0,
        see_through=0.9,
        roughness=0.2,
        tiles=("grain", "cloud"),
        parts=(0, 0),
        colorful=0.15,
    ),
    Family(("wood", "wooden board", "plank", "veneer"), full=True, tiles=("fiber",), roughness=1.0, parts=(0, 1)),
    Family(("leather", "paper", "rubber", "plaster"), full=True, tiles=("cells", "rings", "grain"), parts=(0, 0)),
    Family(
        ("tile", "stone", "marble", "concrete"),
        full=True,
        tiles=("ridges", "speckle", "cloud"),
        parts=(0, 0),
        roughness=1.0,
        colorful=0.3,
    ),
    Family(
        ("metal plate", "steel sheet", "casting", "magnetic tile"),
        tiles=("fiber", "grain"),
        parts=(0, 4),
        colorful=0.1,
        roughness=0.3,
    ),
    Family(
        ("gear", "washer", "metal nut", "bearing"),
        round=True,
        hollow=0.6,
        toothed=0.6,
        tiles=("fiber", "grain"),
        parts=(1, 4),
        repeated=0.6,
        colorful=0.1,
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
        tiles=("fiber", "cloud", "ridges"),
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
    Family(("toothbrush", "zipper", "comb", "brush"), periodic=0.7, tiles=("fiber",), parts=(1, 4), repeated=0.8),
)

COLORS = {  # name -> hue, saturation, value
    "red": (0.0, 0.8, 0.75), "orange": (0.08, 0.8, 0.85), "yellow": (0.15, 0.75, 0.9), "green": (0.36, 0.7, 0.55),
    "blue": (0.6, 0.75, 0.65), "purple": (0.77, 0.6, 0.55), "pink": (0.92, 0.4, 0.9), "brown": (0.07, 0.65, 0.45),
    "beige": (0.1, 0.25, 0.82), "white": (0.1, 0.03, 0.92), "grey": (0.6, 0.05, 0.55), "black": (0.6, 0.1, 0.12),
}  # fmt: skip


# --- The designs of a batch of products, and the instances of them that lie before the camera ---


PARTS = 5
BASES = 4  # of regular patterns: stripes, crossed stripes, checks, grid lines


@dataclass
class Designs:
    """What all instances of a product share; every tensor begins with the dimension of products."""

    families: list[Family]
    nouns: list[str]
    captions: list[str]
    size: Tensor  # (products, 2) half width and half height; a full product exceeds the frame
    corner: Tensor  # (products,) 1 for an ellipse, 0 for a box
    ring: Tensor  # (products,) width of a ring, large for none
    teeth: Tensor  # (products, 2) number and height
    zoom: Tensor  # (products,) half a frame in units of the product
    colors: Tensor  # (products, 3 uses, 3) ground, body, second color of the pattern
    tiles: Tensor  # (products, 2 uses)
    tile_scale: Tensor  # (products, 2 uses) tiles in one unit
    roughness: Tensor  # (products, 2 uses)
    pattern: Tensor  # (products, BASES) weights
    pattern_waves: Tensor  # (products, 2) in one unit
    pattern_angle: Tensor  # (products,)
    contrast: Tensor  # (products,) of the pattern
    sharpness: Tensor  # (products,) of the pattern
    see_through: Tensor  # (products,) 1 where the pattern has holes
    relief: Tensor  # (products,) height of pattern and texture
    part_place: Tensor  # (products, PARTS, 2)
    part_size: Tensor  # (products, PARTS, 2)
    part_corner: Tensor  # (products, PARTS)
    part_ring: Tensor  # (products, PARTS)
    part_angle: Tensor  # (products, PARTS)
    part_color: Tensor  # (products, PARTS, 3)
    part_there: Tensor  # (products, PARTS) 1 or 0
    part_repeat: Tensor  # (products, PARTS) 0 once, 1 in rows, 2 in a circle
    part_pitch: Tensor  # (products, PARTS) distance in rows, number in a circle
    part_height: Tensor  # (products, PARTS)
    turn: Tensor  # (products,) largest rotation
    looseness: Tensor  # (products,) largest shift
    light: Tensor  # (products, 2)
    gradient: Tensor  # (products,) unevenness of the light
    blur: Tensor  # (products,) pixels
    noise: Tensor  # (products,) of the sensor


def _colors(names: list[str], generator: Generator, spread: float = 0.05) -> Tensor:
    """Draw a color (len(names), 3) near each name's."""
    drawn = []
    for name in names:
        hue, saturation, value = COLORS[name]
        jitter = uniform(generator, -spread, spread, (3,)).tolist()
        hsv = ((hue + jitter[0] / 2) % 1, max(0.0, saturation + jitter[1]), max(0.05, value + jitter[2]))
        drawn.append(colorsys.hsv_to_rgb(*hsv))
    return torch.tensor(drawn)


def _draw_name(family: Family, generator: Generator) -> str:
    """Draw a color name; a colorless family is mostly gray, white or black."""
    dull = bool(chance(generator, 1 - family.colorful))
    return choice(generator, ("white", "grey", "black", "beige") if dull else tuple(COLORS))


def _of(families: list[Family], field: str) -> Tensor:
    return torch.tensor([float(getattr(family, field)) for family in families])


def draw_designs(count: int, generator: Generator, bank: TileBank) -> Designs:
    """Draw the designs of `count` products."""
    families = [choice(generator, FAMILIES) for _ in range(count)]
    nouns = [choice(generator, family.nouns) for family in families]
    names = [_draw_name(family, generator) for family in families]
    body = _colors(names, generator)
    outline = _draw_outline(families, generator)
    part_names = [[choice(generator, tuple(COLORS)) for _ in range(PARTS)] for _ in families]
    parts = _draw_parts(families, outline["size"], body, part_names, generator)
    captions = []
    for name, noun, others, there in zip(names, nouns, part_names, parts["part_there"].sum(1).tolist(), strict=True):
        captions.append(
            f"a photo of {article(name)} {name} {noun}" + (f" with {others[0]} parts" if there > 1 else "")
        )
    surface, setting = _draw_surface(families, body, generator, bank), _draw_setting(families, generator)
    return Designs(families=families, nouns=nouns, captions=captions, **outline, **parts, **surface, **setting)


def _draw_outline(families: list[Family], generator: Generator) -> dict[str, Tensor]:
    count = len(families)
    full, rounded = _of(families, "full").bool(), _of(families, "round").bool()
    size = uniform(generator, 0.45, 0.95, (count, 2))
    oval = torch.where(chance(generator, 0.7, (count,)), 1.0, 0.8)
    size[:, 1] = torch.where(rounded, size[:, 0] * oval, size[:, 1])
    toothed, hollow = (chance(generator, _of(families, field), (count,)) for field in ("toothed", "hollow"))
    number = torch.randint(3, 30, (count,), generator=generator).float()
    return {
        "size": torch.where(full[:, None], 50.0, size),
        "corner": torch.where(rounded, 1.0, uniform(generator, 0, 0.6, (count,))),
        "ring": torch.where(hollow, uniform(generator, 0.08, 0.3, (count,)), 1e3),
        "teeth": torch.stack([number, uniform(generator, 0.01, 0.08, (count,)) * toothed], dim=1),
    }


def _draw_parts(
    families: list[Family], size: Tensor, body: Tensor, names: list[list[str]], generator: Generator
) -> dict[str, Tensor]:
    """Draw the parts of products of a size (products, 2) and color (products, 3); `names` are the parts' colors."""
    count, rounded = len(families), _of(families, "round").bool()[:, None]
    number = [int(torch.randint(low, high + 1, (), generator=generator)) for low, high in (f.parts for f in families)]

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return uniform(generator, low, high, (count, PARTS, *shape))

    def toss(probability: float | Tensor) -> Tensor:
        return chance(generator, probability, (count, PARTS))

    # parts come once, in rows, or, on round products, in a circle or around the center
    circle = rounded & toss(0.7)
    repeat = torch.where(toss(_of(families, "repeated")[:, None]), torch.where(circle, 2, 1), 0)
    concentric = (rounded & toss(0.5) & (repeat == 0))[..., None]
    extent = size.clamp(max=1.0)[:, None]
    part_size = log_uniform(generator, 0.06, 0.5, (count, PARTS, 2)) * torch.where(repeat > 0, 0.35, 1.0)[..., None]
    part_size[..., 1] *= torch.where(toss(0.3), 0.3, 1.0)  # some are slim
    part_size = torch.where(concentric, draw(0.15, 0.8, 1) * extent[..., :1], part_size)
    color = torch.stack([_colors(row, generator) for row in names])
    # many parts are of the body's own material, lighter or darker
    alike = torch.where(toss(0.4)[..., None], body[:, None] * draw(0.5, 1.4, 1), color)
    around = torch.randint(4, 20, (count, PARTS), generator=generator).float()
    return {
        "part_place": torch.where(concentric, 0.0, draw(-0.75, 0.75, 2) * extent),
        "part_size": part_size,
        "part_corner": torch.where(concentric[..., 0], 1.0, draw(0, 1)),
        "part_ring": torch.where(toss(0.3), draw(0.01, 0.06), 9.0),
        "part_angle": draw(0, 3.14) * toss(0.4),
        "part_color": alike.clamp(0.02, 0.98),
        "part_there": (torch.arange(PARTS) < torch.tensor(number)[:, None]).float(),
        "part_repeat": repeat,
        "part_pitch": torch.where(repeat == 2, around, part_size.amax(-1) * draw(2.3, 4.0)),
        "part_height": draw(-0.05, 0.05),
    }


def _draw_surface(families: list[Family], body: Tensor, generator: Generator, bank: TileBank) -> dict[str, Tensor]:
    """Draw colors, textures and regular pattern of products whose main color is `body` (products, 3)."""
    count = len(families)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return uniform(generator, low, high, (count, *shape))

    ground, second = (_colors([choice(generator, tuple(COLORS)) for _ in families], generator) for _ in range(2))
    plain = chance(generator, 0.6, (count, 1))  # most photographs have a gray, white or black ground
    ground = torch.where(plain, draw(0, 1, 1) + draw(-0.03, 0.03, 3), ground)
    second = torch.where(chance(generator, 0.7, (count, 1)), body * draw(0.5, 1.4, 1), second)
    pattern = torch.nn.functional.one_hot(torch.randint(BASES, (count,), generator=generator), BASES).float()
    tiles = [family.tiles for family in families], [("cloud", "grain", "fiber")] * count
    return {
        "colors": torch.stack([ground, body, second], dim=1).clamp(0.02, 0.98),
        "tiles": torch.stack([bank.pick(generator, kinds) for kinds in tiles], dim=1),
        "tile_scale": log_uniform(generator, 0.12, 0.6, (count, 2)),
        "roughness": torch.stack([_of(families, "roughness") * draw(0.02, 0.22), draw(0, 0.08)], dim=1),
        "pattern": pattern + 0.3 * torch.randn(count, BASES, generator=generator),
        "pattern_waves": log_uniform(generator, 2.5, 28, (count, 1)) * draw(0.7, 1.4, 2),
        "pattern_angle": draw(0, 3.14) * chance(generator, 0.5, (count,)),
        "contrast": _of(families, "periodic") * draw(0.3, 1.0) * chance(generator, 0.9, (count,)),
        "sharpness": log_uniform(generator, 0.8, 8, (count,)),
        "see_through": chance(generator, _of(families, "see_through"), (count,)).float(),
        "relief": log_uniform(generator, 0.002, 0.02, (count,)),
    }


def _draw_setting(families: list[Family], generator: Generator) -> dict[str, Tensor]:
    """Draw how the products lie, how they are lit and what the camera does."""
    count, full = len(families), _of(families, "full").bool()
    free = chance(generator, torch.where(_of(families, "round").bool(), 0.35, 0.05), (count,))
    nearest, farthest = torch.where(full, 0.35, 0.5), torch.where(full, 1.2, 1.25)
    return {
        "zoom": nearest * (farthest / nearest) ** torch.rand(count, generator=generator),
        "turn": torch.where(free, 3.14, log_uniform(generator, 0.005, 0.12, (count,))),
        "looseness": log_uniform(generator, 0.005, 0.08, (count,)),
        "light": uniform(generator, -1, 1, (count, 2)),
        "gradient": uniform(generator, 0, 0.12, (count,)),
        "blur": uniform(generator, 0, 1.1, (count,)),
        "noise": log_uniform(generator, 0.003, 0.025, (count,)),
    }


@dataclass
class Instances:
    """How single photographs of the products differ; every tensor begins with the dimension of images."""

    owner: Tensor  # (images,) number of the product
    turn: Tensor  # (images,)
    zoom: Tensor  # (images,)
    shift: Tensor  # (images, 2)
    tile_shift: Tensor  # (images, 2 uses, 2)
    pattern_phase: Tensor  # (images, 2)
    part_shift: Tensor  # (images, PARTS, 2)
    light: Tensor  # (images, 2)
    gain: Tensor  # (images, 3)
    slope: Tensor  # (images, 2) of the light over the frame


def draw_instances(designs: Designs, each: int, generator: Generator) -> Instances:
    """Draw `each` instances of every product, product by product."""
    count = len(designs.nouns)
    owner = torch.arange(count).repeat_interleave(each)
    images = len(owner)

    def draw(*shape: int) -> Tensor:
        return uniform(generator, -1, 1, (images, *shape))

    full = torch.tensor([family.full for family in designs.families])[owner]
    looseness = designs.looseness[owner]
    center = uniform(generator, -0.25, 0.25, (count, 2))[owner]  # where on the product the camera looks
    free = torch.where(full, 0.5, looseness)[:, None]
    return Instances(
        owner=owner,
        turn=designs.turn[owner] * draw(),
        zoom=designs.zoom[owner] * (1 + 0.5 * looseness * draw()),
        shift=center * (designs.zoom[owner] < 0.8)[:, None] + free * draw(2),
        tile_shift=draw(2, 2),
        pattern_phase=draw(2) * torch.where(full, 3.14, looseness * 3)[:, None],
        part_shift=draw(PARTS, 2) * 0.006,
        light=designs.light[owner] + 0.15 * draw(2),
        gain=(1 + 0.06 * draw(1)) * (1 + 0.015 * draw(3)),
        slope=designs.gradient[owner][:, None] * (designs.light[owner] + 0.4 * draw(2)),
    )


def pick_instances(instances: Instances, rows: Tensor) -> Instances:
    """Pick some images' instances."""
    return Instances(**{name: value[rows] for name, value in vars(instances).items()})
