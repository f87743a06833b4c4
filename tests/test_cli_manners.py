"""How the program behaves at its edges: version, interruption, order of words, what a second run leaves of the first."""

import json
import logging

import pytest

from modeling_anople import ImageError, __version__, load_image
from modeling_anople import cli as program
from modeling_anople.cli import main
from modeling_anople.runtime import start_logging

from .detectors import write_detector


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, small_clip_folder, photograph):
    return write_detector(tmp_path_factory.mktemp("detector"), small_clip_folder, photograph)


@pytest.fixture
def pictures(tmp_path, photograph) -> list[str]:
    paths = [tmp_path / "photographs" / f"{number}.png" for number in range(3)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        photograph(number).save(path)
    return [str(path) for path in paths]


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"anople {__version__}\n"


@pytest.mark.parametrize(("command", "more"), [("fit", "the same command with --resume goes on"), ("predict", "")])
def test_an_interrupted_command_ends_with_a_line(capsys, monkeypatch, command, more):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(program.COMMANDS, command, interrupted)
    assert main([command, "x"]) == 130
    said = capsys.readouterr().err
    assert said.strip() == f"anople {command}: stopped{': ' if more else ''}{more}."


@pytest.mark.parametrize("words", [["--explain"], ["--explain", "true"], ["--explain", "no"]])
def test_an_option_that_asks_yes_or_no_takes_no_photograph(capsys, checkpoint, pictures, words):
    assert main(["predict", *words, str(checkpoint), *pictures[:2]]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and all(("explanation" in line) == (words[-1] != "no") for line in lines)


def test_a_folder_is_summed_up(capsys, checkpoint, pictures, tmp_path, caplog):
    (tmp_path / "photographs" / "damaged.png").write_bytes(b"no picture")
    with caplog.at_level(logging.INFO, logger="modeling_anople"):
        assert main(["predict", str(checkpoint), str(tmp_path / "photographs"), "--class", "bolt"]) == 1
    labels = [json.loads(line).get("label") for line in capsys.readouterr().out.splitlines()]
    counts = [f"{labels.count(label)} {label}" for label in ("anomalous", "normal") if label in labels]
    assert caplog.messages[-1] == f"4 photographs: {', '.join(counts)}, 1 that could not be used."


def test_a_second_run_replaces_the_pictures_of_the_first(capsys, checkpoint, pictures, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), *pictures, "--class", "bolt", "--output", str(out)]) == 0
    (out / "mine.png").write_bytes(b"not of a run")
    for line in (
        b"[1]",
        b"7",
        b'{"overlay": true}',
        b'{"overlay": "x/.."}',
        b'{"overlay": "mine.png"}',
        b"\xff",
        b'{"path',
    ):
        with (out / "results.jsonl").open("ab") as file:  # of another program, or killed while it was written
            file.write(line + b"\n")
    assert main(["predict", str(checkpoint), pictures[2], "--class", "screw", "--output", str(out)]) == 2
    assert len(list(out.iterdir())) == 5
    assert main(["predict", str(checkpoint), pictures[2], "--class", "bolt", "--output", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0000-2.png", "mine.png", "results.jsonl"]
    assert main(["predict", str(checkpoint), pictures[0], "--output", str(out / "mine.png")]) == 2
    assert "mine.png is a file: name a folder for --output" in capsys.readouterr().err


def test_pictures_that_are_judged_where_they_lie_stay(capsys, checkpoint, pictures, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), *pictures[:2], "--class", "bolt", "--output", str(out)]) == 0
    assert main(["predict", str(checkpoint), str(out), "--class", "bolt", "--output", str(out)]) == 0
    assert {"0000-0.png", "0001-1.png"} < {path.name for path in out.iterdir()}


def test_own_lines_are_shown_and_those_of_libraries_are_not(capsys):
    loggers = [logging.getLogger(name) for name in ("modeling_anople.training", "hub.publish", "onnxscript", "httpx2")]
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers.clear()
    try:
        start_logging()
        for logger in loggers:
            logger.info("an info of %s", logger.name)
        loggers[2].warning("a warning")
    finally:
        root.handlers[:], root.level = before
    assert capsys.readouterr().err.splitlines() == [
        "an info of modeling_anople.training",
        "an info of hub.publish",
        "a warning",
    ]


def test_an_address_is_not_taken_for_a_file(capsys, checkpoint):
    assert main(["predict", str(checkpoint), "https://example.com/a.png"]) == 2
    assert "https://example.com/a.png is an address, and none is fetched" in capsys.readouterr().err
    with pytest.raises(ImageError, match="https://example.com/a.png: addresses are not fetched: download"):
        load_image("https://example.com/a.png")
    with pytest.raises(ImageError, match="there is no such file"):
        load_image("C:/none.png")
