"""
Check a model card as far as that is possible without a network.

`ModelCard.validate` of huggingface_hub sends the card to the Hub. What the Hub checks there of which we know the rules
is checked here: the head must be YAML of the right types, with a license, a task and a base model that the Hub knows or
could know, and figures it can read. Beyond that, nothing may be left unfilled and every picture must be there.
"""

import math
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id


# https://huggingface.co/docs/hub/repositories-licenses, without those of single language models
LICENSES = {
    "apache-2.0",
    "mit",
    "openrail",
    "bigscience-openrail-m",
    "creativeml-openrail-m",
    "openrail++",
    "afl-3.0",
    "artistic-2.0",
    "bsl-1.0",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "c-uda",
    "cc",
    "cc0-1.0",
    "cc-by-2.0",
    "cc-by-2.5",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-2.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0",
    "cdla-permissive-1.0",
    "cdla-permissive-2.0",
    "wtfpl",
    "ecl-2.0",
    "epl-1.0",
    "epl-2.0",
    "etalab-2.0",
    "eupl-1.1",
    "eupl-1.2",
    "agpl-3.0",
    "gfdl",
    "gpl",
    "gpl-2.0",
    "gpl-3.0",
    "lgpl",
    "lgpl-2.1",
    "lgpl-3.0",
    "isc",
    "ms-pl",
    "mpl-2.0",
    "odc-by",
    "odbl",
    "openmdw-1.0",
    "osl-3.0",
    "postgresql",
    "ofl-1.1",
    "ncsa",
    "unlicense",
    "zlib",
    "pddl",
    "unknown",
    "other",
}
LOCAL_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|mnt|work|Users|var|data)/|\b[A-Za-z]:\\|file://")
PICTURE_OR_LINK = re.compile(r"\]\(([^)\s]+)\)")


def check_card(content: str, folder: Path) -> ModelCard:
    """
    Check a rendered card and return it.

    Args:
        content: the whole text with its head.
        folder: where the card will lie, with the pictures it shows.

    Raises:
        ValueError: naming every fault.
    """
    try:
        card = ModelCard(content)  # parses the head, and model-index with it
        head = yaml.safe_load(REGEX_YAML_BLOCK.search(content)[2])  # as it stands: the client mends some faults
    except Exception as error:  # YAML's errors are of their own kinds
        raise ValueError(f"The head of the model card cannot be read: {error}") from error
    faults = [*_head_faults(head), *_result_faults(card), *_text_faults(card.text, Path(folder))]
    if faults:
        raise ValueError("The model card has faults: " + "; ".join(faults) + ".")
    return card


def _head_faults(data: dict) -> list[str]:
    faults = []
    if data.get("license") not in LICENSES:
        faults.append(f"license {data.get('license')!r} is none of the Hub's identifiers")
    if data.get("license") == "other" and not data.get("license_name"):
        faults.append("license 'other' needs a license_name")
    if data.get("pipeline_tag"):
        faults.append(
            f"with pipeline_tag {data['pipeline_tag']!r} the Hub shows a snippet that does not run: leave it out"
        )
    for name in ("tags", "metrics", "datasets"):
        value = data.get(name, [])
        if not (isinstance(value, list) and all(isinstance(entry, str) and entry for entry in value)):
            faults.append(f"{name} must be a list of words, got {value!r}")
    base = data.get("base_model") or []
    bases = base if isinstance(base, list) else [base]  # a detector may stand on two
    if not all(isinstance(name, str) for name in bases):
        faults.append(f"base_model must be text or a list of it, got {base!r}")
        bases = []
    for name in ("library_name", "license_name", "license_link", "base_model_relation"):
        if name in data and not isinstance(data[name], str):
            faults.append(f"{name} must be text, got {data[name]!r}")
    datasets = data.get("datasets", [])
    for identifier in [*(datasets if isinstance(datasets, list) else []), *bases]:
        try:
            validate_repo_id(identifier)
        except HFValidationError as error:
            faults.append(f"{identifier!r} is no id on the Hub ({error})")
    return faults


def _result_faults(card: ModelCard) -> list[str]:
    faults = []
    for result in card.data.get("eval_results") or []:
        value = result.metric_value
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= 1:
            faults.append(f"{result.metric_name} of {result.dataset_name} is {value!r}, not a share within 0 and 1")
    return faults


def _text_faults(text: str, folder: Path) -> list[str]:
    faults = [f"{sign} was left unfilled" for sign in ("{{", "}}", "{%", "%}") if sign in text]
    if not re.match(r"\s*# \S", text):
        faults.append("it does not begin with a title")
    cells = [entry.strip() for line in text.splitlines() if line.startswith("|") for entry in line.split("|")]
    faults += [f"a table has the cell {entry!r}" for entry in sorted({"None", "nan", "undefined"} & set(cells))]
    if match := LOCAL_PATH.search(text):
        faults.append(f"it names a place on somebody's machine: {text[match.start() : match.start() + 40]!r}")
    for target in PICTURE_OR_LINK.findall(text):
        if not target.startswith(("https://", "#")) and not (folder / target).is_file():
            faults.append(f"{target} is not there")
        if target.startswith("#") and target[1:] not in {_anchor(line) for line in text.splitlines()}:
            faults.append(f"{target} leads to no heading")
    return faults


def _anchor(line: str) -> str | None:
    title = re.match(r"#+ (.*)", line)
    return re.sub(r"[^\w\- ]", "", title[1].lower()).replace(" ", "-") if title else None


__all__ = ["check_card"]
