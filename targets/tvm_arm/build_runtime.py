"""Build the C runtime for a toolchain: TVM's own sources from its wheel with our C API, one small library.

TVM's wheel ships its runtime's sources; `runtime/shim` holds the few headers that it lacks. Everything else of TVM's runtime
(RPC, other devices, profiling, its K/V caches) stays out. Results are kept in the user's cache by all that decides them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pocketphi.artifacts.folder import put, workspace
from pocketphi.graph.errors import InputError
from pocketphi.graph.places import default_folder
from pocketphi.graph.threads import in_threads
from pocketphi.targets.tvm_arm.toolchain import SOURCES, Toolchain

_FFI = "backtrace object error function tensor dtype container init_once custom_allocator"
_FFI_EXTRA = (
    "module library_module library_module_system_lib library_module_dynamic_lib env_context env_c_api json_parser "
    "json_writer"
)
_TVM = (
    "cpu_device_api device_api file_utils logging module thread_pool threading_backend workspace_pool memory/memory_manager "
    "vm/builtin vm/bytecode vm/executable vm/vm tensor"  # tensor last: it ends with a `using namespace`
)
_RPC = (
    "timer rpc/rpc_channel rpc/rpc_endpoint rpc/rpc_local_session rpc/rpc_session rpc/rpc_module rpc/rpc_server_env "
    "rpc/rpc_device_api"
)
_UNITS = {
    "ffi": [*(f"ffi/{name}" for name in _FFI.split()), *(f"ffi/extra/{name}" for name in _FFI_EXTRA.split())],
    "tvm": [f"src/runtime/{name}" for name in _TVM.split()],
    "ours": ["cpu", "bundle", "pocketphi_runtime"],
}
"""Sources compiled as one: their headers, which take most of the time, are read once."""

_SERVER = {
    "ffi": _UNITS["ffi"],
    "tvm": [f"src/runtime/{name}" for name in f"{_RPC} {_TVM}".split()],
    "ours": ["rpc_server"],
}
"""Of the RPC server, which stands between a board and the tuner."""

# quoted includes climb from a source's folder: from the last two they arrive in the shim
_INCLUDES = (".", "include", "shim", "shim/tvm", "shim/tvm/support")
_DEFINES = (
    "TVM_FFI_USE_LIBBACKTRACE=0",
    "TVM_FFI_BACKTRACE_ON_SEGFAULT=0",
    "TVM_FFI_EXPORTS",
    "TVM_RUNTIME_EXPORTS",
)
_OPTIONS = ("-Os", "-w", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffunction-sections", "-fdata-sections")
"""-Os: three quarters of the size of -O2 and the same time a call, most of which is spent in the model."""

_STATIC = ("-static-libstdc++", "-static-libgcc", "-Wl,-s")
_LINK = ("-shared", "-Wl,-soname,libpocketphi.so", "-Wl,--gc-sections", "-Wl,--no-undefined", *_STATIC)

_CMAKE = f"""# libpocketphi.a: link it with libmodel.a; see pocketphi_runtime.h.
cmake_minimum_required(VERSION 3.18)
project(pocketphi CXX)
add_library(pocketphi STATIC {" ".join(f"{name}.cc" for name in _UNITS)})
set_target_properties(pocketphi PROPERTIES CXX_STANDARD 17 POSITION_INDEPENDENT_CODE ON)
target_include_directories(pocketphi PUBLIC . PRIVATE {" ".join(_INCLUDES[1:])})
target_compile_definitions(pocketphi PRIVATE {" ".join(_DEFINES)})
target_compile_options(pocketphi PRIVATE {" ".join(_OPTIONS)})
"""

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
    """The runtime for `toolchain`, from the cache or built in about half a minute.

    cache: folder; the user's by default. Raises InputError if TVM or the compiler is missing or the compile fails.
    """
    folder = (cache or default_folder()) / "tvm-runtime" / f"{toolchain.os}-{toolchain.arch}-{_key(toolchain)}"
    files = RuntimeFiles(folder / "libpocketphi.so", folder / "libpocketphi.a", folder / "pocketphi-runner")
    if not files.runner.is_file():
        _LOG.info("building the TVM runtime for %s on %s: half a minute, once", toolchain.os, toolchain.arch)
        with workspace(folder, _INSTEAD) as temporary:
            put(_build(toolchain, temporary), folder, temporary, replace=True)
    return files


def build_rpc_server(toolchain: Toolchain, cache: Path | None = None) -> Path:
    """The program `pocketphi-rpc` for a board: TVM's RPC server without Python. As `build_runtime`."""
    path = (cache or default_folder()) / "tvm-rpc" / f"{toolchain.os}-{toolchain.arch}-{_key(toolchain)}"
    if not path.is_file():
        _LOG.info("building the RPC server for %s on %s: half a minute, once", toolchain.os, toolchain.arch)
        with workspace(path, _INSTEAD) as folder:
            objects = _compile(toolchain, folder, _SERVER)
            toolchain.run("-Wl,--gc-sections", *_STATIC, *objects, *_libraries(toolchain), "-o", "rpc", cwd=folder)
            os.replace(folder / "rpc", path)
    return path


def export_sources(folder: Path, units: Mapping[str, list[str]] = _UNITS) -> None:
    """Write all that the runtime is built of, with a CMakeLists.txt, for a machine that has the compiler: Xcode, an NDK."""
    tvm, ffi = _package("tvm"), _package("tvm_ffi")
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    for include in (tvm / "include", ffi / "include", ffi / "3rdparty/dlpack/include"):
        shutil.copytree(include, folder / "include", dirs_exist_ok=True)
    for path in _listed(tvm, "src/runtime", units["tvm"]):
        _copy(path, folder / path.relative_to(tvm))
    for path in _listed(ffi / "src", "ffi", units["ffi"]):
        _copy(path, folder / path.relative_to(ffi / "src"))
    for name, sources in units.items():
        (folder / f"{name}.cc").write_text("".join(f'#include "{source}.cc"\n' for source in sources))
    (folder / "CMakeLists.txt").write_text(_CMAKE)
    for name in ("LICENSE", "NOTICE"):
        shutil.copy(tvm / name, folder / f"{name}.tvm")


def _listed(package: Path, root: str, sources: list[str]) -> list[Path]:
    """Sources, and the headers that lie beside them, and in `minrpc` of the RPC's."""
    paths = [package / f"{source}.cc" for source in sources]
    folders = {path.parent for path in paths} | {path.parent / "minrpc" for path in paths} | {package / root}
    return paths + [header for at in folders for header in at.glob("*.h")]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _compile(toolchain: Toolchain, folder: Path, units: Mapping[str, list[str]]) -> list[str]:
    """Names of the objects in `folder`, one for each unit of sources."""
    export_sources(folder, units)
    flags = [
        "-std=c++17",
        "-fPIC",
        *_OPTIONS,
        *(f"-D{define}" for define in _DEFINES),
        *(f"-I{at}" for at in _INCLUDES),
    ]

    def compile_unit(name: str, _: object) -> None:
        toolchain.run(*flags, "-c", f"{name}.cc", "-o", f"{name}.o", cwd=folder)

    in_threads(list(units), compile_unit, lambda _: None)
    return [f"{name}.o" for name in units]


def _libraries(toolchain: Toolchain) -> list[str]:
    return ["-lm", "-ldl", *(["-pthread"] if toolchain.os == "linux" else [])]


def _build(toolchain: Toolchain, folder: Path) -> Path:
    objects = _compile(toolchain, folder, _UNITS)
    result = folder / "result"
    result.mkdir()
    toolchain.static_archive([folder / name for name in objects], result / "libpocketphi.a")
    (folder / "exports").write_text("{ global: pocketphi_*; local: *; };\n")
    link = [*_LINK, "-Wl,--version-script=exports", *objects, *_libraries(toolchain)]
    toolchain.run(*link, "-o", "result/libpocketphi.so", cwd=folder)
    runner = ["-std=c++17", "-O2", "-Lresult", "-Wl,-rpath,$ORIGIN", *_STATIC, "runner.cc", "-lpocketphi"]
    toolchain.run(*runner, "-o", "result/pocketphi-runner", cwd=folder)
    return result


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"{name} is not installed: pip install 'pocketphi[tvm]'")
    return Path(spec.origin).parent


def _key(toolchain: Toolchain) -> str:
    """Of everything that decides the result."""
    _package("tvm")
    said = toolchain.run("--version")
    parts = [said.encode(), *(text.encode() for text in (*toolchain.compiler, *toolchain.flags))]
    parts += [version(name).encode() for name in ("apache-tvm", "apache-tvm-ffi")]
    ours = [Path(__file__), *sorted(path for path in SOURCES.rglob("*") if path.is_file())]
    parts += [path.read_bytes() for path in ours]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
