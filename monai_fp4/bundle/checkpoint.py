"""Whether a loaded checkpoint is one of this run: all is looked at before any of it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from reprlib import repr as bounded  # see `state`
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_fp4.bundle.state import check_optimizer, check_scaler, check_scheduler

__all__ = ["check_checkpoint", "check_run"]


def check_run(found: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
    """Check that a file is a checkpoint, of this run and no other of the same network.

    Args:
        found: what the file holds.
        fingerprints: what `monai_fp4.bundle.RunFolder.fingerprints` gives now.

    Raises:
        ValueError: naming what is missing or differs.
    """
    for name in ("network", "optimizer", "lr_scheduler", "epoch", "history"):
        if name not in found:
            raise ValueError(f"it holds no {name!r}")
    run = found.get("run", {})
    if not isinstance(run, dict) or not all(isinstance(text, str) for pair in run.items() for text in pair):
        raise ValueError("'run' must hold hashes of the run's config")
    differing = [name for name, text in fingerprints.items() if run.get(name, text) != text]
    if differing:
        raise ValueError(f"it is that of a run with other {' and '.join(map(repr, differing[:3]))}")


def check_checkpoint(
    found: Mapping[str, Any],
    *,
    optimizer: Optimizer,
    lr_scheduler: LRScheduler,
    scaler: torch.amp.GradScaler,
    patients: Sequence[str],
    max_epochs: int,
    epoch_length: int,
) -> dict[str, Any]:
    """Check what a checkpoint holds beside the weights: see `monai_fp4.bundle.tensor_files.fitting_weights`.

    Args:
        found: what the file holds, after `check_run`; those of earlier versions hold less.
        optimizer: the one that is to take its state, as the config makes it.
        lr_scheduler: its schedule.
        scaler: what scales the loss.
        patients: ids of those that the run validates on.
        max_epochs: of the run.
        epoch_length: steps an epoch.

    Returns:
        The checkpoint, tensors copied and patients by their ids.

    Raises:
        ValueError: saying what does not fit.
    """
    epoch = found["epoch"]
    history = _history(found["history"], epoch, max_epochs)
    steps = epoch * epoch_length
    state = check_optimizer(found["optimizer"], optimizer, steps)
    if not isinstance(found.get("model_checksum"), str | None):
        raise ValueError("'model_checksum' must be a text")
    checked = {
        "model_checksum": found.get("model_checksum"),
        "history": history,
        "optimizer": state,
        "lr_scheduler": check_scheduler(found["lr_scheduler"], lr_scheduler, state, epoch, steps),
        "scaler": check_scaler(found.get("scaler", {}), scaler),
        "per_patient": _patients(found.get("per_patient", []), patients),
        "peak_memory_bytes": _count(found.get("peak_memory_bytes", 0), "peak_memory_bytes"),
    }
    return {**found, **checked} | ({"events": _events(found["events"])} if "events" in found else {})


def _history(found: Any, epoch: Any, max_epochs: int) -> list[dict[str, Any]]:
    """Check the number of the epoch and the entries of ``metrics.json``, one an epoch.

    Raises:
        ValueError: saying what does not fit.
    """
    if type(epoch) is not int or not 1 <= epoch <= max_epochs:
        raise ValueError(f"'epoch' is {bounded(epoch)}, but must be a whole number from 1 to {max_epochs}")
    entries = found if isinstance(found, list) and len(found) == epoch else []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or type(entry.get("epoch")) is not int or entry["epoch"] != number:
            raise ValueError(f"'history' has no entry of epoch {number}")
        for name, value in entry.items():
            number_or_none = value is None or (_is_number(value) and math.isfinite(value))
            if not isinstance(name, str) or not (number_or_none or name == "learning_rate"):
                raise ValueError(f"'history' holds {bounded(value)} as {bounded(name)} of epoch {number}")
    if not entries:
        raise ValueError(f"'history' must be a list of {epoch} epochs")
    return entries


def _patients(found: Any, patients: Sequence[str]) -> list[dict[str, Any]]:
    """Check the results by patient: texts and numbers.

    Args:
        found: a row a patient, who is a number in ``patients``, from 1, or an id.
        patients: ids of those that the run validates on.

    Returns:
        The rows, with ids.

    Raises:
        ValueError: saying what does not fit.
    """
    rows = found if isinstance(found, list) else [found]
    for row in rows:
        if not isinstance(row, dict) or type(row.get("patient")) not in (str, int):
            raise ValueError("'per_patient' must be a list of patients")
        if not all(value is None or isinstance(value, str) or _is_number(value) for value in row.values()):
            raise ValueError(f"'per_patient' must hold numbers of patient {bounded(row['patient'])}")
        if not isinstance(row["patient"], str) and not 1 <= row["patient"] <= len(patients):
            raise ValueError(f"'per_patient' has a patient {row['patient']}, but {len(patients)} are validated on")
    return [row if isinstance(row["patient"], str) else row | {"patient": patients[row["patient"] - 1]} for row in rows]


def _events(found: Any) -> dict[str, int]:
    """Check how long the files of events were.

    Raises:
        ValueError: for anything but names and numbers of bytes.
    """
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError("'events' must hold the sizes of files")
    return {name: _count(size, f"events.{name:.50}") for name, size in found.items()}


def _count(found: Any, name: str) -> int:
    """Check a number of bytes.

    Raises:
        ValueError: for anything else.
    """
    if type(found) is not int or not 0 <= found < 2**60:
        raise ValueError(f"'{name}' must be a whole number from 0 on, but is {bounded(found)}")
    return found


def _is_number(value: Any) -> bool:
    """One that JSON files are read with: floats, and integers of 64 bits."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
