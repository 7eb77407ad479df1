"""Runs of the shipped bundles on data so small that a whole run takes a second or two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_fp4.bundle import error_in_chain
from monai_fp4.data import build_manifest, save_manifest
from monai_fp4.errors import MonaiFP4Error

REPOSITORY = Path(__file__).parents[1]
BUNDLES = REPOSITORY / "bundles"
SHAPE = (40, 48)  # neither square nor a multiple of what the networks see
SLICES = 3


@dataclass(frozen=True)
class Dataset:
    """A data folder and the manifest of it."""

    dataset_dir: Path
    manifest: Path

    @property
    def options(self) -> dict[str, str]:
        return {"dataset_dir": str(self.dataset_dir), "manifest": str(self.manifest)}


def scan(number: int, shape: tuple[int, ...] = SHAPE, slices: int = SLICES) -> tuple[np.ndarray, np.ndarray]:
    """A brain with a bright lesion: image uint8 [H, W, 3, slices], mask uint8 [H, W, slices] of 0 and 255."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    brain = ((rows - shape[0] / 2) / (0.45 * shape[0])) ** 2 + ((columns - shape[1] / 2) / (0.4 * shape[1])) ** 2 < 1
    centre = (shape[0] * random.uniform(0.35, 0.6), shape[1] * random.uniform(0.35, 0.6))
    distance = np.hypot(rows - centre[0], columns - centre[1])
    images = random.normal(90, 12, (*shape, 3, slices)) * brain[..., None, None]
    masks = np.zeros((*shape, slices), np.uint8)
    for index in range(slices):
        lesion = distance < shape[0] * (0.16 - 0.03 * abs(index - slices // 2))
        images[lesion, 1, index] += 80
        masks[lesion, index] = 255
    return images.clip(0, 255).astype(np.uint8), masks


def write_lgg(root: Path, patients: int, first: int = 0) -> Path:
    """The published layout: two institutions, one folder a patient."""
    for number in range(first, first + patients):
        name = f"TCGA_{'AB'[number % 2]}{'AB'[number % 2]}_{number:04d}_20000101"
        (root / name).mkdir(parents=True)
        images, masks = scan(number)
        for index in range(SLICES):
            Image.fromarray(images[..., index]).save(root / name / f"{name}_{index + 1}.tif")
            Image.fromarray(masks[..., index]).save(root / name / f"{name}_{index + 1}_mask.tif")
    return root


def lgg_dataset(folder: Path, patients: int = 6, *, first: int = 0, folds: int = 3, split: str = "train") -> Dataset:
    root = write_lgg(folder / "scans", patients, first)
    manifest = build_manifest(root, format="lgg", folds=folds, seed=0, split=split, name=folder.name)
    return Dataset(root, save_manifest(manifest, folder / "manifest.json"))


def nifti_dataset(folder: Path, patients: int = 4, *, shape: tuple[int, int] = (20, 26), slices: int = 12) -> Dataset:
    root = folder / "volumes"
    for number in range(patients):
        (root / f"patient_{number}").mkdir(parents=True)
        images, masks = scan(number, shape, slices)
        for name, data in (("flair", images[:, :, 1].astype(np.float32)), ("mask", masks // 255)):
            nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), root / f"patient_{number}" / f"{name}.nii.gz")
    manifest = build_manifest(root, format="nifti", folds=2, seed=0, name="volumes")
    return Dataset(root, save_manifest(manifest, folder / "manifest.json"))


TINY: dict[str, Any] = {"epochs": 2, "image_size": [32, 32], "batch_size": 6, "learning_rate": 0.01, "device": "cpu"}


def workflow(
    dataset: Dataset, output_dir: Path, bundle: str | Path = "unet_500k_bf16", **changes: Any
) -> ConfigWorkflow:
    """What `python -m monai.bundle run` makes of a bundle, not yet initialised."""
    path = bundle if isinstance(bundle, Path) else BUNDLES / f"{bundle}.json"
    options = TINY | dataset.options | {"output_dir": str(output_dir)} | changes
    return ConfigWorkflow(config_file=str(path), workflow_type="train", logging_file=False, **options)


def evaluation(run: Path, dataset: Dataset, output_dir: Path, **changes: Any) -> ConfigWorkflow:
    """What `python -m monai.bundle run` makes of evaluate.json, not yet initialised."""
    options = {"run_dir": str(run), "output_dir": str(output_dir), "device": "cpu"} | dataset.options | changes
    return ConfigWorkflow(
        config_file=str(BUNDLES / "evaluate.json"), workflow_type="infer", logging_file=False, **options
    )


def train(dataset: Dataset, output_dir: Path, bundle: str | Path = "unet_500k_bf16", **changes: Any) -> Path:
    """A whole run in this process; returns its folder."""
    flow = workflow(dataset, output_dir, bundle, **changes)
    flow.initialize()
    flow.run()
    flow.finalize()
    return output_dir


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def command(*arguments: str, cwd: Path, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A real command line; `launcher` stands in for torchrun's module and its arguments."""
    words = [sys.executable, "-m", *(launcher or ("monai.bundle",)), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("MONAI_FP4_DEBUG", None)
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def item(flow: ConfigWorkflow, name: str) -> Any:
    """An object of an initialised workflow, such as "train#trainer"."""
    return flow.parser.get_parsed_content(name)


def refusal(call: Callable[[], Any]) -> MonaiFP4Error:
    """The error that a call ends in; MONAI wraps it in its own, and the terminal shows ours alone."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI's wrapper is a bare RuntimeError
        call()
    error = error_in_chain(caught.value)
    assert error is not None, caught.value
    assert "\n" not in str(error)
    return error


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder: when it was written and what it holds."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
