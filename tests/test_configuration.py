"""The config: what it reads and writes, and what it refuses, every number out of its range above all."""

import math
import re
import time

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPConfig

from modeling_anople import AnoPLeConfig
from modeling_anople.configuration_anople import COUPLING_MODES, RANGES, REMOVED
from modeling_anople.training.options import field_helps


def clip_config(*, depth: int = 12, image_size: int = 224, patch_size: int = 32) -> CLIPConfig:
    vision = {"num_hidden_layers": depth, "image_size": image_size, "patch_size": patch_size}
    return CLIPConfig(vision_config=vision)


def test_a_saved_config_reads_back_every_field(tmp_path):
    threshold = {"image_threshold": 0.1 + 0.2, "image_scores": [1e-17, 0.3]}
    config = AnoPLeConfig(
        clip_config=clip_config(depth=6),
        products=[
            {"name": "bolt", "image_vectors": [16, 16], "has_boxes": True, "threshold": threshold},
            {"name": "Mutter ß", "tiling": "2,3", "ignore_mask_size": [4, 5]},
        ],
        pooled_threshold=threshold,
        coupling="vision_to_text",
        decoder_layers=[1, 5],
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
        assert read.products[0]["threshold"] == read.pooled_threshold == threshold
        assert read.class_names == ["bolt", "Mutter ß"]


@pytest.mark.parametrize(("depth", "layers"), [(12, [2, 7]), (24, [5, 15]), (4, [0, 2]), (2, [0]), (1, [0])])
def test_remembered_blocks_scale_with_the_depth_of_the_tower(depth, layers):
    assert AnoPLeConfig(clip_config=clip_config(depth=depth)).memory_layers == layers


def test_each_config_has_lists_of_its_own():
    first, second = AnoPLeConfig(class_names=["bolt"]), AnoPLeConfig(class_names=["bolt"])
    first.decoder_widths.append(1)
    first.products[0]["image_vectors"].append(1)
    first.products.append({"name": "nut"})
    first.history.append({})
    assert second.decoder_widths == [128, 64] and second.history == []
    assert second.class_names == ["bolt"] and second.products[0]["image_vectors"] == []


# -- options and facts under the names of version 0.1 ----------------------------------------------------------------


def test_a_memory_saved_before_images_were_counted_is_cut_into_whole_ones():
    config = AnoPLeConfig(clip_config=clip_config(), class_names=["bolt", "nut"], memory_sizes=[98, 0])
    assert [product["image_vectors"] for product in config.products] == [[49, 49], []] and config.history == []
    rest = AnoPLeConfig(clip_config=clip_config(), class_names=["bolt"], memory_sizes=[100])
    assert rest.products[0]["image_vectors"] == [49, 49, 2]


EARLIER = {
    "class_names": ["bolt", "nut"],
    "memory_sizes": [98, 49],
    "memory_photographs": [[50, 48], [49]],
    "memory_boxes": [True, False],
    "product_tilings": {"nut": "2,3"},
    "ignore_mask_sizes": {"bolt": [40, 48]},
    "calibration": {
        "bolt": {
            "image_line": 0.1,
            "image_spread": 0.2,
            "map_line": 0.3,
            "map_spread": 0.4,
            "image_scores": [0.01],
            "map_maxima": [0.02],
            "max_false_alarm_rate": 0.05,
            "memory_scale": 0.7,
            "product_lines": [0.5, 0.6],
            "strangeness": [[0.1], [0.2]],
            "photographs": 1,
            "held_out": 0,
            "estimate": "extrapolated",
            "supported_rate": 0.5,
            "image_copies": [],
            "map_copies": [],
        },
        "*": {"image_line": 0.9, "memory_scale": 0.7, "photographs": 3},
    },
}


def test_what_version_0_1_kept_of_products_becomes_one_record_each():
    config = AnoPLeConfig(clip_config=clip_config(), memory_copies="quarter_turns", **EARLIER)
    threshold = {
        "image_threshold": 0.1,
        "image_spread": 0.2,
        "map_threshold": 0.3,
        "map_spread": 0.4,
        "image_scores": [0.01],
        "map_maxima": [0.02],
        "max_false_alarm_rate": 0.05,
        "novelty_thresholds": [0.5, 0.6],
        "novelty_scores": [[0.1], [0.2]],
        "image_count": 1,
        "held_out": 0,
        "estimate": "extrapolated",
        "attainable_rate": 0.5,
        "jittered_image_scores": [],
        "jittered_map_maxima": [],
    }
    assert config.products == [
        {
            "name": "bolt",
            "image_vectors": [50, 48],
            "has_boxes": True,
            "tiling": "same",
            "ignore_mask_size": [40, 48],
            "threshold": threshold,
        },
        {
            "name": "nut",
            "image_vectors": [49],
            "has_boxes": False,
            "tiling": "2,3",
            "ignore_mask_size": None,
            "threshold": None,
        },
    ]
    assert config.pooled_threshold == {"image_threshold": 0.9, "image_count": 3}
    assert config.memory_rotations == "quarter_turns"
    assert not {*EARLIER, "memory_copies"} & config.to_dict().keys()
    assert not any(hasattr(config, name) for name in {*EARLIER, "memory_copies"} - {"class_names"})


def test_products_count_where_a_config_has_both():
    config = AnoPLeConfig(products=[{"name": "gasket"}], **EARLIER)
    assert config.class_names == ["gasket"] and config.pooled_threshold is None


@pytest.mark.parametrize(("name", "only"), REMOVED.items())
def test_an_option_that_is_gone_is_read_with_the_one_value_that_changes_nothing(name, only):
    config = AnoPLeConfig(**{name: only})
    assert not hasattr(config, name) and name not in config.to_dict()
    for other in (not only if isinstance(only, bool) else "other", None):
        with pytest.raises(
            ValueError, match=f"{name}={other!r}: .* no longer there.*leave it out .it is {only!r} now"
        ):
            AnoPLeConfig(**{name: other})


@pytest.mark.parametrize("prefix", ["add", "deep_token"])
def test_a_prefix_that_is_gone_is_refused(prefix):
    with pytest.raises(StrictDataclassError, match=prefix):
        AnoPLeConfig(prefix=prefix)


# -- what follows, and what is refused --------------------------------------------------------------------------------


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
        ({"view_grid": 0}, "view_grid must lie within 1 and 16, got 0"),
        ({"prompt_length": 0}, "prompt_length must lie within 1 and 100, got 0"),
        ({"prompt_depth": -1}, "prompt_depth must lie within 1 and 1000, got -1"),
        ({"temperature": 0.0}, r"temperature must lie within 0\.0001 and 100, got 0\.0"),
        ({"decoder_widths": [8]}, r"decoder_widths needs two numbers, got \[8\]"),
        ({"memory_layers": [3, 12]}, r"memory_layers \[12\] are no blocks .* use 0 to 11"),
        ({"decoder_layers": [-1]}, r"decoder_layers \[-1\] are no blocks"),
        ({"class_names": ["bolt", "nut", "bolt"]}, r"more than once: \['bolt'\]"),
        ({"products": [{"name": "bolt"}, {"name": "bolt"}]}, r"more than once: \['bolt'\]"),
        ({"memory_rotations": "half_turns"}, "half_turns"),
        ({"memory_copies": "half_turns"}, "half_turns"),
        ({"memory_limit": -1}, "memory_limit must lie within 0 and 1000000000, got -1"),
        ({"prompt_length": "4"}, "prompt_length"),
        ({"class_names": ["../../x"]}, r"\['../../x'\] are no names of products"),
        ({"products": [{"name": ".."}]}, "no path may stand in them"),
        ({"products": "bolt"}, "products"),
    ],
)
def test_a_wrong_value_is_refused_with_the_value_and_the_remedy(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        AnoPLeConfig(**fields)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"class_names": ["bolt"], "memory_sizes": [1, 2]}, "memory_sizes has 2 entries for 1 classes: give one each"),
        ({"class_names": ["a"], "memory_sizes": [4], "memory_photographs": [[1, 2]]}, r"adds up to \[3\]"),
        ({"class_names": ["bolt"], "memory_boxes": [True, True]}, "memory_boxes has 2 entries for 1 classes"),
        ({"class_names": "bolt"}, "class_names must be a list of names, got 'bolt'"),
    ],
)
def test_what_version_0_1_cannot_have_kept_is_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        AnoPLeConfig(**kept)


COLORS = ("memory_image_mean", "memory_image_std")
OUTSIDE = [
    (name, value)
    for name, (low, high) in RANGES.items()
    for value in (low - 1, high + 1, math.nan, math.inf, -math.inf)
    if isinstance(value, int) or AnoPLeConfig.__annotations__[name] in (int | float, list[float] | None)
]


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_every_number_has_a_range(name, value):
    low, high = RANGES[name]
    given = {"decoder_widths": [value, 8], **dict.fromkeys(COLORS, [0.5, 0.5, float(value)])}.get(name, value)
    with pytest.raises(StrictDataclassError, match=re.escape(f"{name} must lie within {low} and {high}, got {value}")):
        AnoPLeConfig(**{name: given})


def test_no_number_is_without_a_range_and_the_docstring_names_each():
    annotations = {name: str(kind) for name, kind in AnoPLeConfig.__annotations__.items()}
    others = {"memory_layers", "decoder_layers"}  # whose range is the depth of the tower
    others |= {"image_mean", "image_std", "fusion_weights"}  # which nobody chooses
    assert {name for name, kind in annotations.items() if "int" in kind or "float" in kind} - others == RANGES.keys()
    helps = field_helps(AnoPLeConfig.__doc__)
    assert not [name for name, (low, high) in RANGES.items() if f"{low} to {high}" not in helps[name]]


def test_a_tower_of_fewer_blocks_than_prompt_depth_has_prompts_in_all_of_them(make_model):
    assert make_model(prompt_depth=99).prompts.vision_depth == 4
    with pytest.raises(ValueError, match="prompt_depth must lie within 1 and 1000, got 1001"):
        make_model(prompt_depth=1001)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vision_config", "num_hidden_layers", 10**6),
        ("text_config", "num_hidden_layers", 10**6),
        ("vision_config", "image_size", 10**6),
        ("vision_config", "patch_size", 0),
        ("text_config", "hidden_size", 10**6),
        ("text_config", "vocab_size", 10**9),
        ("text_config", "max_position_embeddings", 10**9),
    ],
)
def test_a_clip_that_no_machine_can_hold_is_refused_at_once(part, name, value):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"{part}.{name} must lie within 1 and .*, got {value}"):
        AnoPLeConfig(clip_config={part: {name: value}})
    with pytest.raises(ValueError, match="weights, and 100000000000 are the most"):
        AnoPLeConfig(clip_config={"vision_config": {"num_hidden_layers": 1000, "hidden_size": 60_000}})
    assert time.perf_counter() - start < 1
