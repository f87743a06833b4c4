"""Configuration of AnoPLe: one strict dataclass in which every choice that the paper leaves open is a field."""

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.pipelines import PIPELINE_REGISTRY

from .tiling_anople import Rotations, tiling_text


TASK = "image-anomaly-detection"
PIPELINES = {TASK: {"impl": "pipeline_anople.AnomalyDetectionPipeline", "pt": ["AutoModel"], "type": "image"}}


class CustomPipelines(dict):
    """
    The entry `custom_pipelines` of a config: where `transformers.pipeline` finds the task's code in a detector's folder.

    `pipeline` wants `trust_remote_code=True` for each task that is found in here, even where this package is installed
    and has registered it, and writes classes, which no JSON file can hold, into the entry that it looks up. So a task
    that is registered is not found, and what is looked up is a copy.
    """

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) and task not in PIPELINE_REGISTRY.supported_tasks

    def __getitem__(self, task: str) -> dict:
        return copy.deepcopy(super().__getitem__(task))


# Options that have another name now, and options that are gone with the only value that a detector can have had for the
# same answers: none of the paper's tables needs them, and no measured table shows that another value helps.
RENAMED = {"memory_copies": "memory_rotations"}
REMOVED = {
    "value_attention_layers": 0,
    "dice_views": "positive",
    "dice_symmetric": False,
    "memory_features": "prompted",
    "latent_noise_target": "global",
    "sub_image_losses": "all",
    "decoder_prior": 0.03,
    "decoder_input": "centred",
    "fusion_scale": "raw",
}
# What version 0.1 kept of products, field by field and aligned by number or name.
EARLIER_PRODUCT_FIELDS = (
    *("class_names", "memory_sizes", "memory_photographs", "memory_boxes", "product_tilings", "ignore_mask_sizes"),
    "calibration",
)
EARLIER_THRESHOLD_FIELDS = {
    "image_line": "image_threshold",
    "map_line": "map_threshold",
    "product_lines": "novelty_thresholds",
    "strangeness": "novelty_scores",
    "photographs": "image_count",
    "supported_rate": "attainable_rate",
    "image_copies": "jittered_image_scores",
    "map_copies": "jittered_map_maxima",
}

ENCODER_FIELDS = ("memory_image_size", "memory_image_mean", "memory_image_std", "memory_encoder_source")

# The least and the greatest value of every number that a person may choose, both allowed; docstrings name them.
LARGEST_SIDE = 4096  # of an image, in pixels
MEAN_RANGE, STD_RANGE = (0, 1), (0.001, 1)  # of values from 0, black, to 1, white
RANGES = {
    "image_size": (1, LARGEST_SIDE),
    "memory_image_size": (1, LARGEST_SIDE),
    "memory_image_mean": MEAN_RANGE,
    "memory_image_std": STD_RANGE,
    "prompt_length": (1, 100),
    "prompt_depth": (1, 1000),
    "prompt_std": (0, 10),
    "view_grid": (1, 16),
    "min_positive_fraction": (0, 1),
    "temperature": (0.0001, 100),
    "decoder_widths": (1, 4096),
    "pixel_loss_weight": (0, 1000),
    "image_loss_weight": (0, 1000),
    "alignment_loss_weight": (0, 1000),
    "focal_gamma": (0, 100),
    "alignment_warmup": (0, 1),
    "latent_noise": (0, 10),
    "memory_limit": (0, 1_000_000_000),
    "memory_chunk_size": (1, 2**36),
    "smoothing": (0, 1),
    "unknown_product_rate": (0, 0.5),
    "threshold": (0, 1),
}
# Of a CLIP and a memory encoder. The largest known have 48 blocks, 5,120 numbers in each token and 18 billion weights.
LARGEST_CLIP = 100_000_000_000
TOWER_RANGES = {
    "num_hidden_layers": (1, 1000),
    "hidden_size": (1, 65_536),
    "intermediate_size": (1, 1_000_000),
    "projection_dim": (1, 65_536),
}
VISION_RANGES = {"image_size": (1, LARGEST_SIDE), "patch_size": (1, LARGEST_SIDE)}
TEXT_RANGES = {"vocab_size": (1, 10_000_000), "max_position_embeddings": (1, 1_000_000)}
ENCODER_RANGES = {  # of which each kind has some
    **TOWER_RANGES,
    **VISION_RANGES,
    "num_patches": (1, LARGEST_SIDE**2),
    "mlp_ratio": (0.01, 100),
    "num_register_tokens": (0, 10_000),
}

FUSED_PARTS = ("decoder_map", "decoder", "text")  # what may be weighed beside the memory
CouplingMode = Literal["both", "text_to_vision", "vision_to_text", "uncoupled", "text_only", "vision_only", "none"]
COUPLING_MODES = get_args(CouplingMode)


@strict
class AnoPLeConfig(PreTrainedConfig):
    r"""
    Hold every size and every choice of an [`AnoPLeModel`].

    The comments [K], [I] and [U] say how well a choice is founded: known from a source about the paper, inferred from
    its relatives, or unknown and therefore ours.

    Args:
        clip_config (`CLIPConfig` or `dict`, *optional*):
            The frozen backbone. Any width, depth, patch size, activation and resolution, within what a machine can hold:
            towers of 1 to 1000 blocks, 1 to 65536 wide, images of at most 4096 pixels a side, and 100 billion weights.
        image_size (`int`, *optional*):
            Side in pixels of the square that the CLIP sees, 1 to 4096, a multiple of its patch; beyond its pretraining its
            position embeddings are interpolated. `None` takes that of its pretraining.
        memory_encoder (`PreTrainedConfig` or `dict`, *optional*):
            Another frozen vision transformer beside the CLIP, whose patches the memory holds, cut after the last block that
            is needed; as large as a CLIP may be. `None`, as in the paper: the CLIP's own prompted tower [I].
        memory_image_size (`int`, *optional*):
            Side in pixels of the square that the memory's encoder sees, 1 to 4096, a multiple of its patch. `None` takes that
            of its pretraining.
        memory_image_mean, memory_image_std (`list[float]`, *optional*):
            How the memory's encoder wants its images normalized, by color, where black is 0 and white 1: a mean of 0 to 1, a
            deviation of 0.001 to 1. Read from its own files.
        image_mean, image_std (`list[float]`, *optional*):
            How the images that come in are normalized: as the CLIP wants it. Kept where a memory's encoder needs it.
        products (`list[dict]`, *optional*):
            What is known of each product, in the order of their class ids: one `ProductRecord` each, written by the
            model's product store alone. `class_names=[...]` in its place makes products of which nothing is known yet.
        coupling (`str`, *optional*, defaults to `"both"`):
            Which prompts exist and how they meet [K]: `both` concatenates each side's prompts with the other side's
            projected ones, `text_to_vision` and `vision_to_text` do so on one side only, `uncoupled` keeps free prompts
            on both sides, `text_only` and `vision_only` prompt one tower, `none` leaves CLIP as it is.
        coupling_projection (`str`, *optional*, defaults to `"shared"`):
            One linear projection per direction for all layers, or one `per_layer` (MaPLe's habit) [U].
        prompt_length (`int`, *optional*, defaults to 4):
            Free prompt tokens per tower and layer [U], 1 to 100.
        prompt_depth (`int`, *optional*, defaults to 9):
            Number of blocks, counted from the first, whose prompt tokens are learnable [U], 1 to 1000. A tower of fewer
            blocks has them in all of its blocks.
        prompt_std (`float`, *optional*, defaults to 0.02):
            Standard deviation of the prompts' and the prefix' first values [I], 0 to 10.
        prefix (`str`, *optional*, defaults to `"token"`):
            How a view's scale is told to the vision tower [U]: one extra `token` that flows through all blocks, or
            `none`.
        view_grid (`int`, *optional*, defaults to 2):
            Training cuts the photograph, enlarged `view_grid` times, into `view_grid`² sub-images beside the global view
            [K: 2, hence N = 4], 1 to 16. 1 trains on the global view alone.
        min_positive_fraction (`float`, *optional*, defaults to 0.01):
            A view counts as anomalous for the image and alignment losses from this share of marked pixels on, and is
            left out of them between 0 and this share [U], 0 to 1.
        temperature (`float`, *optional*, defaults to 0.07):
            Softmax temperature of all text-image comparisons [U], 0.0001 to 100; CLIP's own 0.01 saturates the
            probabilities that are fused later.
        decoder_head (`str`, *optional*, defaults to `"text"`):
            `text`: probability of the abnormal against the normal text at each place of the decoded feature map [I];
            `conv`: a 1x1 convolution with two outputs.
        decoder_widths (`list[int]`, *optional*, defaults to `[128, 64]`):
            Channels of the decoder's two stages, each followed by an upsampling by 2 [U], 1 to 4096 each.
        decoder_layers (`list[int]`, *optional*):
            Vision blocks (0-based) whose patch tokens, linearly projected and summed, feed the decoder. `None` feeds it
            the final patch tokens in the joint space [U].
        pixel_loss_weight, image_loss_weight, alignment_loss_weight (`float`, *optional*, default to 1.0):
            Weights of the three losses [K: unweighted], 0 to 1000; 0 removes one.
        focal_gamma (`float`, *optional*, defaults to 2.0):
            Focusing exponent of the focal loss [I], 0 to 100.
        alignment_detach (`str`, *optional*, defaults to `"decoder"`):
            Where the alignment loss stops the gradient [U]. `none` is the literal formula, which a decoder that answers
            the same feature everywhere satisfies best; `decoder` moves only the global feature towards the local
            evidence, so that no constant can win; `map` stops only the map. With `decoder_head="conv"` the features
            learn from this loss alone, so only `none` or `map` teaches them anything.
        alignment_warmup (`float`, *optional*, defaults to 0.2):
            Share of the steps before the alignment loss sets in, 0 to 1, so that the evidence it spreads is evidence.
            The training loop reads it.
        latent_noise (`float`, *optional*, defaults to 0.015):
            Standard deviation of the Gaussian noise added to the unit-length global feature of normal views to make
            latent anomalies [U], 0 to 10. 0 turns them off.
        memory_layers (`list[int]` or `"middle"`, *optional*):
            Blocks (0-based) of the memory's encoder whose patch tokens are remembered. "middle" takes two about the middle of
            its depth, at 5 and 7 twelfths, and so does `None` for a memory encoder. For the CLIP `None` takes those that its own
            `vision_config.memory_layers` names, as the embedded CLIP's does, or else blocks 2 and 7 of 12, scaled to the
            tower's depth [I].
        tiling (`str`, *optional*):
            How photographs are cut before they are made smaller: "auto", rows and columns as "2,8", or `None`, as wholes.
        memory_rotations (`str`, *optional*, defaults to `"none"`):
            Whether the memory also holds rotated copies of normal images, for products that lie any way round:
            3 copies by `quarter_turns`, 7 by `eighth_turns`, mirrored at the border [U]. A product that lies turned the
            wrong way is then good. The look-up costs as much more as the memory grows.
        memory_limit (`int`, *optional*, defaults to 16384):
            Most patch vectors per class and layer, those of 64 photographs of 16 x 16 patches; where more would be
            remembered, those that best cover all are kept [U]. 0 or `None` keeps all; 0 to 1000000000.
        memory_chunk_size (`int`, *optional*, defaults to 8388608):
            Largest number of cosine similarities held at once (32 MiB in fp32), 1 to 68719476736.
        map_fusion (`str`, *optional*, defaults to `"harmonic"`):
            `harmonic` mean of memory and decoder map [K], both `weighted` by what a fit measured of them, or one alone:
            `memory`, `decoder`.
        image_map (`str`, *optional*, defaults to `"memory"`):
            Which map's maximum is fused with the text score of the image: `memory` (PromptAD) or `fused` (AdaptCLIP) [U].
        image_fusion (`str`, *optional*, defaults to `"harmonic"`):
            `harmonic` mean of text score and map maximum [K]; text score, decoder's and memory's maximum `weighted` by what
            a fit measured of them; or one alone: `map`, `text`.
        fusion_weights (`dict`, *optional*):
            What a unit of log odds of the `decoder_map`, of the `decoder`'s maximum and of the `text` weighs beside one of
            the memory in a `weighted` fusion, 0 to 1; `None` is 0 for all. Kept by the training program.
        smoothing (`float`, *optional*, defaults to 0.01):
            Standard deviation of the maps' Gaussian blur as a share of the image side (4 pixels of 400) [I], 0 to 1.
        class_identity (`str`, *optional*, defaults to `"given"`):
            Where the class of a photograph comes from [U]: `given` by the caller (predicted where the caller gives
            none), always `predicted`, or `pooled` (mean text embeddings and one memory over all classes).
        class_prediction (`str`, *optional*, defaults to `"prototype"`):
            How a class is predicted: nearest mean global feature of the normals (`prototype`), or nearest normal text
            embedding (`text`) [U].
        unknown_product_rate (`float`, *optional*, defaults to 0.001):
            Share of a product's own photographs that may be called an unknown product where classes are predicted [U],
            0 to 0.5. Lines are set for it when the product is fitted or enrolled; 0 turns the answer "unknown product" off.
        threshold (`float`, *optional*, defaults to 0.5):
            Calibrated score above which an image is called anomalous, 0 to 1.
        pooled_threshold (`dict`, *optional*):
            The one threshold of all products, with `class_identity="pooled"`. Kept by the model.
        fit (`dict`, *optional*):
            How the detector was fitted: shots, seed, chosen files, steps. Kept by the training program, which names
            folders without the way to them, because a detector may be published.
        clip_source (`dict`, *optional*):
            Where the backbone came from: `kind` (`embedded`, `hub`, `folder` or `model`), `name`, and for a Hub id the
            commit hash as `revision` and a `subfolder`. Kept by the model.
        memory_encoder_source (`dict`, *optional*):
            The same of the memory's encoder, and its `license` where its own card names one. Kept by the model.
        adapter_clip_sha256, memory_encoder_sha256 (`str`, *optional*):
            Only in an adapter: the hashes of the weights of CLIP and memory encoder that it was saved without. Kept by
            `save_adapter`.
        content_sha256 (`str`, *optional*):
            Names the state that was saved: a hash of all that decides an answer. Kept by the model.
        history (`list[dict]`, *optional*):
            What was enrolled, added and forgotten, when and from which files. Kept by the model.
    """

    model_type = "anople"
    _auto_class = "AutoConfig"  # a saved detector carries its own code, for `trust_remote_code=True`
    sub_configs_defaults = {
        "clip_config": CLIPConfig,
        "memory_encoder": SubConfigSpec(AutoConfig, model_type="dinov2", optional=True),
    }

    clip_config: CLIPConfig | dict | None = None  # what it is in the end first: a miss costs a text of all of it
    image_size: int | None = None
    memory_encoder: PreTrainedConfig | dict | None = None
    memory_image_size: int | None = None
    memory_image_mean: list[float] | None = None
    memory_image_std: list[float] | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    products: list[dict] | None = None
    pooled_threshold: dict | None = None
    coupling: CouplingMode = "both"
    coupling_projection: Literal["shared", "per_layer"] = "shared"
    prompt_length: int = 4
    prompt_depth: int = 9
    prompt_std: int | float = 0.02
    prefix: Literal["token", "none"] = "token"
    view_grid: int = 2
    min_positive_fraction: int | float = 0.01
    temperature: int | float = 0.07
    decoder_head: Literal["text", "conv"] = "text"
    decoder_widths: list[int] | None = None
    decoder_layers: list[int] | None = None
    pixel_loss_weight: int | float = 1.0
    image_loss_weight: int | float = 1.0
    alignment_loss_weight: int | float = 1.0
    focal_gamma: int | float = 2.0
    alignment_detach: Literal["none", "decoder", "map"] = "decoder"
    alignment_warmup: int | float = 0.2
    latent_noise: int | float = 0.015
    memory_layers: list[int] | Literal["middle"] | None = None
    tiling: str | None = None
    memory_rotations: Rotations = "none"
    memory_limit: int | None = 16_384
    memory_chunk_size: int = 8_388_608
    map_fusion: Literal["harmonic", "weighted", "memory", "decoder"] = "harmonic"
    image_map: Literal["memory", "fused"] = "memory"
    image_fusion: Literal["harmonic", "weighted", "map", "text"] = "harmonic"
    fusion_weights: dict[str, float] | None = None
    smoothing: int | float = 0.01
    class_identity: Literal["given", "predicted", "pooled"] = "given"
    class_prediction: Literal["prototype", "text"] = "prototype"
    unknown_product_rate: int | float = 0.001
    threshold: int | float = 0.5
    fit: dict | None = None
    clip_source: dict | None = None
    memory_encoder_source: dict | None = None
    adapter_clip_sha256: str | None = None
    memory_encoder_sha256: str | None = None
    content_sha256: str | None = None
    history: list[dict] | None = None
    custom_pipelines: dict | None = None  # where transformers finds the code of the pipeline

    def __post_init__(self, **kwargs):
        earlier = {name: kwargs.pop(name) for name in EARLIER_PRODUCT_FIELDS if name in kwargs}
        _refuse_removed(kwargs)
        for old, new in RENAMED.items():
            if old in kwargs:
                setattr(self, new, kwargs.pop(old))
        if isinstance(self.memory_encoder, dict):
            check_encoder_numbers(self.memory_encoder)
        super().__post_init__(**kwargs)
        check_clip_size(self.clip_config)  # which the sizes below are reckoned from
        if self.memory_encoder is not None:
            check_encoder_size(self.memory_encoder)
        self.tiling = tiling_text(self.tiling)
        self.history = list(self.history or [])
        self.custom_pipelines = CustomPipelines(PIPELINES)
        self.decoder_widths = list(self.decoder_widths or [128, 64])
        towers = (self.clip_config, self.clip_config.text_config, self.clip_config.vision_config, self.memory_encoder)
        for part in filter(None, towers):
            part.dtype = None  # the towers take the detector's; one of their own would survive loading in another
            part._name_or_path = ""  # the path of a local folder is nobody else's business
        if self.image_size is None:
            self.image_size = pretraining_side(self.clip_config.vision_config)
        if self.memory_image_size is None and self.memory_encoder is not None:
            self.memory_image_size = pretraining_side(self.memory_encoder)
        depth = self.memory_tower.num_hidden_layers
        if self.memory_layers == "middle" or (self.memory_layers is None and self.memory_encoder is not None):
            self.memory_layers = _blocks_at(depth, 5, 7)
        elif self.memory_layers is None:
            usual = _blocks_at(depth, 3, 8)
            self.memory_layers = getattr(self.memory_tower, "memory_layers", None) or usual
        if self.products is None:
            self.products = _earlier_products(earlier, patches=self.grid_size**2)
            pooled = (earlier.get("calibration") or {}).get("*")
            self.pooled_threshold = self.pooled_threshold or (pooled and _renamed_threshold(pooled))

    def validate_architecture(self):
        """Check the relations between fields; raise `ValueError` with the value received and the remedy."""
        vision = self.clip_config.vision_config
        check_ranges(self, RANGES | {"image_mean": MEAN_RANGE, "image_std": STD_RANGE})
        _require(len(self.decoder_widths) == 2, f"decoder_widths needs two numbers, got {self.decoder_widths}.")
        for name, tower in (("memory_layers", self.memory_tower), ("decoder_layers", vision)):
            depth = tower.num_hidden_layers
            wrong = [layer for layer in getattr(self, name) or [] if not 0 <= layer < depth]
            _require(not wrong, f"{name} {wrong} are no blocks of a vision tower with {depth}: use 0 to {depth - 1}.")
        _require(bool(self.memory_layers), "memory_layers names no block, so nothing could be remembered: name one.")
        if self.image_size != pretraining_side(vision):
            _require_patches("image_size", self.image_size, vision.patch_size)
        if self.memory_encoder is None:
            given = [name for name in ENCODER_FIELDS if getattr(self, name) is not None]
            _require(not given, f"{' and '.join(given)} is of a memory encoder: give memory_encoder, or leave it out.")
        else:
            _require_patches("memory_image_size", self.memory_image_size, patch_side(self.memory_encoder))
            for name in ("memory_image_mean", "memory_image_std", "image_mean", "image_std"):
                values = getattr(self, name)
                _require(
                    values is not None and len(values) == 3,
                    f"{name} must be three numbers beside a memory encoder, got {values}.",
                )
        weights = self.fusion_weights or {}
        _require(
            set(weights) <= set(FUSED_PARTS) and all(0 <= weight <= 1 for weight in weights.values()),
            f"fusion_weights must be numbers within 0 and 1 for some of {', '.join(FUSED_PARTS)}; got {weights}.",
        )
        names = self.class_names
        twice = sorted({name for name in names if names.count(name) > 1})
        _require(not twice, f"class_names must differ; these stand there more than once: {twice}.")
        broken = [name for name in names if not isinstance(name, str) or leads_elsewhere(name)]
        _require(not broken, f"class_names {broken} are no names of products: no path may stand in them.")

    @property
    def class_names(self) -> list[str]:
        """The products' names, in the order of their class ids."""
        return [product["name"] for product in self.products or []]

    @property
    def num_views(self) -> int:
        """Number of views of one training photograph: the global one and the sub-images."""
        return 1 + (self.view_grid**2 if self.view_grid > 1 else 0)

    @property
    def grid_size(self) -> int:
        """Patches of the CLIP along one side of the image."""
        return self.image_size // self.clip_config.vision_config.patch_size

    @property
    def memory_tower(self) -> PreTrainedConfig:
        """The config of the tower whose patches the memory holds: the memory's encoder, or else the CLIP's vision tower."""
        return self.memory_encoder or self.clip_config.vision_config

    @property
    def memory_side(self) -> int:
        """Side of the square that the memory's tower sees, in pixels."""
        return self.memory_image_size or self.image_size

    @property
    def memory_grid_size(self) -> int:
        """Patches of the memory's tower along one side of the image."""
        return self.memory_side // patch_side(self.memory_tower)

    @property
    def input_size(self) -> int:
        """Side of the square that comes in, in pixels: the larger of those that the two towers see."""
        return max(self.image_size, self.memory_side)

    @property
    def has_text_prompts(self) -> bool:
        """Whether the text tower has free prompts of its own."""
        return self.coupling not in ("vision_only", "none")

    @property
    def has_vision_prompts(self) -> bool:
        """Whether the vision tower has free prompts of its own."""
        return self.coupling not in ("text_only", "none")

    @property
    def text_prompt_count(self) -> int:
        """Prompt tokens in the text tower's sequence, projected ones included."""
        return self.prompt_length * (self.has_text_prompts + (self.coupling in ("both", "vision_to_text")))

    @property
    def vision_prompt_count(self) -> int:
        """Prompt tokens in the vision tower's sequence, projected ones included; the prefix is not counted."""
        return self.prompt_length * (self.has_vision_prompts + (self.coupling in ("both", "text_to_vision")))


def patch_side(tower: PreTrainedConfig) -> int:
    """Side of a vision tower's square patches, in pixels."""
    sides = tower.patch_size if isinstance(tower.patch_size, (list, tuple)) else [tower.patch_size]
    _require(
        len(set(sides)) == 1, f"A {tower.model_type} with patches of {sides} has no square ones: take another encoder."
    )
    return sides[0]


def pretraining_side(tower: PreTrainedConfig) -> int:
    """Side of the square that a vision tower was trained on, in pixels."""
    if getattr(tower, "image_size", None) is None:  # SigLIP 2 of any aspect ratio counts patches
        return round(tower.num_patches**0.5) * patch_side(tower)
    return max(tower.image_size) if isinstance(tower.image_size, (list, tuple)) else tower.image_size


def check_ranges(values: object, ranges: Mapping[str, tuple[float, float]], where: str = "") -> None:
    """
    Refuse numbers out of range; those that are not there pass, and of a list each counts.

    Args:
        values: holds a field for each name in `ranges`.
        ranges: the least and the greatest value, both allowed.
        where: what holds the fields, for the message.

    Raises:
        ValueError: naming the field, its range and the value.
    """
    for name, limits in ranges.items():
        given = getattr(values, name)
        for value in given if isinstance(given, (list, tuple)) else [given]:
            if value is not None:
                check_range(f"{where}{name}", value, limits)


def check_range(name: str, value: float, limits: tuple[float, float]) -> None:
    """Refuse a number outside the least and the greatest value, both allowed; a `ValueError` names it."""
    low, high = limits
    if not low <= value <= high:  # NaN lies nowhere
        raise ValueError(f"{name} must lie within {low} and {high}, got {value}.")


def check_clip_size(clip: CLIPConfig) -> None:
    """Refuse a CLIP that no machine can hold, before anything is made of it; a `ValueError` names the field and its range."""
    weights = 0
    for name, ranges in (("text_config", TEXT_RANGES), ("vision_config", VISION_RANGES)):
        tower = getattr(clip, name)
        check_ranges(tower, TOWER_RANGES | ranges, f"{name}.")
        weights += _block_weights(tower, tower.intermediate_size)
    check_ranges(clip, {"projection_dim": TOWER_RANGES["projection_dim"]}, "clip_config.")
    _require(weights <= LARGEST_CLIP, f"The CLIP has {weights} weights, and {LARGEST_CLIP} are the most it may have.")


def check_encoder_numbers(values: Mapping) -> None:
    """
    Refuse a memory encoder with a number out of range, by what stands in its config.json.

    A config must not be made of it first: some kinds write a list with the name of each block.

    Raises:
        ValueError: naming the field, its range and the value.
    """
    numbers = {name: values[name] for name in ENCODER_RANGES if isinstance(values.get(name), (int, float))}
    check_ranges(SimpleNamespace(**numbers), {name: ENCODER_RANGES[name] for name in numbers}, "memory_encoder.")


def check_encoder_size(encoder: PreTrainedConfig, name: str = "memory_encoder") -> None:
    """Refuse what is no vision transformer, or one that no machine can hold, as [`check_clip_size`] does; `name` says whose."""
    sizes = [getattr(encoder, field, None) for field in ("num_hidden_layers", "hidden_size")]
    _require(
        hasattr(encoder, "patch_size") and all(isinstance(size, int) for size in sizes),
        f"{name} is a {encoder.model_type}, no vision transformer with a grid of patches: give another memory_encoder, such as "
        "facebook/dinov2-small.",
    )
    known = {field: limits for field, limits in ENCODER_RANGES.items() if hasattr(encoder, field)}
    check_ranges(encoder, known, "memory_encoder.")
    inner = getattr(encoder, "intermediate_size", None) or getattr(encoder, "mlp_ratio", 4) * encoder.hidden_size
    weights = _block_weights(encoder, inner)
    _require(
        weights <= LARGEST_CLIP,
        f"The memory encoder has {weights:.0f} weights, and {LARGEST_CLIP} are the most it may have.",
    )


def _block_weights(tower: PreTrainedConfig, inner: float) -> float:
    """Count the weights of a tower's blocks, whose perceptrons are `inner` wide."""
    return tower.num_hidden_layers * tower.hidden_size * (4 * tower.hidden_size + 2 * inner)


def leads_elsewhere(name: str) -> bool:
    """Say whether a name, taken for that of a file, would lead out of its folder."""
    return name in (".", "..") or any(mark in name for mark in "/\\\0")


def _blocks_at(depth: int, *twelfths: int) -> list[int]:
    """Return the blocks (0-based) of a tower after which so many twelfths of its depth are done."""
    return sorted({max(0, round(depth * each / 12) - 1) for each in twelfths})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_patches(name: str, side: int, patch: int) -> None:
    near = max(1, round(side / patch)) * patch
    _require(
        side >= patch and side % patch == 0,
        f"{name} must be a multiple of the patches' {patch} pixels, got {side}: take {near}.",
    )


def what_became_of(option: str) -> str | None:
    """Say in one sentence what became of an option of an earlier version; `None` for any other word."""
    if option in RENAMED:
        return f"{option} is called {RENAMED[option]} now."
    if option in REMOVED:
        return f"{option} is no longer there, as no table of the paper needs it and none of ours on the shipped weights shows that it helps: leave it out (it is {REMOVED[option]!r} now)."
    return None


def _refuse_removed(values: dict) -> None:
    """Drop options that are gone from a config's keywords, in place; refuse a value that would change the answers."""
    for name, only in REMOVED.items():
        if name in values and (value := values.pop(name)) != only:
            raise ValueError(
                f"{name}={value!r}: {what_became_of(name)} A detector that was fitted with it needs anople 0.1."
            )


def _earlier_products(earlier: dict, *, patches: int) -> list[dict]:
    """Make products of names alone, or of what version 0.1 kept of them."""
    names = earlier.get("class_names") or []
    _require(not isinstance(names, str), f"class_names must be a list of names, got {names!r}.")
    sizes = earlier.get("memory_sizes") or [0] * len(names)
    boxes = earlier.get("memory_boxes") or [False] * len(names)
    for field, values in (("memory_sizes", sizes), ("memory_boxes", boxes)):
        _require(
            len(values) == len(names), f"{field} has {len(values)} entries for {len(names)} classes: give one each."
        )
    counts = earlier.get("memory_photographs")
    if counts is None:  # saved before it was kept: whole images
        counts = [[min(patches, size - start) for start in range(0, size, patches)] for size in sizes]
    counted = [sum(vectors) for vectors in counts]
    _require(
        counted == sizes, f"memory_photographs adds up to {counted}, but memory_sizes is {sizes}: give that alone."
    )
    tilings, masks = earlier.get("product_tilings") or {}, earlier.get("ignore_mask_sizes") or {}
    thresholds = earlier.get("calibration") or {}
    return [
        {
            "name": name,
            "image_vectors": list(vectors),
            "has_boxes": bool(boxed),
            "tiling": tilings.get(name, "same"),
            "ignore_mask_size": masks.get(name),
            "threshold": _renamed_threshold(thresholds[name]) if name in thresholds else None,
        }
        for name, vectors, boxed in zip(names, counts, boxes, strict=True)
    ]


def _renamed_threshold(line: dict) -> dict:
    """Give the fields of a version 0.1 line their names of today."""
    return {EARLIER_THRESHOLD_FIELDS.get(name, name): value for name, value in line.items() if name != "memory_scale"}


__all__ = [
    "COUPLING_MODES",
    "LARGEST_SIDE",
    "PIPELINES",
    "RANGES",
    "REMOVED",
    "RENAMED",
    "TASK",
    "AnoPLeConfig",
    "CustomPipelines",
    "check_clip_size",
    "check_encoder_numbers",
    "check_encoder_size",
    "check_range",
    "check_ranges",
    "leads_elsewhere",
    "patch_side",
    "pretraining_side",
    "what_became_of",
]
