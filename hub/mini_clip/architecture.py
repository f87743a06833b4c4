"""
The embedded CLIP: its shape, its first weights, and how it is averaged and written.

It begins with a patch embedding of cosines, and a first perceptron of wave amplitudes and colors. From random weights,
patches of the same texture differ by the phase of its waves, and short training does not remove enough of that from the
nearest-neighbor distances that the memory measures (`hub/results/loss_ablations.md`). So the first perceptron begins with
units that overlook phase: of a wave's even and odd filter, with both signs, gelu(a) + gelu(-a) is near |a|; and
gelu(a) - gelu(-a) = a passes colors on. All of it is learned further.
"""

import copy
import math
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .features import SIDE
from .patch_statistics import PATCH, gabor_pair
from .renderer.scenes import cosine_basis


# --- Shape, averages and checkpoints ---


MEAN, STD = [0.5] * 3, [0.5] * 3  # pixels from 0 to 1 become -1 to 1


def mini_config(tokenizer: CLIPTokenizer, *, width: int = 192, layers: int = 6, image_size: int = SIDE) -> CLIPConfig:
    """Describe a CLIP of `width` x `layers` over patches of 16 pixels, with a text tower of 128 x 3."""
    shared = {"hidden_act": "gelu", "projection_dim": 128}
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "image_size": image_size,
        "patch_size": PATCH,
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


def new_mini_clip(config: CLIPConfig, generator: torch.Generator) -> CLIPModel:
    """Build the CLIP with transformers' own first weights; the generator alone decides them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return CLIPModel(config)


def weight_groups(model: nn.Module, *, early: float, others: float = 0.3) -> list[dict]:
    """
    Part a learner's weights into groups for `AveragedMuon`.

    Matrices of transformer blocks go to Muon, all else to AdamW at `others` of its rate. The patch embedding and the
    first two vision blocks, which begin with something to lose, learn at `early` of the others' rates.
    """
    groups = {
        (orthogonal, slow): {"params": [], "orthogonal": orthogonal, "ratio": (1 if orthogonal else others) * share}
        for orthogonal in (True, False)
        for slow, share in ((True, early), (False, 1.0))
    }
    slow_parts = (
        ".vision_model.embeddings.",
        ".vision_model.pre_",
        *(f".vision_model.encoder.layers.{n}." for n in (0, 1)),
    )
    for name, weight in model.named_parameters():
        slow = any(part in f".{name}" for part in slow_parts)
        groups[".layers." in name and weight.ndim == 2, slow]["params"].append(weight)
    return list(groups.values())


def blend(clip: CLIPModel, first: dict[str, torch.Tensor], share: float) -> CLIPModel:
    """
    Average a CLIP with its first weights: `share` of these, the rest of its own (Wortsman et al., "Robust fine-tuning of
    zero-shot models", CVPR 2022, section 3).

    What training gave for some products it took from others: in between is better than either on products of neither kind.

    Returns:
        Another CLIP.
    """
    blended = copy.deepcopy(clip)
    blended.load_state_dict(
        {
            name: torch.lerp(weight, first[name].to(weight), share) if weight.is_floating_point() else weight
            for name, weight in clip.state_dict().items()
        }
    )
    return blended


def write_checkpoint(folder: Path, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Write an ordinary half-precision checkpoint with tokenizer and image processor, in place of another."""
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    copy.deepcopy(clip).half().save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=MEAN, image_std=STD).save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


# --- First weights: a patch embedding of cosines, and a first perceptron of wave amplitudes and colors ---


WAVES = ((3.0, 4), (4.24, 3), (6.0, 3), (8.5, 2), (12.0, 2), (17.0, 1))  # wavelength in pixels, places along a side
ANGLES = 4
STEADY = 6.0  # length of the constant part of every token; weaker patches than that keep their strength after a norm
COLOR_WEIGHT = 4.0
LEVELS = 3  # coarsest cosines of each color that are passed on: its mean, and how it changes across and down
FIRST = 0.03  # strength of the patch embedding in the residual stream, where it would drown the amplitudes
LATER = 0.05  # what blocks add at first, as a share of transformers' own start


@torch.no_grad()
def start_by_hand(clip: CLIPModel, pixels: Tensor, generator: torch.Generator) -> None:
    """
    Set the vision tower's first weights in place.

    Args:
        pixels: pictures (images, 3, side, side) from -1 to 1, at most as large as the tower's own, over which the first
            perceptron's outputs are brought to mean 0 and one spread.
        generator: of the directions of the outputs.
    """
    vision, width = clip.vision_model, clip.config.vision_config.hidden_size
    filters = vision.embeddings.patch_embedding.weight
    filters.copy_(whitened_cosines(width, filters.shape[-1]))
    # positions are weak beside the content, and a constant part keeps the norm from lifting flat patches
    grid = clip.config.vision_config.image_size // filters.shape[-1]
    places = 0.05 * wave_positions(grid, width)
    unused = color_rows(width)[1:, 6:].flatten()  # color differences finer than any unit reads
    places[1:, unused] += STEADY / len(unused) ** 0.5
    vision.embeddings.position_embedding.weight.copy_(places)
    vision.pre_layrnorm.weight.fill_(FIRST)
    # blocks add little at first, so that what the first perceptron says reaches all layers
    for layer in vision.encoder.layers:
        layer.self_attn.out_proj.weight.mul_(LATER)
        layer.mlp.fc2.weight.mul_(LATER)
    _start_perceptron(clip, pixels, generator)


def _start_perceptron(clip: CLIPModel, pixels: Tensor, generator: torch.Generator) -> None:
    """Fill the first perceptron with pairs of units of opposite sign, and scale its outputs to the pictures."""
    vision, block = clip.vision_model, clip.vision_model.encoder.layers[0]
    width, filters = clip.config.vision_config.hidden_size, vision.embeddings.patch_embedding.weight
    rows, owners, signs, weights = _units(filters)
    units, outputs = 2 * len(rows), len(weights)
    if units > block.mlp.fc1.out_features or outputs > width:
        raise ValueError(f"{units} units for {outputs} outputs do not fit into {block.mlp}: take a wider tower.")
    paired = torch.stack([rows, -rows], dim=1).flatten(0, 1)
    block.mlp.fc1.weight[:units], block.mlp.fc1.bias[:units] = paired, 0
    # see what the units answer on pictures, to bring each output to mean 0 and one spread
    patches = vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    window = vision.embeddings.position_embedding.weight[1 : 1 + patches.shape[1]]  # nearly the same everywhere
    hidden = block.layer_norm2(vision.pre_layrnorm(patches + window))
    seen = nn.functional.gelu(hidden @ paired.T).flatten(0, 1)  # (patches, units)
    pool = torch.zeros(units, outputs)
    pool[torch.arange(units), owners.repeat_interleave(2)] = torch.stack([torch.ones_like(signs), signs], 1).flatten()
    answers = seen @ pool
    directions = torch.linalg.qr(torch.randn(width, outputs, generator=generator)).Q * weights / answers.std(0)
    block.mlp.fc2.weight[:, :units] = directions @ pool.T
    block.mlp.fc2.bias.copy_(-directions @ answers.mean(0))


def _units(filters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Lay out the units as filters over the patch embedding.

    Returns:
        Rows (pairs, width); the output (pairs,) each pair adds to; the sign (pairs,) of its second unit, 1 for an
        amplitude and -1 for a color; and the weight (outputs,) of each output.
    """
    width, _, side, _ = filters.shape
    back = torch.linalg.pinv(filters.flatten(1))  # (pixels, width)
    mix = torch.tensor([0.33, 0.34, 0.33])[:, None, None]
    rows, owners, signs = [], [], []
    for number, (wavelength, along) in enumerate(WAVES):
        steps = (torch.arange(along) + 0.5) * side / along
        for angle in range(ANGLES):
            for center in torch.cartesian_prod(steps, steps).tolist():
                for wave in gabor_pair(side, wavelength, angle * math.pi / ANGLES, center):
                    rows.append((mix * wave).flatten() @ back)
                    owners.append(number * ANGLES + angle)
                    signs.append(1.0)
    waves = len(WAVES) * ANGLES
    for number, line in enumerate(color_rows(width)[1:, 1:6]):  # how much either color difference varies
        rows += list(torch.eye(width)[line])
        owners += [waves + number] * len(line)
        signs += [1.0] * len(line)
    rows = [1.5 * row / row.norm() * (width / 192) ** 0.5 for row in rows]
    for number, place in enumerate(color_rows(width)[:, :LEVELS].T.flatten().tolist()):
        rows.append(torch.eye(width)[place])
        owners.append(waves + 2 + number)
        signs.append(-1.0)
    weights = torch.ones(waves + 2 + 3 * LEVELS)
    weights[waves + 2 : waves + 5] = COLOR_WEIGHT
    return torch.stack(rows), torch.tensor(owners), torch.tensor(signs), weights


def color_rows(width: int) -> Tensor:
    """Return which rows of the patch embedding see brightness and the two color differences, coarse to fine.

    (3, width / 8); of brightness only the first ones.
    """
    steps = torch.arange(width // 8)
    return torch.stack([steps, 3 * width // 4 + steps, 7 * width // 8 + steps])


def whitened_cosines(width: int, patch: int) -> Tensor:
    """
    Return patch filters (width, 3, patch, patch): the lowest cosines of brightness and of two color differences.

    Three quarters see brightness. Photographs' amplitudes fall like 1 / frequency, so each filter is multiplied by its
    frequency, which gives all of them about the same variance.
    """
    if width > 4 * patch**2 // 3:
        raise ValueError(
            f"width is {width}; {patch}-pixel patches give {patch**2} cosines: take at most {4 * patch**2 // 3}."
        )
    basis = cosine_basis(patch)
    planes = torch.einsum("ay,bx->abyx", basis, basis)
    steps = torch.arange(patch).float()
    radius = torch.hypot(steps[:, None], steps[None]).flatten()
    order = radius.argsort(stable=True)
    filters = planes.flatten(0, 1)[order] * (0.15 + 0.35 * radius[order])[:, None, None]
    mixes = torch.tensor([[0.33, 0.34, 0.33], [0.7, -0.7, 0.0], [0.35, 0.35, -0.7]])
    counts = (3 * width // 4, width // 8, width // 8)
    return torch.cat([filters[:count, None] * mix[:, None, None] for count, mix in zip(counts, mixes, strict=True)])


def wave_positions(grid: int, width: int) -> Tensor:
    """Return sines and cosines (1 + grid x grid, width) of row and column; the class token's row is 0."""
    steps = torch.arange(grid).float()
    rates = 10 ** (-torch.arange(width // 4) / (width // 4)) * 1.5
    waves = torch.cat([(steps[:, None] * rates).sin(), (steps[:, None] * rates).cos()], dim=1)  # (grid, width / 2)
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    return torch.cat([torch.zeros(1, width), torch.cat([rows, columns], dim=2).flatten(0, 1)])
