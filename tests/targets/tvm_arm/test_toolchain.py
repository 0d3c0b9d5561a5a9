"""Compilers, archives and the built runtime: real tools and real objects, read back by other readers than ours."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_small as small

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm import build_runtime as build_runtime_module
from pocketphi.targets.tvm_arm.archive import write_archive
from pocketphi.targets.tvm_arm.build_runtime import RUNTIME, build_runtime, export_sources
from pocketphi.targets.tvm_arm.process import RuntimeProcess
from pocketphi.targets.tvm_arm.toolchain import SOURCES, SYSTEM_LIB_PREFIX, Toolchain, find_toolchain, host_arch

CROSS = shutil.which("aarch64-linux-gnu-g++")
API = (
    "open",
    "prefill",
    "prefill_all",
    "decode",
    "draft",
    "generate",
    "adapter",
    "save",
    "load",
    "reset",
    "vocab",
    "context",
    "length",
)
API += ("calls", "error", "close")
needs_cross = pytest.mark.skipif(CROSS is None, reason="needs aarch64-linux-gnu-g++: apt install g++-aarch64-linux-gnu")


@pytest.fixture(scope="module")
def host() -> Toolchain:
    return find_toolchain()


def output(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def objects(folder: Path, triple: str, cpu: str, prefix: str = "") -> list[Path]:
    """The small module for an OS: what LLVM wrote. prefix: as it is linked into an app."""
    import tvm

    kept: list[Path] = []

    def keep(_: str, files: list[str], **__: Any) -> None:
        kept.extend(Path(shutil.copy(file, folder)) for file in files)

    module = small.small_module("0" * 64)
    module = module.with_attr("system_lib_prefix", prefix) if prefix else module
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    tvm.compile(module, target).export_library("unused", fcompile=keep)
    return kept


@pytest.mark.parametrize(
    ("system", "arch", "message"),
    [
        ("windows", None, "^--os windows: expected linux, android or ios$"),
        ("linux", "riscv64", "^CPU riscv64: expected aarch64 or x86_64$"),
        ("android", "x86_64", "^android on x86_64: phones are aarch64$"),
    ],
)
def test_unknown_systems(system: str, arch: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_toolchain(system, arch)


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(InputError, match=r"^no c\+\+, which links the library for x86_64: apt install g\+\+$"):
        find_toolchain()
    message = r"^no aarch64-linux-gnu-g\+\+, which links the library for aarch64: apt install g\+\+-aarch64-linux-gnu$"
    with pytest.raises(InputError, match=message):
        find_toolchain("linux", "aarch64")
    cross = Toolchain("linux", "aarch64", "aarch64-linux-gnu", ("x",), "")
    with pytest.raises(InputError, match=r"^no qemu-aarch64 to run aarch64 code on x86_64: apt install qemu-user$"):
        cross.command(Path("runner"))
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(InputError, match=r"apt install g\+\+-x86-64-linux-gnu$"):
        find_toolchain("linux", "x86_64")


def test_android_without_an_ndk_writes_archives_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    android = find_toolchain("android")
    assert not android.links
    with pytest.raises(
        InputError, match=r"^no compiler for android on aarch64: install the Android NDK and set ANDROID_"
    ):
        android.link_shared([], tmp_path / "model.so")
    with pytest.raises(InputError, match=r"^no compiler for android"):
        build_runtime(android, tmp_path)
    with pytest.raises(InputError, match=r"^a library for android does not run on this machine; compile it for linux"):
        android.command(Path("runner"))
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    with pytest.raises(
        InputError, match=r"^ANDROID_NDK_HOME=.*: no toolchains/llvm/.* it should be the folder of an NDK"
    ):
        find_toolchain("android")


@needs_cross
def test_android_libraries_have_pages_of_16_kib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a compiler of the same command line where an NDK has its own."""
    clang = tmp_path / "toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android24-clang++"
    clang.parent.mkdir(parents=True)
    clang.symlink_to(str(CROSS))
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    made = objects(tmp_path, "aarch64-linux-android", "cortex-a76")
    find_toolchain("android").link_shared(made, tmp_path / "model.so")
    assert {align for kind, align in load_segments(tmp_path / "model.so") if kind == 1} == {0x4000}


def load_segments(path: Path) -> list[tuple[int, int]]:
    """(type, alignment) of every program header: gABI, Elf64_Phdr."""
    data = path.read_bytes()
    (start,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    return [
        (struct.unpack_from("<I", data, at)[0], struct.unpack_from("<Q", data, at + 48)[0])
        for at in range(start, start + size * count, size)
    ]


def test_the_library_needs_nothing_of_tvm(host: Toolchain, tmp_path: Path) -> None:
    folder = small.write_small_bundle(tmp_path / "bundle", host, small.small_params())
    names = {line.split()[-1] for line in output("nm", "-D", "--undefined-only", folder / "model.so").splitlines()}
    assert [name for name in names if "TVM" in name] == []
    pointers = {line.split()[-1] for line in output("nm", "-D", "--defined-only", folder / "model.so").splitlines()}
    wanted = {name.removeprefix("__") for name in pointers if name.startswith("__TVM")}
    assert wanted  # what the runtime fills in; one that it does not know would be called at address 0
    assert wanted <= set(re.findall(r"\b(TVM\w+)\(", (SOURCES / "backend.h").read_text()))
    with pytest.raises(InputError, match=r"c\+\+: "):
        host.link_shared([folder / "model.json"], tmp_path / "other.so")
    assert not (tmp_path / "other.so").exists()


def test_the_runtime_is_small_and_shows_its_api_only(host: Toolchain) -> None:
    files = build_runtime(host)
    assert files.library.stat().st_size <= 1 << 20
    shown = {line.split()[-1] for line in output("nm", "-D", "--defined-only", files.library).splitlines()}
    words = files.header.read_text().replace("(", " ").split()
    declared = {
        word for word in words if word.startswith("*pocketphi_") and not word.endswith(")")
    }  # no types of functions
    functions = {f"pocketphi_{name}" for name in API}
    assert shown == functions
    assert {word.strip("*") for word in declared} <= functions
    needed = [line for line in output("readelf", "-d", files.library).splitlines() if "NEEDED" in line]
    assert {line.split("[")[1].rstrip("]").split(".")[0] for line in needed} <= {"libc", "libm", "ld-linux-x86-64"}


def test_the_runtime_is_built_once(host: Toolchain) -> None:
    before = build_runtime(host)
    stamp = before.runner.stat().st_mtime_ns
    after = build_runtime(host)
    assert (after, after.runner.stat().st_mtime_ns) == (before, stamp)


def test_a_damaged_runtime_is_built_again(host: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library with a bit flipped would go into bundles, and be what verifies them."""
    cache, kept = tmp_path / "cache", tmp_path / "kept"
    files = build_runtime(host, cache)
    every = sorted(path for path in files.library.parent.iterdir())
    assert {files.library, files.archive, files.runner} < set(every)
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in every}
    shutil.copytree(files.library.parent, kept)
    monkeypatch.setattr(  # the same files, without their compiler's time
        build_runtime_module, "_build", lambda _, folder: shutil.copytree(kept, folder / "result")
    )

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def shorten(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    def replace_by_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    damages = [(damage, path) for damage in (flip, shorten, Path.unlink, replace_by_folder) for path in every]
    damages.append((lambda path: path.chmod(0o644), files.runner))
    damages.append((lambda path: path.with_name("other").write_bytes(b""), files.library))
    for damage, path in damages:
        damage(path)
        assert build_runtime(host, cache) == files
        assert {path: (path.read_bytes(), path.stat().st_mode) for path in every} == before
        assert sorted(files.library.parent.iterdir()) == every
    assert list(files.library.parent.parent.iterdir()) == [files.library.parent]


def test_a_runtime_that_does_not_compile_leaves_nothing(tmp_path: Path) -> None:
    broken = Toolchain("linux", host_arch(), "x", find_toolchain().compiler, "", ("-include", "/nowhere.h"))
    with pytest.raises(InputError, match=r"c\+\+: .*error: /nowhere\.h: No such file"):
        build_runtime(broken, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_exported_sources_are_whole(tmp_path: Path) -> None:
    """What CMake is told to compile is there: `build_runtime` compiles the same folder."""
    export_sources(tmp_path)
    listed = (tmp_path / "CMakeLists.txt").read_text().split("STATIC ")[1].split(")")[0].split()
    assert listed == [f"{name}.cc" for name in RUNTIME]
    headers = {word for path in tmp_path.glob("*.cc") for word in re.findall(r'#include "(.+)"', path.read_text())}
    assert [name for name in {*listed, *headers, "runner.cc"} if not (tmp_path / name).is_file()] == []
    assert [path for path in tmp_path.iterdir() if "tvm/" in path.read_text()] == []  # nothing of TVM's is included


def test_a_model_linked_into_the_program(host: Toolchain, tmp_path: Path) -> None:
    """The way of iOS, and of Android without an NDK: an archive of the model, one of the runtime, the app's own link."""
    params = small.small_params()
    folder = small.write_small_bundle(tmp_path / "bundle", host, params, system_lib=SYSTEM_LIB_PREFIX)
    files = build_runtime(host)
    keep = [
        word
        for word in host.link_line(str(folder / "libmodel.a")).split()
        if "whole" in word or word.endswith("model.a")
    ]
    source = str(files.header.with_name("runner.cc"))
    host.run("-std=c++17", source, *keep, str(files.archive), "-pthread", "-ldl", "-o", str(tmp_path / "app"))
    model = small.SmallModel(params)
    with RuntimeProcess([str(tmp_path / "app")], folder) as process:
        got = process.prefill([1, 2, 3])
    assert np.all(np.abs(got - model.step([1, 2, 3])[-1]) <= model.bound[-1])


def test_link_lines() -> None:
    assert find_toolchain("ios").link_line() == (
        "clang++ -target arm64-apple-ios15.0 … -Wl,-force_load,libmodel.a libpocketphi.a"
    )
    android = find_toolchain("android").link_line("x.a")
    assert android.startswith("aarch64-linux-android24-clang++ -shared -Wl,-z,max-page-size=16384 … ")
    assert android.endswith("-Wl,--whole-archive x.a -Wl,--no-whole-archive libpocketphi.a -lm")


def test_an_elf_archive_links_by_its_index(host: Toolchain, tmp_path: Path) -> None:
    for name, text in {
        "one": "int one(void) { return 1; }",
        "two_with_a_long_name": "int two(void) { return 2; }",
    }.items():
        (tmp_path / f"{name}.c").write_text(text)
        host.run("-x", "c", "-c", str(tmp_path / f"{name}.c"), "-o", str(tmp_path / f"{name}.o"))
    archive = tmp_path / "libx.a"
    parts = [tmp_path / "one.o", tmp_path / "two_with_a_long_name.o"]
    write_archive(parts, archive)
    assert output("ar", "t", archive).split() == [part.name for part in parts]
    assert "two in two_with_a_long_name.o" in output("nm", "-s", archive)
    (tmp_path / "main.c").write_text("int two(void); int main(void) { return two(); }")
    host.run("-x", "c", str(tmp_path / "main.c"), "-x", "none", str(archive), "-o", str(tmp_path / "main"))
    assert subprocess.run([str(tmp_path / "main")], check=False).returncode == 2
    assert "one" not in output("nm", tmp_path / "main").split()  # only what is asked for is taken
    first = archive.read_bytes()
    write_archive(parts, archive)
    assert archive.read_bytes() == first


def test_android_objects_and_their_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    made = objects(tmp_path, "aarch64-linux-android", "cortex-a76", SYSTEM_LIB_PREFIX)
    assert [struct.unpack_from("<HH", part.read_bytes(), 16) for part in made] == [(1, 183)] * 2  # ET_REL, EM_AARCH64
    find_toolchain("android").static_archive(made, tmp_path / "libmodel.a")
    assert output("ar", "t", tmp_path / "libmodel.a").split() == [part.name for part in made]
    index = output("nm", "-s", tmp_path / "libmodel.a")
    assert f"{SYSTEM_LIB_PREFIX}__tvm_ffi__library_bin in {made[1].name}" in index


def test_ios_objects_and_their_archive(tmp_path: Path) -> None:
    """Mach-O, by Apple's headers: nothing here links it."""
    made = objects(tmp_path, "arm64-apple-ios15.0", "apple-a14", SYSTEM_LIB_PREFIX)
    for part in made:
        magic, cpu, _, kind = struct.unpack_from("<IIII", part.read_bytes())
        assert (magic, cpu, kind) == (0xFEEDFACF, 0x0100000C, 1)  # 64 bits, ARM64, MH_OBJECT
    out = tmp_path / "libmodel.a"
    find_toolchain("ios").static_archive(made, out)
    index, members = read_bsd(out.read_bytes())
    assert [
        data[: part.stat().st_size] == part.read_bytes() for part, data in zip(made, members.values(), strict=True)
    ] == [
        True,
        True,
    ]
    assert list(members) == [part.name for part in made]
    assert index[f"_{SYSTEM_LIB_PREFIX}__tvm_ffi__library_bin"] == made[1].name
    assert {name for name in index if "__tvm_ffi_pocketphi_read" in name} != set()


def read_bsd(data: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    """An archive's index (symbol → member) and members, each checked to start on 8 bytes. <ar.h>, <mach-o/ranlib.h>."""
    assert data.startswith(b"!<arch>\n")
    found, starts, at = {}, {}, 8
    while at < len(data):
        header = data[at : at + 60].decode()
        name_size, size = int(header[3:16]), int(header[48:58])
        assert (header[:3], header[58:]) == ("#1/", "`\n")
        name = data[at + 60 : at + 60 + name_size].rstrip(b"\0").decode()
        found[name], starts[at] = data[at + 60 + name_size : at + 60 + size], name
        assert (at + 60 + name_size) % 8 == 0
        at += 60 + size
    table = found.pop("__.SYMDEF")
    pairs = int.from_bytes(table[:4], "little")
    text = table[8 + pairs :]
    entries = [struct.unpack_from("<II", table, 4 + 8 * i) for i in range(pairs // 8)]
    return {text[name : text.index(b"\0", name)].decode(): starts[member] for name, member in entries}, found


def test_objects_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.o").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"^x\.o: expected an object file, ELF or Mach-O, of 64 bits$"):
        write_archive([tmp_path / "x.o"], tmp_path / "libx.a")
    assert not (tmp_path / "libx.a").exists()
