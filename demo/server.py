"""The server around the page: nothing from elsewhere, free memory given back, and tools for other programs' assistants."""

import copy
import secrets
import threading
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import OwnPagesOnly, own_names
from .inputs import MODEL, image_field, refusals
from .inspect_tab import inspect_image
from .session import PREDICT_PRODUCT, Session
from .teach_tab import MAX_SHOTS, teach_product


CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self' data: blob:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "connect-src 'self' data: blob:",
        "form-action 'self'",
        "base-uri 'self'",
    )
)
TOOL_PREFIX = "tool_"  # of their endpoints: those without it are for clients that hold a session
TOOLS = ("inspect", "enroll")
MCP_VERSION = "1"  # the major version of the package `mcp` that Gradio 6 works with
MAX_KEYS, KEY_SECONDS = 50, 4 * 3600


class ContentSecurityPolicy:
    """Send the content security policy with every answer; browsers then ask no other host for anything."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, with one more header."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


# --- Tools (MCP): teach products and have images judged ---


def offers_tools() -> bool:
    """Whether the package that Gradio needs for tools is here, in a version it works with."""
    try:
        return version("mcp").split(".")[0] == MCP_VERSION
    except PackageNotFoundError:
        return False


class DemoBlocks(gr.Blocks):
    """
    Blocks whose server answers its own pages alone, and whose tool server offers what was made for it, under the names of
    what it does, and no other endpoint.

    Gradio makes both servers itself while it launches, and serves from that moment on.
    """

    is_template = True  # in the page they are plain blocks
    bound: str | None = None  # the address that the server listens on
    served_as: Sequence[str] = ()  # names that the user gave

    @property
    def server_app(self) -> Any:
        """The server's application."""
        return self._server_app

    @server_app.setter
    def server_app(self, app: Any) -> None:
        # added last, it comes first: Gradio's own would let other origins read wherever the host is not this machine
        app.add_middleware(OwnPagesOnly, names=self._names, outside=self._outside)
        self._server_app = app

    def _outside(self) -> set[str]:
        """Names under which a page is reached through a proxy: those given, a Space's own and that of a shared link."""
        shared = urlsplit(self.share_url).hostname if self.share_url else None
        return own_names(None, [*self.served_as, shared or ""]) - own_names(None, [])

    def _names(self) -> set[str]:
        return own_names(self.bound, []) | self._outside()

    @property
    def mcp_server_obj(self) -> Any:
        """The tool server, where there is one."""
        return self._server

    @mcp_server_obj.setter
    def mcp_server_obj(self, server: Any) -> None:
        if server is not None:
            server.tool_to_endpoint = {f"{server.tool_prefix}{name}": f"/{TOOL_PREFIX}{name}" for name in TOOLS}
        self._server = server


class KeyedSessions:
    """
    Sessions of tool users, each found by a key that nobody can guess.

    Gradio runs all tool calls in one session of its own, where one user would find the products of another. So a detector
    that was taught is found again only by who has its key. The oldest go when there are too many, or unused for long.

    Args:
        start: the session that all begin with; what is asked without a key is answered by a copy that is never taught.
        most: sessions to keep.
        seconds: how long an unused one is kept.
    """

    def __init__(self, start: Session, most: int = MAX_KEYS, seconds: float = KEY_SECONDS):
        self._start, self._common = start, copy.deepcopy(start)
        self._most, self._seconds = most, seconds
        self._used: dict[str, tuple[float, Session]] = {}  # the one used last stands last
        self._lock = threading.Lock()

    def find(self, key: str | None) -> Session:
        """
        Find the session of a key; without a key, the one that is never taught.

        Raises:
            ValueError: for a key that was never given, or whose session is gone.
        """
        if not key:
            return self._common
        with self._lock:
            self._purge()
            if key not in self._used:
                raise ValueError(
                    "No detector has this key, or not any more: teach it anew with enroll, without a key."
                )
            session = self._used[key][1]
        self.keep(session, key)
        return session

    def new(self) -> Session:
        """Begin a session; it is found again once it was given to `keep`."""
        return copy.deepcopy(self._start)

    def keep(self, session: Session, key: str) -> None:
        """Keep a session under a key, as the one that was used last; the first of too many goes."""
        with self._lock:
            self._used.pop(key, None)
            self._used[key] = (time.monotonic(), session)
            self._purge()

    def _purge(self) -> None:
        now, extra = time.monotonic(), len(self._used) - self._most
        for number, (key, (used, _)) in enumerate(list(self._used.items())):
            if number < extra or now - used >= self._seconds:
                del self._used[key]


def add_tools(start: Session) -> None:
    """Add the endpoints of the tools to the page that is being built; nothing of them is seen on it."""
    sessions = KeyedSessions(start)
    # Names, words and parameters of these two are what an assistant reads: they speak of photographs, as the page does.

    def inspect(
        photograph: str, product: str = PREDICT_PRODUCT, detector: str | None = None
    ) -> tuple[dict[str, Any], tuple]:
        """
        Judge one photograph of a product.

        Args:
            photograph: the image file.
            product: the product it shows, or "find it yourself".
            detector: the key that enroll gave; empty for the detector that the demo was started with.

        Returns:
            The numbers (words, verdict, score, line, product, milliseconds), and the photograph with its heat map.
        """
        with refusals():
            session = sessions.find(detector)
            inspection = inspect_image(session, photograph, product)
        return inspection.numbers, session.answer_images.write(
            photograph=inspection.image, heat_map=inspection.heat_map
        )

    def enroll(
        name: str,
        photograph: str,
        photograph_2: str | None = None,
        photograph_3: str | None = None,
        photograph_4: str | None = None,
        photograph_5: str | None = None,
        photograph_6: str | None = None,
        photograph_7: str | None = None,
        photograph_8: str | None = None,
        detector: str | None = None,
    ) -> dict[str, Any]:
        """
        Teach a new product from 1 to 8 good photographs, without training.

        Args:
            name: of the new product.
            photograph: a good one.
            photograph_2: another, and so on; the more, the better.
            detector: the key that an earlier enroll gave, to teach the same detector another product; empty for a new one.

        Returns:
            The message, the names of all products now, and the key by which inspect and enroll find this detector again.
        """  # Gradio hands tools no list of files: it looks for addresses at fixed places alone
        others = (photograph_2, photograph_3, photograph_4, photograph_5, photograph_6, photograph_7, photograph_8)
        with refusals():
            session = sessions.find(detector) if detector else sessions.new()
            words = teach_product(session, name, [path for path in (photograph, *others) if path], keep=False)
        key = detector or secrets.token_urlsafe(16)
        sessions.keep(session, key)
        return {"words": words, "products": session.products, "detector": key}

    with gr.Row(visible=False):
        images = [image_field("Photograph", f"tool-{number}", ["upload"], 300) for number in range(MAX_SHOTS)]
        product, name, key = (
            gr.Textbox(PREDICT_PRODUCT, label="Product"),
            gr.Textbox(label="Name"),
            gr.Textbox(label="Detector"),
        )
        answer, pictures = gr.JSON(label="Answer"), gr.ImageSlider(label="Photograph | heat map", type="filepath")
        run = gr.Button("Run")
    run.click(inspect, [images[0], product, key], [answer, pictures], api_name=f"{TOOL_PREFIX}inspect", **MODEL)
    run.click(enroll, [name, *images, key], answer, api_name=f"{TOOL_PREFIX}enroll", **MODEL)
