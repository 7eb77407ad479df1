"""Read what a run says of its layers, attention and predictions: ``health.json``, as rows of the report's tables.

`monai_fp4.handlers.health` writes it. Runs of earlier versions have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from monai_fp4.errors import ConfigError
from monai_fp4.study.layout import read_json

__all__ = ["ATTENTION", "LAYERS", "SCORES", "read_health"]

LAYERS = ["epoch", "layer", "operand", "snr_db", "underflow", "clipped"]
"""Columns of the table of layers."""
ATTENTION = ["epoch", "layer", "measure", "value"]
"""Columns of the table of attention."""
SCORES = ["bin", "width", "positives", "negatives"]
"""Columns of the table of scores: how many lie in each bin, by their label."""


def read_health(path: Path, best_epoch: float) -> dict[str, Any]:
    """Read a run's ``health.json``.

    Args:
        path: of the file.
        best_epoch: whose predicted probabilities are wanted.

    Returns:
        ``health`` and ``attention``, rows of every epoch; ``scores``, a row a bin of [0, 1], and ``mean_probability``
        of the best epoch, none and NaN where it has no validation.

    Raises:
        ConfigError: when the file is missing or is something else.
    """
    found: dict[str, Any] = {"health": [], "attention": [], "scores": [], "mean_probability": math.nan}
    content = read_json(path)
    try:
        for entry in content["epochs"]:
            for name in (*entry["layers"], *entry.get("attention", {})):
                if not name.isprintable() or "$" in name:  # which a figure would take for a formula
                    raise ValueError(f"a layer cannot be called {name!a:.100}")
            epoch = int(entry["epoch"])
            found["health"] += [
                dict(zip(LAYERS, (epoch, layer, operand, *(_number(values, name) for name in LAYERS[3:])), strict=True))
                for layer, operands in entry["layers"].items()
                for operand, values in operands.items()
            ]
            found["attention"] += [
                dict(zip(ATTENTION, (epoch, block, measure, _number(values, measure)), strict=True))
                for block, values in entry.get("attention", {}).items()
                for measure in values
            ]
            if epoch == best_epoch and "scores" in entry:
                found |= _scores(entry["scores"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"{path} must hold what a run measured by epoch, but does not ({type(error).__name__}: {error}); restore or"
            " remove it"
        ) from None
    return found


def _scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: [float(count) for count in scores[name]] for name in ("positives", "negatives")}
    bins = pd.DataFrame(counts)  # refuses columns of different lengths
    bins["bin"], bins["width"] = bins.index / len(bins), 1 / max(len(bins), 1)
    return {"scores": bins.to_dict("records"), "mean_probability": _number(scores, "mean_probability")}


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    return math.nan if value is None else float(value)
