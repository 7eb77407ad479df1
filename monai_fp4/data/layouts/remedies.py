"""What to do with a folder that no layout fits: what its files have to become, and where the data may begin instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from monai_fp4.data.layouts.listing import Listing, is_hidden
from monai_fp4.data.readers import split_suffix
from monai_fp4.errors import listed

__all__ = ["remedies"]

_CONVERT: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        (".zip", ".tar", ".tgz", ".gz", ".bz2", ".7z", ".rar"): "unpack {}",
        (".webp", ".jp2", ".j2k", ".heic", ".avif", ".ppm", ".pgm"): "save {} as PNG",
        (".svs", ".ndpi", ".mrxs", ".scn", ".czi", ".lif"): "cut {} into PNG or TIFF tiles",
        (".mgz", ".mgh"): "convert {} to .nii.gz with FreeSurfer's mri_convert",
        (".mnc",): "convert {} to .nii.gz with MINC's mnc2nii",
        (".par", ".rec"): "convert {} to .nii.gz with dcm2niix",
        (".npy", ".npz", ".mat", ".h5", ".hdf5", ".pkl", ".pt"): "save {} as .nii.gz with nibabel",
        (".xml", ".roi", ".geojson"): "draw the contours of {} into masks, for LIDC with pylidc",
    }
)
"""What to do with files that no reader takes."""
_MOST = 40
"""Folders that are tried."""


def remedies(listing: Listing, find: Callable[[Listing], str | None], *, table: bool = True) -> str:
    """What to do, to be put behind a refusal; a ``table`` lists files and no series."""
    found = [_conversions(listing), _deeper(listing, find)]
    found.append("or list patient, image and mask of each in a CSV table there, for --format table" if table else "")
    return "".join(f"; {each}" for each in found if each)


def _conversions(listing: Listing) -> str:
    unread = [path for path in listing.files if split_suffix(path) is None]
    found = []
    for suffixes, remedy in _CONVERT.items():
        seen = sorted({end for path in unread for end in suffixes if path.lower().endswith(end)})
        if seen:
            found.append(remedy.format(" and ".join(seen)))
    return ", ".join(found)


def _deeper(listing: Listing, find: Callable[[Listing], str | None]) -> str:
    """Folders one or two levels below at which data begin that a layout fits."""
    below = [listing.root / name for name in listing.folders][:_MOST]
    inner = [path for each in below for path in sorted(each.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    for folders in (below, inner[:_MOST]):
        fitting = {folder: layout for folder in folders if (layout := find(listing.at(folder)))}
        first = next(iter(fitting), None)
        if first is None:
            continue
        names = [folder.relative_to(listing.root).as_posix() for folder in fitting]
        if len(fitting) == 1:
            return f"give {first} as dataset_dir, which is in the {fitting[first]} layout"
        return (
            f"put together what {listed(names)} hold, each in the {fitting[first]} layout, or give one as dataset_dir "
            "if it is a set of its own"
        )
    return ""
