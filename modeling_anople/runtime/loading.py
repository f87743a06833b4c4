"""Load a detector by the name of a folder or of a repository on the Hub, and say where and in which order it computes."""

import contextlib
import functools
import glob
import hashlib
import json
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx2
import torch
from huggingface_hub import HfApi, HfFileSystem, constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open

from .. import AnoPLeConfig, AnoPLeModel, AnoPLeProcessor  # by the package, which lets transformers know them
from ..export.graph_detector import ExportedDetector, graph_in, put_thresholds, whole_export_in
from ..processing_anople import check_sight
from ..saving_anople import (
    FROZEN,
    StateError,
    check_state,
    deciding_products,
    finder,
    hash_weights,
    read_state,
    state_folder,
)


if TYPE_CHECKING:
    from accelerate import PartialState


# --- The processes that `accelerate launch` started, for work that needs no training loop ---


def join_processes() -> "PartialState":
    """Join the processes that `accelerate launch` started; alone, there is one."""
    from accelerate import PartialState  # an extra: who judges photographs alone has no need of it
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


# --- Where a detector computes, who prepares what it learns from, and in which order a GPU adds up ---


def computing_device(asked: str = "auto") -> torch.device:
    """
    Find a device by its name.

    Args:
        asked: `auto` for this process' GPU (CUDA), or the CPU where there is none or `ACCELERATE_USE_CPU` is set, as
            `accelerate launch` does; or a name of torch's: `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        ValueError: for a device that is not here, or is not free.
    """
    name = asked
    if asked == "auto":
        kept_off = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "t", "yes", "y", "on")
        name = "cuda" if torch.cuda.is_available() and not kept_off else "cpu"
    try:
        place = torch.empty(0, device=name).device  # with its number: the GPU that this process was given
        if place.type == "meta":
            raise RuntimeError("it holds shapes and no numbers")
        return place
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # by what torch was built for
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"The device {name!r} cannot be used here ({reason}): take cpu.") from error


@contextlib.contextmanager
def one_order_of_sums(device: torch.device) -> Iterator[None]:
    """Let a GPU add up in one order meanwhile, so that the same fit has the same bits; other devices do so anyway."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when the first product is computed
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help to find bugs, which takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def loader_workers(device: torch.device, processes: int = 1) -> int:
    """
    Say how many processes should prepare photographs for each of `processes` that learn on such a device.

    None for a CPU, which has enough to do. For a GPU, which would wait otherwise, a share of the cores, at most 8; none
    where processes are not forked: they would import a script that calls `train` again.
    """
    if device.type != "cuda" or multiprocessing.get_start_method() != "fork":
        return 0
    return min(8, (os.cpu_count() or 1) // processes)


# --- What tells one detector's state from another's, so that figures stay with the detector they were measured on ---


def detector_sha256(model: AnoPLeModel | ExportedDetector) -> str:
    """
    Hash what a detector learned: all weights but those of CLIP and memory encoder, what is known of each product, and the threshold.

    Returns:
        64 hexadecimal digits. The memory holds features of the frozen towers, and thereby stands for them.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(FROZEN)}
    known = [deciding_products(model.config.products), model.config.pooled_threshold, model.config.threshold]
    text = json.dumps([hash_weights(own), *known], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# --- Load a detector by the name of a folder or of a repository on the Hub; every refusal says what to do ---


logger = logging.getLogger(__name__)

Result = TypeVar("Result")

STATE_FILE = "unfinished.safetensors"  # of a fit that was not ended
Judge = TypeVar("Judge", AnoPLeModel, ExportedDetector)
REMEDY = "give the --output_dir of `anople fit`, or a Hub id"
NEEDED_FILES = ("*.json", "*.safetensors", "*.txt")  # the code of a repository is not needed: the package has its own


def load_detector(checkpoint: str, revision: str | None = None) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    """
    Load model and processor, of a full detector or of an adapter, and compare all that decides with the hash that was saved.

    Args:
        checkpoint: a folder, or a Hub id: `user/name` or `user/name@revision`.
        revision: branch, tag or commit hash of a Hub id.

    Raises:
        ValueError: for what is no detector or a damaged one, a graph, and for what the Hub refuses, with the remedy.
    """

    def read(place: Path) -> tuple[AnoPLeModel, AnoPLeProcessor]:
        if graph_in(place):
            raise ValueError(
                f"{checkpoint} holds a graph, which judges and learns nothing: give the detector that it was made from, and "
                "bring the graph up to date with `anople export DETECTOR FOLDER --products_only`."
            )
        return _explained(checkpoint, lambda: _read_detector(place))

    model, processor = _read(checkpoint, revision, read)
    model.name_or_path = checkpoint if Path(checkpoint).exists() else model.name_or_path
    return model, processor


def load_judge(
    checkpoint: str,
    revision: str | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> tuple[AnoPLeModel | ExportedDetector, AnoPLeProcessor]:
    """
    Load what judges and need not learn: a detector as [`load_detector`] does, or what `anople export` wrote.

    Args:
        device: as of [`computing_device`]; a graph computes on the CPU.
        dtype: of weights and memories; a graph has its own.

    Raises:
        ValueError: as of [`load_detector`], for a device that is not here, and for what a graph cannot do.
    """
    if not graph_in(state_folder(checkpoint)):
        place = computing_device(device)
        model, processor = load_detector(checkpoint, revision)
        return model.to(place, getattr(torch, dtype)), processor
    if device not in ("auto", "cpu") or dtype != "float32":
        raise ValueError(
            f"{checkpoint} holds a graph, which computes on the CPU as it was exported: leave out --device and --dtype."
        )

    def read(folder: Path) -> tuple[ExportedDetector, AnoPLeProcessor]:
        return _explained(
            checkpoint, lambda: _fitting(ExportedDetector(folder), AnoPLeProcessor.from_pretrained(folder))
        )

    model, processor = read_state(checkpoint, read)
    return model, processor


def describe_mini(config: AnoPLeConfig) -> str:
    """Say what the embedded CLIP is, and how to do better; empty where it does not look at photographs alone."""
    if (config.clip_source or {}).get("kind") != "embedded" or config.memory_encoder is not None:
        return ""
    return (
        "Photographs are seen through mini, the small CLIP of this package: it needs no download, and larger encoders find "
        "more. Fit or enroll with --clip NAME or --memory_encoder NAME: docs/which_encoder.md compares them."
    )


def announce_mini(config: AnoPLeConfig) -> None:
    """Say it where something is learned, once in a program."""
    if (said := describe_mini(config)) and os.environ.get("RANK", "0") == "0":  # of several processes one says so
        _log_once(said)


@functools.cache
def _log_once(said: str) -> None:
    logger.info("%s", said)


def load_config(checkpoint: str, revision: str | None = None) -> AnoPLeConfig:
    """Load the config alone of a detector, or of a graph with its thresholds; arguments and refusals as of [`load_detector`]."""
    config = _read(checkpoint, revision, lambda place: _explained(checkpoint, lambda: _read_config(place)))
    if graph_in(checkpoint):
        put_thresholds(config, whole_export_in(checkpoint).parent)
    return config


def _read(checkpoint: str, revision: str | None, read: Callable[[Path], Result]) -> Result:
    """Read a detector's folder, fetched where it is on the Hub, after a look at whether its files are whole."""
    folder = Path(checkpoint)
    if not folder.exists():
        place = fetch_detector(*split_revision(checkpoint, revision))
        _check_files(place)
        return read(place)
    if revision is not None:
        raise ValueError(f"--revision {revision} was given with the folder {checkpoint}: only a Hub id has revisions.")

    def checked(place: Path) -> Result:
        if not (place / "config.json").is_file():
            if (place / STATE_FILE).is_file():
                raise ValueError(f"{checkpoint} holds an unfinished fit: finish it by `anople fit` with --resume.")
            raise ValueError(f"{checkpoint} holds no detector (no config.json): {REMEDY}.")
        _check_files(place)
        return read(place)

    return read_state(folder, checked)


def _read_config(folder: Path) -> AnoPLeConfig:
    kind = AnoPLeConfig.get_config_dict(folder)[0].get("model_type")
    if kind != AnoPLeConfig.model_type:
        raise ValueError(f"its model_type is {kind!r}, not {AnoPLeConfig.model_type!r}")
    if not graph_in(folder):
        check_state(finder(folder, {}))
    return AnoPLeConfig.from_pretrained(folder)


def _read_detector(folder: Path) -> tuple[AnoPLeModel, AnoPLeProcessor]:
    adapter = _read_config(folder).adapter_clip_sha256
    load = AnoPLeModel.load_adapter if adapter else AnoPLeModel.from_pretrained
    return _fitting(load(folder, verify=True), AnoPLeProcessor.from_pretrained(folder))


def _fitting(judge: Judge, processor: AnoPLeProcessor) -> tuple[Judge, AnoPLeProcessor]:
    """Return both, or refuse a processor of another detector: one that numbers the products, or prepares images, otherwise."""
    if processor.class_names != judge.config.class_names:
        raise ValueError(
            f"processor_config.json knows the products {processor.class_names}, config.json {judge.config.class_names}; copy "
            "both from one detector"
        )
    check_sight(processor, judge.config)
    return judge, processor


def _explained(checkpoint: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except StateError:  # which says what to do
        raise
    except Exception as error:  # readers of configs, weights and tokenizers have errors of their own
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{checkpoint} cannot be loaded ({reason}): {REMEDY}.") from error


def split_revision(checkpoint: str, revision: str | None = None) -> tuple[str, str | None]:
    """Part `user/name@revision` into its two halves; a revision given twice is refused."""
    name, _, written = checkpoint.partition("@")
    if written and revision:
        raise ValueError(f"{checkpoint} names a revision and --revision {revision} another: give one of them.")
    return name, written or revision


def fetch_detector(name: str, revision: str | None = None) -> Path:
    """
    Download a repository into the cache, or find it there, and compare every file with the Hub's hash.

    Over plain HTTP the client of the Hub checks the size of what it downloads but not its hash. Where the Hub cannot be
    reached, what the cache holds is used as it is, with a warning.

    Raises:
        ValueError: if it cannot be had, and if a file is not what the Hub holds.
    """
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(NEEDED_FILES)))
        if not (folder / "config.json").is_file():
            raise ValueError(f"{name} on the Hub holds no detector (no config.json): {REMEDY}.")
        if not is_offline_mode():
            _compare_hashes(name, folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, RepositoryNotFoundError) as error:
        raise ValueError(f"{name} is no folder, and as a Hub id it {explain(error, revision)}.") from error
    return folder


def explain(error: Exception, revision: str | None = None) -> str:
    """Say what an error of the Hub's client means and what to do, as the end of a sentence about the repository."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision!r}: give a branch, a tag or a whole commit hash"
    if status in (401, 403):
        return (
            f"cannot be reached ({status}: it is private, gated or not there, or the token is not valid): check its "
            "spelling, and log in with `hf auth login` or set HF_TOKEN to a token that may use it"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "cannot be found (404): check its spelling, and that your token may see it"
    if isinstance(error, LocalEntryNotFoundError):
        if is_offline_mode():
            return "is not in the cache, and HF_HUB_OFFLINE forbids to download it: unset that, or give a folder"
        return f"is not in the cache, and the Hub at {constants.ENDPOINT} cannot be reached: check the connection"
    return f"cannot be loaded ({' '.join(str(error).split()).rstrip('.')}): {REMEDY}"


def _compare_hashes(name: str, folder: Path) -> None:
    cache, hub = folder.parents[2], HfApi()  # cache / models--user--name / snapshots / commit
    try:
        with contextlib.suppress(HfHubHTTPError):  # its answers are for the comparison
            hub.model_info(name, revision=folder.name)  # asks once; a comparison without a network, six times in 23 s
        checked = hub.verify_repo_checksums(name, revision=folder.name, cache_dir=cache)
    except (httpx2.TransportError, HfHubHTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        logger.warning(
            "%s is used from the cache, not compared with the Hub, which cannot be reached (%s).", name, error
        )
        return
    for wrong in checked.mismatches:
        raise ValueError(
            f"{folder / wrong['path']} is damaged: its {wrong['algorithm']} is {wrong['actual']}, but {name} has "
            f"{wrong['expected']}. Remove {folder.parents[1]} and download it again."
        )


def _check_files(folder: Path) -> None:
    """Name a file that was cut short; the libraries' own errors do not."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        if not path.is_file():  # a pipe would be waited for, a device read without an end
            raise ValueError(f"{path} is no file: copy the folder again, or fit the detector anew.")
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            else:
                with safe_open(path, framework="pt"):
                    pass
        except Exception as error:
            raise ValueError(
                f"{path} is damaged ({error}): copy the folder again, or fit the detector anew."
            ) from error


# --- The shards of a data set, parquet files or WebDataset tars, on disk or on the Hub ---

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}  # ending -> what of `datasets` reads it
ANSWERS = ".results.parquet"
HUB, DATASETS = "hf://", "hf://datasets/"


@dataclass(frozen=True)
class Shard:
    """
    One file of a data set.

    Args:
        place: its path, or its address on the Hub, which names a commit.
        answers: the name of the file of its answers.
        content: on the Hub the hash of its bytes, else empty.
    """

    place: str
    answers: str
    content: str = ""

    @property
    def builder(self) -> str:
        """What of `datasets` reads it."""
        return BUILDERS[PurePosixPath(self.place).suffix]


def list_shards(places: list[str]) -> list[Shard]:
    """
    Name the shards of data sets; none where no place holds any.

    Args:
        places: shards; folders, of which those directly in it count; or addresses on the Hub,
            `hf://datasets/OWNER/NAME[@REVISION][/FOLDER, FILE or PATTERN]`, of which all below count, at the commit that
            the revision stands for now. Sorted within each. Answers are no shards.

    Raises:
        FileNotFoundError: for what the Hub does not have, or not for you.
        ValueError: for an address without shards, shards beside other places, or two whose answers have one name.
        ConnectionError: if the Hub cannot be reached.
    """
    found = [_on_hub(place) if place.startswith(HUB) else _on_disk(Path(place)) for place in places]
    if any(found) and not all(found):
        other = next(place for place, shards in zip(places, found, strict=True) if not shards)
        raise ValueError(f"{other} holds no shards, and others do: give shards and photographs in separate runs.")
    shards = [shard for part in found for shard in part]
    if double := sorted(name for name, times in Counter(shard.answers for shard in shards).items() if times > 1):
        raise ValueError(f"Several shards would be answered in {double[0]}: give them in separate runs.")
    return shards


def _on_disk(place: Path) -> list[Shard]:
    files = sorted(place.iterdir()) if os.path.isdir(place) else [place]
    return [Shard(str(path), path.stem + ANSWERS) for path in files if _is_shard(path.name) and os.path.isfile(path)]


def _on_hub(address: str) -> list[Shard]:
    """List what an address stands for; files in different folders often have one name there, so answers name both."""
    files = HfFileSystem()
    try:
        place = files.resolve_path(address) if address.startswith(DATASETS) else None
        if not getattr(place, "repo_id", None):
            raise ValueError(f"{address} is no data set: give {DATASETS}OWNER/NAME.")
        commit = HfApi().dataset_info(place.repo_id, revision=place.revision).sha
        root, asked = f"datasets/{place.repo_id}@{commit}/", place.path_in_repo
        look = files.glob if glob.has_magic(asked) else files.find
        found = look((root + asked).rstrip("/"), detail=True)
    except httpx2.TransportError as error:
        raise ConnectionError(
            f"{address} cannot be listed, because the Hub at {constants.ENDPOINT} cannot be reached ({error}): check the "
            "connection, or give files on disk."
        ) from error
    if not found:
        raise FileNotFoundError(f"{address} does not exist: nothing of that name is in {place.repo_id} at {commit}.")
    shards = [
        Shard(HUB + name, name.removeprefix(root).rpartition(".")[0].replace("/", "-") + ANSWERS, details["blob_id"])
        for name, details in sorted(found.items())
        if _is_shard(name) and details["type"] == "file"
    ]
    if not shards:
        raise ValueError(
            f"{address} holds no shards ({', '.join(BUILDERS)}). Of most public data sets the Hub keeps a copy in parquet: "
            f"{DATASETS}{place.repo_id}@refs/convert/parquet."
        )
    return shards


def _is_shard(name: str) -> bool:
    return PurePosixPath(name).suffix in BUILDERS and not name.endswith(ANSWERS)


__all__ = [
    "Shard",
    "announce_mini",
    "list_shards",
    "computing_device",
    "describe_mini",
    "detector_sha256",
    "explain",
    "fetch_detector",
    "join_processes",
    "load_config",
    "load_detector",
    "load_judge",
    "loader_workers",
    "one_order_of_sums",
    "split_revision",
]
