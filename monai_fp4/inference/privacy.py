"""Messages without the names that files and headers hold.

A path may be a patient's name, and so may every text of a DICOM header. What a prediction prints or writes names a
study by its key alone; errors of the readers, which name files so that their owner can find them, pass through here
first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePath

from monai_fp4.data.readers import split_suffix
from monai_fp4.inference.studies import Study

__all__ = ["Redactor"]

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
        parts = {part for path in (*paths, self.study.place) for part in PurePath(path).parts}
        words = {self.study.place} | parts | {name.partition("#")[0] for name in parts}
        words |= {(split_suffix(name) or (name,))[0] for name in words}
        short = {part for part in self.root.parts if len(part) < _SHORT}  # an input called "in" is no name
        words, paths = words - short, paths - short
        for text in self.study.personal:
            words |= {text, *re.split(r"[\^\s,;=\\]+", text)}
        words -= {"", "/", ".", ".."} | ({self.keep, *PurePath(self.keep).parts} if self.keep else set())
        # A path goes on to where its next blank is: readers name files within a folder.
        patterns = [
            rf"(?<![A-Za-z0-9]){re.escape(path)}(?:/[^\s,;:)]*|(?![A-Za-z0-9]))" for path in _longest_first(paths)
        ]
        patterns += [rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])" for word in _longest_first(words)]
        return [re.compile(pattern, re.IGNORECASE) for pattern in patterns]

    def __call__(self, message: str) -> str:
        """The message in one line, with everything personal hidden."""
        text = " ".join(message.split())
        for pattern in self._patterns:
            text = pattern.sub(_HIDDEN, text)
        return text


def _longest_first(texts: Iterable[str]) -> list[str]:
    """Long texts before short ones, so that no rest of a name is left over."""
    return sorted(texts, key=lambda text: (-len(text), text))
