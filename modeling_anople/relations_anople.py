"""The relations between the fields of an `AnoPLeConfig`."""

from typing import Any


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


__all__ = ["check_relations"]
