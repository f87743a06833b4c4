"""AnoPLe: one frozen CLIP, prompts for both towers, a small decoder and a memory of good photographs."""

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .backbone_anople import (
    HUB_ARGUMENTS,
    MemoryEncoder,
    TowerInput,
    clip_normalization,
    clip_source,
    describe_source,
    encoder_license,
    encoder_normalization,
    load_clip,
    load_encoder_config,
    load_memory_encoder,
    pin_revision,
    without_later_blocks,
)
from .checkpoint_anople import CheckpointMixin
from .configuration_anople import AnoPLeConfig, what_became_of
from .decoding_anople import AnomalyDecoder, probability_of_second
from .images_anople import ignored_patches
from .losses_anople import Answers, detector_losses, loss_weights, total_loss, view_labels
from .memory_anople import MemoryBank, memory_distances
from .product_store_anople import Product, ProductStore, new_name
from .prompting_anople import (
    BidirectionalPrompts,
    ScalePrefix,
    VisionFeatures,
    class_prompt_ids,
    encode_image,
    encode_text,
)
from .scoring_anople import AnoPLeOutput, Detector, fuse_scores


# Verbs that were methods of the model: they need the processor too, and are verbs of the detector, which has both.
VERBS = {name: name for name in ("enroll", "add_normals", "calibrate", "forget", "set_ignore_mask")}
VERBS |= {"refine_line": "calibrate", "remember": "enroll"}


class AnoPLePreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the model: names, attention back ends and first values."""

    config: AnoPLeConfig
    base_model_prefix = "anople"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = (
        False  # its layers checkpoint in training mode only, and CLIP stays in evaluation mode
    )
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "CLIPVisionEmbeddings"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": CLIPEncoderLayer, "attentions": CLIPAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)  # torch's own start, as in MaPLe
        elif isinstance(module, (BidirectionalPrompts, ScalePrefix, TowerInput)):
            module.reset_parameters()
        elif isinstance(module, AnomalyDecoder):
            module.reset_head()
        elif isinstance(module, (MemoryBank, Product)):
            for buffer in module.buffers(recurse=False):
                init.zeros_(buffer)


class AnoPLeModel(CheckpointMixin, AnoPLePreTrainedModel, Detector):
    """
    Few-shot multi-class anomaly detection with bidirectional prompts on a frozen CLIP.

    Start one with [`AnoPLeModel.from_clip`], fit it with `accelerate launch -m modeling_anople.training`, and load it
    with [`AnoPLeModel.from_pretrained`]. Prediction runs the vision tower once; the text side is stored. Products are
    enrolled, and images of any kind judged, by `pipeline("image-anomaly-detection", ...)`.
    """

    _auto_class = "AutoModel"

    def __init__(
        self, config: AnoPLeConfig, clip: CLIPModel | None = None, memory_encoder: PreTrainedModel | None = None
    ):
        super().__init__(config)
        self.clip = CLIPModel(config.clip_config) if clip is None else clip
        self.clip_input = TowerInput(config.input_size, config.image_size)
        self.memory_encoder = None if config.memory_encoder is None else MemoryEncoder(config, memory_encoder)
        self.prompts = BidirectionalPrompts(config)
        self.prefix = None if config.prefix == "none" else ScalePrefix(config)
        self.decoder = AnomalyDecoder(config)
        self.products = ProductStore(config)
        self.post_init()

    def __getattr__(self, name: str):
        if name in VERBS or name == "as_pipeline":
            what = (
                f"{VERBS[name]} is a verb of the detector" if name in VERBS else "The model is a part of the detector"
            )
            raise AttributeError(
                f"{what}, which has model and processor: "
                'detector = pipeline("image-anomaly-detection", FOLDER), or AnomalyDetectionPipeline(model, processor=...).'
            )
        return super().__getattr__(name)

    @classmethod
    def from_clip(
        cls,
        clip: str | CLIPModel,
        class_names: list[str],
        *,
        tokenizer=None,
        memory_encoder: str | PreTrainedModel | None = None,
        memory_encoder_revision: str | None = None,
        **kwargs,
    ) -> "AnoPLeModel":
        """
        Wrap a CLIP in a new, unfitted detector.

        Args:
            clip: `"mini"` for the embedded one, a Hub id or folder of a `CLIPModel`, or the model itself.
            class_names: the products; their words go into the prompts.
            tokenizer: the CLIP's tokenizer; loaded from `clip` when that is a name.
            memory_encoder: another vision transformer, whose patches the memory holds in the place of the CLIP's: a Hub id,
                a folder, or the model itself (which comes without its normalization: give `memory_image_mean` and
                `memory_image_std`).
            memory_encoder_revision: branch, tag or commit of a memory encoder on the Hub.
            kwargs: fields of [`AnoPLeConfig`], and for a name also `revision`, `cache_dir`, `token`, `local_files_only`.

        Raises:
            ValueError: for an unknown keyword or a wrong value, no class, a model without a tokenizer, a name that cannot be
                found, or a memory encoder without a square grid of patches.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        unknown = sorted(set(kwargs) - set(AnoPLeConfig.__annotations__))
        if unknown:
            became = " ".join(filter(None, map(what_became_of, unknown))) or "See its docstring."
            raise ValueError(f"from_clip got {unknown}, which are no fields of AnoPLeConfig. {became}")
        if not class_names or isinstance(class_names, str):
            raise ValueError(f"from_clip needs a list with at least one class name, got {class_names!r}.")
        if isinstance(clip, CLIPModel) and tokenizer is None:
            raise ValueError("from_clip got a CLIPModel without its tokenizer: pass tokenizer=... too.")
        for number, each in enumerate(class_names):  # the config refuses a name that stands there twice
            new_name(each, [other for other in class_names[:number] if other != each])
        # 1. The CLIP, and where it came from: a detector can name it, and an adapter finds it again.
        name = clip
        if not isinstance(clip, CLIPModel):
            hub = pin_revision(clip_source(clip), hub)
            clip, tokenizer = load_clip(clip, tokenizer, **hub)
        kwargs["clip_source"] = describe_source(name, clip, hub.get("revision"), hub.get("subfolder"))
        # 2. The memory's own encoder, where there is one: what it is, and how it wants its images.
        access = {key: hub[key] for key in ("cache_dir", "token", "local_files_only", "force_download") if key in hub}
        if memory_encoder is None and memory_encoder_revision is not None:
            raise ValueError(
                f"memory_encoder_revision {memory_encoder_revision} is of no encoder: give memory_encoder too."
            )
        if memory_encoder is not None:
            own_hub = access
            if not isinstance(memory_encoder, PreTrainedModel):
                own_hub = pin_revision(str(memory_encoder), access | {"revision": memory_encoder_revision})
            kwargs |= cls._encoder_fields(memory_encoder, own_hub, kwargs)
            mean, deviation = clip_normalization(name, **hub)
            kwargs = {"image_mean": mean, "image_std": deviation} | kwargs
        # 3. The network around both, which takes them as they are.
        try:
            config = AnoPLeConfig(clip_config=clip.config.to_dict(), class_names=list(class_names), **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__)) from error
        encoder = None
        if memory_encoder is not None:
            config.memory_encoder = without_later_blocks(config.memory_encoder, max(config.memory_layers) + 1)
            encoder = load_memory_encoder(memory_encoder, config, **own_hub)
        model = cls(config, clip=clip, memory_encoder=encoder).to(clip.device, clip.dtype).eval()
        # 4. The two texts of each product.
        for product in model.products:
            product.prompt_ids = model.tokenize_class(product.name, tokenizer)
        model.store_text_embeddings()
        return model

    @staticmethod
    def _encoder_fields(encoder: str | PreTrainedModel, hub: dict, given: dict) -> dict:
        """Read from a memory encoder the fields of the config that tell of it; `given` ones stay."""
        fields = {"memory_encoder": load_encoder_config(encoder, **hub)}
        if isinstance(encoder, PreTrainedModel):
            source = describe_source(encoder, encoder)
        else:
            source = describe_source(encoder, None, hub.get("revision")) | {"license": encoder_license(encoder, **hub)}
            names = ("memory_image_mean", "memory_image_std")
            if missing := [name for name in names if given.get(name) is None]:
                known = dict(zip(names, encoder_normalization(encoder, **hub), strict=True))
                fields |= {name: known[name] for name in missing}
        return fields | {"memory_encoder_source": source}

    def get_input_embeddings(self) -> nn.Module:
        """Return what embeds the input, which is pixels: the convolution that cuts an image into patches."""
        return self.clip.vision_model.embeddings.patch_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another layer in the place of [`get_input_embeddings`]."""
        self.clip.vision_model.embeddings.patch_embedding = value

    def train(self, mode: bool = True) -> "AnoPLeModel":
        """Switch the learnable parts; the frozen CLIP and memory encoder stay in evaluation mode."""
        super().train(mode)
        for tower in self.frozen_towers:
            tower.eval()
        return self

    def freeze_clip(self) -> "AnoPLeModel":
        """Stop gradients into the weights of CLIP and memory encoder. Call it before training; loading undoes it."""
        for tower in self.frozen_towers:
            tower.requires_grad_(False)
        return self

    @property
    def frozen_towers(self) -> list[nn.Module]:
        """The CLIP and, where there is one, the memory's encoder."""
        return [self.clip] if self.memory_encoder is None else [self.clip, self.memory_encoder]

    def tokenize_class(self, class_name: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Tokenize the normal and the abnormal prompt of a product: (2, length), on the model's device."""
        length = self.config.clip_config.text_config.max_position_embeddings
        count = self.config.text_prompt_count
        return class_prompt_ids(tokenizer, [class_name], prompt_count=count, max_length=length).to(self.device)

    def embed_text(self, prompt_ids: Tensor | None = None) -> Tensor:
        """Embed prompts (2 x classes, length), by default of all products: unit length (classes, 2, width), with gradient."""
        text_prompts, _ = self.prompts()
        ids = self.products.prompt_ids() if prompt_ids is None else prompt_ids
        ends = (ids == ids[:, -1:]).int().argmax(1)  # rows are filled up with the end token
        embeddings = encode_text(self.clip, ids[:, : int(ends.max()) + 1], prompts=text_prompts)
        return F.normalize(embeddings, dim=-1).unflatten(0, (-1, 2))

    @torch.no_grad()
    def store_text_embeddings(self) -> None:
        """Keep the products' text embeddings, so that prediction needs neither the text tower nor a tokenizer."""
        for product, embeddings in zip(self.products, self.embed_text().detach(), strict=True):
            # a copy for each: rows of one storage could not be saved as an adapter
            product.text_embeddings = embeddings.to(product.text_embeddings, copy=True)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def encode_image(self, pixel_values: Tensor, view_ids: Tensor | None = None, **kwargs) -> VisionFeatures:
        """Encode views (batch, 3, side, side); `view_ids` (batch,) names their scale, 0 (the default) is global."""
        return self.prompted_pass(pixel_values, view_ids)

    def prompted_pass(self, pixel_values: Tensor, view_ids: Tensor | None = None) -> VisionFeatures:
        """Do as [`encode_image`], which also hands out hidden states and attentions, in a form that can be traced."""
        _, vision_prompts = self.prompts()
        if view_ids is None:
            batch = pixel_values.shape[0]  # `len` would fix it in a graph
            view_ids = torch.zeros(batch, dtype=torch.long, device=pixel_values.device)
        return encode_image(
            self.clip,
            self.clip_input(pixel_values),
            prompts=vision_prompts,
            prefix=None if self.prefix is None else self.prefix(view_ids),
            out_indices=(*(self.config.memory_layers if self.memory_encoder is None else ()), *self.decoder.layers),
        )

    def embed_image(self, pixel_values: Tensor) -> Tensor:
        """Embed images (batch, 3, side, side) as wholes: unit length (batch, joint width)."""
        return F.normalize(self.encode_image(pixel_values).pooled, dim=-1)

    def memory_features(self, pixel_values: Tensor, features: VisionFeatures | None = None) -> Tensor:
        """
        Describe images (batch, 3, side, side) as the memory does: unit-length patch features (layers, batch, patches, width).

        Args:
            features: what [`encode_image`] says of them, where that is known: without an encoder of its own the memory takes
                them from there.
        """
        if self.memory_encoder is not None:
            layers = self.memory_encoder(pixel_values)
        else:
            features = self.encode_image(pixel_values) if features is None else features
            layers = [features.intermediate[layer] for layer in self.config.memory_layers]
        return F.normalize(torch.stack(layers), dim=-1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        class_ids: Tensor | None = None,
        view_ids: Tensor | None = None,
        labels: Tensor | None = None,
        mask_labels: Tensor | None = None,
        noise_seeds: Tensor | None = None,
        class_is_known: bool = False,
        exclude: tuple[int, slice] | None = None,
        ignore_masks: Tensor | None = None,
        **kwargs,
    ) -> AnoPLeOutput:
        """
        Judge images, or with `mask_labels` measure the losses.

        Args:
            pixel_values: (batch, 3, side, side) from [`AnoPLeProcessor`].
            class_ids: (batch,) the product of each image. Absent: predicted (or pooled, by `class_identity`).
            view_ids: (batch,) 0 for the global view, 1 to N for the sub-images in reading order; training only.
            labels: (batch,) 1 anomalous, 0 normal, -1 left out; by default found from the masks. Only with `mask_labels`.
            mask_labels: (batch, height, width) 1 where anomalous.
            noise_seeds: (batch,) seeds of the latent noise, so that it does not depend on who draws it.
            class_is_known: whether `class_ids` hold also where classes are predicted.
            exclude: a class id and the vectors of its memory to leave out (leave-one-out).
            ignore_masks: (batch, side, side) from the processor; patches that are mostly marked are 0 in all maps.

        Returns:
            [`AnoPLeOutput`].

        Raises:
            ValueError: for `labels` without `mask_labels`, or ids that are no product's.
        """
        if labels is not None and mask_labels is None:
            raise ValueError(
                "labels were given without mask_labels, which the losses need: give both (masks of zeros for good images)."
            )
        if class_ids is not None and not self.training:
            class_ids = class_ids.cpu()  # once, and before the GPU has work: each reading of it waits for all of that
        # 1. One pass through the prompted vision tower.
        features = self.encode_image(pixel_values, view_ids, **kwargs)
        pooled = F.normalize(features.pooled, dim=-1)
        # 2. As which product each image is judged, and the two texts of it.
        given = class_ids
        if not (self.training and class_ids is not None):
            class_ids = self.identify(pooled, class_ids, class_is_known=class_is_known)
        text = self._texts_of(class_ids, len(pooled), pooled.device)
        # 3. What text and decoder say.
        decoded = self.decoder(features.patches, features.intermediate, text, need_features=mask_labels is not None)
        output = AnoPLeOutput(
            text_scores=self.score_text(pooled, text),
            decoder_maps=probability_of_second(decoded.logits.float()),
            class_ids=class_ids,
            image_embeds=pooled,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )
        # 4. Losses, where there is a ground truth.
        if mask_labels is not None:
            output.loss_terms = detector_losses(
                self.config,
                Answers(pooled, text, decoded.features, decoded.logits),
                masks=mask_labels,
                labels=view_labels(mask_labels, self.config) if labels is None else labels,
                seeds=noise_seeds,
            )
            output.loss = total_loss(output.loss_terms, loss_weights(self.config))
        # 5. What the memory says; all three fused, and brought to the products' thresholds.
        if not self.training:
            if not self.products.remembers_nothing:
                remembered = self.memory_features(pixel_values, features)
                output.memory_maps = self.memory_maps(remembered, class_ids, exclude)
            ignored = None if ignore_masks is None else ignored_patches(ignore_masks, self.config.memory_grid_size)
            fuse_scores(output, ignored, self.config)
            self.apply_thresholds(output)
            if class_ids is not given:
                output.is_known_class = self.is_known_class(output.memory_maps, pooled, class_ids, ignored)
        output.class_ids = None if class_ids is None else class_ids.to(pixel_values.device)
        return AnoPLeOutput(**output)  # as a tuple it is ordered by field

    def memory_maps(
        self, features: Tensor, class_ids: Tensor | None, exclude: tuple[int, slice] | None = None
    ) -> Tensor:
        """Look [`memory_features`] up: distances (batch, grid, grid) to the nearest normal patches."""
        distances = memory_distances(
            features, self.products.banks, class_ids, chunk_size=self.config.memory_chunk_size, exclude=exclude
        )
        return distances.unflatten(1, (self.config.memory_grid_size, self.config.memory_grid_size))

    def score_text(self, pooled: Tensor, text: Tensor) -> Tensor:
        """Compare images (batch, width) with their texts (batch, 2, width): probability (batch,) of the abnormal one."""
        logits = torch.einsum("bd,bcd->bc", pooled.float(), text.float()) / self.config.temperature
        return logits.softmax(1)[:, 1]

    def _texts_of(self, class_ids: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """Pick each image's normal and abnormal embedding: (batch, 2, width); their mean over classes when pooled."""
        if class_ids is None:
            return F.normalize(self.products.text_embeddings().mean(0), dim=-1).to(device).expand(batch, -1, -1)
        if (
            torch.compiler.is_exporting()
        ):  # which texts, memory and thresholds are needed depends on the values of class_ids
            raise ValueError(
                "torch.export cannot trace a detector whole, since products come and go: use anople export, or "
                "modeling_anople.export.export_detector."
            )
        if not self.training:
            shown, places = class_ids.unique(return_inverse=True)
            return self.products.text_embeddings(shown.tolist()).to(device)[places]
        # the classes of the batch alone, so that a step costs the same however many there are
        self.check_class_ids(class_ids)
        shown, places = class_ids.unique(return_inverse=True)
        return self.embed_text(self.products.prompt_ids(shown.tolist()))[places]


__all__ = ["AnoPLeModel", "AnoPLePreTrainedModel"]
