"""The `anople` program. Each command's modules are imported when it is called."""

import importlib
import json
import logging
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from ..inspection.records import (
    check_places,
    draw_files,
    folder_of,
    names_of_drawn,
    open_results,
    table_writer,
    to_line,
)
from ..runtime import (
    CHECKPOINT,
    LOOKS,
    MACHINE,
    WRITES,
    make_parser,
    one_line,
    parse,
    printable,
    report_stop,
    say,
    start_logging,
)
from ..runtime.outputs import OVERWRITE, check_new_folder
from .doctor import doctor
from .enrollment import add_normals, calibrate, enroll, forget, ignore, products, rename
from .inspection import drift, feedback, watch
from .sensitivity import sensitivity
from .serving import report, serve


if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..configuration_anople import AnoPLeConfig
    from ..inspection.report import Report


# --- `anople data check NAME ROOT`: whether a public set is whole ---


DATA_USAGE = "anople data check NAME ROOT: count a public data set, and compare with the official numbers.\n"


@dataclass
class CheckOptions:
    """`anople data check` has no options."""


def data(arguments: list[str]) -> int:
    """Run `check`; exit with 1 where a number differs from the official one."""
    if not arguments or arguments[0] != "check":
        sys.stderr.write(DATA_USAGE)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    from ..data.public_sets import SETS

    places = {"name": f"One of {', '.join(SETS)}.", "root": "Its folder."}
    found, _ = parse(make_parser("data check", CheckOptions, **places), arguments[1:])
    if found.name not in SETS:
        raise ValueError(f"No public set {found.name!r} is known: choose from {', '.join(SETS)}.")
    lines, whole = count_set(found.name, found.root)
    say(*lines)
    return 0 if whole else 1


def count_set(name: str, root: str) -> tuple[list[str], bool]:
    """Count train, good and defective test photographs of each class; return a table, and whether all numbers agree."""
    from ..data import read_source
    from ..data.public_sets import SETS

    facts, counts = SETS[name], Counter()
    for split in ("train", "test"):
        rows = read_source(f"{name}:{root}", split=split)
        counts.update(
            (owner, split, bool(label)) for owner, label in zip(rows["class_name"], rows["label"], strict=True)
        )
    lines, whole = ["| class | train | test, good | test, defective | official |", "|---|---|---|---|---|"], True
    totals = (0, 0, 0)
    for owner in dict.fromkeys([*facts.classes, *sorted({owner for owner, _, _ in counts})]):
        ours = counts[owner, "train", False], counts[owner, "test", False], counts[owner, "test", True]
        said, agrees = compare(ours, facts.classes.get(owner), facts.both_splits.get(owner))
        if not any(ours) or owner not in facts.classes:
            said, agrees = "missing" if not any(ours) else "no class of this set", False
        whole &= agrees
        totals = tuple(map(sum, zip(totals, ours, strict=True)))
        lines.append(f"| {owner} | {' | '.join(map(str, ours))} | {said} |")
    said, agrees = compare(totals, facts.totals, None)
    lines += [
        f"| all | {' | '.join(map(str, totals))} | {said} |",
        "",
        f"{facts.title}: {facts.home}; license: {facts.license}.",
    ]
    return lines, whole and agrees


def compare(ours: tuple, official: tuple | None, both_splits: tuple | None) -> tuple[str, bool]:
    """Say whether counts agree with the official ones; `None` agrees with all, `both_splits` counts both splits together."""
    if official is not None:
        agrees = all(there in (here, None) for here, there in zip(ours, official, strict=True))
        return ("agrees", True) if agrees else (f"differs: {official}".replace("None", "any"), False)
    if both_splits is not None:
        good, bad = ours[0] + ours[1], ours[2]
        return (
            ("agrees", True)
            if (good, bad) == both_splits
            else (f"differs: {both_splits[0]} good, {both_splits[1]} defective", False)
        )
    return "not known to us", True


# --- `anople demo`, `push` and `push_space`: `demo/` and `hub/` lie beside the package in a checkout, in `programs/` of a wheel ---


def demo(arguments: list[str]) -> int:
    """Try a detector in the browser: `python demo/app.py`."""
    return _import_program("demo.app").main(arguments)


def push(arguments: list[str]) -> int:
    """Publish a detector: `python -m hub.publish`."""
    return _import_program("hub.publish.__main__").main(arguments, program="anople push")


def push_space(arguments: list[str]) -> int:
    """Publish the demo as a Space: `python -m hub.publish.space`."""
    return _import_program("hub.publish.space").main(arguments, program="anople push_space")


def _import_program(name: str) -> ModuleType:
    """
    Import a module of `demo` or `hub`, which only the process that runs it sees under this name.

    Raises:
        ValueError: where neither a checkout nor a wheel holds it.
    """
    package, file = Path(__file__).resolve().parents[1], Path(*name.split(".")).with_suffix(".py")
    holder = next((folder for folder in (package / "programs", package.parent) if (folder / file).is_file()), None)
    if holder is None:
        raise ValueError(f"{package} came without {file}: install a wheel of anople, or a whole checkout.")
    sys.path.insert(0, str(holder))
    return importlib.import_module(name)


# --- The `anople` program ---


logger = logging.getLogger(__name__)

USAGE = """anople COMMAND ...

  fit DATA          learn several products from a few good photographs each
  evaluate CHECKPOINT DATA
                    measure a detector on a test set and write a gallery
  predict CHECKPOINT IMAGES...
                    judge photographs and draw heat maps
  products CHECKPOINT
                    list what a detector knows, and the log of how it came to
  enroll CHECKPOINT NAME IMAGES...
                    add a product from good photographs, without training;
                    --clip begins a new detector with it
  add_normals CHECKPOINT NAME IMAGES...
                    show a product more good photographs
  calibrate CHECKPOINT NAME [IMAGES...]
                    set a product's line anew, by more good photographs, for
                    another rate of false alarms, or by a few --defects and
                    what errors cost; nothing else changes
  ignore CHECKPOINT NAME MASK
                    keep what does not count on a product's photographs
  rename CHECKPOINT NAME NEW_NAME
                    give a product another name; its scores stay
  forget CHECKPOINT NAME
                    remove a product
  sensitivity CHECKPOINT GOOD
                    say how small a drawn defect is found, and how much light,
                    blur, shift, rotation and compression good parts bear
  export CHECKPOINT FOLDER
                    write an ONNX graph, which predict takes as well; later
                    --products_only brings it products and lines that changed
  serve CHECKPOINT  answer requests over HTTP with verdicts
  report RESULTS    write a page for people about what was inspected
  watch CHECKPOINT FOLDER --output RESULTS
                    judge every photograph that arrives in a folder, put it
                    away and tell a webhook or an MQTT broker
  drift CHECKPOINT RESULTS
                    say whether the scores of good photographs have changed
  feedback CHECKPOINT ID good|bad|undo
                    say what is true of a result's part; a good one that was set
                    aside is learned
  doctor [CHECKPOINT]
                    say what is installed, what is missing for which command,
                    and whether a detector is sound
  draw FOLDER       draw a small set of product photographs to try things on
  data check NAME ROOT
                    count a public data set and compare with the official numbers
  demo [CHECKPOINT] try a detector in the browser
  push CHECKPOINT USER/NAME
                    publish a detector on the Hub, with a model card
  push_space USER/NAME
                    publish the demo as a Space of the Hub

`anople COMMAND --help` lists the options of a command, `anople --version` says which this is."""


SHARDS = "shards of a data set"  # a heading of the help
# The least and the greatest value of every number, both allowed; help texts name them.
PREDICT_RANGES = {"threshold": (0, 1), "batch_size": (1, 65_536), "min_area": (1, 1_000_000_000)}
DRAW_RANGES = {
    "seed": (0, 2**32 - 1),
    "train": (0, 100_000),
    "good": (0, 100_000),
    "defective": (0, 100_000),
    "size": (32, 4096),
}


@dataclass
class PredictOptions:
    """Options of `anople predict`."""

    class_name: str | None = field(
        default=None, metadata={"help": "The product; without it, predicted.", "aliases": ["--class"]}
    )
    output: str | None = field(default=None, metadata={"help": "Write results.jsonl and overlays into this folder."})
    csv: str | None = field(default=None, metadata={"help": "Write a line per photograph into this table."})
    report: str | None = field(
        default=None, metadata={"help": "Write a page for people into this file: verdicts, worst pictures first."}
    )
    json_lines: bool = field(
        default=False, metadata={"help": "Print JSON lines on a terminal, too, where sentences are printed otherwise."}
    )
    save: str | None = field(
        default=None,
        metadata={
            "heading": WRITES,
            "help": "masks, maps or masks,maps: write these too into --output, in folders as the photographs lie.",
        },
    )
    map_format: Literal["png16", "png8", "npy"] = field(
        default="png16",
        metadata={"heading": WRITES, "help": "Of the maps: scores as 16 or 8 bits of a PNG, or float32."},
    )
    min_area: int = field(
        default=1,
        metadata={"heading": WRITES, "help": "Pixels that a region must have to be listed, 1 to 1000000000."},
    )
    overwrite: bool = field(default=False, metadata={"heading": WRITES, "help": OVERWRITE})
    class_column: str | None = field(
        default=None, metadata={"heading": SHARDS, "help": "Of shards: the column that names the product."}
    )
    image_column: str | None = field(
        default=None, metadata={"heading": SHARDS, "help": "Of shards: the column of photographs."}
    )
    threshold: float | None = field(
        default=None, metadata={"help": "Score above which a photograph is anomalous, 0 to 1."}
    )
    batch_size: int = field(
        default=8, metadata={"heading": MACHINE, "help": "Photographs judged at once, 1 to 65536."}
    )
    explain: bool = field(
        default=False,
        metadata={"help": "Say in each JSON line what stands behind the answer; prints these on a terminal, too."},
    )
    tiling: str = field(
        default="same",
        metadata={"heading": LOOKS, "help": "auto, ROWS,COLUMNS or none; by default as each product was learned."},
    )
    ignore_mask: str | None = field(
        default=None,
        metadata={
            "heading": LOOKS,
            "help": "Picture of the photographs' size; what is not black there does not count. By default what the product "
            "keeps; none ignores nothing.",
        },
    )
    device: str = field(
        default="auto",
        metadata={"heading": MACHINE, "help": "auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, ..."},
    )
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32",
        metadata={
            "heading": MACHINE,
            "help": "What is computed with; bfloat16 is faster where the hardware knows it.",
        },
    )
    revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of a Hub id; user/name@revision says the same."},
    )

    def __post_init__(self):
        from ..configuration_anople import check_ranges  # it brings torch along

        check_ranges(self, PREDICT_RANGES, "--")
        if unknown := sorted(self.saved - {"masks", "maps"}):
            raise ValueError(f"--save takes masks, maps or masks,maps, not {', '.join(unknown)}.")
        if self.saved and self.output is None:
            raise ValueError("--save says what is written into a folder: add --output FOLDER.")

    @property
    def saved(self) -> set[str]:
        """What --save asks for."""
        return set(self.save.split(",")) if self.save is not None else set()


@dataclass
class ExportOptions:
    """Options of `anople export`."""

    format: Literal["onnx", "openvino"] = field(default="onnx", metadata={"help": "Of the graph."})
    weights: Literal["float32", "int8", "int8_dynamic"] = field(
        default="float32",
        metadata={
            "help": "int8 halves the file or better and moves scores by some hundredths; int8_dynamic also computes in 8 "
            "bits, which is faster, and moves them by up to two tenths."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier export in the folder."})
    products_only: bool = field(
        default=False,
        metadata={"help": "Bring products and lines of this detector's export up to date; the graph stays as it is."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})


@dataclass
class DrawOptions:
    """Options of `anople draw`."""

    seed: int = field(default=0, metadata={"help": "Of everything drawn, 0 to 4294967295."})
    classes: list[str] | None = field(default=None, metadata={"help": "Products to draw; by default all."})
    train: int = field(default=8, metadata={"help": "Good photographs to learn from, per product, 0 to 100000."})
    good: int = field(default=8, metadata={"help": "Good test photographs per product, 0 to 100000."})
    defective: int = field(default=12, metadata={"help": "Defective test photographs per product, 0 to 100000."})
    size: int = field(default=256, metadata={"help": "Side of a photograph in pixels, 32 to 4096."})

    def __post_init__(self):
        from ..configuration_anople import check_ranges  # it brings torch along

        check_ranges(self, DRAW_RANGES, "--")


def fit(arguments: list[str]) -> int:
    """Run the training program with DATA as its first argument."""
    from ..training import main as train_main

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--data_root", *arguments]
    train_main(arguments)
    return 0


def evaluate(arguments: list[str]) -> int:
    """Measure a detector on a test set."""
    from ..evaluation import main as measure

    return measure(arguments)


def predict(arguments: list[str]) -> int:
    """Judge photographs; print a JSON line, or on a terminal a sentence, for each. Exit with 1 if one could not be read."""
    parser = make_parser("predict", PredictOptions, checkpoint=CHECKPOINT)
    parser.add_argument(
        "images",
        nargs="+",
        help="Photographs, folders of them, or shards of a data set (.parquet, .tar), also on the Hub: "
        "hf://datasets/OWNER/NAME[@REVISION][/FOLDER, FILE or PATTERN].",
    )
    places, options = parse(parser, arguments)
    from ..runtime.loading import list_shards, load_judge

    if shards := list_shards(places.images):
        return _predict_shards(places, options, shards)
    if options.class_column or options.image_column:
        raise ValueError("--class_column and --image_column are for shards (.parquet, .tar), and these are none.")
    from ..images_anople import list_images
    from ..inspection.report import describe_row
    from ..pipeline_anople import predict as judge
    from ..tiling_anople import tiling_text

    paths, failed, labels = list_images(places.images), 0, Counter()
    tiling = options.tiling if options.tiling == "same" else tiling_text(options.tiling)
    drawn = names_of_drawn(options, paths, places.images)
    check_places(options, paths, drawn)
    model, processor = load_judge(places.checkpoint, options.revision, options.device, options.dtype)
    if options.class_name is not None:
        processor.class_id(options.class_name)  # refuses it before anything is replaced
    folder = Path(options.output) if options.output else None
    threshold = model.config.threshold if options.threshold is None else options.threshold
    in_words = sys.stdout.isatty() and not (options.json_lines or options.explain)
    page = _new_page(places, options, model.config) if options.report else None
    predictions = judge(
        model,
        processor,
        paths,
        class_names=options.class_name,
        batch_size=options.batch_size,
        explain=options.explain,
        tiling=tiling,
        ignore_mask=options.ignore_mask,
        threshold=options.threshold,
    )
    with (
        open_results(folder, {Path(os.path.realpath(path)) for path in paths}) as results,
        table_writer(options.csv) as write_row,
    ):
        for path, names, prediction in zip(paths, drawn, predictions, strict=True):
            full = None if prediction.error else prediction.full_size_map()
            line = to_line(path, prediction, full, names, options)
            failed += prediction.error is not None
            write_row(line)
            text = json.dumps(line) + "\n"  # ASCII: any path in any terminal, also undecodable ones
            sys.stdout.write(f"{printable(describe_row(line, threshold))}\n" if in_words else text)
            if results:
                results.write(text)
            draw = partial(_picture_of, path, full, processor.white_value, line, threshold)
            if "overlay" in line:
                draw().save(line["overlay"])
                draw_files(line, prediction, full, options)
            if page:
                page.add(line, draw)
            verdict = "unsure" if prediction.unsure else prediction.label or "without a line"
            labels[verdict] += prediction.error is None
    if page:
        page.write(Path(options.report))
        logger.info("Report: %s", options.report)
    if len(paths) > 1:
        counts = [f"{count} {label}" for label, count in sorted(labels.items()) if count]
        counts += [f"{failed} that could not be used"] if failed else []
        logger.info("%d photographs: %s.", len(paths), ", ".join(counts))
    return 1 if failed else 0


def _new_page(places: Namespace, options: PredictOptions, config: "AnoPLeConfig") -> "Report":
    from ..inspection.report import Report

    names = ("class_name", "min_area", "tiling", "ignore_mask", "dtype")
    settings = {name.replace("_", " "): getattr(options, name) for name in names}
    return Report(
        printable(", ".join(places.images)[:120]),
        config=config,
        detector=places.checkpoint,
        threshold=options.threshold,
        settings=settings,
    )


def _picture_of(
    path: Path, full_map: "np.ndarray", white_value: float | None, line: dict, threshold: float
) -> "Image.Image":
    from ..images_anople import load_image
    from ..inspection.report import draw_verdict

    return draw_verdict(load_image(path, white_value=white_value), full_map, line, threshold)


def _predict_shards(places: Namespace, options: PredictOptions, shards: list) -> int:
    """Judge a data set shard by shard; exit with 1 if a photograph could not be read."""
    from ..data.shards import predict_shards
    from ..runtime.loading import join_processes, load_judge

    given = {"--csv": options.csv, "--explain": options.explain, "--ignore_mask": options.ignore_mask}
    given |= {"--tiling": options.tiling != "same", "--save": options.save, "--min_area": options.min_area > 1}
    given["--report"] = options.report
    given["--map_format"] = options.map_format != "png16"
    if unused := [name for name, value in given.items() if value]:
        raise ValueError(f"{', '.join(unused)} cannot be had with shards: leave it out, or give photographs.")
    if options.output is None:
        raise ValueError("Shards are answered in files: add --output FOLDER.")
    folder = folder_of(options)
    join_processes()  # which gives each its own GPU; before, all would take the first
    model, processor = load_judge(places.checkpoint, options.revision, options.device, options.dtype)
    if options.threshold is not None:
        model.config.threshold = options.threshold
    failed = predict_shards(
        model,
        processor,
        shards,
        folder,
        class_name=options.class_name,
        class_column=options.class_column,
        image_column=options.image_column,
        batch_size=options.batch_size,
    )
    return 1 if failed else 0


def export(arguments: list[str]) -> int:
    """Write a detector as a graph."""
    parser = make_parser("export", ExportOptions, checkpoint=CHECKPOINT, folder="Where to.")
    places, options = parse(parser, arguments)
    if options.products_only and (options.format, options.weights, options.overwrite) != ("onnx", "float32", False):
        raise ValueError("--products_only keeps the graph: leave out --format, --weights and --overwrite.")
    if not options.products_only:
        import onnxscript  # noqa: F401  needed by the exporter; a missing one is named before anything is loaded
    if options.format == "openvino":
        import openvino  # noqa: F401

    from ..export import export_detector, export_products
    from ..runtime.loading import load_detector

    model, processor = load_detector(places.checkpoint, options.revision)
    if options.products_only:
        folder = export_products(model, processor, places.folder)
        logger.info("%s holds the products and lines of %s; its graph is as it was.", folder, places.checkpoint)
        return 0
    folder = export_detector(
        model,
        processor,
        places.folder,
        format=options.format,
        weights=options.weights,
        overwrite=options.overwrite,
    )
    logger.info("%s holds the graph: anople predict %s PHOTOGRAPHS", folder, folder)
    return 0


def draw(arguments: list[str]) -> int:
    """Draw a small data set of products with good and defective photographs."""
    parser = make_parser("draw", DrawOptions, folder="Where to; must be empty or new.")
    places, options = parse(parser, arguments)
    from ..data.drawn_products import write_dataset

    check_new_folder(places.folder)
    settings = dict(vars(options))
    write_dataset(Path(places.folder), settings.pop("seed"), **settings)
    say(f"Photographs: {places.folder}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "fit": fit,
    "evaluate": evaluate,
    "predict": predict,
    "products": products,
    "enroll": enroll,
    "add_normals": add_normals,
    "calibrate": calibrate,
    "rename": rename,
    "forget": forget,
    "ignore": ignore,
    "sensitivity": sensitivity,
    "export": export,
    "serve": serve,
    "report": report,
    "watch": watch,
    "drift": drift,
    "feedback": feedback,
    "doctor": doctor,
    "draw": draw,
    "data": data,
    "demo": demo,
    "push": push,
    "push_space": push_space,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that a person can mend are one line, without a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in (*COMMANDS, "--version"):
        from ..product_store_anople import did_you_mean

        known = not arguments or arguments[0] in ("-h", "--help")
        sys.stderr.write(
            USAGE + "\n"
            if known
            else f"anople: no command {printable(repr(arguments[0]))}.{did_you_mean(arguments[0], COMMANDS)}\n{USAGE}\n"
        )
        return 0 if known and arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"anople {version('anople')}\n")
        return 0
    start_logging()
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"anople {arguments[0]}: {one_line(error)}\n")
        return 2
    except MemoryError:
        sys.stderr.write(f"anople {arguments[0]}: the memory of this machine is not enough: ask for less at once.\n")
        return 2
    except KeyboardInterrupt as stop:
        return report_stop(f"anople {arguments[0]}", stop)
    except ModuleNotFoundError as error:
        own = {name: name for name in ("evaluate", "demo", "export", "serve")}
        own |= {"fit": "train", "sensitivity": "evaluate", "watch": "line", "push": "hub", "push_space": "hub"}
        extra = own.get(arguments[0], "all")
        extra = {"openvino": "openvino", "av": "camera"}.get(error.name, extra)
        sys.stderr.write(f"anople {arguments[0]} needs {error.name}: pip install 'anople[{extra}]'\n")
        return 2


__all__ = [
    "compare",
    "count_set",
    "data",
    "demo",
    "push",
    "push_space",
]


if __name__ == "__main__":
    sys.exit(main())
