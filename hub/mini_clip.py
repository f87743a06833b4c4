"""The architecture of the embedded CLIP and the weights it starts from."""

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .draughtsman.camera import cosine_basis


def mini_config(tokenizer: CLIPTokenizer, *, width: int = 192, layers: int = 6, image_size: int = 224) -> CLIPConfig:
    """Describe a CLIP of `width` x `layers` over patches of 16 pixels, with a text tower of 128 x 3."""
    shared = {"hidden_act": "gelu", "projection_dim": 128}
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "image_size": image_size,
        "patch_size": 16,
        **shared,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **shared,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)


def start_mini_clip(config: CLIPConfig, generator: torch.Generator, *, patch_start: str = "cosine") -> CLIPModel:
    """Build the CLIP; `patch_start` is `cosine` (a whitened DCT) or `random`. The generator alone decides the weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        clip = CLIPModel(config)
    vision = clip.vision_model
    with torch.no_grad():
        if patch_start == "cosine":
            weight = vision.embeddings.patch_embedding.weight
            weight.copy_(whitened_cosines(weight.shape[0], weight.shape[-1]))
        vision.embeddings.position_embedding.weight.copy_(
            0.3 * wave_positions(config.vision_config.image_size // 16, config.vision_config.hidden_size)
        )
        vision.pre_layrnorm.weight.fill_(0.5)
    return clip


def whitened_cosines(width: int, patch: int) -> Tensor:
    """
    Return patch filters (width, 3, patch, patch): the lowest cosines of brightness and of two colour differences.

    Three quarters see brightness. Photographs' amplitudes fall like 1 / frequency, so each filter is multiplied by its
    frequency, which gives all of them about the same variance.
    """
    basis = cosine_basis(patch)
    planes = torch.einsum("ay,bx->abyx", basis, basis)
    radius = torch.hypot(torch.arange(patch)[:, None].float(), torch.arange(patch)[None].float())
    order = radius.flatten().argsort(stable=True)
    filters = planes.flatten(0, 1)[order] * (0.15 + 0.35 * radius.flatten()[order])[:, None, None]
    brightness, colour = 3 * width // 4, width // 8
    mixes = torch.tensor([[0.33, 0.34, 0.33], [0.7, -0.7, 0.0], [0.35, 0.35, -0.7]])
    chosen = [
        filters[:count, None] * mix[:, None, None]
        for count, mix in zip((brightness, colour, width - brightness - colour), mixes, strict=True)
    ]
    return torch.cat(chosen)


def wave_positions(grid: int, width: int) -> Tensor:
    """Return sines and cosines (1 + grid x grid, width) of row and column; the class token's row is 0."""
    steps = torch.arange(grid).float()
    rates = 10 ** (-torch.arange(width // 4) / (width // 4)) * 1.5
    waves = torch.cat([(steps[:, None] * rates).sin(), (steps[:, None] * rates).cos()], dim=1)  # (grid, width / 2)
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    places = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros(1, width), places])


def split_weights(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Part the weights into matrices of transformer blocks and all others."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    inside = [".layers." in name and weight.ndim == 2 for name, weight in named]
    return (
        [weight for (_, weight), block in zip(named, inside, strict=True) if block],
        [weight for (_, weight), block in zip(named, inside, strict=True) if not block],
    )
