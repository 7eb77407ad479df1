"""Estimate how long the rest of a study will take, from the cells that have been timed.

A cell of a network and recipe that was timed takes as long as those did. For the others the time is taken to be a
product of what the network costs and what the recipe does to it, fitted to the timed cells as a sum of logarithms. A
network of which nothing was timed is not guessed at.

>>> times = {("unet_500k", "bf16"): [10.0], ("unet_500k", "sr"): [30.0], ("swin_500k", "bf16"): [20.0]}
>>> guess = Estimate(times)
>>> guess.seconds("unet_500k", "sr"), round(guess.seconds("swin_500k", "sr")), guess.seconds("vit_500k", "sr")
(30.0, 60, None)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from monai_fp4.study.layout import Cell, StudyDefinition, StudyFolder

__all__ = ["Estimate", "time_left", "timing_key", "timings"]


class Estimate:
    """Seconds of a whole cell by network and recipe.

    Args:
        times: (network, recipe) -> seconds of the cells that were timed.
    """

    def __init__(self, times: Mapping[tuple[str, str], Sequence[float]]) -> None:
        self._known = {key: float(np.mean(values)) for key, values in times.items() if values}
        networks, recipes = (list(dict.fromkeys(key[part] for key in self._known)) for part in (0, 1))
        rows = [[key[0] == name for name in networks] + [key[1] == name for name in recipes] for key in self._known]
        # The shortest of all solutions: what the data leaves open between networks and recipes is shared out evenly.
        logs = np.log(np.maximum(list(self._known.values()), 1e-3))
        effects = np.linalg.lstsq(np.array(rows, float), logs, rcond=None)[0].tolist() if rows else []
        self._networks = dict(zip(networks, effects, strict=False))
        self._recipes = dict(zip(recipes, effects[len(networks) :], strict=True))

    def seconds(self, network: str, recipe: str) -> float | None:
        """Expected wall time of a cell, or None where nothing is known of its network."""
        if (network, recipe) in self._known:
            return self._known[network, recipe]
        if network not in self._networks:
            return None
        # A recipe that was never timed is taken to cost what an average one does.
        return math.exp(self._networks[network] + self._recipes.get(recipe, np.mean(list(self._recipes.values()))))


def time_left(remaining: Iterable[float | None], slots: int) -> float | None:
    """Seconds until all of these are done when so many run at once; None where one of them is unknown.

    >>> time_left([60, 60, 30], 2), time_left([100, 10], 4), time_left([60, None], 1)
    (75.0, 100.0, None)
    """
    known = list(remaining)
    if any(value is None for value in known):
        return None
    seconds = [value for value in known if value is not None]
    return float(max(sum(seconds) / max(slots, 1), max(seconds, default=0.0)))


def timings(folder: StudyFolder, definition: StudyDefinition) -> dict[tuple[str, str], list[float]]:
    """Seconds of the cells that are done, by network and recipe (further axes count as the recipe's)."""
    times: dict[tuple[str, str], list[float]] = {}
    for cell in definition.cells():
        seconds = folder.known_record(cell).seconds
        if seconds > 0 and folder.finished(cell):
            times.setdefault(timing_key(cell), []).append(seconds)
    return times


def timing_key(cell: Cell) -> tuple[str, str]:
    """Key of what the time of a cell depends on: its network, and its recipe with any further axes."""
    network, _, rest = cell.group.partition("/")
    return network, rest
