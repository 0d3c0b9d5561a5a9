"""Files that are whole or not there, and writes and reads of which the system takes only a part."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pocketphi.graph.errors import InputError
from pocketphi.graph.sealed import read_sealed, write_sealed
from pocketphi.graph.writing import new_file, read_at, remove_left_over, write_at, write_whole

MAKER = """
import os, signal, sys
from pathlib import Path
from pocketphi.graph.writing import new_file
with new_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("begun", flush=True)
    {then}
"""


def maker(then: str, path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER.format(then=then), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


def fail(path: Path) -> None:
    with new_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_it_appears_at_the_end_and_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with new_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        fail(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"out": b"whole"}


def test_its_mode_is_that_of_any_new_file_or_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "new", "text")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    write_whole(tmp_path / "new", b"other")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_link_stays_one_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    code = "from pathlib import Path; from pocketphi.graph.writing import write_whole; write_whole(Path('/dev/stdout'), 'x')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"x"


@pytest.mark.parametrize("name", ["out", "a [b]", "*", "o.u.t"])
def test_what_a_killed_process_left_is_removed(tmp_path: Path, name: str) -> None:
    with maker("os.kill(os.getpid(), signal.SIGKILL)", tmp_path / name) as process:
        assert process.wait() == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    write_whole(tmp_path / name, "text")
    assert os.listdir(tmp_path) == [name]


def test_what_another_process_writes_is_let_alone(tmp_path: Path) -> None:
    with maker("sys.stdin.read()", tmp_path / "out") as process:
        remove_left_over(tmp_path, None)
        write_whole(tmp_path / "out", "mine")
        assert len(os.listdir(tmp_path)) == 2
        process.communicate()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"out": b"half"}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"^--results {tmp_path}/no/r.json: cannot be written: No such file or directory$"
    ):
        write_whole(tmp_path / "no" / "r.json", "{}", "--results")
    with pytest.raises(InputError, match=r"^/dev/full: cannot be written: No space left on device$"):
        write_whole(Path("/dev/full"), "text")


def test_a_write_that_takes_less_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does with more than 2 GiB at once, and where a disk is nearly full."""
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda d, data, at: write(d, memoryview(data)[:1000], at))
    monkeypatch.setattr(os, "preadv", lambda d, buffers, at: read(d, [memoryview(buffers[0])[:700]], at))
    data = os.urandom(12_345)
    with (tmp_path / "out").open("w+b") as file:
        write_at(file.fileno(), data, 50)
        assert read_at(file.fileno(), len(data), 50) == data
        assert read_at(file.fileno(), len(data), 55) == data[5:]  # ends with the file
    assert (tmp_path / "out").read_bytes() == bytes(50) + data


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-9],
    "another value": lambda content: content.replace(b"w1", b"w2"),
    "a list": lambda content: b"[1, 2]",
    "deep": lambda content: b"[" * 100_000,
    "no digest": lambda content: b'{"content": {"a": "w1"}}',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_sealed_file_that_is_damaged_counts_as_missing(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "kept"
    assert read_sealed(path) is None
    write_sealed(path, {"a": "w1", "b": [1.5, None]})
    assert read_sealed(path) == ({"a": "w1", "b": [1.5, None]}, b"")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert read_sealed(path) is None
