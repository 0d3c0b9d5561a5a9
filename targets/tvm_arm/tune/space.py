"""The schedules worth trying for a kernel: the template's few parameters, as far as the registers go."""

from __future__ import annotations

from itertools import product

from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule, decode_schedule, fitted, prefill_schedule

_UNITS = (1, 2, 4, 8)
_ROWS = (2, 3, 4, 6, 8, 12, 16)
_UNROLL = (1, 2)
_PREFETCH = (0, 1024, 4096)
"""Bytes ahead: some twenty lines, and past the reach of most hardware prefetchers."""

_FARTHEST, _LONGEST = 1 << 20, 16
"""Bytes ahead, and steps in a loop body, beyond which nothing is gained."""
_TEMPORARIES = 6
"""Registers beside the sums: two vectors of weights, their nibbles, the activations, the mask."""
_UNPACKED = 12
"""The same where a step's weights stay in registers: eight vectors of them, two of scales, two of activations."""


def default_schedule(isa: Isa, form: Form) -> Schedule:
    """What a kernel gets that nobody tuned."""
    return fitted(decode_schedule(isa) if form.single else prefill_schedule(isa), form)


def space(isa: Isa, form: Form) -> list[Schedule]:
    """Different schedules for a form, the default one first."""
    rows, prefetch = ((1,), _PREFETCH) if form.single else ([n for n in _ROWS if n % isa.together == 0], (0,))
    made = [Schedule(*values) for values in product(_UNITS, rows, prefetch, _UNROLL)]
    fitting = [schedule for schedule in made if fitted(schedule, form) == schedule and legal(isa, schedule)]
    return list(dict.fromkeys([default_schedule(isa, form), *fitting]))


def legal(isa: Isa, schedule: Schedule) -> bool:
    """Whether a kernel can be made so: its sums fit the registers, and its rows come in the groups that lie together."""
    if min(schedule.units, schedule.rows, schedule.unroll) < 1 or not 0 <= schedule.prefetch <= _FARTHEST:
        return False
    grouped = schedule.rows == 1 or schedule.rows % isa.together == 0
    return grouped and schedule.unroll <= _LONGEST and registers(isa, schedule) <= isa.registers


def registers(isa: Isa, schedule: Schedule) -> int:
    """Vector registers that a loop body needs: float sums of all units, int sums of the one that it works on."""
    if isa.together > 1 and schedule.rows > 1:
        return schedule.units * schedule.rows + isa.together + _UNPACKED
    ints = 2 if isa.name == "neon" or (isa.pairs and schedule.rows == 1) else 1
    return (schedule.units + ints) * schedule.rows + _TEMPORARIES
