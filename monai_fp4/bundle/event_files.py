"""TensorBoard's files in a run folder: for their owner alone, and without what a resumed run writes again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from monai_fp4.atomic import make_private

__all__ = ["EventFiles"]


class EventFiles:
    """The files of one run, each of one start.

    Args:
        folder: the run's, as it is when a start begins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._earlier = self._all()

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("events.out.tfevents.*"))

    def hide_new(self) -> None:
        """Let nobody else read the files of this start, which TensorBoard itself opens."""
        for path in self._all():
            if path not in self._earlier:
                make_private(path)

    def sizes(self) -> dict[str, int]:
        """Sizes of the files, in bytes."""
        return {path.name: path.stat().st_size for path in self._all()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Cut the files of earlier starts to what they held at a checkpoint: the rest is written again.

        Args:
            sizes: what `sizes` gave then.
        """
        for path in self._earlier:
            size = sizes.get(path.name, 0)
            if not size:
                path.unlink(missing_ok=True)
            elif path.stat().st_size > size:
                os.truncate(path, size)
