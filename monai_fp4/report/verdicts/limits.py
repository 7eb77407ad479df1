"""Limits of a study's evidence, whatever its numbers are: stated before any advice."""

from __future__ import annotations

from typing import Any

from monai_fp4.report.statistics import FEW
from monai_fp4.report.tables import StudyTables

__all__ = ["limits_of"]

_PROTOCOL = (("epochs", "epochs"), ("image_size", "image size"))


def limits_of(tables: StudyTables) -> list[str]:
    """List what the study's evidence does not cover, whatever its numbers are."""
    done = tables.done
    found = [
        (
            f"It is one data set ({tables.data_set}) and one task; another scanner, disease or hospital may order"
            " the recipes otherwise."
        ),
    ]
    if set(done["fold"]) == {"all"}:
        found.append(
            "Nobody was held out (fold all): the numbers are those of the very patients that were trained on. They say"
            " how well a recipe fits, and nothing of new patients."
        )
    elif tables.definition.protocol == "paper":
        found.append(
            "The epoch, by the loss, and the threshold with the best F2 were chosen on the very validation patients"
            " that are reported, under every recipe alike, as the paper does: their values flatter. What is called"
            " test is of patients on whom nothing was chosen."
        )
    else:
        found.append(
            "The epoch of the best AUPRC and the threshold with the best F2 were chosen on the very patients that are"
            " reported, under every recipe alike: differences are fairer than the values themselves, which flatter."
        )
    if done["fold"].nunique() == 1 and "all" not in set(done["fold"]):
        found.append(
            f"Every seed was validated on the patients of fold {done['fold'].iloc[0]}. The intervals say how far"
            " another seed would lead, and nothing of other patients."
        )
    counts = done.groupby(["model", "recipe", "fold"])["seed"].nunique()
    if len(counts) and counts.min() < FEW:
        few = int((counts < FEW).sum())
        found.append(f"{few} of {len(counts)} combinations of model, recipe and fold have fewer than {FEW} seeds.")
    same = [f"{word} = {_whole(done[column].iloc[0])}" for column, word in _PROTOCOL if done[column].nunique() == 1]
    if same:
        found.append(f"All trainings have {' and '.join(same)}; longer or finer ones were not tried.")
    if len(done) and set(done["backend"]) <= {"emulated", ""}:
        found.append(
            "FP4 was emulated. The numbers are those of the format; the speed and memory of FP4 hardware cannot be seen"
            " here."
        )
    versions = sorted({str(v) for v in done["version"] if v})
    if len(versions) > 1:
        found.append(f"The cells were run by {len(versions)} versions of the code ({', '.join(versions)}).")
    missing = len(tables.cells) - len(done)
    if missing:
        found.append(f"{missing} of {len(tables.cells)} cells are not finished: the grid is partial.")
    return found


def _whole(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
