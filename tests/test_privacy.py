"""Names are planted in folders, files and headers, and searched for in every byte that the whole of a study writes."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
import tiny_runs
from PIL import Image
from predicting import predict
from study_cells import Scripted
from tiny_runs import Dataset, refusal, train

from monai_fp4 import cli
from monai_fp4.data.pseudonyms import KEYS
from monai_fp4.study.cli import run_sweep
from monai_fp4.study.layout import StudyFolder
from monai_fp4.study.worker import run_task

IN_PATHS = ("Zukofsky", "Wilhelmina", "Quintana")
IN_HEADERS = ("Papadopoulos", "MRN471108")
KEY = "Vandermeer"


def write_scans(root: Path, keys: list[str]) -> Path:
    """A folder called after a person for each patient, files after another, headers that name a third, and a table."""
    rows = ["patient,image_flair,mask,group"]
    for number, key in enumerate(keys):
        folder = Path(f"Zukofsky_Wilhelmina_{number}")
        (root / folder).mkdir(parents=True)
        images, masks = tiny_runs.scan(number, (20, 26), 6)
        files = {}
        for name, data in (("flair", images[:, :, 1].astype(np.float32)), ("mask", masks // 255)):
            image = nibabel.Nifti1Image(data, np.eye(4))
            image.header["descrip"], image.header["db_name"] = IN_HEADERS[0].encode(), IN_HEADERS[1].encode()
            image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", IN_HEADERS[0].encode()))
            files[name] = folder / f"Quintana_{number}_{name}.nii.gz"
            nibabel.save(image, root / files[name])
        rows.append(f"{key},{files['flair']},{files['mask']},Basel")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root


def pieces(path: Path) -> Iterator[bytes]:
    """What a file holds, packed and unpacked: gzip, zip, the chunks of PNG pictures, and tables of Parquet."""
    data = path.read_bytes()
    yield data
    if data[:2] == b"\x1f\x8b":
        yield zlib.decompressobj(31).decompress(data)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name.encode() + archive.read(name)
    if data[:4] == b"\x89PNG":
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            yield repr(picture.info).encode()
    if path.suffix == ".parquet":
        yield pandas.read_parquet(path).to_csv().encode()


def found(words: tuple[str, ...], *places: Path) -> list[tuple[str, str]]:
    """Which words stand in which files of the folders, in their contents or names."""
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*"))]
    assert files
    return [
        (word, path.name)
        for path in files
        for content in ([] if path.is_dir() else pieces(path))
        for word in words
        if word.lower().encode() in content.lower() or word.lower() in path.name.lower()
    ]


def main(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0


def evaluate(run: Path, data: Dataset, output_dir: Path) -> None:
    flow = tiny_runs.evaluation(run, data, output_dir, split="val", predictions=True)
    flow.initialize()
    flow.run()


def sweep(data: Dataset, output_dir: Path) -> None:
    words = [
        "sweep", "--archs", "unet", "--scales", "500k", "--recipes", "bf16", "--epochs", "1", "--image_size", "[32,32]",
        "--batch_size", "6", "--device", "cpu", "--manifest", data.manifest, "--dataset_dir", data.dataset_dir,
        "--output_dir", output_dir,
    ]  # fmt: skip
    args = cli.build_parser().parse_args([str(word) for word in words])
    assert run_sweep(args, StudyFolder(output_dir), lambda: Scripted(lambda task, _: run_task(task))) == 0


@pytest.mark.parametrize("hidden", [False, True], ids=["keys of the user", "pseudonyms"])
def test_planted_names_are_in_nothing_that_is_written(
    hidden: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{KEY}_{number}" if hidden else f"ChosenKey_{number}" for number in range(4)]
    scans, made = write_scans(tmp_path / "scans", keys), tmp_path / "made"
    made.mkdir(mode=0o755)
    data = Dataset(scans, made / "m.json")
    build = ["manifest", "build", "--dataset_dir", scans, "--format", "table", "--folds", 2, "--output", data.manifest]
    if hidden:
        build += ["--pseudonyms", tmp_path / "private" / "keys.json"]
        monkeypatch.setenv(KEYS, str(tmp_path / "private" / "keys.json"))
    main(*build)
    capfd.readouterr()  # whoever builds sits before the files
    run = train(data, made / "run", epochs=1)
    evaluate(run, data, made / "evaluation")
    predict(run, scans, made / "prediction", probabilities=True)
    sweep(data, made / "study")
    main("report", made / "study", "--output_dir", made / "report")
    shown = capfd.readouterr()
    (made / "shown").write_text(shown.out + shown.err)

    words = (*IN_PATHS, *IN_HEADERS, KEY)
    assert found(words, *({*made.iterdir()} - {data.manifest, made / "study"})) == []
    assert found(words, *({*(made / "study").iterdir()} - {made / "study" / "manifest.json"})) == []
    assert {word for word, _ in found(words, data.manifest, made / "study" / "manifest.json")} == (
        set() if hidden else set(IN_PATHS)  # without pseudonyms it says where the files lie
    )
    assert found(("ChosenKey",), run / "checkpoint.pt", *run.glob("events*")) == [], (
        "not even the key that the user chose"
    )
    names = [path for path in made.rglob("*") if "tfevents" in path.name or path.suffix in (".pt", ".png", ".parquet")]
    assert {"model.pt", "checkpoint.pt", "preview.png", "pr_curve.png"} <= {path.name for path in names}
    if hidden:
        assert {word for word, _ in found(words, tmp_path / "private")} == {*IN_PATHS, KEY}

    private = [path for path in made.rglob("*") if path not in (data.manifest, made / "shown")]
    assert len(private) > 50
    assert [path for path in private if path.stat().st_mode & 0o777 != (0o700 if path.is_dir() else 0o600)] == []
    assert data.manifest.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert made.stat().st_mode & 0o777 == 0o755, "what was there keeps its mode"

    for number, damage in enumerate((lambda path: path.write_bytes(path.read_bytes()[:100]), Path.unlink)):
        damage(scans / "Zukofsky_Wilhelmina_1" / "Quintana_1_flair.nii.gz")
        said = str(refusal(partial(train, data, made / f"another{number}", epochs=1)))
        assert [word for word in words if word in said] == [] and "patient" in said


def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
