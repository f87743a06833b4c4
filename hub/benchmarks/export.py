"""
How far graphs answer from their detector: `python -m hub.benchmarks.export CHECKPOINT DATA`.

The test photographs, judged by the detector in torch, by its ONNX graph, by the graph with weights of 8 bits, by one that computes in 8 bits, and by OpenVINO.
"""

import argparse
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from modeling_anople.evaluation import evaluate, test_rows
from modeling_anople.export import export_detector
from modeling_anople.export.graph_detector import graph_in
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime.loading import load_detector, load_judge

from .measuring import RESULTS


FORMS = {
    "ONNX": {},
    "ONNX, int8 weights": {"weights": "int8"},
    "ONNX, int8_dynamic": {"weights": "int8_dynamic"},
    "OpenVINO": {"format": "openvino"},
}
FIGURES = ("image_auroc", "pixel_auroc", "aupro")


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--about", default="", help="A sentence on detector and data, for the file.")
    options = parser.parse_args()
    lines = ["| | graph, MB | score differs by | map differs by | labels that flip | I / P-AUROC, AUPRO | time |"]
    lines.append("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        forms = {"torch": options.checkpoint}
        for name, kind in FORMS.items():
            target = Path(place) / str(len(forms))
            forms[name] = str(export_detector(*load_detector(options.checkpoint), target, **kind))
        expected, base = None, None
        for name, folder in tqdm(forms.items()):
            model, processor = load_judge(folder)
            rows = test_rows(options.data, processor.class_names)
            start = time.process_time()
            answers = list(
                predict(model, processor, (row["image"] for row in rows), class_names=rows["class_name"][:])
            )
            spent = time.process_time() - start
            mean = evaluate(model, processor, rows, progress=False).mean
            expected, base = expected or answers, base or spent
            pairs = [(one, other) for one, other in zip(expected, answers, strict=True) if one.error is None]
            graph = graph_in(folder)
            files = graph.parent.glob(f"{graph.stem}.*") if graph else []
            size = sum(path.stat().st_size for path in files) / 1e6 or None
            figures = " / ".join(f"{100 * mean[key]:.2f}" for key in FIGURES)
            cells = (
                name,
                "" if size is None else f"{size:.1f}",
                f"{max(abs(one.score - other.score) for one, other in pairs):.1e}",
                f"{max(np.abs(one.anomaly_map - other.anomaly_map).max() for one, other in pairs):.1e}",
                f"{sum(one.label != other.label for one, other in pairs)} of {len(pairs)}",
                figures,
                f"{spent / base:.2f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")
    )
    head = f"`python -m hub.benchmarks.export CHECKPOINT DATA`. {options.about} Python {platform.python_version()}, {versions}. Time: processor time from file to result."
    text = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "export.md").write_text(f"# The same answer from a graph\n\n{head}\n\n{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
