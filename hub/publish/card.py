"""The model card of a detector, from `model_card.md` and from what is known; what is not known is left out."""

import json
import math
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_anople import AnoPLeConfig
from modeling_anople.backbone_anople import MINI_CLIP
from modeling_anople.calibration_anople import ProductThreshold, describe_guarantee, percent
from modeling_anople.product_store_anople import ProductRecord, log_of
from modeling_anople.training.options import field_helps


# --- Words in a model card: any name, in any script, inside a sentence or a table ---


def cell(text: object) -> str:
    """Write text so that it stays inside a table's cell and is no markup."""
    clean = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    for sign in "\\|*_`<>[]":
        clean = clean.replace(sign, f"\\{sign}")
    return clean


def code(text: object) -> str:
    """Write a name in the letters of code."""
    clean = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    return f"`{clean.replace('`', chr(39)).replace('|', '/')}`"


def joined(words: Sequence[str], last: str = "and") -> str:
    """Join words as in a sentence: a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def in_percent(share: float, digits: int = 1) -> str:
    """Write a share of 1 in percent."""
    return f"{100 * share:.{digits}f}"


# --- What a detector's config says for its model card ---


REMEMBERING = ("fit", "enroll", "add_normals")  # what changes the photographs that a product remembers


# Licenses that are none of the usual ones, by the model_type of those who have them.
OWN_LICENSES = {
    "dinov3_vit": "the DINOv3 License of Meta, a license of its own "
    "(https://ai.meta.com/resources/models-and-libraries/dinov3-license/), which must be passed on with the weights"
}


@dataclass
class Backbone:
    """
    A frozen tower, the CLIP or the memory's encoder, in the words of a card.

    Args:
        kind, name, revision: as in `config.clip_source`.
        sha256: hash that an adapter asks for.
        text: a name in a sentence.
        argument: what `load_adapter` must be given beside the adapter.
        license: identifier, where it is known.
        link: its own card.
        license_text: a sentence about its license.
    """

    kind: str | None
    name: str | None
    revision: str | None
    sha256: str | None
    text: str
    argument: str
    license: str | None
    link: str | None
    license_text: str

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
            license_text=_license_sentence(kind, name, link, license_id),
        )

    @classmethod
    def of_memory(cls, config: AnoPLeConfig, sha256: str | None = None) -> "Backbone | None":
        """Say what is known of the memory's encoder; `None` for a detector without one."""
        if config.memory_encoder is None:
            return None
        source = config.memory_encoder_source or {}
        kind, name, revision, license_id = (source.get(key) for key in ("kind", "name", "revision", "license"))
        link = f"https://huggingface.co/{name}" if kind == "hub" else None
        own, model_type = OWN_LICENSES.get(config.memory_encoder.model_type), code(config.memory_encoder.model_type)
        terms = own or (f"{license_id.upper()}, as its card says" if license_id else "the terms of its own card")
        place = (
            f"[{cell(name)}]({link})"
            if link
            else f"from a local folder called {code(name)}"
            if name
            else "without a name"
        )
        return cls(
            kind=kind,
            name=name,
            revision=revision,
            sha256=sha256,
            text=f"the {model_type} {place}",
            argument="" if kind == "hub" else ', memory_encoder="FOLDER_OF_THE_ENCODER"',
            license=None if own else license_id,
            link=link,
            license_text=f"the memory encoder's weights are under {terms}{'' if own or license_id else ', not known here'}.",
        )


def _license_of(kind: str | None, name: str | None) -> str | None:
    if kind == "embedded" and name == MINI_CLIP:
        return "apache-2.0"
    return "mit" if kind == "hub" and name.startswith("laion/CLIP-") else None


def _name_in_a_sentence(kind: str | None, name: str | None, link: str | None) -> str:
    if kind == "embedded":
        return (
            "AnoPLe's own small CLIP `mini`, whose vision tower a large encoder taught on free textures and pictures"
        )
    if kind == "hub":
        return f"the CLIP [{cell(name)}]({link})"
    return f"a CLIP from a local folder called {code(name)}" if name else "a CLIP whose origin was not kept"


def _license_sentence(kind: str | None, name: str | None, link: str | None, license_id: str | None) -> str:
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
    return [len(product["image_vectors"]) for product in config.products]


def shown_files(config: AnoPLeConfig, name: str) -> list[str]:
    """Name the photographs that a product was shown since it was last forgotten or enrolled, as far as names were kept."""
    entries = log_of(config.history, name)
    first = entries[0].get("former_name", entries[0]["class_name"]) if entries else name  # what the fit called it
    fitted = ((config.fit or {}).get("files") or {}).get(first, [])
    files = list(fitted)
    for entry in entries:
        if entry["action"] not in REMEMBERING:
            continue
        if entry["action"] == "fit":  # the fit's own list has the folders too
            files = list(fitted) or list(entry["files"])
        elif entry["action"] == "add_normals":
            files += entry["files"]
        else:  # enrolled anew
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
    lines = {
        product["name"]: ProductThreshold.from_dict(product["threshold"])
        for product in config.products
        if product["threshold"]
    }
    if not lines:
        return None
    statements: dict[str, list[str]] = {}
    for name, line in lines.items():
        statements.setdefault(describe_guarantee(line), []).append(code(name))
    support = "\n".join(f"- {joined(names, 'and')}: {text}" for text, names in statements.items())
    rates = sorted({line.max_false_alarm_rate for line in lines.values() if line.defects is None})
    by_costs = [code(name) for name, line in lines.items() if line.defects is not None]
    text = f"Known defects and the cost of errors set the line of {joined(by_costs)}. " if by_costs else ""
    if rates:
        whose = " of the others" if by_costs else " between good and bad"
        text += (
            f"No defect was needed to set the line{whose}. It was set from good photographs alone and aims at "
            f"**{joined([percent(rate) for rate in rates], 'or')} false alarms** at most. "
        )
    return (
        f"{text}What that rests on:\n\n{support}\n\n"
        "The largest of n scores is passed by one in n + 1 of all good photographs, whatever they look like; so much can be "
        "promised. A lower rate trusts that the logarithms of the scores are spread about as a normal distribution. Count "
        "the false alarms on good photographs of your own before you rely on it: `anople calibrate` sets the line by them. "
        "`model.config.threshold` moves it: lower finds more and alarms more."
    )


def describe_sensitivity(config: AnoPLeConfig) -> str | None:
    """Say what drawn defects each product's present line finds; `None` where that was not measured."""
    parts = []
    for record in map(ProductRecord.from_dict, config.products):
        if known := record.valid_sensitivity(config):
            parts.append(f"- {code(record.name)}: {known.describe_defects()} {known.describe_changes()}")
    return "\n".join(parts) or None


def describe_fit(config: AnoPLeConfig, backbone: Backbone) -> str | None:
    """Say how the detector was fitted, as far as the config tells."""
    fit = config.fit or {}
    if not {"max_steps", "batch_size"} <= fit.keys():
        return None
    text = f"This one was fitted for {fit['max_steps']} steps of {fit['batch_size']} photographs"
    if fit.get("pixel_anomaly"):
        text += f" with made-up defects of the kind {code(fit['pixel_anomaly'])}"
    return f"{text}, on {backbone.text}."


def open_choices(config: AnoPLeConfig) -> list[dict]:
    """List the fields that the config's own docstring marks as unknown in the paper [U], with their values."""
    choices = []
    for name, text in field_helps(type(config).__doc__).items():
        if "[U" in text:
            help_text = text.split("[U")[0].replace("%%", "%").replace(" [K]", "").replace(" [I]", "")
            help_text = help_text.strip().rstrip(".").replace("|", "/")
            choices.append({"field": name, "value": code(getattr(config, name)), "help": help_text})
    return choices


# --- Figures of one or more evaluations of the same products, for a model card ---


COLUMNS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO",
    "false_alarm_rate": "false alarms",
    "detection_rate": "found",
}
MEANINGS = {
    "image AUROC": "*image AUROC*: how often a defective photograph scores above a good one (50 is chance)",
    "image AP": "*image AP*: average precision of the photographs' ranking",
    "pixel AUROC": "*pixel AUROC* and *pixel AP*: the same for single pixels",
    "AUPRO": "*AUPRO*: how well the heat map covers each defect, up to a false positive rate of 0.3",
    "found": "*false alarms* and *found*: the share of good and of defective photographs above the line",
}


@dataclass
class Results:
    """
    Figures by class and on average, one value per evaluation; the first evaluation is the detector's own.

    Args:
        classes: class -> metric -> values within 0 and 1, `None` where undefined.
        mean: metric -> values, over classes with equal weight.
        own: the detector's own `evaluation.json`.
        seeds: of the fits, in the order of the values.
    """

    classes: dict[str, dict[str, list[float | None]]]
    mean: dict[str, list[float | None]]
    own: dict
    seeds: list[int | None]

    @classmethod
    def read(cls, paths: list[str | Path], config: AnoPLeConfig, sha256: str | None = None) -> "Results":
        """
        Read `evaluation.json` of this detector and of others that were fitted alike with other seeds.

        Args:
            sha256: hash of the detector's state, which a report names. An older report without one must agree with the
                config in seed, shots and products, and in the CLIP's name where it has one.

        Raises:
            ValueError: if none is this detector's, if one measures a part of it alone, or they do not belong together.
        """
        reports = [_read(path) for path in paths]
        for path, report in zip(paths, reports, strict=True):
            if report.get("score") != "fused":
                raise ValueError(f"{path} measures the part {report.get('score')!r} alone: give one of --score fused.")
        own = [report for report in reports if _is_of(report, config, sha256)]
        if not own:
            fit = config.fit or {}
            raise ValueError(
                f"None of {[str(path) for path in paths]} was measured on this detector as it is now (seed "
                f"{fit.get('seed')}, {fit.get('shots')} shots, products {config.class_names}, state {sha256}): run "
                "`anople evaluate CHECKPOINT DATA --json evaluation.json`."
            )
        for key in ("shots", "class_identity", "evaluation_size", "clip"):
            if len({str(report[key]) for report in reports if key in report}) > 1:
                raise ValueError(f"The evaluations differ in {key}: give only those that were measured alike.")
        if len({report["seed"] for report in reports}) < len(reports):
            raise ValueError(
                f"Two evaluations have one seed ({[report['seed'] for report in reports]}): give each once."
            )
        unknown = sorted({name for report in reports for name in report["classes"]} - set(config.class_names))
        if unknown:
            raise ValueError(f"The evaluations know {unknown}, which the detector does not.")
        reports = [own[0], *(report for report in reports if report is not own[0])]
        metrics = [*COLUMNS]
        names = [name for name in reports[0]["classes"] if all(name in report["classes"] for report in reports)]
        return cls(
            classes={name: {m: [r["classes"][name].get(m) for r in reports] for m in metrics} for name in names},
            mean={metric: [report["mean"].get(metric) for report in reports] for metric in metrics},
            own=reports[0],
            seeds=[report["seed"] for report in reports],
        )

    def headline(self) -> str | None:
        """Say what the detector did at its line, and where it is blind, from its own evaluation."""
        rows = self.own["classes"].values()
        if any(row[key] is None for row in rows for key in ("false_alarm_rate", "detection_rate")):
            return None
        alarms, good = (sum(counts) for counts in _flagged(rows, "false_alarm_rate", "normal"))
        found, bad = (sum(counts) for counts in _flagged(rows, "detection_rate", "anomalous"))
        text = (
            f"On its test photographs it found **{found} of {bad} defects** and called {alarms or 'none'} of {good} good "
            "photographs bad."
        )
        blind = [
            code(name) for name, row in self.own["classes"].items() if row["anomalous"] and not row["detection_rate"]
        ]
        return f"{text} It found no defect at all on {joined(blind)}." if blind else text

    def to_table(self, dataset: str | None) -> dict:
        """Return `text`, `columns`, `rows` and `legend`; a column without any figure is left out."""
        metrics = [metric for metric in COLUMNS if any(value is not None for value in self.mean[metric])]
        rows = []
        for name, figures in [*self.classes.items(), (None, self.mean)]:
            counts = self.own["mean"] if name is None else self.own["classes"][name]
            title = "**mean**" if name is None else code(name)
            cells = [_figure(figures[metric]) for metric in metrics]
            rows.append([title, *cells, str(counts["normal"]), str(counts["anomalous"])])
        columns = ["product", *(COLUMNS[metric] for metric in metrics), "good", "defective"]
        meanings = [text for column, text in MEANINGS.items() if column in columns]
        legend = f"In percent. {'; '.join(meanings)}. *good* and *defective* count the test photographs."
        return {"text": self._text(dataset), "columns": columns, "rows": rows, "legend": legend}

    def _text(self, dataset: str | None) -> str:
        own = self.own
        where = f" of {code(dataset)}" if dataset else ""
        text = (
            f"Measured with `anople evaluate` on the test photographs{where}, none of which was opened while fitting"
        )
        if own["shots"] is not None:
            noun = "photograph" if own["shots"] == 1 else "photographs"
            text += f": {own['shots']} {noun} of each product to learn from"
        if len(self.seeds) > 1:
            seeds = joined([str(seed) for seed in self.seeds])
            text += (
                f", mean ± standard deviation over seeds {seeds}, that is {len(self.seeds)} detectors that were fitted alike "
                f"to other photographs; this one is seed {self.seeds[0]}"
            )
        else:
            chosen = f", chosen by seed {own['seed']}" if own["seed"] is not None else ""
            text += f"{chosen}. How much another choice changes was not measured"
        identity = {
            "given": "The detector was told which product a photograph shows",
            "predicted": "The detector predicted which product a photograph shows",
        }
        return f"{text}. {identity.get(own['class_identity'], 'All products were judged as one')}."


def _is_of(report: dict, config: AnoPLeConfig, sha256: str | None) -> bool:
    """Say whether a report was measured on this detector."""
    if sha256 and report.get("detector_sha256"):
        return report["detector_sha256"] == sha256
    fit, clip = config.fit or {}, (config.clip_source or {}).get("name")
    alike = (report["seed"], report["shots"]) == (fit.get("seed"), fit.get("shots"))
    return alike and set(report["classes"]) == set(config.class_names) and report.get("clip", clip) == clip


def published(report: dict) -> dict:
    """Return an `evaluation.json` fit for strangers: an error message may hold the way to a file."""
    return {**report, "errors": dict.fromkeys(report.get("errors", {}), "could not be judged")}


def _read(path: str | Path) -> dict:
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {"mean", "classes", "seed", "shots"} <= report.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as an evaluation ({error}): give what --json wrote.") from error
    if not known:
        raise ValueError(f"{path} is no evaluation: give what `anople evaluate --json` wrote.")
    return report


def _flagged(rows: Iterable[dict], rate: str, count: str) -> tuple[list[int], list[int]]:
    return [round(row[rate] * row[count]) for row in rows], [row[count] for row in rows]


def _figure(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    mean = in_percent(math.fsum(known) / len(known))
    return f"{mean} ± {in_percent(statistics.stdev(known))}" if len(known) > 1 else mean


# --- The card itself ---


TEMPLATE = Path(__file__).parents[2] / "model_card.md"  # at the root of a checkout, or in programs/ of a wheel


@dataclass
class CardFacts:
    """
    What a card is made of, beside the config.

    Args:
        repo_id: user/name of the repository.
        results: figures of one or more seeds.
        pictures: entries of the gallery's `samples.json`, with `file` as it lies in the repository.
        cost: a sentence about what a prediction costs, if it was measured.
        size: of the weights, in words.
        adapter_sha256: hash of the CLIP that an adapter needs; `None` for a full detector.
        encoder_sha256: likewise that of the memory's encoder.
        license: identifier of the whole; by default the backbone's, where that is known.
        data_license: the data's, as a sentence.
        description: the publisher's own words.
        dataset_id: the test set's id on the Hub.
    """

    repo_id: str
    results: Results | None = None
    pictures: list[dict] = field(default_factory=list)
    cost: str | None = None
    size: str = ""
    adapter_sha256: str | None = None
    encoder_sha256: str | None = None
    license: str | None = None
    data_license: str | None = None
    description: str | None = None
    dataset_id: str | None = None


def make_card(config: AnoPLeConfig, facts: CardFacts) -> ModelCard:
    """Render the card of a detector."""
    backbone, encoder = Backbone.of(config, facts.adapter_sha256), Backbone.of_memory(config, facts.encoder_sha256)
    names = config.class_names
    dataset = (config.fit or {}).get("data_root")
    wrong = [picture for picture in facts.pictures if picture["kind"] in ("miss", "false alarm")]
    return ModelCard.from_template(
        card_data(config, facts, backbone, encoder),
        template_path=str(TEMPLATE),
        name=facts.repo_id.split("/")[-1],
        repo_id=facts.repo_id,
        adapter=facts.adapter_sha256 is not None,
        products=joined([code(name) for name in names], "or"),
        count=len(names),
        first_class=json.dumps(names[0], ensure_ascii=False),
        first_class_in_shell=shlex.quote(names[0]),
        shown=_shown(config),
        description=facts.description and " ".join(facts.description.split()),
        headline=facts.results and facts.results.headline(),
        backbone=backbone,
        encoder=encoder,
        blocks=joined([str(layer) for layer in config.memory_layers]),
        size=facts.size,
        threshold=f"{config.threshold:g}",
        shots_text=_shots_text(config, dataset),
        shots=shots_table(config),
        results=facts.results and facts.results.to_table(dataset),
        failures=[_picture(picture, config) for picture in wrong],
        successes=[_picture(picture, config) for picture in facts.pictures if picture not in wrong],
        line=describe_line(config),
        sensitivity=describe_sensitivity(config),
        patch=config.memory_side // config.memory_grid_size,
        side=config.memory_side,
        cost=facts.cost,
        made=describe_fit(config, backbone),
        choices=open_choices(config),
        licenses=_licenses(facts, backbone, encoder),
    )


def card_data(
    config: AnoPLeConfig, facts: CardFacts, backbone: Backbone, encoder: Backbone | None = None
) -> ModelCardData:
    """Make the head of the card, by which the Hub finds and filters it."""
    towers = [backbone] if encoder is None else [encoder, backbone]
    licenses = {tower.license for tower in towers}  # of two that differ neither is that of the whole
    known = facts.license or (licenses.pop() if len(licenses) == 1 else None)
    license = {"license": known} if known else {"license": "other", "license_name": "see-backbone"}
    links = [tower.link for tower in towers if tower.link and not tower.license]
    if not known and links:
        license["license_link"] = links[0]
    bases = [tower.name for tower in reversed(towers) if tower.kind == "hub"]
    base = {"base_model": bases[0] if len(bases) == 1 else bases} if bases else {}
    if base and facts.adapter_sha256:
        base["base_model_relation"] = "adapter"
    results = facts.results
    return ModelCardData(
        **license,
        **base,
        library_name="transformers",
        # no pipeline_tag: none of the Hub's tasks is this one, and the snippet for image-segmentation ends in an error
        tags=["anomaly-detection", "few-shot", "clip", "anople", "custom_code"],
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        metrics=["roc_auc"] if results else None,
        model_name=facts.repo_id.split("/")[-1],
        eval_results=_eval_results(config, facts) if results else None,
    )


METRIC_IDS = {
    "image_auroc": ("roc_auc", "Image AUROC"),
    "image_ap": ("average_precision", "Image AP"),
    "pixel_auroc": ("roc_auc", "Pixel AUROC"),
    "pixel_ap": ("average_precision", "Pixel AP"),
    "aupro": ("aupro", "AUPRO (false positive rate up to 0.3)"),
}


def _eval_results(config: AnoPLeConfig, facts: CardFacts) -> list[EvalResult]:
    dataset = facts.dataset_id or (config.fit or {}).get("data_root") or "test photographs"
    entries = []
    for name, figures in [(None, facts.results.mean), *facts.results.classes.items()]:
        for metric, (metric_type, metric_name) in METRIC_IDS.items():
            if name is not None and metric.endswith("_ap"):  # the table has them; the head is long enough
                continue
            values = [value for value in figures.get(metric, []) if value is not None]
            if values:
                entries.append(
                    EvalResult(
                        task_type="image-segmentation",
                        task_name="Few-shot anomaly detection",
                        dataset_type=dataset,
                        dataset_name=dataset if name is None else f"{dataset}, {name}",
                        dataset_config=name,
                        dataset_split="test",
                        metric_type=metric_type,
                        metric_name=metric_name,
                        metric_value=round(math.fsum(values) / len(values), 4),
                    )
                )
    return entries


def _shown(config: AnoPLeConfig) -> str:
    counts = sorted(set(photograph_counts(config)))
    if counts == [1]:
        return "one good photograph"
    return f"{joined([str(count) for count in counts], 'or')} good photographs"


def _shots_text(config: AnoPLeConfig, dataset: str | None) -> str:
    fit = config.fit or {}
    if not any(shown_files(config, name) for name in config.class_names):
        return "The names of the photographs were not kept."
    if not fit.get("files") or any(entry["action"] != "fit" for entry in config.history):
        return "Photographs of products that were fitted are named as in their data set, others without their folders."
    chosen = f"Chosen by seed {fit['seed']} from the training photographs" if "seed" in fit else "The photographs"
    return f"{chosen}{f' of {code(dataset)}' if dataset else ''}; the names are relative to that data set."


def _picture(picture: dict, config: AnoPLeConfig) -> dict[str, str]:
    name, defect = cell(picture["class"]), cell(picture["defect"])
    titles = {
        "miss": f"A missed defect: {name}, {defect}",
        "false alarm": f"A false alarm: {name}",
        "found": f"A defect that was found: {name}, {defect}",
        "passed": f"A good part that passed: {name}",
    }
    title = titles[picture["kind"]]
    text = f"Score {picture['score']:.2f}, line {config.threshold:g} ({code(picture['path'])})."
    return {"title": title, "text": text, "file": picture["file"], "alt": f"{title}, score {picture['score']:.2f}"}


def _licenses(facts: CardFacts, backbone: Backbone, encoder: Backbone | None) -> list[str]:
    lines = ["Code (`*_anople.py`): Apache-2.0.", f"Weights: {backbone.license_text}"]
    if encoder:
        lines.append(f"Weights: {encoder.license_text}")
    if facts.license:
        lines.append(f"Whoever published this detector put it under: {facts.license}.")
    if facts.data_license:
        lines.append(f"Photographs: {facts.data_license}")
    return lines


__all__ = [
    "Backbone",
    "COLUMNS",
    "Results",
    "cell",
    "code",
    "describe_fit",
    "describe_line",
    "describe_sensitivity",
    "in_percent",
    "joined",
    "open_choices",
    "photograph_counts",
    "published",
    "shots_table",
    "shown_files",
]
