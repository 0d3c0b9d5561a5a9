"""What to compile for: an operating system, and a CPU by its core's name or by its instruction set."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from difflib import get_close_matches

from pocketphi.graph.cpu import cpu_flags
from pocketphi.graph.errors import CannotRun, InputError
from pocketphi.targets.tvm_arm.isa import ISAS, LINUX_NAMES, Isa
from pocketphi.targets.tvm_arm.toolchain import ARCHIVE, LIBRARY, Toolchain, find_toolchain, host_arch

SYSTEMS = ("linux", "android", "ios", "host")

_CORES = {
    "neon": ("cortex-a53", "cortex-a72", "cortex-a73", "apple-a12"),
    "dotprod": (
        *("cortex-a55", "cortex-a75", "cortex-a76", "cortex-a77", "cortex-a78", "cortex-x1"),
        *("neoverse-n1", "apple-a13", "apple-a14", "apple-m1"),
    ),
    "i8mm": (
        *("cortex-a510", "cortex-a710", "cortex-a715", "cortex-x2", "cortex-x3"),
        *("neoverse-v1", "neoverse-n2", "apple-a15", "apple-a16", "apple-m2"),
    ),
}
CORES = {core: isa for isa, cores in _CORES.items() for core in cores}
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

    def toolchain(self) -> Toolchain:
        """Raises InputError naming the package to install where the compiler or linker is missing."""
        return find_toolchain(self.system, self.isa.arch)

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
        if isa.arch == host_arch() and not lacking(isa, flags):
            return isa
    raise InputError(f"--os host: this {host_arch()} CPU has none of {', '.join(ISAS)}; choose another --os")


def lacking(isa: Isa, flags: Collection[str]) -> list[str]:
    """What of an instruction set a CPU with these features lacks."""
    return [name for name in isa.features if LINUX_NAMES.get(name, name) not in flags]


def _named(name: str) -> Isa:
    if name in ISAS:
        return ISAS[name]
    if name in CORES:
        return ISAS[CORES[name]]
    known = [*ISAS, *CORES]
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"--cpu {name}: {hint}expected one of {', '.join(known)}")


def toolchain_of(platform: Platform, library: str) -> Toolchain:
    """What a library of this name was made with. Raises CannotRun where that is not on this machine."""
    toolchain = platform.toolchain()
    if library == ARCHIVE and platform.system == "android":
        return replace(toolchain, compiler=())  # whatever is here now
    if library == LIBRARY and not toolchain.links:
        raise CannotRun(f"{LIBRARY} cannot be linked here to compare it: {toolchain.to_install}")
    return toolchain
