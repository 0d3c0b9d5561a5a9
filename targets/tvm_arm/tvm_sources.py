"""TVM's sources, which its two wheels carry and do not offer to anybody: what the RPC server is built of.

`rpc/tvm_sources.sha256` lists each file with its SHA-256, so that a wheel with other ones is named before a compiler fails over
it. `rpc/shim` has the few headers that the wheels lack. For another version of TVM: change the pins in setup.cfg, build the
server, and write the table anew from what the compiler read (`g++ -MD`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path

from pocketphi.graph.foreign import check_version, other_parts

RPC = Path(__file__).with_name("rpc")
TABLE = RPC / "tvm_sources.sha256"
WHEELS = {"tvm": ("apache-tvm", "0.27.0.post1"), "tvm_ffi": ("apache-tvm-ffi", "0.1.14.post1")}
"""Package → its distribution and the version that the table is of."""

FFI = (
    *("backtrace", "dtype", "error", "function", "init_once", "object", "tensor"),
    *(f"extra/{name}" for name in ("env_context", "library_module", "library_module_dynamic_lib", "module")),
)
RUNTIME = (
    *("cpu_device_api", "device_api", "module", "timer", "workspace_pool"),
    *(f"rpc/rpc_{name}" for name in ("channel", "endpoint", "local_session", "module", "session")),
    "tensor",  # last: it ends with a `using namespace`
)
UNITS = {"ffi": [f"ffi/{name}.cc" for name in FFI], "tvm": [f"src/runtime/{name}.cc" for name in RUNTIME]}
"""Sources compiled as one: their headers, which take most of the time, are read once."""

INCLUDES = (".", "include")
DEFINES = (
    *("TVM_FFI_USE_LIBBACKTRACE=0", "TVM_FFI_BACKTRACE_ON_SEGFAULT=0"),
    *("TVM_FFI_EXPORTS", "TVM_RUNTIME_EXPORTS"),
)


def listed() -> dict[str, str]:
    """File → SHA-256. A file is named by its wheel's package and its place there."""
    lines = (line.split("  ") for line in TABLE.read_text("utf-8").splitlines())
    return {path: digest for digest, path in lines}


def copy_sources(folder: Path) -> None:
    """Write the listed files, the shim and the units. Raises InputError for a wheel that is missing or has others."""
    for name, version in WHEELS.values():
        check_version(name, version, "tvm")
    packages = {name: _folder_of(name) for name in WHEELS}
    for name, digest in listed().items():
        package, _, path = name.partition("/")
        place = path.removeprefix("src/") if package == "tvm_ffi" else path
        _copy(packages[package] / path, name, digest, folder / place)
    shutil.copytree(RPC / "shim", folder, dirs_exist_ok=True)
    for unit, sources in UNITS.items():
        (folder / f"{unit}.cc").write_text("".join(f'#include "{source}"\n' for source in sources))


def _folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise other_parts(*WHEELS[package], f"the package {package} is missing")
    return Path(found.origin).parent


def _copy(source: Path, name: str, digest: str, target: Path) -> None:
    data = source.read_bytes() if source.is_file() else None
    if data is None or hashlib.sha256(data).hexdigest() != digest:
        state = "is missing" if data is None else "is another one"
        raise other_parts(*WHEELS[name.partition("/")[0]], f"{name}, of which the RPC server is built, {state}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
