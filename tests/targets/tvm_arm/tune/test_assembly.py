"""The hot loops that LLVM makes of the kernels: the right product, nothing on the stack, prefetches where asked for."""

from __future__ import annotations

import pytest

from pocketphi.graph.errors import CompilerBug
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.tune.assembly import hot_loop, products, spills
from pocketphi.targets.tvm_arm.tune.candidate import assembly_of
from pocketphi.targets.tvm_arm.tune.space import default_schedule

WIDTH = 3072


def loop_of(name: str, single: bool, schedule: Schedule | None = None, cpu: str | None = None) -> list[str]:
    isa = ISAS[name]
    form = Form(Interleaved(WIDTH, WIDTH, 32, isa.lanes, isa.pairs, isa.signed), single=single)
    schedule = schedule or default_schedule(isa, form)
    return hot_loop(assembly_of(Platform("linux", isa, cpu), form, schedule), isa)


PRODUCTS = [
    ("neon", True, "sml"),
    ("neon", False, "sml"),
    ("dotprod", True, "sdot"),
    ("dotprod", False, "sdot"),
    ("i8mm", True, "sdot"),
    ("i8mm", False, "smmla"),
    ("avx512vnni", True, "vpdpbusd"),
    ("avx512vnni", False, "vpdpbusd"),
]


@pytest.mark.parametrize(("name", "single", "product"), PRODUCTS)
def test_the_default_loop_multiplies_and_does_not_spill(name: str, single: bool, product: str) -> None:
    loop = loop_of(name, single)
    assert [line for line in loop if line.split()[0].startswith(product)] != []
    if name == "avx512vnni" and not single:
        return  # two streams of weights spill, and are a seventh faster from memory than one that does not
    assert spills(loop) == []


def test_products_are_counted() -> None:
    """A step of 32 columns: 8 `sdot` for 4 rows of the matrix; 2 units; 4 rows of activations in prefill."""
    assert products(loop_of("dotprod", True, Schedule(units=2)), ISAS["dotprod"]) == 16
    assert products(loop_of("dotprod", False, Schedule(rows=4)), ISAS["dotprod"]) == 32
    assert products(loop_of("dotprod", True, Schedule(units=2, unroll=2)), ISAS["dotprod"]) == 32


@pytest.mark.parametrize(
    ("name", "instruction"), [("neon", "prfm"), ("dotprod", "prfm"), ("avx512vnni", "prefetchnta")]
)
def test_prefetch(name: str, instruction: str) -> None:
    assert any(instruction in line for line in loop_of(name, True, Schedule(prefetch=1024)))
    assert not any(instruction in line for line in loop_of(name, True, Schedule()))


def test_too_many_sums_spill() -> None:
    """The check sees spills where there must be some."""
    assert spills(loop_of("dotprod", False, Schedule(units=8, rows=8))) != []


def test_the_innermost_loop_is_found() -> None:
    text = """
f:
.LBB0_1:
\tmov x1, xzr
.LBB0_2:
\tsdot v0.4s, v1.16b, v2.4b[0] // comment
\tcmp x1, #4
\tb.ne .LBB0_2
\tstr q0, [sp, #16]
\tb.ne .LBB0_1
\tret
"""
    loop = hot_loop(text, ISAS["dotprod"])
    assert [line.split()[0] for line in loop] == ["sdot", "cmp", "b.ne"]
    with pytest.raises(CompilerBug, match=r"no loop with smmla or sdot in the assembly for i8mm"):
        hot_loop(text.replace("sdot", "fmla"), ISAS["i8mm"])


def test_stack_accesses_are_seen() -> None:
    assert spills(["\tldr q1, [sp, #32]", "\tldr q1, [x0]", "\tvmovaps %zmm0, 64(%rsp)"]) == [
        "ldr q1, [sp, #32]",
        "vmovaps %zmm0, 64(%rsp)",
    ]
