"""Messages without the names that files and headers hold.

A path may be a patient's name, and so may every text of a DICOM header. What a prediction prints or writes names a
study by its key alone; errors of the readers, which name files so that their owner can find them, pass through here
first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePath

from monai_fp4.data.readers import split_suffix
from monai_fp4.data.readers.dicom_series import behind, is_series
from monai_fp4.inference.study import WHOLE, Study

__all__ = ["Redactor", "without_quotes"]

_HIDDEN = "(hidden)"
_SHORT = 3


class Redactor:
    """Hides in messages where a study lies and whom it shows.

    Args:
        root: the input, file or folder.
        study: the study.
        keep: the study's path below the input, where the user chose it as the key; ``""``: hidden as well.

    >>> study = Study("Jane_Doe/scan", (("/data/Jane_Doe/scan.nii",),), personal=("Doe^Jane",))
    >>> Redactor(Path("/data"), study)("expected a whole image in /data/Jane_Doe/scan.nii of Jane, found none")
    'expected a whole image in (hidden) of (hidden), found none'
    """

    def __init__(self, root: Path, study: Study, keep: str = "") -> None:
        self.root, self.study, self.keep = root, study, keep

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        paths = {path for paths in self.study.slices for path in paths} | {str(self.root), str(self.root.absolute())}
        paths |= {str(file) for path in paths if is_series(path) for file in _files(path)}
        place = "" if self.study.place == WHOLE else self.study.place
        parts = {part for path in (*paths, place) for part in PurePath(path).parts}
        words = {place} | parts | {name.partition("#")[0] for name in parts}
        words |= {(split_suffix(name) or (name,))[0] for name in words}
        short = {part for part in self.root.parts if len(part) < _SHORT}  # an input called "in" is no name
        words, paths = words - short, paths - short
        for text in self.study.personal:
            # A description is hidden whole: its words are everybody's. A name is not.
            words |= {text, *(re.split(r"[\^\s,=]+", text) if "^" in text else ())}
        words -= {"", "/", ".", ".."} | ({self.keep, *PurePath(self.keep).parts} if self.keep else set())
        whole = {word for word in words if len(word) >= _SHORT}
        # Of one or two characters, letters are hidden as they are written, or no sentence would keep its "a"; numbers
        # tell nobody who somebody is.
        few = {word for word in words - whole if not word.isdecimal()}
        # A path goes on to where its next blank is: readers name files within a folder.
        ends = [_any(paths, r"(?:/[^\s,;:)]*|(?![A-Za-z0-9]))"), _any(whole, r"(?![A-Za-z0-9])")]
        patterns = [re.compile(pattern, re.IGNORECASE) for pattern in ends if pattern]
        return patterns + [re.compile(pattern) for pattern in [_any(few, r"(?![A-Za-z0-9])")] if pattern]

    def __call__(self, message: str) -> str:
        """The message in one line, with everything personal hidden."""
        text = " ".join(message.split())
        for pattern in self._patterns:
            text = pattern.sub(_HIDDEN, text)
        return text


def without_quotes(message: str) -> str:
    """A message that has the words of a library in it, without what they quote: it may be any text of the file.

    >>> without_quotes("found a damaged one (type 'Jane' is none, couldn't be)")
    "found a damaged one (type (hidden) is none, couldn't be)"
    """
    return re.sub(r"(?<!\w)(['\"`]).*?\1(?!\w)", _HIDDEN, message)


def _any(texts: Iterable[str], end: str) -> str:
    """A pattern of any of the texts, long ones first, so that no rest of a name is left over; ``""`` of none."""
    ordered = sorted({" ".join(text.split()) for text in texts} - {""}, key=lambda text: (-len(text), text))
    return rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, ordered))}){end}" if ordered else ""


def _files(series: str) -> Iterator[Path]:
    """All files below the folder of a series."""
    for folder in behind(Path(series)):
        for parent, _, names in os.walk(folder):
            yield from (Path(parent) / name for name in names)
