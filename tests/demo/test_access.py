"""Under which names the demo answers, to which pages, and that a client's sessions, events and files are its own."""

import json
import socket
from pathlib import Path
from unittest import mock

import httpx
import pytest
from gradio_client import handle_file
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from demo.access import COOKIE, OwnPagesOnly, own_names
from demo.app import chosen_names
from demo.examples import Examples
from hub.benchmarks.demo_program import new_client

from .demo_app import running


ELSEWHERE = "not those of another origin"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photograph) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        photograph(300 + number).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(6)]


@pytest.fixture(scope="module")
def address(start, pictures):
    with running(start, Examples([Path(pictures[0])], [Path(pictures[1])])) as address:
        yield address


# --- Names ---


@pytest.mark.parametrize("path", ["", "config", "gradio_api/info", "gradio_api/mcp/", "theme.css"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "localhost.evil.example", "localhost@evil.example", ""]
)
def test_another_name_is_refused(address, host, path):
    port = httpx.URL(address).port
    answer = httpx.get(f"{address}{path}", headers={"host": host.format(port=port)})
    assert answer.status_code == 403 and "--served_as" in answer.text and "AnoPLe" not in answer.text


def test_another_name_cannot_post(address, pictures):
    evil = {"host": "evil.example"}
    with open(pictures[0], "rb") as file:
        assert httpx.post(f"{address}gradio_api/upload", files={"files": file}, headers=evil).status_code == 403
    assert httpx.post(f"{address}gradio_api/queue/join", json={}, headers=evil).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", socket.gethostname()])
def test_names_of_this_machine_are_answered(address, host):
    port = httpx.URL(address).port
    for name in (host, f"{host}:{port}"):
        assert httpx.get(address, headers={"host": name}).status_code == 200


def test_names_come_from_the_user_the_space_and_the_shared_link(monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "me-anople.hf.space")
    assert {"me-anople.hf.space", "10.0.0.5", "demo.example", "localhost"} <= own_names(
        "10.0.0.5", ["Demo.Example", ""]
    )
    assert "" not in own_names(None, [])
    monkeypatch.setenv("ANOPLE_SERVED_AS", "a.example,b.example")
    assert chosen_names(None) == ["a.example", "b.example"] and chosen_names(["c.example"]) == ["c.example"]


def test_the_shared_link_is_one_of_the_names(start, pictures):
    from demo.app import build_demo

    demo = build_demo(start, Examples([Path(pictures[0])], [Path(pictures[1])]))
    demo.served_as = ["demo.example"]
    assert "abc.gradio.live" not in demo._names()
    demo.share_url = "https://abc.gradio.live"
    assert {"abc.gradio.live", "demo.example", "localhost"} <= demo._names()
    assert demo._outside() == {"abc.gradio.live", "demo.example"}


# --- Pages ---


async def welcome(request) -> PlainTextResponse:
    return PlainTextResponse("welcome")


async def connect(websocket) -> None:
    await websocket.accept()
    await websocket.close()


@pytest.fixture
def served() -> TestClient:
    """A server reached as `box`, and through a proxy as demo.example."""
    app = Starlette(routes=[Route("/", welcome, methods=["GET", "POST"]), WebSocketRoute("/socket", connect)])
    app.add_middleware(OwnPagesOnly, names=lambda: {"box", "demo.example"}, outside=lambda: {"demo.example"})
    return TestClient(app, base_url="http://box:7860")


@pytest.mark.parametrize(
    "host, origin, answered",
    [
        ("box:7860", "http://box:7860", True),
        ("box:7860", "https://demo.example", True),  # a proxy that does not hand its name on
        ("demo.example", "https://demo.example", True),
        ("box:7860", "http://evil.example", False),
        ("box:7860", "http://box:8888", False),
        ("box:7860", "http://evil.example:7860", False),
        ("box:7860", "https://demo.example.evil.example", False),
        ("box:7860", "null", False),
        ("box:7860", "", False),
        ("box:7860", "file://box:7860", False),
        ("evil.example", "http://evil.example", False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_of_another_origin_are_refused(served, method, host, origin, answered):
    answer = served.request(method, "/", headers={"host": host, "origin": origin})
    assert (answer.status_code == 200) == answered
    assert (answer.text == "welcome") == answered


@pytest.mark.parametrize(
    "site, mode, answered",
    [
        ("same-origin", "cors", True),
        ("none", "navigate", True),
        ("cross-site", "navigate", True),  # a link to the demo, or the frame of a Space
        ("cross-site", "no-cors", False),
        ("same-site", "no-cors", False),
    ],
)
def test_what_a_browser_says_of_itself_counts(served, site, mode, answered):
    answer = served.get("/", headers={"sec-fetch-site": site, "sec-fetch-mode": mode})
    assert (answer.status_code == 200) == answered


def test_a_websocket_is_refused_alike(served):
    with served.websocket_connect("/socket", headers={"host": "box:7860"}):
        pass
    with pytest.raises(WebSocketDisconnect), served.websocket_connect("/socket", headers={"host": "evil.example"}):
        pass


def test_the_demo_lets_no_other_origin_read_or_ask_whether_it_may(address):
    evil = {"origin": "http://evil.example"}
    asked = {**evil, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for answer in (
        httpx.get(f"{address}config", headers=evil),
        httpx.post(f"{address}gradio_api/queue/join", json={}, headers=evil),
        httpx.options(f"{address}gradio_api/queue/join", headers=asked),
    ):
        assert answer.status_code == 403 and ELSEWHERE in answer.text
        assert "access-control-allow-origin" not in answer.headers
    own = httpx.get(f"{address}config", headers={"origin": address.rstrip("/")})
    assert own.status_code == 200


# --- Sessions and files ---


def test_the_style_of_the_page_is_everybodys(address):
    digest = "9a56394e2d0665c7da55310fd538dbc79f23febe9b73688aebd69ca56abd0e8f"  # as in its address: no file's name
    answer = httpx.get(f"{address}theme.css?v={digest}")
    assert answer.status_code == 200 and "--button-primary-background-fill" in answer.text
    assert httpx.get(f"{address}config?v={digest}").status_code == 403


@pytest.fixture(scope="module")
def victim(address, pictures):
    """A client that taught a screw and inspected one; with its files on the server, and the id of its last event."""
    client = new_client(address, download_files=False)
    client.predict("screw", [handle_file(path) for path in pictures[:3]], api_name="/enroll")
    job = client.submit(handle_file(pictures[3]), "screw", api_name="/inspect")
    shown = job.result()[2]
    client.files, client.event = [picture["path"] for picture in shown], job.communicator.event_id
    return client


def test_another_session_s_name_opens_nothing(address, victim, pictures):
    intruder = new_client(address)
    assert intruder.cookies[COOKIE] != victim.cookies[COOKIE]
    intruder.session_hash = victim.session_hash
    asking = (
        (handle_file(pictures[4]), "screw", "/inspect"),
        ("nut", 0.0, "/judge"),
        ("nut", "/forget"),
        ("/download",),
    )
    for asked in asking:
        with pytest.raises((httpx.HTTPStatusError, ValueError), match="403"):
            intruder.predict(*asked[:-1], api_name=asked[-1])
    for cookies in (intruder.cookies, {}, {COOKIE: "guessed"}):
        for path in (
            f"queue/data?session_hash={victim.session_hash}",
            f"heartbeat/{victim.session_hash}",
            f"heartbeat/%{ord(victim.session_hash[0]):02x}{victim.session_hash[1:]}",
            f"deep_link?session_hash={victim.session_hash}",
            f"call/inspect/{victim.event}",
        ):
            answer = httpx.get(f"{address}gradio_api/{path}", cookies=cookies)
            assert answer.status_code == 403 and "another client's" in answer.text, path
        cancelled = {"session_hash": victim.session_hash, "event_id": victim.event, "fn_index": 0}
        assert httpx.post(f"{address}gradio_api/cancel", json=cancelled, cookies=cookies).status_code == 403
    assert victim.predict(handle_file(pictures[4]), "screw", api_name="/inspect")[0]["product"] == "screw"


def test_another_session_s_files_cannot_be_fetched_or_judged(address, victim, pictures):
    intruder = new_client(address)
    assert len(victim.files) == 2
    for path in victim.files:
        digest = Path(path).parent.name
        hidden = path.replace(digest, f"%{ord(digest[0]):02x}{digest[1:]}")
        for cookies in (intruder.cookies, {}):
            for asked in (path, hidden, path.replace(digest, digest.upper())):
                answer = httpx.get(f"{address}gradio_api/file={asked}", cookies=cookies)
                assert answer.status_code == 403
        assert httpx.get(f"{address}gradio_api/file={path}", cookies=victim.cookies).status_code == 200
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "nut"]
        joined = {"data": data, "fn_index": 0, "session_hash": intruder.session_hash}
        answer = httpx.post(f"{address}gradio_api/queue/join", json=joined, cookies=intruder.cookies)
        assert answer.status_code == 403 and "another client's" in answer.text
    # nor with an escape in the text that is sent
    data = {"path": victim.files[0], "meta": {"_type": "gradio.FileData"}}
    text = json.dumps({"data": [data, "nut"], "fn_index": 0, "session_hash": "own"})
    digest = Path(victim.files[0]).parent.name
    text = text.replace(digest, f"\\u{ord(digest[0]):04x}{digest[1:]}")
    answer = httpx.post(f"{address}gradio_api/queue/join", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 403 and "another client's" in answer.text


def test_a_client_without_cookies_has_its_own_files(address, pictures):
    with open(pictures[5], "rb") as file:
        (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": file}).json()
    assert httpx.get(f"{address}gradio_api/file={path}").content == Path(pictures[5]).read_bytes()


def test_what_is_no_json_is_not_passed_on(address):
    answer = httpx.post(f"{address}gradio_api/component_server", data={"session_hash": "x", "fn_name": "ls"})
    assert answer.status_code == 403 and answer.text == "The demo takes JSON."


def test_a_request_is_of_one_session(address):
    values = {"session_hash": "one", "fn_index": 0, "data": []}
    answer = httpx.post(f"{address}gradio_api/queue/join?session_hash=two", json=values)
    assert answer.status_code == 403 and "one session" in answer.text


def test_what_is_remembered_of_clients_has_an_end():
    from demo.access import MAX_CLIENTS, MAX_FILES, OwnSessionsOnly

    remembered = OwnSessionsOnly(mock.Mock())
    for client in range(MAX_CLIENTS + 10):
        remembered._note(str(client), f"/{client:064x}/photograph.webp")
    for number in range(MAX_FILES + 10):
        remembered._note("busy", f"/{number:064x}/photograph.webp")
    assert len(remembered._files) == MAX_CLIENTS and len(remembered._files["busy"]) == MAX_FILES
