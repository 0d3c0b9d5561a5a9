"""What an adapter adds to a product, in float32 and in place: y += (x · Aᵀ) · B."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.adapter_file import RANK_MOST, RANK_STEP
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels import emit
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, floats, load, vector


def add_low_rank(name: str, isa: Isa, columns: int, rows: int, single: bool) -> tirx.PrimFunc:
    """(y [M, N], x [M, K], a [r, K], b [r, N]). r is a multiple of RANK_STEP, RANK_MOST at most. With r = 0 nothing is read
    and nothing written, on one thread.

    One row of x is shared out twice: the factors of `a`, then the columns of `b`. Of several rows each is a part.
    """
    with emit.function(name) as builder:
        m = 1 if single else T.int64()
        rank = T.int64()
        y, x = emit.argument("y", (m, rows)), emit.argument("x", (m, columns))
        a, b = emit.argument("a", (rank, columns)), emit.argument("b", (rank, rows))
        with emit.where(rank > 0):
            if single:
                middle = emit.memory((RANK_MOST,))
                with T.parallel(0, rank // RANK_STEP) as step:
                    for i, product in enumerate(_down(isa, x, a, 0, step, columns)):
                        T.buffer_store(middle, product.value, [step * RANK_STEP + i])
                _up_at_once(isa, y, b, middle, rank, rows)
            else:
                with T.parallel(0, m) as row, T.serial(0, rank // RANK_STEP) as step:
                    _up(isa, y, b, row, step, _down(isa, x, a, row, step, columns), rows)
    return builder.get()


def _down(isa: Isa, x: Expr, a: Expr, row: Expr, step: Expr, columns: int) -> list[Register]:
    """The products of a row of x with RANK_STEP rows of a."""
    lanes = isa.lanes
    sums = [Register(vector("float32", lanes), floats(0.0, lanes)) for _ in range(RANK_STEP)]
    with T.serial(0, columns // lanes) as part:
        value = Register(vector("float32", lanes), load(x, [row, part * lanes], lanes)).value
        for i, total in enumerate(sums):
            total.set(emit.fma(value, load(a, [step * RANK_STEP + i, part * lanes], lanes), total.value, lanes))
    return [Register("float32", emit.total(total.value, lanes)) for total in sums]


def _up(isa: Isa, y: Expr, b: Expr, row: Expr, step: Expr, middle: list[Register], rows: int) -> None:
    """Add RANK_STEP rows of b, each times its factor, to a row of y."""

    def put(at: Expr, lanes: int) -> None:
        total = Register(vector("float32", lanes), load(y, [row, at], lanes))
        for i, factor in enumerate(middle):
            part = load(b, [step * RANK_STEP + i, at], lanes)
            total.set(emit.fma(broadcast(factor.value, lanes), part, total.value, lanes))
        emit.store(y, [row, at], total.value, lanes)

    with T.serial(0, rows // isa.lanes) as part:
        put(part * isa.lanes, isa.lanes)
    if rows % isa.lanes:
        with T.serial(0, rows % isa.lanes) as rest:
            put(rows // isa.lanes * isa.lanes + rest, 1)


def _up_at_once(isa: Isa, y: Expr, b: Expr, middle: Expr, rank: Expr, rows: int) -> None:
    """Add all rows of b, each times its factor, to the only row of y."""

    def put(at: Expr, lanes: int) -> None:
        total = Register(vector("float32", lanes), load(y, [0, at], lanes))
        with T.serial(0, rank) as i:
            factor = broadcast(load(middle, [i], 1), lanes)
            total.set(emit.fma(factor, load(b, [i, at], lanes), total.value, lanes))
        emit.store(y, [0, at], total.value, lanes)

    with T.parallel(0, rows // isa.lanes) as part:
        put(part * isa.lanes, isa.lanes)
    if rows % isa.lanes:
        with T.serial(0, rows % isa.lanes) as rest:
            put(rows // isa.lanes * isa.lanes + rest, 1)
