"""Command line options: one home for each, with a help text, and the values that come out of them."""

import dataclasses
import math
import re
import typing

import pytest

from modeling_anople import AnoPLeConfig
from modeling_anople.training import FREE_ON_RESUME, TrainingConfig
from modeling_anople.training.options import FIT_RANGES, RECIPES, Recipe, model_options, parse_options


# by the program, not by a person
KEPT = {
    "clip_config",
    "products",
    "pooled_threshold",
    "fit",
    "history",
    "custom_pipelines",
    "clip_source",
    "memory_encoder",
    "memory_encoder_source",
    "image_mean",
    "image_std",
    "adapter_clip_sha256",
    "memory_encoder_sha256",
    "content_sha256",
    "fusion_weights",
}
OWN_FIELDS = [name for name in AnoPLeConfig.__annotations__ if name not in KEPT]
CHOICES = [
    (field.name, choice)
    for options in (TrainingConfig, model_options())
    for field in dataclasses.fields(options)
    if typing.get_origin(field.type) is typing.Literal
    for choice in typing.get_args(field.type)
]


def parse(*arguments: str):
    return parse_options("anople fit", TrainingConfig, model_options(), ["--data_root", "photographs", *arguments])


def test_every_field_a_person_may_choose_is_an_option():
    names = {field.name for field in dataclasses.fields(model_options())}
    assert names == set(OWN_FIELDS)
    assert {"coupling", "prefix", "decoder_layers", "alignment_detach", "image_map", "threshold"} <= names
    assert not names & {"clip_config", "products", "fit", "hidden_size", "architectures"}


def test_options_are_named_once():
    training = {field.name for field in dataclasses.fields(TrainingConfig)}
    assert not training & set(OWN_FIELDS)
    assert training >= FREE_ON_RESUME


@pytest.mark.parametrize("options", [TrainingConfig, model_options()], ids=["training", "model"])
def test_every_option_has_a_help_text(options):
    helps = {field.name: field.metadata.get("help", "") for field in dataclasses.fields(options)}
    assert {name: text for name, text in helps.items() if len(text.split()) < 2} == {}


def test_help_texts_are_those_of_the_docstring():
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(model_options())}
    assert helps["prompt_length"].startswith("Free prompt tokens")
    assert helps["image_loss_weight"] == helps["pixel_loss_weight"] == helps["alignment_loss_weight"]
    assert "Weights of the three losses" in helps["image_loss_weight"]


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    shown = capsys.readouterr().out
    names = [*OWN_FIELDS, *(field.name for field in dataclasses.fields(TrainingConfig))]
    assert end.value.code == 0
    assert [name for name in names if f"--{name}" not in shown] == []


def test_a_dozen_options_stand_on_top_of_the_help_and_each_other_one_under_one_heading(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    usage, top, *rest = re.split(r"\n\n(?=[a-z][a-z :]+:\n)", capsys.readouterr().out)
    assert usage == "usage: anople fit DATA [options]"
    shown = [re.findall(r"^  (--\w+)", part, flags=re.MULTILINE) for part in (top, *rest)]
    assert len(shown[0]) == 12 and {"--shots", "--clip", "--max_steps", "--resume"} <= set(shown[0])
    assert [part.partition(":\n")[0] for part in rest][:3] == ["data in other forms", "the backbone", "training"]
    assert sorted(option for part in shown for option in part) == sorted(
        f"--{field.name}" for kind in (TrainingConfig, model_options()) for field in dataclasses.fields(kind)
    )
    assert "--seed SEED" in top and "(default: 0)" in top and "--resume " in top and "--max-steps" not in top


def test_defaults_are_those_of_the_config():
    config, options = parse("--recipe", "paper")
    assert options == {}
    assert config == TrainingConfig(data_root="photographs", recipe="paper")


@pytest.mark.parametrize(("name", "choice"), CHOICES)
def test_each_choice_is_accepted(name, choice):
    config, options = parse(f"--{name}", choice)
    chosen = {**dataclasses.asdict(AnoPLeConfig()), **dataclasses.asdict(config), **options}
    assert chosen[name] == choice


@pytest.mark.parametrize("name", sorted({name for name, _ in CHOICES}))
def test_a_wrong_choice_is_refused_with_the_right_ones(name, capsys):
    with pytest.raises(SystemExit) as end:
        parse(f"--{name}", "sideways")
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert f"--{name}" in message and "sideways" in message
    assert all(choice in message for option, choice in CHOICES if option == name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--memory_layers", "0", "2"], {"memory_layers": [0, 2]}),
        (["--decoder_layers", "3"], {"decoder_layers": [3]}),
        (["--decoder_widths", "8", "4"], {"decoder_widths": [8, 4]}),
        (["--temperature", "0.5", "--prompt_length", "2"], {"temperature": 0.5, "prompt_length": 2}),
        (["--alignment_loss_weight", "0"], {"alignment_loss_weight": 0.0}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_model_options_reach_the_config(arguments, expected):
    _, options = parse("--recipe", "paper", *arguments)
    assert options == expected
    config = AnoPLeConfig(**options)
    assert {name: getattr(config, name) for name in options} == expected


def test_an_option_set_to_its_default_is_not_a_change():
    default = AnoPLeConfig().prompt_length
    for length, change in ((default, {}), (default + 1, {"prompt_length": default + 1})):
        assert parse("--recipe", "paper", "--prompt_length", str(length))[1] == change


def test_lists_and_switches_of_the_training_are_parsed():
    config, _ = parse("--classes", "bolt", "metal nut", "--resume", "--overwrite", "false", "--max_steps", "7")
    assert config.classes == ["bolt", "metal nut"]
    assert config.resume is True and config.overwrite is False and config.max_steps == 7


@pytest.mark.parametrize("arguments", [["--max_step", "3"], ["--no_such_option", "1"], ["--shots", "two"]])
def test_what_is_no_option_is_refused(arguments):
    with pytest.raises((SystemExit, ValueError)):
        parse(*arguments)


def test_the_data_must_be_named(capsys):
    with pytest.raises(SystemExit):
        parse_options("anople fit", TrainingConfig, model_options(), [])
    assert "--data_root" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [0, 1e-300, 0.00009, 0.5, 5, math.nan])
def test_an_impossible_budget_is_refused_before_anything_is_fitted(rate):
    with pytest.raises(ValueError, match=f"at least 0.0001 and below 0.5, got {rate}.*it is a share, 0.05 is 5 %"):
        TrainingConfig(data_root="products", max_false_alarm_rate=rate)


@pytest.mark.parametrize("name", FIT_RANGES)
def test_every_number_of_a_fit_has_a_range_that_its_help_names(name):
    low, high = FIT_RANGES[name]
    for value in (low - 1, high + 1, math.nan):
        with pytest.raises(ValueError, match=re.escape(f"{name} must lie within {low} and {high}, got {value}")):
            TrainingConfig(data_root="products", **{name: value})
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(TrainingConfig)}
    assert f"{low} to {high}" in helps[name]


def test_no_number_of_a_fit_is_without_a_range():
    numbers = {field.name for field in dataclasses.fields(TrainingConfig) if "int" in str(field.type)}
    numbers |= {field.name for field in dataclasses.fields(TrainingConfig) if "float" in str(field.type)}
    assert numbers == {*FIT_RANGES, "max_false_alarm_rate"}


def test_a_number_of_the_model_is_refused_before_the_data_are_read():
    for words in (["--smoothing", "-1"], ["--memory_chunk_size", "-5"], ["--unknown_product_rate", "2"]):
        with pytest.raises(ValueError, match=f"{words[0][2:]} must lie within .*, got {words[1]}"):
            parse(*words)


def test_a_recipe_sets_defaults_and_single_options_override_it():
    training, chosen = parse()
    assert training.recipe == "standard" and chosen == RECIPES["standard"]
    for name, preset in RECIPES.items():
        training, chosen = parse("--recipe", name)
        found = {**dataclasses.asdict(training), **chosen}
        assert {key: found[key] for key in preset} == preset
    assert RECIPES["best"] and RECIPES.keys() == set(typing.get_args(Recipe))
    assert parse("--recipe", "best", "--memory_rotations", "none")[1] == {
        key: value for key, value in parse("--recipe", "best")[1].items() if key != "memory_rotations"
    }


def test_the_best_recipe_looks_closer_where_the_memory_has_an_encoder():
    best = parse("--recipe", "best", "--memory_encoder", "some/encoder")[1]
    assert (best["memory_image_size"], best["memory_limit"]) == (448, 4096)
    assert "memory_image_size" not in parse("--recipe", "standard", "--memory_encoder", "some/encoder")[1]
    chosen = parse("--recipe", "best", "--memory_encoder", "some/encoder", "--memory_image_size", "224")[1]
    assert chosen["memory_image_size"] == 224


def test_an_unknown_recipe_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse("--recipe", "worst")
    assert "--recipe: invalid choice: 'worst'" in capsys.readouterr().err
