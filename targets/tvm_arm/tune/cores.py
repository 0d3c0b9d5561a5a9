"""What the cost model knows of a core beyond LLVM's description of its pipeline.

The numbers are round ones of usual devices (clock, what one core reads from memory), from Arm's and Apple's descriptions and
published measurements: they weigh arithmetic against memory, and promise no time. `tune` on a board replaces them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.isa import ISAS, Isa
from pocketphi.targets.tvm_arm.platform import CORES


@dataclass(frozen=True)
class Core:
    """clock: GHz; memory: GB/s that one core reads; cache: bytes a cycle from the second level; in_order: waits for loads."""

    clock: float
    memory: float
    cache: float = 16.0
    in_order: bool = False


_KINDS = {
    ("cortex-a53",): Core(1.5, 2.5, 8, in_order=True),
    ("cortex-a55", "cortex-a510"): Core(1.8, 4, 8, in_order=True),
    ("cortex-a72", "cortex-a73"): Core(2.0, 6, 8),
    ("cortex-a75", "cortex-a76", "cortex-a77", "cortex-a78", "cortex-a710", "cortex-a715"): Core(2.4, 10),
    ("cortex-x1", "cortex-x2", "cortex-x3"): Core(2.9, 16),
    ("neoverse-n1", "neoverse-n2", "neoverse-v1"): Core(2.6, 18),
    ("znver4",): Core(3.7, 24, 32),
    tuple(name for name in CORES if name.startswith("apple-")): Core(3.0, 40, 32),
}
KNOWN = {name: core for names, core in _KINDS.items() for name in names}


def find_core(name: str) -> Core:
    """Raises InputError naming those that there are."""
    if name not in KNOWN:
        raise InputError(f"no cost model for CPU {name!r}: expected one of {', '.join(KNOWN)}")
    return KNOWN[name]


def cores_of(isa: Isa) -> list[str]:
    """Cores whose widest instruction set this is; of x86, the one that the model was checked on."""
    found = [name for name, widest in CORES.items() if ISAS[widest] == isa]
    return found or ["znver4"]
