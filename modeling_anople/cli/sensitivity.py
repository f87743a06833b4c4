"""`anople sensitivity`: what drawn defects a detector finds at its present line, and what good photographs bear."""

import json
import logging
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime import CHECKPOINT, make_parser, parse, say
from ..runtime.outputs import OVERWRITE, Output, check_outputs, json_of
from .enrollment import changing, is_adapter, open_detector


if TYPE_CHECKING:
    from ..evaluation.sensitivity import SensitivityReport


logger = logging.getLogger(__name__)

FILE = "sensitivity.json"
PICTURES = "[0-9][0-9]*-*.png"
KEYS = ("detector_sha256", "products", "refused")
SENSITIVITY_RANGES = {"photographs": (1, 100_000), "seed": (0, 2**32 - 1), "batch_size": (1, 65_536)}


@dataclass
class SensitivityOptions:
    """Options of `anople sensitivity`."""

    class_name: str | None = field(
        default=None,
        metadata={"help": "The product; by default all, each in a folder of its own.", "aliases": ["--class"]},
    )
    output: str | None = field(
        default=None, metadata={"help": "Write sensitivity.json and a picture of each product into this folder."}
    )
    overwrite: bool = field(default=False, metadata={"help": OVERWRITE})
    photographs: int = field(
        default=12, metadata={"help": "Good photographs of a product that are taken at most, 1 to 100000."}
    )
    seed: int = field(default=0, metadata={"help": "Of everything drawn, 0 to 4294967295."})
    batch_size: int = field(default=8, metadata={"help": "Photographs judged at once, 1 to 65536."})
    device: str = field(
        default="auto", metadata={"help": "auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, ..."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})

    def __post_init__(self):
        from ..configuration_anople import check_ranges  # it brings torch along

        check_ranges(self, SENSITIVITY_RANGES, "--")


def sensitivity(arguments: list[str]) -> int:
    """
    Measure; exit with 1 where a photograph, a copy or a product could not be measured, or a detector's folder keeps it not.

    A detector of the Hub and an exported one keep nothing, which is said and no failure.
    """
    parser = make_parser("sensitivity", SensitivityOptions, checkpoint=CHECKPOINT)
    data = "Good photographs that it was not taught: folders of products as for fit, or with --class photographs."
    parser.add_argument("data", nargs="+", help=data)
    places, options = parse(parser, arguments)
    from ..evaluation.sensitivity import choose_photographs, measure_sensitivity
    from ..runtime.loading import detector_sha256, load_judge

    folder = None if options.output is None else Path(options.output)
    if folder is not None:
        _check_places(folder, places, options)
    model, processor = load_judge(places.checkpoint, options.revision, options.device)
    keeps = _keeps(places.checkpoint)
    chosen, refused = {}, {}
    given = _sources(places.data, options.class_name, model.config.class_names)
    for name, sources in given.items():
        try:
            chosen[name] = choose_photographs(model, processor, name, sources, most=options.photographs)
        except ValueError as error:
            refused[name] = str(error)
    if not chosen:
        raise ValueError(" ".join(refused.values()))
    reports: list[SensitivityReport] = []
    for name, photographs in chosen.items():
        try:
            reports.append(
                measure_sensitivity(
                    model, processor, name, photographs, seed=options.seed, batch_size=options.batch_size
                )
            )
        except ValueError as error:
            refused[name] = str(error)
            continue
        say(*reports[-1].lines(), "")
    _say_left_out(reports, {name: len(sources) for name, sources in given.items()}, refused)
    if not reports:
        raise ValueError("No product could be measured: see above.")
    state = detector_sha256(model)
    if folder is not None:
        _write(folder, reports, refused, state)
    kept = _keep(places.checkpoint, reports, state) if keeps else keeps is None
    return 0 if kept and not refused and not any(map(_has_failures, reports)) else 1


def _say_left_out(reports: list["SensitivityReport"], given: dict[str, int], refused: dict[str, str]) -> None:
    """Say which photographs, of how many that were given, which copies and which products were not measured."""
    from ..evaluation.sensitivity import KNOWN, describe_failed

    for report in reports:
        failed = {path: reason for path, reason in report.left_out.items() if reason != KNOWN}
        if known := len(report.left_out) - len(failed):
            total = given[report.class_name]
            logger.warning(
                "%s: left out, of %d photographs, %d, each of which %s.", report.class_name, total, known, KNOWN
            )
        for path, reason in failed.items():
            logger.warning("%s: %s is left out: %s", report.class_name, path, reason)
        if report.failed:
            logger.warning("%s: of its changed copies, %s", report.class_name, describe_failed(report.failed))
    for name, reason in refused.items():
        logger.warning("%s is not measured: %s", name, reason)


def _has_failures(report: "SensitivityReport") -> bool:
    from ..evaluation.sensitivity import KNOWN

    return bool(report.failed) or any(reason != KNOWN for reason in report.left_out.values())


def _sources(data: Sequence[str], class_name: str | None, known: list[str]) -> dict[str, list]:
    """List the good photographs of each product: of folders of products, or those that were given for one."""
    from ..data import read_source, source_classes
    from ..images_anople import list_images
    from ..product_store_anople import composed, find_class

    if class_name is not None:
        class_name = known[find_class(class_name, known)]
        if len(data) > 1 or Path(data[0]).is_file():
            return {class_name: list_images(data)}
    elif len(data) > 1:
        raise ValueError("Several folders or photographs were given: say with --class NAME of which product they are.")
    found, names = source_classes(data[0]), {composed(name): name for name in known}
    wanted = [name for name in found if name in names and class_name in (None, names[name])]
    if not wanted and class_name is not None and len(found) == 1:  # its photographs, in a folder of any name
        wanted, names = found, {found[0]: class_name}
    if not wanted:
        raise ValueError(
            f"{data[0]} has the products {', '.join(found)}, and the detector knows {', '.join(known)}: give folders of those, "
            "or with --class NAME the photographs of one."
        )
    if passed := [name for name in found if name not in names] if class_name is None else []:
        logger.warning("The detector does not know %s, which is passed over.", ", ".join(passed))
    rows = read_source(data[0], split="train", classes=wanted)
    sources: dict[str, list] = {names[name]: [] for name in wanted}
    for row in rows:
        if row["label"] == 0:
            sources[names[row["class_name"]]].append(row["image"]["path"] or row["image"])
    return sources


def _check_places(folder: Path, places: Namespace, options: SensitivityOptions) -> None:
    written = {path.name for path in _written_before(folder)}
    outputs = [Output("--output", folder / FILE, json_of(KEYS))]
    outputs += [Output("--output", path, lambda path: path.name in written) for path in sorted(folder.glob(PICTURES))]
    check_outputs(outputs, inputs=places.data, overwrite=options.overwrite)


def _written_before(folder: Path) -> list[Path]:
    """List the pictures in a folder that its list names."""
    try:
        products = json.loads((folder / FILE).read_text(encoding="utf-8"))["products"]
        names = [each["picture"] for each in products.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no list of ours
        return []
    return [path for path in sorted(folder.glob(PICTURES)) if path.name in names]


def _write(folder: Path, reports: list["SensitivityReport"], refused: dict[str, str], state: str) -> None:
    """Write all counts and a picture of each product; pictures of an earlier run are removed."""
    from ..evaluation.sensitivity import draw_sensitivity

    folder.mkdir(parents=True, exist_ok=True)
    for path in _written_before(folder):
        path.unlink()
    products = {}
    for number, report in enumerate(reports, start=1):
        slug = re.sub(r"[^A-Za-z0-9]+", "-", report.class_name).strip("-")[:60] or "product"
        picture = f"{number:02d}-{slug}.png"
        draw_sensitivity(report).save(folder / picture)
        products[report.class_name] = {**report.to_dict(), "picture": picture}
    text = json.dumps({"detector_sha256": state, "products": products, "refused": refused}, indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
    say(f"Counts and pictures: {folder}")


def _keeps(checkpoint: str) -> bool | None:
    """Say, before there is anything to lose, whether a detector's folder can keep a result; `None` for what is none."""
    if not (Path(checkpoint) / "config.json").is_file() or (Path(checkpoint) / "graph.json").exists():
        logger.warning("%s is no folder of a detector, so it keeps nothing of this.", checkpoint)
        return None
    try:
        with changing(checkpoint, None):
            return True
    except OSError as error:
        logger.warning("This is measured, but the detector keeps nothing of it: %s", error)
        return False


def _keep(checkpoint: str, reports: list["SensitivityReport"], state: str) -> bool:
    """Let the detector's folder keep what was measured, unless it was changed meanwhile; say why not where it cannot."""
    from ..runtime.loading import detector_sha256

    with changing(checkpoint, None) as save:
        detector = open_detector(checkpoint)
        if detector_sha256(detector.model) != state:
            logger.warning(
                "%s was changed while it was measured, and keeps nothing of this: run it again.", checkpoint
            )
            return False
        products = detector.model.products
        for report in reports:
            products.keep_sensitivity(products.id_of(report.class_name), report.to_record())
        save(detector, adapter=is_adapter(checkpoint))
    return True


__all__ = ["sensitivity"]
