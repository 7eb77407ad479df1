"""Texts that a spreadsheet would compute rather than show, which a stranger may have put into a name."""

from __future__ import annotations

__all__ = ["is_formula"]

_FIRST = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are the first four at full width."""


def is_formula(text: object) -> bool:
    """Whether it is a text that a spreadsheet would take for a formula.

    >>> is_formula("=cmd()"), is_formula("patient-1"), is_formula(-1.5)
    (True, False, False)
    """
    return isinstance(text, str) and text.startswith(_FIRST)
