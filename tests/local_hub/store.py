"""What a Hub keeps: files by their hash on disk, and repositories as branches of commits."""

import hashlib
import os
import secrets
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO


class Refused(Exception):
    """A request that cannot be served: an HTTP status, the code that the client looks at, and a sentence."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class StoredFile:
    """One version of a file: `sha256` and `size` of its bytes, git's hash of it, and whether it came as a large file."""

    sha256: str
    size: int
    git_sha1: str
    large: bool

    @property
    def etag(self) -> str:
        """What changes when the file does; the client names its cached copy by it."""
        return self.sha256 if self.large else self.git_sha1


@dataclass(frozen=True)
class Commit:
    """A revision: all files by path, and what it says of itself."""

    id: str
    parent: str | None
    files: dict[str, StoredFile]
    title: str
    description: str
    author: str
    date: str


@dataclass
class Repository:
    """A model or a Space: `kind` is its plural in addresses ("models", "spaces"), `sdk` a Space's."""

    id: str
    kind: str
    private: bool
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def revision(self, name: str) -> Commit:
        """Find a commit by branch or by its whole hash."""
        commit = self.commits.get(self.branches.get(name, name))
        if commit is None:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return commit

    def add(self, branch: str, files: dict[str, StoredFile], title: str, description: str, author: str) -> Commit:
        """Put a new commit onto a branch; the branch moves last, so that readers see all of it or nothing."""
        parent, date = self.branches.get(branch), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        listing = "\n".join(f"{path} {file.sha256}" for path, file in sorted(files.items()))
        text = f"{parent}\n{title}\n{description}\n{date}\n{secrets.token_hex(8)}\n{listing}"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, files, title, description, author, date)
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        return commit


class Store:
    """All repositories, and their bytes in a folder. Safe to use from several threads."""

    def __init__(self, folder: Path):
        self.blobs, self.unfinished = Path(folder) / "blobs", Path(folder) / "unfinished"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.unfinished.mkdir(parents=True, exist_ok=True)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lock = threading.Lock()

    def create(self, kind: str, repository_id: str, *, private: bool, sdk: str | None, author: str) -> Repository:
        """Make an empty repository with a first commit, as the Hub does."""
        with self.lock:
            if (kind, repository_id) in self.repositories:
                raise Refused(409, f"You already created this {kind[:-1]} repo: {repository_id}")
            repository = Repository(repository_id, kind, private, sdk)
            attributes = self.keep(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            repository.add("main", {".gitattributes": attributes}, "initial commit", "", author)
            self.repositories[kind, repository_id] = repository
        return repository

    def find(self, kind: str, repository_id: str) -> Repository | None:
        """Return a repository, if there is one."""
        return self.repositories.get((kind, repository_id))

    def path_of(self, sha256: str) -> Path:
        """Say where the bytes of a hash lie."""
        return self.blobs / sha256

    def keep(self, content: bytes) -> StoredFile:
        """Store a small file."""
        sha256 = hashlib.sha256(content).hexdigest()
        place = self.unfinished / secrets.token_hex(8)
        place.write_bytes(content)
        os.replace(place, self.path_of(sha256))
        git_sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return StoredFile(sha256, len(content), git_sha1, large=False)

    def large_file(self, sha256: str) -> StoredFile:
        """Describe a large file that was uploaded before."""
        path = self.path_of(sha256)
        if not path.exists():
            raise Refused(400, f"The large file {sha256} was never uploaded.")
        size = path.stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return StoredFile(sha256, size, hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(), large=True)

    def open_upload(self) -> tuple[Path, BinaryIO]:
        """Open a place for the bytes of a large file while they arrive."""
        place = self.unfinished / secrets.token_hex(8)
        return place, place.open("wb")

    def finish_upload(self, place: Path, expected: str, found: str) -> None:
        """Take over a large file that arrived whole; one with another hash is thrown away and refused."""
        if found != expected:
            place.unlink()
            raise Refused(400, f"The bytes have SHA-256 {found}, but {expected} was announced.")
        os.replace(place, self.path_of(expected))
