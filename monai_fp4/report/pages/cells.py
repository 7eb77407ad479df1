"""Cells of the pages' tables: numbers are formatted here, once.

A p value has three digits, a difference its sign, and what is not known is a dash that a screen reader reads as
"not known". Every cell keeps its raw value for sorting.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd

__all__ = ["Cell", "format_cell"]

_NUMBERS = {
    "whole": "{:,.0f}",
    "two": "{:.2f}",
    "fixed": "{:.3f}",
    "four": "{:.4f}",
    "signed": "{:+.4f}",
    "p": "{:.3f}",
    "percent": "{:.1f}",
    "seconds": "{:,.1f}",
    "bytes": "{:.2f}",
    "short": "{:.4g}",
}


class Cell(NamedTuple):
    """One cell of a table: what is read, what it is sorted by, and a class for its looks."""

    text: str
    sort: str
    kind: str


def format_cell(value: Any, form: str) -> Cell:
    """Format a value of a table.

    Args:
        value: a text, a number, or nothing: None, NaN, NA or an empty text.
        form: ``text``, ``words`` (long, wraps), ``status``, ``whole``, ``two``, ``fixed`` (three digits), ``four``,
            ``signed`` (four), ``p``, ``percent``, ``seconds``, ``bytes`` (written in GiB) or ``short`` (four digits
            that count).

    >>> format_cell(0.0004, "p")
    Cell(text='< 0.001', sort='0.0004', kind='shown')
    >>> format_cell(0.0123, "signed").text, format_cell(3 * 2**29, "bytes").text
    ('+0.0123', '1.50')
    >>> format_cell("no pair", "status").kind, format_cell(float("nan"), "whole").kind
    ('status no-pair', 'unknown')
    """
    if value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value)):
        return Cell("", "", "unknown")
    if form == "status":
        return Cell(str(value), str(value), "status " + str(value).replace(" ", "-"))
    if form in ("text", "words"):
        return Cell(str(value), str(value), "words" if form == "words" else "")
    number = float(value)
    if form == "p" and number < 0.001:
        text = "< 0.001"
    else:
        text = _NUMBERS[form].format(number / 2**30 if form == "bytes" else number)
    return Cell(text, repr(number), "shown" if form == "p" and number < 0.05 else "")
