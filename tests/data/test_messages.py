"""Errors of a run hold no path, whatever is wrong with whichever file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from monai_fp4.data import SliceDataset
from monai_fp4.data.messages import without_paths
from monai_fp4.errors import DataError

FOLDER = "Zukofsky Wilhelmina"
NAMES = ("Zukofsky", "Wilhelmina", "Quintana")


def nifti(path: Path, name: str) -> str:
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 3), np.float32), np.eye(4)), path / f"Quintana_{name}.nii.gz")
    return f"Quintana_{name}.nii.gz"


def pair(path: Path, name: str) -> str:
    nibabel.save(nibabel.Nifti1Pair(np.ones((8, 8, 3), np.float32), np.eye(4)), path / f"Quintana_{name}.hdr")
    return f"Quintana_{name}.hdr"


def itk(ending: str) -> Callable[[Path, str], str]:
    def write(path: Path, name: str) -> str:
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(np.ones((3, 8, 8), np.float32)), str(path / f"Quintana_{name}{ending}")
        )
        return f"Quintana_{name}{ending}"

    return write


def picture(path: Path, name: str) -> str:
    Image.fromarray(np.ones((8, 8), np.uint8)).save(path / f"Quintana_{name}.png")
    return f"Quintana_{name}.png"


WRITERS: dict[str, Callable[[Path, str], str]] = {
    "nifti": nifti,
    "pair": pair,
    "mha": itk(".mha"),
    "mhd": itk(".mhd"),
    "nrrd": itk(".nrrd"),
    "nhdr": itk(".nhdr"),
    "picture": picture,
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "cut": cut,
    "cut at its end": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "another file": lambda path: path.write_bytes(b"no image at all " * 99),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a lost link": lambda path: (path.unlink(), path.symlink_to("Quintana_lost")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("writer", WRITERS)
def test_no_damage_makes_a_run_say_a_path(writer: str, damage: str, tmp_path: Path) -> None:
    """Each file of the patient in turn, also those that hold the voxels of a header."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    image, mask = (WRITERS[writer](folder, name) for name in ("flair", "mask"))
    record = {
        "patient": "p1",
        "images": [{"image": str(folder / image), "mask": str(folder / mask)}],
        "channels": ["x"],
        "reading": {},
    }
    SliceDataset([record], (8, 8), progress=False)
    refused = 0
    for file in sorted(folder.iterdir()):
        kept = file.read_bytes()
        DAMAGES[damage](file)
        try:
            SliceDataset([record], (8, 8), progress=False)
        except DataError as error:
            refused += 1
            said = str(error)
            assert not [name for name in NAMES if name in said] and str(tmp_path) not in said, said
            assert "patient 'p1'" in said and "\n" not in said
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        file.write_bytes(kept)
    assert refused or damage == "cut at its end"


def test_what_is_left_of_a_path_whose_beginning_was_cut_off_is_hidden() -> None:
    images = [{"image": "/scans/Jane Doe/flair.nii", "mask": "/scans/Jane Doe/mask.nii"}]
    with pytest.raises(DataError) as caught, without_paths("p1", images):
        raise DataError("found damage (ane/x.mha: line 3 of 1/255 voxels, in 'scans/a b'); fetch it, and/or say 3/4")
    assert str(caught.value).startswith("found damage ((path) line 3 of 1/255 voxels, in '(path) b'); fetch it, (path)")
    with pytest.raises(DataError, match=r"^nothing of a path; correct it$"), without_paths("p1", images):
        raise DataError("nothing of a path; correct it")
