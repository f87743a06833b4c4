"""The model card of a detector, from `model_card.md` and from what is known; what is not known is left out."""

import json
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_anople import AnoPLeConfig

from .card_facts import (
    Backbone,
    describe_fit,
    describe_line,
    open_choices,
    photograph_counts,
    shots_table,
    shown_files,
)
from .card_results import Results
from .card_text import cell, code, joined


TEMPLATE = Path(__file__).parents[1] / "model_card.md"


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
        license: identifier of the whole; by default the backbone's, where that is known.
        data_license: the data's, as a sentence.
        description: the publisher's own words.
        dataset_id: the test set's id on the Hub.
    """

    repo_id: str
    results: Results | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)
    cost: str | None = None
    size: str = ""
    adapter_sha256: str | None = None
    license: str | None = None
    data_license: str | None = None
    description: str | None = None
    dataset_id: str | None = None


def make_card(config: AnoPLeConfig, facts: CardFacts) -> ModelCard:
    """Render the card of a detector."""
    backbone = Backbone.of(config, facts.adapter_sha256)
    names = config.class_names
    dataset = (config.fit or {}).get("data_root")
    wrong = [picture for picture in facts.pictures if picture["kind"] in ("miss", "false alarm")]
    return ModelCard.from_template(
        card_data(config, facts, backbone),
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
        size=facts.size,
        threshold=f"{config.threshold:g}",
        shots_text=_shots_text(config, dataset),
        shots=shots_table(config),
        results=facts.results and facts.results.to_table(dataset),
        failures=[_picture(picture, config) for picture in wrong],
        successes=[_picture(picture, config) for picture in facts.pictures if picture not in wrong],
        line=describe_line(config),
        patch=config.clip_config.vision_config.patch_size,
        side=config.image_size,
        cost=facts.cost,
        made=describe_fit(config, backbone),
        choices=open_choices(config),
        licences=_licences(facts, backbone),
    )


def card_data(config: AnoPLeConfig, facts: CardFacts, backbone: Backbone) -> ModelCardData:
    """Make the head of the card, by which the Hub finds and filters it."""
    known = facts.license or backbone.license
    licence = {"license": known} if known else {"license": "other", "license_name": "see-backbone"}
    if not known and backbone.link:
        licence["license_link"] = backbone.link
    base = {"base_model": backbone.name} if backbone.kind == "hub" else {}
    if base and facts.adapter_sha256:
        base["base_model_relation"] = "adapter"
    results = facts.results
    return ModelCardData(
        **licence,
        **base,
        library_name="transformers",
        pipeline_tag="image-segmentation",  # the nearest of the Hub's tasks
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


def _picture(picture: dict[str, Any], config: AnoPLeConfig) -> dict[str, str]:
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


def _licences(facts: CardFacts, backbone: Backbone) -> list[str]:
    lines = ["Code (`*_anople.py`): Apache-2.0.", f"Weights: {backbone.licence_text}"]
    if facts.license:
        lines.append(f"Whoever published this detector put it under: {facts.license}.")
    if facts.data_license:
        lines.append(f"Photographs: {facts.data_license}")
    return lines
