"""`anople doctor`: what is installed and what is missing for which journey, the machine, and whether a detector is sound."""

import hashlib
import importlib.metadata
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from ..runtime import CHECKPOINT, make_parser, one_line, parse, say


if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from ..configuration_anople import AnoPLeConfig


# What each extra of the package is for. Which packages it takes stands in the package's metadata alone.
JOURNEYS = {
    "train": "anople fit",
    "evaluate": "anople evaluate, sensitivity",
    "demo": "anople demo",
    "serve": "anople serve",
    "line": "anople watch",
    "camera": "anople watch, of a camera",
    "export": "anople export",
    "openvino": "anople export --format openvino",
    "hub": "anople push",
}
NO_JOURNEYS = {"all", "test", "docs", "dev", "tensorboard", "trackio"}
SUMS = "SHA256SUMS"  # beside the embedded CLIP: the hash of each of its files, as the program sha256sum writes and reads it
LITTLE_DISK = 1e9  # bytes: a detector with a large CLIP and the copy that is written beside it


@dataclass
class DoctorOptions:
    """Options of `anople doctor`."""

    json: bool = field(default=False, metadata={"help": "Print what was found as JSON."})


@dataclass
class Finding:
    """
    One thing that was looked at.

    Args:
        part: `package`, `journey`, `machine` or `detector`.
        name: of the thing.
        state: `fine`; `note`, which is good to know; `missing` or `mend`, for which `remedy` says what to do.
        said: what was found.
    """

    part: str
    name: str
    state: Literal["fine", "note", "missing", "mend"]
    said: str
    remedy: str = ""


def doctor(arguments: list[str]) -> int:
    """Look at all of it; exit with 1 where something is to be mended. What a journey lacks is said, and is no fault."""
    parser = make_parser("doctor", DoctorOptions)
    parser.add_argument("checkpoint", nargs="?", help=f"{CHECKPOINT} It is only read.")
    places, options = parse(parser, arguments)
    findings = [*look_at_packages(), *look_at_machine(Path(places.checkpoint or "."))]
    if places.checkpoint is not None:
        findings += look_at_detector(places.checkpoint)
    bad = [each for each in findings if each.state in ("missing", "mend") and each.part != "journey"]
    lacking = sum(each.state == "missing" and each.part == "journey" for each in findings)
    if options.json:
        text = json.dumps({"fine": not bad, "findings": [asdict(each) for each in findings]}, indent=2)
        sys.stdout.write(f"{text}\n")
    else:
        say(*_table(findings))
        say(
            f"{len(bad)} to look at: see missing and mend above." if bad else "Nothing is to be mended.",
            *(
                [f"{lacking} of {len(JOURNEYS)} journeys lack packages: install those that you want."]
                if lacking
                else []
            ),
        )
    return 1 if bad else 0


def _table(findings: list[Finding]) -> Iterator[str]:
    width = min(32, max(len(each.name) for each in findings))
    for before, each in zip([None, *findings], findings, strict=False):
        if before is None or before.part != each.part:
            yield from [""] * (before is not None) + [each.part]
        yield f"  {each.state:8} {each.name:{width}}  {each.said}"
        if each.remedy:
            yield f"  {'':8} {'':{width}}  -> {each.remedy}"


# --- Packages ---


def look_at_packages() -> list[Finding]:
    """Compare what the package wants, by its own metadata, with what is installed."""
    try:
        package = importlib.metadata.distribution("anople")
    except importlib.metadata.PackageNotFoundError:
        remedy = f"pip install -e {shlex.quote(str(Path(__file__).resolve().parents[2]))}"
        return [Finding("package", "anople", "missing", "is not installed, but run from where it lies", remedy)]
    python = ".".join(map(str, sys.version_info[:3]))
    found = [Finding("package", "anople", "fine", f"{package.version}, Python {python}")]
    for each in _wanted(package, ""):
        said, good = _installed(each)
        remedy = "" if good else _install_command(package)
        found.append(Finding("package", each.name, "fine" if good else "missing", said, remedy))
    known = package.metadata.get_all("Provides-Extra") or []
    for extra, journey in JOURNEYS.items():
        looked_at = [(each.name, *_installed(each)) for each in _wanted(package, extra)]
        said = ", ".join(f"{name} {version}" for name, version, good in looked_at if not good)
        if extra not in known:
            said = f"the package as it is installed is older than this program and has no extra {extra}"
        remedy = _install_command(package, extra) if said else ""
        found.append(Finding("journey", journey, "missing" if said else "fine", said or "all is there", remedy))
    return found


def _wanted(package: importlib.metadata.Distribution, extra: str) -> Iterator["Requirement"]:
    """Yield what an extra takes, and the extras of ours that it names; the package itself for an empty name."""
    from packaging.requirements import Requirement  # transformers and huggingface_hub bring it

    for each in map(Requirement, package.requires or []):
        always = each.marker is None or each.marker.evaluate({"extra": ""})
        if always if not extra else not always and each.marker.evaluate({"extra": extra}):
            if each.name != package.name:
                yield each
            for own in each.extras if each.name == package.name else ():
                yield from _wanted(package, own)


def _installed(wanted: "Requirement") -> tuple[str, bool]:
    """Say which version of a package is there, and whether it is one that is wanted."""
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed", False
    good = wanted.specifier.contains(version, prereleases=True)
    return (version, True) if good else (f"{version} is there, {wanted.specifier} is wanted", False)


def _install_command(package: importlib.metadata.Distribution, extra: str = "") -> str:
    """Write the command that installs an extra: from the checkout that the package was installed from, if it was one."""
    origin, place = json.loads(package.read_text("direct_url.json") or "{}"), "anople"
    editable = origin.get("dir_info", {}).get("editable")
    if editable:
        place = unquote(urlsplit(origin["url"]).path)
    return f"pip install {'-e ' if editable else ''}{shlex.quote(f'{place}[{extra}]' if extra else place)}"


# --- The machine ---


def look_at_machine(place: Path) -> list[Finding]:
    """Say what there is to compute with, room on the disk of `place`, and whether the embedded CLIP is whole."""
    import torch
    from huggingface_hub import constants, is_offline_mode

    from ..runtime.loading import computing_device

    device = computing_device()
    used = torch.cuda.get_device_name(device) if device.type == "cuda" else f"none, {_why_no_gpu()}"
    cores = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
    found = [
        Finding("machine", "GPU", "fine" if device.type == "cuda" else "note", used),
        Finding("machine", "cores", "fine", f"{cores}, of which torch takes {torch.get_num_threads()}"),
    ]
    for name, folder in (("disk", place), ("disk of the Hub's cache", Path(constants.HF_HUB_CACHE))):
        there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
        free, little = shutil.disk_usage(there).free, "make room: less than 1 GB may not hold a detector twice"
        state, remedy = ("fine", "") if free >= LITTLE_DISK else ("mend", little)
        found.append(Finding("machine", name, state, f"{free / 1e9:.1f} GB free in {folder}", remedy))
    said = "not asked: HF_HUB_OFFLINE is set" if is_offline_mode() else f"asked at {constants.ENDPOINT}"
    found.append(Finding("machine", "Hub", "note" if is_offline_mode() else "fine", said))
    return [*found, _embedded_clip()]


def _why_no_gpu() -> str:
    import torch

    if torch.version.cuda is None:
        return "because torch was built for the CPU alone"
    if torch.cuda.is_available():
        return "because ACCELERATE_USE_CPU keeps programs off it"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "because torch finds no driver or no GPU" + (
        "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden!r})"
    )


def _embedded_clip() -> Finding:
    """Compare the files of the embedded CLIP with their hashes."""
    folder = Path(__file__).resolve().parents[1] / "mini_clip"
    wrong = [f"{SUMS} is missing"]
    if (folder / SUMS).is_file():
        sums = dict(reversed(line.split("  ", 1)) for line in (folder / SUMS).read_text("utf-8").splitlines())
        wrong = [name for name, digest in sums.items() if _sha256(folder / name) != digest]
        wrong += [] if "model.safetensors" in sums else [f"{SUMS} says nothing of model.safetensors"]
    if not wrong:
        return Finding("machine", "mini", "fine", "the embedded CLIP is whole")
    remedy = "install the package again"
    return Finding("machine", "mini", "mend", f"the embedded CLIP is damaged: {', '.join(wrong)}", remedy)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


# --- A detector ---


def look_at_detector(checkpoint: str) -> list[Finding]:
    """
    Load a detector and compare it with its hash; look at its products, and at what lies in its folder.

    Raises:
        ValueError: for a folder that holds nothing, or a name that the Hub does not have, with the remedy.
    """
    from ..runtime.loading import STATE_FILE, describe_mini, load_judge

    folder = Path(checkpoint)
    left = _leftovers(folder) if folder.is_dir() else []
    if (folder / STATE_FILE).is_file():
        left.insert(0, _unfinished_fit(folder))
    try:
        model, _ = load_judge(checkpoint)
    except ModuleNotFoundError as error:  # a graph needs what runs it
        remedy = f"pip install 'anople[{'openvino' if error.name == 'openvino' else 'export'}]'"
        return [Finding("detector", "loads", "missing", f"it needs {error.name}", remedy), *left]
    except (ValueError, OSError) as error:
        if not folder.is_dir() or not any(folder.iterdir()):
            raise
        return [Finding("detector", "loads", "mend", one_line(error)), *left]
    config = model.config
    said = f"{len(config.products)} products, content {(config.content_sha256 or 'without a hash')[:14]}"
    found = [Finding("detector", "loads", "fine", said)]
    if config.content_sha256 is None:
        remedy = "save it anew, which any change by anople does"
        found[0] = Finding("detector", "loads", "mend", f"{said}: an earlier version saved it unverifiable", remedy)
    if said := describe_mini(config):
        found.append(Finding("detector", "backbone", "note", said))
    return [*found, *_products(checkpoint, config), *left]


def _products(checkpoint: str, config: "AnoPLeConfig") -> Iterator[Finding]:
    """Say of each product what its line stands on, and what an earlier version has left undone."""
    from ..calibration_anople import describe_guarantee
    from ..product_store_anople import ProductRecord

    place = shlex.quote(checkpoint)
    for values in config.products:
        record, name = ProductRecord.from_dict(values), shlex.quote(values["name"])
        if record.threshold is None:
            remedy = f"anople add_normals {place} {name} GOOD_PHOTOGRAPHS"
            yield Finding("detector", record.name, "mend", "has no line: its photographs get no label", remedy)
            continue
        state, remedy = "fine", ""
        defects = record.threshold.defects  # without which calibrate would set the line by good photographs alone
        costs = ""
        if defects is not None:
            costs = f" --defects THE_KNOWN_DEFECTS --miss_cost {defects.miss_cost:g} --false_alarm_cost {defects.false_alarm_cost:g}"
        if record.threshold.estimate != "rank":
            state, remedy = "note", f"anople calibrate {place} {name} MORE_GOOD_PHOTOGRAPHS{costs}"
        if not record.threshold.estimate:  # of an earlier version
            state = "mend"
        said = f"line at raw score {record.threshold.image_threshold:.4f}. {describe_guarantee(record.threshold)}"
        yield Finding("detector", record.name, state, said, remedy)
        if record.frame is None:
            said = "an earlier version learned it: a dark or blurred photograph is not told from a good one"
            remedy = f"anople calibrate {place} {name} THE_GOOD_PHOTOGRAPHS_IT_WAS_TAUGHT{costs}"
            yield Finding("detector", record.name, "mend", said, remedy)


def _unfinished_fit(folder: Path) -> Finding:
    remedy = "finish it by `anople fit` with the same settings and --resume, or begin anew with --overwrite"
    return Finding(
        "detector", "unfinished fit", "mend", "the folder holds the state of a fit that was not ended", remedy
    )


def _leftovers(folder: Path) -> list[Finding]:
    """Say what programs that were killed have left in a folder, and whether it can be changed."""
    from ..saving_anople import LOCK_FILE, is_trace

    names = [path.name for path in sorted(folder.iterdir())]
    left = [name for name in names if (is_trace(name) and name != LOCK_FILE) or name.endswith(".part")]
    found = []
    if left:
        remedy = "unless a program is at work there, change the detector by anople once more, which clears them"
        found.append(Finding("detector", "leftovers", "mend", ", ".join(left), remedy))
    if not os.access(folder, os.W_OK):
        said = "you may not write here: it judges, and learns only with --output"
        found.append(Finding("detector", "folder", "note", said))
    return found


__all__ = [
    "JOURNEYS",
    "NO_JOURNEYS",
    "SUMS",
    "Finding",
    "doctor",
    "look_at_detector",
    "look_at_machine",
    "look_at_packages",
]
