"""Bring a config that an earlier version of the package wrote to the names of today.

A run's ``config.json`` and the bundles of a study keep the ``_target_`` names and expressions that they were written
with. What has only moved is looked up here, so that such a run is resumed, compared and evaluated, and such a study
goes on, like any other; what has gone is refused where it is built.

>>> brought_up_to_date({"session": {"_target_": "monai_fp4.session.Session"}, "initialize": ["$@session"]})
{'session': {'_target_': 'monai_fp4.bundle.Session'}, 'initialize': ['$@session.begin()']}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from monai_fp4.bundle.running_config import SEPARATOR

__all__ = ["brought_up_to_date"]

_MOVED: Mapping[str, str] = MappingProxyType(
    {
        "monai_fp4.session.": "monai_fp4.bundle.",
        "monai_fp4.trained.": "monai_fp4.bundle.",
        "monai_fp4.evaluation.": "monai_fp4.handlers.",
        "monai_fp4.loop.": "monai_fp4.handlers.",
        "monai_fp4.layers.": "monai_fp4.quantization.layers.",
    }
)
"""How a ``_target_`` began, and how it begins now."""


def brought_up_to_date(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config in the words of this version; the argument is left as it is."""
    # Between the parts of an id, MONAI writes "::" into the config that it runs, where a file has "#".
    separator = SEPARATOR if SEPARATOR in json.dumps(config) else "#"
    present: dict[str, Any] = _at_present(config, separator)
    if "epochs" in present and "recipe" in present:
        present = _with_init_from(present, None)
    if present.get("initialize") == ["$@session"]:
        present["initialize"] = ["$@session.begin()"]
    return present


def _at_present(value: Any, separator: str) -> Any:
    if isinstance(value, list):
        return [each for item in value for each in _divided(_at_present(item, separator), separator)]
    if not isinstance(value, Mapping):
        return value
    present = {name: _at_present(item, separator) for name, item in value.items()}
    target = present.get("_target_")
    if isinstance(target, str):
        for before, now in _MOVED.items():
            if target.startswith(before):
                present["_target_"] = now + target.removeprefix(before)
    if present.get("_target_") == "monai_fp4.bundle.Session" and "epochs" in present:
        present = _with_init_from(present, "@init_from")
    if target == "torch.utils.data.DataLoader" and present.get("batch_size", 1) is None:  # one patient at a time
        del present["batch_size"]
        present["_target_"] = "monai_fp4.data.PatientLoader"
    if target == "monai_fp4.data.load_datalist" and present.get("manifest") == "@manifest":
        present["manifest"] = "$@session.manifest"  # which has read it already
    return present


def _with_init_from(config: dict[str, Any], value: Any) -> dict[str, Any]:
    """The same with the option that there was not, in its place, or a bundle would differ from today's in its order."""
    if "init_from" in config:
        return config
    items = list(config.items())
    at = next((number for number, (name, _) in enumerate(items, 1) if name == "seed"), len(items))
    return dict([*items[:at], ("init_from", value), *items[at:]])


def _divided(item: Any, separator: str) -> list[Any]:
    """One item of a list; where it is a handler that was divided, those that do today what it did."""
    if not (isinstance(item, dict) and item.get("_target_") == "monai_fp4.handlers.TensorBoard" and "network" in item):
        return [item]
    health = {
        "_target_": "monai_fp4.handlers.HealthRecorder",
        "session": "@session",
        "network": item["network"],
        "evaluator": f"@validate{separator}evaluator",
        "summary_writer": item.get("summary_writer"),
    }
    return [{name: value for name, value in item.items() if name != "network"}, health]
