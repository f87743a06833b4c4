"""The `anople` program. Each command's modules are imported when it is called."""

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .cli_data import data
from .cli_demo import demo
from .cli_products import add_normals, enroll, forget, products
from .command_line import make_parser, parse, start_logging


USAGE = """anople COMMAND ...

  fit DATA          learn several products from a few good photographs each
  evaluate CHECKPOINT DATA
                    measure a detector on a test set and write a gallery
  predict CHECKPOINT IMAGES...
                    judge photographs and draw heat maps
  products CHECKPOINT
                    list what a detector knows, and the log of how it came to
  enroll CHECKPOINT NAME IMAGES...
                    add a product from good photographs, without training
  add_normals CHECKPOINT NAME IMAGES...
                    show a product more good photographs
  forget CHECKPOINT NAME
                    remove a product
  draw FOLDER       draw a small set of product photographs to try things on
  data check NAME ROOT
                    count a public data set and compare with the official numbers
  demo [CHECKPOINT] try a detector in the browser (from a checkout)

`anople COMMAND --help` lists the options of a command."""


@dataclass
class EvaluateOptions:
    """Options of `anople evaluate`."""

    json: str | None = field(default=None, metadata={"help": "Write evaluation.json here."})
    csv: str | None = field(default=None, metadata={"help": "Write a line per image here."})
    gallery: str | None = field(default=None, metadata={"help": "Write pictures and index.html into this folder."})
    classes: list[str] | None = field(default=None, metadata={"help": "Products to measure; by default all."})
    score: Literal["fused", "memory", "decoder", "text"] = field(
        default="fused", metadata={"help": "Measure the whole, or one part alone."}
    )
    class_identity: Literal["given", "predicted", "pooled"] | None = field(
        default=None, metadata={"help": "Where the class comes from; by default as fitted."}
    )
    evaluation_size: int = field(default=400, metadata={"help": "Side at which maps and masks are compared."})
    batch_size: int = field(default=8, metadata={"help": "Photographs judged at once."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a Hub id; user/name@revision says the same."}
    )


@dataclass
class PredictOptions:
    """Options of `anople predict`."""

    class_name: str | None = field(
        default=None, metadata={"help": "The product; without it, predicted.", "aliases": ["--class"]}
    )
    output: str | None = field(default=None, metadata={"help": "Write results.jsonl and overlays into this folder."})
    threshold: float | None = field(default=None, metadata={"help": "Score above which a photograph is anomalous."})
    batch_size: int = field(default=8, metadata={"help": "Photographs judged at once."})
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
    """Measure a detector, print the table and write what was asked for."""
    parser = make_parser(
        "evaluate",
        EvaluateOptions,
        checkpoint="Folder of a detector, or Hub id (user/name, user/name@revision).",
        data="Test photographs.",
    )
    places, options = parse(parser, arguments)
    from .evaluation import evaluate as measure
    from .evaluation import test_rows
    from .gallery import make_gallery
    from .loading import load_detector

    model, processor = load_detector(places.checkpoint, options.revision)
    if options.class_identity:
        model.config.class_identity = options.class_identity
    rows = test_rows(places.data, processor.class_names, options.classes)
    report = measure(
        model,
        processor,
        rows,
        part=options.score,
        evaluation_size=options.evaluation_size,
        batch_size=options.batch_size,
    )
    sys.stdout.write(report.to_markdown() + "\n")
    if options.json:
        report.write_json(Path(options.json))
    if options.csv:
        report.write_csv(Path(options.csv))
    if options.gallery:
        index = make_gallery(model, processor, rows, report, Path(options.gallery))
        sys.stdout.write(f"Gallery: {index}\n")
    return 0


def predict(arguments: list[str]) -> int:
    """Judge photographs; print a JSON line for each. Exit with 1 if one could not be read."""
    parser = make_parser(
        "predict", PredictOptions, checkpoint="Folder of a detector, or Hub id (user/name, user/name@revision)."
    )
    parser.add_argument("images", nargs="+", help="Photographs, or folders of them.")
    places, options = parse(parser, arguments)
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold must lie within 0 and 1, got {options.threshold}; a fitted line is 0.5.")
    from .loading import load_detector
    from .prediction import full_size_map
    from .prediction import predict as judge
    from .processing_anople import load_photograph
    from .sources_anople import list_photographs
    from .visualization import overlay, with_legend

    paths, failed = list_photographs(places.images), 0
    model, processor = load_detector(places.checkpoint, options.revision)
    if options.threshold is not None:
        model.config.threshold = options.threshold
    folder = Path(options.output) if options.output else None
    predictions = judge(model, processor, paths, class_names=options.class_name, batch_size=options.batch_size)
    with _open_results(folder) as results:
        for number, (path, prediction) in enumerate(zip(paths, predictions, strict=True)):
            line = {"path": str(path), "class": prediction.class_name, "score": prediction.score}
            line |= {"label": prediction.label, "seconds": prediction.seconds and round(prediction.seconds, 4)}
            if prediction.error:
                failed += 1
                line["error"] = prediction.error
            elif folder:
                picture = overlay(load_photograph(path, white_value=processor.white_value), full_size_map(prediction))
                line["overlay"] = str(folder / f"{number:04d}-{path.stem[:60]}.png")  # 240 bytes in any script
                with_legend(picture).save(line["overlay"])
            text = json.dumps(line) + "\n"  # ASCII: any path in any terminal, also undecodable ones
            sys.stdout.write(text)
            if results:
                results.write(text)
    return 1 if failed else 0


def _open_results(folder: Path | None) -> contextlib.AbstractContextManager:
    if folder is None:
        return contextlib.nullcontext()
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "results.jsonl").open("w", encoding="utf-8")


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
    "forget": forget,
    "draw": draw,
    "data": data,
    "demo": demo,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that a person can mend are one line, without a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in COMMANDS:
        known = not arguments or arguments[0] in ("-h", "--help")
        sys.stderr.write(USAGE + "\n" if known else f"anople: no command {arguments[0]!r}.\n{USAGE}\n")
        return 0 if known and arguments else 2
    start_logging()
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"anople {arguments[0]}: {error}\n")
        return 2
    except ModuleNotFoundError as error:
        extra = {"fit": "train", "evaluate": "evaluate", "demo": "demo"}.get(arguments[0], "all")
        sys.stderr.write(f"anople {arguments[0]} needs {error.name}: pip install 'anople[{extra}]'\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
