"""What the benchmarks need beside pocketphi itself, and how it is installed where it is missing.

`python benchmarks/preflight.py` looks for all of it, with names of scripts for theirs alone. A script asks for its own before
it begins.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Need:
    """name: what is needed; there: whether it is; install: the command that installs it, in the folder of the project
    (`.venv/bin/pip` is the pip of the environment that runs the script)."""

    name: str
    there: Callable[[], bool]
    install: str


def _package(name: str, install: str) -> Need:
    return Need(f"Python package {name}", lambda: importlib.util.find_spec(name) is not None, install)


def _program(name: str, package: str) -> Need:
    return Need(f"program {name}", lambda: shutil.which(name) is not None, f"apt-get install {package}")


def _extra(package: str, extra: str) -> Need:
    return _package(package, f".venv/bin/pip install -e '.[{extra}]'")


_ARM = "aarch64-linux-gnu-g++"
ORT, GENAI = _extra("onnxruntime", "ort"), _extra("onnxruntime_genai", "ort")
TVM, COREML = _extra("tvm", "tvm"), _extra("coremltools", "coreml")
OF_BENCHMARKS = ".venv/bin/pip install -r benchmarks/requirements.txt"
BUILDER = [GENAI, *(_package(name, OF_BENCHMARKS) for name in ("onnx_ir", "tqdm"))]
GNU_TIME = Need("GNU time (/usr/bin/time)", Path("/usr/bin/time").exists, "apt-get install time")
COMPILER = _program("c++", "g++")
QEMU, CROSS = _program("qemu-aarch64", "qemu-user"), _program(_ARM, "g++-aarch64-linux-gnu")
CMAKE = _program("cmake", "cmake")
_GUEST = FOLDER.parent / "build" / "aarch64" / "site"
SENTENCEPIECE = _package("sentencepiece", OF_BENCHMARKS)

NEEDS: dict[str, list[Need]] = {
    "compile_full.py": [GNU_TIME, ORT],
    "run_ort.py": [ORT, GENAI],
    "run_tvm.py": [TVM, GENAI, COMPILER],
    "footprint.py": [ORT],
    "quality.py": [ORT, TVM, COREML, COMPILER],
    "budgets.py": [ORT, TVM, COREML, COMPILER],
    "tvm_kernels.py": [TVM, ORT, COMPILER],
    "busy_cpu.py": [TVM, COMPILER],
    "sparse_attention.py": [TVM],
    "caches.py": [ORT, TVM],
    "long_context.py": [ORT, TVM, COREML, COMPILER],
    "drafts.py": [TVM, COMPILER],
    "drafts_genai.py": [GENAI],
    "prefix.py": [TVM, COMPILER],
    "json_answers.py": [_extra("llguidance", "json"), _package("jsonschema", ".venv/bin/pip install '.[dev]'")],
    "experts.py": [TVM, COMPILER],
    "decode_formats.py": [TVM, COMPILER],
    "policies.py": [],
    "retrieval.py": [ORT],
    "coreml_zoo.py": [COREML],
    "arm_instructions.py": [TVM, QEMU, CROSS, CMAKE, _program("llvm-mca", "llvm"), _program("llvm-mc", "llvm")],
    "aarch64/run.py": [ORT, Need("an emulated Debian in build/aarch64", _GUEST.exists, "make build/aarch64")],
    "aarch64/jni.py": [TVM, QEMU, CROSS, _program("javac", "default-jdk-headless")],
}
"""What each script cannot do without."""

STEPS: dict[str, list[Need]] = {"builder": BUILDER, "llama.cpp": [SENTENCEPIECE]}
"""What steps need besides."""


WITH_STEPS = ("compile_full.py", "run_ort.py", "run_tvm.py")


def missing(script: str, steps: Collection[str] = ()) -> list[Need]:
    """What is not there of what a script, and these steps of it, need."""
    needs = [*NEEDS[script], *(need for step in steps for need in STEPS.get(step, ()))]
    return [need for need in dict.fromkeys(needs) if not need.there()]


def require(file: str, steps: Collection[str] = ()) -> None:
    """End with exit code 2 where something is missing that a script needs, and say what and how to install it.

    file: the script's `__file__`
    """
    absent = missing(str(Path(file).resolve().relative_to(FOLDER)), steps)
    for need in absent:
        print(f"{need.name} is missing: {need.install}", file=sys.stderr)
    if absent:
        sys.exit(2)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"of {', '.join(NEEDS)}; default: all")
    scripts = p.parse_args().scripts or list(NEEDS)
    unknown = [script for script in scripts if script not in NEEDS]
    if unknown:
        p.error(f"{unknown[0]}: not one of {', '.join(NEEDS)}")
    found = {script: missing(script, STEPS if script in WITH_STEPS else ()) for script in scripts}
    for script, absent in found.items():
        print(f"{script}: {'all there' if not absent else ''}")
        for need in absent:
            print(f"  {need.name} is missing: {need.install}")
    return 2 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
