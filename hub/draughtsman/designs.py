"""The designs of a batch of products, and the instances of them that lie before the camera."""

import colorsys
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .draws import chance, choice, log_uniform, uniform
from .families import COLOURS, FAMILIES, Family
from .noise import TileBank


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
    colours: Tensor  # (products, 3 uses, 3) ground, body, second colour of the pattern
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
    part_colour: Tensor  # (products, PARTS, 3)
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


def _colour(name: str, generator: Generator, spread: float = 0.05) -> list[float]:
    hue, saturation, value = COLOURS[name]
    jitter = uniform(generator, -spread, spread, (3,)).tolist()
    return list(
        colorsys.hsv_to_rgb((hue + jitter[0] / 2) % 1, max(0.0, saturation + jitter[1]), max(0.05, value + jitter[2]))
    )


def _draw_name(family: Family, generator: Generator) -> str:
    """Draw a colour name; a colourless family is mostly grey, white or black."""
    dull = bool(chance(generator, 1 - family.colourful))
    return choice(generator, ("white", "grey", "black", "beige") if dull else tuple(COLOURS))


def draw_designs(count: int, generator: Generator, bank: TileBank) -> Designs:
    """Draw the designs of `count` products."""
    families = [choice(generator, FAMILIES) for _ in range(count)]
    names = [(_draw_name(family, generator), choice(generator, tuple(COLOURS))) for family in families]
    nouns = [choice(generator, family.nouns) for family in families]

    def of(field: str) -> Tensor:
        return torch.tensor([float(getattr(family, field)) for family in families])

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return uniform(generator, low, high, (count, *shape))

    full, rounded = of("full").bool(), of("round").bool()
    size = draw(0.45, 0.95, 2)
    size[rounded] = size[rounded][:, :1] * torch.where(chance(generator, 0.7, (int(rounded.sum()), 1)), 1.0, 0.8)
    size[full] = 50.0
    ground = torch.tensor([_colour(choice(generator, tuple(COLOURS)), generator) for _ in range(count)])
    plain = chance(generator, 0.6, (count, 1))  # most photographs have a grey, white or black ground
    ground = torch.where(plain, draw(0, 1, 1).expand(-1, 3) + draw(-0.03, 0.03, 3), ground)
    body = torch.tensor([_colour(first, generator) for first, _ in names])
    second = torch.tensor([_colour(second, generator) for _, second in names])
    kin = chance(generator, 0.7, (count, 1))
    second = torch.where(kin, body * draw(0.5, 1.4, 1), second)
    part_count = torch.tensor(
        [int(torch.randint(f.parts[0], f.parts[1] + 1, (), generator=generator)) for f in families]
    )
    repeated = chance(generator, of("repeated")[:, None], (count, PARTS))
    circle = rounded[:, None] & chance(generator, 0.7, (count, PARTS))
    repeat = torch.where(repeated, torch.where(circle, 2, 1), 0)
    small = torch.where(repeat > 0, 0.35, 1.0)
    part_size = log_uniform(generator, 0.06, 0.5, (count, PARTS, 2)) * small[..., None]
    slim = chance(generator, 0.3, (count, PARTS))
    part_size[..., 1] = torch.where(slim, part_size[..., 1] * 0.3, part_size[..., 1])
    part_ring = torch.where(chance(generator, 0.3, (count, PARTS)), draw(0.01, 0.06, PARTS), 9.0)
    concentric = rounded[:, None] & chance(generator, 0.5, (count, PARTS)) & (repeat == 0)
    extent = torch.where(full[:, None], 1.0, size).clamp(max=1.0)
    place = draw(-0.75, 0.75, PARTS, 2) * extent[:, None]
    place = torch.where(concentric[..., None], 0.0, place)
    part_size = torch.where(concentric[..., None], draw(0.15, 0.8, PARTS, 1) * extent[:, None, :1], part_size)
    pattern = torch.nn.functional.one_hot(torch.randint(BASES, (count,), generator=generator), BASES).float()
    pattern += 0.3 * torch.randn(count, BASES, generator=generator)
    waves = log_uniform(generator, 2.5, 28, (count, 1)) * draw(0.7, 1.4, 2)
    periodic = of("periodic")
    free = chance(generator, torch.where(rounded, 0.35, 0.05), (count,))
    pitch = torch.where(
        repeat == 2,
        torch.randint(4, 20, (count, PARTS), generator=generator).float(),
        part_size.amax(-1) * draw(2.3, 4.0, PARTS),
    )
    part_names = [[choice(generator, tuple(COLOURS)) for _ in range(PARTS)] for _ in range(count)]
    part_colour = torch.tensor([[_colour(name, generator) for name in row] for row in part_names])
    alike = chance(generator, 0.4, (count, PARTS, 1))
    part_colour = torch.where(alike, body[:, None] * draw(0.5, 1.4, PARTS, 1), part_colour)
    return Designs(
        families=families,
        nouns=nouns,
        captions=[
            f"a photo of a {first} {noun}" + (f" with {other} parts" if parts > 1 else "")
            for (first, _), noun, parts, (other, *_) in zip(names, nouns, part_count.tolist(), part_names, strict=True)
        ],
        size=size,
        corner=torch.where(rounded, 1.0, draw(0, 0.6)),
        ring=torch.where(chance(generator, of("hollow"), (count,)), draw(0.08, 0.3), 1e3),
        teeth=torch.stack(
            [
                torch.randint(3, 30, (count,), generator=generator).float(),
                draw(0.01, 0.08) * chance(generator, of("toothed"), (count,)),
            ],
            dim=1,
        ),
        zoom=torch.where(
            full, log_uniform(generator, 0.35, 1.2, (count,)), log_uniform(generator, 0.5, 1.25, (count,))
        ),
        colours=torch.stack([ground, body, second], dim=1).clamp(0.02, 0.98),
        tiles=torch.stack(
            [
                bank.pick(generator, [family.tiles for family in families]),
                bank.pick(generator, [("cloud", "grain", "fibre")] * count),
            ],
            1,
        ),
        tile_scale=log_uniform(generator, 0.12, 0.6, (count, 2)),
        roughness=torch.stack([of("roughness") * draw(0.02, 0.22), draw(0, 0.08)], dim=1),
        pattern=pattern,
        pattern_waves=waves,
        pattern_angle=torch.where(chance(generator, 0.5, (count,)), 0.0, draw(0, 3.14)),
        contrast=periodic * draw(0.3, 1.0) * chance(generator, 0.9, (count,)),
        sharpness=log_uniform(generator, 0.8, 8, (count,)),
        see_through=chance(generator, of("see_through"), (count,)).float(),
        relief=log_uniform(generator, 0.002, 0.02, (count,)),
        part_place=place,
        part_size=part_size,
        part_corner=torch.where(concentric, 1.0, draw(0, 1, PARTS)),
        part_ring=part_ring,
        part_angle=draw(0, 3.14, PARTS) * chance(generator, 0.4, (count, PARTS)),
        part_colour=part_colour.clamp(0.02, 0.98),
        part_there=(torch.arange(PARTS) < part_count[:, None]).float(),
        part_repeat=repeat,
        part_pitch=pitch,
        part_height=draw(-0.05, 0.05, PARTS),
        turn=torch.where(free, 3.14, log_uniform(generator, 0.005, 0.12, (count,))),
        looseness=log_uniform(generator, 0.005, 0.08, (count,)),
        light=draw(-1, 1, 2),
        gradient=draw(0, 0.12),
        blur=draw(0, 1.1),
        noise=log_uniform(generator, 0.003, 0.025, (count,)),
    )


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
    centre = uniform(generator, -0.25, 0.25, (count, 2))[owner]  # where on the product the camera looks
    free = torch.where(full, 0.5, looseness)[:, None]
    return Instances(
        owner=owner,
        turn=designs.turn[owner] * draw(),
        zoom=designs.zoom[owner] * (1 + 0.5 * looseness * draw()),
        shift=centre * (designs.zoom[owner] < 0.8)[:, None] + free * draw(2),
        tile_shift=draw(2, 2),
        pattern_phase=draw(2) * torch.where(full, 3.14, looseness * 3)[:, None],
        part_shift=draw(PARTS, 2) * 0.006,
        light=designs.light[owner] + 0.15 * draw(2),
        gain=(1 + 0.06 * draw(1)) * (1 + 0.015 * draw(3)),
        slope=designs.gradient[owner][:, None] * (designs.light[owner] + 0.4 * draw(2)),
    )


def repeat_instances(instances: Instances, rows: Tensor) -> Instances:
    """Pick some images' instances."""
    return Instances(**{name: value[rows] for name, value in vars(instances).items()})
