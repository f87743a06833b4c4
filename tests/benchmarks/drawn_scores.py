"""Raw scores of drawn products' photographs against any choice of good ones, from one pass of the vision tower."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hub.draughtsman.episodes import Draughtsman
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.data.drawn_products import DEFECTS, PRODUCTS, draw_defect, draw_product
from modeling_anople.scoring_anople import harmonic_mean
from modeling_anople.tiling_anople import disturbed_copies


@dataclass
class DrawnProduct:
    """
    A product's photographs: `pool` good ones to learn from, each followed by its disturbed copies, and test ones.

    Args:
        texts: (photographs,) text scores.
        distances: (layers, photographs, pool, patches) distance of each patch to the nearest of a good photograph's.
        owner: (photographs,) number of the good photograph in the pool that a row is, or is a copy of; -1 for tests.
        defective: (photographs,) whether a test photograph has a defect.
    """

    texts: Tensor
    distances: Tensor
    owner: Tensor
    defective: Tensor

    def scores(self, rows: Tensor, known: list[int]) -> np.ndarray:
        """Score rows against these good photographs: memory and text by their harmonic mean, as the model does."""
        peaks = self.distances[:, rows][:, :, known].amin(2).mean(0).amax(1)
        return harmonic_mean(self.texts[rows], peaks).double().numpy()


@torch.no_grad()
def measure(model: AnoPLeModel, pool: Tensor, tests: Tensor, defective: Tensor) -> DrawnProduct:
    """Encode (photographs, 3, side, side) pixel values of good photographs and of tests, and compare all with the pool."""
    copies = torch.stack(
        [torch.cat([each[None], disturbed_copies(each)]) for each in pool]
    )  # (pool, 5, 3, side, side)
    pixels = torch.cat([copies.flatten(0, 1), tests])
    features, texts = [], []
    for part in pixels.split(32):
        encoded = model.encode_views(part)
        taps = model.memory_taps(part, encoded)
        features.append(F.normalize(torch.stack([taps[layer] for layer in model.memory.layers]), dim=-1))
        logits = F.normalize(encoded.pooled, dim=-1) @ model.class_embeddings[0].T / model.config.temperature
        texts.append(logits.softmax(1)[:, 1])
    features = torch.cat(features, dim=1)
    bank = features[:, : copies.shape[0] * copies.shape[1] : copies.shape[1]]
    distances = torch.stack(
        [torch.stack([_nearest(own, bank[layer]) for own in features[layer]]) for layer in range(len(features))]
    )
    owner = torch.arange(len(pool)).repeat_interleave(copies.shape[1])
    owner = torch.cat([owner, torch.full((len(tests),), -1)])
    flags = torch.cat([torch.zeros(copies.shape[0] * copies.shape[1], dtype=torch.bool), defective])
    return DrawnProduct(torch.cat(texts), distances, owner, flags)


def _nearest(own: Tensor, bank: Tensor) -> Tensor:
    """Distances (pool, patches) of one photograph's patches (patches, width) to a bank (pool, patches, width)."""
    return (1 - torch.einsum("pd,nqd->npq", own, bank).amax(-1)).clamp(min=0) / 2


def draughtsman_products(count: int, *, pool: int, tests: int, seed: int) -> list[DrawnProduct]:
    """Measure designs of the draughtsman: `tests` good test photographs and a defective one of each."""
    draughtsman = Draughtsman(torch.Generator().manual_seed(seed))
    products = []
    for _ in range(count):
        episode = draughtsman.draw(1, normals=pool + tests, size=128)
        noun = episode.nouns[0]
        model, processor = AnoPLeModel.from_clip("mini", [noun]), AnoPLeProcessor.from_clip("mini", [noun])
        pictures = [picture.permute(1, 2, 0).mul(255).byte().numpy() for picture in episode.pixels[0].clamp(0, 1)]
        pixels = processor(pictures)["pixel_values"]
        defective = torch.tensor([False] * tests + [True])
        if not episode.masks[0].any():
            pixels, defective = pixels[:-1], defective[:-1]
        products.append(measure(model, pixels[:pool], pixels[pool:], defective))
    return products


def quickstart_products(*, pool: int, tests: int, seed: int) -> list[DrawnProduct]:
    """Measure the drawn products of the quick start: `tests` good test photographs and as many defective ones of each."""
    products = []
    for number, name in enumerate(PRODUCTS):
        generator = np.random.default_rng([seed, number])
        good = [draw_product(name, generator)[0] for _ in range(pool + tests)]
        kinds = list(DEFECTS)
        bad = [
            draw_defect(kinds[each % len(kinds)], *draw_product(name, generator), generator)[0]
            for each in range(tests)
        ]
        model, processor = AnoPLeModel.from_clip("mini", [name]), AnoPLeProcessor.from_clip("mini", [name])
        pixels = processor(good + bad)["pixel_values"]
        products.append(measure(model, pixels[:pool], pixels[pool:], torch.tensor([False] * tests + [True] * tests)))
    return products
