"""
Predictions against anomalib's WinClip and PatchCore, and AUPRO against its own:
`ENVIRONMENT/bin/python -m hub.benchmarks.anomalib_rows`.

It needs an environment of its own, of anomalib 2.7 without what it would bring (torch is there already):
`pip install --no-deps anomalib==2.7.0 lightning lightning-utilities torchmetrics timm kornia kornia-rs open_clip_torch
torchvision opencv-python-headless FrEIA jsonargparse omegaconf ftfy einops platformdirs scikit-image imageio lazy_loader
tifffile wcwidth docstring-parser rich-argparse` beside `.[dev]`. All weights are random, which cost what trained ones do;
4 normal photographs; pairs run in turn in one process, processor time.
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch


# A torchvision that does not fit torch's build cannot load its operators; neither method calls one, but its import asks.
OPERATORS = (
    "nms",
    "qnms",
    *(
        f"{way}{name}{back}"
        for name in ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")
        for way, back in (("", ""), ("_", "_backward"))
    ),
)


def load_anomalib():
    """Import the two methods."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor boxes, Tensor scores, float limit) -> Tensor")
    from anomalib.metrics.aupro import _AUPRO  # the metric without its wrapper, which wants a batch object
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from anomalib.models.image.winclip import torch_model as winclip

    return library, winclip, PatchcoreModel, _AUPRO


def metric_row(aupro: type, count: int) -> tuple:
    """Measure AUPRO and P-AUROC of maps of 400 x 400 against anomalib's AUPRO on the same arrays."""
    from modeling_anople.evaluation.metrics import PixelMetrics

    generator = np.random.default_rng(0)
    masks = np.zeros((count, 400, 400), dtype=bool)
    masks[::2, 100:140, 200:260] = masks[::4, 300:320, 20:60] = True
    maps = generator.random(masks.shape, dtype=np.float32)
    maps[masks] **= 0.5
    start = time.process_time()
    ours = PixelMetrics()
    for scores, mask in zip(maps, masks, strict=True):
        ours.update(scores, mask)
    figure = ours.compute()["aupro"]
    middle = time.process_time()
    theirs = aupro()
    theirs.update(torch.from_numpy(maps), torch.from_numpy(masks).int())
    away = abs(float(theirs.compute()) - figure)
    pair = (middle - start, time.process_time() - middle)
    note = f"AUPRO differs by {away:.0e}"
    return f"AUPRO and P-AUROC, {count:,} maps of 400 x 400", "anomalib's AUPRO on the same", [pair], 0.1, note


def main() -> None:
    """Measure, print and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4, help="Pairs of each row.")
    parser.add_argument(
        "--maps",
        type=int,
        default=1000,
        help="Maps of the row of metrics, which take about 15 GB for 1,000; 0 keeps that row.",
    )
    options = parser.parse_args()
    repeats = options.repeats
    warnings.simplefilter("ignore")
    _, winclip, patchcore, aupro = load_anomalib()  # before transformers, which imports torchvision where it finds one
    from modeling_anople.export import export_detector
    from modeling_anople.export.graph_detector import ExportedDetector

    from .measuring import RESULTS, SIDE, make_detector, processor_of, row, timed

    about = {
        name: version(name) for name in ("torch", "anomalib", "open_clip_torch", "timm", "onnxruntime", "openvino")
    }
    about |= {"Python": platform.python_version(), "threads": torch.get_num_threads()}
    about |= {"instructions": torch.backends.cpu.get_cpu_capability()}
    known = json.loads((RESULTS / "anomalib.json").read_text(encoding="utf-8"))["rows"] if not options.maps else []
    rows, model = [entry for entry in known if entry["what"].startswith("AUPRO")], make_detector()
    pixels, class_ids = torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, dtype=torch.long)

    def keep(*entry) -> None:
        rows.append(row(*entry))
        text = json.dumps({"rows": rows, **about}, indent=2)
        (RESULTS / "anomalib.json").write_text(text + "\n", encoding="utf-8")
        print(rows[-1], flush=True)

    if options.maps:
        keep(*metric_row(aupro, options.maps))
    with torch.inference_mode():
        with mock.patch.object(winclip, "PRETRAINED", None):
            rival = winclip.WinClipModel().eval()
        rival.setup("object", torch.rand(4, 3, SIDE, SIDE))
        pairs = timed(lambda: model(pixels, class_ids=class_ids), lambda: rival(pixels), repeats)
        windows = "anomalib's WinClip, B/16+ at 240 pixels, 4 shots"
        keep("predict by torch", windows, pairs, 0.1)
        core = patchcore(layers=("layer2", "layer3"), pre_trained=False)
        core.train()
        core(torch.rand(4, 3, 256, 256))
        core.subsample_embedding(0.1)
        core.eval()
        picture = torch.rand(1, 3, 256, 256)
        against = "anomalib's PatchCore, WideResNet-50 at 256 pixels, 4 shots"
        keep(
            "predict by torch",
            against,
            timed(lambda: model(pixels, class_ids=class_ids), lambda: core(picture), repeats),
            None,
        )
        processor = processor_of(model.config.class_names)
        with tempfile.TemporaryDirectory() as place:
            forms = {
                "OpenVINO": {"format": "openvino"},
                "ONNX Runtime": {},
                "ONNX Runtime, `int8_dynamic`": {"weights": "int8_dynamic"},
            }
            for name, form in forms.items():
                graph = ExportedDetector(export_detector(model, processor, Path(place) / name, **form))
                pairs = timed(lambda: graph(pixels, class_ids=class_ids), lambda: core(picture), repeats)  # noqa: B023
                keep(f"predict by {name}", against, pairs, 1.0)
                pairs = timed(lambda: graph(pixels, class_ids=class_ids), lambda: rival(pixels), max(2, repeats // 2))  # noqa: B023
                keep(f"predict by {name}", windows, pairs, 0.1)


if __name__ == "__main__":
    main()
