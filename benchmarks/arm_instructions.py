"""Instructions that an aarch64 CPU executes for a weight: our int4 kernels, llama.cpp's and ONNX Runtime's, under qemu.

A count is the difference between two products and one, by a plugin of qemu's that counts. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import Bar, StepError, print_table, run
from llama_cpp import cross_build
from matrices import Matrix
from products import CHECKED, LLAMA, ORT, OURS
from workers import build_native

COMPILER, TRIPLE = "aarch64-linux-gnu-g++", "aarch64-linux-gnu"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What everyone finds: the CPU that qemu has; its part number and features as /proc/cpuinfo shows them, by which ONNX
    Runtime chooses its kernels; what llama.cpp is compiled for, which is when it chooses."""

    qemu: str
    part: str
    features: str
    arch: str


_OLD = "fp asimd aes pmull sha1 sha2 crc32"
_NEW = f"{_OLD} atomics fphp asimdhp asimdrdm asimddp"
MACHINES = {
    "neon": Machine("cortex-a53", "0xd03", _OLD, "armv8-a"),
    "dotprod": Machine("neoverse-n1", "0xd0c", _NEW, "armv8.2-a+dotprod"),
    "i8mm": Machine("max,sve=off,sme=off", "0xd49", f"{_NEW} i8mm", "armv8.2-a+dotprod+i8mm"),
}
CORES = ["cortex-a55", "cortex-a76", "neoverse-n1"]
BAR = 0.8
COVERED = 0.98
"""Of all instructions: what the blocks that are looked at for cycles execute."""

INSTRUCTION = 4  # bytes
Block = tuple[int, str]
"""A block of instructions: its address, and its bytes in hexadecimal."""


@dataclasses.dataclass(frozen=True)
class Count:
    """instructions and cycles: a weight and row of activations; cycles by core; loop: instructions of the block that
    executes most of them, and share: how many of all."""

    who: str
    isa: str
    rows: int
    instructions: float
    loop: int
    share: float
    cycles: dict[str, float]


class Bench:
    """The programs, and a matrix in everyone's format."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.work: Path = a.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.llama: Path | None = a.llama_cpp
        self.matrix = Matrix(*a.matrix)
        self.plugin = build_native("count_instructions.cc", self.work, "c++", "-shared", "-fPIC")

    def ours(self, isa: str, rows: int) -> tuple[list[str], str]:
        """The kernel that a bundle for this instruction set has."""
        import tvm

        from pocketphi.targets.tvm_arm.isa import find_isa
        from pocketphi.targets.tvm_arm.kernels.matmul import Form, matmul
        from pocketphi.targets.tvm_arm.lower import Schedules
        from pocketphi.targets.tvm_arm.toolchain import find_toolchain

        target = find_isa(isa)
        shape, parts = self.matrix.interleaved(target)
        form = Form(shape, single=rows == 1)
        kernel = matmul("product", target, form, Schedules(target).of(form))
        made = tvm.compile(tvm.IRModule({"product": kernel}), tvm.target.Target(target.target()))
        library = self.work / f"ours-{isa}-{rows}.so"
        made.export_library(str(library), fcompile=find_toolchain("linux", "aarch64").fcompile)
        files = []
        for part in form.parts:
            files.append(self.work / f"ours-{isa}.{part}")
            parts[part].tofile(files[-1])
        packages = Path(tvm.__file__).parent, Path(importlib.import_module("tvm_ffi").__file__ or "").parent
        include = [packages[0] / "include", packages[1] / "include", packages[1] / "3rdparty/dlpack/include"]
        program = build_native("tvm_matmul.cc", self.work, COMPILER, *(f"-I{path}" for path in include), "-ldl")
        return [str(program), str(library), *self._sizes(rows), "COUNT", *map(str, files)], ""

    def ort(self, isa: str, rows: int) -> tuple[list[str], str]:
        """MatMulNBits at accuracy level 4, by the shared library in the aarch64 wheel of the version that is installed."""
        version = importlib.metadata.version("onnxruntime")
        library = self.work / f"libonnxruntime.so.{version}"
        if not library.exists():
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            run([*pip, "--platform", "manylinux_2_28_aarch64", "-d", str(self.work), f"onnxruntime=={version}"])
            with zipfile.ZipFile(next(self.work.glob(f"onnxruntime-{version}-*aarch64.whl"))) as wheel:
                library.write_bytes(wheel.read(f"onnxruntime/capi/{library.name}"))
        model = self.work / "matrix.onnx"
        model.write_bytes(self.matrix.onnx_model(1))
        program = build_native("ort_matmul.cc", self.work, COMPILER, "-ldl")
        return [str(program), str(library), str(model), *self._sizes(rows), "COUNT"], ""

    def llama_cpp(self, isa: str, rows: int) -> tuple[list[str], str]:
        assert self.llama is not None
        libraries = cross_build(self.llama, self.work / f"ggml-{isa}", TRIPLE, MACHINES[isa].arch)
        flags = [f"-I{self.llama.resolve() / 'ggml/include'}", *libraries, "-pthread", "-ldl"]
        program = build_native("ggml_matmul.cc", self.work / f"ggml-{isa}", COMPILER, *flags)
        file, matrix = self.work / "matrix.q4_0", self.matrix
        matrix.write_q4_0(file)
        load = f"load {file} {matrix.columns} {matrix.rows} 1 {rows} 1"
        # `input` is a product as well
        return [str(program), "1"], f"{load}\ninput {self.work / 'x.bin'} {self.work / 'y.bin'}\nrepeat COUNT\n"

    def count(self, who: str, isa: str, rows: int) -> Count:
        print(f"{who}, {isa}, {rows} rows …", file=sys.stderr)
        make: Callable[[str, int], tuple[list[str], str]] = {OURS: self.ours, ORT: self.ort, LLAMA: self.llama_cpp}[who]
        x = self.matrix.input(rows)
        x.tofile(self.work / "x.bin")
        (self.work / "y.bin").unlink(missing_ok=True)
        command, requests = make(isa, rows)
        once, twice = (self._blocks(command, requests, isa, number) for number in (1, 2))
        error = self.matrix.error(x, np.fromfile(self.work / "y.bin", np.float32).reshape(rows, -1))
        if not error < CHECKED:
            raise StepError(f"{who}, {isa}: off by {error:.1%}; expected {CHECKED:.0%} at most")
        twice.subtract(once)
        executed = sum(size_of(data) * times for (_, data), times in twice.items())
        top = sorted(joined(twice), key=lambda item: -size_of(item[0]) * item[1])
        products = self.matrix.weights * rows
        cycles = {core: cycles_of(top, executed, core) / products for core in CORES}
        loop, times = top[0]
        (self.work / f"{who}-{isa}-{rows}.s").write_text(disassembled(loop), "utf-8")
        share = size_of(loop) * times / executed
        return Count(who, isa, rows, executed / products, size_of(loop), share, cycles)

    def _sizes(self, rows: int) -> list[str]:
        files = [str(self.work / name) for name in ("x.bin", "y.bin")]
        return [*map(str, (self.matrix.columns, self.matrix.rows, rows)), *files]

    def _blocks(self, command: list[str], requests: str, isa: str, count: int) -> Counter[Block]:
        """How often each block runs."""
        out, cpu = self.work / "counted", MACHINES[isa].qemu
        qemu = ["qemu-aarch64", "-cpu", cpu, "-L", str(self._root(isa)), "-plugin", f"{self.plugin},out={out}"]
        words = [str(count) if word == "COUNT" else word for word in command]
        text = requests.replace("COUNT", str(count))
        done = subprocess.run([*qemu, *words], input=text, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise StepError(f"{Path(command[0]).name} under qemu -cpu {cpu}: {said}")
        found: Counter[Block] = Counter()
        for line in out.read_text().splitlines():
            times, address, data = line.split()
            found[int(address, 16), data] += int(times)
        return found

    def _root(self, isa: str) -> Path:
        """What the program sees below /, where it differs from this machine's: libraries, and a CPU of one core."""
        root, machine = self.work / f"root-{isa}", MACHINES[isa]
        cpus = root / "sys/devices/system/cpu"
        for folder in (root / "proc", cpus):
            folder.mkdir(parents=True, exist_ok=True)
        if not (root / "lib").is_symlink():
            (root / "lib").symlink_to(f"/usr/{TRIPLE}/lib")
        shown = {"processor": "0", "Features": machine.features, "CPU implementer": "0x41", "CPU architecture": "8"}
        shown |= {"CPU variant": "0x3", "CPU part": machine.part, "CPU revision": "1"}
        (root / "proc/cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in shown.items()) + "\n")
        for name in ("possible", "present"):
            (cpus / name).write_text("0\n")
        return root


def size_of(data: str) -> int:
    """Instructions in a block, or in several."""
    return len(data) // 2 // INSTRUCTION


def joined(blocks: Counter[Block]) -> list[tuple[str, int]]:
    """Blocks with how often they run; those that follow each other in memory and run equally often are one."""
    at = {address: (data, times) for (address, data), times in sorted(blocks.items()) if times > 0}
    found: list[tuple[str, int]] = []
    for address in sorted(at):
        data, times = at.pop(address, ("", 0))
        while (end := address + len(data) // 2) in at and at[end][1] == times:
            data += at.pop(end)[0]
        if data:
            found.append((data, times))
    return found


def cycles_of(blocks: list[tuple[str, int]], executed: int, core: str) -> float:
    """llvm-mca's cycles of the blocks that execute nearly all instructions, each as a loop of its own."""
    total, seen = 0.0, 0
    for data, times in blocks:
        if seen >= COVERED * executed:
            break
        seen += size_of(data) * times
        total += times * _block_cycles(data, core)
    return total * executed / seen


TARGET = "-mattr=+dotprod,+i8mm,+fullfp16"


def disassembled(data: str) -> str:
    listed = " ".join(f"0x{data[i : i + 2]}" for i in range(0, len(data), 2))
    command = ["llvm-mc", "--disassemble", "--triple=aarch64", TARGET]
    return subprocess.run(command, input=listed, capture_output=True, text=True, check=True).stdout


_KNOWN: dict[tuple[str, str], float] = {}


def _block_cycles(data: str, core: str) -> float:
    """Of one pass through a block, in the middle of many. NaN where llvm-mca has no model of an instruction."""
    if (data, core) not in _KNOWN:
        rounds = 100
        command = ["llvm-mca", "--mtriple=aarch64", TARGET, f"-mcpu={core}", f"-iterations={rounds}"]
        said = subprocess.run(command, input=disassembled(data), capture_output=True, text=True).stdout
        found = re.search(r"Total Cycles:\s+(\d+)", said)
        _KNOWN[data, core] = int(found[1]) / rounds if found else float("nan")
    return _KNOWN[data, core]


def bars(counts: list[Count]) -> list[Bar]:
    found = []
    for ours in counts:
        peers = [c for c in counts if c.who != OURS and (c.isa, c.rows) == (ours.isa, ours.rows)]
        if ours.who == OURS and peers:
            best = min(peers, key=lambda c: c.instructions)
            title = f"{ours.isa}, {ours.rows} row{'s' * (ours.rows > 1)}: instructions a weight / {best.who}'s"
            unbound = "" if ours.rows == 1 else "no limit"
            found.append(Bar(title, ours.instructions / best.instructions, BAR, unbound=unbound))
    return found


def missing() -> str | None:
    """What is not installed, and how to."""
    needed = {"qemu-aarch64": "qemu-user", COMPILER: "g++-aarch64-linux-gnu", "llvm-mca": "llvm", "llvm-mc": "llvm"}
    absent = [f"{program}: apt install {package}" for program, package in needed.items() if not shutil.which(program)]
    return "; ".join(absent) or None


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--llama-cpp", type=Path, metavar="DIR", help="a llama.cpp source tree (default: left out)")
    p.add_argument("--work", type=Path, default=Path("build/arm_instructions"), help="default %(default)s")
    p.add_argument("--isa", nargs="+", choices=MACHINES, default=["dotprod", "i8mm"], help="default dotprod i8mm")
    p.add_argument("--rows", type=int, nargs="+", default=[1, 64], help="of activations (default 1 64)")
    p.add_argument("--matrix", type=int, nargs=2, metavar=("N", "K"), default=(3072, 3072), help="default 3072 3072")
    p.add_argument("--without", nargs="+", choices=[ORT, LLAMA], default=[], help="leave a peer out")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return p.parse_args()


def main() -> int:
    a = arguments()
    if absent := missing():
        print(f"FAILED: {absent}", file=sys.stderr)
        return 1
    names = [n for n in (OURS, ORT, LLAMA) if n not in a.without and (n != LLAMA or a.llama_cpp)]
    counts: list[Count] = []
    try:
        bench = Bench(a)
        for isa in a.isa:
            counts += [bench.count(who, isa, rows) for rows in a.rows for who in names]
    except StepError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    head = ["who", "CPU has", "rows", "instructions", "in the loop", "its share", *(f"cycles {c}" for c in CORES), ""]
    rows = [
        [
            *(c.who, c.isa, str(c.rows), f"{c.instructions:.4f}", str(c.loop), f"{c.share:.0%}"),
            *(f"{c.cycles[core]:.4f}" for core in CORES),
            "",
        ]
        for c in counts
    ]
    print_table(f"A weight and row of activations, {a.matrix[1]}→{a.matrix[0]}, int4 block 32", head, rows)
    limits = bars(counts)
    print_table("Limits", ["figure", "measured", "limit", ""], [bar.row() for bar in limits])
    if a.json:
        figures = {"counts": [dataclasses.asdict(c) for c in counts], "limits": [bar.as_json() for bar in limits]}
        a.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return int(any(bar.missed for bar in limits))


if __name__ == "__main__":
    sys.exit(main())
