"""
A detector as a service: photographs come in by HTTP, and verdicts go out as JSON.

One thread owns the detector ([`Judge`]) and judges together what several requests ask within a few milliseconds. What waits is
bounded: a request beyond that is told when to come again. Nothing that fails is ever called normal.
"""

import asyncio
import base64
import contextlib
import html
import io
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..calibration_anople import HIGHEST_RATE, LOWEST_RATE, describe_guarantee
from ..fitting_anople import DEFAULT_FALSE_ALARM_RATE
from ..images_anople import RESULTS, load_image
from ..pipeline_anople import AnomalyDetectionPipeline, Prediction
from ..processing_anople import AnoPLeProcessor
from ..product_store_anople import ProductRecord, find_class, new_name
from ..runtime import one_line
from ..runtime.loading import load_config, load_detector, load_judge
from ..saving_anople import locked
from ..scoring_anople import Detector
from .feedback import find_row, give_feedback
from .judging import READY, Closed, Figures, Judge, QueueFull
from .records import append_lines, picture_name, record_id, to_row
from .report import draw_verdict


logger = logging.getLogger(__name__)

DRAWING_THREADS = 2
METHODS = {
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
}  # told apart in figures, which keep each for good
SLOWEST = 100_000  # bytes a second, of a body that takes longer than its first `Settings.body_seconds`


# --- What is kept of what was answered ---


class Keeper:
    """
    Write what was answered into a folder: a line for each photograph, the photograph, and a picture of what is unsure or
    not normal.

    Args:
        folder: which holds `results.jsonl`, pictures and `photographs`; what is there stays, and lines are added.
    """

    def __init__(self, folder: Path):
        self.folder, self._lock = folder, threading.Lock()
        (folder / "photographs").mkdir(parents=True, exist_ok=True)
        self._file = append_lines(folder / RESULTS)

    def keep(self, row: dict, content: bytes, picture: Image.Image | None) -> None:
        """
        Keep a photograph, its picture if there is one, and the row, which names both.

        The picture is that of the newest row of its id, as the row is which feedback is about.

        Raises:
            OSError: if it cannot be written.
        """
        name = plain_name(row["path"])
        place = self.folder / "photographs" / f"{row['id']}-{name}"
        if not place.exists():  # the same photograph may be asked about again
            _put(content, place)
        row = {**row, "file": str(place)}
        if picture is not None:
            drawn = self.folder / picture_name(row["id"], Path(name))
            _put(_png_of(picture), drawn)
            row["overlay"] = str(drawn)
        with self._lock:
            self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Close the file of results."""
        self._file.close()


def _put(content: bytes, place: Path) -> None:
    """Write a file whole or not at all."""
    unfinished = place.with_name(f".{secrets.token_hex(8)}.part")
    unfinished.write_bytes(content)
    unfinished.replace(place)


def plain_name(name: str) -> str:
    """Keep letters, digits, points and dashes of a file's name: a stranger has chosen it."""
    kept = "".join(each if each.isalnum() or each in ".-_" else "_" for each in Path(name).name).lstrip(".")
    stem, dot, ending = kept.rpartition(".")
    return f"{stem[:40]}{dot}{ending[:8]}" if dot else kept[:40] or "photograph"


# --- What is sent and answered, as `/openapi.json` describes it ---


class Region(BaseModel):
    """A place above the threshold."""

    box: list[int] = Field(description="Left, top, right and bottom, in pixels.")
    area: int = Field(description="Pixels.")
    peak: float = Field(description="Its highest score.")
    centroid: list[float] = Field(description="x and y, in pixels.")


class Verdict(BaseModel):
    """What is known of one photograph. One that could not be judged has `error`, and neither score nor label."""

    id: str
    time: str = Field(description="UTC, as ISO 8601 has it.")
    path: str = Field(description="The name that the file was sent with.")
    class_name: str | None = Field(alias="class", description="The product that it was judged as.")
    score: float | None = Field(description="0.5 is the threshold of its product; the raw score where it has none.")
    label: str | None = Field(
        description="normal, anomalous or unknown product; null on an error, or without a threshold."
    )
    unsure: bool | None = Field(description="Called normal, and yet odder than every good photograph that is known.")
    reason: str | None = Field(None, description="Why it is no photograph of its product.")
    raw_score: float | None
    p_value: float | None = Field(description="Share of good photographs that would score at least this.")
    seconds: float | None = Field(description="Its share of the time that judging took.")
    regions: list[Region] | None = Field(None, description="Places above the threshold, the largest peak first.")
    overlay: str | None = Field(None, description="The heat map over the photograph, a PNG in base64, if asked for.")
    error: str | None = Field(None, description="Why it could not be judged, and what to do.")


class Verdicts(BaseModel):
    """The answer to `/predict`: one entry for each photograph, in the order in which they were sent."""

    results: list[Verdict]


class ProductInfo(BaseModel):
    """What is known of a product."""

    name: str
    photographs: int = Field(description="Good photographs that are remembered.")
    threshold: float | None = Field(description="Raw score above which a photograph is anomalous.")
    max_false_alarm_rate: float | None = Field(
        description="Share of good photographs that it was set for; null where costs set it."
    )
    promise: str | None = Field(description="What the good photographs behind the threshold can promise.")


class Products(BaseModel):
    """The answer to `/products`."""

    products: list[ProductInfo]


class FeedbackAsked(BaseModel):
    """What is true of a result's part."""

    id: str = Field(description="Of the result.")
    verdict: Literal["good", "bad", "undo"] = Field(
        description="good: one that was set aside is learned; bad: it is kept in a list; undo: takes either back."
    )


class FeedbackGiven(BaseModel):
    """What came of it."""

    id: str
    verdict: str
    learned: bool = Field(description="Whether the detector has changed.")
    said: str


class Health(BaseModel):
    """The answer to `/healthz`."""

    status: str
    detector: str
    version: str


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str | list[dict] = Field(description="A sentence with the remedy, or a list of fields that are wrong.")


def _problems(*statuses: int) -> dict[int | str, dict]:
    return {status: {"model": Problem} for status in statuses}


class Answer(JSONResponse):
    """JSON in ASCII, in which every number is finite: a name may hold what no UTF-8 can write."""

    def render(self, content: object) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


# --- Who comes in ---


class Gate:
    """
    Refuse requests with a body that is too large (413), or while too many are in hand (429), and time all of them.

    A body that stops coming, or comes all too slowly (408), holds its place no longer than that.
    """

    def __init__(self, app: ASGIApp, *, service: "Service"):
        self.app, self.service, self.in_hand = app, service, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if scope["method"] == "POST":
                await self._let_in(scope, receive, watched)
            else:
                await self.app(scope, receive, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            figures = self.service.figures
            figures.requests.labels(method, path, status).observe(time.perf_counter() - start)
            if status >= 400:
                figures.refused.labels(status).inc()

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self.service.settings
        declared = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
        start, received = time.monotonic(), 0

        async def counted() -> Message:
            nonlocal received
            left = start + settings.body_seconds + received / SLOWEST - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), min(settings.patience, left))
            except TimeoutError:
                text = (
                    f"The request came too slowly (nothing for {settings.patience:g} s, or after {settings.body_seconds:g} s "
                    f"fewer than {SLOWEST} bytes a second): send it again."
                )
                raise HTTPException(408, text, {"Connection": "close"}) from None
            received += len(message.get("body", b""))
            if received > settings.max_bytes:
                raise _too_large(settings.max_bytes)
            return message

        if self.in_hand >= settings.queue:
            error = _come_again(QueueFull(self.service.judge.seconds_to_wait()))
        elif declared > settings.max_bytes:
            error = _too_large(settings.max_bytes)
        else:
            self.in_hand += 1
            try:
                await self.app(scope, counted, send)
            finally:
                self.in_hand -= 1
            return
        with contextlib.suppress(HTTPException):  # what is answered is known already
            while (await counted()).get("more_body"):  # a client that still sends would not see the answer
                pass
        await Answer({"detail": error.detail}, error.status_code, error.headers)(scope, receive, send)


def _too_large(max_bytes: int) -> HTTPException:
    text = f"The request has more than {max_bytes / 1e6:g} MB: send fewer or smaller photographs."
    return HTTPException(413, text, {"Connection": "close"})


def _come_again(error: QueueFull) -> HTTPException:
    return HTTPException(429, str(error), {"Retry-After": str(error.seconds)})


# --- The service ---


@dataclass
class Settings:
    """
    How a detector is served.

    Args:
        checkpoint: folder or Hub id of a detector, or folder of an exported graph.
        token: what must be shown to change the detector; without one nobody can.
        output: folder to which answers, photographs and pictures are added; by default nothing is kept.
        batch_size: photographs judged at once.
        queue: photographs that may wait, and requests in hand.
        max_bytes: of a request.
        patience: seconds after which a client that sends nothing more is no longer waited for.
        body_seconds: for a whole body, and as many more as its bytes take at `SLOWEST`.
        revision, device, dtype: as of `load_judge`.
    """

    checkpoint: str
    token: str | None = None
    output: Path | None = None
    batch_size: int = 8
    queue: int = 64
    max_bytes: int = 64_000_000
    patience: float = 30.0
    body_seconds: float = 60.0
    revision: str | None = None
    device: str = "auto"
    dtype: str = "float32"


class Service:
    """A detector that is loaded, the thread that judges with it, and the folder of what it answered."""

    def __init__(self, settings: Settings):
        self.settings, self.figures = settings, Figures()
        self.judge = Judge(*self._load(), self.figures, batch_size=settings.batch_size, limit=settings.queue)
        self.keeper = Keeper(settings.output) if settings.output else None
        self.changing = asyncio.Lock()  # one change of the detector after the other
        # few threads that stay: each one in which torch computes has a pool of its own
        self._drawing = ThreadPoolExecutor(DRAWING_THREADS, "drawing")

    def _load(self) -> tuple[Detector, AnoPLeProcessor]:
        settings = self.settings
        return load_judge(settings.checkpoint, settings.revision, settings.device, settings.dtype)

    def close(self) -> None:
        """Answer what waits, and end."""
        self.judge.close()
        self._drawing.shutdown()
        if self.keeper:
            self.keeper.close()

    def products(self) -> list[dict]:
        """List what is known of each product."""
        return [_product_info(values) for values in self.judge.detector.config.products]

    async def predict(self, photographs: list[tuple[str, bytes]], product: str | None, *, drawn: bool) -> list[dict]:
        """
        Judge photographs, name and bytes of each.

        Args:
            product: of all of them; `None`: predicted.
            drawn: whether the rows have an `overlay`.

        Raises:
            QueueFull, Closed: as of [`Judge.submit`].
            OSError: if the results cannot be kept.
        """
        futures = self.judge.submit(photographs, product)
        predictions = await asyncio.gather(*map(asyncio.wrap_future, futures))
        rows = asyncio.get_running_loop().run_in_executor(self._drawing, self._rows, photographs, predictions, drawn)
        return await rows

    def _rows(self, photographs: list[tuple[str, bytes]], predictions: list[Prediction], drawn: bool) -> list[dict]:
        rows = []
        for (name, content), prediction in zip(photographs, predictions, strict=True):
            full_map = None if prediction.error else prediction.full_size_map()
            regions = None if full_map is None else prediction.find_regions(full_map)
            row = to_row(name, prediction, regions, id=record_id(name, content=content))
            kept = self.keeper is not None and (prediction.label != "normal" or bool(prediction.unsure))
            picture = None
            if full_map is not None and (drawn or kept):
                photograph = load_image(content, white_value=self.judge.processor.white_value)
                picture = draw_verdict(photograph, full_map, row, prediction.threshold)
            if self.keeper:
                self.keeper.keep(row, content, picture if kept else None)
            self.figures.count(row)
            rows.append(
                {**row, "overlay": base64.b64encode(_png_of(picture)).decode("ascii")} if drawn and picture else row
            )
        return rows

    def enroll(self, name: str, photographs: list[tuple[str, bytes]], max_false_alarm_rate: float) -> dict:
        """
        Teach the detector in its folder a product, and judge with it from then on; nothing changes where that fails.

        Raises:
            ValueError: as of `enroll`, and for a detector that cannot be changed where it is.
            OSError: if it cannot be saved.
        """
        folder = Path(self.settings.checkpoint)
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder, so it cannot be changed: serve a detector's folder.")
        sources = [{"path": source, "bytes": content} for source, content in photographs]
        with locked(folder):
            model, processor = load_detector(self.settings.checkpoint)
            detector = AnomalyDetectionPipeline(model, processor=processor, device=model.device)
            detector.enroll(name, sources, max_false_alarm_rate=max_false_alarm_rate)
            detector.save_pretrained(folder, adapter=bool(load_config(folder).adapter_clip_sha256))
        self.judge.replace(*self._load())
        return next(each for each in self.products() if each["name"] == model.config.class_names[-1])

    def feedback(self, id: str, verdict: Literal["good", "bad", "undo"]) -> dict:
        """
        Say what is true of a result's part, and judge with what the detector has learned from that.

        Raises:
            ValueError, OSError: as of `give_feedback`.
        """
        given = give_feedback(self.settings.checkpoint, id, verdict, results=self.settings.output)
        if given.added:
            self.judge.replace(*self._load())
        return {"id": id, "verdict": verdict, "learned": given.added, "said": given.said}


def _product_info(values: dict) -> dict:
    record = ProductRecord.from_dict(values)
    limit = record.threshold
    return {
        "name": record.name,
        "photographs": len(record.image_vectors),
        "threshold": limit and limit.image_threshold,
        "max_false_alarm_rate": limit.max_false_alarm_rate if limit and not limit.defects else None,
        "promise": limit and describe_guarantee(limit),
    }


def _png_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


async def _read(files: list[UploadFile]) -> list[tuple[str, bytes]]:
    return [(file.filename or "photograph", await file.read()) for file in files]


# --- The routes ---


def _photographs_of(service: Service) -> object:
    """Make the type of the field of photographs, which says how many there may be."""
    most = service.settings.queue
    return Annotated[list[UploadFile], File(min_length=1, max_length=most, description="Photographs, each a file.")]


def make_app(settings: Settings) -> FastAPI:
    """
    Load a detector, and make the application that serves it: `/predict`, `/products`, `/feedback`, `/healthz`, `/metrics`, `/docs`.

    Raises:
        ValueError: as of `load_judge`.
    """
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="AnoPLe",
        version=__version__,
        summary="Few-shot anomaly detection: photographs in, verdicts out.",
        lifespan=lifespan,
        docs_url=None,  # that page asks another server for its scripts
        redoc_url=None,
        default_response_class=Answer,
    )
    app.state.service = service
    app.add_middleware(Gate, service=service)
    _add_judging(app, service)
    _add_products(app, service)
    _add_feedback(app, service)
    _add_watching(app, service)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> Response:
        return Answer({"detail": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_fields(_: Request, error: RequestValidationError) -> Response:
        named = [{name: each[name] for name in ("type", "loc", "msg")} for each in error.errors()]
        return Answer({"detail": named}, 422)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return Answer({"detail": f"The server failed ({type(error).__name__}): its log says more."}, 500)

    return app


def _add_judging(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        responses={200: {"model": Verdicts}} | _problems(400, 404, 408, 413, 429, 503, 507),
        summary="Judge one photograph or many",
    )
    async def judge_photographs(
        files: _photographs_of(service),
        product: Annotated[str, Form(description="The product of all of them; by default predicted.")] = "",
        overlay: Annotated[bool, Form(description="Whether each answer has its heat map as a picture.")] = False,
    ) -> Response:
        photographs = await _read(files)
        try:
            if product:
                find_class(product, service.judge.detector.config.class_names)
        except ValueError as error:
            raise HTTPException(404, str(error)) from error
        try:
            return Answer({"results": await service.predict(photographs, product or None, drawn=overlay)})
        except QueueFull as error:
            raise _come_again(error) from error
        except Closed as error:
            raise HTTPException(503, str(error)) from error
        except OSError as error:
            raise HTTPException(507, f"Judged, but the result cannot be kept ({error}): make room.") from error


def _token_of(service: Service) -> Callable[[HTTPAuthorizationCredentials | None], None]:
    """Make the check of the token, without which the detector cannot be changed."""
    shown = HTTPBearer(auto_error=False, description="What the server was started with as --token.")

    def allowed(given: Annotated[HTTPAuthorizationCredentials | None, Depends(shown)]) -> None:
        token = service.settings.token
        if token is None:
            raise HTTPException(
                403, "This server's products cannot be changed: start it with --token, or ANOPLE_TOKEN."
            )
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            text = "The token is missing or wrong: send Authorization: Bearer TOKEN."
            raise HTTPException(401, text, {"WWW-Authenticate": "Bearer"})

    return allowed


def _add_products(app: FastAPI, service: Service) -> None:
    @app.get("/products", responses={200: {"model": Products}}, summary="What the detector knows")
    async def list_products() -> Response:
        return Answer({"products": service.products()})

    @app.post(
        "/products/{name}",
        status_code=201,
        dependencies=[Depends(_token_of(service))],
        responses={201: {"model": ProductInfo}} | _problems(400, 401, 403, 408, 409, 413, 429, 507),
        summary="Teach the detector a product from good photographs",
    )
    async def enroll_product(
        name: str,
        files: _photographs_of(service),
        max_false_alarm_rate: Annotated[
            float,
            Form(
                description="Share of good photographs that may be called anomalous.", ge=LOWEST_RATE, lt=HIGHEST_RATE
            ),
        ] = DEFAULT_FALSE_ALARM_RATE,
    ) -> Response:
        photographs = await _read(files)
        try:
            new_name(name, service.judge.detector.config.class_names)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error
        try:
            async with service.changing:
                return Answer(await run_in_threadpool(service.enroll, name, photographs, max_false_alarm_rate), 201)
        except ValueError as error:
            raise HTTPException(400, one_line(error)) from error
        except OSError as error:
            text = f"The detector cannot be saved, or not loaded after that ({one_line(error)}): make room, and try again."
            raise HTTPException(507, text) from error


def _add_feedback(app: FastAPI, service: Service) -> None:
    @app.post(
        "/feedback",
        dependencies=[Depends(_token_of(service))],
        responses={200: {"model": FeedbackGiven}} | _problems(400, 401, 403, 404, 408, 409, 413, 429, 507),
        summary="Say what is true of a result's part",
    )
    async def take_feedback(asked: FeedbackAsked) -> Response:
        if service.settings.output is None:
            raise HTTPException(409, "This server keeps no results: start it with --output.")
        try:
            await run_in_threadpool(find_row, service.settings.output, asked.id)
        except ValueError as error:
            raise HTTPException(404, one_line(error)) from error
        try:
            async with service.changing:
                return Answer(await run_in_threadpool(service.feedback, asked.id, asked.verdict))
        except ValueError as error:
            raise HTTPException(409, one_line(error)) from error
        except OSError as error:
            raise HTTPException(
                507, f"Not all of it can be kept ({one_line(error)}): make room, and say it again."
            ) from error


def _add_watching(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", responses={200: {"model": Health}} | _problems(503), summary="Whether photographs are taken")
    async def health() -> Response:
        if not service.judge.is_alive:
            raise HTTPException(503, READY)
        return Answer({"status": "ok", "detector": service.settings.checkpoint, "version": __version__})

    @app.get("/metrics", response_class=Response, summary="Figures for Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(service.figures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", response_class=HTMLResponse, summary="This interface, as a page")
    async def page() -> Response:
        return HTMLResponse(_page_of(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def first_page() -> Response:
        return RedirectResponse("docs")


# --- The interface as a page that asks no other server for anything ---

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ margin: 0 auto; max-width: 46rem; padding: 1.2rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .3rem }} code {{ font-size: .95em }}
dt {{ font-weight: 600 }} dd {{ margin: 0 0 .4rem 1rem }} form {{ display: grid; gap: .6rem; max-width: 24rem }}
</style></head><body><h1>{title}</h1><p>{summary} All of it for programs: <a href="openapi.json">openapi.json</a>.</p>
<form action="predict" method="post" enctype="multipart/form-data">
<label>Photographs <input type="file" name="files" accept="image/*" multiple required></label>
<label>Product <input name="product" placeholder="predicted"></label><button>Judge</button></form>
{routes}</body></html>"""


def _page_of(schema: dict) -> str:
    """Write what `/openapi.json` says as a page, with a form to try it."""
    parts, schemas = [], schema["components"]["schemas"]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            body = route.get("requestBody", {}).get("content", {}).get("multipart/form-data", {}).get("schema", {})
            fields = schemas[body["$ref"].rpartition("/")[2]]["properties"] if body else {}
            listed = [f"<dt>{html.escape(name)}</dt><dd>{html.escape(about.get('description', ''))}</dd>"
                      for name, about in fields.items()]  # fmt: skip
            statuses = ", ".join(sorted(route["responses"]))
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(route['summary'])}. "
                f"Answers with {statuses}.</p><dl>{''.join(listed)}</dl>"
            )
    info = schema["info"]
    return _PAGE.format(
        title=html.escape(info["title"]), summary=html.escape(info["summary"]), routes="\n".join(parts)
    )


__all__ = ["Keeper", "Service", "Settings", "make_app"]
