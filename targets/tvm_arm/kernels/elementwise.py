"""The operators between the matrices: norms, the gated activation, the embedding, the last token's row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels import emit
from pocketphi.targets.tvm_arm.kernels.chunks import Chunks
from pocketphi.targets.tvm_arm.kernels.dots import dots_of
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, floats, ints, load, load_float, vector
from pocketphi.targets.tvm_arm.kernels.matmul import Form, weight_argument


def rms_norm(name: str, isa: Isa, size: int, eps: float, add: bool, single: bool) -> tirx.PrimFunc:
    """(x [M, K], weight [K], out [M, K]), or with `add` (x, y, weight, out, total): of total = x + y."""
    lanes = isa.lanes
    f32 = vector("float32", lanes)
    with emit.function(name) as builder:
        m = 1 if single else T.int64()
        x = emit.argument("x", (m, size))
        y = emit.argument("y", (m, size)) if add else None
        weight = emit.argument("weight", (size,))
        out = emit.argument("out", (m, size))
        total = emit.argument("total", (m, size)) if add else None
        with rows_of(m, single) as row:
            squares = Register(f32, floats(0.0, lanes))
            with T.serial(0, size // lanes) as part:
                value = load(x, [row, part * lanes], lanes)
                if y is not None:
                    value = Register(f32, value + load(y, [row, part * lanes], lanes)).value
                    T.buffer_store(total, value, [row, tirx.Ramp(part * lanes, 1, lanes)])
                squares.set(emit.fma(value, value, squares.value, lanes))
            mean = emit.total(squares.value, lanes) * tirx.FloatImm("float32", 1 / size)
            root = emit.intrinsic("float32", "llvm.sqrt.f32", mean + tirx.FloatImm("float32", eps))
            factor = Register("float32", tirx.FloatImm("float32", 1.0) / root)
            with T.serial(0, size // lanes) as part:
                place = [row, part * lanes]
                scaled = load(total if total is not None else x, place, lanes) * broadcast(factor.value, lanes)
                value = load(weight, [part * lanes], lanes) * scaled
                T.buffer_store(out, value, [row, tirx.Ramp(part * lanes, 1, lanes)])
    return builder.get()


def gated_silu(name: str, isa: Isa, size: int, single: bool) -> tirx.PrimFunc:
    """(gate_up [M, 2I], out [M, I]): up · gate / (1 + e^-gate), as gate · e^min(gate, 0) / (1 + e^-|gate|)."""
    lanes = isa.lanes
    f32 = vector("float32", lanes)
    with emit.function(name) as builder:
        m = 1 if single else T.int64()
        gate_up = emit.argument("gate_up", (m, 2 * size))
        out = emit.argument("out", (m, size))
        with rows_of(m, single) as row, T.serial(0, size // lanes) as part:
            gate = Register(f32, load(gate_up, [row, part * lanes], lanes)).value
            up = load(gate_up, [row, size + part * lanes], lanes)
            power = Register(f32, emit.exponential(-emit.absolute(gate, lanes), lanes)).value
            one = floats(1.0, lanes)
            numerator = tirx.Select(gate < floats(0.0, lanes), power, one)
            T.buffer_store(out, up * gate * numerator / (one + power), [row, tirx.Ramp(part * lanes, 1, lanes)])
    return builder.get()


def embedding(name: str, isa: Isa, form: Form) -> tirx.PrimFunc:
    """(ids int32 [M], parts of the table in the order of `Form.parts`, out float32 [M, K]): rows of a table, as the matrix
    product stores it.

    A group of rows is unpacked for the one row that is wanted: 16 times too much work, for one row of thousands.
    """
    matrix, dots, lanes = form.matrix, dots_of(isa), isa.lanes
    step, steps = matrix.step, matrix.columns // matrix.step
    with emit.function(name) as builder:
        m = 1 if form.single else T.int64()
        ids = emit.argument("ids", (m,), "int32")
        held = {part: weight_argument(part, matrix) for part in form.parts}
        out = emit.argument("out", (m, matrix.columns))
        spill = emit.memory((lanes,))
        with T.serial(0, m) as row, T.serial(0, steps) as t:
            group = T.cast(ids[row], "int64") // lanes
            weights = Chunks(matrix, held[matrix.values], (group * steps + t) * matrix.unit)
            block = (group * matrix.blocks + t * step // matrix.block) * lanes
            scale = load_float(held["scale"], [block], lanes)
            if matrix.by_row:
                scale = scale * load_float(held["row_scale"], [group * lanes], lanes)
            scale = Register(vector("float32", lanes), scale).value
            zero = ints(matrix.middle, lanes)
            if form.zero:
                zero = T.cast(load(held["zero"], [block], lanes), vector("int32", lanes))

            for column in range(step):
                quad = dots.quad(weights, column // 4)
                q = (quad >> ints(8 * (column % 4), lanes)) & ints(0xFF, lanes)
                value = T.cast(q - zero, vector("float32", lanes)) * scale
                if form.offset:
                    value = value + load(held["offset"], [block], lanes)
                T.buffer_store(spill, value, [tirx.Ramp(0, 1, lanes)])
                T.buffer_store(out, spill[ids[row] % lanes], [row, t * step + column])
    return builder.get()


def last_row(name: str, isa: Isa, size: int) -> tirx.PrimFunc:
    """(x [M, K], out [1, K]): the last row."""
    with emit.function(name) as builder:
        m = T.int64()
        x = emit.argument("x", (m, size))
        out = emit.argument("out", (1, size))
        with T.serial(0, size // isa.lanes) as part:
            at = part * isa.lanes
            T.buffer_store(out, load(x, [m - 1, at], isa.lanes), [0, tirx.Ramp(at, 1, isa.lanes)])
    return builder.get()


def rows_of(m: Expr, single: bool) -> Any:
    """A loop over rows: in parallel where there are many."""
    loop: Callable[..., Any] = T.serial if single else T.parallel
    return loop(0, m)
