"""Everything that goes into a detector's repository, written into one folder before anything is sent."""

import fnmatch
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

import modeling_anople
from modeling_anople import AnoPLeConfig, AnoPLeModel, AnoPLeProcessor
from modeling_anople.backbone_anople import name_of
from modeling_anople.runtime.heat_maps import SAMPLES
from modeling_anople.runtime.loading import detector_sha256
from modeling_anople.saving_anople import LOCK_FILE

from .card import CardFacts, Results, make_card, published
from .card_check import check_card


# What a push may replace or remove, by the names that it writes; anything else in a repository is left alone.
OWN_FILES = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter.safetensors",
    "*_anople.py",
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "evaluation.json",
    ".eval_results/anople.yaml",
    "handler.py",
    "requirements.txt",
    f"{SAMPLES}/[0-9]*.jpg",
    "README.md",
)


def is_own(name: str) -> bool:
    """Say whether a file of a repository has a name of [`OWN_FILES`]; a wildcard stays within its folder."""
    parts = name.split("/")
    for own in (pattern.split("/") for pattern in OWN_FILES):
        if len(own) == len(parts) and all(map(fnmatch.fnmatchcase, parts, own)):
            return True
    return False


@dataclass
class Contents:
    """
    What to write beside model and processor.

    Args:
        repo_id: user/name.
        evaluations: files of `anople evaluate --json`; the detector's own and, for a spread, others of other seeds.
        gallery: folder of `anople evaluate --gallery`.
        adapter: leave the CLIP out.
        max_shard_size: weights beyond it are parted into several files.
        cost: a sentence of `measure_cost`.
        license, data_license, description, dataset_id: as in [`CardFacts`].
        benchmark: id of a benchmark data set on the Hub and of its task.
    """

    repo_id: str
    evaluations: list[str]
    gallery: str | None = None
    adapter: bool = False
    max_shard_size: str = "5GB"
    cost: str | None = None
    license: str | None = None
    data_license: str | None = None
    description: str | None = None
    dataset_id: str | None = None
    benchmark: tuple[str, str] | None = None


def write_folder(folder: Path, model: AnoPLeModel, processor: AnoPLeProcessor, contents: Contents) -> None:
    """
    Write the repository's folder anew.

    Raises:
        ValueError: for evaluations or a gallery that do not fit, and for a card that would be faulty.
    """
    config = model.config
    # before anything is written: the config goes into several files
    config.fit = _public_fit(config.fit)
    results = Results.read(contents.evaluations, config, detector_sha256(model)) if contents.evaluations else None
    pictures = choose_pictures(Path(contents.gallery)) if contents.gallery else []
    sha256 = encoder_sha256 = None
    if contents.adapter:
        model.save_adapter(folder)
        saved = AnoPLeConfig.from_pretrained(folder)
        sha256, encoder_sha256 = saved.adapter_clip_sha256, saved.memory_encoder_sha256
    else:
        model.save_pretrained(folder, max_shard_size=contents.max_shard_size)
    processor.save_pretrained(folder)
    (folder / LOCK_FILE).unlink(missing_ok=True)
    for path in Path(modeling_anople.__file__).parent.glob("*_anople.py"):  # these travel, and no others
        shutil.copy(path, folder)
    if not contents.adapter:  # an endpoint has nothing to put an adapter on
        shutil.copy(Path(__file__).parent / "handler.py", folder)
        (folder / "requirements.txt").write_text(_requirements(), encoding="utf-8")
    if results:
        _write_json(folder / "evaluation.json", published(results.own))
        if contents.benchmark:
            _write_eval_results(folder, results, contents.benchmark)
    for picture in pictures:
        (folder / SAMPLES).mkdir(exist_ok=True)
        shutil.copy(Path(contents.gallery) / SAMPLES / picture["file"], folder / SAMPLES)
        picture["file"] = f"{SAMPLES}/{picture['file']}"
    # last, since the card says how large the weights are and shows the pictures
    facts = CardFacts(
        repo_id=contents.repo_id,
        results=results,
        pictures=pictures,
        cost=contents.cost,
        size=_size_in_words(folder),
        adapter_sha256=sha256,
        encoder_sha256=encoder_sha256,
        license=contents.license,
        data_license=contents.data_license,
        description=contents.description,
        dataset_id=contents.dataset_id,
    )
    card = make_card(config, facts)
    check_card(str(card), folder)  # before anything is sent
    card.save(folder / "README.md")


def choose_pictures(gallery: Path, failures: int = 3, successes: int = 2) -> list[dict]:
    """
    Choose a card's pictures from a gallery: the worst errors, of different products where there are, and successes.

    Raises:
        ValueError: for a folder that `anople evaluate --gallery` did not write.
    """
    path = gallery / SAMPLES / f"{SAMPLES}.json"
    if not (gallery / "index.html").is_file():
        raise ValueError(f"{gallery} is no gallery: give the folder that `anople evaluate --gallery` wrote.")
    if not path.is_file():
        if any(gallery.glob("*.png")):
            raise ValueError(f"{gallery} has no {SAMPLES}/{SAMPLES}.json: run `anople evaluate --gallery` again.")
        return []
    entries = sorted(json.loads(path.read_text(encoding="utf-8")), key=lambda entry: -entry["severity"])
    for file in (entry["file"] for entry in entries):
        if not isinstance(file, str) or Path(file).name != file or file in ("", "..") or "\\" in file:
            raise ValueError(
                f"{path} names {file!r}, which is no picture beside it: run `anople evaluate --gallery` again."
            )
    wrong = [entry for entry in entries if entry["kind"] in ("miss", "false alarm")]
    right = [entry for entry in entries if entry["kind"] == "found"]
    return [*_of_many_products(wrong, failures), *_of_many_products(right, successes)]


def _of_many_products(entries: list[dict], count: int) -> list[dict]:
    """Take the first of each product and kind, then the others, each in their order."""
    firsts: dict[tuple, dict] = {}
    for entry in entries:
        firsts.setdefault((entry["class"], entry["kind"]), entry)
    chosen = [*firsts.values(), *(entry for entry in entries if entry not in firsts.values())]
    return chosen[:count]


def _public_fit(fit: dict | None) -> dict | None:
    """Name folders without the way to them, also in detectors that were fitted before fitting did so."""
    if fit is None:
        return None
    kept = {name: value for name, value in fit.items() if name != "output_dir"}
    return {**kept, **{name: name_of(kept[name]) for name in ("data_root", "clip") if kept.get(name)}}


def _write_eval_results(folder: Path, results: Results, benchmark: tuple[str, str]) -> None:
    dataset_id, task_id = benchmark
    value = results.mean["image_auroc"][0]
    if value is None:
        raise ValueError(f"The evaluation has no image AUROC to report to {dataset_id}: leave --benchmark out.")
    known = {"shots": results.own["shots"], "seed": results.own["seed"]}
    notes = ", ".join(
        ["image AUROC, mean over products", *(f"{name} {value}" for name, value in known.items() if value is not None)]
    )
    entry = EvalResultEntry(dataset_id=dataset_id, task_id=task_id, value=round(value, 4), notes=notes)
    path = folder / ".eval_results" / "anople.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry])), encoding="utf-8")


def _requirements() -> str:
    """List what a detector's own code needs at an endpoint, which has torch for its hardware."""
    needed = [line for line in requires("anople") if "extra ==" not in line and not line.startswith("torch")]
    return "# What handler.py and the code of this detector need beside torch.\n" + "".join(
        f"{each}\n" for each in needed
    )


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _size_in_words(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return f"{size / 1e6:.1f} MB"


__all__ = ["OWN_FILES", "Contents", "choose_pictures", "is_own", "write_folder"]
