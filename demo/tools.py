"""The demo as a tool server (MCP): other programs' assistants may have photographs judged, and nothing else."""

from importlib.metadata import PackageNotFoundError, version

import gradio as gr


TOOLS = ("/inspect",)
PROTOCOL = "1"  # the major version of the package `mcp` that Gradio 6 works with


def offers_tools() -> bool:
    """Whether the package that Gradio needs for tools is here, in a version it works with."""
    try:
        return version("mcp").split(".")[0] == PROTOCOL
    except PackageNotFoundError:
        return False


def restrict_tools(demo: gr.Blocks) -> None:
    """
    Offer only what changes nothing.

    Gradio runs the calls of all tool users in one session, where one would find the products of another: what teaches,
    judges a line or hands out detectors is for browsers and `gradio_client`, which have a session each.
    """
    if (server := demo.mcp_server_obj) is not None:
        known = server.tool_to_endpoint.items()
        server.tool_to_endpoint = {name: endpoint for name, endpoint in known if endpoint in TOOLS}
