"""Work on every patient, and name all that are wrong together, one fault once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from monai_fp4.errors import DataError

__all__ = ["every_patient"]

R = TypeVar("R")

_FEW = 5
_PATH = re.compile(r"\S*/\S*")


def every_patient(patients: Sequence[Any], work: Callable[[Any], R]) -> list[R]:
    """What comes of each patient.

    Raises:
        DataError: one or more are wrong.
    """
    done: list[R] = []
    wrong: dict[str, str] = {}
    for patient in tqdm(patients, desc="patients", disable=None):
        try:
            done.append(work(patient))
        except DataError as error:
            wrong[patient.id] = str(error)
    if len(wrong) == 1:
        raise DataError(next(iter(wrong.values())))
    if wrong:
        raise DataError(
            f"expected all {len(patients)} patients to be readable, found {len(wrong)} that are not; {_told(wrong)}"
        )
    return done


def _told(wrong: dict[str, str]) -> str:
    alike: dict[str, list[str]] = {}  # by what is wrong, whatever file it is in
    for patient, reason in wrong.items():
        alike.setdefault(_PATH.sub("", reason), []).append(patient)
    told = [
        f"{first}: {wrong[first]}" + (f" (the same: {', '.join(others)})" if others else "")
        for first, *others in alike.values()
    ]
    rest = [patient for group in list(alike.values())[_FEW:] for patient in group]
    return " | ".join([*told[:_FEW], *([f"and {', '.join(rest)}"] if rest else [])])
