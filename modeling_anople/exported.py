"""Run an exported detector by ONNX Runtime, with the answers of the model it was made from."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from .calibration_anople import ScoreCalibration
from .configuration_anople import AnoPLeConfig
from .identity_anople import IdentityMixin
from .memory_anople import NormalMemory
from .outputs_anople import AnoPLeOutput


GRAPH, PRODUCTS, LINES = "model.onnx", "products.safetensors", "lines.json"
OUTPUTS = ("image_scores", "anomaly_maps", "memory_maps", "decoder_maps", "text_scores", "image_embeds")


class ExportedDetector(IdentityMixin):
    """
    A detector whose graph runs in ONNX Runtime. It judges as [`AnoPLeModel`] in evaluation does, and learns nothing.

    A batch of several products takes one run for each. Where products are predicted, a first run, as the first product,
    finds them, and those of other products are judged again: at most twice the time.
    """

    training = False
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, folder: str | Path, *, threads: int | None = None):
        """
        Open the folder that `anople export` wrote.

        Args:
            threads: of ONNX Runtime; by default as many as torch uses.

        Raises:
            ValueError: if a file is missing or damaged.
        """
        import onnxruntime

        folder = Path(folder)
        if missing := [name for name in (GRAPH, PRODUCTS, LINES, "config.json") if not (folder / name).is_file()]:
            raise ValueError(
                f"{folder} is no whole export ({missing[0]} is missing): make it again with anople export."
            )
        self.config = AnoPLeConfig.from_pretrained(folder)
        lines = json.loads((folder / LINES).read_text(encoding="utf-8"))
        self.config.threshold, self.config.calibration = lines["threshold"], lines["classes"]
        tensors = load_file(folder / PRODUCTS)
        self.memory, self.calibration = NormalMemory(self.config), ScoreCalibration(self.config)
        self.memory.restore(
            [(tensors[f"bank_{number}"], counts) for number, counts in enumerate(self.config.memory_photographs)]
        )
        self.class_embeddings, self.class_prototypes = tensors["class_embeddings"], tensors["class_prototypes"]
        self.path, options = folder / GRAPH, onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                str(self.path), options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # ONNX Runtime has many of its own
            raise ValueError(f"{self.path} cannot be run ({error}): make it again with anople export.") from error
        self.inputs = {entry.name for entry in self.session.get_inputs()}

    def eval(self) -> "ExportedDetector":
        """Return itself: it never trains."""
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the answers depend on, but the lines: the products' tensors and the bytes of the graph."""
        own = {f"memory.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        own |= {"class_embeddings": self.class_embeddings, "class_prototypes": self.class_prototypes}
        return own | {"graph": torch.frombuffer(bytearray(self.path.read_bytes()), dtype=torch.uint8)}

    def __call__(self, pixel_values: Tensor, class_ids: Tensor | None = None) -> AnoPLeOutput:
        """Judge images (batch, 3, side, side), as [`AnoPLeModel.forward`] does."""
        if self.config.class_identity == "pooled":
            output, ids = self._run(pixel_values, None), None
        elif class_ids is not None and self.config.class_identity == "given":
            ids = self.identify(pixel_values, self.class_embeddings, class_ids)  # which checks them
            output = self._run_each(pixel_values, ids)
        else:
            output = self._run(pixel_values, 0)
            ids = self.identify(output.image_embeds, self.class_embeddings, None)
            others = ids.nonzero()[:, 0]
            if len(others):
                _put(output, others, self._run_each(pixel_values[others], ids[others]))
        output.class_ids = ids
        self.calibration.apply(output)
        if ids is not class_ids:
            output.known_products = self.recognise(output.memory_maps, output.image_embeds, ids)
        return output

    def _run_each(self, pixel_values: Tensor, ids: Tensor) -> AnoPLeOutput:
        """Run the images of each product together."""
        output = None
        for class_id in ids.unique().tolist():
            rows = (ids == class_id).nonzero()[:, 0]
            answer = self._run(pixel_values[rows], class_id)
            if len(rows) == len(ids):
                return answer
            if output is None:
                output = AnoPLeOutput(
                    **{name: answer[name].new_empty((len(ids), *answer[name].shape[1:])) for name in OUTPUTS}
                )
            _put(output, rows, answer)
        return output

    def _run(self, pixel_values: Tensor, class_id: int | None) -> AnoPLeOutput:
        """Run images as one product, or against all of them pooled."""
        ids = None if class_id is None else torch.tensor([class_id])
        if class_id is None:
            bank = torch.cat([self.memory.bank(number) for number in range(len(self.memory.counts))], dim=1)
            text = F.normalize(self.class_embeddings.mean(0), dim=-1)
        else:
            bank, text = self.memory.bank(class_id), self.class_embeddings[class_id]
        given = {"pixel_values": pixel_values, "bank": bank, "class_embeddings": text}
        if "memory_scale" in self.inputs:
            scales = self.calibration.memory_scales(ids)
            given["memory_scale"] = torch.ones(1) if scales is None else scales
        answers = self.session.run(list(OUTPUTS), {name: _array(tensor) for name, tensor in given.items()})
        return AnoPLeOutput(**dict(zip(OUTPUTS, map(torch.from_numpy, answers), strict=True)))


def _put(output: AnoPLeOutput, rows: Tensor, answer: AnoPLeOutput) -> None:
    """Write the answers of some images into those of all, in place."""
    for name in OUTPUTS:
        output[name][rows] = answer[name]


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().numpy())


__all__ = ["GRAPH", "LINES", "OUTPUTS", "PRODUCTS", "ExportedDetector"]
