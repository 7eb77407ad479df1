"""Who is who by content: two patients are one if they share images, whatever they and their files are called.

A run keeps what its patients' files hash to. So a renamed copy of a patient that it was trained on is known again,
another hospital's ``p0`` is another patient, and masks that were corrected make another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from monai_fp4.data.records import Manifest, Patient

__all__ = ["content_of", "image_keys", "same_images"]

_KEY = 16
"""Hexadecimal digits of a hash that are kept; two different files share them once in 10^19."""


def image_keys(patient: Patient) -> frozenset[str]:
    """What tells the images of a patient."""
    return frozenset(pair.sha256[-_KEY:] for pair in patient.images)


def same_images(one: Collection[str], other: Collection[str]) -> bool:
    """Whether two patients are one, by what :func:`image_keys` tells of each.

    A single common image may be a blank slice; two are not, and neither is all that a patient has.

    >>> same_images({"a", "blank"}, {"b", "blank"}), same_images({"a", "b"}, {"b"}), same_images({"a"}, {"b"})
    (False, True, False)
    """
    return len({*one} & {*other}) >= max(1, min(2, len(one), len(other)))


def content_of(manifest: Manifest, parts: Mapping[str, Iterable[Patient]]) -> dict[str, Any]:
    """What a run keeps of its manifest beside the patients' ids, as plain JSON.

    Args:
        manifest: the manifest.
        parts: patients by what they are for.

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
