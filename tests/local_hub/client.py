"""
The real client of the Hub in a process of its own, pointed to the local Hub by HF_ENDPOINT as a user would.

The tests' own process is offline, and the client reads its settings once, when it is imported. The functions below run
over there; they must not import the tests' configuration.
"""

import contextlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


class Client:
    """One process that stays; `call` runs a function of this file in it."""

    def __init__(self, environment: dict[str, str]):
        self.environment = {**environment, "OMP_NUM_THREADS": "1"}
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def call(self, function: Callable, *arguments: object, **keywords: object) -> Any:
        """Run a function over there and return what it returns; its errors are raised here."""
        with _variables(self.environment):  # the process starts with the first call
            return self._pool.submit(function, *arguments, **keywords).result(timeout=120)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


@contextlib.contextmanager
def _variables(environment: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(program: Callable, arguments: list, token: str | None) -> tuple[int, str, str]:
    output, errors = io.StringIO(), io.StringIO()
    changed = {} if token is None else {"HF_TOKEN": token}
    with _variables(changed), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = program([str(argument) for argument in arguments])
    return code, output.getvalue(), errors.getvalue()


def push(*arguments: object, token: str | None = None) -> tuple[int, str, str]:
    """Run `python -m hub.publish`: exit code, output, errors."""
    from hub.publish.__main__ import main

    return _run(main, list(arguments), token)


def push_space(*arguments: object, token: str | None = None) -> tuple[int, str, str]:
    """Run `python -m hub.publish.space`: exit code, output, errors."""
    from hub.publish.space import main

    return _run(main, list(arguments), token)


def anople(*arguments: object, token: str | None = None) -> tuple[int, str, str]:
    """Run `anople`: exit code, output, errors."""
    from modeling_anople.cli import main

    return _run(main, list(arguments), token)


def anople_in_two_processes(*arguments: object) -> list[int]:
    """Run `anople` in two processes that accelerate joins; the exit codes."""
    from modeling_anople.cli import main

    from ..fitting import in_two_processes

    return in_two_processes(lambda _: main([str(argument) for argument in arguments]))


def api(method: str, *arguments: object, **keywords: object) -> Any:
    """Call a method of `HfApi`; what comes one by one is listed."""
    from huggingface_hub import HfApi

    answer = getattr(HfApi(), method)(*arguments, **keywords)
    return list(answer) if isinstance(answer, Iterator) else answer


def files_of(repository: str, **keywords: object) -> dict[str, str]:
    """List a repository: path -> hash (SHA-256 of large files, git's of others)."""
    from huggingface_hub import HfApi, RepoFile

    entries = HfApi().list_repo_tree(repository, recursive=True, **keywords)
    return {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if isinstance(e, RepoFile)}


def download(repository: str, cache: Path, **keywords: object) -> dict[str, bytes]:
    """Download a repository into a cache and read all of it."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repository, cache_dir=cache, **keywords))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def download_space(repository: str, cache: Path) -> dict[str, bytes]:
    """Download a Space into a cache and read all of it."""
    return download(repository, cache, repo_type="space")


def answers_of(name: str, paths: list[str], *, load: str = "from_pretrained", **keywords: object) -> list[dict]:
    """Load a detector by `AnoPLeModel.from_pretrained` or `load_adapter` and judge photographs."""
    from modeling_anople import AnoPLeModel, AnoPLeProcessor

    from .judge_from_hub import judge

    model = getattr(AnoPLeModel, load)(name, **keywords)
    keywords.pop("clip", None)
    return judge(model, AnoPLeProcessor.from_pretrained(name, **keywords), paths)


def push_plainly(folder: str, repository: str, **keywords: object) -> None:
    """Push model and processor by transformers' own methods."""
    from modeling_anople import AnoPLeModel, AnoPLeProcessor

    AnoPLeModel.from_pretrained(folder).push_to_hub(repository, **keywords)
    AnoPLeProcessor.from_pretrained(folder).push_to_hub(repository, **keywords)


def save_and_push(folder: str, target: str, repository: str, **keywords: object) -> None:
    """Save a detector and push it in one call."""
    from modeling_anople import AnoPLeModel

    AnoPLeModel.from_pretrained(folder).save_pretrained(target, push_to_hub=True, repo_id=repository, **keywords)


def push_pipeline(folder: str, repository: str, images: list[str], *, by: str, target: str) -> list[float]:
    """Let a detector learn a product and push it, by `push_to_hub` or when it is saved; return what it says of the images."""
    from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel

    detector = AnomalyDetectionPipeline(AnoPLeModel.from_pretrained(folder))
    detector.enroll("gasket", images)
    detector.processor.white_value = 4095
    if by == "push_to_hub":
        detector.push_to_hub(repository)
    else:
        detector.save_pretrained(target, push_to_hub=True, repo_id=repository)
    return [result["score"] for result in detector(images)]


def pipeline_answers(repository: str, images: list[str]) -> list[tuple[str, float]]:
    """Judge images by the pipeline that a repository makes: product and score of each."""
    from transformers import pipeline

    detector = pipeline(model=repository, trust_remote_code=True, device="cpu")
    return [(result["class_name"], result["score"]) for result in detector(images)]


def push_clip(folder: str, repository: str, *, change: float = 0.0) -> str:
    """Push a CLIP with tokenizer and image processor, its weights changed a little; return the commit."""
    import torch
    from huggingface_hub import HfApi
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    clip = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        clip.visual_projection.weight.add_(change)
    AutoTokenizer.from_pretrained(folder).push_to_hub(repository)
    CLIPImageProcessor.from_pretrained(folder).push_to_hub(repository)
    clip.push_to_hub(repository)
    return HfApi().model_info(repository).sha


def start_detector(clip: str, folder: str) -> dict:
    """Start a detector on a CLIP from the Hub and save it; return where it says its CLIP came from."""
    import numpy as np
    import torch
    from PIL import Image

    from modeling_anople import AnoPLeModel, AnoPLeProcessor
    from modeling_anople.enrollment_anople import add_normals

    torch.manual_seed(0)
    model = AnoPLeModel.from_clip(clip, ["bolt", "nut"])
    processor = AnoPLeProcessor.from_clip(clip, ["bolt", "nut"])
    pictures = [
        Image.fromarray(pixels) for pixels in np.random.default_rng(0).integers(0, 255, (3, 48, 48, 3), np.uint8)
    ]
    for name in model.config.class_names:
        add_normals(model, processor, name, pictures)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.config.clip_source
