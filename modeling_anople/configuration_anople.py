"""Configuration of AnoPLe: one strict dataclass in which every choice that the paper leaves open is a field."""

import copy
from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY

from .tiling_anople import MemoryCopies, tiling_text


# --- The pipeline task, as a detector's `config.json` tells transformers of it ---


TASK = "image-anomaly-detection"
PIPELINES = {TASK: {"impl": "pipeline_anople.AnomalyDetectionPipeline", "pt": ["AutoModel"], "type": "image"}}


class CustomPipelines(dict):
    """
    The entry `custom_pipelines` of a config: where `transformers.pipeline` finds the task's code in a detector's folder.

    `pipeline` wants `trust_remote_code=True` for each task that is found in here, even where this package is installed
    and has registered it, and writes classes, which no JSON file can hold, into the entry that it looks up. So a task
    that is registered is not found, and what is looked up is a copy.
    """

    def __contains__(self, task: Any) -> bool:
        return super().__contains__(task) and task not in PIPELINE_REGISTRY.supported_tasks

    def __getitem__(self, task: str) -> dict:
        return copy.deepcopy(super().__getitem__(task))


# --- The relations between the fields of an `AnoPLeConfig` ---


def check_relations(config: Any) -> None:
    """Raise `ValueError` with the value received and the remedy where fields of a config do not fit together."""
    depth = config.clip_config.vision_config.num_hidden_layers
    _require(config.view_grid >= 1, f"view_grid must be at least 1, got {config.view_grid}.")
    _require(config.prompt_length >= 1, f"prompt_length must be at least 1, got {config.prompt_length}.")
    _require(config.prompt_depth >= 1, f"prompt_depth must be at least 1, got {config.prompt_depth}.")
    _require(config.temperature > 0, f"temperature must be positive, got {config.temperature}.")
    _require(0 < config.decoder_prior < 1, f"decoder_prior is a probability, got {config.decoder_prior}.")
    _require(len(config.decoder_widths) == 2, f"decoder_widths needs two numbers, got {config.decoder_widths}.")
    for name in ("memory_layers", "decoder_layers"):
        wrong = [layer for layer in getattr(config, name) or [] if not 0 <= layer < depth]
        _require(not wrong, f"{name} {wrong} are no blocks of a vision tower with {depth}: use 0 to {depth - 1}.")
    _require(
        0 <= config.value_attention_layers <= depth,
        f"value_attention_layers must lie within 0 and {depth}, got {config.value_attention_layers}.",
    )
    twice = sorted({name for name in config.class_names if config.class_names.count(name) > 1})
    _require(not twice, f"class_names must differ; these stand there more than once: {twice}.")
    _require(
        len(config.memory_sizes) == len(config.class_names),
        f"memory_sizes has {len(config.memory_sizes)} numbers for {len(config.class_names)} classes: give one for each.",
    )
    _require(
        len(config.memory_boxes) == len(config.class_names),
        f"memory_boxes has {len(config.memory_boxes)} entries for {len(config.class_names)} classes: give one for each.",
    )
    counted = [sum(counts) for counts in config.memory_photographs]
    _require(
        counted == config.memory_sizes,
        f"memory_photographs adds up to {counted}, but memory_sizes is {config.memory_sizes}: give memory_sizes alone.",
    )
    _require(
        (config.memory_limit or 0) >= 0,
        f"memory_limit must not be negative (0 or None is no limit), got {config.memory_limit}.",
    )
    _require(
        not (config.decoder_layers and config.latent_noise_target == "patches"),
        "latent_noise_target='patches' disturbs final patch tokens, but decoder_layers feeds the decoder others: "
        "use 'global'.",
    )
    prefix_needs = config.prefix == "add" and config.vision_prompt_count == 0
    _require(
        not prefix_needs,
        f"prefix='add' needs visual prompts, but coupling={config.coupling!r} has none: use 'token'.",
    )
    _require(
        not (config.fusion_scale == "normal" and config.class_identity == "pooled"),
        "fusion_scale='normal' divides by the largest distance of a class' own normals, but class_identity='pooled' "
        "knows no class: use fusion_scale='raw'.",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# --- Configuration of AnoPLe: one strict dataclass in which every choice that the paper leaves open is a field ---


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
            The frozen backbone. Any width, depth, patch size, activation and resolution.
        class_names (`list[str]`, *optional*):
            The products, in the order of their class ids.
        coupling (`str`, *optional*, defaults to `"both"`):
            Which prompts exist and how they meet [K]: `both` concatenates each side's prompts with the other side's
            projected ones, `text_to_vision` and `vision_to_text` do so on one side only, `uncoupled` keeps free prompts
            on both sides, `text_only` and `vision_only` prompt one tower, `none` leaves CLIP as it is.
        coupling_projection (`str`, *optional*, defaults to `"shared"`):
            One linear projection per direction for all layers, or one `per_layer` (MaPLe's habit) [U].
        prompt_length (`int`, *optional*, defaults to 4):
            Free prompt tokens per tower and layer [U].
        prompt_depth (`int`, *optional*, defaults to 9):
            Number of blocks, counted from the first, whose prompt tokens are learnable [U].
        prompt_std (`float`, *optional*, defaults to 0.02):
            Standard deviation of the prompts' and the prefix' first values [I].
        prefix (`str`, *optional*, defaults to `"token"`):
            How a view's scale is told to the vision tower [U]: one extra `token` that flows through all blocks, a
            `deep_token` set anew at every prompted block, `add` to each visual prompt, or `none`.
        view_grid (`int`, *optional*, defaults to 2):
            Training cuts the photograph, enlarged `view_grid` times, into `view_grid`² sub-images beside the global view
            [K: 2, hence N = 4]. 1 trains on the global view alone.
        sub_image_losses (`str`, *optional*, defaults to `"all"`):
            Which losses the sub-images receive [U]: `all` or `pixel`.
        min_positive_fraction (`float`, *optional*, defaults to 0.01):
            A view counts as anomalous for the image and alignment losses from this share of marked pixels on, and is
            left out of them between 0 and this share [U].
        value_attention_layers (`int`, *optional*, defaults to 0):
            Number of last vision blocks in which patch tokens take a second path with value-value attention (as in
            PromptAD). 0 is off; the decoder replaces its role [U].
        temperature (`float`, *optional*, defaults to 0.07):
            Softmax temperature of all text-image comparisons [U]; CLIP's own 0.01 saturates the probabilities that are
            fused later.
        decoder_head (`str`, *optional*, defaults to `"text"`):
            `text`: probability of the abnormal against the normal text at each place of the decoded feature map [I];
            `conv`: a 1x1 convolution with two outputs.
        decoder_widths (`list[int]`, *optional*, defaults to `[128, 64]`):
            Channels of the decoder's two stages, each followed by an upsampling by 2 [U].
        decoder_layers (`list[int]`, *optional*):
            Vision blocks (0-based) whose patch tokens, linearly projected and summed, feed the decoder. `None` feeds it
            the final patch tokens in the joint space [U].
        decoder_input (`str`, *optional*, defaults to `"centred"`):
            `centred` takes each image's mean over places off its patch tokens and scales them to unit variance, because
            all patch tokens of a CLIP share one large component that convolutions learn slowly around; `unit` only
            scales tokens to unit length [U]. On made defects over held-back normals (150 steps, small random CLIP)
            pixel AUROC against shuffled maps was 0.600 against 0.514 centred, 0.559 against 0.521 otherwise.
        decoder_prior (`float`, *optional*, defaults to 0.03):
            Anomaly probability that an untrained `conv` head answers everywhere. About the share of marked pixels, so
            that the focal loss does not spend its first hundreds of steps on finding it.
        pixel_loss_weight, image_loss_weight, alignment_loss_weight (`float`, *optional*, default to 1.0):
            Weights of the three losses [K: unweighted]; 0 removes one.
        focal_gamma (`float`, *optional*, defaults to 2.0):
            Focusing exponent of the focal loss [I].
        dice_views (`str`, *optional*, defaults to `"positive"`):
            `positive`: Dice on views with a non-empty mask only, because Dice on an empty mask rests near 1 with hardly
            a gradient and most views are empty; `all`: on every view.
        dice_symmetric (`bool`, *optional*, defaults to `False`):
            Add the Dice of the normal region, as AnomalyCLIP does [U].
        alignment_detach (`str`, *optional*, defaults to `"decoder"`):
            Where the alignment loss stops the gradient [U]. `none` is the literal formula, which a decoder that answers
            the same feature everywhere satisfies best; `decoder` moves only the global feature towards the local
            evidence, so that no constant can win; `map` stops only the map. With `decoder_head="conv"` the features
            learn from this loss alone, so only `none` or `map` teaches them anything.
        alignment_warmup (`float`, *optional*, defaults to 0.2):
            Share of the steps before the alignment loss sets in, so that the evidence it spreads is evidence. The
            training loop reads it.
        latent_noise (`float`, *optional*, defaults to 0.015):
            Standard deviation of the Gaussian noise added to the unit-length global feature of normal views to make
            latent anomalies [U]. 0 turns them off.
        latent_noise_target (`str`, *optional*, defaults to `"global"`):
            `global`, or `patches`: also unit-length patch tokens of normal views, as wholly anomalous maps [U].
        memory_layers (`list[int]`, *optional*):
            Vision blocks (0-based) whose patch tokens are remembered. `None` takes blocks 2 and 7 of 12, scaled to the
            tower's depth [I].
        memory_features (`str`, *optional*, defaults to `"prompted"`):
            Remember and compare features of the prompted pass, or of a second, `frozen` pass at twice the cost [I].
        memory_sizes (`list[int]`, *optional*):
            Remembered patch vectors per class and layer. Kept by the model; sizes the buffers on loading.
        memory_photographs (`list[list[int]]`, *optional*):
            How many of them are each photograph's, in the order in which photographs were added. Kept by the model.
        memory_boxes (`list[bool]`, *optional*):
            Whether it is known, for each class, which part of its photograph a vector saw. Kept by the model.
        tiling (`str`, *optional*):
            How photographs are cut before they are made smaller: "auto", rows and columns as "2,8", or `None`, as wholes.
        product_tilings (`dict`, *optional*):
            The same for products that were enrolled with a setting of their own. Kept by the model.
        memory_copies (`str`, *optional*, defaults to `"none"`):
            Whether the memory also holds turned copies of good photographs, for products that lie any way round:
            3 copies by `quarter_turns`, 7 by `eighth_turns`, mirrored at the border [U]. A product that lies turned the
            wrong way is then good. The look-up costs as much more as the memory grows.
        ignore_mask_sizes (`dict`, *optional*):
            Height and width of the ignore masks that products keep, by name. Kept by the model; sizes the buffers.
        memory_limit (`int`, *optional*, defaults to 16384):
            Most patch vectors per class and layer, those of 64 photographs of 16 x 16 patches; where more would be
            remembered, those that best cover all are kept [U]. 0 or `None` keeps all.
        memory_chunk_size (`int`, *optional*, defaults to 8388608):
            Largest number of cosine similarities held at once (32 MiB in fp32).
        map_fusion (`str`, *optional*, defaults to `"harmonic"`):
            `harmonic` mean of memory and decoder map [K], or one alone: `memory`, `decoder`.
        fusion_scale (`str`, *optional*, defaults to `"raw"`):
            `raw` memory distances enter the mean [K]; `normal` divides them by the largest distance seen on the class'
            own normals (leave-one-out), clipped to 1, so that both parts of the mean have one scale [U].
        image_map (`str`, *optional*, defaults to `"memory"`):
            Which map's maximum is fused with the text score of the image: `memory` (PromptAD) or `fused` (AdaptCLIP) [U].
        image_fusion (`str`, *optional*, defaults to `"harmonic"`):
            `harmonic` mean of text score and map maximum [K], or one alone: `map`, `text`.
        smoothing (`float`, *optional*, defaults to 0.01):
            Standard deviation of the maps' Gaussian blur as a share of the image side (4 pixels of 400) [I].
        class_identity (`str`, *optional*, defaults to `"given"`):
            Where the class of a photograph comes from [U]: `given` by the caller (predicted where the caller gives
            none), always `predicted`, or `pooled` (mean text embeddings and one memory over all classes).
        class_prediction (`str`, *optional*, defaults to `"prototype"`):
            How a class is predicted: nearest mean global feature of the normals (`prototype`), or nearest normal text
            embedding (`text`) [U].
        unknown_product_rate (`float`, *optional*, defaults to 0.001):
            Share of a product's own photographs that may be called an unknown product where classes are predicted [U].
            Lines are set for it when the product is fitted or enrolled; 0 turns the answer "unknown product" off.
        threshold (`float`, *optional*, defaults to 0.5):
            Calibrated score above which a photograph is called anomalous.
        calibration (`dict`, *optional*):
            Per class the line found from its normals. Floats in the config, because a half-precision model would round
            them. Kept by the model.
        fit (`dict`, *optional*):
            How the detector was fitted: shots, seed, chosen files, steps. Kept by the training program, which names
            folders without the way to them, because a detector may be published.
        clip_source (`dict`, *optional*):
            Where the backbone came from: `kind` (`embedded`, `hub`, `folder` or `model`), `name`, and for a Hub id the
            commit hash as `revision` and a `subfolder`. Kept by the model.
        adapter_clip_sha256 (`str`, *optional*):
            Only in an adapter: the hash of the CLIP weights that it was saved without. Kept by `save_adapter`.
        history (`list[dict]`, *optional*):
            What was enrolled, added and forgotten, when and from which files. Kept by the model.
    """

    model_type = "anople"
    _auto_class = "AutoConfig"  # a saved detector carries its own code, for `trust_remote_code=True`
    sub_configs_defaults = {"clip_config": CLIPConfig}

    clip_config: dict | CLIPConfig | None = None
    class_names: list[str] | None = None
    coupling: CouplingMode = "both"
    coupling_projection: Literal["shared", "per_layer"] = "shared"
    prompt_length: int = 4
    prompt_depth: int = 9
    prompt_std: int | float = 0.02
    prefix: Literal["token", "deep_token", "add", "none"] = "token"
    view_grid: int = 2
    sub_image_losses: Literal["all", "pixel"] = "all"
    min_positive_fraction: int | float = 0.01
    value_attention_layers: int = 0
    temperature: int | float = 0.07
    decoder_head: Literal["text", "conv"] = "text"
    decoder_widths: list[int] | None = None
    decoder_layers: list[int] | None = None
    decoder_input: Literal["centred", "unit"] = "centred"
    decoder_prior: int | float = 0.03
    pixel_loss_weight: int | float = 1.0
    image_loss_weight: int | float = 1.0
    alignment_loss_weight: int | float = 1.0
    focal_gamma: int | float = 2.0
    dice_views: Literal["positive", "all"] = "positive"
    dice_symmetric: bool = False
    alignment_detach: Literal["none", "decoder", "map"] = "decoder"
    alignment_warmup: int | float = 0.2
    latent_noise: int | float = 0.015
    latent_noise_target: Literal["global", "patches"] = "global"
    memory_layers: list[int] | None = None
    memory_features: Literal["prompted", "frozen"] = "prompted"
    memory_sizes: list[int] | None = None
    memory_photographs: list[list[int]] | None = None
    memory_boxes: list[bool] | None = None
    tiling: str | None = None
    product_tilings: dict | None = None
    memory_copies: MemoryCopies = "none"
    ignore_mask_sizes: dict | None = None
    memory_limit: int | None = 16_384
    memory_chunk_size: int = 8_388_608
    map_fusion: Literal["harmonic", "memory", "decoder"] = "harmonic"
    fusion_scale: Literal["raw", "normal"] = "raw"
    image_map: Literal["memory", "fused"] = "memory"
    image_fusion: Literal["harmonic", "map", "text"] = "harmonic"
    smoothing: int | float = 0.01
    class_identity: Literal["given", "predicted", "pooled"] = "given"
    class_prediction: Literal["prototype", "text"] = "prototype"
    unknown_product_rate: int | float = 0.001
    threshold: int | float = 0.5
    calibration: dict | None = None
    fit: dict | None = None
    clip_source: dict | None = None
    adapter_clip_sha256: str | None = None
    history: list[dict] | None = None
    custom_pipelines: dict | None = None  # where transformers finds the code of the pipeline

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.class_names = list(self.class_names or [])
        self.memory_sizes = list(self.memory_sizes or [0] * len(self.class_names))
        self.memory_boxes = list(self.memory_boxes or [False] * len(self.class_names))
        self.tiling = tiling_text(self.tiling)
        self.product_tilings = dict(self.product_tilings or {})
        self.ignore_mask_sizes = dict(self.ignore_mask_sizes or {})
        self.history = list(self.history or [])
        self.custom_pipelines = CustomPipelines(PIPELINES)
        self.decoder_widths = list(self.decoder_widths or [128, 64])
        self.calibration = dict(self.calibration or {})
        for part in (self.clip_config, self.clip_config.text_config, self.clip_config.vision_config):
            part.dtype = None  # the towers take the detector's; one of their own would survive loading in another
            part._name_or_path = ""  # the path of a local folder is nobody else's business
        if self.memory_photographs is None:  # saved before it was kept: whole photographs
            patches = self.grid_size**2
            self.memory_photographs = [
                [min(patches, size - start) for start in range(0, size, patches)] for size in self.memory_sizes
            ]
        if self.memory_layers is None:
            depth = self.clip_config.vision_config.num_hidden_layers
            self.memory_layers = sorted({max(0, round(depth * place) - 1) for place in (3 / 12, 8 / 12)})

    def validate_architecture(self):
        """Check the relations between fields; raise `ValueError` with the value received and the remedy."""
        check_relations(self)

    @property
    def num_views(self) -> int:
        """Number of views of one training photograph: the global one and the sub-images."""
        return 1 + (self.view_grid**2 if self.view_grid > 1 else 0)

    @property
    def image_size(self) -> int:
        """Side of the square that the vision tower sees, in pixels."""
        return self.clip_config.vision_config.image_size

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.clip_config.vision_config.patch_size

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


__all__ = [
    "AnoPLeConfig",
    "COUPLING_MODES",
    "CustomPipelines",
    "PIPELINES",
    "TASK",
    "check_relations",
]
