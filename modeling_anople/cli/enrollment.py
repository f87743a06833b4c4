"""`anople products, enroll, add_normals, calibrate, rename, forget ...`: what a detector knows, and how that changes untrained."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..runtime import CHECKPOINT, LOOKS, MACHINE, make_parser, parse, printable, say
from ..runtime.outputs import check_new_folder


if TYPE_CHECKING:
    from ..calibration_anople import ProductThreshold
    from ..pipeline_anople import AnomalyDetectionPipeline
    from ..product_store_anople import ProductRecord


NEW = "of a new detector, with --clip"  # a heading of the help
NEW_DETECTOR = (
    "image_size",
    "memory_encoder",
    "memory_encoder_revision",
    "memory_image_size",
    "memory_rotations",
    "memory_limit",
)  # wanted by --clip alone


@dataclass
class ForgetOptions:
    """Options of `anople forget`, `rename` and `ignore`."""

    output: str | None = field(
        default=None, metadata={"help": "Folder for the changed detector; by default it is changed where it is."}
    )


@dataclass
class AddOptions(ForgetOptions):
    """Options of `anople add_normals`."""

    max_false_alarm_rate: float | None = field(
        default=None,
        metadata={"help": "Share of good photographs above the line, from 0.0001 to below 0.5; by default as it was."},
    )
    batch_size: int = field(
        default=8, metadata={"heading": MACHINE, "help": "Photographs encoded at once, 1 to 65536."}
    )
    ignore_mask: str | None = field(
        default=None,
        metadata={
            "heading": LOOKS,
            "help": "Picture of the photographs' size; what is not black there does not count. enroll keeps it for the "
            "product; later it is taken where none is given; none ignores nothing.",
        },
    )
    white_value: float | None = field(
        default=None,
        metadata={
            "heading": LOOKS,
            "help": "White of photographs with more than 8 bits, 4095 for a 12-bit camera, from 1e-06 to 4294967296; the detector "
            "keeps it. By default what it keeps, or what the files say.",
        },
    )

    def __post_init__(self):
        from ..calibration_anople import check_rate  # they bring torch along
        from ..configuration_anople import check_ranges
        from ..images_anople import WHITE_RANGE

        check_ranges(self, {"batch_size": (1, 65_536), "white_value": WHITE_RANGE}, "--")
        if self.max_false_alarm_rate is not None:
            check_rate(self.max_false_alarm_rate)


@dataclass
class CalibrateOptions(AddOptions):
    """Options of `anople calibrate`."""

    defects: list[str] | None = field(
        default=None,
        metadata={
            "help": "Photographs of defective parts, or folders of them, behind the good ones: they set the line by costs, and "
            "never enter the memory."
        },
    )
    miss_cost: float | None = field(
        default=None,
        metadata={
            "help": "With --defects: what it costs where all defective parts pass, 1e-09 to 1e+12; by default 1."
        },
    )
    false_alarm_cost: float | None = field(
        default=None,
        metadata={"help": "With --defects: what it costs where all good parts are set aside, alike; by default 1."},
    )

    def __post_init__(self):
        from ..configuration_anople import check_ranges
        from ..enrollment_anople import COST_RANGE

        super().__post_init__()
        check_ranges(self, {"miss_cost": COST_RANGE, "false_alarm_cost": COST_RANGE}, "--")
        if self.defects is None and (self.miss_cost is not None or self.false_alarm_cost is not None):
            raise ValueError(
                "Costs place the line between good photographs and known defects: add --defects PHOTOGRAPHS."
            )


@dataclass
class EnrollOptions(AddOptions):
    """Options of `anople enroll`."""

    tiling: str = field(
        default="same",
        metadata={"heading": LOOKS, "help": "auto, ROWS,COLUMNS or none, for this product; by default as the others."},
    )
    replace: bool = field(
        default=False,
        metadata={"help": "Teach a product that is there anew: it is forgotten as these photographs are learned."},
    )
    clip: str | None = field(
        default=None,
        metadata={
            "help": "Begin a new detector with this product, nothing fitted: mini, or the folder or Hub id of a CLIPModel."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "heading": NEW,
            "help": "Side in pixels of what the CLIP of a new detector sees, 1 to 4096; by default as pretrained.",
        },
    )
    memory_encoder: str | None = field(
        default=None,
        metadata={
            "heading": NEW,
            "help": "Folder or Hub id of another vision transformer, such as facebook/dinov2-small, whose patches the memory "
            "of a new detector holds; by default those of the CLIP.",
        },
    )
    memory_encoder_revision: str | None = field(
        default=None,
        metadata={"heading": NEW, "help": "Branch, tag or commit of the memory encoder, where it is a Hub id."},
    )
    memory_image_size: int | None = field(
        default=None,
        metadata={
            "heading": NEW,
            "help": "Side in pixels of what the memory encoder sees, 1 to 4096; by default as pretrained.",
        },
    )
    memory_rotations: Literal["none", "quarter_turns", "eighth_turns"] | None = field(
        default=None,
        metadata={
            "heading": NEW,
            "help": "Turned copies of the photographs that a new detector remembers too; by default none.",
        },
    )
    memory_limit: int | None = field(
        default=None,
        metadata={
            "heading": NEW,
            "help": "Most patches that a new detector remembers of a product, 0 to 1000000000; 0 for all, by default 16384.",
        },
    )

    def __post_init__(self):
        from ..configuration_anople import RANGES, check_ranges

        super().__post_init__()
        check_ranges(self, {name: RANGES[name] for name in ("image_size", "memory_image_size", "memory_limit")}, "--")
        given = [f"--{name}" for name in NEW_DETECTOR if getattr(self, name) is not None]
        if self.replace and self.clip is not None:
            raise ValueError("A detector that begins has no product to --replace: leave out --replace or --clip.")
        if given and self.clip is None:
            raise ValueError(f"{' and '.join(given)} is of a new detector: begin one with --clip, or leave it out.")


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
    return _learn("calibrate", CalibrateOptions, arguments)


def _learn(command: str, kind: type, arguments: list[str]) -> int:
    parser = make_parser(command, kind, checkpoint=CHECKPOINT, name="The product.")
    few = "*" if command == "calibrate" else "+"
    parser.add_argument("images", nargs=few, help="Good photographs, or folders of them.")
    places, options = parse(parser, arguments)
    from tqdm.auto import tqdm

    from ..calibration_anople import describe_guarantee
    from ..images_anople import list_images
    from ..runtime.loading import announce_mini

    verb, begun = command, command == "enroll" and options.clip is not None
    if begun:
        verb = "add_normals"
    with changing(places.checkpoint, options.output, begun=begun) as save:
        detector = _begin(places.name, options) if begun else open_detector(places.checkpoint)
        if command != "calibrate":  # which remembers nothing
            announce_mini(detector.model.config)
        paths = list_images(places.images) if places.images else None
        threshold = getattr(detector, verb)(
            places.name,
            paths and tqdm(paths, desc=command, disable=None),
            max_false_alarm_rate=options.max_false_alarm_rate,
            batch_size=options.batch_size,
            ignore_mask=options.ignore_mask,
            white_value=options.white_value,
            **({"tiling": options.tiling, "replace": options.replace} if verb == "enroll" else {}),
            **(_known_defects(options) if command == "calibrate" else {}),
        )
        target = save(detector, adapter=not begun and is_adapter(places.checkpoint))
    known = detector.model.products.named(places.name).image_count
    say(
        f"{places.name}: {known} good photographs, threshold at raw score {threshold.image_threshold:.4f} "
        f"({_set_for(threshold)}). {describe_guarantee(threshold)} "
        f"The detector is in {target}."
    )
    return 0


def _set_for(threshold: "ProductThreshold") -> str:
    if threshold.defects is None:
        return f"for {threshold.max_false_alarm_rate:g} false alarms"
    return f"by {len(threshold.defects.scores)} known defects"


def _known_defects(options: CalibrateOptions) -> dict:
    from ..images_anople import list_images

    paths = None if options.defects is None else list_images(options.defects)
    return {"defects": paths, "miss_cost": options.miss_cost, "false_alarm_cost": options.false_alarm_cost}


def open_detector(checkpoint: str) -> "AnomalyDetectionPipeline":
    """Load a detector with its verbs."""
    from ..pipeline_anople import AnomalyDetectionPipeline
    from ..runtime.loading import load_detector

    model, processor = load_detector(checkpoint)
    return AnomalyDetectionPipeline(model, processor=processor, device=model.device)


def is_adapter(checkpoint: str) -> bool:
    """Say whether a detector is an adapter, and is saved as one."""
    from ..runtime.loading import load_config

    return bool(load_config(checkpoint).adapter_clip_sha256)


def _begin(name: str, options: EnrollOptions) -> "AnomalyDetectionPipeline":
    """Make a detector of one product, which its memory alone will judge: what else there is was never fitted."""
    from ..modeling_anople import AnoPLeModel
    from ..pipeline_anople import AnomalyDetectionPipeline
    from ..processing_anople import AnoPLeProcessor
    from ..product_store_anople import new_name

    name = new_name(name, [])
    tiling = None if options.tiling in ("same", "none") else options.tiling
    fusion = {"map_fusion": "memory", "image_fusion": "map", "tiling": tiling}
    sight = {option: value for option in NEW_DETECTOR if (value := getattr(options, option)) is not None}
    model = AnoPLeModel.from_clip(options.clip, [name], **fusion, **sight)
    processor = AnoPLeProcessor.from_clip(options.clip, [name], image_size=model.config.input_size)
    detector = AnomalyDetectionPipeline(model, processor=processor, device=model.device)
    if options.ignore_mask not in (None, "none"):
        detector.set_ignore_mask(name, options.ignore_mask)
    return detector


def forget(arguments: list[str]) -> int:
    """Remove a product."""
    parser = make_parser("forget", ForgetOptions, checkpoint=CHECKPOINT, name="The product.")
    places, options = parse(parser, arguments)
    with changing(places.checkpoint, options.output) as save:
        detector = open_detector(places.checkpoint)
        detector.forget(places.name)
        target = save(detector, adapter=is_adapter(places.checkpoint))
    say(f"{places.name} is forgotten. The detector is in {target}.")
    return 0


def rename(arguments: list[str]) -> int:
    """Give a product another name."""
    parser = make_parser(
        "rename", ForgetOptions, checkpoint=CHECKPOINT, name="The product.", new_name="What it is called from now on."
    )
    places, options = parse(parser, arguments)
    with changing(places.checkpoint, options.output) as save:
        detector = open_detector(places.checkpoint)
        detector.rename(places.name, places.new_name)
        target = save(detector, adapter=is_adapter(places.checkpoint))
    say(f"{places.name} is called {places.new_name} now; its scores are as before. The detector is in {target}.")
    return 0


def ignore(arguments: list[str]) -> int:
    """Keep what does not count on a product's photographs, or nothing any more."""
    parser = make_parser("ignore", ForgetOptions, checkpoint=CHECKPOINT, name="The product.")
    parser.add_argument(
        "mask", help="Picture of its photographs' size, not black where nothing counts; none drops it."
    )
    places, options = parse(parser, arguments)
    with changing(places.checkpoint, options.output) as save:
        detector = open_detector(places.checkpoint)
        detector.set_ignore_mask(places.name, None if places.mask == "none" else places.mask)
        target = save(detector, adapter=is_adapter(places.checkpoint))
    product = detector.model.products.named(places.name)
    say(f"{product.name}: {_kept_mask(product.record)} The detector is in {target}.")
    return 0


def _kept_mask(record: "ProductRecord") -> str:
    if record.ignore_mask_size is None:
        return "No ignore mask is kept."
    height, width = record.ignore_mask_size
    return f"An ignore mask of {width} x {height} pixels is kept ({record.mask_bytes / 1e3:.1f} kB)."


def products(arguments: list[str]) -> int:
    """List the products of a detector, their normals, memory and thresholds, and the log."""
    places, _ = parse(make_parser("products", ProductsOptions, checkpoint=CHECKPOINT), arguments)
    from ..calibration_anople import describe_guarantee
    from ..product_store_anople import ProductRecord
    from ..runtime.loading import describe_mini, load_config

    config = load_config(places.checkpoint)
    records = [ProductRecord.from_dict(values) for values in config.products]
    width = max(len(printable(name)) for name in ["product", *config.class_names])
    rows = [f"{'product':{width}}  photographs  vectors  memory MB  line (raw)  for false alarms"]
    numbers = len(config.memory_layers) * config.memory_tower.hidden_size
    for record in records:
        size, limit = sum(record.image_vectors), record.threshold
        drawn = f"{'none':>10}  {'':16}"
        if limit:
            budget = "by costs" if limit.defects else f"{limit.max_false_alarm_rate:g}"
            drawn = f"{limit.image_threshold:10.4f}  {budget:>16}"
        count = len(record.image_vectors)
        rows.append(
            f"{printable(record.name):{width}}  {count:11}  {size:7}  {4e-6 * size * numbers:9.1f}  {drawn}".rstrip()
        )
    for record in records:
        if record.threshold:
            rows.append(f"{record.name}: {describe_guarantee(record.threshold)}")
        if known := record.valid_sensitivity(config):
            rows += [f"{record.name}: {known.describe_defects()}", f"{record.name}: {known.describe_changes()}"]
        elif record.sensitivity:
            rows.append(
                f"{record.name}: What is found was measured with another line ({record.sensitivity.line:.4f}): run anople "
                "sensitivity again."
            )
        if record.ignore_mask_size:
            rows.append(f"{record.name}: {_kept_mask(record)}")
    rows += filter(None, [describe_mini(config)])
    for entry in config.history:
        files = ", ".join(file or "(from memory)" for file in entry["files"])
        limit, rate = entry.get("line"), entry.get("max_false_alarm_rate")  # earlier versions kept neither
        drawn = "" if limit is None else f"; line {limit:.4f} "
        drawn += "" if limit is None else "by costs" if rate is None else f"for {rate:g} false alarms"
        listed = f": {files}" if files else ""
        if bad := entry.get("defects"):
            names = ", ".join(file or "(from memory)" for file in bad)
            costs = f"a miss costs {entry['miss_cost']:g}, a false alarm {entry['false_alarm_cost']:g}"
            listed = f"{listed}; known defects {names}; {costs}"
        if entry["action"] == "rename":
            listed = f", before: {entry['former_name']}"
        rows.append(f"{entry['date']}  {entry['action']} {entry['class_name']}{listed}{drawn}")
    say(*rows)
    return 0


def _check_target(target: Path, checkpoint: str, *, begun: bool = False) -> None:
    """Refuse a place that a changed, or a new, detector cannot go to."""
    from ..saving_anople import is_empty, state_folder

    if begun:
        if target.is_dir() and not is_empty(target):
            raise ValueError(f"{target} is not empty: a detector begins in a new folder, or leave out --clip.")
        check_new_folder(target)
    in_place = target.resolve() == Path(checkpoint).resolve()
    if not begun and in_place and not target.is_dir():
        raise ValueError(
            f"{checkpoint} is no folder here, so it cannot be changed: add --output FOLDER, or begin a detector with "
            "`anople enroll FOLDER NAME PHOTOGRAPHS --clip mini`."
        )
    if begun or in_place:
        return
    if (state_folder(target) / "config.json").exists():
        raise ValueError(f"{target} already holds a detector: choose another --output.")
    check_new_folder(target, "--output")


@contextlib.contextmanager
def changing(checkpoint: str, output: str | None, *, begun: bool = False) -> Iterator[Callable[..., Path]]:
    """
    Say before any work is done whether the changed detector can go where it shall; give what saves it there.

    A folder that is there is locked from before the detector is loaded until it is saved, so that no other change is lost; a
    new one while it is written, after another look.
    """
    from ..saving_anople import locked

    target = Path(output or checkpoint)
    _check_target(target, checkpoint, begun=begun)

    def save(detector: "AnomalyDetectionPipeline", *, adapter: bool = False) -> Path:
        with locked(target):
            _check_target(target, checkpoint, begun=begun)
            detector.save_pretrained(target, adapter=adapter)
        return target

    with locked(target) if target.is_dir() else contextlib.nullcontext():
        yield save


__all__ = [
    "add_normals",
    "calibrate",
    "changing",
    "enroll",
    "forget",
    "ignore",
    "is_adapter",
    "open_detector",
    "products",
    "rename",
]
