"""The demo's server on loopback in this process; `hub.benchmarks.demo_program` runs it as a program of its own."""

import contextlib
import copy
from collections.abc import Iterator

from demo.app import build_demo, serve
from demo.examples import Examples
from demo.session import Session


@contextlib.contextmanager
def running(start: Session, examples: Examples) -> Iterator[str]:
    """Serve a detector; gives the address."""
    demo = build_demo(start, examples)
    try:
        yield serve(demo, served_as=["line7.test"], server_name="127.0.0.1", quiet=True)
    finally:
        demo.server.force_exit = True  # it would wait 5 s for pages and clients, which stay connected
        demo.close()


def session_of(start: Session) -> Session:
    """What a new browser gets."""
    return copy.deepcopy(start)
