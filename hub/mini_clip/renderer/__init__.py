"""
The renderer that pretraining learns from: products, their instances and their defects, whole batches at once in torch.

It is deliberately not the one that draws the products of the quick start (`modeling_anople.data.drawn_products`). Those are
what the pretrained CLIP is judged on, so its training must never have seen how they are drawn; do not unify the two.

An episode is a few good photographs and a defective one of each of several products, with exact masks.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .defects import draw_defects, draw_kinds
from .designs import draw_designs, draw_instances, pick_instances
from .scenes import compress, draw_scene, expose, focus, sense
from .textures import TileBank, chance


VISIBLE = 8 / 255  # a smaller change of color does not stand out


@dataclass
class Episode:
    """
    Photographs of several products.

    Args:
        pixels: (products, photographs, 3, size, size) from 0 to 1; the last photograph of each product is defective.
        masks: (products, size, size) bool, where the defect shows in it; possibly nowhere.
        nouns, captions: of each product.
        defects: the kind of each product's defect.
    """

    pixels: Tensor
    masks: Tensor
    nouns: list[str]
    captions: list[str]
    defects: list[str]


class Renderer:
    """Draw episodes from a generator. The same state draws the same episodes."""

    def __init__(self, generator: Generator, *, per_kind: int = 8):
        self.generator = generator
        self.bank = TileBank(generator, per_kind=per_kind)

    def draw(self, products: int, *, normals: int = 3, size: int = 128) -> Episode:
        """Draw `normals` good photographs and a defective one of each of `products` new products."""
        generator = self.generator
        # all photographs are drawn good; the last of each product is then drawn once more with its defect
        designs = draw_designs(products, generator, self.bank)
        shots = draw_instances(designs, normals + 1, generator)
        sound = draw_scene(designs, shots, self.bank, size)
        last = torch.arange(normals, len(shots.owner), normals + 1)
        kinds, last_shots = draw_kinds(products, generator), pick_instances(shots, last)
        changes, overlay = draw_defects(designs, last_shots, sound.cover[last], self.bank, kinds, generator)
        spoiled = draw_scene(designs, last_shots, self.bank, size, changes).color
        spoiled = torch.lerp(spoiled, overlay.color, overlay.cover[:, None])
        # the mask is where a defect changes what the camera sees, before its noise; what cannot be seen is no defect
        blur = designs.blur[shots.owner]
        pictures = focus(expose(sound.color, shots.gain), blur)
        spoiled = focus(expose(spoiled, last_shots.gain), blur[last])
        masks = (spoiled - pictures[last]).abs().amax(1) > VISIBLE
        pictures = pictures.index_copy(0, last, spoiled)
        pictures = sense(pictures, designs.noise[shots.owner], generator)
        # half of the products come as JPEG, so that its blocks are nothing new
        packed = chance(generator, 0.5, (products,)).repeat_interleave(normals + 1)
        pictures[packed] = compress(pictures[packed], generator)
        return Episode(
            pixels=pictures.unflatten(0, (products, normals + 1)),
            masks=masks,
            nouns=designs.nouns,
            captions=designs.captions,
            defects=kinds,
        )
