"""Files are whole, whatever happens while they are written."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from stat import S_ISDIR
from typing import IO

import pytest

from monai_fp4.atomic import (
    Replacements,
    make_folder,
    make_private,
    read_json,
    remove_leftovers,
    replacing,
    write_atomically,
)
from monai_fp4.errors import ConfigError


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, "old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_content_and_name_reach_the_disk_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace, flush = Path.replace, os.fsync
    monkeypatch.setattr(Path, "replace", lambda source, target: (order.append("rename"), replace(source, target))[1])
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("flush"), flush(handle))[1])
    write_atomically(tmp_path / "file", "text")
    assert order == ["flush", "rename", "flush"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_fails_to_flush_is_told_from_one_that_never_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, folder: bool
) -> None:
    flush = os.fsync

    def fsync(handle: int) -> None:
        if S_ISDIR(os.fstat(handle).st_mode) == folder:
            raise OSError(number, os.strerror(number))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    never = number in (errno.EINVAL, errno.ENOTSUP)
    with nullcontext() if never else pytest.raises(ConfigError, match=f"the system says '{os.strerror(number)}'"):
        write_atomically(tmp_path / "file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] * (never or folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), ConfigError("ours")])
def test_what_fails_in_the_block_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def _three(folder: Path, text: str) -> Replacements:
    files = Replacements()
    for name in "abc":
        with files.open(folder / name) as file:
            file.write(text.encode())
    return files


def _read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_of_files_in_a_row_none_is_new_before_those_ahead_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _three(tmp_path, "old").take_places()
    files, flush, left = _three(tmp_path, "new"), os.fsync, iter(range(9))
    assert {name: text for name, text in _read(tmp_path).items() if len(name) == 1} == dict.fromkeys("abc", "old")

    def full(handle: int) -> None:
        if next(left) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"/b must be writable, .*No space left.*make room"):
        files.take_places()
    assert _read(tmp_path) == {"a": "new", "b": "old", "c": "old"}


@pytest.mark.parametrize("links", [True, False])
def test_what_stood_at_a_place_is_kept_at_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    for text in ("first", "second", "third"):
        files = Replacements()
        with files.open(tmp_path / "now", kept_at=tmp_path / "before") as file:
            file.write(text.encode())
        files.take_places()
    assert _read(tmp_path) == {"now": "third", "before": "second"}
    if links:  # as after a kill between the two
        (tmp_path / "before").unlink()
        (tmp_path / "before").hardlink_to(tmp_path / "now")
        with (files := Replacements()).open(tmp_path / "now", kept_at=tmp_path / "before") as file:
            file.write(b"fourth")
        files.take_places()
        assert _read(tmp_path) == {"now": "fourth", "before": "third"}


def test_of_files_in_a_row_all_are_discarded_if_one_cannot_be_written(tmp_path: Path) -> None:
    _three(tmp_path, "old").take_places()
    files = _three(tmp_path, "new")
    with pytest.raises(KeyError), files.open(tmp_path / "d"):
        raise KeyError
    files.take_places()
    assert _read(tmp_path) == dict.fromkeys("abc", "old")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_processes_that_a_writer_forks_do_not_keep_what_it_leaves(tmp_path: Path) -> None:
    write = (
        "import os, signal, sys, time; from pathlib import Path; from monai_fp4.atomic import replacing\n"
        "with replacing(Path(sys.argv[1]) / 'file'):\n"
        "    ready, begun = os.pipe()\n"
        "    child = os.fork() or (os.write(begun, b'1'), time.sleep(600))\n"
        "    os.read(ready, 1)\n"
        "    print(child, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", write, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        child = int(writer.stdout.readline())
        try:
            writer.wait()
            assert len(list(tmp_path.iterdir())) == 1
            remove_leftovers(tmp_path)
            assert not list(tmp_path.iterdir())
        finally:
            os.kill(child, 9)


def test_what_killed_writers_left_goes_with_the_next_write_in_the_folder(tmp_path: Path) -> None:
    write = (
        "import os, sys; from pathlib import Path; from monai_fp4.atomic import replacing\n"
        "with replacing(Path(sys.argv[1]) / sys.argv[2]) as file:\n"
        "    file.write(b'half'); file.flush(); print('begun', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", write, str(tmp_path)]
    dead, alive = (
        subprocess.Popen([*words, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("dead", "alive")
    )
    for process in (dead, alive):
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
    dead.kill()
    dead.wait()
    (tmp_path / ".mine.7.tmp").touch()
    write_atomically(tmp_path / "file", "text")
    beside = f".alive.{alive.pid}.monai_fp4.tmp"
    assert {each.name for each in tmp_path.iterdir()} == {".mine.7.tmp", "file", beside}
    alive.communicate("")
    assert {each.name for each in tmp_path.iterdir()} == {".mine.7.tmp", "file", "alive"}


def test_a_file_that_is_removed_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, locked = fcntl.flock, []

    def remove_first(file: IO[bytes], how: int) -> None:
        if not locked:
            next(tmp_path.glob(".file.*")).unlink()
        locked.append(how)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text" and len(locked) == 2


def test_what_the_system_says_is_one_sentence(tmp_path: Path) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where a folder should be")
    for write in (lambda: write_atomically(blocker / "file", ""), lambda: make_folder(blocker / "folder")):
        with pytest.raises(ConfigError, match=r"must be writable, but the system says '.*'; make it writable"):
            write()


def test_a_full_disk_behind_the_words_of_a_library_is_told_by_its_cause(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "file"):
            try:
                raise OSError(28, "No space left on device")
            except OSError:
                raise RuntimeError("[enforce fail at inline_container.cc:603]") from None

    with pytest.raises(ConfigError, match=r"No space left.*make room"):
        fail()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested deeper"),
        ('{"a": ' * 100_000, "nested deeper"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("9" * 5000, "digits"),
        ('"\\ud800"', "half a character"),
        ("", "Expecting value"),
    ],
)
def test_json_is_read_within_bounds(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_json(tmp_path / "x.json")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    for name in ("pipe", "zeros", "large"):
        with pytest.raises(ConfigError, match="no regular file of at most"):
            read_json(tmp_path / name)
    (tmp_path / "good").write_text('{"a": ["\\ud83d\\ude00", NaN]}')
    assert read_json(tmp_path / "good")["a"][0] == "😀"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_new_is_its_owners_alone(tmp_path: Path) -> None:
    write_atomically(tmp_path / "runs" / "mine" / "metrics.json", "{}")
    made = [tmp_path / "runs", tmp_path / "runs" / "mine", tmp_path / "runs" / "mine" / "metrics.json"]
    assert [mode(path) for path in made] == [0o700, 0o700, 0o600]


def test_files_are_shared_where_the_user_says_so_or_where_they_are_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    umask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "manifest.json", "{}", shared=True)
        assert mode(tmp_path / "manifest.json") == 0o640
        monkeypatch.setenv("MONAI_FP4_SHARED_FILES", "1")
        write_atomically(tmp_path / "runs" / "mine" / "metrics.json", "{}")
        (tmp_path / "event").touch()
        make_private(tmp_path / "event")
    finally:
        os.umask(umask)
    assert [mode(tmp_path / name) for name in ("runs", "runs/mine", "runs/mine/metrics.json", "event")] == [
        0o750, 0o750, 0o640, 0o640,
    ]  # fmt: skip


def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """Somebody who has opened a run to colleagues does not find it closed after the next epoch, nor the reverse."""
    folder = tmp_path / "run"
    folder.mkdir(0o755)
    for name, given in (("open", 0o644), ("closed", 0o400)):
        (folder / name).touch()
        (folder / name).chmod(given)
        write_atomically(folder / name, "new", shared=name == "closed")
        assert mode(folder / name) == given
    assert mode(folder) == 0o755


def test_a_file_system_without_modes_takes_files_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no modes here")

    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(Path, "chmod", refuse)
    write_atomically(tmp_path / "file", "new")
    make_private(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"
