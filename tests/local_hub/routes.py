"""The addresses of the local Hub: who may do what, how repositories are looked at, and how files get in and out."""

import base64
import functools
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from .store import Commit, Refused, Repository, Store, StoredFile


# --- Who may do what: tokens, private repositories, and the errors in the form that the client understands ---


def user_of(request: Request) -> str | None:
    """
    Name who asks, by the token; `None` without one.

    Raises:
        Refused: 401 for a token that nobody has.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    user = request.app.state.users.get(token)
    if user is None:
        raise Refused(401, "Invalid credentials in Authorization header")
    return user


def repository_of(request: Request, *, write: bool = False) -> Repository:
    """
    Find the repository that an address names, if whoever asks may see it, or change it.

    Raises:
        Refused: 401 without a token for what is private or not there, 404 with one, 403 for another's repository.
    """
    store: Store = request.app.state.store
    path = request.path_params
    repository_id, user = f"{path['owner']}/{path['name']}", user_of(request)
    repository = store.find(path.get("kind", "models"), repository_id)
    if repository is None or (repository.private and user != path["owner"]):
        if user is None:
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        raise Refused(404, "Repository not found", "RepoNotFound")
    if write and user != path["owner"]:
        status = 401 if user is None else 403
        raise Refused(status, f"Only {path['owner']} may write to {repository_id}")
    return repository


def answering(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Turn refusals of a handler into answers, with the headers by which the client tells them apart."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            return JSONResponse({"error": refusal.message}, refusal.status, headers)

    return answer


# --- The addresses by which a repository is looked at and its files are fetched ---


@answering
async def whoami(request: Request) -> Response:
    """Name the owner of the token."""
    user = user_of(request)
    if user is None:
        raise Refused(401, "Invalid username or password.")
    return JSONResponse({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"type": "access_token"}})


@answering
async def validate_metadata(request: Request) -> Response:
    """Check that the head of a card is YAML of names and values; the Hub's own rules are more."""
    content = (await request.json())["content"]
    errors, head = [], content.split("---")[1] if content.startswith("---") else "{}"
    try:
        if not isinstance(yaml.safe_load(head) or {}, dict):
            errors.append({"message": "metadata should be a mapping"})
    except yaml.YAMLError as error:
        errors.append({"message": str(error)})
    return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)


@answering
async def describe(request: Request) -> Response:
    """Describe a repository at one of its revisions."""
    repository = repository_of(request)
    return JSONResponse(_info(repository, repository.revision(request.path_params.get("revision", "main"))))


@answering
async def list_repositories(request: Request) -> Response:
    """List the repositories of one kind that whoever asks may see."""
    user, kind, author = user_of(request), request.path_params["kind"], request.query_params.get("author")
    seen = [
        repository
        for repository in request.app.state.store.repositories.values()
        if repository.kind == kind
        and (not repository.private or repository.id.startswith(f"{user}/"))
        and author in (None, repository.id.split("/")[0])
    ]
    return JSONResponse([_info(repository, repository.revision("main")) for repository in seen])


def _info(repository: Repository, commit: Commit) -> dict:
    identity = {"_id": repository.id, "id": repository.id, "modelId": repository.id, "sha": commit.id}
    about = {"author": repository.id.split("/")[0], "private": repository.private, "gated": False, "disabled": False}
    files = [{"rfilename": path} for path in sorted(commit.files)]
    return {**identity, **about, "sdk": repository.sdk, "lastModified": commit.date, "tags": [], "siblings": files}


@answering
async def list_tree(request: Request) -> Response:
    """List files and folders, of the top, of one folder, or of everything below it."""
    commit = repository_of(request).revision(request.path_params["revision"])
    folder = request.path_params.get("path", "").strip("/")
    prefix = f"{folder}/" if folder else ""
    inside = {path: file for path, file in sorted(commit.files.items()) if path.startswith(prefix)}
    if folder and not inside:
        raise Refused(404, f"{folder} does not exist on {commit.id}", "EntryNotFound")
    everything = request.query_params.get("recursive", "").lower() in ("true", "1")
    entries = []
    for path, file in inside.items():
        rest = path.removeprefix(prefix)
        if everything or "/" not in rest:
            entries.append(_entry(path, file))
        folders = [prefix + rest[:place] for place, sign in enumerate(rest) if sign == "/"]
        for name in folders if everything else folders[:1]:
            entry = {"type": "directory", "path": name, "oid": commit.id, "size": 0}
            if entry not in entries:
                entries.append(entry)
    return JSONResponse(entries)


@answering
async def describe_paths(request: Request) -> Response:
    """Describe the files that were asked for; those that do not exist are left out."""
    commit = repository_of(request).revision(request.path_params["revision"])
    paths = parse_qs((await request.body()).decode()).get("paths", [])
    return JSONResponse([_entry(path, commit.files[path]) for path in paths if path in commit.files])


def _entry(path: str, file: StoredFile) -> dict:
    entry = {"type": "file", "path": path, "size": file.size, "oid": file.git_sha1}
    return {**entry, "lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 130}} if file.large else entry


@answering
async def list_branches(request: Request) -> Response:
    """List branches with the commits they stand at."""
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
        for name, commit in repository_of(request).branches.items()
    ]
    return JSONResponse({"branches": branches, "tags": [], "converts": []})


@answering
async def list_commits(request: Request) -> Response:
    """List a revision and those before it, the newest first."""
    repository = repository_of(request)
    entries, commit = [], repository.revision(request.path_params["revision"])
    while commit is not None:
        about = {"title": commit.title, "message": commit.description, "date": commit.date}
        entries.append({"id": commit.id, "authors": [{"user": commit.author}], **about})
        commit = repository.commits.get(commit.parent)
    return JSONResponse(entries)


@answering
async def send_file(request: Request) -> Response:
    """Send a file, or a range of it; its ETag and the commit stand in the headers."""
    commit = repository_of(request).revision(request.path_params["revision"])
    file = commit.files.get(request.path_params["path"])
    if file is None:
        missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit.id}
        return JSONResponse({"error": "Entry not found"}, 404, missing)
    headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.id}
    if file.large:
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
    path = request.app.state.store.path_of(file.sha256)
    return FileResponse(path, headers=headers, media_type="application/octet-stream")


# --- The addresses by which files get into a repository ---


LARGE_SUFFIXES = (".safetensors", ".png", ".jpg", ".bin", ".pt", ".zip")
LARGE_SIZE = 10 * 2**20


@answering
async def create_repository(request: Request) -> Response:
    """Make a repository for the user who asks."""
    wanted, user = await request.json(), user_of(request)
    if user is None:
        raise Refused(401, "Invalid username or password.")
    owner, kind = wanted.get("organization") or user, f"{wanted.get('type') or 'model'}s"
    if owner != user:
        raise Refused(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {owner!r}")
    if kind == "spaces" and not wanted.get("sdk"):
        raise Refused(400, "A Space needs an sdk")
    repository_id = f"{owner}/{wanted['name']}"
    try:
        validate_repo_id(repository_id)
    except HFValidationError as error:
        raise Refused(400, str(error)) from error
    private = wanted.get("visibility") == "private"
    url = f"{request.base_url}{'' if kind == 'models' else f'{kind}/'}{repository_id}"
    store: Store = request.app.state.store
    answer = {"url": url, "name": repository_id, "id": repository_id}
    try:
        store.create(kind, repository_id, private=private, sdk=wanted.get("sdk"), author=user)
    except Refused as refusal:  # the client reads the address from this answer, too
        return JSONResponse({"error": refusal.message, **answer}, refusal.status)
    return JSONResponse(answer)


@answering
async def create_branch(request: Request) -> Response:
    """Let a new branch begin at a commit of another."""
    repository, branch = repository_of(request, write=True), request.path_params["revision"]
    wanted = json.loads(await request.body() or b"{}")
    if branch in repository.branches:
        raise Refused(409, f"Reference already exists: {branch}")
    repository.branches[branch] = repository.revision(wanted.get("startingPoint") or "main").id
    return JSONResponse({})


@answering
async def choose_modes(request: Request) -> Response:
    """Say of each file how it is to be sent, and which version is known."""
    repository = repository_of(request, write=True)
    known = repository.revision(request.path_params["revision"]).files
    answers = []
    for wanted in (await request.json())["files"]:
        path, file = wanted["path"], known.get(wanted["path"])
        large = path.endswith(LARGE_SUFFIXES) or wanted["size"] > LARGE_SIZE
        mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append({**mode, "oid": file and file.etag})
    return JSONResponse({"files": answers})


@answering
async def prepare_large_files(request: Request) -> Response:
    """Answer the batch request of the LFS protocol: an address for each file that is not known yet."""
    repository_of(request, write=True)
    state, objects = request.app.state, []
    for wanted in (await request.json())["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if not state.store.path_of(wanted["oid"]).exists():
            grant = secrets.token_urlsafe(16)  # whoever has the address may upload, as on the Hub's storage
            state.grants[grant] = wanted["oid"]
            entry["actions"] = {"upload": {"href": f"{request.base_url}large-files/{wanted['oid']}?grant={grant}"}}
        objects.append(entry)
    return JSONResponse({"transfer": "basic", "objects": objects})


@answering
async def receive_large_file(request: Request) -> Response:
    """Take the bytes of a large file, hashing them as they come; what is cut off leaves nothing behind."""
    state, expected = request.app.state, request.path_params["sha256"]
    if state.grants.get(request.query_params.get("grant")) != expected:
        raise Refused(403, "This address was not given out for this file")
    place, file = state.store.open_upload()
    digest, whole = hashlib.sha256(), False
    try:
        with file:
            async for part in request.stream():
                digest.update(part)
                file.write(part)
        whole = True
    finally:
        if not whole:
            place.unlink()
    state.store.finish_upload(place, expected, digest.hexdigest())
    return Response(status_code=200)


@answering
async def commit(request: Request) -> Response:
    """Add, replace and delete files in one step."""
    repository, branch = repository_of(request, write=True), request.path_params["revision"]
    state = request.app.state
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    with state.store.lock:
        current = repository.revision(branch)
        if branch not in repository.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if header.get("parentCommit") not in (None, current.id):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(current.files)
        for line in lines:
            _apply(line["key"], line["value"], files, state.store)
        new = repository.add(branch, files, header["summary"], header["description"], user_of(request))
    prefix = "" if repository.kind == "models" else f"{repository.kind}/"
    address = f"{request.base_url}{prefix}{repository.id}/commit/{new.id}"
    return JSONResponse({"success": True, "commitOid": new.id, "commitUrl": address, "hookOutput": ""})


def _apply(key: str, value: dict, files: dict, store: Store) -> None:
    if key == "file":
        files[value["path"]] = store.keep(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        files[value["path"]] = store.large_file(value["oid"])
    elif key == "deletedFile":
        if files.pop(value["path"], None) is None:
            raise Refused(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
    elif key == "deletedFolder":
        for path in [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]:
            del files[path]
    elif key != "header":
        raise Refused(400, f"Unknown operation {key!r}")


ROUTES = [
    Route("/api/repos/create", create_repository, methods=["POST"]),
    Route("/api/{kind}/{owner}/{name}/branch/{revision}", create_branch, methods=["POST"]),
    Route("/api/{kind}/{owner}/{name}/preupload/{revision}", choose_modes, methods=["POST"]),
    Route("/api/{kind}/{owner}/{name}/commit/{revision}", commit, methods=["POST"]),
    Route("/{kind}/{owner}/{name}.git/info/lfs/objects/batch", prepare_large_files, methods=["POST"]),
    Route("/{owner}/{name}.git/info/lfs/objects/batch", prepare_large_files, methods=["POST"]),
    Route("/large-files/{sha256}", receive_large_file, methods=["PUT"]),
    Route("/api/whoami-v2", whoami),
    Route("/api/validate-yaml", validate_metadata, methods=["POST"]),
    Route("/api/{kind}", list_repositories),
    Route("/api/{kind}/{owner}/{name}", describe),
    Route("/api/{kind}/{owner}/{name}/revision/{revision}", describe),
    Route("/api/{kind}/{owner}/{name}/tree/{revision}", list_tree),
    Route("/api/{kind}/{owner}/{name}/tree/{revision}/{path:path}", list_tree),
    Route("/api/{kind}/{owner}/{name}/paths-info/{revision}", describe_paths, methods=["POST"]),
    Route("/api/{kind}/{owner}/{name}/refs", list_branches),
    Route("/api/{kind}/{owner}/{name}/commits/{revision}", list_commits),
    Route("/{kind}/{owner}/{name}/resolve/{revision}/{path:path}", send_file),
    Route("/{owner}/{name}/resolve/{revision}/{path:path}", send_file),
]
