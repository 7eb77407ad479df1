from __future__ import annotations

import errno
import fcntl
import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from monai_fp4.errors import ConfigError
from monai_fp4.lock import FolderLock

FORK = get_context("fork")


def _claim(path: Path, rounds: int, barrier: Any, won: Any) -> None:
    for number in range(rounds):
        barrier.wait(60)
        try:
            with FolderLock(path / str(number) / ".lock", "run"):
                with won.get_lock():
                    won[number] += 1
                barrier.wait(60)  # held until everybody has tried
        except ConfigError:
            barrier.wait(60)


def test_a_full_disk_is_one_sentence_and_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "run" / ".lock"
    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with pytest.raises(ConfigError, match="No space left on device'; make room"), FolderLock(path, "run"):
            pass
    assert not path.parent.exists()
    with FolderLock(path, "run"):
        assert str(os.getpid()) in path.read_text()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EPERM])
def test_a_file_system_that_fails_to_lock_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(ConfigError, match=os.strerror(number)), FolderLock(tmp_path / ".lock", "run"):
        pass


def test_of_400_simultaneous_claims_one_in_each_round_wins(tmp_path: Path) -> None:
    processes, rounds = 16, 25
    barrier, won = FORK.Barrier(processes), FORK.Array("i", rounds)
    claims = [FORK.Process(target=_claim, args=(tmp_path, rounds, barrier, won)) for _ in range(processes)]
    for process in claims:
        process.start()
    for process in claims:
        process.join(120)
    assert [process.exitcode for process in claims] == [0] * processes
    assert list(won) == [1] * rounds


def _hold(path: Path, held: Any, forked: Any) -> None:
    lock = FolderLock(path, "run").__enter__()
    child = FORK.Process(target=signal.pause, daemon=True)  # such as a process that loads data
    child.start()
    forked.value = child.pid
    held.set()
    signal.pause()
    lock.release()


def test_the_lock_goes_with_its_holder_though_processes_that_it_forked_live_on(tmp_path: Path) -> None:
    held, forked = FORK.Event(), FORK.Value("i", 0)
    holder = FORK.Process(target=_hold, args=(tmp_path / ".lock", held, forked))
    holder.start()
    assert held.wait(60)
    with pytest.raises(ConfigError, match=f"one run at a time.*process {holder.pid} on host"):
        FolderLock(tmp_path / ".lock", "run").__enter__()
    holder.kill()
    holder.join(60)
    try:
        os.kill(forked.value, 0)  # it is there still
        with FolderLock(tmp_path / ".lock", "run"):
            pass
    finally:
        os.kill(forked.value, signal.SIGKILL)


def test_nothing_is_left_of_a_lock_that_was_given_up_or_refused(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "kept" / ".lock", "run"):
        assert (tmp_path / "kept" / ".lock").exists()
    assert list((tmp_path / "kept").iterdir()) == []
    with pytest.raises(KeyError), FolderLock(tmp_path / "new" / ".lock", "run"):
        raise KeyError
    assert not (tmp_path / "new").exists()


def test_a_lock_that_the_starting_process_holds_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    path = tmp_path / ".lock"
    with path.open("a+") as worker:
        fcntl.flock(worker, fcntl.LOCK_EX)
        with pytest.raises(ConfigError):
            FolderLock(path, "run").__enter__()
        monkeypatch.setenv("MONAI_FP4_LOCK", str(os.dup(worker.fileno())))
        with FolderLock(path, "run"):
            pass
        assert path.exists()
        monkeypatch.delenv("MONAI_FP4_LOCK")
        with pytest.raises(ConfigError):  # the worker holds it on
            FolderLock(path, "run").__enter__()


@pytest.mark.parametrize("number", ["", "x", "99999", "1"])
def test_another_open_file_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("MONAI_FP4_LOCK", number)
    with FolderLock(tmp_path / ".lock", "run"), pytest.raises(ConfigError):
        FolderLock(tmp_path / ".lock", "run").__enter__()


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with FolderLock(tmp_path / ".lock", "run"):
        assert "keeps no locks (No locks available)" in capsys.readouterr().err
