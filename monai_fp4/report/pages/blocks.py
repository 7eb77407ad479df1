"""Blocks that a page of the report is made of: texts, notes, tables, pictures and cards, in order.

Numbers are formatted here, once: a p value has three digits, a difference its sign, and what is not known is a dash
that a screen reader reads as "not known". Every cell keeps its raw value for sorting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import pandas as pd

from monai_fp4.report.figures import Picture

__all__ = [
    "Block",
    "Cell",
    "Column",
    "Page",
    "cards",
    "files",
    "heading",
    "items",
    "link",
    "note",
    "pictures",
    "table",
    "text",
]


@dataclass(frozen=True)
class Cell:
    """One cell of a table: what is read, what it is sorted by, and a class for its looks."""

    text: str
    sort: str
    kind: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        source: column of the frame.
        title: heading.
        form: ``text``, ``words`` (long, wraps), ``whole``, ``fixed`` (three digits), ``signed`` (four), ``p``,
            ``percent``, ``seconds``, ``bytes`` or ``status``.
    """

    source: str
    title: str
    form: str = "text"


@dataclass(frozen=True)
class Block:
    """A part of a page; `kind` names the template's macro and `content` what it is given."""

    kind: str
    content: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A page: its file name without ending, its title, one line about it, and its blocks."""

    name: str
    title: str
    lead: str
    blocks: list[Block]

    @property
    def pictures(self) -> list[Picture]:
        """Every picture of the page."""
        return [block.content["picture"] for block in self.blocks if block.kind == "picture"]


def heading(title: str) -> Block:
    """A section's heading."""
    slug = "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")
    return Block("heading", {"title": title, "id": slug})


def text(*paragraphs: str) -> Block:
    """Paragraphs."""
    return Block("text", {"paragraphs": paragraphs})


def note(words: str, kind: str = "info") -> Block:
    """A paragraph that stands out; ``warning`` for what limits the results."""
    return Block("note", {"words": words, "kind": kind})


def link(page: str, words: str) -> Block:
    """A paragraph that leads to another page."""
    return Block("link", {"page": page, "words": words})


def items(entries: Sequence[str]) -> Block:
    """A list of sentences."""
    return Block("items", {"entries": list(entries)})


def pictures(*found: Picture | None, missing: str = "") -> list[Block]:
    """The pictures that could be drawn; where none could, a note that says so."""
    blocks = [Block("picture", {"picture": picture}) for picture in found if picture is not None]
    return blocks or ([note(missing)] if missing else [])


def cards(entries: Sequence[Mapping[str, Any]]) -> Block:
    """Cards with a title, a summary, groups of reasons, and a last line."""
    return Block("cards", {"entries": list(entries)})


def files(entries: Sequence[tuple[str, str]]) -> Block:
    """Links to data files: name without ending, and what is in it."""
    return Block("files", {"entries": list(entries)})


def table(
    frame: pd.DataFrame,
    columns: Sequence[Column],
    caption: str,
    *,
    data: str = "",
    filtered: bool = False,
    fixed: bool = False,
) -> Block:
    """A table that can be sorted by each column.

    Args:
        frame: the rows.
        columns: what is shown.
        caption: above the table.
        data: name of the files that hold it, for the links below.
        filtered: put a field above it that shows only matching rows.
        fixed: its order is its meaning, so it cannot be sorted.
    """
    rows = [[_cell(row[column.source], column.form) for column in columns] for _, row in frame.iterrows()]
    numeric = [column.form not in ("text", "words", "status") for column in columns]
    content = {"columns": list(columns), "rows": rows, "numeric": numeric, "caption": caption, "data": data}
    return Block(
        "table",
        content
        | {
            "filtered": filtered,
            "sorts": not fixed and len(rows) > 2,
            "id": f"table-{crc32(caption.encode()):08x}",
        },
    )


def _cell(value: Any, form: str) -> Cell:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA or value == "":
        return Cell("", "", "unknown")
    if form == "status":
        return Cell(str(value), str(value), "status " + str(value).replace(" ", "-"))
    if form in ("text", "words"):
        return Cell(str(value), str(value), "words" if form == "words" else "")
    number = float(value)
    return Cell(_format_number(number, form), repr(number), "shown" if form == "p" and number < 0.05 else "")


def _format_number(number: float, form: str) -> str:
    match form:
        case "whole":
            return f"{number:,.0f}"
        case "signed":
            return f"{number:+.4f}"
        case "p":
            return "< 0.001" if number < 0.001 else f"{number:.3f}"
        case "percent":
            return f"{number:.1f}"
        case "seconds":
            return f"{number:,.1f}"
        case "bytes":
            return f"{number / 2**30:.2f}"
    return f"{number:.3f}"
