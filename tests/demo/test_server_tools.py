"""The demo as a tool server: the real MCP client lists its tools and has photographs judged and products taught."""

import ast
import base64
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from demo.examples import Examples
from demo.inspect_tab import inspect_image
from demo.server import KeyedSessions
from demo.teach_tab import teach_product

from .demo_app import running, session_of


mcp = pytest.importorskip(
    "mcp", reason="THE DEMO'S MCP TOOLS WERE NOT TESTED: no mcp here (pip install 'mcp>=1.21,<2')."
)
anyio = pytest.importorskip("anyio")


@pytest.fixture(scope="module")
def picture(tmp_path_factory, photograph) -> Path:
    path = tmp_path_factory.mktemp("picture") / "part.png"
    photograph(300).save(path)
    return path


@pytest.fixture(scope="module")
def other_picture(picture, photograph) -> Path:
    path = picture.with_name("other.png")
    photograph(301).save(path)
    return path


@pytest.fixture(scope="module")
def address(start, picture):
    with running(start, Examples([picture], [picture])) as address:
        yield address


@asynccontextmanager
async def connected(address: str):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async with (
        streamablehttp_client(f"{address}gradio_api/mcp/") as (read, write, _),
        ClientSession(read, write) as client,
    ):
        await client.initialize()
        yield client


def sent(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def numbers_of(answer) -> dict:
    return {**ast.literal_eval(answer.content[0].text)[0], "milliseconds": 0}


def test_two_tools_are_offered_and_inspect_judges_as_the_detector_does(address, start, picture):
    async def ask():
        async with connected(address) as client:
            tools = (await client.list_tools()).tools
            hidden = await client.call_tool("download", {})
            unknown = await client.call_tool("inspect", {"photograph": sent(picture), "product": "../../x"})
            asked = {"photograph": sent(picture), "product": "nut"}
            return tools, hidden, unknown, await client.call_tool("inspect", asked)

    tools, hidden, unknown, answer = anyio.run(ask)
    assert [tool.name for tool in tools] == ["inspect", "enroll"]
    assert [tool.inputSchema["required"] for tool in tools] == [["photograph"], ["name", "photograph"]]
    assert "Judge one photograph of a product" in tools[0].description
    assert "Teach a new product from 1 to 8 good photographs" in tools[1].description
    assert hidden.isError and unknown.isError and not answer.isError
    expected = inspect_image(session_of(start), picture, "nut").numbers
    assert numbers_of(answer) == {**expected, "milliseconds": 0}


def test_a_taught_product_is_found_by_its_key_alone(address, start, picture, other_picture):
    async def ask():
        async with connected(address) as client:
            taught = await client.call_tool("enroll", {"name": "mine", "photograph": sent(picture)})
            key = ast.literal_eval(taught.content[0].text)["detector"]
            two = {"photograph": sent(picture), "photograph_2": sent(other_picture)}
            more = await client.call_tool("enroll", {"name": "ours", **two, "detector": key})
            other = await client.call_tool("enroll", {"name": "mine", "photograph": sent(picture)})
            asked = {"photograph": sent(picture), "product": "mine"}
            answers = [await client.call_tool("inspect", {**asked, "detector": used}) for used in (key, "", "guess")]
            return [ast.literal_eval(one.content[0].text) for one in (taught, more, other)], answers

    (taught, more, other), (answer, without, guessed) = anyio.run(ask)
    assert taught["products"] == ["bolt", "nut", "mine"] and more["products"] == ["bolt", "nut", "mine", "ours"]
    assert "from 2 good photographs" in more["words"]
    assert more["detector"] == taught["detector"] != other["detector"] and other["products"] == taught["products"]
    assert without.isError and "is not known here" in without.content[0].text
    assert guessed.isError and "No detector has this key" in guessed.content[0].text
    own = session_of(start)
    teach_product(own, "mine", [str(picture)])
    expected = inspect_image(own, picture, "mine").numbers
    assert numbers_of(answer) == {**expected, "milliseconds": 0}
    assert start.products == ["bolt", "nut"]


def test_keys_go_when_there_are_too_many_or_unused_for_long(start):
    sessions = KeyedSessions(start, most=2)
    for key in "abc":
        sessions.keep(sessions.new(), key)
        sessions.find("a" if key == "b" else key)
    assert sessions.find("a") is sessions.find("a") is not sessions.find("c")
    with pytest.raises(ValueError, match="No detector has this key"):
        sessions.find("b")
    short = KeyedSessions(start, seconds=0)
    short.keep(short.new(), "a")
    assert not short._used  # gone without being asked for
    with pytest.raises(ValueError, match="No detector has this key"):
        short.find("a")
