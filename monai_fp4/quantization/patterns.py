"""Patterns that name parts of a network: an option is a list of them, and each has to name something.

A pattern is a glob over full module names (`monai_fp4.quantization.recipes.matches`). It names the modules that it
matches and whatever is inside of them, so ``"encoder"`` and ``"encoder.*"`` both name all layers of the encoder.

>>> names_part("encoder.0.conv", "encoder"), names_part("encoders.0", "encoder"), names_part("up[0].conv", "up[0]")
(True, False, True)
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.recipes import matches

__all__ = ["are_patterns", "names_part", "named_by"]


def are_patterns(value: object) -> bool:
    """Whether a value is a list, a tuple or a set of strings."""
    return isinstance(value, list | tuple | set | frozenset) and all(isinstance(text, str) for text in value)


def names_part(name: str, pattern: str) -> bool:
    """Whether a pattern names a module, or one that it is inside of."""
    parts = name.split(".")
    return any(matches(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def named_by(option: str, patterns: object, names: Iterable[str], model: nn.Module) -> set[str]:
    """The names, of parts of a model, that the patterns of an option of `convert` name.

    Raises:
        ConfigError: they are no list of patterns, or one of them names nothing.
    """
    if not are_patterns(patterns):
        raise ConfigError(
            f"{option} expected a list of patterns over module names, found {patterns!r}: put them in a list"
        )
    names, found = list(names), set()
    for pattern in patterns:  # type: ignore[attr-defined]
        named = {name for name in names if names_part(name, pattern)}
        if not named:
            raise ConfigError(
                f"{option} expected patterns that match a layer of {type(model).__name__}, found {pattern!r}, which"
                f" matches none: the last ones are {', '.join(map(repr, names[-3:]))}"
            )
        found |= named
    return found
