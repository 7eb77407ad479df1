"""Masks lie where the scan does, told by other libraries alone, and are those of an evaluation, whatever the format.

The first tests put a network that calls bright voxels lesion in place of a trained one, and show it scans of its own
size, so that what is lesion, and where it lies, is known from numbers and headers without this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import small_dicom
from monai.inferers import SimpleInferer
from predicting import predict
from pydicom.uid import generate_uid
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from tiny_runs import Dataset, evaluation, scan, train

from monai_fp4.data import build_manifest, save_manifest
from monai_fp4.inference import Ensemble, Predictor

EDGE = 32  # what the run's network sees
ROTATED = Rotation.from_euler("xyz", (25, -40, 70), degrees=True).as_matrix()
MATRICES = {
    "straight": np.diag([0.7, 0.9, 2.5]),
    "negated": np.diag([-0.7, -0.9, -2.5]),
    "sagittal": np.array([[0, 0, 2.5], [0.7, 0, 0], [0, -0.9, 0]]),
    "coronal": np.array([[0.7, 0, 0], [0, 0, 2.5], [0, -0.9, 0]]),
    "oblique": ROTATED @ np.diag([0.7, 0.9, 2.5]),
    "oblique and negated": ROTATED @ np.diag([-0.7, 0.9, 2.5]),
    "sheared": np.array([[0.7, 0, 0], [0, 0.9, 0.6], [0, 0, 2.5]]),
}
CORNER = np.array([11.0, -23.0, 37.0])


class Bright(SimpleInferer):
    """Calls what is bright lesion, without looking at the network."""

    def __call__(self, inputs: Any, network: Any, *args: Any, **options: Any) -> Any:
        return (inputs[:, :1].float() - 2) * 20


def cube() -> tuple[np.ndarray, np.ndarray]:
    """Tissue and air with bright voxels, more of them on one side of each axis, and which those are."""
    random = np.random.default_rng(5)
    values = random.integers(0, 6, (EDGE,) * 3) + 100 * (random.random((EDGE,) * 3) < 0.5)
    hot = random.random((EDGE,) * 3) < 0.01 * np.linspace(0.2, 2, EDGE)[:, None, None]
    hot[:, : EDGE // 3, EDGE // 2 :] = False
    values[hot] = 1000
    return values.astype(np.int16), hot


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """How far the points of each are from the nearest of the other, at most."""
    assert one.shape == other.shape
    return max(cKDTree(one).query(other)[0].max(), cKDTree(other).query(one)[0].max())


def predicted(run: Path, source: Path, out: Path) -> Path:
    Predictor(Ensemble(str(run), flips=False, device="cpu"), str(source), str(out), inferer=Bright()).run()
    (mask,) = out.glob("*/mask.*")
    return mask


def by_itk(path: Path) -> np.ndarray:
    """Where the lesion's voxels lie, in DICOM's and ITK's millimetres, as SimpleITK has it."""
    image = SimpleITK.ReadImage(str(path))
    found = np.argwhere(SimpleITK.GetArrayFromImage(image) > 0)
    return np.array([image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]]) for index in found])


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_volumes(ending: str, name: str, volume_run: Path, tmp_path: Path) -> None:
    values, hot = cube()
    source, matrix = tmp_path / f"scan{ending}", MATRICES[name]
    where = np.argwhere(hot) @ matrix.T + CORNER
    if ending == ".nii.gz":
        nibabel.save(nibabel.Nifti1Image(values, nibabel.affines.from_matvec(matrix, CORNER)), source)
        mask = nibabel.load(predicted(volume_run, source, tmp_path / "out"))
        found = nibabel.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0))
    else:
        image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0))
        spacing = np.linalg.norm(matrix, axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((matrix / spacing).ravel().tolist())
        image.SetOrigin(CORNER.tolist())
        SimpleITK.WriteImage(image, str(source))
        found = by_itk(predicted(volume_run, source, tmp_path / "out"))
    assert apart(where, found) < 1e-3


@pytest.mark.parametrize("name", MATRICES)
def test_series(name: str, volume_run: Path, tmp_path: Path) -> None:
    """The columns of a matrix are where rows, columns and slices grow; each frame lies where its slice does."""
    values, hot = cube()
    matrix = MATRICES[name]
    spacing = np.linalg.norm(matrix, axis=0)
    data = small_dicom.slices(0, shape=(EDGE,) * 3)
    for number, each in enumerate(data):
        each.PixelSpacing = [f"{length:.6g}" for length in spacing[:2]]
        each.ImageOrientationPatient = [f"{part:.10f}" for part in (matrix / spacing)[:, [1, 0]].T.ravel()]
        each.ImagePositionPatient = [f"{part:.9g}" for part in CORNER + number * matrix[:, 2]]
        each.RescaleSlope, each.RescaleIntercept = 1, 0
        each.PixelData = np.ascontiguousarray(values[..., number]).astype("<u2").tobytes()
    where = np.argwhere(hot) @ matrix.T + CORNER
    path = predicted(volume_run, small_dicom.save(data, tmp_path / "in"), tmp_path / "out")
    mask = pydicom.dcmread(path)
    shared = mask.SharedFunctionalGroupsSequence[0]
    steps = [float(length) for length in shared.PixelMeasuresSequence[0].PixelSpacing]
    along = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    found = [
        np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        + along[3:] * steps[0] * row
        + along[:3] * steps[1] * column
        for group, frame in zip(mask.PerFrameFunctionalGroupsSequence, mask.pixel_array, strict=True)
        for row, column in np.argwhere(frame)
    ]
    assert apart(where, np.array(found)) < 1e-3
    if name != "sheared":  # which ITK does not know of; the report warns of it
        assert apart(where, by_itk(path)) < 1e-3


def write_volumes(root: Path, ending: str, channels: tuple[str, ...]) -> None:
    turn = nibabel.affines.from_matvec(MATRICES["sagittal"], CORNER)
    for number in range(4):
        (root / f"patient_{number}").mkdir(parents=True)
        images, masks = scan(number, (20, 26), 12)
        named = {name: images[:, :, index].astype(np.float32) for index, name in enumerate(channels)}
        for name, values in (named | {"mask": masks // 255}).items():
            path = root / f"patient_{number}" / f"{name}{ending}"
            if ending == ".nii.gz":
                nibabel.save(nibabel.Nifti1Image(values, turn), path)
            else:
                image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0))
                image.SetSpacing([0.7, 0.9, 2.5])
                SimpleITK.WriteImage(image, str(path))


def write_series(root: Path) -> None:
    for number in range(4):
        images, masks = scan(number, (20, 26), 12)
        study = generate_uid()
        both = []
        for index, name in enumerate(("t1", "flair")):
            data = small_dicom.slices(number, shape=(20, 26, 12), patient=f"p{number}", study=study, description=name)
            for place, each in enumerate(data):
                each.PixelData = np.ascontiguousarray(images[:, :, index, place]).astype("<u2").tobytes()
            small_dicom.save(data, root / f"patient_{number}" / name)
            both.append(data)
        small_dicom.segmentation(both[0], masks // 255).save_as(root / f"patient_{number}" / "seg.dcm")


DATASETS: dict[str, dict[str, Any]] = {
    "four channels": {"ending": ".nii.gz", "channels": ("flair", "t1", "t2")},
    "two channels in NRRD": {"ending": ".nrrd", "channels": ("flair", "t1")},
    "volumes in MetaImage": {"ending": ".mha", "channels": ("flair",), "image_size": [32, 32, 32], "batch_size": 2},
    "two series": {"ending": ".dcm", "channels": ("flair", "t1")},
}


def lesion(path: Path) -> dict[Any, bytes]:
    """Slices that hold lesion, by where they lie."""
    if path.suffix != ".dcm":
        values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        return {number: frame.tobytes() for number, frame in enumerate(values) if frame.any()}
    mask = pydicom.dcmread(path)
    places = [tuple(g.PlanePositionSequence[0].ImagePositionPatient) for g in mask.PerFrameFunctionalGroupsSequence]
    return {p: frame.tobytes() for p, frame in zip(places, mask.pixel_array, strict=True) if frame.any()}


@pytest.mark.parametrize("name", DATASETS)
def test_masks_are_those_of_an_evaluation(name: str, tmp_path: Path) -> None:
    options = dict(DATASETS[name])
    ending, channels = options.pop("ending"), options.pop("channels")
    root = tmp_path / "scans"
    if ending == ".dcm":
        write_series(root)
    else:
        write_volumes(root, ending, channels)
    layout = "dicom" if ending == ".dcm" else "nifti"
    manifest = build_manifest(root, format=layout, folds=2, seed=0, name="formats", channels=list(channels))
    dataset = Dataset(root, save_manifest(manifest, tmp_path / "manifest.json"))
    run = train(dataset, tmp_path / "run", "unet_500k_sr", epochs=1, **options)
    flow = evaluation(run, dataset, tmp_path / "evaluation", split="val", predictions=True)
    flow.initialize()
    flow.run()
    out = predict(run, root, tmp_path / "out", names="path")
    masks = sorted((tmp_path / "evaluation" / "predictions").glob("*/mask.*"))
    assert len(masks) == 2
    for path in masks:
        (other,) = out.glob(f"{path.parent.name}*/{path.name}")
        assert lesion(path) == lesion(other) and lesion(path)
