"""Seconds, minutes and hours in progress lines; without MONAI, which a sweep does not load."""

from __future__ import annotations

import math

__all__ = ["format_seconds"]


def format_seconds(seconds: float) -> str:
    """Write seconds in the largest unit that fits, with the next smaller one.

    >>> format_seconds(4.2), format_seconds(75), format_seconds(7384)
    ('4 s', '1 min 15 s', '2 h 03 min')
    """
    whole = math.ceil(seconds) if seconds < 1 else round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
