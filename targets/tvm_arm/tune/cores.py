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


_LITTLE, _OLD, _MIDDLE, _BIG, _SERVER, _APPLE = (
    Core(1.8, 4, 8, in_order=True),
    Core(2.0, 6, 8),
    Core(2.4, 10),
    Core(2.9, 16),
    Core(2.6, 18),
    Core(3.0, 40, 32),
)

_KNOWN = {
    "cortex-a53": Core(1.5, 2.5, 8, in_order=True),
    "cortex-a55": _LITTLE,
    "cortex-a510": _LITTLE,
    "cortex-a72": _OLD,
    "cortex-a73": _OLD,
    "cortex-a75": _MIDDLE,
    "cortex-a76": _MIDDLE,
    "cortex-a77": _MIDDLE,
    "cortex-a78": _MIDDLE,
    "cortex-a710": _MIDDLE,
    "cortex-a715": _MIDDLE,
    "cortex-x1": _BIG,
    "cortex-x2": _BIG,
    "cortex-x3": _BIG,
    "neoverse-n1": _SERVER,
    "neoverse-n2": _SERVER,
    "neoverse-v1": _SERVER,
    "znver4": Core(3.7, 24, 32),
}
_APPLE_NAMES = [name for name in CORES if name.startswith("apple-")]
KNOWN = _KNOWN | dict.fromkeys(_APPLE_NAMES, _APPLE)


def find_core(name: str) -> Core:
    """Raises InputError naming those that there are."""
    if name not in KNOWN:
        raise InputError(f"no cost model for CPU {name!r}: expected one of {', '.join(KNOWN)}")
    return KNOWN[name]


def cores_of(isa: Isa) -> list[str]:
    """Cores whose widest instruction set this is; of x86, the one that the model was checked on."""
    found = [name for name, widest in CORES.items() if ISAS[widest] == isa]
    return found or ["znver4"]
