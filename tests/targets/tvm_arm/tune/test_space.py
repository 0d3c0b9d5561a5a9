"""The search space: legal schedules, the default first; registers and divisors bound it."""

from __future__ import annotations

import pytest

from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS
from pocketphi.targets.tvm_arm.kernels.dots import dots_of
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule, fitted
from pocketphi.targets.tvm_arm.tune.space import default_schedule, registers, space


def form(isa_name: str, rows: int = 256, columns: int = 256, single: bool = True, block: int = 32) -> Form:
    isa = ISAS[isa_name]
    return Form(Interleaved(rows, columns, block, isa.lanes, isa.pairs, isa.signed), single=single)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("single", [True, False])
def test_schedules_are_different_and_legal(name: str, single: bool) -> None:
    isa, made = ISAS[name], space(ISAS[name], form(name, single=single))
    assert made[0] == default_schedule(isa, form(name, single=single))
    assert len(set(made)) == len(made) > 5
    assert [s for s in made if fitted(s, form(name, single=single)) != s] == []
    assert [s for s in made[1:] if registers(isa, s) > isa.registers] == []
    assert {s.rows for s in made} == {1} if single else {s.prefetch for s in made} == {0}


@pytest.mark.parametrize(("name", "count"), [("dotprod", 4), ("i8mm", 4), ("avx512vnni", 2)])
def test_tiles_are_made_of_rows_that_lie_together(name: str, count: int) -> None:
    assert ISAS[name].together == dots_of(ISAS[name], tile=True).patch[0] == count
    assert {s.rows % count for s in space(ISAS[name], form(name, single=False))} == {0}
    assert 3 in {s.rows for s in space(ISAS["avx2"], form("avx2", single=False))}


def test_units_and_unroll_divide_the_matrix() -> None:
    odd = form("dotprod", rows=4 * 3, columns=32 * 3)  # 3 groups, 3 steps
    assert {(s.units, s.unroll) for s in space(ISAS["dotprod"], odd)} == {(1, 1)}
    assert fitted(Schedule(2, 4, 0, 2), odd) == Schedule(1, 1, 0, 1)


def test_fewer_registers_fewer_rows() -> None:
    most = {name: max(s.rows for s in space(ISAS[name], form(name, single=False))) for name in ("avx2", "avx512vnni")}
    assert most["avx2"] < most["avx512vnni"]
