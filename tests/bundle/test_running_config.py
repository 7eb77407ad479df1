"""The whole config is found from inside a component, and configs are compared to the depth that can be named."""

from __future__ import annotations

from typing import Any

from monai.bundle import ConfigParser

from monai_fp4.bundle import differences
from monai_fp4.bundle.running_config import differing_ids, running_config, value_at


class Component:
    def __init__(self, **_: Any) -> None:
        self.config = running_config()


def test_a_component_finds_the_config_that_it_is_part_of():
    config = {"loss": {"alpha": 0.5}, "component": {"_target_": f"{__name__}.Component"}, "_meta_": {"version": "1"}}
    parser = ConfigParser(config)
    parser["loss::alpha"] = 0.25
    component = parser.get_parsed_content("component")
    assert component.config == {"loss": {"alpha": 0.25}, "component": config["component"]}


def test_outside_of_a_bundle_there_is_no_config():
    assert running_config() == {}


def test_a_changed_list_entry_is_named_and_a_longer_list_is_one_difference():
    first = {"train": {"handlers": [{"beta": 1}, {"beta": 2}]}}
    assert list(differing_ids(first, {"train": {"handlers": [{"beta": 1}, {"beta": 3}]}})) == [
        "train::handlers::1::beta"
    ]
    assert list(differing_ids(first, {"train": {"handlers": []}})) == ["train::handlers"]
    assert value_at(first, "train::handlers::1::beta") == 2
    assert value_at(first, "train::missing::1") is None


def test_sections_count_as_much_as_options():
    assert differences({"loss": {"alpha": 0.3}}, {"loss": {"alpha": 0.5}}) == ["loss::alpha"]
    assert differences({"seed": 1}, {"seed": 1, "loss": {}}) == ["loss"]
