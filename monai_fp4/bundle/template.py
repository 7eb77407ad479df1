"""Stamp a training bundle out of ``templates/train.json``: its options, and the values by which bundles differ.

The files in ``templates/`` are those that users read in ``bundles/``. `train.json` is the whole bundle below its
options, which come from `monai_fp4.bundle.options`; its ids are those of MONAI's model zoo, so that MONAI's own tools
find the trainer, the data sets and the network where they look for them. All other files are copied as they are.

Two numbers in it are less obvious than they look: ``pct_start`` is 0.21 because `OneCycleLR` divides by zero where that
share of all steps is exactly one step; the data set's ``device`` is the CPU wherever worker processes load the data,
since those cannot use CUDA.

>>> config = training_config("unet", "500k", "sr")
>>> config["recipe"], config["network_def"]["_target_"], config["run"]
('sr', 'monai_fp4.engines.build_and_seed', ['$@train#trainer.run()'])
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from monai_fp4.bundle.options import defaults
from monai_fp4.networks import find_cell

if TYPE_CHECKING:
    from monai.transforms import Compose

__all__ = ["TEMPLATES", "augmentation", "bundle_name", "training_config"]

TEMPLATES = Path(__file__).parent / "templates"
"""The folder of the template and of the files that are copied as they are."""

_EPOCHS: Mapping[str, int] = MappingProxyType({"500k": 12, "4m": 6, "15m": 3})


def bundle_name(arch: str, scale: str, recipe: str) -> str:
    """File name of a bundle without its ending.

    >>> bundle_name("swin", "15m", "sr")
    'swin_15m_sr'
    """
    return f"{arch}_{scale}_{recipe}"


def training_config(arch: str, scale: str, recipe: str) -> dict[str, Any]:
    """The whole training bundle of one cell of the study."""
    options = defaults() | {
        "recipe": recipe,
        "arch": arch,
        "scale": scale,
        "output_dir": f"runs/{bundle_name(arch, scale, recipe)}",
        "epochs": _EPOCHS[scale],
        "learning_rate": find_cell(arch, scale).config.learning_rate * (1.0 if scale == "500k" else 0.5),
    }
    return options | json.loads((TEMPLATES / "train.json").read_text(encoding="utf-8"))


def augmentation() -> Compose:
    """Build the bundles' random changes for Python users: flips, rotation and scale, contrast and brightness.

    Returns:
        MONAI's transforms as ``templates/train.json`` lists them, for slices: ``image`` ``[C, H, W]`` and ``label``
        ``[1, H, W]``.

    >>> [type(transform).__name__ for transform in augmentation().transforms]
    ['RandFlipd', 'RandFlipd', 'RandAffined', 'RandScaleIntensityd', 'RandShiftIntensityd']
    """
    from monai.bundle import ConfigParser  # takes a second, and writing bundles needs none of it

    return ConfigParser(training_config("unet", "500k", "bf16")["train"]).get_parsed_content("preprocessing")
