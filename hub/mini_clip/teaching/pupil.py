"""The pupil: a CLIP whose vision tower learns, the heads that only teaching needs, and what it is asked for."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel


class Pupil(nn.Module):
    """
    A CLIP's vision tower beside a linear head for each pair of (pupil's block, teacher's block).

    Args:
        clip: its text tower, projections and last norm are not learned.
        blocks: of the pupil, counted from 1, one for each of the teacher's, in their order.
        width: of the teacher's features.

    Raises:
        ValueError: for blocks that the tower lacks.
    """

    def __init__(self, clip: CLIPModel, *, blocks: tuple[int, ...], width: int):
        super().__init__()
        depth, own = clip.config.vision_config.num_hidden_layers, clip.config.vision_config.hidden_size
        if not blocks or not 1 <= min(blocks) <= max(blocks) <= depth:
            raise ValueError(f"the pupil has blocks 1 to {depth}; got {list(blocks)}.")
        self.clip, self.blocks = clip, blocks
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(own), nn.Linear(own, width)) for _ in blocks)
        clip.requires_grad_(False)
        tower = clip.vision_model
        for part in (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[: max(blocks)]):
            part.requires_grad_(True)

    def streams(self, pixels: Tensor) -> list[Tensor]:
        """Return the residual stream of pictures (images, 3, 224, 224) from 0 to 1 after each of `blocks`, without the
        first token: (images, patches, width)."""
        tower = self.clip.vision_model
        states = tower.pre_layrnorm(tower.embeddings((pixels - 0.5) / 0.5))
        taken = {}
        for number, layer in enumerate(tower.encoder.layers[: max(self.blocks)], start=1):
            states = layer(states, attention_mask=None)
            if number in self.blocks:
                taken[number] = states[:, 1:].float()
        return [taken[block] for block in self.blocks]

    def forward(self, pixels: Tensor, wanted: Tensor, places: Tensor, *, relation: float) -> dict[str, Tensor]:
        """
        Compare the tower with the teacher.

        Args:
            pixels: (images, 3, 224, 224) from 0 to 1.
            wanted: the teacher's unit vectors (images, blocks, patches, width).
            places: which of all the batch's patches (images x patches, flattened) are compared with each other.
            relation: weight of that comparison.

        Returns:
            `regression`: 1 - cosine of a linear head on the normed stream, and `relation`: weighted squared difference
            of the two matrices of cosines between patches, which are what a memory bank compares; both mean over pairs.
        """
        regression, related = [], []
        for number, (head, stream) in enumerate(zip(self.heads, self.streams(pixels), strict=True)):
            aim = wanted[:, number]
            regression.append(1 - F.cosine_similarity(head(stream).float(), aim, dim=-1).mean())
            own, known = (F.normalize(part.flatten(0, 1)[places], dim=-1) for part in (stream, aim))
            related.append((own @ own.T - known @ known.T).square().mean())
        return {
            "regression": sum(regression) / len(regression),
            "relation": relation * sum(related) / len(related),
        }


def weight_groups(pupil: Pupil) -> list[dict]:
    """Part the weights that learn into groups for `AveragedMuon`: matrices of blocks, and all else."""
    groups = [{"params": [], "orthogonal": flag, "ratio": ratio} for flag, ratio in ((True, 1.0), (False, 0.3))]
    for name, weight in pupil.named_parameters():
        if weight.requires_grad:
            groups[0 if ".layers." in name and weight.ndim == 2 else 1]["params"].append(weight)
    return groups


__all__ = ["Pupil", "weight_groups"]
