"""`benchmarks/on_gpu.py`: no phase loses another, whatever becomes of it; and data that can be carried."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import imported
from tiny_runs import Dataset

from monai_fp4.data import check_manifest, load_manifest
from monai_fp4.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("common", "on_gpu", "pack_data", "gpu_trainings")


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
