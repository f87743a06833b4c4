"""
Turn a checkpoint of open_clip into a CLIPModel folder of transformers.

    python -m hub.open_clip ViT-B-16-plus-240 --weights vit_b_16_plus_240-laion400m_e32-699c4b84.pt --output out/clip

The folder goes to `--clip`. ViT-B-16-plus-240 is the paper's backbone and is published for open_clip alone.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from modeling_anople.runtime import start_logging

from .checkpoints import ARCHITECTURES, clip_config, convert_weights, load_tokenizer, read_architecture, read_weights


logger = logging.getLogger(__name__)

NEIGHBOR = "open_clip_config.json"  # what open_clip's repositories keep beside the weights
E31_NOTE = (  # open_clip 3.3.0, pretrained.py
    " open_clip gives its tags `laion400m_e31` and `laion400m_e32` the same Hub repository, which holds e31; e32 is the "
    "release file `vit_b_16_plus_240-laion400m_e32-699c4b84.pt`."
)
DTYPES = ("float32", "float16", "bfloat16")


def convert(
    name: str,
    weights: Path,
    output: Path,
    *,
    tokenizer: str | None = None,
    dtype: str = "float32",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    source: str | None = None,
    license: str | None = None,
) -> Path:
    """
    Write weights, config, tokenizer, image processor and a card, all or nothing.

    Args:
        name: open_clip's name of the architecture, or a model config in its JSON format. The activation follows from it
            alone: the weights do not tell.
        weights: checkpoint file, see [`read_weights`].
        output: new or empty folder.
        tokenizer: see [`load_tokenizer`].
        dtype: of the weights written.
        mean, std: of the pixels, three each; by default those of `open_clip_config.json` beside the weights, or OpenAI's.
        source, license: what the card says of the weights; nothing is guessed.

    Returns:
        `output`, a folder for `CLIPModel.from_pretrained` and `--clip`.

    Raises:
        ValueError: if anything does not fit, naming it and the remedy.
    """
    weights, output = Path(weights), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already: choose another --output, or remove it.")
    # all that may be refused comes first; nothing is written before every part is there
    model = read_architecture(name)
    content = read_weights(weights)
    digest = check_digest(weights)
    preprocessing = check_neighbor(weights, name, model)
    config = clip_config(model)
    converted = convert_weights(content, config)
    text = config.text_config
    words = load_tokenizer(tokenizer, vocab_size=text.vocab_size, max_length=text.max_position_embeddings)
    images = make_image_processor(
        config.vision_config.image_size,
        mean=mean or preprocessing.get("mean") or OPENAI_CLIP_MEAN,
        std=std or preprocessing.get("std") or OPENAI_CLIP_STD,
    )
    # made by the loader that will read the folder, in the dtype asked for
    clip = CLIPModel.from_pretrained(None, config=config, state_dict=converted, dtype=getattr(torch, dtype))
    card = make_card(name, config, images, weights=weights, digest=digest, source=source, license=license)
    write(output, clip, words, images, card)
    return output


def check_digest(weights: Path) -> str:
    """
    Hash the file (SHA-256); open_clip's releases carry the first eight digits in their name.

    Raises:
        ValueError: if the name tells of another content.
    """
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    told = re.search(r"-([0-9a-f]{8})\.pth?$", weights.name)
    if told and not digest.startswith(told[1]):
        raise ValueError(
            f"{weights} has the SHA-256 {digest}, and its name promises one that begins with {told[1]}: download it again, "
            "or rename it if it is meant to be another file."
        )
    return digest


def check_neighbor(weights: Path, name: str, model: dict) -> dict:
    """
    Compare with the `open_clip_config.json` beside the weights, if there is one.

    Returns:
        Its `preprocess_cfg`, or nothing.

    Raises:
        ValueError: if it describes another architecture; the activation can be told from there alone.
    """
    path = weights.parent / NEIGHBOR
    if not path.is_file():
        return {}
    try:
        neighbor = json.loads(path.read_text(encoding="utf-8"))
        theirs, preprocessing = neighbor["model_cfg"], neighbor.get("preprocess_cfg") or {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): download it again, or remove it.") from error
    ours = {"quick_gelu": False, **model}
    differing = sorted(key for key, value in {"quick_gelu": False, **theirs}.items() if ours.get(key) != value)
    if differing:
        fitting = [known for known, entries in ARCHITECTURES.items() if entries == theirs]
        remedy = f"convert as {fitting[0]}" if fitting else f"give {path} as the name"
        raise ValueError(f"{name} is not what {path} describes (they differ in {', '.join(differing)}): {remedy}.")
    return preprocessing


def make_image_processor(side: int, *, mean: Sequence[float], std: Sequence[float]) -> CLIPImageProcessorPil:
    """Describe open_clip's preprocessing: shorter side to `side` (bicubic), center crop, mean and deviation."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std need three numbers each, std above 0; got {list(mean)} and {list(std)}.")
    crop = {"height": side, "width": side}
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop, image_mean=[*mean], image_std=[*std])


def make_card(
    name: str,
    config: CLIPConfig,
    images: CLIPImageProcessorPil,
    *,
    weights: Path,
    digest: str,
    source: str | None,
    license: str | None,
) -> str:
    """Write down where the weights come from and what was done to them; what was not told is not made up."""
    vision = config.vision_config
    header = ModelCardData(
        library_name="transformers", tags=["clip", "open_clip"], **({"license": license} if license else {})
    )
    activation = {"gelu": "exact GELU", "quick_gelu": "quick GELU"}[vision.hidden_act]
    return f"""---
{header.to_yaml()}
---

# {Path(name).stem} of open_clip as a CLIPModel

Converted by `python -m hub.open_clip` of AnoPLe. The numbers are those of the source; names and layout are those of transformers.

| | |
|---|---|
| source | {source or "not stated"} |
| file | `{weights.name}`, {weights.stat().st_size:,} bytes |
| SHA-256 | `{digest}` |
| license of the weights | {license or "see the source"} |
| architecture | {Path(name).stem}, {vision.hidden_size} x {vision.num_hidden_layers}, patches of {vision.patch_size} pixels |
| input | {vision.image_size} x {vision.image_size} pixels, mean {list(images.image_mean)}, deviation {list(images.image_std)} |
| activation | {activation} |

The hash tells which weights these are; a file's name may not.{E31_NOTE if name == "ViT-B-16-plus-240" else ""}
"""


def write(folder: Path, clip: CLIPModel, tokenizer: CLIPTokenizer, images: CLIPImageProcessorPil, card: str) -> None:
    """Write the parts into a folder of their own that takes its name at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f"{folder.name}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    clip.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    images.save_pretrained(unfinished)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        folder.rmdir()  # empty
    os.replace(unfinished, folder)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Convert one checkpoint and return its folder; what does not fit ends in one line that says so."""
    start_logging()
    parser = argparse.ArgumentParser(prog="python -m hub.open_clip", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", help=f"{', '.join(ARCHITECTURES)}, or a model config in open_clip's JSON format.")
    parser.add_argument(
        "--weights", type=Path, required=True, help="Checkpoint file: .safetensors, .pt, .pth or .bin."
    )
    parser.add_argument("--output", type=Path, required=True, help="New or empty folder.")
    parser.add_argument("--tokenizer", help="Folder or Hub id with CLIP's tokenizer, or bpe_simple_vocab_16e6.txt.gz.")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="Of the weights written.")
    parser.add_argument("--mean", type=float, nargs=3, help="Of the pixels; by default as published with the weights.")
    parser.add_argument("--std", type=float, nargs=3, help="Of the pixels; by default as published with the weights.")
    parser.add_argument("--source", help="Where the weights are from, for the card.")
    parser.add_argument("--license", help="License of the weights, for the card.")
    options = vars(parser.parse_args(arguments))
    try:
        folder = convert(options.pop("name"), options.pop("weights"), options.pop("output"), **options)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    logger.info("The CLIP is in %s: give it to --clip.", folder)
    return folder


if __name__ == "__main__":
    main()
