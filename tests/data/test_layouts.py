"""One table of layouts and one of readers: whatever is in them is offered, documented and works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from small_data import write_lgg, write_nifti, write_png

from monai_fp4 import data
from monai_fp4.cli import main
from monai_fp4.data import build_manifest, load_manifest, save_manifest
from monai_fp4.data.layouts import LAYOUTS, FoundPatient, Layout
from monai_fp4.data.patients import read_patient
from monai_fp4.data.readers import READERS, Reader, reader_of
from monai_fp4.data.readers.volume import Decoded
from monai_fp4.errors import DataError

EXAMPLES: Mapping[str, Callable[[Path], Path]] = {
    "lgg": lambda root: write_lgg(root, {"TCGA_A_1": 2, "TCGA_A_2": 2}),
    "png": lambda root: write_png(root, ["a_1", "b_1"]),
    "nifti": lambda root: write_nifti(root, ["anna", "bert"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_built_and_its_manifest_read_back(name, tmp_path):
    manifest = build_manifest(EXAMPLES[name](tmp_path), format=name, folds=2)
    assert manifest.format == name and len(manifest.patients) == 2
    assert load_manifest(save_manifest(manifest, tmp_path / "m.json")) == manifest


def test_the_command_offers_every_layout(capsys):
    with pytest.raises(SystemExit):
        main(["manifest", "build", "--help"])
    assert f"layout: {', '.join(LAYOUTS)}" in capsys.readouterr().out


def test_no_two_readers_claim_one_file():
    suffixes = [suffix for reader in READERS.values() for suffix in reader.suffixes]
    assert len(suffixes) == len(set(suffixes))
    for name, reader in READERS.items():
        for suffix in reader.suffixes:
            assert reader_of(f"a/b{suffix.upper()}") is reader, name


def test_a_file_that_nothing_reads():
    with pytest.raises(DataError, match=r"ends in one of \.tif, .*\.nii\.gz, found scan\.xyz; convert"):
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

    def decode(path: Path, content: bytes) -> Decoded:
        return Decoded(np.frombuffer(content, np.uint8).reshape(1, 3))

    reader = Reader(summary="", suffixes=(".raw",), image=lambda p, c: Decoded(decode(p, c).values[None]), mask=decode)
    layout = Layout(
        summary="",
        find=lambda root: [FoundPatient(p.stem, "", ((p.name, f"{p.stem}.mask.raw"),)) for p in root.glob("?.raw")],
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
