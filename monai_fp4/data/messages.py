"""Errors of a run name a patient by its key and a file by its number.

What a run prints is kept in logs, tables and reports, which others read, and paths hold names. Whoever builds or checks
a manifest sits before the files, so ``manifest build`` and ``manifest check`` name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from monai_fp4.data.readers.dicom_series import is_series
from monai_fp4.errors import DataError

__all__ = ["without_paths"]


@contextmanager
def without_paths(patient: str, images: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Leave the paths of a patient's ``image`` and ``mask`` files out of the errors of the block.

    Raises:
        DataError: that of the block, in other words.

    >>> with without_paths("p1", [{"image": "/scans/Jane Doe/flair.nii", "mask": "/scans/Jane Doe/mask.nii"}]):
    ...     raise DataError("expected a whole image in /scans/Jane Doe/flair.nii, found none; fetch it again")
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
    monai_fp4.errors.DataError: expected a whole image in image 1 of patient 'p1', found none; ...
    """
    names: dict[str, str] = {}
    for number, pair in enumerate(images, 1):
        for kind in ("image", "mask"):
            names.setdefault(str(pair[kind]), f"{kind} {number} of patient {patient!r}")
    try:
        yield
    except DataError as error:
        message = given = str(error)
        if series := [what for path, what in names.items() if is_series(path)]:
            # What is said of a series may repeat its headers, which name the patient.
            message = (
                f"expected {series[0]} and all other series of that patient as the manifest names them, found that "
                "they are not; 'monai-fp4 manifest check' says what is wrong"
            )
        else:
            for path in _beside(names):
                names.setdefault(path, f"a file of patient {patient!r}")
            for path in sorted(names, key=len, reverse=True):  # so that no rest of a longer one is left
                message = message.replace(path, names[path])
                if (name := PurePath(path).name) in message:
                    message = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", names[path], message)
            # Of a library's long words the beginning is cut off, and a path with it.
            message = re.sub(r"[^\s'\"(]*/[^\s'\";,)]*[^\W\d][^\s'\";,)]*", "(path)", message)
            message += "; 'monai-fp4 manifest check' names the file" if message != given else ""
        raise DataError(message) from error


def _beside(paths: Iterable[str]) -> Iterator[str]:
    """The files that lie beside these, and those that should: a header may stand apart from its voxels."""
    for folder in {Path(path).parent for path in paths}:
        with suppress(OSError):
            yield from (str(path) for path in folder.iterdir())
    for path in list(paths):
        yield from (str(Path(path).with_suffix(end)) for end in (".img", ".IMG", ".hdr", ".raw", ".zraw"))
