"""How scans were acquired: what runs were trained on, what the user says may be predicted, what is to be warned of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from monai_fp4.bundle import TrainedNetwork
from monai_fp4.data.acquisition import check_summary, facts, outside
from monai_fp4.data.scans import Image
from monai_fp4.data.transforms import Scale
from monai_fp4.errors import ConfigError

__all__ = ["TrainingScans", "stated_modalities", "warnings_of_geometry"]

_SHEAR = 1e-3
"""Cosine of the angle between two axes of a scan from which on they are not at right angles."""


class TrainingScans:
    """What a run was trained on, by its ``training_data.json``; nothing where an early version kept none.

    Raises:
        ConfigError: the file holds something else.
    """

    def __init__(self, run: TrainedNetwork) -> None:
        path, self.channels = run.folder.path / "training_data.json", run.channels
        self._known = check_summary(run.folder.read_json(path.name), len(run.channels), path) if path.exists() else None

    @property
    def modalities(self) -> list[frozenset[str]]:
        """What each channel was acquired with; an empty set where the run does not say."""
        known = [()] * len(self.channels) if self._known is None else self._known["modalities"]
        return [frozenset(map(str.upper, each)) for each in known]

    @property
    def single_pictures(self) -> bool | None:
        """Whether all of them were pictures of one slice; None where the run does not say."""
        known = self._known
        return None if known is None else not known["spacing"] and known["slices"] == [1, 1]

    def warnings(self, scan: Image, seen: Tensor, scales: Sequence[Scale]) -> list[str]:
        """Where a scan lies outside of them, and which of its channels are blank.

        Args:
            scan: the scan.
            seen: the same as the network sees it, ``[C, h, w, D]``.
            scales: how each channel was normalised.
        """
        blank = [name for name, channel in zip(self.channels, seen, strict=True) if channel.amin() == channel.amax()]
        found = [f"channel '{name}' holds one value everywhere, as if it were missing" for name in blank]
        if self._known is None:
            return [*found, "the run kept no training_data.json, so the scan was not compared with its training"]
        return found + outside(self._known, facts(scan.place, scales), self.channels)


def stated_modalities(modality: Any, channels: int) -> list[frozenset[str]]:
    """Of each channel, what the option ``modality`` names.

    Raises:
        ConfigError: it names nothing, or another number of channels.
    """
    words = modality.strip("[]() ").split(",") if isinstance(modality, str) else modality
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) and word.strip(" '\"") for word in words):
        raise ConfigError(
            f"modality must be what DICOM calls it, such as MR, or one a channel, but {modality!r} was given"
        )
    names = [word.strip(" '\"").upper() for word in words]
    if len(names) not in (1, channels):
        raise ConfigError(
            f"modality must be one for all channels or one for each of {channels}, but {len(names)} were given"
        )
    return [frozenset({name}) for name in (names * channels)[:channels]]


def warnings_of_geometry(scan: Image) -> tuple[str, ...]:
    """What is to be looked at where the axes of a scan are not at right angles."""
    if scan.affine is None:
        return ()
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() < _SHEAR:
        return ()
    return (
        "slices are shifted against each other, as of a tilted gantry; viewers that stack them straight show scan and "
        "mask askew, so check the position of the mask slice by slice",
    )
