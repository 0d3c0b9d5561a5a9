"""new_folder: complete, or not there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pocketphi.artifacts.folder import new_folder, remove_left_over
from pocketphi.graph import renaming
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
        assert folder.parent.parent == out.parent  # the same disk, so that renaming is one step
    assert tree(tmp_path) == {"deep/er/out/a": b"1"}


def test_it_replaces_the_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"0")
    with new_folder(tmp_path / "out", 0, replace=True) as folder:
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


@pytest.mark.parametrize("name", ["loop", "loop/out"])
def test_a_link_to_itself(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"loop(/out)?: a link that leads to itself; remove it$"):
        new_folder(tmp_path / name, 0, replace=True).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


MAKER = """
import os, signal, sys
from pathlib import Path
from pocketphi.artifacts.folder import new_folder
with new_folder(Path(sys.argv[1]), 0, replace=True) as folder:
    (folder / "half").write_bytes(b"0")
    print("begun", flush=True)
    {then}
"""
KILLED = MAKER.format(then="os.kill(os.getpid(), signal.SIGKILL)")
WAITING = MAKER.format(then="sys.stdin.read()")
FORKED = MAKER.format(
    then="""ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, b"!")
        sys.stdin.read()
        os._exit(0)  # it would wait for ever for a byte that its parent took
    os.read(ours, 1)
    os.kill(os.getpid(), signal.SIGKILL)"""
)


def maker(code: str, out: Path) -> subprocess.Popen[bytes]:
    """A process that has begun to make a folder."""
    process = subprocess.Popen([sys.executable, "-c", code, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


NAMES = ["out", "a b [x]", "[!a]*", "o.u.t", "\n", "d\u00e9j\u00e0"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_killed_process_left_is_removed(tmp_path: Path, name: str) -> None:
    with maker(KILLED, tmp_path / name) as process:
        assert process.wait() == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    with new_folder(tmp_path / name, 0) as folder:
        assert list(folder.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_forked_process_does_not_keep_what_its_parent_left(tmp_path: Path) -> None:
    with maker(FORKED, tmp_path / "out") as process:
        assert process.wait() == -signal.SIGKILL
        with new_folder(tmp_path / "out", 0):
            pass  # the other one still waits for its input
        assert os.listdir(tmp_path) == ["out"]


def test_what_another_process_makes_is_let_alone(tmp_path: Path) -> None:
    """Also where its number means nothing here, as in another container; and without `replace` the first one stays."""
    with maker(WAITING, tmp_path / "out") as process:
        begun = os.listdir(tmp_path)
        (other,) = (p for p in tmp_path.iterdir())
        with new_folder(tmp_path / "out", 0):
            pass
        assert sorted(os.listdir(tmp_path)) == sorted([*begun, "out"])
        assert tree(other)["new/half"] == b"0"
        process.communicate()
        assert process.returncode == 0
    assert tree(tmp_path) == {"out/half": b"0"}


def test_what_an_older_version_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.4321.partial").mkdir()
    (tmp_path / ".out.4321.partial" / "half").write_bytes(b"0")
    (tmp_path / ".other.4321.partial").mkdir()  # of another folder: whoever makes that will remove it
    (tmp_path / ".out.partial").mkdir()  # not a name of ours
    with new_folder(tmp_path / "out", 0):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.4321.partial", ".out.partial", "out"]


def test_what_was_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = r"out: another process has made it meanwhile; choose another -o or pass --force"
    with pytest.raises(InputError, match=message), new_folder(out, 0):
        out.mkdir()  # even an empty one
    assert list(out.iterdir()) == []
    assert os.listdir(tmp_path) == ["out"]


def test_there_is_never_a_moment_without_the_old_or_the_new(tmp_path: Path) -> None:
    """Another process looks all the time, while it is replaced 300 times."""
    out = tmp_path / "out"
    with new_folder(out, 0) as folder:
        (folder / "whole").write_bytes(b"0")
    look = "import os, sys\nprint(flush=True)\nwhile True: os.stat(sys.argv[1])"
    looker = subprocess.Popen(
        [sys.executable, "-c", look, out / "whole"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert looker.stdout is not None
    looker.stdout.readline()
    for _ in range(300):
        with new_folder(out, 0, replace=True) as folder:
            (folder / "whole").write_bytes(b"1")
    looker.kill()
    assert looker.communicate()[1] == b""


@pytest.fixture
def _plain_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that cannot do more than rename."""

    def unsupported(how: str, source: Path, target: Path) -> None:
        raise renaming.Unsupported(errno.EINVAL, "")

    monkeypatch.setattr(renaming, "_rename", unsupported)


@pytest.mark.usefixtures("_plain_renames")
def test_a_file_system_that_cannot_exchange(tmp_path: Path) -> None:
    test_it_replaces_the_whole(tmp_path)
    with pytest.raises(InputError, match="another process has made it meanwhile"), new_folder(tmp_path / "out", 0):
        pass
    assert tree(tmp_path) == {"out/new": b"1"}


def test_a_folder_that_was_moved_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    """Where the two cannot change places, there is a moment with neither."""
    with maker(KILLED, tmp_path / "out") as process:
        process.wait()
    (left,) = tmp_path.iterdir()
    (left / "old").mkdir()
    (left / "old" / "whole").write_bytes(b"0")
    remove_left_over(tmp_path, "out")
    assert tree(tmp_path) == {"out/whole": b"0"}


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work goes on, and nothing is taken for left over."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "")

    with maker(KILLED, tmp_path / "out") as process:
        process.wait()
    left = os.listdir(tmp_path)
    monkeypatch.setattr("fcntl.flock", refuse)
    with new_folder(tmp_path / "out", 0):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([*left, "out"])


def test_a_folder_that_somebody_removes_meanwhile(tmp_path: Path) -> None:
    message = r"out: its folder was removed while it was made; make it again"
    with pytest.raises(InputError, match=message), new_folder(tmp_path / "out", 0) as folder:
        shutil.rmtree(folder.parent)
    assert list(tmp_path.iterdir()) == []


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
    with (
        pytest.raises(InputError, match=r"n: cannot be written: File name too long"),
        new_folder(tmp_path / ("n" * 250), 0),
    ):
        pass
    with pytest.raises(InputError, match=r"out: cannot be written: "), new_folder(Path("/proc/out"), 0):
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
