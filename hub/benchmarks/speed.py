"""
The table of speed and memory: `python -m hub.benchmarks.speed`, or `make benchmark`; on a GPU with `--device cuda`.

Every figure is the median over pairs, run in turn in one process, of the processor time of one thing by that of another
(on a GPU, of the time until it has done its work): a noisy machine slows both. B/16+ at 240 pixels has random weights, 2
products and 4 photographs of each, if nothing else is said. What needs a fresh interpreter, or on a CPU peak memory, runs
in processes of its own.
"""

import argparse
import copy
import functools
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import CLIPModel

from modeling_anople import AnoPLeModel
from modeling_anople.evaluation.metrics import PixelMetrics
from modeling_anople.export import export_detector
from modeling_anople.export.graph_detector import ExportedDetector
from modeling_anople.runtime.loading import one_order_of_sums

from . import product_count
from .measuring import RESULTS, SIDE, detector_of, make_detector, processor_of, row, timed, write_jpeg
from .memory_rows import memory_rows


ANOMALIB_AUPRO = 0.082  # seconds for a map of 400 x 400 on one core, measured once with anomalib 2.7
ROOT = Path(__file__).parents[2]
BATCHES = (1, 8, 32)  # on a GPU


# --- Rows on a CPU, and those of both ---


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
    detect = detector_of(model, processor_of(model.config.class_names), class_name=model.config.class_names[0])
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        path = write_jpeg(Path(folder) / "photograph.jpg")
        pairs = timed(lambda: detect(path), lambda: model.clip.vision_model(pixels), repeats)
    yield row("JPEG file of 900 x 900 to result", "bare vision_model on a tensor", pairs, 1.20)


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
        model.clip.text_model(model.products.prompt_ids()).last_hidden_state.sum().backward()
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


def form_row(usual: Callable, repeats: int, device: torch.device, name: str, other: Callable, note: str = "") -> dict:
    """Another form's predictions against the usual ones."""
    away = (other().calibrated_scores.float() - usual().calibrated_scores).abs().max()
    noted = f"score differs by {away:.1e}" + (f"; {note}" if note else "")
    return row(name, "eager torch", timed(other, usual, repeats, device), None, noted)


def compiled_tower(model: AnoPLeModel, pixels: torch.Tensor, class_ids: torch.Tensor) -> tuple[Callable, str]:
    """Return predictions of these images with a compiled vision tower, and a note how long that took."""
    compiled, start = copy.deepcopy(model), time.perf_counter()
    compiled.prompted_pass = torch.compile(compiled.prompted_pass, dynamic=False)
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


# --- Rows on a GPU ---


def gpu_predict_rows(model: AnoPLeModel, repeats: int) -> Iterator[dict]:
    """The model on ready tensors, in both precisions, and the whole way from files."""
    half = copy.deepcopy(model).bfloat16()
    for precise, what in ((model, "predict"), (half, "predict in bfloat16")):
        for batch in BATCHES:
            yield predict_row(precise, repeats, batch, what)
    pixels = torch.randn(BATCHES[-1], 3, SIDE, SIDE, device=model.device)
    detect = detector_of(model, processor_of(model.config.class_names), class_name=model.config.class_names[0])
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


def gpu_form_rows(model: AnoPLeModel, repeats: int) -> Iterator[dict]:
    """Other forms of the same detector, with how far their answers are from its own."""
    device = model.device
    for batch in (1, 32):
        pixels, class_ids = torch.randn(batch, 3, SIDE, SIDE, device=device), torch.zeros(batch, device=device).long()
        compare = functools.partial(form_row, lambda: model(pixels, class_ids=class_ids), repeats, device)
        half = copy.deepcopy(model).bfloat16()
        yield compare(f"predict in bfloat16, batch {batch}", lambda: half(pixels.bfloat16(), class_ids=class_ids))
        compiled = compiled_tower(model, pixels, class_ids)
        yield compare(f"predict, vision tower by torch.compile, batch {batch}", *compiled)


def gpu_fit_rows(model: AnoPLeModel, repeats: int, photographs: int = 8) -> Iterator[dict]:
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


# --- The table ---


PARTS = {
    "predict": lambda model, repeats: predict_rows(model, repeats),
    "memory": lambda model, repeats: memory_rows(model, max(2, repeats // 2)),
    "forms": lambda model, repeats: form_rows(model, max(2, repeats // 2)),
    "fit": lambda model, repeats: fit_rows(model, max(2, repeats // 2)),
    "fit_products": lambda model, repeats: many_product_rows(max(2, repeats // 2)),
    "products": lambda model, repeats: product_rows(10 * repeats),
    "start": lambda model, repeats: start_rows(model, 4 * repeats),
    "metrics": lambda model, repeats: metric_rows(),
}

GPU_PARTS = {
    "predict": lambda model, repeats: gpu_predict_rows(model, repeats),
    "memory": lambda model, repeats: memory_rows(model, max(2, repeats // 2)),
    "forms": lambda model, repeats: gpu_form_rows(model, max(2, repeats // 2)),
    "fit": lambda model, repeats: gpu_fit_rows(model, max(2, repeats // 4)),
    "fit_products": lambda model, repeats: many_product_rows(max(2, repeats // 4), model.device),
    "products": lambda model, repeats: product_rows(repeats, model.device),
}


def to_table(rows: list[dict], about: dict, command: str) -> str:
    """Write the rows as Markdown."""
    lines = ["| what | against | ratio | quartiles | target | |", "|---|---|---|---|---|---|"]
    for entry in rows:
        target = (
            ""
            if entry["target"] is None
            else f"{entry['target']:g} {'met' if entry['ratio'] <= entry['target'] else '**missed**'}"
        )
        low, high = entry["quartiles"]
        spread = f"{low:.3f} - {high:.3f}" if entry["pairs"] > 1 else "one pair"
        cells = (entry["what"], entry["against"], f"{entry['ratio']:.3f}", spread, target, entry["note"])
        lines.append(f"| {' | '.join(cells)} |")
    shown = ", ".join(f"{name} {value}" for name, value in about.items())
    return f"# Speed and memory\n\n`{command}`; {shown}.\n\n{__doc__.strip()}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="Where to measure.")
    parser.add_argument("--repeats", type=int, help="Pairs of each row; by default 8, on a GPU 40.")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="Measure these parts anew and keep the other rows.")
    parser.add_argument("--peak", choices=["fit", "bare"], help="Print the peak memory of such steps in MB, and end.")
    options = parser.parse_args()
    if options.peak:
        print(peak_memory(options.peak))
        return
    about = {"torch": torch.__version__, "Python": platform.python_version()}
    if options.device == "cpu":
        about |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
        about |= {"instructions": torch.backends.cpu.get_cpu_capability()}
        parts, repeats, name, command = PARTS, options.repeats or 8, "speed", "python -m hub.benchmarks.speed"
    else:
        about |= {"CUDA": torch.version.cuda, "device": torch.cuda.get_device_name(), "cores": os.cpu_count()}
        about |= {"TF32": torch.backends.cuda.matmul.allow_tf32, "transformers": transformers.__version__}
        parts, repeats, name = GPU_PARTS, options.repeats or 40, "speed_cuda"
        command = "python -m hub.benchmarks.speed --device cuda"
    if others := sorted(set(options.only or ()) - set(parts)):
        parser.error(f"--only {' '.join(others)}: there is no such part on {options.device}")
    file = RESULTS / f"{name}.json"
    known = json.loads(file.read_text(encoding="utf-8"))["rows"] if options.only and file.exists() else []
    rows = {part: [row for row in known if row.get("part") == part] for part in parts}
    model = make_detector().to(options.device)
    for part in options.only or parts:
        rows[part] = []
        with torch.inference_mode():
            for entry in parts[part](model, repeats):
                rows[part].append({"part": part, **entry})
                print(f"{entry['ratio']:.3f}  {entry['what']} / {entry['against']}  {entry['note']}", flush=True)
        done = [row for part in parts for row in rows[part]]
        file.write_text(json.dumps({"rows": done, **about}, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(to_table(done, about, command), encoding="utf-8")


if __name__ == "__main__":
    main()
