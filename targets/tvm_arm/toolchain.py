"""Compilers and linkers for each operating system that a TVM library is made for, and what runs it here."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.graph.errors import CannotRun, InputError
from pocketphi.targets.tvm_arm.archive import write_archive

SOURCES = Path(__file__).with_name("runtime")
LIBRARY, ARCHIVE, SYSTEM_LIB_PREFIX = "model.so", "libmodel.a", "pocketphi_"
"""SYSTEM_LIB_PREFIX: of the symbols of a library that is linked into an app: `module.with_attr("system_lib_prefix", …)`."""

RUNTIME_FILES = ("libpocketphi.so", "pocketphi_runtime.h")
"""What lies beside model.so."""

SOURCES_FOLDER = "runtime"
"""What lies beside libmodel.a: the runtime's sources, with a CMakeLists.txt that makes libpocketphi.a of them."""

_ANDROID_API = 24  # Android 7, the oldest that the current NDK's C++ library supports without gaps


def host_arch() -> str:
    """The host's CPU as targets name it: x86_64 or aarch64."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@dataclass(frozen=True)
class Toolchain:
    """What makes a library for one OS and CPU.

    compiler: the C++ compiler's command, or empty where there is none: then only a static archive can be written
    to_install: what a user installs to have one
    flags: for every compile and link
    """

    os: str
    arch: str
    triple: str
    compiler: tuple[str, ...]
    to_install: str
    flags: tuple[str, ...] = ()

    @property
    def links(self) -> bool:
        """Whether a shared library can be made."""
        return bool(self.compiler)

    def link_shared(self, objects: Sequence[str | Path], out: Path) -> None:
        """Link objects into a library that needs libc and libm only. Raises InputError if the compiler is missing or fails."""
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            glue = Path(folder) / "model_glue.o"
            self.run("-O2", "-fPIC", "-x", "c", "-c", str(SOURCES / "model_glue.c"), "-o", str(glue))
            inputs = [str(path) for path in [*objects, glue]]
            self.run("-shared", *_STRICT, "-Wl,--gc-sections", "-Wl,-s", *inputs, "-lm", "-o", str(out))

    def static_archive(self, objects: Sequence[str | Path], out: Path) -> None:
        """An archive with a symbol index, ELF or Mach-O as the objects are."""
        write_archive([Path(path) for path in objects], out)

    def fcompile(self, output: str, objects: Sequence[str], options: object = None, **_: Any) -> None:
        """For `Executable.export_library(path, fcompile=toolchain.fcompile)`: a name that ends in .a is an archive."""
        make = self.static_archive if str(output).endswith(".a") else self.link_shared
        make(objects, Path(output))

    def link_line(self, archive: str = ARCHIVE) -> str:
        """How an app links the archive and the runtime: the model registers itself, so that all of it must be kept."""
        if self.os == "ios":
            return f"clang++ -target arm64-apple-ios15.0 … -Wl,-force_load,{archive} libpocketphi.a"
        keep = f"-Wl,--whole-archive {archive} -Wl,--no-whole-archive"
        compiler = f"aarch64-linux-android{_ANDROID_API}-clang++" if self.os == "android" else f"{self.triple}-g++"
        pages = f" {_PAGES}" if self.os == "android" else ""
        return f"{compiler} -shared{pages} … {keep} libpocketphi.a -lm"

    def run(self, *arguments: str, cwd: Path | None = None) -> str:
        """Call the compiler; what it printed. Raises InputError: not installed, or its own first line of complaint."""
        if not self.compiler:
            raise InputError(f"no compiler for {self.os} on {self.arch}: {self.to_install}")
        command = [*self.compiler, *self.flags, *arguments]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
            raise InputError(f"{self.compiler[0]}: {(lines or done.stderr.splitlines() or ['failed'])[0].strip()}")
        return done.stdout

    def command(self, runner: Path, cpu: str | None = None) -> list[str]:
        """How a program for this OS and CPU is started here: as it is, or by qemu.

        cpu: a model that qemu knows (`cortex-a53`, `cortex-a76`, `neoverse-n1`, `max`); None for all that qemu has.
        """
        if self.os == "linux" and self.arch == host_arch():
            return [str(runner)]
        if self.os != "linux":
            raise CannotRun(
                f"a library for {self.os} does not run on this machine; compile it for linux to check it here"
            )
        emulator = shutil.which(f"qemu-{self.arch}")
        if emulator is None:
            raise CannotRun(f"no qemu-{self.arch} to run {self.arch} code on {host_arch()}: apt install qemu-user")
        return [emulator, "-cpu", cpu or "max", "-L", f"/usr/{self.triple}", str(runner)]


_STRICT = ("-Wl,--no-undefined", "-Wl,-z,noexecstack")
_PAGES = "-Wl,-z,max-page-size=16384"


def find_toolchain(system: str = "linux", arch: str | None = None) -> Toolchain:
    """The toolchain for an OS: linux, android or ios. arch: of linux, this machine's by default.

    For linux an InputError says what to install; android without an NDK and ios give one that writes archives only.
    """
    if system == "linux":
        return _linux(arch or host_arch())
    if arch not in (None, "aarch64"):
        raise InputError(f"{system} on {arch}: phones are aarch64")
    if system == "android":
        return _android()
    if system == "ios":
        return Toolchain("ios", "aarch64", "arm64-apple-ios", (), "Xcode links the archive; see its link line")
    raise InputError(f"--os {system}: expected linux, android or ios")


def _linux(arch: str) -> Toolchain:
    if arch not in ("aarch64", "x86_64"):
        raise InputError(f"CPU {arch}: expected aarch64 or x86_64")
    triple = f"{arch}-linux-gnu"
    native = arch == host_arch()
    names = ("c++", "g++", "clang++") if native else (f"{triple}-g++",)
    package = "g++" if native else f"g++-{triple.replace('_', '-')}"
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise InputError(f"no {names[0]}, which links the library for {arch}: apt install {package}")
    return Toolchain("linux", arch, triple, (found,), f"apt install {package}")


def _android() -> Toolchain:
    triple, home = "aarch64-linux-android", os.environ.get("ANDROID_NDK_HOME")
    if not home:
        return Toolchain("android", "aarch64", triple, (), "install the Android NDK and set ANDROID_NDK_HOME")
    name = f"toolchains/llvm/prebuilt/*/bin/{triple}{_ANDROID_API}-clang++"
    found = sorted(Path(home).glob(name))
    if not found:
        raise InputError(f"ANDROID_NDK_HOME={home}: no {name} in it; it should be the folder of an NDK, r23 or newer")
    return Toolchain("android", "aarch64", triple, (str(found[0]),), "", (_PAGES,))
