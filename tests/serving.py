"""What the tests of the server share: one in a thread of this process, a client, and the answers that it should get."""

import contextlib
import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn

from modeling_anople.inspection.server import Settings, make_app
from modeling_anople.pipeline_anople import Prediction, predict
from modeling_anople.runtime.loading import load_judge


@contextlib.contextmanager
def serving(chosen: Settings) -> Iterator[str]:
    """Serve in a thread of this process; gives the address."""
    server = uvicorn.Server(uvicorn.Config(make_app(chosen), log_level="error", lifespan="on"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def ask(address: str, paths: list[Path], **fields: str) -> httpx.Response:
    """Send photographs to be judged."""
    files = [("files", (path.name, path.read_bytes())) for path in paths]
    return httpx.post(f"{address}/predict", files=files, data=fields, timeout=60)


def alone(detector: Path, paths: list[Path], product: str | None = None) -> list[Prediction]:
    """Judge each photograph by itself, without a server."""
    model, processor = load_judge(str(detector))
    return [next(predict(model, processor, [path], class_names=product)) for path in paths]


def is_right(row: dict, expected: Prediction) -> bool:
    """Compare an answer with that of the detector alone; a batch may move its last digits."""
    if expected.error:
        return row["score"] is None and row["label"] is None and bool(row["error"])
    same = (row["label"], row["class"]) == (expected.label, expected.class_name) and "error" not in row
    return same and math.isclose(row["score"], expected.score, abs_tol=2e-6)
