"""A cell of the grid: what it is, where it lies and what the sweep knows of it.

>>> Cell("unet", "500k", "sr", fold=0, seed=3, further=(("image_size", (128, 128)),)).id
'unet_500k/sr/image_size-128x128/fold0_seed3'
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Cell", "CellRecord", "CellStatus"]


class CellStatus(StrEnum):
    """Status of a cell."""

    WAITING = "waiting"
    """Not begun, or cut off: the next sweep goes on after its last checkpoint."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, order=True)
class Cell:
    """One run of the grid.

    Attributes:
        arch: architecture.
        scale: scale.
        recipe: a key of `StudyDefinition.recipes`.
        fold: the fold that it is validated on: a number, ``"holdout"`` or ``"all"``.
        seed: its seed.
        further: option and value of each further axis, in the definition's order.
    """

    arch: str
    scale: str
    recipe: str
    fold: int | str = 0
    seed: int = 0
    further: tuple[tuple[str, Any], ...] = ()

    @property
    def group(self) -> str:
        """Folder that all folds and seeds of this combination share: ``unet_500k/sr/optimizer-muon``."""
        axes = "_".join(f"{name}-{_slug(value)}" for name, value in self.further)
        return "/".join([f"{self.arch}_{self.scale}", _slug(self.recipe), *([axes] if axes else [])])

    @property
    def id(self) -> str:
        """The cell's folder below ``cells/``."""
        return f"{self.group}/fold{self.fold}_seed{self.seed}"

    def differs_from(self, config: Mapping[str, Any]) -> str:
        """The option in which a run's config is that of another cell, or nothing.

        >>> Cell("unet", "500k", "sr", seed=3).differs_from({"arch": "unet", "recipe": {"name": "sr"}, "seed": 4})
        'seed'
        """
        recipe = config.get("recipe")
        found = {**config, "recipe": recipe.get("name") if isinstance(recipe, Mapping) else recipe}
        mine = {"arch": self.arch, "scale": self.scale, "recipe": self.recipe, "fold": self.fold, "seed": self.seed}
        for name, value in {**mine, **dict(self.further)}.items():
            there = found.get(name)
            plain = there is not None and not isinstance(there, Mapping)  # the optimizer's section is none
            if plain and there != value and _slug(there) != _slug(value):
                return name
        return ""


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """``cell.json``: what the sweep knows of a cell; the results themselves are in the run's own files.

    Attributes:
        status: how far it is.
        attempts: how often it was started, over all sweeps.
        error: one sentence on why the last attempt failed; empty otherwise.
        seconds: wall time of all attempts together, from the start of the process to its end.
        host: machine of the last attempt.
        device: where it computed, such as ``cpu`` or ``cuda:0``, with the GPUs that Ray gave it.
        started: begin of the last attempt, ISO 8601 in UTC.
        finished: end of the last attempt.
        version: version of the package, with the commit where it runs from a checkout.
        pid: process of the last attempt.
    """

    status: CellStatus = CellStatus.WAITING
    attempts: int = 0
    error: str = ""
    seconds: float = 0.0
    host: str = ""
    device: str = ""
    started: str = ""
    finished: str = ""
    version: str = ""
    pid: int = 0


def _slug(value: Any) -> str:
    """A value as part of a folder's name: ``[128, 128]`` is ``128x128``."""
    text = "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    slug = re.sub(r"[^A-Za-z0-9.+]+", "_", text).strip("_")
    return slug if slug.strip(".") else "none"
