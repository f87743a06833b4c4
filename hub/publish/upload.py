"""What every upload to the Hub has in common: ids, failures that say what to do, and a comparison of what arrived."""

import contextlib
import logging
from collections.abc import Iterator

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from modeling_anople.runtime.loading import explain


logger = logging.getLogger(__name__)

NETWORK_ERRORS = (httpx2.TransportError, HfHubHTTPError)


def check_repo_id(repo_id: str) -> None:
    """
    Check that an id names an owner and a repository.

    Raises:
        ValueError: if it does not, before anything is sent.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no id on the Hub ({error}): give user/name.") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} names no owner: give user/name.")


@contextlib.contextmanager
def explained_failures(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the Hub refuses before a commit, and a connection that fails, into errors that say what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        raise ValueError(f"{repo_id} {explain(error, revision)}. Nothing was changed there.") from error
    except (httpx2.TransportError, LocalEntryNotFoundError, OfflineModeIsEnabled, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, NETWORK_ERRORS):
            raise  # no upload that failed, which the client wraps into a RuntimeError
        raise ValueError(
            f"{repo_id} was not pushed, because the connection to {constants.ENDPOINT} failed "
            f"({error.__cause__ or error}). The repository shows its previous revision; push again."
        ) from error


def compare_hashes(
    api: HfApi, repo_id: str, revision: str, operations: list, *, repo_type: str = constants.REPO_TYPE_MODEL
) -> None:
    """
    Ask the Hub what it holds of the large files after a commit, and compare.

    Raises:
        ValueError: if a file arrived damaged, or the Hub does not answer.
    """
    local = {entry.path_in_repo: entry for entry in operations if isinstance(entry, CommitOperationAdd)}
    try:
        there = list(api.list_repo_tree(repo_id, revision=revision, recursive=True, repo_type=repo_type))
    except NETWORK_ERRORS as error:
        raise ValueError(
            f"{repo_id} was pushed as {revision}, but could not be compared with what was sent ({error}): push again, "
            "which sends no file twice and compares once more."
        ) from error
    for entry in there:
        sent = local.get(entry.path)
        if sent and getattr(entry, "lfs", None) and entry.lfs.sha256 != sent.upload_info.sha256.hex():
            raise ValueError(
                f"{entry.path} arrived damaged with commit {revision}: SHA-256 {entry.lfs.sha256} in {repo_id}, "
                f"{sent.upload_info.sha256.hex()} here. Push again."
            )


def tell(address: str, dry_run: str | None) -> None:
    """Say where what was pushed lies."""
    logger.info("%s: %s", "Written, not sent" if dry_run else "Pushed", address)
