"""A detector leaves the demo as a zip file, and comes back from one that is not trusted."""

import shutil
import stat
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open

from modeling_anople import AnomalyDetectionPipeline, AnoPLeConfig, AnoPLeModel, AnoPLeProcessor
from modeling_anople.processing_anople import check_sight
from modeling_anople.runtime.loading import load_config
from modeling_anople.saving_anople import FROZEN, is_trace

from .inputs import MAX_UPLOAD
from .session import Session


WEIGHTS, ADAPTER = "model.safetensors", "adapter.safetensors"
ALLOWED_FILES = {
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    WEIGHTS,
    ADAPTER,
}  # all else in a zip stays there
MAX_CLIP_IN_ZIP = 100 * 2**20  # bytes; larger frozen towers are left out, and the zip holds an adapter
MAX_FILES, MAX_LAYERS, MAX_SIDE = 200, 64, 2048


def pack_detector(session: Session) -> Path:
    """Write the session's detector into a zip file: a checkpoint folder, or an adapter where its frozen towers are large."""
    model, processor = session.model, session.processor
    weights = model.state_dict().items()
    size = sum(tensor.numel() * tensor.element_size() for name, tensor in weights if name.startswith(FROZEN))
    with tempfile.TemporaryDirectory(dir=session.folder) as temporary:
        folder = Path(temporary) / "detector"
        detector = AnomalyDetectionPipeline(model, processor=processor, device=model.device)
        detector.save_pretrained(folder, adapter=size > MAX_CLIP_IN_ZIP)
        path = session.folder / "anople_detector.zip"
        # Stored as they are: weights hardly shrink, and packing is waiting.
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.rglob("*")):
                if not is_trace(file.name):
                    archive.write(file, Path("detector") / file.relative_to(folder))
    return path


def unpack_detector(session: Session, path: str | Path | None) -> str:
    """
    Load a detector from a zip file into a session; says what it knows.

    Only weights and settings are taken out, by their names, into a folder of the session; nothing in them can run code,
    and weights must be exactly those that the settings describe before any memory is spent on them.

    Raises:
        ValueError: for what is no zip file of a detector, is too large, or holds links or paths that lead elsewhere.
    """
    if not path:
        raise ValueError("There is no file yet: give the zip file of a detector.")
    with tempfile.TemporaryDirectory(dir=session.folder) as temporary:
        folder = Path(temporary)
        try:
            with zipfile.ZipFile(path) as archive:
                _extract(archive, folder)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
            raise ValueError("This file is not a zip file that can be read: give one downloaded here.") from error
        model, processor = _load(folder, session.model)
    session.replace(model.to(session.model.device).eval(), processor)
    return f"Loaded. This detector knows {', '.join(session.products)}."


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    """Check every entry, then write those in `ALLOWED_FILES` flat into a folder."""
    # What a person could have put there, before one byte is written: too much, links, ways out of the folder.
    entries = archive.infolist()
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > 2 * MAX_UPLOAD:
        raise ValueError(f"This zip is too large: at most {MAX_FILES} files and {2 * MAX_UPLOAD >> 20} MB unpacked.")
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        parts = entry.filename.replace("\\", "/").split("/")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError("This zip holds a link, which no detector has: it was not loaded.")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise ValueError("This zip holds a path that leads out of its folder: it was not loaded.")
    configs = [entry.filename for entry in entries if entry.filename.rsplit("/", 1)[-1] == "config.json"]
    if len(configs) != 1:
        raise ValueError("This zip holds no detector (one config.json): give one downloaded here.")
    # Only what lies beside the config, by name: whatever else there is, code above all, is never unpacked.
    home = configs[0].removesuffix("config.json")
    for entry in entries:
        name = entry.filename.removeprefix(home)
        if entry.filename.startswith(home) and name in ALLOWED_FILES:
            with archive.open(entry) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)


def _load(folder: Path, base: AnoPLeModel) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    try:
        config = load_config(str(folder))
        _check_weights(folder, config)
        if (folder / ADAPTER).exists():
            encoder = None if base.memory_encoder is None else base.memory_encoder.model
            if encoder is None and config.memory_encoder is not None:  # nothing is fetched because a zip names it
                raise ValueError("it was made on a memory encoder, which the detector here has not")
            model = AnoPLeModel.load_adapter(folder, clip=base.clip, memory_encoder=encoder, verify=True)
        else:
            model = AnoPLeModel.from_pretrained(folder, verify=True)
        processor = AnoPLeProcessor.from_pretrained(folder, trust_remote_code=False)
        if processor.class_names != model.config.class_names or processor.tokenizer is None:
            raise ValueError("processor and model are not of one detector")
        check_sight(processor, model.config)
    except Exception as error:  # a damaged or crafted file makes libraries raise nearly anything
        reason = " ".join(str(error).replace(str(folder), "it").split())[:300]
        raise ValueError(
            f"This zip holds no detector that can be loaded ({reason}). The one before is still here."
        ) from error
    return model, processor


def _check_weights(folder: Path, config: AnoPLeConfig) -> None:
    """Compare names and sizes in the file's head with those of a model without memory."""
    towers = (config.clip_config.text_config, config.clip_config.vision_config, config.memory_tower)
    if max(tower.num_hidden_layers for tower in towers) > MAX_LAYERS:
        raise ValueError(f"its CLIP or memory encoder has more than {MAX_LAYERS} layers")
    if config.input_size > MAX_SIDE:  # which no weight tells
        raise ValueError(f"it looks at images of more than {MAX_SIDE} pixels")
    # On the meta device a model has shapes and takes no memory, however large its settings claim it to be.
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in AnoPLeModel(config).state_dict().items()}
    adapter = config.adapter_clip_sha256 is not None
    if adapter:
        expected = {name: shape for name, shape in expected.items() if not name.startswith(FROZEN)}
    with safe_open(folder / (ADAPTER if adapter else WEIGHTS), framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if shapes != expected:
        raise ValueError("its weights are not those that its settings describe")
