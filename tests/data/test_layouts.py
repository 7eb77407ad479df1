"""One table of layouts and one of readers: whatever is in them is offered, documented and works."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from small_data import write_lgg, write_nifti, write_png
from small_dicom import write_dicom

from monai_fp4 import data
from monai_fp4.cli import main
from monai_fp4.data import build_manifest, check_manifest, load_manifest, save_manifest
from monai_fp4.data.layouts import LAYOUTS, FoundPatient, Layout
from monai_fp4.data.patients import read_patient
from monai_fp4.data.readers import READERS, Reader, reader_of
from monai_fp4.data.readers.volume import Decoded, Source
from monai_fp4.data.records import Reading
from monai_fp4.errors import DataError


def write_volumes(root: Path, *names: str) -> Path:
    """NIfTI files of random numbers, masks where the name says so."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.random.default_rng(seed).random((5, 6, 4), np.float32)
        is_mask = any(word in name for word in ("labels", "seg", "mask"))
        nibabel.save(nibabel.Nifti1Image((data > 0.9).astype(np.uint8) if is_mask else data, np.eye(4)), path)
    return root


def write_decathlon(root: Path) -> Path:
    pairs = [{"image": f"./imagesTr/la_{n:03d}.nii.gz", "label": f"./labelsTr/la_{n:03d}.nii.gz"} for n in (3, 4)]
    write_volumes(root, *(pair[key] for pair in pairs for key in ("image", "label")))
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "training": pairs}))
    return root


def write_table(root: Path) -> Path:
    write_volumes(root, "x/1.nii.gz", "x/2.nii.gz", "x/3.nii.gz", "x/4.nii.gz", "m/1_mask.nii.gz", "m/2_mask.nii.gz")
    (root / "all.csv").write_text(
        "Patient;image_T1;image_T2;mask;group;fold\nanna;x/1.nii.gz;x/2.nii.gz;m/1_mask.nii.gz;Basel;1\n"
        "bert;x/3.nii.gz;x/4.nii.gz;m/2_mask.nii.gz;Bern;0\n"
    )
    return root


EXAMPLES: Mapping[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "lgg": (lambda root: write_lgg(root, {"TCGA_A_1": 2, "TCGA_A_2": 2}), ("pre-contrast", "FLAIR", "post-contrast")),
    "png": (lambda root: write_png(root, ["a_1", "b_1"]), ("grey",)),
    "nifti": (lambda root: write_nifti(root, ["anna", "bert"]), ("flair", "t1")),
    "brats": (
        lambda root: write_volumes(root, *(f"B-{n}-0/B-{n}-0-{name}.nii.gz" for n in "12" for name in ("t1c", "seg"))),
        ("t1c",),
    ),
    "nnunet": (
        lambda root: write_volumes(
            root,
            *(f"imagesTr/c_{n}_000{c}.nii.gz" for n in "12" for c in "01"),
            "labelsTr/c_1.nii.gz",
            "labelsTr/c_2.nii.gz",
        ),
        ("channel_0000", "channel_0001"),
    ),
    "msd": (write_decathlon, ("MRI",)),
    "bids": (
        lambda root: write_volumes(
            root,
            *(f"sub-{n}/ses-1/anat/sub-{n}_ses-1_{name}.nii.gz" for n in "12" for name in ("T1w", "FLAIR")),
            *(f"derivatives/lesion/sub-{n}/ses-1/anat/sub-{n}_ses-1_label-lesion_mask.nii.gz" for n in "12"),
        ),
        ("FLAIR", "T1w"),
    ),
    "dicom": (lambda root: write_dicom(root, ["anna", "bert"]), ("FLAIR", "T1")),
    "beside": (
        lambda root: write_volumes(root, *(f"{n}{end}.nii.gz" for n in "12" for end in ("", "_seg"))),
        ("grey",),
    ),
    "table": (write_table, ("t1", "t2")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_built_and_its_manifest_read_back(name, tmp_path):
    write, channels = EXAMPLES[name]
    folder = write(tmp_path / "data")
    manifest = build_manifest(folder, format=name, folds=2)
    assert manifest.format == name and len(manifest.patients) == 2 and manifest.channels == channels
    assert load_manifest(save_manifest(manifest, tmp_path / "m.json")) == manifest
    found = build_manifest(folder, folds=2)
    assert replace(found, format=name) == manifest
    assert found.format == name.replace("brats", "nifti")
    assert check_manifest(manifest, folder) == manifest


def test_the_command_offers_every_layout(capsys):
    with pytest.raises(SystemExit):
        main(["manifest", "build", "--help"])
    assert f"layout: {', '.join(LAYOUTS)}" in " ".join(capsys.readouterr().out.split())


def test_no_two_readers_claim_one_file():
    suffixes = [suffix for reader in READERS.values() for suffix in reader.suffixes]
    assert len(suffixes) == len(set(suffixes))
    for name, reader in READERS.items():
        for suffix in reader.suffixes:
            assert reader_of(f"a/b{suffix.upper()}") is reader, name


def test_a_file_that_nothing_reads():
    with pytest.raises(DataError, match=r"ends in one of \.tif, .*\.nii\.gz, .*found scan\.xyz; convert"):
        reader_of("scan.xyz")


def test_images_that_share_a_mask_are_channels_and_others_slices(tmp_path):
    greys = []
    for number in range(4):
        greys.append(np.full((6, 5), number, np.uint8))
        Image.fromarray(greys[-1]).save(tmp_path / f"{number}.png")
        Image.fromarray((greys[-1] > 2).astype(np.uint8)).save(tmp_path / f"m{number}.png")

    def read(*pairs: tuple[int, int]) -> np.ndarray:
        images = [{"image": str(tmp_path / f"{i}.png"), "mask": str(tmp_path / f"m{m}.png")} for i, m in pairs]
        return read_patient({"patient": "p", "images": images}).image

    assert np.array_equal(read((0, 0), (1, 0)), np.stack(greys[:2])[..., None])
    assert np.array_equal(read((0, 0), (1, 1)), np.stack(greys[:2], -1)[None])
    both = np.stack([np.stack(greys[:2]), np.stack(greys[2:])], -1)
    assert np.array_equal(read((0, 0), (1, 0), (2, 3), (3, 3)), both)


def test_a_layout_and_a_reader_are_one_line_each(tmp_path, monkeypatch):
    """An image format of three bytes a picture, in a layout of loose files."""

    def decode(source: Source) -> Decoded:
        return Decoded(np.frombuffer(source.data, np.uint8).reshape(1, 1, 3))

    reader = Reader(summary="", suffixes=(".raw",), decode=decode)
    layout = Layout(
        summary="",
        find=lambda listing: [
            FoundPatient(path[0], ((path, f"{path[0]}.mask.raw"),)) for path in listing.files if len(path) == 5
        ],
    )
    monkeypatch.setattr(data.readers, "READERS", {**READERS, "raw": reader})
    monkeypatch.setattr(data.layouts, "LAYOUTS", {**LAYOUTS, "loose": layout})
    for number, name in enumerate("ab"):
        (tmp_path / f"{name}.raw").write_bytes(bytes([number, 7, 9]))
        (tmp_path / f"{name}.mask.raw").write_bytes(b"\0\1\1")
    manifest = build_manifest(tmp_path, format="loose", folds=2)
    assert manifest.channels == ("grey",) and [patient.tumour_voxels for patient in manifest.patients] == [2, 2]
    volume = read_patient(data.load_datalist(manifest, tmp_path, "all", "train")[1])
    assert volume.image.tolist() == [[[[1.0], [7.0], [9.0]]]]


def test_slices_of_volumes_are_refused(tmp_path):
    for name in ("a", "b", "m", "n"):
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), tmp_path / f"{name}.nii")
    images = [{"image": str(tmp_path / f"{i}.nii"), "mask": str(tmp_path / f"{m}.nii")} for i, m in ("am", "bn")]
    with pytest.raises(DataError, match=r"one mask for all channels of a volume, found .*m\.nii and .*n\.nii"):
        read_patient({"patient": "p", "images": images})


def write_objects(root: Path, *sizes: int) -> list[str]:
    """JPEG pictures of one object each under names that end in a number, with soft masks; their names."""
    names = [f"exp{n % 2}_num_{461 + 97 * n}" for n in range(len(sizes))]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        grey = np.random.default_rng(number).integers(0, 255, (size, size + 5), np.uint8)
        Image.fromarray(grey).save(root / "images" / f"{name}.jpg")
        mask = np.zeros_like(grey)
        mask[2:5, 3:6], mask[2, 3], mask[2, 4] = 255, 127, 128
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return names


def test_names_that_a_table_holds_are_patients_and_not_slices_of_what_precedes_an_underscore(tmp_path, capsys):
    names = write_objects(tmp_path / "tiles", 9, 12, 9, 15)
    table = tmp_path / "groups.csv"
    table.write_text(
        "patient,group\n" + "".join(f"{name},{'crack' if n < 2 else 'free'}\n" for n, name in enumerate(names))
    )
    command = ["manifest", "build", "--dataset_dir", str(tmp_path / "tiles"), "--folds", "2"]
    command += ["--mask_threshold", "128", "--output", str(tmp_path / "tiles.json")]
    assert main(command) != 0
    assert "if each is a patient say so with --patient_pattern" in capsys.readouterr().err
    assert main([*command, "--groups", str(table)]) == 0
    manifest = load_manifest(tmp_path / "tiles.json")
    assert [patient.id for patient in manifest.patients] == sorted(names)
    assert {patient.group for patient in manifest.patients} == {"crack", "free"}
    assert {patient.tumour_voxels for patient in manifest.patients} == {8}  # 128 is in, 127 is out
    assert manifest.reading.mask_threshold == 128
    check_manifest(manifest, tmp_path / "tiles")


def test_pictures_whose_numbers_lie_far_apart_are_doubted_as_slices(tmp_path):
    write_objects(tmp_path / "alike", 9, 9, 9, 9)
    reading = Reading(mask_threshold=128)
    with pytest.warns(UserWarning, match="of exp0_num and exp1_num have numbers far apart|of exp0_num, exp1_num have"):
        manifest = build_manifest(tmp_path / "alike", folds=2, reading=reading)
    assert [patient.id for patient in manifest.patients] == ["exp0_num", "exp1_num"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*far apart")
        alone = build_manifest(tmp_path / "alike", folds=2, reading=reading, patient_pattern="([^/]+)[.]")
    assert len(alone.patients) == 4


def test_pictures_that_lie_otherwise_are_answered_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "anna").mkdir()
    for name in ("1.png", "1_mask.png"):
        (tmp_path / "anna" / name).touch()
    with pytest.raises(DataError, match=r"found no images \(2 \.png\); arrange them so, or list them in a CSV table"):
        build_manifest(tmp_path, format="png", folds=2)
