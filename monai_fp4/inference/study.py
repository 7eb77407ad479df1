"""What gets one result: the files of one scan, or why it cannot be predicted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from monai_fp4.data.readers import READERS, reader_of, split_suffix
from monai_fp4.data.readers.files import digest_of

__all__ = ["WHOLE", "Study", "digest_of_study", "format_of", "place_of"]

WHOLE = "study"
"""The place of a study that is all of the input."""


@dataclass(frozen=True)
class Study:
    """What gets one result.

    Attributes:
        place: its path below the input, without the ending.
        slices: the files of each slice, or those of one volume; each a file a channel.
        problem: why it cannot be predicted; ``""``: it can be tried.
        personal: what its headers say of the patient, which no message repeats.
        warnings: what finding it gave rise to.
    """

    place: str
    slices: tuple[tuple[str, ...], ...] = ()
    problem: str = ""
    personal: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def digest_of_study(study: Study) -> str:
    """The SHA-256 of all files of a study."""
    digests = [digest_of(Path(path), reader_of(path)) for paths in study.slices for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def format_of(study: Study) -> str:
    """The name of the reader of a study, a key of :data:`monai_fp4.data.readers.READERS`."""
    reader = reader_of(study.slices[0][0])
    return next(name for name, each in READERS.items() if each is reader)


def place_of(path: Path, base: Path) -> str:
    """A path below a folder, without the ending that a reader knows it by.

    >>> place_of(Path("in/anna/t1.nii.gz"), Path("in")), place_of(Path("in"), Path("in"))
    ('anna/t1', 'study')
    """
    relative = path.relative_to(base)
    if not relative.name:
        return WHOLE
    parts = split_suffix(relative.name)
    return relative.with_name(parts[0] if parts and parts[0] else relative.name).as_posix()
