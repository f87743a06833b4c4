"""
What open_clip publishes: architectures, files of weights with their names, and CLIP's vocabulary.

A CLIP with two plain transformer towers holds the same numbers in open_clip and in transformers. Only names differ, the
two projections are transposed, and open_clip keeps query, key and value of a block in one matrix (paper.md 4.5).
"""

import gzip
import json
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode


# --- The checkpoint format of open_clip: its architectures, its files and the names of its weights ---


def _model(embed_dim: int, text_width: int, *, quick_gelu: bool = False, **vision) -> dict:
    heads = text_width // 64
    text = {"context_length": 77, "vocab_size": 49408, "width": text_width, "heads": heads, "layers": 12}
    model = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
    return {**model, "quick_gelu": True} if quick_gelu else model


def _models(name: str, embed_dim: int, text_width: int, **vision) -> dict[str, dict]:
    return {
        name: _model(embed_dim, text_width, **vision),
        f"{name}-quickgelu": _model(embed_dim, text_width, quick_gelu=True, **vision),
    }


# open_clip's own names; B/16+ was never published with quick GELU
ARCHITECTURES = {
    "ViT-B-16-plus-240": _model(640, 640, image_size=240, layers=12, width=896, patch_size=16),
    **_models("ViT-B-16", 512, 512, image_size=224, layers=12, width=768, patch_size=16),
    **_models("ViT-B-32", 512, 512, image_size=224, layers=12, width=768, patch_size=32),
    **_models("ViT-L-14", 768, 768, image_size=224, layers=24, width=1024, patch_size=14),
    **_models("ViT-L-14-336", 768, 768, image_size=336, layers=24, width=1024, patch_size=14),
}

# What transformers' CLIP can express; any other entry of a model config changes the computation.
MODEL_FIELDS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
VISION_FIELDS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
TEXT_FIELDS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}

# transformers -> open_clip, tried in this order
NAMES = {
    r"^text_model\.encoder\.layers\.": "transformer.resblocks.",
    r"^vision_model\.encoder\.layers\.": "visual.transformer.resblocks.",
    r"\.layer_norm([12])\.": r".ln_\1.",
    r"\.mlp\.fc1\.": ".mlp.c_fc.",
    r"\.mlp\.fc2\.": ".mlp.c_proj.",
    r"\.self_attn\.out_proj\.": ".attn.out_proj.",
    r"\.self_attn\.[qkv]_proj\.": ".attn.in_proj_",
    r"^text_model\.embeddings\.token_embedding": "token_embedding",
    r"^text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"^text_model\.final_layer_norm": "ln_final",
    r"^text_projection\.weight": "text_projection",
    r"^vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"^vision_model\.embeddings\.patch_embedding": "visual.conv1",
    r"^vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"^vision_model\.pre_layrnorm": "visual.ln_pre",  # sic
    r"^vision_model\.post_layernorm": "visual.ln_post",
    r"^visual_projection\.weight": "visual.proj",
}
TRANSPOSED = {"text_projection.weight", "visual_projection.weight"}
SHOWN = 6  # names in an error


def read_architecture(name: str) -> dict:
    """
    Look up a model config by open_clip's name, or read one in open_clip's JSON format.

    Raises:
        ValueError: for an unknown name, or entries that transformers' `CLIPModel` has nothing for.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if not name.endswith(".json"):
        raise ValueError(
            f"{name!r} is no architecture known here: use {', '.join(ARCHITECTURES)}, or the path of a model config in "
            "open_clip's JSON format."
        )
    try:
        model = json.loads(Path(name).read_text(encoding="utf-8"))
        model = model.get("model_cfg", model)
        found = (("", model, MODEL_FIELDS), ("vision_cfg.", model["vision_cfg"], VISION_FIELDS))
        found = (*found, ("text_cfg.", model["text_cfg"], TEXT_FIELDS))
        strange = sorted(f"{part}{field}" for part, entries, known in found for field in set(entries) - known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name} is no model config of open_clip ({error!r}): it needs embed_dim, vision_cfg and text_cfg."
        ) from error
    if strange:
        raise ValueError(
            f"{name} has {strange}, which a CLIPModel of transformers cannot express: convert another model."
        )
    return model


def clip_config(model: dict) -> CLIPConfig:
    """Describe the same CLIP to transformers; exact GELU unless the model says `quick_gelu` (paper.md 1.1, trap 1)."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    try:
        shared = {
            "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
            "projection_dim": model["embed_dim"],
            "layer_norm_eps": 1e-5,
        }
        vision_config = {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        }
        text_config = {
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
            "pad_token_id": text["vocab_size"] - 1,
        }
    except KeyError as error:
        raise ValueError(f"The model config lacks {error}: take a whole one from open_clip.") from error
    return CLIPConfig(
        text_config={**text_config, **shared},
        vision_config={**vision_config, **shared},
        projection_dim=model["embed_dim"],
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """
    Read the weights of a checkpoint file under open_clip's names.

    Reads safetensors, and `.pt` files through torch's weights-only loader, also where the weights lie in a `state_dict`
    beside other things and where names begin with `module.`.

    Raises:
        ValueError: for a file that is damaged, holds more than weights, or is a TorchScript program.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file: give the weights that you have downloaded.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise ValueError(f"{path} holds no weights by name: give a checkpoint of open_clip.")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): download it again.") from error


def _read_torch(path: Path) -> object:
    if _is_torchscript(path):
        raise ValueError(
            f"{path} is a TorchScript program, as OpenAI's original files are, and is never run here: OpenAI's weights "
            "need no conversion, use --clip openai/clip-vit-base-patch16 (or -base-patch32, -large-patch14)."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its readers raise nearly anything
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} is damaged, or holds more than weights, which is never opened here ({reason}): download it again, "
            "or take the .safetensors file of the same checkpoint."
        ) from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def convert_weights(weights: dict[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """
    Rename, cut and transpose open_clip's weights into those of a `CLIPModel` with this config.

    Raises:
        ValueError: naming the weights that are missing, unexpected or of another shape, and the architecture that would
            fit.
    """
    shapes = _shapes(config)
    if problems := _problems(weights, _expected(shapes)):
        known = {name: model for name, model in ARCHITECTURES.items() if not model.get("quick_gelu")}
        # the weights tell all of an architecture but its activation: name the one they are of
        fitting = [
            name for name, model in known.items() if not _problems(weights, _expected(_shapes(clip_config(model))))
        ]
        remedy = f"these are the weights of {fitting[0]}" if fitting else _remedy(weights)
        raise ValueError(f"The weights do not fit: {'; '.join(problems)}. Remedy: {remedy}.")
    return {name: _convert(name, weights[_source(name)]) for name in shapes}


def _shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in CLIPModel(config).state_dict().items()}


def _expected(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Turn the shapes of a `CLIPModel` into those of open_clip's weights."""
    expected = {}
    for name, shape in shapes.items():
        if name in TRANSPOSED:
            shape = shape[::-1]
        elif _part(name) is not None:
            shape = (3 * shape[0], *shape[1:])
        expected[_source(name)] = shape
    return expected


def _source(name: str) -> str:
    """Return open_clip's name of a `CLIPModel`'s weight."""
    for pattern, replacement in NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def _part(name: str) -> int | None:
    """Return which third of open_clip's in_proj a weight is: query, key, value."""
    found = re.search(r"\.self_attn\.([qkv])_proj\.", name)
    return "qkv".index(found[1]) if found else None


def _convert(name: str, weight: Tensor) -> Tensor:
    if name in TRANSPOSED:
        weight = weight.T
    elif (part := _part(name)) is not None:
        weight = weight.chunk(3)[part]
    return weight.contiguous()


def _problems(weights: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> list[str]:
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    wrong = [
        f"{name} is {tuple(weights[name].shape)} and should be {shape}"
        for name, shape in sorted(expected.items())
        if name in weights and tuple(weights[name].shape) != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    return [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]


def _some(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _remedy(weights: dict[str, Tensor]) -> str:
    if any(name.startswith("vision_model.") for name in weights):
        return "this is a CLIPModel of transformers already, give its folder to --clip"
    if any(name.startswith(("blocks.", "visual.trunk.")) for name in weights):
        return "this is an image tower of timm, take the open_clip checkpoint of the same repository"
    return "name the architecture that open_clip gives these weights"


# --- CLIP's own tokenizer from the vocabulary that open_clip ships, or from a folder that has one ---


VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
REMEDY = (
    "give --tokenizer the folder or Hub id of a model with CLIP's tokenizer (openai/clip-vit-base-patch16), or the file "
    f"{VOCABULARY} of open_clip or CLIP; or install open_clip, which ships it: pip install --no-deps open_clip_torch"
)


def load_tokenizer(source: str | None, *, vocab_size: int, max_length: int) -> CLIPTokenizer:
    """
    Find CLIP's tokenizer.

    Ids are those of open_clip for the text as it stands. What open_clip mends beforehand with ftfy (curly quotes, wrongly
    decoded letters, HTML entities, ligatures, letters of double width), transformers' tokenizer leaves alone, as with every
    CLIP on the Hub; a capital sigma that ends a Greek word becomes another small one.

    Args:
        source: folder or Hub id with a tokenizer, or the vocabulary file; by default that of an installed open_clip.
        vocab_size: tokens that the text tower knows; start and end are the last two.
        max_length: tokens that it reads.

    Raises:
        ValueError: if there is none, or it is another.
    """
    file = _installed_vocabulary() if source is None else Path(source)
    if file is None:
        raise ValueError(f"No vocabulary for the tokenizer, and open_clip is not installed: {REMEDY}.")
    if file.is_file():
        tokenizer = read_vocabulary(file, vocab_size=vocab_size, max_length=max_length)
    else:
        try:
            tokenizer = CLIPTokenizer.from_pretrained(source)
        except Exception as error:  # readers of tokenizers have errors of their own
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{source} gives no CLIP tokenizer ({reason}): {REMEDY}.") from error
    found = (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    if found != (vocab_size, vocab_size - 2, vocab_size - 1):
        raise ValueError(
            f"The tokenizer of {source or file} has {found[0]} tokens with start {found[1]} and end {found[2]}, and the "
            f"weights need {vocab_size} with {vocab_size - 2} and {vocab_size - 1}: {REMEDY}."
        )
    tokenizer.model_max_length = max_length
    return tokenizer


def _installed_vocabulary() -> Path | None:
    """Find the file without importing open_clip, which would want torchvision."""
    package = find_spec("open_clip")
    places = package.submodule_search_locations if package else None
    files = [Path(place) / VOCABULARY for place in places or []]
    return next((file for file in files if file.is_file()), None)


def read_vocabulary(file: Path, *, vocab_size: int, max_length: int) -> CLIPTokenizer:
    """
    Build the tokenizer from the list of merges that CLIP was published with.

    The ids are: 256 bytes, the same bytes at the end of a word, the merges in their order, start, end.

    Raises:
        ValueError: if the file is another one or holds fewer merges than `vocab_size` needs.
    """
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a vocabulary ({error}): {REMEDY}.") from error
    head, *rows = text.split("\n")
    pieces = list(bytes_to_unicode().values())
    pieces += [f"{piece}</w>" for piece in pieces]
    merges = [tuple(row.split()) for row in rows[: max(0, vocab_size - 2 - len(pieces))]]
    complete = len(pieces) + len(merges) + 2 == vocab_size
    if "#version" not in head or not complete or any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{file} is no list of merges for {vocab_size} tokens: {REMEDY}.")
    words = [*pieces, *("".join(merge) for merge in merges), START, END]
    vocab = {word: number for number, word in enumerate(words)}
    try:
        return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)
    except Exception as error:  # of tokenizers, for a merge of pieces that do not exist
        raise ValueError(f"{file} is no list of merges ({error}): {REMEDY}.") from error


__all__ = [
    "ARCHITECTURES",
    "clip_config",
    "convert_weights",
    "load_tokenizer",
    "read_architecture",
    "read_vocabulary",
    "read_weights",
]
