"""The `anople` program. Each command's modules are imported when it is called."""

import json
import logging
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from .cli_data import data
from .cli_demo import demo
from .cli_products import add_normals, calibrate, enroll, forget, ignore, products
from .command_line import CHECKPOINT, make_parser, parse, start_logging
from .names_anople import did_you_mean


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
                    set a product's line anew, by more good photographs or for
                    another rate of false alarms; nothing else changes
  ignore CHECKPOINT NAME MASK
                    keep what does not count on a product's photographs
  forget CHECKPOINT NAME
                    remove a product
  export CHECKPOINT FOLDER
                    write an ONNX graph, which predict takes as well; later
                    --products_only brings it products and lines that changed
  draw FOLDER       draw a small set of product photographs to try things on
  data check NAME ROOT
                    count a public data set and compare with the official numbers
  demo [CHECKPOINT] try a detector in the browser (from a checkout)

`anople COMMAND --help` lists the options of a command, `anople --version` says which this is."""


@dataclass
class PredictOptions:
    """Options of `anople predict`."""

    class_name: str | None = field(
        default=None, metadata={"help": "The product; without it, predicted.", "aliases": ["--class"]}
    )
    output: str | None = field(default=None, metadata={"help": "Write results.jsonl and overlays into this folder."})
    csv: str | None = field(default=None, metadata={"help": "Write a line per photograph into this table."})
    class_column: str | None = field(default=None, metadata={"help": "Of shards: the column that names the product."})
    image_column: str | None = field(default=None, metadata={"help": "Of shards: the column of photographs."})
    threshold: float | None = field(default=None, metadata={"help": "Score above which a photograph is anomalous."})
    batch_size: int = field(default=8, metadata={"help": "Photographs judged at once."})
    explain: bool = field(default=False, metadata={"help": "Say in each line what stands behind the answer."})
    tiling: str = field(
        default="same", metadata={"help": "auto, ROWS,COLUMNS or none; by default as each product was learnt."}
    )
    ignore_mask: str | None = field(
        default=None,
        metadata={
            "help": "Picture of the photographs' size; what is not black there does not count. By default what the product "
            "keeps; none ignores nothing."
        },
    )
    device: str = field(
        default="auto", metadata={"help": "auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, ..."}
    )
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "What is computed with; bfloat16 is faster where the hardware knows it."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a Hub id; user/name@revision says the same."}
    )


@dataclass
class DrawOptions:
    """Options of `anople draw`."""

    seed: int = field(default=0, metadata={"help": "Of everything drawn."})
    classes: list[str] | None = field(default=None, metadata={"help": "Products to draw; by default all."})
    train: int = field(default=8, metadata={"help": "Good photographs to learn from, per product."})
    good: int = field(default=8, metadata={"help": "Good test photographs per product."})
    defective: int = field(default=12, metadata={"help": "Defective test photographs per product."})
    size: int = field(default=256, metadata={"help": "Side of a photograph in pixels."})


def fit(arguments: list[str]) -> int:
    """Run the training program with DATA as its first argument."""
    from .training import main as train_main

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--data_root", *arguments]
    train_main(arguments)
    return 0


def evaluate(arguments: list[str]) -> int:
    """Measure a detector on a test set."""
    from .evaluation import main as measure

    return measure(arguments)


def predict(arguments: list[str]) -> int:
    """Judge photographs; print a JSON line for each. Exit with 1 if one could not be read."""
    parser = make_parser("predict", PredictOptions, checkpoint=CHECKPOINT)
    parser.add_argument(
        "images",
        nargs="+",
        help="Photographs, folders of them, or shards of a data set (.parquet, .tar), also on the Hub: "
        "hf://datasets/OWNER/NAME[@REVISION][/FOLDER, FILE or PATTERN].",
    )
    places, options = parse(parser, arguments)
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold must lie within 0 and 1, got {options.threshold}; a fitted line is 0.5.")
    from .loading import load_judge
    from .shards import list_shards

    if shards := list_shards(places.images):
        return _predict_shards(places, options, shards)
    if options.class_column or options.image_column:
        raise ValueError("--class_column and --image_column are for shards (.parquet, .tar), and these are none.")
    from .predict_rows import open_results, table_writer, to_row
    from .prediction import full_size_map
    from .prediction import predict as judge
    from .processing_anople import load_photograph
    from .sources_anople import list_photographs
    from .tiling_anople import tiling_text
    from .visualization import overlay, with_legend

    paths, failed, labels = list_photographs(places.images), 0, Counter()
    model, processor = load_judge(places.checkpoint, options.revision, options.device, options.dtype)
    if options.threshold is not None:
        model.config.threshold = options.threshold
    if options.class_name is not None:
        processor.class_id(options.class_name)  # refuses it before anything is replaced
    folder = Path(options.output) if options.output else None
    predictions = judge(
        model,
        processor,
        paths,
        class_names=options.class_name,
        batch_size=options.batch_size,
        explain=options.explain,
        tiling=options.tiling if options.tiling == "same" else tiling_text(options.tiling),
        ignore_mask=options.ignore_mask,
    )
    with open_results(folder, {path.resolve() for path in paths}) as results, table_writer(options.csv) as write_row:
        for number, (path, prediction) in enumerate(zip(paths, predictions, strict=True)):
            line = to_row(path, prediction)
            failed += prediction.error is not None
            if prediction.explanation:
                line["explanation"] = prediction.explanation.as_dict()
            if folder and not prediction.error:
                picture = overlay(load_photograph(path, white_value=processor.white_value), full_size_map(prediction))
                line["overlay"] = str(folder / f"{number:04d}-{path.stem[:60]}.png")  # 240 bytes in any script
                with_legend(picture).save(line["overlay"])
            write_row(line)
            text = json.dumps(line) + "\n"  # ASCII: any path in any terminal, also undecodable ones
            sys.stdout.write(text)
            if results:
                results.write(text)
            labels[prediction.label or "without a line"] += prediction.error is None
    if len(paths) > 1:
        counts = [f"{count} {label}" for label, count in sorted(labels.items()) if count]
        counts += [f"{failed} that could not be used"] if failed else []
        logger.info("%d photographs: %s.", len(paths), ", ".join(counts))
    return 1 if failed else 0


def _predict_shards(places: Namespace, options: PredictOptions, shards: list) -> int:
    """Judge a data set shard by shard; exit with 1 if a photograph could not be read."""
    from .bulk import predict_shards
    from .loading import load_judge
    from .processes import join_processes

    given = {"--csv": options.csv, "--explain": options.explain, "--ignore_mask": options.ignore_mask}
    given["--tiling"] = options.tiling != "same"
    if unused := [name for name, value in given.items() if value]:
        raise ValueError(f"{', '.join(unused)} cannot be had with shards: leave it out, or give photographs.")
    if options.output is None:
        raise ValueError("Shards are answered in files: add --output FOLDER.")
    join_processes()  # which gives each its own GPU; before, all would take the first
    model, processor = load_judge(places.checkpoint, options.revision, options.device, options.dtype)
    if options.threshold is not None:
        model.config.threshold = options.threshold
    failed = predict_shards(
        model,
        processor,
        shards,
        Path(options.output),
        class_name=options.class_name,
        class_column=options.class_column,
        image_column=options.image_column,
        batch_size=options.batch_size,
    )
    return 1 if failed else 0


def export(arguments: list[str]) -> int:
    """Write a detector as an ONNX graph."""
    from .exporting import export as write

    return write(arguments)


def draw(arguments: list[str]) -> int:
    """Draw a small data set of products with good and defective photographs."""
    parser = make_parser("draw", DrawOptions, folder="Where to; must be empty or new.")
    places, options = parse(parser, arguments)
    from .drawing import write_dataset

    settings = dict(vars(options))
    write_dataset(Path(places.folder), settings.pop("seed"), **settings)
    sys.stdout.write(f"Photographs: {places.folder}\n")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "fit": fit,
    "evaluate": evaluate,
    "predict": predict,
    "products": products,
    "enroll": enroll,
    "add_normals": add_normals,
    "calibrate": calibrate,
    "forget": forget,
    "ignore": ignore,
    "export": export,
    "draw": draw,
    "data": data,
    "demo": demo,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that a person can mend are one line, without a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in (*COMMANDS, "--version"):
        known = not arguments or arguments[0] in ("-h", "--help")
        sys.stderr.write(
            USAGE + "\n"
            if known
            else f"anople: no command {arguments[0]!r}.{did_you_mean(arguments[0], COMMANDS)}\n{USAGE}\n"
        )
        return 0 if known and arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"anople {version('anople')}\n")
        return 0
    start_logging()
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"anople {arguments[0]}: {error}\n")
        return 2
    except KeyboardInterrupt:
        more = ": the same command with --resume goes on" if arguments[0] == "fit" else ""
        sys.stderr.write(f"\nanople {arguments[0]}: stopped{more}.\n")
        return 130
    except ModuleNotFoundError as error:
        extra = {"fit": "train", "evaluate": "evaluate", "demo": "demo", "export": "export"}.get(arguments[0], "all")
        extra = "openvino" if error.name == "openvino" else extra
        sys.stderr.write(f"anople {arguments[0]} needs {error.name}: pip install 'anople[{extra}]'\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
