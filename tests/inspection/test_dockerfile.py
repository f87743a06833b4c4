"""The image of the server, as far as it can be tried without docker: what it copies, installs and starts is there."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from modeling_anople.cli import COMMANDS, main


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The instructions in their order, each with its arguments on one line."""
    if not (ROOT / "Dockerfile").exists():
        pytest.skip("installed without its repository")
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def of(steps: list[tuple[str, str]], name: str) -> list[str]:
    return [arguments for instruction, arguments in steps if instruction == name]


def port_of(steps: list[tuple[str, str]]) -> str:
    """The port that the image listens on as long as nobody says another."""
    return dict(each.split("=") for each in " ".join(of(steps, "ENV")).split())["ANOPLE_PORT"]


def test_what_it_copies_is_there_and_not_ignored(steps):
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {name for arguments in of(steps, "COPY") for name in shlex.split(arguments)[:-1]}
    assert sources == kept and all((ROOT / name).exists() for name in sources)


def test_what_it_installs_are_extras_of_the_project(steps):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = (arguments.removeprefix("EXTRAS=") for arguments in of(steps, "ARG"))
    assert set(extras.split(",")) | {"export"} <= project["optional-dependencies"].keys()
    assert project["readme"] in " ".join(of(steps, "COPY"))  # without which pip cannot build it
    first, second = of(steps, "RUN")
    assert re.search(r"torch==\d", first) and '".[${EXTRAS}]"' in second and "://" not in first + second


def test_it_starts_the_server_as_somebody_who_is_not_root(steps, capsys):
    names = [name for name, _ in steps]
    assert names[0] == "FROM" and names[-1] == "ENTRYPOINT"
    assert of(steps, "USER")[-1] not in ("root", "0") and names.index("USER") > max(
        place for place, name in enumerate(names) if name == "RUN"
    )
    shell, option, line, _ = json.loads(of(steps, "ENTRYPOINT")[0])
    assert (shell, option) == ("sh", "-c")
    filled = line.replace("$ANOPLE_PORT", port_of(steps)).replace('"$@"', "")
    # exec: SIGTERM goes to the server, not to a shell that has started it
    execute, program, command, *arguments = shlex.split(filled)
    assert (execute, program) == ("exec", "anople") and "$" not in filled and line.endswith('"$@"')
    assert command in COMMANDS and arguments[0] == of(steps, "VOLUME")[0]
    assert main([command, *arguments, "--batch_size", "0"]) == 2  # its options are known, and this is refused
    assert "batch_size" in capsys.readouterr().err


def test_its_health_is_asked_where_it_listens(steps):
    python, option, code = json.loads(of(steps, "HEALTHCHECK")[0].partition("CMD ")[2])
    assert (python, option) == ("python", "-c") and of(steps, "EXPOSE")[0] == port_of(steps) == "8000"
    asked = []

    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Health) as server:  # on another port than that of the image
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        environment = {**os.environ, "ANOPLE_PORT": str(server.server_port)}
        subprocess.run([sys.executable, option, code], check=True, env=environment)
        thread.join(10)
    assert asked == ["/healthz"]
