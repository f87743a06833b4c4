"""The addresses by which files get into a repository."""

import base64
import hashlib
import json
import secrets

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .access import answering, repository_of, user_of
from .store import Refused, Store


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
]
