"""Readers and layouts: what comes out equals what was written, and each kind of bad file ends in one clear sentence."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_data import lgg_ids, slice_path, write_lgg, write_nifti, write_png

from monai_fp4.data import Manifest, build_manifest, check_manifest, load_datalist
from monai_fp4.data.patients import Volume, read_patient
from monai_fp4.errors import DataError

IDS = lgg_ids(4)


@pytest.fixture
def lgg(tmp_path) -> Path:
    return write_lgg(tmp_path / "data", dict.fromkeys(IDS, 3))


def read(manifest: Manifest, folder: Path, number: int = 0) -> Volume:
    return read_patient(load_datalist(manifest, folder, "all", "train")[number])


def rebuild(folder: Path, **options: object) -> Manifest:
    return build_manifest(folder, folds=2, **options)


def test_lgg_volume_equals_its_slices(lgg):
    manifest = rebuild(lgg)
    volume = read(manifest, lgg)
    assert volume.image.dtype == np.float32
    assert volume.mask.dtype == np.uint8
    assert volume.image.shape == (3, 16, 16, 3)
    assert volume.mask.shape == (1, 16, 16, 3)
    assert volume.image[..., 0].flags.c_contiguous and volume.mask[..., 0].flags.c_contiguous
    for number in range(3):
        picture = np.asarray(Image.open(slice_path(lgg, IDS[0], number + 1)))
        assert np.array_equal(volume.image[..., number], picture.transpose(2, 0, 1))
    assert volume.mask.sum() == 4
    assert volume.mask[0, 3:5, 7:9, 1].all()


def test_lgg_manifest_tells_groups_volumes_and_channels(lgg):
    manifest = rebuild(lgg)
    assert [each.group for each in manifest.patients] == ["A", "A", "B", "B"]
    assert {(each.tumour_voxels, each.tumour_slices) for each in manifest.patients} == {(4, 1)}
    assert manifest.channels == ("pre-contrast", "FLAIR", "post-contrast")
    assert manifest == build_manifest(lgg, folds=2, name=manifest.name)


def test_the_parent_of_kaggle_3m_does_as_well(lgg):
    assert rebuild(lgg, name="m") == rebuild(lgg.parent, name="m")
    assert load_datalist(rebuild(lgg), lgg.parent, 0, "val") == load_datalist(rebuild(lgg), lgg, 0, "val")


def test_slices_come_in_the_order_of_their_numbers(tmp_path):
    lgg = write_lgg(tmp_path, {"TCGA_A_1": 11, "TCGA_A_2": 2})
    names = [Path(pair.image).stem.rpartition("_")[2] for pair in rebuild(lgg).patients[0].images]
    assert names == [str(number) for number in range(1, 12)]


def test_test_split_has_no_folds(lgg):
    manifest = build_manifest(lgg, split="test")
    assert manifest.folds == 0
    assert {(each.split, each.fold) for each in manifest.patients} == {("test", None)}
    assert len(load_datalist(manifest, lgg, 0, "test")) == 4


def test_groups_may_be_given(lgg):
    manifest = rebuild(lgg, groups={IDS[1]: "Z"})
    assert [each.group for each in manifest.patients] == ["A", "Z", "B", "B"]
    with pytest.raises(DataError, match=rf"nearest names are '{IDS[0]}'"):
        rebuild(lgg, groups={IDS[0] + "x": "Z"})


@pytest.mark.parametrize("names", [["a_1", "a_2", "a_10", "b_1"], ["a/1", "a/2", "a/10", "b/1"]])
def test_png_pairs(tmp_path, names):
    folder = write_png(tmp_path, names)
    manifest = rebuild(folder, format="png")
    assert [(each.id, len(each.images)) for each in manifest.patients] == [("a", 3), ("b", 1)]
    assert manifest.channels == ("grey",)
    volume = read(manifest, folder)
    assert volume.image.shape == (1, 12, 10, 3)
    assert np.array_equal(volume.image[0, ..., 2], np.asarray(Image.open(folder / "images" / f"{names[2]}.png")))
    assert volume.mask.sum() == 3


def test_png_of_16_bits_keeps_them(tmp_path):
    folder = write_png(tmp_path, ["a", "b"], dtype=np.uint16)
    assert read(rebuild(folder, format="png"), folder).image.max() > 255


@pytest.mark.parametrize("mask", ["mask", "seg"])
def test_nifti_channels_are_files(tmp_path, mask):
    folder = write_nifti(tmp_path, ["anna", "bert"], mask=mask)
    manifest = rebuild(folder, format="nifti")
    assert manifest.channels == ("flair", "t1")
    assert manifest.patients[0].tumour_voxels == 1
    volume = read(manifest, folder)
    assert volume.image.shape == (2, 9, 8, 5)
    for number, channel in enumerate(manifest.channels):
        written = nibabel.load(folder / "anna" / f"{channel}.nii.gz").get_fdata(dtype=np.float32)
        assert np.array_equal(volume.image[number], looked_at(written))
    assert volume.mask[0, 9 - 1 - 2, 8 - 1 - 1, 3] == 1


def test_nifti_of_four_axes(tmp_path):
    folder = write_nifti(tmp_path, ["anna", "bert"], channels=("image",), shape=(4, 5, 6, 3))
    manifest = rebuild(folder, format="nifti")
    assert manifest.channels == ("channel_0", "channel_1", "channel_2")
    volume = read(manifest, folder)
    assert volume.image.shape == (3, 5, 4, 6)
    written = nibabel.load(folder / "anna" / "image.nii.gz").get_fdata(dtype=np.float32)
    assert np.array_equal(volume.image[1], looked_at(written[..., 1]))


def looked_at(written: np.ndarray) -> np.ndarray:
    """From axes that run right, forward and up to rows that run back, columns that run left, and slices up."""
    return written[::-1, ::-1].transpose(1, 0, 2)


def test_nifti_slices_are_axial_and_as_radiologists_look_at_them(tmp_path):
    # Stored as superior, right, anterior: the axial slices lie along the first axis of the file.
    affine = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    folder = write_nifti(tmp_path, ["anna", "bert"], channels=("image",), shape=(5, 8, 9), affine=affine)
    volume = read(rebuild(folder, format="nifti"), folder)
    written = nibabel.load(folder / "anna" / "image.nii.gz").get_fdata(dtype=np.float32)
    assert np.array_equal(volume.image[0], looked_at(written.transpose(1, 2, 0)))
    assert volume.mask[0, 9 - 1 - 3, 8 - 1 - 2, 1] == 1


# --- Bad input: one sentence, that names what, where, and what to do.


def test_missing_data_folder(tmp_path):
    with pytest.raises(DataError, match=r"data folder at .*nowhere, found none; give the folder"):
        rebuild(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data folder at .*nowhere"):
        load_datalist("lgg", tmp_path / "nowhere", 0, "train")


def test_folder_of_something_else(tmp_path):
    with pytest.raises(DataError, match=r"expected patients in the lgg layout"):
        rebuild(tmp_path, format="lgg")
    with pytest.raises(DataError, match=r"one of the layouts lgg, png, .*found nothing"):
        rebuild(tmp_path)
    with pytest.raises(DataError, match=r"patients of manifest 'lgg' in .*found none"):
        load_datalist("lgg", tmp_path, 0, "train")


def test_unknown_format(lgg):
    with pytest.raises(DataError, match=r"nearest names are 'nifti'"):
        rebuild(lgg, format="nifty")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 0.999))
def test_truncated_tiff_of_any_length(tmp_path_factory, share):
    lgg = write_lgg(tmp_path_factory.mktemp("data"), dict.fromkeys(IDS[:2], 1))
    path = slice_path(lgg, IDS[1], 1)
    manifest = rebuild(lgg)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    for run in (lambda: rebuild(lgg), lambda: check_manifest(manifest, lgg), lambda: read(manifest, lgg, 1)):
        with pytest.raises(
            DataError, match=rf"{path.name}, found one that is truncated or damaged|{path.name}.*SHA-256 differs"
        ):
            run()


def test_half_a_tiff_is_called_truncated(lgg):
    path = slice_path(lgg, IDS[1], 2)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=rf"whole image in .*{path.name}, found one that is truncated or damaged"):
        rebuild(lgg)


def test_truncated_nifti(tmp_path):
    folder = write_nifti(tmp_path, ["anna", "bert"])
    path = folder / "anna" / "t1.nii.gz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"t1\.nii\.gz, found one that is truncated or damaged"):
        rebuild(folder, format="nifti")


def test_mask_of_another_size(lgg):
    Image.fromarray(np.zeros((16, 15), np.uint8)).save(slice_path(lgg, IDS[2], 3, "_mask"))
    with pytest.raises(DataError, match=r"found 16 x 16 in .*_3\.tif and 16 x 15 in .*_3_mask\.tif"):
        rebuild(lgg)


def test_mask_that_is_not_binary(lgg):
    mask = np.zeros((16, 16), np.uint8)
    mask[0, :3] = 1, 2, 255
    Image.fromarray(mask).save(slice_path(lgg, IDS[2], 3, "_mask"))
    with pytest.raises(DataError, match=r"binary mask.*_3_mask\.tif, found 0, 1, 2, 255"):
        rebuild(lgg)


def test_masks_of_one_patient_with_two_foreground_values(lgg):
    mask = np.zeros((16, 16), np.uint8)
    mask[0, 0] = 1
    Image.fromarray(mask).save(slice_path(lgg, IDS[2], 3, "_mask"))
    with pytest.raises(DataError, match=r"one foreground value in all masks"):
        rebuild(lgg)


def test_mask_in_colour(lgg):
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[3, 4, 1] = 255
    Image.fromarray(colours).save(slice_path(lgg, IDS[0], 1, "_mask"))
    with pytest.raises(DataError, match=r"mask of one channel in .*_1_mask\.tif, found 3"):
        rebuild(lgg)


@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_a_hash_that_differs(lgg, suffix):
    manifest = rebuild(lgg)
    path = slice_path(lgg, IDS[0], 1, suffix)
    Image.fromarray(np.zeros((16, 16) if suffix else (16, 16, 3), np.uint8)).save(path, compression="tiff_lzw")
    for run in (lambda: check_manifest(manifest, lgg), lambda: read(manifest, lgg)):
        with pytest.raises(DataError, match=rf"{path.name}, found that its SHA-256 differs"):
            run()


def test_a_missing_slice_a_missing_mask_and_a_mask_alone(lgg):
    slice_path(lgg, IDS[0], 2).unlink()
    with pytest.raises(DataError, match=r"expected an image for .*_2_mask\.tif"):
        rebuild(lgg)
    slice_path(lgg, IDS[0], 2, "_mask").unlink()
    with pytest.raises(DataError, match=r"without a gap in .*, found 3 after 1; add slice 2"):
        rebuild(lgg)
    slice_path(lgg, IDS[0], 3, "_mask").unlink()
    with pytest.raises(DataError, match=r"expected a mask for .*_3\.tif"):
        rebuild(lgg)


def test_a_patient_without_images(lgg):
    (lgg / "TCGA_A_9999").mkdir()
    with pytest.raises(DataError, match=r"images of patient 'TCGA_A_9999' in .*found none"):
        rebuild(lgg)


def test_a_file_that_does_not_belong(lgg):
    slice_path(lgg, IDS[0], 1).rename(lgg / IDS[0] / "elsewhere_1.tif")
    with pytest.raises(DataError, match=r"found elsewhere_1\.tif; rename or move it"):
        rebuild(lgg)


def test_the_same_patient_in_two_folders(lgg):
    shutil.copytree(lgg / IDS[0], lgg / "TCGA_A_9999")
    for path in (lgg / "TCGA_A_9999").iterdir():
        path.rename(path.with_name(path.name.replace(IDS[0], "TCGA_A_9999")))
    with pytest.raises(DataError, match=rf"3 images of '{IDS[0]}' .* again under 'TCGA_A_9999'"):
        rebuild(lgg)


def test_no_tumour_at_all(lgg):
    for path in lgg.glob("*/*_mask.tif"):
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"a lesion in every fold, found none in its 2 patients in fold 0"):
        rebuild(lgg)


def test_a_file_that_is_gone(lgg):
    manifest = rebuild(lgg)
    path = slice_path(lgg, IDS[3], 2)
    path.unlink()
    with pytest.raises(DataError, match=rf"6 files of patient '{IDS[3]}' in .*found that 1 are not there"):
        load_datalist(manifest, lgg, "all", "train")
    shutil.rmtree(lgg / IDS[3])
    with pytest.raises(DataError, match=r"all 4 patients .*found that 1 are not there"):
        check_manifest(manifest, lgg)


def test_slices_of_two_sizes(lgg):
    for suffix, shape in (("", (8, 8, 3)), ("_mask", (8, 8))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(slice_path(lgg, IDS[0], 2, suffix))
    with pytest.raises(DataError, match=r"3 x 16 x 16 in .* and 3 x 8 x 8 in"):
        rebuild(lgg)


def test_patients_with_other_channels(lgg):
    for number in (1, 2, 3):
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(slice_path(lgg, IDS[1], number))
    with pytest.raises(DataError, match=rf"expected 3 channels as in patient '{IDS[0]}', found 1 in '{IDS[1]}'"):
        rebuild(lgg)


def test_a_picture_with_alpha(lgg):
    Image.fromarray(np.zeros((16, 16, 4), np.uint8)).save(slice_path(lgg, IDS[0], 1))
    with pytest.raises(DataError, match=r"without alpha"):
        rebuild(lgg)


def resave(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(data, nibabel.load(path).affine if affine is None else affine), path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_a_nifti(tmp_path, value):
    folder = write_nifti(tmp_path, ["anna", "bert"])
    data = np.zeros((8, 9, 5), np.float32)
    data[0, 0, :2] = value
    resave(folder / "bert" / "t1.nii.gz", data)
    with pytest.raises(DataError, match=r"finite numbers up to 1e36 in .*bert.t1\.nii\.gz, found 2 voxels"):
        rebuild(folder, format="nifti")


def test_nifti_mask_elsewhere_of_another_size_or_not_binary(tmp_path):
    folder = write_nifti(tmp_path, ["anna", "bert"])
    path = folder / "bert" / "mask.nii.gz"
    moved = np.diag([1.0, 1.0, 3.0, 1.0])
    moved[0, 3] = 5
    resave(path, np.zeros((8, 9, 5), np.uint8), moved)
    with pytest.raises(DataError, match=r"mask\.nii\.gz up to 5 mm \(5 voxels\) away from those of .*flair"):
        rebuild(folder, format="nifti")
    resave(path, np.zeros((8, 9, 4), np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    with pytest.raises(DataError, match=r"8 x 9 x 5 in .* and 8 x 9 x 4 in"):
        rebuild(folder, format="nifti")
    resave(path, np.arange(360, dtype=np.uint16).reshape(8, 9, 5))
    with pytest.raises(DataError, match=r"binary mask.*found 0, 1, 2, 3, 4, 5, \.\.\."):
        rebuild(folder, format="nifti")
    path.unlink()
    with pytest.raises(DataError, match=r"one mask .* in .*bert, found none"):
        rebuild(folder, format="nifti")


@pytest.mark.parametrize("value", [-1, 0.99999, 3])
def test_the_one_value_of_a_mask_may_be_any(tmp_path, value):
    folder = write_nifti(tmp_path, ["anna", "bert"])
    mask = np.zeros((8, 9, 5), np.float32)
    mask[1, 2, 3] = mask[4, 4, 0] = value
    for patient in ("anna", "bert"):
        resave(folder / patient / "mask.nii.gz", mask)
    found = read(rebuild(folder, format="nifti"), folder, 1).mask
    assert found.dtype == np.uint8
    assert found.max() == 1 and found.sum() == 2


@pytest.mark.parametrize("values", [(np.inf,), (np.nan,), (1, -np.inf), (2, -1)])
def test_masks_of_infinity_or_of_two_values_are_refused(tmp_path, values):
    folder = write_nifti(tmp_path, ["anna", "bert"])
    mask = np.zeros((8, 9, 5), np.float32)
    mask[1, 2, : len(values)] = values
    resave(folder / "bert" / "mask.nii.gz", mask)
    with pytest.raises(DataError, match=r"(binary mask|whole numbers).*bert.mask\.nii\.gz, found "):
        rebuild(folder, format="nifti")


def test_nifti_of_two_axes_is_one_slice(tmp_path):
    folder = write_nifti(tmp_path, ["anna", "bert"])
    resave(folder / "bert" / "t1.nii.gz", np.zeros((8, 9), np.float32))
    with pytest.raises(DataError, match=r"of one size, found 8 x 9 x 5 in .* and 8 x 9 x 1 in .*bert.t1\.nii\.gz"):
        rebuild(folder, format="nifti")
    for number, name in product((0, 1), ("flair", "t1", "mask")):
        path = folder / ("anna", "bert")[number] / f"{name}.nii.gz"
        resave(path, np.eye(8, 9, dtype=np.uint8) + (0 if name == "mask" else np.uint8(number)))
    volume = read(rebuild(folder, format="nifti"), folder)
    assert volume.image.shape == (2, 9, 8, 1)
    assert np.array_equal(volume.mask[0], looked_at(np.eye(8, 9)[..., None]))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nifti_header_that_says_nothing_of_an_axis(tmp_path, value):
    folder = write_nifti(tmp_path, ["anna", "bert"])
    path = folder / "bert" / "mask.nii.gz"
    image = nibabel.load(path)
    image.header["srow_z"] = [0, 0, value, 0]
    image.header["sform_code"] = 1
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), None, image.header), path)
    with pytest.raises(DataError, match=r"where each of the three axes points in .*bert.mask\.nii\.gz, found the aff"):
        rebuild(folder, format="nifti")


def test_nifti_patient_with_other_channels(tmp_path):
    folder = write_nifti(tmp_path, ["anna", "bert"])
    (folder / "bert" / "t1.nii.gz").rename(folder / "bert" / "t2.nii.gz")
    with pytest.raises(DataError, match=r"channels flair, t1 of 'anna' .*found flair, t2 in 'bert'"):
        rebuild(folder, format="nifti")


def test_png_without_masks(tmp_path):
    folder = write_png(tmp_path, ["a_1", "b_1"])
    (folder / "masks" / "b_1.png").unlink()
    with pytest.raises(DataError, match=r"a mask for images/b_1\.png"):
        rebuild(folder, format="png")
    shutil.rmtree(folder / "masks")
    with pytest.raises(DataError, match=r"found no masks"):
        rebuild(folder, format="png")


def test_a_palette_is_colours_in_an_image_and_labels_in_a_mask(tmp_path):
    folder = write_png(tmp_path, [f"{patient}_1" for patient in "abcd"])
    colours = np.zeros((12, 10, 3), np.uint8)
    colours[:6] = (200, 10, 30)
    for number, name in enumerate("abcd"):
        picture = Image.fromarray(np.roll(colours, number, axis=0)).quantize(4)
        assert picture.mode == "P"
        picture.save(folder / "images" / f"{name}_1.png")
        mask = Image.open(folder / "masks" / f"{name}_1.png").convert("P")
        mask.putpalette([0, 0, 0, 255, 0, 0])
        mask.save(folder / "masks" / f"{name}_1.png")
    volume = read(rebuild(folder, format="png"), folder)
    assert np.array_equal(volume.image[..., 0], colours.transpose(2, 0, 1))
    assert volume.mask.sum() == 1
