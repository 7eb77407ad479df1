"""A table of who is one person, from patients that show the same: what ``manifest build --groups`` takes.

Two pictures of one object in two folds make its results too good. Patients that seem to show the same, directly or by
way of a third, become one person, together with the other entries of each; the folds of a new manifest keep them whole.
"""

from __future__ import annotations

import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from monai_fp4.errors import DataError
from monai_fp4.report.formulas import is_formula
from monai_fp4.report.survey.manifest import Survey

__all__ = ["persons_of"]


def persons_of(found: Survey) -> pd.DataFrame:
    """Who is one person, a row each patient that could be read: ``patient``, ``group``, ``person``.

    The last is the first name of all those that show the same, in the manifest's order.

    Raises:
        DataError: a name that a spreadsheet would take for a formula, since it cannot be changed here.
    """
    patients = [each.patient for each in found.measured]
    who = [patient.who for patient in patients]
    numbers, names = pd.factorize(pd.Series(who, dtype="object"))
    one, other = (numbers[[getattr(pair, side) for pair in found.copies]] for side in ("one", "other"))
    graph = coo_array(([1] * len(one), (one, other)), shape=(len(names), len(names)))
    component = pd.Series(connected_components(graph, directed=False)[1][numbers])
    rows = pd.DataFrame({"patient": [patient.id for patient in patients], "group": [p.group for p in patients]})
    rows["person"] = pd.Series(who, dtype="object").groupby(component).transform("first")
    for name in pd.unique(rows.to_numpy().ravel()):
        if is_formula(name):
            raise DataError(
                f"expected a table of persons without names a spreadsheet computes, found {name!r}; rename it"
            )
    return rows
