"""The synthetic data sets, by name: the one table that writes them on first use and builds their manifests.

>>> sorted(GENERATORS)
['nodules', 'phantom']
>>> GENERATORS["nodules"].format
'nifti'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from monai_fp4.data.phantoms import nodules, phantom

__all__ = ["GENERATORS", "Generator"]


@dataclass(frozen=True, kw_only=True)
class Generator:
    """One synthetic data set.

    Attributes:
        write: fills a folder that does not exist or is empty, whole or not at all, and returns it.
        format: the layout that it writes.
        test_patients: ids of the test split; the others are assigned to folds.
        groups: institution by patient id, where the layout does not tell; ``None``: it does.
        description: what the manifest says of it.
    """

    write: Callable[[str | Path], Path]
    format: str
    test_patients: tuple[str, ...]
    groups: Mapping[str, str] | None
    description: str


GENERATORS: Mapping[str, Generator] = MappingProxyType(
    {
        "phantom": Generator(
            write=phantom.write_phantom,
            format="lgg",
            test_patients=phantom.TEST_PATIENTS,
            groups=None,
            description=(
                "Computed brain-like volumes with lesions; written on first use by monai_fp4.data. No medical data."
            ),
        ),
        "nodules": Generator(
            write=nodules.write_nodules,
            format="nifti",
            test_patients=nodules.TEST_PATIENTS,
            groups=nodules.nodules_groups(),
            description=(
                "Computed chest CT with lung nodules; written on first use by monai_fp4.data. No medical data, "
                "and no model of any real CT."
            ),
        ),
    }
)
"""A manifest's field ``generator`` names one of them."""
