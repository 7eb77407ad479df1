"""The page of ``monai-fp4 manifest report``: whole, self-contained, private, and the exit status of the command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, chromium
from html_document import Document
from survey_scans import scan, write_scans

from monai_fp4.cli import main
from monai_fp4.data import build_manifest, save_manifest

HOSTILE = "<img src=x onerror=alert(1)>&amp;{{7*7}}"


def write(tmp_path: Path, count: int = 7) -> tuple[Path, Path]:
    """A data folder with a copy and a mirrored mask, and its manifest; group and name are hostile."""
    scans = {f"p{seed}": scan(seed) for seed in range(count)}
    scans["p5"] = scans["p1"][0] + 9, scans["p1"][1]
    scans["p3"] = scans["p3"][0], scans["p3"][1][::-1]
    root = write_scans(tmp_path / "Planted_Jane", scans)
    groups = dict.fromkeys(scans, HOSTILE)
    manifest = build_manifest(root, folds=2, seed=2, groups=groups, name=HOSTILE, description=HOSTILE)
    return root, save_manifest(manifest, tmp_path / "m.json")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("report")
    root, manifest = write(tmp_path)
    output = tmp_path / "page.html"
    assert main(["manifest", "report", str(manifest), "--dataset_dir", str(root), "--output", str(output)]) == 0
    return output


def test_the_page_is_whole_and_needs_nothing_from_anywhere(page: Path) -> None:
    document, text = Document(page), page.read_text()
    assert document.all("script") == [] and "onload" not in text
    sources = [each.get("src", "") for each in document.all("img")]
    assert len(sources) > 8 and all(source.startswith("data:image/") for source in sources)
    assert all(each["href"].startswith("#") for each in document.all("a"))
    assert not re.search(r"""(src|href)=["']?https?:""", text)
    policy = next(each["content"] for each in document.all("meta") if "http-equiv" in each)
    assert policy.startswith("default-src 'none'")
    ids = {each["id"] for _, each in document.elements if "id" in each}
    assert {each["href"][1:] for each in document.all("a")} <= ids
    assert all(each.get("alt") for each in document.all("img"))


def test_it_says_what_was_found(page: Path) -> None:
    text = Document(page).text
    for words in ("1 pair of patients", "p1 (fold", "mirrored left to right", "7 patients of", "0.9 x 0.9 x 4 mm"):
        assert words in text, words


def test_hostile_names_are_text_and_no_path_is_told(page: Path) -> None:
    document, text = Document(page), page.read_text()
    assert HOSTILE in document.text and "49" not in document.text.split("Groups")[0].split("fold")[0]
    assert "<img src=x" not in text
    for word in ("Planted", "Jane", "image.nii", "mask.nii", str(page.parent)):
        assert word not in text, word


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_opens_it_without_complaint(page: Path, tmp_path: Path) -> None:
    opened = chromium(page, "--dump-dom", profile=tmp_path)
    assert "All patients" in opened.stdout
    assert "CONSOLE" not in opened.stderr


def test_a_bad_patient_is_in_the_exit_status_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, manifest = write(tmp_path)
    (root / "p2" / "mask.nii.gz").write_bytes(b"damaged")
    output = tmp_path / "page.html"
    command = ["manifest", "report", str(manifest), "--dataset_dir", str(root), "--output", str(output)]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "6 of 7 patients read" in shown.out
    assert "p2: expected the file that the manifest names at mask 1, found" in shown.err and "Planted" not in shown.err
    text = Document(output).text
    assert "Patients that could not be read" in text and "expected the file that the manifest names at mask 1" in text
    assert main(command) == 1  # the page is there
    assert "page.html exists" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path), "--force"]) == 1
    assert "is a folder; name a file in it" in capsys.readouterr().err
    assert main([*command, "--force"]) == 1
    assert "6 of 7 patients read" in capsys.readouterr().out


def test_a_manifest_whose_patients_cannot_be_read_and_one_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, manifest = write(tmp_path)
    for path in root.rglob("image.nii.gz"):
        path.unlink()
    (root / "p0" / "image.nii.gz").write_bytes(b"")
    output = str(tmp_path / "page.html")
    assert main(["manifest", "report", str(manifest), "--dataset_dir", str(root), "--output", output]) == 1
    assert "7 patients could not be read" in Document(Path(output)).text
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("p")]
    assert [line.partition(":")[0] for line in lines] == ["p0", "p1, p2, p3, p4, p5, p6"]  # once for all of one kind
    manifest.write_text(json.dumps({"schema_version": 1}))
    assert main(["manifest", "report", str(manifest), "--dataset_dir", str(root), "--output", str(tmp_path / "n")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: expected")
    assert not (tmp_path / "n").exists()
