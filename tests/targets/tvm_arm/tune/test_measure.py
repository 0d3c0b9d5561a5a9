"""Timing here and searching: real kernels on this machine, and that a search goes on where it was."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Int3
from pocketphi.targets.tvm_arm.description import Cache, Description, Made, Matrix, Tensor
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform, host_isa
from pocketphi.targets.tvm_arm.toolchain import host_arch
from pocketphi.targets.tvm_arm.tune.candidate import KERNEL, compile_kernel
from pocketphi.targets.tvm_arm.tune.cost_model import weight_bytes
from pocketphi.targets.tvm_arm.tune.measure import LocalMeasurer, arguments
from pocketphi.targets.tvm_arm.tune.search import forms_of, search
from pocketphi.targets.tvm_arm.tune.space import space


def form(single: bool = True, rows: int = 128, columns: int = 128, **parts: bool) -> Form:
    isa = host_isa()
    return Form(Interleaved(rows, columns, 32, isa.lanes, isa.pairs), single=single, **parts)


def test_every_schedule_computes_the_same() -> None:
    """Sums of steps are in float32 and in the same order for each, so that only `fma` chains may differ: not at all."""
    import tvm

    platform = Platform("linux", host_isa())
    for single in (True, False):
        values = arguments(form(single), rows=5)
        results = []
        for schedule in space(platform.isa, form(single)):
            held = [tvm.runtime.tensor(array) for array in values]
            compile_kernel(platform, form(single), schedule).mod[KERNEL](*held)
            results.append(held[-1].numpy())
        assert len(results) > 5
        assert np.abs(results[0]).max() > 0
        assert max(float(np.abs(result - results[0]).max()) for result in results) == 0


def test_more_work_takes_longer() -> None:
    measurer, cores = LocalMeasurer(Platform("linux", host_isa()), rounds=3), os.sched_getaffinity(0)
    small, large = (measurer.times(form(False, rows), [Schedule(1, 4)])[Schedule(1, 4)] for rows in (128, 16384))
    assert 0 < 16 * small < large
    assert measurer.how.endswith("1 thread")
    assert os.sched_getaffinity(0) == cores


def test_arguments_have_the_kernels_types() -> None:
    made = arguments(form(zero=True, offset=True), rows=3)
    assert [str(a.dtype) for a in made] == ["float32", "uint8", "float16", "uint8", "float32", "float32"]
    assert [a.shape for a in arguments(form(False), rows=3)][0::3] == [(3, 128), (3, 128)]
    assert made[3].max() < 16


def test_arguments_of_another_width() -> None:
    isa = host_isa()
    three = Form(Interleaved(128, 128, 32, isa.lanes, isa.pairs, format=Int3), zero=True)
    _, values, scale, zero, _ = arguments(three, rows=3)
    assert (values.nbytes, scale.size, zero.size) == (128 * 128 * 3 // 8, 128 * 4, 128 * 4)
    assert zero.max() < 8
    assert weight_bytes(three.matrix) == values.nbytes + scale.nbytes
    assert three.key == "prefill 128x128 block 32 q3+scale+zero"


def test_another_machines_kernels() -> None:
    other = "neon" if host_arch() == "x86_64" else "avx2"
    with pytest.raises(
        InputError, match=rf"kernels for {other} do not run on this machine; give a board by --rpc and --key"
    ):
        LocalMeasurer(Platform("linux", ISAS[other]))


class Counting:
    """A clock that needs no kernel: the search's own logic is what is tested."""

    how = "host clock"

    def __init__(self) -> None:
        self.platform, self.asked = Platform("linux", host_isa()), []

    def times(self, form: Form, schedules: list[Schedule]) -> dict[Schedule, float]:
        self.asked.append((form.key, len(schedules)))
        return {schedule: 1.0 + n for n, schedule in enumerate(schedules)}


def test_a_search_goes_on_where_it_was() -> None:
    forms, told = [form(), form(False)], []
    size = {f.key: len(space(host_isa(), f)) for f in forms}
    first = Counting()
    rows = next(search([first], forms, [], lambda: told.append(1)))
    assert first.asked == [(forms[0].key, size[forms[0].key])]
    again = Counting()
    more = [row for found in search([again], forms, rows, lambda: told.append(1)) for row in found]
    assert again.asked == [(forms[1].key, size[forms[1].key])]
    assert len(more) == size[forms[1].key]
    assert list(search([Counting()], forms, rows + more, lambda: None)) == []
    other = [replace(row, kernels=0) for row in rows + more]
    assert len(list(search([Counting()], forms, other, lambda: None))) == 2


def test_forms_of_a_bundle() -> None:
    names = [f"{name}:{part}" for name in ("a", "b", "head") for part in ("q", "scale")]
    described = Description(
        format=1,
        target=Made("linux", "aarch64", "dotprod", None, ()),
        vocab=96,
        context=64,
        cache=Cache({"saved": "float16"}),
        params=tuple(Tensor(name, "uint8", (1,), 0) for name in [*names, "b:zero", "norm"]),
        matrices={name: Matrix(96 if name == "head" else 64, 64, 32) for name in ("a", "b", "head")},
    )
    keys = [f.key for f in forms_of(described)]
    assert keys == [
        "decode 64x64 block 32 q+scale",
        "prefill 64x64 block 32 q+scale",
        "decode 64x64 block 32 q+scale+zero",
        "prefill 64x64 block 32 q+scale+zero",
        "decode 96x64 block 32 q+scale",
    ]
