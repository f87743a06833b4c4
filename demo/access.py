"""Who may ask the server: its own pages and programs, under its own names, each for its own sessions and files alone."""

import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose


THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
COOKIE, THEME = "anople", "/theme.css"
TEXTS = ("text/event-stream", "application/json", "text/html")  # answers that may name files and events
MAX_IDS, MAX_CLIENTS, MAX_FILES = 20_000, 500, 2_000  # sessions and events; clients; files that each was told of
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]+))(?::\d+)?")
_FILE = re.compile(
    r"[0-9a-f]{64}", re.IGNORECASE
)  # the folder of each file that Gradio keeps: the hash of its content
_TOLD = re.compile(
    r"[\\/]([0-9a-f]{64})(?=[\\/])", re.IGNORECASE
)  # a folder; a file may be called like another's folder
_EVENT = re.compile(r'"event_id":\s*"([^"]+)"')


async def _refuse(scope: Scope, receive: Receive, send: Send, reason: str) -> None:
    answer = WebSocketClose(1008, reason) if scope["type"] == "websocket" else PlainTextResponse(reason, 403)
    await answer(scope, receive, send)


# --- Names and pages ---


def own_names(bound: str | None, named: Iterable[str]) -> set[str]:
    """
    Gather the names that the page is served under.

    Args:
        bound: the address that the server was told to listen on.
        named: those that the user gave, of a reverse proxy for instance; a Space's own is added.
    """
    space = os.environ.get("SPACE_HOST", "").split(",")
    names = {*THIS_MACHINE, socket.gethostname(), bound or "", *space, *named}
    return {name.strip().lower() for name in names} - {""}


class OwnPagesOnly:
    """
    Answer what was asked under a name of the server's own, and by no page of another origin.

    A page elsewhere may have its own name point to this machine (DNS rebinding), and so read what only this machine should;
    its name is then no name of ours. And a page on another port of this machine is another origin too.

    Args:
        names: gives the names that the page is served under; the address that a connection was made to is always one.
        outside: gives those whose page may be reached through a proxy, which tells another name or port than the browser's.
    """

    def __init__(self, app: ASGIApp, names: Callable[[], set[str]], outside: Callable[[], set[str]]):
        self.app, self._names, self._outside = app, names, outside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be answered."""
        reason = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if reason:
            await _refuse(scope, receive, send, reason)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        name = (match["v6"] or match["name"]).lower() if match else None
        reached = (scope.get("server") or ("",))[0]
        if name is None or name not in {*self._names(), reached}:
            return f"The demo is not served as {name or 'this host'}: start it with --served_as NAME if that is a name of its own."
        origin = headers.get("origin")
        if origin is not None:
            parts = urlsplit(origin)
            same = parts.scheme in ("http", "https") and parts.netloc.lower() == hosts[0].lower()
            if not same and parts.hostname not in self._outside():
                return "The demo answers its own pages alone, not those of another origin."
        elif (
            headers.get("sec-fetch-site") in ("cross-site", "same-site")
            and headers.get("sec-fetch-mode") != "navigate"
        ):
            return "The demo answers its own pages alone, not those of another origin."
        return None


# --- Sessions and files ---


def _add(memory: dict, key: Any, value: Any, most: int) -> None:
    """Put an entry at the end of a dict, and drop its first one where there are too many."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > most:
        del memory[next(iter(memory))]


class OwnSessionsOnly:
    """
    Let a client ask for its own sessions, events and files alone, though it knows the names of others'.

    Each client is known by a cookie that nobody can guess. The first with one that names a session has it; an event belongs
    to the client that was told of it, and so does a file. What was told to a client without cookies (a command line, an
    assistant's tools) is open to whoever knows its name.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self._owners: dict[str, str] = {}  # of sessions and events
        self._files: dict[str, dict[bytes, None]] = {}  # that each client was told of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what a client may ask for, and note what it is told."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        client, asked = request.cookies.get(COOKIE, ""), {}
        if scope["method"] == "POST" and not scope["path"].rstrip("/").endswith("/upload"):
            body = await request.body()
            receive = _replay(body, receive)
            try:
                asked = json.loads(body or b"{}")
            except ValueError:
                await _refuse(scope, receive, send, "The demo takes JSON.")
                return
        if reason := self._refusal(client, request, asked):
            await _refuse(scope, receive, send, reason)
            return
        # with what a page or a program begins with, and nowhere else: a tool's call hands its cookies on to another client
        begins = not client and (scope["path"].endswith("/config") or scope["path"] == "/")
        await self.app(scope, receive, self._listening(client, send, begins=begins))

    def _refusal(self, client: str, request: Request, asked: Any) -> str | None:
        path, query = request.url.path, request.query_params.multi_items()
        values = asked if isinstance(asked, dict) else {}
        segments = unquote(path).split("/")
        sessions = [value for name, value in (*query, *values.items()) if name == "session_hash"]
        sessions += [after for name, after in zip(segments, segments[1:], strict=False) if name == "heartbeat"]
        words = [*segments, *(value for _, value in query), *values.values()]
        if any(self._owners.get(word, "") not in ("", client) for word in words if isinstance(word, str)):
            return "This session is another client's."
        sessions = {session for session in sessions if isinstance(session, str) and session}
        if len(sessions) > 1:  # of many, each would push another's out of what is kept
            return "A request is of one session."
        for session in sessions:
            _add(self._owners, session, client, MAX_IDS)
        if path == THEME:  # whose version is a hash too, and which is everybody's
            return None
        # written anew, so that no digit hides behind an escape
        text = "\n".join([unquote(path), *(unquote(value) for _, value in query), json.dumps(asked)])
        if not set(_digests(text)) <= {*self._files.get(client, ()), *self._files.get("", ())}:
            return "This file is another client's, or is gone: upload it again."
        return None

    def _listening(self, client: str, send: Send, *, begins: bool) -> Send:
        """Send, give a client that begins its cookie, and note which files and events it is told of."""
        listening = False

        async def send_and_note(message: Message) -> None:
            nonlocal listening
            if message["type"] == "http.response.start":
                kind = Headers(raw=message.get("headers", [])).get("content-type", "")
                listening = kind.startswith(TEXTS)
                if begins:
                    cookie = (b"set-cookie", _new_cookie().encode())
                    message = {**message, "headers": [*message.get("headers", []), cookie]}
            elif message["type"] == "http.response.body" and listening:
                self._note(client, message.get("body", b"").decode(errors="replace"))
            await send(message)

        return send_and_note

    def _note(self, client: str, text: str) -> None:
        for event in _EVENT.findall(text):
            _add(self._owners, event, client, MAX_IDS)
        files = self._files.get(client, {})
        for digest in map(bytes.fromhex, _TOLD.findall(text)):
            _add(files, digest, None, MAX_FILES)
        if files:
            _add(self._files, client, files, MAX_CLIENTS)


def _digests(text: str) -> list[bytes]:
    return [bytes.fromhex(digest) for digest in _FILE.findall(text)]


def _new_cookie() -> str:
    # A Space is shown in a frame of another site, where a browser keeps none but such a cookie.
    where = "SameSite=None; Secure; Partitioned" if os.environ.get("SPACE_HOST") else "SameSite=Strict"
    return f"{COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; {where}"


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read once more, and then go on."""
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
