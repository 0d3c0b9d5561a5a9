"""Who multiplies with int4 matrices, each in a process of its own: our kernels, ONNX Runtime's, llama.cpp's.

A worker answers the verbs that native/ggml_matmul.cc describes. Products go through COPIES matrices of the same size, one
after the other, so that weights come from memory as those of a model's layers do.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import link_flags
from matrices import BLOCK, Array, Matrix
from workers import Worker, build_native, serve

OURS, ORT, LLAMA = "pocketphi", "onnxruntime", "llama.cpp"
COLD = 128 << 20
"""Bytes of weights that GEMVs go through before they come to the first again: more than a last-level cache holds."""
CHECKED = 0.02
"""Relative error at most: activations rounded to int8 in blocks of 32 give about 0.5 %."""


class Products(ABC):
    """A worker's side, in Python."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.next = 0

    @abstractmethod
    def load(self, matrix: Matrix, copies: int, m: int, group: int) -> str:
        """Hold `copies` matrices for products with m rows, `group` of them a step. Returns what says how they lie."""

    @abstractmethod
    def step(self, number: int) -> None:
        """The products of step `number`."""

    @abstractmethod
    def product(self, x: Array) -> Array:
        """x · Wᵀ with the first matrix."""

    def answer(self, verb: str, words: list[str]) -> dict[str, Any]:
        if verb == "load":
            columns, rows, copies, m, group = map(int, words[1:])
            self.next, self.steps, self.group = 0, copies // group, group
            return {"buffer": self.load(Matrix(rows, columns), copies, m, group)}
        if verb == "input":
            x = np.fromfile(words[0], np.float32)
            self.product(x).tofile(words[1])
            return {}
        begin, taken, count = time.perf_counter(), 0.0, 0
        while not count or taken < float(words[0]):
            self.step(self.next % self.steps)
            self.next, count = self.next + 1, count + self.group
            taken = time.perf_counter() - begin
        return {"seconds": taken / count}


class OurProducts(Products):
    """Our kernels for this machine, as `--target tvm-arm --os host` schedules and calls them: a prompt in chunks."""

    def load(self, matrix: Matrix, copies: int, m: int, group: int) -> str:
        import tvm

        from pocketphi.targets.tvm_arm.kernels.matmul import Form, matmul
        from pocketphi.targets.tvm_arm.kv_cache import CHUNK
        from pocketphi.targets.tvm_arm.lower import Schedules
        from pocketphi.targets.tvm_arm.platform import host_isa
        from pocketphi.targets.tvm_arm.tune.measure import use_threads

        use_threads(self.threads)
        isa = host_isa()
        shape, parts = matrix.interleaved(isa)
        form = Form(shape, single=m == 1)
        module = tvm.IRModule({"product": matmul("product", isa, form, Schedules(isa).of(form))})
        self.kernel = tvm.compile(module, tvm.target.Target(isa.target()))["product"]
        self.weights = [[tvm.runtime.tensor(parts[part]) for part in form.parts] for _ in range(copies)]
        sizes = [min(CHUNK, m - start) for start in range(0, m, CHUNK)]
        self.x = [tvm.runtime.tensor(np.zeros((size, matrix.columns), np.float32)) for size in sizes]
        self.y = [tvm.runtime.tensor(np.zeros((size, matrix.rows), np.float32)) for size in sizes]
        return isa.name

    def step(self, number: int) -> None:
        for weights in self.weights[number * self.group : (number + 1) * self.group]:
            for x, y in zip(self.x, self.y):
                self.kernel(x, *weights, y)

    def product(self, x: Array) -> Array:
        rows = x.reshape(-1, self.x[0].shape[1])
        for chunk, values in zip(self.x, np.split(rows, np.cumsum([c.shape[0] for c in self.x])[:-1])):
            chunk.copyfrom(np.ascontiguousarray(values))
        for chunk, y in zip(self.x, self.y):
            self.kernel(chunk, *self.weights[0], y)
        return np.concatenate([y.numpy() for y in self.y])


class OrtProducts(Products):
    """MatMulNBits at accuracy level 4 (activations rounded to int8), one session a step."""

    def load(self, matrix: Matrix, copies: int, m: int, group: int) -> str:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        self.x = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((m, matrix.columns), np.float32))
        self.bound = []
        data = matrix.onnx_model(group)
        for _ in range(copies // group):
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", self.x)
            for output in session.get_outputs():
                y = onnxruntime.OrtValue.ortvalue_from_shape_and_type([m, matrix.rows], np.float32)
                binding.bind_ortvalue_output(output.name, y)
            self.bound.append((session, binding))
        return f"block {BLOCK}, level 4"

    def step(self, number: int) -> None:
        session, binding = self.bound[number]
        session.run_with_iobinding(binding)

    def product(self, x: Array) -> Array:
        self.x.update_inplace(x.reshape(self.x.shape()))
        self.step(0)
        y: Array = self.bound[0][1].get_outputs()[0].numpy()
        return y


class Contestant:
    """One of the workers, from outside."""

    def __init__(self, name: str, threads: int, work: Path, llama: Path | None) -> None:
        self.name, self.work = name, work
        if name == LLAMA:
            assert llama is not None
            command = [str(build_native("ggml_matmul.cc", work, "c++", *link_flags(llama))), str(threads)]
        else:
            command = [sys.executable, __file__, name, str(threads)]
        self.worker = Worker(command)

    def load(self, matrix: Matrix, m: int) -> float:
        """Prepare for products with m rows; the relative error of one of them."""
        copies = max(2, -(-COLD // matrix.bytes)) if m == 1 else 2
        file = self.work / f"{matrix.rows}x{matrix.columns}.q4_0"
        if self.name == LLAMA and not file.exists():
            matrix.write_q4_0(file)
        self.worker.ask("load", file, matrix.columns, matrix.rows, copies, m, copies if m == 1 else 1)
        source, result = self.work / "x.bin", self.work / "y.bin"
        x = matrix.input(m)
        x.tofile(source)
        self.worker.ask("input", source, result)
        return matrix.error(x, np.fromfile(result, np.float32).reshape(m, matrix.rows))

    def time(self, seconds: float) -> float:
        """Seconds a product, over at least so many."""
        return float(self.worker.ask("time", seconds)["seconds"])


if __name__ == "__main__":
    kind = {OURS: OurProducts, ORT: OrtProducts}[sys.argv[1]]
    serve({}, kind(int(sys.argv[2])).answer)
