"""Read JSON that somebody else may have written: what Python's parser lets through, or stumbles over, is refused.

>>> parse_json('{"seed": 1, "seed": 2}')
Traceback (most recent call last):
    ...
ValueError: the key 'seed' stands twice
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from stat import S_ISREG
from typing import Any

__all__ = ["parse_json", "read_json_file"]

LARGEST_JSON = 2**28
"""Bytes: far above what a run or a study writes, far below what fills a machine's memory."""
_DEEPEST = 64
_DIGITS = 20
"""A 64-bit integer has no more, with its sign."""


def read_json_file(path: str | os.PathLike[str], *, finite: bool = False) -> Any:
    """Parse a file as :func:`parse_json` does; pipes, devices and files beyond 256 MiB are not opened.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file, not UTF-8, or as :func:`parse_json`.
    """
    status = Path(path).stat()
    if not S_ISREG(status.st_mode) or status.st_size > LARGEST_JSON:
        raise ValueError(f"it is no regular file of at most {LARGEST_JSON} bytes")
    return parse_json(Path(path).read_text(encoding="utf-8"), finite=finite)


def parse_json(text: str, *, finite: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: the JSON.
        finite: whether NaN and infinity, which Python writes and reads though JSON has none, are refused as well.

    Raises:
        ValueError: not JSON; a key twice; an integer of more than 64 bits; more than 64 levels; half a character (a
            surrogate without the other one).
    """
    try:
        document = json.loads(text, object_pairs_hook=_once, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels") from None
    waiting = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
        if isinstance(value, str):
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ValueError(f"{value[:40]!a} holds half a character")
        elif isinstance(value, dict):
            waiting += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
        elif finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is no number")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:40]!a} stands twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"the integer {digits[:_DIGITS]}... has {len(digits)} digits, and the most are {_DIGITS}")
    value = int(digits)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"the integer {digits} has more than 64 bits")
    return value
