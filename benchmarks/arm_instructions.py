"""Instructions that an aarch64 CPU executes for a weight: our int4 kernels, llama.cpp's and ONNX Runtime's, under qemu.

A count is the difference between two products and one, by a plugin of qemu's that counts. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import preflight
from common import Bar, StepError, judge, print_table, run
from emulated import MACHINES, TRIPLE, Block, blocks_of, cycles_of, disassembled, joined, size_of
from llama_cpp import cross_build
from matrices import Matrix
from products import CHECKED, LLAMA, ORT, OURS
from workers import build_native

COMPILER = f"{TRIPLE}-g++"
CORES = ["cortex-a55", "cortex-a76", "neoverse-n1"]
BAR = 0.8


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
        once, twice = (self._blocks(command, requests, isa, count) for count in (1, 2))
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

    def _blocks(self, command: list[str], requests: str, isa: str, count: int) -> Counter[Block]:
        words = [str(count) if word == "COUNT" else word for word in command]
        return blocks_of(words, requests.replace("COUNT", str(count)), MACHINES[isa], self.plugin, self.work)

    def _sizes(self, rows: int) -> list[str]:
        files = [str(self.work / name) for name in ("x.bin", "y.bin")]
        return [*map(str, (self.matrix.columns, self.matrix.rows, rows)), *files]


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
    preflight.require(__file__)
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
    return judge(bars(counts), a.json, {"counts": [dataclasses.asdict(c) for c in counts]})


if __name__ == "__main__":
    sys.exit(main())
