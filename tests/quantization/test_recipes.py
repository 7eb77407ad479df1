"""The table of recipes, and recipes written out in a config."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.scheme import Scheme
from monai_fp4.quantization.recipes import (
    FURTHER_RECIPES,
    PAPER_RECIPES,
    RECIPES,
    AttentionPrecision,
    Backward,
    Format,
    FourOverSix,
    Operand,
    Override,
    Precision,
    Recipe,
)

# The design's table, written out: name, forward, backward, SR, RHT, 2D.
TABLE = [
    ("bf16", "bf16", "high_precision", False, False, False),
    ("full", "fp4", "fp4", False, False, False),
    ("forward_only", "fp4", "high_precision", False, False, False),
    ("chain_rule", "fp4", "dequantized", False, False, False),
    ("sr", "fp4", "fp4", True, False, False),
    ("rht", "fp4", "fp4", False, True, False),
    ("2d", "fp4", "fp4", False, False, True),
    ("sr_rht", "fp4", "fp4", True, True, False),
    ("sr_2d", "fp4", "fp4", True, False, True),
    ("rht_2d", "fp4", "fp4", False, True, True),
    ("sr_rht_2d", "fp4", "fp4", True, True, True),
]


def test_the_eleven_recipes_are_the_design_s() -> None:
    rows = [
        (key, str(r.forward), str(r.backward), r.stochastic_rounding, r.hadamard, r.two_d_weights)
        for key, r in RECIPES.items()
    ]
    assert rows == TABLE
    for key, recipe in RECIPES.items():
        assert recipe.name == key
        assert recipe.quantizes is (key != "bf16")
        assert recipe.attention is AttentionPrecision.HIGH_PRECISION
        assert recipe.overrides == ()
        assert recipe.bf16_last_share == 0
        assert recipe.standard_format
        assert {recipe.scheme_of(operand) for operand in Operand} == {Scheme.NVFP4}


def test_every_recipe_of_the_paper_has_a_name() -> None:
    named = [[Recipe.from_config(name) for name in names] for names in PAPER_RECIPES.values()]
    assert list(PAPER_RECIPES) == list(range(8)) and [len(readings) for readings in named] == [1] * 7 + [2]
    assert set(FURTHER_RECIPES) == {"forward_rht", "forward_rht_2d"} and not FURTHER_RECIPES.keys() & RECIPES.keys()
    for recipe in named[7]:
        assert (recipe.forward, recipe.backward, recipe.hadamard) == ("fp4", "high_precision", True)
    assert [recipe.two_d_weights for recipe in named[7]] == [False, True]
    only = {"base": "forward_only", "hadamard": True, "name": "forward_rht"}
    assert Recipe.from_config(only) == FURTHER_RECIPES["forward_rht"]
    with pytest.raises(ConfigError, match="'forward_rht_2d'"):
        Recipe.from_config("forward_rht2d")


def test_the_table_and_its_recipes_are_frozen() -> None:
    with pytest.raises(TypeError):
        RECIPES["mine"] = RECIPES["sr"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["sr"].hadamard = True  # type: ignore[misc]
    assert hash(RECIPES["sr"]) == hash(Recipe(name="sr", stochastic_rounding=True))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_written_out_field_by_field(name: str) -> None:
    config = RECIPES[name].to_config()
    assert set(config) == {field.name for field in dataclasses.fields(Recipe)}
    assert Recipe.from_config(json.loads(json.dumps(config))) == RECIPES[name]
    assert Recipe.from_config(name) is RECIPES[name]
    assert Recipe.from_config(RECIPES[name]) is RECIPES[name]


def test_strings_become_members() -> None:
    recipe = Recipe.from_config(
        {
            "name": "mine",
            "forward": "fp4",
            "backward": "dequantized",
            "attention": "fp4",
            "overrides": [{"pattern": "*.head", "precision": "bf16"}],
            "bf16_last_share": 0,
        }
    )
    assert recipe.backward is Backward.DEQUANTIZED
    assert recipe.attention is AttentionPrecision.FP4
    assert recipe.overrides == (Override("*.head", Precision.BF16),)
    assert type(recipe.bf16_last_share) is float


def test_a_mapping_starts_from_its_base() -> None:
    recipe = Recipe.from_config({"base": "sr_rht", "two_d_weights": True})
    assert dataclasses.replace(recipe, name="sr_rht_2d") == RECIPES["sr_rht_2d"]
    assert recipe.name == "sr_rht_custom"
    assert Recipe.from_config({"base": "sr", "name": "mine", "attention": "fp4"}).name == "mine"
    assert Recipe.from_config({"base": "sr"}) == RECIPES["sr"]
    assert Recipe.from_config({"base": {"base": "sr", "hadamard": True}}).hadamard
    assert Recipe.from_config({}).name == "custom"


def test_true_and_false_may_be_texts_as_a_command_line_makes_them() -> None:
    recipe = Recipe.from_config({"base": "sr", "hadamard": "true", "stochastic_rounding": "false"})
    assert (recipe.hadamard, recipe.stochastic_rounding) == (True, False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("sr_rth", "recipe 'sr_rth' is not known; the nearest names are 'sr_rht'"),
        ({"base": "chainrule"}, "'chainrule' is not known; the nearest names are 'chain_rule'"),
        (
            {"stochastic_roundin": True},
            "recipe field 'stochastic_roundin' is not known; the nearest names are 'stochastic",
        ),
        (
            {"backward": "dequantised"},
            "field 'backward' 'dequantised' is not known; the nearest names are 'dequantized'",
        ),
        ({"forward": "fp8"}, "field 'forward' 'fp8' is not known; the nearest names are 'fp4'"),
        ({"attention": True}, "field 'attention' True is not known"),
        ({"format": "mxfp8"}, "field 'format' 'mxfp8' is not known; the nearest names are 'mxfp4'"),
        ({"four_over_six": "weight"}, "'four_over_six' 'weight' is not known; the nearest names are 'weights'"),
        ({"four_over_six": True}, "field 'four_over_six' True is not known"),
        ({"hadamard": "no"}, "'hadamard' expected true or false, found 'no'"),
        ({"hadamard": 1}, "'hadamard' expected true or false, found 1"),
        ({"bf16_last_share": 1.5}, "'bf16_last_share' expected a number from 0 to 1, found 1.5"),
        ({"bf16_last_share": "10%"}, "'bf16_last_share' expected a number from 0 to 1, found '10%'"),
        ({"bf16_last_share": float("nan")}, "'bf16_last_share' expected a number from 0 to 1, found nan"),
        ({"name": ""}, "'name' expected a name"),
        ({"overrides": "*.head"}, "'overrides' expected a list"),
        ({"overrides": {"pattern": "a", "precision": "bf16"}}, "'overrides' expected a list"),
        ({"overrides": [{"pattern": "*.head"}]}, "exactly the keys 'pattern' and 'precision'"),
        ({"overrides": [{"pattern": "", "precision": "bf16"}]}, "expected a pattern over module names"),
        ({"overrides": [{"pattern": "*", "precision": "fp32"}]}, "'fp32' is not known"),
        (3, "recipe expected a name or a mapping of fields, found 3"),
    ],
)
def test_configs_that_do_not_fit_are_refused_in_one_sentence(config: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.from_config(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"backward": "high_precision", "stochastic_rounding": True},
        {"base": "bf16", "hadamard": True},
        {"backward": "dequantized", "stochastic_rounding": True},
        {"base": "chain_rule", "hadamard": True},
        {"forward": "bf16"},
        {"forward": "bf16", "backward": "dequantized"},
        {"base": "bf16", "two_d_weights": True},
        {"base": "bf16", "attention": "fp4"},
        {"base": "bf16", "stochastic_rounding": True},
        {"base": "bf16", "overrides": [{"pattern": "*.mlp.*", "precision": "fp4"}]},
        {"base": "bf16", "format": "mxfp4"},
        {"base": "bf16", "four_over_six": "weights"},
        {"base": "rht", "four_over_six": "all"},
        {"base": "sr_rht_2d", "four_over_six": "activations"},
        {"base": "sr", "format": "mxfp4", "four_over_six": "weights"},
    ],
)
def test_contradictions_are_refused_and_name_both_fields(config: dict[str, Any]) -> None:
    others = r"(backward|forward|hadamard|format) = \w+; "
    with pytest.raises(ConfigError, match=rf"contradicts itself: .* does not go with {others}"):
        Recipe.from_config(config)


def test_the_tensors_that_a_format_is_for() -> None:
    n, f = Scheme.NVFP4, Scheme.FOUR_OVER_SIX
    expected = {"none": [n, n, n], "weights": [n, f, n], "activations": [f, n, n], "all": [f, f, n]}
    assert set(expected) == set(FourOverSix)
    for value, schemes in expected.items():
        recipe = Recipe.from_config({"base": "sr_2d", "four_over_six": value})
        assert [recipe.scheme_of(operand) for operand in ("input", "weight", "gradient")] == schemes
        assert recipe.standard_format is (value == "none")
    recipe = Recipe.from_config({"base": "sr_rht_2d", "format": "mxfp4"})
    assert {recipe.scheme_of(operand) for operand in Operand} == {Scheme.MXFP4}
    assert not recipe.standard_format
    with pytest.raises(ConfigError, match="'inputs' is not known; the nearest names are 'input'"):
        RECIPES["sr"].scheme_of("inputs")


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.quantizes])
def test_other_formats_go_with_every_recipe_that_quantizes(name: str) -> None:
    assert Recipe.from_config({"base": name, "format": "mxfp4"}).format is Format.MXFP4
    assert Recipe.from_config({"base": name, "four_over_six": "weights"}).four_over_six is FourOverSix.WEIGHTS


def test_two_d_weights_go_with_every_backward_pass() -> None:
    for backward in Backward:
        assert Recipe(name="mine", backward=backward, two_d_weights=True).two_d_weights


def test_the_first_matching_override_wins() -> None:
    recipe = Recipe(
        name="edges",
        overrides=(
            Override("*.layers.0.mlp.*", Precision.FP4),
            Override("*.layers.0.*", Precision.BF16),
            Override("head", Precision.BF16),
        ),
    )
    assert recipe.precision_of("encoder.layers.0.mlp.linear1") is Precision.FP4
    assert recipe.precision_of("encoder.layers.0.attention.qkv") is Precision.BF16
    assert recipe.precision_of("encoder.layers.10.attention.qkv") is Precision.FP4
    assert recipe.precision_of("head") is Precision.BF16
    assert recipe.precision_of("Head") is Precision.FP4
    assert recipe.precision_of("head.conv") is Precision.FP4
    assert RECIPES["bf16"].precision_of("head") is Precision.BF16


@settings(deadline=None)
@given(steps=st.integers(0, 10_000), percent=st.integers(0, 100))
def test_the_schedule_runs_the_last_share_in_bf16(steps: int, percent: int) -> None:
    recipe = Recipe(name="late", bf16_last_share=percent / 100)
    count = sum(recipe.runs_in_bf16(step=step, steps=steps) for step in range(steps))
    assert abs(count - steps * percent / 100) <= 0.5
    if 0 < count < steps:
        assert recipe.runs_in_bf16(step=steps - 1, steps=steps)
        assert not recipe.runs_in_bf16(step=0, steps=steps)


@settings(deadline=None, max_examples=50)
@given(
    backward=st.sampled_from(Backward),
    techniques=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    attention=st.sampled_from(AttentionPrecision),
    overrides=st.lists(st.builds(Override, st.text(min_size=1, max_size=8), st.sampled_from(Precision)), max_size=3),
    share=st.floats(0, 1),
    format=st.sampled_from(Format),
    four_over_six=st.sampled_from(FourOverSix),
)
def test_configs_round_trip_through_json(
    backward: Backward,
    techniques: tuple[bool, bool, bool],
    attention: AttentionPrecision,
    overrides: list[Override],
    share: float,
    format: Format,
    four_over_six: FourOverSix,
) -> None:
    fp4_gradients = backward is Backward.FP4
    recipe = Recipe(
        name="any",
        backward=backward,
        stochastic_rounding=techniques[0] and fp4_gradients,
        hadamard=techniques[1] and backward is not Backward.DEQUANTIZED,
        two_d_weights=techniques[2],
        attention=attention,
        overrides=tuple(overrides),
        bf16_last_share=share,
        format=format,
        four_over_six=FourOverSix.NONE if format is Format.MXFP4 or techniques[1] else four_over_six,
    )
    assert Recipe.from_config(json.loads(json.dumps(recipe.to_config()))) == recipe
