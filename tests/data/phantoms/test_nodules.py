"""The nodules: the bytes that their manifest names, plausible Hounsfield units, a task neither easy nor void."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from study_cells import study
from tiny_runs import Dataset, command, evaluation, item, metrics, train, workflow

from monai_fp4.data import build_manifest, load_datalist, load_manifest, save_manifest, select_patients, write_nodules
from monai_fp4.data.patients import Volume, read_patient
from monai_fp4.data.phantoms.drawing import Axes, inside, paint_tube
from monai_fp4.data.phantoms.nifti import encode_nifti
from monai_fp4.data.phantoms.nodules import PATIENTS, SPACING, make_nodules_patient, nodules_groups, nodules_patients
from monai_fp4.errors import DataError
from monai_fp4.study.commands import arguments_of, write_study


@pytest.fixture(scope="module")
def chests(nodules) -> dict[str, Volume]:
    parts = [load_datalist("nodules", nodules, "all", part) for part in ("train", "test")]
    return {record["patient"]: read_patient(record) for records in parts for record in records}


# --- The files.


def test_a_file_that_was_changed_is_refused(nodules, tmp_path):
    [record, *_] = load_datalist("nodules", nodules, 0, "val")
    pair = record["images"][0]
    data = bytearray(Path(pair["image"]).read_bytes())
    data[-1] ^= 1
    (tmp_path / "ct.nii").write_bytes(data)
    changed = record | {"images": [pair | {"image": str(tmp_path / "ct.nii")}]}
    with pytest.raises(DataError, match=r"SHA-256 differs"):
        read_patient(changed)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_nibabel_reads_what_we_write(dtype, tmp_path):
    volume = np.random.default_rng(0).integers(-90, 90, (4, 5, 3)).astype(dtype)
    data = encode_nifti(volume, (1.5, 2.5, 5.0))
    (tmp_path / "a.nii").write_bytes(data)
    image = nibabel.load(tmp_path / "a.nii")
    assert image.get_data_dtype() == dtype
    assert np.array_equal(np.asarray(image.dataobj), volume.transpose(1, 0, 2))
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert np.allclose(image.header.get_zooms(), (2.5, 1.5, 5.0))
    assert np.allclose(image.get_qform(), image.get_sform())
    assert np.allclose(image.affine @ [2, 1.5, 1, 1], [0, 0, 0, 1])  # the middle of the scan
    assert image.header.get_xyzt_units()[0] == "mm"
    assert struct.unpack_from("<f", data, 108) == (352.0,)
    # As drawn, after the way through the file: the reader turns it as it is looked at.
    read = read_patient({"format": "nifti", "images": [{"image": tmp_path / "a.nii", "mask": _mask(tmp_path)}]})
    assert np.array_equal(read.image[0], volume)


def _mask(folder: Path) -> Path:
    (folder / "mask.nii").write_bytes(encode_nifti(np.zeros((4, 5, 3), np.uint8), (1.5, 2.5, 5.0)))
    return folder / "mask.nii"


def test_nifti_of_another_type():
    with pytest.raises(ValueError, match="int16 or uint8"):
        encode_nifti(np.zeros((2, 2, 2)), (1.0, 1.0, 1.0))


# --- The task.


def test_it_is_another_task_than_the_phantom():
    phantom, nodules = load_manifest("phantom"), load_manifest("nodules")
    assert nodules.channels == ("ct",) and len(phantom.channels) == 3
    assert nodules.format != phantom.format
    assert {patient.group for patient in nodules.patients}.isdisjoint(patient.group for patient in phantom.patients)


def test_lesions_are_tiny_and_some_patients_have_none(chests):
    shares = {name: float(volume.mask.mean()) for name, volume in chests.items()}
    assert 0.002 < np.mean(list(shares.values())) < 0.004
    assert sum(share == 0 for share in shares.values()) == 5
    assert max(shares.values()) < 0.01
    manifest = load_manifest("nodules")
    for fold in range(5):
        voxels = [patient.tumour_voxels for patient in select_patients(manifest, fold, "val")]
        assert sum(voxels) > 1500, "a fold without enough to judge by"
    with_nodule = [volume.mask[0].any(axis=(0, 1)).mean() for volume in chests.values()]
    assert 0.3 < np.mean(with_nodule) < 0.8  # of the slices


def test_values_are_hounsfield_units(chests):
    for name, volume in chests.items():
        hu, nodule = volume.image[0], volume.mask[0] > 0
        assert hu.min() >= -1024 and 300 < hu.max() < 1500, name
        assert np.array_equal(hu, np.round(hu))
        assert np.median(hu[:4, :]) < -950, name  # air in front of the chest
        lung = (hu > -950) & (hu < -700)
        assert 0.05 < lung.mean() < 0.45, name
        assert 0.05 < ((hu > -20) & (hu < 100)).mean() < 0.35, name  # soft tissue
        assert 0.005 < (hu > 250).mean() < 0.08, name  # bone
        if nodule.any():
            assert -750 < np.median(hu[nodule]) < 80, name


def test_brightness_alone_does_not_find_nodules(chests):
    """Vessels and ribs are as bright: what is at least as bright as a nodule is hardly ever one."""
    bright = nodule = 0
    for volume in chests.values():
        chosen = volume.image[0] > -300
        bright += int(chosen.sum())
        nodule += int((chosen & (volume.mask[0] > 0)).sum())
    assert nodule / bright < 0.02


def test_some_nodules_are_faint_and_others_solid(chests):
    medians = [np.median(v.image[0][v.mask[0] > 0]) for v in chests.values() if v.mask.any()]
    assert min(medians) < -350 and max(medians) > -50


def test_scanners_differ_in_noise_and_padding(chests):
    spread: dict[str, list[float]] = {}
    padded: dict[str, set[bool]] = {}
    for name, volume in chests.items():
        corner = volume.image[0, :3, :3]
        padded.setdefault(nodules_groups()[name], set()).add(bool((corner == -1024).all()))
        air = volume.image[0, 2:6, 60:68]  # within the circle, outside of the patient
        spread.setdefault(nodules_groups()[name], []).append(float(air[air > -1024].std()))
    assert padded == {"HA": {True}, "HB": {False}, "HC": {True}, "HD": {False}}
    means = {group: np.mean(values) for group, values in spread.items()}
    assert means["HC"] < means["HA"] < means["HB"] < means["HD"]


def test_another_seed_draws_other_chests_and_the_grid_may_be_coarser():
    one, other = (make_nodules_patient(1, size=24, seed=seed)[0] for seed in (0, 1))
    assert one.shape != other.shape or not np.array_equal(one, other)
    assert np.array_equal(one, make_nodules_patient(1, size=24, seed=0)[0])
    assert len(set(nodules_patients())) == PATIENTS
    assert SPACING[2] > 1.5 * SPACING[0]


def test_a_tube_is_painted_as_if_all_voxels_were_computed():
    axis = np.linspace(-1, 1, 20)
    axes = Axes(right=axis, down=axis + 0.03, up=axis[::3])
    ends, radii, width = ((-0.4, 0.1, -0.6), (0.5, 0.3, 0.2)), (0.2, 0.1), 0.12
    field = np.zeros(axes.shape)
    paint_tube(field, axes, ends, radii, width)
    u, v, w = np.broadcast_arrays(*axes.fields)
    points = np.stack([u, v, w], -1)
    start, step = np.array(ends[0]), np.subtract(*reversed(ends))
    along = ((points - start) @ step / (step @ step)).clip(0, 1)
    distance = np.linalg.norm(points - start - along[..., None] * step, axis=-1)
    assert np.allclose(field, inside(distance, radii[0] + (radii[1] - radii[0]) * along, width))
    assert field.max() == 1 and (field == 0).any()


# --- The pipeline.


@pytest.fixture(scope="module")
def coarse(tmp_path_factory) -> Dataset:
    """Six chests of 32 x 32 and their manifest, which train in a second."""
    folder = tmp_path_factory.mktemp("coarse")
    root = write_nodules(folder / "scans", patients=6, size=32)
    manifest = build_manifest(root, format="nifti", folds=2, name="coarse", groups=nodules_groups(6))
    return Dataset(root, save_manifest(manifest, folder / "manifest.json"))


@pytest.mark.parametrize("arch", ["unet", "swin", "vit"])
def test_bundles_train_on_one_channel_as_they_are(arch, coarse, tmp_path):
    flow = workflow(coarse, tmp_path / "run", f"{arch}_500k_sr", epochs=1, batch_size=24)
    flow.initialize()
    assert item(flow, "session").in_channels == 1
    flow.run()
    flow.finalize()
    assert 0 < metrics(tmp_path / "run")["auprc"] < 1


def test_a_run_is_evaluated_with_overlays(coarse, tmp_path):
    run_dir = train(coarse, tmp_path / "run", epochs=1, batch_size=24)
    flow = evaluation(run_dir, coarse, tmp_path / "out", split="val")
    flow.initialize()
    flow.run()
    flow.finalize()
    assert 0 < metrics(tmp_path / "out")["auprc"] < 1
    assert (tmp_path / "out" / "overlays" / "largest_lesions.png").is_file()


def test_a_cell_of_a_study_runs_on_it_by_its_name_alone(nodules, tmp_path):
    options = {"epochs": 1, "image_size": [32, 32], "batch_size": 128, "device": "cpu"}
    folder, defined = study(
        tmp_path, manifest="nodules", dataset_dir=str(nodules), recipes={"sr": "sr"}, seeds=(0,), options=options
    )
    write_study(folder, defined, "nodules")
    [cell] = defined.cells()
    result = command(*arguments_of(defined, cell, trusted=True)[2:], cwd=folder.path)
    assert result.returncode == 0, result.stderr
    assert "on manifest nodules, fold 0: 19 patients to train on, 5 to validate on" in result.stdout + result.stderr
    assert metrics(folder.run_dir(cell))["finished"]
    assert not (folder.path / "manifest.json").exists()  # a shipped one is not copied
