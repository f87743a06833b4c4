"""
Predictions against anomalib's WinClip and PatchCore: `ENVIRONMENT/bin/python -m tests.benchmarks.anomalib_rows`.

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
import warnings
from importlib.metadata import version
from pathlib import Path
from unittest import mock

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
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from anomalib.models.image.winclip import torch_model as winclip

    return library, winclip, PatchcoreModel


def main() -> None:
    """Measure, print and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4, help="Pairs of each row.")
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    _, winclip, patchcore = load_anomalib()  # before transformers, which imports torchvision where it finds one
    from modeling_anople.exported import ExportedDetector
    from modeling_anople.exporting import export_detector

    from .prediction_cost import RESULTS, make_detector
    from .speed_rows import SIDE, processor_of, row, timed

    about = {
        name: version(name) for name in ("torch", "anomalib", "open_clip_torch", "timm", "onnxruntime", "openvino")
    }
    about |= {"Python": platform.python_version(), "threads": torch.get_num_threads()}
    rows, model = [], make_detector()
    pixels, class_ids = torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, dtype=torch.long)

    def keep(*entry) -> None:
        rows.append(row(*entry))
        text = json.dumps({"rows": rows, **about}, indent=2)
        (RESULTS / "anomalib.json").write_text(text + "\n", encoding="utf-8")
        print(rows[-1], flush=True)

    with torch.inference_mode():
        with mock.patch.object(winclip, "PRETRAINED", None):
            rival = winclip.WinClipModel().eval()
        rival.setup("object", torch.rand(4, 3, SIDE, SIDE))
        pairs = timed(lambda: model(pixels, class_ids=class_ids), lambda: rival(pixels), max(2, repeats // 2))
        keep("predict, B/16+ at 240 pixels, 4 shots", "anomalib's WinClip, the same", pairs, 0.1)
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


if __name__ == "__main__":
    main()
