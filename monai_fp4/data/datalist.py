"""Turn a manifest and a data folder into the list that data sets are made from.

An entry of the list is one patient, as plain JSON: paths, hashes, format and id. So a list can be written into a
config, logged, or cut short by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_fp4.data.folds import select_patients
from monai_fp4.data.layouts import data_root
from monai_fp4.data.manifest import load_manifest
from monai_fp4.data.messages import without_paths
from monai_fp4.data.phantoms.generators import GENERATORS
from monai_fp4.data.pseudonyms import located
from monai_fp4.data.readers.dicom_series import behind, is_there
from monai_fp4.data.readers.limits import check_inside
from monai_fp4.data.records import Manifest, Patient
from monai_fp4.errors import DataError

__all__ = ["load_datalist", "patient_record", "prepare_data"]


def prepare_data(manifest: str | Path | Manifest, dataset_dir: str | Path) -> Path:
    """Make sure that the data folder is there: synthetic data is written on first use, all other data must exist.

    Safe to call from several processes at once, as ``torchrun`` does.

    Returns:
        The folder that the manifest's paths start from.

    Raises:
        DataError: no such folder, or none of the manifest's patients in it.
    """
    manifest = load_manifest(manifest)
    if manifest.generator is not None:
        folder = Path(str(dataset_dir)).expanduser()
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            GENERATORS[manifest.generator].write(folder)
    root = data_root(dataset_dir)
    if not any(is_there(root / located(manifest, patient).images[0].image) for patient in manifest.patients):
        raise DataError(
            f"expected the patients of manifest {manifest.name!r} in {root}, found none of them "
            f"(such as {manifest.patients[0].id!r}); give the folder that holds the data as dataset_dir"
        )
    return root


def patient_record(manifest: Manifest, patient: Patient, root: Path) -> dict[str, Any]:
    """One patient as plain JSON, with paths below ``root``.

    Raises:
        DataError: a link that leads out of ``root``.
    """
    patient = located(manifest, patient)
    images = [
        {
            "image": str(root / pair.image),
            "mask": str(root / pair.mask),
            "sha256": pair.sha256,
            "mask_sha256": pair.mask_sha256,
        }
        for pair in patient.images
    ]
    with without_paths(patient.id, images):
        for path in {path for pair in images for path in (pair["image"], pair["mask"])}:
            for file in behind(Path(path)):
                check_inside(file, root)
    return {
        "patient": patient.id,
        "group": patient.group,
        "format": manifest.format,
        "channels": list(manifest.channels),
        "reading": manifest.reading.to_json(),
        "images": images,
    }


def load_datalist(
    manifest: str | Path | Manifest, dataset_dir: str | Path, fold: int | str = 0, part: str = "train"
) -> list[dict[str, Any]]:
    """The patients of one part of one fold, ready for :class:`SliceDataset` or :class:`PatientDataset`.

    Args:
        manifest: a shipped name, a path or a manifest.
        dataset_dir: the data folder; synthetic data is written there on first use.
        fold: a number or ``"all"``.
        part: ``"train"``, ``"val"`` or ``"test"``; see :func:`monai_fp4.data.select_patients`.

    Returns:
        One mapping a patient: ``patient``, ``number`` (its place in the list, from 1, which stands in pictures in the
        place of its name), ``group``, ``format``, ``channels``, ``images``.

    Raises:
        DataError: no data folder, or a file of these patients is missing.
        ConfigError: no such fold or part.
    """
    manifest = load_manifest(manifest)
    patients = select_patients(manifest, fold, part)
    root = prepare_data(manifest, dataset_dir)
    for patient in patients:
        paths = {path for pair in located(manifest, patient).images for path in (pair.image, pair.mask)}
        absent = [path for path in paths if not is_there(root / path)]
        if absent:
            raise DataError(
                f"expected the {len(paths)} files of patient {patient.id!r} in {root}, found that {len(absent)} are "
                "not there; complete the data folder, or build a manifest of what is there"
            )
    return [{"number": number} | patient_record(manifest, patient, root) for number, patient in enumerate(patients, 1)]
