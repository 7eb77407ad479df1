"""Records of a manifest: patients, their image and mask files, and the fold or split that each patient belongs to.

Plain frozen records; :mod:`monai_fp4.data.manifest` reads and writes them, :mod:`monai_fp4.data.checks` checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Header", "HeldOut", "ImagePair", "Manifest", "Patient", "Reading", "Split"]


class Split(StrEnum):
    """``train`` patients belong to a fold; ``test`` patients are never trained on, whatever the fold."""

    TRAIN = "train"
    TEST = "test"


class Header(StrEnum):
    """Which part of a NIfTI header says where a volume is; ``ignore``: image and mask lie voxel upon voxel."""

    AUTO = "auto"
    SFORM = "sform"
    QFORM = "qform"
    IGNORE = "ignore"


@dataclass(frozen=True)
class Reading:
    """How files become images and masks, as far as that is the user's to say.

    Attributes:
        labels: mask values that are the lesion; empty: any value but zero, of which there must be one.
        mask_threshold: soft masks are the lesion from this value on; ``None``: masks hold labels.
        ignore_label: mask values of voxels that neither a loss nor a metric counts.
        header: whom to believe where a NIfTI header contradicts itself.
        tolerance: how far image and mask may lie apart at the corners, in voxels.
    """

    labels: tuple[int, ...] = ()
    mask_threshold: float | None = None
    ignore_label: tuple[int, ...] = ()
    header: Header = Header.AUTO
    tolerance: float = 0.1

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Reading:
        """Take back what :meth:`to_json` gave, checked by the manifest's schema."""
        fields: dict[str, Any] = {**document, "header": Header(document.get("header", Header.AUTO))}
        for name in ("labels", "ignore_label"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as plain JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value != getattr(Reading, name)
        }


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
        person: who it is, where one person has several entries (sessions, time points); ``""``: the id says. One person
            is never on both sides of a split.
        voxels: hashes of the channels' numbers, whatever files they were in; empty: unknown.
    """

    id: str
    group: str
    fold: int | None
    split: Split
    tumour_voxels: int | None
    images: tuple[ImagePair, ...]
    tumour_slices: int | None = None
    person: str = ""
    voxels: tuple[str, ...] = ()

    @property
    def who(self) -> str:
        """The person, or the id where that is one."""
        return self.person or self.id


@dataclass(frozen=True)
class HeldOut:
    """Ids of the patients that a named split validates on and of those that it tests on; the others are trained on."""

    val: tuple[str, ...]
    test: tuple[str, ...]


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
        reading: how the files become images and masks.
        splits: named splits that hold out patients to validate and others to test on, in place of folds that only
            validate; their names are what ``fold`` chooses.
        pseudonyms: which key file says who the patients are and where their files lie, see
            :mod:`monai_fp4.data.pseudonyms`; ``""``: ids and paths are what they are.
    """

    name: str
    format: str
    channels: tuple[str, ...]
    patients: tuple[Patient, ...]
    folds: int
    seed: int
    generator: str | None = None
    description: str = ""
    reading: Reading = field(default_factory=Reading)
    splits: Mapping[str, HeldOut] = field(default_factory=dict)
    pseudonyms: str = ""
