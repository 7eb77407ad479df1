"""A CSV table in the data folder that lists everything: who, which files, and in which fold.

Columns: ``patient`` and ``mask``; every column whose name begins with ``image`` is a channel (``image_t1`` is called
``t1``); ``group``, ``person``, ``fold`` and ``split`` where they are known. Several rows of a patient are its slices,
in order::

    patient,image_flair,image_t1,mask,group,fold
    anna,mr/a_flair.nii.gz,mr/a_t1.nii.gz,masks/a.nii.gz,Basel,0
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_fp4.data.layouts.layout import FoundPatient, Layout
from monai_fp4.data.layouts.listing import Listing, composed
from monai_fp4.data.tables import columns_of, fold_and_split, read_table
from monai_fp4.errors import DataError, listed

__all__ = ["TABLE", "is_table"]

_ENDINGS = (".csv", ".tsv")


def _find(listing: Listing) -> list[FoundPatient]:
    tables = [path for path in listing.files if "/" not in path and path.lower().endswith(_ENDINGS)]
    tables = [path for path in tables if is_table(listing, path)] or tables
    if len(tables) != 1:
        raise DataError(
            f"expected one CSV table in {listing.root}, found {listed(tables)}; keep the one that lists all"
        )
    path = listing.root / tables[0]
    rows = read_table(path, ("patient", "mask"))
    images = [name for name in rows[0] if name.startswith("image")]
    if not images:
        raise DataError(f"expected a column image in {path}, found {', '.join(rows[0])}; name the images' column so")
    known = {composed(file): file for file in listing.files}
    people: dict[str, list[Mapping[str, str]]] = {}
    for number, row in enumerate(rows, 2):
        for name in (*images, "mask"):
            file = known.get(_relative(row[name], listing.root))
            if file is None:
                raise DataError(
                    f"expected the file of column {name} in line {number} of {path}, found no {row[name]!r} in "
                    f"{listing.root}; correct the path, which starts from there"
                )
            row[name] = file
        if not row["patient"]:
            raise DataError(f"expected a patient in line {number} of {path}, found none; name who it is")
        people.setdefault(row["patient"], []).append(row)
    channels = tuple(name.removeprefix("image").lstrip("_-") or "image" for name in images)
    return [_patient(patient, lines, images, channels, str(path)) for patient, lines in people.items()]


def is_table(listing: Listing, path: str) -> bool:
    """Whether a file is a table of the whole set: at the top, with columns for patient, images and mask."""
    if "/" in path or not path.lower().endswith(_ENDINGS):
        return False
    columns = columns_of(listing.root / path)
    return {"patient", "mask"} <= {*columns} and any(name.startswith("image") for name in columns)


def _relative(path: str, root: Path) -> str:
    """A path as the listing has it, however it was written: from the root on, with one kind of slash."""
    text = composed(path.replace("\\", "/").removeprefix(f"{root.as_posix()}/"))
    while text.startswith("./"):
        text = text[2:]
    return text


def _patient(
    patient: str, rows: Sequence[Mapping[str, str]], images: Sequence[str], channels: tuple[str, ...], source: str
) -> FoundPatient:
    for name in ("group", "person", "fold", "split"):
        values = {row.get(name, "") for row in rows}
        if len(values) > 1:
            raise DataError(
                f"expected one {name} of patient {patient!r} in {source}, found {listed(sorted(values))}; keep one"
            )
    masks = Counter(row["mask"] for row in rows)
    mask, count = masks.most_common(1)[0]
    if count > 1:
        raise DataError(
            f"expected a mask of each slice of patient {patient!r} in {source}, found {mask} in {count} rows; save one "
            "for each, or give channels of one scan a column each, such as image_t1 and image_t2"
        )
    first = rows[0]
    return FoundPatient(
        patient,
        tuple((row[name], row["mask"]) for row in rows for name in images),
        channels if len(channels) > 1 or channels != ("image",) else None,
        group=first.get("group", ""),
        person=first.get("person", ""),
        files=(Path(source).name,),
        **fold_and_split(first, source),
    )


TABLE = Layout(
    summary="a CSV table in the folder: `patient`, `image...`, `mask`, and `group`, `person`, `fold`, `split` if known",
    find=_find,
)
"""A table that lists images and masks."""
