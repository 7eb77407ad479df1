"""Who is who by content: two patients are one if they share images, whatever they and their files are called.

A run keeps what its patients' files hash to. So a renamed copy of a patient that it was trained on is known again,
another hospital's ``p0`` is another patient, and masks that were corrected make another run. Files are compared by
what they hash to, and volumes by what their voxels do, since the same scan compressed again is another file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.records import Manifest, Patient

__all__ = ["content_of", "image_keys", "same_images", "voxel_keys"]

_KEY = 16
"""Hexadecimal digits of a hash that are kept; two different files share them once in 10^19."""
_VOXELS = "voxels:"


def voxel_keys(image: NDArray[np.float32]) -> tuple[str, ...]:
    """What tells each channel of a scan ``[C, H, W, D]``, whatever file it was in; one of a single value tells nothing.

    >>> one = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    >>> voxel_keys(np.concatenate([one, one * 0])) == voxel_keys(one), voxel_keys(one) == voxel_keys(one + 1)
    (True, False)
    """
    told = [channel for channel in image if channel.min() < channel.max()]
    return tuple(sorted({hashlib.sha256(channel.tobytes()).hexdigest()[-_KEY:] for channel in told}))


def image_keys(patient: Patient) -> frozenset[str]:
    """What tells the images of a patient: hashes of files, and of voxels if they are known."""
    files = (pair.sha256[-_KEY:] for pair in patient.images)
    return frozenset((*files, *(_VOXELS + key for key in patient.voxels)))


def same_images(one: Collection[str], other: Collection[str]) -> bool:
    """Whether two patients are one, by what :func:`image_keys` tells of each.

    A single common image may be a blank slice; two are not, and neither is all that a patient has. A single common
    channel may be an atlas; all that one of the two has are not.

    >>> same_images({"a", "blank"}, {"b", "blank"}), same_images({"a", "b"}, {"b"}), same_images({"a"}, {"b"})
    (False, True, False)
    >>> same_images({"a", "voxels:1"}, {"b", "voxels:1", "voxels:2"})
    True
    """
    (files, voxels), (other_files, other_voxels) = _parted(one), _parted(other)
    whole = min(len(voxels), len(other_voxels))
    if whole and len(voxels & other_voxels) == whole:
        return True
    return len(files & other_files) >= max(1, min(2, len(files), len(other_files)))


def _parted(keys: Collection[str]) -> tuple[set[str], set[str]]:
    voxels = {key for key in keys if key.startswith(_VOXELS)}
    return {*keys} - voxels, voxels


def content_of(manifest: Manifest, parts: Mapping[str, Iterable[Patient]]) -> dict[str, Any]:
    """What a run keeps of its manifest and of who is in which part, beside the patients' ids, as plain JSON.

    Returns:
        ``channels``; ``images``, the keys of each patient's images by id; ``content``, a hash of everything that the
        run
        reads: images, masks, how they are read, and who is in which part.
    """
    members: dict[str, Sequence[Patient]] = {part: tuple(patients) for part, patients in parts.items()}
    read = {
        "channels": list(manifest.channels),
        "reading": manifest.reading.to_json(),
        **{
            part: [[patient.id, *((pair.sha256, pair.mask_sha256) for pair in patient.images)] for patient in patients]
            for part, patients in members.items()
        },
    }
    return {
        "channels": list(manifest.channels),
        "content": hashlib.sha256(json.dumps(read).encode()).hexdigest(),
        "images": {patient.id: sorted(image_keys(patient)) for patients in members.values() for patient in patients},
    }
