"""The rows of the table of speed and memory; see `hub.benchmarks.speed`."""

import copy
import functools
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hub.mini_clip.small_clip import byte_tokenizer
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.evaluation.metrics import PixelMetrics
from modeling_anople.export import export_detector
from modeling_anople.export.graph_detector import ExportedDetector

from . import product_count
from .prediction_cost import make_detector, paired_ratios


SIDE = 240
ANOMALIB_AUPRO = 0.082  # seconds for a map of 400 x 400 on one core, measured once with anomalib 2.7
ROOT = Path(__file__).parents[2]


def row(
    what: str, against: str, pairs: list[tuple[float, float]], target: float | None, note: str = ""
) -> dict[str, Any]:
    """Sum pairs up."""
    ratios = sorted(first / second for first, second in pairs)
    if len(pairs) > 1:
        seconds = statistics.median(second for _, second in pairs)
        note = f"{seconds:.3f} s for {against}{'; ' if note else ''}{note}"
    return {
        "what": what,
        "against": against,
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
        "target": target,
        "pairs": len(ratios),
        "note": note,
    }


def timed(
    first: Callable, second: Callable, repeats: int, device: torch.device = torch.device("cpu")
) -> list[tuple[float, float]]:
    """Pairs of processor seconds; on a GPU pairs of seconds until it has done its work."""
    return paired_ratios(first, second, repeats, clock=time.process_time if device.type == "cpu" else wait_and_look)


def wait_and_look() -> float:
    """Read the wall's clock once the GPU has nothing left to do."""
    torch.cuda.synchronize()
    return time.perf_counter()


def processor_of(names: list[str], side: int = SIDE) -> AnoPLeProcessor:
    """The processor of the B/16+ sized detector."""
    images = CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
    return AnoPLeProcessor(images, byte_tokenizer(), class_names=names)


def predict_row(model: AnoPLeModel, repeats: int, batch: int, what: str = "predict") -> dict:
    """The model on ready tensors."""
    device, bare = model.device, model.clip.vision_model
    pixels, class_ids = (
        torch.randn(batch, 3, SIDE, SIDE).to(device, model.dtype),
        torch.arange(batch, device=device) % 2,
    )
    pairs = timed(lambda: model(pixels, class_ids=class_ids), lambda: bare(pixels), repeats, device)
    rate = batch / statistics.median(first for first, _ in pairs)
    note = "" if device.type == "cpu" else f"{rate:,.0f} photographs a second"
    return row(f"{what}, batch {batch}", "bare vision_model", pairs, 1.10, note)


def predict_rows(model: AnoPLeModel, repeats: int) -> Iterator[dict]:
    """The model on ready tensors, and the whole way from files."""
    for batch in (1, 8):
        yield predict_row(model, repeats, batch)
    detect = model.as_pipeline(processor_of(model.config.class_names), class_name=model.config.class_names[0])
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        path = write_jpeg(Path(folder) / "photograph.jpg")
        pairs = timed(lambda: detect(path), lambda: model.clip.vision_model(pixels), repeats)
    yield row("JPEG file of 900 x 900 to result", "bare vision_model on a tensor", pairs, 1.20)


def write_jpeg(path: Path) -> str:
    """Write smooth noise of 900 x 900, and return the path."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((900, 900)).save(path)
    return str(path)


def product_rows(repeats: int, device: torch.device = torch.device("cpu")) -> Iterator[dict]:
    """The embedded CLIP with many products against one."""
    one, pixels = product_count.make_detector(1)[0].to(device), torch.randn(1, 3, 224, 224).to(device)
    for products in (20, 200):
        many = product_count.make_detector(products)[0].to(device)
        last = torch.tensor([products - 1], device=device)
        pairs = timed(
            lambda many=many, last=last: many(pixels, class_ids=last),
            lambda last=last: one(pixels, class_ids=last * 0),
            repeats,
            device,
        )
        yield row(f"predict with {products} products, class given, `mini`", "1 product", pairs, 1.05)


def fit_step(model: AnoPLeModel, kind: str, photographs: int = 1) -> Callable[[], None]:
    """Make one step of fitting on the views of photographs, or forward and backward of its bare CLIP on the same."""
    views, side, classes = model.config.num_views * photographs, model.config.image_size, len(model.config.class_names)
    pixels, masks = torch.randn(views, 3, side, side), torch.zeros(views, side, side)
    masks[1, 60:120, 60:120] = 1
    class_ids = torch.arange(photographs).repeat_interleave(model.config.num_views) % classes
    view_ids = torch.arange(model.config.num_views).repeat(photographs)
    pixels, masks, class_ids, view_ids = (each.to(model.device) for each in (pixels, masks, class_ids, view_ids))
    model.freeze_clip()

    def fit() -> None:
        model.train()
        model(pixels, class_ids=class_ids, view_ids=view_ids, mask_labels=masks).loss.backward()
        model.zero_grad()
        model.eval()

    def bare() -> None:
        seen = pixels.clone().requires_grad_()
        model.clip.vision_model(seen).last_hidden_state.sum().backward()
        start = model.clip.text_model.encoder.layers[0].layer_norm1.weight.requires_grad_()  # the way back ends there
        model.clip.text_model(model.class_token_ids).last_hidden_state.sum().backward()
        start.requires_grad_(False)

    return {"fit": fit, "bare": bare}[kind]


def fit_rows(model: AnoPLeModel, repeats: int) -> Iterator[dict]:
    """A step of fitting; time in this process, peak memory in fresh ones."""
    with torch.inference_mode(False), torch.enable_grad():
        pairs = timed(fit_step(model, "fit"), fit_step(model, "bare"), repeats)
    yield row("fitting, one step on five views", "forward and backward of bare CLIP on the same", pairs, 1.25)
    peaks = [float(in_fresh_process("--peak", kind)) for kind in ("fit", "bare")]
    note = f"{peaks[0]:.0f} and {peaks[1]:.0f} MB, weights included"
    yield row("fitting, peak memory", "the same", [tuple(peaks)], 1.3, note)


def many_product_rows(repeats: int, device: torch.device = torch.device("cpu")) -> Iterator[dict]:
    """A step of fitting with 100 products against 5, four photographs of five views each."""
    with torch.inference_mode(False), torch.enable_grad():
        steps = []
        for products in (100, 5):
            model = AnoPLeModel.from_clip("mini", [f"product {number}" for number in range(products)]).to(device)
            steps.append(fit_step(model, "fit", photographs=4))
        yield row("fitting, a step with 100 products, `mini`", "5 products", timed(*steps, repeats, device), 1.05)


def metric_rows() -> Iterator[dict]:
    """AUPRO and pixel AUROC of 1,000 maps."""
    generator = np.random.default_rng(0)
    maps = generator.random((20, 400, 400), dtype=np.float32)
    masks = np.zeros((20, 400, 400), dtype=bool)
    masks[::2, 100:140, 200:260] = True
    metrics, before = PixelMetrics(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    for number in range(1000):
        metrics.update(maps[number % 20], masks[number % 20])
    metrics.compute()
    spent = (time.process_time() - start) / 1000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    note = f"{1000 * spent:.1f} ms a map against {1000 * ANOMALIB_AUPRO:.0f} ms; memory grew by {grown:.0f} MB"
    yield row(
        "AUPRO and P-AUROC, 1,000 maps of 400 x 400",
        "anomalib's AUPRO (stated figure)",
        [(spent, ANOMALIB_AUPRO)],
        0.1,
        note,
    )


def start_rows(model: AnoPLeModel, repeats: int) -> Iterator[dict]:
    """Loading and importing."""
    with tempfile.TemporaryDirectory() as place:
        detector, clip = Path(place) / "detector", Path(place) / "clip"
        model.save_pretrained(detector)
        model.clip.save_pretrained(clip)
        pairs = timed(lambda: AnoPLeModel.from_pretrained(detector), lambda: CLIPModel.from_pretrained(clip), repeats)
    yield row("loading a checkpoint", "CLIPModel.from_pretrained", pairs, 1.2)
    package, libraries = "import modeling_anople", "import torch, transformers"
    pairs = [(import_seconds(package), import_seconds(libraries)) for _ in range(5)]
    yield row("import modeling_anople", libraries, pairs, 1.1)
    used = "import torch; from transformers import CLIPModel, CLIPTokenizer, ProcessorMixin, Pipeline"
    package = "from modeling_anople import AnoPLeModel"
    pairs = [(import_seconds(package), import_seconds(used)) for _ in range(5)]
    yield row(
        package,
        "torch and CLIP's classes of transformers",
        pairs,
        None,
        "the first use of a name loads the package; transformers imports lazily too",
    )


def import_seconds(program: str) -> float:
    """Processor seconds of a fresh interpreter that runs a line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def form_rows(model: AnoPLeModel, repeats: int) -> Iterator[dict]:
    """Other forms of the same detector, with how far their answers are from its own."""
    pixels, class_ids = torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, dtype=torch.long)
    compare = functools.partial(form_row, lambda: model(pixels, class_ids=class_ids), repeats, model.device)
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        folder = export_detector(model, processor_of(model.config.class_names), Path(place) / "graph")
        spent = time.perf_counter() - start
        graph = ExportedDetector(folder)
        yield compare(
            "predict by ONNX Runtime", lambda: graph(pixels, class_ids=class_ids), f"exported in {spent:.0f} s"
        )
        names = model.config.class_names
        other = ExportedDetector(export_detector(model, processor_of(names), Path(place) / "other", format="openvino"))
        yield compare("predict by OpenVINO", lambda: other(pixels, class_ids=class_ids))
        eight = export_detector(model, processor_of(names), Path(place) / "eight", weights="int8_dynamic")
        short = ExportedDetector(eight)
        yield compare("predict by ONNX Runtime, `int8_dynamic`", lambda: short(pixels, class_ids=class_ids))
    half = copy.deepcopy(model).bfloat16()
    yield compare("predict in bfloat16", lambda: half(pixels.bfloat16(), class_ids=class_ids))
    yield compare("predict, vision tower by torch.compile", *compiled_tower(model, pixels, class_ids))


def form_row(
    usual: Callable, repeats: int, device: torch.device, name: str, other: Callable, note: str = ""
) -> dict[str, Any]:
    """Another form's predictions against the usual ones."""
    away = (other().calibrated_scores.float() - usual().calibrated_scores).abs().max()
    noted = f"score differs by {away:.1e}" + (f"; {note}" if note else "")
    return row(name, "eager torch", timed(other, usual, repeats, device), None, noted)


def compiled_tower(model: AnoPLeModel, pixels: torch.Tensor, class_ids: torch.Tensor) -> tuple[Callable, str]:
    """Return predictions of these images with a compiled vision tower, and a note how long that took."""
    compiled, start = copy.deepcopy(model), time.perf_counter()
    compiled.walk_views = torch.compile(compiled.walk_views, dynamic=False)
    compiled(pixels, class_ids=class_ids)
    note = f"compiled in {time.perf_counter() - start:.0f} s"
    return lambda: compiled(pixels, class_ids=class_ids), note


def in_fresh_process(*arguments: str) -> str:
    """Run this program with other arguments; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "hub.benchmarks.speed", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout.strip()


def peak_memory(kind: str) -> float:
    """Return the highest memory in MB of two steps of fitting, or of its bare CLIP, from now on."""
    step = fit_step(make_detector(), kind)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step(), step()
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
