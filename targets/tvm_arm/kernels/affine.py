"""The operators between the matrices of models with biases: layer norms, sums, multipliers, GEGELU."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.graph.edge_ops import QUICK_GELU
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels import emit
from pocketphi.targets.tvm_arm.kernels.elementwise import rows_of
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, floats, load, vector


def layer_norm(name: str, isa: Isa, size: int, eps: float, single: bool) -> tirx.PrimFunc:
    """(x [M, K], weight [K], bias [K], out [M, K]): weight · (x - mean) / sqrt(variance + eps) + bias, the variance of values
    whose mean was taken off first."""
    lanes = isa.lanes
    f32 = vector("float32", lanes)
    with emit.function(name) as builder:
        m = 1 if single else T.int64()
        x = emit.argument("x", (m, size))
        weight, bias = (emit.argument(part, (size,)) for part in ("weight", "bias"))
        out = emit.argument("out", (m, size))
        with rows_of(m, single) as row:
            sums = Register(f32, floats(0.0, lanes))
            with T.serial(0, size // lanes) as part:
                sums.set(sums.value + load(x, [row, part * lanes], lanes))
            share = tirx.FloatImm("float32", 1 / size)
            mean = Register("float32", emit.total(sums.value, lanes) * share)
            squares = Register(f32, floats(0.0, lanes))
            with T.serial(0, size // lanes) as part:
                apart = Register(f32, load(x, [row, part * lanes], lanes) - broadcast(mean.value, lanes)).value
                T.buffer_store(out, apart, [row, tirx.Ramp(part * lanes, 1, lanes)])
                squares.set(emit.fma(apart, apart, squares.value, lanes))
            variance = emit.total(squares.value, lanes) * share
            root = emit.intrinsic("float32", "llvm.sqrt.f32", variance + tirx.FloatImm("float32", eps))
            factor = Register("float32", tirx.FloatImm("float32", 1.0) / root)
            with T.serial(0, size // lanes) as part:
                at = part * lanes
                unit = load(out, [row, at], lanes) * broadcast(factor.value, lanes)
                value = emit.fma(unit, load(weight, [at], lanes), load(bias, [at], lanes), lanes)
                T.buffer_store(out, value, [row, tirx.Ramp(at, 1, lanes)])
    return builder.get()


def add(name: str, isa: Isa, size: int, bias: bool, single: bool) -> tirx.PrimFunc:
    """(x [M, K], y, out [M, K]): x + y, y a row for all rows of x with `bias`, else [M, K]."""
    with emit.function(name) as builder:
        m = 1 if single else T.int64()
        x = emit.argument("x", (m, size))
        y = emit.argument("y", (size,) if bias else (m, size))
        out = emit.argument("out", (m, size))

        def put(row: Expr, at: Expr, lanes: int) -> None:
            value = load(x, [row, at], lanes) + load(y, [at] if bias else [row, at], lanes)
            emit.store(out, [row, at], value, lanes)

        with rows_of(m, single) as row:
            with T.serial(0, size // isa.lanes) as part:
                put(row, part * isa.lanes, isa.lanes)
            if size % isa.lanes:
                with T.serial(0, size % isa.lanes) as rest:
                    put(row, size // isa.lanes * isa.lanes + rest, 1)
    return builder.get()


def scaled(name: str, isa: Isa, size: int, factor: float, single: bool) -> tirx.PrimFunc:
    """(x [M, K], out [M, K]): x · factor."""
    lanes = isa.lanes
    with emit.function(name) as builder:
        m = 1 if single else T.int64()
        x, out = (emit.argument(part, (m, size)) for part in ("x", "out"))
        with rows_of(m, single) as row, T.serial(0, size // lanes) as part:
            emit.store(out, [row, part * lanes], load(x, [row, part * lanes], lanes) * floats(factor, lanes), lanes)
    return builder.get()


def gegelu(name: str, isa: Isa, size: int, limit: float, single: bool) -> tirx.PrimFunc:
    """(gate_up [M, 2I], out [M, I]) as `edge.gegelu`: the sigmoid of y is e^min(y, 0) / (1 + e^-|y|)."""
    lanes = isa.lanes
    f32 = vector("float32", lanes)
    with emit.function(name) as builder:
        m = 1 if single else T.int64()
        gate_up = emit.argument("gate_up", (m, 2 * size))
        out = emit.argument("out", (m, size))
        with rows_of(m, single) as row, T.serial(0, size // lanes) as part:
            gate, up = (load(gate_up, [row, start + part * lanes], lanes) for start in (0, size))
            if limit:
                most = floats(limit, lanes)
                gate = tirx.Select(gate > most, most, gate)
                up = Register(f32, emit.maximum(tirx.Select(up > most, most, up), floats(-limit, lanes), lanes)).value
            gate = Register(f32, gate).value
            y = Register(f32, gate * floats(QUICK_GELU, lanes)).value
            power = Register(f32, emit.exponential(-emit.absolute(y, lanes), lanes)).value
            one = floats(1.0, lanes)
            share = tirx.Select(y < floats(0.0, lanes), power, one) / (one + power)
            emit.store(out, [row, part * lanes], gate * share * (up + one), lanes)
    return builder.get()
