"""Read CSV tables as people write them: comma, semicolon or tab, UTF-8, UTF-16 or Windows' own."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_fp4.data.records import Split
from monai_fp4.errors import DataError, unknown_name

__all__ = ["columns_of", "fold_and_split", "read_table"]

_LONGEST_LINE = 1 << 16


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table, names of columns in lower case, all without spaces around them; ``columns`` must be there.

    Raises:
        DataError: no such file, no text, a column that is missing, a row with more fields than columns, or no row.
    """
    if not path.is_file():
        raise DataError(f"expected a CSV table at {path}, found no file; correct the path")
    text = _text(path.read_bytes(), path)
    delimiter = _delimiter(text)
    try:
        lines = [[field.strip() for field in line] for line in csv.reader(io.StringIO(text), delimiter=delimiter)]
    except csv.Error as error:
        raise DataError(f"expected a CSV table in {path}, found what is none ({error}); save it again") from error
    lines = [line for line in lines if any(line)]
    names = [name.lower() for name in lines[0]] if lines else []
    if not set(columns) <= set(names):
        raise DataError(
            f"expected the columns {' and '.join(columns)} in {path}, found {', '.join(names) or 'nothing'}; add "
            f"a first line with these names"
        )
    if len(set(names)) < len(names):
        raise DataError(f"expected every column once in {path}, found {', '.join(names)}; rename one")
    for number, line in enumerate(lines[1:], 2):
        if len(line) > len(names):
            raise DataError(
                f"expected {len(names)} fields in row {number} of {path}, found {len(line)}; put fields with the "
                f"separator in quotes"
            )
    if len(lines) < 2:
        raise DataError(f"expected rows below the names of the columns in {path}, found none; add them")
    return [dict(zip(names, [*line, *[""] * (len(names) - len(line))], strict=True)) for line in lines[1:]]


def columns_of(path: Path) -> list[str]:
    """The names of the columns, in lower case, whatever the rows below are; empty where there are none."""
    if not path.is_file():  # a pipe would be waited for
        return []
    try:
        with path.open("rb") as file:
            text = _text(file.read(_LONGEST_LINE), path)
        first = next(csv.reader(io.StringIO(text), delimiter=_delimiter(text)), [])
    except (DataError, OSError, csv.Error):
        return []
    return [name.strip().lower() for name in first]


def fold_and_split(row: Mapping[str, str], source: str) -> dict[str, Any]:
    """The fields ``fold``, a number, and ``split`` of a row; ``None`` where they are empty.

    Raises:
        DataError: a fold that is no whole number from 0 on, or a split that is neither train nor test.
    """
    fold, split = row.get("fold", ""), row.get("split", "").lower()
    if fold and not re.fullmatch(r"[0-9]{1,9}", fold):
        raise DataError(f"expected a fold as a whole number from 0 on in {source}, found {fold[:80]!r}; correct it")
    if split and split not in tuple(Split):
        raise unknown_name(f"split in {source}", split, [each.value for each in Split], DataError)
    return {"fold": int(fold) if fold else None, "split": Split(split) if split else None}


def _delimiter(text: str) -> str:
    return max(",;\t", key=text.partition("\n")[0].count)


def _text(data: bytes, path: Path) -> str:
    encodings = ["utf-16"] if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise DataError(f"expected text in {path}, found a file of another kind; save the table as CSV in UTF-8")
