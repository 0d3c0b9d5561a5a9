"""Parts of the C runtime by themselves: the pool of threads, a container's quota, the text of messages."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from pocketphi.targets.tvm_arm.build_runtime import compile_sources
from pocketphi.targets.tvm_arm.toolchain import SOURCES, Toolchain, find_toolchain, host_arch

HELPERS = Path(__file__).parents[2] / "helpers"


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find_toolchain("linux", host_arch())


def compiled(toolchain: Toolchain, folder: Path, body: str) -> list[str]:
    """The command of a program whose `main` is `body`."""
    source, program = folder / "program.cc", folder / "program"
    source.write_text(
        '#include "quota.h"\n#include "line.h"\n#include <cstdio>\n#include <iostream>\n#include <iterator>\n'
        f"using namespace pocketphi_runtime;\nint main(int, char** argv) {{ {body} }}\n"
    )
    toolchain.run("-std=c++17", "-fsanitize=address,undefined", f"-I{SOURCES}", str(source), "-o", str(program))
    return [str(program)]


def test_loops_are_whole_and_wait_for_nobody_who_has_not_begun(toolchain: Toolchain, tmp_path: Path) -> None:
    checked = dataclasses.replace(toolchain, flags=("-fsanitize=thread",))
    objects = map(str, compile_sources(checked, tmp_path, ("backend", "cpu", "pool"), ("-O1", "-g1")))
    program, test = tmp_path / "pool_test", str(HELPERS / "pool_test.cc")
    checked.run("-std=c++17", "-O1", f"-I{SOURCES}", test, *objects, "-pthread", "-o", str(program))
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_what_is_guessed_and_when_guessing_is_left(toolchain: Toolchain, tmp_path: Path) -> None:
    program = tmp_path / "drafts_test"
    toolchain.run(
        "-std=c++17", "-O1", "-fsanitize=undefined", f"-I{SOURCES}", str(HELPERS / "drafts_test.cc"), "-o", str(program)
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {}, "inf"),
        ("0::/", {"cpu.max": "max 100000"}, "inf"),
        ("0::/", {"cpu.max": "150000 100000"}, "1.5"),
        ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "4"),  # a limit of the group around
        ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 50000"}, "1"),
        ("0::/docker/x", {"cpu.max": "200000 100000"}, "2"),  # the container sees its own group as the mount
        ("0::/../..", {"cpu.max": "200000 100000"}, "2"),
        ("0::/", {"cpu.max": "rubbish"}, "inf"),
        ("0::/", {"cpu.max": "-5 0"}, "inf"),
        ("4:cpu,cpuacct:/x\n0::/", {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1"}, "inf"),
        (
            "4:cpu,cpuacct:/x\n0::/",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            "3",
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, "0.5"),
        ("3:cpuset:/x", {"x/cpu.max": "100000 100000"}, "inf"),  # another controller's group
        ("no groups", {}, "inf"),
    ],
)
def test_the_quota_of_a_container(
    quota: list[str], tmp_path: Path, groups: str, files: dict[str, str], cores: str
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert subprocess.run([*quota, str(tmp_path)], capture_output=True, text=True, check=True).stdout == cores


@pytest.fixture(scope="module")
def quota(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return compiled(toolchain, tmp_path_factory.mktemp("quota"), 'std::printf("%g", cpu_quota(argv[1]));')


@pytest.fixture(scope="module")
def line(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    body = (
        "std::string text{std::istreambuf_iterator<char>(std::cin), {}}; char buffer[12];"
        "copy_text(one_line(text), buffer, argv[1][0] - 'a'); std::fputs(buffer, stdout);"
    )
    return compiled(toolchain, tmp_path_factory.mktemp("line"), body)


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        (b"one\n  two\t\n", 12, b"one two"),
        (b"", 12, b"unknown err"),
        (b"\x00\x01\x1b", 12, b"unknown err"),
        (b"123456789012345", 12, b"12345678901"),
        ("äöü€x".encode(), 12, "äöü€x".encode()),
        ("äöü€x".encode(), 9, "äöü".encode()),  # no half of a character
        ("123€".encode(), 4, b"123"),
        (b"a\xffb\xc3(\xe2\x82", 12, b"a?b?(??"),
        (b"\xed\xa0\x80", 12, b"\xed\xa0\x80"),
        ("x😀".encode(), 12, b"x????"),  # Java's modified UTF-8 has no characters of four bytes
        (b"abc", 1, b""),
    ],
)
def test_messages_are_one_line_of_whole_characters(line: list[str], text: bytes, size: int, expected: bytes) -> None:
    done = subprocess.run([*line, chr(ord("a") + size)], input=text, capture_output=True, check=True)
    assert done.stdout == expected[: max(size - 1, 0)]
