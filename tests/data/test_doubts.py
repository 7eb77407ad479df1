"""What is doubtful in a data folder is refused or said by name: masks, thresholds, channels, copies, persons."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scan_cases import nii, picture, scan

from monai_fp4.data import Manifest, load_datalist
from monai_fp4.data.build import find_and_examine
from monai_fp4.data.doubts import doubts_of
from monai_fp4.data.examination import examine
from monai_fp4.data.layouts import FoundPatient
from monai_fp4.data.patients import read_patient
from monai_fp4.data.records import Reading
from monai_fp4.errors import DataError

NAMES = ("p0", "p1", "p2", "p3")


def write(root: Path, mask: Callable[[int, np.ndarray], np.ndarray] = lambda _, mask: mask, names: Any = NAMES) -> Path:
    for number, name in enumerate(names):
        image, lesion = scan(number)
        nii(root / name / "image.nii.gz", image, dtype=np.int16)
        nii(root / name / "mask.nii.gz", mask(number, lesion))
    return root


def build(root: Path, **options: Any) -> tuple[Manifest, str]:
    manifest, findings = find_and_examine(root, folds=2, **options)
    return manifest, "\n".join(findings.doubts)


def test_good_scans_raise_no_doubt(tmp_path):
    assert build(write(tmp_path))[1] == ""


def test_a_threshold_and_voxels_that_do_not_count_go_together(tmp_path):
    def soft(_: int, lesion: np.ndarray) -> np.ndarray:
        mask = lesion * np.float32(0.8)
        mask[:3] = 9
        mask[3, 0, 0] = 8.5  # no label: above the threshold
        return mask

    manifest, _ = build(write(tmp_path, soft), reading=Reading(mask_threshold=0.5, ignore_label=(9,)))
    expected = scan(0)[1].copy()
    expected[:3], expected[3, 0, 0] = 2, 1
    record = next(r for r in load_datalist(manifest, tmp_path, "all", "train") if r["patient"] == "p0")
    assert np.array_equal(read_patient(record).mask[0], expected[::-1, ::-1].transpose(1, 0, 2))


@pytest.mark.parametrize("split", ["train", "test"])
def test_masks_of_labels_under_a_threshold_that_none_reaches(split, tmp_path):
    root = write(tmp_path, lambda number, mask: mask * (255 if number < 2 else 1))
    with pytest.raises(DataError, match=r"--mask_threshold 128 divides in .*, found 0 and 1 alone in p2, p3, which"):
        build(root, reading=Reading(mask_threshold=128), split=split)


def test_soft_masks_below_a_threshold_are_named(tmp_path):
    def soft(number: int, mask: np.ndarray) -> np.ndarray:
        return (mask * np.linspace(0.1, 0.4, mask.size).reshape(mask.shape) * (1 if number == 3 else 2.5)).astype("f4")

    _, doubts = build(write(tmp_path, soft), reading=Reading(mask_threshold=0.5))
    assert re.search(r"masks of p3 hold values up to 0\.\d+, all below --mask_threshold 0\.5", doubts)


def test_labels_that_no_mask_holds_and_no_lesion_at_all(tmp_path):
    root = write(tmp_path)
    _, doubts = build(root, reading=Reading(labels=(1, 7), ignore_label=(8,)))
    assert "no mask holds 7 of --labels" in doubts and "no mask holds 8 of --ignore_label" in doubts
    root = write(tmp_path / "healthy", lambda _, mask: mask * 0)
    assert "no mask holds a voxel of lesion" in build(root, split="test")[1]


def test_masks_that_are_inverted_though_the_label_is_said(tmp_path):
    root = write(tmp_path / "one", lambda number, mask: mask if number else 1 - mask)
    assert "most voxels and all corners in p0, as if" in build(root, reading=Reading(labels=(1,)))[1]
    root = write(tmp_path / "soft", lambda _, mask: 1 - mask * np.float32(0.9))
    assert "all corners in p0, p1, p2, p3, as if" in build(root, reading=Reading(mask_threshold=0.5))[1]
    root = write(tmp_path / "said", lambda _, mask: 1 - mask)
    assert build(root, reading=Reading(labels=(0,)))[1] == ""


NOISE = np.random.default_rng(0).random((40, 36, 6)).astype(np.float32)
CHANNELS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], str]] = {
    "a soft prediction": (lambda _, mask: mask * 0.9 + 0.05 * NOISE, r"'other' equals the mask in p0, .*nearly"),
    "the background": (lambda _, mask: 1 - mask, r"channel 'other' equals the mask in p0, p1, p2, p3"),
    "a map of labels": (
        lambda image, mask: mask + 2 * (image > 200), r"channel 'other' holds up to 3 values in every patient"
    ),
    "one value": (lambda image, _: image * 0 + 7, r"channel 'other' holds one value alone in p0, p1, p2, p3"),
    "another image": (lambda image, mask: image * 2 + 30 * NOISE, r""),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_that_tell_the_mask_or_nothing(name, tmp_path):
    change, sentence = CHANNELS[name]
    write(tmp_path)
    for number, patient in enumerate(NAMES):
        image, mask = scan(number)
        nii(tmp_path / patient / "other.nii.gz", change(image, mask), dtype=np.float32)
    _, doubts = build(tmp_path)
    assert re.search(sentence, doubts) if sentence else doubts == ""


def test_an_atlas_that_all_patients_have_makes_them_no_copies(tmp_path):
    write(tmp_path)
    for number, patient in enumerate(NAMES):  # the same numbers, and the same file or another
        nii(tmp_path / patient / "atlas.nii.gz", NOISE, dtype=np.float64 if number % 2 else np.float32)
    assert len(build(tmp_path)[0].patients) == 4


def test_a_scan_that_was_saved_again_is_the_same_scan(tmp_path):
    root = write(tmp_path)
    packed = (root / "p0" / "image.nii.gz").read_bytes()
    (root / "p9").mkdir()
    nii(root / "p9" / "mask.nii.gz", scan(0)[1])
    for again in (
        lambda path: path.write_bytes(gzip.compress(gzip.decompress(packed), 1, mtime=1)),
        lambda path: nii(path, scan(0)[0].astype(np.int16).astype(np.float64)),
    ):
        again(root / "p9" / "image.nii.gz")
        with pytest.raises(DataError, match=r"found 1 images of 'p0' .* again under 'p9' .*; keep one"):
            build(root)


@pytest.mark.parametrize("swapped", [False, True])
def test_colours_of_masks_mean_the_same_labels(swapped, tmp_path):
    for number in range(4):
        image, mask = picture(number)
        labels = (mask > 0).astype(np.uint8)
        labels[:4] = 2
        colours = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
        if swapped and number == 3:
            labels, colours = np.array([0, 2, 1], np.uint8)[labels], [colours[0], colours[2], colours[1]]
        for folder, values in (("images", image), ("masks", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            saved = Image.fromarray(values)
            if folder == "masks":
                saved.putpalette([value for colour in colours for value in colour])
            saved.save(tmp_path / folder / f"{'ab'[number // 2]}_{number}.png")
    if swapped:
        with pytest.raises(DataError, match=r"'#00ff00' is 2 in 'a' and 1 in 'b', of which --labels"):
            build(tmp_path, reading=Reading(labels=(1,)))
        build(tmp_path, reading=Reading(labels=(1, 2)))
    else:
        manifest, _ = build(tmp_path, reading=Reading(labels=(1,)))
        assert manifest.patients[0].tumour_voxels == sum((picture(n)[1][4:] > 0).sum() for n in (0, 1))


def test_visits_of_one_person(tmp_path):
    visits = [f"{name}_{visit}" for name in ("anna", "bert", "cleo") for visit in (1, 2)]
    root = write(tmp_path / "visits", names=visits)
    assert "begin with 'anna', and so with 2 other names: if these are visits of one person" in build(root)[1]
    one = write(
        tmp_path / "one", names=["anna-2019", "anna-2021", *(f"{name}-2020" for name in ("bert", "cleo", "dora"))]
    )
    assert "begin with 'anna': if these are visits of one person" in build(one)[1]
    assert build(root, patient_pattern="(.*)_")[1] == ""
    assert build(root, groups={name: {"group": "x"} for name in visits})[1] == ""
    pair = ("anna-2019/image.nii.gz", "anna-2019/mask.nii.gz")
    paths = {"image": str(one / pair[0]), "mask": str(one / pair[1])}
    examined = examine({"patient": "anna", "images": [paths], "reading": {}})
    for kind, names in {
        "numbers": [f"case_{number:05d}" for number in range(4)],
        "dates": [f"TCGA_CS_{number}_1999{number}909" for number in range(4941, 4945)],
        "institutions": ["HOS_AA_000", "HOS_AA_001", "HOS_BB_002", "HOS_BB_003"],
        "single": ["anna_1", "bert_1", "cleo_1", "dora_1"],
    }.items():
        found = [FoundPatient(name, (pair,), group=name[4:6] if kind == "institutions" else "") for name in names]
        doubts = doubts_of("nifti", ("image",), found, [examined] * len(found), Reading())
        assert not [doubt for doubt in doubts if "visits" in doubt], kind


def test_pictures_that_a_table_names_each_are_not_doubted(tmp_path):
    for number in range(4):
        for folder, values in zip(("images", "masks"), picture(number), strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / folder / f"pic{number}.png")
    assert "4 names begin with 'pic'" in build(tmp_path)[1]
    table = {f"pic{number}": {"group": "ab"[number % 2]} for number in range(4)}
    assert build(tmp_path, groups=table)[1] == ""
    del table["pic3"]
    assert "4 names begin with 'pic'" in build(tmp_path, groups=table)[1]
