"""The demo's API by the real client over a real connection; several people at once; hostile input."""

import inspect
import platform
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import httpx
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from demo.examples import Examples
from demo.inspect_tab import inspect_image
from demo.session import PREDICT_PRODUCT
from demo.teach_tab import teach_product
from hub.benchmarks.demo_program import new_client
from modeling_anople.runtime import MALLOC_OPTIONS, return_free_memory

from ..test_images import encoded, with_size_in_header
from .demo_app import running, session_of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photograph) -> list[str]:
    """Twelve different photographs."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        photograph(300 + number).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(12)]


@pytest.fixture(scope="module")
def address(start, pictures):
    with running(start, Examples([Path(pictures[0])], [Path(path) for path in pictures[:2]])) as address:
        yield address


def without_time(numbers: dict) -> dict:
    return {name: value for name, value in numbers.items() if name != "milliseconds"}


def test_inspect_and_enroll_by_the_client(address, start, pictures):
    client = new_client(address)
    numbers, verdict, shown = client.predict(handle_file(pictures[0]), "nut", api_name="/inspect")
    assert without_time(numbers) == without_time(inspect_image(session_of(start), pictures[0], "nut").numbers)
    assert numbers["words"] in verdict
    assert [Image.open(path).size for path in shown] == [Image.open(pictures[0]).size] * 2

    told = client.predict("screw", [handle_file(path) for path in pictures[:3]], api_name="/enroll")
    assert told[0]["products"] == ["bolt", "nut", "screw"]
    here = session_of(start)
    teach_product(here, "screw", pictures[:3])
    numbers, *_ = client.predict(handle_file(pictures[4]), "screw", api_name="/inspect")
    assert without_time(numbers) == without_time(inspect_image(here, pictures[4], "screw").numbers)
    with pytest.raises(AppError, match="screw is not known here"):
        new_client(address).predict(handle_file(pictures[4]), "screw", api_name="/inspect")


def test_the_other_endpoints(address, pictures, tmp_path):
    client = new_client(address)
    table, report, words = client.predict(
        [handle_file(path) for path in pictures[:3]], PREDICT_PRODUCT, api_name="/inspect_many"
    )
    assert len(table["data"]) == 3 and "3 photographs" in words
    assert "results.csv" in zipfile.ZipFile(report).namelist()
    words, drawing = client.predict("nut", 0.0, api_name="/judge")
    assert "3 of 3 measurements" in words and drawing.startswith("<svg")
    assert "nut now knows 4" in client.predict("nut", handle_file(pictures[5]), 0.5, api_name="/add_normals")[0]
    client.predict("screw", [handle_file(path) for path in pictures[:3]], api_name="/enroll")
    told = client.predict("screw", [handle_file(path) for path in pictures[3:5]], api_name="/replace")
    assert "screw is taught anew, from 2 good photographs" in told[0]["words"]
    assert client.predict("bolt", "bolt M3", api_name="/rename")[0]["products"] == ["bolt M3", "nut", "screw"]
    with pytest.raises(AppError, match="bolt is not known here"):
        client.predict("bolt", api_name="/forget")
    assert client.predict("bolt M3", api_name="/forget")[0]["products"] == ["nut", "screw"]
    detector = client.predict(api_name="/download")
    another = new_client(address)
    told = another.predict(handle_file(detector), api_name="/load")
    assert told[0]["products"] == ["nut", "screw"]


def test_the_api_is_documented(address):
    endpoints = new_client(address).view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {
        "/inspect",
        "/enroll",
        "/replace",
        "/rename",
        "/forget",
        "/inspect_many",
        "/judge",
        "/add_normals",
        "/download",
        "/load",
        "/explain",
        "/fit",
    } == set(endpoints) - {"/tool_inspect", "/tool_enroll"}  # which are there where the package mcp is
    assert [one["parameter_name"] for one in endpoints["/inspect"]["parameters"]] == ["photograph", "product"]


def test_eight_clients_at_once_get_the_answers_they_would_get_alone(address, start, pictures):
    expected = {path: without_time(inspect_image(session_of(start), path, "bolt").numbers) for path in pictures}

    def ask(number: int) -> None:
        client, session = new_client(address), session_of(start)
        own = [pictures[(number + step) % len(pictures)] for step in range(3)]
        for path in own:
            assert without_time(client.predict(handle_file(path), "bolt", api_name="/inspect")[0]) == expected[path]
        told = client.predict(
            "mine", [handle_file(path) for path in own], api_name="/enroll"
        )  # one name, eight products
        assert told[0]["products"] == ["bolt", "nut", "mine"]
        teach_product(session, "mine", own)
        asked = pictures[(number + 5) % len(pictures)]
        answer = client.predict(handle_file(asked), "mine", api_name="/inspect")[0]
        assert without_time(answer) == without_time(inspect_image(session, asked, "mine").numbers)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_a_picture_that_somebody_may_be_reading_is_not_written_again(address, pictures):
    def ask() -> list[Path]:
        client = new_client(address, download_files=False)
        shown = client.predict(handle_file(pictures[0]), "nut", api_name="/inspect")[2]
        return [Path(picture["path"]) for picture in shown]

    first = ask()
    for path in first:
        path.write_bytes(path.read_bytes() + b"mark")
    assert ask() == first and len(set(first)) == 2
    assert all(path.read_bytes().endswith(b"mark") for path in first)


def test_hostile_input_gets_a_friendly_answer_and_the_server_lives_on(address, pictures, tmp_path):
    client = new_client(address)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(with_size_in_header(encoded("PNG"), 20000, 20000))
    for name, message in (("text.png", "text.png is not a photograph"), ("huge.png", "huge.png is too large")):
        with pytest.raises(AppError, match=message):
            client.predict(handle_file(str(tmp_path / name)), PREDICT_PRODUCT, api_name="/inspect")
        with pytest.raises(AppError, match=message):
            client.predict("screw", [handle_file(str(tmp_path / name))], api_name="/enroll")
    for name in ("../../x", "<script>alert(1)</script>"):
        with pytest.raises(AppError, match="product&#x27;s name") as refusal:
            client.predict(name, [handle_file(pictures[0])], api_name="/enroll")
        assert "<script>" not in str(refusal.value)
        with pytest.raises(AppError, match="is not known here"):
            client.predict(handle_file(pictures[0]), name, api_name="/inspect")
    with pytest.raises(AppError, match="101 photographs are too many"):
        client.predict([handle_file(pictures[0])] * 101, PREDICT_PRODUCT, api_name="/inspect_many")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        link = zipfile.ZipInfo("config.json")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(AppError, match="holds a link"):
        client.predict(handle_file(str(tmp_path / "link.zip")), api_name="/load")
    assert client.predict(handle_file(pictures[0]), "nut", api_name="/inspect")[0]["product"] == "nut"


def test_files_of_the_server_cannot_be_asked_for(address):
    client = new_client(address)
    with pytest.raises((AppError, ValueError)):
        client.predict(
            {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, PREDICT_PRODUCT, api_name="/inspect"
        )
    assert httpx.get(f"{address}gradio_api/file=/etc/passwd").status_code in (403, 404)


def test_the_page_loads_nothing_from_elsewhere(address):
    answer = httpx.get(address)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(https?:)?//", answer.text)
    assert not loaded
    styles = re.findall(r"href=[\"']([^\"']*theme\.css[^\"']*)", answer.text)
    for path in [*styles, "/theme.css"]:
        assert "http" not in httpx.get(address.rstrip("/") + "/" + path.lstrip("./")).text.replace(
            "http://www.w3.org", ""
        )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no call that gives memory back")
def test_large_blocks_go_back_as_soon_as_they_are_free(monkeypatch):
    program = f"""
import ctypes, os
MALLOC_OPTIONS = {MALLOC_OPTIONS!r}
{inspect.getsource(return_free_memory)}
class MallocInfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
library = ctypes.CDLL(None)
library.mallinfo2.restype, library.malloc.restype = MallocInfo, ctypes.c_void_p
library.free(ctypes.c_void_p(library.malloc(4 * 2**20)))  # after which glibc maps no smaller one apart, unless told so
for told in (False, True):
    if told and not return_free_memory():
        raise SystemExit("it could not be told")
    before = library.mallinfo2().hblks
    blocks = [library.malloc(3 * 2**20) for _ in range(8)]
    print(library.mallinfo2().hblks - before)
    for block in blocks:
        library.free(ctypes.c_void_p(block))
"""  # a process of its own: this one's heap is full of other tests'
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0", "8"]
    monkeypatch.setattr("modeling_anople.runtime.ctypes", mock.Mock(CDLL=lambda name: object()))
    assert not return_free_memory()


def test_no_call_goes_past_the_queue(address, pictures):
    data = {"data": [{"path": pictures[0], "meta": {"_type": "gradio.FileData"}}, "nut"]}
    answer = httpx.post(f"{address}gradio_api/run/inspect", json=data, timeout=60)
    assert answer.status_code == 404 and "queue" in answer.text
