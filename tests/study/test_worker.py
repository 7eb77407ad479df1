"""One cell, and everything that can end it."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from study_cells import CELL, eventually, gone, study, write_metrics

from monai_fp4.study import worker
from monai_fp4.study.layout import CellStatus, StudyFolder
from monai_fp4.study.worker import Task, run_task

FINISH = """
import json, pathlib
pathlib.Path("cells/unet_500k/bf16/fold0_seed0/metrics.json").write_text(json.dumps({"finished": True, "history": []}))
"""


def task(folder: StudyFolder, code: str = FINISH, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "study": str(folder.path),
        "cell": CELL,
        "arguments": ["-c", code],
        "threads": 3,
        "version": "0.1.0 (abc)",
        "stop_file": str(folder.path / ".stop"),
    }
    return Task(**(values | changes))  # type: ignore[typeddict-item]


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return study(tmp_path)[0]


def record(folder: StudyFolder) -> Any:
    return folder.record(folder.read_definition().cells()[0])


def test_a_cell_is_run_in_the_study_folder_and_written_down(folder: StudyFolder) -> None:
    code = FINISH + "import os\nprint('threads', os.environ['OMP_NUM_THREADS'], os.getcwd(), os.environ.get('RANK'))"
    before = os.environ.get("RANK")
    os.environ["RANK"] = "1"
    try:
        outcome = run_task(task(folder, code))
    finally:
        del os.environ["RANK"]
    assert before is None
    assert outcome["status"] == "done" and outcome["error"] == "" and outcome["seconds"] > 0
    said = record(folder)
    assert (said.status, said.attempts, said.error, said.device) == (CellStatus.DONE, 1, "", "cpu")
    assert said.seconds == outcome["seconds"] and said.version == "0.1.0 (abc)" and said.pid > 0
    assert said.started <= said.finished and said.host
    log = (folder.cells_path / CELL / "run.log").read_text()
    assert log == f"threads 3 {folder.path.resolve()} None\n"


def test_attempts_and_seconds_add_up_and_the_log_goes_on(folder: StudyFolder) -> None:
    first = run_task(task(folder, "print('one'); raise SystemExit('error: lost the way')"))
    assert first["status"] == "failed" and first["error"] == "lost the way"
    assert record(folder).status is CellStatus.FAILED and record(folder).error == "lost the way"
    second = run_task(task(folder))
    said = record(folder)
    assert second["status"] == "done" and said.attempts == 2 and said.error == ""
    assert said.seconds == pytest.approx(first["seconds"] + second["seconds"], abs=0.01)
    assert "one" in (folder.cells_path / CELL / "run.log").read_text()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('hello'); raise ValueError('too small')", "ValueError: too small"),
        ("import sys; print('error: the one'); print('more'); sys.exit(1)", "the one"),
        ("import sys; sys.exit(3)", "status 3"),
        ("pass", "finished metrics.json"),
    ],
)
def test_the_error_of_a_cell_is_one_sentence(folder: StudyFolder, code: str, said: str) -> None:
    outcome = run_task(task(folder, code))
    assert outcome["status"] == "failed" and said in outcome["error"] and "\n" not in outcome["error"]
    assert record(folder).error == outcome["error"]


def test_an_old_error_in_the_log_is_not_taken_for_a_new_one(folder: StudyFolder) -> None:
    run_task(task(folder, "import sys; sys.exit('error: an old one')"))
    assert "an old one" not in run_task(task(folder, "import sys; sys.exit(2)"))["error"]


def test_a_signal_without_a_name_is_told_by_its_number(folder: StudyFolder) -> None:
    outcome = run_task(task(folder, "import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 1)"))
    assert outcome["status"] == "lost" and f"signal {signal.SIGRTMIN + 1}" in outcome["error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_a_signal_ended_after_its_step_is_lost_not_failed(
    folder: StudyFolder, number: signal.Signals
) -> None:
    outcome = run_task(task(folder, f"raise SystemExit({128 + number})"))
    assert outcome["status"] == "lost" and f"ended by {number.name}" in outcome["error"]


def test_a_process_that_is_killed_is_lost_not_failed(folder: StudyFolder) -> None:
    outcome = run_task(task(folder, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert outcome["status"] == "lost" and "SIGKILL" in outcome["error"] and "memory" in outcome["error"]
    assert record(folder).status is CellStatus.FAILED


def test_a_full_disk_is_known_by_what_the_system_says(folder: StudyFolder) -> None:
    torch_says = "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"  # torch.save on a full disk
    for said in (os.strerror(errno.ENOSPC), torch_says):
        outcome = run_task(task(folder, f"import sys; sys.exit('error: x ({said})')"))
        assert outcome["status"] == "failed" and outcome["disk_full"] is True
    assert not run_task(task(folder, "import sys; sys.exit('error: x')"))["disk_full"]


def test_a_disk_too_full_for_the_record_is_an_outcome(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(worker, "_write", full)
    outcome = run_task(task(folder, "import time; time.sleep(60)"))
    assert outcome["status"] == "failed" and outcome["disk_full"] and "No space left" in outcome["error"]


def test_nothing_is_started_once_the_sweep_has_stopped(folder: StudyFolder) -> None:
    (folder.path / ".stop").touch()
    assert run_task(task(folder))["status"] == "waiting"
    assert not (folder.cells_path / CELL).exists()


def test_a_worker_without_the_package_says_so(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = run_task(task(folder))
    assert outcome["status"] == "failed" and "monai-fp4 installed" in outcome["error"]


def test_a_worker_that_does_not_see_the_study_says_so(folder: StudyFolder) -> None:
    folder.definition_path.unlink()
    outcome = run_task(task(folder))
    assert outcome["status"] == "failed" and "shared file system" in outcome["error"]


def test_a_cell_that_is_stopped_waits_and_its_process_ends(folder: StudyFolder) -> None:
    def stop() -> None:
        assert eventually(lambda: record(folder).status is CellStatus.RUNNING)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    outcome = run_task(task(folder, "import time; time.sleep(60)"))
    thread.join()
    assert outcome["status"] == "waiting" and outcome["seconds"] < 50
    assert record(folder).status is CellStatus.WAITING and gone(record(folder).pid)


def test_two_processes_never_train_in_one_folder(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ORPHAN_SECONDS", 0.1)
    thread = threading.Thread(target=run_task, args=(task(folder, "import time; time.sleep(60)"),))
    thread.start()
    assert eventually(lambda: record(folder).pid > 0)
    pid = record(folder).pid
    outcome = run_task(task(folder))
    assert outcome["status"] == "failed" and f"process {pid}" in outcome["error"]
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert run_task(task(folder))["status"] == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends a process with its parent")
def test_a_cell_ends_with_its_worker_even_if_that_is_killed(folder: StudyFolder) -> None:
    # The module as it stands, without the package around it: what a Ray worker gets.
    code = (
        f"import json, sys, importlib.util as u; s = u.spec_from_file_location('worker', {worker.__file__!r});"
        " m = u.module_from_spec(s); s.loader.exec_module(m); m.run_task(json.loads(sys.argv[1]))"
    )
    sleeper = task(folder, "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(300)")
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(sleeper)])
    assert eventually(lambda: (folder.path / "begun").exists())
    pid = record(folder).pid
    assert not gone(pid)
    process.kill()
    process.wait()
    assert eventually(lambda: gone(pid))
    assert record(folder).status is CellStatus.RUNNING  # nobody was left to write anything else
    assert run_task(task(folder))["status"] == "done"


@pytest.mark.parametrize("content", ["{", '{"status": "failed", "seconds": "x"}', '{"attempts": [1]}', "[]"])
def test_a_damaged_record_does_not_stop_a_cell(folder: StudyFolder, content: str) -> None:
    write_metrics(folder.cells_path / CELL, 1)
    (folder.cells_path / CELL / "cell.json").write_text(content)
    assert run_task(task(folder))["status"] == "done" and record(folder).attempts == 1
