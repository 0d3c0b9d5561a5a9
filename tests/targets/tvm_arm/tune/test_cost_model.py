"""The cost model: its terms by hand, the tool it asks, what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import CORES, Platform
from pocketphi.targets.tvm_arm.tune import cost_model
from pocketphi.targets.tvm_arm.tune.cores import KNOWN, Core, cores_of, find_core
from pocketphi.targets.tvm_arm.tune.cost_model import CostModel, all_products, find_mca, memory_time

DECODE = Form(Interleaved(256, 512, 32, 4, False), single=True)
PREFILL = Form(Interleaved(256, 512, 32, 4, False))
needs_mca = pytest.mark.skipif(not (shutil.which("llvm-mca") or shutil.which("llvm-mca-14")), reason="no llvm-mca")


def a76() -> CostModel:
    return CostModel(Platform("linux", ISAS["dotprod"], "cortex-a76"), "cortex-a76", find_mca())


def test_products_of_a_call() -> None:
    # 64 groups of 4 rows · 128 groups of 4 columns; 64 tokens in tiles of 6 are 66
    assert all_products(DECODE, Schedule(2), ISAS["dotprod"]) == 64 * 128
    assert all_products(PREFILL, Schedule(1, 6), ISAS["dotprod"]) == 64 * 128 * 66
    assert all_products(PREFILL, Schedule(1, 4), ISAS["i8mm"]) == 64 * 128 * 64 / 2
    assert all_products(DECODE, Schedule(1), ISAS["neon"]) == 2 * 64 * 128


def test_memory_traffic() -> None:
    core = Core(clock=2.0, memory=10.0, cache=16.0)
    weights = 256 * 512 * (1 / 2 + 2 / 32)
    assert memory_time(core, DECODE, Schedule(2)) == pytest.approx(weights / 10e3)
    again = 64 * 512 * (64 / 2)
    assert memory_time(core, PREFILL, Schedule(2, 4)) == pytest.approx(weights / 10e3 + again / 32e3)


@needs_mca
def test_more_work_takes_longer_and_prefetch_is_left_out() -> None:
    model = a76()
    times = model.times(DECODE, [Schedule(2), Schedule(2, 1, 1024)])
    assert list(times) == [Schedule(2)]
    wide = Form(Interleaved(256, 2048, 32, 4, False), single=True)
    assert model.time(wide, Schedule(2)) == pytest.approx(4 * times[Schedule(2)], rel=0.02)
    assert model.time(PREFILL, Schedule(1, 4)) > 10 * times[Schedule(2)]


@needs_mca
def test_a_chain_of_products_takes_their_latency() -> None:
    """Two independent chains run beside each other, one does not."""
    one = ["\tsdot v0.4s, v1.16b, v2.16b", "\tsdot v0.4s, v3.16b, v2.16b"]
    two = ["\tsdot v0.4s, v1.16b, v2.16b", "\tsdot v4.4s, v3.16b, v2.16b"]
    assert a76().cycles(one) > 1.5 * a76().cycles(two)


@needs_mca
def test_an_unknown_core() -> None:
    with pytest.raises(InputError, match=r"llvm-mca.* does not know the core cortex-z9: apt install a newer llvm"):
        CostModel(Platform("linux", ISAS["dotprod"]), "cortex-z9", find_mca()).cycles(["\tnop"])
    with pytest.raises(InputError, match=r"no cost model for CPU 'cortex-z9': expected one of cortex-a53"):
        find_core("cortex-z9")


def test_no_llvm_mca(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"no llvm-mca, which the cost model asks for cycles: apt install llvm"):
        find_mca()
    for name in ("llvm-mca", "llvm-mca-14", "llvm-mca-19"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert find_mca() == str(tmp_path / "llvm-mca-19")


def test_every_core_that_is_compiled_for_is_known() -> None:
    assert set(CORES) - set(KNOWN) == set()
    assert cores_of(ISAS["dotprod"])[0] == "cortex-a55"
    assert cores_of(ISAS["avx2"]) == ["znver4"]
    assert cost_model.PROMPT == 64
