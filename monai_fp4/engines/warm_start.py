"""Begin a training from weights that there are: of a run, of a ``model.pt``, or of a MONAI checkpoint.

What fits by name and shape is taken, as MONAI's ``copy_model_state`` does; the rest, such as the first layer for
another number of channels, keeps the weights that the seed drew. Both are said, and kept in the run's
``init_from.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.utils import copy_model_state
from torch import nn

from monai_fp4.bundle.run_folder import RunFolder
from monai_fp4.errors import ConfigError

__all__ = ["take_weights", "what_was_taken"]

_INNER = ("network", "model", "state_dict", "model_state_dict", "net")
"""Under what names checkpoints hold the weights among other things; the first is this package's own."""

_SHOWN = 6


def take_weights(network: nn.Module, source: str) -> dict[str, Any]:
    """Load into a float network what fits of other weights.

    Args:
        network: the network, changed in place.
        source: the folder of a run, or the file of a checkpoint.

    Returns:
        ``source``, ``taken`` (how many tensors) and ``kept`` (names of those that keep what the seed drew), as JSON.

    Raises:
        ConfigError: there is no such file, it holds no weights, or none of them fits.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise ConfigError(f"init_from must be the folder of a run or a checkpoint, but there is no {path}; correct it")
    file = RunFolder(path).model_path if path.is_dir() else path
    weights = _weights(RunFolder(file.parent).load(file), file)
    _, taken, kept = copy_model_state(network, weights)
    kept = sorted(set(network.state_dict()) - set(taken))
    if not taken:
        raise ConfigError(
            f"init_from must hold weights of a like network, but none of the {len(weights)} tensors in {file} fits by "
            "name and shape; give a run of the same arch and scale"
        )
    return {"source": source, "taken": len(taken), "kept": kept}


def what_was_taken(report: Mapping[str, Any]) -> str:
    """One sentence for the log."""
    kept = report["kept"]
    shown = ", ".join(kept[:_SHOWN]) + (f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else "")
    rest = f"; new are {shown}" if kept else ""
    return f"init_from {report['source']}: {report['taken']} of {report['taken'] + len(kept)} tensors taken{rest}"


def _weights(content: Any, file: Path) -> dict[str, torch.Tensor]:
    for name in _INNER:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    found = {str(name).removeprefix("module."): value for name, value in dict(content).items()}
    weights = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not weights or not all(value.isfinite().all() for value in weights.values() if value.is_floating_point()):
        what = "no tensors" if not weights else "NaN or infinity"
        raise ConfigError(f"init_from must hold finite weights, but {what} were found in {file}; give another file")
    return weights
