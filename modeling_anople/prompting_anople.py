"""Learnable prompts of both CLIP towers, how they meet, and the walk of a prompted sequence through each tower."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.utils import ModelOutput

from .configuration_anople import AnoPLeConfig


class BidirectionalPrompts(nn.Module):
    """
    Hold free prompts of both towers and couple them by linear projections (paper.md 1.4).

    At block j, with learnable linear f: text gets [P_j^t, f_vt(P_j^v)], vision gets [P_j^v, f_tv(P_j^t)]. Both
    projections read the uncoupled prompts, so nothing recurs from block to block. `config.coupling` takes parts away.
    Where one tower is shallower than `prompt_depth`, the deeper blocks of the other get their free prompts only.
    """

    def __init__(self, config: AnoPLeConfig):
        super().__init__()
        self.coupling, self.std = config.coupling, config.prompt_std
        self.per_layer = config.coupling_projection == "per_layer"
        text, vision = config.clip_config.text_config, config.clip_config.vision_config
        self.text_depth = min(config.prompt_depth, text.num_hidden_layers)
        self.vision_depth = min(config.prompt_depth, vision.num_hidden_layers)
        common_depth = min(self.text_depth, self.vision_depth)
        self.text = self.vision = self.text_to_vision = self.vision_to_text = None
        if config.has_text_prompts:
            self.text = nn.Parameter(torch.empty(self.text_depth, config.prompt_length, text.hidden_size))
        if config.has_vision_prompts:
            self.vision = nn.Parameter(torch.empty(self.vision_depth, config.prompt_length, vision.hidden_size))
        count = common_depth if self.per_layer else 1
        if self.coupling in ("both", "text_to_vision"):
            self.text_to_vision = _linears(count, text.hidden_size, vision.hidden_size)
        if self.coupling in ("both", "vision_to_text"):
            self.vision_to_text = _linears(count, vision.hidden_size, text.hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the free prompts from N(0, prompt_std²); the projections keep torch's own start."""
        for prompts in (self.text, self.vision):
            if prompts is not None:
                init.normal_(prompts, std=self.std)

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """
        Couple the prompts.

        Returns:
            Two lists, text and vision, with one tensor (tokens, width) per prompted block; empty where a tower has none.
        """
        text = [] if self.text is None else list(self.text)
        vision = [] if self.vision is None else list(self.vision)
        return (
            self._join(text, vision, self.vision_to_text),
            self._join(vision, text, self.text_to_vision),
        )

    def _join(self, own: list[Tensor], other: list[Tensor], projections: nn.ModuleList | None) -> list[Tensor]:
        if projections is None:
            return own
        coupled = []
        for block, prompts in enumerate(own):
            if block < len(other):
                projection = projections[block if self.per_layer else 0]
                prompts = torch.cat([prompts, projection(other[block])])
            coupled.append(prompts)
        return coupled


def _linears(count: int, width_in: int, width_out: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width_in, width_out) for _ in range(count))


class ScalePrefix(nn.Module):
    """Hold one learnable vision token per view, so that the tower knows a view's scale (paper.md 1.5)."""

    def __init__(self, config: AnoPLeConfig):
        super().__init__()
        self.std = config.prompt_std
        self.embeddings = nn.Parameter(torch.empty(config.num_views, config.clip_config.vision_config.hidden_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the tokens from N(0, prompt_std²)."""
        init.normal_(self.embeddings, std=self.std)

    def forward(self, view_ids: Tensor) -> Tensor:
        """Look up the prefix of each view: (batch,) ids -> (batch, 1, width); id 0 is the global view."""
        return self.embeddings[view_ids].unsqueeze(1)


@dataclass
class VisionFeatures(ModelOutput):
    """
    What one pass through the vision tower leaves.

    Args:
        pooled (`Tensor` of shape (batch, joint width)): projected CLS token, not normalized.
        patches (`Tensor` of shape (batch, patches, joint width)): projected patch tokens after the last norm.
        intermediate (`dict[int, Tensor]`): block number -> patch tokens (batch, patches, width) of the residual stream
            after it.
        hidden_states, attentions (`tuple`, *optional*): of every block, when [`AnoPLeModel`] is asked for them.
    """

    pooled: Tensor | None = None
    patches: Tensor | None = None
    intermediate: dict[int, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def encode_image(
    clip: CLIPModel,
    pixel_values: Tensor,
    *,
    prompts: list[Tensor] | None = None,
    prefix: Tensor | None = None,
    out_indices: tuple[int, ...] = (),
) -> VisionFeatures:
    """
    Walk images through the vision tower with prompts behind the patch tokens (paper.md 4.3).

    Without prompts and prefix, `pooled` equals `CLIPModel.get_image_features`.

    Args:
        pixel_values: (batch, 3, side, side), normalized.
        prompts: per prompted block (tokens, width); block 0's are appended, later ones overwrite their slots.
        prefix: (batch, 1, width), the views' scale tokens; they flow through all blocks.
        out_indices: blocks whose patch tokens are returned.
    """
    tower, prompts = clip.vision_model, prompts or []
    # class token and patches first; what is learned stands behind them, so that their positions stay CLIP's own
    hidden = tower.embeddings(
        pixel_values, interpolate_pos_encoding=True
    )  # where the side is not that of its pretraining
    patch_slots, prompt_start = slice(1, hidden.shape[1]), hidden.shape[1]
    tokens = [hidden]
    if prompts:
        tokens.append(_prompt_tokens(prompts[0], hidden))
    if prefix is not None:
        tokens.append(prefix.to(hidden.dtype))
    hidden = tower.pre_layrnorm(torch.cat(tokens, dim=1) if len(tokens) > 1 else hidden)
    intermediate = {}
    for number, layer in enumerate(tower.encoder.layers):
        if 0 < number < len(prompts):
            hidden = _overwrite(hidden, _prompt_tokens(prompts[number], hidden), prompt_start)
        hidden = layer(hidden, None)
        if number in out_indices:
            intermediate[number] = hidden[:, patch_slots]
    # CLIP norms its class token alone; patches meet the text in the same space only behind the same norm
    return VisionFeatures(
        pooled=clip.visual_projection(tower.post_layernorm(hidden[:, 0])),
        patches=clip.visual_projection(tower.post_layernorm(hidden[:, patch_slots])),
        intermediate=intermediate,
    )


def _prompt_tokens(prompts: Tensor, like: Tensor) -> Tensor:
    """Bring one block's prompts to (batch, tokens, width)."""
    return prompts.to(like.dtype).unsqueeze(0).expand(like.shape[0], -1, -1)


def _overwrite(hidden: Tensor, tokens: Tensor, start: int) -> Tensor:
    """Replace `tokens.shape[1]` slots from `start` on; slots behind them flow on."""
    return torch.cat([hidden[:, :start], tokens, hidden[:, start + tokens.shape[1] :]], dim=1)


def encode_text(clip: CLIPModel, input_ids: Tensor, *, prompts: list[Tensor] | None = None) -> Tensor:
    """
    Walk token sequences through the text tower with prompts in the slots behind the start token (paper.md 4.2).

    Without prompts it equals `CLIPModel.get_text_features`.

    Args:
        input_ids: (sequences, length); slots 1 to tokens are placeholders. What follows the end token has no effect.
        prompts: per prompted block (tokens, width), shared by all sequences.

    Returns:
        Projected text features (sequences, joint width), not normalized.
    """
    tower, prompts = clip.text_model, prompts or []
    embeddings = tower.embeddings.token_embedding(input_ids)
    if prompts:
        embeddings = _overwrite(embeddings, _prompt_tokens(prompts[0], embeddings), 1)
    hidden = tower.embeddings(inputs_embeds=embeddings)
    # no padding and no cache, whose keyword differs between versions
    mask = create_causal_mask(tower.config, hidden, None, None)
    for number, layer in enumerate(tower.encoder.layers):
        if 0 < number < len(prompts):
            hidden = _overwrite(hidden, _prompt_tokens(prompts[number], hidden), 1)
        hidden = layer(hidden, mask, is_causal=True)
    hidden = tower.final_layer_norm(hidden)
    ends = _end_positions(input_ids, tower.eos_token_id)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    return clip.text_projection(hidden[rows, ends])


def _end_positions(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Find the first end token of each sequence; checkpoints from before 2023 name 2 and mean the highest id."""
    if eos_token_id == 2:
        return input_ids.argmax(dim=-1)
    return (input_ids == eos_token_id).int().argmax(dim=-1)


# Names of public data sets that are codes or run-together words (paper.md 1.2, after PromptAD).
CLASS_WORDS = {
    "chewinggum": "chewing gum",
    "macaroni1": "macaroni",
    "macaroni2": "macaroni",
    "pcb": "printed circuit board",
    "pcb1": "printed circuit board",
    "pcb2": "printed circuit board",
    "pcb3": "printed circuit board",
    "pcb4": "printed circuit board",
}


def class_words(class_name: str) -> str:
    """Turn a class name into the words of its prompt: "metal_nut" -> "metal nut", "pcb1" -> "printed circuit board"."""
    return CLASS_WORDS.get(class_name, " ".join(class_name.replace("_", " ").split()))


def class_prompt_ids(tokenizer, class_names: list[str], *, prompt_count: int, max_length: int) -> Tensor:
    """
    Tokenize the two anchors of each class (paper.md 1.2).

    `[start] x ... x [words] . [end]` is the normal row, `[start] x ... x abnormal [words] . [end]` the abnormal one; x
    are `prompt_count` placeholders, overwritten by the learnable context. Rows are filled up with the end token.

    Returns:
        Ids (2 x classes, max_length), class by class, normal first.

    Raises:
        ValueError: if a name is longer than the text tower can read; the message says by how much.
    """
    rows = []
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for name in class_names:
        for words in (class_words(name), f"abnormal {class_words(name)}"):
            ids = tokenizer(f"{words}.", add_special_tokens=False).input_ids
            row = [start] + [start] * prompt_count + ids + [end]
            if len(row) > max_length:
                raise ValueError(
                    f"The prompt of class {name!r} has {len(row)} tokens and the text tower reads {max_length}: "
                    "give the class a shorter name."
                )
            rows.append(row + [end] * (max_length - len(row)))
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), max_length)


__all__ = [
    "BidirectionalPrompts",
    "ScalePrefix",
    "VisionFeatures",
    "class_prompt_ids",
    "class_words",
    "encode_image",
    "encode_text",
]
