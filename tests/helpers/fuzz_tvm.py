"""Damaged bundles for the C runtime, built with AddressSanitizer and UBSan: each is refused in one line, or runs as before.

By hand, for long:

    python tests/helpers/fuzz_tvm.py --count 20000 [--first SEED]
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import tvm_small as small

from pocketphi.targets.tvm_arm.build_runtime import compile_sources
from pocketphi.targets.tvm_arm.toolchain import SOURCES, find_toolchain, host_arch

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
BASE = '{"threads": 2}'
VALUES: list[Any] = [
    *(0, -1, 1, 2, 7, 63, 64, 65, 100_000, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 10**30, 1.5, 1e308),
    *(None, True, False, "", "x", "saved", "float64", "float32x8", "decode_exact", "\x00\n", "é" * 300, [], {}, [[]]),
    *([2**40, 2**40], [-1, 4], [0], {"name": "prefill", "params": [0, 0, 0]}, {"name": 1}, float("nan"), float("inf")),
]


def build_driver(folder: Path) -> Path:
    """fuzz_tvm.cc with the runtime, all under the sanitizers."""
    checked = dataclasses.replace(find_toolchain("linux", host_arch()), flags=SANITIZERS)
    program, source = folder / "fuzz", Path(__file__).with_suffix(".cc")
    objects = map(str, compile_sources(checked, folder, options=("-O0", "-g1")))
    checked.run("-std=c++17", "-O1", f"-I{SOURCES}", str(source), *objects, "-ldl", "-pthread", "-o", str(program))
    return program


class Driver:
    """The program on a bundle's folder, started anew after it ended."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.command = [str(program), str(folder)]
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, options: bytes) -> str:
        """What came of opening and using the bundle; "crashed …" with the sanitizer's word."""
        if self.process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self.process = subprocess.Popen(self.command, **pipes)  # type: ignore[call-overload]
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(options.replace(b"\n", b" ") + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline().decode().rstrip("\n")
        return line or f"crashed {self.close()}"

    def close(self) -> str:
        """End the program: its exit code and what it said, also of memory that was lost."""
        if self.process is None:
            return "0 "
        said = self.process.communicate()[1].decode(errors="replace")
        code, self.process = self.process.returncode, None
        found = re.search(r"(runtime error|ERROR: \w+Sanitizer).*", said)
        return f"{code} {found[0] if found else said[-300:]}"


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *places(inner)]]


def damaged_json(value: Any, rng: random.Random) -> bytes:
    """One to three values replaced, removed, doubled or swapped; or bytes of the text damaged."""
    if rng.random() < 0.2:
        return damaged_bytes(json.dumps(value).encode(), rng)
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        found = places(value)
        if not found:
            break
        holder, key = rng.choice(found)
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, holder[key])
        elif kind == 2:
            other, name = rng.choice(found)
            holder[key] = copy.deepcopy(other[name]) if name in other or isinstance(other, list) else None
        elif kind == 3 and isinstance(holder[key], int):
            holder[key] += rng.choice((-1, 1, 64, -64, 2**32))
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, overwritten, repeated, or with a deep nest in it."""
    at, changed = rng.randrange(len(data) + 1), bytearray(data)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        changed[at : at + 8] = rng.randbytes(8)
    elif kind == 3:
        changed[at:at] = changed[at : at + rng.randint(1, 200)]
    elif kind == 4:
        changed[at:at] = rng.choice((b"[", b'{"a":', b"[{")) * rng.choice((10, 1000, 100_000))
    else:
        changed[at : at + 4] = rng.choice((b"\xff\xff\x7f\x7f", b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"9" * 400))
    return bytes(changed)


def run_case(driver: Driver, folder: Path, original: dict[str, bytes], seed: int) -> tuple[str, str]:
    """Damage one file or the options as `seed` says: what was damaged, and what came of it. The bundle is mended after."""
    rng = random.Random(seed)
    what = rng.choices(("model.json", "model.params", "options"), (8, 1, 1))[0]
    if what == "options":
        options = {"threads": 2, "mode": "saved", "max_tokens": 40, "check": True}
        return what, driver.ask(damaged_json(options, rng).replace(b"\x00", b" "))
    description = json.loads(original["model.json"])
    changed = damaged_json(description, rng) if what == "model.json" else damaged_bytes(original[what], rng)
    (folder / what).write_bytes(changed)
    try:
        options = BASE if rng.random() < 0.8 else '{"threads": 1, "mode": "exact", "check": true}'
        return what, driver.ask(options.encode())
    finally:
        (folder / what).write_bytes(original[what])


def fuzz(program: Path, folder: Path, seeds: range) -> tuple[Counter[str], list[str]]:
    """Run the seeds on a bundle's folder: how often each outcome came, and what was wrong."""
    driver = Driver(program, folder)
    original = {name: (folder / name).read_bytes() for name in ("model.json", "model.params")}
    right = {driver.ask(options.encode()) for options in (BASE, '{"mode": "exact"}')}
    counts: Counter[str] = Counter()
    wrong = [f"undamaged: {answer}" for answer in right if not answer.startswith("ran ")]
    for seed in seeds:
        what, answer = run_case(driver, folder, original, seed)
        kind, _, text = answer.partition(" ")
        counts[f"{what} {kind}"] += 1
        fine = bool(text) if kind in ("refused", "failed") else kind == "ran" and "0" * 16 not in text.split()
        if not fine or (kind == "ran" and what != "model.params" and answer not in right):
            wrong.append(f"seed {seed}, {what}: {answer}")
    ended = driver.close()
    return counts, wrong if ended.startswith("0 ") else [*wrong, f"at the end: {ended}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = small.write_small_bundle(
            Path(scratch, "bundle"), find_toolchain("linux", host_arch()), small.small_params()
        )
        program = build_driver(Path(scratch))
        counts, wrong = fuzz(program, folder, range(args.first, args.first + args.count))
    sys.stdout.writelines(f"{line}\n" for line in [*(f"{name}: {n}" for name, n in sorted(counts.items())), *wrong])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
