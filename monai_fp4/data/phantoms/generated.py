"""Write a synthetic data set: whole or not at all, and never over somebody's files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from monai_fp4.errors import DataError

__all__ = ["institution_of", "patient_ids", "write_patients"]


def institution_of(index: int) -> str:
    """The institution of a patient, round robin; shares are uneven, as in life: C and D are small."""
    return "ABACBADBCA"[index % 10]


def patient_ids(begin: str, count: int) -> tuple[str, ...]:
    """Ids of patients, with the institution and the number of each.

    >>> patient_ids("PHANTOM_N", 2)
    ('PHANTOM_NA_0001', 'PHANTOM_NB_0002')
    """
    return tuple(f"{begin}{institution_of(index)}_{index + 1:04d}" for index in range(count))


def write_patients(
    folder: str | Path, name: str, patients: Sequence[str], write_patient: Callable[[Path, int], None]
) -> Path:
    """Write the folders of all patients, each by a function that is given the new folder and the number, from 0.

    The files appear all at once: they are written beside ``folder`` under another name, which is then changed. A write
    that was interrupted leaves nothing that looks like data, and of several processes the first one wins.

    Returns:
        ``folder``.

    Raises:
        DataError: there is something else in the folder, or it cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(
            f"expected no folder or an empty one at {target} for the {name}, found files; choose another dataset_dir"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            for index, patient in enumerate(tqdm(patients, desc=name, disable=None)):
                (partial / patient).mkdir()
                write_patient(partial / patient, index)
            partial.chmod(0o755)  # mkdtemp lets nobody else in
            _put_in_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:  # a full disk as well, at any patient
        raise DataError(
            f"expected to write the {name} to {target}, found {error}; make room or choose another dataset_dir"
        ) from error
    return target


def _put_in_place(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir() or not any(target.iterdir()):
            raise  # not the race that another process has won
