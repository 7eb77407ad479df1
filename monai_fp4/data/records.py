"""Records of a manifest: patients, their image and mask files, and the fold or split that each patient belongs to.

Plain frozen records; :mod:`monai_fp4.data.manifest` reads and writes them, :mod:`monai_fp4.data.checks` checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ImagePair", "Manifest", "Patient", "Split"]


class Split(StrEnum):
    """``train`` patients belong to a fold; ``test`` patients are never trained on, whatever the fold."""

    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True)
class ImagePair:
    """An image file and its mask file, relative to the data folder, with the SHA-256 of each as lower-case hex."""

    image: str
    mask: str
    sha256: str
    mask_sha256: str


@dataclass(frozen=True)
class Patient:
    """One patient.

    Attributes:
        id: unique in the manifest.
        group: the institution, ``""`` where unknown; folds are stratified by it.
        fold: the fold that the patient is validated in; ``None`` in the test split.
        split: train or test.
        tumour_voxels: foreground voxels of the masks at the scan's own resolution; ``None``: unknown.
        images: those that share a mask are channels of one scan, in order; others are slices, in order along the third
            axis.
        tumour_slices: slices with at least one foreground voxel; ``None``: unknown.
    """

    id: str
    group: str
    fold: int | None
    split: Split
    tumour_voxels: int | None
    images: tuple[ImagePair, ...]
    tumour_slices: int | None = None


@dataclass(frozen=True)
class Manifest:
    """A named list of patients; build one with :func:`monai_fp4.data.build_manifest`.

    Attributes:
        name: what reports call it.
        format: the layout of the data folder, a key of :data:`monai_fp4.data.layouts.LAYOUTS`.
        channels: names of the image channels, in order.
        patients: all of them, sorted by id.
        folds: how many folds the patients of the train split are assigned to; 0: none.
        seed: the seed that assigned them.
        generator: the key of :data:`monai_fp4.data.phantoms.generators.GENERATORS` that computes the files on first
            use; ``None`` where they are the user's own.
        description: free text: source, citation, licence.
    """

    name: str
    format: str
    channels: tuple[str, ...]
    patients: tuple[Patient, ...]
    folds: int
    seed: int
    generator: str | None = None
    description: str = ""
