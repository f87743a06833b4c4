"""`anople products, enroll, add_normals, calibrate, forget ...`: what a detector knows, and how that changes untrained."""

import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..calibration_anople import describe_support
from ..runtime import CHECKPOINT, make_parser, parse


LAST_FILES = ("adapter.safetensors", "model.safetensors", "config.json")


@dataclass
class ForgetOptions:
    """Options of `anople forget`."""

    output: str | None = field(
        default=None, metadata={"help": "Folder for the changed detector; by default it is changed where it is."}
    )


@dataclass
class AddOptions(ForgetOptions):
    """Options of `anople add_normals`."""

    max_false_alarm_rate: float | None = field(
        default=None, metadata={"help": "Share of good photographs above the line; by default as it was."}
    )
    batch_size: int = field(default=8, metadata={"help": "Photographs encoded at once."})
    ignore_mask: str | None = field(
        default=None,
        metadata={
            "help": "Picture of the photographs' size; what is not black there does not count. enroll keeps it for the "
            "product; later it is taken where none is given; none ignores nothing."
        },
    )


@dataclass
class EnrollOptions(AddOptions):
    """Options of `anople enroll`."""

    tiling: str = field(
        default="same", metadata={"help": "auto, ROWS,COLUMNS or none, for this product; by default as the others."}
    )
    clip: str | None = field(
        default=None,
        metadata={
            "help": "Begin a new detector with this product, nothing fitted: mini, or the folder or Hub id of a CLIPModel."
        },
    )


@dataclass
class ProductsOptions:
    """`anople products` has no options."""


def enroll(arguments: list[str]) -> int:
    """Add a product from good photographs."""
    return _learn("enroll", EnrollOptions, arguments)


def add_normals(arguments: list[str]) -> int:
    """Show a product more good photographs."""
    return _learn("add_normals", AddOptions, arguments)


def calibrate(arguments: list[str]) -> int:
    """Set a product's line anew."""
    return _learn("calibrate", AddOptions, arguments)


METHODS = {"enroll": "enroll", "add_normals": "add_normals", "calibrate": "refine_line"}


def _learn(command: str, kind: type, arguments: list[str]) -> int:
    parser = make_parser(command, kind, checkpoint=CHECKPOINT, name="The product.")
    few = "*" if command == "calibrate" else "+"
    parser.add_argument("images", nargs=few, help="Good photographs, or folders of them.")
    places, options = parse(parser, arguments)
    from tqdm.auto import tqdm

    from ..images_anople import list_photographs
    from ..processing_anople import find_class
    from ..runtime.loading import load_config, load_detector

    method, begun = METHODS[command], command == "enroll" and options.clip is not None
    if begun:
        method, target = "add_normals", Path(options.output or places.checkpoint)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target} is not empty: a detector begins in a new folder, or leave out --clip.")
        model, processor = _begin(places.name, options)
    else:
        target = _target(places.checkpoint, options.output)
        model, processor = load_detector(places.checkpoint)
    paths = list_photographs(places.images) if places.images else None
    line = getattr(model, method)(
        places.name,
        paths and tqdm(paths, desc=command, disable=None),
        processor=processor,
        max_false_alarm_rate=options.max_false_alarm_rate,
        batch_size=options.batch_size,
        ignore_mask=options.ignore_mask,
        **({"tiling": options.tiling} if method == "enroll" else {}),
    )
    adapter = not begun and bool(load_config(places.checkpoint).adapter_clip_sha256)
    _save(model, processor, target, adapter=adapter)
    known = len(model.memory.counts[find_class(places.name, model.config.class_names)])
    sys.stdout.write(
        f"{places.name}: {known} good photographs, line at raw score {line.image_line:.4f} "
        f"(for {line.max_false_alarm_rate:g} false alarms). {describe_support(asdict(line))} The detector is in {target}.\n"
    )
    return 0


def _begin(name: str, options: EnrollOptions) -> tuple:
    """Make a detector of one product, which its memory alone will judge: what else there is was never fitted."""
    from ..modeling_anople import AnoPLeModel
    from ..processing_anople import AnoPLeProcessor, new_name

    name = new_name(name, [])
    tiling = None if options.tiling in ("same", "none") else options.tiling
    fusion = {"map_fusion": "memory", "image_fusion": "map", "tiling": tiling}
    model = AnoPLeModel.from_clip(options.clip, [name], **fusion)
    if options.ignore_mask not in (None, "none"):
        model.set_ignore_mask(name, options.ignore_mask)
    return model, AnoPLeProcessor.from_clip(options.clip, [name])


def forget(arguments: list[str]) -> int:
    """Remove a product."""
    parser = make_parser("forget", ForgetOptions, checkpoint=CHECKPOINT, name="The product.")
    places, options = parse(parser, arguments)
    from ..runtime.loading import load_config, load_detector

    target = _target(places.checkpoint, options.output)
    model, processor = load_detector(places.checkpoint)
    model.forget(places.name, processor=processor)
    _save(model, processor, target, adapter=bool(load_config(places.checkpoint).adapter_clip_sha256))
    sys.stdout.write(f"{places.name} is forgotten. The detector is in {target}.\n")
    return 0


def ignore(arguments: list[str]) -> int:
    """Keep what does not count on a product's photographs, or nothing any more."""
    parser = make_parser("ignore", ForgetOptions, checkpoint=CHECKPOINT, name="The product.")
    parser.add_argument(
        "mask", help="Picture of its photographs' size, not black where nothing counts; none drops it."
    )
    places, options = parse(parser, arguments)
    from ..processing_anople import find_class
    from ..runtime.loading import load_config, load_detector

    target = _target(places.checkpoint, options.output)
    model, processor = load_detector(places.checkpoint)
    model.set_ignore_mask(places.name, None if places.mask == "none" else places.mask)
    _save(model, processor, target, adapter=bool(load_config(places.checkpoint).adapter_clip_sha256))
    name = model.config.class_names[find_class(places.name, model.config.class_names)]
    sys.stdout.write(f"{name}: {_kept_mask(model.config, name)} The detector is in {target}.\n")
    return 0


def _kept_mask(config, name: str) -> str:
    if name not in config.ignore_mask_sizes:
        return "No ignore mask is kept."
    height, width = config.ignore_mask_sizes[name]
    return f"An ignore mask of {width} x {height} pixels is kept ({-(-height * width // 8) / 1e3:.1f} kB)."


def products(arguments: list[str]) -> int:
    """List the products of a detector, their normals, memory and lines, and the log."""
    places, _ = parse(make_parser("products", ProductsOptions, checkpoint=CHECKPOINT), arguments)
    from ..export.graph_detector import graph_in, put_lines, whole_export_in
    from ..runtime.loading import load_config

    config = load_config(places.checkpoint)
    if graph_in(places.checkpoint):
        put_lines(config, whole_export_in(places.checkpoint).parent)
    width = max(map(len, ["product", *config.class_names]))
    rows = [f"{'product':{width}}  photographs  vectors  memory MB  line (raw)  for false alarms"]
    numbers = len(config.memory_layers) * config.clip_config.vision_config.hidden_size
    for name, size, counts in zip(config.class_names, config.memory_sizes, config.memory_photographs, strict=True):
        line = config.calibration.get(name)
        drawn = f"{line['image_line']:10.4f}  {line['max_false_alarm_rate']:16g}" if line else f"{'none':>10}  {'':16}"
        rows.append(f"{name:{width}}  {len(counts):11}  {size:7}  {4e-6 * size * numbers:9.1f}  {drawn}".rstrip())
    for name in config.class_names:
        if line := config.calibration.get(name):
            rows.append(f"{name}: {describe_support(line)}")
        if name in config.ignore_mask_sizes:
            rows.append(f"{name}: {_kept_mask(config, name)}")
    for entry in config.history:
        files = ", ".join(file or "(from memory)" for file in entry["files"])
        line, rate = entry.get("line"), entry.get("max_false_alarm_rate")  # earlier versions kept neither
        drawn = "" if line is None else f"; line {line:.4f} for {rate:g} false alarms"
        listed = f": {files}" if files else ""
        rows.append(f"{entry['date']}  {entry['action']} {entry['class_name']}{listed}{drawn}")
    sys.stdout.write("\n".join(rows) + "\n")
    return 0


def _target(checkpoint: str, output: str | None) -> Path:
    """Say where the changed detector goes, before any work is done."""
    target = Path(output or checkpoint)
    if output is None and not target.is_dir():
        raise ValueError(
            f"{checkpoint} is no folder here, so it cannot be changed: add --output FOLDER, or begin a detector with "
            "`anople enroll FOLDER NAME PHOTOGRAPHS --clip mini`."
        )
    if output is not None and (target / "config.json").exists() and target.resolve() != Path(checkpoint).resolve():
        raise ValueError(f"{target} already holds a detector: choose another --output.")
    return target


def _save(model, processor, target: Path, *, adapter: bool) -> None:
    """
    Write beside the old files, an adapter as an adapter, and put each file in its place whole.

    A program killed while it writes damages nothing; only the moves, which take a moment, are not one step.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".unfinished-") as place:
        (model.save_adapter if adapter else model.save_pretrained)(place)
        processor.save_pretrained(place)
        for path in sorted(Path(place).iterdir(), key=lambda path: (path.name in LAST_FILES, path.name)):
            os.replace(path, target / path.name)


__all__ = ["add_normals", "calibrate", "enroll", "forget", "ignore", "products"]
