"""From designs and instances to pictures: light and matter, then the camera."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .designs import PARTS, Designs, Instances
from .textures import TileBank, log_uniform


# --- Light and matter: from designs and instances to pictures, before the camera ---


def per_image(values: Tensor) -> Tensor:
    """Bring (images,) to (images, 1, 1)."""
    return values[:, None, None]


@dataclass
class Changes:
    """What defects change while pictures are drawn."""

    shift: Tensor  # (images, 2, height, width) added to the places looked up
    calm: Tensor  # (images, height, width) factor of pattern and texture
    swap: Tensor  # (images, height, width) 1 where the ground's texture takes the body's place
    part_there: Tensor  # (images, PARTS) factor
    part_shift: Tensor  # (images, PARTS, 2)
    part_tint: Tensor  # (images, PARTS, 3) added
    lost: Tensor  # (images, height, width) 1 where repeated parts and pattern are gone
    cut: Tensor  # (images, height, width) 1 where the body is gone


@dataclass
class Place:
    """Where each pixel lies on the product: (images, height, width), and a pixel's side (images, 1, 1)."""

    u: Tensor
    v: Tensor
    radius: Tensor
    angle: Tensor
    pixel: Tensor


@dataclass
class Picture:
    """Linear colors (images, 3, height, width) and the body's cover (images, height, width)."""

    color: Tensor
    cover: Tensor


def frame(size: int) -> tuple[Tensor, Tensor]:
    """Return x and y (size, size), -1 to 1 over the frame."""
    steps = (torch.arange(size) + 0.5) * 2 / size - 1
    return steps.expand(size, size), steps[:, None].expand(size, size)


def _outline(u: Tensor, v: Tensor, size: Tensor, corner: Tensor) -> Tensor:
    """Signed distance to a rounded box, whose `corner` 0 is sharp; from 0.9 on to an ellipse, near enough."""
    ellipse = corner > 0.9
    stretch = per_image(torch.where(ellipse, size[:, 0] / size[:, 1], 1.0))
    radius = torch.where(ellipse, size[:, 1], corner * size.amin(-1))
    half_u, half_v = (per_image(torch.where(ellipse, 0.0, size[:, axis] - radius)) for axis in (0, 1))
    over_u, over_v = (u / stretch).abs().sub_(half_u), v.abs().sub_(half_v)
    inner = torch.maximum(over_u, over_v).clamp_(max=0)
    return torch.hypot(over_u.clamp_(min=0), over_v.clamp_(min=0)).add_(inner).sub_(per_image(radius))


def _edge(distance: Tensor, pixel: Tensor) -> Tensor:
    """Soft cover of the inside of an outline, half a pixel wide."""
    return (0.5 - distance / pixel).clamp_(0, 1)


def _place(shot: Instances, size: int, changes: Changes | None) -> Place:
    x, y = frame(size)
    cosine, sine, zoom = per_image(shot.turn.cos()), per_image(shot.turn.sin()), per_image(shot.zoom)
    x, y = x * zoom, y * zoom
    if changes is not None:
        x, y = x + changes.shift[:, 0], y + changes.shift[:, 1]
    u = x * cosine + y * sine + per_image(shot.shift[:, 0])
    v = y * cosine - x * sine + per_image(shot.shift[:, 1])
    return Place(u, v, torch.hypot(u, v), torch.atan2(v, u), zoom * (2 / size))


def _pattern(designs: Designs, shot: Instances, place: Place) -> Tensor:
    """Regular pattern of about unit amplitude."""
    angle, waves = designs.pattern_angle[shot.owner], designs.pattern_waves[shot.owner] * 3.14
    cosine, sine = per_image(angle.cos()), per_image(angle.sin())
    u, v = place.u * cosine + place.v * sine, place.v * cosine - place.u * sine
    a, b = (
        (field * per_image(waves[:, axis]) + per_image(shot.pattern_phase[:, axis])).sin_()
        for axis, field in enumerate((u, v))
    )
    weights = designs.pattern[shot.owner]
    mixed = a * per_image(weights[:, 0]) + b * per_image(weights[:, 1]) + (a * b).mul_(per_image(weights[:, 2]))
    mixed += (torch.maximum(a, b) - 0.4).mul_(per_image(weights[:, 3]))
    return mixed.mul_(per_image(designs.sharpness[shot.owner])).tanh_()


def _textures(designs: Designs, shot: Instances, bank: TileBank, place: Place) -> list[Tensor]:
    """Look up the random textures of body and ground."""
    scale = designs.tile_scale[shot.owner]
    return [
        bank.look_up(
            designs.tiles[shot.owner, use],
            place.u * per_image(scale[:, use]) + per_image(shot.tile_shift[:, use, 0]),
            place.v * per_image(scale[:, use]) + per_image(shot.tile_shift[:, use, 1]),
        )
        for use in (0, 1)
    ]


def _cover(designs: Designs, shot: Instances, place: Place, pattern: Tensor, changes: Changes | None) -> Tensor:
    """Soft cover of the body: its outline, a ring's hole, the holes of its pattern, and what a defect cuts off."""
    owner = shot.owner
    teeth, ring = designs.teeth[owner], per_image(designs.ring[owner])
    body = _outline(place.u, place.v, designs.size[owner], designs.corner[owner])
    body = body + (place.angle * per_image(teeth[:, 0])).cos_().mul_(per_image(teeth[:, 1]))
    cover = _edge(torch.maximum(body, -body - 2 * ring), place.pixel)
    cover = cover * (1 - per_image(designs.see_through[owner]) * (1 - (pattern * 2 + 0.5).clamp(0, 1)))
    return cover if changes is None else cover * (1 - changes.cut)


def _part(designs: Designs, shot: Instances, number: int, place: Place, changes: Changes | None) -> Tensor:
    """Signed distance to one part, in whichever way it is repeated."""
    owner = shot.owner
    center = designs.part_place[owner, number] + shot.part_shift[:, number]
    if changes is not None:
        center = center + changes.part_shift[:, number]
    u, v = place.u - per_image(center[:, 0]), place.v - per_image(center[:, 1])
    repeat, pitch = designs.part_repeat[owner, number], designs.part_pitch[owner, number]
    # in rows: fold the plane into one cell of the grid
    rows = (repeat == 1).nonzero()[:, 0]
    if len(rows):
        step = per_image(pitch[rows])
        for field in (u, v):
            field[rows] -= (field[rows] / step).round_().clamp_(-3, 3) * step
    # in a circle: fold all sectors into one
    circle = (repeat == 2).nonzero()[:, 0]
    if len(circle):
        step = per_image(6.2832 / pitch[circle])
        angle = place.angle[circle] - (place.angle[circle] / step).round_() * step
        distance = per_image(center[circle].norm(dim=-1).clamp(min=0.15))
        u[circle], v[circle] = place.radius[circle] * angle.cos() - distance, place.radius[circle] * angle.sin()
    turn = designs.part_angle[owner, number]
    cosine, sine = per_image(turn.cos()), per_image(turn.sin())
    u, v = u * cosine + v * sine, v * cosine - u * sine
    distance = _outline(u, v, designs.part_size[owner, number], designs.part_corner[owner, number])
    ring = per_image(designs.part_ring[owner, number])
    return torch.where(ring < 1, distance.abs() - ring, distance)


def _lay_parts(
    designs: Designs, shot: Instances, place: Place, surface: Tensor, height: Tensor, changes: Changes | None
) -> tuple[Tensor, Tensor]:
    """Paint all parts over a surface (images, 3, height, width) and its relief (images, height, width)."""
    for number in range(PARTS):
        there, color = designs.part_there[shot.owner, number], designs.part_color[shot.owner, number]
        if changes is not None:
            there = there * changes.part_there[:, number]
            color = (color + changes.part_tint[:, number]).clamp(0, 1)
        if not there.any():
            continue
        inside = _edge(_part(designs, shot, number, place, changes), place.pixel) * per_image(there)
        if changes is not None:
            repeated = designs.part_repeat[shot.owner, number] > 0
            inside = inside * (1 - changes.lost * per_image(repeated.float()))
        surface = torch.lerp(surface, color[:, :, None, None], inside[:, None])
        height = height + inside * per_image(designs.part_height[shot.owner, number])
    return surface, height


def draw_scene(
    designs: Designs, shot: Instances, bank: TileBank, size: int, changes: Changes | None = None
) -> Picture:
    """Draw the instances `shot` at (size, size) pixels, with the `changes` that defects make."""
    owner, place = shot.owner, _place(shot, size, changes)
    pattern, (texture, ground) = _pattern(designs, shot, place), _textures(designs, shot, bank, place)
    if changes is not None:
        texture = torch.lerp(texture, -2 * ground, changes.swap) * changes.calm
        pattern = pattern * changes.calm * (1 - changes.lost) - changes.lost
    # outline first: what lies outside shows the ground, whatever is painted
    cover = _cover(designs, shot, place, pattern, changes)
    rough, colors, contrast = designs.roughness[owner], designs.colors[owner], per_image(designs.contrast[owner])
    texture = texture * per_image(rough[:, 0])
    # two colors mixed by the pattern, and a relief of texture and pattern for the light to fall on
    mix = (pattern * 0.5 + 0.5) * contrast
    surface = torch.lerp(colors[:, 1, :, None, None], colors[:, 2, :, None, None], mix[:, None])
    height = (texture * 4 + pattern * contrast) * per_image(designs.relief[owner])
    surface, height = _lay_parts(designs, shot, place, surface, height, changes)
    surface = surface * (1 + texture)[:, None]
    backdrop = colors[:, 0, :, None, None] * (1 + ground * per_image(rough[:, 1]))[:, None]
    color = torch.lerp(backdrop, surface, cover[:, None])
    height = height * cover + cover * 0.03
    return Picture(color * _shading(height, shot, place.pixel)[:, None], cover)


def _shading(height: Tensor, shot: Instances, pixel: Tensor) -> Tensor:
    """Light (images, height, width) on a relief from one side, and its fall over the frame."""
    x, y = frame(height.shape[-1])
    slope_x, slope_y = torch.zeros_like(height), torch.zeros_like(height)
    slope_x[:, :, 1:] = (height[:, :, 1:] - height[:, :, :-1]) / pixel
    slope_y[:, 1:] = (height[:, 1:] - height[:, :-1]) / pixel
    light = shot.light
    lit = (slope_x * per_image(light[:, 0]) + slope_y * per_image(light[:, 1])).clamp_(-0.6, 0.8)
    return lit.add_(1).add_(x * per_image(shot.slope[:, 0])).add_(y * per_image(shot.slope[:, 1]))


# --- The camera: exposure, focus, sensor noise and JPEG ---


def brightness(pictures: Tensor) -> Tensor:
    """Return the luma (images, height, width) of pictures (images, 3, height, width), after ITU-R BT.601."""
    return (pictures * pictures.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)


def expose(color: Tensor, gain: Tensor) -> Tensor:
    """Apply gains (images, 3) to colors (images, 3, height, width)."""
    return (color * gain[:, :, None, None]).clamp_(0, 1)


def focus(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Blur each picture (images, 3, height, width) by its own Gaussian sigma (images,) in pixels, at most 1.5."""
    images, channels = pictures.shape[:2]
    steps = torch.arange(-3, 4, dtype=torch.float)
    kernel = torch.exp(-(steps**2) / (2 * sigma.clamp(min=0.15)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(pictures.reshape(1, images * channels, *pictures.shape[2:]), (3, 3, 3, 3), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=images * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=images * channels).reshape(pictures.shape)


def sense(pictures: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Add Gaussian sensor noise of sigma (images,) and quantize to 8 bits."""
    noise = torch.randn(pictures.shape, generator=generator)
    return (pictures + noise * sigma[:, None, None, None]).clamp_(0, 1).mul_(255).round_().div_(255)


# ITU-T T.81, annex K: luminance quantization
LUMINANCE = torch.tensor([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
], dtype=torch.float)  # fmt: skip


def cosine_basis(size: int) -> Tensor:
    """Orthonormal DCT-II (frequencies, places)."""
    places = (torch.arange(size) + 0.5) * math.pi / size
    basis = torch.cos(torch.arange(size)[:, None] * places) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def compress(pictures: Tensor, generator: Generator) -> Tensor:
    """Round the luminance's 8x8 cosine coefficients as JPEG of quality 50 to 95 does; sides are multiples of 8."""
    images, _, height, width = pictures.shape
    quality = log_uniform(generator, 0.1, 1.0, (images, 1, 1, 1, 1))  # factor of the quantization table
    blocks = brightness(pictures).reshape(images, height // 8, 8, width // 8, 8).transpose(2, 3)
    basis = cosine_basis(8)
    steps = LUMINANCE * quality / 255
    rounded = basis.T @ ((basis @ blocks @ basis.T) / steps).round_().mul_(steps) @ basis
    change = (rounded - blocks).transpose(2, 3).reshape(images, 1, height, width)
    return (pictures + change).clamp_(0, 1)
