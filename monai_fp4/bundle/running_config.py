"""The whole config that is being run, overrides included, found from inside one of its own components.

MONAI merges the config files and the command line into one config and instantiates it, but tells no component what it
is part of. A run folder has to keep all of it: a run whose loss was changed on the command line is another run. So the
parser is looked up on the call stack, where it stands while the component is being made.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["differing_ids", "running_config", "value_at"]

SEPARATOR = "::"
"""Between the parts of an id, as MONAI writes it."""


def running_config() -> dict[str, Any]:
    """The config of the bundle whose component is being made, as plain JSON; empty outside of a bundle."""
    from monai.bundle import ConfigParser, ConfigWorkflow  # takes seconds, and `differing_ids` needs none of it

    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        parser = owner.parser if isinstance(owner, ConfigWorkflow) else owner
        if isinstance(parser, ConfigParser) and isinstance(parser.config, Mapping):
            config = json.loads(json.dumps(parser.config, default=str))
            return {name: value for name, value in config.items() if not name.startswith("_")}
        frame = frame.f_back
    return {}


def differing_ids(first: Any, second: Any, prefix: str = "") -> Iterator[str]:
    """The ids under which two configs differ, as deep as they can be named.

    >>> list(differing_ids({"loss": {"alpha": 0.3, "beta": 0.7}}, {"loss": {"alpha": 0.5, "beta": 0.7}}))
    ['loss::alpha']
    """
    if first == second:
        return
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in dict.fromkeys([*first, *second]):
            yield from differing_ids(
                first.get(name), second.get(name), f"{prefix}{SEPARATOR}{name}" if prefix else name
            )
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second) and prefix:
        for number, pair in enumerate(zip(first, second, strict=True)):
            yield from differing_ids(*pair, f"{prefix}{SEPARATOR}{number}")
    else:
        yield prefix


def value_at(config: Any, id: str) -> Any:
    """Look an id of a config up; None where it is not there.

    >>> value_at({"loss": {"alpha": 0.3}}, "loss::alpha")
    0.3
    """
    for part in id.split(SEPARATOR):
        if isinstance(config, Mapping):
            config = config.get(part)
        elif isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config
