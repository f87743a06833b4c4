"""Defects: where they lie, what they change while a picture is drawn, and what they lay over it."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .designs import PARTS, Designs, Instances
from .scenes import Changes, frame, per_image
from .textures import TileBank, log_uniform, uniform


KINDS = {  # name -> how often
    "scratch": 3, "crack": 2, "thread": 2, "stain": 3, "contamination": 3, "hole": 2, "texture": 2, "turned": 2,
    "bent": 2, "worn": 2, "missing part": 2, "wrong color": 2, "moved part": 2, "broken pattern": 2, "chip": 3,
}  # fmt: skip
LINES = ("scratch", "crack", "thread")
POINTS = 7  # of a line


@dataclass
class Overlay:
    """Color laid over the finished picture: (images, 3, height, width) and its cover (images, height, width)."""

    color: Tensor
    cover: Tensor


def draw_kinds(count: int, generator: Generator) -> list[str]:
    """Draw the kinds of `count` defects."""
    weights = torch.tensor(list(KINDS.values()), dtype=torch.float)
    names = list(KINDS)
    return [names[i] for i in torch.multinomial(weights, count, replacement=True, generator=generator)]


def _is(kinds: list[str], *names: str) -> Tensor:
    return torch.tensor([float(kind in names) for kind in kinds])


def _places(cover: Tensor, on_edge: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pick a place (images,) on each body, or on its edge, in frame coordinates."""
    size = cover.shape[-1]
    inner = -torch.nn.functional.max_pool2d(-cover[:, None], 5, stride=1, padding=2)[:, 0]
    weight = torch.where(per_image(on_edge).bool(), cover - inner, cover).flatten(1) + 1e-5
    spot = torch.multinomial(weight, 1, generator=generator)[:, 0]
    return (spot % size + 0.5) * 2 / size - 1, (spot // size + 0.5) * 2 / size - 1


def _blob(x: Tensor, y: Tensor, radius: Tensor, wobble: Tensor, generator: Generator) -> Tensor:
    """Soft cover of a blob with an uneven edge around the origin."""
    stretch = per_image(log_uniform(generator, 0.6, 1.7, radius.shape))
    turn = uniform(generator, 0, 3.14, radius.shape)
    cosine, sine = per_image(turn.cos()), per_image(turn.sin())
    distance = torch.hypot((x * cosine + y * sine) * stretch, (y * cosine - x * sine) / stretch)
    edge = per_image(radius) * (1 + 0.35 * wobble)
    return ((edge - distance) * (x.shape[-1] / 3) + 0.5).clamp_(0, 1)


def _line(x: Tensor, y: Tensor, length: Tensor, width: Tensor, bend: Tensor, generator: Generator) -> Tensor:
    """Soft cover of a line of POINTS points that starts at the origin; `width` in pixels."""
    count, size = len(length), x.shape[-1]
    heading = uniform(generator, 0, 6.28, (count, 1)) + (
        bend[:, None] * torch.randn(count, POINTS - 1, generator=generator)
    ).cumsum(1)
    steps = torch.stack([heading.cos(), heading.sin()], -1) * (length / (POINTS - 1))[:, None, None]
    points = torch.cat([torch.zeros(count, 1, 2), steps.cumsum(1)], dim=1)
    nearest = torch.full_like(x, 9.0)
    for start, step in zip(points[:, :-1].unbind(1), steps.unbind(1), strict=True):
        along_x, along_y = x - per_image(start[:, 0]), y - per_image(start[:, 1])
        share = along_x * per_image(step[:, 0]) + along_y * per_image(step[:, 1])
        share = (share / per_image((step**2).sum(-1))).clamp_(0, 1)
        away = (along_x - share * per_image(step[:, 0])) ** 2 + (along_y - share * per_image(step[:, 1])) ** 2
        nearest = torch.minimum(nearest, away)
    return (per_image(width) / 2 + 0.5 - nearest.sqrt_() * (size / 2)).clamp_(0, 1)


def draw_defects(
    designs: Designs, shot: Instances, cover: Tensor, bank: TileBank, kinds: list[str], generator: Generator
) -> tuple[Changes, Overlay]:
    """Draw a defect of each kind on the instances `shot`, somewhere on their bodies' `cover` (images, height, width)."""
    count, size = len(kinds), cover.shape[-1]
    center = _places(cover, _is(kinds, "chip"), generator)
    # every shape is drawn around the defect's own place, for all pictures at once; kinds choose among them below
    x, y = frame(size)
    x, y = x - per_image(center[0]), y - per_image(center[1])
    wobble = bank.look_up(
        bank.pick(generator, [("cloud",)] * count), x / 3 + per_image(shot.tile_shift[:, 0, 1]), y / 3
    )
    radius = log_uniform(generator, 0.05, 0.3, (count,))
    blob = _blob(x, y, radius, wobble, generator)
    thread = _is(kinds, "thread")
    line = _line(
        x, y,
        log_uniform(generator, 0.15, 1.2, (count,)) * (1 + thread),
        log_uniform(generator, 0.7, 3.5, (count,)) * size / 224,
        0.1 + 0.5 * torch.rand(count, generator=generator) * (1 + thread),
        generator,
    )  # fmt: skip
    changes = _changes(designs, shot, kinds, (blob, x, y, radius), generator)
    return changes, _overlay(designs, shot, kinds, blob, line, bank, (x, y), generator)


def _changes(
    designs: Designs, shot: Instances, kinds: list[str], region: tuple[Tensor, ...], generator: Generator
) -> Changes:
    """Collect what the kinds change in the drawing itself."""
    blob, x, y, radius = region
    count = len(kinds)
    reach = per_image(radius)
    near = torch.exp(-(x**2 + y**2) / (2 * reach**2))  # a smooth bump where something is bent
    turn = per_image(uniform(generator, 0.4, 2.7, (count,)) * _is(kinds, "turned")) * blob
    push = uniform(generator, -1, 1, (count, 2))
    push = push / push.norm(dim=1, keepdim=True) * (radius * uniform(generator, 0.35, 0.9, (count,)))[:, None]
    push = push * _is(kinds, "bent")[:, None]
    zoom = per_image(shot.zoom)
    shift_x = (x * turn.cos() - y * turn.sin() - x + near * per_image(push[:, 0])) * zoom
    shift_y = (x * turn.sin() + y * turn.cos() - y + near * per_image(push[:, 1])) * zoom
    # one part of each product, among those that are there, for the kinds that change a part
    there = designs.part_there[shot.owner]
    picked = torch.multinomial(there + 1e-3, 1, generator=generator)
    picked = torch.zeros(count, PARTS).scatter_(1, picked, 1.0)
    moves = uniform(generator, -0.25, 0.25, (count, 1, 2)) * _is(kinds, "moved part")[:, None, None]
    tint = uniform(generator, -0.6, 0.6, (count, 1, 3)) * _is(kinds, "wrong color")[:, None, None]
    return Changes(
        shift=torch.stack([shift_x, shift_y], dim=1),
        calm=1 - blob * per_image(_is(kinds, "worn")),
        swap=blob * per_image(_is(kinds, "texture")),
        part_there=1 - picked * _is(kinds, "missing part")[:, None],
        part_shift=picked[..., None] * moves,
        part_tint=picked[..., None] * tint,
        lost=blob * per_image(_is(kinds, "broken pattern")),
        cut=blob * per_image(_is(kinds, "chip")),
    )


def _overlay(
    designs: Designs,
    shot: Instances,
    kinds: list[str],
    blob: Tensor,
    line: Tensor,
    bank: TileBank,
    place: tuple[Tensor, Tensor],
    generator: Generator,
) -> Overlay:
    """Color what the kinds lay on top. A part that is not there cannot go missing: such pictures get a stain."""
    count, size = len(kinds), blob.shape[-1]
    partless = designs.part_there[shot.owner].sum(1) == 0
    needs_part = _is(kinds, "missing part", "wrong color", "moved part").bool()
    flat = (designs.contrast[shot.owner] < 0.05) & partless & _is(kinds, "broken pattern").bool()
    fallback = ((needs_part & partless) | flat).float()
    opaque = _is(kinds, "contamination", "hole", "crack") + _is(kinds, "thread") * 0.95
    weak = (_is(kinds, "stain") + fallback) * uniform(generator, 0.2, 0.75, (count,))
    weak = weak + _is(kinds, "scratch") * uniform(generator, 0.35, 1.0, (count,))
    on_line = _is(kinds, *LINES)
    cover = torch.where(per_image(on_line).bool(), line, blob) * per_image((opaque + weak).clamp(max=1))
    base = designs.colors[shot.owner, 1]
    foreign = torch.rand(count, 3, generator=generator)
    dark, light = base * 0.3, base + (1 - base) * 0.6
    side = torch.rand(count, 1, generator=generator)
    color = torch.where(side < 0.4, dark, torch.where(side < 0.7, light, foreign))
    color = torch.where(_is(kinds, "crack")[:, None].bool(), dark, color)
    ground = designs.colors[shot.owner, 0]
    color = torch.where(_is(kinds, "hole")[:, None].bool(), torch.where(side < 0.5, ground, dark), color)
    tiles = torch.randint(len(bank.tiles), (count,), generator=generator)
    scale = per_image(log_uniform(generator, 0.1, 0.5, (count,)))
    texture = bank.look_up(tiles, place[0] * scale, place[1] * scale)
    strength = per_image(uniform(generator, 0, 0.25, (count,)) * _is(kinds, "contamination", "stain"))
    painted = color[:, :, None, None] * (1 + texture * strength)[:, None]
    return Overlay(painted.expand(count, 3, size, size), cover)
