"""`benchmarks/on_gpu.py`: no phase loses another, whatever becomes of it; and data that can be carried."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from script_modules import imported
from tiny_runs import Dataset

from monai_fp4.data import HeldOut, Manifest, check_manifest, load_manifest
from monai_fp4.errors import DataError
from monai_fp4.study.check import check
from monai_fp4.study.layout import StudyDefinition

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("common", "on_gpu", "pack_data", "gpu_trainings", "gpu_paper")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    with imported(NAMES) as modules:
        yield modules


def phase(on_gpu: ModuleType, code: str, limit: float = 30.0, **more: Any) -> Any:
    """A phase that runs a line of Python, which finds its JSON file in `sys.argv[1]`."""
    return on_gpu.Phase(code, limit, lambda _, output: ["-I", "-S", "-c", f"import sys; {code}", str(output)], **more)


WRITES = "open(sys.argv[1], 'w').write('{\"figure\": 7}')"


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "on_gpu.json").read_text())["phases"]


def test_no_phase_loses_another(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_gpu = scripts["on_gpu"]
    phases = {
        "fails": phase(on_gpu, "print('so sad'); sys.exit(3)"),
        "hangs": phase(on_gpu, f"import time; {WRITES}; time.sleep(60)", limit=1.0),
        "silent": phase(on_gpu, "print('no figures')"),
        "torn": phase(on_gpu, "open(sys.argv[1], 'w').write('{')"),
        "gpu": phase(on_gpu, WRITES, needs_gpu=True),
        "works": phase(on_gpu, WRITES),
    }
    monkeypatch.setattr(on_gpu, "PHASES", phases)
    assert on_gpu.main(["--out", str(tmp_path), "--device", "cpu", "--version", "abc1234"]) == 1
    found = summary_of(tmp_path)
    said = {name: (each["status"], each.get("error", "")) for name, each in found.items()}
    assert said == {
        "fails": ("failed", "exit status 3"),
        "hangs": ("failed", "stopped after 1 s; what it had measured by then is kept"),
        "silent": ("failed", "it wrote no figures"),
        "torn": ("failed", "it wrote no figures"),
        "gpu": ("not run", "it needs a CUDA GPU"),
        "works": ("done", ""),
    }
    assert found["hangs"]["figures"] == found["works"]["figures"] == {"figure": 7}
    assert found["fails"]["log"] == ["so sad"]
    assert json.loads((tmp_path / "on_gpu.json").read_text())["version"] == "abc1234"
    assert "not run  gpu" in capsys.readouterr().out


def test_phases_for_which_there_is_no_time_have_not_failed(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = scripts["on_gpu"]
    monkeypatch.setattr(on_gpu, "PHASES", {name: phase(on_gpu, WRITES) for name in ("one", "two", "three")})
    summary = tmp_path / "elsewhere.json"
    arguments = ["--out", str(tmp_path / "o"), "--summary", str(summary), "--only", "one", "two", "--budget_s", "5"]
    assert on_gpu.main([*arguments, "--device", "cpu"]) == 0
    found = json.loads(summary.read_text())["phases"]
    assert {name: each["status"] for name, each in found.items()} == {"one": "not run", "two": "not run"}
    with pytest.raises(SystemExit):
        on_gpu.main(["--out", str(tmp_path), "--only", "four"])


def test_every_phase_is_a_script_that_is_there(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    on_gpu = scripts["on_gpu"]
    for quick in ([], ["--quick"]):
        options = on_gpu.parse(["--out", str(tmp_path), "--device", "cuda", *quick])
        for name, each in on_gpu.PHASES.items():
            command = each.command(options, tmp_path / f"{name}.json")
            assert Path(command[0]).is_file() and command[0].startswith(str(ROOT / "benchmarks")), name
            assert all(isinstance(word, str) for word in command), name
            assert command[command.index("--output") + 1] == str(tmp_path / f"{name}.json"), name


def test_a_phase_that_the_budget_cuts_off_has_not_failed(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = scripts["on_gpu"]
    monkeypatch.setattr(on_gpu, "PHASES", {"long": phase(on_gpu, f"import time; {WRITES}; time.sleep(60)")})
    monkeypatch.setattr(on_gpu, "LEAST_SECONDS", 0.1)
    assert on_gpu.main(["--out", str(tmp_path), "--device", "cpu", "--budget_s", "1.5"]) == 0
    found = summary_of(tmp_path)["long"]
    assert found["status"] == "cut off" and found["figures"] == {"figure": 7}


def test_a_rehearsal_runs_what_needs_a_gpu(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = scripts["on_gpu"]
    monkeypatch.setattr(on_gpu, "PHASES", {"gpu": phase(on_gpu, WRITES, needs_gpu=True)})
    assert on_gpu.main(["--out", str(tmp_path), "--device", "cpu", "--quick"]) == 0
    assert summary_of(tmp_path)["gpu"]["status"] == "done"


def test_what_would_be_missed_at_the_end_is_refused_at_the_beginning(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_gpu = scripts["on_gpu"]
    with pytest.raises(SystemExit):
        on_gpu.parse(["--out", str(tmp_path), "--manifest", str(tmp_path / "pack" / "manifest.json")])
    assert "found no file" in capsys.readouterr().err
    monkeypatch.setattr(on_gpu, "commit", lambda: "")
    with pytest.raises(SystemExit):
        on_gpu.parse(["--out", str(tmp_path)])
    assert "say with --version which commit it is" in capsys.readouterr().err
    assert on_gpu.parse(["--out", str(tmp_path), "--version", "abc1234"]).version == "abc1234"


@pytest.mark.slow
def test_the_first_phase_says_what_the_machine_is(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    arguments = ["--quick", "--device", "cpu", "--only", "environment", "--out", str(tmp_path)]
    assert scripts["on_gpu"].main(arguments) == 0
    figures = summary_of(tmp_path)["environment"]["figures"]
    assert {"machine", "nvidia_smi", "backends", "fast_paths"} <= set(figures)
    assert figures["backends"]["emulated"][0] is True


def test_cells_of_the_trainings_are_bundles(scripts: dict[str, ModuleType]) -> None:
    cells = scripts["gpu_trainings"].CELLS
    assert len(set(cells)) == len(cells) == 24
    assert all((ROOT / "bundles" / f"{cell}.json").is_file() for cell in cells)


def test_a_pack_holds_whole_patients_that_the_manifest_knows(
    scripts: dict[str, ModuleType], tiny: Dataset, tmp_path: Path
) -> None:
    manifest = load_manifest(tiny.manifest)
    folder = tiny.dataset_dir
    everything = scripts["pack_data"].pack(manifest, folder, tmp_path / "all.tar.xz", 10**9)
    assert {each.id for each in everything} == {each.id for each in manifest.patients if each.fold is not None}
    assert [each.fold for each in everything[: manifest.folds]] == list(range(manifest.folds))
    few = scripts["pack_data"].pack(manifest, folder, tmp_path / "few.tar.xz", 1)
    assert len(few) == 1, "one at least, however little is allowed"
    with tarfile.open(tmp_path / "all.tar.xz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    part = load_manifest(tmp_path / "there" / "manifest.json")
    assert part.patients == tuple(sorted(everything, key=lambda each: each.id))
    check_manifest(part, tmp_path / "there")


def test_a_part_of_a_data_set_can_be_packed(
    scripts: dict[str, ModuleType], tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack_data, manifest = scripts["pack_data"], load_manifest(tiny.manifest)
    lost, folder = manifest.patients[0], tmp_path / "part"
    for patient in manifest.patients[1:]:
        for name in pack_data.files(patient):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((tiny.dataset_dir / name).read_bytes())
    taken = pack_data.pack(manifest, folder, tmp_path / "part.tar.xz", 10**9)
    assert {each.id for each in taken} == {each.id for each in manifest.patients if each.fold is not None} - {lost.id}
    assert f"1 patients, {lost.id}" in capsys.readouterr().out
    with pytest.raises(DataError, match="found no patient with all of them"):
        pack_data.pack(manifest, tmp_path / "nothing", tmp_path / "none.tar.xz", 10**9)
    assert {path.name for path in tmp_path.iterdir()} == {"part", "part.tar.xz"}


def with_splits(dataset: Dataset) -> Manifest:
    manifest = load_manifest(dataset.manifest)
    ids = [patient.id for patient in manifest.patients]
    return replace(manifest, splits={"holdout": HeldOut((ids[1],), (ids[4],))})


def test_a_pack_of_webp_is_unpacked_as_what_it_was(
    scripts: dict[str, ModuleType], tiny: Dataset, tmp_path: Path
) -> None:
    pack_data, manifest, archive = scripts["pack_data"], with_splits(tiny), tmp_path / "webp.tar.xz"
    taken = pack_data.pack(manifest, tiny.dataset_dir, archive, 10**9, quality=83)
    assert len(taken) == len(manifest.patients)
    there = tmp_path / "there"
    found = pack_data.unpack(archive, there)
    assert found == load_manifest(there / "manifest.json") and found.splits == manifest.splits
    check_manifest(found, there)
    names = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert names == {"manifest.json"} | {name for patient in manifest.patients for name in pack_data.files(patient)}
    changes = []
    for patient in manifest.patients:
        for pair in patient.images:
            before, after = (np.asarray(Image.open(root / pair.image)) for root in (tiny.dataset_dir, there))
            changes.append(np.abs(before.astype(int) - after))
            assert np.array_equal(*(np.asarray(Image.open(root / pair.mask)) for root in (tiny.dataset_dir, there)))
    rms = np.sqrt(np.mean([np.mean(change**2) for change in changes]))
    assert 0 < rms < 12, "noise is the hardest picture"
    assert f"quality 83: {rms:.2f} grey levels RMS, at most {max(c.max() for c in changes)}" in found.description
    with pytest.raises(DataError, match="expected a new folder"):
        pack_data.unpack(archive, there)
    plain = tmp_path / "plain.tar.xz"
    pack_data.pack(manifest, tiny.dataset_dir, plain, 10**9)
    with pytest.raises(DataError, match="unpack it with tar"):
        pack_data.unpack(plain, tmp_path / "other")


def test_a_manifest_with_splits_is_packed_whole_or_not(
    scripts: dict[str, ModuleType], tiny: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="expected room for all 6 patients"):
        scripts["pack_data"].pack(with_splits(tiny), tiny.dataset_dir, tmp_path / "few.tar.xz", 1)
    assert not list(tmp_path.iterdir())


def test_the_paper_s_phase_comes_in_the_order_of_its_worth(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    gpu_paper = scripts["gpu_paper"]
    assert gpu_paper.EIGHT[0] == "bf16" and len(set(gpu_paper.EIGHT)) == 8
    common = {"manifest": "lgg_paper", "dataset_dir": "x", "protocol": "paper"}
    table = StudyDefinition(**gpu_paper.TABLE, recipes={name: name for name in ("bf16", "sr_rht_2d")}, **common)
    assert check(table, "lgg_paper") == [] and len(table.cells()) == 20
    assert [cell.fold for cell in table.cells()] == [fold for fold in range(5) for _ in range(4)]
    manifest, _ = gpu_paper.rehearsal(tmp_path / "phantom")
    for name, split in manifest.splits.items():
        assert not set(split.val) & set(split.test), name


def test_cells_share_a_machine_without_ray(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    executor = scripts["gpu_paper"].Processes(2)
    stop = tmp_path / "stop"
    stop.touch()  # nothing is begun any more
    task = {"study": str(tmp_path), "cell": "c", "arguments": [], "threads": 1, "version": "", "stop_file": str(stop)}
    handle = executor.submit(task, executor.largest_machine())
    assert executor.wait([handle], 30.0) == [(handle, {"status": "waiting", "error": "", "seconds": 0.0})]
    assert executor.slots(executor.largest_machine()) == 2
    executor.close()
