"""
Which rule sets the line: `python -m hub.benchmarks.line_rules`, on drawn products alone.

Each rule sees a few good photographs of a product and sets a line; other good photographs above it are false alarms,
defective ones above it detections. The constants of our rule are estimated on designs of the renderer of pretraining; the
products of the quick start, on which the embedded CLIP was not trained, check it. No photograph of anything real takes part.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, special, stats
from torch import Tensor
from torch.nn import functional as F

from hub.mini_clip.renderer import Renderer
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.calibration_anople import PRIOR_DEGREES, PRIOR_SPREAD, fit_threshold
from modeling_anople.data.drawn_products import DEFECTS, PRODUCTS, draw_defect, draw_product
from modeling_anople.scoring_anople import harmonic_mean
from modeling_anople.tiling_anople import jittered_copies

from .measuring import RESULTS


# --- Raw scores of drawn products' photographs against any choice of good ones, from one pass of the vision tower ---


@dataclass
class DrawnProduct:
    """
    A product's photographs: `pool` good ones to learn from, each followed by its jittered copies, and test ones.

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
    copies = torch.stack([torch.cat([each[None], jittered_copies(each)]) for each in pool])  # (pool, 5, 3, side, side)
    pixels = torch.cat([copies.flatten(0, 1), tests])
    features, texts = [], []
    for part in pixels.split(32):
        encoded = model.encode_image(part)
        features.append(model.memory_features(part, encoded))
        text = model.products.text_embeddings([0]).expand(len(part), -1, -1)
        texts.append(model.score_text(F.normalize(encoded.pooled, dim=-1), text))
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


def rendered_products(count: int, *, pool: int, tests: int, seed: int) -> list[DrawnProduct]:
    """Measure designs of the renderer: `tests` good test photographs and a defective one of each."""
    renderer = Renderer(torch.Generator().manual_seed(seed))
    products = []
    for _ in range(count):
        episode = renderer.draw(1, normals=pool + tests, size=128)
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


# --- Rules, each drawing a line through the same scores ---


class Draw(NamedTuple):
    """Scores of one choice of good photographs: theirs, their copies', other good ones' and defective ones'."""

    scores: list[float]
    copies: list[float]
    good: np.ndarray
    defective: np.ndarray


def draw(product: DrawnProduct, shots: int, generator: np.random.Generator) -> Draw:
    """Choose good photographs and score all others against them; each of them against the others, or a lone one itself."""
    pool = product.distances.shape[2]
    known = sorted(generator.choice(pool, shots, replace=False).tolist())
    own, copies = [], []
    for number in known:
        rows = (product.owner == number).nonzero()[:, 0]
        first, *others = product.scores(rows, [each for each in known if each != number] or [number]).tolist()
        own += [first] if shots > 1 else []
        copies += others
    tests = (product.owner == -1).nonzero()[:, 0]
    scores, defective = product.scores(tests, known), product.defective[tests].numpy()
    return Draw(own, copies, scores[~defective], scores[defective])


def _student(scores: list[float], rate: float) -> float:
    logs = np.log(scores)
    reach = stats.t.ppf(1 - rate, len(logs) - 1) * math.sqrt(1 + 1 / len(logs))
    return math.exp(logs.mean() + reach * max(logs.std(ddof=1), 0.05))


def _gumbel(scores: list[float], rate: float) -> float:
    """Our extrapolation with the quantiles of an extreme value distribution in the place of normal ones."""
    logs, degrees = np.log(scores), PRIOR_DEGREES + len(scores) - 1
    spread = math.sqrt((PRIOR_DEGREES * PRIOR_SPREAD**2 + (len(logs) - 1) * logs.var(ddof=1)) / degrees)
    shape = stats.gumbel_r(scale=math.sqrt(6) / math.pi, loc=-np.euler_gamma * math.sqrt(6) / math.pi)
    reach = stats.t.ppf(1 - rate, degrees) * shape.ppf(1 - rate) / stats.norm.ppf(1 - rate)
    return max(math.exp(logs.mean() + reach * spread * math.sqrt(1 + 1 / len(logs))), max(scores))


def _ours(one: Draw, rate: float) -> float:
    copies = [] if one.scores else one.copies
    jittered = {"jittered_image_scores": copies, "jittered_map_maxima": copies}
    return fit_threshold(one.scores, one.scores, max_false_alarm_rate=rate, **jittered).image_threshold


RULES: dict[str, Callable[[Draw, float], float | None]] = {
    "ours: ranks, or t with a shrunk spread": _ours,
    "the same with a Gumbel tail": lambda one, rate: _gumbel(one.scores, rate) if one.scores else None,
    "t, photographs alone": lambda one, rate: _student(one.scores, rate) if one.scores else None,
    "t, copies counted (before)": lambda one, rate: _student(one.scores + one.copies, rate),
    "largest": lambda one, rate: max(one.scores) if one.scores else None,
    "mean + 3 sigma": lambda one, rate: (
        statistics.fmean(one.scores) + 3 * statistics.stdev(one.scores) if one.scores else None
    ),
}


def to_table(products: list[DrawnProduct], shots: list[int], rate: float, draws: int) -> str:
    """Write for each rule and number of photographs: false alarms of all products / of the worst one / detections."""
    drawn = {
        count: [
            [draw(product, count, np.random.default_rng([count, number, each])) for each in range(draws)]
            for number, product in enumerate(products)
        ]
        for count in shots
    }
    rows = [f"| rule | {' | '.join(f'{count} shown' for count in shots)} |", "|---" * (1 + len(shots)) + "|"]
    for name, rule in RULES.items():
        cells = []
        for count in shots:
            alarms, found = [], []
            for product in drawn[count]:
                lines = [rule(one, rate) for one in product]
                if None in lines:
                    break
                alarms.append(np.mean([np.mean(one.good > line) for one, line in zip(product, lines, strict=True)]))
                if len(product[0].defective):
                    hits = [np.mean(one.defective > line) for one, line in zip(product, lines, strict=True)]
                    found.append(np.mean(hits))
            figures = (np.mean(alarms), max(alarms), np.mean(found)) if found else ()
            cells.append(" / ".join(f"{100 * figure:.1f}" for figure in figures) or "n/a")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def estimates(products: list[DrawnProduct], draws: int) -> str:
    """
    Estimate the constants of [`fit_threshold`], by the moments of log variances (Smyth 2004, section 6.2), and say how the
    spread within a photograph's copies goes with that between photographs.
    """
    between, within, lone = [], [], []
    for number, product in enumerate(products):
        several = [draw(product, 4, np.random.default_rng([4, number, each])) for each in range(draws)]
        between.append(np.mean([np.log(one.good).var(ddof=1) for one in several]))
        copies = [np.log(one.copies).reshape(4, -1).var(axis=1, ddof=1).mean() for one in several]
        within.append(np.mean(copies))
        for each in range(draws):
            alone = draw(product, 1, np.random.default_rng([1, number, each]))
            lone += (np.log(alone.good) - np.log(alone.copies).mean()).tolist()
    half = (len(several[0].good) - 1) / 2
    logs = np.log(between) - special.digamma(half) + math.log(half)
    extra = max(logs.var(ddof=1) - special.polygamma(1, half), 1e-3)
    degrees = 2 * optimize.brentq(lambda value: special.polygamma(1, value) - extra, 0.05, 1e4)
    spread = math.exp((logs.mean() + special.digamma(degrees / 2) - math.log(degrees / 2)) / 2)
    spreads = [(np.quantile(lone, 1 - rate) - np.mean(lone)) / stats.t.ppf(1 - rate, 4) for rate in (0.1, 0.05, 0.02)]
    correlation = np.corrcoef(np.log(within), np.log(between))[0, 1]
    return (
        f"s0 {spread:.3f}, d0 {degrees:.1f}; a lone photograph's shift {np.mean(lone):.2f} and spread "
        f"{', '.join(f'{each:.2f}' for each in spreads)} (from the 10, 5 and 2 % quantiles); correlation of the spread within "
        f"a photograph's copies with that between photographs {correlation:.2f}"
    )


def main() -> None:
    """Draw, measure, print and keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--designs", type=int, default=20, help="Products of the renderer.")
    parser.add_argument("--pool", type=int, default=24, help="Good photographs to choose from.")
    parser.add_argument("--tests", type=int, default=30, help="Good test photographs, and defective ones.")
    parser.add_argument("--draws", type=int, default=20, help="Choices of the photographs shown, for each product.")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 19])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.02, 0.1])
    parser.add_argument("--output", type=Path, default=RESULTS / "line_rules.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"pool": options.pool, "tests": options.tests}
    sets = {
        "designs of the renderer": rendered_products(options.designs, seed=1, **sizes),
        "products of the quick start": quickstart_products(seed=0, **sizes),
    }
    parts = [
        "# Rules for the line, on drawn products\n\n`python -m hub.benchmarks.line_rules`, on the embedded CLIP without "
        f"training, {options.draws} choices of the photographs shown for each product. Each cell: false alarms / those of "
        "the worst product / detections, percent. A design of the renderer has one defective photograph, a product of "
        f"the quick start {options.tests}."
    ]
    for title, products in sets.items():
        parts.append(f"## {len(products)} {title}\n\nEstimates: {estimates(products, options.draws)}.")
        for rate in options.rates:
            table = to_table(products, options.shots, rate, options.draws)
            parts.append(f"Budget {100 * rate:g} %:\n\n{table}")
    text = "\n\n".join(parts) + "\n"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
