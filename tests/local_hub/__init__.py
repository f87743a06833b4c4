"""
A small Hub on this machine, for the real `huggingface_hub` client to talk to over a real connection.

Tests push to it and load from it, and `python -m tests.local_hub CHECKPOINT PHOTOGRAPHS` takes a detector there and back.
It speaks what the client asks for when it creates, uploads, lists and downloads model and Space repositories; files are
kept by their SHA-256 and a large file with another one is refused. The newer transfer of large files (Xet) is not spoken:
set HF_HUB_DISABLE_XET=1, a setting that the client documents, and it uses the LFS protocol.
"""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from .routes import ROUTES
from .store import Store


class LocalHub:
    """
    A Hub that runs while its `with` block does.

    Args:
        folder: where files are kept.
        users: token -> name of the user whose token it is.
        around: wraps the ASGI application; the tests cut connections there.
    """

    def __init__(self, folder: Path, users: dict[str, str], around: Callable | None = None):
        self.store = Store(folder)
        self.application = Starlette(routes=ROUTES)
        state = self.application.state
        state.store, state.users, state.grants = self.store, users, {}
        served = around(self.application) if around else self.application
        self._server = uvicorn.Server(
            uvicorn.Config(served, log_config=None, log_level="critical", access_log=False, lifespan="off")
        )
        self._socket = socket.socket()
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    @property
    def endpoint(self) -> str:
        """The address, as HF_ENDPOINT wants it."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Return the variables that point a fresh Python process to this Hub, with a cache of its own in `home`."""
        variables = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        places = {
            "HF_HUB_CACHE": "hub",
            "HF_XET_CACHE": "xet",
            "HF_MODULES_CACHE": "modules",
            "HF_TOKEN_PATH": "token",
        }
        variables |= {name: str(home / place) for name, place in places.items()}  # a user may have set them
        variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token or ""}
        return {**variables, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def __enter__(self) -> "LocalHub":
        self._socket.bind(("127.0.0.1", 0))
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("The local Hub did not start.")
            time.sleep(0.01)
        return self

    def __exit__(self, *exception) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()


__all__ = ["LocalHub"]
