"""Light and matter: from designs and instances to pictures, before the camera."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .designs import PARTS, Designs, Instances
from .noise import TileBank


def per_image(values: Tensor) -> Tensor:
    """Bring (images,) to (images, 1, 1)."""
    return values[:, None, None]


@dataclass
class Changes:
    """What a defect changes while a picture is drawn; fields are (images, height, width) or absent."""

    shift: Tensor | None = None  # (images, 2, height, width) added to the places looked up
    calm: Tensor | None = None  # factor of pattern and texture
    swap: Tensor | None = None  # 1 where the ground's texture, enlarged, takes the body's place
    part_there: Tensor | None = None  # (images, PARTS) factor
    part_shift: Tensor | None = None  # (images, PARTS, 2)
    part_tint: Tensor | None = None  # (images, PARTS, 3) added
    lost: Tensor | None = None  # 1 where repeated parts and pattern are gone
    cut: Tensor | None = None  # 1 where the body is gone


def frame(size: int) -> tuple[Tensor, Tensor]:
    """Return x and y (size, size), -1 to 1 over the frame."""
    steps = (torch.arange(size) + 0.5) * 2 / size - 1
    return steps.expand(size, size), steps[:, None].expand(size, size)


def _outline(u: Tensor, v: Tensor, size: Tensor, corner: Tensor) -> Tensor:
    """Signed distance to a rounded box: `corner` 1 makes an ellipse of it (near enough), 0 a box."""
    least = size.amin(-1)
    radius = per_image(corner * least)
    stretch = per_image(torch.where(corner > 0.9, size[:, 0] / size[:, 1], 1.0))
    half_u = per_image(torch.where(corner > 0.9, size[:, 1], size[:, 0])) - radius
    half_v = per_image(size[:, 1]) - radius
    radius = torch.where(per_image(corner) > 0.9, per_image(size[:, 1]), radius)
    half_u, half_v = (torch.where(per_image(corner) > 0.9, 0.0, half) for half in (half_u, half_v))
    over_u, over_v = (u / stretch).abs().sub_(half_u), v.abs().sub_(half_v)
    inner = torch.maximum(over_u, over_v).clamp_(max=0)
    return torch.hypot(over_u.clamp_(min=0), over_v.clamp_(min=0)).add_(inner).sub_(radius)


def _edge(distance: Tensor, pixel: Tensor) -> Tensor:
    """Soft cover of the inside of an outline, half a pixel wide."""
    return (0.5 - distance / pixel).clamp_(0, 1)


def _pattern(designs: Designs, shot: Instances, u: Tensor, v: Tensor) -> Tensor:
    """Regular pattern of about unit amplitude."""
    angle, waves = designs.pattern_angle[shot.owner], designs.pattern_waves[shot.owner] * 3.14
    cosine, sine = per_image(angle.cos()), per_image(angle.sin())
    a = ((u * cosine + v * sine) * per_image(waves[:, 0]) + per_image(shot.pattern_phase[:, 0])).sin_()
    b = ((v * cosine - u * sine) * per_image(waves[:, 1]) + per_image(shot.pattern_phase[:, 1])).sin_()
    weights = designs.pattern[shot.owner]
    mixed = a * per_image(weights[:, 0]) + b * per_image(weights[:, 1]) + (a * b).mul_(per_image(weights[:, 2]))
    mixed += (torch.maximum(a, b) - 0.4).mul_(per_image(weights[:, 3]))
    return mixed.mul_(per_image(designs.sharpness[shot.owner])).tanh_()


def _part(designs: Designs, shot: Instances, number: int, place: tuple[Tensor, Tensor], polar, changes: Changes):
    """Signed distance to one part, in whichever way it is repeated."""
    owner = shot.owner
    centre = designs.part_place[owner, number] + shot.part_shift[:, number]
    if changes.part_shift is not None:
        centre = centre + changes.part_shift[:, number]
    u, v = place[0] - per_image(centre[:, 0]), place[1] - per_image(centre[:, 1])
    repeat, pitch = designs.part_repeat[owner, number], designs.part_pitch[owner, number]
    rows = (repeat == 1).nonzero()[:, 0]
    if len(rows):
        step = per_image(pitch[rows])
        for field in (u, v):
            field[rows] -= (field[rows] / step).round_().clamp_(-3, 3) * step
    circle = (repeat == 2).nonzero()[:, 0]
    if len(circle):
        radius, angle = polar[0][circle], polar[1][circle]
        step = per_image(6.2832 / pitch[circle])
        angle = angle - (angle / step).round_() * step
        distance = per_image(centre[circle].norm(dim=-1).clamp(min=0.15))
        u[circle], v[circle] = radius * angle.cos() - distance, radius * angle.sin()
    turn = designs.part_angle[owner, number]
    cosine, sine = per_image(turn.cos()), per_image(turn.sin())
    u, v = u * cosine + v * sine, v * cosine - u * sine
    distance = _outline(u, v, designs.part_size[owner, number], designs.part_corner[owner, number])
    ring = per_image(designs.part_ring[owner, number])
    return torch.where(ring < 1, distance.abs() - ring, distance)


@dataclass
class Picture:
    """Linear colours (images, 3, height, width) and the body's cover (images, height, width)."""

    colour: Tensor
    cover: Tensor


def draw_scene(
    designs: Designs, shot: Instances, bank: TileBank, size: int, changes: Changes | None = None
) -> Picture:
    """Draw the instances `shot` at (size, size) pixels, with a defect's `changes`."""
    changes = changes or Changes()
    owner = shot.owner
    x, y = frame(size)
    cosine, sine, zoom = per_image(shot.turn.cos()), per_image(shot.turn.sin()), per_image(shot.zoom)
    pixel = zoom * (2 / size)
    x, y = x * zoom, y * zoom
    if changes.shift is not None:
        x, y = x + changes.shift[:, 0], y + changes.shift[:, 1]
    u = x * cosine + y * sine + per_image(shot.shift[:, 0])
    v = y * cosine - x * sine + per_image(shot.shift[:, 1])
    polar = torch.hypot(u, v), torch.atan2(v, u)
    teeth = designs.teeth[owner]
    body = _outline(u, v, designs.size[owner], designs.corner[owner])
    body = body + (polar[1] * per_image(teeth[:, 0])).cos_().mul_(per_image(teeth[:, 1]))
    ring = per_image(designs.ring[owner])
    cover = _edge(torch.maximum(body, -body - 2 * ring), pixel)
    pattern = _pattern(designs, shot, u, v)
    scale = designs.tile_scale[owner]
    texture, ground = (
        bank.look_up(
            designs.tiles[owner, use],
            u * per_image(scale[:, use]) + per_image(shot.tile_shift[:, use, 0]),
            v * per_image(scale[:, use]) + per_image(shot.tile_shift[:, use, 1]),
        )
        for use in (0, 1)
    )
    if changes.swap is not None:
        texture = torch.lerp(texture, -2 * ground, changes.swap)
    if changes.calm is not None:
        texture, pattern = texture * changes.calm, pattern * changes.calm
    if changes.lost is not None:
        pattern = pattern * (1 - changes.lost) - changes.lost
    see_through = per_image(designs.see_through[owner])
    cover = cover * (1 - see_through * (1 - (pattern * 2 + 0.5).clamp(0, 1)))
    if changes.cut is not None:
        cover = cover * (1 - changes.cut)
    rough = designs.roughness[owner]
    colours = designs.colours[owner]
    mix = (pattern * 0.5 + 0.5) * per_image(designs.contrast[owner])
    grain = 1 + texture * per_image(rough[:, 0])
    surface = torch.lerp(colours[:, 1, :, None, None], colours[:, 2, :, None, None], mix[:, None])
    relief = per_image(designs.relief[owner])
    height = (texture * per_image(rough[:, 0] * 4) + pattern * per_image(designs.contrast[owner])) * relief
    for number in range(PARTS):
        there = designs.part_there[owner, number]
        if changes.part_there is not None:
            there = there * changes.part_there[:, number]
        if not there.any():
            continue
        inside = _edge(_part(designs, shot, number, (u, v), polar, changes), pixel) * per_image(there)
        if changes.lost is not None:
            repeated = designs.part_repeat[owner, number] > 0
            inside = inside * (1 - changes.lost * per_image(repeated.float()))
        colour = designs.part_colour[owner, number]
        if changes.part_tint is not None:
            colour = (colour + changes.part_tint[:, number]).clamp(0, 1)
        surface = torch.lerp(surface, colour[:, :, None, None], inside[:, None])
        height = height + inside * per_image(designs.part_height[owner, number])
    surface = surface * grain[:, None]
    backdrop = colours[:, 0, :, None, None] * (1 + ground * per_image(rough[:, 1]))[:, None]
    colour = torch.lerp(backdrop, surface, cover[:, None])
    height = height * cover + cover * 0.03
    return Picture(colour * _shading(height, shot, pixel)[:, None], cover)


def _shading(height: Tensor, shot: Instances, pixel: Tensor) -> Tensor:
    """Light (images, height, width) on a relief from one side, and its fall over the frame."""
    x, y = frame(height.shape[-1])
    slope_x, slope_y = torch.zeros_like(height), torch.zeros_like(height)
    slope_x[:, :, 1:] = (height[:, :, 1:] - height[:, :, :-1]) / pixel
    slope_y[:, 1:] = (height[:, 1:] - height[:, :-1]) / pixel
    light = shot.light
    lit = (slope_x * per_image(light[:, 0]) + slope_y * per_image(light[:, 1])).clamp_(-0.6, 0.8)
    return lit.add_(1).add_(x * per_image(shot.slope[:, 0])).add_(y * per_image(shot.slope[:, 1]))
