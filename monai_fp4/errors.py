"""The one family of exceptions that a user can cause, and how each of them is worded.

Every message is one sentence that says what was expected, what was found, in which file or field, and what to do.
Anything else that escapes from this package is a defect of ours.

>>> str(unknown_name("recipe", "sr_rth", ["sr", "rht", "sr_rht"]))
"recipe 'sr_rth' is not known; the nearest names are 'sr_rht', 'sr', 'rht' (all: 'sr', 'rht', 'sr_rht')"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ConfigError", "DataError", "MonaiFP4Error", "NumericsError", "listed", "printable", "unknown_name"]


_LONGEST = 2000
"""Characters of a sentence: what was given may be a whole file."""
_FEW = 6


def printable(text: str) -> str:
    r"""Write out what a terminal or a page would obey rather than show, as a stranger's file name may hold it.

    >>> print(printable("scan\x1b[2J of \u202egpj.exe"))
    scan\x1b[2J of \u202egpj.exe
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class MonaiFP4Error(Exception):
    """Base class: catch this one to catch everything that this package reports to its user."""

    def __str__(self) -> str:
        """The sentence, on one line, with nothing that a terminal would obey; of an endless one the middle is left out.

        >>> len(str(ConfigError("seed must be a number, but " + "x" * 10**6 + " was given")))
        2005
        """
        said = printable(super().__str__())
        return said if len(said) <= _LONGEST else f"{said[: _LONGEST // 2]} ... {said[-_LONGEST // 2 :]}"


class ConfigError(MonaiFP4Error, ValueError):
    """An option, a name, a recipe, a run folder or a checkpoint that does not fit."""


class DataError(MonaiFP4Error, ValueError):
    """A data folder, a manifest, a patient or a file that cannot be used as it is."""


class NumericsError(MonaiFP4Error, ArithmeticError):
    """NaN or infinity where a finite number was expected; the run stops rather than train on it."""


def listed(names: Iterable[str] | None) -> str:
    """The first few names, and how many there are beside them.

    >>> listed("abcdefgh")
    'a, b, c, d, e, f and 2 more'
    """
    every = list(names or ())
    return (", ".join(every[:_FEW]) or "none") + (f" and {len(every) - _FEW} more" if len(every) > _FEW else "")


def unknown_name(
    what: str, given: object, known: Iterable[str], error: type[MonaiFP4Error] = ConfigError
) -> MonaiFP4Error:
    """Word the error for a name that is in no table, with the nearest names first.

    Args:
        what: what the name stands for, such as ``"recipe"``.
        given: what the user wrote.
        known: every name that would have been accepted.
        error: the class of the exception to build.

    Returns:
        The exception, for the caller to raise.
    """
    names = list(known)
    nearest = difflib.get_close_matches(str(given)[:100], names, n=3, cutoff=0.3)
    hint = (
        f"the nearest names are {_quote(nearest)} (all: {_quote(names)})" if nearest else f"known are {_quote(names)}"
    )
    return error(f"{what} {given!r} is not known; {hint}")


def _quote(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
