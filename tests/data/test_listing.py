"""What is in a data folder: nothing is passed over in silence, and who is who can be said in a table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import scan_cases
import SimpleITK
from PIL import Image
from small_data import run_manifest, write_nifti, write_png

from monai_fp4.data import Manifest, check_manifest, load_datalist, load_manifest
from monai_fp4.data.build import find_and_examine
from monai_fp4.data.groups import read_groups
from monai_fp4.data.layouts import Listing
from monai_fp4.data.patients import read_patient
from monai_fp4.data.records import Split
from monai_fp4.errors import ConfigError, DataError


def build(root: Path, **options: object) -> Manifest:
    return find_and_examine(root, **{"folds": 2} | options)[0]


def test_links_are_followed_but_not_round_and_round(tmp_path):
    folder = write_png(tmp_path / "archive", ["anna/1", "bert/1"])
    root = tmp_path / "data"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
        for patient in ("anna", "bert"):
            (root / name / patient).symlink_to(folder / name / patient)
    (root / "images" / "again").symlink_to(root)
    assert [patient.id for patient in build(root).patients] == ["anna", "bert"]
    (root / "images" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"a mask for images/lost\.png"):
        build(root)


def test_what_systems_leave_behind_is_ignored_and_all_else_is_listed(tmp_path):
    folder = write_png(tmp_path, ["a_1", "b_1"])
    for name in ("._a_1.png", ".DS_Store", "Thumbs.db", "DESKTOP.INI"):
        (folder / "images" / name).write_bytes(b"x")
    (folder / "__MACOSX" / "images").mkdir(parents=True)
    (folder / "__MACOSX" / "images" / "a_1.png").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / "notes.txt").write_text("x")
    (folder / "images" / "old").mkdir()
    (folder / "images" / "scan.psd").write_bytes(b"x")
    _, findings = find_and_examine(folder, folds=2)
    assert findings.facts[-1] == "not read, as no rule takes them: images/scan.psd, notes.txt"


def test_hidden_patients_are_no_patients(tmp_path):
    write_nifti(tmp_path, ["anna", "bert", ".trash"])
    assert [patient.id for patient in build(tmp_path).patients] == ["anna", "bert"]
    assert Listing(tmp_path).kinds() == "6 .nii.gz"


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".bmp", ".tif", ".TIFF", ".PNG"])
def test_pairs_of_any_format_with_masks_of_another(tmp_path, suffix):
    for number in range(4):
        image, mask = scan_cases.picture(number)
        for name, data, ending in (("images", image, suffix), ("masks", mask, "_segmentation.png")):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(data).save(tmp_path / name / f"ISIC_{number}{ending}")
    manifest = build(tmp_path, patient_pattern=r"ISIC_\d+")
    volume = read_patient(load_datalist(manifest, tmp_path, "all", "train")[1])
    image, mask = scan_cases.picture(1)
    assert np.abs(volume.image[0, ..., 0] - image).mean() < (20 if "j" in suffix.lower() else 1e-6)
    assert np.array_equal(volume.mask[0, ..., 0], mask > 0)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nhdr"])
@pytest.mark.parametrize(
    "direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, -1, 1, 0, 0, 0, -1, 0), (0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1)]
)
def test_volumes_of_itk_are_turned_as_itk_turns_them(tmp_path, suffix, direction):
    for number, patient in enumerate(("anna", "bert")):
        (tmp_path / patient).mkdir()
        random = np.random.default_rng(number)
        image, mask = random.normal(size=(4, 6, 8)).astype(np.float32), random.integers(0, 2, (4, 6, 8), np.uint8)
        for name, values in (("image", image), ("mask", mask)):
            written = SimpleITK.GetImageFromArray(values)
            written.SetDirection(direction)
            written.SetSpacing((1, 2, 3))
            SimpleITK.WriteImage(written, str(tmp_path / patient / f"{name}{suffix}"))
    manifest = build(tmp_path)
    assert manifest.format == "nifti" and check_manifest(manifest, tmp_path) == manifest
    volume = read_patient(load_datalist(manifest, tmp_path, "all", "train")[0])
    for name, found in (("image", volume.image), ("mask", volume.mask)):
        turned = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(tmp_path / "anna" / f"{name}{suffix}")), "LPS")
        assert np.array_equal(found[0], SimpleITK.GetArrayFromImage(turned).transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("unit", "scale"), [("microns", 1000.0), ("um", 1000.0), ("cm", 0.1), ("m", 0.001), ("mm", 1.0)]
)
def test_lengths_of_nrrd_are_millimetres_whatever_the_units(tmp_path, unit, scale):
    values = np.arange(120, dtype=np.uint8).reshape(6, 5, 4)
    directions = " ".join(
        f"({','.join(f'{length * scale:g}' for length in axis)})" for axis in np.diag([1.0, 1.0, 4.0])
    )
    header = (
        "NRRD0005\ntype: uchar\ndimension: 3\nspace: right-anterior-superior\nsizes: 6 5 4\n"
        f"space directions: {directions}\nspace units: {' '.join([chr(34) + unit + chr(34)] * 3)}\nencoding: raw\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + values.tobytes(order="F"))
    nibabel.save(nibabel.Nifti1Image((values > 50).astype(np.uint8), np.diag([1.0, 1, 4, 1])), tmp_path / "m.nii")
    pair = {"image": str(tmp_path / "a.nrrd"), "mask": str(tmp_path / "m.nii")}
    volume = read_patient({"patient": "p", "images": [pair]})
    assert volume.place is not None and volume.place.spacing == pytest.approx((1, 1, 4))
    assert np.array_equal(volume.mask[0] == 1, volume.image[0] > 50)


def test_voxels_in_a_list_of_files_are_refused(tmp_path):
    (tmp_path / "a.mhd").write_text("ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementDataFile = LIST\na.raw\n")
    pair = {"image": str(tmp_path / "a.mhd"), "mask": str(tmp_path / "a.mhd")}
    with pytest.raises(DataError, match=r"voxels of .*a\.mhd in one file, found a list of files; save it as \.mha"):
        read_patient({"patient": "p", "images": [pair]})


def test_an_image_and_a_mask_of_two_formats_lie_upon_each_other(tmp_path):
    """ITK's and NIfTI's axes run in opposite directions."""
    for number, patient in enumerate(("anna", "bert")):
        image, mask = scan_cases.scan(number)
        scan_cases.nii(tmp_path / patient / "image.nii.gz", image)
        written = SimpleITK.ReadImage(str(tmp_path / patient / "image.nii.gz"))
        found = SimpleITK.GetImageFromArray(mask.transpose(2, 1, 0))
        found.CopyInformation(written)
        SimpleITK.WriteImage(found, str(tmp_path / patient / "mask.nrrd"))
    volume = read_patient(load_datalist(build(tmp_path), tmp_path, "all", "train")[0])
    assert np.array_equal(volume.mask[0], scan_cases.scan(0)[1][::-1, ::-1].transpose(1, 0, 2))


def test_a_tiff_of_many_pages_is_a_volume(tmp_path):
    for number in range(2):
        pages = [scan_cases.picture(10 * number + index) for index in range(3)]
        for folder, part in (("images", 0), ("masks", 1)):
            (tmp_path / folder).mkdir(exist_ok=True)
            first, *others = (Image.fromarray(page[part]) for page in pages)
            first.save(tmp_path / folder / f"p{number}.tif", save_all=True, append_images=others)
    volume = read_patient(load_datalist(build(tmp_path), tmp_path, "all", "train")[0])
    for index in range(3):
        image, mask = scan_cases.picture(index)
        assert np.array_equal(volume.image[0, ..., index], image)
        assert np.array_equal(volume.mask[0, ..., index], mask > 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_orientation_says(tmp_path, orientation):
    for number in range(2):
        image, mask = scan_cases.picture(number, size=(30, 20))
        turned = {1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: image.T, 6: np.rot90(image),
                  7: image[::-1, ::-1].T, 8: np.rot90(image, -1)}[orientation]  # fmt: skip
        exif = Image.Exif()
        exif[274] = orientation
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "images" / f"p{number}.png", exif=exif)
        Image.fromarray(mask).save(tmp_path / "masks" / f"p{number}.png")
    volume = read_patient(load_datalist(build(tmp_path), tmp_path, "all", "train")[0])
    assert np.array_equal(volume.image[0, ..., 0], scan_cases.picture(0, size=(30, 20))[0])


def test_white_is_zero_in_a_tiff_of_16_bits(tmp_path):
    for number in range(2):
        image, mask = scan_cases.picture(number, top=65535, dtype=np.uint16)
        for folder, data in (("images", 65535 - image), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            path = tmp_path / folder / f"p{number}.tif"
            Image.fromarray(data).save(path)
        with Image.open(tmp_path / "images" / f"p{number}.tif") as picture:
            assert picture.tag_v2[262] == 1
        Image.fromarray(65535 - image).save(tmp_path / "images" / f"p{number}.tif", tiffinfo={262: 0})
        with Image.open(tmp_path / "images" / f"p{number}.tif") as picture:
            assert picture.tag_v2[262] == 0 and np.array_equal(np.asarray(picture), 65535 - image)
    volume = read_patient(load_datalist(build(tmp_path), tmp_path, "all", "train")[0])
    assert np.array_equal(volume.image[0, ..., 0], scan_cases.picture(0, top=65535, dtype=np.uint16)[0])


# --- Tables


def table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_people_write_them(tmp_path, encoding, separator):
    text = f"Patient {separator}Group\r\nMüller{separator} Zürich \r\n\r\nbert{separator}\r\n"
    groups = read_groups(table(tmp_path / "g.csv", text, encoding))
    assert groups == {"Müller": {"group": "Zürich"}, "bert": {"group": ""}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"patient and group .*found nothing|columns"),
        ("patient,group\n", r"rows below the names"),
        ("patient,group\na,b,c\n", r"2 fields in row 2 .*found 3"),
        ("patient,group\na,x\na,y\n", r"'a' with two groups; keep one"),
        ("patient,patient,group\na,a,x\n", r"every column once"),
        ("patient,age\na,7\n", r"patient and group \(or person, fold, split\)"),
        ("\0\1\2", r"text in .*found a file of another kind"),
    ],
)
def test_tables_that_are_none(tmp_path, text, sentence):
    with pytest.raises(DataError, match=sentence):
        read_groups(table(tmp_path / "g.csv", text))


def test_folds_and_splits_of_ones_own(tmp_path):
    folder = write_nifti(tmp_path / "data", list("abcde"))
    own = table(tmp_path / "g.csv", "patient,fold,split\na,2,\nb,0,\nc,1,train\nd,,test\ne,0,\n")
    manifest = build(folder, groups=read_groups(own))
    assert {patient.id: (patient.fold, patient.split) for patient in manifest.patients} == {
        "a": (2, Split.TRAIN),
        "b": (0, Split.TRAIN),
        "c": (1, Split.TRAIN),
        "d": (None, Split.TEST),
        "e": (0, Split.TRAIN),
    }
    assert manifest.folds == 3
    for text, sentence in (
        ("patient,fold\na,0\nb,1\n", r"every patient in a table of folds, found 3 that are not there, 'c' first"),
        ("patient,fold\na,0\nb,1\nc,\nd,1\ne,0\n", r"a fold of every patient or of none, found none of 'c'"),
        ("patient,fold\na,x\nb,1\nc,1\nd,1\ne,0\n", r"whole number from 0 on .*'x'"),
        (f"patient,fold\na,{'1' * 5000}\nb,1\nc,1\nd,1\ne,0\n", r"whole number from 0 on .*'1{80}'; correct"),
        ("patient,fold\na,0\nb,2\nc,2\nd,2\ne,0\n", r"folds numbered from 0 on without a gap .*, found 0, 2; number"),
        ("patient,split\na,validation\nb,\nc,\nd,\ne,\n", r"split .*'validation' is not known"),
        (
            "patient,person,fold\na,x,0\nb,x,1\nc,,1\nd,,1\ne,,0\n",
            r"every person in one fold, found 'x' as 'a' \(fold 0\)",
        ),
        ("patient,group\nz,1\n", r"patient in the table of groups 'z'"),
    ):
        with pytest.raises(DataError, match=sentence):
            build(folder, groups=read_groups(table(tmp_path / "g.csv", text)))


def test_a_table_of_slices(tmp_path):
    folder = write_png(tmp_path, ["x1", "x2", "x3", "x4"])
    rows = [
        "patient,image,mask",
        *(f"{who},images/x{n}.png,masks/x{n}.png" for who, n in zip("abab", "1234", strict=True)),
    ]
    table(folder / "list.csv", "\n".join(rows))
    manifest = build(folder, format="table")
    assert [[pair.image for pair in patient.images] for patient in manifest.patients] == [
        ["images/x1.png", "images/x3.png"], ["images/x2.png", "images/x4.png"],
    ]  # fmt: skip
    table(folder / "list.csv", "\n".join([*rows, "c,images/none.png,masks/x1.png"]))
    with pytest.raises(DataError, match=r"column image in line 6 .*no 'images/none\.png'"):
        build(folder, format="table")


def test_a_missing_sequence_is_named(tmp_path):
    write_nifti(tmp_path, list("abcd"))
    for patient in "bd":
        (tmp_path / patient / "t1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"channels flair, t1 of 'a' in every patient .*found flair in 'b', 'd'; add"):
        build(tmp_path, format="nifti")


def test_names_that_no_manifest_can_hold(tmp_path):
    write_nifti(tmp_path, ["anna", "be\\rt"])
    with pytest.raises(DataError, match=r"printable text in .*'be\\\\rt'; rename it"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"JSON in .*dataset\.json"),
        ("[]", r"a JSON object in .*found a list"),
        ('{"training": {}}', r"a list 'training'"),
        ('{"training": [3]}', r"a list 'training'"),
        (
            '{"training": [{"image": "../../x.nii", "label": "x"}]}',
            r"the file '\.\./\.\./x\.nii' of dataset\.json",
        ),
    ],
)
def test_a_description_of_the_decathlon_that_is_wrong(tmp_path, text, sentence):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=sentence):
        build(tmp_path, format="msd")


def test_nnunet_without_a_mask_or_with_one_channel_less(tmp_path):
    for name in ("imagesTr/a_0000", "imagesTr/a_0001", "imagesTr/b_0000", "labelsTr/a"):
        scan_cases.nii(tmp_path / f"{name}.nii.gz", scan_cases.scan(0)[1])
    with pytest.raises(DataError, match=r"a mask for imagesTr/b_0000"):
        build(tmp_path)
    shutil.copy(tmp_path / "labelsTr" / "a.nii.gz", tmp_path / "labelsTr" / "b.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}}))
    with pytest.raises(DataError, match=r"channels T1, T2 of 'a' .*found T1 in 'b'"):
        build(tmp_path)


# --- The command


def test_the_command_says_what_it_found(tmp_path, capsys):
    root, _ = scan_cases.write("second_rater", tmp_path)
    output = tmp_path / "m.json"
    assert run_manifest("build", *["--dataset_dir", root, "--folds", 2, "--output", output]) == 0
    said = capsys.readouterr()
    for line in (
        "format nifti: 4 patients",
        "channels: image, mask_rater2",
        "masks: */mask.nii.gz",
        ": 0 in 4, 1 in 4",
    ):
        assert line in said.out
    assert "warning: channel 'mask_rater2' equals the mask" in said.err


def test_what_is_said_on_the_command_line_is_in_the_manifest(tmp_path):
    root, _ = scan_cases.write("mask_multilabel", tmp_path)
    output = tmp_path / "m.json"
    options = ["--dataset_dir", root, "--folds", 2, "--output", output]
    run_manifest("build", *options, "--labels", 1, "--ignore_label", 4, "--channels", "ct")
    manifest = load_manifest(output)
    assert manifest.reading.to_json() == {"labels": [1], "ignore_label": [4]} and manifest.channels == ("ct",)
    mask = read_patient(load_datalist(manifest, root, "all", "train")[0]).mask[0]
    written = nibabel.load(root / "p0" / "mask.nii.gz").get_fdata()[::-1, ::-1].transpose(1, 0, 2)
    assert np.array_equal(mask == 1, written == 1) and np.array_equal(mask == 2, written == 4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--labels", 1, "--mask_threshold", 0.5], "--labels or --mask_threshold, found both"),
        (["--labels", 1, "--ignore_label", 1], "other values for --ignore_label"),
        (["--tolerance", "nan"], "--tolerance to be a finite number"),
        (["--tolerance", -1], "--tolerance to be a finite number"),
        (["--mask_threshold", "inf"], "--mask_threshold to be a finite number"),
        (["--patient_pattern", "("], "patient_pattern to be a regular expression"),
        (["--series", "["], "series to be a regular expression"),
        (["--channels", "a", "b"], "1 different names of channels for image"),
        (["--labels", 9], "one of the labels 9 in the masks"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, sentence):
    root, _ = scan_cases.write("two_patients", tmp_path)
    with pytest.raises((ConfigError, DataError), match=sentence):
        run_manifest("build", *["--dataset_dir", root, "--folds", 2, "--output", tmp_path / "m.json", *options])


def test_names_that_would_swap_channels_are_refused(tmp_path):
    image, mask = scan_cases.scan(0)
    for name in ("flair", "t1", "t2"):
        scan_cases.nii(tmp_path / "in" / "p" / f"{name}.nii.gz", image)
    scan_cases.nii(tmp_path / "in" / "p" / "mask.nii.gz", mask)
    options = ["--dataset_dir", tmp_path / "in", "--split", "test", "--output", tmp_path / "m.json", "--channels"]
    with pytest.raises(ConfigError, match=r"found 'T1', which is another channel's own, for 'flair'"):
        run_manifest("build", *options, "T1", "FLAIR", "T2")
    run_manifest("build", *options, "FLAIR", "T1", "other")
    assert load_manifest(tmp_path / "m.json").channels == ("FLAIR", "T1", "other")


def test_a_folder_whose_name_is_a_number(tmp_path, monkeypatch):
    """`--dataset_dir 2024` reaches us as a number where Fire reads the command line."""
    root, _ = scan_cases.write("two_patients", tmp_path)
    root.rename(tmp_path / "2024")
    monkeypatch.chdir(tmp_path)
    manifest = build(2024)
    assert len(load_datalist(manifest, 2024, "all", "train")) == 2
