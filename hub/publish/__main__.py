"""
Publish a fitted detector: `anople push CHECKPOINT user/name --evaluation evaluation.json --gallery gallery`.

In a checkout `python -m hub.publish` is the same.

Weights, config, processor, code, figures, pictures and a model card go up in one commit: whoever loads the repository
meanwhile gets the revision before or the one after, and a push that is cut off changes nothing and can be repeated.
"""

import json
import logging
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, constants
from PIL import Image

from modeling_anople import AnoPLeConfig, AnoPLeModel, AnoPLeProcessor
from modeling_anople.runtime import run_program
from modeling_anople.runtime.loading import load_detector
from modeling_anople.runtime.outputs import check_new_folder

from .folder import Contents, is_own, write_folder
from .upload import check_repo_id, compare_hashes, explained_failures, tell


logger = logging.getLogger(__name__)

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")


@dataclass
class PushOptions:
    """Options of `anople push`."""

    private: bool = field(default=False, metadata={"help": "Make a new repository that only you can see."})
    evaluation: list[str] | None = field(
        default=None,
        metadata={
            "help": "evaluation.json of this detector, and others of other seeds if their spread is to be shown."
        },
    )
    gallery: str | None = field(
        default=None, metadata={"help": "Folder of `anople evaluate --gallery`, for pictures."}
    )
    adapter: bool = field(default=False, metadata={"help": "Leave the CLIP out; a hash ties the adapter to it."})
    revision: str = field(default="main", metadata={"help": "Branch to push to; a new one begins at main."})
    message: str | None = field(default=None, metadata={"help": "First line of the commit."})
    max_shard_size: str = field(default="5GB", metadata={"help": "Larger weights are parted into several files."})
    measure_cost: bool = field(default=False, metadata={"help": "Time predictions on this CPU, for the card."})
    license: str | None = field(
        default=None, metadata={"help": "Identifier of your license; by default the backbone's, where that is known."}
    )
    data_license: str | None = field(default=None, metadata={"help": "A sentence on the photographs' license."})
    description: str | None = field(
        default=None, metadata={"help": "Your own words about the detector, for the card."}
    )
    dataset_id: str | None = field(default=None, metadata={"help": "Id of the photographs on the Hub, if they are."})
    benchmark: list[str] | None = field(
        default=None,
        metadata={"help": "DATASET_ID TASK_ID of a benchmark on the Hub that these test photographs are."},
    )
    dry_run: str | None = field(default=None, metadata={"help": "Write what would be sent into this folder instead."})

    def __post_init__(self):
        if self.benchmark is not None and len(self.benchmark) != 2:
            raise ValueError(f"--benchmark takes a dataset id and a task id, got {self.benchmark}.")
        if self.benchmark and not self.evaluation:
            raise ValueError("--benchmark needs figures: give --evaluation too.")


def push(checkpoint: str, repo_id: str, options: PushOptions) -> str:
    """
    Publish a detector.

    Args:
        checkpoint: folder or Hub id.
        repo_id: user/name.

    Returns:
        The address of the commit, or the folder of a dry run.

    Raises:
        ValueError: for a wrong id, a detector, evaluation or gallery that do not fit, a folder that is not empty, a
            public repository where a private one was asked for, a repository that holds another model, what the Hub
            refuses, and files that arrived damaged or could not be compared.
    """
    check_repo_id(repo_id)
    if options.dry_run:
        check_new_folder(options.dry_run, "--dry_run")
    model, processor = load_detector(checkpoint)
    contents = Contents(
        repo_id=repo_id,
        evaluations=options.evaluation or [],
        gallery=options.gallery,
        adapter=options.adapter,
        max_shard_size=options.max_shard_size,
        cost=measure_cost(model, processor) if options.measure_cost else None,
        license=options.license,
        data_license=options.data_license,
        description=options.description,
        dataset_id=options.dataset_id,
        benchmark=tuple(options.benchmark) if options.benchmark else None,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.dry_run or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_folder(folder, model, processor, contents)
        if options.dry_run:
            return str(folder)
        return upload(folder, repo_id, options)


def upload(folder: Path, repo_id: str, options: PushOptions) -> str:
    """Send a folder in one commit, remove what an earlier push left over, and compare hashes."""
    api = HfApi()
    with explained_failures(repo_id, options.revision):
        commit, operations = _commit(api, folder, repo_id, options)
    compare_hashes(api, repo_id, commit.oid, operations)
    return commit.commit_url


def _commit(api: HfApi, folder: Path, repo_id: str, options: PushOptions) -> tuple[CommitInfo, list]:
    _make_repository(api, repo_id, options)
    known = api.model_info(repo_id, revision=options.revision)
    _refuse_another_model(api, known)
    # what an earlier push left, other shards for instance, would be loaded with the new weights
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sent = {path.relative_to(folder).as_posix(): path for path in files}
    gone = [entry.rfilename for entry in known.siblings if entry.rfilename not in sent and is_own(entry.rfilename)]
    operations = [CommitOperationAdd(name, path) for name, path in sent.items()]
    operations += [CommitOperationDelete(name) for name in gone]
    message = options.message or ("Upload AnoPLe adapter" if options.adapter else "Upload AnoPLe detector")
    # on the revision that was looked at: a push that somebody else made meanwhile is not written over
    commit = api.create_commit(
        repo_id, operations, commit_message=message, revision=options.revision, parent_commit=known.sha
    )
    return commit, operations


def _make_repository(api: HfApi, repo_id: str, options: PushOptions) -> None:
    api.create_repo(repo_id, private=options.private or None, exist_ok=True)
    known = api.model_info(repo_id)
    if options.private and not known.private:
        raise ValueError(f"--private was given, but {repo_id} exists and is public: make it private there, or rename.")
    if options.revision != constants.DEFAULT_REVISION:
        if options.revision not in [branch.name for branch in api.list_repo_refs(repo_id).branches]:
            _refuse_another_model(api, known)  # the branch begins with its files
        api.create_branch(repo_id, branch=options.revision, exist_ok=True)


def _refuse_another_model(api: HfApi, known: ModelInfo) -> None:
    """Look at what a repository holds before anything is written over."""
    names = [entry.rfilename for entry in known.siblings]
    if "config.json" in names:
        try:
            text = Path(api.hf_hub_download(known.id, "config.json", revision=known.sha)).read_text(encoding="utf-8")
            kind = json.loads(text).get("model_type")
        except (ValueError, AttributeError):
            kind = None
        if kind == AnoPLeConfig.model_type:
            return
        raise ValueError(
            f"{known.id} holds another model: its config.json has the model_type {kind!r}, not "
            f"{AnoPLeConfig.model_type!r}. Push to another name."
        )
    if weights := [name for name in names if name.endswith(WEIGHTS)]:
        raise ValueError(f"{known.id} holds weights of no AnoPLe detector ({weights[0]}): push to another name.")


def measure_cost(
    model: AnoPLeModel, processor: AnoPLeProcessor, *, repeats: int = 20, size: tuple[int, int] = (640, 480)
) -> str:
    """
    Time single photographs from picture to full-size map, and say it in two sentences.

    Args:
        repeats: photographs timed, after three that warm caches up.
        size: (width, height) of a photograph.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    photograph, name = Image.fromarray(pixels), processor.class_names[0]
    model, seconds = model.to("cpu").eval(), []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            start = time.perf_counter()
            outputs = model(**processor(images=photograph, class_names=name))
            processor.post_process_anomaly_detection(outputs, target_sizes=[size[::-1]])
            seconds.append(time.perf_counter() - start)
    quartiles = statistics.quantiles(seconds[3:], n=4)
    clip = sum(weight.numel() for weight in model.clip.parameters())
    encoder = sum(weight.numel() for name, weight in model.named_parameters() if name.startswith("memory_encoder."))
    own = sum(weight.numel() for weight in model.parameters()) - clip - encoder
    beside = f", the memory encoder {encoder / 1e6:.1f} million" if encoder else ""
    threads = torch.get_num_threads()
    return (
        f"{_milliseconds(quartiles[1])} for one photograph of {size[0]} x {size[1]} pixels from picture to heat map (median "
        f"of {repeats}; the middle half took {_milliseconds(quartiles[0])} to {_milliseconds(quartiles[2])}), on "
        f"{threads} CPU {'thread' if threads == 1 else 'threads'} with torch {torch.__version__}. The CLIP has "
        f"{clip / 1e6:.1f} million weights{beside}, prompts and decoder {own / 1e6:.2f} million."
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def main(arguments: list[str] | None = None, *, program: str = "python -m hub.publish") -> int:
    """Run the program, under the name that it was called by."""
    return run_program(
        program,
        PushOptions,
        lambda places, options: tell(push(places.checkpoint, places.repo_id, options), options.dry_run),
        arguments,
        checkpoint="Folder or Hub id of a detector.",
        repo_id="user/name of the repository; made if it does not exist.",
    )


if __name__ == "__main__":
    sys.exit(main())
