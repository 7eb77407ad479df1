"""Results of readers: one file decoded, and one patient put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.errors import DataError

__all__ = ["Decoded", "Reader", "Volume", "binary_mask", "format_size"]


@dataclass(frozen=True)
class Volume:
    """One patient: image float32 ``[C, H, W, D]``, mask uint8 ``[1, H, W, D]`` of 0 and 1."""

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Decoded:
    """One file.

    Attributes:
        values: an image ``[C, H, W]`` or ``[C, H, W, D]``, a mask the same without ``C``; in the file's own type.
        affine: from voxels to millimetres ``[4, 4]``; ``None`` where a file does not say, as pictures.
    """

    values: NDArray[Any]
    affine: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A file format.

    Attributes:
        summary: what it is called in the documentation.
        suffixes: how names of such files end, in lower case.
        image: decodes path and bytes of an image file; raises ``DataError``, or what its library raises.
        mask: the same for a mask file.
    """

    summary: str
    suffixes: tuple[str, ...]
    image: Callable[[Path, bytes], Decoded]
    mask: Callable[[Path, bytes], Decoded]


def binary_mask(mask: NDArray[Any], paths: Sequence[str]) -> NDArray[np.uint8]:
    """Turn ``{0, one value}`` into uint8 0 and 1; the value may differ between patients, not within one.

    Args:
        mask: ``[H, W, D]`` of any type.
        paths: the files that it comes from: one, or one a slice.

    Raises:
        DataError: more than one value beside zero, or NaN or infinity.
    """
    top = mask.max()
    if np.isfinite(top) and ((mask == 0) | (mask == top)).all():  # sorting all voxels takes ten times as long
        return (mask != 0).view(np.uint8)
    values = np.unique(mask)
    if len(values[values != 0]) <= 1 and np.isfinite(values).all():
        return (mask != 0).astype(np.uint8)
    for index, path in enumerate(paths):
        inside = np.unique(mask if len(paths) == 1 else mask[..., index])
        if len(inside[inside != 0]) > 1 or not np.isfinite(inside).all():
            shown = ", ".join(f"{value:g}" for value in inside[:6]) + (", ..." if len(inside) > 6 else "")
            raise DataError(
                f"expected a binary mask (0 and one other value) in {path}, found {shown}; choose one label and "
                "save it alone"
            )
    shown = ", ".join(f"{value:g}" for value in values)
    raise DataError(f"expected one foreground value in all masks beside {paths[0]}, found {shown}; save them alike")


def format_size(shape: Sequence[int]) -> str:
    """``(16, 15)`` as ``16 x 15``."""
    return " x ".join(map(str, shape))
