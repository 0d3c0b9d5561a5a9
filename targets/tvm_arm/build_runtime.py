"""Build what is C++ for a toolchain: the runtime, of the sources in `runtime/` alone, and the RPC server, with TVM's sources.

Results are kept in the user's cache by all that decides them, with the digests of their files: what is damaged is built again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pocketphi.artifacts.bundle import file_digest
from pocketphi.artifacts.folder import put, workspace
from pocketphi.graph.errors import CannotWrite
from pocketphi.graph.places import default_folder
from pocketphi.graph.sealed import read_sealed, write_sealed
from pocketphi.graph.threads import in_threads
from pocketphi.targets.tvm_arm import tvm_sources
from pocketphi.targets.tvm_arm.toolchain import SOURCES, Toolchain
from pocketphi.targets.tvm_arm.tvm_sources import DEFINES, INCLUDES, RPC, UNITS, copy_sources

RUNTIME = (
    "adapter",
    "backend",
    "bundle",
    "bytecode",
    "cpu",
    "draft_model",
    "json",
    "library",
    "model",
    "pocketphi_runtime",
    "pool",
    "session",
    "vm",
)
"""What the library is made of: sources in `runtime/`. Beside them lie the runner and a library's glue."""

_OPTIONS = ("-Os", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffunction-sections", "-fdata-sections")
"""-Os: smaller than -O2 and the same time a call, most of which is spent in the model."""

_STATIC = ("-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections", "-Wl,-s")
_LINK = ("-shared", "-Wl,-soname,libpocketphi.so", "-Wl,--no-undefined", *_STATIC)

_CMAKE = f"""# libpocketphi.a: link it with libmodel.a; see pocketphi_runtime.h.
cmake_minimum_required(VERSION 3.18)
project(pocketphi CXX)
add_library(pocketphi STATIC {" ".join(f"{name}.cc" for name in RUNTIME)})
set_target_properties(pocketphi PROPERTIES CXX_STANDARD 17 POSITION_INDEPENDENT_CODE ON)
target_include_directories(pocketphi PUBLIC .)
target_compile_options(pocketphi PRIVATE {" ".join(_OPTIONS)})
"""

_LISTS = "CMakeLists.txt"
_BUILT = "built"  # what a folder held when it was built
_INSTEAD = "set POCKETPHI_CACHE to a folder that can be written"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimeFiles:
    """library: for an app that loads model.so; archive: for one that links the model in; runner: what the host starts."""

    library: Path
    archive: Path
    runner: Path
    header: Path = SOURCES / "pocketphi_runtime.h"


def build_runtime(toolchain: Toolchain, cache: Path | None = None) -> RuntimeFiles:
    """The runtime for `toolchain`, from the cache or built in some seconds.

    cache: folder; the user's by default. Raises InputError if the compiler is missing or the compile fails.
    """
    folder = (cache or default_folder()) / "tvm-runtime" / decided_by(toolchain, Path(__file__))
    built = f"the runtime for {toolchain.os} on {toolchain.arch}: some seconds"
    _kept(folder, built, lambda temporary: _build(toolchain, temporary))
    return RuntimeFiles(folder / "libpocketphi.so", folder / "libpocketphi.a", folder / "pocketphi-runner")


def build_rpc_server(toolchain: Toolchain, cache: Path | None = None) -> Path:
    """The program `pocketphi-rpc` for a board: TVM's RPC server without Python. As `build_runtime`, in half a minute.

    Raises InputError if TVM is missing, or another one than its sources were taken from.
    """
    recipe = [Path(__file__), Path(tvm_sources.__file__), *sorted(path for path in RPC.rglob("*") if path.is_file())]
    folder = (cache or default_folder()) / "tvm-rpc" / decided_by(toolchain, *recipe)
    built = f"the RPC server for {toolchain.os} on {toolchain.arch}: half a minute"
    return _kept(folder, built, lambda temporary: _build_rpc_server(toolchain, temporary)) / "pocketphi-rpc"


def export_sources(folder: Path) -> None:
    """Write all that the runtime is built of, with a CMakeLists.txt, for a machine that has the compiler: Xcode, an NDK."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in _exported():
        shutil.copyfile(path, folder / path.name)
    (folder / _LISTS).write_text(_CMAKE)


def source_names() -> list[str]:
    """The files that `export_sources` writes."""
    return sorted([*(path.name for path in _exported()), _LISTS])


def _exported() -> list[Path]:
    return [*SOURCES.glob("*.h"), *(SOURCES / f"{name}.cc" for name in RUNTIME), SOURCES / "runner.cc"]


def compile_sources(
    toolchain: Toolchain, folder: Path, names: Iterable[str] = RUNTIME, options: tuple[str, ...] = _OPTIONS
) -> list[Path]:
    """Objects in `folder` of sources in `runtime/`, which are named without `.cc`. options: beside the toolchain's."""
    return _compile(toolchain, folder, [SOURCES / f"{name}.cc" for name in names], options)


def _compile(toolchain: Toolchain, folder: Path, sources: list[Path], options: Iterable[str]) -> list[Path]:
    by_name = {source.stem: source for source in sources}

    def compile_one(name: str, _: object) -> None:
        toolchain.run("-std=c++17", "-fPIC", *options, "-c", str(by_name[name]), "-o", f"{name}.o", cwd=folder)

    in_threads(list(by_name), compile_one, lambda _: None)
    return [folder / f"{name}.o" for name in by_name]


def _libraries(toolchain: Toolchain) -> list[str]:
    """Of the system."""
    return ["-lm", "-ldl", *(["-pthread"] if toolchain.os == "linux" else [])]


def _build(toolchain: Toolchain, folder: Path) -> Path:
    objects = compile_sources(toolchain, folder)
    result = folder / "result"
    result.mkdir()
    toolchain.static_archive(objects, result / "libpocketphi.a")
    (folder / "exports").write_text("{ global: pocketphi_*; local: *; };\n")
    link = [*_LINK, "-Wl,--version-script=exports", *map(str, objects), *_libraries(toolchain)]
    toolchain.run(*link, "-o", "result/libpocketphi.so", cwd=folder)
    runner = [
        "-std=c++17",
        "-O2",
        "-Lresult",
        "-Wl,-rpath,$ORIGIN",
        *_STATIC,
        str(SOURCES / "runner.cc"),
        "-lpocketphi",
    ]
    toolchain.run(*runner, "-o", "result/pocketphi-runner", cwd=folder)
    return result


def _build_rpc_server(toolchain: Toolchain, folder: Path) -> Path:
    copy_sources(folder)
    options = [*_OPTIONS, "-w", *(f"-D{name}" for name in DEFINES), *(f"-I{folder / at}" for at in INCLUDES)]
    sources = [*(folder / f"{unit}.cc" for unit in UNITS), RPC / "rpc_server.cc"]
    objects = [
        *_compile(toolchain, folder, sources, (*options, f"-I{SOURCES}")),
        *compile_sources(toolchain, folder, ("cpu", "pool")),
    ]
    (folder / "result").mkdir()
    program = [*_STATIC, *map(str, objects), *_libraries(toolchain), "-o", "result/pocketphi-rpc"]
    toolchain.run(*program, cwd=folder)
    return folder / "result"


def _kept(folder: Path, built: str, build: Callable[[Path], Path]) -> Path:
    """The folder, from the cache; built where it is missing, or where a file is not as it was built.

    built: what it is and how long it takes, for the log; build: makes it inside a folder that it is given
    """
    if not _is_as_built(folder):
        _LOG.info("building %s, once", built)
        with workspace(folder, _INSTEAD) as temporary:
            made = build(temporary)
            try:
                write_sealed(made / _BUILT, _state(made))
            except OSError as error:
                raise CannotWrite(f"{folder}: cannot be written: {error.strerror}", _INSTEAD) from None
            if not _is_as_built(folder):  # another process may have put it there meanwhile, and run it by now
                put(made, folder, temporary, replace=True)
    return folder


def _is_as_built(folder: Path) -> bool:
    try:
        built = read_sealed(folder / _BUILT)
        return built is not None and built[0] == _state(folder)
    except OSError:
        return False


def _state(folder: Path) -> dict[str, list[str | bool]]:
    """SHA-256 of each file, and whether it can be run, by name."""
    files = sorted(path for path in folder.glob("*") if path.name != _BUILT and path.is_file())
    return {path.name: [file_digest(path), os.access(path, os.X_OK)] for path in files}


def decided_by(toolchain: Toolchain, *recipe: Path) -> str:
    """A name for what a toolchain makes of our sources, of everything that decides it. recipe: files beside the sources."""
    said = toolchain.run("--version") if toolchain.links else ""
    parts = [said.encode(), *(text.encode() for text in (*toolchain.compiler, *toolchain.flags))]
    ours = [*recipe, *sorted(path for path in SOURCES.rglob("*") if path.is_file())]
    parts += [path.read_bytes() for path in ours]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return f"{toolchain.os}-{toolchain.arch}-{digest.hexdigest()[:16]}"
