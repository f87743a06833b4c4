"""
What the site has beside the pages in docs/: files of the repository that they link to, and the programs' own --help.

Pages link as they do on GitHub (`../hub/results/encoders.md`). Markdown, pictures and figures that are reached so become
part of the site; a link to code or to a folder keeps its text alone; one to nothing is a warning, at which `make docs` ends.
"""

import contextlib
import io
import logging
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"
START = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
RENAMED = {"README.md": "index.md"}  # the start page
SHOWN = (".md", ".json", ".jpg", ".png")
TEMPLATES = ("model_card.md",)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)

log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs/, and what that links to; and the reference of the command line."""
    todo = [DOCS + file.src_uri for file in files.documentation_pages()] + list(START)
    seen = set(todo)
    while todo:
        path = todo.pop()
        if not path.startswith(DOCS):
            files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            linked = {target for target, _ in _links(path)}
            todo += sorted(target for target in linked - seen if _is_shown(target) and not target.startswith(DOCS))
            seen |= linked
    files.append(File.generated(config, "command_line.md", content=_command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_) -> str:
    """Point links to where their files lie in the site."""
    path = _path(page.file)

    def renew(link: re.Match) -> str:
        mark, text, address = link.groups()
        if _is_elsewhere(address):
            return link[0]
        target, anchor = _resolve(path, address)
        if not (ROOT / target).exists():
            log.warning("%s links to %s, which is not there.", path, address)
        if not _is_shown(target):
            return text
        place = posixpath.relpath(_place(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({place}{anchor})"

    return _outside_code(markdown, lambda text: LINK.sub(renew, text))


def on_page_content(html: str, page: Page, **_) -> str:
    """Show what docstrings write as transformers does, references ([`name`]) and types (`int`, *optional*), without marks."""
    if not page.file.src_uri.startswith("api/"):
        return html
    html = re.sub(r"\[(<code>[^<]*</code>)\]", r"\1", html)
    return re.sub(r"<code>[^<]*`[^<]*</code>", lambda code: code[0].replace("`", "").replace("*", ""), html)


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    parts = CODE.split(markdown)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def _links(path: str) -> list[tuple[str, str]]:
    """List the files of the repository that one links to, each with its anchor."""
    text = CODE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    return [_resolve(path, address) for _, _, address in LINK.findall(text) if not _is_elsewhere(address)]


def _resolve(path: str, address: str) -> tuple[str, str]:
    target, mark, anchor = address.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target)), mark + anchor


def _is_elsewhere(address: str) -> bool:
    return address.startswith("#") or re.match(r"[a-z]+:", address) is not None


def _is_shown(path: str) -> bool:
    return path.endswith(SHOWN) and path not in TEMPLATES and (ROOT / path).is_file()


def _place(path: str) -> str:
    """Say where a file of the repository lies in the site."""
    return RENAMED.get(path, path.removeprefix(DOCS))


def _path(file: File) -> str:
    """Say where a file of the site lies in the repository."""
    own = {place: path for path, place in RENAMED.items()}
    place = own.get(file.src_uri, file.src_uri)
    return place if file.generated_by else DOCS + place


def _command_line() -> str:
    """Write down what each command says of itself."""
    from modeling_anople.cli import COMMANDS

    os.environ["COLUMNS"] = "84"
    pages = [f"# Command line\n\nWhat the programs say of themselves.\n\n{_help()}"]
    pages += [f"## anople {name}\n\n{_help(name)}" for name in COMMANDS]
    return "\n".join(pages)


def _help(*command: str) -> str:
    from modeling_anople.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main([*command, "--help"])
        except SystemExit as ended:
            code = ended.code
    if code:
        log.warning("anople %s --help: %s", *command, said.getvalue())
    return f"```text\n{said.getvalue().strip()}\n```\n"
