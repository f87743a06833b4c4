"""What a detector's config says for its model card."""

from dataclasses import dataclass
from typing import Any

from modeling_anople import AnoPLeConfig
from modeling_anople.backbone_anople import MINI_CLIP
from modeling_anople.calibration_anople import describe_support, percent
from modeling_anople.training.options import field_helps

from .card_text import cell, code, joined


REMEMBERING = ("fit", "enroll", "add_normals", "forget")  # what changes the photographs that a product remembers


@dataclass
class Backbone:
    """
    The frozen CLIP, in the words of a card.

    Args:
        kind, name, revision: as in `config.clip_source`.
        sha256: hash that an adapter asks for.
        text: a name in a sentence.
        argument: what `load_adapter` must be given beside the adapter.
        license: identifier, where it is known.
        link: its own card.
        licence_text: a sentence about its licence.
    """

    kind: str | None
    name: str | None
    revision: str | None
    sha256: str | None
    text: str
    argument: str
    license: str | None
    link: str | None
    licence_text: str

    @classmethod
    def of(cls, config: AnoPLeConfig, sha256: str | None = None) -> "Backbone":
        """Say what is known of a detector's backbone."""
        source = config.clip_source or {}
        kind, name, revision = (source.get(key) for key in ("kind", "name", "revision"))
        link = f"https://huggingface.co/{name}" if kind == "hub" else None
        license_id = _license_of(kind, name)
        return cls(
            kind=kind,
            name=name,
            revision=revision,
            sha256=sha256,
            text=_name_in_a_sentence(kind, name, link),
            argument="" if kind in ("embedded", "hub") else ', clip="FOLDER_OF_THE_CLIP"',
            license=license_id,
            link=link,
            licence_text=_licence_sentence(kind, name, link, license_id),
        )


def _license_of(kind: str | None, name: str | None) -> str | None:
    if kind == "embedded" and name == MINI_CLIP:
        return "apache-2.0"
    return "mit" if kind == "hub" and name.startswith("laion/CLIP-") else None


def _name_in_a_sentence(kind: str | None, name: str | None, link: str | None) -> str:
    if kind == "embedded":
        return "AnoPLe's own small CLIP `mini`, which was trained on drawn pictures and has never seen a photograph"
    if kind == "hub":
        return f"the CLIP [{cell(name)}]({link})"
    return f"a CLIP from a local folder called {code(name)}" if name else "a CLIP whose origin was not kept"


def _licence_sentence(kind: str | None, name: str | None, link: str | None, license_id: str | None) -> str:
    if kind == "embedded":
        return "Apache-2.0, those of the backbone `mini` included."
    if kind != "hub":
        return "the backbone's weights are under the terms of its own card, which is not known here."
    text = f"the backbone's weights are under the terms of [its card]({link})"
    if license_id:
        return f"{text} ({license_id.upper()})."
    warns = name.startswith("openai/")
    return f"{text}{', which calls any deployed use out of scope' if warns else ''}."


def photograph_counts(config: AnoPLeConfig) -> list[int]:
    """Count the photographs that each product was shown; where memory is limited, fewer vectors are kept of each."""
    return [len(counts) for counts in config.memory_photographs]


def shown_files(config: AnoPLeConfig, name: str) -> list[str]:
    """Name the photographs that a product was shown since it was last forgotten or enrolled, as far as names were kept."""
    fitted = ((config.fit or {}).get("files") or {}).get(name, [])
    files = list(fitted)
    for entry in config.history:
        if entry["class_name"] != name or entry["action"] not in REMEMBERING:
            continue
        if entry["action"] == "fit":  # the fit's own list has the folders too
            files = list(fitted) or list(entry["files"])
        elif entry["action"] == "add_normals":
            files += entry["files"]
        else:  # enrolled anew, or forgotten
            files = list(entry["files"])
    return [file for file in files if file]


def shots_table(config: AnoPLeConfig) -> list[tuple[str, str]]:
    """List products with the names of the photographs that were shown, and how many have no name."""
    rows = []
    for name, count in zip(config.class_names, photograph_counts(config), strict=True):
        files = shown_files(config, name)
        nameless = count - len(files)
        text = ", ".join(map(code, files))
        if nameless > 0:
            noun = "name" if nameless == 1 else "names"
            text = f"{text} and {nameless} more, {noun} not kept" if files else f"{nameless}, {noun} not kept"
        rows.append((code(name), text))
    return rows


def describe_line(config: AnoPLeConfig) -> str | None:
    """Say how the lines were set and what they can promise, product by product; `None` before calibration."""
    lines = {name: config.calibration[name] for name in config.class_names if name in config.calibration}
    if not lines:
        return None
    statements: dict[str, list[str]] = {}
    for name, line in lines.items():
        statements.setdefault(describe_support(line), []).append(code(name))
    support = "\n".join(f"- {joined(names, 'and')}: {text}" for text, names in statements.items())
    budget = joined(
        [percent(rate) for rate in sorted({line["max_false_alarm_rate"] for line in lines.values()})], "or"
    )
    return (
        "No defect was needed to set the line between good and bad. It was set from good photographs alone and aims at "
        f"**{budget} false alarms** at most. What that rests on:\n\n{support}\n\n"
        "The largest of n scores is passed by one in n + 1 of all good photographs, whatever they look like; so much can be "
        "promised. A lower rate trusts that the logarithms of the scores are spread about as a normal distribution. Count "
        "the false alarms on good photographs of your own before you rely on it: `anople calibrate` sets the line by them. "
        "`model.config.threshold` moves it: lower finds more and alarms more."
    )


def describe_fit(config: AnoPLeConfig, backbone: Backbone) -> str | None:
    """Say how the detector was fitted, as far as the config tells."""
    fit = config.fit or {}
    if not {"max_steps", "batch_size"} <= fit.keys():
        return None
    text = f"This one was fitted for {fit['max_steps']} steps of {fit['batch_size']} photographs"
    if fit.get("pixel_anomaly"):
        text += f" with made-up defects of the kind {code(fit['pixel_anomaly'])}"
    return f"{text}, on {backbone.text}."


def open_choices(config: AnoPLeConfig) -> list[dict[str, Any]]:
    """List the fields that the config's own docstring marks as unknown in the paper [U], with their values."""
    choices = []
    for name, text in field_helps(type(config).__doc__).items():
        if "[U" in text:
            help_text = text.split("[U")[0].replace("%%", "%").replace(" [K]", "").replace(" [I]", "")
            help_text = help_text.strip().rstrip(".").replace("|", "/")
            choices.append({"field": name, "value": code(getattr(config, name)), "help": help_text})
    return choices


__all__ = [
    "Backbone",
    "describe_fit",
    "describe_line",
    "open_choices",
    "photograph_counts",
    "shots_table",
    "shown_files",
]
