"""What runs a graph: ONNX Runtime or OpenVINO, both with arrays by name in and a list of arrays out."""

from pathlib import Path

import numpy as np


GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml"}


def graph_in(folder: str | Path) -> Path | None:
    """Return the graph that a folder holds, or `None`."""
    return next((path for name in GRAPHS.values() if (path := Path(folder) / name).is_file()), None)


class OnnxEngine:
    """A graph in ONNX Runtime, on what it finds."""

    def __init__(self, path: Path, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = onnxruntime.get_available_providers()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self.inputs = {entry.name for entry in self.session.get_inputs()}

    def run(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> list[np.ndarray]:
        """Answer with the outputs named."""
        return self.session.run(list(outputs), given)


class OpenVinoEngine:
    """A graph in OpenVINO on the CPU, in single precision whatever the processor would rather have."""

    def __init__(self, path: Path, threads: int):
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self.compiled = openvino.Core().compile_model(path, "CPU", settings)
        self.inputs = {entry.any_name for entry in self.compiled.inputs}

    def run(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> list[np.ndarray]:
        """Answer with the outputs named."""
        answers = self.compiled(given)
        return [np.array(answers[name]) for name in outputs]  # a copy: the next run writes into the same memory


def open_engine(path: Path, threads: int) -> OnnxEngine | OpenVinoEngine:
    """Load a graph into the engine that its name tells."""
    return (OpenVinoEngine if path.name == GRAPHS["openvino"] else OnnxEngine)(path, threads)


def to_openvino(path: Path) -> None:
    """
    Turn an ONNX graph into OpenVINO's form in the same folder, with weights as they are, and remove it.

    It is read by the engine itself: `openvino.convert_model` does the same and then tells its makers over the network.
    """
    import openvino

    openvino.save_model(openvino.Core().read_model(path), path.with_name(GRAPHS["openvino"]), compress_to_fp16=False)
    for name in (path.name, f"{path.name}.data"):
        path.with_name(name).unlink(missing_ok=True)


__all__ = ["GRAPHS", "graph_in", "open_engine", "to_openvino"]
