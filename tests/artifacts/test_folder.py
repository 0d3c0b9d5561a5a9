"""new_folder: complete, or not there."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest

from pocketphi.artifacts.folder import new_folder
from pocketphi.graph.errors import InputError


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def write_and_raise(out: Path, error: BaseException) -> None:
    with new_folder(out, 0) as folder:
        (folder / "new").write_bytes(b"1")
        raise error


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with new_folder(out, 10) as folder:
        (folder / "a").write_bytes(b"1")
        assert not out.exists()
        assert folder.parent == out.parent  # the same disk, so that renaming is one step
    assert tree(tmp_path) == {"deep/er/out/a": b"1"}


def test_it_replaces_the_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"0")
    with new_folder(tmp_path / "out", 0) as folder:
        (folder / "new").write_bytes(b"1")
        assert tree(tmp_path / "out") == {"old": b"0"}
    assert tree(tmp_path) == {"out/new": b"1"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, InputError])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"0")
    with pytest.raises(error):
        write_and_raise(tmp_path / "out", error("stop"))
    assert tree(tmp_path) == {"out/old": b"0"}


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    running = tmp_path / ".out.1.partial"  # another compile to the same place keeps its files
    running.mkdir()
    stale = tmp_path / f".out.{gone.pid}.partial"
    stale.mkdir()
    (stale / "half").write_bytes(b"0")
    with new_folder(tmp_path / "out", 0) as folder:
        assert list(folder.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.1.partial", "out"]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("out"), 0) as folder:
        os.chdir("/")
        (folder / "a").write_bytes(b"1")
    assert tree(tmp_path) == {"out/a": b"1"}


def test_refuses_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    message = re.escape(f"{tmp_path}/file/out: cannot be written: {tmp_path}/file is not a folder; choose another -o")
    with pytest.raises(InputError, match=message), new_folder(tmp_path / "file" / "out", 0):
        pass
    (tmp_path / f".out.{os.getpid()}.partial").write_bytes(b"")
    with pytest.raises(InputError, match=r"out: cannot be written: File exists"), new_folder(tmp_path / "out", 0):
        pass


def test_refuses_a_full_disk_before_anything_is_written(tmp_path: Path) -> None:
    message = r"out: needs 1,000,000,000,000,000,000 bytes, the disk has [\d,]+ free; choose another -o"
    with pytest.raises(InputError, match=message), new_folder(tmp_path / "out", 10**18):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG])
def test_a_disk_that_fails_meanwhile_is_bad_input(tmp_path: Path, code: int) -> None:
    message = re.escape(f"{tmp_path}/out: cannot be written: {os.strerror(code)}; choose another -o")
    with pytest.raises(InputError, match=message):
        write_and_raise(tmp_path / "out", OSError(code, os.strerror(code)))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_are_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out", 0) as folder:
        (folder / "nowhere" / "a").write_bytes(b"1")
    assert list(tmp_path.iterdir()) == []
