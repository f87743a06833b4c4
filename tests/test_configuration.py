import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPConfig

from modeling_anople import AnoPLeConfig
from modeling_anople.configuration_anople import COUPLING_MODES


def clip_config(*, depth: int = 12, image_size: int = 224, patch_size: int = 32) -> CLIPConfig:
    vision = {"num_hidden_layers": depth, "image_size": image_size, "patch_size": patch_size}
    return CLIPConfig(vision_config=vision)


def test_a_saved_config_reads_back_every_field(tmp_path):
    line = {"image_threshold": 0.1 + 0.2, "image_scores": [1e-17, 0.3]}
    config = AnoPLeConfig(
        clip_config=clip_config(depth=6),
        class_names=["bolt", "Mutter ß"],
        coupling="vision_to_text",
        decoder_layers=[1, 5],
        memory_sizes=[32, 0],
        calibration={"bolt": line},
        fit={"shots": 4},
        alignment_detach="map",
        smoothing=0.25,
    )
    config.save_pretrained(tmp_path)
    for read in (AnoPLeConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(read) is AnoPLeConfig
        assert isinstance(read.clip_config, CLIPConfig) and read.clip_config.vision_config.num_hidden_layers == 6
        saved = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
        assert {name: value for name, value in read.to_dict().items() if name in saved} == saved
        assert read.calibration["bolt"] == line


@pytest.mark.parametrize(("depth", "layers"), [(12, [2, 7]), (24, [5, 15]), (4, [0, 2]), (2, [0]), (1, [0])])
def test_remembered_blocks_scale_with_the_depth_of_the_tower(depth, layers):
    assert AnoPLeConfig(clip_config=clip_config(depth=depth)).memory_layers == layers


def test_a_memory_saved_before_photographs_were_counted_is_cut_into_whole_ones():
    config = AnoPLeConfig(clip_config=clip_config(), class_names=["bolt", "nut"], memory_sizes=[98, 0])
    assert config.memory_photographs == [[49, 49], []] and config.history == []


def test_each_config_has_lists_of_its_own():
    first, second = AnoPLeConfig(class_names=["bolt"]), AnoPLeConfig(class_names=["nut"])
    first.decoder_widths.append(1)
    first.memory_sizes.append(1)
    first.calibration["bolt"] = {}
    first.history.append({})
    assert (second.decoder_widths, second.memory_sizes, second.calibration) == (
        [128, 64],
        [0],
        {},
    ) and second.history == []


@pytest.mark.parametrize(
    ("vision", "side", "grid"),
    [((240, 16), 240, 15), ((224, 32), 224, 7), ((224, 14), 224, 16), ((336, 14), 336, 24), ((30, 4), 30, 7)],
)
def test_the_grid_follows_resolution_and_patch_size(vision, side, grid):
    config = AnoPLeConfig(clip_config=clip_config(image_size=vision[0], patch_size=vision[1]))
    assert (config.image_size, config.grid_size) == (side, grid)


@pytest.mark.parametrize(("view_grid", "views"), [(1, 1), (2, 5), (3, 10)])
def test_there_is_one_view_more_than_sub_images(view_grid, views):
    assert AnoPLeConfig(view_grid=view_grid).num_views == views


def test_every_coupling_mode_is_allowed_and_no_other():
    assert [AnoPLeConfig(coupling=mode).coupling for mode in COUPLING_MODES] == list(COUPLING_MODES)
    with pytest.raises(StrictDataclassError, match="sideways"):
        AnoPLeConfig(coupling="sideways")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"view_grid": 0}, "view_grid must be at least 1, got 0"),
        ({"prompt_length": 0}, "prompt_length must be at least 1, got 0"),
        ({"prompt_depth": -1}, "prompt_depth must be at least 1, got -1"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"decoder_prior": 1.0}, "decoder_prior is a probability, got 1.0"),
        ({"decoder_widths": [8]}, r"decoder_widths needs two numbers, got \[8\]"),
        ({"memory_layers": [3, 12]}, r"memory_layers \[12\] are no blocks .* use 0 to 11"),
        ({"decoder_layers": [-1]}, r"decoder_layers \[-1\] are no blocks"),
        ({"value_attention_layers": 13}, "value_attention_layers must lie within 0 and 12, got 13"),
        ({"class_names": ["bolt", "nut", "bolt"]}, r"more than once: \['bolt'\]"),
        ({"class_names": ["bolt"], "memory_sizes": [1, 2]}, "memory_sizes has 2 numbers for 1 classes"),
        ({"class_names": ["a"], "memory_sizes": [4], "memory_photographs": [[1, 2]]}, r"adds up to \[3\]"),
        ({"memory_limit": -1}, "memory_limit must not be negative .*, got -1"),
        ({"decoder_layers": [1], "latent_noise_target": "patches"}, "use 'global'"),
        ({"prefix": "add", "coupling": "text_only"}, "needs visual prompts, but coupling='text_only' has none"),
        ({"prefix": "add", "coupling": "none"}, "use 'token'"),
        ({"fusion_scale": "normal", "class_identity": "pooled"}, "use fusion_scale='raw'"),
        ({"prompt_length": "4"}, "prompt_length"),
        ({"class_names": "bolt"}, "class_names"),
    ],
)
def test_a_wrong_value_is_refused_with_the_value_and_the_remedy(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        AnoPLeConfig(**fields)


def test_visual_prompts_by_coupling_are_enough_for_an_added_prefix():
    assert AnoPLeConfig(prefix="add", coupling="vision_only").vision_prompt_count == 4
