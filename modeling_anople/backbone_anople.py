"""Where a backbone comes from: the small CLIP that the package carries, a folder, or the Hub."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedTokenizerBase
from transformers.utils import resolve_revision

from .configuration_anople import check_clip_size


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
            f"{source} is no folder here, and a CLIP on the Hub is named user/name; the embedded one is mini."
        )
    access = {name: hub[name] for name in ("cache_dir", "token", "local_files_only") if name in hub}
    revision = resolve_revision(source, hub.get("revision"), **access)
    return {**hub, "revision": revision} if revision is not None else hub


def describe_source(
    name: str | Path | CLIPModel, clip: CLIPModel, revision: str | None = None, subfolder: str | None = None
) -> dict[str, str | None]:
    """
    Say where a loaded CLIP came from, without the way to a local folder.

    Args:
        name: what the user called it, or the `CLIPModel` itself.
        clip: the loaded `CLIPModel`.
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
        commit = getattr(revision, "resolved", revision) or getattr(clip.config, "_commit_hash", None)
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


def _load(load, name: str | Path, options: dict) -> Any:
    source = clip_source(name)
    try:
        return load(source)
    except Exception as error:  # readers of configs, weights and tokenizers have errors of their own
        reason = " ".join(str(error).split()).rstrip(".")
        if Path(source).exists():
            raise ValueError(
                f"{name} cannot be loaded as a CLIP ({reason}): give a folder with config.json, model.safetensors, "
                "tokenizer and preprocessor_config.json of a CLIPModel."
            ) from error
        revision = f" at revision {options['revision']!r}" if options.get("revision") else ""
        if is_offline_mode() or options.get("local_files_only"):
            reason = "offline, by HF_HUB_OFFLINE or local_files_only, and not whole in the cache"
        raise ValueError(
            f"{name} is no folder, and as a Hub id{revision} it cannot be loaded ({reason}): check the name; where there "
            f"is a connection, `hf download {name}` fetches it into the cache (`hf auth login` first if it is private); "
            f"without one, give the folder of a CLIPModel, or {MINI_CLIP!r} for the one in the package."
        ) from error


__all__ = [
    "HUB_ARGUMENTS",
    "MINI_CLIP",
    "clip_source",
    "describe_source",
    "load_clip",
    "load_clip_config",
    "load_clip_part",
    "load_clip_tokenizer",
    "name_of",
    "pin_revision",
]
