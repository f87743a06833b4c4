"""
Take a fitted detector to a Hub and back, and compare: `python -m tests.local_hub CHECKPOINT PHOTOGRAPHS`.

The Hub is a small one on this machine (`tests.local_hub`), but the client is the real one over a real connection: the
detector is pushed by `hub.publish` in one process and loaded by `AutoModel.from_pretrained(..., trust_remote_code=True)` in
another, with an empty cache and the code that came with it. Each photograph is judged on both sides.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from modeling_anople.images_anople import list_images
from modeling_anople.runtime import start_logging
from modeling_anople.runtime.loading import load_detector

from . import LocalHub
from .judge_from_hub import judge


logger = logging.getLogger(__name__)

REPOSITORY, TOKEN = "me/detector", "a-token-of-this-machine"


def round_trip(checkpoint: str, paths: list[str]) -> list[tuple[dict, dict]]:
    """
    Push a detector, load it elsewhere and judge photographs on both sides.

    Returns:
        For each photograph the answers here and there.

    Raises:
        ValueError: if a process on the way fails, with what it said.
    """
    here = judge(*load_detector(checkpoint), paths)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with LocalHub(folder / "hub", {TOKEN: "me"}) as hub:
            _run(["-m", "hub.publish", checkpoint, REPOSITORY, "--private"], hub.environment(folder / "first", TOKEN))
            logger.info("Pushed to %s/%s", hub.endpoint, REPOSITORY)
            program = str(Path(__file__).with_name("judge_from_hub.py"))
            there = json.loads(
                _run(["-I", program, REPOSITORY, "main", *paths], hub.environment(folder / "second", TOKEN))
            )
    return list(zip(here, there, strict=True))


def _run(arguments: list[str], environment: dict[str, str]) -> str:
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"python {' '.join(arguments[:3])} ... failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def main(arguments: list[str] | None = None) -> int:
    """Compare and print; exit with 1 if an answer differs."""
    start_logging()
    parser = argparse.ArgumentParser(prog="python -m tests.local_hub", description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", help="Folder of a fitted detector.")
    parser.add_argument("photographs", nargs="+", help="Photographs, or folders of them; the first 8 are judged.")
    options = parser.parse_args(arguments)
    try:
        paths = [str(path.resolve()) for path in list_images(options.photographs)[:8]]
        pairs = round_trip(options.checkpoint, paths)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"tests.local_hub: {error}\n")
        return 2
    for path, (here, there) in zip(paths, pairs, strict=True):
        shown = ["no line" if side["score"] is None else f"{side['score']:.6f}" for side in (here, there)]
        logger.info("%s here, %s from the Hub: %s", *shown, path)
    differing = sum(here != there for here, there in pairs)
    if differing:
        logger.info("%d of %d answers DIFFER.", differing, len(pairs))
        return 1
    logger.info("All %d scores and maps agree bit for bit.", len(pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
