"""The shards of a data set, parquet files or WebDataset tars, on disk or on the Hub."""

import glob
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import HfApi, HfFileSystem, constants


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
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return [Shard(str(path), path.stem + ANSWERS) for path in files if _is_shard(path.name) and path.is_file()]


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


__all__ = ["ANSWERS", "Shard", "list_shards"]
