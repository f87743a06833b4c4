"""The addresses by which a repository is looked at and its files are fetched."""

from urllib.parse import parse_qs

import yaml
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from .access import answering, repository_of, user_of
from .store import Commit, Refused, Repository, StoredFile


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


ROUTES = [
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
