from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import Dataset

import monai_fp4
from monai_fp4.cli import build_parser, main
from monai_fp4.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
# More cells than fit into the buffer of a pipe.
PLAN = ["--recipes", "all", "--archs", "unet", "--scales", "500k", "--seeds", "99", "--output_dir", "x", "--dry_run"]


def test_bundles_write_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "bundles")
    assert main(["bundles", "write", "--output_dir", folder]) == 0
    assert "116 of them changed" in capsys.readouterr().out
    assert main(["bundles", "check", "--output_dir", folder]) == 0
    (tmp_path / "bundles" / "evaluate.json").write_text("{}")
    assert main(["bundles", "check", "--output_dir", folder]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "evaluate.json" in error and error.count("\n") == 1
    assert (tmp_path / "bundles" / "evaluate.json").read_text() == "{}"


def test_an_error_shows_its_traceback_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_FP4_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["bundles", "check", "--output_dir", str(tmp_path)])


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "emulated" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_a_manifest_from_start_to_end(tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "m.json")
    build = ["manifest", "build", "--format", "lgg", "--dataset_dir", str(tiny.dataset_dir), "--folds", "3"]
    assert main([*build, "--seed", "0", "--output", output]) == 0
    assert main(["manifest", "check", output, "--dataset_dir", str(tiny.dataset_dir)]) == 0
    assert main(["manifest", "check", output, "--dataset_dir", "/nowhere"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "/nowhere" in error


def test_what_takes_long_says_on_standard_output_what_it_begins(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, data = str(tmp_path / "m.json"), str(tiny.dataset_dir)
    build = ["manifest", "build", "--format", "lgg", "--dataset_dir", data, "--output", output]
    report = ["manifest", "report", output, "--dataset_dir", data, "--output", str(tmp_path / "page.html")]
    assert main([*build, "--folds", "3"]) == 0
    patients, files = len(json.loads(Path(output).read_text())["patients"]), len(list(Path(data).rglob("*.tif")))
    capsys.readouterr()

    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("not today")

    doctor, read = "looking at this machine", f"reading {files} files of {patients} patients ..."
    for command, place, said in (
        (["doctor"], "monai_fp4.doctor.diagnose", doctor),
        (["check", "bundle.json"], "monai_fp4.bundle.foreign.check_bundle", "looking up all that bundle.json names"),
        ([*build, "--force"], "monai_fp4.data.build.examine", f"{patients} patients found; reading {files} files ..."),
        (["manifest", "check", output, "--dataset_dir", data], "monai_fp4.data.build.every_patient", read),
        (report, "monai_fp4.report.survey.manifest.measure", f"reading the scans of {patients} patients ..."),
        (["report", data], "monai_fp4.report.pages.write.write_report", f"reading the study in {data} ..."),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, refuse)
            assert main(command) == 1
        printed = capsys.readouterr()
        assert said in printed.out, command
        assert printed.err == "error: not today\n"  # to be refused is one sentence, and nothing else
    with monkeypatch.context() as patched:
        patched.setattr("monai_fp4.doctor.diagnose", refuse)
        assert main(["doctor", "--json"]) == 1 and capsys.readouterr().out == ""


@pytest.mark.parametrize("command", [["bundles", "check", "--output_dir", str(ROOT / "bundles")], ["sweep", *PLAN]])
def test_a_reader_that_goes_is_no_error(command: list[str], tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    words = [sys.executable, "-m", "monai_fp4", *command]
    ended = subprocess.run(words, stdout=writes, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    os.close(writes)
    assert ended.returncode == 1 and ended.stderr == ""


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_fp4.doctor.diagnose", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_report_is_a_command_like_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: monai-fp4 report") and "--margin" in said
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nowhere" in error and error.count("\n") == 1


def test_help_of_run_is_quick_and_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0 and "usage: monai-fp4 run --config_file" in capsys.readouterr().out


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and monai_fp4.__version__ in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["bundle"])
    assert ended.value.code == 2
    text = build_parser().format_help()
    assert all(name in text for name in ("manifest", "bundles", "sweep", "report", "doctor"))
