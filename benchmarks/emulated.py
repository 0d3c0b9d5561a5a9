"""aarch64 programs under qemu: how often they execute each block of instructions, and llvm-mca's cycles of blocks."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections import Counter
from pathlib import Path

from common import StepError

TRIPLE = "aarch64-linux-gnu"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What everyone finds: the CPU that qemu has; its part number and features as /proc/cpuinfo shows them, by which ONNX
    Runtime chooses its kernels; what llama.cpp is compiled for, which is when it chooses."""

    qemu: str
    part: str
    features: str
    arch: str


_OLD = "fp asimd aes pmull sha1 sha2 crc32"
_NEW = f"{_OLD} atomics fphp asimdhp asimdrdm asimddp"
MACHINES = {
    "neon": Machine("cortex-a53", "0xd03", _OLD, "armv8-a"),
    "dotprod": Machine("neoverse-n1", "0xd0c", _NEW, "armv8.2-a+dotprod"),
    "i8mm": Machine("max,sve=off,sme=off", "0xd49", f"{_NEW} i8mm", "armv8.2-a+dotprod+i8mm"),
}

COVERED = 0.98
"""Of all instructions: what the blocks that are looked at for cycles execute."""

INSTRUCTION = 4  # bytes
Block = tuple[int, str]
"""A block of instructions: its address, and its bytes in hexadecimal."""


def blocks_of(command: list[str], requests: str, machine: Machine, plugin: Path, work: Path) -> Counter[Block]:
    """How often each block runs in an aarch64 program, which gets `requests` on stdin. work: a folder for files."""
    out = work / "counted"
    qemu = ["qemu-aarch64", "-cpu", machine.qemu, "-L", str(_root(work, machine)), "-plugin", f"{plugin},out={out}"]
    done = subprocess.run([*qemu, *command], input=requests, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StepError(f"{Path(command[0]).name} under qemu -cpu {machine.qemu}: {said}")
    found: Counter[Block] = Counter()
    for line in out.read_text().splitlines():
        times, address, data = line.split()
        found[int(address, 16), data] += int(times)
    return found


def _root(work: Path, machine: Machine) -> Path:
    """What the program sees below /, where it differs from this machine's: libraries, and a CPU of one core."""
    root = work / f"root-{machine.part}"
    cpus = root / "sys/devices/system/cpu"
    for folder in (root / "proc", cpus):
        folder.mkdir(parents=True, exist_ok=True)
    if not (root / "lib").is_symlink():
        (root / "lib").symlink_to(f"/usr/{TRIPLE}/lib")
    shown = {"processor": "0", "Features": machine.features, "CPU implementer": "0x41", "CPU architecture": "8"}
    shown |= {"CPU variant": "0x3", "CPU part": machine.part, "CPU revision": "1"}
    (root / "proc/cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in shown.items()) + "\n")
    for name in ("possible", "present"):
        (cpus / name).write_text("0\n")
    return root


def size_of(data: str) -> int:
    """Instructions in a block, or in several."""
    return len(data) // 2 // INSTRUCTION


def joined(blocks: Counter[Block]) -> list[tuple[str, int]]:
    """Blocks with how often they run; those that follow each other in memory and run equally often are one."""
    at = {address: (data, times) for (address, data), times in sorted(blocks.items()) if times > 0}
    found: list[tuple[str, int]] = []
    for address in sorted(at):
        data, times = at.pop(address, ("", 0))
        while (end := address + len(data) // 2) in at and at[end][1] == times:
            data += at.pop(end)[0]
        if data:
            found.append((data, times))
    return found


def cycles_of(blocks: list[tuple[str, int]], executed: int, core: str) -> float:
    """llvm-mca's cycles of the blocks that execute nearly all instructions, each as a loop of its own."""
    total, seen = 0.0, 0
    for data, times in blocks:
        if seen >= COVERED * executed:
            break
        seen += size_of(data) * times
        total += times * _block_cycles(data, core)
    return total * executed / seen


TARGET = "-mattr=+dotprod,+i8mm,+fullfp16"


def disassembled(data: str) -> str:
    listed = " ".join(f"0x{data[i : i + 2]}" for i in range(0, len(data), 2))
    command = ["llvm-mc", "--disassemble", "--triple=aarch64", TARGET]
    return subprocess.run(command, input=listed, capture_output=True, text=True, check=True).stdout


_KNOWN: dict[tuple[str, str], float] = {}


def _block_cycles(data: str, core: str) -> float:
    """Of one pass through a block, in the middle of many. NaN where llvm-mca has no model of an instruction."""
    if (data, core) not in _KNOWN:
        rounds = 100
        command = ["llvm-mca", "--mtriple=aarch64", TARGET, f"-mcpu={core}", f"-iterations={rounds}"]
        said = subprocess.run(command, input=disassembled(data), capture_output=True, text=True).stdout
        found = re.search(r"Total Cycles:\s+(\d+)", said)
        _KNOWN[data, core] = int(found[1]) / rounds if found else float("nan")
    return _KNOWN[data, core]
