"""The paper's protocol on a GPU: first its table, then its recipes, for a machine that is lent for minutes.

    python benchmarks/gpu_paper.py --manifest pack/manifest.json --dataset_dir pack --studies OUT/studies

Two studies, as `monai-fp4 sweep --protocol paper` would run them, and without Ray: ``table``, five folds at 4m of Swin
and CNN under the baseline and 2D+RHT+SR, fold by fold; then ``recipes``, the paper's eight recipes at 500k on the
holdout, seed by seed of all. So what is cut off has whole folds, and whole seeds, of everything before. ``--together``
cells share the GPU, as processes. Each study folder keeps what the report reads and no weights: it comes back in a few
megabytes, and `monai-fp4 report` and benchmarks/study.py take it as it is.

``--epochs`` makes it a stated excerpt; without it a training has the protocol's hundred, with its early stopping.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import ROOT, Results, default_device

from monai_fp4.data import HeldOut, Manifest, load_manifest, prepare_data, save_manifest
from monai_fp4.quantization.recipes import PAPER_RECIPES
from monai_fp4.study.check import check
from monai_fp4.study.commands import write_study
from monai_fp4.study.executor import Resources
from monai_fp4.study.grid import code_version, now
from monai_fp4.study.layout import Cell, StudyDefinition, StudyFolder, read_json
from monai_fp4.study.progress import State, SweepProgress
from monai_fp4.study.sweep import Sweep
from monai_fp4.study.worker import Outcome, Task, run_task

TABLE: dict[str, Any] = {
    "archs": ("paper_swin", "paper_cnn"),
    "scales": ("4m",),
    "folds": (0, 1, 2, 3, 4),
    "seeds": (2026,),
}
RECIPES: dict[str, Any] = {"archs": ("paper_swin", "paper_cnn"), "scales": ("500k",), "folds": ("holdout",)}
EIGHT = tuple(names[0] for names in PAPER_RECIPES.values())
"""The paper's ids 0 to 7; of the last, whose text and flags disagree, the reading of its text."""
HEAVY = ("*.pt", "events.*")
"""What a finished cell does not need for its report."""


class Processes:
    """So many cells at once, as processes of this machine that share its GPU: an executor without Ray."""

    def __init__(self, together: int) -> None:
        self.description = f"this machine, {together} cells at once"
        self._together, self._pool = together, ThreadPoolExecutor(together)

    def largest_machine(self) -> Resources:
        """Its cores, shared out evenly, and one GPU, of which each cell may have all."""
        return Resources(max(1, (os.cpu_count() or 1) // self._together), 1)

    def slots(self, needs: Resources) -> int:
        """As many as were asked for."""
        return self._together

    def submit(self, task: Task, needs: Resources) -> Future[Outcome]:
        """Start a cell as soon as a place is free."""
        return self._pool.submit(run_task, task)

    def wait(self, handles: Collection[Future[Outcome]], seconds: float) -> list[tuple[Future[Outcome], Outcome]]:
        """The cells that have ended."""
        done = wait(handles, seconds, FIRST_COMPLETED).done
        return [(handle, handle.result()) for handle in done]

    def cancel(self, handle: Future[Outcome]) -> None:
        """Do not begin it."""
        handle.cancel()

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Writing(SweepProgress):
    """Progress that also writes the results, and lightens the folder, whenever a cell ends."""

    def __init__(self, folders: dict[str, StudyFolder], results: Results) -> None:
        super().__init__()
        self._folders, self._results = folders, results

    def ended(self, cell: Cell, outcome: dict[str, Any], auprc: float | None, state: State) -> None:
        """Say what became of a cell, and write what there is."""
        super().ended(cell, outcome, auprc, state)
        self._results.write({"studies": {name: cells_of(folder) for name, folder in self._folders.items()}})


def cells_of(folder: StudyFolder) -> list[dict[str, Any]]:
    """What the cells of a study have come to; a finished one loses its weights."""
    found = []
    for cell in folder.read_definition().cells() if folder.definition_path.exists() else ():
        record, metrics, run = folder.record(cell), folder.metrics(cell) or {}, folder.run_dir(cell)
        finished = metrics.get("finished") is True
        for path in (path for pattern in HEAVY for path in run.glob(pattern)) if finished else ():
            path.unlink()
        tested = read_json(run / "test.json") if finished and (run / "test.json").exists() else {}
        said = {"id": cell.id, "status": "done" if finished else str(record.status), "seconds": record.seconds}
        said |= {"error": record.error} if record.error else {}
        said |= {"epochs": len(metrics.get("history", ())), "best_epoch": metrics.get("best_epoch")}
        found.append(said | {"validation_auprc": metrics.get("auprc"), "test_auprc": tested.get("auprc")})
    return found


def rehearsal(folder: Path) -> tuple[Manifest, Path]:
    """The phantom with the paper's splits by number alone: two patients to validate on and two others to test on."""
    phantom = load_manifest("phantom")
    ids = [patient.id for patient in phantom.patients if patient.fold is not None]
    names = ("0", "1", "2", "3", "4", "holdout")
    splits = {name: HeldOut(tuple(ids[at : at + 2]), tuple(ids[at + 2 : at + 4])) for at, name in enumerate(names)}
    return replace(phantom, name="phantom_splits", splits=splits), prepare_data(phantom, folder)


def main() -> int:
    """Train, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", default="lgg_paper", help="with the paper's splits")
    parser.add_argument("--dataset_dir", type=Path, default=ROOT / "data" / "phantom")
    parser.add_argument("--studies", type=Path, required=True, help="folder of the two study folders; goes on in them")
    parser.add_argument("--together", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3, help="of the recipes")
    parser.add_argument("--epochs", type=int, help="an excerpt (default: the protocol's hundred)")
    parser.add_argument("--image_size", type=int, nargs=2, help="an excerpt (default: the protocol's 256 x 256)")
    parser.add_argument("--quick", action="store_true", help="a cell or two of each on the phantom: that it runs")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.studies.mkdir(parents=True, exist_ok=True)
    table, recipes = dict(TABLE), {**RECIPES, "seeds": tuple(range(options.seeds))}
    eight = EIGHT
    if options.quick:
        manifest, options.dataset_dir = rehearsal(options.dataset_dir)
        options.manifest = str(save_manifest(manifest, options.studies / "manifest.json"))
        table |= {"folds": (0,), "archs": ("paper_cnn",), "scales": ("500k",)}
        recipes |= {"archs": ("paper_swin",), "seeds": (0,)}
        eight, options.epochs, options.image_size, options.together = ("bf16",), 1, (64, 64), 1
    further: dict[str, Any] = {"device": options.device}
    further |= {"epochs": options.epochs} if options.epochs else {}
    further |= {"image_size": list(options.image_size)} if options.image_size else {}
    copied = "manifest.json" if Path(options.manifest).is_file() else options.manifest
    common: dict[str, Any] = {"manifest": copied, "dataset_dir": str(Path(options.dataset_dir).resolve())}
    common |= {"options": further, "protocol": "paper", "version": code_version(), "created": now()}
    definitions = {
        "table": StudyDefinition(**table, recipes={name: name for name in ("bf16", "sr_rht_2d")}, **common),
        "recipes": StudyDefinition(**recipes, recipes={name: name for name in eight}, **common),
    }
    folders = {name: StudyFolder(options.studies / name) for name in definitions}
    asked = {"manifest": load_manifest(options.manifest).name, "seeds": options.seeds, "together": options.together}
    results = Results(options.output, options.device, asked | further)
    prepare_data(options.manifest, options.dataset_dir)  # once, not in every cell at the same time
    good = True
    for name, definition in definitions.items():
        check(definition, options.manifest)
        write_study(folders[name], definition, options.manifest)
        progress, executor = Writing(folders, results), Processes(options.together)
        gpus = 0.0 if options.device == "cpu" else None
        try:
            cells, version = definition.cells(), definition.version
            done = Sweep(
                folders[name], definition, cells, executor, progress, retries=1, gpus=gpus, version=version
            ).run()
        finally:
            progress.close()
            executor.close()
        good = good and done.exit_code == 0
        print(f"{name}: {len(done.done)} of {len(definition.cells())} cells are done", flush=True)
    results.write({"studies": {name: cells_of(folder) for name, folder in folders.items()}})
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
