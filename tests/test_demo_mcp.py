"""The demo as a tool server: the real MCP client lists its tools and has photographs judged and products taught."""

import ast
import base64
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from demo.examples import Examples
from demo.inspecting import inspect_photograph
from demo.session import start_session

from .demo_app import running, session_of
from .detectors import write_detector


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
def start(tmp_path_factory, small_clip_folder, photograph):
    return start_session(str(write_detector(tmp_path_factory.mktemp("tools") / "d", small_clip_folder, photograph)))


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


def test_one_tool_is_offered_and_it_judges_as_the_detector_does(address, start, picture):
    sent = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()

    async def ask():
        async with connected(address) as client:
            tools = (await client.list_tools()).tools
            refused = await client.call_tool("enroll", {"name": "mine", "files": [sent]})
            unknown = await client.call_tool("inspect", {"photograph": sent, "product": "../../x"})
            return tools, refused, unknown, await client.call_tool("inspect", {"photograph": sent, "product": "nut"})

    tools, refused, unknown, answer = anyio.run(ask)
    assert [tool.name for tool in tools] == ["inspect"] and tools[0].inputSchema["required"] == ["photograph"]
    assert "Judge one photograph of a product" in tools[0].description
    assert refused.isError and unknown.isError and not answer.isError
    numbers = ast.literal_eval(answer.content[0].text)[0]
    expected = inspect_photograph(session_of(start), picture, "nut").numbers
    assert {**numbers, "milliseconds": 0} == {**expected, "milliseconds": 0}
    assert start.products == ["bolt", "nut"]
