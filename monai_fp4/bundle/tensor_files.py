"""Files of tensors: written whole, read without running anything, and taken by a network that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from monai_fp4.atomic import Replacements, replacing
from monai_fp4.bundle.archive import check_archive
from monai_fp4.bundle.state import check_weights
from monai_fp4.errors import ConfigError

__all__ = ["fitting_weights", "load_tensors", "load_weights", "save_tensors"]


def save_tensors(
    path: Path,
    content: Mapping[str, Any],
    files: Replacements | None = None,
    kept_at: Path | None = None,
) -> None:
    """Save tensors and plain values so that ``torch.load(weights_only=True)`` reads them back.

    Args:
        path: the file.
        content: what it is to hold.
        files: those that it is to take its place with; None does so at once.
        kept_at: where what stands there by then is kept, if it is one of those.

    Raises:
        ConfigError: when the folder cannot be written to (no space, no permission).
    """
    try:
        # Given a path instead of a file, torch would keep the system's reason to itself.
        with replacing(path) if files is None else files.open(path, kept_at=kept_at) as file:
            torch.save(dict(content), file)
    except RuntimeError as error:  # torch's own, without a reason of the system behind it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path} must be writable, but torch says '{reason}'; make room and start again") from error


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load what `save_tensors` wrote.

    Raises:
        ConfigError: when the file is missing or damaged.
    """
    try:
        check_archive(path)
        content: Any = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            raise ValueError("it holds something other than names and their values")
    except FileNotFoundError:
        raise ConfigError(f"{path} must exist, but it does not; let the run finish an epoch first") from None
    except Exception as error:
        # Torch's own words advise to load without its guard, which is the last thing to do with such a file.
        reason = {
            ValueError: str(error),
            UnpicklingError: "it holds more than tensors and plain values, which might be code",
        }.get(type(error), f"it is cut or damaged: {type(error).__name__}")
        raise ConfigError(
            f"{path} must be a checkpoint of this package, but cannot be read ({reason}); remove it to start again,"
            " or restore it"
        ) from error
    return content


def load_weights(network: nn.Module, weights: Mapping[str, Any], source: Path) -> None:
    """Load weights into the network, strictly.

    Raises:
        ConfigError: as `fitting_weights`.
    """
    network.load_state_dict(fitting_weights(network, weights, source))


def fitting_weights(network: nn.Module, weights: Any, source: Path) -> dict[str, Any]:
    """Copies of the weights, if the network takes them as they are.

    Raises:
        ConfigError: when they are those of another network, or no good weights.
    """
    own = network.state_dict()
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{source} must hold the weights of a network, but does not; restore it")
    missing = [name for name in own if name not in weights]
    extra = [name for name in weights if name not in own]
    shapes = [n for n in own if n in weights and own[n].shape != getattr(weights[n], "shape", None)]
    if missing or extra or shapes:
        first = (missing or extra or shapes)[0]
        raise ConfigError(
            f"{source} holds the weights of another network: {len(missing)} tensors are missing, {len(extra)}"
            f" unknown and {len(shapes)} of another shape, '{first}' the first; use the arch, scale,"
            " image_size and image channels that it was trained with"
        )
    try:
        return check_weights(weights, network)
    except ValueError as error:
        raise ConfigError(f"{source} must hold good weights, but {error}; restore it") from None
