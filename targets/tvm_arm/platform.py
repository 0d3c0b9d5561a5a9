"""What to compile for: an operating system, and a CPU by its core's name or by its instruction set."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.isa import ISAS, LINUX_NAMES, Isa
from pocketphi.targets.tvm_arm.toolchain import host_arch

SYSTEMS = ("linux", "android", "ios", "host")

CORES = {
    "cortex-a53": "neon",
    "cortex-a72": "neon",
    "cortex-a73": "neon",
    "apple-a12": "neon",
    "cortex-a55": "dotprod",
    "cortex-a75": "dotprod",
    "cortex-a76": "dotprod",
    "cortex-a77": "dotprod",
    "cortex-a78": "dotprod",
    "cortex-x1": "dotprod",
    "neoverse-n1": "dotprod",
    "apple-a13": "dotprod",
    "apple-a14": "dotprod",
    "apple-m1": "dotprod",
    "cortex-a510": "i8mm",
    "cortex-a710": "i8mm",
    "cortex-a715": "i8mm",
    "cortex-x2": "i8mm",
    "cortex-x3": "i8mm",
    "neoverse-v1": "i8mm",
    "neoverse-n2": "i8mm",
    "apple-a15": "i8mm",
    "apple-a16": "i8mm",
    "apple-m2": "i8mm",
}
"""LLVM's name of a core → its widest instruction set of ours, by Arm's and LLVM's (AArch64Processors.td) tables."""

_DEFAULTS = {"linux": "dotprod", "android": "dotprod", "ios": "apple-a13"}
"""Every phone since 2019 has the dot product."""


@dataclass(frozen=True)
class Platform:
    """system: `linux`, `android` or `ios`; cpu: LLVM's name of the core that instructions are scheduled for, or None."""

    system: str
    isa: Isa
    cpu: str | None = None

    @staticmethod
    def of(system: str, cpu: str | None = None) -> Platform:
        """cpu: a core or an instruction set; `host`: this machine. Raises InputError with the nearest name otherwise."""
        if system not in SYSTEMS:
            raise InputError(f"--os {system}: expected one of {', '.join(SYSTEMS)}")
        if system == "host":
            isa = _named(cpu) if cpu else host_isa()
            if isa.arch != host_arch():
                raise InputError(f"--cpu {cpu}: is {isa.arch}, this machine is {host_arch()}; choose another --os")
            return Platform("linux", isa)
        name = cpu or _DEFAULTS[system]
        isa = _named(name)
        if isa.arch != "aarch64" and system != "linux":
            raise InputError(f"--cpu {name}: is {isa.arch}, {system} runs on aarch64")
        return Platform(system, isa, name if name in CORES else None)

    def target(self) -> dict[str, object]:
        """The target as TVM takes it."""
        return self.isa.target(self.system, self.cpu)

    def described(self) -> str:
        return f"{self.system}, {self.isa.arch} {self.cpu or ''}".rstrip() + f" with {self.isa.name}"

    def notes(self) -> list[str]:
        if self.isa.name != "neon":
            return []
        return ["made for CPUs without the dot product: on any phone since 2019, --cpu dotprod is about twice as fast"]


def host_isa() -> Isa:
    """The widest instruction set of this machine. Raises InputError where it has none of ours."""
    flags = cpu_flags()
    for isa in reversed(ISAS.values()):
        if isa.arch == host_arch() and {LINUX_NAMES.get(name, name) for name in isa.features} <= flags:
            return isa
    raise InputError(f"--os host: this {host_arch()} CPU has none of {', '.join(ISAS)}; choose another --os")


def cpu_flags() -> set[str]:
    """Features of this machine's CPU by Linux' names; empty where /proc does not tell."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}


def _named(name: str) -> Isa:
    if name in ISAS:
        return ISAS[name]
    if name in CORES:
        return ISAS[CORES[name]]
    known = [*ISAS, *CORES]
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"--cpu {name}: {hint}expected one of {', '.join(known)}")
