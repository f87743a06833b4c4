"""What the embedded CLIP learns from drawn episodes: dense losses, and one over whole pictures.

`EpisodeLearner` holds the CLIP and the small heads that only training needs.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from .patch_statistics import PATCH, TARGETS, patch_statistics, weigh, with_neighbors
from .renderer import Episode


RELATED = 640  # patches compared with each other in a step


COVERED = 0.04  # share of a patch from which on a defect counts as in it


@dataclass
class LossWeights:
    """Weights of the losses; 0 leaves one out."""

    episodic: float = field(default=0.5, metadata={"help": "Weight of the memory's own rule on drawn defects."})
    dense_text: float = field(default=0.5, metadata={"help": "Weight of normal and abnormal texts on patches."})
    relation: float = field(default=8.0, metadata={"help": "Weight of the geometry of Gabor and color statistics."})
    regression: float = field(default=0.5, metadata={"help": "Weight of Gabor and color statistics themselves."})
    contrast: float = field(default=0.1, metadata={"help": "Weight of pictures against captions."})


class EpisodeLearner(nn.Module):
    """A CLIP, the heads of its losses and the losses."""

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer, *, layers: tuple[int, ...]):
        super().__init__()
        self.clip, self.tokenizer, self.layers = clip, tokenizer, layers
        width = clip.config.vision_config.hidden_size
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, TARGETS)) for _ in layers)
        self.line = nn.Parameter(torch.tensor([0.1, 3.0]))  # where patches part, and log of how sharply
        self.text_scale = nn.Parameter(torch.tensor(2.3))
        self.register_buffer("target_mean", torch.zeros(TARGETS))
        self.register_buffer("target_spread", torch.ones(TARGETS))

    def fit_targets(self, pixels: Tensor) -> None:
        """Standardize the hand-made targets over pictures (images, 3, side, side)."""
        statistics = patch_statistics(pixels).flatten(0, 1)
        self.target_mean, self.target_spread = statistics.mean(0), statistics.std(0) + 1e-6

    def encode(self, pixels: Tensor, corner: tuple[int, int] = (0, 0)) -> tuple[list[Tensor], Tensor, Tensor]:
        """
        Encode pictures (images, 3, side, side) from -1 to 1.

        A picture smaller than the tower's own lies at `corner` (row, column) of its grid, in patches, so that neighbors
        are as far apart at every size.

        Returns:
            The taps (images, patches, width) of each layer, joint patches (images, patches, joint width) and pooled
            (images, joint width), both of unit length.
        """
        vision = self.clip.vision_model
        grid, places = self.clip.config.vision_config.image_size // PATCH, vision.embeddings.position_embedding.weight
        rows, columns = (size // PATCH for size in pixels.shape[2:])
        window = places[1:].unflatten(0, (grid, grid))[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
        patches = vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2) + window.flatten(0, 1)
        first = (vision.embeddings.class_embedding + places[0]).expand(len(patches), 1, -1)
        states = vision.pre_layrnorm(torch.cat([first, patches], dim=1))
        taps = []
        for number, layer in enumerate(vision.encoder.layers):
            states = layer(states, attention_mask=None)
            if number in self.layers:
                taps.append(states[:, 1:])
        joint = F.normalize(self.clip.visual_projection(vision.post_layernorm(states)), dim=-1)
        return taps, joint[:, 1:], joint[:, 0]

    def embed(self, texts: list[str]) -> Tensor:
        """Embed texts as unit vectors (texts, width)."""
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.line.device)
        return F.normalize(self.clip.get_text_features(**tokens).pooler_output, dim=-1)

    def forward(
        self, episode: Episode, weights: LossWeights, banks: int, corner: tuple[int, int] = (0, 0)
    ) -> dict[str, Tensor]:
        """Measure the weighted losses of an episode; the first `banks` photographs of each product are its memory."""
        products, shots = episode.pixels.shape[:2]
        pixels = episode.pixels.flatten(0, 1)
        taps, patches, pooled = self.encode((pixels - 0.5) / 0.5, corner)
        # a patch is as defective as the mask covers it
        covered = F.avg_pool2d(episode.masks[:, None].float(), PATCH).flatten(1)  # (products, patches)
        losses = {}
        if weights.episodic:
            features = [F.normalize(tap, dim=-1).unflatten(0, (products, shots)) for tap in taps]
            losses["episodic"] = weights.episodic * self.episodic_loss(features, covered, banks)
        if weights.regression or weights.relation:
            local = weigh(patch_statistics(pixels), self.target_mean, self.target_spread)
            # the first layer learns each patch's own statistics, deeper ones those of its surroundings
            targets = [local, *[with_neighbors(local)] * (len(taps) - 1)]
        if weights.regression:
            errors = [
                F.smooth_l1_loss(head(tap), aim) for head, tap, aim in zip(self.heads, taps, targets, strict=True)
            ]
            losses["regression"] = weights.regression * sum(errors) / len(errors)
        if weights.relation:
            errors = [relation_loss(tap, aim) for tap, aim in zip(taps, targets, strict=True)]
            losses["relation"] = weights.relation * sum(errors) / len(errors)
        if weights.dense_text:
            losses["dense_text"] = weights.dense_text * self.text_loss(
                patches.unflatten(0, (products, shots)), pooled.unflatten(0, (products, shots)), covered, episode.nouns
            )
        if weights.contrast:
            # one good picture of each product against all captions, both ways
            sound = pooled.unflatten(0, (products, shots))[:, 0]
            logits = sound @ self.embed(episode.captions).T * self.text_scale.exp()
            own = torch.arange(products, device=logits.device)
            losses["contrast"] = weights.contrast * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        return losses

    def episodic_loss(self, features: list[Tensor], covered: Tensor, banks: int) -> Tensor:
        """
        Apply the memory's own rule: a patch is as anomalous as it is far from the nearest normal one.

        Args:
            features: per layer unit vectors (products, photographs, patches, width); the last photograph is defective.
            covered: (products, patches) share of each of its patches that the defect covers.
        """
        distances = []
        for tap in features:
            memory = tap[:, :banks].flatten(1, 2)
            queries = tap[:, banks:].flatten(1, 2)
            nearest = (queries @ memory.mT).amax(-1)
            distances.append(((1 - nearest) / 2).unflatten(1, (-1, covered.shape[1])))
        # layers are judged together, as the memory does, and each alone, so that none rests on the others
        alone = [self._judge(distance, covered) for distance in distances]
        return self._judge(sum(distances) / len(distances), covered) + 0.5 * sum(alone) / len(alone)

    def _judge(self, distance: Tensor, covered: Tensor) -> Tensor:
        """Balanced cross entropy of patches (products, photographs, patches), and the order of pictures' maxima."""
        line, sharpness = self.line[0], self.line[1].exp()
        logits = (distance - line) * sharpness
        positive = covered > COVERED
        clear = positive | (covered == 0)  # a patch that is hardly touched is neither
        spoiled, sound = logits[:, -1], logits[:, :-1]
        positives = F.softplus(-spoiled[positive]).mean() if positive.any() else 0 * logits.sum()
        negatives = torch.cat([F.softplus(spoiled[clear & ~positive]), F.softplus(sound).flatten()])
        # in a picture whose defect shows, its worst patch must stand above the worst of any good picture
        shown = positive.any(1)
        worst = torch.where(positive, spoiled, -1e4).amax(1)
        best = sound.amax(2).amax(1)
        order = F.softplus((best - worst)[shown]).mean() if shown.any() else 0 * logits.sum()
        # the image score is a maximum: the few highest good patches weigh more than their number
        hardest = negatives.topk(max(1, len(negatives) // 50)).values.mean()
        return positives + negatives.mean() + 0.5 * hardest + order

    def text_loss(self, patches: Tensor, pooled: Tensor, covered: Tensor, nouns: list[str]) -> Tensor:
        """Tell normal from abnormal patches and pictures by "a photo of a X" and "a photo of an abnormal X"."""
        texts = [f"a photo of {article} {noun}." for article in ("a", "an abnormal") for noun in nouns]
        normal, abnormal = self.embed(texts).chunk(2)  # (products, width)
        direction = (abnormal - normal) * self.text_scale.exp()
        logits = torch.einsum("psnd,pd->psn", patches, direction)
        positive = covered > COVERED
        spoiled = F.binary_cross_entropy_with_logits(logits[:, -1], positive.float(), reduction="none")
        sound = F.softplus(logits[:, :-1]).mean()
        shown = spoiled[positive].mean() if positive.any() else 0 * logits.sum()
        whole = torch.einsum("psd,pd->ps", pooled, direction)
        whole_labels = torch.zeros_like(whole)
        whole_labels[:, -1] = positive.any(1).float()
        # of the usual four pictures one is defective, hence the weight
        images = F.binary_cross_entropy_with_logits(whole, whole_labels, pos_weight=whole.new_tensor(3.0))
        rest = spoiled[~positive].mean() if not positive.all() else 0 * logits.sum()
        return shown + rest + sound + 0.3 * images


def relation_loss(features: Tensor, targets: Tensor) -> Tensor:
    """
    Ask that cosines between patches equal those between their hand-made targets, evenly spread patches taken.

    Args:
        features, targets: (images, patches, width), widths may differ.
    """
    step = max(1, features.shape[0] * features.shape[1] // RELATED) | 1  # odd, so that it visits all places
    alike, wanted = (
        vectors @ vectors.T
        for vectors in (F.normalize(layer.flatten(0, 1)[::step], dim=-1) for layer in (features, targets))
    )
    return F.smooth_l1_loss(alike, wanted, beta=0.05)
