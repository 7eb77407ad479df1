"""Which studies a tree holds: order, links, what cannot be opened, and numbered pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from predicting import predict, read_json
from tiny_runs import Dataset, refusal, scan, train

from monai_fp4.data import build_manifest, save_manifest
from monai_fp4.inference import Ensemble, Studies


def volume(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    return path


def found(root: Path, **options: Any) -> dict[str, str]:
    """Places of the studies, and what is wrong with them."""
    return {study.place: study.problem for study in Studies(root, ["flair"], **options)}


def test_folders_and_files_come_in_natural_order(tmp_path: Path) -> None:
    for name in ("p10/a", "p2/a10", "p2/a9", "p2/deep/a", "p1/a"):
        volume(tmp_path / f"{name}.nii")
    studies = Studies(tmp_path, ["flair"])
    assert [study.place for study in studies] == ["p1/a", "p2/a9", "p2/a10", "p2/deep/a", "p10/a"]
    assert studies.files == studies.passed == 5


def test_what_a_system_leaves_behind_is_passed_over_and_counted_where_it_is_an_image(tmp_path: Path) -> None:
    volume(tmp_path / "a.nii.gz")
    volume(tmp_path / "a_seg.nii.gz")
    volume(tmp_path / ".hidden" / "b.nii")
    volume(tmp_path / "__MACOSX" / "c.nii")
    (tmp_path / "._a.nii.gz").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "b.mgz").write_bytes(b"a scan in a format of which nothing is known")
    os.mkfifo(tmp_path / "pipe.nii")
    studies = Studies(tmp_path, ["flair"])
    assert [study.place for study in studies] == ["a"]
    assert (studies.others, studies.unknown) == (1, 2)


def test_a_file_of_several_channels_does_not_say_which_they_are(tmp_path: Path) -> None:
    volume(tmp_path / "anna.nii.gz")
    (study,) = Studies(tmp_path, ["t1", "flair"])
    assert study.warnings == ("the file does not name its channels, which were taken to be t1, flair in this order",)
    (study,) = Studies(tmp_path, ["flair"])
    assert study.warnings == ()


def test_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "in", tmp_path / "elsewhere"
    volume(inside / "a.nii")
    volume(outside / "b.nii")
    (inside / "loop").symlink_to(inside)
    (inside / "again.nii").symlink_to(inside / "a.nii")
    (inside / "lost.nii").symlink_to(inside / "nowhere.nii")
    (inside / "file.nii").symlink_to(outside / "b.nii")
    (inside / "folder").symlink_to(outside)
    said = found(inside)
    assert said.keys() == {"a", "again", "lost", "file", "folder"}
    assert said["a"] == said["again"] == "" and "found none" in said["lost"]
    assert all("leads out of it" in said[name] for name in ("file", "folder"))
    monkeypatch.setenv("MONAI_FP4_FOLLOW_LINKS", "1")
    (outside / "back").symlink_to(inside)
    said = found(inside)
    assert said.pop("lost") and said == {"a": "", "again": "", "file": "", "folder/b": ""}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_opened_is_said(tmp_path: Path) -> None:
    """As nobody, who may enter the tree and not all of it."""
    tree = tmp_path / "in"
    for name in ("a.nii", "closed/b.nii", "c.dcm", "d"):
        volume(tree / (name if name.endswith(".nii") else f"{name}.nii"))
    (tree / "c.dcm.nii").rename(tree / "c.dcm")
    (tree / "d.nii").rename(tree / "d")
    for path in (tree / "closed", tree / "c.dcm", tree / "d"):
        path.chmod(0)
    program = (
        "import os, sys; from monai_fp4.inference import Studies; where = os.open(sys.argv[1], 0); os.setuid(65534);"
        "os.fchdir(where); print([(s.place, s.problem) for s in Studies('.', ['flair'])])"
    )
    tree.chmod(0o755)
    shown = subprocess.run([sys.executable, "-c", program, str(tree)], capture_output=True, text=True, check=False)
    assert shown.stdout, shown.stderr[-2000:]
    said = dict(eval(shown.stdout))
    assert said.pop("a") == ""
    assert said.keys() == {"closed", "c", "d"} and all("can be opened" in problem for problem in said.values())


@pytest.mark.parametrize("pictures", ["auto", "stack", "single"])
def test_numbered_pictures_are_studies_where_the_training_had_single_ones(pictures: str, tmp_path: Path) -> None:
    for number in range(4):
        for kind, data in zip(("images", "masks"), scan(number, slices=1), strict=True):
            (tmp_path / "scans" / kind).mkdir(parents=True, exist_ok=True)
            grey = data[:, :, 1, 0] if kind == "images" else data[..., 0]
            Image.fromarray(grey).save(tmp_path / "scans" / kind / f"picture_{number}.png")
    manifest = build_manifest(
        tmp_path / "scans", format="png", folds=2, seed=0, name="single", patient_pattern="([^/]+)[.]"
    )
    run = train(Dataset(tmp_path / "scans", save_manifest(manifest, tmp_path / "m.json")), tmp_path / "run", epochs=1)
    assert Ensemble(str(run), device="cpu").single_pictures
    out = predict(run, tmp_path / "scans" / "images", tmp_path / "out", names="path", pictures=pictures)
    rows = [row["study"] for row in read_json(out / "summary.json")["studies"]]
    assert rows == (["picture"] if pictures == "stack" else [f"picture_{number}" for number in range(4)])


def test_a_header_that_contradicts_itself_is_believed_as_the_user_says(
    volume_run: Path, volumes: Dataset, tmp_path: Path
) -> None:
    values = np.asarray(nibabel.load(volumes.dataset_dir / "patient_0" / "flair.nii.gz").dataobj)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_qform(np.diag([1.0, 1.0, 1.0, 1.0]), 1)
    image.header["qoffset_x"] = 500
    nibabel.save(image, tmp_path / "scan.nii")
    with pytest.raises(SystemExit):
        predict(volume_run, tmp_path / "scan.nii", tmp_path / "refused")
    assert "--header" in read_json(tmp_path / "refused" / "summary.json")["studies"][0]["why"]
    for header in ("sform", "qform"):
        (mask,) = predict(volume_run, tmp_path / "scan.nii", tmp_path / header, header=header).glob("*/mask.nii")
        both = [nibabel.load(path) for path in (mask, tmp_path / "scan.nii")]
        assert all(np.array_equal(*(each.header[name] for each in both)) for name in ("srow_x", "qoffset_x"))
    for options in ({"header": "mine"}, {"tolerance": -1}, {"tolerance": True}, {"pictures": "all"}):
        error = refusal(lambda o=options: predict(volume_run, tmp_path / "scan.nii", tmp_path / "no", **o))
        assert next(iter(options)) in str(error)
