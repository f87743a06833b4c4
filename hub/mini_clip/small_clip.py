"""A small CLIP with random weights, built on the spot from a fixed seed: for tests, and as the row that training must beat."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def byte_tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer whose pieces are single bytes, so that any name in any script becomes tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    # byte-level BPE writes bytes that do not print as the characters from 256 on
    pieces = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]
    words = ["<|startoftext|>", *pieces, *(f"{piece}</w>" for piece in pieces), "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def small_clip_config(tokenizer: CLIPTokenizer, **vision) -> CLIPConfig:
    """Describe the small CLIP: 96 x 4 over 10 x 10 patches of 160 pixels, text 64 x 2. `vision` overrides the tower."""
    vision_config = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 160,
        "patch_size": 16,
        "hidden_act": "gelu",
        "projection_dim": 64,
        **vision,
    }
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "projection_dim": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=64)


def write_small_clip(folder: Path, *, seed: int = 0, **vision) -> Path:
    """
    Write the small CLIP as an ordinary checkpoint folder: weights, tokenizer and image processor.

    Args:
        folder: where to; a folder that already holds one is left as it is.
        seed: of the random weights; torch's global generator is left as it was.
        vision: overrides of the vision tower's config.
    """
    folder = Path(folder)
    if (folder / "preprocessor_config.json").exists():
        return folder
    tokenizer = byte_tokenizer()
    write_clip(folder, small_clip_config(tokenizer, **vision), tokenizer, seed=seed)
    return folder


def write_clip(folder: Path, config: CLIPConfig, tokenizer: CLIPTokenizer, *, seed: int = 0) -> None:
    """Write a CLIP with random weights as an ordinary checkpoint folder; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = config.vision_config.image_size
    CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False).save_pretrained(folder)


__all__ = ["byte_tokenizer", "small_clip_config", "write_clip", "write_small_clip"]
