"""Times as people say them, for progress lines; without MONAI, which a sweep does not load."""

from __future__ import annotations

import math

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """Write seconds as people say them.

    >>> duration(4.2), duration(75), duration(7384)
    ('4 s', '1 min 15 s', '2 h 03 min')
    """
    whole = math.ceil(seconds) if seconds < 1 else round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
