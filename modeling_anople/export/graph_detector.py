"""What lies beside an exported graph, and how both are run, with the answers of the model that they were made from."""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ..configuration_anople import AnoPLeConfig
from ..images_anople import ignored_patches
from ..modeling_anople import AnoPLeModel
from ..processing_anople import AnoPLeProcessor
from ..product_store_anople import ProductStore
from ..saving_anople import align_files, check_beside, check_processor, hash_weights, mark, read_state, stamp
from ..scoring_anople import AnoPLeOutput, Detector, fuse_scores


# --- What runs a graph: ONNX Runtime or OpenVINO, both with arrays by name in and a list of arrays out ---


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


# --- What lies beside a graph ---

PRODUCTS, THRESHOLDS, ORIGIN = "products.safetensors", "thresholds.json", "graph.json"
OUTPUTS = ("image_scores", "anomaly_maps", "memory_maps", "decoder_maps", "text_scores", "image_embeds")
OUTSIDE = {
    *("products", "tiling", "memory_rotations", "memory_limit", "class_identity", "class_prediction"),
    *("unknown_product_rate", "threshold", "pooled_threshold", "history", "fit", "clip_source"),
    *("memory_encoder_source", "adapter_clip_sha256", "memory_encoder_sha256", "custom_pipelines", "content_sha256"),
}  # fields of the config that are no part of the graph

ABOUT = (
    "A raw score r of a class reads s = sigmoid((log(max(r, 1e-9)) - log(threshold)) / spread): image_threshold and "
    "image_spread for image_scores, map_threshold and map_spread for anomaly_maps. An image is anomalous where s is above "
    "the threshold that stands beside this text."
)


def whole_export_in(folder: str | Path) -> Path:
    """Return the graph of an export; raise `ValueError` if the folder holds none, or not all of it."""
    folder = Path(folder)
    path = graph_in(folder) or folder / GRAPHS["onnx"]
    needed = (path.name, PRODUCTS, THRESHOLDS, "config.json")
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is no whole export ({missing[0]} is missing): make it again with anople export.")
    return path


def put_thresholds(config: AnoPLeConfig, folder: str | Path) -> None:
    """Put the thresholds that lie beside a graph into its config, in place."""
    thresholds = json.loads((Path(folder) / THRESHOLDS).read_text(encoding="utf-8"))
    config.threshold, config.pooled_threshold = thresholds["threshold"], thresholds["pooled"]
    for product in config.products:
        product["threshold"] = thresholds["products"].get(product["name"])


def write_products(model: AnoPLeModel, processor: AnoPLeProcessor, folder: Path) -> None:
    """Write all of an export that is not its graph: products, thresholds, config and processor."""
    config = copy.deepcopy(model.config)
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in model.products.state_dict().items()
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / PRODUCTS, metadata={"format": "pt"})
    align_files(folder, PRODUCTS)  # and as readable as all else: safetensors' own file is its owner's alone
    thresholds = {
        "about": ABOUT,
        "threshold": config.threshold,
        "pooled": config.pooled_threshold,
        "products": {product["name"]: product["threshold"] for product in config.products},
    }
    (folder / THRESHOLDS).write_text(json.dumps(thresholds), encoding="utf-8")
    config.pooled_threshold = None  # they have a file of their own
    config.products = [{**product, "threshold": None} for product in config.products]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    mark(folder / THRESHOLDS, stamp(folder, [folder / PRODUCTS], model.config.to_dict()))


def write_origin(model: AnoPLeModel, folder: Path) -> None:
    """Note the weights that a graph is made from, so that no other detector's products are put beside it."""
    (folder / ORIGIN).write_text(json.dumps(_origin(model), indent=2) + "\n", encoding="utf-8")


def check_origin(model: AnoPLeModel, folder: Path) -> None:
    """Raise `ValueError` if a folder holds no whole export, or its graph is not what this detector would be exported as."""
    whole_export_in(folder)
    if not (folder / ORIGIN).is_file():
        raise ValueError(f"{folder} does not say what its graph was made from: export anew, with --overwrite.")
    ours = AnoPLeConfig.from_dict(model.config.to_dict()).to_dict()  # as if it were read from a file, too
    known = AnoPLeConfig.from_pretrained(folder).to_dict()
    differing = [name for name in AnoPLeConfig.__annotations__ if name not in OUTSIDE and known[name] != ours[name]]
    if differing or json.loads((folder / ORIGIN).read_text(encoding="utf-8")) != _origin(model):
        what = ", ".join(differing) or "the weights of CLIP, memory encoder, prompts or decoder"
        raise ValueError(
            f"{folder} holds the graph of another detector (it differs in {what}): name the folder of this detector's "
            "graph, or export anew without --products_only."
        )


def _origin(model: AnoPLeModel) -> dict[str, str]:
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("products.")}
    return {"weights_sha256": hash_weights(weights)}


class ExportedDetector(Detector):
    """
    A detector whose graph runs in ONNX Runtime or OpenVINO. It judges as [`AnoPLeModel`] in evaluation does, and learns nothing.

    Images are cut into tiles, and masks laid over them, before the graph sees them. A batch of several products takes one
    run for each. Where products are predicted, a first run, as the first product, finds them, and those of other products
    are judged again.
    """

    training = False
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, folder: str | Path, *, threads: int | None = None):
        """
        Open the folder that `anople export` wrote.

        Args:
            threads: of what runs the graph; by default as many as torch uses.

        Raises:
            ValueError: if a file is missing or damaged, or was not written together with the others.
        """
        read_state(folder, lambda place: self._open(place, threads))

    def _open(self, folder: Path, threads: int | None) -> None:
        self.path = whole_export_in(folder)
        check_beside(folder / "config.json", folder / PRODUCTS, folder / THRESHOLDS)
        check_processor(lambda name: path if (path := folder / name).exists() else None)
        self.config = AnoPLeConfig.from_pretrained(folder)
        put_thresholds(self.config, folder)
        self.products = ProductStore(self.config)
        self.products.load_state_dict(load_file(folder / PRODUCTS))
        self.products.check_finite()
        try:
            self.engine = open_engine(self.path, threads or torch.get_num_threads())
        except ImportError:
            raise  # the command line says which extra is missing
        except Exception as error:  # engines have many of their own
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.path} cannot be run ({reason}): make it again with anople export.") from error

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the answers depend on, but the thresholds: the products' tensors and the bytes of the graph."""
        own = {f"products.{name}": tensor for name, tensor in self.products.state_dict().items()}
        files = {
            path.suffix: path for path in sorted(self.path.parent.glob(f"{self.path.stem}.*"))
        }  # weights beside it
        graph = {
            f"graph{end}": torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            for end, path in files.items()
        }
        return own | graph

    def __call__(
        self,
        pixel_values: Tensor,
        class_ids: Tensor | None = None,
        *,
        class_is_known: bool = False,
        exclude: tuple[int, slice] | None = None,
        ignore_masks: Tensor | None = None,
    ) -> AnoPLeOutput:
        """
        Judge images (batch, 3, side, side), as [`AnoPLeModel.forward`] does.

        Args:
            class_ids: (batch,) the product of each image.
            class_is_known: whether these hold also where classes are predicted.
            exclude: nothing of the memory can be left out.
            ignore_masks: (batch, side, side) from the processor; what is ignored is fused anew, outside of the graph.

        Raises:
            ValueError: for ids of no class, or `exclude`.
        """
        config = self.config
        if exclude is not None:
            raise ValueError("A graph compares with all of a memory: leave out vectors with the detector itself.")
        if config.class_identity == "pooled":
            output, ids = self._run(pixel_values, None), None
        elif class_ids is not None and (config.class_identity == "given" or class_is_known):
            self.check_class_ids(class_ids)
            output, ids = self._run_each(pixel_values, class_ids), class_ids
        else:
            output = self._run(pixel_values, 0)
            ids = self.identify(output.image_embeds)
            others = ids.nonzero()[:, 0]
            if len(others):
                _put(output, others, self._run_each(pixel_values[others], ids[others]))
        ignored = None if ignore_masks is None else ignored_patches(ignore_masks, config.memory_grid_size)
        if ignored is not None:
            fuse_scores(output, ignored, config)
        output.class_ids = ids
        self.apply_thresholds(output)
        if ids is not class_ids:
            output.is_known_class = self.is_known_class(output.memory_maps, output.image_embeds, ids, ignored)
        return output

    def embed_image(self, pixel_values: Tensor) -> Tensor:
        """Embed images (batch, 3, side, side) as wholes: unit length (batch, joint width)."""
        return self._run(pixel_values, None if self.config.class_identity == "pooled" else 0).image_embeds

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
        if class_id is None:
            bank = torch.cat([bank.vectors for bank in self.products.banks], dim=1)
            text = F.normalize(self.products.text_embeddings().mean(0), dim=-1)
        else:
            bank, text = self.products[class_id].bank.vectors, self.products[class_id].text_embeddings
        given = {"pixel_values": pixel_values, "bank": bank, "class_embeddings": text}
        answers = self.engine.run({name: _array(tensor) for name, tensor in given.items()}, OUTPUTS)
        return AnoPLeOutput(**dict(zip(OUTPUTS, map(torch.from_numpy, answers), strict=True)))


def _put(output: AnoPLeOutput, rows: Tensor, answer: AnoPLeOutput) -> None:
    """Write the answers of some images into those of all, in place."""
    for name in OUTPUTS:
        output[name][rows] = answer[name]


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().numpy())


__all__ = [
    "GRAPHS",
    "OUTPUTS",
    "PRODUCTS",
    "THRESHOLDS",
    "ExportedDetector",
    "check_origin",
    "graph_in",
    "open_engine",
    "put_thresholds",
    "to_openvino",
    "whole_export_in",
    "write_origin",
    "write_products",
]
