"""A kernel's time on a core that is not at hand: llvm-mca's cycles of the hot loop, and the bytes that have to come.

    arithmetic = cycles of a turn · products in all / products in a turn / clock
    memory     = weights / read bandwidth + activations · passes over them / bandwidth of the second-level cache

A turn may hold several steps, whether the schedule or LLVM unrolled it: so products are counted, not steps. An out-of-order
core loads while it computes, and takes the longer of both and a tenth of the other; one in order takes the sum.
llvm-mca assumes that every load hits the first cache, so that it sees no use in a prefetch: those are not modelled.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.tune.assembly import hot_loop, products, spills
from pocketphi.targets.tvm_arm.tune.candidate import assembly_of
from pocketphi.targets.tvm_arm.tune.cores import Core, find_core
from pocketphi.targets.tvm_arm.tune.space import default_schedule

PROMPT = 64
"""Tokens of a prefill that is modelled or measured."""

_NEWEST, _OLDEST = 24, 14
_TURNS = 50
_PRODUCTS = {"neon": 2, "dotprod": 1, "i8mm": 1, "avx2": 1, "avx512vnni": 1}
"""Instructions that multiply four columns of a vector's rows with one row of activations; smmla has two rows of them."""


def find_mca() -> str:
    """The newest llvm-mca of this machine: newer ones know more cores. Raises InputError naming the package to install."""
    names = [*(f"llvm-mca-{n}" for n in range(_NEWEST, _OLDEST - 1, -1)), "llvm-mca"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise InputError("no llvm-mca, which the cost model asks for cycles: apt install llvm")
    return found


@dataclass(frozen=True)
class _Loop:
    """cycles: for each product; spills: whether it uses the stack, whose cost llvm-mca does not tell."""

    cycles: float
    spills: bool


@dataclass(frozen=True)
class CostModel:
    """A measurer for a core by LLVM's name."""

    platform: Platform
    cpu: str
    tool: str
    _known: dict[tuple[object, ...], _Loop] = field(default_factory=dict, compare=False, repr=False)

    @property
    def how(self) -> str:
        return f"model {self.cpu}"

    def times(self, form: Form, schedules: list[Schedule]) -> dict[Schedule, float]:
        """Microseconds of each schedule. Left out: those with a prefetch, and those whose loop spills, but for the default."""
        default = default_schedule(self.platform.isa, form)
        seen = [s for s in schedules if not s.prefetch and (s == default or not self._loop(form, s).spills)]
        return {schedule: self.time(form, schedule) for schedule in seen}

    def time(self, form: Form, schedule: Schedule) -> float:
        core = find_core(self.cpu)
        cycles = self._loop(form, schedule).cycles * all_products(form, schedule, self.platform.isa)
        return _together(core, cycles / core.clock / 1e3, memory_time(core, form, schedule))

    def _loop(self, form: Form, schedule: Schedule) -> _Loop:
        """Matrices of all sizes have the same loop, but for the strides: it is looked at once."""
        key = (form.single, form.parts, form.matrix.block, schedule)
        if key not in self._known:
            loop = hot_loop(assembly_of(self.platform, form, schedule), self.platform.isa)
            cycles = self.cycles(loop) / products(loop, self.platform.isa)
            self._known[key] = _Loop(cycles, bool(spills(loop)))
        return self._known[key]

    def cycles(self, loop: list[str]) -> float:
        """Cycles of a turn of a loop in steady state. Raises InputError where llvm-mca does not know the core."""
        isa = self.platform.isa
        features = ",".join(f"+{name}" for name in isa.features)
        command = [
            self.tool,
            f"-mtriple={isa.arch}",
            f"-mcpu={self.cpu}",
            f"-mattr={features}",
            f"-iterations={_TURNS}",
        ]
        done = subprocess.run(command, input="\n".join(loop), capture_output=True, text=True, check=False)
        if "is not a recognized processor" in done.stderr:
            raise InputError(f"{self.tool} does not know the core {self.cpu}: apt install a newer llvm")
        total = re.search(r"^Total Cycles:\s+(\d+)", done.stdout, re.MULTILINE)
        if total is None:
            raise InputError(f"{self.tool}: {(done.stderr.splitlines() or ['no answer'])[0]}")
        return int(total.group(1)) / _TURNS


def all_products(form: Form, schedule: Schedule, isa: Isa) -> float:
    """Instructions of a whole call that multiply."""
    rows = 1 if form.single else -(-PROMPT // schedule.rows) * schedule.rows
    paired = 2 if isa.pairs and schedule.rows > 1 else 1
    vectors = form.matrix.groups * form.matrix.columns / 4
    return vectors * rows * _PRODUCTS[isa.name] / paired


def memory_time(core: Core, form: Form, schedule: Schedule) -> float:
    """Microseconds: weights come once, a prompt's activations once for every panel of units."""
    rows = 0 if form.single else PROMPT
    passes = form.matrix.groups / schedule.units
    again = rows * form.matrix.columns * passes
    return weight_bytes(form.matrix) / core.memory / 1e3 + again / (core.cache * core.clock) / 1e3


def weight_bytes(matrix: Interleaved) -> int:
    """Bytes of values and scales of blocks."""
    return sum(matrix.spec(part).bytes for part in (matrix.values, "scale"))


def _together(core: Core, arithmetic: float, memory: float) -> float:
    if core.in_order:
        return arithmetic + memory
    return max(arithmetic, memory) + 0.1 * min(arithmetic, memory)
