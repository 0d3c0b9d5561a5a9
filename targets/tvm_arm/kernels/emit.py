"""Vector arithmetic of the kernels: registers, loads and stores of any width, and what LLVM has intrinsics for."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

Expr = Any
"""A TIR expression: a scalar, or a vector such as `float32x16`."""


@contextlib.contextmanager
def function(name: str) -> Iterator[IRBuilder]:
    """A function whose arguments and statements the body gives; `get` of the builder is it."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        yield builder


def argument(name: str, shape: tuple[Expr, ...], dtype: str = "float32") -> Any:
    return T.arg(name, T.buffer(shape, dtype, layout=None))


def memory(shape: tuple[Expr, ...], dtype: str = "float32") -> Any:
    return T.alloc_buffer(shape, dtype, layout=None)


@contextlib.contextmanager
def where(condition: Expr | None) -> Iterator[None]:
    """Statements that only run where a condition holds, if there is one."""
    if condition is None:
        yield
    else:
        with T.If(condition), T.Then():
            yield


class Register:
    """A variable that lives in a register: LLVM promotes a small buffer on the stack whose index is constant.

    Its scope is `global`: TVM puts small buffers of that scope on the stack, and takes those of scope `local` from the heap.
    """

    def __init__(self, dtype: str, value: Expr) -> None:
        scalar, _, lanes = dtype.partition("x")
        self._lanes = int(lanes or 1)
        self._buffer = T.alloc_buffer((self._lanes,), scalar, scope="global", layout=None)
        self.set(value)

    @property
    def value(self) -> Expr:
        return load(self._buffer, [0], self._lanes)

    def set(self, value: Expr) -> None:
        T.buffer_store(self._buffer, value, [0 if self._lanes == 1 else tirx.Ramp(0, 1, self._lanes)])


def vector(dtype: str, lanes: int) -> str:
    """`float32`, 16 → `float32x16`; one lane is a scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def broadcast(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def floats(value: float, lanes: int) -> Expr:
    return broadcast(tirx.FloatImm("float32", value), lanes)


def ints(value: int, lanes: int) -> Expr:
    return broadcast(tirx.IntImm("int32", value), lanes)


def load(buffer: Any, index: list[Expr], lanes: int) -> Expr:
    """`lanes` consecutive values from an index on."""
    return buffer.vload(index, vector(str(buffer.dtype), lanes))


def load_float(buffer: Any, index: list[Expr], lanes: int) -> Expr:
    """The same as float32, whatever the buffer holds."""
    came = load(buffer, index, lanes)
    return came if str(buffer.dtype) == "float32" else T.cast(came, vector("float32", lanes))


def store(buffer: Any, index: list[Expr], value: Expr, lanes: int) -> None:
    """`lanes` consecutive values, cast to the buffer's type."""
    if str(buffer.dtype) != "float32":
        value = T.cast(value, vector(str(buffer.dtype), lanes))
    last = index[-1] if lanes == 1 else tirx.Ramp(index[-1], 1, lanes)
    T.buffer_store(buffer, value, [*index[:-1], last])


def intrinsic(dtype: str, name: str, *args: Expr) -> Expr:
    """An LLVM intrinsic without side effects, by its full name."""
    return T.call_llvm_pure_intrin(dtype, name, *args)


def mangled(dtype: str, lanes: int) -> str:
    """The suffix of an overloaded intrinsic: `float32`, 16 → `v16f32`."""
    short = dtype.replace("float", "f").replace("int", "i")
    return short if lanes == 1 else f"v{lanes}{short}"


def fma(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """a · b + c in one rounding."""
    return intrinsic(vector("float32", lanes), f"llvm.fma.{mangled('float32', lanes)}", a, b, c)


def maximum(a: Expr, b: Expr, lanes: int) -> Expr:
    return intrinsic(vector("float32", lanes), f"llvm.maxnum.{mangled('float32', lanes)}", a, b)


def minimum(a: Expr, b: Expr, lanes: int) -> Expr:
    return intrinsic(vector("float32", lanes), f"llvm.minnum.{mangled('float32', lanes)}", a, b)


def absolute(a: Expr, lanes: int) -> Expr:
    return intrinsic(vector("float32", lanes), f"llvm.fabs.{mangled('float32', lanes)}", a)


def nearest(a: Expr, lanes: int) -> Expr:
    """Rounded to an integer, halves to even; still float32."""
    return intrinsic(vector("float32", lanes), f"llvm.nearbyint.{mangled('float32', lanes)}", a)


def largest(a: Expr, lanes: int) -> Expr:
    """The largest of all lanes."""
    return intrinsic("float32", f"llvm.vector.reduce.fmax.{mangled('float32', lanes)}", a)


def total(a: Expr, lanes: int) -> Expr:
    """The sum of all lanes: halves are added to each other, so that the order is the same for every target."""
    while lanes > 1:
        half = lanes // 2
        low, high = (shuffle([a], list(range(start, start + half))) for start in (0, half))
        a, lanes = low + high, half
    return a


def shuffle(vectors: list[Expr], lanes: list[int]) -> Expr:
    """Lanes of several vectors of one type, numbered through."""
    return tirx.Shuffle(vectors, lanes)


_LOOK_UP = {
    16: "llvm.aarch64.neon.tbl1.v16i8",
    32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}
"""By bytes of a vector, which tell the architecture. Those of x86 look each up among 16 bytes of its own."""


def looked_up(table: list[int], numbers: Expr, lanes: int) -> Expr:
    """Entries of a table by their numbers. table: bytes, sixteen at most; numbers: uint8 x lanes, below its length."""
    words = struct.unpack("<4i", bytes(table).ljust(16, b"\0")) * (lanes // 16)
    entries = shuffle([tirx.IntImm("int32", word) for word in words], list(range(len(words))))
    entries = T.reinterpret(vector("uint8", lanes), entries)
    return intrinsic(vector("uint8", lanes), _LOOK_UP[lanes], entries, numbers)


def exponential(x: Expr, lanes: int) -> Expr:
    """e^x for x ≤ 0 within 2 ulp; smaller than e^-87 is e^-87.

    2^n · e^r with n = round(x / ln 2), ln 2 in two parts, and e^r for |r| ≤ ½ ln 2 by the polynomial of Cephes' `expf`
    (https://www.netlib.org/cephes/, single/expf.c).
    """
    f32 = vector("float32", lanes)
    x = maximum(x, floats(-87.0, lanes), lanes)
    n = nearest(x * floats(1.44269504088896341, lanes), lanes)
    r = fma(n, floats(-0.693359375, lanes), x, lanes)
    r = fma(n, floats(2.12194440e-4, lanes), r, lanes)
    p = floats(1.9875691500e-4, lanes)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma(p, r, floats(coefficient, lanes), lanes)
    p = fma(p, r * r, r, lanes) + floats(1.0, lanes)
    exponent = (T.cast(n, vector("int32", lanes)) + ints(127, lanes)) << ints(23, lanes)
    return p * T.reinterpret(f32, exponent)
