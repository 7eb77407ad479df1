"""A study folder made of numbers: the package's own writers, no training, and effects that are known.

The AUPRC of a cell is `BASE[arch]` + `EFFECT[arch, recipe]` + an effect of the seed that all recipes of a model share
+ noise. What is made here is for tests and for looking at pages; it is no result.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_fp4.bundle import RunFolder
from monai_fp4.handlers.health import score_bins
from monai_fp4.metrics import ScoreHistogram
from monai_fp4.quantization import RECIPES, Recipe
from monai_fp4.report.tables import StudyTables
from monai_fp4.study.layout import Cell, CellRecord, CellStatus, StudyDefinition, StudyFolder

BASE = {"unet": 0.80, "swin": 0.84, "vit": 0.76}
NOISE = 0.002
SEED_SPREAD = 0.01
LAYERS = ("encoder.0.conv", "encoder.1.conv", "decoder.0.conv")
EPOCHS = 4


def true_effect(arch: str, scale: str, recipe: str) -> float:
    """What the recipe changes in AUPRC: much for the UNet under gradient-quantizing recipes, nothing for Swin."""
    if arch == "unet" and RECIPES.get(recipe, RECIPES["full"]).backward == "fp4" and recipe != "bf16":
        return -0.04 if scale == "15m" else -0.02
    return -0.02 if (arch, recipe) == ("vit", "forward_only") else 0.0


def definition(**changes: Any) -> StudyDefinition:
    values: dict[str, Any] = {
        "archs": ("unet", "swin"),
        "scales": ("500k",),
        "recipes": {name: name for name in ("bf16", "full", "chain_rule", "sr")},
        "folds": (0,),
        "seeds": (0, 1, 2),
        "manifest": "phantom",
        "dataset_dir": "data/phantom",
        "options": {"epochs": EPOCHS, "image_size": [64, 64]},
        "version": "0.1.0+synthetic",
    }
    return StudyDefinition(**values | changes)


def write_study(
    path: Path,
    study: StudyDefinition | None = None,
    *,
    status: Callable[[Cell], CellStatus] = lambda cell: CellStatus.DONE,
    version: Callable[[Cell], str] = lambda cell: "0.1.0+synthetic",
    health: bool = True,
    patients: int = 0,
    noise: float = NOISE,
    tested: bool = False,
) -> StudyFolder:
    """Write a study folder.

    Args:
        path: new folder.
        study: its definition.
        status: of each cell; `waiting` writes nothing at all, `running` and `failed` two epochs.
        version: of the code that ran each cell.
        health: also write what the runs measured of their layers and predictions, and their curves.
        patients: results of so many patients for each cell, as an evaluation writes them.
        noise: standard deviation that no factor explains.
        tested: also results of test patients, 0.05 below those of the validation, for each finished cell.
    """
    folder = StudyFolder(path)
    study = study or definition()
    folder.write_definition(study)
    for cell in study.cells():
        state = status(cell)
        if state is CellStatus.WAITING:
            continue
        record = CellRecord(
            status=state,
            attempts=1,
            error="the run ended with exit code 1: error: loss is NaN" if state is CellStatus.FAILED else "",
            seconds=30.0 if state is CellStatus.DONE else 0.0,
            device="cpu",
            version=version(cell),
        )
        folder.write_record(cell, record)
        write_run(folder.run_dir(cell), cell, state is CellStatus.DONE, health=health, patients=patients, noise=noise)
        if tested and state is CellStatus.DONE:
            results = {"measured_on": "test patients of the fold", "auprc": cell_auprc(cell, noise) - 0.05, "dice": 0.7}
            RunFolder(folder.run_dir(cell)).write_json("test.json", results)
    return folder


def cell_auprc(cell: Cell, noise: float = NOISE) -> float:
    """The AUPRC that is written for a cell."""
    shared = generator("seed", cell.arch, cell.scale, cell.seed).normal(0, SEED_SPREAD)
    own = generator("cell", cell.id).normal(0, noise)
    fold = 0.02 * (int(cell.fold) - 2) if isinstance(cell.fold, int) and cell.fold else 0.0
    return BASE.get(cell.arch, 0.8) + true_effect(cell.arch, cell.scale, cell.recipe) + shared + own + fold


def tables_of(
    study: StudyDefinition,
    effect: Callable[[Cell], float],
    *,
    levels: Callable[[Cell], float] = lambda cell: 90_000.0,
    done: Callable[[Cell], bool] = lambda cell: True,
    noise: float = NOISE,
) -> StudyTables:
    """The tables of a study in memory: cells alone, for what is computed from their results.

    Args:
        study: its definition.
        effect: what each cell's recipe changes in AUPRC and in recall.
        levels: distinct probabilities of each cell.
        done: cells that are finished; the others wait.
        noise: standard deviation that no factor explains.
    """
    rows = []
    for cell in study.cells():
        shared = generator("seed", cell.arch, cell.scale, cell.fold, cell.seed).normal(0, SEED_SPREAD)
        value = BASE.get(cell.arch, 0.8) + shared + effect(cell) + generator("cell", cell.id).normal(0, noise)
        variant = ", ".join(f"{name}={chosen}" for name, chosen in cell.further)
        row = {"model": f"{cell.arch} {cell.scale}" + (f" ({variant})" if variant else ""), "variant": variant}
        row |= {"arch": cell.arch, "scale": cell.scale, "recipe": cell.recipe, "fold": str(cell.fold)}
        row |= {"seed": cell.seed, "id": cell.id, "status": "done" if done(cell) else "waiting"}
        numbers = {"auprc": value, "recall": value + 0.03, "dice": value - 0.1, "distinct_scores": levels(cell)}
        row |= numbers if done(cell) else dict.fromkeys(numbers, np.nan)
        options = {"epochs": EPOCHS, "image_size": "64x64", "version": "0.1.0+synthetic"}
        rows.append(row | options | {"train_patients": 70.0, "val_patients": 18.0})
    empty = dict.fromkeys(("epochs", "scores", "curves", "health", "attention", "patients"), pd.DataFrame())
    return StudyTables(study, "synthetic", pd.DataFrame(rows), **empty, notes=())


def write_run(path: Path, cell: Cell, finished: bool, *, health: bool, patients: int, noise: float) -> None:
    run = RunFolder(path)
    recipe = RECIPES.get(cell.recipe, Recipe(name=cell.recipe))
    size = dict(cell.further).get("image_size", (64, 64))
    config = {
        "recipe": recipe.to_config(),
        "arch": cell.arch,
        "scale": cell.scale,
        "fold": cell.fold,
        "seed": cell.seed,
    }
    config |= {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 0.003, "image_size": list(size)}
    run.write_json("config.json", config)
    run.write_json("patients.json", {"train": [f"t{i}" for i in range(8)], "val": ["v0", "v1"], "test": []})
    run.write_json("environment.json", {"backend": "emulated", "device_name": "cpu"})
    last = cell_auprc(cell, noise)
    history = []
    for epoch in range(1, (EPOCHS if finished else 2) + 1):
        value = last - 0.1 * (EPOCHS - epoch) / EPOCHS
        entry = {"epoch": epoch, "train_loss": 1.5 / epoch + (1 - last), "learning_rate": 0.001, "fp4": True}
        entry |= {"seconds": 10.0 * (2 if recipe.quantizes else 1), "auprc": value, "auprc_per_patient": value - 0.03}
        entry |= {"val_loss": 1.2 / epoch + (1 - last), "threshold": 0.3, "dice": value - 0.1, "recall": value + 0.03}
        entry |= {"dice_per_patient": value - 0.12, "recall_per_patient": value, "precision": value - 0.2}
        entry |= {"distinct_scores": 300 if recipe.name == "full" else 90_000}
        history.append(entry)
    summary = {k: v for k, v in history[-1].items() if k not in ("epoch", "train_loss", "learning_rate", "seconds")}
    head = {"finished": finished, "measured_on": "validation patients", "best_epoch": history[-1]["epoch"]}
    run.write_json("metrics.json", head | summary | {"history": history})
    if patients:
        each = generator("patients").normal(0, 0.1, patients)
        changes = generator("patient noise", cell.id).normal(0, 0.01, patients)
        results = [
            {"patient": f"p{i}", "auprc": last + each[i] + changes[i], "recall": 0.8 + each[i], "dice": 0.7 + each[i]}
            for i in range(patients)
        ]
        results[0]["auprc"] = None  # no tumour
        (path / "evaluation").mkdir(exist_ok=True)
        RunFolder(path / "evaluation").write_json("metrics.json", {"auprc": last, "per_patient": results})
    if health:
        write_health(run, cell, recipe, history)


def write_health(run: RunFolder, cell: Cell, recipe: Recipe, history: list[dict[str, Any]]) -> None:
    """What `HealthRecorder` and `Recorder` write."""
    histogram = scores(cell)
    entries = [
        {"epoch": entry["epoch"], "layers": layer_health(recipe, entry["epoch"]), "attention": {}}
        | {"scores": score_bins(histogram)}
        for entry in history
    ]
    run.write_json("health.json", {"epochs": entries})
    curve = histogram.pr_curve(points=500)
    columns = {name: getattr(curve, name).tolist() for name in ("thresholds", "tp", "fp")}
    run.write_json("pr_curve.json", {"epoch": history[-1]["epoch"]} | columns)


def layer_health(recipe: Recipe, epoch: int) -> dict[str, dict[str, dict[str, float]]]:
    operands = ("input", "weight", "gradient") if recipe.backward == "fp4" else ("input", "weight")
    return {
        layer: {
            operand: {"snr_db": 20.0 - 2 * depth - epoch / 2 - order, "underflow": 0.07 + order / 50, "clipped": 0.03}
            for order, operand in enumerate(operands)
        }
        for depth, layer in enumerate(LAYERS)
        if recipe.quantizes
    }


def scores(cell: Cell) -> ScoreHistogram:
    """Calibrated scores: a voxel with probability p is tumour with probability p."""
    random = generator("scores", cell.id)
    probability = random.beta(0.15, 2.0, 4000).astype(np.float32)
    return ScoreHistogram().add(probability, (random.random(4000) < probability).astype(np.uint8))


def generator(*key: Any) -> np.random.Generator:
    """The same numbers for the same key, on every machine."""
    return np.random.default_rng(list(repr(key).encode()))


def paper_study(**changes: Any) -> StudyDefinition:
    """As large as the paper's: three architectures, three scales, every recipe."""
    grid = {"archs": ("unet", "swin", "vit"), "scales": ("500k", "4m", "15m"), "recipes": {n: n for n in RECIPES}}
    return definition(**grid | changes)
