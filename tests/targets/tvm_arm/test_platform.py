"""What to compile for, by name."""

from __future__ import annotations

import pytest

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm import platform
from pocketphi.targets.tvm_arm.isa import ISAS, LINUX_NAMES, find_isa
from pocketphi.targets.tvm_arm.platform import CORES, Platform, host_isa
from pocketphi.targets.tvm_arm.toolchain import host_arch


@pytest.mark.parametrize(
    ("system", "cpu", "isa", "core"),
    [
        ("linux", None, "dotprod", None),
        ("android", None, "dotprod", None),
        ("ios", None, "dotprod", "apple-a13"),
        ("ios", "apple-a15", "i8mm", "apple-a15"),
        ("linux", "cortex-a53", "neon", "cortex-a53"),
        ("linux", "avx2", "avx2", None),
    ],
)
def test_a_core_or_an_instruction_set(system: str, cpu: str | None, isa: str, core: str | None) -> None:
    made = Platform.of(system, cpu)
    assert (made.system, made.isa.name, made.cpu) == (system, isa, core)
    target = made.target()
    assert target.get("mcpu") == core
    assert target["mattr"] == [f"+{name}" for name in ISAS[isa].features]


def test_every_core_has_an_instruction_set_and_llvm_knows_it() -> None:
    codegen = pytest.importorskip("tvm.target.codegen")
    assert set(CORES.values()) <= set(ISAS)
    assert [core for core in CORES if not codegen.llvm_is_valid_cpu(core, "aarch64-linux-gnu")] == []


@pytest.mark.parametrize(
    ("system", "cpu", "message"),
    [
        ("windows", None, "--os windows: expected one of linux, android, ios, host"),
        ("linux", "cortex-76", "--cpu cortex-76: did you mean cortex-a76.*expected one of neon, dotprod"),
        ("ios", "avx2", "--cpu avx2: is x86_64, ios runs on aarch64"),
        ("android", "avx512vnni", "android runs on aarch64"),
    ],
)
def test_refusals(system: str, cpu: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Platform.of(system, cpu)


def test_host_is_the_widest_that_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [isa for isa in ISAS.values() if isa.arch == host_arch()]
    flags = {LINUX_NAMES.get(name, name) for name in own[0].features}
    monkeypatch.setattr(platform, "cpu_flags", lambda: flags)
    assert host_isa() == own[0]
    assert Platform.of("host").isa == own[0]
    monkeypatch.setattr(platform, "cpu_flags", lambda: {LINUX_NAMES.get(n, n) for isa in own for n in isa.features})
    assert host_isa() == own[-1]
    monkeypatch.setattr(platform, "cpu_flags", set)
    with pytest.raises(InputError, match=r"--os host: this .* CPU has none of neon, dotprod"):
        host_isa()


def test_a_host_build_for_another_architecture_is_refused() -> None:
    other = next(isa.name for isa in ISAS.values() if isa.arch != host_arch())
    with pytest.raises(InputError, match=f"--cpu {other}: is .*, this machine is {host_arch()}"):
        Platform.of("host", other)


def test_neon_is_noted_as_slow() -> None:
    assert "twice as fast" in Platform.of("linux", "neon").notes()[0]
    assert Platform.of("linux", "i8mm").notes() == []
    assert Platform.of("linux", "cortex-a76").described() == "linux, aarch64 cortex-a76 with dotprod"


def test_an_unknown_instruction_set_in_a_bundle() -> None:
    with pytest.raises(InputError, match="instruction set 'sve': expected one of neon"):
        find_isa("sve")
