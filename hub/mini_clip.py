"""The architecture of the embedded CLIP."""

import copy
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .patch_features import SIDE
from .patch_targets import PATCH


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
