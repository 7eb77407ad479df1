"""The study folder: what a sweep writes and a report reads, defined here and nowhere else.

::

    study/
      study.json                      the definition: the axes of the grid and what all cells have in common
      bundles/unet_500k_sr.json ...   the bundle files that the cells run
      cells/unet_500k/sr/fold0_seed3/                    one cell: a run folder, as its bundle writes it,
        cell.json                     with what the sweep knows of it
        run.log                       and what the run printed
      cells/unet_500k/sr/optimizer-muon/fold0_seed3/     the same with a further axis
      .lock                           held by the one sweep that works here

A cell is one run: architecture, scale, recipe, fold, seed and, for each further axis of the grid, an option of the
bundles (`monai_fp4.bundle.options`). Everything that identifies a cell is in its path, so the folder can be read with
``ls``.

>>> definition = StudyDefinition(
...     archs=("unet",), scales=("500k",), recipes={"bf16": "bf16", "sr": "sr"}, folds=(0,), seeds=(0, 1),
...     further={"optimizer": ("adamw", "muon")}, manifest="phantom", dataset_dir="data/phantom")
>>> cells = definition.cells()
>>> len(cells), cells[-1].id
(8, 'unet_500k/sr/optimizer-muon/fold0_seed1')
>>> StudyDefinition.from_json(definition.to_json()) == definition
True

Where to read on: `cell` has the cell and its record, `definition` the axes of the grid, `folder` the files.
"""

from monai_fp4.study.layout.cell import Cell, CellRecord, CellStatus
from monai_fp4.study.layout.definition import FORMAT, NAMED_FOLDS, StudyDefinition
from monai_fp4.study.layout.folder import StudyFolder, read_json, write_json

__all__ = [
    "FORMAT",
    "NAMED_FOLDS",
    "Cell",
    "CellRecord",
    "CellStatus",
    "StudyDefinition",
    "StudyFolder",
    "read_json",
    "write_json",
]
