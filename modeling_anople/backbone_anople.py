"""Backbones: the CLIP, from the package, a folder or the Hub, and a second frozen tower that the memory may look through."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode, metadata_load
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import initialization as init
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import cached_file, resolve_revision

from .configuration_anople import (
    AnoPLeConfig,
    check_clip_size,
    check_encoder_numbers,
    check_encoder_size,
    patch_side,
)


MINI_CLIP = "mini"

# What `from_pretrained` of transformers takes for a name on the Hub.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token", "subfolder")


def clip_source(name: str | Path) -> str:
    """
    Turn the name of a CLIP into what transformers loads: `"mini"` into the embedded one's folder, others as they are.

    Raises:
        ValueError: for `"mini"` where only a detector's own files are at hand, not the package.
    """
    if str(name) != MINI_CLIP:
        return str(name)
    folder = Path(__file__).parent / "mini_clip"
    if not (folder / "config.json").exists():
        raise ValueError(
            "The embedded CLIP 'mini' comes with the package `anople`, not with a detector's files: install anople and "
            "import from modeling_anople, or name another CLIP."
        )
    return str(folder)


def pin_revision(source: str, hub: dict) -> dict:
    """
    Replace `revision` among the arguments for the Hub by the commit it stands for now, where that can be found out.

    Weights and tokenizer then come from one commit, and a detector can name it.

    Raises:
        ValueError: for a single word that is no folder, for which the Hub need not be asked.
    """
    if len(Path(source).parts) == 1 and not Path(source).exists():
        raise ValueError(
            f"{source} is no folder here, and a model on the Hub is named user/name; the embedded CLIP is mini."
        )
    access = {name: hub[name] for name in ("cache_dir", "token", "local_files_only") if name in hub}
    revision = resolve_revision(source, hub.get("revision"), **access)
    return {**hub, "revision": revision} if revision is not None else hub


def describe_source(
    name: str | Path | PreTrainedModel,
    clip: PreTrainedModel | None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> dict[str, str | None]:
    """
    Say where a loaded CLIP, or memory encoder, came from, without the way to a local folder.

    Args:
        name: what the user called it, or the model itself.
        clip: the loaded model; `None` where only the name is at hand.
        revision: what [`pin_revision`] found.
        subfolder: of a Hub id.

    Returns:
        `kind` (`embedded`, `hub`, `folder`, or `model` for one that was never read from anywhere), `name`, and for a
        Hub id the commit as `revision`, where it is known, and `subfolder`, where there is one.
    """
    place = str(name if isinstance(name, (str, Path)) else clip.name_or_path)
    if place in (MINI_CLIP, str(Path(__file__).parent / "mini_clip")):
        return {"kind": "embedded", "name": MINI_CLIP, "revision": None}
    if not place:
        return {"kind": "model", "name": None, "revision": None}
    if name_of(place) == place and not Path(place).exists():
        commit = getattr(revision, "resolved", revision) or (clip and getattr(clip.config, "_commit_hash", None))
        return {"kind": "hub", "name": place, "revision": commit} | ({"subfolder": subfolder} if subfolder else {})
    return {"kind": "folder", "name": name_of(place), "revision": None}


def name_of(place: str | Path) -> str:
    """Return a folder's own name without the way to it; a Hub id (user/name) stays as it is."""
    text = str(place).replace("\\", "/")
    path = Path(text).expanduser()
    is_hub_id = len(path.parts) == 2 and not path.is_absolute() and ":" not in text and text[0] not in ".~"
    return text if is_hub_id and not path.exists() else path.resolve().name


def load_clip(
    name: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, **hub
) -> tuple[CLIPModel, PreTrainedTokenizerBase]:
    """
    Load a CLIP in single precision (learning in half precision fails), and its tokenizer.

    Args:
        name: `"mini"`, a folder, or a Hub id.
        tokenizer: returned as it is; by default the CLIP's own.
        hub: `HUB_ARGUMENTS`, as transformers takes them.

    Raises:
        ValueError: if it cannot be found or is no whole CLIP, with the remedy.
    """
    load_clip_config(name, **hub)  # first, so that nothing large is fetched in vain
    tokenizer = load_clip_tokenizer(name, **hub) if tokenizer is None else tokenizer
    options = {"dtype": torch.float32, "output_loading_info": True, "use_safetensors": True}  # never pickle
    clip, found = load_clip_part(CLIPModel, name, **options, **hub)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} weights of a CLIPModel, {missing[0]} among them, which would be random: give a "
            "checkpoint with both towers."
        )
    return clip, tokenizer


def load_clip_config(name: str | Path, **hub) -> CLIPConfig:
    """Load the config of a CLIP; that of anything else, or of one that no machine can hold, is refused here."""
    kind = _load(lambda source: CLIPConfig.get_config_dict(source, **hub), name, hub)[0].get("model_type")
    if kind != CLIPConfig.model_type:
        what = "it has no config.json" if kind is None else f"its model_type is {kind!r}"
        raise ValueError(f"{name} is no CLIPModel ({what}): give a folder or Hub id whose model_type is 'clip'.")
    config = load_clip_part(CLIPConfig, name, **hub)
    check_clip_size(config)
    return config


def load_clip_tokenizer(name: str | Path, **hub) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a CLIP; without its files transformers makes an empty one, which is refused."""
    tokenizer = load_clip_part(AutoTokenizer, name, **hub)
    if tokenizer.unk_token_id in tokenizer("bolt 1", add_special_tokens=False).input_ids:
        raise ValueError(
            f"{name} has no vocabulary for its tokenizer (tokenizer.json, or vocab.json and merges.txt): give a checkpoint "
            "with one."
        )
    return tokenizer


def load_clip_part(kind: type, name: str | Path, **options) -> Any:
    """Load config, weights, tokenizer or image processor of a CLIP with `kind.from_pretrained`; errors as [`load_clip`]."""
    return _load(lambda source: kind.from_pretrained(source, **options), name, options)


def clip_normalization(name: str | Path | CLIPModel, **hub) -> tuple[list[float], list[float]]:
    """Return mean and deviation by color that a CLIP wants; of one in memory, which names none, those of OpenAI's."""
    known = (
        CLIPImageProcessorPil() if isinstance(name, CLIPModel) else load_clip_part(CLIPImageProcessorPil, name, **hub)
    )
    return [float(value) for value in known.image_mean], [float(value) for value in known.image_std]


def _load(load, name: str | Path, options: dict, kind: str = "CLIPModel") -> Any:
    source = clip_source(name) if kind == "CLIPModel" else str(name)
    try:
        return load(source)
    except Exception as error:  # readers of configs, weights and tokenizers have errors of their own
        reason = " ".join(str(error).split()).rstrip(".")
        if Path(source).exists():
            raise ValueError(
                f"{name} cannot be loaded as a CLIP ({reason}): give a folder with config.json, model.safetensors, "
                "tokenizer and preprocessor_config.json of a CLIPModel."
                if kind == "CLIPModel"
                else f"{name} cannot be loaded as a {kind} ({reason}): give a folder with config.json, model.safetensors and "
                "preprocessor_config.json of one."
            ) from error
        revision = f" at revision {options['revision']!r}" if options.get("revision") else ""
        if is_offline_mode() or options.get("local_files_only"):
            reason = "offline, by HF_HUB_OFFLINE or local_files_only, and not whole in the cache"
        raise ValueError(
            f"{name} is no folder, and as a Hub id{revision} it cannot be loaded ({reason}): check the name; where there "
            f"is a connection, `hf download {name}` fetches it into the cache (`hf auth login` first if it is private); "
            f"without one, give the folder of a {kind}"
            + (f", or {MINI_CLIP!r} for the one in the package." if kind == "CLIPModel" else ".")
        ) from error


# --- A second frozen tower, whose patches the memory holds in the place of the CLIP's own ---

VISION_MODEL = "vision model of transformers"
OWN_CODE = {"trust_remote_code": False}  # a detector carries no code but its own and that of transformers
STAGES = ("stage_names", "out_features", "out_indices")  # of configs, all blocks by name
UNNEEDED = "pooler."  # a part that some checkpoints lack and no patch needs


class TowerInput(nn.Module):
    """
    Bring images as a detector takes them to what one tower sees: another side, another normalization, or neither.

    The side is changed by antialiased bicubic interpolation, as one product with a fixed matrix along each axis: the same
    everywhere, also in a graph.
    """

    def __init__(
        self,
        side: int,
        tower_side: int,
        *,
        given: tuple[Sequence[float], Sequence[float]] | None = None,
        wanted: tuple[Sequence[float], Sequence[float]] | None = None,
    ):
        """
        Prepare for one tower.

        Args:
            side: of the images that come in.
            tower_side: of those that the tower sees.
            given, wanted: mean and deviation by color of either; by default both have the same.
        """
        super().__init__()
        self.side, self.tower_side, self.given, self.wanted = side, tower_side, given, wanted
        # none is saved: what rebuilds a detector calls `reset_parameters`
        resized, scaled = side != tower_side, given is not None
        self.register_buffer("matrix", torch.empty(tower_side, side) if resized else None, persistent=False)
        self.register_buffer("gain", torch.empty(3, 1, 1) if scaled else None, persistent=False)
        self.register_buffer("shift", torch.empty(3, 1, 1) if scaled else None, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Compute the fixed numbers."""
        if self.matrix is not None:
            rows = torch.eye(self.side)[None, None]  # one column for each pixel that comes in
            size = (self.tower_side, self.side)
            resized = F.interpolate(rows, size, mode="bicubic", align_corners=False, antialias=True)
            init.copy_(self.matrix, resized[0, 0])
        if self.gain is not None:
            (mean, deviation), (own_mean, own_deviation) = (
                [torch.tensor(values).view(3, 1, 1) for values in pair] for pair in (self.given, self.wanted)
            )
            init.copy_(self.gain, deviation / own_deviation)
            init.copy_(self.shift, (mean - own_mean) / own_deviation)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """
        Turn (batch, 3, side, side) into (batch, 3, tower side, tower side).

        Views for training have the tower's own side at once, and are not resized. A `ValueError` for any other side.
        """
        height, width = pixel_values.shape[-2:]
        if height != width or height not in (self.side, self.tower_side):
            raise ValueError(
                f"The images have {height} x {width} pixels, and this detector takes {self.side} x {self.side}: prepare them with "
                "its own processor."
            )
        if height != self.tower_side:
            # the matrix on the left both times: what stands on the right of a product is stored in 8 bits where a graph is
            pixel_values = (self.matrix @ (self.matrix @ pixel_values).mT).mT
        return pixel_values if self.gain is None else pixel_values * self.gain + self.shift


class MemoryEncoder(nn.Module):
    """A frozen vision transformer of any kind, which describes the patches of an image for the memory."""

    def __init__(self, config: AnoPLeConfig, model: PreTrainedModel | None = None):
        """
        Make the encoder of a detector's config.

        Args:
            model: as [`load_memory_encoder`] returns it; by default one with first values, for weights to come.
        """
        super().__init__()
        self.model = AutoModel.from_config(config.memory_encoder) if model is None else model
        self.input = TowerInput(
            config.input_size,
            config.memory_side,
            given=(config.image_mean, config.image_std),
            wanted=(config.memory_image_mean, config.memory_image_std),
        )
        self.layers, self.places = list(config.memory_layers), config.memory_grid_size**2

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Return the patch tokens (batch, patches, width) of each remembered block, of images as the detector takes them."""
        states = token_states(self.model, self.input(pixel_values))
        # class and register tokens come first
        return [states[layer + 1][:, -self.places :] for layer in self.layers]


def token_states(model: PreTrainedModel, pixel_values: Tensor) -> tuple[Tensor, ...]:
    """Run a vision model on images of any side: its tokens before the first block and after each, as the model lays them."""
    arguments, options = inspect.signature(model.forward).parameters, {}
    if "interpolate_pos_encoding" in arguments:  # others do so by themselves
        options["interpolate_pos_encoding"] = True
    if "spatial_shapes" in arguments:  # SigLIP 2 of any aspect ratio wants patches
        batch, _, side, _ = pixel_values.shape
        patch = patch_side(model.config)
        grid = side // patch
        parts = pixel_values.unflatten(3, (grid, patch)).unflatten(2, (grid, patch))
        pixel_values = parts.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (batch, patches, patch x patch x 3)
        options["spatial_shapes"] = torch.full((batch, 2), grid, device=pixel_values.device)
        options["pixel_attention_mask"] = None  # all of them count
    return model(pixel_values, output_hidden_states=True, **options).hidden_states


def load_encoder_config(encoder: str | Path | PreTrainedModel, **hub) -> PreTrainedConfig:
    """
    Load the config of the vision tower of a memory encoder: of a model of two towers, such as CLIP, its vision tower's.

    Raises:
        ValueError: if it cannot be found, is no vision transformer, or one that no machine can hold.
    """
    if isinstance(encoder, PreTrainedModel):
        config = type(encoder.config).from_dict(encoder.config.to_dict())
    else:
        values = _load(lambda source: PreTrainedConfig.get_config_dict(source, **hub)[0], encoder, hub, VISION_MODEL)
        check_encoder_numbers(values.get("vision_config", values))
        config = _load(
            lambda source: AutoConfig.from_pretrained(source, **OWN_CODE, **hub), encoder, hub, VISION_MODEL
        )
    config = getattr(config, "vision_config", config)
    check_encoder_size(config, _name(encoder))
    config.tie_last_hidden_states = False  # the last block's tokens as the others', before the final norm
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False  # pools all patches into one
    return config


def without_later_blocks(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    """Return the config of a vision tower that ends after `depth` blocks."""
    values = {name: value for name, value in config.to_dict().items() if name not in STAGES}
    return type(config).from_dict({**values, "num_hidden_layers": depth})


def encoder_normalization(name: str | Path, **hub) -> tuple[list[float], list[float]]:
    """
    Read mean and deviation by color that a memory encoder wants from its preprocessor_config.json.

    Raises:
        ValueError: if it has none.
    """
    try:
        known = _load(
            lambda source: ImageProcessingMixin.get_image_processor_dict(source, **hub), name, hub, VISION_MODEL
        )[0]
        return [float(value) for value in known["image_mean"]], [float(value) for value in known["image_std"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} does not say how its images are normalized (image_mean and image_std of a preprocessor_config.json): give "
            "memory_image_mean and memory_image_std."
        ) from error


def load_memory_encoder(encoder: str | Path | PreTrainedModel, config: AnoPLeConfig, **hub) -> PreTrainedModel:
    """
    Load a memory encoder in single precision, without the blocks after the last one that a detector needs.

    Args:
        encoder: a folder or Hub id, or the model itself, which stays as it is.
        config: the detector's, whose `memory_encoder` says how many blocks are needed.
        hub: `HUB_ARGUMENTS`, as transformers takes them.

    Raises:
        ValueError: if it cannot be found, is another model than the config says, lacks weights, or has no square grid of
            patch tokens.
    """
    missing: list[str] = []
    if isinstance(encoder, PreTrainedModel):
        whole = encoder
    else:
        options = {
            "dtype": torch.float32,
            "output_loading_info": True,
            "use_safetensors": True,
            **OWN_CODE,
        }  # never pickle
        whole, found = _load(
            lambda source: AutoModel.from_pretrained(source, **options, **hub), encoder, hub, VISION_MODEL
        )
        missing = sorted(found["missing_keys"])
    tower = getattr(whole, "vision_model", whole)
    with torch.random.fork_rng(devices=[]):  # first values that are replaced at once
        model = AutoModel.from_config(config.memory_encoder, dtype=tower.dtype)
    tensors, needed = tower.state_dict(), model.state_dict()
    prefix = "" if tower is whole else "vision_model."
    absent = {name.removeprefix(prefix) for name in missing if name.startswith(prefix)}
    lost = [name for name in needed if name not in tensors or (name in absent and UNNEEDED not in name)]
    wrong = [name for name in needed if name not in lost and tensors[name].shape != needed[name].shape]
    if type(tower) is not type(model) or lost or wrong:
        what = (lost or wrong or [type(model).__name__])[0]
        raise ValueError(
            f"{_name(encoder)} is not the whole {config.memory_encoder.model_type} that was asked for (it has no such {what}): "
            "give the checkpoint that the detector names."
        )
    # what a checkpoint lacks would be drawn at random, and its hash with it
    model.load_state_dict(
        {name: torch.zeros_like(tensors[name]) if name in absent else tensors[name] for name in needed}
    )
    model = model.to(tower.device).eval().requires_grad_(False)
    _check_grid(model, config, _name(encoder))
    return model


@torch.no_grad()
def _check_grid(model: PreTrainedModel, config: AnoPLeConfig, name: str) -> None:
    """
    Refuse a model whose last tokens are not its patches in reading order.

    Of three images the second differs from the first in the first patch alone, the third in the last one: before the first
    block this must change one token each, as far apart as the grid is large.
    """
    side, patch, places = config.memory_side, patch_side(config.memory_encoder), config.memory_grid_size**2
    pixels = torch.zeros(3, 3, side, side, device=model.device, dtype=model.dtype)
    pixels[1, :, :patch, :patch] = 1
    pixels[2, :, -patch:, -patch:] = 1
    try:
        states = token_states(model, pixels)
        tokens = states[0].shape[1]
        gaps = (states[0][1:] - states[0][:1]).abs().amax(2)  # (2, tokens)
        changed = (gaps > 0.01 * gaps.amax(1, keepdim=True)).nonzero().tolist()
        fits = changed == [[0, tokens - places], [1, tokens - 1]] and len({state.shape for state in states}) == 1
        fits = fits and len(states) == config.memory_encoder.num_hidden_layers + 1
        reason = "its tokens are not one for each patch"
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:  # models have many of their own
        fits, reason = False, " ".join(str(error).split()).rstrip(".")
    if not fits:
        raise ValueError(
            f"{name} ({config.memory_encoder.model_type}) has no square grid of {side // patch} x {side // patch} patch tokens "
            f"for images of {side} pixels ({reason}): give another memory_encoder or memory_image_size."
        )


def encoder_license(name: str | Path, **hub) -> str | None:
    """Read the license that a model's own card names, where it has one at hand."""
    try:
        path = cached_file(name, "README.md", _raise_exceptions_for_missing_entries=False, **hub)
        facts = (metadata_load(path) if path else None) or {}
    except (OSError, ValueError):  # a card is no condition
        return None
    license = facts.get("license")
    license = (facts.get("license_name") or license) if license == "other" else license
    return license if isinstance(license, str) else None


def _name(encoder: str | Path | PreTrainedModel) -> str:
    return encoder.name_or_path or type(encoder).__name__ if isinstance(encoder, PreTrainedModel) else str(encoder)


__all__ = [
    "HUB_ARGUMENTS",
    "MINI_CLIP",
    "MemoryEncoder",
    "TowerInput",
    "clip_normalization",
    "clip_source",
    "describe_source",
    "encoder_license",
    "encoder_normalization",
    "load_clip",
    "load_clip_config",
    "load_clip_part",
    "load_clip_tokenizer",
    "load_encoder_config",
    "load_memory_encoder",
    "name_of",
    "pin_revision",
    "token_states",
    "without_later_blocks",
]
