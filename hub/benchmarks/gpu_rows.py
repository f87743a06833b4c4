"""The rows of the table of speed and memory on a GPU: `python -m hub.benchmarks.speed --device cuda`."""

import copy
import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from modeling_anople import AnoPLeModel
from modeling_anople.runtime.loading import one_order_of_sums

from .speed_rows import SIDE, compiled_tower, fit_step, form_row, predict_row, processor_of, row, timed, write_jpeg


BATCHES = (1, 8, 32)


def predict_rows(model: AnoPLeModel, repeats: int) -> Iterator[dict]:
    """The model on ready tensors, in both precisions, and the whole way from files."""
    half = copy.deepcopy(model).bfloat16()
    for precise, what in ((model, "predict"), (half, "predict in bfloat16")):
        for batch in BATCHES:
            yield predict_row(precise, repeats, batch, what)
    pixels = torch.randn(BATCHES[-1], 3, SIDE, SIDE, device=model.device)
    detect = model.as_pipeline(processor_of(model.config.class_names), class_name=model.config.class_names[0])
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_jpeg(Path(folder) / f"{number}.jpg") for number in range(BATCHES[-1])]
        pairs = timed(
            lambda: detect(paths, batch_size=BATCHES[-1]),
            lambda: model.clip.vision_model(pixels),
            max(2, repeats // 10),
            model.device,
        )
        rate = len(paths) / statistics.median(first for first, _ in pairs)
        note = f"{rate:,.0f} photographs a second, read by {torch.get_num_threads()} threads"
        yield row(
            f"{BATCHES[-1]} JPEG files of 900 x 900 to results", "bare vision_model on tensors", pairs, None, note
        )


def form_rows(model: AnoPLeModel, repeats: int) -> Iterator[dict]:
    """Other forms of the same detector, with how far their answers are from its own."""
    device = model.device
    for batch in (1, 32):
        pixels, class_ids = torch.randn(batch, 3, SIDE, SIDE, device=device), torch.zeros(batch, device=device).long()
        compare = functools.partial(form_row, lambda: model(pixels, class_ids=class_ids), repeats, device)
        half = copy.deepcopy(model).bfloat16()
        yield compare(f"predict in bfloat16, batch {batch}", lambda: half(pixels.bfloat16(), class_ids=class_ids))
        compiled = compiled_tower(model, pixels, class_ids)
        yield compare(f"predict, vision tower by torch.compile, batch {batch}", *compiled)


def fit_rows(model: AnoPLeModel, repeats: int, photographs: int = 8) -> Iterator[dict]:
    """A step of fitting on as many photographs as it takes by default: time, and the GPU's memory."""
    against, steps, peaks = "forward and backward of bare CLIP on the same", {}, {}
    with torch.inference_mode(False), torch.enable_grad():
        for dtype, name in ((None, ""), (torch.bfloat16, " in bfloat16")):
            for kind in ("fit", "bare"):
                steps[kind] = _in_precision(fit_step(model, kind, photographs), dtype)
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                steps[kind](), steps[kind]()
                peaks[kind] = torch.cuda.max_memory_allocated() / 2**20
            with one_order_of_sums(model.device):  # as a fit takes its steps
                ordered = statistics.median(first for first, _ in timed(steps["fit"], steps["bare"], 2, model.device))
            pairs = timed(steps["fit"], steps["bare"], repeats, model.device)
            note = f"{ordered:.3f} s a step of fitting with sums in one order, as a fit has them"
            what = f"fitting{name}, one step on {photographs} photographs of five views"
            yield row(what, against, pairs, 1.25, note)
            note = f"{peaks['fit']:,.0f} and {peaks['bare']:,.0f} MB, weights included"
            yield row(f"fitting{name}, peak memory of the GPU", "the same", [(peaks["fit"], peaks["bare"])], 1.3, note)


def _in_precision(step: Callable[[], None], dtype: torch.dtype | None) -> Callable[[], None]:
    """Let a step's products be computed in a type, as accelerate does for `--mixed_precision`."""

    def act() -> None:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            step()

    return act
