"""
`anople export`: a detector as a graph, of ONNX or OpenVINO, that needs neither torch nor transformers to run.

The graph holds the vision tower with its prompts, the memory's encoder where it has its own, the decoder, the memory's
look-up and the fusion. What is of a product (its memory and its two texts) goes in as inputs, so one graph serves all
products, and raw scores come out. Memories and texts lie in `products.safetensors`, the thresholds in `thresholds.json`: a
threshold is moved, and a product added, without the graph.
What the graph was made from is noted in `graph.json`, so that no other detector's products are put beside it.
"""

import contextlib
import copy
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..decoding_anople import probability_of_second
from ..memory_anople import nearest_distance
from ..modeling_anople import AnoPLeModel
from ..processing_anople import AnoPLeProcessor
from ..runtime.outputs import check_new_folder
from ..saving_anople import is_trace, locked, replacing, state_folder
from ..scoring_anople import AnoPLeOutput, fuse_scores
from .graph_detector import (
    GRAPHS,
    OUTPUTS,
    check_origin,
    graph_in,
    to_openvino,
    whole_export_in,
    write_origin,
    write_products,
)


logger = logging.getLogger(__name__)

LARGEST_IN_ONE_FILE = 1_500_000_000  # bytes; a protobuf file ends at 2 GB
OPSET = 20
CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"

Weights = Literal["float32", "int8", "int8_dynamic"]


class DetectorGraph(nn.Module):
    """
    What is exported: a batch of images of one product -> raw answers.

    Inputs:
        pixel_values: (batch, 3, side, side), as the processor makes them.
        bank: (layers, vectors, width) unit vectors that the product's memory holds.
        class_embeddings: (2, joint width) unit vectors of its normal and its abnormal text.

    Outputs, as in [`AnoPLeOutput`]: those named in `OUTPUTS`.
    """

    def __init__(self, model: AnoPLeModel):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, pixel_values: Tensor, bank: Tensor, class_embeddings: Tensor) -> tuple[Tensor, ...]:
        """Judge; shapes as described above."""
        model, config = self.model, self.config
        # the vision tower, what the text says of it, and what the decoder says
        features = model.prompted_pass(pixel_values)
        pooled = F.normalize(features.pooled, dim=-1)
        text = class_embeddings.expand(pooled.shape[0], -1, -1)
        decoded = model.decoder(features.patches, features.intermediate, text, need_features=False)
        # the memory, plainly: a search by bounds has no place in a graph
        queries = model.memory_features(pixel_values, features).flatten(1, 2)  # (layers, batch x patches, width)
        distances = [nearest_distance(query, vectors) for query, vectors in zip(queries, bank, strict=True)]
        grid = (-1, config.memory_grid_size, config.memory_grid_size)
        output = AnoPLeOutput(
            text_scores=model.score_text(pooled, text),
            decoder_maps=probability_of_second(decoded.logits),
            memory_maps=torch.stack(distances).mean(0).clamp(0, 1).reshape(grid),
            image_embeds=pooled,
        )
        fuse_scores(output, None, config)
        return tuple(output[name] for name in OUTPUTS)


def export_detector(
    model: AnoPLeModel,
    processor: AnoPLeProcessor,
    folder: str | Path,
    *,
    format: Literal["onnx", "openvino"] = "onnx",
    weights: Weights = "float32",
    overwrite: bool = False,
) -> Path:
    """
    Write a detector as a graph with its products and thresholds.

    Args:
        folder: new or empty; gets `model.onnx` or `model.xml` and `model.bin`, `graph.json`, `products.safetensors`,
            `thresholds.json`, `config.json` and the processor.
        format: `onnx` for ONNX Runtime, `openvino` for OpenVINO.
        weights: of ONNX. `int8` stores the matrices in 8 bits, in blocks of 32 with a scale each; all is still computed in
            single precision. `int8_dynamic` stores them in 7 bits, with a scale for each column, and also brings what they
            are multiplied with to 8, as it comes; attention and the memory's look-up stay in single precision.
        overwrite: whether an earlier export there may be replaced; files of other names in its folder stay.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder holds something, the detector has no memory or an empty one, or OpenVINO is to have
            weights of 8 bits.
    """
    folder = Path(folder)
    earlier = graph_in(state_folder(folder)) is not None
    if earlier and not overwrite:
        raise ValueError(f"{folder} is not empty: name a new folder, or add --overwrite to replace an export.")
    if not earlier:
        check_new_folder(folder)
    _check_memories(model)
    if format == "openvino" and weights != "float32":
        raise ValueError(f"OpenVINO was given --weights {weights}, which is a form of ONNX: leave one of the two out.")
    with replacing(folder) as unfinished:
        graph = unfinished / GRAPHS["onnx"]
        write_graph(model, graph)
        if weights != "float32":
            quantize(graph, weights)
        if format == "openvino":
            to_openvino(graph)
        write_origin(model, unfinished)
        write_products(model, processor, unfinished)
    return folder


def export_products(model: AnoPLeModel, processor: AnoPLeProcessor, folder: str | Path) -> Path:
    """
    Bring the products and thresholds of an export up to date with the detector that it was made from; its graph stays.

    Raises:
        ValueError: if the folder holds no export, or one of another detector, or a product has no memory.
    """
    folder = Path(folder)
    whole_export_in(state_folder(folder))
    _check_memories(model)
    with locked(folder):  # and what a killed program left there is finished
        check_origin(model, folder)
        with replacing(folder) as unfinished:
            write_products(model, processor, unfinished)
            for path in folder.iterdir():
                if path.is_file() and not is_trace(path.name):
                    _take_over(path, unfinished / path.name)
    return folder


def _check_memories(model: AnoPLeModel) -> None:
    if empty := [product.name for product in model.products if not product.bank.size]:
        raise ValueError(
            f"The products {empty} have no memory: fit the detector, or forget them, before it is exported."
        )


def _take_over(source: Path, target: Path) -> None:
    """Link a file that was not written anew, or copy it where links cannot be had."""
    if not target.exists():
        try:
            target.hardlink_to(source)
        except OSError:
            shutil.copy2(source, target)


@torch.no_grad()
def write_graph(model: AnoPLeModel, path: Path) -> None:
    """Trace a detector in single precision on the CPU and write the graph; any number of photographs and vectors fit."""
    config = model.config
    if model.dtype != torch.float32 or model.device.type != "cpu":
        model = copy.deepcopy(model).float().cpu()
    graph, first = DetectorGraph(model.eval()), model.products[0]
    layers, _, width = first.bank.vectors.shape
    inputs = {
        "pixel_values": torch.zeros(2, 3, config.input_size, config.input_size),
        "bank": F.normalize(torch.ones(layers, 5, width), dim=-1),
        "class_embeddings": first.text_embeddings,
    }
    shapes = {"pixel_values": {0: "batch"}, "bank": {1: "vectors"}, "class_embeddings": None}
    size = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # torchvision is not here
    with _without_checks(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own insides
        torch.onnx.export(
            graph,
            kwargs=inputs,
            f=str(path),
            dynamo=True,
            dynamic_shapes=shapes,
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            external_data=size > LARGEST_IN_ONE_FILE,
            verbose=False,
        )


@contextlib.contextmanager
def _without_checks() -> Iterator[None]:
    """Leave out what transformers checks of its inputs as it computes: no graph can hold that."""
    known = os.environ.get(CHECKS)
    os.environ[CHECKS] = "1"
    try:
        yield
    finally:
        os.environ.pop(CHECKS) if known is None else os.environ.update({CHECKS: known})


def quantize(path: Path, weights: Weights) -> None:
    """Bring the matrices of a graph to 8 bits, in place, by ONNX Runtime's own tools; see [`export_detector`]."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.shape_inference import quant_pre_process

    large, whole = path.with_name(f"{path.name}.data").exists(), path.with_name("whole")
    whole.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        file.rename(whole / file.name)
    if weights == "int8":
        logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)  # a line for each node it leaves
        quantizer = MatMulNBitsQuantizer(onnx.load(whole / path.name), bits=8, block_size=32, is_symmetric=True)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path), use_external_data_format=large)
    else:
        simple = whole / "simple.onnx"  # what is constant, as the prompts are, is computed before
        quant_pre_process(whole / path.name, simple, skip_symbolic_shape=True, save_as_external_data=large)
        quantize_dynamic(
            simple,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,  # 7 bits: with 8, processors without VNNI saturate, and answer otherwise than ones with
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
    shutil.rmtree(whole)


__all__ = ["DetectorGraph", "export_detector", "export_products", "write_graph"]
