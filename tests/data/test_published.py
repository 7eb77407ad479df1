"""Public data sets as they are published: each layout is read, or refused in a sentence that says what to do."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from PIL import Image
from scan_cases import nii, picture, scan

from monai_fp4.data import Manifest, load_datalist
from monai_fp4.data.build import find_and_examine
from monai_fp4.data.patients import read_patient
from monai_fp4.errors import DataError


def volume(path: Path, number: int) -> None:
    """A scan, or its mask where the name says so."""
    image, mask = scan(number)
    is_mask = any(word in "/".join(path.parts[-2:]).lower() for word in MASKS)
    values = mask if is_mask else image.astype(np.int16)
    if path.name.endswith(".mhd"):
        path.parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values.transpose(2, 1, 0)), str(path))
    else:
        nii(path, values)


MASKS = ("seg", "mask", "label", "_gt")


def slice_of(path: Path, number: int, size: tuple[int, int] = (48, 40)) -> None:
    image, mask = picture(number, size=size)
    is_mask = any(word in "/".join(path.parts[-2:]).lower() for word in (*MASKS, "truth", "manual", "ho."))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask if is_mask else image).save(path)


def each(write: Callable[[Path, int], None], *names: str, count: int = 3, start: int = 0) -> Callable[[Path], None]:
    """A writer of files called by a number ``n``, such as ``"s{n:02d}/ct.nii.gz"``."""

    def everything(root: Path) -> None:
        for number in range(start, start + count):
            for name in names:
                write(root / name.format(n=number), number)

    return everything


def described(write: Callable[[Path], None], **description: Any) -> Callable[[Path], None]:
    def everything(root: Path) -> None:
        write(root)
        (root / "dataset.json").write_text(json.dumps(description))

    return everything


def slices_beside(root: Path) -> None:
    for number in range(2):
        for index in range(11):
            for end in ("", "_mask"):
                slice_of(root / f"patient_{number:02d}" / f"slice_{index}{end}.png", 20 * number + index)


def acdc(root: Path, whole: bool) -> None:
    for number in range(3):
        for frame in ("01", "12"):
            for end in ("", "_gt"):
                name = f"patient{number:03d}_frame{frame}{end}.nii.gz"
                volume(root / f"patient{number:03d}" / name, 10 * number + int(frame))
        if whole:
            nii(root / f"patient{number:03d}" / f"patient{number:03d}_4d.nii.gz", np.zeros((40, 36, 6, 2), np.int16))


def brats_visits(root: Path) -> None:
    for person in range(3):
        for visit in range(2):
            name = f"BraTS-GLI-{person:05d}-10{visit}"
            for channel in ("t1c", "t2f", "seg"):
                volume(root / name / f"{name}-{channel}.nii.gz", 10 * person + visit)


def chase(root: Path) -> None:
    for number in range(1, 3):
        for eye in "LR":
            for end in (".jpg", "_1stHO.png", "_2ndHO.png"):
                slice_of(root / f"Image_{number:02d}{eye}{end}", number)


PAIRS = [{"image": f"./imagesTr/l_{n}.nii.gz", "label": f"./labelsTr/l_{n}.nii.gz"} for n in range(3)]

READ: Mapping[str, tuple[Callable[[Path], None], str, tuple[str, ...], list[str]]] = {
    "BraTS 2020": (
        each(volume, *(f"BraTS20_{{n:03d}}/BraTS20_{{n:03d}}_{c}.nii" for c in ("flair", "t1", "seg"))),
        "nifti", ("flair", "t1"), [f"BraTS20_{n:03d}" for n in range(3)],
    ),
    "BraTS 2024, two visits": (
        brats_visits, "nifti", ("t1c", "t2f"), [f"BraTS-GLI-{p:05d}-10{v}" for p in range(3) for v in range(2)]
    ),
    "KiTS": (
        each(volume, "case_{n:05d}/imaging.nii.gz", "case_{n:05d}/segmentation.nii.gz"), "nifti", ("imaging",),
        [f"case_{n:05d}" for n in range(3)],
    ),
    "nnU-Net 2": (
        described(each(volume, "imagesTr/c_{n}_0000.nii.gz", "imagesTr/c_{n}_0001.nii.gz", "labelsTr/c_{n}.nii.gz"),
                  channel_names={"0": "CT", "1": "PET"}, labels={"background": 0, "tumour": 1}),
        "nnunet", ("CT", "PET"), ["c_0", "c_1", "c_2"],
    ),
    "Decathlon": (
        described(each(volume, "imagesTr/l_{n}.nii.gz", "labelsTr/l_{n}.nii.gz"), modality={"0": "CT"}, training=PAIRS),
        "msd", ("CT",), ["l_0", "l_1", "l_2"],
    ),
    "AMOS": (
        described(each(volume, "imagesTr/amos_{n:04d}.nii.gz", "labelsTr/amos_{n:04d}.nii.gz"), modality={"0": "CT"},
                  training=[{key: f"./{key}sTr/amos_{n:04d}.nii.gz" for key in ("image", "label")} for n in range(3)]),
        "msd", ("CT",), ["amos_0000", "amos_0001", "amos_0002"],
    ),
    "PROMISE12": (
        each(volume, "Case{n:02d}.mhd", "Case{n:02d}_segmentation.mhd"), "beside", ("grey",),
        ["Case00", "Case01", "Case02"],
    ),
    "slices beside their masks": (slices_beside, "beside", ("grey",), ["patient_00", "patient_01"]),
    "volumes beside their masks": (
        each(volume, "s{n}.nii.gz", "s{n}_mask.nii.gz"), "beside", ("grey",), ["s0", "s1", "s2"]
    ),
    "LiTS": (
        each(volume, "volume-{n}.nii", "segmentation-{n}.nii"), "beside", ("grey",),
        [f"volume-{n}" for n in range(3)],
    ),
    "pictures in one folder": (
        each(slice_of, "image_{n}.png", "mask_{n}.png"), "beside", ("grey",), ["0", "1", "2"]
    ),
    "one volume a folder": (
        each(volume, "p{n}/ct.nii.gz", "p{n}/ct_seg.nii.gz"), "beside", ("grey",), ["p0", "p1", "p2"]
    ),
    "ACDC without the 4D files": (
        lambda root: acdc(root, whole=False), "beside", ("grey",),
        [f"patient{n:03d}_frame{f}" for n in range(3) for f in ("01", "12")],
    ),
    "image_1 and mask_1": (
        each(slice_of, "images/image_{n}.png", "masks/mask_{n}.png"), "png", ("grey",), ["0", "1", "2"]
    ),
}  # fmt: skip


def build(root: Path, **options: Any) -> tuple[Manifest, str]:
    manifest, findings = find_and_examine(root, folds=2, **options)
    return manifest, "\n".join((*findings.facts, *findings.doubts))


@pytest.mark.parametrize("name", READ)
def test_layouts_that_are_read(name, tmp_path):
    write, layout, channels, patients = READ[name]
    write(tmp_path / "data")
    manifest, text = build(tmp_path / "data")
    assert (manifest.format, manifest.channels) == (layout, channels)
    assert [patient.id for patient in manifest.patients] == patients
    assert "not read" not in text
    record = next(r for r in load_datalist(manifest, tmp_path / "data", "all", "train") if r["patient"] == patients[0])
    found = read_patient(record)
    if name.startswith(("slices", "image_", "pictures")):
        drawn = [picture(number) for number in range(found.mask.shape[-1])]
        assert np.array_equal(found.image[0], np.stack([image for image, _ in drawn], -1))
        assert np.array_equal(found.mask[0], np.stack([mask > 0 for _, mask in drawn], -1))
    else:
        image, mask = scan(1 if name.startswith("ACDC") else 0)
        turn = slice(None) if name == "PROMISE12" else slice(None, None, -1)  # ITK's axes run the other way
        for channel in found.image:
            assert np.array_equal(channel, image.astype(np.int16)[turn, turn].transpose(1, 0, 2))
        assert np.array_equal(found.mask[0], mask[turn, turn].transpose(1, 0, 2))


@pytest.mark.parametrize("name", ["BraTS 2024, two visits", "ACDC without the 4D files"])
def test_visits_of_one_person_are_in_one_fold(name, tmp_path):
    READ[name][0](tmp_path)
    people: dict[str, set[int | None]] = {}
    for patient in build(tmp_path)[0].patients:
        assert patient.person and patient.id.startswith(patient.person)
        people.setdefault(patient.person, set()).add(patient.fold)
    assert len(people) == 3 and all(len(folds) == 1 for folds in people.values())


def test_the_films_of_acdc_are_named_and_left_for_the_frames_that_have_masks(tmp_path):
    acdc(tmp_path / "whole", whole=True)
    acdc(tmp_path / "frames", whole=False)
    manifest, text = build(tmp_path / "whole", name="acdc")
    films = ", ".join(f"patient{n:03d}/patient{n:03d}_4d.nii.gz" for n in range(3))
    assert f"not read, as no rule takes them: {films}" in text
    assert manifest == build(tmp_path / "frames", name="acdc")[0]
    (tmp_path / "whole" / "patient001" / "patient001_frame12_gt.nii.gz").unlink()
    with pytest.raises(DataError, match=r"a mask for patient001/patient001_frame12\.nii\.gz"):
        build(tmp_path / "whole", format="beside")


ISIC = ("ISIC2018_Training_Input/ISIC_{n:07d}.jpg", "ISIC2018_Training_GroundTruth/ISIC_{n:07d}_segmentation.png")


def test_isic_is_read_with_a_pattern_for_its_pictures(tmp_path):
    each(slice_of, *ISIC)(tmp_path)
    manifest, text = build(tmp_path, patient_pattern=r"(ISIC_\d+)")
    assert manifest.format == "png" and "not read" not in text
    assert [patient.id for patient in manifest.patients] == [f"ISIC_{n:07d}" for n in range(3)]
    assert all(patient.images[0].mask.endswith(f"{patient.id}_segmentation.png") for patient in manifest.patients)


TABLE = r"list patient, image and mask of each in a CSV table there, for --format table$"

REFUSED: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "BraTS 2018": (
        lambda root: [
            each(volume, *(f"{g}/B{g}_{{n}}_1/B{g}_{{n}}_1_{c}.nii.gz" for c in ("t1", "seg")), start=s)(root)
            for g, s in (("HGG", 0), ("LGG", 5))
        ],
        r"put together what HGG, LGG hold, each in the nifti layout, or give one as dataset_dir",
    ),
    "all of nnU-Net": (
        each(volume, "Dataset001_X/imagesTr/c{n}_0000.nii.gz", "Dataset001_X/labelsTr/c{n}.nii.gz"),
        r"give .*Dataset001_X as dataset_dir, which is in the nnunet layout; or ",
    ),
    "train and val": (
        lambda root: [
            each(slice_of, f"{s}/images/{s}{{n}}.png", f"{s}/masks/{s}{{n}}.png")(root) for s in ("train", "val")
        ],
        r"put together what train, val hold, each in the png layout, or give one",
    ),
    "a set two folders deep": (
        each(slice_of, "a/b/images/{n}.png", "a/b/masks/{n}.png"), r"give .*a.b as dataset_dir, which is in"
    ),
    "CHASE": (chase, r"found 8 \.png, 4 \.jpg; as beside: expected masks called as their images and _mask"),
    "ISIC without a pattern": (
        lambda root: [each(slice_of, *ISIC)(root), *(slice_of(root / n.format(n=1), 1, (20, 20)) for n in ISIC)],
        r"slices of one size .*such as '\(\[\^/\]\+\)\[\.\]'",
    ),
    "DRIVE": (
        each(slice_of, "images/{n}_training.tif", "1st_manual/{n}_manual1.gif"), r"expected a mask for |found no masks"
    ),
    "TotalSegmentator": (
        each(volume, "s{n:04d}/ct.nii.gz", "s{n:04d}/segmentations/liver.nii.gz"), r"one mask .*, found none beside"
    ),
    "BIDS with two masks": (
        each(volume, "sub-{n}/anat/sub-{n}_T1w.nii.gz",
             *(f"derivatives/m/sub-{{n}}/anat/sub-{{n}}_desc-{d}_mask.nii.gz" for d in ("brain", "lesion"))),
        r"one mask .* of sub-0 in .*, found .*desc-brain_mask.*desc-lesion_mask",
    ),
    "AMOS without its description": (
        each(volume, "imagesTr/a_{n:04d}.nii.gz", "labelsTr/a_{n:04d}.nii.gz"),
        r"each is a patient with --pat"
    ),
    "channels without numbers": (
        described(each(volume, "imagesTr/c{n}_0000.nii.gz", "labelsTr/c{n}.nii.gz"), channel_names={"T1": "0"}),
        r"channels called by their numbers, as in \"0\": \"T1\", in .*dataset\.json, found T1; correct it",
    ),
    "two channels of one name": (
        described(each(volume, "imagesTr/c{n}_0000.nii.gz", "imagesTr/c{n}_0001.nii.gz", "labelsTr/c{n}.nii.gz"),
                  channel_names={"0": "MRI", "1": "MRI"}),
        r"channels of different names, found 'MRI' twice; give names in their order with --channels",
    ),
    "a description that is no JSON": (
        lambda root: [each(volume, "imagesTr/c{n}.nii.gz")(root), (root / "dataset.json").write_text("[" * 9999)],
        r"expected JSON in .*dataset\.json, found what cannot be read",
    ),
    "a folder without slices": (
        lambda root: [slices_beside(root), (root / "patient_02").mkdir()], r"images of patient 'patient_02'|as beside"
    ),
    "a slice without a mask": (
        lambda root: [slices_beside(root), (root / "patient_01" / "slice_3_mask.png").unlink()],
        r"expected a mask for patient_01/slice_3\.png in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_are_refused_with_what_to_do(name, tmp_path):
    write, sentence = REFUSED[name]
    write(tmp_path)
    with pytest.raises(DataError) as refused:
        build(tmp_path)
    assert re.search(sentence, str(refused.value)), refused.value
    if "expected a data folder in one of the layouts" in str(refused.value):
        assert re.search(TABLE, str(refused.value)), refused.value


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("images/a.npy", r"save \.npy as \.nii\.gz with nibabel; or list"),
        ("p0/orig.mgz", r"convert \.mgz to \.nii\.gz with FreeSurfer's mri_convert; or list"),
        ("data.ZIP", r"unpack \.zip; or list"),
        ("images/a.webp", r"save \.webp as PNG; or list"),
        ("slides/a.svs", r"cut \.svs into PNG or TIFF tiles"),
        ("LIDC-0001/069.xml", r"draw the contours of \.xml into masks, for LIDC with pylidc"),
        ("readme", r"found 1 without ending; .*; or list"),
    ],
)
def test_formats_that_are_not_read_are_answered_with_what_to_do(file, sentence, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(DataError) as refused:
        build(tmp_path)
    assert re.search(sentence, str(refused.value)), refused.value


def test_a_mask_of_all_that_is_seen_is_doubted(tmp_path):
    each(slice_of, "images/{n}.png", "masks/{n}.png")(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        rows, columns = np.mgrid[-1:1:48j, -1:1:40j]
        Image.fromarray(((rows**2 + columns**2 < 1) * 255).astype(np.uint8)).save(path)  # a field of view
    assert "fills more than half of every scan that has one, as a mask of the body" in build(tmp_path)[1]


DECOMPOSED = unicodedata.normalize("NFD", "Müller")


def test_accents_are_compared_whole_however_they_are_written(tmp_path):
    assert DECOMPOSED != "Müller"
    names = ["Müller", "Ärzte", "b"]
    for number, name in enumerate(names):
        slice_of(tmp_path / "a" / "images" / f"{unicodedata.normalize('NFD', name)}_1.png", number)
        slice_of(tmp_path / "a" / "masks" / f"{name}_1.png", number)
        for end in ("", "_mask"):
            slice_of(tmp_path / "t" / "x" / f"{unicodedata.normalize('NFD', name)}{end}.png", number)
    groups = {name: {"group": "x"} for name in names}
    manifest, _ = build(tmp_path / "a", groups=groups)
    assert {patient.group for patient in manifest.patients} == {"x"}
    lines = [f"{name},x/{name}.png,x/{name}_mask.png" for name in names]
    (tmp_path / "t" / "all.csv").write_text("\n".join(["patient,image,mask", *lines]), encoding="utf-8")
    manifest, text = build(tmp_path / "t")
    assert manifest.format == "table" and "not read" not in text
    assert sorted(patient.tumour_voxels for patient in manifest.patients) == sorted(
        np.count_nonzero(picture(number)[1]) for number in range(3)
    )


def test_spaces_of_other_scripts_are_part_of_a_name(tmp_path):
    for number, name in enumerate(("p\u00a00", "山田\u3000太郎", "screen\u202fshot")):
        for file in ("image.nii.gz", "mask.nii.gz"):
            volume(tmp_path / "data" / name / file, number)
    assert len(build(tmp_path / "data")[0].patients) == 3
    (tmp_path / "data" / "screen\u202fshot").rename(tmp_path / "data" / "turned\u202eround")
    with pytest.raises(DataError, match=r"printable text in .*u202e"):
        build(tmp_path / "data")


def test_the_table_of_the_documentation(tmp_path):
    chase(tmp_path)
    for path in tmp_path.glob("*_1stHO.png"):  # each eye is another picture
        slice_of(path.with_name(path.name.replace("_1stHO.png", ".jpg")), sum(map(ord, path.name)))
    page = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(import csv.*?)```", page, re.DOTALL)
    assert script is not None
    exec(script[1].replace("/data/chase", tmp_path.as_posix()), {})
    manifest, text = build(tmp_path)
    assert [(patient.id, patient.person) for patient in manifest.patients] == [
        (f"Image_{number:02d}{eye}", f"Image_{number:02d}") for number in (1, 2) for eye in "LR"
    ]
    assert manifest.format == "table" and "not read, as no rule takes them: Image_01L_2ndHO.png" in text


def write_table(root: Path, *rows: str, columns: str = "patient,image,mask") -> Path:
    for number in range(4):
        slice_of(root / "i" / f"p{number}.png", number)
        slice_of(root / "masks" / f"p{number}.png", number)
    (root / "all.csv").write_text("\n".join([columns, *rows]))
    return root


def test_a_table_is_believed_though_other_layouts_fit(tmp_path):
    root = tmp_path / "data"
    for number in range(4):
        for file in ("image.nii.gz", "mask.nii.gz"):
            volume(root / f"p{number}" / file, number)
    rows = [f"q{number},p{number}/image.nii.gz,p{number}/mask.nii.gz,{number % 2}" for number in range(3)]
    (root / "all.csv").write_text("\n".join(["patient,image,mask,fold", *rows]))
    manifest, text = build(root)
    assert (manifest.format, [patient.id for patient in manifest.patients]) == ("table", ["q0", "q1", "q2"])
    assert "not read, as no rule takes them: p3/image.nii.gz, p3/mask.nii.gz" in text
    (root / "all.csv").write_text(
        "\n".join(["patient,image,mask,fold", rows[0], "q1,p1/images.nii.gz,p1/mask.nii.gz,1"])
    )
    with pytest.raises(DataError, match=r"column image in line 3 of .*all\.csv, found no 'p1/images\.nii\.gz'"):
        build(root)
    (root / "all.csv").write_text("patient,age\np0,40\n")  # which is about the patients and lists no files
    assert build(root)[0].format == "nifti"


def test_paths_of_a_table_as_people_write_them(tmp_path):
    root = write_table(
        tmp_path,
        "a,./i/p0.png,.\\masks\\p0.png",
        f"b,{tmp_path}/i/p1.png,{tmp_path}/masks/p1.png",
        "c,i/p2.png,masks/p2.png",
    )
    manifest, text = build(root)
    assert [patient.images[0].mask for patient in manifest.patients] == [f"masks/p{number}.png" for number in range(3)]
    assert "every patient has one picture" not in text  # the table says who is who


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            ["a,i/p0.png,masks/p0.png", "a,i/p1.png,masks/p0.png"],
            r"mask of each slice of patient 'a' .*p0\.png in 2 rows",
        ),
        (["a,i/p0.png,masks/p0.png", ",i/p1.png,masks/p1.png"], r"a patient in line 3 of .*all\.csv, found none"),
        (["a,../i/p0.png,masks/p0.png"], r"found no '\.\./i/p0\.png'"),
    ],
)
def test_tables_that_contradict_themselves(rows, sentence, tmp_path):
    with pytest.raises(DataError, match=sentence):
        build(write_table(tmp_path, *rows))


def test_folds_are_numbered_from_0(tmp_path):
    rows = [f"{number},i/p{number}.png,masks/p{number}.png,{1 + number % 2}" for number in range(4)]
    with pytest.raises(
        DataError, match=r"folds numbered from 0 on without a gap in the table, found 1, 2; number them"
    ):
        build(write_table(tmp_path, *rows, columns="patient,image,mask,fold"))
