from __future__ import annotations

import json

import pytest

from monai_fp4.bundle import OPTIONS, RunOptions, defaults, differences
from monai_fp4.errors import ConfigError


def test_the_defaults_are_valid_and_round_trip() -> None:
    options = RunOptions.from_config(**defaults())
    config = json.loads(json.dumps(options.to_config()))
    assert RunOptions.from_config(**config) == options
    assert differences(config, options.to_config()) == []


def test_a_recipe_written_out_round_trips_through_json() -> None:
    recipe = {"base": "sr_rht_2d", "overrides": [{"pattern": "model.0*", "precision": "bf16"}], "bf16_last_share": 0.25}
    options = RunOptions.from_config(**(defaults() | {"recipe": recipe}))
    config = json.loads(json.dumps(options.to_config()))
    assert RunOptions.from_config(**config).recipe == options.recipe
    assert differences(config, options.to_config()) == []


@pytest.mark.parametrize(("text", "value"), [("false", False), ("False", False), ("true", True), (True, True)])
def test_amp_as_the_command_line_says_it(text: object, value: bool) -> None:
    assert RunOptions.from_config(**(defaults() | {"amp": text})).amp is value


def test_image_size_may_be_a_tuple() -> None:
    assert RunOptions.from_config(**(defaults() | {"image_size": (64, 96)})).image_size == (64, 96)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipe", "sr_rth"),
        ("fold", -1),
        ("fold", "some"),
        ("fold", True),
        ("seed", -1),
        ("seed", 2**32),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("image_size", [64]),
        ("image_size", 64),
        ("image_size", [64, 0]),
        ("image_size", [64, 64.5]),
        ("val_interval", 0),
        ("num_workers", -1),
        ("amp", "yes"),
        ("manifest", ""),
        ("output_dir", 3.5),
    ],
)
def test_a_wrong_value_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        RunOptions.from_config(**(defaults() | {name: value}))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_option_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'epoch' is not known; the nearest names are 'epochs'"):
        RunOptions.from_config(**defaults(), epoch=3)


def test_a_missing_option_is_named() -> None:
    config = defaults()
    del config["seed"]
    with pytest.raises(ConfigError, match="seed is missing"):
        RunOptions.from_config(**config)


def test_only_what_changes_the_result_starts_a_new_run() -> None:
    moved = {"dataset_dir": "/elsewhere", "output_dir": "/there", "num_workers": 4, "device": "cpu"}
    assert differences(defaults(), defaults() | moved) == []
    for option in OPTIONS:
        if option.name not in moved:
            assert differences(defaults(), defaults() | {option.name: "other"}) == [option.name]
