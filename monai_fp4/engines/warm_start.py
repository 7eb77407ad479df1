"""Begin a training from weights that there are: of a run, of a ``model.pt``, or of a MONAI checkpoint.

What fits by name and shape is taken, as MONAI's ``copy_model_state`` does; the rest, such as the first layer for
another number of channels or the last one for other labels, keeps the weights that the seed drew. Both are said, and
kept in the run's ``init_from.json``. Names may begin with what DDP, torch.compile and Lightning put before them.

Weights know the patients that they were trained on. So the run keeps who those were, says which of its own held-out
patients are among them, and an evaluation refuses them as it refuses those that the run was trained on itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.utils import copy_model_state
from torch import nn

from monai_fp4.bundle.run_folder import RunFolder
from monai_fp4.bundle.tensor_files import load_tensors
from monai_fp4.data import Patient
from monai_fp4.data.identity import image_keys, same_images
from monai_fp4.errors import ConfigError

__all__ = ["seen_before", "take_weights", "what_was_taken"]

_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""What stands before the names of a network's tensors where something wraps the network."""

_SHOWN = 6


def take_weights(network: nn.Module, source: str) -> dict[str, Any]:
    """Load into a float network what fits of other weights.

    Args:
        network: the network, changed in place.
        source: the folder of a run, or the file of a checkpoint.

    Returns:
        As JSON: ``source``; ``taken``, how many tensors; ``share``, of the parameters; ``kept``, names of the tensors
        that keep what the seed drew; ``trained_on``, the keys of the images of each patient that the weights have seen,
        as far as a run says so.

    Raises:
        ConfigError: there is no such file, it holds no weights, or none of them fits.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise ConfigError(f"init_from must be the folder of a run or a checkpoint, but there is no {path}; correct it")
    file = RunFolder(path).model_path if path.is_dir() else path
    if path.is_dir() and file.exists():
        RunFolder(path).check_model()
    own = network.state_dict()
    # Of several networks in one file, such as a moving average beside the weights, the first of those that fit best.
    fitting = max((_fitting(each, own) for each in _mappings(load_tensors(file))), key=len)
    parameters = {name: parameter.numel() for name, parameter in network.named_parameters()}
    if not fitting.keys() & parameters.keys():
        raise ConfigError(
            f"init_from must hold weights of a like network, but no tensor in {file} fits by name and shape; give a "
            "run of the same arch and scale"
        )
    if not all(value.isfinite().all() for value in fitting.values() if value.is_floating_point()):
        raise ConfigError(f"init_from must hold finite weights, but NaN or infinity was found in {file}; give another")
    copy_model_state(network, fitting)
    return {
        "source": source,
        "taken": len(fitting),
        "share": sum(parameters.get(name, 0) for name in fitting) / sum(parameters.values()),
        "kept": sorted(set(own) - set(fitting)),
        "trained_on": _trained_on(RunFolder(file.parent)),
    }


def what_was_taken(report: Mapping[str, Any]) -> str:
    """One sentence for the log."""
    kept = report["kept"]
    shown = ", ".join(kept[:_SHOWN]) + (f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else "")
    rest = f"; new are {shown}" if kept else ""
    tensors, share = f"{report['taken']} of {report['taken'] + len(kept)} tensors", f"{100 * report['share']:.3g} %"
    return f"init_from {report['source']}: {tensors} taken, {share} of the parameters{rest}"


def seen_before(report: Mapping[str, Any], held_out: Iterable[Patient]) -> list[str]:
    """Ids of the held-out patients that the weights of `take_weights` were trained on, by their images."""
    seen = list(report["trained_on"].values())
    return [patient.id for patient in held_out if any(same_images(image_keys(patient), keys) for keys in seen)]


def _mappings(content: Mapping[str, Any]) -> Iterator[Mapping[Any, Any]]:
    """Where a checkpoint may hold weights: all of it, or one of its parts."""
    yield content
    yield from (part for part in content.values() if isinstance(part, Mapping))


def _fitting(weights: Mapping[Any, Any], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What fits a network by name, shape and kind of number, in the network's own dtypes."""
    found: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        bare = str(name)
        while bare not in own and (wrapper := next((w for w in _WRAPPERS if bare.startswith(w)), None)):
            bare = bare.removeprefix(wrapper)
        if bare in own and _is_like(value, own[bare]):
            found[bare] = value.to(own[bare].dtype)
    return found


def _is_like(value: Any, own: torch.Tensor) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"  # where a file is read; a tensor without values is on "meta"
        and value.shape == own.shape
        and value.is_floating_point() == own.is_floating_point()
        and not value.is_complex()
    )


def _trained_on(folder: RunFolder) -> dict[str, list[str]]:
    """The keys of the images of each patient, by number, that a run, and those that it began from, were trained on."""
    found: list[list[str]] = []
    for name in ("init_from.json", "patients.json"):
        if not (folder.path / name).exists():
            continue
        content = folder.read_json(name)
        seen = content.get("trained_on", {}) if name == "init_from.json" else content.get("images", {})
        members = seen if name == "init_from.json" else content.get("train", [])
        if not isinstance(seen, dict) or not isinstance(members, (dict, list)):
            raise ConfigError(f"{folder.path / name} must say who was trained on, but does not; restore it")
        for patient in members:
            keys = seen.get(patient) if isinstance(patient, str) else None
            if isinstance(keys, list) and all(isinstance(key, str) for key in keys):
                found += [] if keys in found else [keys]
    return {str(number): keys for number, keys in enumerate(found, 1)}  # who they are is nothing to this run
