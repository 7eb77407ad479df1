"""Folder by folder through a tree of files, so that the first study is predicted before the last file is opened.

Hidden files and what systems leave behind are passed over, and so are pipes and devices. What somebody may have meant
to be predicted is not: a folder that cannot be opened, and a link to nowhere or out of the tree, are reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from monai_fp4.data.readers.limits import check_inside
from monai_fp4.errors import DataError

__all__ = ["Folder", "natural", "walk"]

_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx", "dicomdir"}


@dataclass
class Folder:
    """One folder.

    Attributes:
        path: the folder.
        files: what may be read, in natural order.
        problems: paths of what cannot be, and why.
    """

    path: Path
    files: list[Path] = field(default_factory=list)
    problems: list[tuple[Path, str]] = field(default_factory=list)


def walk(root: Path, without: Path | None = None) -> Iterator[Folder]:
    """Every folder of a tree, in natural order, a folder before those in it.

    Args:
        root: a folder, or a file, which is then all that there is.
        without: a folder to pass over, such as the one that results are written to.
    """
    if not root.is_dir():
        yield Folder(root.parent, [root])
        return
    hidden = without.resolve() if without is not None else None
    waiting, seen = [root], set()
    while waiting:
        here = Folder(waiting.pop())
        inner: list[Path] = []
        try:
            status = here.path.stat()
            if (status.st_dev, status.st_ino) in seen:  # by a link
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(here.path.iterdir(), key=lambda path: natural(path.name))
        except OSError as error:
            here.problems.append((here.path, f"expected a folder that can be opened, found {error.strerror}"))
            entries = []
        for path in entries:
            if path.name.startswith(".") or path.name.lower() in _SYSTEM:
                continue
            try:
                if path.is_symlink():
                    _check_link(path, root)
                if path.is_dir():
                    # What a link within the tree leads to is there without it.
                    inside = path.is_symlink() and path.resolve().is_relative_to(root.resolve())
                    inner += [] if inside or path.resolve() == hidden else [path]
                elif path.is_file():  # a pipe would be waited for
                    here.files.append(path)
            except (OSError, DataError) as error:
                here.problems.append((path, str(error) if isinstance(error, DataError) else str(error.strerror)))
        waiting += reversed(inner)
        yield here


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``slice_2`` before ``slice_10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _check_link(path: Path, root: Path) -> None:
    check_inside(path, root)
    if not path.exists():
        raise DataError(f"expected a file behind the link {path}, found none; fetch what it leads to")
