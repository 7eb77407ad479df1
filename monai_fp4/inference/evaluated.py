"""The masks behind an evaluation's numbers, written where they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from monai_fp4.bundle.options import flag
from monai_fp4.data.messages import without_paths
from monai_fp4.data.records import Reading
from monai_fp4.data.scans import read_image
from monai_fp4.errors import DataError
from monai_fp4.inference.results import write_mask
from monai_fp4.inference.study import Study, format_of

__all__ = ["SavePredictions"]


class SavePredictions:
    """Writes the mask of each patient of an evaluator into ``predictions/<patient>``, as `Predictor` does.

    Args:
        output_dir: of the evaluation.
        datalist: the patients' records, which say where the scans lie.
        threshold: the probability from which on a voxel is called lesion.
        active: False writes nothing.
    """

    def __init__(
        self, output_dir: str | Path, datalist: Sequence[Mapping[str, Any]], threshold: float, *, active: Any = True
    ) -> None:
        self.folder = Path(output_dir) / "predictions"
        self.records = {str(record["patient"]): record for record in datalist}
        self.threshold, self.active = threshold, flag("predictions", active)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        if self.active:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        for item in engine.state.output:
            record = self.records[str(item["patient"])]
            # Masks that are shared are those of channels; each slice has one of its own.
            shared = [list(pairs) for _, pairs in groupby(record["images"], key=lambda pair: str(pair["mask"]))]
            study = Study(str(item["patient"]), tuple(tuple(str(p["image"]) for p in pairs) for pairs in shared))
            with without_paths(study.place, record["images"]):
                scan = read_image(study.slices, Reading.from_json(record.get("reading", {})))
            mask = (item["pred"][0].float().cpu().numpy() >= np.float32(self.threshold)).astype(np.uint8)
            try:
                write_mask(self.folder / study.place, "mask", mask, scan, study.slices[0][0], format_of(study))
            except DataError as error:  # which names the scan by its path
                raise DataError(
                    f"expected a mask in the format of the scan of patient {study.place!r}, found that none can be "
                    "written; evaluate without predictions, or convert the scan to NIfTI"
                ) from error
