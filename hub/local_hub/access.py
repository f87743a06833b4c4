"""Who may do what: tokens, private repositories, and the errors in the form that the client understands."""

import functools
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .store import Refused, Repository, Store


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
