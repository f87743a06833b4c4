"""AnoPLe: one frozen CLIP, prompts for both towers, a small decoder and a memory of good photographs."""

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .backbone_anople import HUB_ARGUMENTS, clip_source, describe_source, load_clip, pin_revision
from .calibration_anople import ScoreCalibration
from .checkpoint_anople import AdaptersMixin
from .configuration_anople import AnoPLeConfig
from .decoding_anople import AnomalyDecoder
from .enrollment_anople import EnrolmentMixin
from .fitting_anople import ProductsMixin
from .images_anople import ignored_patches
from .losses_anople import Answers, detector_losses, loss_weights, total_loss, view_labels
from .memory_anople import NormalMemory
from .product_store_anople import KeptMasks
from .prompting_anople import (
    BidirectionalPrompts,
    ScalePrefix,
    VisionFeatures,
    class_prompt_ids,
    encode_image,
    encode_text,
)
from .scoring_anople import AnoPLeOutput, IdentityMixin, fuse_answers


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
        elif isinstance(module, (BidirectionalPrompts, ScalePrefix)):
            module.reset_parameters()
        elif isinstance(module, AnomalyDecoder):
            module.reset_head()
        elif isinstance(module, (NormalMemory, KeptMasks, AnoPLeModel)):
            for buffer in module.buffers(recurse=False):
                init.zeros_(buffer)


class AnoPLeModel(AdaptersMixin, EnrolmentMixin, ProductsMixin, IdentityMixin, AnoPLePreTrainedModel):
    """
    Few-shot multi-class anomaly detection with bidirectional prompts on a frozen CLIP.

    Start one with [`AnoPLeModel.from_clip`], fit it with `accelerate launch -m modeling_anople.training`, and load it
    with [`AnoPLeModel.from_pretrained`]. Prediction runs the vision tower once; the text side is stored.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: AnoPLeConfig, clip: CLIPModel | None = None):
        super().__init__(config)
        self.clip = CLIPModel(config.clip_config) if clip is None else clip
        self.prompts = BidirectionalPrompts(config)
        self.prefix = None if config.prefix == "none" else ScalePrefix(config)
        self.decoder = AnomalyDecoder(config)
        self.memory = NormalMemory(config)
        self.masks = KeptMasks(config)
        self.calibration = ScoreCalibration(config)
        classes, width = len(config.class_names), config.clip_config.projection_dim
        length = config.clip_config.text_config.max_position_embeddings
        self.register_buffer("class_token_ids", torch.zeros(2 * classes, length, dtype=torch.long))
        self.register_buffer("class_embeddings", torch.zeros(classes, 2, width))
        self.register_buffer("class_prototypes", torch.zeros(classes, width))
        self.post_init()

    @classmethod
    def from_clip(cls, clip: str | CLIPModel, class_names: list[str], *, tokenizer=None, **kwargs) -> "AnoPLeModel":
        """
        Wrap a CLIP in a new, unfitted detector.

        Args:
            clip: `"mini"` for the embedded one, a Hub id or folder of a `CLIPModel`, or the model itself.
            class_names: the products; their words go into the prompts.
            tokenizer: the CLIP's tokenizer; loaded from `clip` when that is a name.
            kwargs: fields of [`AnoPLeConfig`], and for a name also `revision`, `cache_dir`, `token`, `local_files_only`.

        Raises:
            ValueError: for an unknown keyword or a wrong value, no class, a model without a tokenizer, or a name that
                cannot be found.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        unknown = sorted(set(kwargs) - set(AnoPLeConfig.__annotations__))
        if unknown:
            raise ValueError(f"from_clip got {unknown}, which are no fields of AnoPLeConfig: see its docstring.")
        if not class_names or isinstance(class_names, str):
            raise ValueError(f"from_clip needs a list with at least one class name, got {class_names!r}.")
        if isinstance(clip, CLIPModel) and tokenizer is None:
            raise ValueError("from_clip got a CLIPModel without its tokenizer: pass tokenizer=... too.")
        name = clip
        if not isinstance(clip, CLIPModel):
            hub = pin_revision(clip_source(clip), hub)
            clip, tokenizer = load_clip(clip, tokenizer, **hub)
        kwargs["clip_source"] = describe_source(name, clip, hub.get("revision"), hub.get("subfolder"))
        try:
            config = AnoPLeConfig(clip_config=clip.config.to_dict(), class_names=list(class_names), **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__)) from error
        model = cls(config, clip=clip).to(clip.device, clip.dtype).eval()
        model.class_token_ids = class_prompt_ids(
            tokenizer,
            config.class_names,
            prompt_count=config.text_prompt_count,
            max_length=model.class_token_ids.shape[1],
        ).to(clip.device)
        model.store_class_embeddings()
        return model

    def train(self, mode: bool = True) -> "AnoPLeModel":
        """Switch the learnable parts; the frozen CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def freeze_clip(self) -> "AnoPLeModel":
        """Stop gradients into CLIP's weights. Call it before training; loading undoes it."""
        self.clip.requires_grad_(False)
        return self

    def embed_classes(self, ids: Tensor | None = None) -> Tensor:
        """Embed the classes, or these token ids: unit length (classes, 2, width), normal and abnormal, with gradient."""
        text_prompts, _ = self.prompts()
        ids = self.class_token_ids if ids is None else ids
        ends = (ids == ids[:, -1:]).int().argmax(1)  # rows are filled up with the end token
        embeddings = encode_text(self.clip, ids[:, : int(ends.max()) + 1], prompts=text_prompts)
        return F.normalize(embeddings, dim=-1).unflatten(0, (-1, 2))

    @torch.no_grad()
    def store_class_embeddings(self) -> None:
        """Keep the class embeddings, so that prediction needs neither the text tower nor a tokenizer."""
        self.class_embeddings = self.embed_classes().detach().to(self.class_embeddings)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def encode_views(self, pixel_values: Tensor, view_ids: Tensor | None = None, **kwargs) -> VisionFeatures:
        """Encode views (batch, 3, side, side); `view_ids` (batch,) names their scale, 0 (the default) is global."""
        return self.walk_views(pixel_values, view_ids)

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """Embed images (batch, 3, side, side) as wholes: unit length (batch, width)."""
        return F.normalize(self.encode_views(pixel_values).pooled, dim=-1)

    def walk_views(self, pixel_values: Tensor, view_ids: Tensor | None = None) -> VisionFeatures:
        """Do as [`encode_views`], which also hands out hidden states and attentions where they are asked for."""
        config = self.config
        _, vision_prompts = self.prompts()
        if view_ids is None:
            view_ids = torch.zeros(len(pixel_values), dtype=torch.long, device=pixel_values.device)
        return encode_image(
            self.clip,
            pixel_values,
            prompts=vision_prompts,
            prefix=None if self.prefix is None else self.prefix(view_ids),
            prefix_mode=config.prefix,
            tap_layers=(*self.memory.layers, *self.decoder.layers),
            value_attention_layers=config.value_attention_layers,
        )

    def memory_taps(self, pixel_values: Tensor, features: VisionFeatures) -> dict[int, Tensor]:
        """Pick the features that the memory holds: those of the prompted pass, or of a second, frozen one."""
        if self.config.memory_features == "frozen":
            return encode_image(self.clip, pixel_values, tap_layers=self.memory.layers).taps
        return features.taps

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        class_ids: Tensor | None = None,
        view_ids: Tensor | None = None,
        labels: Tensor | None = None,
        mask_labels: Tensor | None = None,
        noise_seeds: Tensor | None = None,
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
            labels: (batch,) 1 anomalous, 0 normal, -1 left out; by default found from the masks.
            mask_labels: (batch, height, width) 1 where anomalous.
            noise_seeds: (batch,) seeds of the latent noise, so that it does not depend on who draws it.
            exclude: a class id and the vectors of its memory to leave out (leave-one-out); `class_ids` are then known.
            ignore_masks: (batch, side, side) from the processor; patches that are mostly marked are 0 in all maps.

        Returns:
            [`AnoPLeOutput`].
        """
        if class_ids is not None and not self.training:
            class_ids = class_ids.cpu()  # once, and before the GPU has work: each reading of it waits for all of that
        given = class_ids
        features = self.encode_views(pixel_values, view_ids, **kwargs)
        pooled = F.normalize(features.pooled, dim=-1)
        if self.training and class_ids is not None:
            text = self._texts_in_training(class_ids)
        else:
            embeddings = self.embed_classes() if self.training else self.class_embeddings
            class_ids = self.identify(pooled, embeddings, class_ids, known=exclude is not None)
            text = self._texts_of(embeddings, class_ids, len(pooled))
        decoded = self.decoder(features.patches, features.taps, text, need_features=mask_labels is not None)
        output = AnoPLeOutput(
            text_scores=self.score_texts(pooled, text),
            decoder_maps=decoded.logits.float().softmax(1)[:, 1],
            class_ids=class_ids,
            image_embeds=pooled,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )
        if mask_labels is not None:
            output.loss_terms = detector_losses(
                self.config,
                Answers(pooled, features.patches, text, decoded.features, decoded.logits),
                masks=mask_labels,
                labels=view_labels(mask_labels, view_ids, self.config) if labels is None else labels,
                seeds=noise_seeds,
                decode=lambda patches: self.decoder(patches, features.taps, text).logits,
            )
            output.loss = total_loss(output.loss_terms, loss_weights(self.config))
        if not self.training:
            taps = None if self.memory.is_empty else self.memory_taps(pixel_values, features)
            ignored = None if ignore_masks is None else ignored_patches(ignore_masks, self.config.grid_size)
            self.score(output, taps, exclude, ignored)
            self.calibration.apply(output)
            if class_ids is not given:
                output.known_products = self.recognise(output.memory_maps, pooled, class_ids, ignored)
        output.class_ids = None if class_ids is None else class_ids.to(pixel_values.device)
        return AnoPLeOutput(**output)  # as a tuple it is ordered by field

    def score(
        self,
        output: AnoPLeOutput,
        taps: dict[int, Tensor] | None,
        exclude: tuple[int, slice] | None,
        ignored: Tensor | None = None,
    ) -> None:
        """
        Look into the memory and fuse its answers with the others', in place; see [`fuse_answers`].

        Args:
            taps: patch tokens for the memory, or `None` while no product has one: the decoder then answers alone.
            exclude: as in [`forward`].
            ignored: (batch, grid, grid) patches that do not count.
        """
        config, ids = self.config, output.class_ids
        if taps is not None:
            output.memory_maps = self.memory(taps, ids, exclude).unflatten(1, (config.grid_size, config.grid_size))
        scales = self.calibration.memory_scales(ids) if config.fusion_scale == "normal" else None
        fuse_answers(output, scales, ignored, config)

    def score_texts(self, pooled: Tensor, text: Tensor) -> Tensor:
        """Compare images (batch, width) with their texts (batch, 2, width): probability (batch,) of the abnormal one."""
        logits = torch.einsum("bd,bcd->bc", pooled.float(), text.float()) / self.config.temperature
        return logits.softmax(1)[:, 1]

    def _texts_in_training(self, class_ids: Tensor) -> Tensor:
        """Embed the classes of a batch alone, so that a step costs the same however many there are: (batch, 2, width)."""
        self.check_ids(class_ids)
        shown, places = class_ids.unique(return_inverse=True)
        rows = torch.stack([2 * shown, 2 * shown + 1], dim=1).flatten()
        return self.embed_classes(self.class_token_ids[rows])[places]

    def _texts_of(self, embeddings: Tensor, class_ids: Tensor | None, batch: int) -> Tensor:
        """Pick each image's normal and abnormal embedding: (batch, 2, width); their mean over classes when pooled."""
        if class_ids is not None:
            return embeddings[class_ids]
        return F.normalize(embeddings.mean(0), dim=-1).expand(batch, -1, -1)
